"""A machine with cards that are not there: a driver's tool that lists them, and students and trainers that tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

from redistill.testing.fakes import FakeStudent
from redistill.testing.fakes_trainer import FakeTrainer
from redistill.trainers.trainer import Emit, FitResult, Job

RELEASED: list[str] = []
"""Revisions that a student of this process has given back."""


def plant(monkeypatch: pytest.MonkeyPatch, folder: Path, *cards: tuple[str, int, int]) -> None:
    """Put a driver's tool on the path that lists cards: name, MiB in all, MiB free."""
    lines = "".join(f"{i}, {name}, {all_}, {free}\n" for i, (name, all_, free) in enumerate(cards))
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


class Telling(FakeTrainer):
    """Writes which cards its process may see, beside the run's revisions."""

    name: ClassVar[str] = "planted_cards:Telling"

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Tell, and train as ever."""
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        (job.revisions_root.parent / "seen.txt").write_text(seen, encoding="utf-8")
        return super().fit(job, emit)


class Holding(FakeStudent):
    """Tells when it gives its weights back."""

    def release(self) -> None:
        """Tell, and hold nothing."""
        RELEASED.append(self.revision)
        super().release()


def told(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with these students and trainers."""
    step = next(step for step in recipe["round"] if "train" in step)
    step["train"]["trainer"] = "planted_cards:Telling"
    return recipe | {"student": "planted_cards:Holding"}
