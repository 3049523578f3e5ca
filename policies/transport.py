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
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import aiohttp

from .address import Address
from .calls import Asking, Outcome, Tries
from .pacing import Breaker, Bucket
from .replies import KINDS, Read, too_big

_DATED = re.compile(r"[-@:](\d{4}[\d.-]*|\d{3}|latest)")
"""What servers put after a model's name: `-2026-08-06`, `-0613`, `-001`, `:latest`."""


class Client:
    """Calls one address; good for one event loop.

    Args:
        address: whom to call, and how.
        say: is told in one line what a person should know.
        alone: whether no other server can answer instead; else also what another one may do better counts as
            a failure of this one, so that its breaker opens.
    """

    def __init__(
        self,
        address: Address,
        say: Callable[[str], None] = lambda _: None,
        *,
        alone: bool = True,
    ) -> None:
        self.address = address
        self.say = say
        self.failures: Counter[str] = Counter()
        """Attempts that failed, by kind."""
        self.left_out: dict[str, str] = {}
        """Parameters that the model does not take, and what the server said."""
        self.alone = alone
        """Whether what another server may do better is no failure of this one."""
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(address.concurrency)
        self._calls = Bucket(address.rpm) if address.rpm else None
        self._tokens = Bucket(address.tpm) if address.tpm else None
        self.breaker = Breaker(
            failures=address.breaker,
            pause=address.backoff,
            longest=address.longest_pause,
            patience=address.patience,
            slowest=address.slowest_probe,
            opened=self._away,
        )
        self._jitter = random.Random()  # noqa: S311 - spreads retries, is no secret
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}

    async def call(self, call: Asking) -> Outcome:
        """Make one call. Nothing that a server does raises here."""
        tries = Tries(left=self.address.deadline)
        while True:
            async with self._slots:
                probe = await self.breaker.admit()
                if probe is None:
                    return tries.outcome(self.address, waiting=True)
                asked = await self.attempt(call, tries, probe=probe)
            pause = None if asked is None else self.pause(tries, asked)
            if pause is None:
                return tries.outcome(self.address)
            if pause:
                await asyncio.sleep(pause)
                tries.left -= pause

    def news(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what is worth keeping of how the server behaved, as event kinds and details."""
        address = self.address
        found: list[tuple[str, dict[str, Any]]] = [
            (
                "parameter_left_out",
                {"model": address.model, "host": address.host, "parameter": name},
            )
            for name in self.left_out
        ]
        if self.breaker.parked:
            seconds, self.breaker.parked = round(self.breaker.parked, 3), 0.0
            found.append(("waiting_judge", {"host": address.host, "seconds": seconds}))
        return found

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def attempt(self, call: Asking, tries: Tries, *, probe: bool) -> float | None:
        """Post once, and keep what came in `tries`.

        Args:
            call: what is asked.
            tries: of the call; its time is spent.
            probe: whether this attempt tells if the server is back.

        Returns:
            Where another attempt may help, the seconds that the server asks to wait; else None.
        """
        try:
            await self._pace(call)
            began = time.monotonic()
            found, asked = await self._attempt(call, tries.left)
        except BaseException:
            if probe:
                self.breaker.abandoned()
            raise
        tries.left -= time.monotonic() - began
        if found.param and self._learn(found):
            self.breaker.succeeded()
            return await self.attempt(call, tries, probe=False)
        tries.keep(found)
        if found.kind != "ok":
            self.failures[found.kind] += 1
        if self._tokens and found.metered:
            self._tokens.give_back(call.tokens() - found.tokens_in - found.tokens_out)
        kind = KINDS[found.kind]
        if kind.again or found.kind == "timeout" or (kind.elsewhere and not self.alone):
            self.breaker.failed(probe=probe, pause=asked)
        elif probe or self.alone or not self.breaker.open:
            # A server that ends answers what it has begun; where others can answer, only a probe calls it well.
            self.breaker.succeeded()
        return asked if kind.again else None

    def pause(self, tries: Tries, asked: float) -> float | None:
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

    async def _pace(self, call: Asking) -> None:
        if self._calls:
            await self._calls.take()
        if self._tokens:
            await self._tokens.take(call.tokens())

    async def _attempt(self, call: Asking, left: float) -> tuple[Read, float]:
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

    async def _send(self, call: Asking) -> tuple[Read, float]:
        """Post once."""
        address, body = self.address, self._taken(call.body(self.address.model))
        data = json.dumps(body).encode()
        headers = self._headers
        if address.key:
            headers = headers | {"Authorization": f"Bearer {address.key.reveal()}"}
        session = self._open()
        async with session.post(
            address.endpoint(call.path), data=data, headers=headers, allow_redirects=False
        ) as response:
            content = await _bounded(response, address.largest)
            whole = len(content) <= address.largest
            if address.key:
                content = address.key.scrub(content)
            if not whole:
                response.close()
                return too_big(address.largest, content), 0.0
            found = call.read(response.status, content)
            if found.param and found.param not in body:
                found = replace(found, param="")  # it was not sent: without it nothing changes
            return self._as_asked(found), _retry_after(response.headers.get("Retry-After"))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            make_room(self.address.concurrency)
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

    def _taken(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a body without what the model was seen not to take."""
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
        told = f"{self.address.breaker} failures in a row"
        host = self.address.host
        self.say(
            f"waiting for {host}: {told}"
            if self.alone
            else f"{host} is left out until it is well: {told}"
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


def make_room(connections: int) -> None:
    """Let the process hold so many connections, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
