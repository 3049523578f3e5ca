"""Calls to servers: every outcome has a status, a deadline is kept, and a key stays where it belongs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import pickle
import time
import traceback
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.errors import BadInput
from redistill.policies.address import Address, Price, Secret, address_fault, is_provider
from redistill.policies.calls import Call, Outcome
from redistill.policies.pacing import Breaker, Bucket
from redistill.policies.policy import Sampling
from redistill.policies.replies import KEPT, KINDS, read
from redistill.policies.transport import Client
from redistill.testing.fake_server import FakeServer, Mode
from redistill.types import Message

KEY = "sk-planted-0123456789abcdef"
FAST: dict[str, Any] = {"deadline": 0.5, "attempts": 2, "backoff": 0.01, "longest_pause": 0.05}


def call(text: str = "hi", **also: Any) -> Call:
    """Return a call that asks something."""
    return Call((Message("user", text),), Sampling(0.0, 1.0, 0, 32), 7, **also)


def calls(server: FakeServer, *asked: Call, **address: Any) -> tuple[list[Outcome], Client]:
    """Make calls to a server, all together."""

    async def work() -> tuple[list[Outcome], Client]:
        client = Client(Address(server.url, "judge", **address))
        try:
            return await asyncio.gather(*(client.call(one) for one in asked)), client
        finally:
            await client.close()

    return asyncio.run(work())


OUTCOMES: dict[Mode, tuple[str, str, int]] = {
    "ok": ("ok", "ok", 1),
    "html_200": ("error", "not_json", 1),
    "html_502": ("error", "unavailable", 2),
    "unauthorized": ("error", "unauthorized", 1),
    "unknown_model": ("error", "not_found", 1),
    "rate_limited": ("error", "rate_limited", 2),
    "rate_limited_long": ("error", "rate_limited", 2),
    "server_error": ("error", "server_error", 2),
    "unavailable": ("error", "unavailable", 2),
    "cut_body": ("error", "cut_body", 2),
    "empty_object": ("error", "no_reply", 1),
    "no_choices": ("error", "no_reply", 1),
    "error_200": ("error", "error_in_ok", 1),
    "refusal": ("refused", "refused", 1),
    "surrogate": ("ok", "ok", 1),
    "drip": ("timeout", "timeout", 1),
    "hang": ("timeout", "timeout", 1),
    "reset": ("error", "reset", 2),
    "huge": ("too_big", "too_big", 1),
    "other_model": ("error", "other_model", 1),
    "redirect": ("error", "redirect", 1),
}
"""Mode of the server -> status, kind, attempts of two that are made."""


@pytest.mark.parametrize("mode", OUTCOMES)
def test_every_failure_is_a_status_within_the_deadline(mode: Mode) -> None:
    """Whatever a server does, a call ends in time, with a status, a kind and a reason."""
    began = time.monotonic()
    with FakeServer(lambda _: "yes", mode, drip=0.05) as server:
        # A reply that is read to a MB alone: all of it takes as long to come as the machine is busy.
        [[found], client] = calls(server, call(), **FAST, largest=1 << 20)
        spent = time.monotonic() - began
    assert (found.status, found.kind, found.attempts) == OUTCOMES[mode]
    assert spent < FAST["deadline"] + 1
    assert found.text
    assert "\ud83d" not in found.text + found.reply
    failed = {} if found.status == "ok" else {found.kind: found.attempts}
    assert client.failures == failed
    assert server.counts == {mode: found.attempts}


def test_f26_of_a_giant_reply_its_head_and_hash_are_kept() -> None:
    """64 MB come, 1 MB is read: the reason quotes how it begins and has the hash of so much."""
    largest = 1 << 20
    with FakeServer(modes="huge", huge=64 << 20) as server:
        [[found], _] = calls(server, call(), **FAST | {"deadline": 5.0}, largest=largest)
    assert (found.status, found.attempts) == ("too_big", 1)
    digest = hashlib.sha256(b" " * largest).hexdigest()
    assert found.text.startswith(f"a reply of more than {largest} bytes, the sha256 of so many is")
    assert digest in found.text
    assert len(found.text) < 500
    assert found.reply == " " * KEPT


def test_a_server_that_is_not_there_is_a_status() -> None:
    """A refused connection is told as such, with the host and no traceback."""
    with FakeServer() as server:
        url = server.url

    async def work() -> Outcome:
        client = Client(Address(url, "judge", **FAST))
        try:
            return await client.call(call())
        finally:
            await client.close()

    found = asyncio.run(work())
    assert (found.status, found.kind) == ("error", "unreachable")
    assert "Connect" in found.text


@pytest.mark.parametrize("concurrency", [1, 64, 1000])
def test_as_many_calls_are_in_flight_as_are_asked_for(concurrency: int) -> None:
    """Counted at the server: no more, and, above all, no fewer than the setting."""
    asked = [call(str(n)) for n in range(3 if concurrency == 1 else concurrency + 8)]
    # Long enough for a thousand connections to be made, which is what a slow model leaves time for.
    with FakeServer(delay=0.05 if concurrency < 1000 else 2.5) as server:
        found, _ = calls(server, *asked, concurrency=concurrency)
    assert {o.status for o in found} == {"ok"}
    assert server.most_in_flight == concurrency


def test_replies_keep_their_places() -> None:
    """The outcome of a call is that of its own question, in whatever order replies come."""
    with FakeServer(lambda messages: messages[-1]["content"] + "!", delay=0.01) as server:
        found, _ = calls(server, *(call(str(n)) for n in range(100)), concurrency=32)
    assert [o.text for o in found] == [f"{n}!" for n in range(100)]


def test_what_failed_once_is_tried_again() -> None:
    """Two failures of a kind that passes, and the third attempt is the reply."""
    with FakeServer(script=["reset", "rate_limited"]) as server:
        [[found], client] = calls(server, call(), **FAST | {"attempts": 3})
    assert (found.status, found.attempts) == ("ok", 3)
    assert client.failures == {"reset": 1, "rate_limited": 1}


def test_retry_after_is_honoured_up_to_a_cap() -> None:
    """3600 s are asked for, 0.3 s are waited."""
    with FakeServer(script=["rate_limited_long"]) as server:
        [[found], _] = calls(server, call(), deadline=5.0, backoff=0.01, longest_pause=0.3)
    assert found.status == "ok"
    assert 0.3 <= found.seconds < 2


def test_pauses_count_toward_the_deadline() -> None:
    """A pause that would end after the deadline is not begun."""
    with FakeServer(modes="rate_limited_long") as server:
        [[found], _] = calls(server, call(), deadline=0.5, backoff=0.01, longest_pause=60)
    assert (found.kind, found.attempts) == ("rate_limited", 1)
    assert found.seconds < 0.5


def test_the_breaker_parks_calls_and_lets_them_go_on() -> None:
    """A server that is away for 12 requests loses no call: they wait, and one probes at a time."""
    with FakeServer(script=["unavailable"] * 12) as server:
        limits = {"attempts": 2, "backoff": 0.01, "longest_pause": 0.02, "breaker": 4}
        found, client = calls(server, *map(call, "abcd"), concurrency=2, deadline=5.0, **limits)
    assert [o.status for o in found] == ["ok"] * 4
    assert server.counts == {"unavailable": 12, "ok": 4}
    assert client.breaker.parked > 0


def test_a_server_that_stays_away_is_waited_for_only_so_long() -> None:
    """After patience the calls say that they were waiting: that is no failure of theirs."""
    with FakeServer(modes="unavailable") as server:
        limits = {"attempts": 2, "backoff": 0.01, "longest_pause": 0.02, "breaker": 2}
        found, _ = calls(server, *map(call, "abc"), patience=0.3, deadline=5.0, **limits)
    assert [o.waiting for o in found] == [True] * 3
    assert server.requests < 60


def test_a_probe_that_is_cancelled_is_another_ones_turn() -> None:
    """A breaker does not wait for ever for the result of a call that nobody makes any more."""

    async def work() -> list[bool | None]:
        breaker = Breaker(1, 0.0, 1.0, 5.0)
        breaker.failed(probe=False)
        first = await breaker.admit()
        waiting = asyncio.create_task(breaker.admit())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        breaker.abandoned()
        return [first, await waiting]

    assert asyncio.run(work()) == [True, True]


def test_a_pace_is_kept() -> None:
    """600 calls a minute are ten a second: the burst at the start is one second's, no minute's."""

    async def work() -> float:
        bucket = Bucket(600)
        began = time.monotonic()
        for _ in range(13):
            await bucket.take()
        return time.monotonic() - began

    assert 0.25 < asyncio.run(work()) < 1.5


def test_rpm_holds_calls_back() -> None:
    """Three calls beyond the first second's burst wait for their turn."""
    with FakeServer() as server:
        began = time.monotonic()
        calls(server, *(call(str(n)) for n in range(13)), rpm=600)
        assert time.monotonic() - began > 0.25


