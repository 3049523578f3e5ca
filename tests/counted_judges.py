"""Judges that keep a line for each answer that they are asked about, as a server would send a bill for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from redistill.agents.judge import ColumnName, JudgeTask, SettledJudge
from redistill.types import Completion, Judgement, Prompt

standing = "program"


def _early(completion: Completion) -> float:
    """Return the share of letters that stand in the alphabet's first half."""
    letters = [c for c in completion.text.casefold() if c.isalpha()]
    return sum(c < "n" for c in letters) / len(letters) if letters else 0.0


async def early(_prompt: Prompt, completion: Completion) -> float:
    """Like letters of the alphabet's first half, and note who was asked about."""
    with Path(os.environ["BILL"]).open("a", encoding="utf-8") as bill:
        bill.write(completion.id + "\n")
    return _early(completion)


_asked = itertools.count(1)


async def sick(prompt: Prompt, completion: Completion) -> float:
    """Judge alike, and fail on every tenth answer."""
    if next(_asked) % 10 == 0:
        raise RuntimeError("this one cannot be judged")
    return await early(prompt, completion)


early.standing = sick.standing = "program"  # type: ignore[attr-defined]


class Critic(SettledJudge):
    """Say the same of every answer."""

    name: ColumnName = "critic"

    async def critique(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Find each too plain."""
        return [Judgement(None, text="This is too plain.") for _ in tasks]
