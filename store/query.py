"""Reading a store from outside: a locked-down, read-only connection on the published snapshot.

SQL is code, and a store file may come from somebody else: a view inside it could read any file of the
machine. So all that reaches beyond the file is switched off before the first statement runs.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ..errors import BadInput, StoreProblem
from .connect import without_progress_bar
from .store import SNAPSHOT
from .table import quote
from .tables import BY_NAME as TABLES
from .text import storable
from .view import identifier
from .views import VIEWS

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
    "SET enable_external_access = false; SET TimeZone = 'UTC'; "
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
    connection = _outside(path)
    try:
        connection.execute(_ENTER.format(path=_quoted(path)))
        without_progress_bar(connection)
        connection.execute(_LOCK.format(milliseconds=int(seconds * 1000)))
    except duckdb.Error as error:
        connection.close()
        raise _unreadable(path, error) from error
    return connection


def _outside(path: Path) -> duckdb.DuckDBPyConnection:
    # What does not fit in memory is put beside the file, not into the user's current folder.
    return duckdb.connect(":memory:", config=_JAIL | {"temp_directory": f"{path.absolute()}.tmp"})


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("'", "''")


def _unreadable(path: Path, error: Exception) -> StoreProblem:
    first = str(error).strip().split("\n", 1)[0]
    return StoreProblem(f"{path} cannot be read: {first}")


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
    age = _age(path)
    connection = jail(path, seconds)
    return Answer(_ask(connection, sql, {"": "store"}), age)


def query_runs(run_folders: Sequence[Path], sql: str, seconds: float = _SECONDS) -> Answer:
    """Run one statement of a user against the snapshots of several runs.

    Each view and table is the union over the runs, with a first column `run`, the name of the run's
    folder, where it has none. Each run stands beside them under its own name: `"first".answers`.

    Args:
        run_folders: the runs' folders; of one, this is `query`.
        sql: the statement.
        seconds: longest time that it may take.

    Raises:
        BadInput: as `query`; or two runs have one name, or a name that SQL keeps for itself.
        StoreProblem: a run's snapshot is damaged; the message names it.
    """
    if len(run_folders) == 1:
        return query(run_folders[0], sql, seconds)
    paths = {folder.name: snapshot(folder) for folder in _different(run_folders)}
    age = max(_age(path) for path in paths.values())
    connection = _jail_of_all(paths, seconds)
    return Answer(_ask(connection, sql, {name: identifier(name) for name in paths}), age)


def _age(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)


def _ask(connection: duckdb.DuckDBPyConnection, sql: str, catalogs: dict[str, str]) -> pa.Table:
    """Run one statement in a jail, with what it needs of Python, and close the jail.

    Args:
        connection: the jail, locked.
        sql: the statement.
        catalogs: the attached stores by run; one without a name where there is one run.
    """
    try:
        if storable(sql) != sql:
            raise BadInput.at("SQL", "is no valid Unicode text")
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            raise BadInput.at("SQL", f"{len(statements)} statements", "give exactly one")
        if _names(sql, "bradley_terry"):
            _compute_bradley_terry(connection, catalogs)
        if "" not in catalogs:
            # The unions are in memory, where only this keeps a statement from writing.
            connection.execute("BEGIN TRANSACTION READ ONLY")
        relation = connection.sql(sql)
        return _bounded(relation) if relation is not None else pa.table({})
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # the last two: while rows stream
        raise BadInput.at("SQL", explain(error)) from error
    finally:
        connection.close()


def _names(sql: str, word: str) -> bool:
    """Whether SQL has a word outside its strings."""
    return bool(re.search(rf"\b{word}\b", re.sub(r"'(?:[^']|'')*'", "''", sql), re.IGNORECASE))


def _compute_bradley_terry(connection: duckdb.DuckDBPyConnection, catalogs: dict[str, str]) -> None:
    """Fit the view in the locked jail: what a file has under the name `contests` is not trusted either."""
    from .views.bradley_terry import TABLE, strengths

    several = "" not in catalogs
    rows = [
        ((run, *row) if several else row)
        for run, catalog in catalogs.items()
        for row in strengths(connection, catalog)
    ]
    # Into temporary memory for one run, since the store is read-only; beside the unions for several.
    kind, run = ("", "run VARCHAR, ") if several else ("TEMP", "")
    connection.execute(TABLE.format(kind=kind, run=run))
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO bradley_terry VALUES ({marks})", rows)  # noqa: S608


_UNION = "all runs"
_KEPT = frozenset({"memory", "system", "temp", _UNION})
"""Names that the engine or this module uses for databases."""


def _different(run_folders: Sequence[Path]) -> Sequence[Path]:
    seen: set[str] = set()
    for folder in run_folders:
        name = folder.name.casefold()
        if name in _KEPT:
            raise BadInput.at("", f"run {folder.name!r} has a name that SQL keeps for itself")
        if name in seen:
            hint = "SQL takes upper and lower case for one"
            raise BadInput.at("", f"run {folder.name!r} stands here twice", hint)
        seen.add(name)
    return run_folders


def _jail_of_all(paths: dict[str, Path], seconds: float) -> duckdb.DuckDBPyConnection:
    """Open several snapshots in one jail, with a union over them for each view and table.

    The unions stand in a database of their own, never in the temporary one: a view of a run would find
    them there before the run's own tables, and count every row of every run.
    """
    connection = _outside(next(iter(paths.values())))
    path = Path()
    try:
        for name, path in paths.items():
            connection.execute(
                f"ATTACH '{_quoted(path)}' AS {identifier(name)} (TYPE duckdb, READ_ONLY)"
            )
        connection.execute(f"ATTACH ':memory:' AS {identifier(_UNION)}; USE {identifier(_UNION)}")
        without_progress_bar(connection)
        connection.execute(_LOCK.format(milliseconds=int(seconds * 1000)))
    except duckdb.Error as error:
        connection.close()
        raise _unreadable(path, error) from error
    try:
        connection.begin()
        connection.execute(_unions(connection, paths))
        connection.commit()
    except duckdb.Error as error:
        faults = [_fault(connection, name) for name in paths]
        connection.close()
        broken = next((text for text in faults if text), explain(error))
        raise StoreProblem(broken) from error
    return connection


def _unions(connection: duckdb.DuckDBPyConnection, paths: dict[str, Path]) -> str:
    """Return the SQL of all unions; a run from before a view simply adds no rows to it.

    What else a file brings is asked under the run's own name, and spoils no query of the others.
    """
    known = {"schema_migration", *TABLES, *VIEWS}
    found = connection.execute(
        "SELECT table_name, database_name, list(lower(column_name)) FROM duckdb_columns() "
        "WHERE NOT internal GROUP BY table_name, database_name"
    ).fetchall()
    holders: dict[str, dict[str, str]] = {}
    for table, run, columns in found:
        if table not in known:
            continue
        first = "" if "run" in columns else f"{quote(run)} AS run, "
        whole = f"{identifier(run)}.main.{identifier(table)}"
        holders.setdefault(table, {})[run] = f"SELECT {first}* FROM {whole}"  # noqa: S608
    return "\n".join(
        f"CREATE VIEW {identifier(table)} AS "
        + " UNION ALL BY NAME ".join(parts[run] for run in paths if run in parts)
        + ";"
        for table, parts in holders.items()
    )


def _fault(connection: duckdb.DuckDBPyConnection, run: str) -> str:
    """Return what is wrong with a view of a run, naming the run, or nothing."""
    with contextlib.suppress(duckdb.Error):
        connection.rollback()
    views = connection.execute(
        "SELECT view_name FROM duckdb_views() WHERE NOT internal AND database_name = ?", [run]
    ).fetchall()
    for (view,) in views:
        try:
            connection.sql(f"FROM {identifier(run)}.main.{identifier(view)}")
        except duckdb.Error as error:
            return f"run {run!r}: view {view}: {explain(error)}"
    return ""


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
    """Run a query of ours against the snapshot and return its rows as dicts.

    Raises:
        BadInput: there is no such run, or nothing is published yet.
        StoreProblem: the snapshot is damaged or no store.
    """
    path = snapshot(run_folder)
    connection = jail(path)
    try:
        result = connection.execute(sql, parameters or [])
        names = [d[0] for d in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    except duckdb.Error as error:
        raise _unreadable(path, error) from error
    finally:
        connection.close()


def explain(error: Exception) -> str:
    """Return the engine's message in one line, with the names that it would have known."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    hint = next((line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))), "")
    return f"{lines[0]}; {hint}" if hint else lines[0]