@pytest.mark.parametrize("name", ["temperature", "seed", "max_tokens"])
def test_a_parameter_that_is_not_taken_is_learned_once(name: str) -> None:
    """One 400 teaches it, a line tells it, and later calls leave it out."""
    told: list[str] = []
    with FakeServer(not_taken=(name,)) as server:

        async def work() -> list[Outcome]:
            client = Client(Address(server.url, "judge", **FAST), told.append)
            try:
                return [await client.call(call(str(n))) for n in range(3)]
            finally:
                await client.close()

        found = asyncio.run(work())
    assert {o.status for o in found} == {"ok"}
    assert server.counts == {"not_taken": 1, "ok": 3}
    assert [line for line in told if name in line] == told
    assert len(told) == 1
    assert ("max_completion_tokens" in server.bodies[-1]) == (name == "max_tokens")


@pytest.mark.parametrize(
    ("message", "param", "kind"),
    [
        ("Unsupported value: 'temperature' does not support 0", "temperature", "bad_request"),
        (
            "Invalid schema for response_format: 'maxLength' is not permitted",
            "response_format",
            "bad_request",
        ),
        ("Extra inputs are not permitted: top_k", "top_k", "bad_request"),
        ("temperature must be at most 2", "", "bad_request"),
        (
            "This model's maximum context length is 128 tokens; max_tokens is too large",
            "",
            "too_long",
        ),
        ("unknown model", "", "bad_request"),
    ],
)
def test_only_a_parameter_that_is_not_taken_is_left_out(
    message: str, param: str, kind: str
) -> None:
    """A value that is wrong, or a prompt that is too long, is no reason to leave a setting out."""
    found = read(400, json.dumps({"error": {"message": message}}).encode())
    assert (found.param, found.kind) == (param, kind)


