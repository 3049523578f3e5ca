"""How fast an address may be called: a bucket of permits a minute, and a breaker for when it is away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable


class Bucket:
    """Hands out so many permits a minute, evenly: no window of a minute gets more than one second's extra.

    A whole minute's permits at the start would let twice the limit through in the first minute.
    """

    def __init__(self, a_minute: int) -> None:
        self._rate = a_minute / 60
        self._most = max(1.0, self._rate)
        self._level = self._most
        self._filled = time.monotonic()
        self._line = asyncio.Lock()

    async def take(self, count: float = 1) -> None:
        """Wait for permits; more than the bucket holds are taken as a debt that later ones pay."""
        async with self._line:
            needed = min(count, self._most)
            while (missing := needed - self._fill()) > 0:
                await asyncio.sleep(missing / self._rate)
            self._level -= count

    def give_back(self, count: float) -> None:
        """Return permits that were not used, or take (a negative count) those that were used beyond."""
        self._level += count

    def _fill(self) -> float:
        now = time.monotonic()
        self._level = min(self._most, self._level + (now - self._filled) * self._rate)
        self._filled = now
        return self._level


class Breaker:
    """Stops the calls to a server that fails again and again, and lets one through now and then.

    Args:
        failures: in a row, after which it opens.
        pause: seconds before the first probe; doubled with each one that fails.
        longest: cap of that pause, in seconds.
        patience: seconds after which `admit` gives up.
        slowest: another cap of the pause, which what a server asks for may exceed.
        opened: is told when it opens.
    """

    def __init__(
        self,
        failures: int,
        pause: float,
        longest: float,
        patience: float,
        slowest: float = math.inf,
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        self._most, self._first, self._longest = failures, pause, longest
        self._patience, self._slowest, self._told = patience, slowest, opened
        self._in_a_row = 0
        self._since: float | None = None
        self._pause = pause
        self._until = 0.0
        self._probing = False
        self._turn = asyncio.Event()
        self.parked = 0.0
        """Seconds for which it has been open, all times together."""

    @property
    def open(self) -> bool:
        """Whether calls are held back."""
        return self._since is not None

    @property
    def patience(self) -> float:
        """Seconds for which a server that is away is still waited for; below 0, no more."""
        return math.inf if self._since is None else self._since + self._patience - time.monotonic()

    @property
    def due(self) -> float:
        """Seconds until the next probe may go, if no other one is on its way."""
        return 0.0 if self._since is None else max(0.0, self._until - time.monotonic())

    def ask(self) -> bool | None:
        """Say whether a call may go now: False, it may; True, it may and is the probe; None, it may not."""
        if self._since is None:
            return False
        if self._probing or self.due > 0:
            return None
        self._probing = True
        return True

    async def admit(self) -> bool | None:
        """Wait until a call may go; True if it is the probe, None if patience has run out."""
        while (left := self.patience) > 0:
            if (probe := self.ask()) is not None:
                return probe
            wait = left if self._probing else min(left, self.due)
            turn = self._turn
            try:
                async with asyncio.timeout(wait):
                    await turn.wait()
            except TimeoutError:
                continue
        return None

    def succeeded(self) -> None:
        """Take note that the server has answered."""
        self._in_a_row = 0
        if self._since is not None:
            self.parked += time.monotonic() - self._since
            self._since = None
            self._probing = False
            self._wake()

    def failed(self, *, probe: bool, pause: float = 0.0) -> None:
        """Take note of a failure; `pause` is what the server asked for, in seconds."""
        now = time.monotonic()
        self._in_a_row += 1
        if self._since is None and self._in_a_row >= self._most:
            self._since, self._pause = now, self._first
            self._until = now + min(self._longest, max(self._pause, pause))
            self._told()
        elif self._since is not None and probe:
            self._pause = min(self._longest, self._slowest, self._pause * 2)
            self._until = now + min(self._longest, max(self._pause, pause))
            self.abandoned()

    def abandoned(self) -> None:
        """Let another call be the probe."""
        self._probing = False
        self._wake()

    def _wake(self) -> None:
        self._turn.set()
        self._turn = asyncio.Event()
