"""Backup and restore: the archive is the run, nothing hostile in one is obeyed, a restored run goes on."""

from __future__ import annotations

import io
import json
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from test_crash import _facts, _fake_base, _start
from typer.testing import CliRunner

from redistill.cli import app
from redistill.errors import BadInput, EnvironmentProblem
from redistill.report.integrity import examine_run
from redistill.report.keeping import back_up, bring_back, forget
from redistill.report.summary import summary
from redistill.store import backup as backups
from redistill.store.query import read_rows
from redistill.store.store import FILE, SNAPSHOT
from redistill.testing.small_run import make_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return make_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def archive(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it."""
    out = tmp_path_factory.mktemp("kept") / "whole.tar"
    back_up(whole, out)
    return out


def bad(folder: Path) -> list[dict[str, str]]:
    """Return what `doctor` finds bad in a run."""
    return [check for check in examine_run(folder) if check["state"] == "bad"]


def test_a_restored_run_is_the_run(whole: Path, archive: Path, tmp_path: Path) -> None:
    """Same rows, same summary, same files; `doctor` finds nothing bad; the store's copies are two files."""
    found = bring_back(archive, None, tmp_path)
    assert (found["run"], found["store"]) == ("whole", "live")
    sql = "SELECT id, answer, verifier FROM answers ORDER BY id"
    assert read_rows(tmp_path / "whole", sql) == read_rows(whole, sql)
    ages = {"snapshot_age_seconds": 0}
    assert summary(tmp_path / "whole") | ages == summary(whole) | ages
    assert bad(tmp_path / "whole") == []
    assert not (tmp_path / "whole" / FILE).samefile(tmp_path / "whole" / SNAPSHOT)
    for name in ("recipe.yaml", "inputs/0-prompts.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (whole / name).read_bytes()


def test_the_manifest_names_every_file(archive: Path) -> None:
    """One entry a file with its size and SHA-256, and nothing temporary or of a process."""
    manifest = backups.read_manifest(archive)
    names = set(manifest.files)
    assert {FILE, "recipe.yaml", "inputs/0-prompts.jsonl"} <= names
    assert sum(name.endswith("/revision.json") for name in names) == 3
    assert not [n for n in names if n.endswith((".lock", ".tmp", ".wal")) or n == SNAPSHOT]
    assert manifest.run == "whole"


def test_a_run_is_never_overwritten(whole: Path, archive: Path, tmp_path: Path) -> None:
    """Neither a run nor an archive is written over; another name works, a path as a name does not."""
    bring_back(archive, None, tmp_path)
    before = (tmp_path / "whole" / FILE).read_bytes()
    with pytest.raises(BadInput, match="exists; give another name with --as"):
        bring_back(archive, None, tmp_path)
    assert bring_back(archive, "other", tmp_path)["run"] == "other"
    with pytest.raises(BadInput, match="cannot name a run"):
        bring_back(archive, "../out", tmp_path)
    with pytest.raises(BadInput, match="exists"):
        back_up(whole, archive)
    assert (tmp_path / "whole" / FILE).read_bytes() == before


def _rewritten(archive: Path, out: Path, change: Callable[[list[Any]], None]) -> Path:
    """Write a copy of an archive whose members a function has changed: (TarInfo, bytes) each."""
    members: list[Any] = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            members.append((member, file.read() if file else b""))
    change(members)
    with tarfile.open(out, "w") as tar:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return out


def _entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def _named(members: list[Any], name: str) -> Any:
    return next(pair for pair in members if pair[0].name == name)


def _manifest(members: list[Any], change: Callable[[dict[str, Any]], None]) -> None:
    pair = _named(members, "manifest.json")
    told = json.loads(pair[1])
    change(told)
    members[members.index(pair)] = (pair[0], json.dumps(told).encode())


def _also_in_manifest(members: list[Any], name: str) -> None:
    import hashlib

    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    members.insert(0, (_entry(name), b"x"))
    _manifest(members, lambda told: told["files"].update({name: entry}))


def _flip(members: list[Any]) -> None:
    pair = _named(members, FILE)
    data = bytearray(pair[1])
    data[len(data) // 2] ^= 1
    members[members.index(pair)] = (pair[0], bytes(data))


HOSTILE: dict[str, Callable[[list[Any]], None]] = {
    "absolute": lambda m: _also_in_manifest(m, "/etc/evil"),
    "climbing": lambda m: _also_in_manifest(m, "../evil"),
    "climbing inside": lambda m: _also_in_manifest(m, "inputs/../../evil"),
    "a dot": lambda m: _also_in_manifest(m, "./evil"),
    "a backslash": lambda m: _also_in_manifest(m, "..\\evil"),
    "a drive": lambda m: _also_in_manifest(m, "C:/evil"),
    "an empty part": lambda m: _also_in_manifest(m, "inputs//evil"),
    "a symbolic link": lambda m: m.insert(0, (_entry("evil", tarfile.SYMTYPE, "/etc"), b"")),
    "a hard link": lambda m: m.insert(0, (_entry("evil", tarfile.LNKTYPE, "/etc/passwd"), b"")),
    "a device": lambda m: m.insert(0, (_entry("evil", tarfile.CHRTYPE), b"")),
    "a pipe": lambda m: m.insert(0, (_entry("evil", tarfile.FIFOTYPE), b"")),
    "a folder": lambda m: m.insert(0, (_entry("evil", tarfile.DIRTYPE), b"")),
    "a file that no manifest names": lambda m: m.insert(0, (_entry("evil"), b"x")),
    "a file twice": lambda m: m.append(_named(m, FILE)),
    "a file that is gone": lambda m: m.remove(_named(m, "recipe.yaml")),
    "a changed byte": _flip,
    "no manifest": lambda m: m.remove(_named(m, "manifest.json")),
    "a manifest that is a list": lambda m: m.append(
        (_entry("manifest.json"), b"[]")  # the last of a name counts
    ),
    "a newer format": lambda m: _manifest(m, lambda told: told.update(format=99)),
    "no hashes": lambda m: _manifest(m, lambda told: told["files"].update({FILE: {}})),
    "a key of its own": lambda m: _manifest(m, lambda told: told.update(run_me="rm")),
    "a name that climbs": lambda m: _manifest(m, lambda told: told.update(run="../../evil")),
    "nothing": lambda m: m.clear(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_writes_nothing(archive: Path, tmp_path: Path, name: str) -> None:
    """Whatever is wrong is told in one line, before the first byte is written."""
    runs = tmp_path / "deep" / "runs"
    runs.mkdir(parents=True)
    evil = _rewritten(archive, tmp_path / "evil.tar", HOSTILE[name])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput) as error:
        bring_back(evil, None, runs)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/etc/evil").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_an_archive_that_was_cut_off_is_refused(
    archive: Path, tmp_path: Path, share: float
) -> None:
    """A copy that did not finish is no backup."""
    data = archive.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput):
        bring_back(tmp_path / "cut.tar", None, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["cut.tar"]


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    """Another file, a folder and nothing at all are each told in a line."""
    (tmp_path / "text").write_text("no archive" * 500)
    for name in ("text", "nowhere", "."):
        with pytest.raises(BadInput):
            bring_back(tmp_path / name, None, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_leaves_no_half_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that cannot write leaves nothing behind."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        bring_back(archive, None, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_is_not_there_has_no_backup(tmp_path: Path) -> None:
    """A wrong name is told, and no folder is made for its lock."""
    with pytest.raises(BadInput, match="no run"):
        back_up(tmp_path / "nowhere", None)
    assert list(tmp_path.iterdir()) == []


def test_a_live_file_that_is_damaged_is_told_and_the_snapshot_is_kept(
    whole: Path, tmp_path: Path
) -> None:
    """The archive then brings back the state of the snapshot, and says so."""
    folder = tmp_path / "runs" / "hurt"
    shutil.copytree(whole, folder)
    (folder / FILE).write_bytes(b"damaged" * 1000)
    found = back_up(folder, tmp_path / "hurt.tar")
    assert "cannot be opened" in found["store"]
    bring_back(tmp_path / "hurt.tar", "healed", tmp_path / "runs")
    assert bad(tmp_path / "runs" / "healed") == []


def test_the_commands_tell_what_they_did(whole: Path, tmp_path: Path) -> None:
    """`backup` names the archive, `restore` the run and how to go on."""
    out = tmp_path / "a.tar"
    made = CliRunner().invoke(
        app, ["backup", "whole", "--runs", str(whole.parent), "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    assert f"{out}: " in made.output.replace("\n", "")
    back = CliRunner().invoke(
        app, ["restore", str(out), "--as", "again", "--runs", str(tmp_path / "r")]
    )
    assert back.exit_code == 0, back.output
    assert "go on with: redistill resume again" in back.output


# -- a run that goes on


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    base = _fake_base(tmp_path_factory.mktemp("calm") / "base")
    assert _start(base, None).returncode == 0
    return base


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed in the middle of its second round."""
    base = _fake_base(tmp_path_factory.mktemp("struck") / "base")
    assert _start(base, [2, "score", 0, "after"]).returncode == -signal.SIGKILL
    return base


@pytest.mark.parametrize("busy", [False, True])
def test_a_restored_run_goes_on_with_the_same_ids(
    calm: Path, struck: Path, tmp_path: Path, busy: bool
) -> None:
    """An unfinished run comes back and ends as an undisturbed one has, also from an older snapshot."""
    source = struck / "runs" / "fake"
    out = tmp_path / "fake.tar"
    if busy:
        with FileLock(source / ".lock"):
            found = back_up(source, out)
        assert "is being run by another process" in found["store"]
        assert "graph.sqlite" not in backups.read_manifest(out).files
    else:
        assert back_up(source, out)["store"] == "live"
        assert "graph.sqlite" in backups.read_manifest(out).files
    base = tmp_path / "base"
    base.mkdir()
    for name in ("recipe.yaml", "prompts.jsonl"):
        shutil.copy(struck / name, base / name)
    bring_back(out, "fake", base / "runs")
    finished = _start(base, None)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert _facts(base, "fake") == _facts(calm, "fake")
    assert bad(base / "runs" / "fake") == []


# -- a run of which something was forgotten


def test_a_finished_run_needs_nothing_that_was_forgotten(calm: Path, tmp_path: Path) -> None:
    """With prompts and answers forgotten it still is the run of its key, and resuming changes nothing."""
    base = tmp_path / "base"
    shutil.copytree(calm, base)
    folder = base / "runs" / "fake"
    before = _facts(base, "fake")
    found = forget(folder, "split = 'train'", prompts=True, reason="", sure=True)
    assert found["left"] == []
    assert bad(folder) == []
    again = CliRunner().invoke(app, ["resume", "fake", "--runs", str(base / "runs")])
    assert again.exit_code == 0, again.output
    assert _same(_facts(base, "fake"), before)


def _same(facts: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether two runs have the same facts, but for the one event and chunk of a forgetting."""
    own = [
        set(facts[name]) - set(others[name]) for name in facts if "event" in name or "batch" in name
    ]
    rest = [name for name in facts if "event" not in name and "batch" not in name]
    return [len(ids) for ids in own] == [1, 1] and all(facts[n] == others[n] for n in rest)


@pytest.mark.parametrize(
    ("where", "prompts", "told"),
    [
        ("round = 2", False, r"\d+ answers that coming rounds need were forgotten"),
        ("split = 'heldout'", True, r"\d+ prompts and \d+ answers that coming rounds need"),
    ],
)
def test_an_unfinished_run_that_needs_them_is_refused_in_a_line(
    struck: Path, tmp_path: Path, where: str, prompts: bool, told: str
) -> None:
    """Going on would train on nothing, or compare with nothing: no round is made of that."""
    base = tmp_path / "base"
    shutil.copytree(struck, base)
    folder = base / "runs" / "fake"
    assert forget(folder, where, prompts=prompts, reason="", sure=True)["done"]
    assert bad(folder) == []
    with pytest.raises(BadInput, match=told):
        from redistill.agents.loop import resume

        resume(folder)


def test_an_unfinished_run_goes_on_without_answers_that_are_done_with(
    calm: Path, struck: Path, tmp_path: Path
) -> None:
    """Answers of a decided round that trained are read no more: the run ends with the same ids."""
    base = tmp_path / "base"
    shutil.copytree(struck, base)
    folder = base / "runs" / "fake"
    alone = (
        "SELECT min(c.id)::VARCHAR AS id FROM completion c GROUP BY c.text_hash "
        "HAVING max(c.round) = 1 AND min(c.round) = 1 AND bool_and(c.split = 'train') ORDER BY 1"
    )
    ids = [row["id"] for row in read_rows(folder, alone)]
    assert ids
    where = "id IN (" + ", ".join(f"'{identifier}'" for identifier in ids) + ")"
    assert forget(folder, where, prompts=False, reason="", sure=True)["done"]
    finished = _start(base, None)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert _same(_facts(base, "fake"), _facts(calm, "fake"))
    assert bad(folder) == []
