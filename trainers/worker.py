"""The process that trains: it keeps imports warm, never a model, and dies with its parent.

`python -m redistill.trainers.worker` reads one JSON object a line: `{"warm": "trl"}` imports a module,
`{"job": folder, "run": folder}` runs a job. It answers with JSON events, one a line: `ready`, `begin`, `step`,
`micro_batch`, `done`. Whatever else would be printed goes to the log.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from .trainer import Emit, Result, Status, run_job

_ENVIRONMENT = {
    # Idle OpenMP threads that spin take the cores from the driver and from other runs.
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    # Every TRL trainer reports its start to the hub otherwise; a job needs nothing from there.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    # The log's last lines are quoted when the process dies; they should be words.
    "TQDM_DISABLE": "1",
}
_LOG_LINES = 5
"""Last lines of the log that a dead worker's message quotes."""


class Worker:
    """The driver's side of the worker process; starts it when needed, and anew when it died."""

    def __init__(self, log: Path, *, warm: str | None = None) -> None:
        """Name the log and the module that a new process imports before any job comes."""
        self._log = log
        self._warm = warm
        self._process: asyncio.subprocess.Process | None = None
        self._oom_kills = 0

    async def start(self) -> None:
        """Start the process unless one is alive, and let it import in the background."""
        if self._process is not None and self._process.returncode is None:
            return
        self._oom_kills = _oom_kills()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                # Without -P the working folder is searched first, and this package's own
                # folder has a types.py, which would hide Python's.
                "-P",
                "-m",
                __name__,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": _import_path()},
                start_new_session=True,
            )
        if self._warm:
            await self._send({"warm": self._warm})

    async def run(
        self, job_folder: Path, run_folder: Path, on_event: Emit, address: str = ""
    ) -> Result:
        """Run one job to its end and return its result; a dead worker is a status too.

        Args:
            job_folder: holds `job.json` and the rows; `result.json` is written there.
            run_folder: what the job's paths are relative to.
            on_event: takes each event; called in the loop's thread.
            address: where questions of the job are answered; see `redistill.trainers.callback`.
        """
        await self.start()
        try:
            places = {"job": str(job_folder.resolve()), "run": str(run_folder.resolve())}
            await self._send(places | {"address": address})
            async for event in self._events():
                if event["event"] == "done":
                    if event["leaving"]:
                        await self.close()
                    if event["status"] == "no_space":  # its result could not be written either
                        return Result(status="no_space", message=event["message"])
                    return Result.of(job_folder)
                on_event(event)
        except BaseException:
            # Cancelled, or the caller's on_event failed: the job must not go on unseen.
            await self.close()
            raise
        return await self._died()

    async def close(self) -> None:
        """End the process and its children at once; a job in it is lost and can be run again."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):  # it was dead already
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())

    async def _send(self, line: dict[str, str]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # it died; reading its events tells
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            await self._process.stdin.drain()

    async def _events(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            yield json.loads(line)

    async def _died(self) -> Result:
        assert self._process is not None
        code = await self._process.wait()
        # Its children would otherwise keep the device.
        await self.close()
        status: Status = "failed"
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            status, how = "out_of_memory", "SIGKILL by the system, which ran out of memory"
        told = " | ".join(_last_lines(self._log))
        return Result(status=status, message=f"the training process died of {how}: {told}")


def main() -> None:
    """Serve jobs from stdin until it closes."""
    die_with_parent()
    # A stop of the whole process group is the driver's to handle: it lets the job finish, and a job that
    # died of it would be a round that failed. The driver's end, and its SIGKILL, end this process too.
    for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(stop, signal.SIG_IGN)
    events = claim_stdout()
    _serve(_lines(sys.stdin), lambda event: print(json.dumps(event), file=events, flush=True))


def _serve(next_line: Callable[[], str], emit: Emit) -> None:
    while True:
        asked = json.loads(next_line())
        if "warm" in asked:
            import_module(asked["warm"])
            # A trainer's start collects garbage; frozen, the imports' objects are not walked again.
            gc.collect()
            gc.freeze()
            emit({"event": "ready"})
            continue
        result = run_job(Path(asked["job"]), Path(asked["run"]), emit, asked["address"])
        torch = sys.modules.get("torch")
        # A CUDA context gives its memory back only with its process.
        leaving = torch is not None and torch.cuda.is_initialized()
        done = {"event": "done", "status": result.status, "message": result.message}
        emit(done | {"leaving": leaving})
        if leaving:
            return


def _lines(source: TextIO) -> Callable[[], str]:
    """Read lines in a thread, so that the parent's end is noticed in the middle of a job."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in source:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return waiting.get


def claim_stdout() -> TextIO:
    """Keep stdout for events; what libraries print, C code included, goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent ends; elsewhere, the closing of stdin tells."""
    if sys.platform == "linux":
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(death_signal, signal.SIGKILL, 0, 0, 0)


def _import_path() -> str:
    """Return this process's import path, so that a user's `module:Class` is found there too."""
    own = Path(__file__).resolve().parent.parent
    paths = [Path(path or ".").resolve() for path in sys.path]
    return os.pathsep.join(str(path) for path in paths if path != own)


def _oom_kills() -> int:
    """Return how many processes the system has killed for memory; 0 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()][-_LOG_LINES:]


if __name__ == "__main__":
    main()
