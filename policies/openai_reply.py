"""Replies in OpenAI's shape: whole or as a stream, of a chat or of a text."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..types import TokenIds
from .policy import Generation

Told = tuple[str, float, Sequence[tuple[str, float]]]
"""A token: its text, its log-prob, and the likeliest in its place with theirs."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer, as it is told."""

    text: str
    finish: str
    tokens: int
    """That were sampled."""
    told: Sequence[Told] = ()
    """Of each token: text, log-prob, and the likeliest in its place."""


def choice_of(said: Generation, told: Sequence[Told]) -> Choice:
    """Return an answer as it is told."""
    return Choice(said.text, said.finish_reason, len(said.token_ids), told)


def cut(choice: Choice, stops: Sequence[str]) -> Choice:
    """End an answer before the first of some texts."""
    places = [place for stop in stops if (place := choice.text.find(stop)) >= 0]
    if not places:
        return choice
    text, told, written = choice.text[: min(places)], [], 0
    for token in choice.told:
        if written >= len(text):
            break
        told.append(token)
        written += len(token[0])
    return replace(choice, text=text, finish="stop", told=told)


def usage_of(prompts: Sequence[TokenIds], choices: Sequence[Choice]) -> dict[str, int]:
    """Return the tokens that were read and sampled."""
    read, written = sum(map(len, prompts)), sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


class Shape(ABC):
    """How answers are told. The system's fingerprint is the revision that spoke."""

    prefix = ""
    kinds = ("", "")
    """Of a whole answer, and of a part of one."""

    def __init__(self, name: str, revision: str) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": revision,
        }

    def frame(self, choices: Sequence[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """Return what surrounds choices."""
        return self._head | {"object": self.kinds[chunk], "choices": list(choices)}

    def whole(
        self, choices: Sequence[Choice], usage: dict[str, int], *, logprobs: bool
    ) -> dict[str, Any]:
        """Return the reply to a request."""
        told = [
            {"index": index, "finish_reason": choice.finish, **self.said(choice, logprobs=logprobs)}
            for index, choice in enumerate(choices)
        ]
        return self.frame(told, chunk=False) | {"usage": usage}

    @abstractmethod
    def said(self, choice: Choice, *, logprobs: bool) -> dict[str, Any]:
        """Return what a choice says, whole."""

    @abstractmethod
    def parts(self, choices: Sequence[Choice], *, logprobs: bool) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream."""


class ChatShape(Shape):
    """Of chat completions."""

    prefix = "chatcmpl"
    kinds = ("chat.completion", "chat.completion.chunk")

    def said(self, choice: Choice, *, logprobs: bool) -> dict[str, Any]:
        """Return what a choice says, whole."""
        message = {"role": "assistant", "content": choice.text}
        return {"message": message, "logprobs": self._told(choice) if logprobs else None}

    def parts(self, choices: Sequence[Choice], *, logprobs: bool) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream."""
        for index, choice in enumerate(choices):
            told = self._told(choice) if logprobs else None
            for delta, finish, also in (
                ({"role": "assistant", "content": ""}, None, None),
                ({"content": choice.text}, None, told),
                ({}, choice.finish, None),
            ):
                part = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": also}
                yield self.frame([part], chunk=True)

    @staticmethod
    def _told(choice: Choice) -> dict[str, Any]:
        def entry(text: str, value: float) -> dict[str, Any]:
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        return {
            "content": [
                entry(text, value) | {"top_logprobs": [entry(*other) for other in likeliest]}
                for text, value, likeliest in choice.told
            ],
            "refusal": None,
        }


class TextShape(Shape):
    """Of completions of a text."""

    prefix = "cmpl"
    kinds = ("text_completion", "text_completion")

    def said(self, choice: Choice, *, logprobs: bool) -> dict[str, Any]:
        """Return what a choice says, whole."""
        return {"text": choice.text, "logprobs": self._told(choice) if logprobs else None}

    def parts(self, choices: Sequence[Choice], *, logprobs: bool) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream."""
        for index, choice in enumerate(choices):
            part = {"index": index, "finish_reason": choice.finish}
            yield self.frame([part | self.said(choice, logprobs=logprobs)], chunk=True)

    @staticmethod
    def _told(choice: Choice) -> dict[str, Any]:
        starts = [0]
        for text, *_ in choice.told:
            starts.append(starts[-1] + len(text))
        return {
            "tokens": [text for text, *_ in choice.told],
            "token_logprobs": [value for _, value, _ in choice.told],
            "top_logprobs": [dict(likeliest) for *_, likeliest in choice.told],
            "text_offset": starts[:-1],
        }
