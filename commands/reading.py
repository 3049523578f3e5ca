"""Commands that ask what is there; they write nothing into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput
from .shared import (
    RUNS,
    Json,
    RunName,
    Runs,
    load_text,
    print_age,
    print_json,
    read_recipe,
    terminal,
)


def status(run: RunName, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Show the rounds of a run, what was decided, and the gain."""
    from ..report.console import clean, gain_line, rounds_table
    from ..report.summary import handover_lines, judge_notes, summary

    found = summary(runs / run)
    if as_json:
        print_json(found)
        return
    console = terminal()
    if found["state"] != "imports":
        console.print(rounds_table(found))
    for note in judge_notes(found):
        console.print(clean(note), style="yellow", highlight=False, markup=False, soft_wrap=True)
    for row in found["rounds"]:
        if row["reason"]:
            console.print(f"round {row['round']}: {row['reason']}", highlight=False, markup=False)
    for line in handover_lines(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found["stopped_by"]:
        console.print(f"stopped: {found['stopped_by']}", style="red", highlight=False, markup=False)
    if waits := found["waits_for"]:
        where = "" if runs == RUNS else f" --runs {runs}"
        told = f"round {waits['round']} {waits['step']} waits for people: redistill review {run}{where}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    console.print(gain_line(found), highlight=False)
    print_age(found["snapshot_age_seconds"])


def query(
    run: Annotated[
        list[str], typer.Argument(help="Name of the run, or of several.", show_default=False)
    ],
    sql: Annotated[str, typer.Argument(help="One SQL statement; see `redistill list views`.")],
    as_json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Ask the store of a run in SQL, read-only, while it runs or after.

    Of several runs, each view and table is the union, with a column `run`; each run stands beside them
    under its own name, as in `SELECT count(*) FROM "first".answers`.
    """
    from ..report.rows import show_rows
    from ..store.query import query_runs
    from .bounds import bounded

    with bounded():
        answer = query_runs([runs / name for name in run], sql)
    show_rows(terminal(), answer.table, as_json=as_json, csv=csv, parquet=parquet)
    print_age(answer.age_seconds)


def list_(
    what: Annotated[
        str, typer.Argument(help="operators judges trainers recipes models views formats runs")
    ],
    runs: Runs = RUNS,
    as_json: Json = False,
    covered: Annotated[
        bool,
        typer.Option(
            "--coverage", help="Of recipes: the survey's taxonomy, and who covers each leaf."
        ),
    ] = False,
) -> None:
    """List what there is: operators, judges, trainers, recipes, models, views, runs."""
    from ..report.listing import listing, show_listing

    if covered:
        _coverage(what, as_json=as_json)
        return
    found = listing(what, runs)
    if as_json:
        print_json(found)
    else:
        show_listing(terminal(), found)


def _coverage(what: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from ..report.coverage import coverage
    from ..report.taxonomy_picture import as_text

    if what != "recipes":
        raise BadInput.at("--coverage", f"is of recipes, and not of {what}", "leave it out")
    found = coverage()
    if as_json:
        print_json([asdict(standing) for standing in found])
    else:
        typer.echo(as_text(found))


def show(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that ships, or a recipe's file.")],
    student: Annotated[
        str | None, typer.Option(help="For quickstart: smollm2-135m or tiny.")
    ] = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="With every stage and setting in full.")
    ] = False,
) -> None:
    """Print a recipe; `redistill run` on that text gives the same run."""
    from ..agents.extending import shipped
    from ..report.starting import recipe_text

    text = recipe_text(recipe, student)
    home, called = Path(), f"{recipe}.yaml"
    if recipe not in shipped():
        home, called = Path(recipe).parent, recipe
    typer.echo(load_text(text, called, home, []).to_yaml() if resolved else text, nl=resolved)


def graph(
    recipe: Annotated[str, typer.Argument(help="A recipe, or a run.")],
    runs: Runs = RUNS,
) -> None:
    """Print the graph of the rounds as Mermaid: one, or one for each stage that has other steps."""
    from ..report.drawing import mermaid

    home = runs / recipe / "recipe.yaml"
    typer.echo(mermaid(read_recipe(str(home) if home.exists() else recipe, None)))


def report(
    run: RunName,
    out: Annotated[Path | None, typer.Option(help="File to write; report.html of the run.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Write one self-contained page about a run."""
    from ..report.page import write_page

    typer.echo(str(write_page(runs / run, out)))
