"""What teachers think of answers that stand: taken once, stored, and read again by every later job."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, cast

from ..errors import BadInput
from ..hashing import content_hash
from ..policies.revision import Revision
from ..policies.server import Opinion
from ..store.store import Row, now
from ..trainers.distill import SELF
from ..types import TokenIds
from .job_files import named
from .operator import Turn
from .roles import STUDENT
from .speakers import remote

if TYPE_CHECKING:
    from ..policies.policy import Teaching

Pairs = Sequence[tuple[TokenIds, TokenIds]]
Thinking = Callable[[Pairs], Awaitable[list[Opinion]]]
_LEAST_MASS = 0.8
"""Share of a teacher's probability that its likeliest tokens must have, or what is learned is mostly the rest."""
_AT_ONCE = 64
"""Answers that a teacher is asked about in one call."""


async def think(turn: Turn, rows: Sequence[Row], teachers: Mapping[str, Revision], k: int) -> None:
    """Fill in each row's `top_ids` and `top_logprobs`; what no teacher was asked before is asked now, and stored.

    Args:
        turn: of the train step.
        rows: of answers that stand; changed in place.
        teachers: the revision of each, by the name that rows have.
        k: tokens at each place.

    Raises:
        BadInput: the likeliest tokens have too little of the teacher's probability.
    """
    for name, revision in teachers.items():
        mine = [row for row in rows if row["teacher"] == name]
        known = _stored(turn, revision.id, k, [row["completion_id"] for row in mine])
        missing = [row for row in mine if _key(row) not in known]
        asked = await _ask(turn, name, revision, missing, k)
        known |= {
            (r["completion_id"], r["context"]): (r["top_ids"], r["top_logprobs"]) for r in asked
        }
        for row in mine:
            ids, logprobs = known[_key(row)]
            row["top_ids"] = [place[:k] for place in ids]
            row["top_logprobs"] = [place[:k] for place in logprobs]
        if mine:
            _check_mass(turn, name, mine, k)


def _check_mass(turn: Turn, name: str, rows: Sequence[Row], k: int) -> None:
    places = [place for row in rows for place in row["top_logprobs"]]
    mass = fmean(sum(map(math.exp, place)) for place in places)
    turn.run.progress.note(
        f"round {turn.round}: {name}'s {k} likeliest tokens have {mass:.1%} of it"
    )
    if mass < _LEAST_MASS:
        told = f"{name}'s {k} likeliest tokens have {mass:.0%} of its probability"
        raise BadInput.at(f"{turn.step}.top_k", told, "take more of them")


def _key(row: Row) -> tuple[str, str]:
    """Name an answer by its id and by what the teacher sees before it."""
    return row["completion_id"], _context(row)


def _context(row: Row) -> str:
    return content_hash(row["teacher_prompt_ids"] or row["prompt_ids"])


def _stored(
    turn: Turn, revision: str, k: int, completions: Sequence[str]
) -> dict[tuple[str, str], tuple[list[list[int]], list[list[float]]]]:
    rows = turn.run.store.rows(
        """
        SELECT completion_id::VARCHAR AS completion_id, context, top_ids, top_logprobs
        FROM token_distribution
        WHERE revision = ? AND len(top_ids[1]) >= ? AND list_contains(?, completion_id::VARCHAR)
        """,
        [revision, k, list(completions)],
    )
    return {(r["completion_id"], r["context"]): (r["top_ids"], r["top_logprobs"]) for r in rows}


async def _teacher(turn: Turn, name: str, revision: Revision, k: int) -> Thinking:
    """Return what tells a teacher's opinions of pairs: its server, or its weights on this machine."""
    cast_ = turn.run.cast
    if name != SELF and cast_.servers.serve(name):
        return lambda pairs: remote(turn).opinions(name, pairs, k)
    which = STUDENT if name == SELF else named(turn, name)[0]
    held = await cast_.hold(which, revision, turn.run.store, turn.round)
    # A plugin, which may be no teacher, is refused when the recipe is read.
    policy = cast("Teaching", held)

    async def think_of(pairs: Pairs) -> list[Opinion]:
        told = await cast_.call(policy.distributions, pairs, k)
        scored = await cast_.call(policy.score, pairs)
        return [Opinion(own, *each) for each, own in zip(told, scored, strict=True)]

    return think_of


async def _ask(turn: Turn, name: str, revision: Revision, rows: Sequence[Row], k: int) -> list[Row]:
    run, found = turn.run, list[Row]()
    if not rows:
        return found
    think_of = await _teacher(turn, name, revision, k)
    for begin in range(0, len(rows), _AT_ONCE):
        part = rows[begin : begin + _AT_ONCE]
        pairs = [
            (tuple(r["teacher_prompt_ids"] or r["prompt_ids"]), tuple(r["completion_ids"]))
            for r in part
        ]
        made = [
            {
                "completion_id": row["completion_id"],
                "round": turn.round,
                "step": turn.step,
                "revision": revision.id,
                "context": _context(row),
                "logprobs": list(each.logprobs),
                "top_ids": each.top_ids,
                "top_logprobs": each.top_logprobs,
                "created_at": now(),
            }
            for row, each in zip(part, await think_of(pairs), strict=True)
        ]
        # A transaction of its own: what a teacher was asked once is known even if the step is never finished.
        keys = content_hash([revision.id, k, [_key(row) for row in part]])
        run.store.commit(
            {"token_distribution": made},
            round=turn.round,
            step=f"{turn.step}:thought:{keys}",
            chunk=0,
        )
        found += made
    return found
