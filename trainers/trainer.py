"""The noun *trainer*: rows and a start folder in, a new revision out.

A job is one folder: `job.json` says what to do, `rows.parquet` with what, `result.json` what came of it.
A job that went wrong is a status in the result; nothing is published then.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import resource
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import BadInput, Problem, StoreProblem, no_space
from ..policies.revision import Revision
from .rows import RowsKind, dataset_hash, rows_table, write_rows

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
    "out_of_memory",
    "no_space",
    "failed",
]
Makes = Literal["student", "judge"]
"""What comes of a trainer."""
Emit = Callable[[dict[str, Any]], None]
"""Takes one event of a running job, for example `{"event": "step", "step": 1, ...}`."""

BUILTINS = {
    "sft": "redistill.trainers.supervised:SFT",
    "dpo": "redistill.trainers.preference:DPO",
    "kto": "redistill.trainers.preference:KTO",
    "orpo": "redistill.trainers.preference:ORPO",
    "simpo": "redistill.trainers.preference:SimPO",
    "tpo": "redistill.trainers.preference:TPO",
    "reward": "redistill.trainers.reward:Reward",
}

_OURS = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "batch_size",
    "warmup_steps": "warmup_steps",
    "max_grad_norm": "max_grad_norm",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_betas",
    "adam_beta2": "adam_betas",
    "beta": "beta",
    "seed": "the job",
    "data_seed": "the job",
    "output_dir": "the job",
    "dataset_kwargs": "the job",
    "train_sampling_strategy": "the job",
    "max_length": "the rows, which are never cut",
    "precompute_ref_log_probs": "the rows' reference log-probs",
    "save_strategy": "save_every",
    "save_steps": "save_every",
    "gradient_checkpointing": "recompute",
    "activation_checkpointing": "recompute",
    "logging_steps": "the job",
}
"""Fields of TRL's configs that `options` may not set, and where each comes from."""


