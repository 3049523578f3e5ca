"""What is asked of a server, and what comes of it, whoever makes the call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..types import Message, Status, Usage
from .address import Address
from .policy import Sampling
from .replies import KINDS, Read, clean, read

_CHARACTERS_A_TOKEN = 3.5
_SEEDS = 1 << 31
"""Some servers keep a seed in 32 bits."""
TOP = 20
"""Likeliest first tokens that are asked for where options are weighed; no server was seen to give more."""


class Asking(Protocol):
    """One request, of whatever kind."""

    @property
    def path(self) -> str:
        """Where it goes, below the address."""

    def body(self, model: str) -> dict[str, Any]:
        """Return what is posted."""

    def read(self, http: int, body: bytes) -> Read:
        """Understand the reply; whatever came, this returns."""

    def tokens(self) -> float:
        """Estimate the tokens read and written, for the pace."""

    def most(self) -> tuple[int, int]:
        """Return the most tokens that can be read and written."""


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

    @property
    def path(self) -> str:
        """Where chat completions are."""
        return "chat/completions"

    def body(self, model: str) -> dict[str, Any]:
        """Return what is posted."""
        sampling = self.sampling
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": m.role, "content": clean(m.content)} for m in self.messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if self.seed is not None:
            body["seed"] = self.seed % _SEEDS
        if self.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": dict(self.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.options:
            body |= {"structured_outputs": {"choice": list(self.options)}, "max_tokens": 1}
            body |= {"logprobs": True, "top_logprobs": TOP}
        return body

    def read(self, http: int, body: bytes) -> Read:
        """Understand a chat completion."""
        return read(http, body)

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
    told: Any = None
    """What else a reply of its kind says; see whoever reads that kind."""
    host: str = ""
    """Who gave the last reply."""
    attempts: int = 0
    unmetered: int = 0
    """Attempts that may have been billed and did not say so."""
    seconds: float = 0.0
    waiting: bool = False
    """The server was away for longer than patience lasts: the call says nothing about its task."""


@dataclass(slots=True)
class Tries:
    """What the attempts of one call have come to so far."""

    left: float
    """Seconds of the deadline."""
    count: int = 0
    """Attempts that count against the call."""
    made: int = 0
    unmetered: int = 0
    tokens: tuple[int, int, int] = (0, 0, 0)
    """Read, of these cached, written."""
    last: Read = field(default_factory=lambda: Read("unreachable", "not called: it was away"))
    began: float = field(default_factory=time.monotonic)

    def keep(self, found: Read) -> None:
        """Take note of an attempt."""
        self.last = found
        self.count += 1
        self.made += 1
        billed = KINDS[found.kind].billed or found.kind == "ok"
        self.unmetered += billed and not found.metered
        a, b, c = self.tokens
        self.tokens = (a + found.tokens_in, b + found.tokens_cached, c + found.tokens_out)

    def outcome(self, address: Address, *, waiting: bool = False) -> Outcome:
        """Sum up; `address` is the one of the last attempt."""
        found, price = self.last, address.price
        tokens_in, cached, out = self.tokens
        known = price is not None and not self.unmetered
        return Outcome(
            status=KINDS[found.kind].status,
            text=found.text,
            kind=found.kind,
            usage=Usage(
                model=found.model or address.model,
                tokens_in=tokens_in,
                tokens_out=out,
                dollars=price.of(tokens_in, out) if price and known else None,
            ),
            tokens_cached=cached,
            reply=found.raw,
            finish=found.finish,
            weighed=found.weighed,
            told=found.told,
            host=address.host,
            attempts=self.made,
            unmetered=self.unmetered,
            seconds=time.monotonic() - self.began,
            waiting=waiting,
        )


class Caller(Protocol):
    """Makes calls for a role: to one address, or to whichever of several is free."""

    @property
    def address(self) -> Address:
        """Whom it calls, and how; of several, all of them."""

    async def call(self, call: Asking) -> Outcome:
        """Make one call. Nothing that a server does raises here."""

    def news(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what is worth keeping of how the servers behaved since it was last asked, as event kinds and details."""

    async def close(self) -> None:
        """Hang up."""
