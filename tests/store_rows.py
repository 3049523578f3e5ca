"""Rows for tests of the store, each whole and right unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from redistill.hashing import row_id
from redistill.store.store import Row, content

WHEN = datetime(2026, 11, 24, tzinfo=UTC)


def identifier(word: str) -> str:
    """Return the id that stands for a word."""
    return row_id("test", word=word)


def prompt(word: str = "p", split: str = "train", tags: tuple[str, ...] = ()) -> Row:
    """Make a prompt's row; its texts are the content rows of `[{...}]` and `{}`."""
    return {
        "id": identifier(word),
        "round": 0,
        "split": split,
        "position": 0,
        "messages_hash": content(messages(word), 0)["hash"],
        "details_hash": content("{}", 0)["hash"],
        "tags": list(tags),
        "source": "test",
        "licence": "Apache-2.0",
        "created_at": WHEN,
    }


def messages(word: str) -> str:
    """Return the messages of a prompt as they are stored."""
    return f'[{{"role": "user", "content": "{word}"}}]'


def completion(word: str, text: str, **changed: Any) -> Row:
    """Make a completion's row."""
    return {
        "id": identifier(word),
        "round": 1,
        "step": "sample",
        "split": "train",
        "prompt_id": identifier("p"),
        "rendered_prompt_id": identifier("rendered"),
        "parent_id": None,
        "slot": 0,
        "attempt": 0,
        "role": "student",
        "revision": "r0",
        "text_hash": content(text, 1)["hash"],
        "payload_hash": word,
        "finish_reason": "stop",
        "temperature": 0.7,
        "sampling": "{}",
        "tokens": len(text),
        "seconds": 0.1,
        "created_at": WHEN,
    } | changed


def judgement(word: str, value: float | None, **changed: Any) -> Row:
    """Make the row of what a judge said of the completion of a word."""
    return {
        "id": row_id("judgement", word=word, judge=changed.get("judge", "verifier")),
        "round": 1,
        "step": "score",
        "mode": "score",
        "aspect": "",
        "completion_id": identifier(word),
        "judge": "verifier",
        "judge_revision": "j",
        "attempt": 0,
        "status": "error" if value is None else "ok",
        "value": value,
        "raw": value,
        "parts": "{}",
        "text_hash": None,
        "seconds": 0.0,
        "created_at": WHEN,
    } | changed


def pair(**changed: Any) -> Row:
    """Make a pair's row."""
    return {
        "id": identifier("pair"),
        "round": 1,
        "step": "pair",
        "split": "train",
        "prompt_id": identifier("p"),
        "chosen_id": identifier("a"),
        "rejected_id": identifier("b"),
        "judge": "verifier",
        "rule": "best_worst",
        "margin": 1.0,
        "probability": 1.0,
        "weight": 1.0,
        "created_at": WHEN,
    } | changed


def event(word: str, detail: str = "{}", **changed: Any) -> Row:
    """Make an event's row."""
    return {
        "id": identifier(word),
        "round": 1,
        "step": "s",
        "kind": "test",
        "detail": detail,
        "created_at": WHEN,
    } | changed


def run(student: str = "r0") -> Row:
    """Make the run's row."""
    return {
        "id": identifier("run"),
        "name": "test",
        "key": "k",
        "seed": 0,
        "recipe": "{}",
        "student": student,
        "redistill_version": "0",
        "created_at": WHEN,
    }


def texts(*words: str, round_: int = 1) -> list[Row]:
    """Make content rows."""
    return [content(word, round_) for word in words]


def opening(prompts: Mapping[str, str]) -> dict[str, list[Row]]:
    """Return what stands in a store before its first round: the run, and prompts by word and split."""
    return {
        "run": [run()],
        "prompt": [prompt(word, split) for word, split in prompts.items()],
        "content": [content(messages(word), 0) for word in prompts] + [content("{}", 0)],
    }
