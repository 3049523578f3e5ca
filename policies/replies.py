"""Reading what a chat server sent: every reply, however wrong, has a kind, and every kind a status."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..types import Status

_SURROGATES = re.compile("[\ud800-\udfff]")
_SHOWN = 200
"""Characters of an unexpected reply that its reason quotes."""
KEPT = 1 << 16
"""Characters of a raw reply that are kept."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What follows from a kind of outcome."""

    status: Status = "error"
    again: bool = False
    """Whether another attempt may help."""
    away: bool = False
    """Whether the server, and not this call, is at fault; waiting then costs the call no attempt."""
    billed: bool = False
    """Whether it may have been billed without saying so."""
    elsewhere: bool = False
    """Whether another server of the same model may well do better, though this one would not."""


KINDS: Mapping[str, Kind] = {
    "ok": Kind("ok"),
    "unreachable": Kind(again=True, away=True),
    "reset": Kind(again=True, billed=True),
    "cut_body": Kind(again=True, billed=True),
    "rate_limited": Kind(again=True, away=True),
    "unavailable": Kind(again=True, away=True),
    "server_error": Kind(again=True),
    "timeout": Kind("timeout", billed=True),
    "too_big": Kind("too_big", billed=True),
    "too_long": Kind("too_big"),
    "unauthorized": Kind(elsewhere=True),
    "not_found": Kind(elsewhere=True),
    "bad_request": Kind(),
    "redirect": Kind(elsewhere=True),
    "not_json": Kind(billed=True, elsewhere=True),
    "no_reply": Kind(elsewhere=True),
    "error_in_ok": Kind(elsewhere=True),
    "empty": Kind("parse_error"),
    "refused": Kind("refused"),
    "other_model": Kind(elsewhere=True),
}


@dataclass(frozen=True, slots=True)
class Read:
    """A reply as it was understood."""

    kind: str
    text: str = ""
    """What the model said; of a failure, why."""
    model: str = ""
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0
    metered: bool = False
    """Whether the reply says what it cost in tokens."""
    finish: str = ""
    weighed: tuple[tuple[str, float], ...] = ()
    """Most likely first tokens with their log-probs, where they were asked for."""
    told: Any = None
    """What else a reply of its kind says."""
    raw: str = ""
    param: str = ""
    """Parameter that the server does not take, where it says so."""


def read(http: int, body: bytes) -> Read:
    """Understand a chat completion.

    Args:
        http: status code.
        body: all of it, with the key blotted out.
    """
    data, text = parsed(http, body)
    return data if isinstance(data, Read) else _answered(data, text)


def parsed(http: int, body: bytes) -> tuple[Mapping[str, Any] | Read, str]:
    """Return the object of a reply of any kind, or what is wrong with it; and the reply's text."""
    text = body.decode("utf-8", "replace")
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        data = None
    if http != 200:
        return _failed(http, text, data), text
    if not isinstance(data, dict):
        told = f"200 with no JSON object: {quoted(text)}"
        return Read("not_json", told, raw=text[:KEPT]), text
    if data.get("error"):
        return _error_in_ok(data["error"], text), text
    return data, text


def clean(text: str) -> str:
    """Replace lone surrogates, which neither a store nor a tokenizer takes."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def too_big(largest: int, body: bytes) -> Read:
    """Return what is kept of a reply that is larger than it may be: how it begins, and a hash.

    Args:
        largest: bytes that it may have.
        body: as much of it as was read.
    """
    head, digest = body[:largest], hashlib.sha256(body[:largest]).hexdigest()
    text = head[:KEPT].decode("utf-8", "replace")
    told = (
        f"a reply of more than {largest} bytes, the sha256 of so many is {digest}: {quoted(text)}"
    )
    return Read("too_big", told, raw=clean(text))


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def quoted(text: str) -> str:
    """Return how a text begins, for a reason."""
    return repr(clean(text[:_SHOWN]))


def _failed(http: int, text: str, data: Any) -> Read:
    """Tell an HTTP failure's kind."""
    said = _message(data) or text
    reason = f"HTTP {http}: {quoted(said)}"
    kind = http_kind(http)
    if kind == "redirect":
        reason = f"HTTP {http}: redirects are not followed, so that no key leaves"
    if kind == "bad_request" and _TOO_LONG.search(said):
        kind = "too_long"
    param = _param(data, said) if http in (400, 422) else ""
    return Read(kind, reason, raw=clean(text[:KEPT]), param=param)


def http_kind(status: int) -> str:
    """Return the kind of an HTTP status that is no 200."""
    known = {401: "unauthorized", 403: "unauthorized", 404: "not_found", 429: "rate_limited"}
    if status in known:
        return known[status]
    if status in (408, 425, 502, 503, 504, 529):
        return "unavailable"
    if 300 <= status < 400:
        return "redirect"
    return "server_error" if status >= 500 else "bad_request"


