"""Reading a store from outside: the jail, what it says of mistakes, and readers beside a writer."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest
from store_rows import completion, event, judgement, opening, texts

from redistill.cli import main
from redistill.errors import BadInput, StoreProblem
from redistill.store import query as reading
from redistill.store.query import jail, query, query_runs, read_rows, snapshot
from redistill.store.store import SNAPSHOT, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an open store with one judged answer, published."""
    opened = _judged(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run's folder that nobody writes to, with one judged answer."""
    folder = tmp_path_factory.mktemp("run")
    _judged(folder).close()
    return folder


def _judged(folder: Path) -> Store:
    opened = Store(folder, ["verifier"])
    opened.commit(opening({"p": "train"}), round=0, step="begin", chunk=0)
    rows = {"completion": [completion("a", "yes")], "content": texts("yes")}
    opened.commit({**rows, "judgement": [judgement("a", 1.0)]}, round=1, step="sample", chunk=0)
    opened.publish(force=True)
    return opened


def test_a_question_is_answered_with_the_age_of_the_snapshot(folder: Path) -> None:
    """The view has the answer, its prompt and the judge's column."""
    found = query(folder, "SELECT prompt, answer, verifier FROM answers")
    assert found.table.to_pylist() == [{"prompt": "p", "answer": "yes", "verifier": 1.0}]
    assert 0 <= found.age_seconds < 60


REACHES_OUT = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "FROM read_csv('/etc/passwd')",
    "FROM glob('/*')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM read_parquet('http://127.0.0.1:9/x.parquet')",
    "COPY (SELECT 1) TO '{out}'",
    "COPY answers TO '{out}' (FORMAT json)",
    "EXPORT DATABASE '{out}'",
    "ATTACH '{out}' AS other",
    "ATTACH '/etc/passwd' AS other (READ_ONLY)",
    "INSTALL httpfs",
    "LOAD httpfs",
    "INSTALL ui FROM community",
    "CREATE PERSISTENT SECRET s (TYPE s3)",
    "FROM duckdb_secrets()",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET GLOBAL threads = 8",
    "SET memory_limit = '100GB'",
    "SET lock_configuration = false",
    "SET log_query_path = '{out}'",
    "SET temp_directory = '{out}'",
    "SET max_execution_time = 0",
    "PRAGMA enable_profiling = 'json'",
    "INSERT INTO event SELECT * FROM event",
    "WITH x AS (INSERT INTO content VALUES ('h', 1, 't') RETURNING *) SELECT * FROM x",
    "EXPLAIN ANALYZE DELETE FROM event",
    "UPDATE decision SET decision = 'promoted'",
    "DELETE FROM completion",
    "DROP VIEW answers",
    "CREATE OR REPLACE VIEW answers AS SELECT 1",
    "CREATE TABLE mine AS SELECT 1",
    "ALTER TABLE event ADD COLUMN x INTEGER",
    "DETACH store",
    "SELECT * FROM store",
    "SELECT getenv('HOME')",
]


@pytest.mark.parametrize("sql", REACHES_OUT)
def test_the_jail_refuses_what_reaches_out(folder: Path, tmp_path: Path, sql: str) -> None:
    """No file is read or written, nothing is loaded, no setting is changed, no row is touched."""
    out = tmp_path / "out"
    before = (folder / SNAPSHOT).read_bytes()
    with pytest.raises(BadInput, match=r"^SQL: "):
        query(folder, sql.format(out=out))
    assert not out.exists()
    assert (folder / SNAPSHOT).read_bytes() == before


@pytest.mark.parametrize("sql", ["SELECT * FROM evil", "FROM evil_macro()", "SELECT evil_scalar()"])
def test_what_a_file_brings_with_it_reads_nothing(store: Store, sql: str) -> None:
    """A view or macro inside a store from somebody else cannot read this machine's files."""
    store._do(
        lambda: store._connection.execute(
            "CREATE VIEW evil AS SELECT * FROM read_text('/etc/passwd');"
            "CREATE MACRO evil_macro() AS TABLE SELECT * FROM read_text('/etc/passwd');"
            "CREATE MACRO evil_scalar() AS (SELECT content FROM read_text('/etc/passwd'))"
        )
    )
    store.publish(force=True)
    with pytest.raises(BadInput, match="disabled by configuration"):
        query(store.folder, sql)


def test_the_jail_sees_no_variable_of_python(store: Store) -> None:
    """A table of Python that happens to be in reach is no table of the store."""
    secret = query(store.folder, "SELECT 1 AS n").table
    with pytest.raises(BadInput, match="secret does not exist"):
        query(store.folder, "SELECT * FROM secret")
    assert secret.num_rows == 1


