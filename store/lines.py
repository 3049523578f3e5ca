"""One line of a JSONL file as a row that a store can hold, or what is wrong with it."""

from __future__ import annotations

import json
import math
from typing import Any

from ..errors import Problem
from .text import storable

LONGEST_LINE = 4 << 20
"""Bytes; a longer line is a file that is no JSONL."""


def json_row(line: bytes, where: str) -> dict[str, Any] | Problem:
    """Read one JSON object: UTF-8, each key once, no NaN, no half of a surrogate pair."""
    if len(line) > LONGEST_LINE:
        return Problem(where, f"the line has {len(line)} bytes", f"at most {LONGEST_LINE}")
    try:
        row = json.loads(
            line.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_once,
        )
        if b"\\u" in line and storable(text := json.dumps(row, ensure_ascii=False)) != text:
            return Problem(where, "holds half of a surrogate pair", "write the character itself")
    except UnicodeDecodeError as error:
        return Problem(where, f"no UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8")
    except json.JSONDecodeError as error:  # its own text would call each line "line 1"
        return Problem(where, f"no valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Problem(where, f"no valid JSON: {error}")
    if not isinstance(row, dict):
        return Problem(where, f"must be an object, not {type(row).__name__}")
    return row


def json_line(row: dict[str, Any]) -> str:
    """Return a row as one JSONL line with its newline.

    Characters beyond ASCII stay as they are, for people to read, but for those that some readers take
    for the end of a line (NEL, U+2028, U+2029).
    """
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    for character, escaped in _LINE_ENDS.items():
        text = text.replace(character, escaped)
    return text + "\n"


_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large a number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(k for k in names if names.count(k) > 1)!r} is given twice")
    return row
