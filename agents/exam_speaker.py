"""A speaker for exams outside of a run: each role is a model, loaded here or called at its address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from ..policies import catalog
from ..policies.address import Price, is_remote
from ..policies.policy import Policy, Sampling
from ..policies.revision import Revision
from ..types import Message
from . import plugins
from .remote_speaker import Reader, RemoteSpeaker
from .roles import STUDENT, Role, Staging
from .servers import Servers
from .speaker import Ask, Given, Measured, Reply, Weighed
from .weighing import measure, speak, weigh


class ExamSpeaker:
    """Lets roles speak that no run has bound.

    Args:
        roles: each role; one whose policy is the student speaks with the student's first weights.
        student: the student's model.
        base: folder that the roles' own paths are relative to.
        cache: where models are kept.
    """

    def __init__(self, roles: Mapping[str, Role], student: str, base: Path, cache: Path) -> None:
        self._stagings = {name: Staging(name, role, base) for name, role in roles.items()}
        self._student, self._base, self._cache = student, base, cache
        self._servers = Servers(roles)
        self._remote = self._speaking_far(None)
        self._held: dict[str, Policy] = {}
        self._read: Reader | None = None
        self._one = asyncio.Lock()
        """Held while a model of this machine works: two at once would fight for the cores."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for policy in self._held.values():
            policy.release()
        await self._servers.close()

    def tariff(self) -> Callable[[int, int], float] | None:
        """Return the dollars of tokens read and written, by the dearest role; None where one has no price."""
        remote = [s.role for s in self._stagings.values() if is_remote(s.role.policy)]
        prices = [Price(r.price.in_, r.price.out) for r in remote if r.price is not None]
        if len(prices) < len(remote):
            return None
        return lambda read, written: max((p.of(read, written) for p in prices), default=0.0)

    async def say(self, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
        """Answer each conversation; what leaves no room for a reply is `too_big`."""
        if self._servers.serve(role):
            return await self._remote.say(role, asks, sampling)
        asked = [replace(ask, messages=self._staged(role, ask.messages)) for ask in asks]
        async with self._one:
            policy = await self._policy(role)
            return await asyncio.to_thread(speak, policy, role, asked, sampling)

    async def choose(self, role: str, asks: Sequence[Ask], options: Sequence[str]) -> list[Weighed]:
        """Return how likely each option is as the reply to each conversation."""
        if self._servers.serve(role):
            return await self._remote.choose(role, asks, options)
        told = [self._staged(role, ask.messages) for ask in asks]
        async with self._one:
            return await asyncio.to_thread(weigh, await self._policy(role), role, told, options)

    async def logprobs(self, role: str, given: Sequence[Given]) -> list[Measured]:
        """Return the raw log-probs of each token of given answers, spelled by the role's own policy."""
        if self._servers.serve(role):
            return await self._speaking_far(await self._reader()).logprobs(role, given)
        asked = [(self._staged(role, g.messages, g.tags), g.answer, None) for g in given]
        async with self._one:
            return await asyncio.to_thread(measure, await self._policy(role), role, asked)

    def _speaking_far(self, reader: Reader | None) -> RemoteSpeaker:
        return RemoteSpeaker(
            self._servers, lambda role, tags: self._stagings[role].before(tags), reader=reader
        )

    async def _reader(self) -> Reader | None:
        """Return the student as the one whose tokens a server reads; no weights are loaded for it."""
        if self._student and self._read is None:
            _, policy = await asyncio.to_thread(self._made, self._student)
            self._read = Reader(policy, asyncio.to_thread)
        return self._read

    async def _policy(self, role: str) -> Policy:
        named = self._stagings[role].role.policy
        spec = self._student if named == STUDENT else named
        if spec not in self._held:
            self._held[spec] = await asyncio.to_thread(self._load, spec)
        return self._held[spec]

    def _load(self, spec: str) -> Policy:
        revision, policy = self._made(spec)
        policy.load(revision)
        return policy

    def _made(self, spec: str) -> tuple[Revision, Policy]:
        if catalog.is_plugin(spec):
            kind = plugins.find("policies", spec, {}, "student")
            return kind.initial(self._cache), kind()
        from ..policies.transformers import TransformersPolicy

        inside = self._base / spec
        model = catalog.resolve(str(inside) if inside.is_dir() else spec, cache=self._cache)
        return model.revision, TransformersPolicy(model.revision)

    def _staged(
        self, role: str, messages: Sequence[Message], tags: Sequence[str] | None = None
    ) -> tuple[Message, ...]:
        """Put before a conversation what the role sees first; worked examples belong to answers only."""
        return self._stagings[role].before(tags) + tuple(messages)
