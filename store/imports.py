"""Import: a file of feedback as rows of a run; the run is made where there is none.

A file is read twice: once to find all that is wrong with it, when nothing is written yet, and once to
write, in chunks of one transaction each. A row's id hashes the file's step, its texts and its place, so
an import that was stopped goes on where it was, and one that is done is known again.

What was asked goes to `prompt` (split train, and tagged so that it is never sampled), an answer to
`completion` (round 0, role `imported`, no revision, no tokens), and what was said of it to `pair`,
`selection` and `judgement`, beside a row of `feedback` with source, author and licence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import BadInput, Problem
from ..hashing import content_hash, row_id
from .exports import digest_of
from .format import Format, Record, find_format
from .incoming import Incoming, Manner, event
from .store import Row, Store, now

_CHUNK = 2000
"""Records of one transaction."""
_SHOWN = 20
_SOURCE = re.compile(r"[\w.:/@+ -]{1,200}")
_STEP = "import"


@dataclass(frozen=True, slots=True)
class Import:
    """What is imported, and what is left out."""

    file: Path
    format: str
    source: str = ""
    """Where it comes from; the file's name where it is left out."""
    licence: str = "unknown"
    scale: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest rating of the file; the format's own where it has one."""
    keep_duplicates: bool = False
    keep_contaminated: bool = False
    near: float | None = None
    """Jaccard index from which two rows count as near duplicates; None: only exact ones are looked for."""

    @property
    def named(self) -> str:
        """The source as the rows carry it."""
        return self.source or self.file.name

    @property
    def judge(self) -> str:
        """Name of the judge that stands for the source: one word, as in the recipe."""
        word = re.sub(r"\W+", "_", self.source or self.file.stem).strip("_").lower() or "imported"
        return word if word[0].isalpha() else f"source_{word}"


def check(wanted: Import) -> Format:
    """Read the whole file and return its format, or tell all that is wrong in one go.

    Raises:
        BadInput: the file cannot be read, is empty, or has lines that are not in the format.
    """
    form = find_format(wanted.format)
    faults = list(_faults_of(wanted))
    if faults:
        raise BadInput(*faults)
    problems: list[Problem] = []
    count = more = 0
    for _, record in _read(form, wanted):
        count += 1
        if isinstance(record, Problem):
            more += 1
            problems += [record] if more <= _SHOWN else []
    if more > _SHOWN:
        problems.append(Problem("", f"and {more - _SHOWN} more lines are wrong"))
    if problems:
        raise BadInput(*problems, Problem("", "nothing was imported"))
    if not count:
        raise BadInput.at(str(wanted.file), "holds no rows")
    return form


def _faults_of(wanted: Import) -> Iterator[Problem]:
    if not wanted.file.exists():
        yield Problem("", f"no such file: {wanted.file}")
    elif wanted.file.is_dir() != (wanted.format == "datasets"):
        hint = "the format datasets reads one" if wanted.file.is_dir() else "it reads a folder"
        yield Problem("--format", f"{wanted.file} is no {wanted.format}", hint)
    low, high = wanted.scale
    if not low < high:
        yield Problem("--scale", f"{low:g} {high:g}", "the lowest rating, then the highest")
    if wanted.near is not None and not 0 < wanted.near <= 1:
        yield Problem("--near", f"{wanted.near:g}", "a share above 0, at most 1")
    if not _SOURCE.fullmatch(wanted.named):
        yield Problem("--source", f"{wanted.named!r}", "at most 200 letters, digits, . : / @ + - _")


def _read(form: Format, wanted: Import) -> Iterator[tuple[int, Record | Problem]]:
    for line, record in form.read(wanted.file):
        yield line, record if isinstance(record, Problem) else _scaled(record, wanted, line)


def _scaled(record: Record, wanted: Import, line: int) -> Record | Problem:
    """Bring a rating into [0, 1], and find what no store could hold."""
    where = f"{wanted.file.name}:{line}"
    if record.other is not None and record.other == record.text:
        return Problem(where, "chosen and rejected are the same text", "a pair needs two answers")
    if record.kind != "rating" or record.value is not None:
        values = (record.value, record.other_value)
        good = all(value is None or 0 <= value <= 1 for value in values)
        return record if good else Problem(where, f"the values {values} are not in [0, 1]")
    low, high = wanted.scale
    if record.raw is None or not low <= record.raw <= high:
        what = f"the rating {record.raw} is not from {low:g} to {high:g}"
        return Problem(where, what, "say the scale: --scale 1 5")
    return replace(record, value=(record.raw - low) / (high - low))


