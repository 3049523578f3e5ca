"""A store that is damaged, locked, newer or no store: one line, exit 2 or 3, and not a byte of it changes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
from test_crash import _fake_base, _start

from redistill import cli
from redistill.agents.loop import resume
from redistill.errors import StoreProblem
from redistill.report.integrity import examine_run
from redistill.store.store import FILE, SNAPSHOT
from redistill.testing.small_run import make_run

COMMANDS = ("status", "query", "resume", "doctor")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; damage is done to copies of it."""
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(whole, tmp_path / "runs" / "run"))


def told(command: str, folder: Path) -> tuple[int, str, str]:
    """Run a command line in this process; return its exit code, what it printed, and its errors."""
    arguments = [command, folder.name, "--runs", str(folder.parent)]
    arguments += ["SELECT count(*) AS n FROM answers", "--json"] if command == "query" else []
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(arguments)
        except SystemExit as stopped:
            return int(stopped.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def _halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:4096])


def _last_bytes(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def _flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[16] ^= 255
    file.write_bytes(bytes(data))


def _newer(file: Path) -> None:
    with duckdb.connect(str(file)) as connection:
        connection.execute(
            "INSERT INTO schema_migration VALUES (9999, '9999_later.sql', 'x', '9.9.9', now())"
        )


def _another(file: Path) -> None:
    file.unlink()
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE TABLE theirs AS SELECT 1 AS n")


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half of it": _halved,
    "its header alone": _header,
    "without its last bytes": _last_bytes,
    "a flipped byte": _flipped,
    "zero bytes": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"no database " * 5000),
    "SQLite": lambda file: file.write_bytes(b"SQLite format 3\0" + b"\0" * 8192),
    "of a newer version": _newer,
    "another database": _another,
    "a folder": _folder,
}


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the stores of a run."""
    return {f.name: f.read_bytes() for f in folder.glob("store*.duckdb*") if f.is_file()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_live_store_that_is_no_good(run: Path, damage: str) -> None:
    """`resume` and `doctor` refuse it with exit 2; what reads the snapshot still answers."""
    DAMAGE[damage](run / FILE)
    before = bytes_of(run)
    for command in COMMANDS:
        code, out, err = told(command, run)
        if command in ("status", "query"):
            assert code == 0, (command, err)
        elif command == "resume":
            assert code == 2, err
            assert FILE in err
            assert len(err.strip().splitlines()) == 1
        else:
            assert code == 2
            assert "live store" in out
        assert "Traceback" not in err
        assert bytes_of(run) == before, command


@pytest.mark.parametrize("damage", [*DAMAGE, "missing"])
def test_a_snapshot_that_is_no_good(run: Path, damage: str) -> None:
    """`status`, `query` and `doctor` end with exit 2 and a line; the live store is as it was."""
    file = run / SNAPSHOT
    if damage == "missing":
        file.unlink()
    else:
        DAMAGE[damage](file)
    before = bytes_of(run)
    for command in ("status", "query", "doctor"):
        code, out, err = told(command, run)
        if damage == "of a newer version":  # what is newer can be read as far as it is known
            continue
        if damage == "another database" and command == "query":
            assert "answers" in err
        assert code == 2, (command, out, err)
        if command != "doctor":
            assert len(err.strip().splitlines()) == 1, err
        assert "Traceback" not in err
        assert bytes_of(run) == before, command


HOLD = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(run: Path) -> Iterator[Path]:
    """A run whose live store another program has open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run / FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield run
        assert other.stdin is not None
        other.stdin.close()


def test_a_store_that_another_program_holds(held: Path) -> None:
    """`resume` is told who holds it, exit 3; reading goes on; `doctor` says what it did not look at."""
    before = bytes_of(held)
    codes = {command: told(command, held) for command in COMMANDS}
    assert {command: found[0] for command, found in codes.items()} == {
        "status": 0,
        "query": 0,
        "resume": 3,
        "doctor": 0,
    }
    assert "in use: held in" in codes["resume"][2]
    assert "not looked at" in codes["doctor"][1]
    assert bytes_of(held) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write what is read-only")
def test_a_store_that_may_not_be_written(run: Path) -> None:
    """`resume` says so; reading goes on."""
    (run / FILE).chmod(0o444)
    before = bytes_of(run)
    code, _, err = told("resume", run)
    assert code in (2, 3)
    assert len(err.strip().splitlines()) == 1
    assert told("query", run)[0] == 0
    assert bytes_of(run) == before


def test_a_run_that_has_not_begun(run: Path) -> None:
    """A store without a run's row, as a start that failed leaves it, is told in a line."""
    from redistill.store.store import Store

    for name in (FILE, SNAPSHOT):
        (run / name).unlink()
    Store(run).close()
    for command in ("status", "backup"):
        code, _, err = told(command, run)
        assert code == 2
        assert "has not begun" in err
    assert told("doctor", run)[0] == 2


# -- a log that was lost


def test_a_run_that_lost_its_log_does_not_go_on(tmp_path: Path) -> None:
    """The engine opens a store without its log and says nothing; the graph's count says what is missing."""
    base = _fake_base(tmp_path / "base")
    assert _start(base, [1, "score", 1, "after"]).returncode == -9
    folder = base / "runs" / "fake"
    log = folder / f"{FILE}.wal"
    assert log.exists()
    log.unlink()
    before = bytes_of(folder)
    lost = [c for c in examine_run(folder) if c["name"] == "live store"]
    assert lost[0]["state"] == "bad"
    assert "are there" in lost[0]["detail"] or "lacks" in lost[0]["detail"]
    assert bytes_of(folder) == before
    with pytest.raises(StoreProblem, match="it has lost rows; restore the run from a backup"):
        resume(folder)


def test_a_run_that_lost_its_store_does_not_begin_anew(run: Path) -> None:
    """A graph without a store is a run that has lost everything, and no new one."""
    (run / "graph.sqlite").write_bytes(b"")
    (run / FILE).unlink()
    code, _, err = told("resume", run)
    assert code == 2
    assert "is gone; restore the run from a backup" in err
    assert not (run / FILE).exists()
    assert told("doctor", run)[0] == 2
    assert json.loads(told("query", run)[1])[0]["n"] > 0
