"""Requests that wait together are answered together: one policy, one thread, as few calls as can be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from .policy import Generation, Policy, Request, Sampling

T = TypeVar("T")
MOST_ROWS = 256
"""Rows of one call; more wait for the next one."""
MOST_WAITING = 4096
"""Rows that may wait; more are turned away at once."""
_GATHER = 0.005
"""Seconds in which those who come together find each other."""


class Full(Exception):
    """More rows wait than may."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    requests: Sequence[Request]
    sampling: Sampling
    answered: asyncio.Future[list[Generation]]


class Batching:
    """Lets many ask one policy at once; good for one event loop, as a context.

    Rows that are sampled alike go into one `generate`, those who came first first. The policy is only ever
    called in one thread of its own.

    Args:
        policy: holds its weights.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.calls = 0
        """How often the policy was asked to generate."""
        self._waiting: list[_Wanted] = []
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="redistill-policy")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for wanted in self._waiting:
            wanted.answered.cancel()
        self._thread.shutdown()

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        """Answer requests, in the order given, together with whatever else waits.

        Raises:
            Full: too many wait already.
        """
        if sum(len(w.requests) for w in self._waiting) + len(requests) > MOST_WAITING:
            raise Full
        answered: asyncio.Future[list[Generation]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Wanted(requests, sampling, answered))
        self._came.set()
        return await answered

    async def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run another blocking method of the policy in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _work(self) -> None:
        while True:
            await self._came.wait()
            await asyncio.sleep(_GATHER)
            self._came.clear()
            while batch := self._next():
                await self._answer(batch)

    def _next(self) -> list[_Wanted]:
        """Take the first that waits, and all that can go with it; who has gone away is left out."""
        self._waiting = [w for w in self._waiting if not w.answered.done()]
        batch: list[_Wanted] = []
        rows = 0
        for wanted in self._waiting:
            alike = not batch or wanted.sampling == batch[0].sampling
            if alike and (not batch or rows + len(wanted.requests) <= MOST_ROWS):
                batch.append(wanted)
                rows += len(wanted.requests)
        taken = set(map(id, batch))
        self._waiting = [w for w in self._waiting if id(w) not in taken]
        return batch

    async def _answer(self, batch: Sequence[_Wanted]) -> None:
        requests = [request for wanted in batch for request in wanted.requests]
        self.calls += 1
        try:
            said = await self.call(self.policy.generate, requests, batch[0].sampling)
        except Exception as error:  # noqa: BLE001 - each that waits is told, and the next one may go well
            for wanted in batch:
                if not wanted.answered.done():
                    wanted.answered.set_exception(error)
            return
        begin = 0
        for wanted in batch:
            end = begin + len(wanted.requests)
            if not wanted.answered.done():
                wanted.answered.set_result(said[begin:end])
            begin = end
