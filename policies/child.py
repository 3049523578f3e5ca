"""A process of our own that holds a model or trains one: it ends with its parent, and its stdout is for events."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ..errors import EnvironmentProblem

ENVIRONMENT = {
    # Idle OpenMP threads that spin take the cores from the driver and from other runs.
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    # What such a process needs lies on this machine; nothing is to be reported or asked for elsewhere.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    # The log's last lines are quoted when the process dies; they should be words.
    "TQDM_DISABLE": "1",
}
"""What every such process gets beside its parent's environment."""
_LOG_LINES = 5
"""Last lines of the log that a dead process's message quotes."""


def command(module: str) -> list[str]:
    """Return the command that runs a module of this package, or of a user's, in a process of its own."""
    # Without -P the working folder is searched first, and this package's own folder has a types.py, which
    # would hide Python's.
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """Return a child's environment: the parent's, its import path, and what keeps it quiet."""
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": import_path()}


def import_path() -> str:
    """Return this process's import path, so that a user's `module:Class` is found there too."""
    own = Path(__file__).resolve().parent.parent
    paths = [Path(path or ".").resolve() for path in sys.path]
    return os.pathsep.join(str(path) for path in paths if path != own)


def last_lines(log: Path) -> str:
    """Return how a log ends, as one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join([line.strip() for line in lines if line.strip()][-_LOG_LINES:])


def lines_of(source: TextIO) -> Callable[[], str]:
    """Read lines in a thread, so that the parent's end is noticed in the middle of work."""
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


def leave_stops_to_the_parent() -> None:
    """Let a stop of the whole process group be the parent's to handle; its own end ends this process too."""
    for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(stop, signal.SIG_IGN)


def die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent ends; elsewhere, the closing of stdin tells."""
    if sys.platform == "linux":
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(death_signal, signal.SIGKILL, 0, 0, 0)


class Child:
    """The parent's side of a process that answers one JSON object a line with another one.

    Args:
        module: what it runs; see `command`.
        log: where all goes that it prints beside its answers.
        more: what its environment has beside the usual.
    """

    def __init__(self, module: str, log: Path, more: Mapping[str, str]) -> None:
        self._module, self._log, self._more = module, log, dict(more)
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the process in a group of its own, which is ended as a whole."""
        self.close()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command(self._module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment() | self._more,
                start_new_session=True,
            )
        self._process, self._answers = process, queue.SimpleQueue()
        threading.Thread(target=_pass_on, args=(process, self._answers), daemon=True).start()

    def ask(self, question: Mapping[str, Any], seconds: float | None = None) -> Any:
        """Ask, and wait for the answer.

        Args:
            question: what is asked, as JSON values.
            seconds: how long to wait at most; a process that takes longer is ended.

        Raises:
            EnvironmentProblem: the process has died or did not answer in time, and is ended; or it says that it cannot,
                and goes on.
        """
        process = self._process
        if process is None or process.stdin is None:
            raise RuntimeError(f"{self._module} was not started")
        with suppress(OSError):  # it has died; its answers tell
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        began = time.monotonic()
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            told = f"did not answer within {time.monotonic() - began:.0f} s"
            raise self._trouble(told) from None
        if line is None or not line.endswith("\n"):  # it died, perhaps in the middle of its answer
            raise self._trouble(f"died of {_how(process.wait())}")
        answer = json.loads(line)
        if "fault" in answer:
            raise EnvironmentProblem(
                f"{self._module} cannot {question['do']}: {answer['fault']}{self._ending()}"
            )
        return answer["said"]

    @property
    def alive(self) -> bool:
        """Whether it was started and has not been ended."""
        return self._process is not None

    def close(self) -> None:
        """End the process and its children at once."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):  # it was dead already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a line that it never read
                    pipe.close()

    def _trouble(self, told: str) -> EnvironmentProblem:
        self.close()
        return EnvironmentProblem(f"{self._module} {told}{self._ending()}")

    def _ending(self) -> str:
        return f" ({self._log}: {last_lines(self._log)})" if self._log.is_file() else ""


def _pass_on(process: subprocess.Popen[str], answers: queue.SimpleQueue[str | None]) -> None:
    """Pass a process's lines on, and None at its end, so that a wait for them can be given up."""
    assert process.stdout is not None
    with suppress(ValueError):  # closed in the middle of a line
        for line in process.stdout:
            answers.put(line)
    answers.put(None)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
