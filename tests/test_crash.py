"""Real processes, killed for real in every phase, end with the rows of an undisturbed run."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from children import start

from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe
from redistill.testing.tiny import make_tiny_model
from redistill.trainers.worker import Worker

CHILD = Path(__file__).with_name("crash_child.py")
# A resumed process loads weights anew, and leaves its canaries and its own hand-overs; that is all that may differ.
_IDS = {
    "prompt": "id",
    "rendered_prompt": "id",
    "completion": "id",
    "judgement": "id",
    "pair": "id",
    "selection": "id",
    "training_row": "id",
    "evaluation": "id",
    "decision": "id",
    "(FROM event WHERE kind NOT IN ('canary', 'handover'))": "id",
    "(FROM write_batch WHERE NOT starts_with(step, 'load:'))": "id",
    "revision": "id",
}


def _start(base: Path, kill: list[Any] | None) -> subprocess.CompletedProcess[str]:
    told = {"base": str(base), "kill": kill, "log": str(base / "log.jsonl")}
    return start(CHILD, told)


def _facts(base: Path, name: str) -> dict[str, Any]:
    """Return what must not depend on crashes: ids, answers, training sets, decisions."""
    folder = base / "runs" / name
    facts: dict[str, Any] = {
        table: [
            r[key]
            for r in read_rows(folder, f"SELECT {key}::VARCHAR AS {key} FROM {table} ORDER BY 1")
        ]
        for table, key in _IDS.items()
    }
    facts["answers"] = read_rows(
        folder, "SELECT id::VARCHAR AS id, payload_hash FROM completion ORDER BY 1"
    )
    facts["values"] = read_rows(
        folder, "SELECT id::VARCHAR AS id, status, value, parts FROM judgement ORDER BY 1"
    )
    facts["measured"] = read_rows(
        folder, "SELECT id::VARCHAR AS id, n, value FROM evaluation ORDER BY 1"
    )
    facts["kept"] = read_rows(
        folder, "SELECT id::VARCHAR AS id, position, weight FROM selection ORDER BY 1"
    )
    facts["gain"] = read_rows(folder, "SELECT detail FROM event WHERE kind = 'gain'")
    facts["trained"] = read_rows(
        folder, "SELECT round, dataset_hash, status, revision FROM training_run ORDER BY round"
    )
    facts["decided"] = read_rows(
        folder, "SELECT round, decision, delta, ci_low, heldout_reads FROM decision ORDER BY round"
    )
    return facts


def _log(base: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (base / "log.jsonl").read_text().splitlines()]


def _fake_base(base: Path) -> Path:
    base.mkdir()
    rows = fake_prompts(train=24, heldout=40, test=40)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = fake_recipe()
    recipe["prompts"]["per_round"] = 12
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return base


def test_killed_in_every_phase_ends_like_undisturbed(tmp_path: Path) -> None:
    """One run that is killed in each phase in turn has the undisturbed run's rows.

    Each kill costs at most one chunk of sampling.
    """
    calm, struck = _fake_base(tmp_path / "calm"), _fake_base(tmp_path / "struck")
    assert _start(calm, None).returncode == 0
    points = [
        [0, "baseline", 1, "before"],
        [1, "begin", 0, "after"],
        [1, "sample", 1, "before"],
        [1, "score", 1, "after"],
        [1, "select", 0, "before"],
        [1, "train", 0, "after"],
        [1, "train", 1, "before"],
        [1, "evaluate", 2, "after"],
        [1, "gate", 0, "after"],
        [1, "promote", 0, "before"],
        [2, "sample", 0, "after"],
        [2, "evaluate", 0, "before"],
        [0, "test_initial", 1, "after"],
        [2, "gain", 0, "before"],
    ]
    for point in points:
        died = _start(struck, point)
        assert died.returncode == -signal.SIGKILL, (point, died.stderr[-2000:])
    finished = _start(struck, None)
    assert finished.returncode == 0, finished.stderr[-2000:]

    assert _facts(struck, "fake") == _facts(calm, "fake")
    calm_calls = [line for line in _log(calm) if line[0] == "generate"]
    struck_calls = [line for line in _log(struck) if line[0] == "generate"]
    assert len(calm_calls) <= len(struck_calls) <= len(calm_calls) + len(points)


def test_a_finished_run_does_nothing_again(tmp_path: Path) -> None:
    """Running a finished run anew asks the policy for nothing and adds no row."""
    base = _fake_base(tmp_path / "base")
    assert _start(base, None).returncode == 0
    before, asked = _facts(base, "fake"), len(_log(base))
    assert _start(base, None).returncode == 0
    assert _facts(base, "fake") == before
    again = _log(base)[asked:]
    assert not [line for line in again if line[0] == "generate"]


def test_asked_to_stop_it_stops_at_the_next_chunk(tmp_path: Path) -> None:
    """SIGTERM ends the run between two chunks with `TryLater`, and the resumed run has the same rows."""
    calm, asked = _fake_base(tmp_path / "calm"), _fake_base(tmp_path / "asked")
    assert _start(calm, None).returncode == 0
    told = {"base": str(asked), "kill": None, "log": str(asked / "log.jsonl")}
    with subprocess.Popen(
        [sys.executable, "-P", str(CHILD)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        child.stdin.write(json.dumps(told))
        child.stdin.close()
        while not (asked / "log.jsonl").exists() or len(_log(asked)) < 4:
            time.sleep(0.01)
        child.terminate()
        assert child.stderr is not None
        said = child.stderr.read()
    assert "TryLater: stopped; go on with: redistill resume fake" in said
    assert _start(asked, None).returncode == 0
    assert _facts(asked, "fake") == _facts(calm, "fake")


def _holders(log: Path) -> list[int]:
    """Return the processes that have a run's worker log open: its workers."""
    found = []
    for process in psutil.process_iter():
        try:
            # Standard error is no regular entry of open_files() everywhere; /proc tells it plainly.
            names = {p.resolve() for p in Path(f"/proc/{process.pid}/fd").iterdir()}
        except (OSError, psutil.Error):
            continue
        if log.resolve() in names:
            found.append(process.pid)
    return found


