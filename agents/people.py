"""Waiting for people: a step whose judge is a person parks its run until the verdicts are there.

Verdicts are rows of the store, with the ids that the step would have given them. So the graph holds none of
them: it only looks whether any is missing, and interrupts itself with the step's name and their number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from langgraph.config import get_config
from langgraph.types import interrupt

from ..errors import TryLater
from ..hashing import row_id
from ..store.store import now
from .judge import Judge, JudgeTask, Mode, standing_of
from .operator import Turn
from .verdicts import judgement_id

WAITING = "waiting_human"
"""Kind of the event that a step waits for people."""


def is_person(judge: Judge) -> bool:
    """Whether a judge's verdicts come from people."""
    return standing_of(judge) == "person"


def unanswered(
    turn: Turn, judge: Judge, mode: Mode, tasks: Sequence[JudgeTask]
) -> list[tuple[str, JudgeTask]]:
    """Return the tasks on which people have said nothing yet, each with the id of its judgement."""
    rows = turn.run.store.rows(
        "SELECT id::VARCHAR AS id FROM judgement WHERE round = ? AND step = ? AND judge_revision = ?",
        [turn.round, turn.step, judge.revision],
    )
    there = {row["id"] for row in rows}
    named = ((judgement_id(turn, judge, mode, task), task) for task in tasks)
    return [(identifier, task) for identifier, task in named if identifier not in there]


def wait(turn: Turn, judge: Judge, mode: Mode, tasks: Sequence[JudgeTask]) -> None:
    """Return once people have answered every task of a step.

    Raises:
        GraphInterrupt: verdicts are missing, and the step runs in a graph: its checkpoint waits.
        TryLater: verdicts are missing, and the step is applied afterwards.
    """
    while missing := len(unanswered(turn, judge, mode, tasks)):
        _keep(turn, missing)
        told = {"round": turn.round, "step": turn.step, "missing": missing}
        if not _in_graph():
            raise parked(turn.run.folder, told, "apply the step again")
        interrupt(told)


def parked(folder: Path, told: Mapping[str, object], way_on: str = "") -> TryLater:
    """Return the error that ends a run which waits for people."""
    where = "" if folder.parent == Path("runs") else f" --runs {folder.parent}"
    way_on = way_on or f"go on with: redistill resume {folder.name}{where}"
    return TryLater(
        f"round {told['round']} {told['step']} waits for people: {told['missing']} verdicts are "
        f"missing; give them with: redistill review {folder.name}{where}, then {way_on}"
    )


def _in_graph() -> bool:
    try:
        get_config()
    except RuntimeError:
        return False
    return True


def _keep(turn: Turn, missing: int) -> None:
    """Write down that the step waits, once: `review` finds by it what is to be judged."""
    event = {
        "id": row_id("event", run=turn.run.key, kind=WAITING, round=turn.round, step=turn.step),
        "round": turn.round,
        "step": turn.step,
        "kind": WAITING,
        "detail": json.dumps({"missing": missing}),
        "created_at": now(),
    }
    turn.run.store.commit(
        {"event": [event]}, round=turn.round, step=f"{WAITING}:{turn.step}", chunk=0
    )
