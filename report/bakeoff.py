"""What a bake-off came to: a table, a picture, and all figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..agents.bakeoff import Contest, Entry
from ..store.analysis import nested_bootstrap
from .charts import bakeoff_svg

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]

_RESULTS = ("trainer", "learning rate", "steps", "held-out", "test", "gain on test")
_COSTS = ("trained tokens", "sampled", "judged", "seconds", "CPU s", "peak MB")
_COLUMNS = (*_RESULTS, *_COSTS)


def standings(entries: Sequence[Entry]) -> list[Row]:
    """Return one row for each arm, the best gain first; intervals are over seeds and test prompts."""
    found = []
    for arm in dict.fromkeys(entry.arm for entry in entries):
        mine = [entry for entry in entries if entry.arm == arm]
        gains = [[b - a for a, b in zip(e.before, e.after, strict=True)] for e in mine]
        mean, low, high = nested_bootstrap(gains, seed=arm)
        found.append(
            {
                "trainer": arm,
                "seeds": [entry.seed for entry in mine],
                "learning_rate": mine[0].learning_rate,
                "steps": mine[0].steps,
                "heldout": fmean(entry.heldout for entry in mine),
                "test": fmean(fmean(entry.after) for entry in mine),
                "gain": mean,
                "ci_low": low,
                "ci_high": high,
                "n": len(mine[0].after),
                "by_seed": [fmean(gain) for gain in gains],
                "costs": {
                    name: fmean(asdict(entry.costs)[name] for entry in mine)
                    for name in asdict(mine[0].costs)
                },
            }
        )
    return sorted(found, key=lambda row: -row["gain"])


def write(folder: Path, contest: Contest, rows: Sequence[Row]) -> list[Path]:
    """Write `bakeoff.json`, `bakeoff.md` and `bakeoff.svg` into a folder, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"equal": contest.equal, "rates": list(contest.rates), "arms": list(rows)}
    texts = {
        "bakeoff.json": json.dumps(told, indent=1),
        "bakeoff.md": markdown(contest, rows),
        "bakeoff.svg": bakeoff_svg(rows),
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in texts]


def markdown(contest: Contest, rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    told = (
        f"Equal {contest.equal}; {len(contest.seeds)} seeds, {rows[0]['n']} test prompts. Learning rates were "
        f"chosen on held-out prompts at seed {contest.seeds[0]}; a gain's interval is over seeds and prompts."
    )
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        f"|---|{'---:|' * (len(_COLUMNS) - 1)}",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
        "",
        told,
    ]
    return "\n".join(lines)


def show(console: Console, contest: Contest, rows: Sequence[Row]) -> None:
    """Print what came out, and what it has cost on average."""
    from rich.table import Table

    seeds = f"{len(contest.seeds)} seeds" if len(contest.seeds) > 1 else "one seed"
    results = Table(title=f"equal {contest.equal}, {seeds}, {rows[0]['n']} test prompts")
    prices = Table(title="what a seed has cost")
    for table, names in ((results, _RESULTS), (prices, ("trainer", *_COSTS))):
        for name in names:
            table.add_column(name, justify="left" if name == "trainer" else "right")
    for row in rows:
        cells = _cells(row)
        results.add_row(*cells[: len(_RESULTS)])
        prices.add_row(cells[0], *cells[len(_RESULTS) :])
    console.print(results)
    console.print(prices)


def _cells(row: Row) -> list[str]:
    paid = row["costs"]
    return [
        row["trainer"],
        f"{row['learning_rate']:.1e}",
        str(row["steps"]),
        f"{row['heldout']:.3f}",
        f"{row['test']:.3f}",
        f"{row['gain']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]",
        f"{paid['trained_tokens']:,.0f}",
        f"{paid['sampled']:,.0f}",
        f"{paid['judged']:,.0f}",
        f"{paid['seconds']:.0f}",
        f"{paid['cpu_seconds']:.0f}",
        f"{paid['peak_mb']:,.0f}",
    ]
