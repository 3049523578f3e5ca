"""What TRL trains on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..format import (
    Kind,
    Lines,
    Record,
    Unreadable,
    answer_of,
    as_dicts,
    prompt_of,
    said,
    turns_of,
)


class TRL(Lines):
    """Conversational JSONL for the trainers of TRL.

    Pairs (DPOTrainer, RewardTrainer): `{"prompt": [turns], "chosen": [answer], "rejected": [answer]}`,
    the prompt is not repeated inside the answers. Selections (SFTTrainer): `{"prompt": [turns],
    "completion": [answer]}`, whose loss is on the completion alone. Thumbs (KTOTrainer): the same with
    `"label": true`.

    Reads these, the same with plain text in place of turns, `{"messages": [...]}`, and pairs whose
    prompt stands inside both answers.
    """

    name = "trl"
    writes = ("preference", "demonstration", "thumbs")
    reads = ("preference", "demonstration", "thumbs")

    def row(self, record: Record, kind: Kind) -> dict[str, Any]:
        """Return the row of one record."""
        prompt = {"prompt": as_dicts(record.messages)}
        if kind == "preference":
            return prompt | {"chosen": [said(record.text)], "rejected": [said(record.other or "")]}
        answer: dict[str, Any] = {"completion": [said(record.text)]}
        if kind == "thumbs":
            answer["label"] = record.value == 1
        return prompt | answer

    def records(self, row: dict[str, Any]) -> Iterable[Record]:
        """Return the record of one row."""
        if "chosen" in row:
            return [self._pair(row)]
        if "messages" in row:
            turns = turns_of(row["messages"], "messages")
            asked, last = turns[:-1], turns[-1]
            if not asked or asked[-1].role != "user" or last.role != "assistant":
                raise Unreadable("messages must end with a user's turn and an assistant's")
            return [Record("demonstration", asked, last.content)]
        if "completion" not in row:
            raise Unreadable(
                f"has the keys {', '.join(row) or 'of nothing'}",
                "prompt with chosen and rejected, or with completion",
            )
        asked, text = (
            prompt_of(row.get("prompt"), "prompt"),
            answer_of(row["completion"], "completion"),
        )
        if "label" not in row:
            return [Record("demonstration", asked, text)]
        if not isinstance(row["label"], bool):
            raise Unreadable(f"label must be true or false, not {row['label']!r}")
        return [Record("thumbs", asked, text, value=float(row["label"]))]

    def _pair(self, row: dict[str, Any]) -> Record:
        if "prompt" in row:
            asked = prompt_of(row["prompt"], "prompt")
            chosen, rejected = (answer_of(row.get(k), k) for k in ("chosen", "rejected"))
            return Record("preference", asked, chosen, rejected)
        return implicit_pair(row)


def implicit_pair(row: dict[str, Any]) -> Record:
    """Read a pair whose prompt stands inside both answers: all turns but the last are the prompt."""
    chosen, rejected = (turns_of(row.get(key), key) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Unreadable("chosen and rejected do not answer the same turns")
    asked = prompt_of(as_dicts(chosen[:-1]), "chosen")
    last, other = (answer_of(turns[-1].as_dict(), "an answer") for turns in (chosen, rejected))
    return Record("preference", asked, last, other)
