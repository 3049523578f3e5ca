"""Adapters: a revision that is a base and a small change, trained, loaded, proven, and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import Bench, answers, load, pairs
from test_every_trainer import DATA

from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.errors import StoreProblem
from redistill.policies import adapter, catalog
from redistill.policies.policy import Request, Sampling
from redistill.policies.proof import prove
from redistill.policies.revision import Revision
from redistill.policies.transformers import TransformersPolicy
from redistill.store.query import read_rows
from redistill.trainers import tuning
from redistill.trainers.estimate import Shape, Way, estimate, first_that_fits, shape_of, ways
from redistill.trainers.preference import DPO
from redistill.trainers.supervised import SFT
from redistill.trainers.trainer import Result

LORA: dict[str, Any] = {"weights": "lora", "rank": 4, "learning_rate": 1e-3}
FEW: dict[str, Any] = {"batch_size": 4, "micro_batch": 4, "steps": 4}


def folder_of(bench: Bench, result: Result) -> Path:
    """Return the folder of what a job has published."""
    assert result.status == "trained", result.message
    return bench.run / "revisions" / str(result.revision)


@pytest.fixture
def based(bench: Bench) -> Bench:
    """A bench whose start lies among the revisions, as in a run."""
    home = bench.run / "revisions" / bench.revision
    home.parent.mkdir()
    bench.start.rename(home)
    files = {
        f.name: {"sha256": "", "size": f.stat().st_size} for f in home.iterdir() if f.is_file()
    }
    from redistill.hashing import file_sha256

    for name in files:
        files[name]["sha256"] = file_sha256(home / name)
    manifest = {"id": bench.revision, "parent": None, "facts": {}, "files": files, "canary": None}
    (home / "revision.json").write_text(json.dumps(manifest), "utf-8")
    bench.start = home
    return bench


@pytest.mark.parametrize("trainer", [SFT(**LORA, **FEW), DPO(**LORA, **FEW, floor=0)])
def test_only_the_change_is_written(based: Bench, trainer: Any) -> None:
    """The folder has the adapter, names its base by revision, and holds no path of this machine."""
    rows = answers(8) if trainer.rows == "completions" else pairs(8)
    folder = folder_of(based, based.train("a", trainer, rows))
    assert not list(folder.glob("model*.safetensors"))
    assert adapter.base_of(folder) == based.revision
    assert str(based.run) not in (folder / adapter.CONFIG).read_text("utf-8")
    found = Revision.read(folder)
    assert (found.base, found.parent) == (based.revision, based.revision)
    assert found.facts()["weights"] == "lora"


def test_trls_own_loss_leaves_no_second_adapter(based: Bench) -> None:
    """TRL keeps a copy of the adapter as its reference where it has none; ours is in the rows."""
    trainer = DPO(**LORA, **FEW, options={"loss_type": ["ipo"]})
    folder = folder_of(based, based.train("a", trainer, pairs(8)))
    assert [f.name for f in folder.rglob("adapter_model.safetensors")] == [
        "adapter_model.safetensors"
    ]
    assert not (folder / "ref").exists()


def test_the_policy_speaks_with_it_and_proves_it(based: Bench) -> None:
    """Loaded over the base it answers as where it was made; the base alone does not; and back again."""
    result = based.train("a", SFT(**LORA, **FEW), answers(8))
    made, base = Revision.read(folder_of(based, result)), Revision.read(based.start)
    policy = TransformersPolicy(base)
    asked = [Request((5, 6, 7), 1)]
    policy.load(base)
    before = policy.generate(asked, Sampling(0.0, max_tokens=8))
    policy.load(made)
    proof = prove(policy, made, None)
    assert (proof.verdict, policy.fingerprint(), policy.revision) == ("ok", made.id, made.id)
    assert proof.d_new < 1e-5
    policy.load(base)
    assert policy.generate(asked, Sampling(0.0, max_tokens=8)) == before
    assert prove(policy, made, base).verdict == "wrong"


def test_u49_a_base_that_changed_is_refused(based: Bench) -> None:
    """The id is of both: an adapter on another base is not what was published."""
    made = Revision.read(folder_of(based, based.train("a", SFT(**LORA, **FEW), answers(8))))
    other = load(based.start)
    with torch.no_grad():
        other.model.norm.weight += 0.1
    other.save_pretrained(based.start)
    with pytest.raises(StoreProblem):
        TransformersPolicy(made).load(made)


def test_one_adapter_is_continued(based: Bench) -> None:
    """The next job changes the same adapter on the same base; its parent is the adapter before."""
    first = based.train("a", SFT(**LORA, **FEW), answers(8))
    start = folder_of(based, first)
    again = based.train(
        "b", SFT(**LORA, **FEW), answers(8, seed=1), start_folder=start, start_revision=start.name
    )
    second = Revision.read(folder_of(based, again))
    assert (second.base, second.parent) == (based.revision, start.name)
    assert adapter.base_of(second.folder) == based.revision
    whole = based.train(
        "c",
        SFT(**FEW, weights="full"),
        answers(8),
        start_folder=second.folder,
        start_revision=second.id,
    )
    assert whole.status == "failed"
    assert "training begins from an adapter" in whole.message


def test_f33_merging_changes_no_answer(based: Bench) -> None:
    """Logits of the merged model are those of base and adapter, within 1e-4."""
    made = folder_of(based, based.train("a", SFT(**LORA, **FEW), answers(8)))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        apart = adapter.attach(load(based.start), made).eval()(input_ids=ids).logits
        merged = adapter.attach(load(based.start), made).merge_and_unload().eval()
        assert torch.allclose(merged(input_ids=ids).logits, apart, atol=1e-4)
        assert not torch.allclose(load(based.start)(input_ids=ids).logits, apart, atol=1e-2)


def test_the_first_way_that_fits_is_taken(based: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less and less memory: all weights, then activations computed again, then an adapter."""
    trainer = SFT(**FEW, weights="auto")
    shape = shape_of(based.start)
    every = [
        estimate(shape, trainer, 19, way, recompute=again)
        for way in ("full", "lora")
        for again in (False, True)
    ]
    rows = [row | {"prompt_ids": [5] * 12, "completion_ids": [6] * 6 + [2]} for row in answers(4)]
    seen = set()
    for name, one in enumerate(every):
        free = int(one.total / 0.9) + 1
        monkeypatch.setattr(tuning, "_free_memory", lambda free=free: free)
        based.events.clear()
        assert based.train(f"j{name}", trainer, rows).status == "trained"
        wanted = next(other for other in every if other.total <= 0.9 * free)
        told = {"event": "way", "weights": wanted.way, "recompute": wanted.recompute}
        assert based.events[0] == told
        seen.add((wanted.way, wanted.recompute))
    assert {("full", False), ("lora", True)} <= seen


