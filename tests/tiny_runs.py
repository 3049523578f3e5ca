"""Real runs of the tiny student, small and quick: one round from its teacher's answers, promoted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redistill.agents.loop import Place, run
from redistill.agents.opening import open_cast, prepared, write_opening
from redistill.agents.recipe import load_recipe
from redistill.policies import catalog
from redistill.store.store import Store

DATA = Path(catalog.__file__).parents[1] / "recipes" / "data" / "tiny.jsonl"
MOST: dict[str, int] = {"train": 64, "heldout": 40, "test": 16}


def make_tiny_run(base: Path, name: str, *, heldout: int = 40, **settings: Any) -> Path:
    """Run one round of supervised training on the teacher's answers that pass, and return the run's folder.

    Args:
        base: where `runs/` is.
        name: of the run.
        heldout: prompts that the gate reads; a handful is too few for any promotion.
        settings: of the trainer, or `precision` of the run.
    """
    precision = settings.pop("precision", "float32")
    train = {"batch_size": 16, "micro_batch": 16, "steps": 12, "learning_rate": 5e-4} | settings
    recipe = {
        "name": name,
        "student": "tiny",
        "precision": precision,
        "prompts": {"file": "prompts.jsonl", "per_round": MOST["train"]},
        "roles": {"teacher": {"policy": "tiny-teacher"}},
        "round": [
            {"sample": {"role": "teacher", "k": 2, "temperature": 0.7, "max_tokens": 44}},
            {"score": {"judge": "verifier"}},
            {"select": {"where": "verifier = 1"}},
            {"train": {"trainer": "sft", **train}},
            {"evaluate": {"judge": "verifier", "max_tokens": 44}},
            {"gate": {}},
        ],
        "loop": {"rounds": 1},
    }
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    most = MOST | {"heldout": heldout}
    few = [row for split in most for row in _of(rows, split)[: most[split]]]
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, few)), "utf-8")
    loaded = load_recipe(json.dumps(recipe), f"{name}.yaml", base=base)
    return run(loaded, place=Place(base / "runs", catalog.default_cache()))


def begin_tiny_run(base: Path, name: str) -> Path:
    """Open a run of the tiny student and go no further: it has its initial revision, and no round."""
    rows = [{"prompt": f"spell {split}", "split": split} for split in MOST]
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = {
        "name": name,
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl"},
        "round": [
            {"sample": {"k": 2, "max_tokens": 44}},
            {"score": {"judge": "longest"}},
            {"select": {}},
            {"train": {"trainer": "sft"}},
            {"evaluate": {"judge": "longest"}},
            {"gate": {}},
        ],
        "unproven_judge": "allow",
        "same_judge": "allow",
    }
    loaded = load_recipe(json.dumps(recipe), f"{name}.yaml", base=base)
    plan = prepared(loaded, Place(base / "runs", catalog.default_cache()))
    store, cast = Store(plan.folder), open_cast(plan)
    write_opening(plan, store, cast)
    cast.close()
    store.close()
    return plan.folder


def _of(rows: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == split]
