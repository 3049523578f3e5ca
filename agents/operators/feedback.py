"""Operators that ask judges."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from ...errors import BadInput, Problem
from ...store.facts import find_prompts, read_completions
from .. import plugins
from ..judge import BUILTINS, Judge, load
from ..operator import Advance, Makes, Operator, Turn
from ..verdicts import judge_chunk

JudgeSpec = Annotated[
    str | dict[str, Any], BeforeValidator(lambda judge: plugins.spec_of(judge, BUILTINS))
]
"""How a recipe names a judge; in Python the judge itself will do."""


class Judging(Operator):
    """What steps that ask a judge have in common."""

    judge: JudgeSpec
    """A judge's name, `{name: {settings}}`, or `module:callable`."""

    def load_judge(self) -> Judge:
        """Return the judge, ready to be asked."""
        return load(self.judge, f"{self.step}.judge")

    def judges(self) -> Mapping[str, str]:
        """The one judge of the step."""
        judge = self.load_judge()
        return {judge.name: judge.revision}

    def check(self, where: str) -> list[Problem]:
        """Find a judge that does not exist or has wrong settings."""
        try:
            load(self.judge, f"{where}.judge")
        except BadInput as error:
            return list(error.problems)
        return []


class Score(Judging):
    """Let a judge give each completion a value in [0, 1].

    Survey family: feedback (Eq. 7). A judgement that fails is a row with a status and no value.
    """

    name: ClassVar[str] = "score"
    makes: ClassVar[Makes] = "judgements"
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)

    of: str | tuple[str, ...] = ()
    """Steps whose completions are judged; the one earlier step that makes some."""

    async def advance(self, turn: Turn) -> Advance:
        """Judge one chunk of completions."""
        completions = read_completions(turn.run.store, turn.round, self.sources())
        if not turn.done:
            began = time.monotonic()
            chunk = turn.slice(completions)
            prompts = find_prompts(turn.run.store, [c.prompt_id for c in chunk])
            answers = [(prompts[c.prompt_id], c) for c in chunk]
            rows = await judge_chunk(turn, self.load_judge(), answers)
            turn.commit(rows, time.monotonic() - began)
        return turn.advance(turn.chunks(completions))
