"""The files beside a store that may spell a text: jobs, inputs, exports, logs, pages, old copies."""

from __future__ import annotations

import hashlib
import html
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import EnvironmentProblem
from .backup import GRAPH, write_whole
from .blanked import SEARCHED, SIDE, without
from .store import FILE, SNAPSHOT

if TYPE_CHECKING:
    from .forget import Forgetting

FORGOTTEN: dict[str, Any] = {"forgotten": True}
"""What stands in a prompts file in place of a row that was forgotten."""
WAS = ".forgotten"
"""Ending of the file that says which hash a prompts file had before rows of it were forgotten."""
PAGE = "report.html"
_TEXT = (".log", ".json", ".csv", ".txt", ".html", ".md", ".yaml")
_KEPT = (FILE, SNAPSHOT, ".lock", ".lock.owner")


def clean_files(folder: Path, plan: Forgetting) -> tuple[list[str], list[str]]:
    """Take the texts out of every file of a run but its store.

    Returns:
        the files that were changed or removed, and those that still hold one of the texts; relative.

    Raises:
        EnvironmentProblem: a file cannot be written; each one is whole.
    """
    patterns = _patterns(plan.sought)
    asked = _patterns([text for text in plan.asked if len(text) >= SEARCHED])
    changed: list[str] = []
    left: list[str] = []
    try:
        _remove_copies(folder, changed)
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if not _may_hold(file, name):
                continue
            before = file.stat().st_mtime_ns, file.stat().st_size
            _clean(file, name, plan, patterns)
            if not file.exists() or (file.stat().st_mtime_ns, file.stat().st_size) != before:
                changed.append(name)
            # An answer that happens to stand in a prompts file is that prompt's, which is kept.
            looked_for = asked if name.startswith("inputs/") else patterns
            if file.exists() and _holds(file, looked_for):
                left.append(name)
    except OSError as error:
        raise EnvironmentProblem(f"a file cannot be cleaned: {error}; do it again") from error
    return changed, left


def _remove_copies(folder: Path, changed: list[str]) -> None:
    """Remove copies of the store from before a migration, and what was left half written."""
    for file in [*folder.glob(f"{FILE}.bak-*"), *folder.glob("*.tmp"), *folder.glob(".*.tmp")]:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        changed.append(file.name)


def _may_hold(file: Path, name: str) -> bool:
    # Weights may remember a text, and never spell it; what made them is told by their rows.
    apart = name.startswith((f"{SIDE}/", "revisions/")) or name in _KEPT
    return file.is_file() and not file.is_symlink() and not apart


def _clean(file: Path, name: str, plan: Forgetting, patterns: Sequence[bytes]) -> None:
    if name.startswith("inputs/"):
        if plan.asked and file.suffix != WAS:
            _clean_prompts(file, set(plan.asked))
    elif file.suffix == ".parquet":
        _clean_parquet(file, plan)
    elif file.suffix == ".jsonl":
        _clean_lines(file, plan)
    elif name == GRAPH or name.startswith(f"{GRAPH}-"):
        # The ledger alone says what is done; a checkpoint that spells a text is not needed.
        if any(_holds(part, patterns) for part in file.parent.glob(f"{GRAPH}*")):
            for part in file.parent.glob(f"{GRAPH}*"):
                part.unlink()
    elif file.suffix in _TEXT or name == PAGE:
        data = file.read_bytes()
        new = data
        for pattern in patterns:
            new = new.replace(pattern, b"")
        if new != data:
            write_whole(file, new)


def _patterns(words: Sequence[str]) -> list[bytes]:
    """Return how the words may be spelled in a text file, longest first."""
    found: set[str] = set()
    for word in words:
        found |= {word, word.strip(), html.escape(word), html.escape(word, quote=False)}
        found |= {json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1]}
        found |= {repr(word)[1:-1]}
    spelled = {word.encode("utf-8", "replace") for word in found if len(word) >= SEARCHED}
    return sorted(spelled, key=lambda word: (-len(word), word))


def _holds(file: Path, patterns: Sequence[bytes]) -> bool:
    if not file.is_file():
        return False
    data = file.read_bytes()
    return any(pattern in data for pattern in patterns)


# -- rows in files


def _clean_prompts(file: Path, asked: set[str]) -> None:
    """Replace the rows of forgotten prompts, and keep the hash that the file had: ids come from it."""
    data = file.read_bytes()
    lines = [_prompt_line(line, asked) for line in data.split(b"\n")]
    new = b"\n".join(lines)
    if new == data:
        return
    note = file.with_name(file.name + WAS)
    known = json.loads(note.read_bytes()) if note.exists() else {}
    digest = hashlib.sha256(data).hexdigest()
    was = known["was"] if known.get("is") == digest else digest
    told = {"was": was, "is": hashlib.sha256(new).hexdigest()}
    write_whole(note, json.dumps(told).encode())
    write_whole(file, new)


def _prompt_line(line: bytes, forgotten: set[str]) -> bytes:
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if not isinstance(row, dict):
        return line
    asked = row.get("prompt") or [m.get("content") for m in row.get("messages") or [{}]][-1]
    return json.dumps(FORGOTTEN).encode() if asked in forgotten else line


def _clean_lines(file: Path, plan: Forgetting) -> None:
    data = file.read_bytes()
    scrub = _scrubber(plan)
    lines = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = None
        new = scrub(row) if isinstance(row, dict) else row
        lines.append(line if new == row else json.dumps(new, ensure_ascii=False).encode())
    if (joined := b"\n".join(lines)) != data:
        write_whole(file, joined)


def _clean_parquet(file: Path, plan: Forgetting) -> None:
    table = pq.read_table(file)
    scrub = _scrubber(plan)
    rows = table.to_pylist()
    new = [scrub(row) for row in rows]
    if new == rows:
        return
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(new, schema=table.schema), sink, compression="zstd")
    write_whole(file, sink.getvalue().to_pybytes())


def _scrubber(plan: Forgetting) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what takes the texts and token ids out of one row of a job or an export."""
    gone = {*plan.gone, *plan.prompts}
    exact = set(plan.words)
    words = plan.sought

    def scrub(row: dict[str, Any]) -> dict[str, Any]:
        if (parts := plan.training_rows.get(str(row.get("id")))) is not None:
            return {k: [] if _spells(k, parts) else without(v, words) for k, v in row.items()}
        named = any(str(v) in gone for k, v in row.items() if k == "id" or k.endswith("_id"))
        return {
            k: _emptied(v, exact, words) if named else without(v, words) for k, v in row.items()
        }

    return scrub


def _spells(column: str, parts: Sequence[str]) -> bool:
    """Whether a column of token ids in a job belongs to a part of its row that is forgotten."""
    if not column.endswith("_ids"):
        return False
    side = column.partition("_")[0]
    return (side if side in ("prompt", "rejected") else "completion") in parts


def _emptied(value: Any, exact: set[str], words: Sequence[str]) -> Any:
    """Return a value of a row that names something forgotten: token ids go, and so do its texts."""
    if isinstance(value, str):
        return "" if value in exact else without(value, words)
    if isinstance(value, list):
        numbers = value and all(isinstance(v, int | float) for v in value)
        return [] if numbers else [_emptied(v, exact, words) for v in value]
    if isinstance(value, dict):
        return {key: _emptied(inner, exact, words) for key, inner in value.items()}
    return value