@given(st.integers(1, 4000), st.integers(1, 64), st.sampled_from(["full", "lora"]))
def test_an_estimate_grows_with_the_rows_and_names_its_parts(
    tokens: int, micro: int, way: Way
) -> None:
    """More tokens or rows never take less; computing again never takes more; a card that is large fits all."""
    shape = Shape(134_515_008, 30, 576, 1536, 49_152, 10_176)
    trainer = SFT(batch_size=micro, micro_batch=micro)
    one = estimate(shape, trainer, tokens, way, recompute=False)
    assert one.total == sum(one.parts.values())
    assert min(one.parts.values()) >= 0
    assert estimate(shape, trainer, tokens + 1, way, recompute=False).total >= one.total
    assert estimate(shape, trainer, tokens, way, recompute=True).parts["activations"] <= (
        one.parts["activations"] + shape.width * tokens * micro * 4 * 30
    )
    auto = SFT(batch_size=micro, micro_batch=micro, weights="auto")
    assert first_that_fits(ways(auto, shape, tokens, "full"), 1 << 60) == estimate(
        shape, auto, tokens, "full", recompute=False
    )


def test_recomputing_changes_no_weight(based: Bench) -> None:
    """Activations that are computed again give the same revision."""
    kept = based.train("a", DPO(**FEW, recompute=False), pairs(8))
    again = based.train("b", DPO(**FEW, recompute=True), pairs(8))
    model, other = (load(folder_of(based, result)).state_dict() for result in (kept, again))
    assert max(float((model[n] - other[n]).abs().max()) for n in model) < 1e-6


def test_rounds_with_an_adapter(tmp_path: Path) -> None:
    """The second round samples with the first one's adapter and continues it; its own log-probs are its reference."""
    asked = {"k": 4, "temperature": 0.7, "max_tokens": 44}
    way: dict[str, Any] = {"weights": "lora", "rank": 16, "micro_batch": 4}
    ends: list[Any] = [{"evaluate": {"judge": "verifier", "max_tokens": 44}}, {"gate": {}}]
    first = [
        {"sample": {"role": "teacher", **asked}},
        {"score": {"judge": "verifier"}},
        {"select": {"where": "verifier = 1"}},
        {"train": {"trainer": "sft", **way, "batch_size": 16, "learning_rate": 2e-3, "steps": 12}},
        *ends,
    ]
    second = [
        {"sample": asked},
        {"score": {"judge": "verifier"}},
        {"pair": {"by": "verifier", "rule": "correct_incorrect"}},
        {"train": {"trainer": "dpo", **way, "batch_size": 4, "learning_rate": 1e-4, "steps": 1}},
        *ends,
    ]
    recipe = {
        "name": "lora",
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl", "per_round": 120},
        "roles": {"teacher": {"policy": "tiny-teacher"}},
        "stages": [{"repeat": 1, "round": first}, {"repeat": 1, "round": second}],
    }
    rows = list(map(json.loads, DATA.read_text("utf-8").splitlines()))
    few = [row for row in rows if row["split"] != "test"] + [
        row for row in rows if row["split"] == "test"
    ][:8]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, few)), "utf-8")
    loaded = load_recipe(json.dumps(recipe), "lora.yaml", base=tmp_path)
    folder = run(loaded, place=Place(tmp_path / "runs", catalog.default_cache()))
    one, two = read_rows(folder, "SELECT * FROM training_run ORDER BY round")
    assert (one["status"], two["status"]) == ("trained", "trained"), (
        one["message"],
        two["message"],
    )
    assert two["start_revision"] == two["reference_revision"] == one["revision"]
    sources = read_rows(
        folder, "SELECT DISTINCT reference_from AS f FROM training_row WHERE round = 2"
    )
    assert sources == [{"f": "stored"}]
    for job in (one, two):
        made = folder / "revisions" / job["revision"]
        assert adapter.base_of(made) == one["start_revision"]
    [gain] = read_rows(
        folder, "SELECT challenger_value - champion_value AS g FROM decision LIMIT 1"
    )
    assert gain["g"] > 0.1
