"""Commands for what comes in and goes out: export, import, contamination."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .shared import RUNS, Json, RunName, Runs, print_json, terminal

_MOST = 20
"""Lines of reasons that a terminal gets."""


def export(
    run: RunName,
    form: Annotated[str, typer.Option("--format", help="See `redistill list formats`.")],
    out: Annotated[Path, typer.Option(help="File to write; a folder for `datasets`.")],
    what: Annotated[str, typer.Option(help="pairs, selections, thumbs or ratings.")] = "pairs",
    round_: Annotated[int | None, typer.Option("--round", help="Of this round alone.")] = None,
    step: Annotated[str | None, typer.Option(help="Of the step of this name alone.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Write pairs, selections or ratings as a trainer reads them; never held-out or test rows."""
    from typing import cast

    from ..store.exports import Export, What
    from ..store.exports import export as write

    wanted = Export(form, out, cast("What", what), round_, step, force)
    found = write(runs / run, wanted)
    if as_json:
        print_json(found)
        return
    say = _sayer()
    say(f"{found['rows']} {what} in {out} ({found['bytes']} bytes, sha256 {found['sha256'][:12]})")
    if found["merged"]:
        say(f"{found['merged']} more have the same texts and are written once")
    for reason, count in found["left_out"].items():
        say(f"{count} left out: {reason}")
    say(f"kept in {found['record']}: which prompts and answers the file saw")
    if found["note"]:
        say(found["note"])


def import_(
    run: RunName,
    file: Annotated[Path, typer.Argument(help="File to read; a folder for `datasets`.")],
    form: Annotated[str, typer.Option("--format", help="See `redistill list formats`.")],
    source: Annotated[str, typer.Option(help="Where it comes from; the file's name.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the source.")] = "unknown",
    scale: Annotated[
        tuple[float, float], typer.Option(help="Lowest and highest rating of the file.")
    ] = (0.0, 1.0),
    near: Annotated[
        float | None, typer.Option(help="Leave out near duplicates too, from this Jaccard index.")
    ] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Import rows that are there already.")
    ] = False,
    keep_contaminated: Annotated[
        bool,
        typer.Option("--keep-contaminated", help="Import rows that overlap with held-out ones."),
    ] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Read feedback from a file into a run; makes the run if there is none of that name."""
    from ..agents.opening import only_one, run_folder
    from ..store import imports
    from ..store.store import Store

    wanted = imports.Import(
        file, form, source, licence, scale, keep_duplicates, keep_contaminated, near
    )
    folder = run_folder(runs, run)
    checked = imports.check(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        store = Store(folder)
        try:
            imports.open_run(store)
            found = imports.write(store, wanted, checked)
        finally:
            store.close()
    if as_json:
        print_json(found)
    else:
        _show_import(found, file)


def contamination(
    run: RunName,
    share: Annotated[
        float, typer.Option(help="Share of a held-out text's n-grams that counts.")
    ] = 0.5,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Find held-out and test prompts, or their answers, in what trains."""
    from ..report.console import clean
    from ..store.contamination import contamination as compare

    found = compare(runs / run, share)
    if as_json:
        print_json(found)
        return
    say = _sayer()
    for hit in found["hits"][:_MOST]:
        say(f"{hit['prompt_id'][:8]} {hit['reason']}: {clean(_short(hit['text']))}")
    if len(found["hits"]) > _MOST:
        say(f"and {len(found['hits']) - _MOST} more; --json gives all")
    say(
        f"{found['contaminated']} of {found['train_prompts']} train prompts overlap with "
        f"{found['guarded_prompts']} held-out and test prompts"
    )


def _show_import(found: dict[str, Any], file: Path) -> None:
    say = _sayer()
    if found["again"]:
        say(f"{file} is in {found['run']} already, as {found['step']}; nothing to do")
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["imported"].items()) or "nothing"
    say(f"{kinds} of {found['records']} records are in {found['run']}, as {found['step']}")
    say(f"{found['prompts']} new prompts, {found['completions']} answers; judge {found['judge']}")
    for key, told, option in (
        ("duplicates", "left out: there already", "--keep-duplicates"),
        ("near_duplicates", "left out: nearly there already", "--keep-duplicates"),
        ("contaminated", "left out: overlap with held-out or test", "--keep-contaminated"),
        ("kept_duplicates", "are there already, and were kept", ""),
        ("kept_contaminated", "overlap with held-out or test, and were kept", ""),
    ):
        if found[key]:
            say(f"{found[key]} {told}" + (f" ({option} keeps them)" if option else ""))
    for hit in found["hits"]:
        say(f"  line {hit['line']} {hit['reason']}")
    if found["duplicates"] + found["near_duplicates"] + found["contaminated"] > 0:
        step = found["step"]
        sql = f"SELECT kind, detail FROM event WHERE step = '{step}'"  # noqa: S608 - shown, not run
        say(f'each has its reason: redistill query {found["run"]} "{sql}"')


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _sayer() -> Any:
    console = terminal()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return say
