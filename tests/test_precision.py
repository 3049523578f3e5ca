"""The precision in which a model is held: sampler and trainer hold what the folder has, and a revision is of that."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Bench, answers, pairs
from test_every_trainer import prompts
from transformers import AutoModelForCausalLM

from redistill.agents import fitting
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput
from redistill.policies import catalog
from redistill.policies.model_folder import read_model
from redistill.policies.precision import Precision, precision_held, precision_of
from redistill.policies.proof import prove
from redistill.policies.revision import Revision, fingerprint_model
from redistill.policies.transformers import TransformersPolicy
from redistill.trainers.estimate import shape_of
from redistill.trainers.preference import DPO
from redistill.trainers.supervised import SFT
from redistill.trainers.trainer import Result

FEW: dict[str, Any] = {"batch_size": 4, "micro_batch": 4, "steps": 4}
needs_four_bits = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
EVERY = ("float32", "bfloat16", pytest.param("nf4", marks=needs_four_bits))
LOW = ("bfloat16", pytest.param("nf4", marks=needs_four_bits))


@pytest.fixture(scope="session")
def held(session_cache: Path) -> Any:
    """Return the tiny student as a revision of a precision."""

    def resolve(precision: Precision) -> Revision:
        return catalog.resolve("tiny", cache=session_cache, precision=precision).revision

    return resolve


def based(bench: Bench, start: Revision) -> Bench:
    """Let a bench begin from a revision, which lies among its own."""
    home = bench.run / "revisions" / start.id
    home.parent.mkdir(exist_ok=True)
    home.symlink_to(start.folder)
    return Bench(bench.run, home, start.id)


def made_of(bench: Bench, result: Result) -> Revision:
    """Return what a job has published."""
    assert result.status == "trained", result.message
    return Revision.read(bench.run / "revisions" / str(result.revision))


@pytest.mark.parametrize("precision", EVERY)
def test_a_student_is_the_same_whenever_it_is_loaded(held: Any, precision: Precision) -> None:
    """The folder has the precision; what is loaded from it has the revision's id, and speaks as it did."""
    revision = held(precision)
    assert precision_of(revision.folder) == precision_held(revision) == precision
    for _ in range(2):
        policy = TransformersPolicy(revision)
        policy.load(revision)
        assert policy.fingerprint() == revision.id
        assert prove(policy, revision, None).verdict == "ok"
    policy.load(revision)  # over itself
    assert policy.fingerprint() == revision.id
    assert len({held(p).id for p in ("float32", precision)}) == (1 if precision == "float32" else 2)


@pytest.mark.parametrize("precision", LOW)
def test_an_estimate_knows_the_weights_from_the_files(held: Any, precision: Precision) -> None:
    """The weights that a folder's files hold are counted right in every precision, and what they take as held."""
    right, found = shape_of(held("float32").folder), shape_of(held(precision).folder)
    assert found.precision == precision
    assert found.parameters == pytest.approx(right.parameters, rel=0.15)
    size = sum(file.stat().st_size for file in held(precision).folder.glob("*.safetensors"))
    assert found.held == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("trainer", [SFT(**FEW), DPO(**FEW, floor=0)], ids=["sft", "dpo"])
