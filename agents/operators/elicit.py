"""Operators that elicit completions."""

from __future__ import annotations

import time
from typing import ClassVar

from pydantic import Field

from ...policies.policy import Sampling
from ..answer import Asked, answer
from ..operator import Advance, Makes, Operator, Turn
from ..roles import STUDENT


class Sample(Operator):
    """Let a role answer each prompt of the round `k` times.

    Survey family: labelling (Eq. 3) where the role is a teacher, self-knowledge (Eq. 8) where it is the
    student. A role with a context is prompt distillation: training leaves the context out.
    """

    name: ClassVar[str] = "sample"
    makes: ClassVar[Makes] = "completions"

    role: str = STUDENT
    """Who answers."""
    k: int = Field(4, ge=1, le=1024)
    """Answers to each prompt."""
    temperature: float = Field(0.7, ge=0, le=4)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus; 1 keeps the whole vocabulary."""
    top_k: int = Field(0, ge=0)
    """0 keeps the whole vocabulary."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer; a cut one is never chosen."""

    def roles(self) -> tuple[str, ...]:
        """The one role that answers."""
        return (self.role,)

    @property
    def sampling(self) -> Sampling:
        """The settings as policies take them."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens)

    async def advance(self, turn: Turn) -> Advance:
        """Sample one chunk of (prompt, slot), all slots of a prompt side by side."""
        prompts = turn.run.round_prompts(turn.round)
        planned = [Asked(prompt, slot) for prompt in prompts for slot in range(self.k)]
        if not turn.done:
            began = time.monotonic()
            answered = await answer(turn, self.role, turn.slice(planned), self.sampling)
            turn.commit(answered.rows, time.monotonic() - began)
        return turn.advance(turn.chunks(planned))
