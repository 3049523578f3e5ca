"""Reading a store from outside: a locked-down, read-only connection on the published snapshot.

SQL is code, and a store file may come from somebody else: a view inside it could read any file of the
machine. So all that reaches beyond the file is switched off before the first statement runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ..errors import BadInput, StoreProblem
from .store import SNAPSHOT
from .text import storable

_JAIL: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "2GB",
    "threads": "2",
    "max_temp_directory_size": "1GB",
}

# The engine keeps one instance a path in a process. A reader that opened the file itself would share the
# instance of another one, with a snapshot that has been replaced since and settings that are locked. So
# each opens an instance of its own, and attaches the file to it before the door is shut.
_ENTER = "ATTACH '{path}' AS store (TYPE duckdb, READ_ONLY); USE store"
_LOCK = (
    "SET enable_external_access = false; SET TimeZone = 'UTC'; SET enable_progress_bar = false; "
    "SET max_execution_time = {milliseconds}; SET lock_configuration = true"
)
_SECONDS = 60.0
_MOST_BYTES = 1 << 30
"""An answer leaves the engine, and so its memory limit; this bounds it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave, and how old the snapshot is that gave it."""

    table: pa.Table
    age_seconds: float


def jail(path: Path, seconds: float = _SECONDS) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB file that can be read and do nothing else.

    Args:
        path: the file.
        seconds: longest time of one statement.

    Raises:
        StoreProblem: the file is damaged or no store.
    """
    # What does not fit in memory is put beside the file, not into the user's current folder.
    config = _JAIL | {"temp_directory": f"{path.absolute()}.tmp"}
    connection = duckdb.connect(":memory:", config=config)
    try:
        connection.execute(_ENTER.format(path=str(path.absolute()).replace("'", "''")))
        connection.execute(_LOCK.format(milliseconds=int(seconds * 1000)))
    except duckdb.Error as error:
        connection.close()
        first = str(error).strip().split("\n", 1)[0]
        raise StoreProblem(f"{path} cannot be read: {first}") from error
    return connection


def snapshot(run_folder: Path) -> Path:
    """Return the run's snapshot.

    Raises:
        BadInput: there is no such run, or nothing is published yet.
    """
    path = run_folder / SNAPSHOT
    if path.exists():
        return path
    if not run_folder.is_dir():
        others = sorted(p.parent.name for p in run_folder.parent.glob(f"*/{SNAPSHOT}"))
        known = f"runs here: {', '.join(others)}" if others else "no run has been made here yet"
        raise BadInput.at("", f"no run {run_folder.name!r} in {run_folder.parent}", known)
    raise BadInput.at("", f"run {run_folder.name!r} has published nothing yet", "try again shortly")


def query(run_folder: Path, sql: str, seconds: float = _SECONDS) -> Answer:
    """Run one statement of a user against the snapshot.

    Args:
        run_folder: the run's folder.
        sql: the statement.
        seconds: longest time that it may take.

    Raises:
        BadInput: the SQL is wrong, is more than one statement, takes too long, gives too much, or asks
            for what the jail refuses.
    """
    path = snapshot(run_folder)
    age = max(0.0, time.time() - path.stat().st_mtime)
    if storable(sql) != sql:
        raise BadInput.at("SQL", "is no valid Unicode text")
    connection = jail(path, seconds)
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            raise BadInput.at("SQL", f"{len(statements)} statements", "give exactly one")
        relation = connection.sql(sql)
        table = _bounded(relation) if relation is not None else pa.table({})
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # the last two: while rows stream
        raise BadInput.at("SQL", explain(error)) from error
    finally:
        connection.close()
    return Answer(table, age)


def _bounded(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    reader = relation.to_arrow_reader()
    batches: list[pa.RecordBatch] = []
    size = 0
    for batch in reader:
        size += batch.nbytes
        if size > _MOST_BYTES:
            raise BadInput.at("SQL", f"gives more than {_MOST_BYTES >> 20} MiB", "add a LIMIT")
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


def read_rows(
    run_folder: Path, sql: str, parameters: list[Any] | None = None
) -> list[dict[str, Any]]:
    """Run a query of ours against the snapshot and return its rows as dicts."""
    connection = jail(snapshot(run_folder))
    try:
        result = connection.execute(sql, parameters or [])
        names = [d[0] for d in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    finally:
        connection.close()


def explain(error: Exception) -> str:
    """Return the engine's message in one line, with the names that it would have known."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    hint = next((line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))), "")
    return f"{lines[0]}; {hint}" if hint else lines[0]
