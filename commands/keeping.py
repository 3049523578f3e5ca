"""Commands that look after a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput
from .shared import RUNS, AskServers, Json, RunName, Runs, cache_folder, print_json, terminal


def doctor(
    run: Annotated[str | None, typer.Argument(help="A run to examine too.")] = None,
    ask_servers: AskServers = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Examine this machine, and a run's store, revisions and servers."""
    from ..report.examine import examine, exit_code, show_examination

    if ask_servers and run is None:
        raise BadInput.at("--ask-servers", "asks the servers of a run", "name the run")
    found = examine(runs / run if run else None, cache_folder(), ask=ask_servers)
    if as_json:
        print_json(found)
    else:
        show_examination(terminal(), found)
    if code := exit_code(found):
        raise typer.Exit(code)


def backup(
    run: RunName,
    out: Annotated[
        Path | None, typer.Option(help="Archive to write; RUN-TIME.tar beside the run.")
    ] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Put all that a run needs into one archive, while it runs or after."""
    from ..report.keeping import back_up, show_backup

    found = back_up(runs / run, out)
    if as_json:
        print_json(found)
    else:
        show_backup(terminal(), found)


def restore(
    archive: Annotated[Path, typer.Argument(help="What `redistill backup` wrote.")],
    name: Annotated[str | None, typer.Option("--as", help="Another name for the run.")] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Make a run of an archive, checked byte by byte first; never over a run that is there."""
    from ..report.keeping import bring_back, show_restored

    found = bring_back(archive, name, runs)
    if as_json:
        print_json(found)
    else:
        show_restored(terminal(), found)


def forget(
    run: RunName,
    where: Annotated[
        str,
        typer.Option(help="SQL condition over `answers`, for example \"prompt LIKE '%Jane%'\"."),
    ],
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Their prompts too, and all answers to those.")
    ] = False,
    reason: Annotated[str, typer.Option(help="One line to keep; write no private text.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do it. It cannot be undone.")] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Blank the text of answers everywhere in a run; rows and ids stay.

    The texts, their tokens, what judges said of them, and what job files, exports and logs hold of them.
    Answers of exactly the same text go too. Without --yes it only says what would go.
    """
    from ..report.keeping import forget as forget_answers
    from ..report.keeping import show_forgotten

    found = forget_answers(runs / run, where, prompts=prompts, reason=reason, sure=yes)
    if as_json:
        print_json(found)
    else:
        show_forgotten(terminal(), found)
