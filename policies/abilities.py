"""What a server can do beside answering: asked by short calls, because names and versions do not say.

A server that does not know a parameter refuses it or, as often, ignores it without a word. So each ability is
believed only where a reply shows it: a model held to options gives one of them though asked for something else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..errors import TryLater
from ..types import Message
from .calls import Call, Caller, Outcome
from .policy import Sampling
from .replies import Read, parsed
from .server import Reading, Spelling

Ability = Literal[
    "log_probs", "choice", "json_schema", "n", "seed", "token_ids", "prompt_log_probs"
]
ABILITIES: tuple[Ability, ...] = get_args(Ability)
TOLD: Mapping[Ability, str] = {
    "log_probs": "log-probs of the likeliest tokens (`top_logprobs`)",
    "choice": "replies held to options (`structured_outputs: {choice: [...]}`)",
    "json_schema": "replies held to a JSON Schema (`response_format`)",
    "n": "several samples of one call (`n`)",
    "seed": "the same sample for the same `seed`",
    "token_ids": "token ids (`return_token_ids`)",
    "prompt_log_probs": "log-probs of given tokens (`prompt_logprobs` of token ids)",
}
_OPTIONS = ("left", "right")
_PROBE = "Reply with the word blue."
_WORD = "zebra"
_AWAY = ("unreachable", "unavailable", "timeout", "rate_limited")


@dataclass(frozen=True, slots=True)
class Found:
    """What was seen of one ability."""

    level: int
    """0: it cannot. Else 1, and of `log_probs` how many likeliest tokens it tells."""
    why: str = ""
    """Where it cannot, what came instead."""


Abilities = Mapping[Ability, Found]


@dataclass(frozen=True, slots=True)
class Trial:
    """A conversation of one short turn, sent with parameters; an outcome tells the reply's object."""

    asked: str
    max_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where chat completions are."""
        return "chat/completions"

    def body(self, model: str) -> dict[str, Any]:
        """Return what is posted."""
        messages = [{"role": "user", "content": self.asked}]
        return {
            "model": model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": 1.0,
            **self.extra,
        }

    def read(self, http: int, body: bytes) -> Read:
        """Take the reply as it is; a parameter that is refused is an answer, and nothing to leave out."""
        data, _ = parsed(http, body)
        if isinstance(data, Read):
            return Read(data.kind, data.text, raw=data.raw)
        return Read("ok", told=data, model=str(data.get("model") or ""))

    def tokens(self) -> float:
        """Return the most tokens read and written."""
        return float(sum(self.most()))

    def most(self) -> tuple[int, int]:
        """Return the most tokens read and written."""
        return len(self.asked) + 16, self.max_tokens * int(self.extra.get("n", 1))


def cost(wanted: Sequence[Ability] = ABILITIES) -> tuple[int, int, int]:
    """Return the calls that it takes to ask for abilities, and the most tokens that they read and write."""
    most = [call.most() for ability in wanted for call in _CALLS[ability]]
    return len(most), sum(read for read, _ in most), sum(written for _, written in most)


async def abilities(caller: Caller, wanted: Sequence[Ability] = ABILITIES) -> Abilities:
    """Ask a server what it can do.

    Raises:
        TryLater: it does not answer.
    """
    found = await asyncio.gather(*(_SHOWN[ability](caller, _CALLS[ability]) for ability in wanted))
    return dict(zip(wanted, found, strict=True))


def least(each: Sequence[tuple[str, Abilities]]) -> Abilities:
    """Return what all servers of a pool can do; each is given with its host."""
    found: dict[Ability, Found] = {}
    for host, can in each:
        for ability, mine in can.items():
            before = found.get(ability)
            if before is None or mine.level < before.level:
                told = f"{host}: {mine.why}" if mine.why and len(each) > 1 else mine.why
                found[ability] = Found(mine.level, told)
    return found


# -- one ability each

Shown = Callable[[Caller, Sequence[Any]], Awaitable[Found]]


async def _made(caller: Caller, calls: Sequence[Any]) -> list[Outcome]:
    found = []
    for call in calls:
        outcome = await caller.call(call)
        if outcome.waiting or outcome.kind in _AWAY:
            raise TryLater(f"{caller.address.host} does not answer: {outcome.text}")
        found.append(outcome)
    return found


async def _weighs(caller: Caller, calls: Sequence[Any]) -> Found:
    [outcome] = await _made(caller, calls)
    if outcome.status != "ok":
        return Found(0, outcome.text)
    return Found(len(outcome.weighed), "" if outcome.weighed else "it tells none")


async def _chooses(caller: Caller, calls: Sequence[Any]) -> Found:
    [outcome] = await _made(caller, calls)
    return _one_of(outcome, _text(outcome), lambda text: text in _OPTIONS)


async def _keeps_schema(caller: Caller, calls: Sequence[Any]) -> Found:
    [outcome] = await _made(caller, calls)
    return _one_of(outcome, _text(outcome), _fits)


async def _samples(caller: Caller, calls: Sequence[Any]) -> Found:
    [outcome] = await _made(caller, calls)
    if outcome.status != "ok":
        return Found(0, outcome.text)
    choices = outcome.told.get("choices")
    count = len(choices) if isinstance(choices, list) else 0
    return Found(1) if count == 2 else Found(0, f"2 samples were asked for, {count} came")


async def _repeats(caller: Caller, calls: Sequence[Any]) -> Found:
    outcomes = await _made(caller, calls)
    if failed := next((outcome for outcome in outcomes if outcome.status != "ok"), None):
        return Found(0, failed.text)
    texts = {_text(outcome) for outcome in outcomes}
    return Found(1) if len(texts) == 1 else Found(0, "the same seed gave two samples")


async def _tells_ids(caller: Caller, calls: Sequence[Any]) -> Found:
    [outcome] = await _made(caller, calls)
    return Found(1) if outcome.status == "ok" else Found(0, outcome.text)


async def _reads_ids(caller: Caller, calls: Sequence[Any]) -> Found:
    [spelled] = await _made(caller, calls[:1])
    if spelled.status != "ok":
        return Found(0, spelled.text)
    ids = spelled.told
    if len(ids) < 2:
        return Found(0, f"it cuts {_PROBE!r} into {len(ids)} tokens")
    [outcome] = await _made(caller, [Reading(ids[:1], ids[1:], 1)])
    return Found(1) if outcome.status == "ok" else Found(0, outcome.text)


def _one_of(outcome: Outcome, text: str, fits: Callable[[str], bool]) -> Found:
    if outcome.status != "ok":
        return Found(0, outcome.text)
    return Found(1) if fits(text) else Found(0, f"it was ignored: {text[:80]!r}")


def _fits(text: str) -> bool:
    """Say whether a reply is the one that the schema allows, or begins it: white space may have used up its tokens."""
    said, whole = "".join(text.split()), json.dumps({"word": _WORD}, separators=(",", ":"))
    return len(said) > len(whole) // 2 and whole.startswith(said)


def _text(outcome: Outcome) -> str:
    """Return what the first choice of a reply says; empty for none."""
    try:
        return str(outcome.told["choices"][0]["message"]["content"] or "").strip()
    except (KeyError, IndexError, TypeError):
        return ""


_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"word": {"type": "string", "enum": [_WORD]}},
    "required": ["word"],
    "additionalProperties": False,
}
_HELD = {
    "type": "json_schema",
    "json_schema": {"name": "reply", "strict": True, "schema": _SCHEMA},
}
_SEEDED = Trial("Write ten random letters.", 12, {"seed": 11})
_CALLS: Mapping[Ability, Sequence[Any]] = {
    # As a judge asks that weighs options, so that what is seen here is what it will see.
    "log_probs": (Call((Message("user", _PROBE),), Sampling(1.0, 1.0, 0, 1), options=_OPTIONS),),
    "choice": (Trial(_PROBE, 8, {"structured_outputs": {"choice": list(_OPTIONS)}}),),
    "json_schema": (Trial(_PROBE, 32, {"response_format": _HELD}),),
    "n": (Trial(_PROBE, 2, {"n": 2}),),
    "seed": (_SEEDED, _SEEDED),
    "token_ids": (Spelling(_PROBE),),
    "prompt_log_probs": (Spelling(_PROBE), Spelling(_PROBE)),
}
"""The calls of each; of the last, the second one has the ids that the first one tells."""
_SHOWN: Mapping[Ability, Shown] = {
    "log_probs": _weighs,
    "choice": _chooses,
    "json_schema": _keeps_schema,
    "n": _samples,
    "seed": _repeats,
    "token_ids": _tells_ids,
    "prompt_log_probs": _reads_ids,
}
