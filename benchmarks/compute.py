"""What the same held-out value costs: supervised training, reinforcement, and on-policy distillation, side by side.

Four arms on the toy student of 1M parameters, one verifier, the same prompts. `sft_teacher` learns answers of
the tiny teacher that pass, `sft_own` the student's own that pass, `grpo` is rewarded by the verifier, and `distill` learns
what the teacher would have said in the student's own answers. A point is a job of its own from the same start, with
its whole schedule; a curve is one run with a round for each point. The learning rate of each arm is the one of three
that reaches the higher target cheapest with seed 0; the other seeds are run with that rate alone.

Nothing is timed: work is counted from the rows of the store. A forward pass takes 2 floating point operations for a
parameter and a token, a trained token takes 6; attention's own products are left out. Sampling reads a prompt once for
a step's answers to it. Of answers that were sampled before a job as many are counted as give the rows that it used.

Writes `benchmarks/results/compute.json` and `docs/compute.svg`, and prints the table of `docs/on_policy.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Asked = tuple[str, float, int]
"""Of a curve: arm, learning rate, seed."""
RESULTS = ROOT / "benchmarks" / "results" / "compute.json"
PICTURE = ROOT / "docs" / "compute.svg"
SEEDS = (0, 1, 2)
TARGETS = (0.8, 0.9)
LONGEST = 44
JOBS = 2
"""Curves that are run at once."""
TESTED = 8
"""Test prompts that are kept: the run's own last word is not what is measured here."""
TEACHER_SPEAKS, STUDENT_SPEAKS = "teacher_speaks", "student_speaks"
TEACHER_READS, LEARNS = "teacher_reads", "learns"
FLOPS = {
    TEACHER_SPEAKS: ("tiny-teacher", 2),
    STUDENT_SPEAKS: ("tiny", 2),
    TEACHER_READS: ("tiny-teacher", 2),
    LEARNS: ("tiny", 6),
}
"""Whose parameters a token of each part meets, and how many operations each takes."""
EIGHT = {"batch_size": 8, "micro_batch": 8}
FOUR_GROUPS = {"batch_size": 32, "micro_batch": 32}
COSTS = ("steps", "trained_tokens", "flops", "taught_flops")
COLOURS = {"sft_teacher": "ink", "sft_own": "muted", "grpo": "bad", "distill": "good"}
"""Of the arms that are drawn."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to train, the rates that are tried, and the lengths of its jobs."""

    says: str
    """How a table names it."""
    train: Row
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    before: list[Row] = field(default_factory=list)
    """Steps of the round before the training."""


def _sampled(role: str, k: int) -> list[Row]:
    """Return the steps that make rows for supervised training: a role answers, and what passes is kept."""
    said = {"role": role, "k": k, "temperature": 0.7, "max_tokens": LONGEST}
    return [
        {"sample": said},
        {"score": {"judge": "verifier"}},
        {"select": {"where": "verifier = 1"}},
    ]


RATES, SMALL = (1e-4, 3e-4, 1e-3), (5e-5, 1e-4, 3e-4)
SHORT = (1, 2, 4, 8, 16)
SFT = {"trainer": "sft", **EIGHT}
GRPO = {"trainer": "grpo", "judge": "verifier", "k": 8, "max_tokens": LONGEST}
DISTILL = {"trainer": "distill", "teacher": "teacher", **EIGHT, "max_tokens": LONGEST}
ARMS = {
    "sft_teacher": Arm(
        "SFT, the teacher's passing answers", SFT, SHORT, RATES, _sampled("teacher", 1)
    ),
    "sft_own": Arm("SFT, its own passing answers", SFT, SHORT, RATES, _sampled("beginner", 3)),
    "grpo": Arm("GRPO", {**GRPO, **EIGHT}, (8, 16, 32, 64), RATES),
    "grpo_32": Arm("GRPO, 32 answers a step", {**GRPO, **FOUR_GROUPS}, (2, 4, 8, 16, 32), SMALL),
    "distill": Arm("on-policy distillation", DISTILL, SHORT, RATES),
}


