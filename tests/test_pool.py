"""Several servers of one model: each call has one outcome, whoever dies, hangs, refuses, or comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from redistill.agents.loop import Place, resume, run
from redistill.agents.recipe import Recipe, load_recipe
from redistill.agents.roles import Role
from redistill.errors import BadInput
from redistill.policies.address import Address
from redistill.policies.calls import Call, Outcome
from redistill.policies.policy import Sampling
from redistill.policies.pool import Pool
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer
from redistill.testing.fakes import fake_prompts, fake_recipe
from redistill.types import Message

QUICK: dict[str, Any] = {"deadline": 20.0, "attempts": 1, "backoff": 0.05, "concurrency": 8}
"""One attempt: a call that lost it to a server's fault would have failed."""


def call(text: str) -> Call:
    """Return a call that asks something."""
    return Call((Message("user", text),), Sampling(0.0, 1.0, 0, 32), 7)


def echo(messages: list[dict[str, Any]]) -> str:
    """Answer a question in a way that tells which one it was."""
    return f"answer to {messages[-1]['content']}"


def questions(count: int) -> list[str]:
    """Return questions that are all different."""
    return [f"question {nth}" for nth in range(count)]


def pooled(
    work: Callable[[Pool], Awaitable[Any]], *urls: str, **address: Any
) -> tuple[Any, list[str]]:
    """Work with a pool, and hang up; return what came, and what was told of the servers."""
    said: list[str] = []

    async def opened() -> Any:
        pool = Pool(Address(" ".join(urls), "judge", **(QUICK | address)), said.append)
        try:
            return await work(pool)
        finally:
            said.extend(kind for kind, _ in pool.news())
            await pool.close()

    return asyncio.run(opened()), said


def asked(*texts: str) -> Callable[[Pool], Awaitable[list[Outcome]]]:
    """Ask questions all together."""

    async def work(pool: Pool) -> list[Outcome]:
        return await asyncio.gather(*(pool.call(call(text)) for text in texts))

    return work


def check(found: list[Outcome], texts: list[str]) -> None:
    """Each question has its own answer, once."""
    assert Counter(o.status for o in found) == {"ok": len(texts)}
    assert [o.text for o in found] == [f"answer to {text}" for text in texts]


def test_both_are_asked_and_each_question_has_its_own_answer() -> None:
    """Replies keep their places; at each server no more is in flight than the setting."""
    texts = questions(200)
    with FakeServer(echo, delay=0.01) as a, FakeServer(echo, delay=0.01) as b:
        found, _ = pooled(asked(*texts), a.url, b.url)
        check(found, texts)
        assert a.requests + b.requests == 200
        assert min(a.requests, b.requests) > 50
        assert max(a.most_in_flight, b.most_in_flight) <= 8
        assert {o.host for o in found} == {url.split("/")[2] for url in (a.url, b.url)}


def test_a_faster_server_gets_more_of_a_small_batch() -> None:
    """Once it was seen how fast each is, batches that fill no server are shared by speed."""
    with FakeServer(echo, speed=400) as fast, FakeServer(echo, speed=50) as slow:

        async def work(pool: Pool) -> None:
            for batch in range(8):
                check(await asked(*(texts := questions(24 + batch)))(pool), texts)

        pooled(work, fast.url, slow.url, concurrency=64)
        assert fast.requests > 3 * slow.requests > 0


def test_one_that_dies_loses_no_call_and_comes_back() -> None:
    """What is in flight as it dies is answered elsewhere; when it is there again, it is asked again."""
    texts = questions(900)
    with FakeServer(echo, delay=0.005) as steady:
        first = FakeServer(echo, delay=0.005)
        first.__enter__()
        url, revived = first.url, contextlib.ExitStack()

        async def work(pool: Pool) -> list[Outcome]:
            calls = asyncio.ensure_future(asked(*texts)(pool))
            while first.requests < 60:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(first.__exit__, None, None, None)
            while not pool.servers[0].out and not pool.servers[1].out:
                await asyncio.sleep(0.005)
            again = FakeServer(echo, delay=0.005, port=int(url.rpartition(":")[2][:-3]))
            revived.enter_context(again)
            found = await calls
            assert again.requests > 20
            return found

        with revived:
            found, said = pooled(work, steady.url, url)
    check(found, texts)
    assert any("is left out until it is well" in line for line in said)
    assert any("is back" in line for line in said)
    assert "server_away" in said


def test_one_that_hangs_is_left_out() -> None:
    """Its calls are answered elsewhere after a deadline, and later ones do not wait for one."""
    texts = questions(60)
    with FakeServer(echo, "hang") as hung, FakeServer(echo) as well:
        found, _ = pooled(asked(*texts), hung.url, well.url, deadline=0.5, longest_pause=60)
        check(found, texts)
        assert hung.requests <= 8 + 2


