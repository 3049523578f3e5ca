"""Training on lists: several answers to one prompt, some of which are better than others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ..errors import BadInput, Problem
from .rows import RowsKind, counted, read_rows
from .trainer import Emit, FitResult, Job, Trainer, unknown_options

if TYPE_CHECKING:
    from torch import Tensor

    from .losses import RankedLogps

Row = dict[str, Any]


class Listwise(Trainer):
    """What trainers on lists have in common.

    A row is a prompt with all answers that stand in a pair of it. Which answer is better than which is what the pairs
    say, so answers that a judge finds equal are not set against each other. With `pair: {rule: correct_incorrect}` each
    better answer is set against each worse one.
    """

    rows: ClassVar[RowsKind] = "ranked"

    learning_rate: float = Field(5e-6, ge=0, allow_inf_nan=False)
    """Peak of the schedule."""
    batch_size: int = Field(8, ge=1)
    """Prompts of one optimiser step."""
    micro_batch: int = Field(2, ge=1)
    """Prompts that are in memory at once, with all of their answers; divides `batch_size`."""

    def check(self) -> list[Problem]:
        """Return the options that TRL's `SFTConfig`, whose loop this is, does not have."""
        from trl.trainer.sft_config import SFTConfig

        return unknown_options(self.options, SFTConfig)

    def row_tokens(self, row: Mapping[str, Any]) -> int:
        """Return the tokens of a prompt's answers, each with the prompt."""
        return sum(len(row["prompt_ids"]) + len(ids) for ids in row["answers_ids"])

    def examples(self, job: Job) -> list[Row]:
        """Return a job's lists.

        Raises:
            BadInput: a weight is negative, an answer is empty, or a row does not say which of its answers are better.
        """
        rows = counted(read_rows(job.rows, self.rows, job.dataset_hash).to_pylist(), job.rows)
        for row in rows:
            places = [*row["better"], *row["worse"]]
            if not all(row["answers_ids"]):
                raise BadInput.at(str(job.rows), f"row {row['id']} has an answer without tokens")
            fits = len(row["better"]) == len(row["worse"]) > 0
            if not fits or not all(0 <= place < len(row["answers_ids"]) for place in places):
                what = f"row {row['id']} does not say which of its answers are better than which"
                raise BadInput.at(str(job.rows), what)
        return rows

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train on the lists, and publish the new revision."""
        from .answers import AnswerLists
        from .tuning import tune

        return tune(self, job, AnswerLists, self.examples(job), emit)

    @abstractmethod
    def loss(self, lists: RankedLogps) -> Tensor:
        """Return the loss of each prompt, shape (B,)."""


class RRHF(Listwise):
    """Rank responses to align: of two answers the better one shall be likelier by the token; no reference is needed.

    Rows: lists. With p an answer's mean log-prob by token, the loss of a prompt is

        sum over pairs of max(0, p(worse) - p(better))  -  nll * p(best)

    Yuan et al. 2023 (arXiv:2304.05302), equations 2 to 4, equation 15 of the survey. The last term is a mean over the
    answer's tokens where the paper has their sum, so that long answers do not drown the ranking. The survey's family
    is ranking optimisation.
    """

    name: ClassVar[str] = "rrhf"

    nll: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Share of the best answer's own loss."""

    def loss(self, lists: RankedLogps) -> Tensor:
        """Return the loss of each prompt, shape (B,)."""
        from .losses import rrhf

        return rrhf(lists, self.nll)


class PRO(Listwise):
    """Preference ranking optimisation: each answer is set against all that are worse than it at once.

    Rows: lists. With p an answer's mean log-prob by token, the loss of a prompt is

        sum over answers of  log (e^p + sum over the worse ones of e^p(worse)) - p  -  nll * p(best)

    Song et al. 2023 (arXiv:2306.17492), equation 16 of the survey: of a full ranking the worse ones are all that come
    later; an answer that is better than none adds nothing. The last term is a mean over the answer's tokens where the
    paper has their sum, and the paper's temperatures by the gap of the rewards are left out. The survey's family is
    ranking optimisation.
    """

    name: ClassVar[str] = "pro"

    nll: float = Field(0.5, ge=0, allow_inf_nan=False)
    """Share of the best answer's own loss."""

    def loss(self, lists: RankedLogps) -> Tensor:
        """Return the loss of each prompt, shape (B,)."""
        from .losses import pro

        return pro(lists, self.nll)
