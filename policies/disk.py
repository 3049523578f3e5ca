"""Room on a disk, asked for before it is used: a download that ends half-way has cost its hours."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EnvironmentProblem


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that will be written."""

    folder: Path
    """Where; it need not be there yet."""
    size: int
    what: str
    """In words, for the message."""
    moved_by: str
    """The environment variable that puts it elsewhere."""


def require(name: str, needs: Sequence[Need]) -> None:
    """Refuse to begin what would fill a disk; what lies on one disk is added up.

    Raises:
        EnvironmentProblem: says how much is needed, where, and how much is free.
    """
    disks: dict[int, list[Need]] = defaultdict(list)
    for need in needs:
        disks[existing(need.folder).stat().st_dev].append(need)
    for together in disks.values():
        total = sum(need.size for need in together)
        free = shutil.disk_usage(existing(together[0].folder)).free
        if total > free:
            parts = " and ".join(f"{readable(n.size)} {n.what} in {n.folder}" for n in together)
            variables = " or ".join(dict.fromkeys(need.moved_by for need in together))
            raise EnvironmentProblem(
                f"{name}: needs {parts}, and {readable(free)} are free there; "
                f"make room, or name another disk by {variables}"
            )


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    path = path.expanduser().resolve()
    while not path.exists():
        path = path.parent
    return path


def readable(count: float) -> str:
    """Return bytes in the unit that people would use."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
