"""`redistill serve`: one revision at an OpenAI-compatible address, batched, refused by name, stopped in peace."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import yaml
from tiny_runs import begin_tiny_run

from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.policies import batching, catalog
from redistill.policies.address import Address
from redistill.policies.calls import Call
from redistill.policies.policy import Request, Sampling
from redistill.policies.serving import Endpoint, serve
from redistill.policies.transformers import TransformersPolicy
from redistill.policies.transport import Client
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe
from redistill.types import Message

T = TypeVar("T")
ASKED = [{"role": "user", "content": "spell cat"}]
GREEDY: dict[str, Any] = {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def policy(session_cache: Path) -> TransformersPolicy:
    """Return the tiny student, loaded."""
    revision = catalog.resolve("tiny", cache=session_cache).revision
    made = TransformersPolicy(revision)
    made.load(revision)
    return made


class Asker:
    """Speaks to a server."""

    def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession, url: str) -> None:
        self.endpoint, self.session, self.url = endpoint, session, url

    async def post(self, path: str, body: Any, **also: Any) -> tuple[int, Any]:
        """Post JSON, and return the status and what came."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data, **also) as response:
            return response.status, json.loads(await response.read())

    async def chat(self, **told: Any) -> dict[str, Any]:
        """Ask for a chat that is answered."""
        status, found = await self.post("/v1/chat/completions", GREEDY | told)
        assert status == 200, found
        assert isinstance(found, dict)
        return found


def with_server(policy: Any, talk: Callable[[Asker], Awaitable[T]]) -> T:
    """Serve a policy on a free port while something talks to it."""

    async def work() -> T:
        endpoint, stop = Endpoint(policy, "m"), asyncio.Event()
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(serve(endpoint, "127.0.0.1", 0, ready.set_result, stop))
        url = f"http://127.0.0.1:{await ready}"
        try:
            async with aiohttp.ClientSession() as session:
                return await talk(Asker(endpoint, session, url))
        finally:
            stop.set()
            await server

    return asyncio.run(work())


def said(policy: TransformersPolicy, text: str, **sampling: Any) -> Any:
    """Return what the policy itself says, greedily."""
    asked = Request(policy.encode((Message("user", text),)), 0)
    [found] = policy.generate([asked], Sampling(0.0, max_tokens=20, **sampling))
    return found


def test_a_chat_is_what_the_policy_says(policy: TransformersPolicy) -> None:
    """Text, tokens, finish reason, and the revision as the system's fingerprint."""
    found = with_server(policy, Asker.chat)
    expected = said(policy, "spell cat")
    [choice] = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["finish_reason"] == expected.finish_reason == "stop"
    assert found["usage"]["completion_tokens"] == len(expected.token_ids)
    assert found["usage"]["prompt_tokens"] == len(policy.encode((Message("user", "spell cat"),)))
    assert (found["model"], found["system_fingerprint"]) == ("m", policy.revision)


def test_a_seed_repeats_and_n_differ(policy: TransformersPolicy) -> None:
    """The same seed gives the same answers, which differ from each other; no seed gives others."""
    hot = {"temperature": 1.5, "n": 6, "seed": 3}

    async def talk(asker: Asker) -> list[list[str]]:
        found = [await asker.chat(**hot) for _ in range(2)]
        found.append(await asker.chat(**hot | {"seed": None}))
        return [[c["message"]["content"] for c in one["choices"]] for one in found]

    first, again, other = with_server(policy, talk)
    assert first == again != other
    assert len(set(first)) > 2


def test_those_who_wait_together_are_answered_together(policy: TransformersPolicy) -> None:
    """Forty requests come at once and take a few calls; each gets its own answer, as if it had come alone."""
    words = [f"spell {a}{b}" for a in "catdog" for b in "bun"] + [f"double {x}" for x in range(22)]

    async def talk(asker: Asker) -> tuple[list[str], int]:
        turns = ([{"role": "user", "content": word}] for word in words)
        found = await asyncio.gather(*(asker.chat(messages=turn) for turn in turns))
        return [f["choices"][0]["message"]["content"] for f in found], asker.endpoint.batching.calls

    answers, calls = with_server(policy, talk)
    assert answers == [said(policy, word).text for word in words]
    assert calls < len(words) / 3


