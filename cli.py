"""The command line. Each command is thin: it reads its arguments, calls one function, shows the result.

Everything heavy is imported inside the commands, so that `redistill --help` loads neither torch nor
duckdb nor langgraph nor pandas.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import BadInput, EnvironmentProblem, RedistillError

if TYPE_CHECKING:
    from .agents.recipe import Recipe
    from .report.console import Progressing

app = typer.Typer(
    name="redistill",
    help="Make a language model better with feedback, round after round, and know why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunName = Annotated[str, typer.Argument(help="Name of the run.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="A setting as a.b=c; may be given more than once.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the run.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run's folder.")]
RecipeArg = Annotated[
    str,
    typer.Argument(help="A recipe's file, `-` for standard input, or the name of one that ships."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RUNS = Path("runs")

_debug = {"on": False}


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"redistill {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    debug: Debug = False,
    version: Annotated[  # noqa: ARG001 - the callback has answered already
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    _debug["on"] = debug


@app.command()
def init(
    student: Annotated[str, typer.Option(help="Catalog name, hub id, or folder.")],
    prompts: Annotated[str, typer.Option(help="JSONL file of prompts.")],
    judge: Annotated[str, typer.Option(help="A judge's name, or module:callable.")],
    out: Annotated[Path, typer.Option(help="Recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for your model, prompts and judge."""
    from .report.starting import write_recipe

    console = _console()
    for line in write_recipe(out, student=student, prompts=prompts, judge=judge):
        console.print(line, highlight=False, markup=False)


