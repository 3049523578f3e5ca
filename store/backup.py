"""One archive of all that a run needs, and the way back.

The archive is a plain tar with a manifest of sizes and SHA-256 as its last member. The store in it is the
published snapshot: whoever holds the run publishes it first, so that nothing that was committed is left
out. The graph's checkpoint goes along only then. Beside an older snapshot it would have seen chunks that
the snapshot lacks; without it the ledger alone says what is done, which is enough to go on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .. import __version__
from ..errors import BadInput, EnvironmentProblem
from .query import read_rows, snapshot
from .store import FILE, SNAPSHOT, now

MANIFEST = "manifest.json"
BACKUPS = "backups.jsonl"
"""Lists, in the run's folder, the archives that were made of it: `forget` names them."""
GRAPH = "graph.sqlite"
_FORMAT = 1
_PIECE = 1 << 20
_MOST_MANIFEST = 64 << 20

# A job's folder is written before the ledger row of its first chunk, so these are whole; a job that is
# being written now is written again by whoever goes on.
_JOBS = """
SELECT DISTINCT w.round, w.step FROM write_batch w JOIN step s ON s.round = w.round AND s.step = w.step
WHERE s.operator = 'train' AND w.chunk = 0 ORDER BY w.round, w.step
"""


@dataclass(slots=True)
class Manifest:
    """What an archive holds."""

    run: str
    key: str
    store: str
    """Where the store is from: `live`, or why it is an older snapshot."""
    created_at: str = field(default_factory=lambda: now().isoformat())
    redistill: str = __version__
    format: int = _FORMAT
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Relative path -> `sha256` and `bytes`."""


def write_backup(folder: Path, target: Path, older: str = "") -> Manifest:
    """Write the archive of a run, whole or not at all, and note it in the run's folder.

    Args:
        folder: the run's folder. Its snapshot is the store that is kept.
        target: the file to write; must not exist.
        older: why the snapshot may be older than the store; empty where it was published for this.

    Raises:
        BadInput: the file exists, or there is no such run.
        EnvironmentProblem: the file cannot be written.
    """
    if target.exists():
        raise BadInput.at("--out", f"{target} exists", "give another name, or remove it")
    begun = read_rows(folder, "SELECT key FROM run")
    if not begun:
        raise BadInput.at("", f"run {folder.name!r} has not begun", "there is nothing to keep")
    [run] = begun
    manifest = Manifest(folder.name, run["key"], older or "live")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as out, tarfile.open(fileobj=out, mode="w") as tar:
            _add_all(tar, folder, manifest, graph=not older)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(target)
    except OSError as error:
        raise EnvironmentProblem(f"{target} cannot be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    line = {"file": str(target.absolute()), "created_at": manifest.created_at}
    with (folder / BACKUPS).open("a", encoding="utf-8") as notes:
        notes.write(json.dumps(line) + "\n")
    return manifest


def _add_all(tar: tarfile.TarFile, folder: Path, manifest: Manifest, *, graph: bool) -> None:
    # Opened once: a run that goes on replaces the snapshot, and this keeps the one that was read.
    with snapshot(folder).open("rb") as store:
        _add(tar, manifest, FILE, store)
    for name in _files(folder):
        with (folder / name).open("rb") as file:
            _add(tar, manifest, name, file)
    if graph and (folder / GRAPH).is_file():
        with closing(_graph_copy(folder / GRAPH)) as copy:
            _add(tar, manifest, GRAPH, io.BytesIO(copy.serialize()))
    text = json.dumps(asdict(manifest), indent=1).encode()
    entry = tarfile.TarInfo(MANIFEST)
    entry.size = len(text)
    tar.addfile(entry, io.BytesIO(text))


def _graph_copy(file: Path) -> sqlite3.Connection:
    """Return a copy in memory, made by SQLite itself: what lies in its log is in it."""
    copy = sqlite3.connect(":memory:")
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as source:
        source.backup(copy)
    return copy


def _files(folder: Path) -> Iterator[str]:
    """Yield the files that a run needs beside its store, relative to its folder."""
    wanted = [folder / "recipe.yaml", folder / BACKUPS]
    begun = read_rows(folder, _JOBS)
    jobs = [f"jobs/{round_}" for round_ in sorted({row["round"] for row in begun})]
    jobs += [f"judges/jobs/round-{row['round']}-{row['step']}" for row in begun]
    rows = read_rows(folder, "SELECT DISTINCT folder FROM revision ORDER BY folder")
    for part in ("inputs", "exports", *jobs, *(str(row["folder"]) for row in rows)):
        _refuse_strange_path(part, "the store")
        wanted += sorted((folder / part).rglob("*"))
    for path in wanted:
        name = path.relative_to(folder).as_posix()
        temporary = any(p.startswith(".") for p in PurePosixPath(name).parts)
        if path.is_file() and not path.is_symlink() and not temporary:
            yield name


def _add(tar: tarfile.TarFile, manifest: Manifest, name: str, file: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = file.seek(0, os.SEEK_END)
    entry.mtime = int(now().timestamp())
    file.seek(0)
    digested = _Digested(file)
    tar.addfile(entry, digested)  # all that it needs is `read`
    manifest.files[name] = {"sha256": digested.digest.hexdigest(), "bytes": entry.size}


class _Digested:
    """A file whose bytes are hashed while they are read, so that the hash is of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read and hash."""
        piece = self._file.read(size)
        self.digest.update(piece)
        return piece


# -- the way back


def read_manifest(archive: Path) -> Manifest:
    """Check a whole archive, names and hashes, and return its manifest; nothing is written.

    Raises:
        BadInput: it is none of ours, is damaged, is newer than this code, or holds what could leave the
            folder that it is unpacked into.
    """
    with _opened(archive) as tar:
        members = {member.name: member for member in tar.getmembers()}
        manifest = _manifest(tar, members.get(MANIFEST), archive)
        for member in tar.getmembers():
            if not member.isreg():
                raise BadInput.at(str(archive), f"{member.name!r} is no plain file")
            _refuse_strange_path(member.name, str(archive))
        found = [member.name for member in tar.getmembers()]
        if sorted(found) != sorted([*manifest.files, MANIFEST]):
            raise BadInput.at(str(archive), "its files are not those of its manifest", _DAMAGED)
        for name, expected in manifest.files.items():
            _copy(tar, members[name], None, expected, archive)
    if FILE not in manifest.files or "recipe.yaml" not in manifest.files:
        raise BadInput.at(str(archive), "holds no store and recipe", "it is no backup of a run")
    return manifest


def restore(archive: Path, target: Path) -> Manifest:
    """Make a run's folder from an archive, whole or not at all.

    Args:
        archive: what `write_backup` wrote.
        target: the folder to make; must not exist.

    Raises:
        BadInput: the archive is wrong (see `read_manifest`), or the folder exists.
        EnvironmentProblem: the folder cannot be written.
    """
    if target.exists():
        raise BadInput.at("", f"{target} exists", "give another name with --as")
    manifest = read_manifest(archive)
    aside = target.with_name(f".restore-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        with _opened(archive) as tar:
            for name, expected in manifest.files.items():
                _copy(tar, tar.getmember(name), aside / name, expected, archive)
        # A copy of its own, never a link: the live file is written in place.
        shutil.copyfile(aside / FILE, aside / SNAPSHOT)
        sync_folder(aside)
        aside.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise EnvironmentProblem(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


_DAMAGED = "the archive is damaged; take another one"


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    if not archive.is_file():
        raise BadInput.at("", f"no such file: {archive}")
    try:
        # `r:` reads no compression, so that nothing in it is larger than the file.
        with tarfile.open(archive, "r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise BadInput.at(str(archive), f"cannot be read as a backup: {error}", _DAMAGED) from error


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo | None, archive: Path) -> Manifest:
    file = tar.extractfile(member) if member is not None and member.isreg() else None
    if member is None or file is None or member.size > _MOST_MANIFEST:
        raise BadInput.at(str(archive), f"has no {MANIFEST}", "it is no backup, or it was cut off")
    try:
        told = json.loads(file.read())
        if told["format"] > _FORMAT:
            by = f"was written by redistill {told['redistill']}, this is {__version__}"
            raise BadInput.at(str(archive), by, "use that version")
        manifest = Manifest(**told)
        for entry in manifest.files.values():
            str(entry["sha256"]), int(entry["bytes"])
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput.at(str(archive), f"its {MANIFEST} is none: {error!r}", _DAMAGED) from error
    return manifest


def _refuse_strange_path(name: str, where: str) -> None:
    """Refuse what could lead out of the folder that it is joined to.

    Raises:
        BadInput: it is absolute, climbs, or is no plain relative path.
    """
    parts = name.split("/")
    strange = any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name
    if strange or PurePosixPath(name).is_absolute() or Path(name).is_absolute() or ":" in parts[0]:
        raise BadInput.at(where, f"{name!r} is no path inside a run", "nothing was written")


def _copy(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    target: Path | None,
    expected: dict[str, Any],
    archive: Path,
) -> None:
    """Read a member, compare it with the manifest, and write it where a target is given."""
    source = tar.extractfile(member)
    assert source is not None
    digest = hashlib.sha256()
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    out = target.open("xb") if target is not None else None
    try:
        while piece := source.read(_PIECE):
            digest.update(piece)
            if out is not None:
                out.write(piece)
        if out is not None:
            out.flush()
            os.fsync(out.fileno())
    finally:
        if out is not None:
            out.close()
    if member.size != expected["bytes"] or digest.hexdigest() != expected["sha256"]:
        raise BadInput.at(str(archive), f"{member.name} is not what was written", _DAMAGED)


# -- writing files


def write_whole(target: Path, data: bytes) -> None:
    """Write a file aside, and put it in its place when it lies on the disk."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with aside.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a loss of power, where the system can do so."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


__all__ = [
    "BACKUPS",
    "GRAPH",
    "Manifest",
    "read_manifest",
    "restore",
    "sync_folder",
    "write_backup",
    "write_whole",
]
