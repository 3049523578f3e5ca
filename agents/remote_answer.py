"""Answers of a role behind an address: the text alone, for a server says little of its tokens.

There is no `completion_tokens` row and no rendered prompt. Where such an answer trains, its text is encoded
with the student's tokenizer, and the training row says so: `tokens_from: encoded`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..hashing import content_hash, row_id, row_seed
from ..policies.calls import Call, Caller, Outcome
from ..policies.policy import Sampling
from ..store.store import Row, content, now
from ..types import Completion
from .answer import Answered, Asked, completion_id, facts
from .operator import Turn
from .roles import reached
from .speakers import remote


async def answer_remotely(
    turn: Turn, role: str, asked: Sequence[Asked], sampling: Sampling
) -> Answered:
    """Let a role behind an address answer the prompts, and return the rows that say so.

    What could not be answered is an event with its reason, and the others go on.

    Raises:
        TryLater: the budget would not last, or the server is away.
        BadInput: the server refuses every call, because of its key, model or address.
    """
    staging, client = turn.run.cast.staging(role), turn.run.cast.servers.client(role)
    ids = [completion_id(turn, role, a, _who(client), sampling) for a in asked]
    calls = [
        Call((*staging.stage(a.prompt), *a.told), sampling, row_seed(identifier))
        for a, identifier in zip(asked, ids, strict=True)
    ]
    outcomes = await remote(turn).ask(role, calls, "sample")
    rows: dict[str, list[Row]] = {"completion": [], "content": [], "event": []}
    completions = []
    for a, identifier, said in zip(asked, ids, outcomes, strict=True):
        if said.status != "ok":
            rows["event"].append(_unanswered(turn, a, said))
            continue
        text = content(said.text, turn.round)
        row = facts(turn, role, a, sampling, None) | _payload(said)
        row |= {"id": identifier, "text_hash": text["hash"]}
        rows["completion"].append(row)
        rows["content"].append(text)
        completions.append((a.prompt, _completion(identifier, a, said)))
    if rows["event"]:
        turn.run.progress.note(
            f"round {turn.round} {turn.step}: {len(rows['event'])} not answered, left out"
        )
    return Answered(rows, completions)


def _who(client: Caller) -> str:
    """Return what stands for weights that nobody here can hash."""
    return f"{reached(client.address.url)} {client.address.model}"


def _payload(said: Outcome) -> Row:
    reason = _finish(said)
    return {
        "revision": None,
        "model": said.usage.model,
        "payload_hash": content_hash([said.text, reason]),
        "finish_reason": reason,
        "tokens": said.usage.tokens_out or None,
        "seconds": said.seconds,
    }


def _finish(said: Outcome) -> str:
    return "length" if said.finish == "length" else "stop"


def _completion(identifier: str, asked: Asked, said: Outcome) -> Completion:
    return Completion(
        id=identifier,
        prompt_id=asked.prompt.id,
        text=said.text,
        token_ids=(),
        logprobs=(),
        finish_reason="length" if _finish(said) == "length" else "stop",
        revision="",
    )


def _unanswered(turn: Turn, asked: Asked, said: Outcome) -> Row:
    detail = {
        "prompt_id": asked.prompt.id,
        "parent_id": asked.parent_id,
        "slot": asked.slot,
        "status": said.status,
        "kind": said.kind,
        "reason": said.text[:500],
    }
    request = {key: detail[key] for key in ("prompt_id", "parent_id", "slot")}
    critique = asked.critique_id
    return {
        "id": row_id(
            "event",
            kind="unanswered",
            round=turn.round,
            step=turn.step,
            critique=critique,
            **request,
        ),
        "round": turn.round,
        "step": turn.step,
        "kind": "unanswered",
        "detail": json.dumps(detail),
        "created_at": now(),
    }
