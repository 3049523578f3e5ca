"""Training a judge on what stands in a run: one that has yet to pass its exam.

Pairs make a reward model, and verdicts a generative judge, which is asked in words and answers as whoever gave the
verdicts. The run is left as it is, but for one event that says what was trained on what. The judge lies in the run's
`judges/`, and its conversations are rendered with the student's chat template, as the judge itself will do it.
"""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import BadInput, EnvironmentProblem
from ..hashing import content_hash, row_id
from ..policies.model_folder import folder_problems
from ..policies.revision import Revision
from ..store.query import read_rows, snapshot
from ..store.store import Store
from ..trainers.rows import RowsKind, dataset_hash, rows_table, write_rows
from ..trainers.trainer import Job, Result, Trainer
from ..trainers.worker import Worker
from .judge import BUILTINS
from .judge_lessons import ROLE, Wanted, lessons_of
from .judge_rows import JUDGES, PAIRS, conversations, trained_event
from .opening import only_one
from .operator import Progress
from .plugins import spec_of


@dataclass(frozen=True, slots=True)
class Material:
    """The rows that a judge is trained on."""

    kind: RowsKind
    rows: list[dict[str, Any]]
    detail: dict[str, Any] = field(default_factory=dict)
    """What else the run's event says of them; of verdicts, `asks` is how a recipe names the judge."""

    @property
    def what(self) -> str:
        """What each row is of."""
        return "pairs" if self.kind == "pairs" else "verdicts"


@dataclass(frozen=True, slots=True)
class TrainedJudge:
    """What came of training a judge."""

    folder: Path
    material: Material
    result: Result

    @property
    def rows(self) -> int:
        """How many rows it was trained on."""
        return len(self.material.rows)

    @property
    def spec(self) -> str:
        """How a recipe or `judge admit` names it."""
        asks = self.material.detail.get("asks")
        if asks is None:
            return f"{{reward_model: {{model: {self.folder}}}}}"
        return str(yaml.safe_dump(asks, default_flow_style=True, width=10_000)).strip()

    @property
    def role(self) -> str | None:
        """Who speaks for it, as `judge admit --role` takes it; None where the spec says it already."""
        return f"{ROLE}={self.folder.resolve()}" if "asks" in self.material.detail else None

    @property
    def admit(self) -> str:
        """The command that lets it sit the exam."""
        role = f" --role {shlex.quote(self.role)}" if self.role else ""
        return f"redistill judge admit {shlex.quote(self.spec)}{role}"


def train_judge(run: Path, trainer: Trainer, wanted: Wanted, progress: Progress) -> TrainedJudge:
    """Train a judge on all pairs or verdicts of a run, from the run's initial student.

    Args:
        run: the run's folder.
        trainer: one that makes a judge of pairs, or one that learns answers.
        wanted: of which steps; and of verdicts, whose they are and how the judge asks.
        progress: is told each optimiser step.

    Raises:
        BadInput: the trainer makes no judge, or the run has no such rows.
        EnvironmentProblem: training ended without a judge, with its reason.
    """
    _check(trainer, wanted)
    snapshot(run)  # names the runs that are there, where this one is not
    [told] = read_rows(run, "SELECT student, seed FROM run")
    start = Revision.read(run / "revisions" / told["student"])
    if problems := folder_problems(start.folder):
        raise BadInput(*problems)
    drawn = _pairs if trainer.makes == "judge" else _verdicts
    material = drawn(run, start, wanted)
    table = rows_table(material.kind, material.rows)
    name = content_hash([trainer.name, trainer.params(), dataset_hash(table)])[:16]
    folder = run / JUDGES / "jobs" / name
    digest = write_rows(folder / "rows.parquet", table)
    Job(
        id=name,
        trainer={trainer.name: trainer.params()},
        start_folder=start.folder,
        start_revision=start.id,
        revisions_root=run / JUDGES,
        seed=int(told["seed"]) % 2**32,
        rows=folder / "rows.parquet",
        dataset_hash=digest,
    ).write(folder, run)
    with only_one(run):
        result = asyncio.run(_work(folder, run, progress))
        if result.revision is None:
            raise EnvironmentProblem(f"no judge was trained: {result.message}")
        _record(run, trainer, result, {"dataset_hash": digest, **material.detail})
    return TrainedJudge(run / JUDGES / result.revision, material, result)


def _check(trainer: Trainer, wanted: Wanted) -> None:
    """Refuse what makes no judge, or none that a role could load."""
    if trainer.makes == "judge":
        if wanted.judge or wanted.asks is not None:
            option = "--judge" if wanted.judge else "--as"
            what = f"{trainer.name} learns pairs, and asks nothing in words"
            raise BadInput.at(option, what, "leave it out, or say --trainer sft")
    elif trainer.rows != "completions":
        hint = "use `reward` on pairs, or `sft` on verdicts"
        raise BadInput.at("--trainer", f"{trainer.name} makes a student", hint)
    elif trainer.weights != "full":
        what = f"a judge is a whole model, and `weights: {trainer.weights}` may make an adapter"
        raise BadInput.at("--trainer", what, "say `weights: full`")


def _pairs(run: Path, start: Revision, wanted: Wanted) -> Material:
    steps = list(wanted.steps)
    found = read_rows(run, PAIRS, [steps, 0])
    if not found:
        named = f" of {' or '.join(steps)}" if steps else ""
        raise BadInput.at(str(run), f"has no pairs{named}", "a `pair` step makes them")
    return Material("pairs", conversations(start.folder, found))


def _verdicts(run: Path, start: Revision, wanted: Wanted) -> Material:
    from ..policies.transformers import TransformersPolicy

    found = lessons_of(run, TransformersPolicy(start), wanted)
    detail = {
        "learned_from": found.learned_from,
        "judge_revision": found.revision,
        "asks": spec_of(found.judge, BUILTINS),
        "left_out": dict(found.left_out),
    }
    return Material("completions", found.rows, detail)


async def _work(job: Path, run: Path, progress: Progress) -> Result:
    worker = Worker(run / "worker.log")

    def tell(event: dict[str, Any]) -> None:
        if event.get("event") == "step":
            progress.phase(0, "judge", event["step"], event["steps"])

    try:
        return await worker.run(job, run, tell)
    finally:
        await worker.close()


def _record(run: Path, trainer: Trainer, result: Result, of: dict[str, Any]) -> None:
    """Write the event that says which judge was made of what."""
    subject = str(result.revision)
    place = {
        "id": row_id("event", kind="judge_trained", subject=subject),
        "round": 0,
        "step": "judge",
    }
    row = trained_event(place, trainer, result.model_dump(), of)
    store = Store(run)
    try:
        store.commit({"event": [row]}, round=0, step=f"judge:{subject}", chunk=0)
        store.publish(force=True)
    finally:
        store.close()
