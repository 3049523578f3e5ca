"""The command that follows a row to where it came from, and to what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BadInput
from .shared import RUNS, Json, RunName, Runs, print_json, terminal

if TYPE_CHECKING:
    from ..store.links import Direction


def lineage(
    run: RunName,
    identifier: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="First characters of any id, or `round 2`.", show_default=False
        ),
    ] = None,
    worse: Annotated[
        bool, typer.Option("--worse", help="List what got worse, with the nearest training rows.")
    ] = False,
    round_: Annotated[
        int | None, typer.Option("--round", help="Round of --worse; the last one measured.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Prompts of --worse: heldout, or test (first student, champion).")
    ] = "heldout",
    up: Annotated[bool, typer.Option("--up", help="Only what it came from.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what came of it.")] = False,
    depth: Annotated[int | None, typer.Option(min=1, help="Levels of the tree; all.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Single rows shown of a kind; 5, of --worse 10.")
    ] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    as_json: Json = False,
    runs: Runs = RUNS,
) -> None:
    """Follow a row up to what it came from and down to what came of it, or find what got worse."""
    _refuse_mixture(
        identifier, worse=worse, heldout=round_ is None and split == "heldout",
        tree=up or down or depth is not None or mermaid, twice=mermaid and as_json,
    )  # fmt: skip
    folder = runs / run
    if identifier is None:
        _show_worse(folder, split, round_, limit, as_json=as_json)
        return
    from ..report.lineage import lineage_mermaid, lineage_tree
    from ..store.identify import identify
    from ..store.lineage import DEPTH, LIMIT
    from ..store.lineage import lineage as follow

    both: tuple[Direction, ...] = ("up", "down")
    directions = tuple(side for side in both if up == down or {"up": up, "down": down}[side])
    found = follow(
        folder,
        identify(folder, identifier),
        directions=directions,
        depth=depth or DEPTH,
        limit=limit or LIMIT,
    )
    if as_json:
        print_json(found.as_dict())
    elif mermaid:
        typer.echo(lineage_mermaid(found))
    else:
        terminal().print(lineage_tree(found), highlight=False)


def _refuse_mixture(
    identifier: str | None, *, worse: bool, heldout: bool, tree: bool, twice: bool
) -> None:
    """Refuse options that would do nothing.

    Raises:
        BadInput: an option belongs to the other way of asking, or neither way is asked for.
    """
    if identifier is None and not worse:
        raise BadInput.at("", "no id is given", "give the first characters of one, or --worse")
    if identifier is not None and worse:
        raise BadInput.at("", "an id and --worse together", "give one of them")
    if identifier is not None and not heldout:
        raise BadInput.at("", "--round and --split belong to --worse", "leave them out")
    if worse and tree:
        raise BadInput.at("", "--up, --down, --depth and --mermaid need an id", "leave them out")
    if twice:
        raise BadInput.at("", "--json and --mermaid together", "give one of them")


def _show_worse(
    folder: Path, split: str, round_: int | None, limit: int | None, *, as_json: bool
) -> None:
    from ..report.lineage import worse_view
    from ..store.worse import ITEMS
    from ..store.worse import worse as find

    found = find(folder, split=split, round_=round_, limit=limit or ITEMS)
    if as_json:
        print_json(found.as_dict())
        return
    console = terminal()
    for part in worse_view(found, folder.name):
        console.print(part, highlight=False)
