"""Judges made of other judges: both orders averaged, and several attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import fmean
from typing import ClassVar, Self

from pydantic import Field, PrivateAttr, model_validator

from ...hashing import content_hash
from ...types import Judgement
from ..judge import (
    ColumnName,
    Comparer,
    Judge,
    JudgeSpec,
    JudgeTask,
    Mode,
    SettledJudge,
    Standing,
    let_go,
    load,
    modes,
    needs_group,
    needs_weights,
    roles_of,
    scorer,
    standing_of,
)
from ..ranking import averaged, comparing, spent, turned, turned_back
from ..speaker import Speaker, bind


class Combined(SettledJudge):
    """Base of judges made of others: their roles, their standing, and what they leave it able to do."""

    can: ClassVar[tuple[Mode, ...]] = ("score", "compare")
    _inner: tuple[Judge, ...] | None = PrivateAttr(None)

    def specs(self) -> tuple[JudgeSpec, ...]:
        """Return how the judges inside are named."""
        return (getattr(self, "judge"),)  # noqa: B009 - a field of each subclass but the jury

    @model_validator(mode="after")
    def _inside(self) -> Self:
        self._inner = tuple(load(spec, "judge") for spec in self.specs())
        if any(standing_of(judge) == "person" for judge in self._inner):
            raise ValueError("no judge can wait for people inside another one")
        return self

    @property
    def inner(self) -> tuple[Judge, ...]:
        """The judges inside."""
        return self._inner or ()

    @property
    def revision(self) -> str:
        """Content hash of the judges inside, the settings and the code version."""
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        settings = self.model_dump(mode="json", exclude={"name", "judge", "judges", "pairs"})
        return content_hash([kind, self.version, settings, [j.revision for j in self.inner]])

    @property
    def standing(self) -> Standing:
        """What the judges inside are; anything but programs alone, or baselines alone, is examined."""
        found = {standing_of(judge) for judge in self.inner}
        if len(found) == 1:
            return found.pop()
        return "recorded" if "recorded" in found else "model"

    @property
    def needs_group(self) -> bool:
        """Whether a judge inside scores a completion beside all other samples of its prompt."""
        return any(map(needs_group, self.inner))

    @property
    def needs_weights(self) -> bool:
        """Whether a judge inside reads log-probs."""
        return any(map(needs_weights, self.inner))

    def able(self) -> tuple[Mode, ...]:
        """Return what it can do with the judges that it has; one that scores can be compared too."""
        each = [set(modes(judge)) for judge in self.inner]
        found: set[Mode] = set.intersection(*each) if each else set()
        if all(able & {"score", "compare"} for able in each):
            found.add("compare")
        return tuple(mode for mode in self.can if mode in found)

    def roles(self) -> tuple[str, ...]:
        """Return the roles of the judges inside."""
        return tuple(dict.fromkeys(role for judge in self.inner for role in roles_of(judge)))

    def bound(self, speaker: Speaker) -> Self:
        """Return the judge with those inside ready to speak."""
        copy = self.model_copy()
        copy._inner = tuple(bind(judge, speaker) for judge in self.inner)
        return copy

    def seen(self) -> frozenset[str]:
        """Return the keys of all labelled pairs that anything inside was fitted on."""
        nothing: frozenset[str] = frozenset()
        return nothing.union(*(getattr(judge, "seen", frozenset)() for judge in self.inner))

    def release(self) -> None:
        """Let the judges inside give back what they hold."""
        for judge in self.inner:
            let_go(judge)

    def calls(self) -> int:
        """Return how many verdicts of judges inside one verdict takes."""
        return sum(int(getattr(judge, "calls", lambda: 1)()) for judge in self.inner)

    def comparers(self) -> tuple[Comparer, ...]:
        """Return the judges inside as such that compare."""
        return tuple(comparing(judge, self.name) for judge in self.inner)


class BothOrders(Combined):
    """Compare in the order presented and in the opposite one, and average the two verdicts.

    The `compare` step does so by itself; this is for comparisons outside of it, and for a jury's
    members. Where one of the orders has no verdict, there is none.
    """

    name: ColumnName = "both_orders"
    judge: JudgeSpec
    """The judge that is asked twice."""

    can: ClassVar[tuple[Mode, ...]] = ("compare",)

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates as presented."""
        [judge] = self.comparers()
        both = await judge.compare([*tasks, *map(turned, tasks)])
        straight, back = both[: len(tasks)], map(turned_back, both[len(tasks) :])
        return [_both(one, other) for one, other in zip(straight, back, strict=True)]

    def calls(self) -> int:
        """Return how many verdicts of the judge inside one verdict takes."""
        return 2 * super().calls()


def _both(one: Judgement, other: Judgement) -> Judgement:
    failed = next((j for j in (one, other) if j.status != "ok"), None)
    if failed is None:
        return averaged([one, other])
    return Judgement.failed(failed.status, failed.text, usage=spent([one, other]))


class Repeat(Combined):
    """Ask k times: the mean of the values, the majority of the verdicts.

    Identical runs of a pairwise judge disagree in about one verdict of eight (arXiv 2606.13685). An
    attempt that failed is left out; with fewer than half of them there is no verdict.
    """

    name: ColumnName = "repeat"
    judge: JudgeSpec
    """The judge that is asked k times."""
    k: int = Field(3, ge=2, le=64)
    """Attempts."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each task's completion the mean value of its attempts."""
        judge = scorer(self.inner[0], self.name)
        asked = await asyncio.gather(*(judge.score(_attempt(tasks, n)) for n in range(self.k)))
        return [self._mean(row) for row in zip(*asked, strict=True)]

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates by the majority of its attempts."""
        [judge] = self.comparers()
        asked = await asyncio.gather(*(judge.compare(_attempt(tasks, n)) for n in range(self.k)))
        return [self._majority(row) for row in zip(*asked, strict=True)]

    def calls(self) -> int:
        """Return how many verdicts of the judge inside one verdict takes."""
        return self.k * super().calls()

    def _mean(self, row: Sequence[Judgement]) -> Judgement:
        values = [j.value for j in row if j.value is not None]
        if 2 * len(values) < self.k:
            return _first_failure(row)
        mean = fmean(values)
        return Judgement(mean, raw=mean, usage=spent(row))

    def _majority(self, row: Sequence[Judgement]) -> Judgement:
        good = [j for j in row if j.status == "ok" and j.ranks]
        if 2 * len(good) < self.k:
            return _first_failure(row)
        return averaged(row)


def _attempt(tasks: Sequence[JudgeTask], number: int) -> list[JudgeTask]:
    return [JudgeTask(t.prompt, t.completion, t.others, t.attempt + number) for t in tasks]


def _first_failure(row: Sequence[Judgement]) -> Judgement:
    failed = next(j for j in row if j.status != "ok")
    return Judgement.failed(failed.status, failed.text, usage=spent(row))
