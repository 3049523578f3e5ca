"""Training on preferences: pairs of answers, and answers that are wanted or not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ..errors import BadInput, Problem
from .rows import RowsKind, counted, read_rows, surely
from .trainer import Emit, FitResult, Job, Trainer, unknown_options

if TYPE_CHECKING:
    from torch import Tensor

    from .losses import LabelledLogps, PairLogps

Row = dict[str, Any]
_MOST_SILENT = 0.5
"""Share of a job's pairs that may have equal sides; they are left out."""


class Preference(Trainer):
    """What trainers on preferences have in common."""

    learning_rate: float = Field(5e-6, ge=0, allow_inf_nan=False)
    """Peak of the schedule. Four times as much has been seen to break a small model."""
    batch_size: int = Field(8, ge=1)
    """Rows of one optimiser step."""
    micro_batch: int = Field(4, ge=1)
    """Rows that are in memory at once, two sequences each; divides `batch_size`."""
    labels: Literal["hard", "soft"] = "hard"
    """Whether a pair's chosen answer is simply the better one, or is it as surely as the pair's probability says."""

    def check(self) -> list[Problem]:
        """Return the options that TRL's `SFTConfig`, whose loop this is, does not have."""
        from trl.trainer.sft_config import SFTConfig

        return unknown_options(self.options, SFTConfig)

    def examples(self, job: Job) -> list[Row]:
        """Return a job's pairs as the loss takes them.

        Raises:
            BadInput: a pair has no probability, and labels are soft; or lacks its reference log-probs; or its
                weight is negative.
        """
        rows = counted(read_rows(job.rows, self.rows, job.dataset_hash).to_pylist(), job.rows)
        rows = surely(rows, self.labels, job.rows)
        for row in rows:
            for name in ("ref_chosen_logp", "ref_rejected_logp"):
                if row[name] is None and self.reference:
                    raise BadInput.at(str(job.rows), f"pair {row['id']} has no {name}")
                row[name] = float("nan") if row[name] is None else row[name]
        return rows

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train on the pairs whose sides differ, and publish the new revision."""
        from .answers import AnswerPairs
        from .tuning import tune

        rows = self.examples(job)
        return _silent(rows) or tune(self, job, AnswerPairs, _heard(rows), emit)

    @abstractmethod
    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the loss of each pair, shape (B,)."""


class DPO(Preference):
    """Direct preference optimisation: make chosen answers likelier than rejected ones.

    Rows: pairs, with the reference's log-probs of both answers (sums over the answer's tokens, T = 1).
    The loss of one pair, equation 7 of Rafailov et al. 2023 (arXiv:2305.18290), is

        -log sigmoid(beta * ((log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected))))

    and a step takes the weighted mean over its pairs. A soft label p takes p of it and 1 - p of the same with
    the sides exchanged; `offset` asks for more where the margin is larger (ODPO, arXiv:2402.10571); `nll` adds
    so much of the chosen answer's mean negative log-likelihood (RPO, arXiv:2404.19733), which keeps the chosen
    answer itself from becoming rare. No reference model is loaded: its log-probs are rows. With the start of the
    round as reference and the policy's own samples this is iterative, online DPO.

    `options` passes on all that TRL's DPOConfig has. With `loss_type`, or what only DPOConfig has, such as
    `f_divergence_type` or `ld_alpha`, the loss is TRL's, and takes hard labels of weight 1 alone.

    The survey's family is feedback by ranking (RLAIF, self-rewarding models).
    """

    name: ClassVar[str] = "dpo"
    rows: ClassVar[RowsKind] = "pairs"
    reference: ClassVar[bool] = True

    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """How dearly the policy pays for leaving the reference; smaller moves further."""
    offset: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Log-odds by which chosen must lead, for each unit of the pair's margin."""
    nll: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Share of the chosen answer's own loss."""
    floor: float = Field(2.0, ge=0, allow_inf_nan=False)
    """Nats a token by which chosen answers may become rarer than at the start; then the job ends. Looked at where the start
    is the reference."""

    def check(self) -> list[Problem]:
        """Return the options that TRL's `DPOConfig` does not have, and losses that it does not know."""
        from trl.trainer.dpo_config import DPOConfig

        if not _of_trls_loss(self.options):
            return super().check()
        return unknown_options(self.options, DPOConfig) + _unknown_losses(self.options)

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the loss of each pair, shape (B,)."""
        from .losses import dpo, mean_nll

        found = dpo(pairs, self.beta, self.offset)
        return found + self.nll * mean_nll(pairs.chosen, pairs.chosen_tokens) if self.nll else found

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train on the pairs, by our loss or by TRL's, and publish the new revision."""
        from .answers import AnswerDPO
        from .tuning import tune

        named = _of_trls_loss(self.options)
        if not named:
            return super().fit(job, emit)
        rows = self.examples(job)
        if self.labels == "soft" or self.offset or self.nll or any(r["weight"] != 1 for r in rows):
            what = f"with {', '.join(named)} the loss is TRL's"
            hint = "weights, soft labels, offset and nll are for the plain loss alone"
            raise BadInput.at("options", what, hint)
        examples = [_as_trl(row) for row in _heard(rows)]
        return _silent(rows) or tune(self, job, AnswerDPO, examples, emit)


LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
"""Losses of TRL 1.16, which itself finds out at the first step that it does not know one."""


def _heard(rows: Sequence[Row]) -> list[Row]:
    """Return the pairs that prefer something: those whose sides are not the same tokens."""
    return [row for row in rows if row["chosen_ids"] != row["rejected_ids"]]


def _silent(rows: Sequence[Row]) -> FitResult | None:
    """Refuse pairs of which more than half prefer nothing: they show that the sampler says one thing only."""
    same = len(rows) - len(_heard(rows))
    if not rows or same <= _MOST_SILENT * len(rows):
        return None
    told = f"{same} of {len(rows)} pairs have the same tokens on both sides"
    return FitResult(status="no_signal", message=told)


def _of_trls_loss(options: Row) -> list[str]:
    """Return the options that make the loss one of TRL's own: those that its other configs do not have."""
    from trl.trainer.sft_config import SFTConfig

    both = SFTConfig.__dataclass_fields__.keys() - {"loss_type"}
    return sorted(options.keys() - both)


def _unknown_losses(options: Row) -> list[Problem]:
    named = options.get("loss_type", [])
    named = named if isinstance(named, list | tuple) else [named]
    told = f"losses are {' '.join(LOSSES)}"
    found = [
        Problem("options.loss_type", f"TRL has no loss {n!r}", told)
        for n in named
        if n not in LOSSES
    ]
    weights = options.get("loss_weights")
    if isinstance(weights, Sequence) and len(weights) != len(named):
        what = f"{len(weights)} weights for {len(named)} losses"
        found.append(Problem("options.loss_weights", what))
    return found


def _as_trl(row: Row) -> Row:
    return {
        "prompt_ids": row["prompt_ids"],
        "chosen_ids": row["chosen_ids"],
        "rejected_ids": row["rejected_ids"],
        "ref_chosen_logps": row["ref_chosen_logp"],
        "ref_rejected_logps": row["ref_rejected_logp"],
    }


class ORPO(Preference):
    """Odds ratio preference optimisation: supervised training that also prefers, in one loss without a reference.

    Rows: pairs. With P the geometric mean of an answer's token probabilities and odds = P / (1 - P), the loss of
    a pair, equations 6 and 7 of Hong et al. 2024 (arXiv:2403.07691), is

        -log P(chosen) + beta * -log sigmoid(log (odds(chosen) / odds(rejected)))

    The first term is of the answer's tokens alone (TRL's, experimental, takes the prompt's too). The survey's
    family is feedback by ranking.
    """

    name: ClassVar[str] = "orpo"
    rows: ClassVar[RowsKind] = "pairs"

    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """Share of the preference beside the likelihood; lambda in the paper."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the loss of each pair, shape (B,)."""
        from .losses import orpo

        return orpo(pairs, self.beta)


class SimPO(Preference):
    """Simple preference optimisation: the answer's mean log-prob is its reward; there is no reference.

    Rows: pairs. The loss of a pair, equation 6 of Meng et al. 2024 (arXiv:2405.14734), is

        -log sigmoid(beta * (log p(chosen) / |chosen| - log p(rejected) / |rejected|) - gamma)

    with lengths in tokens. The survey's family is feedback by ranking.
    """

    name: ClassVar[str] = "simpo"
    rows: ClassVar[RowsKind] = "pairs"

    beta: float = Field(2.0, gt=0, allow_inf_nan=False)
    """Log-odds for one nat a token."""
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Log-odds by which chosen must lead; half of beta is usual."""

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the loss of each pair, shape (B,)."""
        from .losses import simpo

        return simpo(pairs, self.beta, self.gamma)


