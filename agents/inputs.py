"""The noun *input*: a file that a step of a recipe reads, such as a rubric or labelled pairs.

A recipe names it from its own folder. What loads a step reads it from wherever it is told, so a recipe that is
loaded holds whole paths, one that is written holds paths from its folder, and a run has copies of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..hashing import file_sha256
from .template import shipped

_SETTINGS = ("rubric", "template", "votes", "pairs", "topics", "documents")
"""Settings of operators and judges that name a file, or several."""
_LISTED = ("topics",)
"""Those of them that are no files where they are a list."""


def located(data: Any, base: Path) -> Any:
    """Return the data of steps with whole paths for what lies in the recipe's folder."""
    return _changed(data, base, str)


def written(data: Any, base: Path) -> Any:
    """Return the data of steps as a recipe in the folder would write it."""
    folder = base.resolve()

    def as_written(path: Path) -> str:
        inside = path.is_relative_to(folder)
        return path.relative_to(folder).as_posix() if inside else str(path)

    return _changed(data, base, as_written)


def hashed(data: Any, base: Path) -> Any:
    """Return the data of steps with what is in their files for where these lie."""
    return _changed(data, base, file_sha256)


def named(data: Any, base: Path) -> list[Path]:
    """Return every file that steps read, each once."""
    found: dict[Path, None] = {}

    def note(path: Path) -> str:
        found[path] = None
        return str(path)

    _changed(data, base, note)
    return list(found)


def moved(data: Any, base: Path, targets: Mapping[Path, str]) -> Any:
    """Return the data of steps with other paths for some of their files."""
    return _changed(data, base, lambda path: targets.get(path, str(path)))


def _changed(data: Any, base: Path, change: Callable[[Path], str], key: str = "") -> Any:
    """Rebuild plain data with each file's path changed; what is no plain data stays as it is."""
    if isinstance(data, Mapping):
        # In a stage's `set:` the setting is the end of a path: `critique.rubric`.
        return {k: _changed(v, base, change, str(k).rpartition(".")[2]) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_changed(item, base, change, "" if key in _LISTED else key) for item in data]
    if key not in _SETTINGS or not isinstance(data, str) or data in shipped():
        return data
    path = (base / Path(data).expanduser()).resolve()
    return change(path) if path.is_file() else data
