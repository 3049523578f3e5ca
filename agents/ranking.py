"""Verdicts of comparisons: made from values, averaged, and what they cost together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

from ..errors import BadInput
from ..types import Judgement, Usage
from .judge import Comparer, Judge, JudgeTask, Scorer, modes

_EVEN = 1e-9
"""Values that are nearer than this are equal: what summing in another order would change."""


@dataclass(frozen=True, slots=True)
class ByValues:
    """A judge that only scores, as one that compares: the higher value wins, equal ones are a tie."""

    scorer: Scorer

    @property
    def name(self) -> str:
        """Name of the judge inside."""
        return self.scorer.name

    @property
    def revision(self) -> str:
        """Revision of the judge inside."""
        return self.scorer.revision

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Score each answer once, however often it is shown, and rank by value."""
        asked = {(t.prompt.id, c.id): JudgeTask(t.prompt, c) for t in tasks for c in t.candidates}
        scored = dict(zip(asked, await self.scorer.score(list(asked.values())), strict=True))
        billed: set[tuple[str, str]] = set()
        found = []
        for task in tasks:
            keys = [(task.prompt.id, completion.id) for completion in task.candidates]
            usage = spent(scored[key] for key in keys if key not in billed)
            billed.update(keys)
            found.append(_by_value([scored[key] for key in keys], usage))
        return found


def _by_value(scored: Sequence[Judgement], usage: Usage | None) -> Judgement:
    failed = next((j for j in scored if j.value is None), None)
    if failed is not None:
        status = failed.status if failed.status != "ok" else "parse_error"
        return Judgement.failed(status, failed.text, usage=usage)
    values = [cast("float", j.value) for j in scored]
    return verdict([-value for value in values], usage=usage)


def comparing(judge: Judge, where: str) -> Comparer:
    """Return the judge as one that compares; one that only scores compares its values.

    Raises:
        BadInput: it can do neither.
    """
    able = modes(judge)
    if "compare" in able:
        return cast("Comparer", judge)
    if "score" in able:
        return ByValues(cast("Scorer", judge))
    raise BadInput.at(where, f"{judge.name} can only {' and '.join(able)}, no pair tells its worth")


def verdict(
    costs: Sequence[float],
    *,
    probability: float | None = None,
    usage: Usage | None = None,
    text: str = "",
) -> Judgement:
    """Return the verdict that ranks candidates by a number, the smallest first; equal ones tie."""
    ordered = sorted(costs)
    ranks = tuple(1 + sum(other < cost - _EVEN for other in ordered) for cost in costs)
    plain = Judgement.ranked(ranks, probability=probability)
    return Judgement(
        plain.value, ranks=ranks, probability=probability, usage=usage, text=text, raw=None
    )


def first_wins(judgement: Judgement) -> float:
    """Return how far the first of two presented answers won, in [0, 1]."""
    if judgement.probability is not None:
        return judgement.probability
    return cast("float", judgement.value)


def averaged(verdicts: Sequence[Judgement]) -> Judgement:
    """Return the mean of verdicts on one list of candidates; those without a verdict are left out.

    Of two candidates the probabilities are averaged, of more the ranks (Borda). With no verdict at all
    the first failure is returned; what the calls cost is kept in any case.
    """
    usage = spent(verdicts)
    good = [v for v in verdicts if v.status == "ok" and v.ranks]
    if not good:
        first = next((v for v in verdicts if v.status != "ok"), None)
        return Judgement.failed(
            first.status if first else "parse_error",
            first.text if first else "no ranks",
            usage=usage,
        )
    ranks = [cast("tuple[int, ...]", v.ranks) for v in good]
    if len(ranks[0]) == 2:
        share = fmean(map(first_wins, good))
        return verdict([1 - share, share], probability=share, usage=usage)
    return verdict([fmean(column) for column in zip(*ranks, strict=True)], usage=usage)


def turned(task: JudgeTask) -> JudgeTask:
    """Return the comparison with its candidates in the opposite order."""
    back = tuple(reversed(task.candidates))
    return JudgeTask(task.prompt, back[0], back[1:], task.attempt)


def turned_back(judgement: Judgement) -> Judgement:
    """Return a verdict on the opposite order as one on the order itself."""
    if judgement.ranks is None:
        return judgement
    ranks = tuple(reversed(judgement.ranks))
    probability = None if judgement.probability is None else 1 - judgement.probability
    value = None if judgement.value is None else 1 - judgement.value
    return Judgement(
        value,
        ranks=ranks,
        probability=probability,
        text=judgement.text,
        reply=judgement.reply,
        usage=judgement.usage,
    )


def spent(judgements: Iterable[Judgement]) -> Usage | None:
    """Return what several calls cost together; the price is unknown where one of them is."""
    return total(judgement.usage for judgement in judgements)


def total(bills: Iterable[Usage | None]) -> Usage | None:
    """Return the sum of what calls cost; None where nothing is known of any."""
    usages = [usage for usage in bills if usage is not None]
    if not usages:
        return None
    dollars = [u.dollars for u in usages]
    return Usage(
        role=_same(u.role for u in usages),
        model=_same(u.model for u in usages),
        revision=_same(u.revision for u in usages),
        tokens_in=sum(u.tokens_in for u in usages),
        tokens_out=sum(u.tokens_out for u in usages),
        dollars=None if None in dollars else sum(d for d in dollars if d is not None),
    )


def _same(names: Iterable[str]) -> str:
    return " + ".join(dict.fromkeys(name for name in names if name))
