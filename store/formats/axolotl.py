"""What axolotl trains on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..format import Kind, Lines, Record, answer_of, as_dicts, prompt_of, said
from .trl import TRL

_DPO = """\
rl: dpo
datasets:
  - path: {file}
    ds_type: json
    split: train
    type: chat_template.default
    field_messages: messages
    field_chosen: chosen
    field_rejected: rejected
    message_property_mappings: {{role: role, content: content}}"""
_SFT = """\
datasets:
  - path: {file}
    ds_type: json
    type: chat_template
    field_messages: messages
    message_property_mappings: {{role: role, content: content}}
    roles_to_train: [assistant]"""


class Axolotl(Lines):
    """JSONL for the chat templates of axolotl.

    Prints the lines that its YAML needs.

    Pairs (`type: chat_template.default`, `rl: dpo`): `{"messages": [turns], "chosen": answer,
    "rejected": answer}`, each answer one `{role, content}` turn. Selections (`type: chat_template`):
    `{"messages": [turns, answer]}`.

    Reads the same.
    """

    name = "axolotl"
    writes = ("preference", "demonstration")
    reads = ("preference", "demonstration")

    def row(self, record: Record, kind: Kind) -> dict[str, Any]:
        """Return the row of one record."""
        asked = as_dicts(record.messages)
        if kind == "demonstration":
            return {"messages": [*asked, said(record.text)]}
        return {
            "messages": asked,
            "chosen": said(record.text),
            "rejected": said(record.other or ""),
        }

    def records(self, row: dict[str, Any]) -> Iterable[Record]:
        """Return the record of one row."""
        if "chosen" not in row:
            return TRL().records({"messages": row.get("messages")})
        chosen, rejected = (answer_of(row.get(key), key) for key in ("chosen", "rejected"))
        asked = prompt_of(row.get("messages"), "messages")
        return [Record("preference", asked, chosen, rejected)]

    def note(self, target: Path, kind: Kind) -> str:
        """Return the lines for axolotl's YAML."""
        stanza = (_DPO if kind == "preference" else _SFT).format(file=target.as_posix())
        return f"add to axolotl's YAML:\n{stanza}"
