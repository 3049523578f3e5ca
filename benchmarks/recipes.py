"""What the recipes that ship come to: every one from the same start, its gain on `test`, and what it has cost.

    make bench-recipes                                        the seven presets, three rounds of the toy, three seeds
    python benchmarks/recipes.py --recipes all                the named systems too
    python benchmarks/recipes.py --smollm2                    one round of SmolLM2-135M on the quickstart's task, for three

The gain is the paired difference on `test` of the last champion to the first student; its interval is over seeds and
prompts. Where no round was promoted the champion is the first student, and the gain is 0 by that. Judge calls are verdicts
on answers that train, the gate's own not among them. Tokens are those of the answers that were sampled to train on.

Writes `benchmarks/results/recipes.json`, from which the pages of the recipes and the table of docs/recipes/index.md are made.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "recipes.json"
PRESETS = (
    "sft_distill",
    "rejection_sft",
    "critique_revise",
    "judge_dpo",
    "contrast_dpo",
    "reward_rl",
    "on_policy_distill",
)
SMOLLM2 = ("judge_dpo", "rejection_sft", "on_policy_distill")
SEEDS = 3
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to."""

    before: list[float]
    """Values of the first student on the test prompts."""
    after: list[float]
    """Of the last champion."""
    length_before: float
    """Mean tokens of an answer on test."""
    length_after: float
    rounds: int
    promoted: int
    judge_calls: int
    tokens: int
    seconds: float


def main() -> None:
    """Run the recipes, and tell."""
    from redistill.report.recipe_figures import comparison

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--recipes", default="presets", help="presets, all, or names with commas between"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--rounds", type=int, help="rounds of each; the recipe's own where left out"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--smollm2", action="store_true", help="the three of the quickstart's task")
    parser.add_argument(
        "--runs", type=Path, help="keeps the runs there, and goes on with those that are there"
    )
    told = parser.parse_args()
    if told.smollm2:
        names = [f"examples/smollm2_{name}.yaml" for name in SMOLLM2]
        told.seeds, told.jobs = 1, 1
    else:
        names = chosen(told.recipes)
    runs = told.runs or Path(tempfile.mkdtemp(prefix="redistill-bench-"))
    try:
        found = measure(names, told, runs)
    finally:
        if not told.runs:
            shutil.rmtree(runs, ignore_errors=True)
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(in_order(kept | found), indent=1) + "\n", "utf-8")
    print(comparison(found))


def in_order(found: dict[str, Row]) -> dict[str, Row]:
    """Return figures with the presets first, and the others by name."""
    return {name: found[name] for name in sorted(found, key=lambda n: (n not in PRESETS, n))}


def chosen(asked: str) -> list[str]:
    """Return the names of the recipes that are asked for, the presets first."""
    from redistill.agents.extending import shipped

    if asked == "presets":
        return list(PRESETS)
    if asked == "all":
        others = [n for n in shipped() if n not in PRESETS and not n.startswith("quickstart")]
        return [*PRESETS, *others]
    return asked.split(",")


def measure(names: Sequence[str], told: argparse.Namespace, runs: Path) -> dict[str, Row]:
    """Run each recipe with each seed, and return the figures of each recipe."""
    asked = [(name, seed) for name in names for seed in range(told.seeds)]
    threads = None if told.jobs == 1 else 1
    one = partial(outcome, runs=runs, rounds=told.rounds, threads=threads)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    with ProcessPoolExecutor(told.jobs) as pool:
        for (name, seed), came in zip(asked, pool.map(one, *zip(*asked, strict=True)), strict=True):
            outcomes[name].append(came)
            gain = fmean(came.after) - fmean(came.before)
            print(
                f"{name} seed {seed}: {gain:+.3f}, {came.promoted} of {came.rounds} promoted",
                flush=True,
            )
    return {Path(name).stem: figures(name, came) for name, came in outcomes.items()}


def outcome(
    name: str, seed: int, *, runs: Path, rounds: int | None, threads: int | None
) -> Outcome:
    """Run a recipe with a seed to its end."""
    from redistill.agents.loop import Place, run
    from redistill.commands.shared import read_recipe
    from redistill.policies import catalog

    settings = [f"seed={seed}", f"name={Path(name).stem}-{seed}"]
    settings += [f"execution.threads={threads}"] if threads else []
    settings += [f"loop.rounds={rounds}"] if rounds else []
    recipe = read_recipe(str(ROOT / name) if name.endswith(".yaml") else name, settings)
    folder = run(recipe, place=Place(runs, catalog.default_cache()))
    return told_of(folder)


def told_of(folder: Path) -> Outcome:
    """Return what a finished run came to, from its store."""
    from redistill.report.summary import answers_on_test, summary
    from redistill.store.query import read_rows

    answers = [a for a in answers_on_test(folder) if "transfer" not in a["tags"]]
    found = summary(folder)
    [paid] = read_rows(
        folder,
        """
        SELECT (SELECT count(*) FROM judgement j
                JOIN completion c ON c.id = coalesce(j.completion_id, j.presented[1])
                WHERE c.split = 'train' AND j.aspect = '' AND j.round > 0) AS judged,
               (SELECT coalesce(sum(tokens), 0) FROM completion WHERE split = 'train' AND round > 0) AS tokens
        """,
    )
    decided = {row["round"]: row["decision"] for row in found["rounds"]}
    return Outcome(
        before=[a["before"] for a in answers],
        after=[a["after"] for a in answers],
        length_before=fmean(a["tokens_before"] for a in answers),
        length_after=fmean(a["tokens_after"] for a in answers),
        rounds=len(decided),
        promoted=sum(decision == "promoted" for decision in decided.values()),
        judge_calls=int(paid["judged"]),
        tokens=int(paid["tokens"]),
        seconds=float(found["seconds"]["total"]),
    )


def figures(name: str, came: Sequence[Outcome]) -> Row:
    """Return the means over seeds, and the gain with its interval over seeds and prompts."""
    from redistill.store.analysis import nested_bootstrap

    gains = [[b - a for a, b in zip(one.before, one.after, strict=True)] for one in came]
    mean, low, high = nested_bootstrap(gains, seed=name)
    rows = [asdict(one) for one in came]
    means = {
        key: fmean(row[key] for row in rows)
        for key in (
            "length_before",
            "length_after",
            "rounds",
            "promoted",
            "judge_calls",
            "tokens",
            "seconds",
        )
    }
    return {
        "gain": mean,
        "low": low,
        "high": high,
        "by_seed": [fmean(gain) for gain in gains],
        "before": fmean(fmean(one.before) for one in came),
        "after": fmean(fmean(one.after) for one in came),
        "n": len(gains[0]),
        **means,
    }


if __name__ == "__main__":
    main()
