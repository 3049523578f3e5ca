"""The command that lets trainers compete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput
from .shared import (
    RUNS,
    Json,
    Overrides,
    RecipeArg,
    Runs,
    cache_folder,
    print_json,
    read_recipe,
    terminal,
)

if TYPE_CHECKING:
    from ..agents.bakeoff import Arm

_RESOURCES = ("tokens", "samples", "judge", "seconds")


def bakeoff(
    recipe: RecipeArg,
    trainers: Annotated[
        str, typer.Option(help="Names with commas between; the first one sets the budget.")
    ],
    equal: Annotated[
        str, typer.Option(help="What all may use the same of: tokens, samples, judge or seconds.")
    ] = "tokens",
    seeds: Annotated[int, typer.Option(help="Seeds, from the recipe's own.", min=1)] = 3,
    rates: Annotated[
        str, typer.Option(help="Factors of each learning rate; the best on held-out is taken.")
    ] = "0.3,1,3",
    teacher: Annotated[str, typer.Option(help="Role that teaches those that distil.")] = "",
    given: Annotated[
        str, typer.Option(help="What self_distill shows its teacher: critique, answer, ...")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--with", help="A trainer's setting, as grpo.k=8.")
    ] = None,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Compare trainers on the same rows, prompts and judge at the same cost; several seeds, a table, a picture.

    The recipe's round samples, scores and curates, with a `select` and, for trainers on pairs, a `pair` step.
    """
    from ..agents.bakeoff import Contest
    from ..agents.bakeoff import bakeoff as compete
    from ..agents.loop import Place
    from ..report import bakeoff as standing
    from ..report.console import Progressing

    if equal not in _RESOURCES:
        raise BadInput.at("--equal", f"{equal!r} is none", f"one of {', '.join(_RESOURCES)}")
    loaded = read_recipe(recipe, overrides)
    first = loaded.seed
    contest = Contest(
        arms=_arms(trainers, settings or []),
        equal=equal,  # type: ignore[arg-type]
        seeds=range(first, first + seeds),
        rates=_numbers(rates),
        teacher=teacher,
        given=given,
    )
    folder = runs / f"{loaded.name}-bakeoff"
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progressing(terminal(stderr=as_json), quiet=as_json)
    progress.open(folder)
    try:
        entries = compete(loaded, contest, Place(runs, cache_folder()), progress)
    finally:
        progress.close()
    rows = standing.standings(entries)
    written = standing.write(folder, contest, rows)
    if as_json:
        print_json(rows)
        return
    standing.show(terminal(), contest, rows)
    for file in written:
        terminal().print(str(file), highlight=False, markup=False)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BadInput.at("--rates", f"{text!r} holds no numbers", "such as 0.3,1,3") from None


def _arms(trainers: str, settings: list[str]) -> list[Arm]:
    """Return the trainers with their settings.

    Raises:
        BadInput: a trainer or a setting of it is not known.
    """
    import yaml

    from ..agents import plugins
    from ..agents.bakeoff import Arm
    from ..trainers.trainer import BUILTINS

    names = [name.strip() for name in trainers.split(",") if name.strip()]
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        path, _, value = setting.partition("=")
        name, _, key = path.partition(".")
        if name not in given or not key:
            raise BadInput.at(f"--with {setting}", "names no setting of a trainer that competes")
        given[name][key] = yaml.safe_load(value)
    for name, told in given.items():
        plugins.build("trainers", {name: told}, BUILTINS, "--trainers")
    return [Arm(name, told) for name, told in given.items()]
