"""The loop's promises: where rounds start, when they stop, and that nothing false is ever published."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_judges import Holding

from redistill.agents.judges.program import Verifier
from redistill.agents.loop import Place, prepare, resume, run
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput, WrongWeights
from redistill.report.summary import summary
from redistill.store.query import query, read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe


def _load(base: Path, recipe: dict[str, Any]) -> Recipe:
    rows = fake_prompts(train=24, heldout=60, test=60)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=base)


def _run(base: Path, recipe: dict[str, Any]) -> Path:
    return run(_load(base, recipe), place=Place(base / "runs", base / "cache"))


def _tiny_recipe(**changed: Any) -> dict[str, Any]:
    recipe = fake_recipe(rounds=1)
    recipe |= {"student": "planted:HeadKeeper", "execution": {"threads": 1}, "seed": 1}
    recipe |= {"unproven_judge": "allow", "same_judge": "allow"}
    recipe["prompts"]["per_round"] = 6
    recipe["round"] = [
        # A random model ends about one answer in a hundred tokens, and only ended ones train.
        {"sample": {"k": 8, "max_tokens": 64, "temperature": 1.0}},
        {"score": {"judge": {"longest": {"unit": "characters"}}}},
        {"pair": {"by": "longest"}},
        {
            "train": {
                "trainer": "sft",
                "learning_rate": 0.01,
                "steps": 2,
                "batch_size": 2,
                "micro_batch": 2,
                "most_cut": 1.0,
            }
            | changed
        },
        {"evaluate": {"judge": {"longest": {"unit": "characters"}}, "max_tokens": 8}},
        {"gate": {"guards": []}},
    ]
    return recipe


def test_a_promoted_challenger_is_where_the_next_round_starts(tmp_path: Path) -> None:
    """Round 2 starts from round 1's revision, and the gain is that of the last champion on test."""
    folder = _run(tmp_path, fake_recipe(gain=0.3))
    found = summary(folder)
    assert [r["decision"] for r in found["rounds"]] == ["promoted", "promoted"]
    champions = [
        r["champion"] for r in read_rows(folder, "SELECT champion FROM round ORDER BY round")
    ]
    assert champions == [found["student"], found["rounds"][0]["revision"]]
    assert found["gain"]["n"] == 60
    assert found["gain"]["ci_low"] > 0
    spoke = read_rows(
        folder, "SELECT DISTINCT round, revision FROM completion WHERE step = 'sample'"
    )
    assert {(r["round"], r["revision"]) for r in spoke} == set(enumerate(champions, start=1))


def test_a_worse_challenger_is_sent_back(tmp_path: Path) -> None:
    """A trainer that harms is rejected, the champion stays, and patience ends the run."""
    recipe = fake_recipe(rounds=5, gain=-0.25)
    recipe["loop"]["stop"] = {"patience": 2}
    found = summary(_run(tmp_path, recipe))
    assert [r["decision"] for r in found["rounds"]] == ["rejected", "rejected"]
    assert all(r["metric"]["ci_high"] < 0 for r in found["rounds"])
    assert found["gain"]["delta"] == 0
    folder = tmp_path / "runs" / "fake"
    tested = read_rows(folder, "SELECT DISTINCT step FROM completion WHERE split = 'test'")
    assert [r["step"] for r in tested] == ["test_initial"]
    assert len(read_rows(folder, "SELECT id FROM evaluation WHERE split = 'test'")) == 1


def test_no_operator_sees_the_test_split(tmp_path: Path) -> None:
    """Test prompts are answered twice in a run: by the initial student and by the last champion."""
    folder = _run(tmp_path, fake_recipe())
    steps = read_rows(
        folder, "SELECT DISTINCT step FROM completion WHERE split = 'test' ORDER BY 1"
    )
    assert [r["step"] for r in steps] == ["test_champion", "test_initial"]
    trained = read_rows(
        folder,
        "SELECT DISTINCT p.split FROM training_row t JOIN prompt p ON p.id = t.prompt_id",
    )
    assert [r["split"] for r in trained] == ["train"]


def test_the_champion_is_measured_once(tmp_path: Path) -> None:
    """A champion's held-out answers are kept and never sampled again."""
    folder = _run(tmp_path, fake_recipe())
    measured = read_rows(
        folder,
        "SELECT revision, count(*) AS n FROM evaluation WHERE split = 'heldout' GROUP BY revision",
    )
    assert {r["n"] for r in measured} == {1}
    assert len(measured) == 3


def test_a_judge_lets_go_before_anything_is_trained(tmp_path: Path) -> None:
    """It is asked chunk by chunk, and gives back what it holds once, after the step's last chunk."""
    recipe = fake_recipe(rounds=1)
    recipe["round"][1] = {"score": {"judge": "fake_judges:Holding"}}
    recipe["round"][2] = {"select": {"where": "holding = 0.5", "per_prompt": 1}}
    Holding.let_go.clear()
    _run(tmp_path, recipe)
    assert Holding.let_go == ["held"] * 5 + ["released"]


def test_another_recipe_under_the_same_name_is_refused(tmp_path: Path) -> None:
    """The message names what differs, and the run stays as it was."""
    folder = _run(tmp_path, fake_recipe(rounds=1))
    before = (folder / "recipe.yaml").read_bytes()
    changed = fake_recipe(rounds=1)
    changed["round"][0]["sample"]["k"] = 2
    with pytest.raises(BadInput, match=r"sample\.k was 4, is 2"):
        _run(tmp_path, changed)
    assert (folder / "recipe.yaml").read_bytes() == before