@pytest.mark.parametrize(
    ("sql", "count"),
    [("", 0), ("  -- nothing", 0), ("SELECT 1; SELECT 2", 2), ("COMMIT; SELECT 1", 2)],
)
def test_exactly_one_statement(folder: Path, sql: str, count: int) -> None:
    """More than one statement, or none, is refused before anything runs."""
    with pytest.raises(BadInput, match=f"^SQL: {count} statements; give exactly one$"):
        query(folder, sql)


def test_a_comment_or_a_semicolon_at_the_end_is_no_second_statement(folder: Path) -> None:
    """What people paste works."""
    assert query(folder, "SELECT 1 AS n; -- one\n").table.to_pylist() == [{"n": 1}]


@pytest.mark.parametrize(
    ("sql", "near"),
    [
        ("SELECT anser FROM answers", '"answer"'),
        ("SELECT * FROM anwsers", '"answers"'),
        ("SELECT lenth(answer) FROM answers", "length"),
    ],
)
def test_a_wrong_name_is_told_with_the_ones_that_are_near(
    folder: Path, sql: str, near: str
) -> None:
    """The message is one line, and has the name that was meant."""
    with pytest.raises(BadInput) as error:
        query(folder, sql)
    assert near in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sql", ["SELECT", "SELEC 1", "SELECT '\ud83d'", "SELECT ?", "SELECT 'a'::INT"]
)
def test_wrong_sql_is_bad_input(folder: Path, sql: str) -> None:
    """No SQL of a user ends in a traceback."""
    with pytest.raises(BadInput, match=r"^SQL: "):
        query(folder, sql)


