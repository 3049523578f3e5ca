"""A run in a process of its own whose disk is full from a point on; started by the tests.

Reads one JSON object from standard input: `base` (folder of recipe.yaml) and `full`: null, or the place
that can write no more: `store`, `graph`, `job`, `worker`, `snapshot`. From its `after`-th use on, no file
grows (RLIMIT_FSIZE; Python ignores the signal), as on a full disk.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from redistill import cli
from redistill.agents import job_files
from redistill.store.store import Store
from redistill.trainers.worker import Worker


def main() -> None:
    """Run the recipe through the command line."""
    told: dict[str, Any] = json.load(sys.stdin)
    if told["full"]:
        _PLACES[told["full"]](told["after"])
    base = Path(told["base"])
    cli.main(["run", str(base / "recipe.yaml"), "--runs", str(base / "runs")])


def _fill(process: int = 0) -> None:
    resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def _from(owner: Any, name: str, after: int) -> None:
    """Let nothing be written from the `after`-th call of a method on."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            _fill()
        return real(*arguments, **named)

    setattr(owner, name, wrapped)


def _worker(after: int) -> None:
    real, calls = Worker._send, 0

    async def wrapped(self: Worker, line: dict[str, str]) -> None:
        nonlocal calls
        if "job" in line:
            calls += 1
            if calls > after:
                assert self._process is not None
                _fill(self._process.pid)
        await real(self, line)

    Worker._send = wrapped  # type: ignore[method-assign]


_PLACES: dict[str, Callable[[int], None]] = {
    "store": lambda after: _from(Store, "_transact", after),
    "snapshot": lambda after: _from(Store, "_copy", after),
    "graph": lambda after: _from(AsyncSqliteSaver, "aput", after),
    "job": lambda after: _from(job_files, "write_rows", after),
    "worker": _worker,
}


if __name__ == "__main__":
    main()
