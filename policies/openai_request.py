"""A request in OpenAI's shape as what a policy understands; what cannot be done is refused by name.

Nothing is left out in silence: a parameter that this server does not know, or knows and cannot honour, is a
400 that names it, so that a client can leave it out itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..types import Message, TokenIds
from .policy import Sampling

MOST_CHOICES = 128
"""Answers to one request."""
DEFAULT_TOKENS = 256
"""`max_tokens` where none is said."""
_LENGTH = ("max_completion_tokens", "max_tokens")
_MOST_STOPS = 16
_MOST_TOP = 20
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_BOTH = "model n temperature top_p top_k max_tokens seed stop stream stream_options logprobs user metadata store"
_KNOWN = {
    "chat": frozenset(
        f"{_BOTH} messages top_logprobs max_completion_tokens structured_outputs".split()
    ),
    "text": frozenset(f"{_BOTH} prompt".split()),
}
_NEUTRAL: Mapping[str, Any] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "echo": False,
    "best_of": 1,
    "suffix": "",
    "response_format": {"type": "text"},
    "parallel_tool_calls": True,
}
"""Parameters that are not supported, each with the value that asks for nothing."""


class Refusal(Exception):
    """A request that is not answered, in OpenAI's words.

    Args:
        message: one sentence for people.
        param: the parameter at fault.
        code: a word for programs.
        status: of HTTP.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for."""

    messages: tuple[Message, ...]
    """Of a chat; empty for a text."""
    prompts: tuple[str | TokenIds, ...]
    """Of a text; empty for a chat."""
    n: int
    sampling: Sampling
    bounded: bool
    """Whether it says how long an answer may be; else that is as long as fits, up to `DEFAULT_TOKENS`."""
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    usage_in_stream: bool
    logprobs: bool
    top: int
    """Likeliest tokens that are told at each place."""
    options: tuple[str, ...]
    """Answers to choose from; empty where the answer is free."""


def parse(body: bytes, kind: str, name: str) -> Wanted:
    """Read the body of a request.

    Args:
        body: JSON.
        kind: `chat` or `text`.
        name: of the model that is served.

    Raises:
        Refusal: it asks for what there is not.
    """
    asked = _object(body)
    _check_names(asked, kind)
    if asked.get("model") != name:
        what = f"the model {asked.get('model')!r} does not exist; {name!r} is served here"
        raise Refusal(what, "model", "model_not_found", 404)
    chat = kind == "chat"
    top = _whole(asked, "top_logprobs" if chat else "logprobs", 0, _MOST_TOP, 0)
    if chat and top and not asked.get("logprobs"):
        raise Refusal("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
    return Wanted(
        messages=_messages(asked.get("messages")) if chat else (),
        prompts=() if chat else _prompts(asked.get("prompt")),
        n=_whole(asked, "n", 1, MOST_CHOICES, 1),
        sampling=Sampling(
            temperature=_number(asked, "temperature", 0.0, 2.0, 1.0),
            top_p=_number(asked, "top_p", 0.0, 1.0, 1.0) or math.ulp(0.0),
            top_k=max(0, _whole(asked, "top_k", -1, 1 << 20, 0)),
            max_tokens=_max_tokens(asked),
        ),
        bounded=any(asked.get(key) is not None for key in _LENGTH),
        seed=None if asked.get("seed") is None else _whole(asked, "seed", -(1 << 63), 1 << 63, 0),
        stop=_stops(asked.get("stop")),
        stream=_flag(asked, "stream"),
        usage_in_stream=_flag(asked.get("stream_options") or {}, "include_usage"),
        logprobs=_flag(asked, "logprobs") if chat else asked.get("logprobs") is not None,
        top=top,
        options=_options(asked.get("structured_outputs")),
    )


def _object(body: bytes) -> dict[str, Any]:
    def no_constant(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    try:
        found = json.loads(body.decode("utf-8"), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is no JSON: {error}", code="invalid_json") from error
    if not isinstance(found, dict):
        raise Refusal("the body is no JSON object", code="invalid_json")
    return found


def _check_names(asked: Mapping[str, Any], kind: str) -> None:
    for name, value in asked.items():
        if name in _KNOWN[kind] or value is None or _NEUTRAL.get(name, ...) == value:
            continue
        what = f"{name} is not supported by this server"
        raise Refusal(what, name, "unsupported_parameter")


def _number(asked: Mapping[str, Any], name: str, low: float, high: float, without: float) -> float:
    value = asked.get(name)
    if value is None:
        return without
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:
        raise Refusal(f"{name} must be a number from {low:g} to {high:g}", name, "invalid_value")
    return float(value)


def _whole(asked: Mapping[str, Any], name: str, low: int, high: int, without: int) -> int:
    value = asked.get(name)
    if value is None:
        return without
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        what = f"{name} must be a whole number from {low} to {high}"
        raise Refusal(what, name, "invalid_value")
    return value


def _flag(asked: Any, name: str) -> bool:
    value = asked.get(name) if isinstance(asked, dict) else None
    if value is None:
        return False
    if not isinstance(value, bool):
        raise Refusal(f"{name} must be true or false", name, "invalid_type")
    return value


def _max_tokens(asked: Mapping[str, Any]) -> int:
    said = [
        _whole(asked, name, 1, 1 << 20, DEFAULT_TOKENS)
        for name in _LENGTH
        if asked.get(name) is not None
    ]
    return min(said, default=DEFAULT_TOKENS)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise Refusal("messages must be a list of turns", "messages", "invalid_type")
    return tuple(_message(turn, f"messages[{place}]") for place, turn in enumerate(value))


def _message(turn: Any, where: str) -> Message:
    role = turn.get("role") if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise Refusal(
            f"{where}: the role is one of {', '.join(_ROLES)}", "messages", "invalid_value"
        )
    content = turn.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise Refusal(f"{where}: the content must be text", "messages", "invalid_type")
    return Message(_ROLES[role], content)


def _prompts(value: Any) -> tuple[str | TokenIds, ...]:
    """Read one text, one list of token ids, or a list of either."""
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    good = isinstance(value, list) and value and len(value) <= MOST_CHOICES
    if not good or not all(isinstance(one, str) or _is_ids(one) for one in value):
        raise Refusal("prompt must be text or token ids", "prompt", "invalid_type")
    return tuple(one if isinstance(one, str) else tuple(one) for one in value)


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)
    )


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    good = isinstance(stops, list) and len(stops) <= _MOST_STOPS
    if not good or not all(isinstance(stop, str) and stop for stop in stops):
        raise Refusal(f"stop must be text, or at most {_MOST_STOPS} texts", "stop", "invalid_value")
    return tuple(stops)


def _options(value: Any) -> tuple[str, ...]:
    """Read the answers to choose from, as vLLM takes them."""
    if value is None:
        return ()
    options: Sequence[Any] | None = value.get("choice") if isinstance(value, dict) else None
    good = isinstance(options, list) and len(value) == 1 and len(set(map(str, options))) > 1
    if not good or not all(isinstance(option, str) and option for option in options or ()):
        what = "structured_outputs is not supported by this server, but for {choice: [texts]}"
        raise Refusal(what, "structured_outputs", "unsupported_parameter")
    return tuple(options or ())