def test_what_is_in_flight_at_one_that_hangs_is_called_back() -> None:
    """A call that was sent later than those that gave the server away does not wait for its own deadline."""
    with FakeServer(echo, "hang") as hung, FakeServer(echo, delay=0.05) as well:

        async def work(pool: Pool) -> list[Outcome]:
            early = [asyncio.create_task(pool.call(call(text))) for text in questions(6)]
            await asyncio.sleep(0.6)
            late = await asked("late", "later")(pool)
            return [*await asyncio.gather(*early), *late]

        found, _ = pooled(work, hung.url, well.url, deadline=1.0, breaker=3, longest_pause=60)
    check(found, [*questions(6), "late", "later"])
    recalled = [o for o in found[6:] if o.attempts > 1]
    assert all(o.seconds < 0.9 for o in recalled)


@pytest.mark.parametrize("mode", ["unauthorized", "unknown_model", "html_200", "server_error"])
def test_one_that_is_set_up_wrongly_answers_nothing(mode: Any) -> None:
    """A server that refuses quickly looks idle: it is left out, and the other one answers all."""
    texts = questions(120)
    with FakeServer(echo, mode) as wrong, FakeServer(echo, delay=0.005) as well:
        found, _ = pooled(asked(*texts), wrong.url, well.url, longest_pause=60)
        check(found, texts)
        assert wrong.requests < 40


def test_a_wrong_key_is_told_and_not_waited_for() -> None:
    """Where all servers refuse, every call says so at once."""
    with FakeServer(echo, "unauthorized") as a, FakeServer(echo, "unauthorized") as b:
        began = time.monotonic()
        found, _ = pooled(asked(*questions(80)), a.url, b.url, patience=60, longest_pause=60)
        assert time.monotonic() - began < 30
    assert {o.kind for o in found} == {"unauthorized"}
    assert not any(o.waiting for o in found)


def test_a_call_that_nobody_can_answer_ends() -> None:
    """Failures that all servers give to one call are that call's, after its attempts."""
    with FakeServer(echo, "server_error") as a, FakeServer(echo, "server_error") as b:
        found, _ = pooled(asked("poison"), a.url, b.url, attempts=2, longest_pause=0.05)
    assert [(o.status, o.kind) for o in found] == [("error", "server_error")]
    assert found[0].attempts <= 8


def test_all_away_is_waited_for_only_so_long() -> None:
    """After patience every call says that it was waiting: that is no failure of its own.

    One failure makes a server ill here. With two, a call that meets the first failure of both servers has lost its
    only attempt before anybody knows that they are away, and which call does so is a matter of timing.
    """
    limits = {"patience": 0.5, "breaker": 1, "longest_pause": 0.05}
    with FakeServer(echo, "unavailable") as a, FakeServer(echo, "unavailable") as b:
        found, _ = pooled(asked(*questions(30)), a.url, b.url, **limits)
        assert [o.waiting for o in found] == [True] * 30
        assert a.requests + b.requests < 200


def test_all_away_for_a_while_loses_nothing() -> None:
    """When both come back, every call is answered, none with an attempt too many."""
    texts = questions(40)
    limits = {"breaker": 3, "longest_pause": 0.05}
    with (
        FakeServer(echo, script=["unavailable"] * 20) as a,
        FakeServer(echo, script=["reset"] * 20) as b,
    ):
        found, _ = pooled(asked(*texts), a.url, b.url, attempts=3, **limits)
    check(found, texts)


def test_a_cancelled_call_gives_its_place_back() -> None:
    """Calls that nobody wants any more hold no server and no turn."""
    with FakeServer(echo, delay=0.05) as a, FakeServer(echo, delay=0.05) as b:

        async def work(pool: Pool) -> list[Outcome]:
            doomed = [asyncio.create_task(pool.call(call(f"no {n}"))) for n in range(40)]
            await asyncio.sleep(0.06)
            for task in doomed[::2]:
                task.cancel()
            found = await asked("x", "y")(pool)
            await asyncio.gather(*doomed, return_exceptions=True)
            assert [server.busy for server in pool.servers] == [0, 0]
            return found

        found, _ = pooled(work, a.url, b.url, concurrency=2)
    check(found, ["x", "y"])


# -- in a recipe

ROUND = """
student: tiny
prompts: {file: prompts.jsonl}
roles: {helper: {policy: %s, model: m}}
unproven_judge: allow
round:
  - sample: {k: 2}
  - score: {judge: helper}
  - select: {where: "helper > 0.5"}
  - train: {trainer: sft}
  - evaluate: {judge: verifier}
  - gate: {}
"""


