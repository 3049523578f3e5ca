"""Whether a run decides on a card as it does on the processor: three rounds of `quickstart-tiny`, in float32 on both.

Two processes run the recipe, one that sees the card and one that does not. Beside each other stand each round's decision,
its held-out difference, and the gain on the test split; answers may differ where rounding turns a draw. Goal: the
decisions are the same.

A dry run has the processor twice, a few of the prompts, and the first round alone.

    python benchmarks/gpu/rounds.py [--shape quickstart|tiny] [--device cuda|cpu] [--out FILE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also where Python does not look beside a script

from shapes import Asked, Row, goal, script

from redistill.policies.placement import VISIBLE

RECIPE = "quickstart-tiny"
FEW = {"train": 16, "heldout": 8, "test": 8}
"""Prompts of a dry run, by split."""


def measure(asked: Asked) -> Row:
    """Run both, and return what they decided and gained."""
    settings = _few(asked.folder) if asked.shape == "tiny" else []
    sides = {
        "on_device": decided(asked.folder / "device", settings, {}),
        "on_processor": decided(asked.folder / "processor", settings, {VISIBLE: ""}),
    }
    decisions = [[row["decision"] for row in side["rounds"]] for side in sides.values()]
    equal = sum(a == b for a, b in zip(*decisions, strict=True)) / len(decisions[0])
    gains = [side["gain"] for side in sides.values()]
    return {
        **sides,
        "gain_difference": gains[0] - gains[1],
        "equal_decisions": goal(asked, equal, least=1.0),
    }


def decided(runs: Path, settings: Sequence[str], environment: dict[str, str]) -> Row:
    """Run the recipe in a process of its own.

    Args:
        runs: folder of the run.
        settings: that replace the recipe's.
        environment: what the process is told beside this one's own.
    """
    command = [sys.executable, "-P", "-m", "redistill.cli", "run", RECIPE, "--json"]
    command += ["--runs", str(runs), "--set", "precision=float32"]
    for setting in settings:
        command += ["--set", setting]
    told = os.environ | environment
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=told)
    found = json.loads(done.stdout)
    rounds = [
        {
            "round": row["round"],
            "decision": row["decision"],
            "heldout_difference": (row["metric"] or {}).get("delta"),
        }
        for row in found["rounds"]
    ]
    return {"rounds": rounds, "gain": found["gain"]["delta"], "seconds": found["seconds"]["total"]}


def _few(folder: Path) -> list[str]:
    """Write the first prompts of each split, and return the settings that name them."""
    file = resources.files("redistill") / "recipes" / "data" / "tiny.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    kept = [row for s, most in FEW.items() for row in [r for r in rows if r["split"] == s][:most]]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, kept)), "utf-8")
    return [f"prompts.file={prompts}", f"prompts.per_round={FEW['train']}", "loop.rounds=1"]


if __name__ == "__main__":
    script("rounds", __doc__, measure, "quickstart", ("quickstart", "tiny"))
