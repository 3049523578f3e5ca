"""Calling models over HTTP, by the thousand: every outcome is a value, never an exception.

A thin client on aiohttp, because the SDKs cost ten times the processor time of a call. A call has one
deadline, whatever the server does in it: drip, hang, or send 200 MB. Redirects are not followed, and no
proxy of the environment is used: the key goes to the host that the recipe names and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import random
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from ..types import Message, Status, Usage
from .address import Address
from .pacing import Breaker, Bucket
from .policy import Sampling
from .replies import KINDS, Read, clean, read, too_big

_CHARACTERS_A_TOKEN = 3.5
_SEEDS = 1 << 31
"""Some servers keep a seed in 32 bits."""
_DATED = re.compile(r"[-@:](\d{4}[\d.-]*|\d{3}|latest)")
"""What servers put after a model's name: `-2026-08-06`, `-0613`, `-001`, `:latest`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One conversation that is to be answered."""

    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    """JSON Schema of the reply."""
    options: tuple[str, ...] = ()
    """Replies that are to be weighed instead: one token is written, with log-probs."""

    def tokens(self) -> float:
        """Estimate the tokens read and written, for the pace."""
        asked = sum(len(m.content) for m in self.messages) / _CHARACTERS_A_TOKEN
        return asked + self.sampling.max_tokens

    def most(self) -> tuple[int, int]:
        """Return the most tokens that can be read and written: no token is shorter than a byte."""
        asked = sum(len(m.content.encode("utf-8", "replace")) + 16 for m in self.messages)
        return asked, self.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to."""

    status: Status
    text: str
    """What the model said; of a failure, why."""
    kind: str = "ok"
    """A key of `replies.KINDS`: what exactly happened."""
    usage: Usage = field(default_factory=Usage)
    """What is known of the cost, all attempts together, also when the reply is of no use."""
    tokens_cached: int = 0
    reply: str = ""
    """The raw body."""
    finish: str = ""
    weighed: tuple[tuple[str, float], ...] = ()
    attempts: int = 0
    unmetered: int = 0
    """Attempts that may have been billed and did not say so."""
    seconds: float = 0.0
    waiting: bool = False
    """The server was away for longer than patience lasts: the call says nothing about its task."""


class Client:
    """Calls one address; good for one event loop.

    Args:
        address: whom to call, and how.
        say: is told in one line what a person should know.
    """

    def __init__(self, address: Address, say: Callable[[str], None] = lambda _: None) -> None:
        self.address = address
        self.say = say
        self.failures: Counter[str] = Counter()
        """Attempts that failed, by kind."""
        self.left_out: dict[str, str] = {}
        """Parameters that the model does not take, and what the server said."""
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(address.concurrency)
        self._calls = Bucket(address.rpm) if address.rpm else None
        self._tokens = Bucket(address.tpm) if address.tpm else None
        self.breaker = Breaker(
            address.breaker, address.backoff, address.longest_pause, address.patience, self._away
        )
        self._jitter = random.Random()  # noqa: S311 - spreads retries, is no secret
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}

    async def call(self, call: Call) -> Outcome:
        """Make one call. Nothing that a server does raises here."""
        tries = _Tries(left=self.address.deadline)
        while True:
            async with self._slots:
                probe = await self.breaker.admit()
                if probe is None:
                    return tries.outcome(self, waiting=True)
                await self._pace(call)
                pause = await self._try(call, tries, probe=probe)
            if pause is None:
                return tries.outcome(self)
            if pause:
                await asyncio.sleep(pause)
                tries.left -= pause

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _try(self, call: Call, tries: _Tries, *, probe: bool) -> float | None:
        """Make one attempt; return the pause before the next one, or None where there is none."""
        began = time.monotonic()
        try:
            found, asked_pause = await self._attempt(call, tries.left)
        except BaseException:
            if probe:
                self.breaker.abandoned()
            raise
        tries.left -= time.monotonic() - began
        if found.param and self._learn(found):
            self.breaker.succeeded()
            return 0.0
        tries.keep(found)
        if found.kind != "ok":
            self.failures[found.kind] += 1
        if self._tokens and found.metered:
            self._tokens.give_back(call.tokens() - found.tokens_in - found.tokens_out)
        kind = KINDS[found.kind]
        if not kind.again and found.kind != "timeout":
            self.breaker.succeeded()
            return None
        self.breaker.failed(probe=probe, pause=asked_pause)
        return self._next_pause(tries, asked_pause) if kind.again else None

    def _next_pause(self, tries: _Tries, asked: float) -> float | None:
        """Return how long to wait before the next attempt; None where the call has had its chances."""
        away = KINDS[tries.last.kind].away
        if away and self.breaker.open:
            tries.count -= 1  # the breaker waits, and the call is not to blame
            return 0.0
        longest = min(self.address.backoff * 2 ** (tries.count - 1), self.address.longest_pause)
        # Full jitter: those who failed together must not come back together.
        pause = max(self._jitter.uniform(0, longest), min(asked, self.address.longest_pause))
        enough = tries.count < self.address.attempts and tries.left > pause
        return max(pause, 1e-9) if enough else None

    async def _pace(self, call: Call) -> None:
        if self._calls:
            await self._calls.take()
        if self._tokens:
            await self._tokens.take(call.tokens())

    async def _attempt(self, call: Call, left: float) -> tuple[Read, float]:
        """Post once; return what came and the pause that the server asks for, in seconds."""
        try:
            async with asyncio.timeout(max(left, 0.0)):
                return await self._send(call)
        except TimeoutError:
            return Read("timeout", f"no reply within {self.address.deadline:g} s"), 0.0
        except aiohttp.ClientConnectorError as error:
            return Read("unreachable", f"{self.address.host}: {_cause(error)}"), 0.0
        except (aiohttp.ClientPayloadError, asyncio.IncompleteReadError):
            return Read("cut_body", "the connection ended within the reply"), 0.0
        except (aiohttp.ClientError, OSError) as error:
            return Read("reset", f"the connection ended before a reply: {_cause(error)}"), 0.0

    async def _send(self, call: Call) -> tuple[Read, float]:
        """Post once."""
        address, body = self.address, self._body(call)
        data = json.dumps(body).encode()
        headers = self._headers
        if address.key:
            headers = headers | {"Authorization": f"Bearer {address.key.reveal()}"}
        session = self._open()
        async with session.post(
            address.endpoint, data=data, headers=headers, allow_redirects=False
        ) as response:
            content = await _bounded(response, address.largest)
            whole = len(content) <= address.largest
            if address.key:
                content = address.key.scrub(content)
            if not whole:
                response.close()
                return too_big(address.largest, content), 0.0
            found = read(response.status, content)
            if found.param and found.param not in body:
                found = replace(found, param="")  # it was not sent: without it nothing changes
            return self._as_asked(found), _retry_after(response.headers.get("Retry-After"))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            _make_room(self.address.concurrency)
            self._session = aiohttp.ClientSession(
                # The default of 100 connections would hold the calls back without a word.
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    def _as_asked(self, found: Read) -> Read:
        """Refuse the reply of another model than the one that was asked; what it cost stays known."""
        wanted = self.address.answers_as or self.address.model
        if found.kind != "ok" or not found.model or _same_model(wanted, found.model):
            return found
        reason = f"{found.model!r} answered for {wanted!r}; if that is right, say `answers_as: {found.model}`"
        return replace(found, kind="other_model", text=reason)

    def _body(self, call: Call) -> dict[str, Any]:
        sampling = call.sampling
        body: dict[str, Any] = {
            "model": self.address.model,
            "messages": [{"role": m.role, "content": clean(m.content)} for m in call.messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if call.seed is not None:
            body["seed"] = call.seed % _SEEDS
        if call.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": dict(call.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if call.options:
            body |= {"structured_outputs": {"choice": list(call.options)}, "max_tokens": 1}
            body |= {"logprobs": True, "top_logprobs": 20}
        for name in self.left_out:
            value = body.pop(name, None)
            if name == "max_tokens" and value is not None:
                body["max_completion_tokens"] = value
        return body

    def _learn(self, found: Read) -> bool:
        """Leave a parameter out from now on; False where there is nothing left to leave out."""
        if found.param == "max_completion_tokens":
            return False
        if found.param not in self.left_out:
            self.left_out[found.param] = found.text
            self.say(f"{self.address.model} takes no `{found.param}`: left out from now on")
        return True

    def _away(self) -> None:
        self.say(f"waiting for {self.address.host}: {self.address.breaker} failures in a row")


@dataclass(slots=True)
class _Tries:
    """What the attempts of one call have come to so far."""

    left: float
    """Seconds of the deadline."""
    count: int = 0
    made: int = 0
    unmetered: int = 0
    tokens: tuple[int, int, int] = (0, 0, 0)
    """Read, of these cached, written."""
    last: Read = field(default_factory=lambda: Read("unreachable", "not called: it was away"))
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def keep(self, found: Read) -> None:
        """Take note of an attempt."""
        self.last = found
        self.count += 1
        self.made += 1
        billed = KINDS[found.kind].billed or found.kind == "ok"
        self.unmetered += billed and not found.metered
        a, b, c = self.tokens
        self.tokens = (a + found.tokens_in, b + found.tokens_cached, c + found.tokens_out)

    def outcome(self, client: Client, *, waiting: bool = False) -> Outcome:
        """Sum up."""
        found, price = self.last, client.address.price
        tokens_in, cached, out = self.tokens
        known = price is not None and not self.unmetered
        return Outcome(
            status=KINDS[found.kind].status,
            text=found.text,
            kind=found.kind,
            usage=Usage(
                model=found.model or client.address.model,
                tokens_in=tokens_in,
                tokens_out=out,
                dollars=price.of(tokens_in, out) if price and known else None,
            ),
            tokens_cached=cached,
            reply=found.raw,
            finish=found.finish,
            weighed=found.weighed,
            attempts=self.made,
            unmetered=self.unmetered,
            seconds=time.monotonic() - self.began,
            waiting=waiting,
        )


async def _bounded(response: aiohttp.ClientResponse, largest: int) -> bytes:
    """Return a body, or its beginning where it is larger than it may be; not much more is ever held."""
    parts: list[bytes] = []
    size = 0
    while size <= largest and (part := await response.content.readany()):
        size += len(part)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _same_model(wanted: str, said: str) -> bool:
    """Say whether a model's own name is the one asked for: its last part, or a dated one of that."""
    a, b = (name.casefold().rpartition("/")[2] for name in (wanted, said))
    return a == b or (b.startswith(a) and _DATED.fullmatch(b, len(a)) is not None)


def _retry_after(value: str | None) -> float:
    """Return the pause that a server asks for: seconds, or a date."""
    if not value:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if float(value) == float(value) else 0.0
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _cause(error: BaseException) -> str:
    """Say what went wrong in a line, without anything that was sent."""
    number = getattr(error, "os_error", error)
    return f"{type(error).__name__}: {getattr(number, 'strerror', None) or type(number).__name__}"


def _make_room(connections: int) -> None:
    """Let the process hold so many connections, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
