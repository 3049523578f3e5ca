"""Fifty ways to get out of `redistill query`: none reads or writes a file, changes a row, or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_rows import completion, judgement, opening, texts
from typer.testing import CliRunner

from redistill.cli import app
from redistill.errors import BadInput
from redistill.store import query as reading
from redistill.store.query import query
from redistill.store.store import FILE, SNAPSHOT, Store

MARK = "xq-secret-7f3a"
"""What the file outside holds; no answer to any statement may have it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with one answer, views and macros of a stranger in it, and a secret file beside it."""
    base = tmp_path_factory.mktemp("hostile")
    secret = base / "secret.csv"
    secret.write_text(f"{MARK}\n", "utf-8")
    folder = base / "runs" / "run"
    folder.mkdir(parents=True)
    store = Store(folder, ["verifier"])
    store.commit(opening({"p": "train"}), round=0, step="begin", chunk=0)
    rows = {"completion": [completion("a", "yes")], "content": texts("yes")}
    store.commit({**rows, "judgement": [judgement("a", 1.0)]}, round=1, step="sample", chunk=0)
    store.work(
        lambda connection: connection.execute(
            f"CREATE VIEW trap AS SELECT * FROM read_text('{secret}');"
            f"CREATE VIEW trap_csv AS SELECT * FROM read_csv('{secret}', header = false);"
            f"CREATE MACRO trap_table() AS TABLE SELECT * FROM read_text('{secret}');"
            f"CREATE MACRO trap_value() AS (SELECT content FROM read_text('{secret}'))"
        )
    )
    store.close()
    home = Path.cwd()
    (base / "here").mkdir()
    os.chdir(base / "here")
    yield base
    os.chdir(home)


# {secret} is a file that holds the mark, {out} one that must never be. Each says what must come of it.
REFUSED = [
    # files, read
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "FROM read_csv('{secret}')",
    "FROM read_csv_auto('{secret}')",
    "FROM read_json('{secret}')",
    "FROM read_json_objects('{secret}')",
    "FROM read_ndjson_auto('{secret}')",
    "FROM read_parquet('{secret}')",
    "FROM parquet_metadata('{secret}')",
    "FROM parquet_scan('{secret}')",
    "FROM '{secret}'",
    'SELECT * FROM "{secret}"',
    "FROM glob('{base}/**')",
    "FROM sniff_csv('{secret}')",
    "SELECT (SELECT content FROM read_text('{secret}')) AS x FROM answers",
    "WITH s AS MATERIALIZED (FROM read_text('{secret}')) SELECT * FROM s",
    "SELECT * FROM answers, LATERAL (SELECT * FROM read_text('{secret}'))",
    "FROM query('FROM read_text(''{secret}'')')",
    "FROM query_table('{secret}')",
    "FROM/**/read_text/**/('{secret}')",
    "FROM \u0072ead_text(U&'{secret}')",
    "FROM \uff52\uff45\uff41\uff44_text('{secret}')",
    "FROM trap",
    "FROM trap_csv",
    "FROM trap_table()",
    "SELECT trap_value()",
    "PREPARE p AS FROM read_text('{secret}')",
    # files, written
    "COPY (SELECT 1) TO '{out}'",
    "COPY answers TO '{out}' (FORMAT parquet)",
    "COPY (SELECT 1) TO '{out}' (FORMAT csv, PARTITION_BY (a))",
    "COPY content FROM '{secret}'",
    "EXPORT DATABASE '{out}'",
    "IMPORT DATABASE '{base}'",
    "CREATE TABLE memory.main.t AS FROM read_text('{secret}')",
    "PRAGMA enable_profiling = 'json'; ",
    "PRAGMA profiling_output = '{out}'",
    "SET profiling_output = '{out}'",
    "SET log_query_path = '{out}'",
    "SET temp_directory = '{out}'",
    "SET extension_directory = '{out}'",
    "SET secret_directory = '{out}'",
    "SET home_directory = '{base}'",
    "SET enable_logging = true",
    "CALL enable_logging('QueryLog', storage = 'file', storage_path = '{out}')",
    # other databases, code, secrets
    "ATTACH '{out}' AS other",
    "ATTACH '{live}' AS live",
    "DETACH store",
    "INSTALL httpfs",
    "LOAD '{secret}'",
    "FORCE INSTALL spatial FROM 'http://127.0.0.1:9'",
    "UPDATE EXTENSIONS",
    "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'k', SECRET 's')",
    "FROM duckdb_secrets()",
    "SELECT getenv('PATH')",
    "FROM pragma_database_list(); FROM trap",
    # doors that are shut
    "SET enable_external_access = true",
    "SET GLOBAL lock_configuration = false",
    "RESET enable_external_access",
    "SET allowed_paths = ['{secret}']",
    "SET allowed_directories = ['{base}']",
    "SET max_execution_time = 0",
    "SET memory_limit = '1TB'",
    # rows, changed
    "INSERT INTO event SELECT * FROM event",
    "WITH x AS (DELETE FROM content RETURNING *) SELECT * FROM x",
    "UPDATE judgement SET value = 1",
    "MERGE INTO content USING (SELECT 1) s ON false WHEN MATCHED THEN DELETE",
    "TRUNCATE completion",
    "DROP TABLE content CASCADE",
    "CREATE OR REPLACE VIEW answers AS SELECT 1",
    "COMMENT ON TABLE content IS 'x'",
    "EXPLAIN ANALYZE DELETE FROM content",
    "BEGIN; DELETE FROM content; COMMIT",
    "SELECT 1; DROP TABLE content",
    "SELECT 1;\u00a0DROP TABLE content",
    "SELECT 1 /* ; */; -- \n DELETE FROM content",
    # no SQL at all
    "SELECT '\ud800'",
    "\0SELECT 1",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "'",
    "SELECT $1",
]

ENDLESS = [
    "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r) SELECT max(a) FROM r",
    "SELECT count(*) FROM range(100000000) a, range(100000000) b",
    "SELECT * FROM range(100000000000)",
    "SELECT sum(hash(a.range * b.range)) FROM range(10000000) a, range(10000000) b",
    "SELECT count(*) FROM range(10000000000) t(n) WHERE regexp_matches(repeat('a', 99) || n, '(a|a?)+b')",
]
"""Ends within its time, with a line that says so."""

TOO_LARGE = [
    "SELECT repeat('x', 1000000) FROM range(1000000)",
    "SELECT list(range) FROM range(1000000000)",
    "SELECT string_agg(repeat('x', 1000), '') FROM range(100000000)",
]
"""Needs more memory or gives more than is allowed, or runs out of time; ends with a line that says so."""

HARMLESS = [
    "SELECT '''; DROP TABLE content; --' AS x",
    "SELECT 1 AS n; -- ; DROP TABLE content",
    'SELECT 1 AS "a;b"',
    "EXPLAIN SELECT * FROM answers",
    "SHOW ALL TABLES",
    "DESCRIBE answers",
    "CHECKPOINT store",
    "FORCE CHECKPOINT",
    "VACUUM ANALYZE content",
    "ATTACH ':memory:' AS other",
    "CREATE TEMP TABLE mine AS SELECT 1",
    "SELECT current_setting('temp_directory') AS x",
    "FROM duckdb_settings()",
    "VALUES ('\u202e', '\x1b[31m')",
]
"""Runs, and reads nothing but the store."""


def _state(place: Path) -> dict[str, bytes]:
    """Return every file under the test's folder, with its bytes."""
    return {str(f.relative_to(place)): f.read_bytes() for f in place.rglob("*") if f.is_file()}


