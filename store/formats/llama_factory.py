"""What LLaMA-Factory trains on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...types import Message
from ..format import Kind, Lines, Record, Unreadable, shown

_FROM = {"system": "system", "user": "human", "assistant": "gpt"}
_ROLE = {name: role for role, name in _FROM.items()}


class LlamaFactory(Lines):
    """JSONL for LLaMA-Factory.

    Prints the entry that its `dataset_info.json` needs; the kind is `sharegpt`.

    Pairs: `{"conversations": [{"from": "human", "value": ...}], "chosen": {"from": "gpt", ...},
    "rejected": {"from": "gpt", ...}}` with `"ranking": true` in the entry. Selections: the answer is
    the last turn of `conversations`. A system prompt is the first turn, from `system`.

    Its turns must alternate and a system prompt be first; export refuses what does not. Reads the same,
    with a `system` column too.
    """

    name = "llama-factory"
    writes = ("preference", "demonstration")
    reads = ("preference", "demonstration")

    def refuses(self, record: Record) -> str:
        """Return why the format cannot hold a record."""
        roles = [message.role for message in record.messages]
        roles = roles[1:] if roles[0] == "system" else roles
        wanted = ["user", "assistant"] * (len(roles) // 2) + ["user"]
        return "" if roles == wanted else "turns must alternate, with the system prompt first"

    def row(self, record: Record, kind: Kind) -> dict[str, Any]:
        """Return the row of one record."""
        asked = [{"from": _FROM[m.role], "value": m.content} for m in record.messages]
        answer = {"from": "gpt", "value": record.text}
        if kind == "demonstration":
            return {"conversations": [*asked, answer]}
        return {
            "conversations": asked,
            "chosen": answer,
            "rejected": {"from": "gpt", "value": record.other},
        }

    def records(self, row: dict[str, Any]) -> Iterable[Record]:
        """Return the record of one row."""
        turns = row.get("conversations")
        if not isinstance(turns, list) or not turns:
            raise Unreadable(f"conversations must be a list of turns, not {shown(turns)}")
        messages = [_turn(turn, "conversations") for turn in turns]
        if row.get("system"):
            messages.insert(0, Message("system", str(row["system"])))
        if "chosen" in row:
            answers = [_turn(row.get(key), key) for key in ("chosen", "rejected")]
            kind: Kind = "preference"
        else:
            answers, kind = [messages.pop()], "demonstration"
        if any(answer.role != "assistant" for answer in answers):
            raise Unreadable("an answer must be from gpt")
        if not messages or messages[-1].role != "user":
            raise Unreadable("what was asked must end with a turn from human")
        text, other = [answer.content for answer in answers] + [None] * (2 - len(answers))
        return [Record(kind, tuple(messages), text or "", other)]

    def note(self, target: Path, kind: Kind) -> str:
        """Return the entry for `dataset_info.json`."""
        columns = {"messages": "conversations"}
        if kind == "preference":
            columns |= {"chosen": "chosen", "rejected": "rejected"}
        entry: dict[str, Any] = {"file_name": target.name, "formatting": "sharegpt"}
        entry |= ({"ranking": True} if kind == "preference" else {}) | {"columns": columns}
        text = json.dumps({target.stem: entry}, indent=2)
        return f"add to LLaMA-Factory's data/dataset_info.json:\n{text}"


def _turn(value: Any, key: str) -> Message:
    good = isinstance(value, dict) and isinstance(value.get("value"), str)
    if not good or value.get("from") not in _ROLE:
        raise Unreadable(
            f"{key}: a turn is {{from, value}} of system, human or gpt, not {shown(value)}"
        )
    return Message(_ROLE[value["from"]], value["value"])
