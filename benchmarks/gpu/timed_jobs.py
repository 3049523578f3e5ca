"""Jobs of redistill in this process, step by step under a clock, and a driver for those that ask one."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shapes import Asked, Row, now

if TYPE_CHECKING:
    from redistill.policies.revision import Revision
    from redistill.trainers.callback import Message
    from redistill.trainers.trainer import Result, Trainer


@dataclass
class Clock:
    """Notes when each optimiser step has ended."""

    asked: Asked
    ends: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A step has ended."""
        self.ends.append(now(self.asked))

    def median(self, warm: int) -> float:
        """Return the usual seconds of a step, after so many that do not count."""
        times = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(times[warm - 1 :])


def run(
    folder: Path,
    start: Revision,
    trainer: Trainer,
    rows: Sequence[Row],
    *,
    clock: Clock | None = None,
    held: Mapping[str, Revision] | None = None,
) -> tuple[Result, Row]:
    """Run one job here, and return its result and the way that it chose.

    Args:
        folder: of the run.
        start: what it begins from; lies among the run's revisions.
        trainer: with its settings.
        rows: as the trainer's kind has them.
        clock: ticks at each step's end.
        held: models that the job holds beside it, by name.
    """
    from redistill.trainers.job import Held, Job
    from redistill.trainers.rows import rows_table, write_rows
    from redistill.trainers.trainer import run_job

    job, way = folder / "jobs" / str(len(list(folder.glob("jobs/*")))), Row()
    digest = write_rows(job / "rows.parquet", rows_table(trainer.rows, list(rows)))
    Job(
        id=job.name,
        trainer={trainer.name: trainer.params()},
        start_folder=start.folder,
        start_revision=start.id,
        held={n: Held(folder=r.folder, revision=r.id) for n, r in (held or {}).items()},
        revisions_root=start.folder.parent,
        rows=job / "rows.parquet",
        dataset_hash=digest,
    ).write(job, folder)

    def note(event: Row) -> None:
        if event["event"] == "step" and clock is not None:
            clock.tick()
        if event["event"] == "way":
            way.update(event)

    with driving() as address:
        result = run_job(job, folder, note, address)
    if result.status != "trained":
        raise RuntimeError(f"{trainer.name}: {result.status}: {result.message}")
    return result, way


def worth(token_ids: Sequence[int]) -> float:
    """Return what a rollout is worth: a number that differs, and costs nobody anything."""
    return sum(token_ids) % 7 / 6


@contextmanager
def driving() -> Iterator[str]:
    """Answer a job's questions in a thread of its own, and lend its address."""
    from redistill.trainers.callback import listening

    ready, told = threading.Event(), Row()

    async def answer(what: str, message: Message) -> Message:
        if what != "judge":
            return {}
        rewards = [worth(row["token_ids"]) for row in message["rollouts"]]
        return {"rewards": [rewards], "weights": [1.0]}

    async def serve() -> None:
        done = asyncio.Event()
        async with listening(answer) as desk:
            told.update(address=desk.address, loop=asyncio.get_running_loop(), done=done)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    if not ready.wait(30):
        raise RuntimeError("the driver of the benchmark does not listen")
    try:
        yield told["address"]
    finally:
        told["loop"].call_soon_threadsafe(told["done"].set)
        thread.join(30)
