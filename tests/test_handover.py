"""One card, two tenants: who leaves when, what that takes, and that on two cards nobody leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import planted_cards
import pytest
import yaml
from planted_cards import RELEASED, plant
from typer.testing import CliRunner

from redistill.agents.loop import Place, Silent, run
from redistill.agents.recipe import load_recipe
from redistill.cli import app
from redistill.report.page import page
from redistill.report.summary import summary
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe


class Noting(Silent):
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


def ran(base: Path, recipe: dict[str, Any]) -> tuple[Path, list[str]]:
    """Run a recipe, and return its folder and its notes."""
    rows = fake_prompts(train=24, heldout=60, test=60)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    RELEASED.clear()
    told = Noting()
    loaded = load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=base)
    return run(loaded, place=Place(base / "runs", base / "cache"), progress=told), told.notes


def handovers(folder: Path) -> list[dict[str, Any]]:
    """Return what the store keeps of the hand-overs."""
    rows = read_rows(folder, "SELECT detail FROM event WHERE kind = 'handover' ORDER BY round")
    return [json.loads(row["detail"]) for row in rows]


def test_on_one_card_the_sampler_leaves_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is released before each job, the trainer sees the card, and each hand-over is kept by part."""
    plant(monkeypatch, tmp_path, ("GPU-a", 4000, 4000))
    folder, notes = ran(tmp_path, planted_cards.told(fake_recipe(rounds=2, gain=0.3)))
    assert len(RELEASED) == 2
    assert (folder / "seen.txt").read_text("utf-8") == "all"
    first, second = handovers(folder)
    assert (first["round"], second["round"], first["side_by_side"]) == (1, 2, False)
    assert set(first) >= {"release", "start", "train", "load", "proof"}
    assert all(first[part] >= 0 for part in ("release", "train", "load", "proof"))
    assert first["start"] > 0  # the training process has to come up
    memory, handover = notes[0], [note for note in notes if note.startswith("hand-over")]
    assert memory.startswith("memory: sampler planted_cards:Holding: size not known")
    assert handover == [
        "hand-over: one after the other: the sampler is released before each job and loaded after it"
    ]


def test_on_two_cards_both_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is released, the trainer's process sees its own card alone, and the event says so."""
    plant(monkeypatch, tmp_path, ("GPU-a", 4000, 4000), ("GPU-b", 4000, 4000))
    folder, notes = ran(tmp_path, planted_cards.told(fake_recipe(rounds=1, gain=0.3)))
    assert RELEASED == []
    assert (folder / "seen.txt").read_text("utf-8") == "GPU-b"
    [only] = handovers(folder)
    assert only["side_by_side"]
    assert "hand-over: side by side: GPU-a samples, GPU-b trains" in notes


def test_status_and_the_page_show_what_it_took(tmp_path: Path) -> None:
    """Seconds by part and the share of the round, in JSON, in a line, and on the page."""
    folder, _ = ran(tmp_path, fake_recipe(rounds=1, gain=0.3))
    [row] = summary(folder)["rounds"]
    told = row["handover"]
    parts = [told[part] for part in ("release", "start", "load", "proof")]
    assert told["seconds"] == pytest.approx(sum(parts), abs=0.002)
    assert 0 < told["share"] <= 1
    done = CliRunner().invoke(app, ["status", "fake", "--runs", str(tmp_path / "runs")])
    assert f"round 1: hand-over {told['seconds']:.1f} s, " in done.stdout
    assert "% of the round (release 0.0, start " in done.stdout
    assert "round 1: hand-over" in page(folder)


def test_a_round_that_trains_nothing_hands_nothing_over(tmp_path: Path) -> None:
    """Where curation kept nothing, the sampler stays and there is no event."""
    recipe = planted_cards.told(fake_recipe(rounds=1))
    recipe["round"][2] = {"select": {"where": "verifier = 2"}}
    folder, _ = ran(tmp_path, recipe)
    assert RELEASED == []
    assert handovers(folder) == []


def test_a_real_sampler_and_trainer_hand_over(tmp_path: Path) -> None:
    """With real weights each part takes time: the process, the load, and the proof that follows it."""
    pytest.importorskip("torch")
    recipe = fake_recipe(rounds=1) | {"student": "tiny", "execution": {"threads": 1}}
    recipe |= {"unproven_judge": "allow", "same_judge": "allow"}
    train = {"trainer": "sft", "steps": 2, "batch_size": 2, "micro_batch": 2, "most_cut": 1.0}
    recipe["round"] = [
        {"sample": {"k": 4, "max_tokens": 32, "temperature": 1.0}},
        {"score": {"judge": "longest"}},
        {"select": {"per_prompt": 1}},
        {"train": train},
        {"evaluate": {"judge": "longest", "max_tokens": 8}},
        {"gate": {"guards": []}},
    ]
    folder, notes = ran(tmp_path, recipe)
    assert notes[0].startswith("memory: sampler tiny: about ")
    [row] = summary(folder)["rounds"]
    assert row["training"]["status"] == "trained", row["training"]
    [told] = handovers(folder)
    assert min(told[part] for part in ("start", "train", "load", "proof")) > 0
