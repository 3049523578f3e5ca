"""The answer to a query as a table for people, JSON, CSV or Parquet.

A cell may hold what a model wrote, so a terminal gets no control characters, and a CSV file no formula:
a *text* cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return gets an apostrophe before
it, because spreadsheets run such cells. Numbers are left as they are. Who wants the exact text takes
JSON or Parquet.
"""

from __future__ import annotations

import base64
import csv as csv_module
import io
import json
import math
import os
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pyarrow as pa

from ..errors import BadInput
from .console import clean

if TYPE_CHECKING:
    from rich.console import Console

MOST_ROWS = 200
"""Rows of a table that a terminal gets."""
MOST_CHARACTERS = 300
"""Characters of a cell that a terminal gets."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def show_rows(
    console: Console, table: pa.Table, *, as_json: bool, csv: bool, parquet: Path | None
) -> None:
    """Show a table in exactly one of four ways; a table for people where none is asked for.

    Args:
        console: where it goes; JSON and CSV go to its file, unwrapped.
        table: what the query gave.
        as_json: print a list of objects.
        csv: print CSV.
        parquet: write this file.

    Raises:
        BadInput: more than one way is asked for, or the file cannot be written.
    """
    asked = [
        name for name, on in (("--json", as_json), ("--csv", csv), ("--parquet", parquet)) if on
    ]
    if len(asked) > 1:
        raise BadInput.at("", f"{' and '.join(asked)} together", "give one of them")
    if as_json:
        console.file.write(as_json_text(table) + "\n")
    elif csv:
        console.file.write(as_csv_text(table))
    elif parquet is not None:
        write_parquet(table, parquet)
        console.print(f"{table.num_rows} rows in {parquet}", highlight=False, markup=False)
    else:
        _show_table(console, table)


def as_json_text(table: pa.Table) -> str:
    """Return a list of objects: ids and times as text, what JSON has no word for as null."""
    rows = [dict(zip(_names(table), cells, strict=True)) for cells in _rows(table)]
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)


def as_csv_text(table: pa.Table) -> str:
    """Return CSV as RFC 4180 has it: a header, CRLF, quotes where they are needed; NULL is empty."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\r\n")
    writer.writerow([_guarded(name) for name in _names(table)])
    for cells in _rows(table):
        writer.writerow([_guarded(cell) for cell in cells])
    return out.getvalue()


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all.

    Raises:
        BadInput: the file cannot be written.
    """
    import pyarrow.parquet as pq

    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table.rename_columns(_names(table)), aside)
        aside.replace(path)
    except (OSError, pa.ArrowException) as error:
        aside.unlink(missing_ok=True)
        raise BadInput.at("--parquet", f"{path} cannot be written: {error}") from error


def _show_table(console: Console, table: pa.Table) -> None:
    from rich.table import Table
    from rich.text import Text

    if not table.num_columns:
        console.print("the statement gives no rows", highlight=False)
        return
    shown = Table()
    for name, kind in zip(_names(table), table.schema.types, strict=True):
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        shown.add_column(Text(clean(name)), justify="right" if number else "left", overflow="fold")
    cut = 0
    for cells in _rows(table.slice(0, MOST_ROWS)):
        texts = ["" if cell is None else _text(cell) for cell in cells]
        cut += sum(len(text) > MOST_CHARACTERS for text in texts)
        shown.add_row(*(Text(_short(text)) for text in texts))
    console.print(shown)
    told = f"{table.num_rows} rows" if table.num_rows != 1 else "1 row"
    if table.num_rows > MOST_ROWS:
        told = f"{MOST_ROWS} of {told} are shown; --csv, --json or --parquet give all"
    if cut:
        told += f"; {cut} long cells are cut, --json gives them whole"
    console.print(told, highlight=False, markup=False, style="dim")


def _names(table: pa.Table) -> list[str]:
    """Return the columns' names, each once: two of one name would make one JSON key."""
    names: list[str] = []
    for name in table.column_names:
        count = sum(1 for known in table.column_names[: len(names)] if known == name)
        names.append(f"{name}_{count + 1}" if count else name)
    return names


def _rows(table: pa.Table) -> Iterator[list[Any]]:
    """Yield the rows as plain values that JSON can hold."""
    for batch in table.to_batches(max_chunksize=4096):
        columns = [column.to_pylist() for column in batch.columns]
        for cells in zip(*columns, strict=True):
            yield [_plain(cell) for cell in cells]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; ids, times, decimals and bytes become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return str(UUID(bytes=value)) if len(value) == 16 else base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, timedelta | Decimal | UUID):
        return str(value)
    return str(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _short(text: str) -> str:
    return clean(text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "...")


def _guarded(cell: Any) -> Any:
    """Return a CSV cell that no spreadsheet runs."""
    if isinstance(cell, list | dict):
        return json.dumps(cell, ensure_ascii=False)
    if isinstance(cell, str) and cell.startswith(_FORMULA):
        return f"'{cell}"
    return cell
