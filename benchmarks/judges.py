"""What a judge call costs the client: our transport beside raw aiohttp and, where installed, the OpenAI SDK.

Each arm calls the same server, a process of its own, with the same bodies; the processor seconds are those
of the client's process alone. The arms take turns, so that what else the machine does falls on all alike.

Writes `benchmarks/results/judges.json`. The ratio to raw aiohttp is the figure, and 1.7 its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp

from redistill.policies.address import Address, Price, Secret
from redistill.policies.calls import Call
from redistill.policies.policy import Sampling
from redistill.policies.transport import Client
from redistill.testing import FakeServer
from redistill.types import Message

RESULTS = Path(__file__).parent / "results" / "judges.json"
BOUND = 1.7
VERDICT = json.dumps({"reasoning": "It does what was asked, and no more. " * 4, "score": 8})
QUESTION = "Is this answer good? It is about as long as a real one is. " * 20
KEY = "sk-benchmark-0123456789"
Arm = Callable[[str, int, int], Coroutine[Any, Any, None]]


def serve(pipe: Connection, delay: float) -> None:
    """Run the server until told to end."""
    with FakeServer(lambda _: VERDICT, delay=delay) as server:
        pipe.send(server.url)
        pipe.recv()
        pipe.send({"requests": server.requests, "most_in_flight": server.most_in_flight})


async def ours(url: str, calls: int, concurrency: int) -> None:
    """Call through the transport."""
    client = Client(Address(url, "judge", Secret(KEY), concurrency, price=Price(1, 2)))
    asked = Call((Message("user", QUESTION),), Sampling(0.0, 1.0, 0, 256), 7)
    found = await asyncio.gather(*(client.call(asked) for _ in range(calls)))
    await client.close()
    assert all(outcome.text == VERDICT for outcome in found)


async def raw(url: str, calls: int, concurrency: int) -> None:
    """Call with aiohttp and nothing else."""
    slots = asyncio.Semaphore(concurrency)
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {
        "model": "judge",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 256,
        "temperature": 0.0,
        "seed": 7,
    }

    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def one() -> str:
            async with slots, session.post(url + "/chat/completions", json=body) as response:
                found = await response.json()
                return str(found["choices"][0]["message"]["content"])

        said = await asyncio.gather(*(one() for _ in range(calls)))
    assert all(text == VERDICT for text in said)


async def sdk(url: str, calls: int, concurrency: int) -> None:
    """Call with the OpenAI SDK as it comes."""
    openai: Any = import_module("openai")  # not everybody has it, and its types are not needed

    slots = asyncio.Semaphore(concurrency)
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:

        async def one() -> str:
            async with slots:
                found = await client.chat.completions.create(
                    model="judge",
                    messages=[{"role": "user", "content": QUESTION}],
                    max_tokens=256,
                    temperature=0.0,
                    seed=7,
                )
                return str(found.choices[0].message.content)

        said = await asyncio.gather(*(one() for _ in range(calls)))
    assert all(text == VERDICT for text in said)


def arms() -> dict[str, Arm]:
    """Return what is installed."""
    found: dict[str, Arm] = {"aiohttp": raw, "redistill": ours}
    return found | ({"openai": sdk} if find_spec("openai") else {})


def seconds(arm: Arm, url: str, calls: int, concurrency: int) -> tuple[float, float]:
    """Return processor and wall milliseconds a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    asyncio.run(arm(url, calls, concurrency))
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return spent[0] / calls * 1e3, spent[1] / calls * 1e3


def measure(calls: int, concurrency: int, repeats: int) -> dict[str, Any]:
    """Let the arms take turns; medians over the repeats, and ratios within each of them."""
    here, there = multiprocessing.Pipe()
    # With many in flight, the server is as slow as a model: all of them are there before it answers.
    delay = 2.0 if concurrency > 100 else 0.0
    spawn = multiprocessing.get_context("spawn")
    server = spawn.Process(target=serve, args=(there, delay))
    server.start()
    url = here.recv()
    for arm in arms().values():  # imports, and the first connection
        asyncio.run(arm(url, 50, 50))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms()}
    for _ in range(repeats):
        for name, arm in arms().items():
            times[name].append(seconds(arm, url, calls, concurrency))
    here.send("end")
    counted = here.recv()
    server.join()
    ratios = {
        name: statistics.median(
            mine[0] / base[0] for mine, base in zip(found, times["aiohttp"], strict=True)
        )
        for name, found in times.items()
    }
    return {
        "calls": calls,
        "concurrency": concurrency,
        "repeats": repeats,
        "server_seconds": delay,
        "cpu_ms_a_call": {n: statistics.median(t[0] for t in found) for n, found in times.items()},
        "wall_ms_a_call": {n: statistics.median(t[1] for t in found) for n, found in times.items()},
        "cpu_ratio_to_aiohttp": ratios,
        "server": counted,
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    told = parser.parse_args()
    found = [measure(told.calls, concurrency, told.repeats) for concurrency in (64, 1000)]
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {n: version(n) for n in ("aiohttp", "openai") if find_spec(n)},
        "bound": BOUND,
        "runs": found,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    for run in found:
        print(run["concurrency"], run["cpu_ms_a_call"], run["cpu_ratio_to_aiohttp"], run["server"])


if __name__ == "__main__":
    main()
