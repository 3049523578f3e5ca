"""The training process: its protocol, its deaths, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from redistill.testing.fakes_trainer import write_fake
from redistill.trainers.rows import rows_table, write_rows
from redistill.trainers.trainer import Job, Result
from redistill.trainers.worker import Worker

PROBES = '''
import os, signal, subprocess, sys, time, types
from pathlib import Path
from typing import ClassVar
from redistill.trainers.trainer import FitResult, Trainer

class Probe(Trainer):
    """Does what its mode says."""
    name: ClassVar[str] = "probes:Probe"
    rows: ClassVar[str] = "completions"
    mode: str

    def fit(self, job, emit):
        print("hello from fit", os.getpid())
        os.write(1, b'{"event": "done", "status": "a lie"}\\n')
        print("a word on stderr", file=sys.stderr)
        emit({"event": "step", "step": 1, "steps": 1, "pid": os.getpid()})
        if self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "cuda":
            cuda = types.SimpleNamespace(is_initialized=lambda: True)
            sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
        if self.mode == "exit":
            os._exit(7)
        if self.mode == "raise":
            raise ArithmeticError("the planted fault")
        if self.mode == "sleep":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            emit({"event": "step", "step": 2, "steps": 2, "pid": child.pid})
            time.sleep(60)
        return FitResult(status="no_change", message=f"torch: {'torch' in sys.modules}")
'''
FAKE = "redistill.testing.fakes_trainer:FakeTrainer"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a run folder, and a user's module of trainers on the import path."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "probes.py").write_text(PROBES, encoding="utf-8")
    monkeypatch.syspath_prepend(str(modules))
    return tmp_path


def job(run: Path, name: str, trainer: str, **settings: Any) -> Path:
    """Write a job on the fake student."""
    folder = run / "jobs" / name
    row = {"id": "r", "prompt_ids": [5], "completion_ids": [6, 2], "weight": 1.0}
    start = run / "start"
    Job(
        id=name,
        trainer={trainer: settings},
        start_folder=start,
        start_revision=write_fake(start, {"name": "student", "skill": 0.3}),
        revisions_root=run / "revisions",
        rows=folder / "rows.parquet",
        dataset_hash=write_rows(folder / "rows.parquet", rows_table("completions", [row])),
    ).write(folder, run)
    return folder


def use(run: Path, *folders: Path) -> tuple[list[Result], list[dict[str, Any]]]:
    """Run jobs one after another in one worker; return results and events."""
    events: list[dict[str, Any]] = []

    async def main() -> list[Result]:
        worker = Worker(run / "worker.log")
        try:
            return [await worker.run(folder, run, events.append) for folder in folders]
        finally:
            await worker.close()

    return asyncio.run(main()), events


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Say whether a process has ended within the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_fake_job_needs_no_torch(run: Path) -> None:
    """A fake trainer is found by its path, publishes, and no torch is imported for it."""
    results, events = use(
        run, job(run, "a", FAKE, gain=0.3), job(run, "b", "probes:Probe", mode="")
    )
    assert [r.status for r in results] == ["trained", "no_change"]
    assert (run / "revisions" / str(results[0].revision) / "fake.json").exists()
    assert results[1].message == "torch: False"
    assert results[0].peak_rss_mb > 1
    assert results[0] == Result.of(run / "jobs" / "a")
    assert [e["event"] for e in events] == ["step", "step"]


def test_prints_do_not_reach_the_protocol(run: Path) -> None:
    """What a library prints, C code included, lands in the log and is taken for no event."""
    [result], events = use(run, job(run, "a", "probes:Probe", mode=""))
    assert result.status == "no_change"
    assert len(events) == 1
    log = (run / "worker.log").read_text()
    assert "hello from fit" in log
    assert "a lie" in log


@pytest.mark.parametrize(("mode", "said"), [("kill", "SIGKILL"), ("exit", "exit code 7")])
def test_a_dead_worker_is_a_status_and_the_next_job_runs(run: Path, mode: str, said: str) -> None:
    """Death names its signal or code and the last words; a new process takes the next job."""
    results, events = use(
        run, job(run, "a", "probes:Probe", mode=mode), job(run, "b", "probes:Probe", mode="")
    )
    assert [r.status for r in results] == ["failed", "no_change"]
    assert said in results[0].message
    assert "a word on stderr" in results[0].message
    assert events[0]["pid"] != events[1]["pid"]


def test_each_job_on_a_gpu_has_its_own_process(run: Path) -> None:
    """A process that has used CUDA leaves after its job, and the next job still runs."""
    results, events = use(run, *(job(run, n, "probes:Probe", mode="cuda") for n in "abc"))
    assert [r.status for r in results] == ["no_change"] * 3
    assert len({e["pid"] for e in events}) == 3


def test_an_exception_keeps_the_worker(run: Path) -> None:
    """A fault in the trainer fails its job with its last line; the process goes on."""
    results, events = use(
        run, job(run, "a", "probes:Probe", mode="raise"), job(run, "b", "probes:Probe", mode="")
    )
    assert [r.status for r in results] == ["failed", "no_change"]
    assert results[0].message == "ArithmeticError: the planted fault"
    assert events[0]["pid"] == events[1]["pid"]
    assert 'raise ArithmeticError("the planted fault")' in (run / "worker.log").read_text()


@pytest.mark.parametrize("trainer", ["nosuch", "nosuch:Trainer", "probes:Path"])
def test_a_trainer_that_is_none_fails_its_job(run: Path, trainer: str) -> None:
    """A name that leads to no trainer is a status that says so."""
    [result], _ = use(run, job(run, "a", trainer))
    assert result.status == "failed"
    assert trainer.partition(":")[0] in result.message


def test_cancelling_ends_the_process_and_its_children(run: Path) -> None:
    """A cancelled job's process group is gone within five seconds."""
    pids: list[int] = []

    async def main() -> None:
        worker = Worker(run / "worker.log")
        both = asyncio.Event()

        def told(event: dict[str, Any]) -> None:
            pids.append(event["pid"])
            if len(pids) == 2:
                both.set()

        task = asyncio.create_task(
            worker.run(job(run, "a", "probes:Probe", mode="sleep"), run, told)
        )
        await asyncio.wait_for(both.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert all(gone(pid) for pid in pids)


def test_a_fault_in_the_listener_ends_the_job(run: Path) -> None:
    """When the driver's own handler fails, its error is raised and no training goes on unseen."""
    pids: list[int] = []

    def told(event: dict[str, Any]) -> None:
        pids.append(event["pid"])
        raise LookupError("planted")

    worker = Worker(run / "worker.log")
    with pytest.raises(LookupError):
        asyncio.run(worker.run(job(run, "a", "probes:Probe", mode="sleep"), run, told))
    assert gone(pids[0])


PARENT = """
import asyncio, sys
from pathlib import Path
from redistill.trainers.worker import Worker
folder, run = Path(sys.argv[1]), Path(sys.argv[2])
asyncio.run(Worker(run / "worker.log").run(folder, run, lambda e: print(e["pid"], flush=True)))
"""


def test_the_worker_dies_with_its_parent(run: Path) -> None:
    """After `kill -9` of the driver no training process is left."""
    folder = job(run, "a", "probes:Probe", mode="sleep")
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, str(folder), str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(run / "modules")},
    )
    assert parent.stdout is not None
    with parent:
        worker = int(parent.stdout.readline())
        grandchild = int(parent.stdout.readline())
        parent.kill()
    assert gone(worker)
    psutil.Process(grandchild).kill()


