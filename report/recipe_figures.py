"""What recipes have come to, side by side: the table that a benchmark prints and that their index shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, Any]
"""Of one recipe, as `benchmarks/results/recipes.json` has it."""
SMOLLM2 = "smollm2_"
"""How the names of recipes for SmolLM2 begin; all others are of the toy."""
_HEADS = (
    "recipe",
    "seeds",
    "before",
    "gain on test",
    "tokens an answer",
    "promoted",
    "judge calls",
    "tokens sampled",
    "seconds",
)
_NOTE = (
    "Each from the first student. The gain is the paired difference on `test` of the last champion to it, with its interval "
    "over seeds and prompts; where no round was promoted it is 0. Judge calls are verdicts on what trains, without the "
    "gate's own. Seconds are wall time, of the machine that ran them, beside others."
)


def comparison(found: Mapping[str, Figures]) -> str:
    """Return the recipes as a table of Markdown, in the order given."""
    lines = [f"| {' | '.join(_HEADS)} |", f"|---|{'---:|' * (len(_HEADS) - 1)}"]
    return "\n".join([*lines, *(_line(name, row) for name, row in found.items())])


def _line(name: str, row: Figures) -> str:
    cells = [
        name,
        str(len(row["by_seed"])),
        f"{row['before']:.3f}",
        f"{row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
        f"{row['length_before']:.1f} → {row['length_after']:.1f}",
        f"{row['promoted']:.1f} of {row['rounds']:.0f}",
        f"{row['judge_calls']:,.0f}",
        f"{row['tokens']:,.0f}",
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def sections(figures: Mapping[str, Figures]) -> list[str]:
    """Return the parts of a page that compare what was measured; none where nothing was."""
    real = {name: row for name, row in figures.items() if name.startswith(SMOLLM2)}
    toy = {name: row for name, row in figures.items() if name not in real}
    parts = []
    if toy:
        parts += [
            "## What they came to\n",
            (
                "`make bench-recipes` runs the seven presets on the toy; "
                '`make bench-recipes ARGS="--recipes all"` the others too.\n'
            ),
            comparison(toy) + "\n",
            _NOTE + "\n",
        ]
    if real:
        parts += [
            (
                "On SmolLM2-135M, one round of the quickstart's questions, one seed (`make bench-recipes ARGS=--smollm2`, recipes "
                "in `examples/`):\n"
            ),
            comparison(real) + "\n",
        ]
    return parts