class TPO(Preference):
    """Triple preference optimisation: prefer, and learn the prompt's reference answer, without a reference policy.

    Rows: pairs whose prompts have a `reference` or an `answer`; pairs of other prompts are left out. The loss of
    a pair, equation 7 of Saeidi et al. 2024 (arXiv:2405.16681), with the reference answer's mean loss, is

        -log sigmoid(beta * (log p(chosen) - log p(rejected))) + alpha * -log p(gold) / |gold|

    The survey's families are feedback by ranking and labelling.
    """

    name: ClassVar[str] = "tpo"
    rows: ClassVar[RowsKind] = "pairs"
    gold: ClassVar[bool] = True

    beta: float = Field(0.01, gt=0, allow_inf_nan=False)
    """Log-odds for one nat."""
    alpha: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Share of the reference answer's own loss."""

    def examples(self, job: Job) -> list[Row]:
        """Return the pairs; each has a gold answer.

        Raises:
            BadInput: one has none.
        """
        rows = super().examples(job)
        if bare := [row["id"] for row in rows if row["gold_ids"] is None]:
            raise BadInput.at(str(job.rows), f"pair {bare[0]} has no gold answer")
        return rows

    def loss(self, pairs: PairLogps) -> Tensor:
        """Return the loss of each pair, shape (B,)."""
        from .losses import tpo

        return tpo(pairs, self.beta, self.alpha)


class KTO(Trainer):
    """Kahneman-Tversky optimisation: answers that are wanted or not, without pairs.

    Rows: labelled answers, with the reference's log-probs. Of a `pair` step both sides are rows; of a `select`
    step an answer of negative weight is unwanted, and counts as much as the weight without its sign. With the
    gain r = log p - log ref of an answer and z0 the mean gain of answers to other prompts, at least 0, the loss,
    equation 8 of Ethayarajh et al. 2024 (arXiv:2402.01306), is

        desirable * (1 - sigmoid(beta * (r - z0)))      where it is wanted, else
        undesirable * (1 - sigmoid(beta * (z0 - r)))

    z0 is estimated in each micro-batch, each of which has both kinds of answers. The survey's family is feedback.
    """

    name: ClassVar[str] = "kto"
    rows: ClassVar[RowsKind] = "labelled"
    reference: ClassVar[bool] = True

    learning_rate: float = Field(5e-6, ge=0, allow_inf_nan=False)
    """Peak of the schedule."""
    micro_batch: int = Field(8, ge=2)
    """Answers that are in memory at once; divides `batch_size`."""
    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """How dearly the policy pays for leaving the reference; smaller moves further."""
    desirable: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of wanted answers."""
    undesirable: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of unwanted answers."""
    floor: float = Field(2.0, ge=0, allow_inf_nan=False)
    """Nats a token by which wanted answers may become rarer than at the start; then the job ends. Looked at where the start
    is the reference."""

    def check(self) -> list[Problem]:
        """Return the options that TRL's `SFTConfig`, whose loop this is, does not have."""
        from trl.trainer.sft_config import SFTConfig

        return unknown_options(self.options, SFTConfig)

    def loss(self, answers: LabelledLogps) -> Tensor:
        """Return the loss of each answer, shape (B,)."""
        from .losses import kto

        weight = answers.wanted * self.desirable + ~answers.wanted * self.undesirable
        return kto(answers, self.beta) * weight

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train on the answers, wanted and unwanted ones in turn, and publish the new revision.

        Raises:
            BadInput: all answers are wanted, or none is.
        """
        from .answers import AnswerLabels
        from .tuning import tune

        rows = counted(read_rows(job.rows, self.rows, job.dataset_hash).to_pylist(), job.rows)
        if rows and len({row["wanted"] for row in rows}) < 2:
            what = f"all {len(rows)} answers are {'wanted' if rows[0]['wanted'] else 'unwanted'}"
            raise BadInput.at(str(job.rows), what, "kto learns from both kinds")
        return tune(self, job, AnswerLabels, rows, emit, kinds=[row["wanted"] for row in rows])
