"""Judges with planted opinions, named `planted_judges:one`: what they think is set by the test that runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redistill.agents.judge import JudgeTask
from redistill.agents.ranking import verdict
from redistill.types import Judgement, Usage

BILL = Usage("r", "m", "", 10, 1, 0.5)
"""What each verdict costs."""


class Planted:
    """A judge with an opinion on each task, at a price."""

    def __init__(self, name: str, opinion: Callable[[JudgeTask], Any]) -> None:
        self.name = self.revision = name
        self.opinion = opinion

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give the value that the opinion is, or the status."""
        return [self._said(task, compared=False) for task in tasks]

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give the first of two the probability that the opinion is."""
        return [self._said(task, compared=True) for task in tasks]

    def _said(self, task: JudgeTask, *, compared: bool) -> Judgement:
        found = self.opinion(task)
        if isinstance(found, str):
            return Judgement.failed(found, "it says so", usage=BILL)  # type: ignore[arg-type]
        if not compared:
            return Judgement(found, usage=BILL)
        if isinstance(found, tuple):
            return verdict(found, usage=BILL)
        return verdict([1 - found, found], probability=found, usage=BILL)


OPINIONS: dict[str, Callable[[JudgeTask], Any]] = {}
"""What the judges below think."""


def _by_name(name: str) -> Callable[[JudgeTask], Any]:
    return lambda task: OPINIONS[name](task)


one, two, three = (Planted(name, _by_name(name)) for name in ("one", "two", "three"))


def think(**opinions: Any) -> None:
    """Set what the judges think; a constant or a function of the task."""
    OPINIONS.clear()
    for name, said in opinions.items():
        OPINIONS[name] = said if callable(said) else _always(said)


def _always(said: Any) -> Callable[[JudgeTask], Any]:
    return lambda _: said
