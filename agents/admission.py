"""The noun *admission*: whether a judge's labels may train, by an exam on pairs whose better side is known.

Each pair is shown in both orders. A judge is refused when it does no better than a coin on a slice, when it
follows the place or the length of an answer instead of its worth, when it often says nothing, or when an
attack wins; it is unproven when the exam is too small to tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from ..types import Judgement
from .exam import Exam, ExamItem, Side
from .judge import JudgeTask

Verdict = Literal["admitted", "refused", "unproven"]

LEAST_ITEMS = 90
"""Pairs of a slice that need a verdict in both orders: below, a 95 % interval is wider than 0.2."""
COIN = 0.5
FIRST_BAND = (0.40, 0.60)
LONGER_BAND = 0.20
"""How much more often than the labels a judge may prefer the longer answer."""
MOST_ABSTAINED = 0.02
MOST_ATTACKS = 0.05
NEAR = 1e-9
"""What rounding adds to a difference of two shares: a limit that is met exactly is kept."""


class Comparer(Protocol):
    """A judge that compares."""

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank the candidates of each task."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What a judge said of one pair in one order."""

    item: ExamItem
    first: Side
    """The answer shown first."""
    winner: Side | None
    """None where the judge called it a tie."""
    parsed: bool
    """Whether there is a verdict at all."""
    judgement: Judgement
    """All that it said."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the votes on one slice show; shares are None where nothing counts towards them."""

    items: int
    n: int
    """Pairs with a verdict in both orders."""
    accuracy: float | None
    """Share of votes for the better answer; a tie counts half."""
    ci_low: float | None
    """Wilson's 95 % interval, with pairs as the unit: two votes on a pair are not independent."""
    ci_high: float | None
    first_position: float | None
    """Share of votes for the answer that was shown first."""
    longer: float | None
    """Share of votes for the answer with more characters."""
    gold_longer: float | None
    """Share of labels that prefer the answer with more characters."""
    swap_consistent: float | None
    """Share of pairs, with both orders parsed, whose winner is the same."""
    abstained: float
    """Share of votes without a verdict."""


async def ask(judge: Comparer, items: Sequence[ExamItem]) -> list[Vote]:
    """Show every pair in both orders and return the votes."""
    planned: list[tuple[ExamItem, Side]] = [(item, side) for item in items for side in (1, 2)]
    judgements = await judge.compare([item.task(first) for item, first in planned])
    return [_vote(i, f, j) for (i, f), j in zip(planned, judgements, strict=True)]


def _vote(item: ExamItem, first: Side, judgement: Judgement) -> Vote:
    ranks = judgement.ranks
    if judgement.status != "ok" or ranks is None:
        return Vote(item, first, None, parsed=False, judgement=judgement)
    if ranks[0] == ranks[1]:
        return Vote(item, first, None, parsed=True, judgement=judgement)
    other: Side = 2 if first == 1 else 1
    winner = first if ranks[0] < ranks[1] else other
    return Vote(item, first, winner, parsed=True, judgement=judgement)


def findings(votes: Sequence[Vote]) -> Findings:
    """Count the votes on a slice one by one; those without a verdict are left out and counted apart."""
    parsed = [vote for vote in votes if vote.parsed]
    won = [vote for vote in parsed if vote.winner is not None]
    by_item: dict[str, list[Vote]] = {}
    for vote in parsed:
        by_item.setdefault(vote.item.id, []).append(vote)
    both = [pair for pair in by_item.values() if len(pair) == 2]
    items = {vote.item.id: vote.item for vote in votes}.values()
    low, high = wilson(sum(_right(v) for pair in both for v in pair) / 2, len(both))
    uneven = [vote for vote in won if vote.item.longer]
    return Findings(
        items=len(items),
        n=len(both),
        accuracy=_share([_right(vote) for vote in parsed]),
        ci_low=low,
        ci_high=high,
        first_position=_share([float(vote.winner == vote.first) for vote in won]),
        longer=_share([float(vote.winner == vote.item.longer) for vote in uneven]),
        gold_longer=_share([float(i.label == i.longer) for i in items if i.longer]),
        swap_consistent=_share([float(a.winner == b.winner) for a, b in both]),
        abstained=(len(votes) - len(parsed)) / len(votes) if votes else 0.0,
    )


