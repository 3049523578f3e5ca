"""Export: feedback of a run's snapshot as a file of another format, whole or not at all.

Rows come in the order of their content (hashes of what was asked and answered), never of ids or times,
so that an export which is imported into another run is exported from there byte for byte the same.
Held-out and test rows are never exported: every query asks for train, of the prompt as of the row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadInput
from ..hashing import content_hash, file_sha256
from ..types import Message
from .facts import IMPORTED
from .format import Format, Kind, Record, find_format
from .query import jail, snapshot

What = Literal["pairs", "selections", "thumbs", "ratings"]
KINDS: dict[str, Kind] = {
    "pairs": "preference",
    "selections": "demonstration",
    "thumbs": "thumbs",
    "ratings": "rating",
}
FOLDER = "exports"
_FETCH = 2000
_SECONDS = 600.0

# Every query gives: asked, text_hash, other_hash, messages, text, other, forgotten, turns, tools; what
# the record holds; and the origin. `$round` and `$step` are NULL where all are wanted.
_PAIRS = """
WITH wanted AS (
    SELECT p.*, q.messages_hash AS asked, c.text_hash, r.text_hash AS other_hash
    FROM pair p JOIN prompt q ON q.id = p.prompt_id
    JOIN completion c ON c.id = p.chosen_id JOIN completion r ON r.id = p.rejected_id
    WHERE p.split = 'train' AND q.split = 'train' AND c.split = 'train' AND r.split = 'train'
      AND p.round = coalesce($round, p.round) AND p.step = coalesce($step, p.step)
),
-- Values of several judges cannot be compared: then there are none.
score AS (
    SELECT q.messages_hash AS asked, c.text_hash, max(j.value) AS value, arg_max(j.raw, j.value) AS raw
    FROM judgement j JOIN completion c ON c.id = j.completion_id JOIN prompt q ON q.id = c.prompt_id
    WHERE j.mode = 'score' AND j.aspect = '' AND j.status = 'ok' AND c.split = 'train'
      AND j.judge = (SELECT any_value(judge) FROM wanted HAVING count(DISTINCT judge) = 1)
    GROUP BY q.messages_hash, c.text_hash
)
SELECT w.asked, w.text_hash, w.other_hash, ask.text AS messages, a.text AS text, b.text AS other,
       coalesce(ask.forgotten_at, a.forgotten_at, b.forgotten_at) IS NOT NULL AS forgotten,
       (c.turns_hash IS NOT NULL OR r.turns_hash IS NOT NULL) AS turns, q.tools_hash IS NOT NULL AS tools,
       s.value, s.raw, t.value AS other_value, w.judge, c.model, coalesce(c.source, q.source) AS source,
       coalesce(c.licence, q.licence) AS licence, q.tags, w.rule, w.margin, w.probability, w.weight,
       w.round, w.step, w.id::VARCHAR AS id, w.prompt_id::VARCHAR AS prompt_id,
       w.chosen_id::VARCHAR AS completion_id, w.rejected_id::VARCHAR AS other_id,
       NULL AS remark, '' AS aspect, NULL AS author
FROM wanted w JOIN prompt q ON q.id = w.prompt_id
JOIN completion c ON c.id = w.chosen_id JOIN completion r ON r.id = w.rejected_id
JOIN content ask ON ask.hash = q.messages_hash AND ask.round = q.round
JOIN content a ON a.hash = c.text_hash AND a.round = c.round
JOIN content b ON b.hash = r.text_hash AND b.round = r.round
LEFT JOIN score s ON s.asked = w.asked AND s.text_hash = w.text_hash
LEFT JOIN score t ON t.asked = w.asked AND t.text_hash = w.other_hash
ORDER BY w.asked, w.text_hash, w.other_hash, w.round, w.judge, w.rule, w.margin, w.probability, w.weight, w.id
"""

_ONE = """
SELECT q.messages_hash AS asked, c.text_hash, NULL AS other_hash, ask.text AS messages, a.text AS text,
       NULL AS other, (ask.forgotten_at IS NOT NULL OR a.forgotten_at IS NOT NULL) AS forgotten,
       c.turns_hash IS NOT NULL AS turns, q.tools_hash IS NOT NULL AS tools,
       {columns}, coalesce(c.model, {speaker}) AS model, q.tags,
       x.round, x.step, x.id::VARCHAR AS id, q.id::VARCHAR AS prompt_id,
       c.id::VARCHAR AS completion_id, NULL AS other_id, NULL AS other_value
