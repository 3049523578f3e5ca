"""Jobs of a tiny student, in a run folder of their own: what the tests of trainers have in common."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from redistill.trainers.guarded import Guarded
from redistill.trainers.rows import RowsKind, rows_table, write_rows
from redistill.trainers.trainer import Job, Result, Trainer, run_job

Row = dict[str, Any]


class Bench:
    """A run folder with a tiny random student, and jobs in it."""

    def __init__(self, run: Path, start: Path, revision: str) -> None:
        self.run, self.start, self.revision = run, start, revision
        self.events: list[dict[str, Any]] = []

    @property
    def published(self) -> list[str]:
        """Names of everything in the revisions folder, leftovers included."""
        root = self.run / "revisions"
        return sorted(p.name for p in root.iterdir()) if root.exists() else []

    def job(
        self, name: str, trainer: Trainer, kind: RowsKind, rows: list[Row], **fields: Any
    ) -> Path:
        """Write a job's folder and return it."""
        folder = self.run / "jobs" / name
        digest = write_rows(folder / "rows.parquet", rows_table(kind, rows))
        settings: Row = {
            "id": name,
            "trainer": {trainer.name: trainer.params()},
            "start_folder": self.start,
            "start_revision": self.revision,
            "revisions_root": self.run / "revisions",
            "rows": folder / "rows.parquet",
            "dataset_hash": digest,
        }
        Job(**{**settings, **fields}).write(folder, self.run)
        return folder

    def train(self, name: str, trainer: Trainer, rows: list[Row], **fields: Any) -> Result:
        """Run a job here, in this process."""
        address = fields.pop("address", "")
        folder = self.job(name, trainer, trainer.rows, rows, **fields)
        return run_job(folder, self.run, self.events.append, address)


def watched_gradient(patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Return a dictionary that gets each step's gradient, by parameter, before the optimiser takes it."""
    gradient: dict[str, Tensor] = {}
    whole = Guarded._get_grad_norm

    def spy(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        for name, parameter in self.model.named_parameters():  # type: ignore[union-attr]
            if parameter.grad is not None:
                gradient[name] = parameter.grad.detach().clone()
        return whole(self, *args, **kwargs)

    patch.setattr(Guarded, "_get_grad_norm", spy)
    return gradient


def load(folder: Path) -> Any:
    """Load a model in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def answers(count: int, seed: int = 0) -> list[Row]:
    """Make SFT rows whose prompts and answers differ in length."""
    draw = random.Random(seed)
    return [
        {
            "id": f"r{i}",
            "prompt_ids": [draw.randrange(4, 100) for _ in range(draw.randrange(3, 12))],
            "completion_ids": [draw.randrange(4, 100) for _ in range(draw.randrange(1, 7))] + [2],
            "weight": 1.0,
            "token_weights": None,
        }
        for i in range(count)
    ]


def prompts(count: int, seed: int = 0) -> list[Row]:
    """Make prompts that differ in length, for policies that sample while they train."""
    return [
        {"id": row["id"], "prompt_ids": row["prompt_ids"], "weight": 1.0}
        for row in answers(count, seed)
    ]


def labelled(count: int, seed: int = 0) -> list[Row]:
    """Make answers that are wanted or not in turn, each beside the next one, with references out of thin air."""
    draw = random.Random(seed)
    rows = answers(count, seed)
    return [
        {
            "id": row["id"],
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row["completion_ids"],
            "wanted": place % 2 == 0,
            "weight": 1.0,
            "ref_logp": draw.uniform(-30, -5),
            "other_ids": rows[(place + 1) % count]["completion_ids"],
            "ref_other_logp": draw.uniform(-30, -5),
        }
        for place, row in enumerate(rows)
    ]


def ranked(count: int, seed: int = 0) -> list[Row]:
    """Make lists of four answers: the first is better than all, the next two are equal, the last is worse than all."""
    draw = random.Random(seed)
    order = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    return [
        {
            "id": row["id"],
            "prompt_ids": row["prompt_ids"],
            "answers_ids": [
                row["completion_ids"],
                *([*(draw.randrange(4, 100) for _ in range(length)), 2] for length in (1, 6, 3)),
            ],
            "better": [better for better, _ in order],
            "worse": [worse for _, worse in order],
            "weight": 1.0,
        }
        for row in answers(count, seed)
    ]


def pairs(count: int, seed: int = 0) -> list[Row]:
    """Make DPO rows with reference log-probs out of thin air."""
    draw = random.Random(seed)
    return [
        {
            "id": row["id"],
            "prompt_ids": row["prompt_ids"],
            "chosen_ids": row["completion_ids"],
            "rejected_ids": [draw.randrange(4, 100) for _ in range(draw.randrange(1, 7))] + [2],
            "ref_chosen_logp": draw.uniform(-30, -5),
            "ref_rejected_logp": draw.uniform(-30, -5),
            "weight": 1.0,
            "margin": 0.0,
            "probability": None,
            "gold_ids": None,
        }
        for row in answers(count, seed)
    ]


@torch.no_grad()
def logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Sum the log-probs of an answer's tokens, one sequence at a time, no padding."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(logits.double().log_softmax(-1)[range(len(answer)), answer].sum())


def first(result: Result, name: str) -> float:
    """Return a metric of step 1."""
    assert result.status == "trained", result.message
    return float(next(m["value"] for m in result.metrics if m["name"] == name and m["step"] == 1))
