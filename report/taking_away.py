"""Taking a model away: a revision of a run as a folder of its own, checked, with its card, whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..agents.held_revision import Named, find_revision
from ..errors import BadInput, EnvironmentProblem
from ..policies import exporting, gguf
from ..policies.exporting import Form, Taken, Written
from ..policies.origin import Origin
from ..policies.revision import sync
from ..store.identify import short
from .model_card import model_card
from .model_facts import model_facts

CARD = "README.md"
FORMS: tuple[Form, ...] = ("hf", "lora", "merged", "gguf")
_SPARE = 1 << 26
"""Bytes of a disk that stay free."""


@dataclass(frozen=True, slots=True)
class Away:
    """What is taken away, and where to."""

    revision: str
    """champion, initial, previous, or the beginning of an id."""
    form: Form
    out: Path
    base_name: str = ""
    """How an adapter names its base; where the base is from, if this is empty."""


def take_away(run: Path, wanted: Away, cache: Path) -> dict[str, Any]:
    """Write a revision as a folder and return what was written and how it was checked.

    Args:
        run: the run's folder.
        wanted: what, how, where.
        cache: where the licences of models by name are looked up.

    Raises:
        BadInput: there is no such revision, it cannot have this form, or something lies there already.
        EnvironmentProblem: the disk is too small, or the converter failed.
        StoreProblem: what was written does not answer as the revision; nothing is left of it.
    """
    _check_out(wanted.out)
    named = find_revision(run, wanted.revision)
    form: Written = _whole_form(named) if wanted.form == "gguf" else wanted.form
    exporting.refuse(named.revision, form)
    _check_base_name(wanted)
    converter = gguf.find_converter() if wanted.form == "gguf" else None
    _check_room(wanted, exporting.size_of(named.revision, form))
    facts = model_facts(named, cache)
    base_name = wanted.base_name or _base_name(named, facts.origin)
    with _aside(wanted.out) as folder:
        taken = exporting.take(named.revision, form, folder, base_name)
        if converter is not None:
            folder, taken = _as_gguf(converter, named, folder, taken)
        elsewhere = bool(wanted.base_name) or "@" in base_name
        card = model_card(facts, taken, base_name, elsewhere=elsewhere)
        (folder / CARD).write_text(card, "utf-8", errors="replace")
        _publish(folder, wanted.out)
    return _told(named, wanted, taken)


def _whole_form(named: Named) -> Written:
    """Return the form of the whole model that a converter reads."""
    return "hf" if named.revision.base is None else "merged"


def _base_name(named: Named, origin: Origin) -> str:
    """Return how an adapter names its base: where that is from; one that the run has trained by the run's name."""
    base = named.revision.base
    if base is None or base == named.initial.id:
        return origin.loads_as
    return f"{named.run.name}-{short(base)}"


def _check_out(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise BadInput.at("--out", f"{out} exists", "name a folder that is not there")


def _check_base_name(wanted: Away) -> None:
    if wanted.base_name and wanted.form != "lora":
        raise BadInput.at(
            "--base", "is of an adapter", "give it with --format lora, or leave it out"
        )


def _check_room(wanted: Away, size: int) -> None:
    place = wanted.out.absolute().parent
    while not place.exists():
        place = place.parent
    needed = size * (2 if wanted.form == "gguf" else 1) + _SPARE
    if (free := shutil.disk_usage(place).free) < needed:
        raise EnvironmentProblem(
            f"{place} has {free / 1e9:.2f} GB free, about {needed / 1e9:.2f} GB are needed"
        )


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target; whatever is left of it at the end goes."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    except OSError as error:
        raise BadInput.at("--out", f"{out} cannot be written: {error.strerror}") from error
    try:
        whole = place / "whole"
        whole.mkdir()
        yield whole
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _as_gguf(converter: list[str], named: Named, folder: Path, taken: Taken) -> tuple[Path, Taken]:
    """Convert a whole model, and return the folder of the file alone with its check."""
    made = folder.parent / "gguf"
    made.mkdir()
    file = made / f"{named.run.name}-{short(named.revision.id)}.gguf"
    gguf.convert(converter, folder, file, taken.precision)
    return made, gguf.check(folder, file, exporting.sequences_of(named.revision), taken.precision)


def _publish(folder: Path, out: Path) -> None:
    """Wait for the disk, then give the folder its name in one step."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)  # some libraries write weights that nobody else may read
        sync(path)
    sync(folder)
    _check_out(out)
    folder.rename(out)
    sync(out.absolute().parent)


def _told(named: Named, wanted: Away, taken: Taken) -> dict[str, Any]:
    """Return what was written; of GGUF without a converter, what is left to type."""
    command = None
    if wanted.form == "gguf" and taken.form != "gguf":
        file = wanted.out.with_name(f"{wanted.out.name}.gguf")
        command = gguf.command(wanted.out, file, taken.precision)
    return {
        "run": named.run.name,
        "revision": named.revision.id,
        "called": named.called,
        "out": str(wanted.out),
        **asdict(taken),
        "checked": taken.line,
        "card": str(wanted.out / CARD),
        "command": command,
    }
