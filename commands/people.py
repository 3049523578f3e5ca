"""The command with which people judge."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput
from .shared import RUNS, Author, Json, RunName, Runs, print_json, terminal


def review(
    run: RunName,
    anchors: Annotated[
        int | None,
        typer.Option(help="Label so many pairs of the run's own answers into an exam.", min=1),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Exam file of --anchors; RUN-anchors.jsonl without.")
    ] = None,
    author: Author = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Judge answers by hand, blind: what a run waits for, or pairs for an exam of judges.

    Keys are read from the terminal, or one a line from standard input. Each verdict is kept at once.
    """
    from ..report.reviewing import review_anchors, review_steps

    folder, who = runs / run, author or getpass.getuser()
    console = terminal(stderr=as_json)
    if anchors is not None:
        file = out or Path(f"{run}-anchors.jsonl")
        found = review_anchors(folder, who, anchors, file, console, _key)
        way_on = f"redistill judge admit JUDGE --pairs {file}"
    else:
        if out is not None:
            raise BadInput.at("--out", "names the exam file of --anchors", "give --anchors 50 too")
        found = review_steps(folder, who, console, _key)
        where = "" if runs == RUNS else f" --runs {runs}"
        way_on = f"redistill {'review' if found['left'] else 'resume'} {run}{where}"
    if as_json:
        print_json(found)
        return
    told = f"{found['answered']} judged, {found['skipped']} skipped, {found['left']} left"
    console.print(f"{told}; go on with: {way_on}", highlight=False, markup=False, soft_wrap=True)


def _key(one_is_enough: bool) -> str | None:
    """Return the next key of the terminal, or the next line of standard input."""
    if not (sys.stdin.isatty() and one_is_enough):
        return sys.stdin.readline() or None
    try:
        return typer.getchar()
    except (KeyboardInterrupt, EOFError):
        return None  # to go is not to fail: all that was said is kept
