"""The process that trains: it keeps imports warm, never a model, and dies with its parent.

`python -m redistill.trainers.worker` reads one JSON object a line: `{"warm": "trl"}` imports a module,
`{"job": folder, "run": folder}` runs a job. It answers with JSON events, one a line: `ready`, `begin`, `step`,
`micro_batch`, `done`. Whatever else would be printed goes to the log.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ..policies import child
from .trainer import Emit, Result, Status, run_job


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
                *child.command(__name__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=child.environment(),
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
        told = child.last_lines(self._log)
        return Result(status=status, message=f"the training process died of {how}: {told}")


def main() -> None:
    """Serve jobs from stdin until it closes."""
    child.die_with_parent()
    # The driver lets the job finish; a job that died of a stop would be a round that failed.
    child.leave_stops_to_the_parent()
    events = child.claim_stdout()
    _serve(
        child.lines_of(sys.stdin), lambda event: print(json.dumps(event), file=events, flush=True)
    )


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


def _oom_kills() -> int:
    """Return how many processes the system has killed for memory; 0 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


if __name__ == "__main__":
    main()
