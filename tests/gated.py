"""Recipes whose labels come from a judge that an exam let in, or did not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted_judges
import yaml
from planted_judges import think

from redistill.agents import registry
from redistill.agents.attacks import attacks
from redistill.agents.exam import starter_exam
from redistill.agents.examining import Sitting, examine
from redistill.agents.judge import JudgeTask
from redistill.agents.loop import Place
from redistill.agents.recipe import Recipe, load_recipe
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe

PLANTED = "planted_judges:one"
ANCHORED = {i.text for i in starter_exam().items}
ATTACKED = {a.item.text for a in attacks()}
RIGHT = {(i.text, i.answers[i.label - 1]) for i in starter_exam().items}
RIGHT |= {(a.item.text, a.item.answers[0]) for a in attacks()}
Opinion = Callable[[JudgeTask], float]


def knows(task: JudgeTask) -> float:
    """Judge rightly: exam, attacks, and the fake student's prompts."""
    asked, said = task.prompt.text, task.completion.text
    return float((asked, said) in RIGHT or asked == f"Say {said}")


def recipe(base: Path, judge: Any = PLANTED, **changed: Any) -> Recipe:
    """Return a recipe whose labels come from a judge, and whose evidence from the verifier."""
    base.mkdir(exist_ok=True)
    rows = fake_prompts(train=20, heldout=20, test=20)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = fake_recipe() | changed
    name = judge.rpartition(":")[2] if isinstance(judge, str) else next(iter(judge))
    data["round"] = changed.get("round") or [
        {"sample": {"k": 2, "max_tokens": 40}},
        {"score": {"judge": judge}},
        {"select": {"where": f"{name} = 1", "per_prompt": 1}},
        {"train": {"trainer": "redistill.testing.fakes_trainer:FakeTrainer", "gain": 0.1}},
        {"evaluate": {"judge": "verifier", "max_tokens": 40}},
        {"gate": {}},
    ]
    # Through JSON, because YAML would write a thing that stands twice as an alias.
    text = yaml.safe_dump(json.loads(json.dumps(data)))
    return load_recipe(text, "recipe.yaml", base=base)


def place(base: Path) -> Place:
    """Return where a test's runs lie."""
    return Place(base / "runs", base / "cache")


def sit(opinion: Opinion) -> registry.Record:
    """Let a judge sit the starter exam, and keep the record."""
    think(one=opinion)
    record = asyncio.run(
        examine(planted_judges.one, Sitting(starter_exam(), "starter", "a program"), spec=PLANTED)
    )
    registry.keep(record)
    return record


CHECKS = (
    "SELECT round, kind, step, detail FROM event WHERE kind LIKE 'judge_%' ORDER BY round, kind"
)


def checks(folder: Path) -> list[dict[str, Any]]:
    """Return the checks of a run's judges."""
    return [row | {"detail": json.loads(row["detail"])} for row in read_rows(folder, CHECKS)]
