"""Two servers of one model as a pool: what share of their speed is used, while one of them dies and comes back.

Each server is a process of its own and answers a fixed number of calls a second, one after the other, so that the
figure is the pool's and not this machine's. The healthy sum counts a server for as long as it was there.

    answers_a_second / (speed_1 * share of the time that 1 was up + speed_2 * share that 2 was up)

Writes `benchmarks/results/pool.json`; the goal is 0.95 with one server away for a while. `batches` are as a run
asks: chunks of 64 calls, each of which begins when the one before has been answered whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from redistill.policies.address import Address
from redistill.policies.calls import Call, Outcome
from redistill.policies.policy import Sampling
from redistill.policies.pool import Pool
from redistill.testing import FakeServer
from redistill.types import Message

RESULTS = Path(__file__).parent / "results" / "pool.json"
GOAL = 0.95
SPEEDS = (200.0, 100.0)
"""Answers a second of each server; the faster one dies."""
AWAY = 10.0
"""Seconds for which it is away."""


def serve(pipe: Connection, speed: float) -> None:
    """Run a server; die and come back at the same address when told to."""
    port, seen, told = 0, Counter[str](), ""
    while told != "end":
        with FakeServer(_echo, speed=speed, port=port) as server:
            port = int(server.url.split(":")[2].partition("/")[0])
            pipe.send(server.url)
            told = pipe.recv()
        seen.update(body["messages"][0]["content"] for body in server.bodies)
        if told == "die":
            pipe.send(len(server.bodies))
            pipe.recv()
    pipe.send(dict(seen))


def _echo(messages: list[dict[str, Any]]) -> str:
    return f"answer to {messages[0]['content']}"


@dataclass
class Servers:
    """Both processes, and for how long each was away."""

    pipes: list[Connection] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    away: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def start(self) -> None:
        """Start both."""
        spawn = multiprocessing.get_context("spawn")
        for speed in SPEEDS:
            here, there = multiprocessing.Pipe()
            spawn.Process(target=serve, args=(there, speed), daemon=True).start()
            self.pipes.append(here)
            self.urls.append(here.recv())

    def outage(self) -> None:
        """Let the first one die, and come back after a while."""
        began = time.monotonic()
        self.pipes[0].send("die")
        self.pipes[0].recv()
        time.sleep(AWAY)
        self.pipes[0].send("back")
        self.pipes[0].recv()
        self.away[0] = time.monotonic() - began

    def end(self) -> list[dict[str, int]]:
        """End both, and return how often each question came to each."""
        for pipe in self.pipes:
            pipe.send("end")
        return [pipe.recv() for pipe in self.pipes]


async def ask(pool: Pool, first: int, count: int) -> list[Outcome]:
    """Ask questions all together."""
    sampling = Sampling(0.0, 1.0, 0, 256)
    calls = [
        Call((Message("user", f"question {n}"),), sampling, 7) for n in range(first, first + count)
    ]
    return await asyncio.gather(*(pool.call(call) for call in calls))


async def work(
    servers: Servers, prompts: int, batch: int, dies_after: float | None
) -> dict[str, Any]:
    """Ask all questions, in batches, and say what came of it."""
    said: list[str] = []
    pool = Pool(Address(" ".join(servers.urls), "m"), said.append)
    outage = None
    began = time.monotonic()
    if dies_after is not None:
        loop = asyncio.get_running_loop()
        outage = asyncio.ensure_future(asyncio.sleep(dies_after))
        outage.add_done_callback(lambda _: loop.run_in_executor(None, servers.outage))
    found: list[Outcome] = []
    for first in range(0, prompts, batch):
        found += await ask(pool, first, min(batch, prompts - first))
    seconds = time.monotonic() - began
    await pool.close()
    right = sum(o.text == f"answer to question {n}" for n, o in enumerate(found))
    up = [1 - away / seconds for away in servers.away]
    healthy = sum(speed * share for speed, share in zip(SPEEDS, up, strict=True))
    return {
        "prompts": prompts,
        "batch": batch,
        "answered_once": right,
        "most_attempts": max(o.attempts for o in found),
        "answered_by": dict(Counter(o.host == servers.urls[0].split("/")[2] for o in found)),
        "seconds": seconds,
        "answers_a_second": prompts / seconds,
        "seconds_away": servers.away[0],
        "healthy_sum": healthy,
        "share_of_healthy_sum": prompts / seconds / healthy,
        "said": [line.partition(" ")[2] for line in said],
    }


def measure(prompts: int, batch: int, dies_after: float | None = None) -> dict[str, Any]:
    """Measure one arrangement with servers of its own."""
    servers = Servers()
    servers.start()
    found = asyncio.run(work(servers, prompts, batch, dies_after))
    seen = servers.end()
    asked = [sum(each.values()) for each in seen]
    by = found.pop("answered_by")
    found["answered_by"] = {"fast": by.get(True, 0), "slow": by.get(False, 0)}
    found["requests"] = {"fast": asked[0], "slow": asked[1]}
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}, flush=True)
    return found


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20_000)
    told = parser.parse_args()
    small = told.prompts // 5
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "speeds": SPEEDS,
        "goal": GOAL,
        "one_dies": measure(told.prompts, told.prompts, dies_after=15.0),
        "both_stay": measure(small, small),
        "batches": measure(small, 64),
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