def _gone(log: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while _holders(log) and time.monotonic() < until:
        time.sleep(0.1)
    return not _holders(log)


def test_a_worker_can_be_found_by_its_log(tmp_path: Path) -> None:
    """The search for orphans finds a worker that lives."""
    worker = Worker(tmp_path / "worker.log")

    async def alive() -> list[int]:
        await worker.start()
        try:
            return _holders(tmp_path / "worker.log")
        finally:
            await worker.close()

    if Path("/proc").is_dir():
        assert asyncio.run(alive())


@pytest.fixture(scope="module")
def trl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose trainer is real TRL on a random tiny model."""
    return tmp_path_factory.mktemp("trl")


def _trl_base(base: Path, model: Path) -> Path:
    base.mkdir()
    rows = fake_prompts(train=16, heldout=12, test=12)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = fake_recipe()
    recipe |= {"name": "tiny", "student": str(model), "seed": 3}
    recipe |= {"unproven_judge": "allow", "same_judge": "allow"}
    recipe["prompts"]["per_round"] = 8
    recipe["execution"] = {"threads": 1}
    recipe["round"] = [
        # A random model ends about one answer in a hundred tokens, and only ended ones train.
        {"sample": {"k": 8, "max_tokens": 64, "temperature": 1.0}},
        {"score": {"judge": {"longest": {"unit": "characters"}}}},
        {"pair": {"by": "longest"}},
        {
            "train": {
                "trainer": "sft",
                "learning_rate": 1e-3,
                "steps": 4,
                "batch_size": 2,
                "micro_batch": 2,
                "most_cut": 1.0,
            }
        },
        {"evaluate": {"judge": {"longest": {"unit": "characters"}}, "max_tokens": 12}},
        {"gate": {"guards": []}},
    ]
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return base


def test_killed_in_real_training_ends_like_undisturbed(trl_base: Path) -> None:
    """SIGKILL between two optimiser steps of TRL publishes nothing, and takes the worker down too.

    The resumed run trains to the same weights as an undisturbed one.
    """
    model = make_tiny_model(trl_base / "model", seed=1)
    calm, struck = _trl_base(trl_base / "calm", model), _trl_base(trl_base / "struck", model)
    undisturbed = _start(calm, None)
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]

    assert [r["status"] for r in _facts(calm, "tiny")["trained"]] == ["trained", "trained"]

    # Progress within `train` is told by optimiser step: this is the third of four.
    died = _start(struck, [2, "train", 3, "during"])
    assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    assert _gone(struck / "runs/tiny/worker.log", seconds=5)
    published = {p.name for p in (struck / "runs/tiny/revisions").iterdir() if p.name[0] != "."}
    finished = _start(struck, None)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert _facts(struck, "tiny") == _facts(calm, "tiny")
    trained = {row["revision"] for row in _facts(calm, "tiny")["trained"]}
    assert len(published & trained) <= 1