FROM {table} x JOIN completion c ON c.id = x.completion_id JOIN prompt q ON q.id = c.prompt_id
JOIN content ask ON ask.hash = q.messages_hash AND ask.round = q.round
JOIN content a ON a.hash = c.text_hash AND a.round = c.round
{more}
WHERE q.split = 'train' AND c.split = 'train' AND {where}
  AND x.round = coalesce($round, x.round) AND x.step = coalesce($step, x.step)
ORDER BY asked, c.text_hash, {order}, x.round, x.id
"""
_OF_ANSWER = "coalesce(c.source, q.source) AS source, coalesce(c.licence, q.licence) AS licence"
_QUERIES: dict[str, str] = {
    "pairs": _PAIRS,
    "selections": _ONE.format(
        table="selection",
        columns=f"x.weight, {_OF_ANSWER}, NULL AS value, NULL AS raw, NULL AS judge, '' AS aspect, "
        "NULL AS remark, NULL AS author",
        speaker="NULL",
        more="",
        where="x.split = 'train'",
        order="x.weight",
    ),
    "thumbs": _ONE.format(
        table="feedback",
        columns="x.value, x.source, x.licence, x.author, w.text AS remark, NULL AS raw, NULL AS judge, "
        "'' AS aspect",
        speaker="NULL",
        more="LEFT JOIN content w ON w.hash = x.text_hash AND w.round = x.round",
        where="x.kind = 'thumbs'",
        order="x.value",
    ),
    "ratings": _ONE.format(
        table="judgement",
        columns=f"x.value, x.raw, x.judge, x.aspect, w.text AS remark, {_OF_ANSWER}, NULL AS author",
        speaker="c.revision",
        more="LEFT JOIN content w ON w.hash = x.text_hash AND w.round = x.round",
        where="x.mode = 'score' AND x.status = 'ok'",
        order="model, x.aspect, x.judge, x.value, x.raw",
    ),
}
_LABEL = ("rule", "margin", "probability", "weight")
_ORIGIN = ("round", "step", "id", "prompt_id", "completion_id", "other_id")
_SEEN = pa.schema(
    [
        ("row", pa.int64()),
        ("prompt_id", pa.string()),
        ("completion_id", pa.string()),
        ("other_id", pa.string()),
        ("text_hash", pa.string()),
        ("other_hash", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Export:
    """What is to be exported, and where to."""

    format: str
    out: Path
    what: What = "pairs"
    round: int | None = None
    step: str | None = None
    force: bool = False


def export(run_folder: Path, wanted: Export) -> dict[str, Any]:
    """Write a file of a run's feedback and return what was written: counts, hash, note, record.

    Reads only the snapshot. What the file saw is kept in `exports/` of the run, one Parquet file an
    export, with the ids of every prompt and completion and the file's facts as metadata.

    Raises:
        BadInput: there is no such run, format or row; the file is there already; or the format cannot
            hold the rows.
        EnvironmentProblem: the format needs a library that is not installed.
    """
    form, kind = _checked(wanted)
    reading = _Reading(run_folder, wanted, form)
    with whole_or_not(wanted.out, force=wanted.force) as aside:
        form.write(reading.records(), kind, aside)
        reading.check()
        digest, size = digest_of(aside), _size(aside)
    facts = {
        "file": str(wanted.out),
        "format": wanted.format,
        "what": wanted.what,
        "round": wanted.round,
        "step": wanted.step,
        "rows": reading.rows,
        "merged": reading.merged,
        "left_out": dict(sorted(reading.left_out.items())),
        "sha256": digest,
        "bytes": size,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    record = _keep_record(run_folder, facts, reading.seen)
    return {**facts, "record": record, "note": form.note(wanted.out, kind)}


def _checked(wanted: Export) -> tuple[Format, Kind]:
    form = find_format(wanted.format)
    if wanted.what not in get_args(What):
        raise BadInput.at("--what", f"{wanted.what!r}", f"one of {', '.join(get_args(What))}")
    kind = KINDS[wanted.what]
    if kind not in form.writes:
        known = [what for what, k in KINDS.items() if k in form.writes]
        hint = f"it holds {' and '.join(known)}" if known else "it is for import; export trl, say"
        raise BadInput.at("--what", f"{wanted.format} cannot hold {wanted.what}", hint)
    if not wanted.out.absolute().parent.is_dir():
        raise BadInput.at("--out", f"no folder {wanted.out.parent}", "make it first")
    return form, kind


class _Reading:
    """Reads the rows of an export, and counts what becomes of them."""

    def __init__(self, folder: Path, wanted: Export, form: Format) -> None:
        self._folder, self._wanted, self._form = folder, wanted, form
        self.rows = self.merged = 0
        self.left_out: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []

    def records(self) -> Iterator[Record]:
        """Yield the records in the order of their content; equal ones once, unless the format is whole."""
        before: Any = None
        for row in self._stored():
            if reason := _left_out(row):
                self.left_out[reason] += 1
                continue
            record = _record(row, KINDS[self._wanted.what])
            if reason := self._form.refuses(record):
                self.refused[reason] += 1
                continue
            same = _same(row, record)
            twice = same == before and not self._form.whole
            self.rows += not twice
            self.merged += twice
            self._saw(row)
            before = same
            if not twice:
                yield record

    def _saw(self, row: dict[str, Any]) -> None:
        self.seen.append({"row": self.rows - 1} | {k: row[k] for k in _SEEN.names[1:]})

    def _stored(self) -> Iterator[dict[str, Any]]:
        connection = jail(snapshot(self._folder), _SECONDS)
        try:
            asked = {"round": self._wanted.round, "step": self._wanted.step}
            result = connection.execute(_QUERIES[self._wanted.what], asked)
            names = [d[0] for d in result.description or ()]
            run = self._folder.name
            while rows := result.fetchmany(_FETCH):
                for row in rows:
                    yield {**dict(zip(names, row, strict=True)), "run": run}
        finally:
            connection.close()

    def check(self) -> None:
        """Refuse an export that lacks rows because of its format, or that has none."""
        if self.refused:
            (reason, count), *_ = self.refused.most_common()
            what = f"{count} of {self.rows + self.refused.total()} rows do not fit: {reason}"
            raise BadInput.at(
                self._wanted.format, what, "export trl or parquet, which hold all turns"
            )
        if not self.rows:
            where = [f"round {self._wanted.round}"] if self._wanted.round is not None else []
            where += [f"step {self._wanted.step}"] if self._wanted.step else []
            there = "; ".join(f"{n} left out: {why}" for why, n in self.left_out.items())
            what = f"no {self._wanted.what} to export" + (
                f" of {', '.join(where)}" if where else ""
            )
            raise BadInput.at(
                self._folder.name, what, there or "`redistill status` shows what is there"
            )


def _same(row: dict[str, Any], record: Record) -> tuple[Any, ...]:
    """Return what makes two rows one in a file for trainers: the texts, and what is said of them."""
    texts = (row["asked"], row["text_hash"], row["other_hash"])
    if record.kind == "rating":
        return (*texts, record.model, record.aspect, record.judge, record.value)
    return (*texts, record.value) if record.kind == "thumbs" else texts


def _left_out(row: dict[str, Any]) -> str:
    """Return why a stored row cannot go out, or nothing."""
    if row["forgotten"]:
        return "a text was forgotten"
    if row["tools"] or row["turns"]:
        return "has tools or an answer of several turns"
    if row["other_hash"] is not None and row["other_hash"] == row["text_hash"]:
        return "both answers read the same"
    return ""


def _record(row: dict[str, Any], kind: Kind) -> Record:
    turns = json.loads(row["messages"])
    label = {name: row[name] for name in _LABEL if row.get(name) is not None}
    kept = ("text", "other", "value", "raw", "other_value", "aspect", "remark", "author", "judge",
            "model", "source", "licence")  # fmt: skip
    return Record(
        kind,
        tuple(Message(m["role"], m["content"]) for m in turns),
        **{name: row[name] for name in kept},
        tags=tuple(tag for tag in row["tags"] if tag != IMPORTED),
        label=label or None,
        origin={name: row[name] for name in ("run", *_ORIGIN)},
    )


# -- files, whole or not at all


@contextlib.contextmanager
def whole_or_not(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a path beside the target, and put it in the target's place when the block ends well.

    Raises:
        BadInput: the target is there and `force` is not given, or the disk refuses.
    """
    if target.exists() and not force:
        raise BadInput.at("--out", f"{target} exists", "give another name, or --force")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield aside
        _put(aside, target)
    except OSError as error:
        raise BadInput.at("--out", f"{target} cannot be written: {error.strerror}") from error
    finally:
        _remove(aside)


