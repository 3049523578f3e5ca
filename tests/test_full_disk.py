"""A full disk: a clear line, exit 4, nothing committed is lost, and the resumed run has the same ids."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from children import start
from test_crash import _facts, _fake_base

from redistill.report.integrity import examine_run
from redistill.store.query import read_rows
from redistill.store.store import FILE

CHILD = Path(__file__).with_name("full_child.py")


def _run(base: Path, full: str | None = None, after: int = 0) -> subprocess.CompletedProcess[str]:
    told = {"base": str(base), "full": full, "after": after}
    return start(CHILD, told)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of an undisturbed run."""
    base = _fake_base(tmp_path_factory.mktemp("calm") / "base")
    done = _run(base)
    assert done.returncode == 0, done.stderr
    return _facts(base, "fake")


def test_a_disk_that_is_full_anywhere_parks_the_run(calm: dict[str, Any], tmp_path: Path) -> None:
    """One run that finds the disk full in store, snapshot, graph, job folder and worker in turn.

    Each time it ends with exit 4 and one line that says how to go on; the next start goes on from there.
    """
    base = _fake_base(tmp_path / "base")
    committed = 0
    for full, after in (
        ("store", 3),
        ("snapshot", 2),
        ("graph", 4),
        ("job", 0),
        ("worker", 0),
        ("store", 4),
    ):
        done = _run(base, full, after)
        assert done.returncode == 4, (full, after, done.returncode, done.stderr[-3000:])
        told = done.stderr.strip().splitlines()[-1]
        assert told.startswith("redistill: "), told
        assert told.endswith("resumed"), told
        assert "Traceback" not in done.stderr
        there = _ledger(base)
        assert there >= committed
        committed = there
    finished = _run(base)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert _facts(base, "fake") | _stops(calm) == calm | _stops(calm)
    assert [c for c in examine_run(base / "runs/fake") if c["state"] == "bad"] == []


def _stops(calm: dict[str, Any]) -> dict[str, Any]:
    """Name the facts that a stop adds to: its event, and the chunk of the ledger that has it."""
    return {name: None for name in calm if "event" in name or "write_batch" in name}


def _ledger(base: Path) -> int:
    import duckdb

    file = base / "runs/fake" / FILE
    with duckdb.connect(str(file), read_only=True) as connection:
        return int(connection.execute("SELECT count(*) FROM write_batch").fetchall()[0][0])


ON_TMPFS = """
mount -t tmpfs -o size=$2 none "$1/small" || exit 99
cp -r "$1/base" "$1/small/base"
"$3" -P "$4" > "$1/first.txt" 2>&1 <<X
{"base": "$1/small/base", "full": null, "after": 0}
X
echo $? > "$1/first"
mount -o remount,size=64m "$1/small"
"$3" -P "$4" > "$1/second.txt" 2>&1 <<X
{"base": "$1/small/base", "full": null, "after": 0}
X
echo $? > "$1/second"
cp -r "$1/small/base" "$1/after"
"""


@pytest.mark.parametrize("size", ["1500k", "3m", "5m"])
def test_a_file_system_that_is_really_full(calm: dict[str, Any], tmp_path: Path, size: str) -> None:
    """A run on a small file system of its own: it parks where that is full, and goes on when it has grown."""
    (tmp_path / "small").mkdir()
    _fake_base(tmp_path / "base")
    (tmp_path / "mount.sh").write_text(ON_TMPFS)
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", str(tmp_path / "mount.sh")]
    if shutil.which("unshare") is None:
        pytest.skip("this system has no unshare")
    done = subprocess.run(
        [*own, str(tmp_path), size, sys.executable, str(CHILD)],
        capture_output=True,
        text=True,
        check=False,
    )
    if not (tmp_path / "second").exists():
        pytest.skip(f"no file system of one's own here: {done.stderr.strip()[:200]}")
    first = (tmp_path / "first.txt").read_text()
    assert (tmp_path / "first").read_text().strip() == "4", first[-3000:]
    assert "Traceback" not in first
    assert first.strip().splitlines()[-1].endswith("resumed")
    assert (tmp_path / "second").read_text().strip() == "0", (tmp_path / "second.txt").read_text()
    found = _facts(tmp_path / "after", "fake")
    assert found | _stops(calm) == calm | _stops(calm)


def test_a_stop_is_told_by_status(calm: dict[str, Any], tmp_path: Path) -> None:
    """Where the store could still be written, `status` says what stopped the run."""
    base = _fake_base(tmp_path / "base")
    assert _run(base, "worker", 0).returncode == 4
    rows = read_rows(base / "runs/fake", "SELECT detail FROM event WHERE kind = 'stopped'")
    assert "File too large" in json.loads(rows[0]["detail"])["error"]
    statuses = read_rows(base / "runs/fake", "SELECT status FROM training_run")
    assert statuses == []
