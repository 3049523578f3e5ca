"""The noun *speaker*: whoever speaks for a role, whether its weights are here or behind an address.

A judge that is a model asks a speaker and never knows where the model runs: the student, the student at
another revision, a teacher of this machine, a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..policies.policy import Sampling
from ..types import Completion, Message, Status, Usage

J = TypeVar("J")


@dataclass(frozen=True, slots=True)
class Ask:
    """One conversation to be answered."""

    messages: tuple[Message, ...]
    seed: int
    schema: Mapping[str, Any] | None = None
    """JSON Schema that the reply must fit, where the role can be held to one."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; a failure is a status, and what it cost is known all the same."""

    text: str
    status: Status = "ok"
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Weighed:
    """Probabilities of given options as the reply, one an option; they sum to 1 unless it failed."""

    probabilities: tuple[float, ...]
    status: Status = "ok"
    reason: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """An answer that somebody gave to a conversation."""

    messages: tuple[Message, ...]
    answer: Completion
    tags: tuple[str, ...] | None = None
    """Of the prompt that the conversation is: a role's worked examples are then shown before it, as to one who answers."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Raw log-probs of a given answer, in nats, one a token; empty where it failed."""

    logprobs: tuple[float, ...]
    status: Status = "ok"
    reason: str = ""
    usage: Usage | None = None


class Speaker(Protocol):
    """Speaks for the roles of a run."""

    async def say(self, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
        """Answer each conversation, in the order given."""

    async def choose(self, role: str, asks: Sequence[Ask], options: Sequence[str]) -> list[Weighed]:
        """Return how likely each option is as the reply to each conversation."""

    async def logprobs(self, role: str, given: Sequence[Given]) -> list[Measured]:
        """Return the raw log-probs of each token of given answers; only a role with weights here can."""


def bind(judge: J, speaker: Speaker) -> J:
    """Return the judge ready to speak; a judge that is a program is returned as it is."""
    bound: Callable[[Speaker], J] | None = getattr(judge, "bound", None)
    return bound(speaker) if bound else judge
