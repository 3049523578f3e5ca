"""Losses of preference pairs, of labelled answers and of ranked ones, as formulas of log-probs.

One value a row comes out, before its weight. Log-probs are natural and summed over an answer's tokens; every tensor
has shape (B,). `tests/test_losses.py` checks each formula against one that is written out in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_NEARLY_SURE = -1e-6
"""Mean log-prob above which an answer's odds would be infinite."""


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What is known of a batch of preference pairs."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    ref_chosen: Tensor
    """Of the reference; NaN where a loss needs none."""
    ref_rejected: Tensor
    probability: Tensor
    """That chosen is the better one: 1 for a hard label."""
    margin: Tensor
    """By how much it is better, in the judge's values."""
    gold: Tensor | None = None
    """Of an answer that is right whatever the pair says."""
    gold_tokens: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """How much the policy has moved from the reference in favour of chosen, nats."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)

    def turned(self) -> PairLogps:
        """Return the same pairs with the sides, and all that is said of them, exchanged."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            chosen_tokens=self.rejected_tokens,
            rejected_tokens=self.chosen_tokens,
            ref_chosen=self.ref_rejected,
            ref_rejected=self.ref_chosen,
            probability=1 - self.probability,
            margin=-self.margin,
        )


def preference(logit: Tensor, probability: Tensor) -> Tensor:
    """Return the cross-entropy of a preference whose log-odds are `logit` with a label that may be soft."""
    return -probability * logsigmoid(logit) - (1 - probability) * logsigmoid(-logit)


def mean_nll(logp: Tensor, tokens: Tensor) -> Tensor:
    """Return the negative log-likelihood of an answer's token, on average."""
    return -logp / tokens


def dpo(pairs: PairLogps, beta: float, offset: float) -> Tensor:
    """Return DPO's loss; Rafailov et al. 2023 (arXiv:2305.18290), equation 7.

    A soft label weighs both directions (conservative DPO); an offset asks for a log-ratio that is larger the
    larger the margin is (ODPO, Amini et al. 2024, arXiv:2402.10571).
    """
    return preference(beta * pairs.log_ratio - offset * pairs.margin, pairs.probability)


def orpo(pairs: PairLogps, beta: float) -> Tensor:
    """Return ORPO's loss, the chosen answer's mean NLL and the odds ratio's preference.

    Hong et al. 2024 (arXiv:2403.07691), equations 6 and 7. The probability of an answer is the geometric mean of
    its tokens'.
    """
    ratio = _log_odds(pairs.chosen, pairs.chosen_tokens) - _log_odds(
        pairs.rejected, pairs.rejected_tokens
    )
    nll = mean_nll(pairs.chosen, pairs.chosen_tokens)
    return nll + beta * preference(ratio, pairs.probability)


def _log_odds(logp: Tensor, tokens: Tensor) -> Tensor:
    mean = (logp / tokens).clamp(max=_NEARLY_SURE)
    return mean - torch.log(-torch.expm1(mean))


def simpo(pairs: PairLogps, beta: float, gamma: float) -> Tensor:
    """Return SimPO's loss, which needs no reference; Meng et al. 2024 (arXiv:2405.14734), equation 6."""
    ratio = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return preference(beta * ratio - gamma, pairs.probability)


def tpo(pairs: PairLogps, beta: float, alpha: float) -> Tensor:
    """Return TPO's loss: a preference without reference, and the gold answer's mean NLL.

    Saeidi et al. 2024 (arXiv:2405.16681), equation 7.
    """
    assert pairs.gold is not None
    assert pairs.gold_tokens is not None
    liked = preference(beta * (pairs.chosen - pairs.rejected), pairs.probability)
    return liked + alpha * mean_nll(pairs.gold, pairs.gold_tokens)


@dataclass(frozen=True, slots=True)
class LabelledLogps:
    """What is known of a batch of answers of which each is wanted or not."""

    logp: Tensor
    ref: Tensor
    wanted: Tensor
    """Whether an answer is wanted."""
    shift: Tensor
    """How far the policy has moved from the reference on answers to other prompts, at least 0; a scalar."""


def kto(answers: LabelledLogps, beta: float) -> Tensor:
    """Return KTO's loss, before the weights of wanted and unwanted answers.

    Ethayarajh et al. 2024 (arXiv:2402.01306), equation 8: 1 - sigmoid of the gain over the shift, or of the loss.
    """
    gain = answers.logp - answers.ref - answers.shift
    return 1 - torch.sigmoid(beta * torch.where(answers.wanted, gain, -gain))


@dataclass(frozen=True, slots=True)
class RankedLogps:
    """What is known of a batch of prompts, each with its answers: N answers, B prompts, P pairs of a better and a worse."""

    mean: Tensor
    """Mean log-prob of an answer's tokens; (N,)."""
    prompt: Tensor
    """Place of the prompt of each answer; (N,)."""
    best: Tensor
    """Place of the best answer of each prompt; (B,)."""
    better: Tensor
    """Place of the better answer of each pair; (P,)."""
    worse: Tensor
    """Place of the worse one; (P,)."""

    def summed(self, values: Tensor, answers: Tensor) -> Tensor:
        """Add values up by the prompt of the answers that they belong to; (B,)."""
        none = torch.zeros(len(self.best), dtype=values.dtype, device=values.device)
        return none.index_add(0, self.prompt[answers], values)


def rrhf(lists: RankedLogps, nll: float) -> Tensor:
    """Return RRHF's loss of each prompt; Yuan et al. 2023 (arXiv:2304.05302), equations 2 to 4."""
    behind = (lists.mean[lists.worse] - lists.mean[lists.better]).clamp(min=0)
    return lists.summed(behind, lists.better) - nll * lists.mean[lists.best]


def pro(lists: RankedLogps, nll: float) -> Tensor:
    """Return PRO's loss of each prompt; Song et al. 2023 (arXiv:2306.17492), equation 16 of the survey."""
    every = torch.arange(len(lists.mean), device=lists.mean.device)
    beside = torch.eye(len(every), dtype=torch.bool, device=every.device)
    beside = beside.index_put((lists.better, lists.worse), beside.new_ones(()))
    against = lists.mean.expand(len(every), -1).masked_fill(~beside, -torch.inf).logsumexp(1)
    return lists.summed(against - lists.mean, every) - nll * lists.mean[lists.best]


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor, probability: Tensor) -> Tensor:
    """Return the loss of a reward model on pairs of rewards.

    Bradley and Terry 1952; a margin is taken off as in Touvron et al. 2023 (arXiv:2307.09288), equation 2.
    """
    return preference(chosen - rejected - margin, probability)