ENDLESS = {
    "recursion": "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r) SELECT max(a) FROM r",
    "a cross join": "SELECT count(*) FROM range(100000000) a, range(100000000) b",
    "rows without end": "SELECT * FROM range(100000000000)",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_query_ends(folder: Path, name: str) -> None:
    """The time of one statement is bounded, also while its rows stream out."""
    with pytest.raises(BadInput, match="exceeded maximum execution time"):
        query(folder, ENDLESS[name], seconds=0.3)


def test_too_large_an_answer_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows leave the engine's memory limit; their size is bounded too, with what to do."""
    monkeypatch.setattr(reading, "_MOST_BYTES", 1 << 20)
    with pytest.raises(BadInput, match="more than 1 MiB; add a LIMIT"):
        query(folder, "SELECT * FROM range(10000000)")
    assert query(folder, "SELECT * FROM range(1000)").table.num_rows == 1000


def test_a_query_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays behind, neither beside the snapshot nor in the current folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = {f.name for f in tmp_path.iterdir()}
    monkeypatch.setitem(reading._JAIL, "memory_limit", "40MB")
    sql = "SELECT max(b) FROM (SELECT row_number() OVER (ORDER BY hash(a)) b FROM range(2000000) t(a))"
    assert query(folder, sql).table.num_rows == 1
    assert list(elsewhere.iterdir()) == []
    assert {f.name for f in tmp_path.iterdir()} == before


def test_an_open_reader_keeps_its_snapshot(store: Store) -> None:
    """Who reads sees one state to the end; who comes after a new snapshot sees the new one."""
    reader = jail(snapshot(store.folder))
    counted = "SELECT count(*) FROM event"
    assert reader.execute(counted).fetchone() == (0,)
    store.commit({"event": [event("e")]}, round=1, step="s", chunk=0)
    store.publish(force=True)
    assert reader.execute(counted).fetchone() == (0,)
    assert read_rows(store.folder, "SELECT count(*) AS n FROM event") == [{"n": 1}]
    assert reader.execute(counted).fetchone() == (0,)
    reader.close()


def test_readers_of_one_process_do_not_meet(folder: Path) -> None:
    """Two jails at once are two instances: neither locks the other's settings or sees its tables."""
    one, other = jail(snapshot(folder)), jail(snapshot(folder))
    one.execute("CREATE TEMP TABLE mine AS SELECT 1")
    with pytest.raises(duckdb.CatalogException):
        other.execute("FROM mine")
    one.close()
    assert other.execute("SELECT count(*) FROM completion").fetchone() == (1,)
    other.close()


READER = """
import sys
from pathlib import Path
from redistill.store.query import query
seen = [0]
for _ in range(100):
    table = query(Path(sys.argv[1]), "SELECT count(*) AS n, count(DISTINCT step) AS s FROM event").table
    [row] = table.to_pylist()
    assert row["n"] >= seen[-1], (row, seen[-1])
    assert row["n"] % 10 == 0, row
    seen.append(row["n"])
assert len(set(seen)) > 2, seen
"""


def test_a_hundred_queries_beside_a_writer(store: Store) -> None:
    """Another process and two threads read while the writer commits and publishes: no error, no step back."""
    stop = threading.Event()

    def write() -> int:
        chunk = 0
        while not stop.is_set():
            rows = {"event": [event(f"{chunk}.{n}") for n in range(10)]}
            store.commit(rows, round=1, step="s", chunk=chunk)
            store.publish(force=True)
            chunk += 1
        return chunk

    def read() -> bool:
        counts = [
            read_rows(store.folder, "SELECT count(*) AS n FROM event")[0]["n"] for _ in range(40)
        ]
        return counts == sorted(counts) and all(count % 10 == 0 for count in counts)

    with ThreadPoolExecutor(3) as threads:
        written = threads.submit(write)
        readers = [threads.submit(read) for _ in range(2)]
        child = subprocess.run(
            [sys.executable, "-c", READER, str(store.folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        held = [reader.result() for reader in readers]
        stop.set()
        assert written.result() > 3
    assert child.returncode == 0, child.stderr
    assert held == [True, True]


def test_a_run_that_is_not_there_is_told_with_those_that_are(folder: Path, tmp_path: Path) -> None:
    """A wrong run's name is bad input, and the runs that have a snapshot are named."""
    runs = tmp_path / "runs"
    (runs / "first").mkdir(parents=True)
    with pytest.raises(BadInput, match="has published nothing yet"):
        query(runs / "first", "SELECT 1")
    (runs / "first" / SNAPSHOT).write_bytes((folder / SNAPSHOT).read_bytes())
    with pytest.raises(BadInput, match=r"no run 'frist' in .*; runs here: first"):
        query(runs / "frist", "SELECT 1")
    with pytest.raises(BadInput, match="no run has been made here yet"):
        query(tmp_path / "nowhere" / "x", "SELECT 1")


@pytest.mark.parametrize("data", [b"", b"hello", b"SQLite format 3\0" + b"\0" * 4096])
def test_a_damaged_snapshot_is_a_store_problem(tmp_path: Path, data: bytes) -> None:
    """What is no DuckDB file cannot be read, and is not touched."""
    (tmp_path / SNAPSHOT).write_bytes(data)
    with pytest.raises(StoreProblem, match="cannot be read"):
        query(tmp_path, "SELECT 1")
    assert (tmp_path / SNAPSHOT).read_bytes() == data


def test_a_path_with_a_quote_is_a_path(tmp_path: Path) -> None:
    """The path comes into SQL as text, whatever it holds."""
    folder = tmp_path / "it's; --"
    folder.mkdir()
    Store(folder).close()
    assert read_rows(folder, "SELECT 1 AS n") == [{"n": 1}]


# -- several runs


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of three runs: two with one answer each, one with two and another judge."""
    runs = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        (runs / name).mkdir()
        _judged(runs / name).close()
    (runs / "it's a third").mkdir()
    third = _judged(runs / "it's a third")
    more = {"completion": [completion("b", "no")], "content": texts("no")}
    judged = [judgement("b", 0.5, judge="longest")]
    third.commit({**more, "judgement": judged}, round=1, step="sample", chunk=1)
    third.refresh_views()
    third.close()
    return [runs / name for name in ("first", "second", "it's a third")]


def test_views_and_tables_of_several_runs_are_their_unions(several: list[Path]) -> None:
    """Each row is there once, with its run; a judge that only one run has is NULL in the others."""
    sql = "SELECT run, count(*) AS n FROM $ GROUP BY run ORDER BY run"
    counts = [{"run": "first", "n": 1}, {"run": "it's a third", "n": 2}, {"run": "second", "n": 1}]
    for name in ("completion", "scores", "conversations"):
        assert query_runs(several, sql.replace("$", name)).table.to_pylist() == counts
    assert query_runs(several, "FROM completion LIMIT 0").table.column_names[0] == "run"
    found = query_runs(
        several, "SELECT count(*) AS n, count(longest) AS l, sum(verifier) AS v FROM answers"
    )
    assert found.table.to_pylist() == [{"n": 4, "l": 1, "v": 3.0}]
    assert 0 <= found.age_seconds < 600


def test_a_view_of_one_run_among_several_counts_its_own_rows_alone(several: list[Path]) -> None:
    """The run's own `scores` asks the run's own `judgement`, not the union of that name."""
    for folder, n in zip(several, (1, 1, 2), strict=True):
        for name in ("scores", "answers", "completion"):
            sql = f'SELECT count(*) AS n FROM "{folder.name}".{name}'
            assert query_runs(several, sql).table.to_pylist() == [{"n": n}]


def test_of_one_run_it_is_the_plain_query(several: list[Path]) -> None:
    """No column `run` is added, and the file is called `store`."""
    one = query_runs(several[:1], "FROM completion LIMIT 0").table.column_names
    assert one == query(several[0], "FROM store.completion LIMIT 0").table.column_names
    assert "run" not in one


@pytest.mark.parametrize("sql", [sql for sql in REACHES_OUT if not sql.startswith("DETACH")])
def test_the_jail_of_several_runs_refuses_the_same(
    several: list[Path], tmp_path: Path, sql: str
) -> None:
    """What is refused for one run is refused for several; the unions in memory are not written either."""
    out = tmp_path / "out"
    before = [(folder / SNAPSHOT).read_bytes() for folder in several]
    with pytest.raises(BadInput, match=r"^SQL: "):
        query_runs(several, sql.format(out=out))
    assert not out.exists()
    assert [(folder / SNAPSHOT).read_bytes() for folder in several] == before


def test_what_a_file_brings_spoils_no_query_of_several(several: list[Path], tmp_path: Path) -> None:
    """A view that reads this machine's files cannot, and the other runs are asked all the same."""
    with contextlib.closing(_judged(tmp_path)) as store:
        evil = "CREATE VIEW evil AS SELECT * FROM read_text('/etc/passwd')"
        store.work(lambda connection: connection.execute(evil))
    folders = [several[0], tmp_path]
    assert query_runs(folders, "SELECT count(*) AS n FROM answers").table.to_pylist() == [{"n": 2}]
    with pytest.raises(BadInput, match="disabled by configuration"):
        query_runs(folders, f'FROM "{tmp_path.name}".evil')


def test_contests_of_a_file_are_read_behind_the_locked_door(tmp_path: Path) -> None:
    """What `bradley_terry` is fitted to comes with the file, and could read anything before the lock."""
    with contextlib.closing(_judged(tmp_path)) as store:
        evil = (
            "CREATE OR REPLACE VIEW contests AS SELECT content AS judge, uuid() AS prompt_id, 'a' AS revision, "
            "'b' AS opponent, 1.0 AS outcome FROM read_text('/etc/passwd')"
        )
        store.work(lambda connection: connection.execute(evil))
    with pytest.raises(BadInput, match="disabled by configuration"):
        query(tmp_path, "FROM bradley_terry")


def test_a_run_that_is_wrong_among_several_is_named(several: list[Path], tmp_path: Path) -> None:
    """A damaged snapshot, a view that cannot be asked, a missing run, and names that clash."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / SNAPSHOT).write_bytes(b"hello")
    with pytest.raises(StoreProblem, match=r"damaged.*cannot be read"):
        query_runs([several[0], damaged], "SELECT 1")
    stale = tmp_path / "stale"
    stale.mkdir()
    with contextlib.closing(_judged(stale)) as store:
        store.work(lambda connection: connection.execute("ALTER TABLE event DROP COLUMN kind"))
        wrong = "CREATE OR REPLACE VIEW scores AS SELECT kind FROM event"
        store.work(lambda c: c.execute(f"ALTER TABLE event ADD COLUMN kind INT; {wrong}"))
        store.work(lambda c: c.execute("ALTER TABLE event DROP COLUMN kind"))
    with pytest.raises(StoreProblem, match="run 'stale': view "):
        query_runs([several[0], stale], "SELECT 1")
    with pytest.raises(BadInput, match="no run 'nobody'"):
        query_runs([several[0], several[0].parent / "nobody"], "SELECT 1")
    with pytest.raises(BadInput, match="run 'first' stands here twice"):
        query_runs([several[0], several[0]], "SELECT 1")
    with pytest.raises(BadInput, match="SQL keeps for itself"):
        query_runs([several[0], several[0].parent / "temp"], "SELECT 1")


def test_strengths_of_several_runs_have_their_run(several: list[Path]) -> None:
    """The computed view is a union like the others, empty where nothing was compared."""
    found = query_runs(several, "FROM bradley_terry").table
    assert found.column_names[:2] == ["run", "judge"]
    assert found.num_rows == 0


def test_the_command_takes_several_runs_and_then_the_sql(
    several: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`redistill query RUN RUN SQL`: the last argument is the SQL, all before it are runs."""
    names = [folder.name for folder in several]
    sql = "SELECT run, count(*) AS n FROM completion GROUP BY run ORDER BY run LIMIT 1"
    with pytest.raises(SystemExit) as ended:
        main(["query", *names, sql, "--json", "--runs", str(several[0].parent)])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == [{"run": "first", "n": 1}]
