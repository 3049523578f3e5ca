"""From the first characters of an id to the row that it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput
from ..hashing import SHORT
from .query import read_rows

KINDS = (
    "completion",
    "prompt",
    "proposal",
    "rendered_prompt",
    "pair",
    "selection",
    "judgement",
    "training_row",
    "training_run",
    "evaluation",
    "decision",
    "feedback",
    "event",
)
"""Tables whose ids people meet; revisions and rounds are found too, their ids are no UUIDs."""
LEAST = 4
"""Fewest characters of a prefix."""
_SHOWN = 5
_ROUND = re.compile(r"round[ :=_-]?(\d+)")


@dataclass(frozen=True, slots=True)
class Found:
    """One row: which kind of thing it is, and its whole id."""

    kind: str
    """Name of its table."""
    id: str
    """UUID text, the hash of a revision, or the number of a round."""

    @property
    def short(self) -> str:
        """The id as people see it."""
        return short(self.id)


def short(identifier: str) -> str:
    """Return the first characters of an id; `redistill lineage` takes them."""
    return identifier[:SHORT]


def identify(run_folder: Path, prefix: str) -> Found:
    """Return the one row whose id begins so.

    Args:
        run_folder: the run's folder; its published snapshot is read.
        prefix: at least 4 characters, or a whole id, in either case, dashes or not; or `round 2`.

    Raises:
        BadInput: no id or more than one begins so, or there are too few characters.
    """
    asked = prefix.strip().lower()
    if number := _ROUND.fullmatch(asked):
        return _round(run_folder, int(number[1]))
    asked = asked.replace("-", "")
    if len(asked) < LEAST:
        raise BadInput.at("", f"{prefix!r} is too short for an id", f"give {LEAST} characters")
    sql, parameters = _search(asked)
    rows = read_rows(run_folder, sql, parameters)
    if len(rows) == 1:
        return Found(rows[0]["kind"], rows[0]["id"])
    if not rows:
        columns = "`SELECT short_id, prompt, answer FROM answers LIMIT 5`"
        raise BadInput.at(
            "", f"no id begins with {prefix!r}", f"`redistill query RUN` with {columns} shows some"
        )
    known = [f"{row['kind']} {_telling(row['id'], len(asked))}" for row in rows]
    rest = rows[0]["n"] - len(known)
    raise BadInput.at(
        "",
        f"{rows[0]['n']} ids begin with {prefix!r}: {', '.join(known)}"
        + (f" and {rest} more" if rest else ""),
        "give more characters",
    )


def _telling(identifier: str, given: int) -> str:
    """Return enough of an id to tell it from others that share the given characters."""
    return identifier[: max(SHORT, given + identifier[:given].count("-") + 4)]


def _search(asked: str) -> tuple[str, list[str]]:
    """Return one query over all kinds. UUIDs are compared as numbers, never turned into text row by row."""
    parts = ["SELECT 'revision' AS kind, id FROM revision WHERE starts_with(lower(id), ?)"]
    parameters = [asked]
    if re.fullmatch("[0-9a-f]{4,32}", asked):
        low, high = asked.ljust(32, "0"), asked.ljust(32, "f")
        for kind in KINDS:
            parts.append(
                f"SELECT '{kind}', id::VARCHAR FROM {kind} WHERE id BETWEEN ?::UUID AND ?::UUID"  # noqa: S608
            )
            parameters += [low, high]
    every = "\nUNION ".join(parts)
    counted = f"SELECT kind, id, count(*) OVER () AS n FROM ({every})"  # noqa: S608
    return f"{counted} ORDER BY kind, id LIMIT {_SHOWN}", parameters


def _round(run_folder: Path, number: int) -> Found:
    rows = read_rows(run_folder, "SELECT round FROM round ORDER BY round")
    known = [row["round"] for row in rows]
    if number in known:
        return Found("round", str(number))
    there = f"rounds: {', '.join(map(str, known))}" if known else "no round has begun"
    raise BadInput.at("", f"there is no round {number}", there)
