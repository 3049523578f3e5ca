"""From the store to a trainer without a copy: SQL, Arrow, `datasets.Dataset`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ..errors import BadInput, EnvironmentProblem
from ..hashing import content_hash, file_sha256
from .query import explain, jail, query, snapshot
from .text import storable

_VIEW = re.compile(r"[A-Za-z_]\w*")
_SECONDS = 600.0
_LEDGER = """
SELECT (SELECT id::VARCHAR FROM run LIMIT 1) AS run,
       (SELECT md5(string_agg(id::VARCHAR, ' ' ORDER BY id)) FROM write_batch) AS batches,
       (SELECT count(*) FROM content WHERE forgotten_at IS NOT NULL) AS forgotten
"""


def dataset(run: str | Path, sql: str) -> Any:
    """Return the rows of a query as a `datasets.Dataset`, whose columns are the engine's own buffers.

    Nothing is copied, and the fingerprint is the content hash of the run, the query and the snapshot's
    rows: so the cache of `datasets` knows equal rows again, and takes no changed ones for them.

    Args:
        run: a run's folder, or its name under `runs/`.
        sql: one statement, or the name of a view; see `redistill list views`.

    Raises:
        BadInput: there is no such run, or the SQL is wrong.
        EnvironmentProblem: the library `datasets` is not installed.
    """
    library = datasets_library()
    folder, statement = run_folder(run), _statement(sql)
    return library.Dataset(
        read_table(folder, statement), fingerprint=fingerprint(folder, statement)
    )


def to_parquet(run: str | Path, sql: str, path: str | Path) -> str:
    """Write the rows of a query to a Parquet file and return its SHA-256.

    For rows that do not fit in memory twice, and for trainers in processes of their own: the file can
    be mapped by all of them. Written whole or not at all.

    Args:
        run: a run's folder, or its name under `runs/`.
        sql: one statement, or the name of a view.
        path: the file; one that is there is replaced.

    Raises:
        BadInput: there is no such run, the SQL is wrong, or the file cannot be written.
    """
    import pyarrow.parquet as pq

    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    connection = jail(snapshot(run_folder(run)), _SECONDS)
    try:
        reader = _relation(connection, _statement(sql)).to_arrow_reader()
        with aside.open("wb") as file:
            with pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
                for batch in reader:
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        digest = file_sha256(aside)
        aside.replace(target)
    except (duckdb.Error, pa.ArrowException) as error:
        raise BadInput.at("SQL", explain(error)) from error
    except OSError as error:
        raise BadInput.at(str(target), f"cannot be written: {error.strerror}") from error
    finally:
        connection.close()
        aside.unlink(missing_ok=True)
    return digest


def read_table(folder: Path, sql: str) -> pa.Table:
    """Return the rows of one statement as Arrow, in the jail of `redistill query`.

    Raises:
        BadInput: the SQL is wrong, takes too long, or gives more than a GiB: then `to_parquet` is the way.
    """
    return query(folder, sql, _SECONDS).table


def fingerprint(folder: Path, sql: str) -> str:
    """Return the content hash of a run, a query, and what stands in the snapshot."""
    connection = jail(snapshot(folder))
    try:
        found = connection.execute(_LEDGER).fetchone()
    finally:
        connection.close()
    return content_hash(json.dumps([sql, found]))


def run_folder(run: str | Path) -> Path:
    """Return the folder of a run: the folder itself, or a name under `runs/`."""
    folder = Path(run)
    return folder if folder.is_dir() or len(folder.parts) > 1 else Path("runs") / folder


def datasets_library() -> Any:
    """Return the library `datasets`, which takes a second to load.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise EnvironmentProblem(
            "this needs the library datasets: pip install 'redistill[train]'"
        ) from error
    return datasets


def _statement(sql: str) -> str:
    return f'FROM "{sql}"' if _VIEW.fullmatch(sql) else sql


def _relation(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    if storable(sql) != sql:
        raise BadInput.at("SQL", "is no valid Unicode text")
    if (count := len(connection.extract_statements(sql))) != 1:
        raise BadInput.at("SQL", f"{count} statements", "give exactly one")
    relation = connection.sql(sql)
    if relation is None:
        raise BadInput.at("SQL", "gives no rows", "a SELECT, or the name of a view")
    return relation