def main() -> None:
    """Run all curves, then count, tell and draw; or one curve, to look at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the runs, and takes those there")
    parser.add_argument("--draw", action="store_true", help="tell and draw what is measured")
    told = parser.parse_args()
    if told.arm:
        print(json.dumps(curve(told.arm, told.rate, told.seed, told.folder)))
        return
    if not told.draw:
        measure(told.folder)
    found = json.loads(RESULTS.read_text("utf-8"))
    print(table(found))
    PICTURE.write_text(picture(found) + "\n", "utf-8")


def measure(folder: Path | None) -> None:
    """Run each arm with each of its rates, then with the best of them and the other seeds; write the figures."""
    base = folder or Path(tempfile.mkdtemp(prefix="redistill-bench-"))
    try:
        with ThreadPoolExecutor(JOBS) as pool:

            def curves(asked: Sequence[Asked]) -> dict[Asked, list[Row]]:
                return dict(zip(asked, pool.map(partial(_child, base), asked), strict=True))

            every = [(name, rate, SEEDS[0]) for name, arm in ARMS.items() for rate in arm.rates]
            tried = curves(every)
            best = {name: _best(name, tried) for name in ARMS}
            more = curves([(name, best[name], seed) for name in ARMS for seed in SEEDS[1:]])
    finally:
        if not folder:
            shutil.rmtree(base, ignore_errors=True)
    known = tried | more
    found = {
        "rates": best,
        "reached": {arm: _reached([known[arm, best[arm], seed] for seed in SEEDS]) for arm in ARMS},
        "curves": [
            {"arm": arm, "rate": rate, "seed": seed, "points": points}
            for (arm, rate, seed), points in known.items()
        ],
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def _child(base: Path, asked: Asked) -> list[Row]:
    """Run one curve in a process of its own."""
    name, rate, seed = asked
    command = [sys.executable, "-P", __file__, "--arm", name, "--rate", str(rate)]
    command += ["--seed", str(seed), "--folder", str(base / f"{name}-{rate:g}-{seed}")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    points: list[Row] = json.loads(done.stdout.strip().split("\n")[-1])
    print(name, f"{rate:g}", seed, [(p["steps"], p["value"]) for p in points], flush=True)
    return points


def _best(name: str, tried: Mapping[Asked, list[Row]]) -> float:
    """Return the rate that reaches the higher target cheapest; where none does, the one that comes nearest."""

    def order(rate: float) -> tuple[float, float]:
        points = tried[name, rate, SEEDS[0]]
        cost = reach(points, TARGETS[-1], "taught_flops")
        return (math.inf if cost is None else cost, -max(p["value"] for p in points))

    return min(ARMS[name].rates, key=order)


def _reached(curves: Sequence[list[Row]]) -> Row:
    """Return what each target took with each seed; None where no job reached it."""
    return {
        str(target): {cost: [reach(points, target, cost) for points in curves] for cost in COSTS}
        for target in TARGETS
    }


def reach(points: Sequence[Row], target: float, cost: str) -> float | None:
    """Return the cost of a value: between the two jobs around it, on a line through the logarithms of their costs.

    Where the shortest job is beyond it already, its cost is the answer, and an upper bound.
    """
    before: Row | None = None
    for point in points:
        if point["value"] >= target:
            if before is None:
                return float(point[cost])
            share = (target - before["value"]) / (point["value"] - before["value"])
            low, high = math.log(before[cost]), math.log(point[cost])
            return math.exp(low + share * (high - low))
        before = point
    return None


# -- the runs


def curve(name: str, rate: float, seed: int, base: Path) -> list[Row]:
    """Return the points of an arm: what each job reached, and what it took."""
    from redistill.agents.loop import Place, run
    from redistill.agents.recipe import load_recipe
    from redistill.policies import catalog

    base.mkdir(parents=True, exist_ok=True)
    (base / "prompts.jsonl").write_text("\n".join(_prompts()) + "\n", "utf-8")
    cache = catalog.default_cache()
    recipe = _recipe(ARMS[name], rate, seed) | {"name": f"{name}-{rate:g}-{seed}"}
    folder = run(
        load_recipe(json.dumps(recipe), "compute", base=base), place=Place(base / "runs", cache)
    )
    models = {who for who, _ in FLOPS.values()}
    sizes = {m: _parameters(catalog.resolve(m, cache=cache).revision.folder) for m in models}
    return [_point(folder, nth, sizes) for nth, _ in enumerate(ARMS[name].steps, start=1)]


def _prompts() -> list[str]:
    file = resources.files("redistill") / "recipes" / "data" / "tiny.jsonl"
    lines = file.read_text("utf-8").splitlines()
    test = [line for line in lines if json.loads(line)["split"] == "test"]
    return [line for line in lines if line not in set(test[TESTED:])]


def _recipe(arm: Arm, rate: float, seed: int) -> Row:
    """Return a run with a round for each point, all from the first student."""
    roles: Row = {"beginner": {"policy": "student", "revision": "initial"}}
    if "teacher" in json.dumps([arm.train, arm.before]):
        roles["teacher"] = {"policy": "tiny-teacher"}
    train = {**arm.train, "learning_rate": rate, "warmup_steps": 0, "from": "initial", "steps": 1}
    measured = [{"evaluate": {"judge": "verifier", "max_tokens": LONGEST}}, {"gate": {}}]
    return {
        "student": "tiny",
        "seed": seed,
        "execution": {"threads": 1},
        "prompts": {"file": "prompts.jsonl", "per_round": 200},
        "roles": roles,
        "round": [*arm.before, {"train": train}, *measured],
        "stages": [{"set": {"train.steps": steps}} for steps in arm.steps],
    }


def _parameters(folder: Path) -> int:
    """Return how many numbers a model holds, the ones that it shares counted once."""
    from safetensors import safe_open

    found = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found += sum(math.prod(tensors.get_slice(k).get_shape()) for k in tensors.keys())  # noqa: SIM118
    return found


# -- the count


def _point(folder: Path, round_: int, sizes: Mapping[str, int]) -> Row:
    """Return what a round's job reached, and what it took, part by part."""
    import pyarrow.parquet as pq

    from redistill.store.query import read_rows

    [job] = read_rows(
        folder, f"SELECT status, message, steps FROM training_run WHERE round = {round_}"
    )
    assert job["status"] == "trained", job["message"]
    found = f"SELECT value FROM evaluation WHERE split = 'heldout' AND round = {round_}"
    [at] = read_rows(folder, found)
    job_folder = folder / "jobs" / str(round_)
    told = json.loads((job_folder / "job.json").read_text("utf-8"))
    rows = pq.read_table(job_folder / "rows.parquet").to_pylist()
    count = _supervised if "sft" in told["trainer"] else _rolled_out
    tokens = count(folder, round_, told, rows)
    flops = {part: each * sizes[who] * tokens.get(part, 0.0) for part, (who, each) in FLOPS.items()}
    return {
        "steps": job["steps"],
        "value": at["value"],
        "trained_tokens": tokens["trained_tokens"],
        "flops": sum(v for part, v in flops.items() if part != TEACHER_SPEAKS),
        "taught_flops": sum(flops.values()),
        "parts": flops,
    }


