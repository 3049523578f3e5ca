"""Several servers of one model as one: the least busy one is called, an ill one is left out until it is well.

A call belongs to the pool, and each of its attempts to a server. What a server could not answer goes to another
one at once, and does not count against the call; what is in flight at a server that stops answering is called
back and asked elsewhere. So a call has one outcome, whatever becomes of the servers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .address import Address
from .calls import Asking, Outcome, Tries
from .replies import KINDS, Read
from .transport import Client, make_room

_SLOWEST_PROBE = 2.0
"""Seconds. A probe is a call that is answered elsewhere if it fails, so an ill server can be asked often."""
_SILENT = frozenset({"timeout", "unreachable", "reset", "cut_body"})
"""Failures after which what is in flight at a server that is ill now is not waited for."""
_MEMORY = 20.0
"""Busy seconds after which half of what is known of a server's speed is forgotten."""
_TICK = 0.001
"""Seconds by which an alarm rings late, so that what it is for is due."""


class Pool:
    """Calls whichever of several addresses is free; good for one event loop.

    Args:
        address: whom to call, and how; its `url` is several, and its limits are those of each.
        say: is told in one line what a person should know.
    """

    def __init__(self, address: Address, say: Callable[[str], None] = lambda _: None) -> None:
        self.address = address
        self.say = say
        self.servers = [
            Server(replace(address, url=url, slowest_probe=_SLOWEST_PROBE), say)
            for url in address.urls
        ]
        self._line: deque[asyncio.Future[None]] = deque()
        """Calls that wait for a server, first come, first served."""
        self._alarms: dict[Server | None, asyncio.TimerHandle] = {}
        """When an ill server may be asked again; None: when nobody waits for any of them any more."""
        make_room(address.concurrency * len(self.servers))

    async def call(self, call: Asking) -> Outcome:
        """Make one call. Nothing that a server does raises here."""
        tries = Tries(left=self.address.deadline)
        failed: list[Server] = []
        while True:
            turn = await self._turn(failed)
            if turn is None:
                return tries.outcome(self.address, waiting=True)
            server, probe = turn
            try:
                asked = await server.attempt(call, tries, probe=probe)
            finally:
                server.busy -= 1
                self._after(server, tries.last.kind)
            pause = self._pause(server, tries, asked, failed)
            if pause is None:
                return tries.outcome(server.client.address)
            if pause:
                await asyncio.sleep(pause)
                tries.left -= pause

    def news(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what is worth keeping of how the servers behaved, as event kinds and details."""
        found = [item for server in self.servers for item in server.client.news()]
        return [("server_away" if kind == "waiting_judge" else kind, told) for kind, told in found]

    async def close(self) -> None:
        """Hang up everywhere."""
        for alarm in self._alarms.values():
            alarm.cancel()
        for server in self.servers:
            await server.client.close()

    # -- whose turn it is, and where

    async def _turn(self, failed: list[Server]) -> tuple[Server, bool] | None:
        """Wait for a server that takes a call, and whether the call is its probe; None if patience has run out."""
        chosen = None if self._line else self._choose(failed)
        again = False
        while chosen is None:
            if max(server.client.breaker.patience for server in self.servers) <= 0:
                return None
            await self._wait(first=again)
            chosen, again = self._choose(failed), True
        if any(server.free for server in self.servers):
            self._wake()
        return chosen

    def _choose(self, failed: list[Server]) -> tuple[Server, bool] | None:
        """Take a place: as the probe of a server that is due, or where the answer should come first."""
        for server in self.servers:
            if server.ill and server.client.breaker.ask():
                server.begin()
                return server, True
        speeds = [server.speed for server in self.servers if server.speed]
        usual = sum(speeds) / len(speeds) if speeds else 1.0
        free = [server for server in self.servers if server.free]
        best = min(
            free,
            key=lambda s: (s in failed, (s.busy + 1) / (s.speed or usual)),
            default=None,
        )
        if best is None:
            return None
        best.begin()
        return best, False

    async def _wait(self, *, first: bool) -> None:
        """Stand in line until woken."""
        waiter = asyncio.get_running_loop().create_future()
        (self._line.appendleft if first else self._line.append)(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._line:
                self._line.remove(waiter)
            else:
                self._wake()  # its turn had come, and is another one's now
            raise

    def _wake(self) -> None:
        """Let the first in line look for a server."""
        if self._line and not (waiter := self._line.popleft()).done():
            waiter.set_result(None)

    # -- what follows from an attempt

    def _after(self, server: Server, kind: str) -> None:
        """Leave out a server that has become ill, or welcome one that is well again."""
        if server.ill and not server.out:
            server.out = True
            if kind in _SILENT:
                server.recall()
        elif server.out and not server.ill:
            server.out = False
            self.say(f"{server.client.address.host} is back")
        for each in self.servers:
            each.client.alone = all(other.ill for other in self.servers if other is not each)
        if server.ill:
            self._alarm(server)
        if all(each.ill for each in self.servers):
            self._alarm(None)
        self._wake()

    def _pause(
        self, server: Server, tries: Tries, asked: float | None, failed: list[Server]
    ) -> float | None:
        """Return how long to wait before the next attempt; None where the call is settled."""
        kind, hung = KINDS[tries.last.kind], tries.last.kind == "timeout"
        if not (kind.again or kind.elsewhere or hung):
            return None
        if server not in failed:
            failed.append(server)
        well = [other for other in self.servers if not other.ill and other is not server]
        if any(other not in failed for other in well):
            tries.count -= 1  # until all have failed, the server is to blame, and not the call
            tries.left = self.address.deadline if hung else tries.left
            return 0.0
        spared = tries.made - tries.count < 2 * len(self.servers)
        if kind.again and server.ill and (kind.away or spared):
            tries.count -= 1
            return 0.0
        return None if asked is None else server.client.pause(tries, asked)

    def _alarm(self, of: Server | None) -> None:
        """Wake somebody when an ill server may be asked again, or all of them when patience is over."""
        if of in self._alarms:
            return
        breakers = [server.client.breaker for server in self.servers]
        left = of.client.breaker.due if of else max(breaker.patience for breaker in breakers)
        loop = asyncio.get_running_loop()
        self._alarms[of] = loop.call_later(max(left, 0.0) + _TICK, self._ring, of)

    def _ring(self, of: Server | None) -> None:
        del self._alarms[of]
        ill = [server for server in self.servers if server.ill]
        if of is None and len(ill) == len(self.servers):
            over = max(server.client.breaker.patience for server in ill) <= 0
            for _ in range(len(self._line) if over else 0):
                self._wake()
            if not over:
                self._alarm(None)
        elif of is not None and of.ill:
            if of.client.breaker.due > 0:
                self._alarm(of)
            else:
                self._wake()


class Server:
    """One address of a pool.

    Attributes:
        busy: attempts in flight.
        out: whether the others know that it is ill.
    """

    def __init__(self, address: Address, say: Callable[[str], None]) -> None:
        self.client = Client(address, say, alone=False)
        self.busy = 0
        self.out = False
        self._flying: set[asyncio.Task[float | None]] = set()
        self._recalled: set[asyncio.Task[float | None]] = set()
        self._answered, self._seconds, self._mark = 0.0, 0.0, 0.0

    @property
    def ill(self) -> bool:
        """Whether only a probe may be sent there."""
        return self.client.breaker.open

    @property
    def free(self) -> bool:
        """Whether it takes another call."""
        return not self.ill and self.busy < self.client.address.concurrency

    @property
    def speed(self) -> float:
        """Answers a second, of the time in which it had something to do; 0 where nothing is known."""
        return self._answered / self._seconds if self._seconds else 0.0

    def begin(self) -> None:
        """Take a place."""
        if not self.busy:
            self._mark = time.monotonic()
        self.busy += 1

    async def attempt(self, call: Asking, tries: Tries, *, probe: bool) -> float | None:
        """Post once; return what `Client.attempt` does, or 0.0 where the call was called back."""
        task = asyncio.ensure_future(self.client.attempt(call, tries, probe=probe))
        self._flying.add(task)
        try:
            asked = await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if task not in self._recalled or (current is not None and current.cancelling()):
                raise
            tries.keep(Read("reset", f"{self.client.address.host} was left out as it was asked"))
            return 0.0
        finally:
            self._flying.discard(task)
            self._recalled.discard(task)
        now = time.monotonic()
        if tries.last.kind == "ok":
            self._answered, self._seconds = self._answered + 1, self._seconds + now - self._mark
            if self._seconds > _MEMORY:
                self._answered, self._seconds = self._answered / 2, self._seconds / 2
        self._mark = now
        return asked

    def recall(self) -> None:
        """Call back all that is in flight."""
        for task in self._flying:
            self._recalled.add(task)
            task.cancel()
