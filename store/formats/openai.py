"""Fine-tuning files of OpenAI, which Azure, Fireworks and Together take too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..format import Kind, Lines, Record, Unreadable, answer_of, as_dicts, prompt_of, said
from .trl import TRL


class OpenAI(Lines):
    """JSONL for OpenAI, Azure, Fireworks and Together.

    Pairs (preference fine-tuning): `{"input": {"messages": [turns]}, "preferred_output": [answer],
    "non_preferred_output": [answer]}`. Selections (supervised): `{"messages": [turns, answer]}`.

    Reads the same; rows with tools are refused.
    """

    name = "openai"
    writes = ("preference", "demonstration")
    reads = ("preference", "demonstration")

    def row(self, record: Record, kind: Kind) -> dict[str, Any]:
        """Return the row of one record."""
        if kind == "preference":
            return {
                "input": {"messages": as_dicts(record.messages)},
                "preferred_output": [said(record.text)],
                "non_preferred_output": [said(record.other or "")],
            }
        return {"messages": [*as_dicts(record.messages), said(record.text)]}

    def records(self, row: dict[str, Any]) -> Iterable[Record]:
        """Return the record of one row."""
        if "input" not in row:
            if "messages" not in row:
                raise Unreadable("has neither input nor messages")
            return TRL().records({"messages": row["messages"]})
        asked = row["input"]
        if not isinstance(asked, dict) or "messages" not in asked:
            raise Unreadable("input must be an object with messages")
        if asked.get("tools"):
            raise Unreadable("input has tools", "rows of text alone can be imported")
        preferred, other = (
            answer_of(row.get(key), key) for key in ("preferred_output", "non_preferred_output")
        )
        return [Record("preference", prompt_of(asked["messages"], "messages"), preferred, other)]
