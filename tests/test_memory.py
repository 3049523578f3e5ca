"""Who will take how much memory: the estimate that is told before anything loads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from planted_cards import plant
from rich.console import Console

from redistill.agents.engines import Seat, Vllm, open_engine, stays_up
from redistill.agents.fitting import shapes
from redistill.agents.loop import Place, run
from redistill.agents.memory import MemoryPlan, memory_plan
from redistill.agents.prompts import load_prompts
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import EnvironmentProblem
from redistill.policies.placement import Card, place
from redistill.policies.policy import ROWS_TOGETHER
from redistill.policies.vllm import VllmPolicy
from redistill.report.forecast import forecast, show_forecast
from redistill.testing.fakes import fake_prompts, fake_recipe
from redistill.trainers.estimate import shape_of


def loaded(base: Path, **changes: Any) -> Recipe:
    """Return the fake recipe with the tiny student and a real trainer."""
    rows = fake_prompts(train=24, heldout=60, test=60)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = fake_recipe() | {"student": "tiny", "execution": {"threads": 1}} | changes
    recipe["round"] = [
        {"train": {"trainer": "sft"}} if "train" in step else step for step in recipe["round"]
    ]
    return load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=base)


def planned(recipe: Recipe, cache: Path) -> MemoryPlan:
    """Return the plan of a recipe that is held in fp32."""
    prompts = load_prompts(recipe.prompts, recipe.base, recipe.seed)
    return memory_plan(recipe, prompts, shapes(recipe, cache, "float32"))


@pytest.mark.parametrize("hidden", [32, 64])
def test_the_estimate_of_a_cache_is_what_one_takes(tmp_path: Path, hidden: int) -> None:
    """Bytes a token of the cache of keys and values, as the library itself lays it out."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, DynamicCache

    from redistill.testing.tiny import make_tiny_model

    folder = make_tiny_model(tmp_path / "m", hidden=hidden)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    cache: Any = DynamicCache(config=model.config)
    model(torch.zeros(3, 20, dtype=torch.long), past_key_values=cache, use_cache=True)
    taken = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert taken == 3 * 20 * shape_of(folder).cached


def test_the_sampler_is_planned_by_the_rows_that_it_samples_together(tmp_path: Path) -> None:
    """More tokens or more rows at once take more cache; more than a chunk and a batch is never at once."""
    small = planned(loaded(tmp_path), tmp_path).tenants[0]
    assert small.name == "sampler"
    assert set(small.parts) == {"weights", "KV cache", "logits", "activations", "process"}
    few = planned(loaded(tmp_path, chunk=8), tmp_path).tenants[0]
    assert (few.batch.rows, small.batch.rows) == (8, 16)
    assert small.parts["KV cache"] == 2 * few.parts["KV cache"]
    many = planned(loaded(tmp_path, chunk=512), tmp_path).tenants[0]
    assert many.batch.rows == ROWS_TOGETHER  # one thread samples one batch at a time
    two = planned(loaded(tmp_path, chunk=512, execution={"threads": 2}), tmp_path).tenants[0]
    assert two.batch.rows == 2 * ROWS_TOGETHER
    steps = loaded(tmp_path).stages[0].steps
    assert small.batch.tokens > max(int(getattr(step, "max_tokens", 0)) for step in steps)


def test_judges_and_teachers_of_this_machine_are_planned_too(tmp_path: Path) -> None:
    """A role with a model of its own, and a reward model, are told by name; an address takes nothing here."""
    recipe = fake_recipe()
    roles = {
        "critic": {"policy": "tiny-teacher"},
        "far": {"policy": "http://127.0.0.1:1/v1", "model": "m"},
    }
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, LlamaForSequenceClassification

    from redistill.testing.tiny import make_tiny_model

    reward = make_tiny_model(tmp_path / "reward")
    classifier = LlamaForSequenceClassification(AutoConfig.from_pretrained(reward, num_labels=1))
    size = sum(p.numel() for p in classifier.parameters())
    classifier.to(torch.bfloat16).save_pretrained(reward)
    score = {"reward_model": {"model": str(reward)}}
    steps = [*recipe["round"][:2], {"score": {"as": "scored", "judge": score}}]
    steps += [{"critique": {"role": "critic"}}, *recipe["round"][2:]]
    found = planned(loaded(tmp_path, roles=roles, round=steps), tmp_path)
    assert [t.name for t in found.tenants] == ["sampler", "role critic", "judge reward_model"]
    assert found.tenants[1].parts["weights"] > 1e6
    taken = found.tenants[2].parts["weights"]
    assert taken == pytest.approx(4 * size, rel=0.1)  # sixteen bits in the file, fp32 as a judge
    assert any(line.startswith("memory: role critic tiny-teacher: ab") for line in found.lines())