def _filled(sql: str, place: Path) -> str:
    # str.format would trip over JSON and lone braces; only our own words are filled in.
    filled = sql.replace("{secret}", str(place / "secret.csv")).replace("{out}", str(place / "out"))
    live = place / "runs" / "run" / FILE
    return filled.replace("{base}", str(place)).replace("{live}", str(live))


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: ascii(sql[:60]))
def test_it_is_refused_in_one_line(place: Path, sql: str) -> None:
    """No file is read or written, no row changes, and the reason is one line."""
    before = _state(place)
    with pytest.raises(BadInput, match=r"^SQL: ") as error:
        query(place / "runs" / "run", _filled(sql, place), seconds=5)
    assert MARK not in str(error.value)
    assert "\n" not in str(error.value)
    assert _state(place) == before


@pytest.mark.parametrize("sql", ENDLESS, ids=lambda sql: sql[:40])
def test_it_ends(place: Path, sql: str) -> None:
    """What would run for ever is stopped."""
    began = time.monotonic()
    with pytest.raises(BadInput, match=r"^SQL: .*maximum execution time"):
        query(place / "runs" / "run", sql, seconds=0.3)
    assert time.monotonic() - began < 20
    assert not list(place.glob("runs/run/*.tmp"))


@pytest.mark.parametrize("sql", TOO_LARGE, ids=lambda sql: sql[:40])
def test_it_is_bounded(place: Path, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither memory nor disk nor the answer grows without a bound."""
    monkeypatch.setitem(reading._JAIL, "memory_limit", "200MB")
    monkeypatch.setitem(reading._JAIL, "max_temp_directory_size", "50MB")
    monkeypatch.setattr(reading, "_MOST_BYTES", 50 << 20)
    with pytest.raises(BadInput, match=r"^SQL: "):
        query(place / "runs" / "run", sql, seconds=3)
    assert not list(place.glob("runs/run/*.tmp"))


@pytest.mark.parametrize("sql", HARMLESS, ids=lambda sql: ascii(sql[:40]))
def test_it_runs_and_reads_the_store_alone(place: Path, sql: str) -> None:
    """What only looks hostile is answered; the files stay as they are."""
    before = _state(place)
    answer = query(place / "runs" / "run", sql, seconds=5)
    assert MARK not in str(answer.table.to_pylist())
    assert _state(place) == before


def test_there_are_enough_of_them() -> None:
    """At least fifty, each once."""
    every = [*REFUSED, *ENDLESS, *TOO_LARGE, *HARMLESS]
    assert len(every) == len(set(every)) > 50


def test_the_command_tells_it_too(place: Path) -> None:
    """Through the command line a refusal is exit 2 and one line, with no answer printed."""
    runs = str(place / "runs")
    done = CliRunner().invoke(app, ["query", "run", "FROM trap", "--runs", runs])
    assert isinstance(done.exception, BadInput)
    assert done.stdout == ""
    good = CliRunner().invoke(
        app, ["query", "run", "SELECT answer FROM answers", "--json", "--runs", runs]
    )
    assert json.loads(good.stdout) == [{"answer": "yes"}]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 2000000000) || repeat('y', 2000000000) AS x",
        "SELECT length(repeat('x', 100000000 + range)) FROM range(2048)",
        "SELECT list_sort(range(400000000))[1]",
    ],
)
def test_one_call_on_a_huge_value_is_bounded(place: Path, sql: str) -> None:
    """The engine counts neither its memory nor its time; the process of the command has bounds of its own."""
    command = [sys.executable, "-P", "-c", BOUNDED, sql, str(place / "runs")]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("SQL: ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 60
    command[4] = "SELECT answer FROM answers"
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


BOUNDED = """
import sys
from redistill import cli
from redistill.commands import bounds
bounds.bounded.__wrapped__.__defaults__ = (20.0, 2 << 30)
cli.main(["query", "run", sys.argv[1], "--runs", sys.argv[2]])
"""


def test_the_trap_would_work_outside_the_jail(place: Path) -> None:
    """The view of the stranger does read the secret where nothing stops it."""
    import duckdb

    with duckdb.connect(str(place / "runs/run" / SNAPSHOT), read_only=True) as connection:
        assert MARK in str(connection.execute("FROM trap").fetchall())
