"""Judge up, truth down: what trained well by its own judge and answers worse is never promoted, and is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gated import place

from redistill.agents.loop import run
from redistill.agents.recipe import load_recipe
from redistill.cli import main
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe

LONGEST = {"longest": {"unit": "characters"}}
"""The fake student's wrong answers are the longer ones."""
EVENTS = "SELECT round, detail FROM event WHERE kind = 'judge_diverged' ORDER BY round"


def ran(base: Path, label: dict[str, Any], *, gain: float = -0.3, rounds: int = 1) -> Path:
    """Run rounds in which a planted judge labels, and the verifier measures."""
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, fake_prompts())), "utf-8")
    recipe = fake_recipe(gain=gain, rounds=rounds) | {"unproven_judge": "allow"}
    [sample, _, _, *others] = recipe["round"]
    recipe["round"] = [sample, label, {"select": {"per_prompt": 1}}, *others]
    return run(load_recipe(json.dumps(recipe), "recipe.yaml", base=base), place=place(base))


def test_f10_judge_up_truth_down_is_never_promoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After two rounds the champion is the first student, and each decision names the judge that was pleased."""
    folder = ran(tmp_path, {"score": {"judge": LONGEST}}, rounds=2)
    decisions = read_rows(folder, "SELECT * FROM decision ORDER BY round")
    [initial] = {row["champion"] for row in decisions}
    assert initial == read_rows(folder, "SELECT student FROM run")[0]["student"]
    assert [(row["decision"], row["delta"] < -0.1) for row in decisions] == [("rejected", True)] * 2
    told = (
        "; longest, whose labels trained it, prefers its answers to 100 % of 16 prompts: "
        "judge up, evaluation down"
    )
    assert all(row["reason"].endswith(told) for row in decisions)
    found = read_rows(folder, EVENTS)
    assert [row["round"] for row in found] == [1, 2]
    detail = json.loads(found[0]["detail"])
    assert (detail["judge"], detail["prefers"], detail["n"]) == ("longest", 1.0, 16)
    with pytest.raises(SystemExit, match="0"):
        main(["status", "fake", "--runs", str(tmp_path / "runs")])
    assert told in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("label", "gain"),
    [
        ({"score": {"judge": {"shortest": {"unit": "characters"}}}}, -0.3),
        ({"compare": {"judge": "first", "per_prompt": 1}}, -0.3),
        ({"score": {"judge": "verifier"}}, -0.3),
        ({"score": {"judge": LONGEST}}, 0.25),
    ],
    ids=["not pleased", "pleased by places", "the one that measures", "truth up"],
)
def test_f10_other_judges_are_not_named(tmp_path: Path, label: dict[str, Any], gain: float) -> None:
    """A judge that likes the worse answers no better, has no opinion, or measures itself has not diverged."""
    folder = ran(tmp_path, label, gain=gain)
    [decision] = read_rows(folder, "SELECT reason FROM decision")
    assert "judge up" not in decision["reason"]
    assert read_rows(folder, EVENTS) == []
