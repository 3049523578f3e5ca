"""A driver for jobs that sample while they train: it listens for real, judges by a script, and keeps what it heard."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redistill.trainers.callback import Message, listening

Row = dict[str, Any]
Script = Callable[[int, Row], list[float | None]]
"""From an optimiser step and a rollout to what each judge gives it."""


@dataclass
class Driver:
    """Answers like the loop's own, and remembers."""

    script: Script
    weights: tuple[float, ...] = (1.0,)
    address: str = ""
    heard: list[tuple[str, Message]] = field(default_factory=list)

    @property
    def rollouts(self) -> list[Row]:
        """Every rollout that was judged, with its optimiser step."""
        return [
            row | {"step": told["step"]}
            for what, told in self.heard
            if what == "judge"
            for row in told["rollouts"]
        ]

    @property
    def learned(self) -> list[Row]:
        """What every rollout was worth, with its optimiser step."""
        return [
            row | {"step": told["step"]}
            for what, told in self.heard
            if what == "record"
            for row in told["rollouts"]
        ]

    async def answer(self, what: str, told: Message) -> Message:
        """Judge by the script."""
        self.heard.append((what, told))
        if what != "judge":
            return {}
        given = [self.script(told["step"], row) for row in told["rollouts"]]
        return {
            "rewards": [list(one) for one in zip(*given, strict=True)],
            "weights": list(self.weights),
        }


@contextmanager
def driving(script: Script, weights: tuple[float, ...] = (1.0,)) -> Iterator[Driver]:
    """Listen in a thread of its own, as the job runs in this one."""
    driver, ready = Driver(script, weights), threading.Event()
    ended: list[Any] = []

    async def serve() -> None:
        done = asyncio.Event()
        ended.extend([asyncio.get_running_loop(), done])
        async with listening(driver.answer) as desk:
            driver.address = desk.address
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield driver
    finally:
        ended[0].call_soon_threadsafe(ended[1].set)
        thread.join(10)
