"""The judge `win_rate`: an answer is worth what share of the other samples it beats."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import ClassVar

from ...types import Completion, Judgement
from ..judge import ColumnName, Judge, JudgeSpec, JudgeTask, Mode
from ..ranking import spent
from .combine import Combined

_EVEN = 0.5


class WinRate(Combined):
    """Let a judge that compares rank all samples of a prompt against each other, as a reward of groups.

    Each two samples are shown once in each order, and a sample's value is the mean over the others of how far it beats
    them: 1 for one that beats all, as in RRHF's and RLAIF's rankings (arXiv:2304.05302, arXiv:2309.00267). A
    comparison that failed is left out; a sample without any is not judged. Its exam is that of the judge inside.
    """

    name: ColumnName = "win_rate"
    judge: JudgeSpec
    """The judge that compares."""

    can: ClassVar[tuple[Mode, ...]] = ("score",)

    @property
    def needs_group(self) -> bool:
        """It looks at all samples of a prompt."""
        return True

    @property
    def examined_as(self) -> Judge:
        """The judge whose exam counts."""
        return self.inner[0]

    def able(self) -> tuple[Mode, ...]:
        """It gives values, whatever the judge inside does."""
        return ("score",)

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Judge each task by its candidates: the answer itself, and the other samples of its prompt."""
        [judge] = self.comparers()
        asked: dict[tuple[str, str], JudgeTask] = {}
        for task in tasks:
            for one, other in combinations(task.candidates, 2):
                if one.text == other.text:
                    continue  # nobody is paid to tell the same from the same
                for first, second in ((one, other), (other, one)):
                    asked.setdefault(
                        (first.id, second.id), JudgeTask(task.prompt, first, (second,))
                    )
        found = dict(zip(asked, await judge.compare(list(asked.values())), strict=True))
        billed: set[tuple[str, str]] = set()
        return [_rate(task, found, billed) for task in tasks]


def _rate(
    task: JudgeTask,
    found: dict[tuple[str, str], Judgement],
    billed: set[tuple[str, str]],
) -> Judgement:
    """Return the mean over the others of how far an answer beats each, in both orders."""
    mine = task.completion
    keys = [
        key
        for other in task.others
        for key in ((mine.id, other.id), (other.id, mine.id))
        if key in found
    ]
    usage = spent(found[key] for key in keys if key not in billed)
    billed.update(keys)  # what a comparison has cost is told with the first answer that it is of
    each = [_beats(mine, other, found) for other in task.others]
    known = [value for value in each if value is not None]
    if known:
        rate = fmean(known)
        return Judgement(rate, raw=rate, usage=usage)
    failed = next((found[key] for key in keys if found[key].status != "ok"), None)
    if failed is not None:
        return Judgement.failed(failed.status, failed.text, usage=usage)
    return Judgement.failed("not_applicable", "there is no other sample of this prompt")


def _beats(
    mine: Completion, other: Completion, found: dict[tuple[str, str], Judgement]
) -> float | None:
    """Return 1 where one answer beats another in both orders; None where neither order has a verdict."""
    if mine.text == other.text:
        return _EVEN
    values = []
    for key, won in (((mine.id, other.id), 1.0), ((other.id, mine.id), 0.0)):
        value = found[key].value
        if value is not None:
            values.append(value if won else 1 - value)
    return fmean(values) if values else None
