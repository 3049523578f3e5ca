"""Running a frozen training job in the worker, and keeping all that it measured."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from ..errors import EnvironmentProblem
from ..hashing import row_id
from ..policies.precision import precision_held
from ..policies.revision import Revision
from ..store.facts import find_prompts
from ..store.store import Row, now
from ..trainers.callback import listening
from ..trainers.trainer import Emit, Job, Result, Trainer
from .job_files import job_folder, made_in
from .operator import Turn
from .rollouts import Reward, Rollouts


async def run_job(
    turn: Turn, name: str, trainer: Trainer, most_cut: float, rewards: Sequence[Reward] = ()
) -> str:
    """Run the round's job and return the revision that came of it, or "" where none did.

    The policies give their memory back first, unless the trainer has cards of its own: sampler and trainer never
    hold one card together.

    Args:
        turn: where the run stands.
        name: the trainer's name as the recipe has it.
        trainer: with its settings.
        most_cut: share of the round's answers that may be cut.
        rewards: the judges of a policy that samples while it trains.
    """
    run = turn.run
    if not turn.done:
        began = time.monotonic()
        job = Job.read(job_folder(turn, trainer), run.folder)
        rows = pq.read_metadata(job.rows).num_rows
        refused = _untrained(turn, trainer, rows, most_cut)
        result = refused or await _train(turn, trainer, rewards)
        if result.status == "no_space":
            # A full disk says nothing of the training: the round is not decided by it.
            raise EnvironmentProblem(
                f"round {turn.round} {turn.step}: {result.message}; what was committed is kept, "
                "and the run can be resumed"
            )
        turn.commit(_rows(turn, name, trainer, job, result), time.monotonic() - began)
        if result.status != "trained":
            run.progress.note(f"round {turn.round}: nothing published: {result.message}")
    [found] = run.store.rows(
        "SELECT revision FROM training_run WHERE round = ? AND step = ?", [turn.round, turn.step]
    )
    return str(found["revision"] or "")


def _untrained(turn: Turn, trainer: Trainer, rows: int, most_cut: float) -> Result | None:
    """Return why there is nothing to train, so that nobody has to make room for it; None where there is."""
    if trainer.reads and (cut := _too_cut(turn, most_cut)):
        return cut
    if rows == 0:
        return Result(status="no_rows", message="the round's curation kept no row")
    if trainer.plan(rows) == 0:
        return Result(status="no_steps", rows=rows, message=trainer.arithmetic(rows))
    return None


async def _train(turn: Turn, trainer: Trainer, rewards: Sequence[Reward]) -> Result:
    """Hand the card over to the job, and measure what that takes."""
    handover = await turn.run.cast.make_room(turn.run.store, turn.round, turn.step)
    ordered, begun = time.monotonic(), list[float]()

    def tell(event: dict[str, Any]) -> None:
        if event.get("event") == "begin" and not begun:
            begun.append(time.monotonic() - ordered)
        if event.get("event") == "step":
            turn.run.progress.phase(turn.round, turn.step, event["step"], event["steps"])

    result = await _in_worker(turn, trainer, rewards, tell)
    whole = time.monotonic() - ordered
    handover.trained(whole, begun[0] if begun else None, result.seconds)
    turn.run.cast.take_back(handover)
    return result


async def _in_worker(turn: Turn, trainer: Trainer, rewards: Sequence[Reward], tell: Emit) -> Result:
    work, folder = turn.run.worker.run, job_folder(turn, trainer)
    if not trainer.samples:
        return await work(folder, turn.run.folder, tell)
    rows = pq.read_table(Job.read(folder, turn.run.folder).rows, columns=["id"])
    prompts = find_prompts(turn.run.store, rows.column("id").to_pylist())
    async with listening(Rollouts(turn, rewards, prompts).answer) as desk:
        return await desk.beside(work(folder, turn.run.folder, tell, desk.address))


def _too_cut(turn: Turn, most: float) -> Result | None:
    """Refuse to train where many of the round's answers were cut: what is left are the short ones."""
    [found] = turn.run.store.rows(
        """
        SELECT count(*) AS n, count(*) FILTER (WHERE finish_reason = 'length') AS cut
        FROM completion c WHERE c.round = ? AND c.split = 'train' AND c.training_run_id IS NULL
          -- What a role proposed is no answer, and a cut one was refused already.
          AND NOT EXISTS (SELECT 1 FROM proposal x WHERE x.round = c.round AND x.completion_id = c.id)
        """,
        [turn.round],
    )
    if found["cut"] <= most * found["n"]:
        return None
    told = (
        f"{found['cut']} of {found['n']} answers were cut at max_tokens, {100 * most:.0f} % may be: "
        "give more tokens, ask for less, or raise train.most_cut"
    )
    return Result(status="answers_cut", message=told)


def _rows(
    turn: Turn, name: str, trainer: Trainer, job: Job, result: Result
) -> dict[str, list[Row]]:
    identifier = row_id("training_run", run=turn.run.key, round=turn.round, step=turn.step)
    run_row: Row = {
        "id": identifier,
        "round": turn.round,
        "step": turn.step,
        "trainer": name,
        "settings": json.dumps(trainer.params()),
        "start_revision": job.start_revision,
        "reference_revision": job.reference_revision,
        "dataset_hash": job.dataset_hash,
        "rows": result.rows,
        "status": result.status,
        "message": result.message,
        "revision": result.revision,
        "steps": result.steps,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "peak_rss_mb": result.peak_rss_mb,
        "created_at": now(),
    }
    metrics = [
        {
            "training_run_id": identifier,
            "round": turn.round,
            "optimizer_step": metric["step"],
            "name": metric["name"],
            "value": metric["value"],
        }
        for metric in result.metrics
    ]
    revisions: list[Row] = []
    if result.revision:
        folder = f"{made_in(trainer)}/{result.revision}"
        made = Revision.read(turn.run.folder / folder)
        held = precision_held(made)
        revisions.append(
            {
                "precision": None if held == "float32" else held,
                "id": result.revision,
                "round": turn.round,
                "parent": job.start_revision,
                "folder": folder,
                "training_run_id": identifier,
                "created_at": now(),
            }
        )
    return {"training_run": [run_row], "training_metric": metrics, "revision": revisions}
