"""What commands share: their common options, and how they load a recipe and show a result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput

if TYPE_CHECKING:
    from ..agents.recipe import Recipe

Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Author = Annotated[str | None, typer.Option(help="Who judges; your name on this computer without.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AskServers = Annotated[
    bool,
    typer.Option("--ask-servers", help="Ask each server by a few short calls what it can do."),
]
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
RUNS = Path("runs")


def read_recipe(spec: str, overrides: list[str] | None) -> Recipe:
    """Load a recipe from a file, standard input, or the package."""
    if spec == "-":
        return _load_bytes(sys.stdin.buffer.read(), "standard input", Path(), overrides)
    from ..agents.extending import shipped, shipped_text

    if spec in shipped():
        return load_text(shipped_text(spec), f"{spec}.yaml", Path(), overrides)
    file = Path(spec)
    if not file.is_file():
        known = ", ".join(shipped())
        raise BadInput.at("", f"no such recipe: {spec}", f"give a file, or one that ships: {known}")
    return _load_bytes(file.read_bytes(), str(file), file.parent, overrides)


def _load_bytes(data: bytes, name: str, base: Path, overrides: list[str] | None) -> Recipe:
    from ..agents.yaml_lines import decode

    return load_text(decode(data, name), name, base, overrides)


def load_text(text: str, name: str, base: Path, overrides: list[str] | None) -> Recipe:
    """Load a recipe from its text."""
    from ..agents.recipe import load_recipe

    return load_recipe(text, name, base=base, overrides=overrides or [])


def terminal(*, stderr: bool = False) -> Any:
    """Return the console that people read."""
    from rich.console import Console

    return Console(stderr=stderr)


def cache_folder() -> Path:
    """Return the folder where models are kept between runs."""
    from ..policies.catalog import default_cache

    return default_cache()


def print_json(found: Any) -> None:
    """Print JSON, without NaN."""
    typer.echo(json.dumps(found, indent=2, default=str, allow_nan=False))


def print_age(seconds: float) -> None:
    """Say how old the rows are that were shown."""
    typer.echo(f"snapshot of {seconds:.0f} s ago", err=True)
