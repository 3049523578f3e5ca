"""Runs that wait for people, and people who type."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.errors import TryLater
from redistill.report.reviewing import Keys, review_steps
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe


def recipe(judging: dict[str, Any], *more: dict[str, Any], k: int = 4) -> dict[str, Any]:
    """Return a recipe of one round with steps of judging between sampling and selecting."""
    found = fake_recipe(rounds=1)
    found["prompts"]["per_round"] = 3
    found["chunk"] = 3
    _, _, _, train, evaluate, gate = found["round"]
    sample = {"sample": {"k": k, "max_tokens": 40}}
    select = {"select": {"where": "verifier = 1", "per_prompt": 1}}
    score = {"score": {"judge": "verifier"}}
    found["round"] = [sample, score, judging, *more, select, train, evaluate, gate]
    return found


def begin(base: Path, described: dict[str, Any]) -> tuple[Path, TryLater]:
    """Run until it waits, and return the run's folder and how it ended."""
    rows = fake_prompts(train=6, heldout=12, test=12)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    loaded = load_recipe(yaml.safe_dump(described), "recipe.yaml", base=base)
    with pytest.raises(TryLater) as parked:
        run(loaded, place=place(base))
    return base / "runs" / loaded.name, parked.value


def copied(folder: Path, base: Path) -> Path:
    """Return a copy of a run with its cache, to be changed."""
    shutil.copytree(folder.parents[1], base, dirs_exist_ok=True)
    return base / "runs" / folder.name


def place(base: Path) -> Place:
    """Return where a test's runs are."""
    return Place(base / "runs", base / "cache")


def typed(keys: Iterable[str]) -> Keys:
    """Return a person who types these and then goes."""
    left = iter(keys)
    return lambda _: next(left, None)


def console() -> tuple[Console, Callable[[], str]]:
    """Return a console and what was shown on it."""
    shown = io.StringIO()
    return Console(file=shown, width=100, force_terminal=False), shown.getvalue


def review(folder: Path, keys: Iterable[str], author: str = "ann") -> dict[str, Any]:
    """Let a person type, and return the counts."""
    return review_steps(folder, author, console()[0], typed(keys))


def verdicts(folder: Path, columns: str = "*") -> list[dict[str, Any]]:
    """Return what people have said, from the snapshot."""
    sql = f"SELECT {columns} FROM judgement WHERE judge = 'human' ORDER BY created_at, id"
    return read_rows(folder, sql)
