"""Supervised training on the policy's own accepted answers."""

from __future__ import annotations

from typing import Any, ClassVar

from ..errors import BadInput, Problem
from .rows import RowsKind, counted, read_rows
from .trainer import Emit, FitResult, Job, Trainer, unknown_options


class SFT(Trainer):
    """Supervised fine-tuning: raise the likelihood of the answers that were selected.

    Rows: completions, with a weight each (1 unless `select` says otherwise). Over one optimiser step,
    with `w` the weight of a row and `p` the policy's probability of a token given all before it,

        loss = sum over rows of w * sum over answer tokens of -log p  /  sum over rows of w * tokens

    so a row of weight 0 counts as if it were absent, and long answers count by their length. The
    prompt's tokens bear no loss; the answer's end token does.

    On answers that passed a judge this is rejection sampling fine-tuning (Yuan et al. 2023,
    arXiv:2308.01825), STaR (Zelikman et al. 2022, arXiv:2203.14465) or ReST-EM (Singh et al. 2023,
    arXiv:2312.06585); with answers from another context it is prompt distillation. On a run's verdicts it makes
    a judge: `redistill judge train RUN --trainer sft`.
    """

    name: ClassVar[str] = "sft"
    rows: ClassVar[RowsKind] = "completions"

    def check(self) -> list[Problem]:
        """Return the options that TRL's `SFTConfig` does not have."""
        from trl.trainer.sft_config import SFTConfig

        return unknown_options(self.options, SFTConfig)

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train on rows of positive weight and publish the new revision."""
        from .answers import AnswerSFT
        from .tuning import tune

        rows = counted(read_rows(job.rows, self.rows, job.dataset_hash).to_pylist(), job.rows)
        plain = all(row["weight"] == 1 and not row["token_weights"] for row in rows)
        if self.options.get("loss_type", "nll") != "nll" and not plain:
            raise BadInput.at("options.loss_type", "only nll takes rows with weights")
        examples = [
            {
                "input_ids": row["prompt_ids"] + row["completion_ids"],
                "labels": [-100] * len(row["prompt_ids"]) + row["completion_ids"],
                "weights": _weights(row),
            }
            for row in rows
        ]
        return tune(self, job, AnswerSFT, examples, emit)


def _weights(row: dict[str, Any]) -> list[float]:
    """Return the weight of each token's loss: the row's, times the token's own."""
    own = row["token_weights"] or [1.0] * len(row["completion_ids"])
    return [0.0] * len(row["prompt_ids"]) + [row["weight"] * weight for weight in own]
