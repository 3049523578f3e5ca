"""Answers that a program has edited: rewrites without a role, a rendered prompt or token ids.

Where such an answer trains, its text is encoded with the student's tokenizer, as a remote one's is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..hashing import row_id
from ..policies.policy import Sampling
from ..store.store import Row, content
from .answer import Answered, Asked, facts, worded
from .judges import edits
from .judges.program import wanted
from .operator import Turn

PROGRAM = "program"
"""What stands in a completion's `role`."""
MODEL = f"smallest_edit {edits.VERSION}"
"""What stands in its `model`."""


async def edited(turn: Turn, asked: Sequence[Asked]) -> Answered:
    """Edit answers until their checkers pass; what passes already, or cannot be edited so, is left out."""
    rows: dict[str, list[Row]] = {"completion": [], "content": []}
    completions = []
    for a in asked:
        # Aside: an answer of many words takes a second, in which the loop has other calls to mind.
        text = await asyncio.to_thread(_edit, a)
        if text is None:
            continue
        kept = content(text, turn.round)
        row = facts(turn, PROGRAM, a, Sampling(), None)
        row |= {"id": _id(turn, a), "text_hash": kept["hash"]}
        row, said = worded(row, a.prompt, text, model=MODEL, revision=None)
        rows["completion"].append(row)
        rows["content"].append(kept)
        completions.append((a.prompt, said))
    return Answered(rows, completions)


def _edit(asked: Asked) -> str | None:
    verify = wanted(asked.prompt)
    return edits.smallest_edit(verify, asked.told[0].content) if verify else None


def _id(turn: Turn, asked: Asked) -> str:
    return row_id(
        "completion",
        run=turn.run.key,
        round=turn.round,
        step=turn.step,
        parents=[asked.prompt.id, asked.parent_id],
        model=MODEL,
        slot=asked.slot,
        attempt=0,
    )