def test_all_weights_in_bfloat16(bench: Bench, held: Any, trainer: Any) -> None:
    """Trained in fp32 and rounded in the end: the revision is what the sampler holds, to the last bit."""
    bench = based(bench, held("bfloat16"))
    rows = answers(8) if trainer.rows == "completions" else pairs(8)
    made = made_of(bench, bench.train("a", trainer, rows))
    model = AutoModelForCausalLM.from_pretrained(made.folder, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert fingerprint_model(model) == made.id
    policy = TransformersPolicy(held("bfloat16"))
    policy.load(held("bfloat16"))
    policy.load(made)
    assert policy.fingerprint() == made.id
    assert prove(policy, made, held("bfloat16")).verdict == "ok"


def test_a_change_that_rounding_takes_back_is_none(bench: Bench, held: Any) -> None:
    """Steps too small for bfloat16 change the fp32 student, and are told as `no_change` of the other."""
    small = SFT(**FEW, learning_rate=1e-12)
    assert based(bench, held("float32")).train("a", small, answers(8)).status == "trained"
    assert based(bench, held("bfloat16")).train("b", small, answers(8)).status == "no_change"


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("kind", [SFT, DPO])
def test_an_adapter_on_a_base_of_low_precision(
    bench: Bench, held: Any, precision: Precision, kind: type[SFT | DPO]
) -> None:
    """The base stays as it is held; the policy with the adapter answers as where it was trained; it is continued."""
    start = held(precision)
    bench = based(bench, start)
    way = {"weights": "qlora" if precision == "nf4" else "lora", "rank": 4, "learning_rate": 1e-3}
    trainer = kind.model_validate(way | FEW)
    rows = answers(8) if kind is SFT else pairs(8)
    made = made_of(bench, bench.train("a", trainer, rows))
    assert (made.base, precision_held(made)) == (start.id, precision)
    assert made.facts()["weights"] == way["weights"]
    policy = TransformersPolicy(start)
    policy.load(made)
    assert policy.fingerprint() == made.id
    assert prove(policy, made, start).verdict == "ok"
    more = bench.train("b", trainer, rows, start_folder=made.folder, start_revision=made.id)
    assert made_of(bench, more).base == start.id


@needs_four_bits
def test_an_evaluation_between_changes_no_gradient(held: Any) -> None:
    """A base in four bits that was asked outside of training still passes gradients on, and the same ones."""
    import peft

    def gradients(*, asked: bool) -> dict[str, torch.Tensor]:
        base, _ = read_model(held("nf4").folder)
        torch.manual_seed(0)
        way = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model: Any = peft.get_peft_model(base, way)
        ids = torch.tensor([[5, 6, 7, 8]])
        if asked:
            with torch.no_grad():
                model.eval()(input_ids=ids)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, after = gradients(asked=False), gradients(asked=True)
    assert sum(float(g.abs().sum()) for g in plain.values()) > 0
    assert all(torch.equal(plain[name], after[name]) for name in plain)


@needs_four_bits
def test_a_base_in_four_bits_is_not_trained_whole(bench: Bench, held: Any) -> None:
    """Whole numbers of four bits have no gradient: the job says so, and publishes nothing."""
    result = based(bench, held("nf4")).train("a", SFT(**FEW), answers(8))
    assert result.status == "failed"
    assert "a student in nf4" in result.message


# -- recipes


def recipe(base: Path, *trainers: dict[str, Any], **fields: Any) -> Recipe:
    """Return a recipe with a stage for each trainer."""
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts())), "utf-8")
    ends: list[Any] = [{"evaluate": {"judge": "verifier", "max_tokens": 44}}, {"gate": {}}]
    sample = {"sample": {"k": 2, "max_tokens": 44, "temperature": 1.0}}
    stages = [
        {
            "repeat": 1,
            "round": [
                sample,
                {"score": {"judge": "verifier"}},
                {"select": {}},
                {"train": {"trainer": "sft", **FEW, **trainer}},
                *ends,
            ],
        }
        for trainer in trainers
    ]
    data = {"name": "one", "student": "tiny", "prompts": {"file": "prompts.jsonl"}}
    return load_recipe(json.dumps(data | fields | {"stages": stages}), "one.yaml", base=base)


def test_a_recipe_that_no_precision_suits_is_refused(tmp_path: Path) -> None:
    """Four bits beside a step that trains all weights, or beside another precision: one line each, at load."""
    for fields, trainers, told in (
        ({}, [{"weights": "qlora"}, {"weights": "full"}], "trains all weights"),
        ({"precision": "nf4"}, [{"weights": "full"}], "trains all weights"),
        ({"precision": "bfloat16"}, [{"weights": "qlora"}], "holds the student in nf4"),
    ):
        with pytest.raises(BadInput) as caught:
            recipe(tmp_path, *trainers, **fields)
        assert told in str(caught.value)
        assert str(caught.value).count("precision") >= 1


def test_auto_takes_what_fits(
    tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is fp32 without a card, bfloat16 with one, and four bits where one asks for it or nothing else fits."""

    def settled(*trainers: dict[str, Any], **fields: Any) -> str:
        loaded = recipe(tmp_path, *trainers, **fields)
        from redistill.agents.prompts import load_prompts

        rows = load_prompts(loaded.prompts, loaded.base, 0)
        return fitting.settled(loaded, rows, session_cache)

    monkeypatch.setattr(fitting, "has_card", lambda: False)
    assert settled({}) == "float32"
    assert settled({"weights": "qlora"}) == "nf4"
    assert settled({}, precision="bfloat16") == "bfloat16"
    monkeypatch.setattr(fitting, "has_card", lambda: True)
    assert settled({}) == settled({"weights": "auto"}) == "bfloat16"
    monkeypatch.setattr(fitting, "free_memory", lambda: 1 << 20)
    assert settled({"weights": "auto"}) == "nf4"
    assert settled({"weights": "lora"}) == "bfloat16"


def test_fp32_changes_no_run_of_before(tmp_path: Path) -> None:
    """A recipe without a precision keeps the ids that it had, and another precision gives others."""
    plain, low = recipe(tmp_path, {}), recipe(tmp_path, {}, precision="bfloat16")
    assert recipe(tmp_path, {}, precision="float32").key == plain.key
    assert low.key != plain.key


@pytest.mark.parametrize("trainer", [{}, pytest.param({"weights": "qlora"}, marks=needs_four_bits)])
def test_a_round_in_low_precision(tmp_path: Path, trainer: dict[str, Any]) -> None:
    """The student samples, trains, is measured and gated; the store has the precision; `auto` goes on as begun."""
    from redistill.agents.loop import Place, run
    from redistill.store.query import read_rows

    fields = {} if trainer else {"precision": "bfloat16"}
    place = Place(tmp_path / "runs", catalog.default_cache())
    folder = run(recipe(tmp_path, trainer, **fields), place=place)
    wanted = "nf4" if trainer else "bfloat16"
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]
    assert read_rows(folder, "SELECT precision FROM revision") == [{"precision": wanted}] * 2
    assert run(recipe(tmp_path, trainer, **fields), place=place) == folder
