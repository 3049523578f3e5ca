"""Rows to nouns and back: prompts and completions as the loop uses them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ..hashing import row_id
from ..types import Completion, FinishReason, Message, Prompt, Split
from .sources import NAMED
from .store import Row, Rows, Store, content, now

_DETAILS = ("verify", "answer", "reference", "privileged")
IMPORTED = "redistill:imported"
"""Tag of a prompt that came with feedback: no round samples it, so that an import moves no prompt."""
PROPOSING = "redistill:proposing"
"""Tag of what a role is asked in a `propose` step: its answer is a prompt, and nothing to train on."""


def prompt_id(messages: Sequence[Message], details: Mapping[str, Any]) -> str:
    """Return the id of a prompt: of its turns, and of what its checker needs."""
    return row_id(
        "prompt",
        messages=[m.as_dict() for m in messages],
        details={key: details.get(key) for key in _DETAILS},
    )


def messages_text(messages: Sequence[Message]) -> str:
    """Return the turns of a prompt as they are stored."""
    return json.dumps([m.as_dict() for m in messages])


def details_text(details: Mapping[str, Any]) -> str:
    """Return what a prompt's checker needs as it is stored."""
    return json.dumps({key: details.get(key) for key in _DETAILS})


def prompt_rows(prompts: Iterable[Prompt]) -> Rows:
    """Return the rows of all prompts; they belong to round 0."""
    rows: dict[str, list[Row]] = {"prompt": [], "content": []}
    places: dict[str, int] = {}
    for prompt in prompts:
        place = places.setdefault(prompt.split, 0)
        places[prompt.split] += 1
        row, texts = prompt_row(prompt, 0, place)
        rows["prompt"].append(row)
        rows["content"] += texts
    return rows


def prompt_row(prompt: Prompt, round_: int, place: int) -> tuple[Row, list[Row]]:
    """Return the row of a prompt at a place of its split, and those of its texts."""
    messages = content(messages_text(prompt.messages), round_)
    details = content(details_text({k: getattr(prompt, k) for k in _DETAILS}), round_)
    row = {
        "id": prompt.id,
        "round": round_,
        "split": prompt.split,
        "position": place,
        "messages_hash": messages["hash"],
        "details_hash": details["hash"],
        "tags": list(prompt.tags),
        "source": prompt.source,
        "licence": prompt.licence,
        "created_at": now(),
    }
    return row, [messages, details]


def read_prompts(store: Store, split: Split) -> list[Prompt]:
    """Return the prompts of a split in their planned order, without those that were imported or proposed."""
    rows = store.rows(
        f"{_PROMPTS} WHERE p.split = ? AND p.round = 0 AND NOT list_contains(p.tags, ?) ORDER BY p.position",
        [split, IMPORTED],
    )
    return [prompt_of(row) for row in rows]


def find_prompts(store: Store, ids: Iterable[str]) -> dict[str, Prompt]:
    """Return prompts by id, of any split, imported or not."""
    rows = store.rows(f"{_PROMPTS} WHERE list_contains(?::UUID[], p.id)", [sorted(set(ids))])
    return {row["id"]: prompt_of(row) for row in rows}


_PROMPTS = """
SELECT p.id::VARCHAR AS id, p.split, p.tags, p.source, p.licence, m.text AS messages, d.text AS details
FROM prompt p
JOIN content m ON m.hash = p.messages_hash AND m.round = p.round
JOIN content d ON d.hash = p.details_hash AND d.round = p.round
"""


def prompt_of(row: Row) -> Prompt:
    """Return the prompt of a row that has its `messages` and `details` as they are stored."""
    details: dict[str, Any] = json.loads(row["details"])
    return Prompt(
        id=row["id"],
        messages=tuple(Message(m["role"], m["content"]) for m in json.loads(row["messages"])),
        split=row["split"],
        tags=tuple(row["tags"]),
        source=row["source"],
        licence=row["licence"],
        **details,
    )