def test_a_run_needs_nothing_outside_its_folder(tmp_path: Path) -> None:
    """After the prompts file is gone, `resume` still finds all that it needs in the run."""
    recipe = _load(tmp_path, fake_recipe())
    place = Place(tmp_path / "runs", tmp_path / "cache")
    folder = prepare(recipe, place)
    (tmp_path / "prompts.jsonl").unlink()
    assert summary(resume(folder, place=place))["state"] == "finished"


def test_queries_while_a_run_writes_change_nothing(tmp_path: Path) -> None:
    """A hundred queries beside a run meet no error, and the run has the rows of a quiet one."""
    quiet, asked = tmp_path / "quiet", tmp_path / "asked"
    quiet.mkdir()
    asked.mkdir()
    calm = _run(quiet, fake_recipe())
    recipe = _load(asked, fake_recipe())
    place = Place(asked / "runs", asked / "cache")
    folder = prepare(recipe, place)
    running = threading.Thread(target=run, args=(recipe,), kwargs={"place": place})
    running.start()
    answered = 0
    while answered < 100:
        if (folder / "store.read.duckdb").exists():
            query(folder, "SELECT count(*) AS n FROM answers")
            answered += 1
        elif not running.is_alive():
            pytest.fail("the run has published nothing")
    running.join()
    for sql in (
        "SELECT id::VARCHAR AS id FROM completion ORDER BY 1",
        "SELECT round, decision, delta FROM decision ORDER BY round",
        "SELECT round, dataset_hash FROM training_run ORDER BY round",
    ):
        assert read_rows(folder, sql) == read_rows(calm, sql)


def test_a_policy_that_ignores_load_stops_the_run(tmp_path: Path) -> None:
    """The canary of the challenger finds the deaf policy; status names it; nothing is decided."""
    recipe = fake_recipe(rounds=1) | {"student": "planted:DeafStudent"}
    with pytest.raises(WrongWeights, match="does not answer with it"):
        _run(tmp_path, recipe)
    found = summary(tmp_path / "runs" / "fake")
    assert found["state"] == "stopped"
    assert "does not answer with it" in found["stopped_by"]
    assert found["rounds"][0]["decision"] is None


def test_a_policy_that_keeps_its_head_stops_the_run(tmp_path: Path) -> None:
    """Loading all but the head is nearer to the new weights than to the old, and found all the same."""
    with pytest.raises(WrongWeights):
        _run(tmp_path, _tiny_recipe())
    found = summary(tmp_path / "runs" / "fake")
    assert "does not answer with it" in found["stopped_by"]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"trainer": "planted:NanSFT"}, "nonfinite"),
        ({"learning_rate": 0.0}, "no_change"),
        ({"trainer": "dpo", "learning_rate": 0.0}, "no_change"),
    ],
)
def test_a_bad_training_job_publishes_nothing(
    tmp_path: Path, changed: dict[str, Any], status: str
) -> None:
    """NaN in a step, or a learning rate of 0: no revision, the champion stays, status says why."""
    folder = _run(tmp_path, _tiny_recipe(**changed))
    [round_] = summary(folder)["rounds"]
    assert round_["training"]["status"] == status
    assert round_["decision"] == "rejected"
    assert status in round_["reason"]
    assert round_["revision"] is None
    assert len(read_rows(folder, "SELECT id FROM revision")) == 1


def test_a_judge_that_changed_is_not_gone_on_with(tmp_path: Path, monkeypatch: Any) -> None:
    """A run whose judge is another now is refused: its values could not be compared."""
    recipe = _load(tmp_path, fake_recipe())
    place = Place(tmp_path / "runs", tmp_path / "cache")
    folder = run(recipe, place=place)
    monkeypatch.setattr(Verifier, "version", Verifier.version + 1)
    with pytest.raises(BadInput, match="verifier is not what it was"):
        resume(folder, place=place)


def test_a_renamed_run_is_the_same_run(tmp_path: Path) -> None:
    """After its folder is renamed, resume finds it finished, and makes no other run."""
    place = Place(tmp_path / "runs", tmp_path / "cache")
    folder = run(_load(tmp_path, fake_recipe()), place=place)
    moved = folder.rename(folder.with_name("moved"))
    before = read_rows(moved, "SELECT count(*) AS n FROM write_batch")
    assert resume(moved, place=place) == moved
    assert read_rows(moved, "SELECT count(*) AS n FROM write_batch") == before
    assert not folder.exists()


def test_thin_evidence_promotes_nothing(tmp_path: Path) -> None:
    """Three held-out prompts that all improve have an interval without width, and prove nothing."""
    rows = fake_prompts(train=24, heldout=3, test=20)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = fake_recipe(rounds=1, gain=1.0)
    loaded = load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=tmp_path)
    found = summary(run(loaded, place=Place(tmp_path / "runs", tmp_path / "cache")))
    [round_] = found["rounds"]
    assert round_["metric"]["ci_low"] > 0
    assert round_["decision"] == "rejected"
    assert "prompts differ" in round_["reason"]
