"""A block of the live file that a kill tore in two: it comes from the snapshot, or the file is left as it is."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import duckdb
import pytest
from store_rows import event, texts

from redistill.errors import StoreProblem
from redistill.store.store import FILE, SNAPSHOT, Store

HEADERS, BLOCK, PAGE = 12288, 256 << 10, 4096
WAL = f"{FILE}.wal"


def _commit(store: Store, chunks: range) -> None:
    for chunk in chunks:
        rows = {
            "event": [event(f"{chunk}.{n}") for n in range(5)],
            "content": texts(f"{chunk}" * 50),
        }
        store.commit(rows, round=1, step="s", chunk=chunk)


def _killed(folder: Path, *, checkpoint_since: bool = False) -> Path:
    """Return what a writer leaves that is killed: a snapshot, the file as of a checkpoint, and a log."""
    live, left = folder / "live", folder / "left"
    for each in (live, left):
        each.mkdir()
    store = Store(live, ["verifier"])
    _commit(store, range(3))
    store.publish(force=True)
    if checkpoint_since:
        _commit(store, range(3, 5))
        store.work(lambda connection: connection.execute("CHECKPOINT").fetchall())
    _commit(store, range(5, 8))
    for name in (FILE, WAL, SNAPSHOT):
        shutil.copy(live / name, left / name)
    store.close()
    return left


def _tear(file: Path, block: int, pages: int) -> None:
    """Put other bytes into the first pages of a block, as a write does that is cut off."""
    with file.open("r+b") as opened:
        opened.seek(HEADERS + block * BLOCK)
        opened.write(random.Random(block).randbytes(pages * PAGE))


def _noticed(folder: Path) -> list[int]:
    """Return the blocks without which the engine cannot open the file."""
    found = []
    for block in range(((folder / FILE).stat().st_size - HEADERS) // BLOCK):
        copy = Path(shutil.copytree(folder, folder.parent / f"look {block}"))
        _tear(copy / FILE, block, 1)
        try:
            duckdb.connect(str(copy / FILE)).close()
        except duckdb.Error as error:
            assert f"in block at location {HEADERS + block * BLOCK}" in str(error)
            found.append(block)
    return found


def _chunks(store: Store) -> list[int]:
    rows = store.rows("SELECT chunk FROM write_batch WHERE step = 's' ORDER BY chunk")
    return [row["chunk"] for row in rows]


def test_a_torn_block_comes_from_the_snapshot_and_the_rest_from_the_log(tmp_path: Path) -> None:
    """Whatever block is torn, and after however many pages: all that was acknowledged is there once and whole."""
    left = _killed(tmp_path)
    noticed = _noticed(left)
    assert noticed
    for block in noticed:
        for pages in (1, 12, 63):
            folder = Path(shutil.copytree(left, tmp_path / f"{block} {pages}"))
            _tear(folder / FILE, block, pages)
            store = Store(folder, ["verifier"])
            assert _chunks(store) == [0, 1, 2, 5, 6, 7]
            [events] = store.rows("SELECT count(*) AS n FROM event WHERE kind <> 'store_mended'")
            assert events["n"] == 5 * 6
            [told] = store.rows("SELECT detail FROM event WHERE kind = 'store_mended'")
            assert json.loads(told["detail"]) == {"blocks": [HEADERS + block * BLOCK]}
            store.close()
            again = Store(folder, ["verifier"])
            assert len(again.rows("SELECT 1 FROM event WHERE kind = 'store_mended'")) == 1
            again.close()


def test_all_torn_blocks_are_put_right_one_after_the_other(tmp_path: Path) -> None:
    """A checkpoint writes more than one block in place."""
    left = _killed(tmp_path)
    noticed = _noticed(left)
    for block in noticed:
        _tear(left / FILE, block, 5)
    store = Store(left, ["verifier"])
    assert _chunks(store) == [0, 1, 2, 5, 6, 7]
    store.close()


@pytest.mark.parametrize("why", ["another checkpoint", "no snapshot", "the snapshot is torn too"])
def test_what_the_snapshot_cannot_tell_is_left_as_it_is(tmp_path: Path, why: str) -> None:
    """A snapshot of an earlier checkpoint, none, or a torn one: one line, and not a byte changes."""
    left = _killed(tmp_path, checkpoint_since=why == "another checkpoint")
    block = _noticed(left)[0]
    _tear(left / FILE, block, 3)
    if why == "no snapshot":
        (left / SNAPSHOT).unlink()
    if why == "the snapshot is torn too":
        _tear(left / SNAPSHOT, block, 4)
    before = {file.name: file.read_bytes() for file in left.iterdir()}
    with pytest.raises(StoreProblem, match="cannot be opened: Corrupt database file"):
        Store(left, ["verifier"])
    assert {file.name: file.read_bytes() for file in left.iterdir()} == before