def _supervised(folder: Path, round_: int, job: Row, rows: Sequence[Row]) -> Row:
    """Count the tokens of a job on answers that were sampled before, and those of the sampling."""
    from redistill.store.query import read_rows
    from redistill.trainers.rows import training_order

    settings = job["trainer"]["sft"]
    used = training_order(len(rows), settings["steps"], settings["batch_size"], job["seed"])
    [said] = read_rows(
        folder,
        f"""
        WITH said AS (
            SELECT c.role, c.tokens, len(p.token_ids) AS asked, c.prompt_id
            FROM completion c JOIN rendered_prompt p ON p.id = c.rendered_prompt_id AND p.round = c.round
            WHERE c.round = {round_} AND c.step = 'sample'
        )
        SELECT any_value(role) AS role, sum(tokens) AS tokens,
               (SELECT sum(asked) FROM (SELECT DISTINCT prompt_id, asked FROM said)) AS asked
        FROM said
        """,
    )
    share = len(set(used)) / len(rows)
    who = TEACHER_SPEAKS if said["role"] == "teacher" else STUDENT_SPEAKS
    answers = sum(len(rows[place]["completion_ids"]) for place in used)
    asked = sum(len(rows[place]["prompt_ids"]) for place in used)
    return {
        who: share * (said["tokens"] + said["asked"]),
        LEARNS: asked + answers,
        "trained_tokens": answers,
    }