def test_a_value_that_cannot_help_to_leave_out_ends_the_call() -> None:
    """A server that names a parameter which was not sent is not asked again and again."""
    with FakeServer(not_taken=("model",)) as server:
        [[found], _] = calls(server, call(), **FAST)
    assert (found.kind, server.requests) == ("bad_request", 1)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, (5, 7)),
        # Reasoning is among the completion's tokens, only in the total, or beside it.
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 107,
                "total_tokens": 112,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            (5, 107),
        ),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "total_tokens": 112,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            (5, 107),
        ),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            (5, 107),
        ),
        ({"prompt_tokens": -5, "completion_tokens": True, "total_tokens": "9"}, (0, 0)),
        (None, (0, 0)),
    ],
)
def test_reasoning_is_counted_and_nonsense_is_not(usage: Any, tokens: tuple[int, int]) -> None:
    """Tokens written are those that are billed."""
    message = {"role": "assistant", "content": "x"}
    body = {"choices": [{"message": message}], "usage": usage}
    found = read(200, json.dumps(body).encode())
    assert (found.tokens_in, found.tokens_out) == tokens


def test_what_was_billed_is_known_though_it_is_of_no_use() -> None:
    """Refusals, empty choices and another model's reply cost what they say."""
    for mode in ("refusal", "no_choices", "other_model"):
        with FakeServer(lambda _: "one two three", mode) as server:
            [[found], _] = calls(server, call("a b"), price=Price(1.0, 10.0), **FAST)
        assert (found.usage.tokens_in, found.usage.tokens_out) == (2, 3)
        assert found.usage.dollars == pytest.approx(32e-6)


