"""Asking a judge and keeping all that it said: the one way in which judgements come into the store."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from ..hashing import row_id
from ..store.store import Row, content, now
from ..types import Completion, Judgement, Prompt
from .judge import Comparer, Critic, Judge, JudgeTask, Mode, Scorer, needs_group
from .operator import Turn

Rows = dict[str, list[Row]]


async def judge_chunk(
    turn: Turn,
    judge: Scorer,
    answers: Sequence[tuple[Prompt, Completion]],
    among: Sequence[Completion] = (),
) -> Rows:
    """Let a judge score completions, and return the rows that say so.

    Args:
        turn: where the run stands.
        judge: ready to speak.
        answers: this chunk's completions with their prompts.
        among: all that are scored in the step, in the order of their ids: a chunk may split the samples of a
            prompt, and a judge that needs the group sees all of it.
    """
    began = time.monotonic()
    groups: dict[str, list[Completion]] = {}
    for completion in among if needs_group(judge) else ():
        groups.setdefault(completion.prompt_id, []).append(completion)
    tasks = [
        JudgeTask(p, c, tuple(other for other in groups.get(p.id, ()) if other.id != c.id))
        for p, c in answers
    ]
    verdicts = await judge.score(tasks)
    return _rows(turn, judge, "score", list(zip(tasks, verdicts, strict=True)), began)


async def compare_chunk(turn: Turn, judge: Comparer, tasks: Sequence[JudgeTask]) -> Rows:
    """Let a judge rank completions, and return the rows that say so."""
    began = time.monotonic()
    verdicts = await judge.compare(tasks)
    return _rows(turn, judge, "compare", list(zip(tasks, verdicts, strict=True)), began)


async def critique_chunk(
    turn: Turn, judge: Critic, answers: Sequence[tuple[Prompt, Completion]]
) -> Rows:
    """Let a judge say what is wrong with completions, and return the rows that say so."""
    began = time.monotonic()
    tasks = [JudgeTask(prompt, completion) for prompt, completion in answers]
    verdicts = await judge.critique(tasks)
    return _rows(turn, judge, "critique", list(zip(tasks, verdicts, strict=True)), began)


def person_rows(
    turn: Turn,
    judge: Judge,
    mode: Mode,
    task: JudgeTask,
    verdict: Judgement,
    who: str,
    seconds: float,
) -> Rows:
    """Return the rows of what a person has said; who it was stands where a model's role does."""
    rows = _rows(turn, judge, mode, [(task, verdict)], time.monotonic())
    rows["judgement"] = [row | {"role": who, "seconds": seconds} for row in rows["judgement"]]
    return rows


def _rows(
    turn: Turn, judge: Judge, mode: Mode, found: Sequence[tuple[JudgeTask, Judgement]], began: float
) -> Rows:
    seconds = (time.monotonic() - began) / max(1, len(found))
    rows: Rows = {"judgement": [], "content": []}
    for task, verdict in found:
        texts = {"text_hash": verdict.text, "reply_hash": verdict.reply}
        hashes: Row = {}
        for column, text in texts.items():
            kept = content(text, turn.round) if text else None
            hashes[column] = kept["hash"] if kept else None
            rows["content"] += [kept] if kept else []
        facts = _facts(turn, judge, mode, task) | _said(verdict) | hashes | {"seconds": seconds}
        rows["judgement"].append(facts)
        rows["judgement"] += [
            _aspect(turn, judge, task, facts, aspect, value)
            for aspect, value in verdict.aspects.items()
        ]
    return rows


def judgement_id(turn: Turn, judge: Judge, mode: Mode, task: JudgeTask, **also: Any) -> str:
    """Return the id of a judgement: what was asked of whom, never what came."""
    if mode != "score":
        also["mode"] = mode
    return row_id(
        "judgement",
        round=turn.round,
        step=turn.step,
        parents=[completion.id for completion in task.candidates],
        judge=judge.revision,
        attempt=0,
        **also,
    )


def _facts(turn: Turn, judge: Judge, mode: Mode, task: JudgeTask) -> Row:
    compared = mode == "compare"
    return {
        "id": judgement_id(turn, judge, mode, task),
        "round": turn.round,
        "step": turn.step,
        "mode": mode,
        "completion_id": None if compared else task.completion.id,
        "presented": [c.id for c in task.candidates] if compared else None,
        "judge": judge.name,
        "judge_revision": judge.revision,
        "aspect": "",
        "attempt": 0,
        "created_at": now(),
    }


def _said(verdict: Judgement) -> Row:
    usage = verdict.usage
    return {
        "status": verdict.status,
        "value": verdict.value,
        "raw": verdict.raw,
        "ranks": list(verdict.ranks) if verdict.ranks else None,
        "probability": verdict.probability,
        "parts": json.dumps(dict(verdict.parts)),
        "role": (usage.role or None) if usage else None,
        "revision": (usage.revision or None) if usage else None,
        "tokens_in": usage.tokens_in if usage else None,
        "tokens_out": usage.tokens_out if usage else None,
        "dollars": usage.dollars if usage else None,
    }


def _aspect(
    turn: Turn, judge: Judge, task: JudgeTask, facts: Row, aspect: str, value: float
) -> Row:
    """Make the row of one aspect; what the call cost stands in the row of the whole alone."""
    unpaid = dict.fromkeys(("tokens_in", "tokens_out", "dollars", "text_hash", "reply_hash"))
    identifier = judgement_id(turn, judge, "score", task, aspect=aspect)
    alone = {"id": identifier, "aspect": aspect, "value": value, "raw": value, "parts": "{}"}
    return facts | unpaid | alone | {"seconds": 0.0}
