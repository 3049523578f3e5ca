"""Answers whose text, encoded again, gives other tokens than were sampled; the sampled ones are what trains."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..hashing import row_id
from ..store.store import Row, now
from .operator import Turn


async def respelt(turn: Turn, said: Sequence[Row]) -> list[Row]:
    """Return the event `respelt`: how many of the sampled answers that train would be encoded otherwise.

    Args:
        turn: where the run stands.
        said: the completions that train: `text`, `token_ids`, `trainable` and `finish_reason`.
    """
    # Of several turns the text does not say where one ends.
    sampled = [row for row in said if row["token_ids"] is not None and row["trainable"] is None]
    if not sampled:
        return []
    spell = turn.run.cast.student.spell
    other = 0
    for row in sampled:
        *own, _ = await turn.run.cast.call(spell, row["text"])
        ids = row["token_ids"]
        # Answers end with any of several stop tokens, and a cut one with none.
        other += own != list(ids[:-1] if row["finish_reason"] == "stop" else ids)
    detail = {"answers": len(sampled), "respelt": other, "share": other / len(sampled)}
    event: Row = {
        "id": row_id("event", kind="respelt", round=turn.round, step=turn.step),
        "round": turn.round,
        "step": turn.step,
        "kind": "respelt",
        "detail": json.dumps(detail),
        "created_at": now(),
    }
    return [event]
