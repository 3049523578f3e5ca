"""What flows through a round: prompts, completions, judgements, preference pairs.

Frozen, with the laws that define them as methods. Nothing here knows a store, a model or a graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Split = Literal["train", "heldout", "test"]
FinishReason = Literal["stop", "length"]
Status = Literal["ok", "parse_error", "refused", "timeout", "error", "too_big", "not_applicable"]
TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """Return the shape that chat templates take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked, plus what its checker needs."""

    id: str
    messages: tuple[Message, ...]
    split: Split
    verify: Mapping[str, Any] | None = None
    """Checkers by name with their arguments, as the `verifier` judge reads them."""
    answer: str | None = None
    """The exact or mathematical answer, where there is one."""
    reference: str | None = None
    privileged: str | None = None
    """What a teacher may see and the student may not."""
    tags: tuple[str, ...] = ()
    """`key:value` labels, for example `form:quotes`."""
    source: str = ""
    licence: str = ""

    @property
    def text(self) -> str:
        """The last user turn, for people to read."""
        return self.messages[-1].content if self.messages else ""

    def tag(self, key: str) -> str | None:
        """Return the value of the first `key:value` tag, or None."""
        return next((t[len(key) + 1 :] for t in self.tags if t.startswith(f"{key}:")), None)


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of a policy, with the tokens that were really sampled."""

    id: str
    prompt_id: str
    text: str
    """The answer without its end token."""
    token_ids: TokenIds
    """As sampled, the end token included where the answer ended; empty where it was imported."""
    logprobs: tuple[float, ...]
    """Raw log-probs (T = 1, before truncation), one a token."""
    finish_reason: FinishReason
    revision: str
    """Content hash of the weights that spoke; empty where it was imported."""

    @property
    def ended(self) -> bool:
        """Whether the policy ended the answer itself; a cut answer is never chosen."""
        return self.finish_reason == "stop"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call to a model cost, and which one answered."""

    role: str = ""
    model: str = ""
    """The model that answered, by its own account; empty where its weights are here."""
    revision: str = ""
    """Content hash of the weights, where they are here."""
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float | None = None
    """None where no price is known."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said of one completion, or of several. A failure is a status, never a value."""

    value: float | None
    """In [0, 1]; None unless the status is `ok`."""
    status: Status = "ok"
    raw: float | None = None
    """The judge's own number, before it was brought into [0, 1]."""
    parts: Mapping[str, bool] = field(default_factory=dict)
    """Named parts of the verdict, kept beside the value."""
    text: str = ""
    """The judge's words, or the reason for its status."""
    ranks: tuple[int, ...] | None = None
    """Of a comparison: the rank of each candidate as presented; 1 is best, equal ranks are a tie."""
    probability: float | None = None
    """Of a comparison of two: that the first one presented is better, where the judge says so."""
    aspects: Mapping[str, float] = field(default_factory=dict)
    """Values in [0, 1] of single aspects, where the rubric asks for several."""
    reply: str = ""
    """The raw reply, as it came."""
    usage: Usage | None = None
    """What the call cost, also when its reply could not be parsed."""

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(
                f"a judgement's status is one of {get_args(Status)}, not {self.status!r}"
            )
        if self.status != "ok" and (self.value is not None or self.ranks is not None):
            raise ValueError(f"a judgement has a value only when it is ok: {self.status}")
        if self.status == "ok" and self.value is None and not self.ranks and not self.text:
            raise ValueError("a judgement that is ok says something: a value, ranks, or a text")
        if self.value is not None and not 0.0 <= self.value <= 1.0:
            raise ValueError(f"a judgement's value lies in [0, 1], not {self.value!r}")
        if self.raw is not None and not math.isfinite(self.raw):
            raise ValueError(f"a judgement's raw value is finite, not {self.raw!r}")
        if self.probability is not None and not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"a probability lies in [0, 1], not {self.probability!r}")
        if any(not 0.0 <= value <= 1.0 for value in self.aspects.values()):
            raise ValueError(f"an aspect's value lies in [0, 1]: {dict(self.aspects)!r}")

    @classmethod
    def failed(cls, status: Status, text: str, *, usage: Usage | None = None) -> Judgement:
        """Make the judgement of a judge that could not judge; a call that was billed stays billed."""
        return cls(value=None, status=status, text=text, usage=usage)

    @classmethod
    def ranked(cls, ranks: tuple[int, ...], *, probability: float | None = None) -> Judgement:
        """Make a comparison's verdict; of two, the value is 1, 0.5 or 0: how far the first one won."""
        value = None
        if len(ranks) == 2:
            value = 0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1])
        return cls(value=value, ranks=ranks, probability=probability)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, of which one is preferred."""

    prompt_id: str
    chosen: str
    """Completion id."""
    rejected: str
    """Completion id."""
    margin: float
    """Value of chosen less value of rejected."""
    probability: float = 1.0
    """How sure the label is."""

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError(f"a pair needs two completions, not {self.chosen!r} twice")
        if not 0.0 <= self.probability <= 1.0 or not math.isfinite(self.margin):
            raise ValueError(f"no label: margin {self.margin!r}, probability {self.probability!r}")

    def swap(self) -> Pair:
        """Return the opposite label: (chosen, rejected, p) equals (rejected, chosen, 1 - p)."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            margin=-self.margin,
            probability=1.0 - self.probability,
        )
