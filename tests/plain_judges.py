"""Judges that are programs, named `plain_judges:brief` in recipes: they like few characters, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from redistill.agents.judge import ColumnName, JudgeTask, SettledJudge, Standing
from redistill.agents.ranking import verdict
from redistill.hashing import row_seed
from redistill.types import Completion, Judgement, Prompt


def brief(prompt: Prompt, completion: Completion) -> float:
    """Like an answer the better the fewer characters it has."""
    return 1 / (1 + len(completion.text))


def coin(prompt: Prompt, completion: Completion) -> float:
    """Like answers by nothing that is in them."""
    return (row_seed(f"{prompt.id} {completion.text}") % 1000) / 1000


class Fairly(SettledJudge):
    """Prefer the briefer of two answers, with a probability that says how surely."""

    name: ColumnName = "fairly"
    sure: float = 0.7
    standing: ClassVar[Standing] = "program"

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give the briefer answer its probability."""
        return [self._verdict(task) for task in tasks]

    def _verdict(self, task: JudgeTask) -> Judgement:
        first, second = (len(c.text) for c in task.candidates)
        share = 0.5 if first == second else self.sure if first < second else 1 - self.sure
        return verdict([1 - share, share], probability=share)