def _rolled_out(folder: Path, round_: int, job: Row, rows: Sequence[Row]) -> Row:
    """Count the tokens of a job that has sampled its own answers."""
    from redistill.store.query import read_rows

    [settings] = job["trainer"].values()
    asked = {row["id"]: len(row["prompt_ids"]) for row in rows}
    rollouts = read_rows(
        folder,
        f"""
        SELECT c.optimizer_step AS step, c.slot, c.tokens, c.prompt_id::VARCHAR AS prompt, r.weight > 0 AS learned
        FROM completion c JOIN training_row r ON r.completion_id = c.id AND r.round = c.round
        WHERE c.round = {round_} AND c.training_run_id IS NOT NULL
        """,
    )
    learned = [r for r in rollouts if r["learned"]]
    read = sum(r["tokens"] + asked[r["prompt"]] for r in learned)
    taught = 0
    if "top_k" in settings:
        # Once for the loss; the first micro-batch twice more, to see whether the teacher says the same again.
        first = [r for r in rollouts if r["step"] == 1 and r["slot"] < settings["micro_batch"]]
        taught = read + 2 * sum(r["tokens"] + asked[r["prompt"]] for r in first)
    prompts = {(r["step"], r["prompt"]) for r in rollouts}
    spoken = sum(r["tokens"] for r in rollouts) + sum(asked[prompt] for _, prompt in prompts)
    answers = sum(r["tokens"] for r in learned)
    return {STUDENT_SPEAKS: spoken, TEACHER_READS: taught, LEARNS: read, "trained_tokens": answers}


# -- what is told


def table(found: Row) -> str:
    """Return the tables of the page: what each target takes, as a median over seeds with the least and the most."""
    heads = "| | rate | steps | trained tokens | GFLOP | with the teacher's sampling | times less than GRPO |"
    lines = [heads, "|---|---:|---:|---:|---:|---:|---:|"]
    for target in map(str, TARGETS):
        lines.append(f"| **to {target}** | | | | | | |")
        dear = found["reached"]["grpo"][target]["taught_flops"]
        for name, arm in ARMS.items():
            took = found["reached"][name][target]
            both = zip(dear, took["taught_flops"], strict=True)
            cells = [arm.says, f"{found['rates'][name]:g}"]
            cells += [_spread(took["steps"], 1, 1), _spread(took["trained_tokens"], 1, 0)]
            cells += [_spread(took[cost], 1e9, 1) for cost in ("flops", "taught_flops")]
            times = _spread([a / b if a and b else None for a, b in both], 1, 1)
            cells += ["1" if name == "grpo" else times]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float | None], unit: float, digits: int) -> str:
    known = [value / unit for value in values if value is not None]
    if not known:
        return "not reached"
    told = f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"
    return told if len(known) == len(values) else f"{told}, {len(known)} of {len(values)} seeds"


def picture(found: Row) -> str:
    """Return the curves of the best rates: held-out value by all floating point operations."""
    from redistill.report.charts import MARKS, Line, lines_svg

    lines = []
    for nth, (name, colour) in enumerate(COLOURS.items()):
        for one in found["curves"]:
            if one["arm"] != name or one["rate"] != found["rates"][name]:
                continue
            points = [(math.log10(p["taught_flops"]), p["value"]) for p in one["points"]]
            says = ARMS[name].says if one["seed"] == SEEDS[0] else ""
            lines.append(Line(points, colour, MARKS[nth], says))
    ticks = {9.0: "1", 9.5: "3", 10.0: "10", 10.5: "32", 11.0: "100", 11.5: "316"}
    low, high = (f(x for line in lines for x, _ in line.points) for f in (min, max))
    shown = {x: text for x, text in ticks.items() if low - 0.2 <= x <= high + 0.2}
    title = "Held-out value by what the training took"
    return lines_svg(
        "compute", title, lines, ("GFLOP, the teacher's sampling too", "held-out value"), shown
    )


if __name__ == "__main__":
    main()
