"""A real vLLM behind an address: what it can do is seen, and it tells what the same weights tell here.

Run by `make test-vllm`, in an environment that has vLLM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redistill.agents.remote_speaker import RemoteSpeaker
from redistill.agents.roles import Role
from redistill.agents.servers import Servers
from redistill.agents.speaker import Ask, Weighed
from redistill.errors import BadInput
from redistill.policies.abilities import ABILITIES, Abilities, abilities
from redistill.policies.address import Address
from redistill.policies.server import ServerPolicy
from redistill.policies.transformers import TransformersPolicy
from redistill.policies.transport import Client
from redistill.testing.tiny import make_tiny_revision
from redistill.types import Message

pytestmark = pytest.mark.vllm
BOUND = 2e-5
"""Nats by which one token's log-prob may differ between two fp32 engines."""
PAIRS = [((5, 9, 11), (20, 21, 22, 2)), ((7,), tuple(range(10, 90))), ((40, 41), (2,))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> TransformersPolicy:
    """A tiny random model that holds its weights."""
    revision = make_tiny_revision(tmp_path_factory.mktemp("served"), seed=3, hidden=128)
    found = TransformersPolicy(revision, threads=1)
    found.load(revision)
    return found


@pytest.fixture(scope="module")
def address(
    policy: TransformersPolicy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Address]:
    """Serve it with vLLM."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(policy._folder), "--served-model-name", "m", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "512", "--kv-cache-memory-bytes", str(256 << 20)]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env=_environment()
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield Address(f"http://127.0.0.1:{port}/v1", "m")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _environment() -> dict[str, str]:
    few = {"OMP_NUM_THREADS": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_NO_USAGE_STATS": "1"}
    return {**os.environ, **few}


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5)
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text("utf-8", "replace")[-2000:]
            time.sleep(0.5)
        else:
            return
    raise AssertionError(log.read_text("utf-8", "replace")[-2000:])


def test_it_can_do_all(address: Address) -> None:
    """Every ability is seen."""

    async def work() -> Abilities:
        client = Client(address)
        try:
            return await abilities(client)
        finally:
            await client.close()

    found = asyncio.run(work())
    assert {name: each.why for name, each in found.items()} == dict.fromkeys(ABILITIES, "")
    assert found["log_probs"].level == 20


def test_it_teaches_what_the_same_weights_teach_here(
    address: Address, policy: TransformersPolicy
) -> None:
    """Log-probs of given tokens, and the 20 likeliest in their places; more it does not tell, and says how it would."""
    far: Any = ServerPolicy(address, policy)
    for own, told in zip(policy.score(PAIRS), far.score(PAIRS), strict=True):
        assert told == pytest.approx(own, abs=BOUND)
    here, there = policy.distributions(PAIRS, 20), far.distributions(PAIRS, 20)
    for (_, values), (_, others) in zip(here, there, strict=True):
        for mine, other in zip(values, others, strict=True):
            assert other == pytest.approx(mine, abs=BOUND)
    with pytest.raises(BadInput, match="--max-logprobs"):
        far.distributions(PAIRS, 21)


def test_it_weighs_options_as_the_same_weights_do(
    address: Address, policy: TransformersPolicy
) -> None:
    """`choose` by structured outputs and log-probs gives the probabilities of the model itself."""
    asked = (Message("user", "Which is better?"),)

    async def work() -> list[Weighed]:
        servers = Servers({"helper": Role(policy=address.url, model="m")})
        try:
            return await RemoteSpeaker(servers).choose("helper", [Ask(asked, 1)], ["A", "B"])
        finally:
            await servers.close()

    [found] = asyncio.run(work())
    [mine] = policy.choose([policy.encode(asked)], ["A", "B"])
    assert found.probabilities == pytest.approx(mine, abs=BOUND)
