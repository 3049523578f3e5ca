"""What rollouts are worth beside those of their group, as formulas of rewards.

Lists in, lists out, in the rollouts' order; a reward of None was not judged, and is as if it had not been sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal

Rewards = Sequence[float | None]
Scale = Literal["group", "batch", "none"]
_TINY = 1e-4
"""Added to a deviation, as in TRL, so that nothing is divided by zero."""
_EQUAL = 1e-9
"""Rewards that are nearer than this are equal."""


def differ(rewards: Rewards) -> bool:
    """Whether a group's rewards say anything: at least two, and not all the same."""
    known = [r for r in rewards if r is not None]
    return len(known) > 1 and max(known) - min(known) > _EQUAL


def centred(groups: Sequence[Rewards]) -> list[list[float | None]]:
    """Return each reward less the mean of its group."""
    found: list[list[float | None]] = []
    for group in groups:
        mean = fmean([r for r in group if r is not None] or [0.0])
        found.append([None if r is None else r - mean for r in group])
    return found


def group_relative(groups: Sequence[Rewards], scale: Scale) -> list[list[float | None]]:
    """Return GRPO's advantages; Shao et al. 2024 (arXiv:2402.03300), section 4.1.2.

    Args:
        groups: the rewards of each prompt's rollouts.
        scale: what the centred rewards are divided by: their group's deviation, that of all rewards of the step, or
            nothing (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, which shows how dividing favours easy prompts).
    """
    every = [r for group in groups for r in group if r is not None]
    found: list[list[float | None]] = []
    for rewards, group in zip(groups, centred(groups), strict=True):
        known = [r for r in rewards if r is not None]
        spread = {"group": known, "batch": every, "none": []}[scale]
        divisor = _deviation(spread) + _TINY if scale != "none" else 1.0
        found.append([None if a is None else a / divisor for a in group])
    return found


def leave_one_out(groups: Sequence[Rewards]) -> list[list[float | None]]:
    """Return each reward less the mean of the others of its group; Ahmadian et al. 2024 (arXiv:2402.14740)."""
    found: list[list[float | None]] = []
    for rewards, group in zip(groups, centred(groups), strict=True):
        count = sum(1 for r in rewards if r is not None)
        times = count / (count - 1) if count > 1 else 0.0
        found.append([None if a is None else a * times for a in group])
    return found


def combined(rewards: Sequence[Rewards], weights: Sequence[float]) -> list[float | None]:
    """Return the weighted sum of several judges' rewards; None where any of them gave none.

    Args:
        rewards: of each judge, for all rollouts.
        weights: of each judge.
    """
    return [
        None
        if any(r is None for r in each)
        else sum(w * r for w, r in zip(weights, each, strict=True) if r is not None)
        for each in zip(*rewards, strict=True)
    ]


def _deviation(rewards: Sequence[float]) -> float:
    """Return the standard deviation of a sample, as TRL has it; 0 for fewer than two."""
    count = len(rewards)
    return pstdev(rewards) * (count / (count - 1)) ** 0.5 if count > 1 else 0.0
