"""A trainer without a model, for tests of everything around training.

A model folder of the fake world holds `fake.json`, `{"name": ..., "skill": 0.3, ...}`; its revision is
the content hash of that value.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ..hashing import content_hash
from ..policies.revision import publish
from ..trainers.rows import RowsKind, read_rows
from ..trainers.trainer import Emit, FitResult, Job, Trainer


class FakeTrainer(Trainer):
    """Raises the skill in `fake.json` by `gain`, whatever the rows say.

    Other rows give another revision. Skill stays within [0, 1]; a gain of 0 is `no_change`.
    """

    name: ClassVar[str] = "redistill.testing.fakes_trainer:FakeTrainer"

    batch_size: int = Field(1, ge=1)
    micro_batch: int = Field(1, ge=1)
    steps: int | None = Field(1, ge=1)
    gain: float = Field(0.2, ge=-1, le=1)
    """Added to the skill."""
    rows_kind: RowsKind = "completions"
    """What the rows must be."""

    @property
    def rows(self) -> RowsKind:  # type: ignore[override]  # a setting here, not the class's own
        """What the rows must be."""
        return self.rows_kind

    @property
    def reference(self) -> bool:  # type: ignore[override]  # as the rows that it pretends to train on
        """Whether rows need log-probs of the reference policy."""
        return self.rows_kind != "completions"

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Publish a folder with more skill."""
        rows = read_rows(job.rows, self.rows, job.dataset_hash).num_rows
        if rows == 0:
            return FitResult(status="no_rows", message="the training set is empty")
        if (steps := self.plan(rows)) == 0:
            return FitResult(status="no_steps", message=self.arithmetic(rows))
        start = read_fake(job.start_folder)
        if content_hash(start) != job.start_revision:
            return FitResult(status="start_mismatch", message=f"start is {content_hash(start)}")
        if self.gain == 0:
            return FitResult(status="no_change", message="gain is 0")
        metrics = []
        for step in range(1, steps + 1):
            loss = 1 / (1 + step)
            metrics.append({"step": step, "name": "loss", "value": loss})
            emit({"event": "step", "step": step, "steps": steps, "loss": loss})
        return self._publish(job, start, metrics, rows)

    def _publish(
        self, job: Job, start: dict[str, Any], metrics: list[dict[str, Any]], rows: int
    ) -> FitResult:
        skill = min(1.0, max(0.0, round(start["skill"] + self.gain, 6)))
        grown = {**start, "skill": skill, "parent": job.start_revision, "rows": job.dataset_hash}
        shutil.rmtree(job.staging, ignore_errors=True)
        write_fake(job.staging, grown)
        revision = publish(
            job.staging,
            job.revisions_root,
            revision=content_hash(grown),
            parent=job.start_revision,
            canary=None,
            facts=job.facts(self, rows=rows, steps=len(metrics)),
        )
        return FitResult(
            status="trained", revision=revision.id, steps=len(metrics), rows=rows, metrics=metrics
        )


def read_fake(folder: Path) -> dict[str, Any]:
    """Return what a fake model folder holds."""
    held: dict[str, Any] = json.loads((folder / "fake.json").read_text(encoding="utf-8"))
    return held


def write_fake(folder: Path, value: dict[str, Any]) -> str:
    """Make a fake model folder and return its revision."""
    folder.mkdir(parents=True, exist_ok=True)
    # A published folder holds weights; these are the smallest that there can be.
    head = json.dumps({"skill": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights = len(head).to_bytes(8, "little") + head + struct.pack("<f", value["skill"])
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "fake.json").write_text(json.dumps(value, sort_keys=True), encoding="utf-8")
    return content_hash(value)
