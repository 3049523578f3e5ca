"""Checkpoints inside a job: whole or not there, and the losses go on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from ..policies.revision import sync
from .processes import first
from .trainer import Job

_WHOLE = "whole.json"
"""Written last, so that a checkpoint without it was being written when the process died."""
_STATE = "trainer_state.json"


@contextmanager
def folder(job: Job, save_every: int) -> Iterator[Path]:
    """Lend a folder for a job's checkpoints; it stays, for a try that begins where this one broke off."""
    if not save_every:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    kept = _kept(job)
    kept.mkdir(exist_ok=True)
    yield kept


def clear(job: Job) -> None:
    """Take away the checkpoints of a job that has ended."""
    if first():
        shutil.rmtree(_kept(job), ignore_errors=True)


def _kept(job: Job) -> Path:
    return job.rows.parent / "checkpoints"


def newest(place: Path) -> Path | None:
    """Return the last whole checkpoint, and take away what is none."""
    found: list[tuple[int, Path]] = []
    for checkpoint in place.glob("checkpoint-*"):
        if (checkpoint / _WHOLE).exists():
            found.append((int(checkpoint.name.rpartition("-")[2]), checkpoint))
        else:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return max(found)[1] if found else None


def history(checkpoint: Path | None) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield what was measured in each step before a checkpoint."""
    if checkpoint is None:
        return
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text("utf-8"))
    for entry in state["log_history"]:
        if "loss" in entry:
            values = {k: v for k, v in entry.items() if isinstance(v, int | float) and k != "step"}
            yield int(entry["step"]), values


class Marker(transformers.TrainerCallback):
    """Says of a checkpoint, after its last file, that it is whole."""

    def __init__(self, keep: Callable[[Path], None]) -> None:
        """Name who writes files of its own before the mark."""
        self._add = keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Let the job add its files, sync all, then write the mark."""
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._add(checkpoint)
        for file in checkpoint.rglob("*"):
            sync(file)
        (checkpoint / _WHOLE).write_text(json.dumps({"step": state.global_step}), "utf-8")
        sync(checkpoint / _WHOLE)
