"""The store: its schema, its one-time commits, what it refuses, and that nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import json
import lzma
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from store_rows import (
    completion,
    event,
    identifier,
    judgement,
    opening,
    pair,
    prompt,
    texts,
)

from redistill.errors import EnvironmentProblem, StoreProblem
from redistill.store import migrate as migrations
from redistill.store.store import FILE, SNAPSHOT, Row, Rows, Store, content
from redistill.store.tables import BY_NAME, TABLES, render
from redistill.store.text import storable
from redistill.store.views import VIEWS

JUDGES = ["verifier", "longest"]
STORES = Path(__file__).parent / "stores"
"""A store that each older version of the schema has made."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an open store."""
    opened = Store(tmp_path, JUDGES)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return an open store that tests write to under names of their own."""
    opened = Store(tmp_path_factory.mktemp("shared"), JUDGES)
    yield opened
    opened.close()


def _count(store: Store, table: str) -> int:
    return int(store.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"])


def _event(store: Store, word: str, chunk: int = 0, detail: str = "{}") -> bool:
    return store.commit({"event": [event(word, detail)]}, round=1, step="s", chunk=chunk)


# -- the schema


_SHAPE = (
    (
        "SELECT table_name, column_index, column_name, data_type, is_nullable, column_default, comment "
        "FROM duckdb_columns() WHERE NOT internal AND table_name NOT IN ($others) ORDER BY ALL"
    ),
    "SELECT table_name, comment FROM duckdb_tables() WHERE table_name NOT IN ($others) ORDER BY ALL",
    (
        "SELECT table_name, constraint_type, constraint_text FROM duckdb_constraints() "
        "WHERE table_name NOT IN ($others) ORDER BY ALL"
    ),
)


def _shape(ask: Callable[[str], list[Row]]) -> list[list[Row]]:
    others = "'schema_migration', " + ", ".join(f"'{view}'" for view in VIEWS)
    return [ask(sql.replace("$others", others)) for sql in _SHAPE]


def _declared() -> list[list[Row]]:
    with duckdb.connect(":memory:") as connection:
        connection.execute(render())

        def ask(sql: str) -> list[Row]:
            result = connection.execute(sql)
            names = [d[0] for d in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

        return _shape(ask)


def test_all_migrations_make_exactly_what_is_declared(store: Store) -> None:
    """Columns, types, NULLs, comments and checks: the SQL files and the tables cannot drift apart."""
    assert _shape(store.rows) == _declared()


@pytest.mark.parametrize("old", sorted(STORES.glob("v*.duckdb.xz")), ids=lambda file: file.name[:2])
def test_a_store_of_every_older_version_opens(tmp_path: Path, old: Path) -> None:
    """It is brought to the declared shape, a copy of it is kept, and every row is still there."""
    (tmp_path / "store.duckdb").write_bytes(lzma.decompress(old.read_bytes()))
    before = _counts(tmp_path / "store.duckdb")
    with contextlib.closing(Store(tmp_path, ["verifier"])) as store:
        assert _shape(store.rows) == _declared()
        assert {t: store.rows(f"SELECT count(*) AS n FROM {t}")[0]["n"] for t in before} == before
        assert store.rows("SELECT count(*) AS n FROM answers")[0]["n"] == before["completion"] > 100
    assert _counts(tmp_path / f"store.duckdb.bak-{old.name[:2]}") == before


def _counts(file: Path) -> dict[str, int]:
    with duckdb.connect(str(file), read_only=True) as connection:
        tables = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE table_name <> 'schema_migration'"
        ).fetchall()
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            for (table,) in tables
        }


def test_every_table_and_column_says_what_it_means(store: Store) -> None:
    """No table and no column of ours is without a comment."""
    tables = store.rows(
        "SELECT table_name FROM duckdb_tables() "
        "WHERE comment IS NULL AND table_name <> 'schema_migration'"
    )
    columns = store.rows(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal "
        "AND comment IS NULL AND table_name NOT IN " + str(("schema_migration", *VIEWS))
    )
    assert (tables, columns) == ([], [])


def test_no_column_has_a_reserved_name() -> None:
    """`order`, `at` and `offset` would have to be quoted in every query."""
    names = {column.name for table in TABLES for column in table.columns}
    assert not names & {"order", "at", "offset"}


def test_no_index_and_no_key(store: Store) -> None:
    """Indexes were seen to corrupt; uniqueness is an anti-join."""
    assert store.rows("SELECT * FROM duckdb_indexes()") == []
    kinds = {r["k"] for r in store.rows("SELECT constraint_type AS k FROM duckdb_constraints()")}
    assert kinds <= {"NOT NULL", "CHECK"}


def test_every_split_that_trains_is_checked() -> None:
    """What trains can only be of the train split, whatever the code above does."""
    for name in ("pair", "selection", "training_row"):
        assert "split = 'train'" in BY_NAME[name].checks


def test_common_tools_can_read_the_file(store: Store, tmp_path: Path) -> None:
    """The file and its snapshot have storage version v1.5.0, not the engine's newest."""
    asked = "SELECT tags['storage_version'] AS v FROM duckdb_databases() WHERE path IS NOT NULL"
    [live] = store.rows(asked)
    store.publish(force=True)
    with duckdb.connect(str(tmp_path / SNAPSHOT), read_only=True) as connection:
        [published] = connection.execute(asked).fetchone() or [""]
    assert live["v"].startswith("v1.5.0")
    assert published.startswith("v1.5.0")