@app.command()
def plan(
    recipe: RecipeArg,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what a recipe will do, need and cost; loads nothing, pays nothing."""
    from .report.forecast import forecast, show_forecast

    found = forecast(_recipe(recipe, overrides), _cache(), RUNS)
    if as_json:
        _print_json(found)
    else:
        show_forecast(_console(), found)


@app.command()
def quickstart(
    student: Annotated[str, typer.Option(help="smollm2-135m, or tiny.")] = "smollm2-135m",
    seed: Seed = None,
    name: Name = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control",
            help="Shuffle the labels that train: what gain is left is not the labels' work.",
        ),
    ] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Make a small model measurably better on this computer, in three rounds."""
    from .report.starting import quickstart_recipe

    recipe = quickstart_recipe(student, seed=seed, name=name, control=control)
    _go(recipe, runs, as_json=as_json)


@app.command()
def run(
    recipe: RecipeArg,
    name: Name = None,
    seed: Seed = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds; replaces the recipe's.")] = None,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Run a recipe, or go on with it where it stopped."""
    settings = list(overrides or [])
    settings += [f"seed={seed}"] if seed is not None else []
    settings += [f"loop.rounds={rounds}"] if rounds is not None else []
    loaded = _recipe(recipe, settings)
    if name is not None:
        loaded = loaded.model_copy(update={"name": name})
    _go(loaded, runs, as_json=as_json)


@app.command()
def resume(run: RunName, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Go on with a run where it stopped."""
    from .agents.loop import RECIPE
    from .agents.loop import resume as go_on

    folder = runs / run
    if not (folder / RECIPE).exists():
        raise BadInput.at(
            "", f"no run {run!r} in {runs}", "`redistill list runs` shows what is there"
        )
    progress = _progress(folder, quiet=as_json)
    try:
        go_on(folder, progress=progress)
    finally:
        progress.close()
    _finish(folder, runs, as_json=as_json)


@app.command()
def status(run: RunName, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Show the rounds of a run, what was decided, and the gain."""
    from .report.console import gain_line, rounds_table
    from .report.summary import summary

    found = summary(runs / run)
    if as_json:
        _print_json(found)
        return
    console = _console()
    console.print(rounds_table(found))
    for row in found["rounds"]:
        if row["reason"]:
            console.print(f"round {row['round']}: {row['reason']}", highlight=False, markup=False)
    if found["stopped_by"]:
        console.print(f"stopped: {found['stopped_by']}", style="red", highlight=False, markup=False)
    console.print(gain_line(found), highlight=False)
    _age(found["snapshot_age_seconds"])


@app.command()
def query(
    run: RunName,
    sql: Annotated[str, typer.Argument(help="One SQL statement; see `redistill list views`.")],
    as_json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Ask the store of a run in SQL, read-only, while it runs or after."""
    from .report.rows import show_rows
    from .store.query import query as ask

    answer = ask(runs / run, sql)
    show_rows(_console(), answer.table, as_json=as_json, csv=csv, parquet=parquet)
    _age(answer.age_seconds)


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="operators judges trainers recipes models views runs")
    ],
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """List what there is: operators, judges, trainers, recipes, models, views, runs."""
    from .report.listing import listing, show_listing

    found = listing(what, runs)
    if as_json:
        _print_json(found)
    else:
        show_listing(_console(), found)


@app.command()
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
    from .report.starting import recipe_text

    text = recipe_text(recipe, student)
    base = Path(recipe).parent if Path(recipe).is_file() else Path()
    typer.echo(_load_text(text, recipe, base, []).to_yaml() if resolved else text, nl=resolved)


@app.command()
def graph(
    recipe: Annotated[str, typer.Argument(help="A recipe, or a run.")],
    runs: Runs = RUNS,
) -> None:
    """Print the graph of a round as Mermaid."""
    from .report.drawing import mermaid

    home = runs / recipe / "recipe.yaml"
    typer.echo(mermaid(_recipe(str(home) if home.exists() else recipe, None)))


@app.command()
def report(
    run: RunName,
    out: Annotated[Path | None, typer.Option(help="File to write; report.html of the run.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Write one self-contained page about a run."""
    from .report.page import write_page

    typer.echo(str(write_page(runs / run, out)))


@app.command()
def doctor(
    run: Annotated[str | None, typer.Argument(help="A run to examine too.")] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Examine this machine, and a run's store and revisions."""
    from .report.examine import examine, show_examination

    found = examine(runs / run if run else None, _cache())
    if as_json:
        _print_json(found)
    else:
        show_examination(_console(), found)
    if any(check["state"] == "bad" for check in found):
        raise typer.Exit(4)


# -- shared by the commands


def _recipe(spec: str, overrides: list[str] | None) -> Recipe:
    """Load a recipe from a file, standard input, or the package."""
    if spec == "-":
        return _load_bytes(sys.stdin.buffer.read(), "standard input", Path(), overrides)
    from .report.starting import recipe_text, shipped

    if spec in shipped():
        return _load_text(recipe_text(spec, None), f"{spec}.yaml", Path(), overrides)
    file = Path(spec)
    if not file.is_file():
        known = ", ".join(shipped())
        raise BadInput.at("", f"no such recipe: {spec}", f"give a file, or one that ships: {known}")
    return _load_bytes(file.read_bytes(), str(file), file.parent, overrides)


def _load_bytes(data: bytes, name: str, base: Path, overrides: list[str] | None) -> Recipe:
    from .agents.yaml_lines import decode

    return _load_text(decode(data, name), name, base, overrides)


def _load_text(text: str, name: str, base: Path, overrides: list[str] | None) -> Recipe:
    from .agents.recipe import load_recipe

    return load_recipe(text, name, base=base, overrides=overrides or [])


def _go(recipe: Recipe, runs: Path, *, as_json: bool) -> None:
    """Run a recipe and show what came of it."""
    from .agents.loop import Place, prepare
    from .agents.loop import run as run_recipe

    place = Place(runs, _cache())
    folder = prepare(recipe, place)
    progress = _progress(folder, quiet=as_json)
    try:
        run_recipe(recipe, place=place, progress=progress)
    finally:
        progress.close()
    _finish(folder, runs, as_json=as_json)


def _finish(folder: Path, runs: Path, *, as_json: bool) -> None:
    from .report.console import breakdown_table, gain_line, next_commands, rounds_table
    from .report.page import write_page
    from .report.summary import answers_on_test, breakdown, summary

    found = summary(folder)
    page = write_page(folder, None)
    if as_json:
        _print_json(found)
        return
    console = _console()
    console.print(rounds_table(found))
    console.print(breakdown_table(breakdown(answers_on_test(folder))))
    console.print(gain_line(found), style="bold", highlight=False)
    console.print(f"page: {page}", highlight=False, markup=False)
    console.print("next:", highlight=False)
    for command in next_commands(folder.name, runs):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def _progress(folder: Path, *, quiet: bool) -> Progressing:
    from .report.console import Progressing

    progress = Progressing(_console(stderr=quiet), quiet=quiet)
    progress.open(folder)
    return progress


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)


def _cache() -> Path:
    from .policies.catalog import default_cache

    return default_cache()


def _print_json(found: Any) -> None:
    typer.echo(json.dumps(found, indent=2, default=str, allow_nan=False))


def _age(seconds: float) -> None:
    typer.echo(f"snapshot of {seconds:.0f} s ago", err=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; turn the errors of `errors.py` into lines and exit codes."""
    # Last, never first: a recipe may name a module of the folder, which must hide nobody else's.
    sys.path.append(str(Path.cwd()))
    try:
        app(arguments, standalone_mode=True)
    except RedistillError as error:
        if _debug["on"]:
            raise
        typer.echo(
            f"redistill: {error}" if error.exit_code != BadInput.exit_code else str(error), err=True
        )
        raise SystemExit(error.exit_code) from None
    except (OSError, sqlite3.OperationalError) as error:
        # A full disk, a folder without rights: the machine's fault, told in a line.
        if _debug["on"] or getattr(error, "errno", errno.ENOSPC) not in _MACHINE:
            raise
        typer.echo(f"redistill: {error}; what was committed is kept, and can be resumed", err=True)
        raise SystemExit(EnvironmentProblem.exit_code) from None


_MACHINE = frozenset(
    [
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
    ]
)


if __name__ == "__main__":
    main()