def read_completions(store: Store, round_: int, steps: Sequence[str]) -> list[Completion]:
    """Return the completions of some steps of a round, ordered by id; of a select step those that it kept.

    An imported one has a text, and neither tokens nor a revision: those are empty.
    """
    return _completions(store, NAMED, {"round": round_, "steps": list(steps)})


def find_completions(store: Store, ids: Sequence[str]) -> dict[str, Completion]:
    """Return completions of any round by id."""
    return {
        completion.id: completion
        for round_ in rounds_of(store, ids)
        for completion in _completions(
            store, "c.id IN (SELECT unnest($ids::UUID[]))", {"round": round_, "ids": list(ids)}
        )
    }


def rounds_of(store: Store, ids: Iterable[str]) -> list[int]:
    """Return the rounds of completions; texts and tokens are read by round, so that others' are passed over."""
    rows = store.rows(
        "SELECT DISTINCT round FROM completion WHERE id IN (SELECT unnest(?::UUID[])) ORDER BY round",
        [list(ids)],
    )
    return [row["round"] for row in rows]


def _completions(store: Store, which: str, bound: Mapping[str, Any]) -> list[Completion]:
    rows = store.rows(
        f"""
        SELECT c.id::VARCHAR AS id, c.prompt_id::VARCHAR AS prompt_id, a.text, t.token_ids, t.logprobs,
               c.finish_reason, c.revision
        FROM completion c
        JOIN content a ON a.hash = c.text_hash AND a.round = c.round
        LEFT JOIN completion_tokens t ON t.completion_id = c.id AND t.round = c.round
        WHERE c.round = $round AND {which} ORDER BY c.id
        """,  # noqa: S608 - our words
        dict(bound),
    )
    return [
        Completion(
            id=row["id"],
            prompt_id=row["prompt_id"],
            text=row["text"],
            token_ids=tuple(row["token_ids"] or ()),
            logprobs=tuple(row["logprobs"] or ()),
            finish_reason=cast("FinishReason", row["finish_reason"]),
            revision=row["revision"] or "",
        )
        for row in rows
    ]


def committed(store: Store) -> int:
    """Return how many chunks stand in the ledger."""
    return int(store.rows("SELECT count(*) AS n FROM write_batch")[0]["n"])


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


def read_critiques(store: Store, round_: int) -> dict[str, list[tuple[str, str]]]:
    """Return the critiques of a round by completion id: (words, judgement id), the earliest first."""
    rows = store.rows(
        """
        SELECT j.id::VARCHAR AS id, j.completion_id::VARCHAR AS completion_id, c.text
        FROM judgement j JOIN content c ON c.hash = j.text_hash AND c.round = j.round
        WHERE j.round = ? AND j.mode = 'critique' AND j.status = 'ok'
        ORDER BY j.completion_id, j.created_at, j.id
        """,
        [round_],
    )
    return _by_completion(rows)


def read_failures(store: Store, round_: int) -> dict[str, list[tuple[str, str]]]:
    """Return what checks each completion of a round has failed, by completion id: (names, judgement id)."""
    rows = store.rows(
        """
        SELECT j.id::VARCHAR AS id, j.completion_id::VARCHAR AS completion_id, j.parts
        FROM judgement j
        WHERE j.round = ? AND j.mode = 'score' AND j.aspect = '' AND j.status = 'ok' AND j.value < 1
          AND j.parts <> '{}'
        ORDER BY j.completion_id, j.created_at, j.id
        """,
        [round_],
    )
    for row in rows:
        parts: dict[str, bool] = json.loads(row["parts"])
        row["text"] = ", ".join(name for name, held in parts.items() if not held)
    return _by_completion([row for row in rows if row["text"]])


def _by_completion(rows: Iterable[Row]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        found.setdefault(row["completion_id"], []).append((row["text"], row["id"]))
    return found
