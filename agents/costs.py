"""What a run's first round has cost: tokens that were trained on, sampled and judged, seconds, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from ..store.query import read_rows

Resource = Literal["tokens", "samples", "judge", "seconds"]
ROUND = 1


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one way to train."""

    steps: int
    trained_tokens: int
    """Of the rows of all steps, prompts included; of rollouts also those that said nothing."""
    sampled: int
    """Completions that were sampled to train on."""
    sampled_tokens: int
    judged: int
    judged_tokens: int
    """Of the answers that were judged."""
    seconds: float
    """Wall time of sampling, judging, curation and training."""
    cpu_seconds: float
    """Of the training process."""
    peak_mb: float
    """Of the training process."""

    def of(self, resource: Resource) -> float:
        """Return how much of a resource was used."""
        return {
            "tokens": float(self.trained_tokens),
            "samples": float(self.sampled),
            "judge": float(self.judged),
            "seconds": self.seconds,
        }[resource]


def costs(folder: Path, steps: Sequence[str]) -> Costs:
    """Return what a round has cost, counting the rows of some of its steps alone.

    Args:
        folder: of the run.
        steps: those whose rows were used: of a policy that samples while it trains its train step, else also the
            steps that made its rows.
    """
    # The student's is the last: judges are made before it.
    [job] = read_rows(
        folder,
        "SELECT * FROM training_run WHERE round = ? ORDER BY created_at DESC LIMIT 1",
        [ROUND],
    )
    said = read_rows(
        folder,
        """
        SELECT count(*) AS n, coalesce(sum(tokens), 0) AS tokens FROM completion
        WHERE round = ? AND split = 'train' AND list_contains(?, step)
        """,
        [ROUND, list(steps)],
    )[0]
    judged = read_rows(
        folder,
        """
        SELECT count(*) AS n, coalesce(sum(c.tokens), 0) AS tokens
        FROM judgement j JOIN completion c ON c.id = j.completion_id AND c.round = j.round
        WHERE j.round = ? AND list_contains(?, j.step) AND c.split = 'train' AND j.aspect = ''
        """,
        [ROUND, list(steps)],
    )[0]
    [spent] = read_rows(
        folder,
        "SELECT coalesce(sum(seconds), 0) AS n FROM write_batch WHERE round = ? AND list_contains(?, step)",
        [ROUND, list(steps)],
    )
    return Costs(
        steps=job["steps"],
        trained_tokens=_trained_tokens(folder, job["steps"]),
        sampled=said["n"],
        sampled_tokens=int(said["tokens"]),
        judged=judged["n"],
        judged_tokens=int(judged["tokens"]),
        seconds=float(spent["n"]),
        cpu_seconds=job["cpu_seconds"],
        peak_mb=job["peak_rss_mb"],
    )


def _trained_tokens(folder: Path, steps: int) -> int:
    """Return the tokens of the rows of all steps, once for each time that they were in one."""
    from ..trainers.job import Job
    from ..trainers.trainer import trainer_class

    place = folder / "jobs" / str(ROUND)
    job = Job.read(place, folder)
    rows = pq.read_table(job.rows).to_pylist()
    own = read_rows(
        folder,
        """
        SELECT prompt_id::VARCHAR AS prompt, tokens FROM rollouts WHERE round = ?
        UNION ALL
        SELECT r.prompt_id::VARCHAR, c.tokens FROM training_row r JOIN completion c ON c.id = r.completion_id
        WHERE r.round = ? AND r.advantage IS NOT NULL AND c.training_run_id IS NULL
        """,
        [ROUND, ROUND],
    )
    if own:  # sampled while it trained, or stood for what would have been sampled: each once
        asked = {row["id"]: len(row["prompt_ids"]) for row in rows}
        return sum(asked[row["prompt"]] + int(row["tokens"]) for row in own)
    [(name, settings)] = job.trainer.items()
    trainer = trainer_class(name).model_validate(settings)
    each = [trainer.row_tokens(row) for row in rows]
    return int(sum(each) / max(1, len(each)) * steps * trainer.batch_size)