def test_what_may_have_been_billed_is_no_zero() -> None:
    """After a hang nobody knows the price, and nobody says it was nothing."""
    with FakeServer(modes="hang") as server:
        [[found], _] = calls(server, call(), price=Price(1.0, 1.0), **FAST)
    assert found.usage.dollars is None
    assert found.unmetered == 1


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("judge", "ok"),
        ("org/judge", "ok"),
        ("judge-2026-08-06", "ok"),
        ("Judge:latest", "ok"),
        ("judge-mini", "error"),
        ("other", "error"),
    ],
)
def test_the_model_that_answers_is_the_one_asked(said: str, status: str) -> None:
    """A dated or longer form of the name is the same model, another name is not."""

    class Renamed(FakeServer):
        def completion(self, body: Any) -> dict[str, Any]:
            return super().completion(body) | {"model": said}

    with Renamed() as server:
        [[found], _] = calls(server, call(), **FAST)
        [[told], _] = calls(server, call(), answers_as=said, **FAST)
    assert (found.status, found.usage.model) == (status, said)
    assert told.status == "ok"


NASTY = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"\xff\xfe{}",
    b'{"choices": null}',
    b'{"choices": [null]}',
    b'{"choices": [{"message": 3}]}',
    b'{"choices": [{"message": {"content": 3}}]}',
    b'{"choices": [{"message": {"content": NaN}}]}',
    b'{"choices": [{"message": {"content": ""}}], "usage": {"prompt_tokens": 1e999}}',
    b'{"choices": [{"message": {"content": null}}]}',
    b"[" * 100_000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"error": null, "choices": {}}',
]


@pytest.mark.parametrize("body", NASTY)
def test_f24_no_body_raises_or_passes(body: bytes) -> None:
    """Bodies that break parsers are told as what they are."""
    found = read(200, body)
    assert found.kind in {"not_json", "no_reply", "empty"}
    assert found.text


@settings(max_examples=200, deadline=None)
@given(st.integers(100, 599), st.binary(max_size=300))
def test_any_reply_has_a_kind(http: int, body: bytes) -> None:
    """Reading never raises, and its kind always has a status."""
    assert KINDS[read(http, body).kind].status


def test_a_failure_in_a_200_is_retried_when_its_code_says_so() -> None:
    """A gateway's 502 in a 200 is an outage; without a code it is an error."""
    inner = {"error": {"message": "bad gateway", "code": 502}}
    assert read(200, json.dumps(inner).encode()).kind == "unavailable"
    assert read(200, b'{"error": "no"}').kind == "error_in_ok"


# -- keys


