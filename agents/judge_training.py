"""Training a judge on the pairs of a run: a reward model that has yet to pass its exam.

The run is left as it is, but for one event that says what was trained on what. The judge lies in the run's
`judges/`, and its conversations are rendered with the student's chat template, as the judge itself will do it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import BadInput, EnvironmentProblem
from ..hashing import content_hash, row_id
from ..policies.revision import Revision
from ..store.query import read_rows, snapshot
from ..store.store import Row, Store, now
from ..trainers.rows import rows_table, write_rows
from ..trainers.trainer import Job, Result, Trainer
from ..trainers.worker import Worker
from ..types import Message
from .opening import only_one
from .operator import Progress

_PAIRS = """
    SELECT p.id::VARCHAR AS id, p.weight, p.margin, p.probability, m.text AS messages,
           c.text AS chosen, r.text AS rejected
    FROM pair p
    JOIN prompt q ON q.id = p.prompt_id JOIN content m ON m.hash = q.messages_hash AND m.round = q.round
    JOIN completion cc ON cc.id = p.chosen_id JOIN content c ON c.hash = cc.text_hash AND c.round = cc.round
    JOIN completion rr ON rr.id = p.rejected_id JOIN content r ON r.hash = rr.text_hash AND r.round = rr.round
    WHERE p.split = 'train' AND (len(?) = 0 OR list_contains(?, p.step)) ORDER BY p.round, p.id
"""


@dataclass(frozen=True, slots=True)
class TrainedJudge:
    """What came of training a judge."""

    folder: Path
    pairs: int
    result: Result

    @property
    def spec(self) -> str:
        """How a recipe or `judge admit` names it."""
        return f"{{reward_model: {{model: {self.folder}}}}}"


def train_judge(
    run: Path, trainer: Trainer, steps: Sequence[str], progress: Progress
) -> TrainedJudge:
    """Train a judge on all pairs of a run, from the run's initial student.

    Args:
        run: the run's folder.
        trainer: one that makes a judge.
        steps: pair steps whose pairs count; all of them where it is empty.
        progress: is told each optimiser step.

    Raises:
        BadInput: the trainer makes no judge, or the run has no such pairs.
        EnvironmentProblem: training ended without a judge, with its reason.
    """
    if trainer.makes != "judge":
        raise BadInput.at("--trainer", f"{trainer.name} makes a student", "use `reward`")
    snapshot(run)  # names the runs that are there, where this one is not
    found = read_rows(run, _PAIRS, [list(steps), list(steps)])
    if not found:
        named = f" of {' or '.join(steps)}" if steps else ""
        raise BadInput.at(str(run), f"has no pairs{named}", "a `pair` step makes them")
    [told] = read_rows(run, "SELECT student, seed FROM run")
    start = Revision.read(run / "revisions" / told["student"])
    rows = _rows(start.folder, found)
    name = content_hash([trainer.params(), [row["id"] for row in rows]])[:16]
    folder = run / "judges" / "jobs" / name
    digest = write_rows(folder / "rows.parquet", rows_table("pairs", rows))
    Job(
        id=name,
        trainer={trainer.name: trainer.params()},
        start_folder=start.folder,
        start_revision=start.id,
        revisions_root=run / "judges",
        seed=int(told["seed"]) % 2**32,
        rows=folder / "rows.parquet",
        dataset_hash=digest,
    ).write(folder, run)
    with only_one(run):
        result = asyncio.run(_work(folder, run, progress))
        if result.revision is None:
            raise EnvironmentProblem(f"no judge was trained: {result.message}")
        _record(run, trainer, result, digest)
    return TrainedJudge(run / "judges" / result.revision, len(rows), result)


def _rows(start: Path, found: Sequence[Row]) -> list[dict[str, Any]]:
    """Render both conversations of each pair, cut where they part."""
    import transformers

    from ..policies.chat import ChatCodec

    tokenizer = transformers.AutoTokenizer.from_pretrained(start, local_files_only=True)
    codec = ChatCodec(tokenizer)
    rows = []
    for row in found:
        asked = [Message(m["role"], m["content"]) for m in json.loads(row["messages"])]
        chosen, rejected = (
            list(codec.conversation((*asked, Message("assistant", row[side])), answered=True))
            for side in ("chosen", "rejected")
        )
        alike = sum(
            1 for _ in takewhile(lambda p: p[0] == p[1], zip(chosen, rejected, strict=False))
        )
        alike = min(alike, len(chosen) - 1, len(rejected) - 1)
        rows.append(
            {
                **{key: row[key] for key in ("id", "weight", "margin", "probability")},
                "prompt_ids": chosen[:alike],
                "chosen_ids": chosen[alike:],
                "rejected_ids": rejected[alike:],
                "ref_chosen_logp": None,
                "ref_rejected_logp": None,
                "gold_ids": None,
            }
        )
    return rows


async def _work(job: Path, run: Path, progress: Progress) -> Result:
    worker = Worker(run / "worker.log")

    def tell(event: dict[str, Any]) -> None:
        if event.get("event") == "step":
            progress.phase(0, "judge", event["step"], event["steps"])

    try:
        return await worker.run(job, run, tell)
    finally:
        await worker.close()


def _record(run: Path, trainer: Trainer, result: Result, digest: str) -> None:
    """Write the event that says which judge was made of which pairs."""
    detail = {
        "judge": f"judges/{result.revision}",
        "trainer": trainer.name,
        "settings": trainer.params(),
        "dataset_hash": digest,
        "rows": result.rows,
        "steps": result.steps,
    }
    subject = str(result.revision)
    row: Row = {
        "id": row_id("event", kind="judge_trained", subject=subject),
        "round": 0,
        "step": "judge",
        "kind": "judge_trained",
        "detail": json.dumps(detail),
        "created_at": now(),
    }
    store = Store(run)
    try:
        store.commit({"event": [row]}, round=0, step=f"judge:{subject}", chunk=0)
        store.publish(force=True)
    finally:
        store.close()
