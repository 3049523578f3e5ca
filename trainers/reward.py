"""Training a judge: a reward model on preference pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..errors import Problem
from .rows import RowsKind, counted, read_rows, surely
from .trainer import Emit, FitResult, Job, Makes, Trainer, unknown_options

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]


class Reward(Trainer):
    """Reward model: a number for each answer, such that preferred answers have the larger one.

    Rows: pairs. A new head with one output stands on the start's weights, and reads the last token of a finished
    conversation. The loss of a pair with rewards r (Bradley and Terry 1952; with a margin, equation 2 of Touvron
    et al. 2023, arXiv:2307.09288) is

        -log sigmoid(r(chosen) - r(rejected) - margin * the pair's margin)

    and a step takes the weighted mean. A soft label p takes p of it and 1 - p of the same with the sides exchanged.
    `center` adds so much of the squared sum of the two rewards (arXiv:2312.09244), which keeps them around zero.

    What comes of it is no student but a judge: in a round `trained`, which later steps ask; of a finished run, by
    `redistill judge train RUN`, a `reward_model`. Its labels train nothing before it has passed an exam. The survey's
    family is feedback.
    """

    name: ClassVar[str] = "reward"
    rows: ClassVar[RowsKind] = "pairs"
    makes: ClassVar[Makes] = "judge"

    learning_rate: float = Field(1e-5, ge=0, allow_inf_nan=False)
    """Peak of the schedule."""
    batch_size: int = Field(8, ge=1)
    """Pairs of one optimiser step."""
    micro_batch: int = Field(4, ge=1)
    """Pairs that are in memory at once, two sequences each; divides `batch_size`."""
    labels: Literal["hard", "soft"] = "hard"
    """Whether a pair's chosen answer is simply the better one, or is it as surely as the pair's probability says."""
    margin: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Lead that is asked for, for each unit of the pair's margin."""
    center: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Share of the squared sum of a pair's rewards."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.weights != "full":
            raise ValueError("a reward model trains all its weights: `weights: full`")
        return self

    def check(self) -> list[Problem]:
        """Return the options that TRL's `RewardConfig` does not have."""
        from trl.trainer.reward_config import RewardConfig

        return unknown_options(self.options, RewardConfig)

    def loss(self, chosen: Tensor, rejected: Tensor, row: dict[str, Tensor]) -> Tensor:
        """Return the loss of each pair, shape (B,)."""
        from .losses import bradley_terry

        found = bradley_terry(chosen, rejected, self.margin * row["margin"], row["probability"])
        return found + self.center * (chosen + rejected) ** 2 if self.center else found

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train on the pairs and publish the new judge.

        Raises:
            BadInput: a pair has no probability, and labels are soft; or its weight is negative.
        """
        from .rewards import AnswerRewards
        from .tuning import tune

        rows = counted(read_rows(job.rows, self.rows, job.dataset_hash).to_pylist(), job.rows)
        return tune(self, job, AnswerRewards, surely(rows, self.labels, job.rows), emit)