def write(store: Store, wanted: Import, form: Format) -> dict[str, Any]:
    """Write a checked file into an open store and return the counts.

    Raises:
        BadInput: the source has the name of a judge of the run, or the file changed while it was read.
    """
    step, done = _step_of(store, wanted)
    if done is not None:
        return {**done, "again": True}
    manner = Manner(
        step["step"],
        wanted.named,
        wanted.licence,
        wanted.judge,
        wanted.keep_duplicates,
        wanted.keep_contaminated,
        wanted.near,
    )
    incoming = Incoming(store, manner)
    for chunk, records in enumerate(_chunks(_read(form, wanted))):
        store.commit(incoming.rows(records), round=0, step=manner.step, chunk=chunk)
    counts = _counts(store, wanted, incoming)
    end = event(manner.step, "imported", counts)
    store.commit({"event": [end]}, round=0, step=f"{manner.step} end", chunk=0)
    return {**counts, "again": False}


def _counts(store: Store, wanted: Import, incoming: Incoming) -> Row:
    """Return what came of a file; what was written is counted in the ledger, also after a stop."""
    step, found = incoming.manner.step, incoming.counts
    ledger = store.rows("SELECT counts FROM write_batch WHERE round = 0 AND step = ?", [step])
    sent = [json.loads(row["counts"]) for row in ledger]
    kinds = ("preference", "demonstration", "thumbs", "rating")
    return {
        "run": store.folder.name,
        "step": step,
        "source": wanted.named,
        "licence": wanted.licence,
        "judge": wanted.judge,
        "records": found["records"],
        "imported": {kind: found[kind] for kind in kinds if found[kind]},
        "prompts": sum(part.get("prompt", 0) for part in sent),
        "completions": sum(part.get("completion", 0) for part in sent),
        "duplicates": found["duplicate"],
        "near_duplicates": found["near_duplicate"],
        "kept_duplicates": found["kept_duplicate"],
        "contaminated": found["contaminated"],
        "kept_contaminated": found["kept_contaminated"],
        "hits": incoming.hits,
    }


def open_run(store: Store) -> None:
    """Write the run's row where the store is new: a run of imports has no student and no recipe."""
    if store.rows("SELECT 1 FROM run"):
        return
    row = {
        "id": row_id("run", imports=True),
        "name": store.folder.name,
        "key": content_hash("a run of imports"),
        "seed": 0,
        "recipe": "{}",
        "student": None,
        "redistill_version": __version__,
        "created_at": now(),
    }
    store.commit({"run": [row]}, round=0, step="begin", chunk=0)


def _chunks(
    found: Iterator[tuple[int, Record | Problem]],
) -> Iterator[list[tuple[int, Record]]]:
    part: list[tuple[int, Record]] = []
    for line, record in found:
        if isinstance(record, Problem):
            raise BadInput(record, Problem("", "the file has changed while it was read"))
        part.append((line, record))
        if len(part) == _CHUNK:
            yield part
            part = []
    if part:
        yield part


def _step_of(store: Store, wanted: Import) -> tuple[Row, Row | None]:
    """Return the step of this very file, new or begun, and its counts where it is done."""
    settings = {k: v for k, v in asdict(wanted).items() if k not in ("file", "source")}
    settings |= {"file": wanted.file.name, "source": wanted.named, "sha256": digest_of(wanted.file)}
    text = json.dumps(settings, sort_keys=True)
    steps = store.rows("SELECT step, settings, position FROM step WHERE origin = 'imported'")
    for known in steps:
        if json.loads(known["settings"]) == json.loads(text):
            done = store.rows(
                "SELECT detail FROM event WHERE round = 0 AND kind = 'imported' AND step = ?",
                [known["step"]],
            )
            return known, json.loads(done[0]["detail"]) if done else None
    _refuse_judge(store, wanted)
    taken = {row["step"] for row in store.rows("SELECT DISTINCT step FROM write_batch")}
    names = (_STEP if n == 1 else f"{_STEP}_{n}" for n in range(1, len(taken) + 2))
    step = {
        "step": next(name for name in names if name not in taken),
        "settings": text,
        "position": 1 + len(steps),
    }
    row = {
        "id": row_id("step", round=0, step=step["step"], imported=settings["sha256"]),
        "round": 0,
        "operator": "import",
        "origin": "imported",
        "created_at": now(),
        **step,
    }
    store.commit({"step": [row]}, round=0, step=f"{step['step']} begin", chunk=0)
    return step, None


def _refuse_judge(store: Store, wanted: Import) -> None:
    """A source that is called like a judge of the recipe would pass for it."""
    known = store.rows(
        "SELECT 1 FROM judgement j WHERE j.judge = ? AND NOT EXISTS (SELECT 1 FROM step s "
        "WHERE s.round = j.round AND s.step = j.step AND s.origin = 'imported') LIMIT 1",
        [wanted.judge],
    )
    if known:
        raise BadInput.at("--source", f"{wanted.judge} is a judge of this run", "give another name")
