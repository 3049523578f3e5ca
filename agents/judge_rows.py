"""What a reward model is trained on: pairs as two finished conversations, as the judge itself will read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..store.store import Row, now
from ..trainers.trainer import Trainer
from ..types import Message

JUDGES = "judges"
"""The folder of a run that holds the judges that were made of its rows."""

# The steps, none for those of all; and the round, 0 for those of all.
PAIRS = """
    SELECT p.id::VARCHAR AS id, p.prompt_id::VARCHAR AS prompt_id, p.chosen_id::VARCHAR AS chosen_id,
           p.rejected_id::VARCHAR AS rejected_id, p.weight, p.margin, p.probability,
           m.text AS messages, c.text AS chosen, r.text AS rejected
    FROM pair p
    JOIN prompt q ON q.id = p.prompt_id JOIN content m ON m.hash = q.messages_hash AND m.round = q.round
    JOIN completion cc ON cc.id = p.chosen_id JOIN content c ON c.hash = cc.text_hash AND c.round = cc.round
    JOIN completion rr ON rr.id = p.rejected_id JOIN content r ON r.hash = rr.text_hash AND r.round = rr.round
    WHERE p.split = 'train' AND (len($1) = 0 OR list_contains($1, p.step))
      AND ($2 = 0 OR p.round = $2)
      AND coalesce(m.forgotten_at, c.forgotten_at, r.forgotten_at) IS NULL
    -- A pair that later rounds replay is one pair.
    QUALIFY row_number() OVER (PARTITION BY p.step, p.chosen_id, p.rejected_id ORDER BY p.round, p.id) = 1
    ORDER BY p.round, p.id
"""


def conversations(start: Path, found: Sequence[Row]) -> list[dict[str, Any]]:
    """Render both conversations of each pair, cut where they part.

    Args:
        start: the folder of the weights that training begins from; its template is the judge's.
        found: rows of `PAIRS`.
    """
    import transformers

    from ..policies.chat import ChatCodec

    codec = ChatCodec(transformers.AutoTokenizer.from_pretrained(start, local_files_only=True))
    rows = []
    for row in found:
        asked = [Message(m["role"], m["content"]) for m in json.loads(row["messages"])]
        chosen, rejected = (
            list(codec.conversation((*asked, Message("assistant", row[side])), answered=True))
            for side in ("chosen", "rejected")
        )
        alike = sum(
            1 for _ in takewhile(lambda p: p[0] == p[1], zip(chosen, rejected, strict=False))
        )
        alike = min(alike, len(chosen) - 1, len(rejected) - 1)
        rows.append(
            {
                **{key: row[key] for key in ("id", "weight", "margin", "probability")},
                "prompt_ids": chosen[:alike],
                "chosen_ids": chosen[alike:],
                "rejected_ids": rejected[alike:],
                "ref_chosen_logp": None,
                "ref_rejected_logp": None,
                "gold_ids": None,
            }
        )
    return rows


def trained_event(
    place: Mapping[str, Any], trainer: Trainer, made: Mapping[str, Any], of: Mapping[str, Any]
) -> Row:
    """Return the event that says which judge was made of what.

    Args:
        place: `id`, `round` and `step` of the event.
        trainer: with its settings.
        made: `revision` of the judge, and the `rows` and `steps` of its training.
        of: what else there is to say of the rows.
    """
    detail = {
        "judge": f"{JUDGES}/{made['revision']}",
        "trainer": trainer.name,
        "settings": trainer.params(),
        "rows": made["rows"],
        "steps": made["steps"],
        **of,
    }
    told = {"kind": "judge_trained", "detail": json.dumps(detail), "created_at": now()}
    return {**place, **told}
