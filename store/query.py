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

_JAIL: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "2GB",
    "threads": "2",
    "max_temp_directory_size": "1GB",
    "max_execution_time": "60000",
}

# These two are no start-up options of the engine, so they come as its first statements.
_LOCK = "SET TimeZone = 'UTC'; SET enable_progress_bar = false; SET lock_configuration = true"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave, and how old the snapshot is that gave it."""

    table: pa.Table
    age_seconds: float


def jail(path: Path) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB file that can be read and do nothing else.

    Raises:
        StoreProblem: the file is damaged or no store.
    """
    try:
        connection = duckdb.connect(str(path), read_only=True, config=_JAIL)
        connection.execute(_LOCK)
    except duckdb.Error as error:
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


def query(run_folder: Path, sql: str) -> Answer:
    """Run one statement of a user against the snapshot.

    Raises:
        BadInput: the SQL is wrong, is more than one statement, or asks for what the jail refuses.
    """
    path = snapshot(run_folder)
    age = max(0.0, time.time() - path.stat().st_mtime)
    connection = jail(path)
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            raise BadInput.at("SQL", f"{len(statements)} statements", "give exactly one")
        relation = connection.sql(sql)
        table = relation.to_arrow_table() if relation is not None else pa.table({})
    except duckdb.Error as error:
        raise BadInput.at("SQL", _explain(error)) from error
    finally:
        connection.close()
    return Answer(table, age)


def read_rows(run_folder: Path, sql: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
    """Run a query of ours against the snapshot and return its rows as dicts."""
    connection = jail(snapshot(run_folder))
    try:
        result = connection.execute(sql, parameters or [])
        names = [d[0] for d in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    finally:
        connection.close()


def _explain(error: duckdb.Error) -> str:
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    hint = next((line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))), "")
    return f"{lines[0]}; {hint}" if hint else lines[0]
