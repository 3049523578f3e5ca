"""The files of a round's training job, and the revisions that it begins from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..policies.revision import Revision
from ..trainers.job import Held, Job
from ..trainers.rows import rows_table, write_rows
from ..trainers.trainer import Trainer
from .judge_rows import JUDGES
from .operator import Turn


def job_folder(turn: Turn, trainer: Trainer) -> Path:
    """Return the folder of a round's training job; of judges there may be several in a round."""
    run = turn.run.folder
    if trainer.makes == "judge":
        return run / JUDGES / "jobs" / _name(turn, trainer)
    return run / "jobs" / str(turn.round)


def made_in(trainer: Trainer) -> str:
    """Return the folder of a run that what a trainer makes lies in."""
    return JUDGES if trainer.makes == "judge" else "revisions"


def _name(turn: Turn, trainer: Trainer) -> str:
    return f"round-{turn.round}" + (f"-{turn.step}" if trainer.makes == "judge" else "")


def revision_named(turn: Turn, name: str) -> Revision:
    """Return the revision that `champion`, `initial` or `previous` names in this round."""
    run = turn.run
    rows = run.store.rows("SELECT round, champion FROM round ORDER BY round")
    by_round = {row["round"]: str(row["champion"]) for row in rows}
    initial = by_round[1]
    named = {
        "champion": turn.champion,
        "initial": initial,
        "previous": by_round.get(turn.round - 1, initial),
    }
    return run.cast.revision(named[name])


def named(turn: Turn, role: str) -> tuple[str, Revision]:
    """Return which policy and which of its revisions a role names here."""
    return turn.run.cast.named(
        role,
        turn.run.store,
        round=turn.round,
        champion=turn.champion,
        current=turn.current,
    )


def write_job(
    turn: Turn,
    called: tuple[str, Trainer],
    start: Revision,
    dataset: list[dict[str, Any]],
    reference: str | None = None,
    held: Mapping[str, Revision] | None = None,
) -> None:
    """Write the folder of a round's job.

    Args:
        turn: of the train step.
        called: the trainer's name as the recipe has it, and the trainer.
        start: where training begins.
        dataset: rows of the trainer's kind; a column that a row lacks is missing.
        reference: revision.id of the reference policy.
        held: what the job holds beside what it trains, by name.
    """
    name, trainer = called
    folder = job_folder(turn, trainer)
    rows = folder / "rows.parquet"
    digest = write_rows(rows, rows_table(trainer.rows, dataset))
    Job(
        id=_name(turn, trainer),
        trainer={name: trainer.params()},
        start_folder=start.folder,
        start_revision=start.id,
        reference_revision=reference,
        held={n: Held(folder=r.folder, revision=r.id) for n, r in (held or {}).items()},
        revisions_root=turn.run.folder / made_in(trainer),
        seed=turn.run.seed % 2**32,
        threads=turn.run.threads,
        processes=turn.run.processes,
        rows=rows,
        dataset_hash=digest,
    ).write(folder, turn.run.folder)