def test_what_does_not_fit_on_a_card_is_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampler alone and trainer alone are measured against what is free; the lines say what to do."""
    plant(monkeypatch, tmp_path, ("GPU-a", 4000, 100))
    recipe = loaded(tmp_path)
    sampler, trainer = planned(recipe, tmp_path).problems()
    assert sampler.startswith("memory: the sampler (tiny) needs about ")
    assert "104.9 MB are free; make chunk or max_tokens smaller" in sampler
    assert trainer.startswith("memory: training needs about ")
    plant(monkeypatch, tmp_path, ("GPU-a", 4000, 4000))
    assert planned(recipe, tmp_path).problems() == []


def test_a_model_larger_than_the_machine_is_refused_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that exceed all memory there is end the run in one line, and nothing was written."""
    plant(monkeypatch, tmp_path, ("GPU-a", 2, 2))
    with pytest.raises(EnvironmentProblem) as caught:
        run(loaded(tmp_path, precision="float32"), place=Place(tmp_path / "runs", tmp_path / "c"))
    assert str(caught.value).startswith("memory: the weights of the sampler (tiny) take 4.")
    assert "and there are 2.1 MB in all; take a smaller model" in str(caught.value)
    assert not (tmp_path / "runs" / "fake" / "store.duckdb").exists()
    assert not (tmp_path / "c").exists()


def test_the_plan_tells_it_and_who_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` has the estimate in JSON and in words, with the hand-over of one card and of two."""
    recipe = loaded(tmp_path)

    def told() -> tuple[dict[str, Any], str]:
        found = forecast(recipe, tmp_path, tmp_path)
        out = io.StringIO()
        show_forecast(Console(file=out, width=250), found)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        return found["memory"], out.getvalue()

    alone, text = told()
    assert not alone["placement"]["side_by_side"]
    assert "sampler   tiny: about " in text
    assert "KV cache" in text
    assert "hand-over one after the other: the sampler is released before each job" in text
    plant(monkeypatch, tmp_path, ("GPU-a", 4000, 4000), ("GPU-b", 4000, 4000))
    apart, text = told()
    assert apart["placement"] == {"sampler": ["GPU-a"], "trainer": ["GPU-b"], "side_by_side": True}
    assert "hand-over side by side: GPU-a samples, GPU-b trains" in text


def test_an_engine_that_stays_up_is_counted_beside_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache is there from the start; without a card its memory is not given back for a job."""
    recipe = loaded(tmp_path, execution={"threads": 1, "sampler": "vllm", "vllm": {"cache_gib": 2}})
    found = planned(recipe, tmp_path)
    assert found.tenants[0].parts["KV cache"] == 2 << 30
    assert found.stays
    assert found.lines()[-1].startswith("hand-over: the engine stays up beside the trainer")
    alone = recipe.execution.vllm.model_copy(update={"stays": False})
    leaves = recipe.model_copy(
        update={"execution": recipe.execution.model_copy(update={"vllm": alone})}
    )
    assert not planned(leaves, tmp_path).stays
    plant(monkeypatch, tmp_path, ("GPU-a", 9000, 9000), ("GPU-b", 9000, 9000))
    apart = planned(recipe, tmp_path)
    assert not apart.stays  # each has a card of its own
    assert stays_up(recipe.execution.vllm, apart.placement)


def test_each_engine_is_told_its_cards(tmp_path: Path) -> None:
    """The sampler's cards reach vLLM by name and torch by number; vLLM stays where the trainer has others."""
    pytest.importorskip("torch")
    from redistill.policies.transformers import TransformersPolicy
    from redistill.testing.tiny import make_tiny_revision

    revision = make_tiny_revision(tmp_path / "revisions")
    placement = place([Card(name, 1, 1) for name in ("GPU-a", "GPU-b")])
    seat = Seat(placement, 1, tmp_path / "engine.log")
    policy = open_engine(revision, "vllm", Vllm(), seat, rank=0)
    assert isinstance(policy, VllmPolicy)
    assert (policy._settings.cards, policy._settings.stays) == ("GPU-a", True)
    embedded = open_engine(revision, "transformers", Vllm(), seat, rank=0)
    assert isinstance(embedded, TransformersPolicy)
    assert str(embedded._device) == "cuda:0"
