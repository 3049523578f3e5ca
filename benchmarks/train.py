"""What a DPO job costs: ours beside TRL with a loaded reference, and beside TRL with log-probs that cost it nothing.

Five arms, each a process of its own, on the same weights, pairs, order, micro-batch and schedule, in fp32:
`loaded` is TRL's DPOTrainer with the reference model beside the policy; `precomputed` is the same with the
reference's log-probs in its rows, made before and not counted; `redistill` runs a job, from its files to the
published revision. None of the three computes activations again in the backward pass; `loaded_recomputed` (TRL's own
default) and `recomputed` are `loaded` and `redistill` that do. CPU seconds are those of the steps alone (of the job too, in `job_cpu_s`), memory is the most
that the process has held. Pairs are those of the starter exam, in SmolLM2's chat template.

Writes `benchmarks/results/train.json`. Ratios are the figures; seconds belong to one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "train.json"
STUDENT = "smollm2-135m"
PAIRS, BATCH, STEPS, BETA, RATE = 32, 8, 4, 0.1, 5e-6
ARMS = ("loaded", "loaded_recomputed", "precomputed", "redistill", "recomputed")
Row = dict[str, Any]


def main() -> None:
    """Run the arms in turn, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=[*ARMS, "rows"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    told = parser.parse_args()
    if told.arm == "rows":
        make_rows(told.folder)
    elif told.arm:
        work = ours if told.arm in ("redistill", "recomputed") else theirs
        print(json.dumps(work(told.arm, told.folder)))
    else:
        measure(told.repeats)


def measure(repeats: int) -> None:
    """Measure the arms side by side `repeats` times, in alternating order; the ratios are medians over repeats."""
    found: dict[str, list[Row]] = {name: [] for name in ARMS}
    folder = Path(tempfile.mkdtemp(prefix="redistill-bench-"))
    try:
        _child("rows", folder)
        for repeat in range(repeats):
            for name in ARMS[:: 1 if repeat % 2 == 0 else -1]:
                found[name].append(json.loads(_child(name, folder)))
                told = found[name][-1]
                print(f"{name}: {told['cpu_s']:.1f} CPU s, {told['peak_mb']:.0f} MB", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ours_losses = found["redistill"][0]["losses"]
    result = {
        "time_ratio_loaded": _ratio(found, "loaded", "cpu_s"),
        "time_ratio_precomputed": _ratio(found, "precomputed", "cpu_s"),
        "memory_ratio_loaded": _ratio(found, "loaded", "peak_mb"),
        "memory_ratio_precomputed": _ratio(found, "precomputed", "peak_mb"),
        "both_recomputed": {
            "time_ratio_loaded": _ratio(found, "loaded_recomputed", "cpu_s", "recomputed"),
            "memory_ratio_loaded": _ratio(found, "loaded_recomputed", "peak_mb", "recomputed"),
        },
        "memory_ratio_loaded_recomputed": _ratio(found, "loaded", "peak_mb", "recomputed"),
        "max_loss_difference": max(
            abs(a - b)
            for name in ARMS
            for a, b in zip(ours_losses, found[name][0]["losses"], strict=True)
        ),
        "cpu_s": {name: [round(r["cpu_s"], 1) for r in runs] for name, runs in found.items()},
        "peak_mb": {name: [round(r["peak_mb"]) for r in runs] for name, runs in found.items()},
        "job_cpu_s": [round(r["job_cpu_s"], 1) for r in found["redistill"]],
        "losses": {name: runs[0]["losses"] for name, runs in found.items()},
        "pairs": {"count": PAIRS, "batch_size": BATCH, "micro_batch": BATCH, "steps": STEPS},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))


def _ratio(found: dict[str, list[Row]], other: str, figure: str, arm: str = "redistill") -> float:
    both = zip(found[arm], found[other], strict=True)
    return round(float(statistics.median(mine[figure] / its[figure] for mine, its in both)), 3)


def _child(arm: str, folder: Path) -> str:
    command = [sys.executable, "-P", __file__, "--arm", arm, "--folder", str(folder)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout.strip().split("\n")[-1]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- the work


def make_rows(folder: Path) -> None:
    """Write the pairs with the reference's log-probs."""
    from redistill.agents.exam import starter_exam
    from redistill.policies import catalog
    from redistill.policies.transformers import TransformersPolicy
    from redistill.types import Message

    revision = catalog.resolve(STUDENT, cache=catalog.default_cache()).revision
    policy = TransformersPolicy(revision)
    policy.load(revision)
    rows = []
    for item in starter_exam().items[::11][:PAIRS]:
        prompt = list(policy.encode((Message("user", item.text),)))
        better, worse = item.answers if item.label == 1 else item.answers[::-1]
        sides = [list(policy.spell(text)) for text in (better, worse)]
        scored = policy.score([(tuple(prompt), tuple(side)) for side in sides])
        rows.append(
            {
                "id": item.id,
                "prompt_ids": prompt,
                "chosen_ids": sides[0],
                "rejected_ids": sides[1],
                "ref_chosen_logp": sum(scored[0]),
                "ref_rejected_logp": sum(scored[1]),
                "weight": 1.0,
                "margin": 0.0,
                "probability": None,
                "gold_ids": None,
            }
        )
    (folder / "rows.json").write_text(json.dumps(rows), "utf-8")
    (folder / "start.txt").write_text(str(revision.folder), "utf-8")
    (folder / "revision.txt").write_text(revision.id, "utf-8")


def _rows(folder: Path) -> list[Row]:
    rows: list[Row] = json.loads((folder / "rows.json").read_text("utf-8"))
    return rows


def _threads() -> int:
    import torch

    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    return threads


def ours(arm: str, folder: Path) -> Row:
    """Run a job."""
    from redistill.trainers.preference import DPO
    from redistill.trainers.rows import rows_table, write_rows
    from redistill.trainers.trainer import Job, run_job

    run = Path(tempfile.mkdtemp(dir=folder))
    job = run / "jobs" / "1"
    trainer = DPO(
        beta=BETA,
        learning_rate=RATE,
        batch_size=BATCH,
        micro_batch=BATCH,
        steps=STEPS,
        recompute=arm == "recomputed",
    )
    digest = write_rows(job / "rows.parquet", rows_table("pairs", _rows(folder)))
    Job(
        id="1",
        trainer={"dpo": trainer.params()},
        start_folder=Path((folder / "start.txt").read_text("utf-8")),
        start_revision=(folder / "revision.txt").read_text("utf-8"),
        revisions_root=run / "revisions",
        rows=job / "rows.parquet",
        dataset_hash=digest,
        threads=_threads(),
    ).write(job, run)
    times: list[float] = []
    began = time.process_time()

    def note(event: Row) -> None:
        if event["event"] in ("begin", "step"):
            times.append(time.process_time())

    result = run_job(job, run, note)
    assert result.status == "trained", result.message
    losses = [m["value"] for m in result.metrics if m["name"] == "loss"]
    return {
        "cpu_s": times[-1] - times[0],  # from `begin` to the last `step`
        "job_cpu_s": time.process_time() - began,
        "peak_mb": _peak_mb(),
        "losses": losses,
    }


def theirs(arm: str, folder: Path) -> Row:
    """Run TRL's trainer on the same pairs, in the same order."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from redistill.trainers.answers import AnswerDPO
    from redistill.trainers.preference import DPO
    from redistill.trainers.rows import training_order
    from redistill.trainers.tuning import RECOMPUTE, settings

    class Given(DPOTrainer):
        """Takes token ids and log-probs as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002
            return dataset

    _threads()
    start = (folder / "start.txt").read_text("utf-8")
    rows = [
        {
            **{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")},
            "ref_chosen_logps": row["ref_chosen_logp"],
            "ref_rejected_logps": row["ref_rejected_logp"],
        }
        for row in _rows(folder)
    ]
    known = arm == "precomputed"
    if not known:
        rows = [{k: v for k, v in row.items() if not k.startswith("ref_")} for row in rows]
    trainer = DPO(beta=BETA, learning_rate=RATE, batch_size=BATCH, micro_batch=BATCH, steps=STEPS)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    common = settings(trainer, 0, AnswerDPO, BATCH, STEPS)
    common |= {"precompute_ref_log_probs": known, RECOMPUTE: arm == "loaded_recomputed"}
    driver = Given(
        model=model,
        ref_model=None if known else reference,
        args=DPOConfig(**common, output_dir=str(folder / arm)),
        train_dataset=Dataset.from_list(rows).select(training_order(PAIRS, STEPS, BATCH, 0)),
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    if known:
        del reference
    began = time.process_time()
    driver.train()
    spent = time.process_time() - began
    losses = [entry["loss"] for entry in driver.state.log_history if "loss" in entry]
    return {"cpu_s": spent, "peak_mb": _peak_mb(), "losses": losses}


if __name__ == "__main__":
    main()
