"""What sampling ahead saves where judges are slow, and what it costs in learning.

One GRPO job on the toy student of 1M parameters for each `ahead`, judge and seed. The judge is the verifier, which
answers each question so many seconds late, as a server would: its questions wait beside each other. Times are those of
the whole job, as a ratio to the job of the same judge that samples nothing ahead; `room` is the same ratio for the job
whose judge is not late, which no way of waiting can beat. What is learned does not depend on the judge's speed, so
the other seeds are run with the quick judge alone.

Writes `benchmarks/results/ahead.json`, and prints the table of `docs/on_policy.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from redistill.agents.judge import ColumnName, JudgeTask
from redistill.agents.judges.program import Verifier
from redistill.types import Judgement

RESULTS = Path(__file__).parent / "results" / "ahead.json"
AHEAD = (0, 1, 2, 4)
LATE = (0.0, 1.0, 3.0)
"""Seconds."""
SEEDS = (0, 1, 2)
TRAINED = {
    "trainer": "grpo",
    "k": 8,
    "batch_size": 64,
    "micro_batch": 32,
    "max_tokens": 44,
    "learning_rate": 1e-4,
    "steps": 24,
    "save_every": 0,
}
JUDGE = f"{__name__}:Late"
Row = dict[str, Any]


class Late(Verifier):
    """The verifier, so many seconds after it was asked."""

    name: ColumnName = "late"
    seconds: float = 0.0

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Wait, then judge."""
        await asyncio.sleep(self.seconds)
        return await super().score(tasks)


def main() -> None:
    """Run every job, one after the other; then tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tell", action="store_true", help="tell what was measured before")
    if not parser.parse_args().tell:
        base = Path(tempfile.mkdtemp(prefix="redistill-bench-"))
        try:
            measure(base)
        finally:
            shutil.rmtree(base, ignore_errors=True)
    print(table(json.loads(RESULTS.read_text("utf-8"))))


def measure(base: Path) -> None:
    """Run the jobs, and write the figures."""
    file = resources.files("redistill") / "recipes" / "data" / "tiny.jsonl"
    (base / "prompts.jsonl").write_text(file.read_text("utf-8"), "utf-8")
    asked = [(ahead, late, SEEDS[0]) for late in LATE for ahead in AHEAD]
    asked += [(ahead, LATE[0], seed) for seed in SEEDS[1:] for ahead in AHEAD]
    jobs = []
    for ahead, late, seed in asked:
        jobs.append({"ahead": ahead, "late": late, "seed": seed, **job(base, ahead, late, seed)})
        print(jobs[-1], flush=True)
    RESULTS.write_text(json.dumps({"settings": TRAINED, "jobs": jobs}, indent=1) + "\n", "utf-8")


def job(base: Path, ahead: int, late: float, seed: int) -> Row:
    """Run one round, and return how long its job took and what it came to."""
    from redistill.agents.loop import Place, run
    from redistill.agents.recipe import load_recipe
    from redistill.policies import catalog
    from redistill.store.query import read_rows

    recipe = {
        "name": f"a{ahead}-{late:g}-{seed}",
        "student": "tiny",
        "seed": seed,
        "execution": {"threads": 1},
        "prompts": {"file": "prompts.jsonl"},
        "unproven_judge": "allow",
        "round": [
            {"train": {**TRAINED, "ahead": ahead, "judge": {JUDGE: {"seconds": late}}}},
            {"evaluate": {"judge": "verifier", "max_tokens": TRAINED["max_tokens"]}},
            {"gate": {}},
        ],
    }
    place = Place(base / "runs", catalog.default_cache())
    folder = run(load_recipe(json.dumps(recipe), "ahead", base=base), place=place)
    [found] = read_rows(folder, "SELECT status, message, seconds FROM training_run")
    assert found["status"] == "trained", found["message"]
    [value] = read_rows(
        folder, "SELECT value FROM evaluation WHERE split = 'heldout' AND round = 1"
    )
    measured = read_rows(
        folder,
        """
        SELECT name, avg(value) AS value FROM training_metric
        WHERE name IN ('rollouts/drift', 'rollouts/clipped') GROUP BY 1
        """,
    )
    return {
        "seconds": found["seconds"],
        "heldout": value["value"],
        **{row["name"]: row["value"] for row in measured},
    }


def table(found: Row) -> str:
    """Return the table of the page."""
    jobs = found["jobs"]

    def seconds(ahead: int, late: float) -> float:
        [one] = [j for j in jobs if (j["ahead"], j["late"], j["seed"]) == (ahead, late, SEEDS[0])]
        return float(one["seconds"])

    slow = [late for late in LATE if late]
    heads = [f"time, judge {late:g} s late" for late in slow]
    lines = [f"| `ahead` | {' | '.join(heads)} | held-out, by seed | drift | clipped |"]
    lines.append(f"|---|{'---:|' * len(slow)}---|---:|---:|")
    for ahead in AHEAD:
        cells = [f"{seconds(ahead, late) / seconds(0, late):.2f}" for late in slow]
        mine = [j for j in jobs if j["ahead"] == ahead and j["late"] == 0]
        cells.append(", ".join(f"{j['heldout']:.3f}" for j in mine))
        for name in ("drift", "clipped"):
            known = [j[f"rollouts/{name}"] for j in mine if f"rollouts/{name}" in j]
            cells.append(f"{statistics.fmean(known):.3f}" if known else "")
        lines.append(f"| {ahead} | {' | '.join(cells)} |")
    room = [f"{seconds(0, LATE[0]) / seconds(0, late):.2f}" for late in slow]
    lines.append(f"| a judge that is not late | {' | '.join(room)} | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