def test_a_key_is_named_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """A server that repeats the key finds it in no outcome, log, repr, traceback or output."""
    monkeypatch.setenv("PLANTED_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    secret = Secret.named("env:PLANTED_KEY", "roles.helper.key")
    shown = [repr(secret), str(secret), f"{secret}", repr(Address("http://h/v1", "m", secret))]
    for mode in ("unauthorized", "ok", "reset", "html_200", "redirect"):
        echo: Any = lambda messages: f"your key is {KEY}"  # noqa: E731
        with FakeServer(echo, mode) as server:
            found, client = calls(server, call(), key=secret, **FAST)
            assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        shown += [repr(found), repr(client.__dict__), repr(client.address)]
    try:
        pickle.dumps(secret)
    except TypeError as error:
        shown.append("".join(traceback.format_exception(error)))
    written = capfd.readouterr()
    everything = "\n".join([*shown, caplog.text, written.out, written.err])
    assert "***" in everything
    assert KEY not in everything


def test_a_key_goes_to_the_host_of_its_address_alone() -> None:
    """A redirect to another host is not followed: the other host hears nothing."""
    with FakeServer() as other, FakeServer(modes="redirect") as server:
        server.away = other.url + "/chat/completions"
        [[found], _] = calls(server, call(), key=Secret(KEY), **FAST)
        assert other.requests == 0
    assert found.kind == "redirect"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HTTP_PROXY names never sees a call."""
    with FakeServer() as proxy, FakeServer() as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        [[found], _] = calls(server, call(), **FAST)
        assert (found.status, proxy.requests) == ("ok", 0)


@pytest.mark.parametrize("spec", [KEY, "env:1A", "$KEY", "env:A B"])
def test_a_key_in_the_recipe_is_refused_unseen(spec: str) -> None:
    """The message says what to write, and not what was written."""
    with pytest.raises(BadInput) as caught:
        Secret.named(spec, "roles.helper.key")
    assert "env:NAME" in str(caught.value)
    assert spec not in str(caught.value)


@pytest.mark.parametrize("value", ["", "  ", "short", "with\nnewline-0123456789"])
def test_a_variable_without_a_key_is_refused_unseen(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty or malformed variable is found before any call."""
    monkeypatch.setenv("PLANTED_KEY", value)
    with pytest.raises(BadInput, match="PLANTED_KEY") as caught:
        Secret.named("env:PLANTED_KEY", "roles.helper.key")
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("https://api.example.com/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://user:pass@host/v1", False),
        ("http:///v1", False),
        ("http://host:99999/v1", False),
        ("https://host/v1?key=x", False),
    ],
)
def test_addresses(url: str, good: bool) -> None:
    """An address has a host, and no key of any kind in it."""
    fault = address_fault(url)
    assert (fault is None) == good
    assert fault is None or "pass" not in fault[0].replace("password", "")


def test_a_provider_is_no_python_module() -> None:
    """`provider:model` is told from `module:Class` by the provider's name."""
    assert is_provider("openai:gpt-5")
    assert not is_provider("my_module:Class")
    assert not is_provider("openai:")


# -- many at once


def test_one_in_ten_fails_and_the_rest_is_as_it_would_have_been() -> None:
    """Twelve kinds of failure, 10 % in all: what did not fail equals a clean server's; counts are exact."""
    kinds: tuple[Mode, ...] = (
        "html_200",
        "html_502",
        "unauthorized",
        "unknown_model",
        "rate_limited",
        "cut_body",
        "empty_object",
        "no_choices",
        "error_200",
        "refusal",
        "reset",
        "other_model",
    )
    asked = [call(f"question {n}") for n in range(1200)]
    reply: Any = lambda messages: f"answer to {messages[-1]['content']}"  # noqa: E731
    with FakeServer(reply) as clean:
        wanted, _ = calls(clean, *asked)
    with FakeServer(reply, dict.fromkeys(kinds, 0.1 / 12), seed=3) as server:
        found, client = calls(server, *asked, deadline=30.0, attempts=1, breaker=50)
    failed = [o for o in found if o.status != "ok"]
    assert 60 < len(failed) < 180
    assert all(
        a == b.text
        for a, b in zip([w.text for w in wanted], found, strict=True)
        if b.status == "ok"
    )
    kind_of = {mode: kind for mode, (_, kind, _) in OUTCOMES.items()}
    served: Counter[str] = Counter()
    for mode, count in server.counts.items():
        if mode != "ok":
            served[kind_of[mode]] += count  # type: ignore[index]
    assert len([mode for mode in server.counts if mode != "ok"]) == 12
    assert Counter(o.kind for o in failed) == served == client.failures