@pytest.mark.parametrize(
    "judges", [["value", "other"], ["completion_id"], ["judge", "attempt"], ["champion", "used"]]
)
def test_a_judge_may_have_any_name(tmp_path: Path, judges: list[str]) -> None:
    """A judge that is named as one of our own columns still gets its own values in `answers`."""
    store = Store(tmp_path, judges)
    rows: dict[str, Any] = opening({"p": "train"})
    store.commit(rows, round=0, step="begin", chunk=0)
    store.commit(
        {
            "completion": [completion("a", "x")],
            "content": texts("x"),
            "judgement": [
                judgement("a", (index + 1) / 4, judge=judge) for index, judge in enumerate(judges)
            ],
        },
        round=1,
        step="s",
        chunk=0,
    )
    [row] = store.rows("SELECT * FROM answers")
    assert [row[judge] for judge in judges] == [(i + 1) / 4 for i in range(len(judges))]
    store.close()


# -- commits


def test_a_commit_that_is_sent_twice_writes_once(store: Store) -> None:
    """The second time finds itself in the ledger, and says so."""
    assert _event(store, "e") is True
    assert _event(store, "e") is False
    assert (_count(store, "event"), _count(store, "write_batch")) == (1, 1)
    assert store.done(round=1, step="s", chunk=0)
    assert not store.done(round=1, step="s", chunk=1)


def test_a_row_that_is_there_is_not_written_again(store: Store) -> None:
    """Another chunk with a known row adds its other rows only; the first answer stays."""
    _event(store, "e", 0, '{"first": 1}')
    rows = [event("e", '{"first": 0}'), event("f")]
    store.commit({"event": rows}, round=1, step="s", chunk=1)
    assert _count(store, "event") == 2
    [kept] = store.rows("SELECT detail FROM event WHERE id = ?", [identifier("e")])
    assert kept["detail"] == '{"first": 1}'


def test_doubles_inside_one_batch_are_one_row(store: Store) -> None:
    """An anti-join does not see its own batch; the first of a kind wins."""
    rows = [event("e", '{"n": 1}'), event("f"), event("e", '{"n": 2}')]
    store.commit({"event": rows, "content": texts("x", "x")}, round=1, step="s", chunk=0)
    assert (_count(store, "event"), _count(store, "content")) == (2, 1)
    [kept] = store.rows("SELECT detail FROM event WHERE id = ?", [identifier("e")])
    assert kept["detail"] == '{"n": 1}'


def test_the_anti_join_is_bounded_by_its_round(store: Store) -> None:
    """A text of round 1 is written again in round 2, so that a round can be forgotten alone."""
    for round_ in (1, 2):
        rows = {"content": texts("same", round_=round_)}
        store.commit(rows, round=round_, step="s", chunk=0)
    assert store.rows("SELECT round FROM content ORDER BY round") == [{"round": 1}, {"round": 2}]


def test_a_row_of_another_round_is_refused(store: Store) -> None:
    """The anti-join would not look for it, so that it could be written twice."""
    with pytest.raises(StoreProblem, match="round 2 in a batch of 1"):
        store.commit({"content": texts("x", round_=2)}, round=1, step="s", chunk=0)
    assert _count(store, "write_batch") == 0


