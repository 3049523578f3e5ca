"""What was proposed, read back: prompts by the step that proposed them, and all that a new one is held against."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..types import Completion, Prompt
from .contamination import GUARDED, asked_text, guarded_texts
from .duplicates import Guarded
from .facts import PROPOSING, find_completions, find_prompts
from .store import Store

# What was forgotten is nothing to show, and nothing can be like it.
_KEPT = """
SELECT x.prompt_id::VARCHAR AS id FROM proposal x
JOIN prompt p ON p.id = x.prompt_id AND p.round = x.round
JOIN content m ON m.hash = p.messages_hash AND m.round = p.round AND m.forgotten_at IS NULL
"""
_KNOWN = """
SELECT p.id::VARCHAR AS id, m.text AS messages
FROM prompt p JOIN content m ON m.hash = p.messages_hash AND m.round = p.round
WHERE p.split = 'train' AND m.forgotten_at IS NULL AND NOT list_contains(p.tags, ?)
ORDER BY p.round, p.position, p.id
"""
# The prompts that a select step's answers are to, each where its first answer stands.
_SELECTED = """
SELECT prompt_id::VARCHAR AS id FROM selection WHERE round = ? AND step = ?
GROUP BY prompt_id ORDER BY min(position)
"""


def proposed(store: Store, round_: int, step: str) -> list[Prompt]:
    """Return the prompts that a step of a round has proposed and kept, in their planned order."""
    rows = store.rows(
        f"{_KEPT} WHERE x.round = ? AND x.step = ? ORDER BY x.position", [round_, step]
    )
    return _in_order(store, [row["id"] for row in rows])


def proposed_before(store: Store, round_: int, step: str) -> list[Prompt]:
    """Return the prompts that a step has proposed and kept in earlier rounds, the oldest first."""
    rows = store.rows(
        f"{_KEPT} WHERE x.round < ? AND x.step = ? ORDER BY x.round, x.position", [round_, step]
    )
    return _in_order(store, [row["id"] for row in rows])


def selected(store: Store, round_: int, step: str) -> list[Prompt]:
    """Return the prompts of the answers that a select step of a round has kept, each once."""
    return _in_order(store, [row["id"] for row in store.rows(_SELECTED, [round_, step])])


def selected_answers(store: Store, round_: int, step: str) -> list[tuple[Prompt, Completion]]:
    """Return the answers that a select step of a round has kept, of whatever round, with their prompts."""
    rows = store.rows(
        "SELECT s.prompt_id::VARCHAR AS asked, c.id::VARCHAR AS said "
        "FROM selection s JOIN completion c ON c.id = s.completion_id "
        "WHERE s.round = ? AND s.step = ? ORDER BY s.position",
        [round_, step],
    )
    prompts = find_prompts(store, [row["asked"] for row in rows])
    answers = find_completions(store, [row["said"] for row in rows])
    return [(prompts[row["asked"]], answers[row["said"]]) for row in rows]


def verdicts(store: Store, round_: int, step: str) -> dict[str, int]:
    """Return how many proposals of a step of a round got which verdict, the most frequent first."""
    rows = store.rows(
        "SELECT verdict, count(*) AS n FROM proposal WHERE round = ? AND step = ? "
        "GROUP BY verdict ORDER BY n DESC, verdict",
        [round_, step],
    )
    return {row["verdict"]: row["n"] for row in rows}


def known_texts(store: Store) -> list[tuple[str, str]]:
    """Return (prompt.id, text) of every prompt that may train: given, imported and proposed."""
    rows = store.rows(_KNOWN, [PROPOSING])
    return [(row["id"], asked_text(json.loads(row["messages"]))) for row in rows]


def held_out(store: Store) -> list[Guarded]:
    """Return the held-out and test prompts, with what answers them."""
    return list(guarded_texts(store.rows(GUARDED)))


def next_place(store: Store) -> int:
    """Return the place of the next prompt of the train split."""
    [row] = store.rows(
        "SELECT coalesce(max(position) + 1, 0) AS n FROM prompt WHERE split = 'train'"
    )
    return int(row["n"])


def _in_order(store: Store, ids: Sequence[str]) -> list[Prompt]:
    found = find_prompts(store, ids)
    return [found[identifier] for identifier in ids]
