"""The rows of a policy that samples while it trains: the prompts of the round, as it will see them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..hashing import row_id
from ..store.store import Row, now
from ..trainers.sampling import Sampler
from ..types import Prompt
from .dataset import Sources
from .job_files import revision_named, write_job
from .operator import Turn


async def prepare_prompts(turn: Turn, trainer: Sampler, sources: Sources) -> dict[str, list[Row]]:
    """Write the job's folder; what it trains on becomes rows while it samples.

    A prompt that leaves no room for an answer is parked as an event, and the others go on.
    """
    student = turn.run.cast.student
    room = student.context_length - trainer.max_tokens
    fitting: list[Row] = []
    events: list[Row] = []
    for prompt in _prompts(turn, sources.step):
        ids = await turn.run.cast.call(student.encode, prompt.messages)
        if len(ids) > room:
            events.append(_too_long(turn, prompt, room))
        else:
            fitting.append({"id": prompt.id, "prompt_ids": list(ids), "weight": 1.0})
    start = revision_named(turn, sources.start)
    reference = start
    if sources.reference != "start":
        reference = revision_named(turn, sources.reference)
    held = {"reference": reference} if trainer.anchored else {}
    write_job(
        *(turn, (sources.trainer, trainer), start, fitting),
        reference=reference.id if trainer.anchored else None,
        held=held,
    )
    return {"event": events}


def _prompts(turn: Turn, step: str) -> Sequence[Prompt]:
    """Return the round's prompts, or those of them that a select step has kept an answer to."""
    prompts = turn.run.round_prompts(turn.round)
    if not step:
        return prompts
    rows = turn.run.store.rows(
        "SELECT DISTINCT prompt_id::VARCHAR AS id FROM selection WHERE round = ? AND step = ?",
        [turn.round, step],
    )
    kept = {row["id"] for row in rows}
    return [prompt for prompt in prompts if prompt.id in kept]


def _too_long(turn: Turn, prompt: Prompt, room: int) -> Row:
    return {
        "id": row_id("event", kind="too_long", round=turn.round, step=turn.step, prompt=prompt.id),
        "round": turn.round,
        "step": turn.step,
        "kind": "too_long",
        "detail": json.dumps({"prompt_id": prompt.id, "room": room}),
        "created_at": now(),
    }
