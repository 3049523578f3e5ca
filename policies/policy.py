"""The noun *policy*: a model that acts. It samples, scores, chooses, and swaps its weights.

Batch in, batch out. Methods block; the loop calls them in the policy's own thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..types import FinishReason, Message, TokenIds
from .revision import Revision


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    max_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that is wanted."""

    prompt_ids: TokenIds
    seed: int
    """Seeds this row's own generator, so that its answer depends on no other row's draws."""
    schema: Mapping[str, Any] | None = None
    """JSON Schema that the answer must fit, where the engine can hold it to one; the others pay no heed."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One completion as the policy gave it."""

    text: str
    token_ids: TokenIds
    """As sampled, the end token included."""
    logprobs: tuple[float, ...]
    """Raw log-probs in nats, T = 1, before top-k and top-p."""
    finish_reason: FinishReason


class Policy(Protocol):
    """What the loop needs of a model. See `redistill.testing.PolicyConformance`."""

    @property
    def revision(self) -> str:
        """Content hash of the weights that are loaded; empty when none are."""

    @property
    def context_length(self) -> int:
        """Most tokens that prompt and answer may have together."""

    @property
    def vocabulary(self) -> str:
        """Hash of the map from tokens to ids; token ids of two policies mean the same if it is equal."""

    def encode(self, messages: Sequence[Message]) -> TokenIds:
        """Render a conversation with the policy's template, ready to be answered. Needs no weights.

        Whatever a message says, it never becomes a control token.
        """

    def spell(self, text: str) -> TokenIds:
        """Return the ids of a whole answer that somebody else wrote, end token included.

        Needs no weights; whatever the text says, only its end is a control token.
        """

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        """Answer each request, in the order given."""

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """Return the raw log-probs of each (prompt, completion)'s completion tokens."""

    def choose(self, prompts: Sequence[TokenIds], options: Sequence[str]) -> list[list[float]]:
        """Return for each prompt the probabilities of the options as the answer; each list sums to 1."""

    def load(self, revision: Revision) -> None:
        """Hold exactly these weights from now on."""

    def release(self) -> None:
        """Give back the memory of the weights; `load` brings them again."""

    def fingerprint(self) -> str:
        """Hash the tensors that are held now; equals `revision` unless a load went wrong."""


class Teaching(Policy, Protocol):
    """A policy that tells its distributions, so that others can be taught by them."""

    def distributions(
        self, pairs: Sequence[tuple[TokenIds, TokenIds]], k: int
    ) -> list[tuple[list[list[int]], list[list[float]]]]:
        """Return the `k` likeliest tokens at the place of each completion token, likeliest first, and their log-probs."""


@runtime_checkable
class Engined(Protocol):
    """A policy whose weights are in a process of its own."""

    @property
    def engine(self) -> str:
        """The engine's name and version."""

    def close(self) -> None:
        """End the process."""


@runtime_checkable
class Legible(Protocol):
    """What a policy with a tokenizer and a template also tells; one that does not is taken at its word."""

    def reread(self, text: str) -> str:
        """Return a text as its tokens spell it. Needs no weights."""

    def misrendered(self, messages: Sequence[Message], *, answered: bool) -> str:
        """Say what the template does to a conversation that it should not, or nothing. Needs no weights.

        Args:
            messages: what is asked.
            answered: whether it is also to be the beginning of what is rendered with an answer.
        """
