"""The noun *trainer*: rows and a start folder in, a new revision out.

A trainer is a pydantic class: its fields are the recipe's keys, and `fit` does a job. A job that went wrong is a
status in its result; nothing is published then.
"""

from __future__ import annotations

import dataclasses
import difflib
import resource
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import BadInput, Problem, StoreProblem, no_space
from ..policies.revision import Revision
from .job import Emit, FitResult, Job, Result, Status
from .rows import RowsKind, dataset_hash, rows_table, write_rows

Makes = Literal["student", "judge"]
"""What comes of a trainer."""
Asks = Literal["nothing", "judge", "teacher"]
"""Whom a trainer needs while it trains."""
BUILTINS = {
    "sft": "redistill.trainers.supervised:SFT",
    "dpo": "redistill.trainers.preference:DPO",
    "kto": "redistill.trainers.preference:KTO",
    "orpo": "redistill.trainers.preference:ORPO",
    "simpo": "redistill.trainers.preference:SimPO",
    "tpo": "redistill.trainers.preference:TPO",
    "rrhf": "redistill.trainers.listwise:RRHF",
    "pro": "redistill.trainers.listwise:PRO",
    "reward": "redistill.trainers.reward:Reward",
    "grpo": "redistill.trainers.reinforce:GRPO",
    "rloo": "redistill.trainers.reinforce:RLOO",
    "distill": "redistill.trainers.distill:Distill",
    "self_distill": "redistill.trainers.distill:SelfDistill",
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
    samples: ClassVar[bool] = False
    """Whether the policy samples while it trains; its rows are then prompts."""
    asks: ClassVar[Asks] = "nothing"
    """Whom it needs while it trains."""
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
            return self.steps if rows * self.per_row >= self.batch_size else 0
        return int(rows * self.per_row * self._passes() / self.batch_size)

    def arithmetic(self, rows: int) -> str:
        """Return the sum behind `plan`, for messages."""
        passes = "" if self.steps is not None else f" x {self._passes():g} epochs"
        each = "" if self.per_row == 1 else f" of {self.per_row} rollouts each"
        return (
            f"{rows} rows{each}{passes} give no step: one step takes batch_size = "
            f"{self.batch_size} {'rollouts' if each else 'rows'}"
        )

    @property
    def per_row(self) -> int:
        """How often a row is in a batch that has it; what a sampler says to it is another thing each time."""
        return 1

    @property
    def reads(self) -> bool:
        """Whether it trains on answers that stand."""
        return True

    @property
    def anchored(self) -> bool:
        """Whether the job itself holds the reference, because its rows are not known before."""
        return False

    def row_tokens(self, row: Mapping[str, Any]) -> int:
        """Return the most tokens that a row has in memory, its prompt counted once."""
        return sum(len(ids) for name, ids in row.items() if name.endswith("_ids") and ids)

    def params(self) -> dict[str, Any]:
        """Return every setting, defaults included, as JSON values."""
        return self.model_dump(mode="json")

    @abstractmethod
    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train as the job says and publish the new revision, or publish nothing."""

    def _passes(self) -> float:
        return 2.0 if self.epochs is None else self.epochs


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
    return problems + _absent(options.get("report_to", "none"))


def _absent(named: str | Sequence[str]) -> list[Problem]:
    """Return a problem for every service that is reported to and whose package is not there."""
    names = [named] if isinstance(named, str) else list(named)
    return [
        Problem("options.report_to", f"{name} is not installed", f"pip install {name}")
        for name in names
        if name != "none" and find_spec(name) is None
    ]


def run_job(job_folder: Path, run_folder: Path, emit: Emit, address: str = "") -> Result:
    """Run one job, here or in as many processes as it says, and write its `result.json`.

    A job that is already trained, and whose revision is whole, is not run again. Where nothing more can be
    written the status is `no_space`; that result may be nowhere but here.

    Args:
        job_folder: holds `job.json` and the rows.
        run_folder: what the job's paths are relative to.
        emit: takes each event.
        address: where the driver answers, for a policy that samples while it trains.
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
    return run_here(job_folder, run_folder, emit, address)


def run_here(job_folder: Path, run_folder: Path, emit: Emit, address: str = "") -> Result:
    """Run one job in this process, or this process's share of it, and write its `result.json`."""
    began, cpu = time.monotonic(), time.process_time()
    try:
        job = Job.read(job_folder, run_folder).model_copy(update={"address": address})
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
