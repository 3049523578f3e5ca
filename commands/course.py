"""Commands that start a run or go on with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BadInput
from .shared import (
    RUNS,
    AskServers,
    Json,
    Name,
    Overrides,
    RecipeArg,
    RunName,
    Runs,
    Seed,
    cache_folder,
    print_json,
    read_recipe,
    terminal,
)

if TYPE_CHECKING:
    from ..agents.recipe import Recipe
    from ..report.console import Progressing


def init(
    student: Annotated[str, typer.Option(help="Catalog name, hub id, or folder.")],
    prompts: Annotated[str, typer.Option(help="JSONL file of prompts.")],
    judge: Annotated[str, typer.Option(help="A judge's name, or module:callable.")],
    out: Annotated[Path, typer.Option(help="Recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for your model, prompts and judge."""
    from ..report.starting import write_recipe

    console = terminal()
    for line in write_recipe(out, student=student, prompts=prompts, judge=judge):
        console.print(line, highlight=False, markup=False)


def plan(
    recipe: RecipeArg,
    overrides: Overrides = None,
    ask_servers: AskServers = False,
    as_json: Json = False,
) -> None:
    """Say what a recipe will do, need and cost; loads nothing, pays nothing but what --ask-servers asks."""
    from ..report.forecast import forecast, show_forecast

    found = forecast(read_recipe(recipe, overrides), cache_folder(), RUNS, ask=ask_servers)
    if as_json:
        print_json(found)
    else:
        show_forecast(terminal(), found)


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
    from ..report.starting import quickstart_recipe

    recipe = quickstart_recipe(student, seed=seed, name=name, control=control)
    _go(recipe, runs, as_json=as_json)


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
    loaded = read_recipe(recipe, settings)
    if name is not None:
        loaded = loaded.model_copy(update={"name": name})
    _go(loaded, runs, as_json=as_json)


def resume(run: RunName, runs: Runs = RUNS, as_json: Json = False) -> None:
    """Go on with a run where it stopped."""
    from ..agents.loop import RECIPE
    from ..agents.loop import resume as go_on

    folder = runs / run
    if not (folder / RECIPE).exists():
        if folder.is_dir():
            raise BadInput.at("", f"run {run!r} has no recipe to go on with", "it holds imports")
        raise BadInput.at(
            "", f"no run {run!r} in {runs}", "`redistill list runs` shows what is there"
        )
    progress = _progress(folder, quiet=as_json)
    try:
        go_on(folder, progress=progress)
    finally:
        progress.close()
    _finish(folder, runs, as_json=as_json)


def _go(recipe: Recipe, runs: Path, *, as_json: bool) -> None:
    """Run a recipe and show what came of it."""
    from ..agents.loop import Place, prepare
    from ..agents.loop import run as run_recipe

    place = Place(runs, cache_folder())
    folder = prepare(recipe, place)
    progress = _progress(folder, quiet=as_json)
    try:
        run_recipe(recipe, place=place, progress=progress)
    finally:
        progress.close()
    _finish(folder, runs, as_json=as_json)


def _finish(folder: Path, runs: Path, *, as_json: bool) -> None:
    from ..report.console import breakdown_table, clean, gain_line, next_commands, rounds_table
    from ..report.page import write_page
    from ..report.summary import answers_on_test, breakdown, judge_notes, summary

    found = summary(folder)
    page = write_page(folder, None)
    if as_json:
        print_json(found)
        return
    console = terminal()
    console.print(rounds_table(found))
    console.print(breakdown_table(breakdown(answers_on_test(folder))))
    console.print(gain_line(found), style="bold", highlight=False)
    for note in judge_notes(found):
        console.print(clean(note), style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print(f"page: {page}", highlight=False, markup=False)
    console.print("next:", highlight=False)
    for command in next_commands(folder.name, runs):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def _progress(folder: Path, *, quiet: bool) -> Progressing:
    from ..report.console import Progressing

    progress = Progressing(terminal(stderr=quiet), quiet=quiet)
    progress.open(folder)
    return progress
