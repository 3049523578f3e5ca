"""SIGKILL at any moment: what was acknowledged is there, once and whole, and nothing is there in half."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from kill_child import PLACES, expected, write

from redistill.store.query import jail
from redistill.store.store import FILE, SNAPSHOT, Store

Ask = Callable[[str], list[Any]]


@dataclass
class Tally:
    """What was seen after all kills."""

    kills: int = 0
    acknowledged: int = 0
    unacknowledged: int = 0
    """Chunks that were committed, and killed before they could say so."""
    lost: int = 0
    doubled: int = 0
    half: int = 0
    with_wal: int = 0
    """Kills that left a write-ahead log."""
    snapshots: int = 0
    """Snapshots that were read whole after a kill."""


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_loses_doubles_and_halves_nothing(tmp_path: Path, kills: int) -> None:
    """Each kill is checked against a ledger outside the store, which is fsynced after every commit."""
    run, ledger = tmp_path / "run", tmp_path / "acknowledged"
    run.mkdir()
    ledger.touch()
    # Forked from a server that has imported the store, so that a kill costs no start of Python.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kill_child"])
    draw, tally = random.Random(1), Tally()
    for seed in range(kills):
        before = ledger.stat().st_size
        child = context.Process(target=write, args=(str(run), str(ledger), seed))
        child.start()
        _wait(child, ledger, before, draw)
        child.kill()
        child.join()
        assert child.exitcode == -9, "the writer ended by itself"
        tally.kills += 1
        tally.with_wal += (run / f"{FILE}.wal").exists()
        _check(run, ledger, tally, merge=draw.random() < 0.5)
        assert (tally.lost, tally.doubled, tally.half) == (0, 0, 0), tally
    _count_acknowledged(ledger, tally)
    print(asdict(tally))
    assert tally.acknowledged > kills
    assert tally.snapshots > kills / 2


MIGRATING = """
import os, sys
from pathlib import Path
from redistill.store import migrate, store
class Struck:
    def __init__(self, connection): self.connection = connection
    def __getattr__(self, name): return getattr(self.connection, name)
    def execute(self, sql, *rest):
        if sql == "CHECKPOINT":
            os.kill(os.getpid(), 9)
        return self.connection.execute(sql, *rest)
real = migrate.migrate
store.migrate = lambda connection, *rest: real(Struck(connection), *rest)
store.Store(Path(sys.argv[1]), ["verifier"])
"""


def test_a_kill_between_a_migration_and_its_checkpoint_leaves_a_store(tmp_path: Path) -> None:
    """The engine cannot replay that log when it opens the file by itself; the store knows a way."""
    command = [sys.executable, "-c", MIGRATING, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -9
    with pytest.raises(duckdb.Error, match="replaying WAL"):
        duckdb.connect(str(tmp_path / FILE)).close()
    with closing(Store(tmp_path, ["verifier"])) as store:
        assert store.rows("SELECT count(*) AS n FROM answers") == [{"n": 0}]
        [version] = store.rows(
            "SELECT tags['storage_version'] AS v FROM duckdb_databases() WHERE path IS NOT NULL"
        )
    assert version["v"].startswith("v1.5.0")


def _wait(child: Any, ledger: Path, before: int, draw: random.Random) -> None:
    """Wait for the writer's first acknowledgement and a while longer; or, now and then, not for that."""
    if draw.random() < 0.2:
        time.sleep(draw.uniform(0, 0.4))
        return
    until = time.monotonic() + 30
    while ledger.stat().st_size == before and child.is_alive() and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.4))


def _acknowledged(ledger: Path) -> list[int]:
    # A line that was cut off was not acknowledged: only a whole one was fsynced.
    return [int(line) for line in ledger.read_text().splitlines(keepends=True) if line[-1] == "\n"]


def _check(run: Path, ledger: Path, tally: Tally, *, merge: bool) -> None:
    """Compare the store with the ledger; `merge` puts the log into the file, else it stays for the next."""
    if not (run / FILE).exists():
        assert not _acknowledged(ledger)
        return
    known = set(_acknowledged(ledger))
    if merge:
        with closing(Store(run)) as store:
            there = _examine(lambda sql: [tuple(r.values()) for r in store.rows(sql)], tally)
    else:
        with closing(jail(run / FILE)) as connection:
            if not _has_tables(connection):
                assert not known
                return
            there = _examine(lambda sql: connection.execute(sql).fetchall(), tally)
    tally.lost += len(known - there)
    tally.unacknowledged = len(there - known)
    if (run / SNAPSHOT).exists():
        with closing(jail(run / SNAPSHOT)) as connection:
            assert _examine(lambda sql: connection.execute(sql).fetchall(), tally) <= there
        tally.snapshots += 1


def _has_tables(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the schema was committed before the kill."""
    found = connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'vote'")
    return bool(found.fetchall()[0][0] == 1)


def _examine(ask: Ask, tally: Tally) -> set[int]:
    """Return the chunks of the ledger of a store, and count those that are there twice or in half."""
    chunks = [row[0] for row in ask("SELECT chunk FROM write_batch")]
    tally.doubled += len(chunks) - len(set(chunks))
    for table, place in PLACES.items():
        found = Counter(dict(ask(f"SELECT {place}, count(*) FROM {table} GROUP BY 1")))
        wanted = Counter({f"chunk{chunk}": expected(chunk)[table] for chunk in chunks})
        tally.half += sum(found[chunk] != wanted[chunk] for chunk in {*found, *wanted})
        key = "hash" if table == "content" else "completion_id" if "tokens" in table else "id"
        [counts] = ask(f"SELECT count(*), count(DISTINCT {key}) FROM {table}")
        tally.doubled += counts[0] - counts[1]
    return set(chunks)


def _count_acknowledged(ledger: Path, tally: Tally) -> None:
    told = _acknowledged(ledger)
    assert len(told) == len(set(told)), "a chunk was acknowledged twice"
    tally.acknowledged = len(told)
