"""The fake server: what it does follows from its seed and the request, and it counts what it did."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import aiohttp
import pytest

from redistill.testing import FakeServer
from redistill.testing.fake_server import Mode, say


def post(server: FakeServer, *texts: str, **body: Any) -> list[tuple[int, str]]:
    """Post questions with a plain client; return status and text of each reply."""

    async def work() -> list[tuple[int, str]]:
        async with aiohttp.ClientSession() as session:
            one: Callable[[str], Awaitable[tuple[int, str]]] = lambda text: _post(  # noqa: E731
                session, server, {"messages": [{"role": "user", "content": text}], **body}
            )
            return [await one(text) for text in texts]

    return asyncio.run(work())


async def _post(
    session: aiohttp.ClientSession, server: FakeServer, body: dict[str, Any]
) -> tuple[int, str]:
    url = server.url + "/chat/completions"
    async with session.post(url, json={"model": "m"} | body, allow_redirects=False) as response:
        return response.status, await response.text()


def test_a_reply_is_that_of_the_function() -> None:
    """Messages in, text out, in the shape of a chat completion with its usage."""
    with FakeServer(lambda messages: messages[0]["content"].upper()) as server:
        [(status, text)] = post(server, "two words")
    found = json.loads(text)
    assert status == 200
    assert found["choices"][0]["message"]["content"] == "TWO WORDS"
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "two words"}]
    assert (server.requests, server.most_in_flight) == (1, 1)


def test_texts_in_turn() -> None:
    """`say` gives each text once, and the last one for ever."""
    with FakeServer(say(["a", "b"])) as server:
        found = [json.loads(text) for _, text in post(server, "1", "2", "3")]
    assert [f["choices"][0]["message"]["content"] for f in found] == ["a", "b", "b"]


STATUS: dict[Mode, int] = {
    "ok": 200,
    "html_200": 200,
    "html_502": 502,
    "unauthorized": 401,
    "unknown_model": 404,
    "rate_limited": 429,
    "rate_limited_long": 429,
    "server_error": 500,
    "unavailable": 503,
    "empty_object": 200,
    "no_choices": 200,
    "error_200": 200,
    "refusal": 200,
    "surrogate": 200,
    "other_model": 200,
    "redirect": 307,
}


@pytest.mark.parametrize("mode", STATUS)
def test_modes_that_are_whole_replies(mode: Mode) -> None:
    """Each mode has the status that real servers were seen to send."""
    with FakeServer(modes=mode) as server:
        [(status, _)] = post(server, "x")
    assert (status, server.counts) == (STATUS[mode], {mode: 1})


@pytest.mark.parametrize("mode", ["cut_body", "reset"])
def test_modes_that_break_the_connection(mode: Mode) -> None:
    """A client sees an error, and no reply."""
    with FakeServer(modes=mode) as server, pytest.raises(aiohttp.ClientError):
        post(server, "x")


@pytest.mark.parametrize("mode", ["hang", "drip"])
def test_modes_that_take_for_ever(mode: Mode) -> None:
    """A client that waits for the reply waits in vain, and the server ends all the same."""
    with FakeServer(modes=mode, drip=0.1) as server:

        async def work() -> None:
            async with aiohttp.ClientSession() as session, asyncio.timeout(0.2):
                await _post(session, server, {"messages": [{"role": "user", "content": "x"}]})

        with pytest.raises(TimeoutError):
            asyncio.run(work())


def test_a_huge_body_is_as_huge_as_it_says() -> None:
    """The mode sends so many bytes, in pieces and without naming their number."""
    with FakeServer(modes="huge", huge=3 << 20) as server:
        [(_, text)] = post(server, "x")
    assert len(text) == 3 << 20


def test_which_request_fails_follows_from_seed_and_request() -> None:
    """The same questions in another order fail alike; another seed fails others; a retry draws again."""
    texts = [str(n) for n in range(300)]
    shares: dict[Mode, float] = {"html_200": 0.2, "server_error": 0.2}

    def modes(seed: int, asked: list[str]) -> dict[str, int]:
        with FakeServer(modes=shares, seed=seed) as server:
            return dict(zip(asked, (s + len(t) for s, t in post(server, *asked)), strict=True))

    first = modes(1, texts)
    assert modes(1, texts[::-1]) == first
    assert modes(2, texts) != first
    with FakeServer(modes=shares, seed=1) as server:
        post(server, *["again"] * 300)
    assert 30 < server.counts["html_200"] < 90
    assert 30 < server.counts["server_error"] < 90
    assert server.counts["ok"] == 300 - server.counts["html_200"] - server.counts["server_error"]


def test_parameters_that_are_not_taken() -> None:
    """A 400 in the words of the real ones, and none without the parameter."""
    with FakeServer(not_taken=("seed",)) as server:
        [(status, text)] = post(server, "x", seed=3)
        assert (status, json.loads(text)["error"]["param"]) == (400, "seed")
        assert post(server, "x")[0][0] == 200


def test_a_misspelt_mode_or_option_is_an_error() -> None:
    """Nothing that is given is ignored."""
    with pytest.raises(TypeError, match="html200"):
        FakeServer(modes={"html200": 1.0})
    with pytest.raises(TypeError, match="sed"):
        FakeServer(sed=1)


def test_every_mode_is_tested() -> None:
    """The lists above leave none out."""
    assert {*STATUS, "cut_body", "reset", "hang", "drip", "huge"} == set(get_args(Mode))


def test_the_name_is_public_and_lazy() -> None:
    """`redistill.testing` alone imports no server."""
    code = "import sys, redistill.testing as t; assert 'aiohttp' not in sys.modules; t.FakeServer"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        __import__("redistill.testing").testing.Nothing  # noqa: B018
