"""A speaker for roles whose policy runs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..policies.policy import Policy, Sampling
from ..types import Message
from .operator import Turn
from .speaker import Ask, Given, Measured, Reply, Weighed
from .weighing import measure, speak, weigh


class LocalSpeaker:
    """Lets the roles of a turn speak: each holds the revision that it names, with its own context."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    async def say(self, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
        """Answer each conversation; what leaves no room for a reply is `too_big`."""
        cast = self._turn.run.cast
        asked = [replace(ask, messages=self._staged(role, ask.messages)) for ask in asks]
        async with cast.stage:
            return await cast.call(speak, await self._policy(role), role, asked, sampling)

    async def choose(self, role: str, asks: Sequence[Ask], options: Sequence[str]) -> list[Weighed]:
        """Return how likely each option is as the reply."""
        cast = self._turn.run.cast
        told = [self._staged(role, ask.messages) for ask in asks]
        async with cast.stage:
            return await cast.call(weigh, await self._policy(role), role, told, options)

    async def logprobs(self, role: str, given: Sequence[Given]) -> list[Measured]:
        """Return the raw log-probs of each token of given answers."""
        cast = self._turn.run.cast
        asked = [
            (
                self._staged(role, g.messages, g.tags),
                g.answer,
                cast.vocabulary(g.answer.revision),
            )
            for g in given
        ]
        async with cast.stage:
            return await cast.call(measure, await self._policy(role), role, asked)

    async def _policy(self, role: str) -> Policy:
        turn = self._turn
        return await turn.run.cast.speak(
            role, turn.run.store, round=turn.round, champion=turn.champion, current=turn.current
        )

    def _staged(
        self, role: str, messages: Sequence[Message], tags: Sequence[str] | None = None
    ) -> tuple[Message, ...]:
        """Put before a conversation what the role sees first; worked examples belong to answers only."""
        return self._turn.run.cast.staging(role).before(tags) + tuple(messages)
