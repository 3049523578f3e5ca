"""The noun *format*: a shape of file in which feedback comes and goes.

A format turns *records* into a file and back. A record is one piece of feedback with its texts and
without ids, so that what a store exports another one can import. Ids, splits, duplicates and the run's
lock are none of its business: see `exports.py` and `imports.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from ..errors import BadInput, Problem
from ..types import Message
from .lines import json_line, json_row

Kind = Literal["preference", "demonstration", "thumbs", "rating"]
"""What a record says: this answer before that one; do it so; yes or no; how good on a scale."""


@dataclass(frozen=True, slots=True)
class Record:
    """One piece of feedback, in no file's shape."""

    kind: Kind
    messages: tuple[Message, ...]
    """What was asked; ends with a user's turn."""
    text: str
    """The answer that it is about; the preferred one of two."""
    other: str | None = None
    """The answer that lost; exactly where the kind is `preference`."""
    value: float | None = None
    """Of `text`, in [0, 1]; 1 is thumbs up."""
    raw: float | None = None
    """The number as the file has it, on the file's own scale."""
    other_value: float | None = None
    """Of `other`, in [0, 1]."""
    aspect: str = ""
    """What a rating looked at; empty for the whole."""
    remark: str | None = None
    """Words that came with it: a rationale, a critique."""
    author: str | None = None
    judge: str | None = None
    model: str | None = None
    """Name of the model that answered."""
    source: str | None = None
    licence: str | None = None
    tags: tuple[str, ...] = ()
    label: Mapping[str, Any] | None = None
    """Of a pair: rule, margin, probability, weight; of a demonstration: weight."""
    origin: Mapping[str, Any] | None = None
    """Where the row stands in the store that wrote it: run, round, step and ids. Import ignores it."""


class Unreadable(ValueError):
    """A row is not in the format; carries what is wrong and a hint."""

    def __init__(self, what: str, hint: str = "") -> None:
        self.what, self.hint = what, hint
        super().__init__(what)


Read = Iterator[tuple[int, "Record | Problem"]]
"""Records by the line (from 1) on which they stand, and what is wrong with the other lines."""


class Format(Protocol):
    """A shape of file. The docstring is the manual page, its first line is listed."""

    name: ClassVar[str]
    writes: ClassVar[Sequence[Kind]]
    """Kinds that it can write."""
    reads: ClassVar[Sequence[Kind]]
    whole: ClassVar[bool]
    """Whether it keeps judge, rule and origin: then equal texts of two pairs are two rows."""

    def refuses(self, record: Record) -> str:
        """Return why the format cannot hold a record; empty where it can."""

    def write(self, records: Iterable[Record], kind: Kind, target: Path) -> None:
        """Write a file, or a folder, of records of one kind; `target` does not exist yet."""

    def read(self, file: Path) -> Read:
        """Yield what a file holds, line by line."""

    def note(self, target: Path, kind: Kind) -> str:
        """Return what the reader of the file must be told besides, to paste; often nothing."""


class Lines:
    """Base of the formats that are JSONL: one or more records make a row, a row makes records."""

    name: ClassVar[str]
    writes: ClassVar[Sequence[Kind]]
    reads: ClassVar[Sequence[Kind]]
    whole: ClassVar[bool] = False

    def refuses(self, record: Record) -> str:  # noqa: ARG002 - of the protocol
        """Return why the format cannot hold a record."""
        return ""

    def rows(self, records: Iterable[Record], kind: Kind) -> Iterator[dict[str, Any]]:
        """Yield the rows of the file."""
        for record in records:
            yield self.row(record, kind)

    def row(self, record: Record, kind: Kind) -> dict[str, Any]:
        """Return the row of one record."""
        raise NotImplementedError

    def records(self, row: dict[str, Any]) -> Iterable[Record]:
        """Return the records of one row.

        Raises:
            Unreadable: the row is not in the format.
        """
        raise NotImplementedError

    def note(self, target: Path, kind: Kind) -> str:  # noqa: ARG002
        """Return what the reader of the file must be told besides."""
        return ""

    def write(self, records: Iterable[Record], kind: Kind, target: Path) -> None:
        """Write the rows as JSONL."""
        with target.open("w", encoding="utf-8", newline="\n") as file:
            for row in self.rows(records, kind):
                file.write(json_line(row))
            file.flush()
            os.fsync(file.fileno())

    def read(self, file: Path) -> Read:
        """Yield the records of a JSONL file."""
        for number, row in jsonl(file):
            yield from read_row(self.records, row, number, file)


def jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """Yield (line, row or problem) of a JSONL file, one line in memory at a time."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, json_row(text, f"{file.name}:{number}")


def read_row(parse: Any, row: dict[str, Any] | Problem, number: int, file: Path) -> Read:
    """Yield the records of a row, or the one thing that is wrong with it."""
    if isinstance(row, Problem):
        yield number, row
        return
    try:
        found = list(parse(row))
    except Unreadable as error:
        yield number, Problem(f"{file.name}:{number}", error.what, error.hint)
        return
    for record in found:
        yield number, record


BUILTINS: dict[str, str] = {
    "axolotl": "axolotl:Axolotl",
    "datasets": "datasets:Datasets",
    "demonstration": "plain:Demonstration",
    "llama-factory": "llama_factory:LlamaFactory",
    "openai": "openai:OpenAI",
    "parquet": "parquet:Parquet",
    "preference": "plain:Preference",
    "rating": "plain:Rating",
    "thumbs": "plain:Thumbs",
    "trl": "trl:TRL",
    "ultrafeedback": "ultrafeedback:UltraFeedback",
}


def find_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in BUILTINS:
        raise BadInput.at(
            "--format", f"there is no format {name!r}", f"formats: {', '.join(BUILTINS)}"
        )
    module, _, cls = BUILTINS[name].partition(":")
    found: Format = getattr(import_module(f".formats.{module}", __package__), cls)()
    return found


# -- turns, in the shapes that most formats share

ROLES = ("system", "user", "assistant")


def as_dicts(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Return messages as `{role, content}` objects."""
    return [message.as_dict() for message in messages]


def said(text: str) -> dict[str, str]:
    """Return an answer as an assistant's turn."""
    return {"role": "assistant", "content": text}


def prompt_of(value: Any, key: str) -> tuple[Message, ...]:
    """Read what was asked: a text, or turns that end with a user's.

    Raises:
        Unreadable: it is neither.
    """
    if isinstance(value, str):
        if not value.strip():
            raise Unreadable(f"{key} is empty")
        return (Message("user", value),)
    messages = turns_of(value, key)
    if messages[-1].role != "user":
        raise Unreadable(
            f"{key} ends with a turn of {messages[-1].role}", "the user's must be last"
        )
    return messages


def turns_of(value: Any, key: str) -> tuple[Message, ...]:
    """Read a list of `{role, content}` turns.

    Raises:
        Unreadable: it is none, is empty, or has a role or content of another kind.
    """
    if not isinstance(value, list) or not value:
        raise Unreadable(f"{key} must be a list of turns, not {shown(value)}")
    return tuple(turn_of(turn, key) for turn in value)


def turn_of(value: Any, key: str) -> Message:
    """Read one `{role, content}` turn of text."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise Unreadable(f"{key}: a turn is {{role, content}} with text, not {shown(value)}")
    if value.get("role") not in ROLES:
        raise Unreadable(
            f"{key}: the role is {shown(value.get('role'))}", f"one of {', '.join(ROLES)}"
        )
    if strange := sorted(k for k in value.keys() - {"role", "content"} if value[k] is not None):
        raise Unreadable(f"{key}: a turn has {strange[0]!r}", "turns of text alone can be imported")
    return Message(value["role"], value["content"])


def answer_of(value: Any, key: str) -> str:
    """Read an answer: a text, an assistant's turn, or a list of that one turn.

    Raises:
        Unreadable: it is none of these.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise Unreadable(f"{key} must be one answer, not {shown(value)}")
    turn = turn_of(value, key)
    if turn.role != "assistant":
        raise Unreadable(f"{key} is a turn of {turn.role}", "the assistant's is wanted")
    return turn.content


def optional_text(row: Mapping[str, Any], key: str) -> str | None:
    """Read a text that may be absent or null."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise Unreadable(f"{key} must be text, not {shown(value)}")
    return value or None


def shown(value: Any) -> str:
    """Return a value in at most 60 characters, for a message."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
