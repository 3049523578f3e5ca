"""How far a student's next-token distribution is from its teacher's, as formulas of log-probs.

Log-probs have shape (N, V), a row for each token, and what comes out has shape (N,), in nats. `tests/test_divergences.py`
checks each formula against one that is written out in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAST = 1e-9
"""Smallest mass of what is not among the likeliest tokens, so that its logarithm is a number."""


def kl(one: Tensor, other: Tensor) -> Tensor:
    """Return KL(one || other)."""
    return (one.exp() * (one - other)).sum(-1)


def mixed(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Return the log-probs of a mixture that is `share` of one and the rest of the other."""
    return torch.logaddexp(one + math.log(share), other + math.log(1 - share))


def divergence(student: Tensor, teacher: Tensor, beta: float, skew: float = 0.0) -> Tensor:
    """Return the generalised Jensen-Shannon divergence; Agarwal et al. 2023 (arXiv:2306.13649), section 3.2.

    With M = beta * teacher + (1 - beta) * student it is beta * KL(teacher || M) + (1 - beta) * KL(student || M). At its
    ends, where that vanishes, it is by convention (and in TRL) forward KL, teacher || student, for 0, and reverse KL,
    student || teacher, for 1. There `skew` mixes so much of the first distribution into the second (DistiLLM, Ko et
    al. 2024, arXiv:2402.03898, equations 2 and 4), which bounds it.
    """
    if beta == 0:
        return kl(teacher, mixed(teacher, student, skew) if skew else student)
    if beta == 1:
        return kl(student, mixed(student, teacher, skew) if skew else teacher)
    middle = mixed(teacher, student, beta)
    return beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)


def likeliest(student: Tensor, ids: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both distributions over the teacher's likeliest tokens and all others as one more.

    Args:
        student: log-probs of the whole vocabulary.
        ids: the teacher's likeliest tokens; (N, K).
        teacher: their log-probs; (N, K).

    Returns:
        Log-probs of student and teacher; (N, K + 1) each. Taking all others for one token never makes a divergence
        larger (the log-sum inequality), so what is told is a lower bound.
    """
    known = student.gather(-1, ids)
    return torch.cat([known, _rest(known)], -1), torch.cat([teacher, _rest(teacher)], -1)


def _rest(known: Tensor) -> Tensor:
    return torch.log((1 - known.exp().sum(-1, keepdim=True)).clamp(min=_LEAST))


def universal(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance of two distributions over different vocabularies; both are log-probs.

    The probabilities of each are sorted, and what the i-th likeliest tokens differ by is added up: the cost of moving
    one onto the other where every move costs the same. Boizard et al. 2024 (arXiv:2402.12030), equation 6.
    """
    sizes = student.size(-1), teacher.size(-1)
    one, other = (
        torch.nn.functional.pad(p.exp().sort(-1, descending=True).values, (0, max(sizes) - size))
        for p, size in zip((student, teacher), sizes, strict=True)
    )
    return (one - other).abs().sum(-1)