def test_stops_end_an_answer(policy: TransformersPolicy) -> None:
    """Before the first of the texts; the log-probs end there too."""
    whole = said(policy, "spell cat").text
    stop = whole[2]

    async def talk(asker: Asker) -> dict[str, Any]:
        return await asker.chat(stop=["never", stop], logprobs=True)

    [choice] = with_server(policy, talk)["choices"]
    text = whole[: whole.index(stop)]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == text


def test_log_probs_are_the_policys_own(policy: TransformersPolicy) -> None:
    """Of each token but the one that ends the answer, with the likeliest in its place; the first is greedy's."""

    async def talk(asker: Asker) -> dict[str, Any]:
        return await asker.chat(logprobs=True, top_logprobs=3)

    [choice] = with_server(policy, talk)["choices"]
    expected = said(policy, "spell cat")
    told = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in told] == pytest.approx(expected.logprobs[:-1])
    for entry in told:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == pytest.approx(entry["logprob"], abs=1e-4)
        assert bytes(entry["bytes"]).decode() == entry["token"]


def test_a_stream_has_its_shape(policy: TransformersPolicy) -> None:
    """Events with deltas, the reason, the usage where it is wanted, and [DONE]; together they are the answer."""

    async def talk(asker: Asker) -> tuple[str, list[str]]:
        body = GREEDY | {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
        url = asker.url + "/v1/chat/completions"
        async with asker.session.post(url, json=body) as response:
            return response.content_type, (await response.text()).split("\n\n")

    kind, events = with_server(policy, talk)
    assert kind == "text/event-stream"
    assert events[-2:] == ["data: [DONE]", ""]
    parts = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert parts[-1]["usage"]["completion_tokens"] > 0
    for index in range(2):
        mine = [p["choices"][0] for p in parts[:-1] if p["choices"][0]["index"] == index]
        text = "".join(choice["delta"].get("content", "") for choice in mine)
        assert text == said(policy, "spell cat").text
        assert mine[-1]["finish_reason"] == "stop"


def test_a_text_is_gone_on_with(policy: TransformersPolicy) -> None:
    """Text or token ids, one or several; log-probs in the older shape."""
    ids = list(policy.encode((Message("user", "spell cat"),)))
    text = {"model": "m", "temperature": 0, "max_tokens": 20, "logprobs": 2}

    async def talk(asker: Asker) -> list[Any]:
        asked = [ids, [ids, ids], "spell cat"]
        return [await asker.post("/v1/completions", text | {"prompt": one}) for one in asked]

    (a, one), (b, two), (c, plain) = with_server(policy, talk)
    assert (a, b, c) == (200, 200, 200)
    expected = said(policy, "spell cat").text
    assert [choice["text"] for choice in two["choices"]] == [expected] * 2
    told = one["choices"][0]["logprobs"]
    assert "".join(told["tokens"]) == one["choices"][0]["text"] == expected
    assert told["text_offset"] == list(range(len(expected)))  # its tokens are characters
    assert all(len(likeliest) == 2 for likeliest in told["top_logprobs"])
    assert plain["usage"]["prompt_tokens"] == len("spell cat")


REFUSED: dict[str, tuple[Any, int, str | None, str | None]] = {
    "no JSON": (b"{", 400, None, "invalid_json"),
    "NaN": (b'{"temperature": NaN}', 400, None, "invalid_json"),
    "a list": ([], 400, None, "invalid_json"),
    "another model": (GREEDY | {"model": "gpt"}, 404, "model", "model_not_found"),
    "no model": ({"messages": ASKED}, 404, "model", "model_not_found"),
    "no messages": ({"model": "m"}, 400, "messages", "invalid_type"),
    "a picture": (
        GREEDY | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        *(400, "messages", "invalid_type"),
    ),
    "a role": (GREEDY | {"messages": [{"role": "tool"}]}, 400, "messages", "invalid_value"),
    "too hot": (GREEDY | {"temperature": 3}, 400, "temperature", "invalid_value"),
    "a bool": (GREEDY | {"n": True}, 400, "n", "invalid_value"),
    "too many": (GREEDY | {"n": 129}, 400, "n", "invalid_value"),
    "too long": (GREEDY | {"max_tokens": 5000}, 400, "messages", "context_length_exceeded"),
    "tools": (GREEDY | {"tools": [{}]}, 400, "tools", "unsupported_parameter"),
    "a schema": (
        GREEDY | {"response_format": {"type": "json_object"}},
        *(400, "response_format", "unsupported_parameter"),
    ),
    "a penalty": (
        GREEDY | {"presence_penalty": 1},
        *(400, "presence_penalty", "unsupported_parameter"),
    ),
    "a new word": (GREEDY | {"beam": 4}, 400, "beam", "unsupported_parameter"),
    "top alone": (GREEDY | {"top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
    "an empty stop": (GREEDY | {"stop": [""]}, 400, "stop", "invalid_value"),
    "stream": (GREEDY | {"stream": "yes"}, 400, "stream", "invalid_type"),
}


def test_what_cannot_be_done_is_refused_by_name(policy: TransformersPolicy) -> None:
    """A status, a sentence, the parameter and a code, in OpenAI's shape; what asks for nothing is let pass."""

    async def talk(asker: Asker) -> dict[str, Any]:
        found = {
            name: await asker.post("/v1/chat/completions", case[0])
            for name, case in REFUSED.items()
        }
        await asker.chat(presence_penalty=0, tools=[], user="ann", top_k=-1, logit_bias={})
        return found

    for name, (status, body) in with_server(policy, talk).items():
        _, wanted, param, code = REFUSED[name]
        error = body["error"]
        assert (status, error["param"], error["code"]) == (wanted, param, code), name
        assert error["type"] == "invalid_request_error"
        assert error["message"]


def test_other_ways_to_be_wrong(
    policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such path, no such method, too much, ids that the model has not, too many who wait: JSON all the same."""

    async def talk(asker: Asker) -> list[tuple[int, Any]]:
        found = [
            await asker.post("/v1/embeddings", {}),
            await asker.post("/v1/models", {}),
            await asker.post("/v1/chat/completions", b" " * (9 << 20)),
            await asker.post("/v1/completions", {"model": "m", "prompt": [policy.tokens]}),
            await asker.post("/v1/completions", {"model": "m", "prompt": ""}),
            await asker.post("/v1/completions", {"model": "m", "prompt": ["a"] * 9, "n": 99}),
        ]
        monkeypatch.setattr(batching, "MOST_WAITING", 0)
        found.append(await asker.post("/v1/chat/completions", GREEDY))
        return found

    found = with_server(policy, talk)
    assert [status for status, _ in found] == [404, 405, 413, 400, 400, 400, 503]
    assert all(isinstance(body["error"]["message"], str) for _, body in found)


def test_a_policy_that_fails_does_not_end_the_server(
    policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that waited are told by a 500, and the next request is answered."""

    async def talk(asker: Asker) -> list[int]:
        with monkeypatch.context() as patch:
            patch.setattr(policy, "generate", None)
            two = [asker.post("/v1/chat/completions", GREEDY) for _ in range(2)]
            failed = [status for status, _ in await asyncio.gather(*two)]
        return [*failed, len((await asker.chat())["choices"])]

    assert with_server(policy, talk) == [500, 500, 1]


def test_who_hangs_up_leaves_the_queue(
    policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one call works, those behind it go away: nothing is sampled for them."""
    rows: list[int] = []
    generate = policy.generate
    work = asyncio.Event()

    async def talk(asker: Asker) -> None:
        loop, go_on = asyncio.get_running_loop(), asyncio.Event()

        def slow(requests: Any, sampling: Sampling) -> Any:
            rows.append(len(requests))
            loop.call_soon_threadsafe(work.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
            return generate(requests, sampling)

        monkeypatch.setattr(policy, "generate", slow)
        first = asyncio.create_task(asker.chat())
        await asyncio.wait_for(work.wait(), 30)
        behind = [asyncio.create_task(asker.chat()) for _ in range(3)]
        while len(asker.endpoint.batching._waiting) < 3:
            await asyncio.sleep(0.01)
        for task in behind:
            task.cancel()
        await asyncio.gather(*behind, return_exceptions=True)
        while not all(w.answered.done() for w in asker.endpoint.batching._waiting):
            await asyncio.sleep(0.01)
        go_on.set()
        await first
        await asker.chat()

    with_server(policy, talk)
    assert rows == [1, 1]


# -- our own client


def test_our_client_asks_it_as_any_server(policy: TransformersPolicy) -> None:
    """Answers, options weighed as the policy weighs them, a schema that it learns to leave out, a prompt too long."""

    async def talk(asker: Asker) -> Any:
        client = Client(Address(f"{asker.url}/v1", "m"))
        messages = (Message("user", "spell cat"),)
        try:
            plain = await client.call(Call(messages, Sampling(0.0, max_tokens=20), 1))
            weighed = await client.call(Call(messages, Sampling(0.0), options=("c", "d")))
            schema = await client.call(Call(messages, Sampling(0.0, max_tokens=20), schema={}))
            long = await client.call(Call(messages, Sampling(0.0, max_tokens=1000)))
            return plain, weighed, schema, long, dict(client.left_out)
        finally:
            await client.close()

    plain, weighed, schema, long, left_out = with_server(policy, talk)
    expected = said(policy, "spell cat").text
    assert (plain.status, plain.text, plain.finish) == ("ok", expected, "stop")
    assert plain.usage.tokens_out > 0
    [chances] = policy.choose([policy.encode((Message("user", "spell cat"),))], ("c", "d"))
    told = dict(weighed.weighed)
    assert [math.exp(told[o]) for o in ("c", "d")] == pytest.approx(chances, abs=1e-6)
    assert schema.text == expected
    assert set(left_out) == {"response_format"}
    assert (long.kind, long.status) == ("too_long", "too_big")


# -- the command


@contextmanager
def command(run_folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Start the command as a process, and return it with what it says when it is ready."""
    words = ["serve", run_folder.name, "--runs", str(run_folder.parent), "--json", *more]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "redistill.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            told = ""
            while not told.rstrip().endswith("}"):
                line = process.stdout.readline()
                assert line, process.stderr.read() if process.stderr else ""
                told += line
            yield process, json.loads(told)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Path:
    """Return a run that has its initial revision and nothing more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDISTILL_CACHE", str(session_cache))
        return begin_tiny_run(tmp_path_factory.mktemp("begun"), "begun")


def test_a_run_learns_from_a_served_teacher(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: a process serves a revision, another run samples from it as a role, and SIGTERM ends it."""
    with command(begun, "--port", "0") as (process, told):
        asyncio.run(_look_around(told))
        described = fake_recipe(rounds=1)
        described["prompts"]["per_round"] = 4
        described["roles"] = {"teacher": {"policy": told["url"], "model": "begun"}}
        # Greedy: the port is part of what is asked, and would draw other answers each time, also empty ones.
        sample = {"role": "teacher", "k": 2, "max_tokens": 30, "temperature": 0}
        described["round"][0] = {"sample": sample}
        rows = fake_prompts(train=4, heldout=4, test=4)
        (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        loaded = load_recipe(yaml.safe_dump(described), "recipe.yaml", base=tmp_path)
        folder = run(loaded, place=Place(tmp_path / "runs", tmp_path / "cache"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    found = read_rows(folder, "SELECT DISTINCT model, role FROM completion WHERE split = 'train'")
    assert found == [{"model": "begun", "role": "teacher"}]
    [count] = read_rows(folder, "SELECT count(*) AS n FROM completion WHERE split = 'train'")
    assert count["n"] == 8


async def _look_around(told: dict[str, str]) -> None:
    """Ask a server who it is and whether it is well."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{told['url']}/models") as response:
            [model] = (await response.json())["data"]
        assert (model["id"], model["root"]) == ("begun", told["revision"])
        async with session.get(told["url"].removesuffix("/v1") + "/health") as response:
            assert await response.json() == {"status": "ok", "revision": told["revision"]}


def test_a_signal_lets_what_is_in_hand_end(begun: Path) -> None:
    """A request that was accepted before the signal is answered, and the process ends with 0."""

    async def talk(process: subprocess.Popen[str], url: str) -> dict[str, Any]:
        body = GREEDY | {"model": "other", "n": 64, "temperature": 1.0, "max_tokens": 200}
        async with aiohttp.ClientSession() as session:
            asked = asyncio.create_task(session.post(f"{url}/chat/completions", json=body))
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGINT)
            async with await asked as response:
                found: dict[str, Any] = await response.json()
                return found

    with command(begun, "--port", "0", "--name", "other", "--revision", "initial") as (
        process,
        told,
    ):
        found = asyncio.run(talk(process, told["url"]))
        assert len(found["choices"]) == 64
        assert process.wait(60) == 0


def test_a_port_that_is_taken_is_told(begun: Path) -> None:
    """Exit code 3 and one line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ["serve", "begun", "--runs", str(begun.parent), "--port", port]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "redistill.cli", *words],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