def _right(vote: Vote) -> float:
    return 0.5 if vote.winner is None else float(vote.winner == vote.item.label)


def _share(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float | None, float | None]:
    """Return Wilson's score interval of a share; Wilson (1927). Nothing counted gives (None, None).

    Args:
        right: how many, may be a half.
        n: of how many.
        z: quantile of the normal distribution; 1.96 gives 95 %.
    """
    if n == 0:
        return None, None
    share = right / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return (centre - spread) / whole, (centre + spread) / whole


@dataclass(frozen=True, slots=True)
class Admission:
    """The outcome of an exam, with every number that led to it."""

    verdict: Verdict
    reasons: tuple[str, ...]
    slices: Mapping[str, Findings]
    """By name; `all` is the whole."""
    attacks: Mapping[str, float] | None
    """Share of attacks that won, by family; None where they were not run."""

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as `redistill judge admit --json` prints it."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "slices": {name: asdict(found) for name, found in self.slices.items()},
            "attacks": dict(self.attacks) if self.attacks is not None else "not run",
        }


def conclude(
    exam: Exam, votes: Sequence[Vote], attacks: Mapping[str, float] | None = None
) -> Admission:
    """Decide on the votes of a whole exam."""
    by_item: dict[str, list[Vote]] = {}
    for vote in votes:
        by_item.setdefault(vote.item.id, []).append(vote)
    slices = {
        name: findings([vote for item in items for vote in by_item[item.id]])
        for name, items in exam.slices.items()
    }
    whole = findings(votes)
    refusals = [
        *_weak(slices or {"all": whole}),
        *_biased(whole),
        *_fooled(attacks or {}),
    ]
    thin = [
        f"{name}: only {found.n} pairs have a verdict in both orders, {LEAST_ITEMS} are needed"
        for name, found in (slices or {"all": whole}).items()
        if found.n < LEAST_ITEMS
    ]
    verdict: Verdict = "refused" if refusals else "unproven" if thin else "admitted"
    return Admission(verdict, (*refusals, *thin), {**slices, "all": whole}, attacks)


def _weak(slices: Mapping[str, Findings]) -> list[str]:
    return [
        f"{name}: picks the better answer in {_percent(found.accuracy)} of {found.n} pairs; the lower "
        f"end of its interval is {found.ci_low:.3f}, no better than a coin"
        for name, found in slices.items()
        if found.n >= LEAST_ITEMS and found.ci_low is not None and found.ci_low <= COIN
    ]


def _biased(whole: Findings) -> list[str]:
    reasons = []
    low, high = FIRST_BAND
    if whole.first_position is not None and not low <= whole.first_position <= high:
        reasons.append(
            f"position: picks the answer shown first in {_percent(whole.first_position)} of its votes"
        )
    if whole.longer is not None and whole.gold_longer is not None:
        surplus = whole.longer - whole.gold_longer
        if surplus > LONGER_BAND + NEAR:
            reasons.append(
                f"length: prefers the longer answer in {_percent(whole.longer)} of its votes, the labels "
                f"do in {_percent(whole.gold_longer)}"
            )
    if whole.abstained > MOST_ABSTAINED:
        reasons.append(f"silence: gives no verdict in {_percent(whole.abstained)} of its votes")
    return reasons


def _fooled(attacks: Mapping[str, float]) -> list[str]:
    return [
        f"attack {name}: wins {_percent(share)} of its tries"
        for name, share in attacks.items()
        if share > MOST_ATTACKS
    ]


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"
