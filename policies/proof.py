"""Which weights spoke? An engine is believed after it has answered the canary of its revision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from ..types import TokenIds
from .precision import LEAST_NOISE, NOISE, precision_held
from .revision import Canary, Revision, Verdict, check_canary

_RECITED = 8
"""Tokens of each canary that an engine answers one by one, after a prompt that is longer than a cache block."""
_FAR = 1e6
"""Stands for a distance that is not finite, so that a proof can be stored as JSON."""


class Answerer(Protocol):
    """The part of a policy that a proof needs."""

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """Return the raw log-probs of each (prompt, completion)'s completion tokens."""

    def fingerprint(self) -> str:
        """Hash the tensors that are held now."""


@runtime_checkable
class Reciter(Protocol):
    """An engine that reads a prompt in one way when it scores and in another when it answers."""

    def recite(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """Return the same as `score`, each token as the engine has it when it answers."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of asking a policy for its canary, ready to be stored as an event."""

    verdict: Literal["ok", "wrong"]
    """What is to be done about it: `wrong` stops the run."""
    canary: Verdict
    """What the log-probs say alone; where `inconclusive`, the tensor fingerprint gave the verdict."""
    d_new: float
    """Mean absolute distance to the revision's canary, nats a token; 0 where it has none."""
    d_parent: float | None
    """The same to the parent's canary."""
    noise: float
    """Mean absolute difference of the policy's own answers in two batchings, nats a token."""


def prove(policy: Answerer, revision: Revision, parent: Revision | None) -> Proof:
    """Ask a policy which weights it holds.

    Args:
        policy: any policy that was told to load `revision`.
        revision: what it should hold.
        parent: what it held before, or what the revision was trained from; the weights with which it
            would answer if the load had done nothing.
    """
    precision = precision_held(revision)
    expected, least = revision.canary, LEAST_NOISE[precision]
    if expected is None:
        return Proof(_by_fingerprint(policy, revision), "inconclusive", 0.0, None, least)
    measured, noise = _ask(policy, expected.sequences, least)
    older = _comparable(parent, revision)
    ways = [(measured, expected, older)]
    if isinstance(policy, Reciter):
        ends = [None if c is None else c.ends(_RECITED) for c in (expected, older)]
        ways.append((_recited(policy, expected.sequences), ends[0] or expected, ends[1]))
    verdicts = [check_canary(said, new, old, noise) for said, new, old in ways]
    # An engine that contradicts itself would set its own tolerance.
    canary = "wrong" if noise > NOISE[precision] else _worst(verdicts)
    apart = [said.distance(old) for said, _, old in ways if old is not None]
    return Proof(
        verdict=_by_fingerprint(policy, revision) if canary == "inconclusive" else canary,
        canary=canary,
        d_new=_bounded(max(said.distance(new) for said, new, _ in ways)),
        d_parent=_bounded(min(apart)) if apart else None,
        noise=noise,
    )


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    if "wrong" in verdicts:
        return "wrong"
    return "inconclusive" if "inconclusive" in verdicts else "ok"


def _recited(policy: Reciter, sequences: Sequence[TokenIds]) -> Canary:
    """Return how an engine answers the ends of the canary, which it cannot do out of the older weights' cache."""
    pairs = [(tuple(s[:-_RECITED]), tuple(s[-_RECITED:])) for s in sequences]
    return Canary(tuple(sequences), tuple(policy.recite(pairs)))


def _ask(policy: Answerer, sequences: Sequence[TokenIds], least: float) -> tuple[Canary, float]:
    """Return the policy's answers, and how much they move, at least, when nothing but the padding changes."""
    pairs = [(tuple(s[:1]), tuple(s[1:])) for s in sequences]
    together = Canary(tuple(sequences), tuple(policy.score(pairs)))
    alone = Canary(tuple(sequences), tuple(policy.score([pair])[0] for pair in pairs))
    noise = together.distance(alone)
    return together, max(least, noise if math.isfinite(noise) else least)


def _comparable(parent: Revision | None, revision: Revision) -> Canary | None:
    """Return the parent's canary, where it is of other weights and was asked the same."""
    if (
        parent is None
        or parent.id == revision.id
        or parent.canary is None
        or revision.canary is None
    ):
        return None
    return parent.canary if parent.canary.sequences == revision.canary.sequences else None


def _by_fingerprint(policy: Answerer, revision: Revision) -> Literal["ok", "wrong"]:
    return "ok" if policy.fingerprint() == revision.id else "wrong"


def _bounded(distance: float) -> float:
    return min(distance, _FAR) if math.isfinite(distance) else _FAR
