"""A run in a process of its own that kills itself where it is told; started by the tests.

Reads one JSON object from standard input: `base` (folder of recipe.yaml), `kill` (null, or
`[round, step, chunk, when]`, where a step that ends with a colon is the beginning of one), `log` (a file that gets
one line for each commit and each sampled batch).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redistill.agents.loop import Place, Silent, run
from redistill.agents.recipe import load_recipe
from redistill.policies.policy import Generation, Request, Sampling
from redistill.store.store import Rows, Store
from redistill.testing import fakes


def main() -> None:
    """Run the recipe, and die at the point that is named."""
    told: dict[str, Any] = json.load(sys.stdin)
    base = Path(told["base"])
    _watch(Path(told["log"]), told["kill"])
    recipe = load_recipe((base / "recipe.yaml").read_text("utf-8"), "recipe.yaml", base=base)
    run(recipe, place=Place(base / "runs", base / "cache"), progress=_Killer(told["kill"]))


def _watch(log: Path, kill: list[Any] | None) -> None:
    """Note every commit and every sampled batch, and die around the commit that is named."""
    commit, generate = Store.commit, fakes.FakeStudent.generate

    def watched(
        self: Store,
        rows: Rows,
        *,
        round: int,  # noqa: A002 - the column's name
        step: str,
        chunk: int,
        seconds: float = 0.0,
    ) -> bool:
        here = [round, step, chunk]
        struck = kill and _is(kill, here)
        if kill and struck and kill[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = commit(self, rows, round=round, step=step, chunk=chunk, seconds=seconds)
        _line(log, ["commit", *here])
        if kill and struck and kill[3] == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    def counted(
        self: fakes.FakeStudent, requests: Sequence[Request], sampling: Sampling
    ) -> list[Generation]:
        _line(log, ["generate", len(requests)])
        return generate(self, requests, sampling)

    Store.commit = watched  # type: ignore[method-assign]
    fakes.FakeStudent.generate = counted  # type: ignore[method-assign]


def _is(kill: list[Any], here: list[Any]) -> bool:
    begins = kill[1].endswith(":") and here[1].startswith(kill[1])
    return [kill[0], kill[2]] == [here[0], here[2]] and (begins or kill[1] == here[1])


def _line(log: Path, value: list[Any]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


class _Killer(Silent):
    """Dies when the trainer has done the optimiser step that is named."""

    def __init__(self, kill: list[Any] | None) -> None:
        self._kill = kill

    def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002
        """Die in the middle of a training job."""
        if self._kill and self._kill == [round, step, done, "during"]:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
