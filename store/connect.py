"""Opening the live file, also after a kill: what the engine alone cannot open is put right first.

Two things that a kill can leave were seen. A log that the engine cannot replay into a file that it opens
first (`_replay`). And a block that is torn in two: a checkpoint writes some blocks anew in place while the
header that counts still names them, so a writer that is killed in the midst of one leaves a block with
neither the old checksum nor the new one. It was met once, in a test that kills a writer again and again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import duckdb

from ..errors import Busy, StoreProblem
from .table import quote

_STORAGE = "v1.5.0"
"""Common tools lag behind the engine's newest file format; this one they can read."""
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "storage_compatibility_version": _STORAGE,
    "python_enable_replacements": "false",
    "threads": "2",
}
_HEADERS = 3 * 4096
"""Bytes before the first block: who made the file, and the two headers of which the newer one counts."""
_BLOCK = 256 << 10
_TORN = re.compile(r"Corrupt database file: .* in block at location (\d+)")


@dataclass(frozen=True, slots=True)
class Opened:
    """The live file, open."""

    connection: duckdb.DuckDBPyConnection
    mended: tuple[int, ...]
    """Places of blocks that were torn and came from the snapshot, in bytes from the file's start."""


def connect(path: Path, snapshot: Path) -> Opened:
    """Open the live file for writing.

    Raises:
        Busy: another process holds it.
        StoreProblem: it is damaged or no store; not a byte of it has changed.
    """
    mended: list[int] = []
    while True:
        try:
            connection = _open(path)
            connection.execute("SET TimeZone = 'UTC'")
            without_progress_bar(connection)
            return Opened(connection, tuple(mended))
        except duckdb.Error as error:
            if "Conflicting lock" in str(error):
                raise Busy(f"{path.name} is in use: {_holder(str(error))}") from error
            place = _mend(path, snapshot, str(error), mended)
            if place is None:
                raise StoreProblem(f"{path} cannot be opened: {first_line(error)}") from error
            mended.append(place)


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(str(path), config=_CONFIG)
    except duckdb.Error as error:
        if "replaying WAL" not in str(error):
            raise
    _replay(path)
    return duckdb.connect(str(path), config=_CONFIG)


def _replay(path: Path) -> None:
    """Put a write-ahead log into its file by another door.

    A log with COMMENT ON a table that has checks, which a kill between a migration and its checkpoint
    leaves, cannot be replayed by an instance that opens the file first: it looks for its own functions
    before they are there. An instance that is up already can.

    Raises:
        duckdb.Error: the log is damaged; the file is as it was.
    """
    with duckdb.connect(":memory:", config=_CONFIG) as connection:
        connection.execute(f"ATTACH {quote(str(path.absolute()))} AS store; CHECKPOINT store")


def _mend(path: Path, snapshot: Path, told: str, mended: list[int]) -> int | None:
    """Put the snapshot's block in the place of one that is torn, and return where; None where that is no help.

    The snapshot is the live file as a checkpoint left it. While both have the same headers, that is the
    last checkpoint that counts, and its blocks are what the header names; the log, which is kept until a
    checkpoint is done, brings all that came after. Other blocks stay as they are: a log may name them.
    """
    found = _TORN.search(told)
    if found is None or (place := int(found[1])) in mended or not _is_whole(snapshot):
        return None
    with snapshot.open("rb") as whole, path.open("r+b", buffering=0) as torn:
        if whole.read(_HEADERS) != torn.read(_HEADERS):
            return None
        block = os.pread(whole.fileno(), _BLOCK, place)
        if len(block) != _BLOCK or (place - _HEADERS) % _BLOCK:
            return None
        os.pwrite(torn.fileno(), block, place)
        os.fsync(torn.fileno())
    return place


def _is_whole(snapshot: Path) -> bool:
    try:
        duckdb.connect(str(snapshot), read_only=True).close()
    except (duckdb.Error, OSError):
        return False
    return True


def without_progress_bar(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep the engine from drawing; where it does not, the mere setting fails in a notebook without ipywidgets."""
    [(drawn,)] = connection.execute("SELECT current_setting('enable_progress_bar')").fetchall()
    if drawn:
        connection.execute("SET enable_progress_bar = false")


def first_line(error: BaseException) -> str:
    """Return the first line of what the engine says."""
    return str(error).strip().split("\n", 1)[0]


def _holder(message: str) -> str:
    """Pick the holder out of the engine's message: `Conflicting lock is held in ... (PID n)`."""
    start = message.find("held in")
    return message[start:].split(". See", 1)[0] if start >= 0 else message
