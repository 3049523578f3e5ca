"""The judge `human`: people, who answer through `redistill review RUN` while the run is parked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ...types import Judgement
from ..judge import ColumnName, JudgeTask, SettledJudge, Standing


class Human(SettledJudge):
    """Ask people, who see what is to be judged without its origin, in an order by chance.

    The step waits: the run ends with exit code 75, `redistill review RUN` takes the verdicts, and
    `redistill resume RUN` goes on. It can stand alone in `score` and in `compare`, and nowhere else.
    """

    name: ColumnName = "human"
    question: str = ""
    """What people are asked to look at; shown above everything that they judge."""
    scale: int = Field(5, ge=2, le=9)
    """Best score; 1 is the worst."""

    version: ClassVar[int] = 1
    standing: ClassVar[Standing] = "person"

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Say that people have to be asked, once for each task."""
        return [self._absent() for _ in tasks]

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Say that people have to be asked, once for each task."""
        return [self._absent() for _ in tasks]

    @staticmethod
    def _absent() -> Judgement:
        return Judgement.failed("not_applicable", "people answer through `redistill review RUN`")