class Trainer(BaseModel, ABC):
    """What every trainer has: the optimiser's settings and the batch arithmetic.

    The rate rises in a straight line over `warmup_steps`, then falls in a straight line towards 10 % of
    its peak at the job's end. An optimiser step takes exactly `batch_size` rows: the rows are shuffled
    once an epoch, the epochs are laid end to end, and what is left of the last batch is not used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str]
    rows: ClassVar[RowsKind]
    makes: ClassVar[Makes] = "student"
    """Whether what it trains is the next student, or a judge."""
    reference: ClassVar[bool] = False
    """Whether rows need log-probs of the reference policy."""
    gold: ClassVar[bool] = False
    """Whether rows need the answer that the prompt's own `reference` or `answer` gives."""

    learning_rate: float = Field(2e-5, ge=0, allow_inf_nan=False)
    """Peak of the schedule."""
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Passes over the rows; 2 when neither this nor `steps` is given."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps, however many rows there are; the rows must fill one batch."""
    batch_size: int = Field(16, ge=1)
    """Rows of one optimiser step."""
    micro_batch: int = Field(8, ge=1)
    """Rows that are in memory at once; divides `batch_size`. Halved when memory runs out."""
    save_every: int = Field(0, ge=0)
    """Optimiser steps between checkpoints inside the job, from which it goes on after a kill; 0 for none."""
    weights: Literal["auto", "full", "lora", "qlora"] = "full"
    """Train all weights, or an adapter of rank `rank` on every linear layer; with `qlora` the student is held in
    four bits. `auto` takes the first that fits."""
    rank: int = Field(16, ge=1)
    """Of the adapter."""
    recompute: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass: a tenth more time, and a fraction of their memory. `auto`
    does it where they do not fit."""
    warmup_steps: int = Field(2, ge=0)
    """Steps in which the rate rises from 10 % to its peak; fewer where the job is shorter."""
    max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Gradients are scaled down to this norm."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    adam_betas: tuple[float, float] = (0.9, 0.99)
    options: dict[str, Any] = {}
    """Further fields of TRL's config class, passed on as they are."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas lie in [0, 1), given {list(self.adam_betas)}")
        return self

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size % min(self.micro_batch, self.batch_size):
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _no_reserved_option(self) -> Self:
        reserved = sorted(self.options.keys() & _OURS.keys())
        if reserved:
            raise ValueError("; ".join(f"options.{key} is set by {_OURS[key]}" for key in reserved))
        return self

    def check(self) -> list[Problem]:
        """Return what is wrong with the settings that only the training library can tell."""
        return []

    def plan(self, rows: int) -> int:
        """Return the optimiser steps that so many rows give; 0 when they fill no batch."""
        if self.steps is not None:
            return self.steps if rows >= self.batch_size else 0
        return int(rows * self._passes() / self.batch_size)

    def arithmetic(self, rows: int) -> str:
        """Return the sum behind `plan`, for messages."""
        passes = "" if self.steps is not None else f" x {self._passes():g} epochs"
        return (
            f"{rows} rows{passes} give no step: one step takes batch_size = {self.batch_size} rows"
        )

    def params(self) -> dict[str, Any]:
        """Return every setting, defaults included, as JSON values."""
        return self.model_dump(mode="json")

    @abstractmethod
    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train as the job says and publish the new revision, or publish nothing."""

    def _passes(self) -> float:
        return 2.0 if self.epochs is None else self.epochs


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
    """Whose log-probs the pairs carry."""
    revisions_root: Path
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int = Field(1, ge=1)
    processes: int = Field(1, ge=1)
    """Processes that share each optimiser step."""
    rows: Path
    dataset_hash: str
    """`dataset_hash` of the rows, so that a job can never train on others than were recorded."""

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
        return self.model_copy(update={name: move(getattr(self, name)) for name in paths})

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


def trainer_class(name: str) -> type[Trainer]:
    """Return the trainer of a name: built-in, installed entry point, or `module:Class`.

    Raises:
        BadInput: no trainer has that name.
    """
    installed = {p.name: p.value for p in entry_points(group="redistill.trainers")}
    path = BUILTINS.get(name) or installed.get(name) or name
    module, colon, attribute = path.partition(":")
    if not colon:
        raise BadInput.at("trainer", f"unknown trainer {name!r}", f"known: {', '.join(BUILTINS)}")
    found: Any = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, Trainer)):
        raise BadInput.at("trainer", f"{name} is no redistill.trainers.trainer.Trainer")
    return found


def unknown_options(options: Mapping[str, Any], config: type[Any]) -> list[Problem]:
    """Return a problem for every option that a TRL config class (a dataclass) has no field for."""
    known = [field.name for field in dataclasses.fields(config) if field.init]
    problems = []
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see the fields of {config.__name__}"
            problems.append(Problem(f"options.{key}", f"{config.__name__} has no such field", hint))
    return problems


def run_job(job_folder: Path, run_folder: Path, emit: Emit) -> Result:
    """Run one job, here or in as many processes as it says, and write its `result.json`.

    A job that is already trained, and whose revision is whole, is not run again. Where nothing more can be
    written the status is `no_space`; that result may be nowhere but here.
    """
    done = _finished(job_folder, run_folder)
    if done is not None:
        return done
    try:
        count = Job.read(job_folder, run_folder).processes
    except (OSError, ValueError):
        count = 1  # what is wrong with the job is told by running it
    if count > 1:
        from .processes import launch

        return launch(job_folder, run_folder, count, emit)
    return run_here(job_folder, run_folder, emit)


def run_here(job_folder: Path, run_folder: Path, emit: Emit) -> Result:
    """Run one job in this process, or this process's share of it, and write its `result.json`."""
    began, cpu = time.monotonic(), time.process_time()
    try:
        job = Job.read(job_folder, run_folder)
        [(name, settings)] = job.trainer.items()
        fitted = trainer_class(name).model_validate(settings).fit(job, emit)
    except Exception as error:  # noqa: BLE001 - whatever ends a job is that job's status
        with suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exc(file=sys.stderr)
        last = traceback.format_exception_only(error)[-1].strip().splitlines()
        status: Status = "no_space" if no_space(error) else "failed"
        fitted = FitResult(status=status, message=last[-1] if last else repr(error))
    result = Result(
        **fitted.model_dump(),
        seconds=time.monotonic() - began,
        cpu_seconds=time.process_time() - cpu,
        peak_rss_mb=_peak_rss_mb(),
    )
    from .processes import first, world

    if world() > 1:
        if result.status == "trained" and not first():
            return result  # the first process writes it, when it has published
        if (job_folder / "result.json").exists():
            return result  # the others fail after one has, because it is gone
    try:
        result.write(job_folder)
    except OSError as error:
        if not no_space(error):
            raise
        return Result(status="no_space", message=str(error))
    return result


def _finished(job_folder: Path, run_folder: Path) -> Result | None:
    """Return the result of a job whose revision can be used, or None when it has to run."""
    try:
        result = Result.of(job_folder)
    except (FileNotFoundError, ValueError):
        return None
    if result.revision is None:
        return None
    try:
        root = Job.read(job_folder, run_folder).revisions_root
        Revision.read(root / result.revision).verify_files()
    except (OSError, StoreProblem):
        return None  # the folder was lost or damaged: train it anew
    return result


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _write_whole(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(file)


__all__ = [
    "BUILTINS",
    "Emit",
    "FitResult",
    "Job",
    "Result",
    "RowsKind",
    "Status",
    "Trainer",
    "dataset_hash",
    "rows_table",
    "run_job",
    "trainer_class",
    "unknown_options",
    "write_rows",
]
