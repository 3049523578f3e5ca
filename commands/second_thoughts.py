"""Commands for second thoughts: another judge, other settings, two results beside each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .course import resume
from .shared import RUNS, Json, RunName, Runs, cache_folder, print_json, terminal

Rounds = Annotated[
    list[int] | None, typer.Option("--round", help="Only this round; may be given more than once.")
]


def apply(
    run: RunName,
    step: Annotated[
        str, typer.Argument(help="One step as in a recipe: 'score: {of: sample, judge: longest}'.")
    ],
    rounds: Rounds = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Judge or curate stored rows anew, under a name of its own; samples nothing, overwrites nothing."""
    from ..agents.applying import apply as apply_step
    from ..report.console import Progressing
    from ..store.query import snapshot

    folder = runs / run
    snapshot(folder)  # a log file of a run that is not there would make its folder
    progress = Progressing(terminal(stderr=as_json), quiet=as_json)
    progress.open(folder)
    try:
        found = apply_step(
            folder, step, rounds=rounds or (), cache=cache_folder(), progress=progress
        )
    finally:
        progress.close()
    if as_json:
        print_json([asdict(applied) for applied in found])
        return
    for applied in found:
        rows = ", ".join(f"{count} {table}s" for table, count in applied.rows.items()) or "no rows"
        state = "done" if applied.new else "stood there already"
        _say(f"round {applied.round} {applied.step}: {rows}, {state}")


def diff(
    run: RunName,
    a: Annotated[str, typer.Argument(help="A judge, or a step that made pairs or selections.")],
    b: Annotated[str, typer.Argument(help="Another one of the same kind.")],
    rounds: Rounds = None,
    limit: Annotated[int, typer.Option(help="Most rows shown.", min=0)] = 20,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Show which labels flipped between two judges, pairings or selections, with texts."""
    from ..report.differing import difference, show_difference

    found = difference(runs / run, a, b, rounds=rounds or (), limit=limit)
    if as_json:
        print_json(found)
    else:
        show_difference(terminal(), found)


def fork(
    run: RunName,
    round_: Annotated[int, typer.Option("--round", help="First round with the new settings.")],
    overrides: Annotated[
        list[str], typer.Option("--set", help="A setting as step.key=value or loop.rounds=4.")
    ],
    name: Annotated[str, typer.Option("--as", help="Name of the new run.")],
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Only prepare it; `redistill resume` goes on.")
    ] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Go on from a round of a run with other settings, as a new run; what stands before is not sampled again."""
    from ..agents.forking import fork as fork_run

    folder = fork_run(runs / run, round_=round_, changes=overrides, name=name)
    if not no_run:
        resume(name, runs, as_json=as_json)
    elif as_json:
        print_json({"run": name, "folder": str(folder)})
    else:
        where = "" if runs == RUNS else f" --runs {runs}"
        _say(f"prepared {folder}; go on with: redistill resume {name}{where}")


def compare(
    run1: Annotated[str, typer.Argument(help="Name of the first run.")],
    run2: Annotated[str, typer.Argument(help="Name of the second run.")],
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Compare two runs: recipes, rounds, and the champions on the test prompts that both answered."""
    from ..report.comparing import comparison, show_comparison

    found = comparison(runs / run1, runs / run2)
    if as_json:
        print_json(found)
    else:
        show_comparison(terminal(), found)


def _say(text: Any) -> None:
    terminal().print(text, highlight=False, markup=False)
