"""What a run must not train on, and what of it its train prompts hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..types import Message
from .duplicates import SHARE, Contamination, Guarded
from .facts import PROPOSING
from .query import read_rows

GUARDED = """
SELECT p.id::VARCHAR AS id, p.split, m.text AS messages, d.text AS details
FROM prompt p JOIN content m ON m.hash = p.messages_hash AND m.round = p.round
LEFT JOIN content d ON d.hash = p.details_hash AND d.round = p.round
WHERE p.split <> 'train' AND m.forgotten_at IS NULL ORDER BY p.split, p.position
"""
_TRAIN = """
SELECT p.id::VARCHAR AS id, p.source, m.text AS messages,
       list(DISTINCT a.text) FILTER (c.role = 'imported') AS answers
FROM prompt p JOIN content m ON m.hash = p.messages_hash AND m.round = p.round
LEFT JOIN completion c ON c.prompt_id = p.id AND c.role = 'imported'
LEFT JOIN content a ON a.hash = c.text_hash AND a.round = c.round
WHERE p.split = 'train' AND m.forgotten_at IS NULL AND NOT list_contains(p.tags, ?)
GROUP BY p.id, p.source, m.text, p.round, p.position ORDER BY p.round, p.position
"""


def contamination(folder: Path, share: float = SHARE) -> dict[str, Any]:
    """Compare a run's train prompts and imported answers with its held-out and test prompts.

    Args:
        folder: the run's folder.
        share: share of a held-out text's n-grams from which it is reported, above 0; see `duplicates`.

    Raises:
        BadInput: there is no such run, or the share is none.
    """
    if not 0 < share <= 1:
        raise BadInput.at("--share", f"{share:g}", "above 0, at most 1")
    texts = list(guarded_texts(read_rows(folder, GUARDED)))
    index = Contamination(texts, share)
    train = read_rows(folder, _TRAIN, [PROPOSING])
    found = [
        {
            "prompt_id": row["id"],
            "prompt": asked,
            "source": row["source"],
            "of": hit.guarded.prompt_id,
            "split": hit.guarded.split,
            "part": hit.guarded.part,
            "text": hit.guarded.text,
            "share": round(hit.share, 4),
            "n": hit.n,
            "reason": hit.reason(),
        }
        for row in train
        for asked in [asked_text(json.loads(row["messages"]))]
        for hit in index.hits(asked, row["answers"] or ())
    ]
    return {
        "run": folder.name,
        "train_prompts": len(train),
        "guarded_prompts": len({text.prompt_id for text in texts}),
        "share": share,
        "contaminated": len({hit["prompt_id"] for hit in found}),
        "hits": found,
    }


def asked_text(messages: Sequence[Message | dict[str, str]]) -> str:
    """Return what was asked as one text, without the system prompt, which many rows share."""
    turns = [m.as_dict() if isinstance(m, Message) else m for m in messages]
    return "\n".join(turn["content"] for turn in turns if turn["role"] != "system")


def guarded_texts(rows: Iterable[dict[str, Any]]) -> Iterator[Guarded]:
    """Yield the texts that must not train, of rows of `GUARDED`: prompts, answers, references."""
    for row in rows:
        yield Guarded(row["id"], row["split"], "prompt", asked_text(json.loads(row["messages"])))
        details = json.loads(row["details"]) if row["details"] else {}
        for part in ("answer", "reference"):
            if details.get(part):
                yield Guarded(row["id"], row["split"], part, details[part])