def _put(aside: Path, target: Path) -> None:
    """Rename aside to the target; a folder cannot be renamed over one that is there."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    for file in aside.rglob("*") if aside.is_dir() else (aside,):
        _sync(file)
    if target.is_dir():
        target.rename(old)
    aside.replace(target)
    _remove(old)
    _sync(target.absolute().parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder, that of its files' names and SHA-256."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{file_sha256(f)}  {f.relative_to(path).as_posix()}\n" for f in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)


# -- what an export saw


def _keep_record(folder: Path, facts: dict[str, Any], seen: list[dict[str, Any]]) -> str:
    """Write what the export saw into the run, and return the record's path in it."""
    stamp = facts["time"].replace("-", "").replace(":", "")
    mark = content_hash([facts["file"], facts["sha256"], time.time_ns()])[:8]
    target = folder / FOLDER / f"{stamp}-{mark}.parquet"
    target.parent.mkdir(exist_ok=True)
    schema = _SEEN.with_metadata({"redistill": json.dumps(facts)})
    with whole_or_not(target, force=False) as aside, aside.open("wb") as file:
        pq.write_table(pa.Table.from_pylist(seen, schema=schema), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    return target.relative_to(folder).as_posix()


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """One export of a run: its facts, and which of the texts asked for it saw."""

    record: str
    facts: dict[str, Any]
    rows: tuple[int, ...] = ()
    """Rows of the file, from 0, that hold one of the completions or prompts asked for."""


def export_records(folder: Path, ids: frozenset[str] = frozenset()) -> list[ExportRecord]:
    """Return the exports of a run, oldest first, each with the rows that hold one of some ids.

    Args:
        folder: the run's folder.
        ids: prompt ids, completion ids or text hashes.
    """
    found = []
    for file in sorted((folder / FOLDER).glob("*.parquet")):
        table = pq.read_table(file)
        facts = json.loads((table.schema.metadata or {})[b"redistill"])
        rows: set[int] = set()
        if ids:
            for row in table.to_pylist():
                if not ids.isdisjoint(cast("list[str]", list(row.values())[1:])):
                    rows.add(row["row"])
        record = ExportRecord(file.relative_to(folder).as_posix(), facts)
        found.append(replace(record, rows=tuple(sorted(rows))))
    return found