def test_the_ledger_counts_what_was_sent(store: Store) -> None:
    """One ledger row a chunk, with the rows of each table and the time that they took."""
    rows: Rows = {"event": [event("e"), event("f")], "content": texts("x"), "pair": []}
    store.commit(rows, round=1, step="s", chunk=3, seconds=1.5)
    [row] = store.rows("SELECT round, step, chunk, counts, seconds FROM write_batch")
    assert json.loads(row.pop("counts")) == {"event": 2, "content": 1, "pair": 0}
    assert row == {"round": 1, "step": "s", "chunk": 3, "seconds": 1.5}


def test_an_empty_chunk_stands_in_the_ledger(store: Store) -> None:
    """A step with nothing to do is done all the same."""
    assert store.commit({}, round=1, step="s", chunk=0)
    assert store.done(round=1, step="s", chunk=0)


NO_SCORES = {"nan": math.nan, "inf": math.inf, "1e999": float("1e999"), "-1": -1.0, "85": 85.0}


@pytest.mark.parametrize("name", NO_SCORES)
def test_f12_no_score_beyond_its_range_is_stored(shared: Store, name: str) -> None:
    """The table itself refuses it, and never clamps it; of the raw number it asks that it is finite."""
    number = NO_SCORES[name]
    refused = [judgement(f"f12 {name}", number)]
    if not math.isfinite(number):
        refused.append(judgement(f"f12 {name}", 0.5, raw=number))
    for row in refused:
        with pytest.raises(StoreProblem):
            shared.commit({"judgement": [row]}, round=1, step=f"f12 {name}", chunk=0)


