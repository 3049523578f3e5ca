"""Asking a judge and keeping all that it said: the one way in which judgements come into the store."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from ..hashing import row_id
from ..store.store import Row, content, now
from ..types import Completion, Judgement, Prompt
from .judge import Judge, JudgeTask
from .operator import Turn


async def judge_chunk(
    turn: Turn, judge: Judge, answers: Sequence[tuple[Prompt, Completion]]
) -> dict[str, list[Row]]:
    """Let a judge score completions, and return the rows that say so."""
    began = time.monotonic()
    verdicts = await judge.score([JudgeTask(prompt, completion) for prompt, completion in answers])
    seconds = (time.monotonic() - began) / max(1, len(answers))
    rows: dict[str, list[Row]] = {"judgement": [], "content": []}
    for (_, completion), verdict in zip(answers, verdicts, strict=True):
        words = content(verdict.text, turn.round) if verdict.text else None
        if words:
            rows["content"].append(words)
        facts = _facts(turn, judge, completion, verdict)
        rows["judgement"].append(
            facts | {"text_hash": words["hash"] if words else None, "seconds": seconds}
        )
    return rows


def _facts(turn: Turn, judge: Judge, completion: Completion, verdict: Judgement) -> Row:
    identifier = row_id(
        "judgement",
        round=turn.round,
        step=turn.step,
        parents=[completion.id],
        judge=judge.revision,
        attempt=0,
    )
    return {
        "id": identifier,
        "round": turn.round,
        "step": turn.step,
        "mode": "score",
        "aspect": "",
        "completion_id": completion.id,
        "judge": judge.name,
        "judge_revision": judge.revision,
        "attempt": 0,
        "status": verdict.status,
        "value": verdict.value,
        "raw": verdict.raw,
        "parts": json.dumps(dict(verdict.parts)),
        "created_at": now(),
    }
