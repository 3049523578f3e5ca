"""Plain files of one kind of feedback each, as people write them: JSONL, or CSV with a header."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...errors import Problem
from ..format import (
    Kind,
    Lines,
    Read,
    Record,
    Unreadable,
    answer_of,
    jsonl,
    optional_text,
    prompt_of,
    read_row,
    shown,
)
from ..text import storable

_YES = {"true": 1.0, "1": 1.0, "yes": 1.0, "up": 1.0}
_NO = {"false": 0.0, "0": 0.0, "no": 0.0, "down": 0.0}


class Plain(Lines):
    """Base: the columns `author`, `remark`, `source` and `licence` may stand in every row."""

    writes: ClassVar[Sequence[Kind]] = ()

    def read(self, file: Path) -> Read:
        """Yield the records of a JSONL file, or of a CSV file by its ending."""
        rows = csv_rows(file) if file.suffix.lower() == ".csv" else jsonl(file)
        for number, row in rows:
            yield from read_row(self.records, row, number, file)

    def records(self, row: dict[str, Any]) -> Iterable[Record]:
        """Return the record of one row."""
        about = {k: optional_text(row, k) for k in ("author", "remark", "source", "licence")}
        asked = row.get("messages") if "messages" in row else row.get("prompt")
        return [self.record(row, {"messages": prompt_of(asked, "prompt"), **about})]

    def record(self, row: dict[str, Any], about: dict[str, Any]) -> Record:
        """Return the record of one row; `about` is what all kinds share."""
        raise NotImplementedError


class Preference(Plain):
    """JSONL or CSV: prompt, chosen, rejected.

    `messages` may stand for `prompt` in JSONL. Optional: `author`, `remark`, `source`, `licence`.
    """

    name = "preference"
    reads = ("preference",)

    def record(self, row: dict[str, Any], about: dict[str, Any]) -> Record:
        """Return the record of one row."""
        chosen, rejected = (answer_of(row.get(key), key) for key in ("chosen", "rejected"))
        return Record("preference", text=chosen, other=rejected, **about)


class Rating(Plain):
    """JSONL or CSV: prompt, response, rating.

    Say the scale with `--scale LOW HIGH`; without it, ratings are from 0 to 1.

    Optional: `aspect`, `author`, `remark`, `source`, `licence`.
    """

    name = "rating"
    reads = ("rating",)

    def record(self, row: dict[str, Any], about: dict[str, Any]) -> Record:
        """Return the record of one row."""
        rating = row.get("rating")
        try:
            raw = float("" if isinstance(rating, bool) or rating is None else rating)
        except (TypeError, ValueError) as error:
            raise Unreadable(f"rating is {shown(rating)}", "a number is wanted") from error
        text = answer_of(row.get("response"), "response")
        aspect = optional_text(row, "aspect") or ""
        return Record("rating", text=text, raw=raw, aspect=aspect, **about)


class Demonstration(Plain):
    """JSONL or CSV: prompt, response.

    Optional: `author`, `remark`, `source`, `licence`.
    """

    name = "demonstration"
    reads = ("demonstration",)

    def record(self, row: dict[str, Any], about: dict[str, Any]) -> Record:
        """Return the record of one row."""
        return Record("demonstration", text=answer_of(row.get("response"), "response"), **about)


class Thumbs(Plain):
    """JSONL or CSV: prompt, response, thumb.

    A thumb is true or false, up or down, 1 or 0.

    Optional: `author`, `remark`, `source`, `licence`.
    """

    name = "thumbs"
    reads = ("thumbs",)

    def record(self, row: dict[str, Any], about: dict[str, Any]) -> Record:
        """Return the record of one row."""
        value = (_YES | _NO).get(str(row.get("thumb")).strip().lower())
        if value is None:
            raise Unreadable(f"thumb is {shown(row.get('thumb'))}", "true or false, up or down")
        text = answer_of(row.get("response"), "response")
        return Record("thumbs", text=text, value=value, **about)


def csv_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """Yield (line, row or problem) of a CSV file with a header, UTF-8; a cell may hold newlines."""
    csv.field_size_limit(min(sys.maxsize, 4 << 20))
    with file.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines, strict=True)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, Problem(f"{file.name}:{reader.line_num}", f"no CSV: {error}")
                return
            if row is None:
                return
            yield reader.line_num, _whole(row, f"{file.name}:{reader.line_num}")


def _whole(row: dict[str, Any], where: str) -> dict[str, Any] | Problem:
    if None in row or None in row.values():
        return Problem(where, "has more or fewer cells than the header", "quote cells with commas")
    if any(storable(cell) != cell for cell in row.values()):
        return Problem(where, "no UTF-8", "save it as UTF-8")
    return {
        key: cell
        for key, cell in row.items()
        if cell or key not in ("author", "remark", "aspect", "source", "licence")
    }
