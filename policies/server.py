"""A model behind an address that reads token ids, and says how likely it finds each of them.

vLLM does, at `/completions`: a prompt may be token ids, and `prompt_logprobs` tells the log-probs of its tokens
and the likeliest ones in their places. So a served model can teach one that has the same vocabulary.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import BadInput, TryLater
from ..types import TokenIds
from .address import Address
from .calls import Asking, Caller, Outcome
from .policy import Policy
from .pool import Pool
from .replies import KEPT, Read, clean, parsed, quoted, usage_of
from .transport import Client

T = TypeVar("T")
_NONE = -9000.0
"""Nats. Servers write -9999 for what is no finite number."""
SPELLED = (
    "The 3 quick brown foxes paid $1,250.75; they'd never jumped over thirteen lazy dogs\n"
    "\tdef area(width, height): return width * height  # naïve façade, Übermut, Привет, 你好, 🙂"
)
"""What two tokenizers do not cut into the same ids by chance."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a model thinks of a completion's tokens."""

    logprobs: tuple[float, ...]
    """Raw, in nats, one a token."""
    top_ids: list[list[int]]
    """The likeliest tokens in the place of each, likeliest first."""
    top_logprobs: list[list[float]]


@dataclass(frozen=True, slots=True)
class Reading:
    """Given tokens, of which a model is to say what it thinks; an outcome tells an `Opinion`."""

    prompt_ids: TokenIds
    completion_ids: TokenIds
    k: int = 0
    """Likeliest tokens that are wanted in each place."""

    @property
    def path(self) -> str:
        """Where completions of token ids are."""
        return "completions"

    def body(self, model: str) -> dict[str, Any]:
        """Return what is posted; one token is written, because no server writes none."""
        return _completion(model, [*self.prompt_ids, *self.completion_ids], self.k)

    def read(self, http: int, body: bytes) -> Read:
        """Understand the reply."""
        return _told(http, body, self._opinion)

    def tokens(self) -> float:
        """Return the tokens read and written."""
        return float(sum(self.most()))

    def most(self) -> tuple[int, int]:
        """Return the tokens read and written."""
        return len(self.prompt_ids) + len(self.completion_ids), 1

    def _opinion(self, choice: Mapping[str, Any]) -> Opinion | str:
        sent = [*self.prompt_ids, *self.completion_ids]
        if choice.get("prompt_token_ids", sent) != sent:
            return "it read other tokens than were sent"
        places = choice.get("prompt_logprobs")
        if not isinstance(places, list) or len(places) != len(sent):
            return "it tells no log-probs of the prompt's tokens"
        logprobs, ids, likeliest = [], [], []
        for token, place in zip(self.completion_ids, places[len(self.prompt_ids) :], strict=True):
            known = _place(place)
            if known.get(token, -math.inf) <= _NONE:
                return f"it tells no finite log-prob of token {token}"
            logprobs.append(known[token])
            best = sorted(known, key=lambda i: (-known[i], i))[: self.k]
            if len(best) < self.k:
                return f"it tells {len(best)} of the {self.k} likeliest tokens"
            ids.append(best)
            likeliest.append([known[i] for i in best])
        return Opinion(tuple(logprobs), ids, likeliest)


@dataclass(frozen=True, slots=True)
class Spelling:
    """A text that a server is to cut into tokens; an outcome tells a tuple of ids."""

    text: str

    @property
    def path(self) -> str:
        """Where completions of a text are."""
        return "completions"

    def body(self, model: str) -> dict[str, Any]:
        """Return what is posted."""
        return _completion(model, self.text, 0) | {"add_special_tokens": False}

    def read(self, http: int, body: bytes) -> Read:
        """Understand the reply."""
        return _told(http, body, _spelled)

    def tokens(self) -> float:
        """Return the most tokens read and written."""
        return float(sum(self.most()))

    def most(self) -> tuple[int, int]:
        """Return the most tokens read and written."""
        return len(self.text.encode()), 1


def _completion(model: str, prompt: str | list[int], k: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": k,
        "return_token_ids": True,
    }


def _told(http: int, body: bytes, of: Callable[[Mapping[str, Any]], T | str]) -> Read:
    """Read a completion of the kind that is not a conversation's; a text in place of a value says what is wrong."""
    data, text = parsed(http, body)
    if isinstance(data, Read):
        return data
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    found = of(choice) if isinstance(choice, dict) else f"200 without a completion: {quoted(text)}"
    tokens_in, cached, out, metered = usage_of(data.get("usage"))
    said = data.get("model")
    wrong = isinstance(found, str)
    return Read(
        kind="no_reply" if wrong else "ok",
        text=str(found) if wrong else "",
        model=clean(said) if isinstance(said, str) else "",
        tokens_in=tokens_in,
        tokens_cached=cached,
        tokens_out=out,
        metered=metered,
        told=None if wrong else found,
        raw=clean(text[:KEPT]) if wrong else "",
    )