def key(tmp_path: Path, policy: str) -> str:
    """Return the key of a recipe whose helper has a policy."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n', "utf-8")
    recipe = load_recipe(ROUND % policy, "recipe.yaml", base=tmp_path)
    again = load_recipe(recipe.to_yaml(), "again.yaml", base=tmp_path)
    assert again.roles == recipe.roles
    assert again.key == recipe.key
    return recipe.key


def test_addresses_of_a_pool_are_no_part_of_ids(tmp_path: Path) -> None:
    """Neither their order nor which they are; one address stands for itself, as it always did."""
    one = key(tmp_path, "http://a/v1")
    pools = {
        key(tmp_path, policy)
        for policy in (
            "[http://a/v1, http://b/v1]",
            "[http://b/v1/, http://a/v1]",
            "[http://b/v1, http://c/v1, http://d/v1]",
        )
    }
    assert len(pools) == 1
    assert one == key(tmp_path, "[http://a/v1]") not in pools


def test_a_role_takes_a_list_in_python() -> None:
    """It is written back as a list."""
    role = Role.model_validate({"policy": ("http://b/v1", "http://a/v1"), "model": "m"})
    assert role.policy == "http://a/v1 http://b/v1"
    assert role.model_dump(mode="json")["policy"] == ["http://a/v1", "http://b/v1"]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("[http://a/v1, http://a/v1/]", "twice"),
        ("[http://a/v1, smollm2-135m]", "a list is of addresses"),
        ("[]", "a list is of addresses"),
        ("http://a/v1 http://b/v1", "several addresses are a list"),
        ("[http://a/v1, 'http://u:p@b/v1']", "no user name"),
    ],
)
def test_what_is_no_pool_is_told(tmp_path: Path, policy: str, told: str) -> None:
    """One line with the place."""
    with pytest.raises(BadInput, match=told):
        key(tmp_path, policy)


def test_a_run_on_a_pool_is_the_same_with_another_server(tmp_path: Path) -> None:
    """Charges name who answered; a run goes on after its servers were changed in its recipe."""
    verdict = json.dumps({"reasoning": "It will do.", "score": 9})
    place = Place(tmp_path / "runs", tmp_path / "cache")
    with FakeServer(lambda _: verdict) as a, FakeServer(lambda _: verdict) as b:
        roles = {"helper": {"policy": [a.url, b.url], "model": "m"}}
        folder = run(recipe_of(tmp_path, roles), place=place)
        found = read_rows(folder, "SELECT DISTINCT host FROM charge")
        assert {row["host"] for row in found} == {url.split("/")[2] for url in (a.url, b.url)}
    told = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    told["roles"]["helper"]["policy"] = ["http://c/v1", "http://b/v1", "http://a/v1"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(told), "utf-8")
    assert resume(folder, place=place) == folder


def recipe_of(base: Path, roles: dict[str, Any]) -> Recipe:
    """Return a recipe of one round, whose labels come from a helper."""
    base.mkdir(exist_ok=True)
    rows = fake_prompts(train=12, heldout=4, test=4)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = fake_recipe() | {"roles": roles, "unproven_judge": "allow", "loop": {"rounds": 1}}
    data["round"] = [
        {"sample": {"k": 2, "max_tokens": 40}},
        {"score": {"judge": "helper"}},
        {"select": {}},
        {"train": {"trainer": "redistill.testing.fakes_trainer:FakeTrainer", "gain": 0.1}},
        {"evaluate": {"judge": "verifier", "max_tokens": 40}},
        {"gate": {}},
    ]
    return load_recipe(json.dumps(data), "recipe.yaml", base=base)


# -- a router in front

ROUTER = shutil.which("vllm-router")


@contextlib.contextmanager
def router(*urls: str) -> Iterator[str]:
    """Start the real vllm-router before servers, and return its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [str(ROUTER), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--worker-urls", *(url.removesuffix("/v1") for url in urls)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(_healthy(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


async def _healthy(url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


@pytest.mark.skipif(ROUTER is None, reason="vllm-router is not installed")
def test_a_router_is_one_address() -> None:
    """The real vllm-router before two servers: each question has its own answer, and both servers are asked."""
    texts = questions(60)
    with FakeServer(echo) as a, FakeServer(echo) as b, router(a.url, b.url) as url:
        found, _ = pooled(asked(*texts), url, attempts=3)
        check(found, texts)
        assert min(a.requests, b.requests) > 10


# -- many


@pytest.mark.slow
def test_twenty_thousand_questions_are_answered_once_each() -> None:
    """Two servers, one of which dies and comes back: each question has its own answer, and one."""
    texts = questions(20_000)
    with FakeServer(echo) as steady:
        dying = FakeServer(echo)
        dying.__enter__()
        url, revived = dying.url, contextlib.ExitStack()

        async def work(pool: Pool) -> list[Outcome]:
            calls = asyncio.ensure_future(asked(*texts)(pool))
            while dying.requests < 3000:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(dying.__exit__, None, None, None)
            await asyncio.sleep(3)
            port = int(url.rpartition(":")[2][:-3])
            again = revived.enter_context(FakeServer(echo, port=port))
            found = await calls
            assert again.requests > 1000
            return found

        with revived:
            found, _ = pooled(work, steady.url, url, concurrency=64)
    check(found, texts)