def test_starting_early_warms_the_process_that_runs_the_job(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start` returns at once, the warm import happens meanwhile, and the same process trains."""
    (run / "modules" / "slow_import.py").write_text("import time; time.sleep(1.0)\n")
    events: list[dict[str, Any]] = []

    async def main() -> float:
        worker = Worker(run / "worker.log", warm="slow_import")
        began = time.monotonic()
        await worker.start()
        started = time.monotonic() - began
        await worker.run(job(run, "a", FAKE), run, events.append)
        await worker.close()
        return started

    assert asyncio.run(main()) < 1.0
    assert [e["event"] for e in events] == ["ready", "step"]


def test_a_worker_whose_warm_import_fails_says_so(run: Path) -> None:
    """A missing training library ends the job with the import's error, not with a hang."""

    async def main() -> Result:
        worker = Worker(run / "worker.log", warm="no_such_module_x")
        return await worker.run(job(run, "a", FAKE), run, lambda event: None)

    result = asyncio.run(main())
    assert result.status == "failed"
    assert "No module named 'no_such_module_x'" in result.message


def test_f63_a_memory_kill_is_told_apart(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL counts as memory's end only when the system has counted a kill for memory since."""
    kills: Callable[[], int] = iter([4, 5]).__next__
    monkeypatch.setattr("redistill.trainers.worker._oom_kills", kills)
    [result], _ = use(run, job(run, "a", "probes:Probe", mode="kill"))
    assert result.status == "out_of_memory"
    assert signal.Signals.SIGKILL.name in result.message


def test_sft_in_the_worker(run: Path) -> None:
    """A real trainer on a tiny student runs in the process, in a working folder full of traps."""
    import torch
    from transformers import AutoModelForCausalLM

    from redistill.policies.revision import fingerprint_model
    from redistill.testing.tiny import make_tiny_model

    start = make_tiny_model(run / "tiny")
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    folder = job(run, "a", "sft", batch_size=1, micro_batch=1, steps=2)
    known = Job.read(folder, run)
    known.model_copy(
        update={"start_folder": start, "start_revision": fingerprint_model(model)}
    ).write(folder, run)
    [result], events = use(run, folder)
    assert result.status == "trained", result.message
    assert [e["event"] for e in events] == ["way", "begin", "step", "step"]
    assert (run / "revisions" / str(result.revision) / "revision.json").exists()
