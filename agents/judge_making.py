"""Making a judge inside a round: rows are frozen, a job trains on them, and an exam lets the judge in or ends the round."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..hashing import row_id
from ..store.store import Row, now
from ..trainers.trainer import Trainer
from .job_files import revision_named, write_job
from .judge import let_go
from .judge_rows import PAIRS, conversations, trained_event
from .judges.trained import Trained
from .operator import Advance, Turn
from .pair_exam import held_back, sit
from .speakers import Speakers
from .training import run_job

KEPT_BACK = "held_back"
"""Kind of the event that names the pairs that were held back."""


@dataclass(frozen=True, slots=True)
class Making:
    """How a judge is made."""

    of: str
    """The step whose pairs it learns."""
    start: str
    """The student's weights that it begins from: champion or initial."""
    called: str
    """The trainer's name as the recipe has it."""
    trainer: Trainer
    held_back: float
    """Share of the prompts whose pairs examine it."""
    most_cut: float
    """Share of the round's answers that may be cut."""


async def make_judge(turn: Turn, making: Making) -> Advance:
    """Freeze the rows, run the job, let the judge sit its exam: three super-steps.

    Where nothing is published, or the exam does not prove the judge and the recipe does not allow that, the round ends.
    """
    if turn.cursor == 0:
        if not turn.done:
            await _freeze(turn, making)
        return Advance(1)
    if turn.cursor == 1:
        made = await run_job(turn, making.called, making.trainer, making.most_cut)
        return Advance(2) if made else Advance(None, ends=True)
    if not turn.done:
        await _examine(turn, making)
    [exam] = turn.run.store.rows(
        "SELECT verdict FROM admission WHERE round = ? AND step = ?", [turn.round, turn.step]
    )
    return Advance(None, ends=exam["verdict"] != "admitted" and not turn.run.unproven)


async def _freeze(turn: Turn, making: Making) -> None:
    """Write the job's folder, the rows that it trains on, and which pairs it will never see."""
    began = time.monotonic()
    found = _pairs(turn, making)
    apart = held_back([pair["prompt_id"] for pair in found], making.held_back, turn.run.seed)
    learned = [pair for pair in found if pair["prompt_id"] not in apart]
    rows = [_training_row(turn, place, pair) for place, pair in enumerate(learned)]
    start = revision_named(turn, making.start)
    spoken = await asyncio.to_thread(conversations, start.folder, learned)
    dataset = [said | {"id": row["id"]} for said, row in zip(spoken, rows, strict=True)]
    write_job(turn, (making.called, making.trainer), start, dataset)
    kept = [pair["id"] for pair in found if pair["prompt_id"] in apart]
    event = _place(turn, KEPT_BACK) | {
        "kind": KEPT_BACK,
        "detail": json.dumps({"of": making.of, "pairs": kept}),
        "created_at": now(),
    }
    turn.run.progress.note(
        f"round {turn.round}: {len(rows)} pairs frozen for {turn.step}, {len(kept)} held back"
    )
    turn.commit({"training_row": rows, "event": [event]}, time.monotonic() - began)


async def _examine(turn: Turn, making: Making) -> None:
    """Ask the new judge about the pairs that were held back, and write what came of it."""
    began = time.monotonic()
    [frozen] = turn.run.store.rows(
        "SELECT detail FROM event WHERE round = ? AND step = ? AND kind = ?",
        [turn.round, turn.step, KEPT_BACK],
    )
    kept = set(json.loads(frozen["detail"])["pairs"])
    pairs = [pair for pair in _pairs(turn, making) if pair["id"] in kept]
    judge = Trained(step=turn.step).bound(Speakers(turn))
    rows, found = await sit(turn, judge, pairs, making.of)
    let_go(judge)
    [made] = turn.run.store.rows(
        "SELECT revision, rows, steps, dataset_hash FROM training_run WHERE round = ? AND step = ?",
        [turn.round, turn.step],
    )
    of: dict[str, Any] = {"dataset_hash": made["dataset_hash"], "held_back": len(pairs)}
    place = _place(turn, "judge_trained")
    rows["event"] = [trained_event(place, making.trainer, made, of)]
    turn.run.progress.note(f"round {turn.round}: {turn.step} {found.told()}")
    turn.commit(rows, time.monotonic() - began)


def _pairs(turn: Turn, making: Making) -> Sequence[Row]:
    return turn.run.store.rows(PAIRS, [[making.of], turn.round])


def _place(turn: Turn, kind: str) -> Row:
    identifier = row_id("event", run=turn.run.key, kind=kind, round=turn.round, step=turn.step)
    return {"id": identifier, "round": turn.round, "step": turn.step}


def _training_row(turn: Turn, place: int, pair: Row) -> Row:
    parents = [pair["chosen_id"], pair["rejected_id"]]
    run = row_id("training_run", run=turn.run.key, round=turn.round, step=turn.step)
    return {
        "id": row_id("training_row", round=turn.round, step=turn.step, parents=parents),
        "round": turn.round,
        "step": turn.step,
        "split": "train",
        "training_run_id": run,
        "position": place,
        "prompt_id": pair["prompt_id"],
        "completion_id": pair["chosen_id"],
        "rejected_id": pair["rejected_id"],
        "pair_id": pair["id"],
        "weight": pair["weight"],
        "margin": pair["margin"],
        "probability": pair["probability"],
        "tokens_from": "encoded",
        "created_at": now(),
    }
