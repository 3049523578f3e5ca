"""The checker `code`: the program in an answer, run on cases whose right results it never sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from . import sandbox

_TOLERANCE = 1e-9
"""Relative; sums in another order differ by less."""


class _Settled(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Case(_Settled):
    """One case: arguments and what the function returns, or an input and what the program prints."""

    args: list[Any] | None = None
    result: Any = None
    input: str | None = None
    output: str | None = None


class Code(_Settled):
    """Cases that a program must pass, all of them."""

    function: str | None = None
    """Name of the function that is called; without it the program reads its input and prints."""
    cases: list[Case] = Field(min_length=1)
    seconds: int = Field(5, ge=1, le=60)
    """Processor time of one case."""
    memory_mb: int = Field(512, ge=64, le=8192)

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if self.function is not None and not self.function.isidentifier():
            raise ValueError(f"{self.function!r} names no function")
        wanted = {"args", "result"} if self.function is not None else {"input", "output"}
        if any(case.model_fields_set != wanted for case in self.cases):
            raise ValueError(f"each case has {' and '.join(sorted(wanted))}")
        return self


TOLD = "{function: name, cases: [{args: [...], result: ...}]} or {cases: [{input: text, output: text}]}"
"""How the arguments are told to people."""


def passes(text: str, wanted: Code) -> bool:
    """Whether the program in an answer is right in every case; each is a process of its own.

    Raises:
        sandbox.SandboxError: it could not be run.
    """
    program = program_of(text)
    wall = 3.0 * wanted.seconds + 2.0
    limits = sandbox.Limits(wanted.seconds, wall, wanted.memory_mb << 20)
    return all(_right(program, wanted.function, case, limits) for case in wanted.cases)


def _right(program: str, function: str | None, case: Case, limits: sandbox.Limits) -> bool:
    if function is None:
        found = sandbox.feed(program, case.input or "", limits)
        return (
            found.ok and isinstance(found.value, str) and _lines(found.value) == _lines(case.output)
        )
    found = sandbox.call(program, function, case.args or [], limits)
    return found.ok and equal(case.result, found.value)


def _lines(text: str | None) -> list[str]:
    """Return the lines without what cannot be seen at their ends and at the end of the text."""
    return [line.rstrip() for line in (text or "").rstrip().split("\n")]


def equal(wanted: Any, found: Any) -> bool:
    """Whether two JSON values are equal: a number is no truth value, and 2 is 2.0."""
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        if isinstance(wanted, int) and isinstance(found, int):
            return wanted == found
        return _near(wanted, found)
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return wanted.keys() == found.keys() and all(equal(v, found[k]) for k, v in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) == len(found) and all(map(equal, wanted, found))
    return type(wanted) is type(found) and bool(wanted == found)


def _near(wanted: float, found: float) -> bool:
    try:
        return math.isclose(wanted, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except OverflowError:  # a whole number that no float holds
        return False


def program_of(text: str) -> str:
    """Return the last fenced block of an answer, or the whole of it where there is none."""
    blocks: list[list[str]] = []
    fence = ""
    for line in text.split("\n"):
        stripped = line.strip()
        if not fence and stripped.startswith("```"):
            fence = "```"
            blocks.append([])
        elif fence and stripped == fence:
            fence = ""
        elif fence:
            blocks[-1].append(line)
    return "\n".join(blocks[-1]) if blocks else text
