"""Backup, restore and forget: who holds the run, what is done, and what people are told."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..agents.opening import only_one, run_folder
from ..errors import BadInput, Busy, RedistillError, StoreProblem
from ..store.backup import Manifest, read_manifest, restore, write_backup
from ..store.forget import (
    Forgetting,
    carry_out,
    clear_side,
    matching,
    plan_forgetting,
    publish_now,
)
from ..store.query import read_rows, snapshot
from ..store.store import FILE, now
from .page import PAGE, write_page

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
_SHOWN = 8
"""Ids of a list that a terminal gets."""


def back_up(folder: Path, out: Path | None) -> Row:
    """Write one archive of a run.

    The store in it is whole where nobody else holds the run. Else, or where the live file cannot be opened,
    it is the last snapshot, and the reason is told.

    Args:
        folder: the run's folder.
        out: the archive; beside the run's folder, with the time in its name, where it is None.

    Raises:
        BadInput: there is no such run, or the archive exists.
        EnvironmentProblem: it cannot be written.
    """
    if not folder.is_dir():
        snapshot(folder)  # says which runs there are
    target = out or folder.parent / f"{folder.name}-{now():%Y%m%d-%H%M%S}.tar"
    with ExitStack() as held:
        older = ""
        try:
            held.enter_context(only_one(folder))
            publish_now(folder)
        except (Busy, StoreProblem) as error:
            older = str(error)
        except BadInput as error:  # the live file is gone
            older = str(error) if not (folder / FILE).exists() else ""
        manifest = write_backup(folder, target, older)
    return _told_backup(manifest, target)


def _told_backup(manifest: Manifest, file: Path) -> Row:
    return {
        "file": str(file),
        "run": manifest.run,
        "store": manifest.store,
        "files": len(manifest.files),
        "bytes": sum(int(entry["bytes"]) for entry in manifest.files.values()),
        "created_at": manifest.created_at,
    }


def show_backup(console: Console, found: Row) -> None:
    """Print what was written, and which state of the store is in it."""
    told = f"{found['file']}: {found['files']} files, {found['bytes'] / 1e6:.1f} MB"
    console.print(told, highlight=False, markup=False)
    if found["store"] != "live":
        told = f"the store in it is the last snapshot: {found['store']}"
        console.print(told, style="yellow", highlight=False, markup=False)


def bring_back(archive: Path, name: str | None, runs: Path) -> Row:
    """Make a run of an archive; nothing is written before the whole archive was checked.

    Raises:
        BadInput: the archive is no good, or a run of that name exists.
        EnvironmentProblem: the run's folder cannot be written.
    """
    folder = run_folder(runs, name or read_manifest(archive).run)
    manifest = restore(archive, folder)
    return _told_backup(manifest, archive) | {"run": folder.name, "folder": str(folder)}


def show_restored(console: Console, found: Row) -> None:
    """Print where the run is, and what its store is."""
    told = f"{found['folder']}: {found['files']} files of {found['created_at']}, all as written"
    console.print(told, highlight=False, markup=False)
    if found["store"] != "live":
        told = f"its store is a snapshot: {found['store']}"
        console.print(told, style="yellow", highlight=False, markup=False)
    console.print(f"go on with: redistill resume {found['run']}", highlight=False, markup=False)


# -- forget


def forget(folder: Path, where: str, *, prompts: bool, reason: str, sure: bool) -> Row:
    """Forget the answers that a condition names, or say what that would forget.

    Args:
        folder: the run's folder.
        where: an SQL expression over the `answers` view.
        prompts: forget their prompts too, and all answers to those.
        reason: one line that is kept; holds no private text.
        sure: do it; else nothing is written.

    Returns:
        `Forgetting.told`, with `done` and `runs`, the other runs that hold the same rows.

    Raises:
        BadInput: there is no such run, or the condition is wrong.
        Busy: the run is being run.
        EnvironmentProblem: a file cannot be written; what was there is still there.
    """
    if not sure:
        plan = plan_forgetting(folder, where, prompts=prompts)
        return plan.told() | {"reason": reason, "done": False, "runs": _others(folder, plan)}
    matching(folder, where)  # a condition that is wrong is told before anything is opened
    with only_one(folder):
        publish_now(folder)
        plan = plan_forgetting(folder, where, prompts=prompts)
        if not plan.answers:
            # What was killed between its last two steps is done with the snapshot that was just published.
            clear_side(folder)
            return plan.told() | {"reason": reason, "done": False, "runs": {}}
        others = _others(folder, plan)
        done = carry_out(folder, plan, reason)
        # Written from the rows, which hold the texts no more.
        if (folder / PAGE).exists():
            write_page(folder, None)
    return done | {"done": True, "runs": others}


def _others(folder: Path, plan: Forgetting) -> dict[str, int]:
    """Return the runs beside this one, a fork or a restored copy, that hold the same answers."""
    sql = "SELECT count(*) AS n FROM completion WHERE id IN (SELECT unnest(?::UUID[]))"
    found = {}
    for other in sorted(folder.parent.glob("*/recipe.yaml")):
        if other.parent == folder:
            continue
        try:
            [held] = read_rows(other.parent, sql, [list(plan.gone)])
        except RedistillError:
            continue  # what cannot be read is `doctor`'s to tell
        if held["n"]:
            found[other.parent.name] = held["n"]
    return found


def show_forgotten(console: Console, found: Row) -> None:
    """Print what goes or has gone, what remembers it, and what is to be done by hand."""
    for line in forgotten_lines(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def forgotten_lines(found: Row) -> list[str]:
    """Return the lines that tell of a forgetting."""
    if not found["answers"]:
        return ["no answer matches; nothing to forget"]
    verb = "forgotten" if found["done"] else "would be forgotten"
    lines = [f"{_n(found['answers'], 'answer')} {verb}: {_ids(found['answers'])}"]
    if found["equal_answers"]:
        told = "other answers have exactly the same text, which goes with it"
        lines.append(f"{len(found['equal_answers'])} {told}: {_ids(found['equal_answers'])}")
    if found["prompts"]:
        lines.append(f"{_n(found['prompts'], 'prompt')} {verb}: {_ids(found['prompts'])}")
    lines.append(
        f"{found['texts']} texts in all; {found['judgements']} judgements of them stay, without words"
    )
    if found["revisions"]:
        lines.append(
            f"these revisions were trained on them, and remember: {_ids(found['revisions'])}"
        )
    if found["descendants"]:
        lines.append(f"and these were trained from those: {_ids(found['descendants'])}")
    if found["rewrites_kept"]:
        lines.append(f"rewrites of them stay, and may repeat them: {_ids(found['rewrites_kept'])}")
    if found["prompts_kept"]:
        lines.append(
            f"prompts made of them stay, and may repeat them: {_ids(found['prompts_kept'])}"
        )
    repeated = found["texts_that_repeat_them"]
    if repeated or repeated is None:
        told = "not counted, there are too many" if repeated is None else str(repeated)
        lines.append(f"other texts that hold one of them word for word, and stay: {told}")
    for name, count in found["exports"].items():
        lines.append(f"{name}: {count} rows were exported; whoever has the export has the text")
    for name, count in found["runs"].items():
        lines.append(f"run {name} holds {count} of the same answers; forget them there too")
    told = "this backup may hold them; make it anew and remove it"
    lines += [f"{told}: {file}" for file in found["backups"]]
    lines += [f"still holds a text, clean it by hand: {name}" for name in found.get("left", [])]
    if not found["done"]:
        lines.append("nothing was changed; --yes does it, and it cannot be undone")
    return lines


def _n(ids: list[str], noun: str) -> str:
    return f"{len(ids)} {noun}" if len(ids) == 1 else f"{len(ids)} {noun}s"


def _ids(ids: list[str]) -> str:
    shown = " ".join(identifier[:8] for identifier in ids[:_SHOWN])
    return f"{shown} and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else shown