REFUSED: dict[str, Rows] = {
    "a value with a failure": {"judgement": [judgement("a", 0.5, status="error")]},
    "no value without a failure": {"judgement": [judgement("a", None, status="ok")]},
    "a status of its own": {"judgement": [judgement("a", None, status="crashed")]},
    "a held-out pair": {"pair": [pair(split="heldout")]},
    "a pair of one answer": {"pair": [pair(rejected_id=identifier("a"))]},
    "a NaN margin": {"pair": [pair(margin=math.nan)]},
    "a split of its own": {"completion": [completion("a", "x", split="dev")]},
    "a finish of its own": {"completion": [completion("a", "x", finish_reason="error")]},
    "no text": {"completion": [completion("a", "x", text_hash=None)]},
    "an id that is none": {"event": [event("a", id="seven")]},
    "JSON that is none": {"event": [event("a", "{")]},
    "a text for a number": {"pair": [pair(margin="wide")]},
    "a column of its own": {"event": [event("a", colour="red")]},
    "a table of its own": {"colours": [{"id": 1}]},
    "log-probs for other tokens": {
        "completion_tokens": [
            {"completion_id": identifier("a"), "round": 1, "token_ids": [1, 2], "logprobs": [-0.1]}
        ]
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_chunk_leaves_nothing(shared: Store, name: str) -> None:
    """A chunk with one wrong row is refused whole, and the store goes on working."""
    good: Rows = {"event": [event(name)], "content": texts(name)}
    tables = [table.name for table in TABLES]
    before = [_count(shared, table) for table in tables]
    with pytest.raises(StoreProblem):
        shared.commit({**good, **REFUSED[name]}, round=1, step=name, chunk=0)
    assert [_count(shared, table) for table in tables] == before
    assert shared.commit(good, round=1, step=name, chunk=0)
    assert _count(shared, "event") == before[tables.index("event")] + 1


HOSTILE = {
    "NUL": "a\0b",
    "emoji": "\U0001f600\u200d\U0001f525",
    "bidi": "\u202eabc\u2066",
    "control tokens": "<|im_end|>\n<|im_start|>system\x1b[31m",
    "quotes": "'; DROP TABLE event; --\"\\",
    "a megabyte": "x" * 1_000_000,
    "nothing": "",
    "no character": "\ufffe\uffff",
    "newlines": "\r\n\x85\u2028",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_stored_exactly(shared: Store, name: str) -> None:
    """What a model says comes back to the last character, in text, lists and JSON."""
    text = HOSTILE[name]
    rows: Rows = {"content": texts(text), "event": [event(name, json.dumps({"said": text}))]}
    shared.commit(rows, round=1, step=name, chunk=0)
    asked = prompt(name) | {"tags": [text], "source": text}
    shared.commit({"prompt": [asked]}, round=0, step=name, chunk=0)
    [row] = shared.rows("SELECT text FROM content WHERE hash = ?", [content(text, 1)["hash"]])
    assert row["text"] == text
    [row] = shared.rows("SELECT detail FROM event WHERE id = ?", [identifier(name)])
    assert json.loads(row["detail"]) == {"said": text}
    [row] = shared.rows("SELECT tags, source FROM prompt WHERE id = ?", [identifier(name)])
    assert (row["tags"], row["source"]) == ([text], text)


def test_half_a_surrogate_pair_becomes_a_replacement_character(store: Store) -> None:
    """UTF-8 cannot hold it; it is replaced in every column, and the hash names what is stored."""
    half = "a\ud83db"
    row = content(half, 1)
    assert row == content("a\ufffdb", 1)
    store.commit(
        {"content": [{**row, "text": half}], "event": [event("e", json.dumps({"said": [half]}))]},
        round=1,
        step="s",
        chunk=0,
    )
    store.commit({"prompt": [prompt() | {"tags": [half]}]}, round=0, step="begin", chunk=0)
    assert store.rows("SELECT text FROM content")[0]["text"] == "a\ufffdb"
    assert json.loads(store.rows("SELECT detail FROM event")[0]["detail"]) == {"said": ["a\ufffdb"]}
    assert store.rows("SELECT tags FROM prompt")[0]["tags"] == ["a\ufffdb"]
    whole = "\U0001f600"
    assert storable(whole) == whole


# -- one owner


OPEN = """
import sys
from pathlib import Path
from redistill.errors import Busy
from redistill.store.store import Store
try:
    Store(Path(sys.argv[1]))
except Busy as error:
    print(error)
else:
    print("opened")
"""


def _open_elsewhere(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("published", [False, True])
def test_another_process_cannot_open_the_live_file(store: Store, published: bool) -> None:
    """It is told which process holds the file. Publishing reads the file, and must not let go of it.

    The system drops a process's lock on a file when the process closes any descriptor of that file, so
    a plain copy of the file would open it to a second writer.
    """
    if published:
        store.publish(force=True)
    said = _open_elsewhere(store.folder)
    assert f"PID {os.getpid()}" in said
    assert said.startswith(f"{FILE} is in use")


def test_a_closed_store_can_be_opened_elsewhere(tmp_path: Path) -> None:
    """Closing lets go of the file; closing again does nothing."""
    store = Store(tmp_path)
    store.close()
    store.close()
    assert _open_elsewhere(tmp_path) == "opened"


@pytest.mark.parametrize("data", [b"", b"hello", b"SQLite format 3\0" + b"\0" * 4096])
def test_what_is_no_store_is_never_overwritten(tmp_path: Path, data: bytes) -> None:
    """A file that is no DuckDB file is refused as damaged, not as busy, and stays as it is."""
    folder = tmp_path / "blocks"  # "lock" in a path is no lock
    folder.mkdir()
    file = folder / FILE
    file.write_bytes(data)
    with pytest.raises(StoreProblem, match="cannot be opened"):
        Store(folder)
    assert file.read_bytes() == data
    assert [f.name for f in folder.iterdir()] == [FILE]


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    """A DuckDB file with other tables is no store; nothing is written into it."""
    file = tmp_path / FILE
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE TABLE theirs AS SELECT 1 AS n")
    before = file.read_bytes()
    with pytest.raises(StoreProblem, match="no store of redistill"):
        Store(tmp_path)
    assert file.read_bytes() == before


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    """A schema that this version does not know is named with its version, and the file is untouched."""
    Store(tmp_path).close()
    file = tmp_path / FILE
    with duckdb.connect(str(file)) as connection:
        connection.execute(
            "INSERT INTO schema_migration VALUES (9999, '9999_later.sql', 'x', '9.9.9', now())"
        )
    before = file.read_bytes()
    with pytest.raises(StoreProblem, match=r"written by redistill 9\.9\.9"):
        Store(tmp_path)
    assert file.read_bytes() == before
    assert _open_after(tmp_path) == "no lock is left"


def _open_after(folder: Path) -> str:
    """Say whether the file is free again after it was refused."""
    with duckdb.connect(str(folder / FILE)) as connection:
        connection.execute("DELETE FROM schema_migration WHERE version = 9999")
    Store(folder).close()
    return "no lock is left"


def test_an_edited_migration_is_refused(tmp_path: Path) -> None:
    """A store that another text of the same migration has made is not taken for ours."""
    Store(tmp_path).close()
    with duckdb.connect(str(tmp_path / FILE)) as connection:
        connection.execute("UPDATE schema_migration SET sha256 = 'x'")
    with pytest.raises(StoreProblem, match="is not the one that made this store"):
        Store(tmp_path)


def test_an_older_store_is_migrated_with_a_copy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new migration is applied and recorded once; the file before it is kept beside."""
    first = Store(tmp_path)
    _event(first, "e")
    first.close()
    later = migrations.Migration(9, "0009_more.sql", "ALTER TABLE event ADD COLUMN more INTEGER")
    every = [*migrations.migrations(), later]
    monkeypatch.setattr(migrations, "migrations", lambda: every)
    second = Store(tmp_path)
    assert _open_elsewhere(tmp_path).startswith(f"{FILE} is in use")
    assert second.rows("SELECT more FROM event") == [{"more": None}]
    second.close()
    with duckdb.connect(
        str(tmp_path / f"{FILE}.bak-v{every[-2].version}"), read_only=True
    ) as connection:
        assert connection.execute("SELECT count(*) FROM event").fetchone() == (1,)
    Store(tmp_path).close()


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one transaction: half of it is never seen, and the store opens with the old version."""
    Store(tmp_path).close()
    bad = "ALTER TABLE event ADD COLUMN more INTEGER; SELECT nothing FROM nowhere"
    every = [*migrations.migrations(), migrations.Migration(9, "0009_bad.sql", bad)]
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "migrations", lambda: every)
        with pytest.raises(EnvironmentProblem):
            Store(tmp_path)
    store = Store(tmp_path)
    assert _event(store, "e")
    store.close()


# -- crashes


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from store_rows import event, texts
from redistill.store.store import Store
store = Store(Path(sys.argv[1]), ["verifier"])
for chunk in range(int(sys.argv[2]), 100000):
    rows = {"event": [event(f"{chunk}.{n}") for n in range(5)], "content": texts(f"{chunk}" * 50)}
    store.commit(rows, round=1, step="s", chunk=chunk)
    print(chunk, flush=True)
    if chunk % 7 == 0:
        store.publish(force=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    """After each SIGKILL every acknowledged chunk is there once and whole, and no other half of one."""
    generator = random.Random(1)
    known: set[int] = set()
    for _ in range(6):
        following = max(known, default=-1) + 1
        known |= _killed_after(tmp_path, following, generator.uniform(0.0, 0.25))
        store = Store(tmp_path)
        rows = store.rows("SELECT chunk FROM write_batch ORDER BY chunk")
        there = [row["chunk"] for row in rows]
        assert known <= set(there)
        # At most one more: committed, and killed before it could say so.
        assert len(set(there) - known) <= 1
        assert there == sorted(set(there))
        assert _count(store, "event") == 5 * len(there)
        assert _count(store, "content") == len(there)
        known = set(there)
        store.close()
    assert len(known) > 20


def _killed_after(folder: Path, first: int, seconds: float) -> set[int]:
    """Run a writer, kill it some time after its first chunk, and return what it acknowledged."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(first), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        said = [child.stdout.readline()]
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGKILL)
        said += child.stdout.readlines()
    return {int(line) for line in said if line.endswith("\n")}


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_rows import texts
from redistill.errors import EnvironmentProblem
from redistill.store.store import Store
import os
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(Path(sys.argv[1]))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, most))
done = 0
try:
    while True:
        store.commit({"content": texts(os.urandom(100_000).hex())}, round=1, step="s", chunk=done)
        done += 1
except EnvironmentProblem as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert store.rows("SELECT count(*) AS n FROM content")[0]["n"] == done > 0
assert store.commit({"content": texts("x")}, round=1, step="s", chunk=done)
store.close()
"""


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    """What cannot be written is an environment problem, not a fault of SQL; then the store goes on."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "store.duckdb cannot be written" in done.stdout
    assert "File too large" in done.stdout


# -- the snapshot


def test_a_snapshot_that_costs_much_waits_unless_asked_for(store: Store) -> None:
    """`publish` by itself spends a small share of the time; `force` always publishes."""
    assert store.publish(force=True)
    store._publish_cost = 1000.0  # as if the last copy had taken that long
    assert not store.publish()
    assert store.publish(force=True)


def test_no_half_snapshot_is_ever_seen(store: Store, tmp_path: Path) -> None:
    """A snapshot is written aside and renamed; what lies aside is gone after."""
    store.commit({"event": [event("e")]}, round=1, step="s", chunk=0)
    store.publish(force=True)
    names = {f.name for f in tmp_path.iterdir()}
    assert SNAPSHOT in names
    assert f"{SNAPSHOT}.tmp" not in names