_TOO_LONG = re.compile(r"context.?length|maximum context|too many tokens|prompt is too long", re.I)
_NOT_TAKEN = re.compile(
    r"unsupported|not support|not permitted|not allowed|unrecognized|unknown|unexpected|extra inputs"
    r"|only the default|deprecated|invalid schema",
    re.I,
)
PARAMETERS = (
    "response_format",
    "structured_outputs",
    "max_completion_tokens",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "top_logprobs",
    "logprobs",
    "seed",
)


def _param(data: Any, said: str) -> str:
    """Return the parameter that a 400 says the model does not take; empty for another fault."""
    error = data.get("error") if isinstance(data, dict) else None
    fields = error if isinstance(error, dict) else {}
    if not _NOT_TAKEN.search(f"{fields.get('code', '')} {fields.get('type', '')} {said}"):
        return ""
    named = str(fields.get("param") or "").partition(".")[0]
    if named in PARAMETERS:
        return named
    # The first one named: "use max_completion_tokens instead" names the other one after it.
    found = [(said.index(p), -len(p), p) for p in PARAMETERS if re.search(rf"\b{p}\b", said)]
    return min(found)[2] if found else ""


def _message(data: Any) -> str:
    """Return the words of an error, in the shapes that servers give it."""
    if not isinstance(data, dict):
        return ""
    error = data.get("error", data)
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else json.dumps(error)[:2000]


def _error_in_ok(error: Any, text: str) -> Read:
    """An error in a 200, as gateways send it: by its own code, where it has one."""
    code = error.get("code") if isinstance(error, dict) else None
    inner = _failed(code, text, {"error": error}) if isinstance(code, int) and code >= 400 else None
    kind = inner.kind if inner and KINDS[inner.kind].again else "error_in_ok"
    return Read(kind, f"an error in a 200: {quoted(_message({'error': error}))}", raw=text[:KEPT])


def _answered(data: Mapping[str, Any], text: str) -> Read:
    """Read a 200 that is a JSON object; the tokens are known even where the reply is of no use."""
    tokens_in, cached, out, metered = usage_of(data.get("usage"))
    said = data.get("model")
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    finish, kind = "", "no_reply"
    weighed: tuple[tuple[str, float], ...] = ()
    what = f"200 without a reply: {quoted(text)}"
    if isinstance(choice, dict) and isinstance(message, dict):
        finish = str(choice.get("finish_reason") or "")
        kind, what = _spoken(message, finish)
        weighed = _weighed(choice.get("logprobs"))
    return Read(
        kind=kind,
        text=clean(what),
        model=clean(said) if isinstance(said, str) else "",
        tokens_in=tokens_in,
        tokens_cached=cached,
        tokens_out=out,
        metered=metered,
        finish=finish,
        weighed=weighed,
        raw=clean(text[:KEPT]),
    )


def _spoken(message: Mapping[str, Any], finish: str) -> tuple[str, str]:
    refusal, content = message.get("refusal"), message.get("content")
    if isinstance(refusal, str) and refusal:
        return "refused", refusal
    if finish == "content_filter":
        return "refused", "the server's content filter stopped it"
    if isinstance(content, list):  # the parts of newer dialects
        parts = [p.get("text") for p in content if isinstance(p, dict)]
        content = "".join(p for p in parts if isinstance(p, str))
    if isinstance(content, str) and content.strip():
        return "ok", content
    return "empty", f"an empty reply (finish reason {finish or 'unknown'!r})"


def usage_of(usage: Any) -> tuple[int, int, int, bool]:
    """Return tokens read, of these cached, tokens written with those of reasoning, and whether it says.

    Most servers count reasoning among the completion's tokens; some only in the total, some beside it.
    """
    if not isinstance(usage, dict):
        return 0, 0, 0, False
    read_, out = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    total = _count(usage.get("total_tokens"))
    details = usage.get("completion_tokens_details")
    thought = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
    if total > read_ + out:
        out = total - read_
    elif thought > out:
        out += thought
    asked = usage.get("prompt_tokens_details")
    cached = _count(asked.get("cached_tokens")) if isinstance(asked, dict) else 0
    return read_, min(cached, read_), out, bool(read_ or out)


def _count(value: Any) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
    return value if good else 0


def _weighed(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """Return the most likely first tokens with their log-probs; what is no number is left out."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    top: Sequence[Any] = first.get("top_logprobs") or () if isinstance(first, dict) else ()
    found = [(t.get("token"), t.get("logprob")) for t in top if isinstance(t, dict)]
    return tuple(
        (token, float(value))
        for token, value in found
        if isinstance(token, str) and isinstance(value, int | float) and math.isfinite(value)
    )
