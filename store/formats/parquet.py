"""The rows whole, in Parquet: what TRL needs, how the label came about, and where the row stands."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import BadInput
from ..format import Kind, Lines, Read, Record, Unreadable, optional_text, read_row, shown
from .trl import TRL

_ROWS = 2000
_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_SAID: dict[Kind, dict[str, pa.DataType]] = {
    "preference": {"prompt": _TURNS, "chosen": _TURNS, "rejected": _TURNS},
    "demonstration": {"prompt": _TURNS, "completion": _TURNS},
    "thumbs": {"prompt": _TURNS, "completion": _TURNS, "label": pa.bool_()},
    "rating": {"prompt": _TURNS, "completion": _TURNS},
}
_NUMBERS = ("value", "raw", "other_value")
_TEXTS = ("aspect", "remark", "author", "judge", "model", "source", "licence")
_LABEL = ("margin", "probability", "weight")
_ORIGIN = ("run", "step", "id", "prompt_id", "completion_id", "other_id")


def schema_of(kind: Kind) -> pa.Schema:
    """Return the columns of the rows of a kind."""
    return pa.schema(
        [
            *_SAID[kind].items(),
            *((name, pa.float64()) for name in _NUMBERS),
            *((name, pa.string()) for name in _TEXTS),
            ("tags", pa.list_(pa.string())),
            ("rule", pa.string()),
            *((name, pa.float64()) for name in _LABEL),
            ("round", pa.int32()),
            *((name, pa.string()) for name in _ORIGIN),
        ]
    )


def batches(records: Iterable[Record], kind: Kind) -> Iterator[pa.RecordBatch]:
    """Yield records as Arrow, a few thousand at a time."""
    rows = (_row(record, kind) for record in records)
    while part := list(islice(rows, _ROWS)):
        yield pa.RecordBatch.from_pylist(part, schema=schema_of(kind))


def _row(record: Record, kind: Kind) -> dict[str, Any]:
    said = TRL().row(record, "demonstration" if kind == "rating" else kind)
    kept = {name: getattr(record, name) for name in (*_NUMBERS, *_TEXTS)}
    return {
        **said,
        **kept,
        "tags": list(record.tags),
        **dict(record.label or {}),
        **dict(record.origin or {}),
    }


def record_of(row: dict[str, Any]) -> Iterable[Record]:
    """Return the record of a row; a row with a value and no label is a rating.

    Raises:
        Unreadable: its columns are not these.
    """
    turns = ("prompt", "chosen", "rejected", "completion", "label")
    [said] = TRL().records({key: row[key] for key in turns if row.get(key) is not None})
    numbers = {name: _number(row, name) for name in (*_NUMBERS, *_LABEL)}
    label = {"rule": optional_text(row, "rule")} | {name: numbers[name] for name in _LABEL}
    rating = said.kind == "demonstration" and numbers["value"] is not None
    return [
        replace(
            said,
            kind="rating" if rating else said.kind,
            value=said.value if said.kind == "thumbs" else numbers["value"],
            raw=numbers["raw"],
            other_value=numbers["other_value"],
            aspect=optional_text(row, "aspect") or "",
            remark=optional_text(row, "remark"),
            author=optional_text(row, "author"),
            judge=optional_text(row, "judge"),
            model=optional_text(row, "model"),
            source=optional_text(row, "source"),
            licence=optional_text(row, "licence"),
            tags=tuple(str(tag) for tag in row.get("tags") or ()),
            label={key: value for key, value in label.items() if value is not None} or None,
        )
    ]


_BOUNDS = {"value": (0, 1), "other_value": (0, 1), "probability": (0, 1), "weight": (0, math.inf)}


def _number(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    low, high = _BOUNDS.get(name, (-math.inf, math.inf))
    if not isinstance(value, float) or not math.isfinite(value) or not low <= value <= high:
        raise Unreadable(f"{name} is {shown(value)}", "a number that is finite and in its bounds")
    return value


def read_batches(found: Iterable[pa.RecordBatch], file: Path) -> Read:
    """Yield the records of Arrow batches; a row's number stands for its line."""
    number = 0
    for batch in found:
        for row in batch.to_pylist():
            number += 1
            yield from read_row(record_of, row, number, file)


class Parquet(Lines):
    """Parquet with every column, traceable.

    Turns as TRL takes them, the label's numbers, and the row's origin.

    Pairs: `prompt`, `chosen`, `rejected` (lists of `{role, content}`), `value` and `other_value` of the
    two, `judge`, `rule`, `margin`, `probability`, `weight`, `tags`, `source`, `licence`. Selections:
    `prompt`, `completion`; thumbs: `label` too; ratings: `judge`, `aspect`, `value`, `raw`, `remark`.
    Last come `run`, `round`, `step`, `id`, `prompt_id`, `completion_id`, `other_id`, so that a trained
    row can be traced back. Import keeps all but these: the rows of another run have ids of their own.

    Equal texts of two pairs stay two rows here, and become one in the formats for trainers.
    """

    name = "parquet"
    writes = ("preference", "demonstration", "thumbs", "rating")
    reads = ("preference", "demonstration", "thumbs", "rating")
    whole = True

    def write(self, records: Iterable[Record], kind: Kind, target: Path) -> None:
        """Write one Parquet file, compressed with zstd."""
        import pyarrow.parquet as pq

        with target.open("wb") as file:
            with pq.ParquetWriter(file, schema_of(kind), compression="zstd") as writer:
                for batch in batches(records, kind):
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())

    def read(self, file: Path) -> Read:
        """Yield the records of a Parquet file, a few thousand in memory at a time."""
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(file) as found:
                yield from read_batches(found.iter_batches(_ROWS), file)
        except pa.ArrowException as error:
            raise BadInput.at(file.name, f"no Parquet that can be read: {error}") from error
