"""The noun *address*: where a model answers over HTTP, with which key, how fast, and for how much.

A key is named by `env:NAME` and never written anywhere: it goes into one header of requests to the host of
its own address, and whatever comes back is searched for it before anybody else sees it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from ..errors import BadInput

_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_LEAST_KEY = 8
"""Characters; a shorter key would be found in innocent text, and its scrubbing would garble that."""


class Secret:
    """A key that shows itself to nobody by accident: not in a repr, a pickle, a format or a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def named(cls, spec: str, where: str) -> Secret:
        """Read the key that `env:NAME` names.

        Raises:
            BadInput: the spec is not of that form, or the variable holds no key. The value is never told.
        """
        if fault := key_fault(spec):
            raise BadInput.at(where, *fault)
        name = spec.removeprefix("env:")
        value = os.environ.get(name, "").strip()
        if not value:
            raise BadInput.at(
                where, f"the environment variable {name} is not set", f"export {name}"
            )
        if len(value) < _LEAST_KEY or not value.isascii() or not value.isprintable():
            raise BadInput.at(where, f"the environment variable {name} holds no key")
        return cls(value)

    def reveal(self) -> str:
        """Return the key, for the one header that needs it."""
        return self._value

    def scrub(self, data: bytes) -> bytes:
        """Return bytes in which the key is blotted out, as when a server repeats it in its error."""
        return data.replace(self._value.encode(), b"***")

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled")


def key_fault(spec: str) -> tuple[str, str] | None:
    """Return what is wrong with how a key is named, and what to do; the spec itself may be the key."""
    if _ENV.fullmatch(spec):
        return None
    return "a key is never written in a recipe", "write `key: env:NAME` and export NAME"


def is_address(policy: str) -> bool:
    """Say whether a policy is an address, and no model of this machine."""
    return policy.startswith(("http://", "https://"))


def is_pool(policy: str) -> bool:
    """Say whether a policy is several addresses of one model."""
    return is_address(policy) and " " in policy


def address_fault(url: str) -> tuple[str, str] | None:
    """Return what is wrong with an address, and what to do."""
    example = "write it as http://host:port/v1"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error), example
    if parts.username or parts.password:
        return "an address holds no user name or password", "give the key as `key: env:NAME`"
    if not parts.hostname or parts.query or parts.fragment or port == 0:
        return f"{url!r} is no address of a server", example
    return None


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for a million tokens."""

    read: float
    written: float

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """Return the dollars of one call."""
        return (tokens_in * self.read + tokens_out * self.written) / 1e6


@dataclass(frozen=True, slots=True)
class Address:
    """A model behind an OpenAI-compatible address, and how to treat it. Times are in seconds."""

    url: str
    """One address, or those of a pool with spaces between them."""
    model: str
    key: Secret | None = None
    concurrency: int = 64
    """Calls in flight; of a pool, at each address, as are the next two."""
    rpm: int | None = None
    """Calls a minute."""
    tpm: int | None = None
    """Tokens a minute, read and written."""
    deadline: float = 120.0
    """Of one call, all its attempts and the pauses between them included; waiting in line is not. Of a pool, at
    each address that it hangs at."""
    price: Price | None = None
    answers_as: str | None = None
    """Name by which the server calls the model in its replies, where it is another than `model`."""
    attempts: int = 5
    backoff: float = 0.5
    """Longest first pause; doubled with each attempt, and drawn between 0 and that."""
    longest_pause: float = 60.0
    """Cap of every pause, `Retry-After` included."""
    breaker: int = 5
    """Failures in a row after which nobody calls until a probe has got through."""
    slowest_probe: float = float("inf")
    """Cap of the pause between two probes, where it is to be a shorter one than that of other pauses."""
    patience: float = 900.0
    """How long a server may be away before its calls are given up as `waiting`."""
    largest: int = 16 << 20
    """Bytes of a reply; more is `too_big`, and of it only how it begins and a hash are kept."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Each address."""
        return tuple(self.url.split())

    @property
    def host(self) -> str:
        """Host and port, for people and for the `charge` table; of a pool, all of them."""
        return ", ".join(urlsplit(url).netloc for url in self.urls)

    def endpoint(self, path: str) -> str:
        """Return the URL of one of its paths."""
        return f"{self.url.rstrip('/')}/{path}"


_PROVIDERS = (
    "anthropic azure_ai azure_openai bedrock bedrock_converse cohere deepseek fireworks google_genai "
    "google_vertexai groq huggingface ibm mistralai nvidia ollama openai perplexity together "
    "upstage xai"
)
PROVIDERS = frozenset(_PROVIDERS.split())
"""Hosted services that LangChain's `init_chat_model` knows, by its own names."""


def is_provider(policy: str) -> bool:
    """Say whether a policy is `provider:model`, a hosted model that LangChain is to call."""
    provider, colon, model = policy.partition(":")
    return bool(colon and model) and provider in PROVIDERS


def is_remote(policy: str) -> bool:
    """Say whether a policy runs elsewhere."""
    return is_address(policy) or is_provider(policy)