def _place(place: Any) -> dict[int, float]:
    """Return the log-probs of a place by token id; what is no number is left out."""
    found = {}
    for name, each in place.items() if isinstance(place, dict) else ():
        value = each.get("logprob") if isinstance(each, dict) else None
        if isinstance(value, int | float) and math.isfinite(value) and name.isdecimal():
            found[int(name)] = float(value)
    return found


def _spelled(choice: Mapping[str, Any]) -> TokenIds | str:
    ids = choice.get("prompt_token_ids")
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        return "it does not say which token ids it reads (`return_token_ids`)"
    return tuple(ids)


async def strange(caller: Caller, reader: Policy) -> str:
    """Say why a served model does not read the tokens of a policy, or nothing where it does.

    Args:
        caller: whoever calls the model; of a pool, one of its servers is asked.
        reader: has the tokenizer; needs no weights.

    Raises:
        TryLater: the server is away.
    """
    found = await caller.call(Spelling(SPELLED))
    if found.waiting or found.kind == "unreachable":
        raise TryLater(f"{caller.address.host} does not answer: {found.text}")
    return differs(found, reader.spell(SPELLED))


def differs(found: Outcome, spelled: TokenIds) -> str:
    """Say why a server's `Spelling` of a text is not that of a policy, end token included; nothing where it is."""
    if found.status != "ok":
        return found.text
    same = found.told == spelled[:-1]
    return "" if same else "it cuts a text into other token ids: its vocabulary is another one"


def caller_of(address: Address, say: Callable[[str], None] = lambda _: None) -> Caller:
    """Return who calls an address, or those of a pool."""
    return Pool(address, say) if len(address.urls) > 1 else Client(address, say)


class ServerPolicy:
    """The part of `redistill.policies.policy.Teaching` that a served model can do: `score` and `distributions`.

    Args:
        address: where it is; it must tell token ids and log-probs of the prompt, as vLLM does.
        reader: a policy of the same vocabulary, whose tokenizer and template are used; needs no weights.

    Raises:
        BadInput: the vocabulary is another one, or the server does not say.
        TryLater: the server is away.
    """

    def __init__(self, address: Address, reader: Policy) -> None:
        self._address = address
        self.encode, self.spell = reader.encode, reader.spell
        self.vocabulary = reader.vocabulary
        if why := self._with(lambda caller: strange(caller, reader)):
            raise BadInput.at(address.url, why, "use a model that has the student's own tokens")

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """Return the raw log-probs of each (prompt, completion)'s completion tokens."""
        return [opinion.logprobs for opinion in self._opinions(pairs, 0)]

    def distributions(
        self, pairs: Sequence[tuple[TokenIds, TokenIds]], k: int
    ) -> list[tuple[list[list[int]], list[list[float]]]]:
        """Return the `k` likeliest tokens at the place of each completion token, likeliest first, and their log-probs."""
        return [(each.top_ids, each.top_logprobs) for each in self._opinions(pairs, k)]

    def _opinions(self, pairs: Sequence[tuple[TokenIds, TokenIds]], k: int) -> list[Opinion]:
        """Ask about pairs, all of them together.

        Raises:
            BadInput: one of them has no answer; the server's reason is told.
            TryLater: the server is away.
        """
        asked: list[Asking] = [Reading(*pair, k) for pair in pairs]

        async def work(caller: Caller) -> list[Outcome]:
            return await asyncio.gather(*(caller.call(each) for each in asked))

        return opinions(self._with(work), self._address, self._address.url)

    def _with(self, work: Callable[[Caller], Any]) -> Any:
        """Work with somebody who calls the address, in an event loop of its own."""

        async def opened() -> Any:
            caller = caller_of(self._address)
            try:
                return await work(caller)
            finally:
                await caller.close()

        return asyncio.run(opened())


def opinions(found: Sequence[Outcome], address: Address, where: str) -> list[Opinion]:
    """Return what readings told.

    Raises:
        BadInput: one has no answer; `where` is the key to look at.
        TryLater: the server is away.
    """
    for outcome in found:
        if outcome.waiting or outcome.kind == "unreachable":
            raise TryLater(f"{address.host} does not answer: {outcome.text}")
        if outcome.status != "ok":
            hint = "vLLM tells so many with --max-logprobs N" if "logprobs" in outcome.text else ""
            raise BadInput.at(where, f"{outcome.host}: {outcome.text}", hint)
    return [outcome.told for outcome in found]
