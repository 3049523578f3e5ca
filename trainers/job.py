"""The noun *job*: what is trained with what, and what came of it, as files of one folder.

`job.json` says what to do, `rows.parquet` with what, `result.json` what came of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from .trainer import Trainer

Status = Literal[
    "trained",
    "answers_cut",
    "no_rows",
    "no_steps",
    "start_mismatch",
    "nonfinite",
    "no_change",
    "no_signal",
    "spiked",
    "collapsed",
    "wrong_weights",
    "unfit_teacher",
    "out_of_memory",
    "no_space",
    "failed",
]
Emit = Callable[[dict[str, Any]], None]
"""Takes one event of a running job, for example `{"event": "step", "step": 1, ...}`."""


class FitResult(BaseModel):
    """What a trainer says of its own work."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    status: Status
    message: str = ""
    """Why the status is not `trained`, or what was unusual; one line."""
    revision: str | None = None
    """The new revision; None unless the status is `trained`."""
    steps: int = 0
    rows: int = 0
    """Rows of the training set that took part."""
    metrics: list[dict[str, Any]] = []
    """`{"step": int, "name": str, "value": float}`, in the order in which they were measured."""


class Result(FitResult):
    """What came of a job, as `result.json` holds it."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_mb: float = 0.0
    """Most memory that the worker process has held since it started."""

    @classmethod
    def of(cls, job_folder: Path) -> Result:
        """Return the result of a job that has ended.

        Raises:
            FileNotFoundError: it has none yet.
        """
        return cls.model_validate_json((job_folder / "result.json").read_bytes())

    def write(self, job_folder: Path) -> None:
        """Put the result into the job's folder, whole or not at all."""
        _write_whole(job_folder / "result.json", self.model_dump_json(indent=1))


class Held(BaseModel):
    """A revision that a job holds beside what it trains, and never changes: a teacher, or the reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path
    revision: str


class Job(BaseModel):
    """One training job. Paths are absolute here; in `job.json` they are relative to the run's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    trainer: dict[str, dict[str, Any]]
    """One name with its settings, as a recipe has it."""
    start_folder: Path
    """Model folder that training begins from."""
    start_revision: str
    reference_revision: str | None = None
    """Whose log-probs the pairs carry, or against which rollouts are measured."""
    held: dict[str, Held] = {}
    """By name: `reference`, where rollouts are measured against it, and each teacher."""
    revisions_root: Path
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int = Field(1, ge=1)
    processes: int = Field(1, ge=1)
    """Processes that share each optimiser step."""
    rows: Path
    dataset_hash: str
    """`dataset_hash` of the rows, so that a job can never train on others than were recorded."""
    address: str = Field("", exclude=True)
    """Where the driver answers while the job runs; see `redistill.trainers.callback`."""

    @classmethod
    def read(cls, job_folder: Path, run_folder: Path) -> Job:
        """Read `job.json` and anchor its paths."""
        return cls.model_validate_json((job_folder / "job.json").read_bytes())._moved(
            lambda path: run_folder.resolve() / path
        )

    def write(self, job_folder: Path, run_folder: Path) -> None:
        """Write `job.json`; paths inside the run's folder become relative to it."""
        run = run_folder.resolve()

        def relative(path: Path) -> Path:
            path = path.resolve()
            return path.relative_to(run) if path.is_relative_to(run) else path

        _write_whole(job_folder / "job.json", self._moved(relative).model_dump_json(indent=1))

    def _moved(self, move: Callable[[Path], Path]) -> Job:
        paths = ("start_folder", "revisions_root", "rows")
        held = {n: h.model_copy(update={"folder": move(h.folder)}) for n, h in self.held.items()}
        moved = {name: move(getattr(self, name)) for name in paths}
        return self.model_copy(update=moved | {"held": held})

    @property
    def staging(self) -> Path:
        """Folder that the new revision is put together in, before it is published."""
        return self.revisions_root / f".staging-{self.id}"

    def facts(self, trainer: Trainer, *, rows: int, steps: int) -> dict[str, Any]:
        """Return what a revision's manifest says of how it was made."""
        return {
            "trainer": next(iter(self.trainer)),
            "params": trainer.params(),
            "dataset_hash": self.dataset_hash,
            "reference_revision": self.reference_revision,
            "seed": self.seed,
            "rows": rows,
            "steps": steps,
        }


def _write_whole(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(file)
