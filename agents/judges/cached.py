"""The judge `cached`: what was judged before is not paid again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Self, cast

from pydantic import PrivateAttr

from ...types import Judgement
from ..judge import ColumnName, Critic, JudgeSpec, JudgeTask, Mode, Scorer
from ..speaker import Speaker
from .combine import Combined

Recall = Callable[
    [str, Mode, Sequence[str], Sequence[JudgeTask]], Awaitable[list[Judgement | None]]
]
"""From a judge's revision, what is asked, its roles and the tasks to the verdicts that stand already."""


class Cached(Combined):
    """Take a verdict that stands in the run's store for the same words, and ask only for the rest.

    The same words: the prompt and the answers in the order presented. The verdict must be this judge's, by
    the same weights where a model of this machine speaks; a failure is asked again. A row that was taken so
    has cost nothing. For a judge that samples it means one draw for ever.
    """

    name: ColumnName = "cached"
    judge: JudgeSpec
    """The judge that is asked once."""

    can: ClassVar[tuple[Mode, ...]] = ("score", "compare", "critique")
    _recall: Recall | None = PrivateAttr(None)

    def bound(self, speaker: Speaker) -> Self:
        """Return the judge ready to speak, and to remember where the speaker has a store."""
        copy = super().bound(speaker)
        copy._recall = getattr(speaker, "recall", None)
        return copy

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each task's completion its value."""
        return await self._once("score", tasks, cast("Scorer", self.inner[0]).score)

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates as presented."""
        return await self._once("compare", tasks, self.comparers()[0].compare)

    async def critique(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Say what is wrong with each completion."""
        return await self._once("critique", tasks, cast("Critic", self.inner[0]).critique)

    async def _once(
        self,
        mode: Mode,
        tasks: Sequence[JudgeTask],
        ask: Callable[[Sequence[JudgeTask]], Awaitable[list[Judgement]]],
    ) -> list[Judgement]:
        known: list[Judgement | None] = [None] * len(tasks)
        if self._recall is not None:
            known = await self._recall(self.revision, mode, self.roles(), tasks)
        missing = {words(t): t for t, old in zip(tasks, known, strict=True) if old is None}
        said = dict(zip(missing, await ask([*missing.values()]), strict=True) if missing else ())
        found, paid = [], set[Words]()
        for task, old in zip(tasks, known, strict=True):
            key = words(task)
            verdict = said[key] if old is None else old
            found.append(unpaid(verdict) if old is not None or key in paid else verdict)
            paid.add(key)
        return found


Words = tuple[str, tuple[str, ...], int]


def words(task: JudgeTask) -> Words:
    """Return what a task is known by: its prompt, its texts as presented, and which asking it is."""
    return task.prompt.id, tuple(c.text for c in task.candidates), task.attempt


def unpaid(verdict: Judgement) -> Judgement:
    """Return a verdict as one that cost nothing; who gave it stays known."""
    if verdict.usage is None:
        return verdict
    usage = replace(verdict.usage, tokens_in=0, tokens_out=0, dollars=0.0)
    return replace(verdict, usage=usage)
