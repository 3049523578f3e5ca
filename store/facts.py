"""Rows to nouns and back: prompts and completions as the loop uses them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from ..types import Completion, FinishReason, Message, Prompt, Split
from .store import Row, Rows, Store, content, now

_DETAILS = ("verify", "answer", "reference", "privileged")


def prompt_rows(prompts: Iterable[Prompt]) -> Rows:
    """Return the rows of all prompts; they belong to round 0."""
    rows: dict[str, list[Row]] = {"prompt": [], "content": []}
    places: dict[str, int] = {}
    for prompt in prompts:
        messages = content(json.dumps([m.as_dict() for m in prompt.messages]), 0)
        details = content(json.dumps({k: getattr(prompt, k) for k in _DETAILS}), 0)
        place = places.setdefault(prompt.split, 0)
        places[prompt.split] += 1
        rows["content"] += [messages, details]
        rows["prompt"].append(
            {
                "id": prompt.id,
                "round": 0,
                "split": prompt.split,
                "position": place,
                "messages_hash": messages["hash"],
                "details_hash": details["hash"],
                "tags": list(prompt.tags),
                "source": prompt.source,
                "licence": prompt.licence,
                "created_at": now(),
            }
        )
    return rows


def read_prompts(store: Store, split: Split) -> list[Prompt]:
    """Return the prompts of a split in their planned order."""
    rows = store.rows(
        """
        SELECT p.id::VARCHAR AS id, p.tags, p.source, p.licence, m.text AS messages, d.text AS details
        FROM prompt p
        JOIN content m ON m.hash = p.messages_hash AND m.round = p.round
        JOIN content d ON d.hash = p.details_hash AND d.round = p.round
        WHERE p.split = ? ORDER BY p.position
        """,
        [split],
    )
    return [_prompt(row, split) for row in rows]


def _prompt(row: Row, split: Split) -> Prompt:
    details: dict[str, Any] = json.loads(row["details"])
    return Prompt(
        id=row["id"],
        messages=tuple(Message(m["role"], m["content"]) for m in json.loads(row["messages"])),
        split=split,
        tags=tuple(row["tags"]),
        source=row["source"],
        licence=row["licence"],
        **details,
    )


def read_completions(store: Store, round_: int, steps: Sequence[str]) -> list[Completion]:
    """Return the completions of some steps of a round, ordered by id."""
    rows = store.rows(
        """
        SELECT c.id::VARCHAR AS id, c.prompt_id::VARCHAR AS prompt_id, a.text, t.token_ids, t.logprobs,
               c.finish_reason, c.revision
        FROM completion c
        JOIN content a ON a.hash = c.text_hash AND a.round = c.round
        JOIN completion_tokens t ON t.completion_id = c.id AND t.round = c.round
        WHERE c.round = ? AND list_contains(?, c.step) ORDER BY c.id
        """,
        [round_, list(steps)],
    )
    return [
        Completion(
            id=row["id"],
            prompt_id=row["prompt_id"],
            text=row["text"],
            token_ids=tuple(row["token_ids"]),
            logprobs=tuple(row["logprobs"]),
            finish_reason=cast("FinishReason", row["finish_reason"]),
            revision=row["revision"],
        )
        for row in rows
    ]


def champion(store: Store) -> str:
    """Return the id of the revision that is champion: the last promoted one, or the initial student."""
    rows = store.rows(
        """
        SELECT coalesce(
            (SELECT challenger FROM decision WHERE decision = 'promoted' ORDER BY round DESC LIMIT 1),
            (SELECT student FROM run LIMIT 1)
        ) AS revision
        """
    )
    return cast("str", rows[0]["revision"])
