"""Commands that look after a run."""

from __future__ import annotations

from typing import Annotated

import typer

from .shared import RUNS, Json, Runs, cache_folder, print_json, terminal


def doctor(
    run: Annotated[str | None, typer.Argument(help="A run to examine too.")] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Examine this machine, and a run's store and revisions."""
    from ..report.examine import examine, show_examination

    found = examine(runs / run if run else None, cache_folder())
    if as_json:
        print_json(found)
    else:
        show_examination(terminal(), found)
    if any(check["state"] == "bad" for check in found):
        raise typer.Exit(4)
