"""Reference log-probs of training rows: stored ones where they are valid, else from one pass of the reference.

Stored log-probs serve where the revision and the exact prompt token ids are the reference's own; then iterative
DPO needs no reference pass. Every other completion is scored once. A sample of the stored ones is scored too, and
when the engine disagrees with itself beyond its noise, all are scored anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..hashing import row_id
from ..policies.precision import NOISE, precision_held
from ..policies.revision import Revision
from ..store.store import Row, now
from ..types import TokenIds
from .operator import Turn
from .roles import STUDENT

_CHECKED_SHARE = 0.01
_CHECKED_LEAST = 4

Asked = tuple[str, str]
"""prompt.id and the completion.id that is scored as an answer to it."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A completion with what the policy saw when it spoke."""

    token_ids: TokenIds
    logprob: float
    """Raw log-prob of the whole completion, nats."""
    revision: str
    saw: TokenIds
    """Empty where nobody here rendered it."""
    encoded: bool = False
    """Whether the ids were made from the text, because a server gave none."""
    trainable: Sequence[bool] | None = None
    """Which tokens the policy spoke itself; None for all."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference log-probs by what was asked, and where each is from."""

    revision: str
    logprobs: Mapping[Asked, float]
    sources: Mapping[Asked, str]
    events: Sequence[Row]
    """What was not as it should be."""

    def source(self, *asked: Asked) -> str:
        """Return where the log-probs of a row are from: stored, where all of them are."""
        return "stored" if {self.sources[a] for a in asked} == {"stored"} else "scored"


async def refer(
    turn: Turn,
    revision: Revision,
    asked: Sequence[Asked],
    spoken: Mapping[str, Spoken],
    prompts: Mapping[Asked, TokenIds],
) -> Reference:
    """Return the reference log-prob of every completion that is asked for.

    Args:
        turn: of the train step.
        revision: of the reference.
        asked: what is wanted; the same twice is scored once.
        spoken: completions by id.
        prompts: the training prompt of each.
    """
    every = list(dict.fromkeys(asked))
    stored = {
        a for a in every if spoken[a[1]].revision == revision.id and spoken[a[1]].saw == prompts[a]
    }
    count = min(len(stored), max(_CHECKED_LEAST, int(len(stored) * _CHECKED_SHARE)))
    checked = sorted(stored)[:count]
    missing = sorted(set(every) - stored)
    measured = await _score(turn, revision, [*checked, *missing], spoken, prompts)
    off = [abs(measured[a] - spoken[a[1]].logprob) / len(spoken[a[1]].token_ids) for a in checked]
    worst = max(off, default=0.0)
    events = []
    bound = NOISE[precision_held(revision)]
    if worst > bound:
        events = [_stale(turn, worst, bound, len(stored))]
        stored = set()
        measured = await _score(turn, revision, sorted(every), spoken, prompts)
    logprobs = measured | {a: spoken[a[1]].logprob for a in stored}
    sources = {a: "stored" if a in stored else "scored" for a in every}
    return Reference(revision.id, logprobs, sources, events)


async def _score(
    turn: Turn,
    revision: Revision,
    asked: Sequence[Asked],
    spoken: Mapping[str, Spoken],
    prompts: Mapping[Asked, TokenIds],
) -> dict[Asked, float]:
    if not asked:
        return {}
    run = turn.run
    policy = await run.cast.hold(STUDENT, revision, run.store, turn.round)
    pairs = [(prompts[a], spoken[a[1]].token_ids) for a in asked]
    scored = await run.cast.call(policy.score, pairs)
    return {a: float(sum(logprobs)) for a, logprobs in zip(asked, scored, strict=True)}


def _stale(turn: Turn, worst: float, bound: float, rows: int) -> Row:
    detail = {"worst_nats_a_token": worst, "bound": bound, "rescored": rows}
    return {
        "id": row_id("event", kind="reference_rescored", round=turn.round, step=turn.step),
        "round": turn.round,
        "step": turn.step,
        "kind": "reference_rescored",
        "detail": json.dumps(detail),
        "created_at": now(),
    }
