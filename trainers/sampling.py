"""Trainers whose policy samples while it trains: what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from ..errors import BadInput, Problem
from .job import Job
from .rows import RowsKind, counted, read_rows
from .trainer import Asks, Trainer, unknown_options

Row = dict[str, Any]


class Sampler(Trainer):
    """Rows are prompts, and what is learned are `k` answers of each that the policy itself samples while it trains.

    Rollouts are of the policy itself, at temperature 1 and from the whole vocabulary; anything else would train
    another policy than the one that speaks. Each has its own generator, so a job that is resumed says the same again.
    """

    rows: ClassVar[RowsKind] = "prompts"
    samples: ClassVar[bool] = True
    asks: ClassVar[Asks] = "judge"

    learning_rate: float = Field(1e-5, ge=0, allow_inf_nan=False)
    """Peak of the schedule."""
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Passes over the prompts; 1 when neither this nor `steps` is given."""
    batch_size: int = Field(32, ge=1)
    """Rollouts of one optimiser step."""
    save_every: int = Field(10, ge=0)
    """Optimiser steps between checkpoints inside the job, from which it goes on after a kill; 0 for none. What was
    judged after the last one is sampled again, and not judged again."""
    k: int = Field(1, ge=1)
    """Rollouts of a prompt; divides `batch_size`."""
    max_tokens: int = Field(256, ge=1)
    """Longest rollout."""

    @model_validator(mode="after")
    def _whole_prompts(self) -> Self:
        if self.batch_size % self.k:
            raise ValueError(f"k {self.k} does not divide batch_size {self.batch_size}")
        return self

    @property
    def per_row(self) -> int:
        """Rollouts that a prompt gives in one pass."""
        return self.k

    @property
    def reads(self) -> bool:
        """It samples its own."""
        return False

    def row_tokens(self, row: Mapping[str, Any]) -> int:
        """Return the tokens of a prompt with the longest rollout."""
        return len(row["prompt_ids"]) + self.max_tokens

    def check(self) -> list[Problem]:
        """Return the options that TRL's `SFTConfig`, whose loop this is, does not have."""
        from trl.trainer.sft_config import SFTConfig

        return unknown_options(self.options, SFTConfig)

    def examples(self, job: Job) -> list[Row]:
        """Return a job's prompts.

        Raises:
            BadInput: a weight is negative, or there is nobody to ask.
        """
        if not job.address:
            raise BadInput.at("address", f"{self.name} asks the driver while it trains")
        return counted(read_rows(job.rows, self.rows, job.dataset_hash).to_pylist(), job.rows)

    def _passes(self) -> float:
        return 1.0 if self.epochs is None else self.epochs
