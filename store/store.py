"""The noun *store*: one DuckDB file a run, one owner thread, append-only rows, a ledger of batches.

A commit is one transaction: the rows of a chunk and its ledger row. A commit that is sent twice is a
no-op, because an exception from COMMIT does not mean that nothing was committed. Readers of other
processes never open the live file, since one process locks it whole; they read the snapshot that the
owner publishes by an atomic rename.

The engine's lock is a POSIX record lock, and the system drops all such locks of a process on a file as
soon as the process closes any descriptor of it. So the live file is read through one descriptor that
stays open for as long as the engine holds the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from .. import __version__
from ..errors import EnvironmentProblem, StoreProblem
from ..hashing import content_hash, row_id
from .connect import connect, first_line
from .migrate import migrate
from .table import Table
from .tables import BY_NAME
from .text import storable, storable_json
from .views import render_snapshot, render_views
from .views.standing import all_judges, standing_hash

T = TypeVar("T")
Row = dict[str, Any]
Rows = Mapping[str, Sequence[Row]]

FILE = "store.duckdb"
SNAPSHOT = "store.read.duckdb"
_PIECE = 8 << 20
_CHEAP_SHARE = 0.05
"""A snapshot is cheap when it costs at most this share of the time since the last one."""


def now() -> datetime:
    """Return the time of a new row, UTC."""
    return datetime.now(UTC)


class Store:
    """The facts of one run. Every method may be called from any thread; one thread does the work.

    Raises:
        Busy: another process holds the file.
        StoreProblem: the file is no store, is damaged, or is newer than this code.
    """

    def __init__(self, folder: Path, judges: Sequence[str] = ()) -> None:
        self.folder = folder
        self.path = folder / FILE
        self._judges = tuple(judges)
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="redistill-store")
        self._owner_ident: int | None = None
        self._descriptor = -1
        self._published = time.monotonic()
        self._publish_cost = 0.0
        try:
            self._do(self._open)
        except BaseException:
            self._owner.shutdown()
            raise

    # -- the owner thread

    def _ask(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            if self._descriptor < 0:
                raise StoreProblem(f"{self.path.name} was closed after a fault; resume the run")
            return work()

        return self._do(guarded)

    def _do(self, work: Callable[[], T]) -> T:
        if threading.get_ident() == self._owner_ident:
            return work()
        return self._owner.submit(work).result()

    def _open(self) -> None:
        self._owner_ident = threading.get_ident()
        opened = connect(self.path, self.folder / SNAPSHOT)
        self._connection = opened.connection
        self._descriptor = os.open(self.path, os.O_RDONLY)
        try:
            migrate(self._connection, self.path, __version__, self._copy)
            self._make_views()
            if opened.mended:
                self._tell_mended(opened.mended)
        except duckdb.Error as error:
            self._shut()
            raise self._unwritable(error) from error
        except BaseException:
            self._shut()
            raise

    def _tell_mended(self, places: Sequence[int]) -> None:
        moment = now()
        row = {
            "id": row_id("event", kind="store_mended", moment=moment.isoformat()),
            "round": 0,
            "step": "store",
            "kind": "store_mended",
            "detail": json.dumps({"blocks": list(places)}),
            "created_at": moment,
        }
        self._commit({"event": [row]}, 0, f"store:{row['id']}", 0, 0.0)

    def refresh_views(self) -> None:
        """Make the views anew, where judges may have come that `answers` has no column for."""
        self._ask(self._make_views)

    def _make_views(self) -> None:
        sql = render_views(all_judges(self._connection, self._judges))
        self._views_hash = content_hash(sql)
        # Views that stand are left: to make them costs more than all else that opening a store does.
        if standing_hash(self._connection) != self._views_hash:
            self._declare(sql + self._snapshot_view())

    def _declare(self, sql: str) -> None:
        """Run many statements as one transaction: a comment of its own is one too, and there are hundreds."""
        self._connection.begin()
        try:
            self._connection.execute(sql)
            self._connection.commit()
        except duckdb.FatalException:
            raise
        except BaseException:
            self._roll_back(())
            raise

    def _snapshot_view(self) -> str:
        moment = now().isoformat(timespec="milliseconds")
        return render_snapshot(moment, __version__, self._views_hash)

    def _shut(self) -> None:
        """Let go of the file: the engine first, since closing the descriptor drops its lock."""
        self._connection.close()
        os.close(self._descriptor)
        self._descriptor = -1

    def _unwritable(self, error: Exception) -> EnvironmentProblem:
        fault = f"{self.path.name} cannot be written: {first_line(error)}"
        return EnvironmentProblem(
            f"{fault}; what was committed is kept, and the run can be resumed"
        )

    def _copy(self, target: Path) -> None:
        """Copy the live file, without opening it a second time."""
        with target.open("wb") as file:
            place = 0
            while piece := os.pread(self._descriptor, _PIECE, place):
                file.write(piece)
                place += len(piece)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Publish what is there and close the file; a second time does nothing."""
        if self._owner_ident is None:
            return

        def work() -> None:
            if self._descriptor < 0:
                return
            try:
                self._publish()
            finally:
                if self._descriptor >= 0:
                    self._shut()

        try:
            self._do(work)
        finally:
            self._owner_ident = None
            self._owner.shutdown()

    # -- writing

    def commit(
        self,
        rows: Rows,
        *,
        round: int,  # noqa: A002 - the column's name
        step: str,
        chunk: int,
        seconds: float = 0.0,
    ) -> bool:
        """Write the rows of a chunk in one transaction, once.

        Returns:
            False where this chunk stands in the ledger already; nothing is written then.
        """
        return self._ask(lambda: self._commit(rows, round, step, chunk, seconds))

    def done(self, *, round: int, step: str, chunk: int) -> bool:  # noqa: A002
        """Whether a chunk stands in the ledger."""
        return self._ask(lambda: self._in_ledger(round, _batch_id(round, step, chunk)))

    def _commit(self, rows: Rows, round_: int, step: str, chunk: int, seconds: float) -> bool:
        batch = _batch_id(round_, step, chunk)
        if self._in_ledger(round_, batch):
            return False
        ledger = {
            "id": batch,
            "round": round_,
            "step": step,
            "chunk": chunk,
            "counts": json.dumps({name: len(part) for name, part in rows.items()}),
            "seconds": seconds,
            "created_at": now(),
        }
        whole = {**rows, "write_batch": [ledger]}
        try:
            self._transact(whole, round_)
        except duckdb.FatalException:
            # The engine has given up on this instance, but the transaction may be durable.
            self._shut()
            self._open()
            if not self._in_ledger(round_, batch):
                self._transact(whole, round_)
        return True

    def _transact(self, rows: Rows, round_: int) -> None:
        incoming = {name: _arrow(name, part, round_) for name, part in rows.items() if part}
        for name, data in incoming.items():
            self._connection.register(f"incoming_{name}", data)
        try:
            self._connection.begin()
            for name in incoming:
                self._connection.execute(_insert(BY_NAME[name], round_))
            self._connection.commit()
        except duckdb.FatalException:
            raise  # the connection is thrown away, with all that is registered on it
        except BaseException as error:
            self._roll_back(incoming)
            if isinstance(error, duckdb.ConstraintException | duckdb.ConversionException):
                raise StoreProblem(f"the store refuses a chunk: {first_line(error)}") from error
            if isinstance(error, duckdb.Error):
                raise self._unwritable(error) from error
            raise
        self._forget(incoming)

    def _roll_back(self, incoming: Iterable[str]) -> None:
        # A COMMIT that failed has ended the transaction already; then there is nothing to roll back.
        with contextlib.suppress(duckdb.TransactionException):
            self._connection.rollback()
        self._forget(incoming)

    def _forget(self, incoming: Iterable[str]) -> None:
        for name in incoming:
            self._connection.unregister(f"incoming_{name}")

    def _in_ledger(self, round_: int, batch: str) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM write_batch WHERE round = ? AND id = ?", [round_, batch]
        ).fetchone()
        return found is not None

    # -- reading, for the owner's own process

    def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
        """Run a query of ours and return its rows as dicts."""
        bound = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)

        def work() -> list[Row]:
            result = self._connection.execute(sql, bound)
            names = [d[0] for d in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

        return self._ask(work)

    def work(self, task: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Let the owner thread do a task of ours that is more than rows, for example fill a new store."""
        return self._ask(lambda: task(self._connection))

    # -- the snapshot

    def publish(self, *, force: bool = False) -> bool:
        """Publish the read snapshot, unless it would cost much beside what has happened since."""

        def work() -> bool:
            waited = time.monotonic() - self._published
            if not force and self._publish_cost > _CHEAP_SHARE * waited:
                return False
            self._publish()
            return True

        return self._ask(work)

    def _publish(self) -> None:
        began = time.monotonic()
        target = self.folder / SNAPSHOT
        aside = self.folder / f"{SNAPSHOT}.tmp"
        try:
            self._declare(self._snapshot_view())
            self._connection.execute("CHECKPOINT")
            # Only this thread writes, so that nothing can be committed between checkpoint and copy.
            self._copy(aside)
            aside.replace(target)
        except duckdb.FatalException as error:
            self._shut()
            raise self._unwritable(error) from error
        except (duckdb.Error, OSError) as error:
            aside.unlink(missing_ok=True)
            raise self._unwritable(error) from error
        self._published = time.monotonic()
        self._publish_cost = self._published - began


def _arrow(name: str, rows: Sequence[Row], round_: int) -> pa.Table:
    """Turn rows into Arrow in the table's own schema, without doubles inside the batch.

    Raises:
        StoreProblem: there is no such table or column, a value has another type, or a row belongs to
            another round than its batch, where the anti-join would not look for it.
    """
    if (table := BY_NAME.get(name)) is None:
        raise StoreProblem(f"the store has no table {name!r}")
    # An anti-join does not see the rows that it is about to insert, so the first of a kind wins here.
    unique = {tuple(row[k] for k in table.key): row for row in reversed(rows)}
    known = {column.name: column.type for column in table.columns}
    clean = []
    for row in reversed(unique.values()):
        if strange := row.keys() - known.keys():
            raise StoreProblem(f"table {name} has no column {sorted(strange)}")
        if row.get("round", round_) != round_:
            raise StoreProblem(
                f"table {name}: a row of round {row['round']} in a batch of {round_}"
            )
        clean.append({key: _clean(value, known[key]) for key, value in row.items()})
    try:
        return pa.Table.from_pylist(clean, schema=table.arrow())
    except (pa.ArrowException, TypeError) as error:
        raise StoreProblem(f"table {name}: {first_line(error)}") from error


def _clean(value: Any, kind: str) -> Any:
    """Make text storable; the one place that all text on its way into the file passes."""
    if isinstance(value, str):
        return storable_json(value) if kind == "JSON" else storable(value)
    if kind == "VARCHAR[]":
        return [storable(text) for text in value]
    return value


def _insert(table: Table, round_: int) -> str:
    """Return the INSERT of new rows; the anti-join is bounded by the round, which ids carry."""
    same = " AND ".join(f"old.{k} = new.{k}" for k in table.key)
    if any(column.name == "round" for column in table.columns):
        same += f" AND old.round = {int(round_)}"
    return (
        f"INSERT INTO {table.name} BY NAME SELECT * FROM incoming_{table.name} new "  # noqa: S608
        f"WHERE NOT EXISTS (SELECT 1 FROM {table.name} old WHERE {same})"
    )


def content(text: str, round_: int) -> Row:
    """Make the content row of a text; its hash is that of the text as it is stored."""
    text = storable(text)
    return {"hash": content_hash(text), "round": round_, "text": text}


def _batch_id(round_: int, step: str, chunk: int) -> str:
    return row_id("write_batch", round=round_, step=step, chunk=chunk)
