"""A job in two processes, and one that goes on from a checkpoint: the same weights as undisturbed, in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Bench, answers, labelled, load, pairs

from redistill.trainers.checkpoints import newest
from redistill.trainers.preference import DPO, KTO
from redistill.trainers.supervised import SFT
from redistill.trainers.trainer import Result, run_job

MADE: dict[str, Any] = {
    "sft": (SFT(batch_size=8, micro_batch=2, steps=3, learning_rate=1e-4), answers),
    "dpo": (DPO(batch_size=8, micro_batch=2, steps=3, learning_rate=1e-4), pairs),
}


def _weights(bench: Bench, result: Result) -> dict[str, torch.Tensor]:
    assert result.status == "trained", result.message
    model = load(bench.run / "revisions" / str(result.revision))
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


@pytest.mark.parametrize("name", MADE)
def test_two_processes_give_the_weights_of_one(bench: Bench, name: str) -> None:
    """`accelerate launch` shares each step between two processes; the weights are those of one process."""
    trainer, rows = MADE[name]
    given = [row | {"weight": 0.5 + n} for n, row in enumerate(rows(8))]
    one = bench.train("one", trainer, given)
    two = bench.train("two", trainer, given, processes=2)
    ours, theirs = _weights(bench, one), _weights(bench, two)
    worst = max(float((ours[n] - theirs[n]).abs().max()) for n in ours)
    moved = max(float((ours[n] - load(bench.start).state_dict()[n]).abs().max()) for n in ours)
    assert worst < 1e-3 * moved
    assert [m["name"] for m in one.metrics] == [m["name"] for m in two.metrics]


def test_a_process_that_fails_ends_them_all(bench: Bench) -> None:
    """Rows that only one process meets are a status for the job, soon, and nothing is published."""
    rows = pairs(8)
    rows[5]["margin"] = 1e308  # more than fp32 holds
    began = time.monotonic()
    trainer = DPO(batch_size=8, micro_batch=2, steps=2, offset=1.0)
    result = bench.train("two", trainer, rows, processes=2)
    assert (result.status, bench.published) == ("nonfinite", [])
    assert time.monotonic() - began < 120


def test_rows_that_cannot_be_shared_are_refused(bench: Bench) -> None:
    """Three rows a step are no whole number for two processes."""
    result = bench.train("two", SFT(batch_size=3, micro_batch=1), answers(6), processes=2)
    assert result.status == "failed"
    assert "2 processes cannot share 3 rows evenly" in result.message


CHILD = """
import sys
from pathlib import Path
from redistill.trainers.trainer import run_job

def tell(event):
    print(event["event"], event.get("step"), flush=True)

run_job(Path(sys.argv[1]), Path(sys.argv[2]), tell)
"""


@pytest.mark.parametrize("kill_at", [2, 5])
def test_a_killed_job_goes_on_to_the_same_losses(bench: Bench, kill_at: int) -> None:
    """From its last whole checkpoint: losses and weights are bit for bit those of a job that was left alone."""
    trainer = KTO(batch_size=4, micro_batch=4, steps=8, learning_rate=1e-4, save_every=2)
    alone = bench.train("alone", trainer, labelled(8))
    folder = bench.job("killed", trainer, trainer.rows, labelled(8))
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, str(folder), str(bench.run)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if line.split() == ["step", str(kill_at)]:
                break
        os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (folder / "result.json").exists()
    events: list[dict[str, Any]] = []
    resumed = run_job(folder, bench.run, events.append)
    # It may have been killed before the checkpoint of its last step was whole.
    events = [event for event in events if event["event"] != "way"]
    from_step = events[0]["from"]
    assert kill_at - 3 < from_step <= kill_at
    assert [e["step"] for e in events[1:]] == list(range(from_step + 1, 9))
    measured = [(m["step"], m["value"]) for m in alone.metrics if m["name"] == "loss"]
    assert [(m["step"], m["value"]) for m in resumed.metrics if m["name"] == "loss"] == measured
    assert resumed.revision == alone.revision
    assert not (folder / "checkpoints").exists()


def test_a_checkpoint_that_was_being_written_is_none(tmp_path: Path) -> None:
    """Without its last file a checkpoint is taken away, and the one before it counts."""
    for step, whole in ((2, True), (4, True), (10, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
        if whole:
            (folder / "whole.json").write_text(json.dumps({"step": step}), "utf-8")
    assert newest(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-10").exists()
