"""Training on preference pairs."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ..errors import Problem
from .rows import RowsKind, read_rows
from .trainer import Emit, FitResult, Job, Trainer, unknown_options


class DPO(Trainer):
    """Direct preference optimisation: make chosen answers likelier than rejected ones.

    Rows: pairs, with the reference's log-probs of both answers (sums over the answer's tokens, T = 1).
    The loss of one pair, equation 7 of Rafailov et al. 2023 (arXiv:2305.18290), is

        -log sigmoid(beta * ((log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected))))

    and a step takes the mean over its pairs. No reference model is loaded: its log-probs are rows. With
    the start of the round as reference and the policy's own samples this is iterative, online DPO;
    with `options: {loss_type: [sigmoid, sft], loss_weights: [1, 0.5]}` the chosen answer's mean
    negative log-likelihood is added (RPO), which keeps the chosen answer itself from becoming rare.

    The survey's family is feedback by ranking (RLAIF, self-rewarding models).
    """

    name: ClassVar[str] = "dpo"
    rows: ClassVar[RowsKind] = "pairs"

    learning_rate: float = Field(5e-6, ge=0, allow_inf_nan=False)
    """Peak of the schedule. Four times as much has been seen to break a small model."""
    batch_size: int = Field(8, ge=1)
    """Pairs of one optimiser step."""
    micro_batch: int = Field(4, ge=1)
    """Pairs that are in memory at once, two sequences each; divides `batch_size`."""
    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """How dearly the policy pays for leaving the reference; smaller moves further."""

    def check(self) -> list[Problem]:
        """Return the options that TRL's `DPOConfig` does not have."""
        from trl.trainer.dpo_config import DPOConfig

        return unknown_options(self.options, DPOConfig)

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train on the pairs and publish the new revision."""
        from .losses import AnswerDPO
        from .tuning import tune

        examples = [
            {
                "prompt_ids": row["prompt_ids"],
                "chosen_ids": row["chosen_ids"],
                "rejected_ids": row["rejected_ids"],
                "ref_chosen_logps": row["ref_chosen_logp"],
                "ref_rejected_logps": row["ref_rejected_logp"],
            }
            for row in read_rows(job.rows, self.rows, job.dataset_hash).to_pylist()
        ]
        return tune(self, job, AnswerDPO, examples, emit)
