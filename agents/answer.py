"""Asking a policy and keeping all that it said: the one way in which completions come into the store."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..errors import BadInput
from ..hashing import content_hash, row_id, row_seed
from ..policies.policy import Generation, Policy, Request, Sampling
from ..store.store import Row, content, now
from ..types import Completion, Prompt
from .operator import Turn
from .roles import Staging


@dataclass(frozen=True, slots=True)
class Asked:
    """One completion that is planned."""

    prompt: Prompt
    slot: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The rows of a chunk of completions, and the completions themselves with their prompts."""

    rows: dict[str, list[Row]]
    completions: list[tuple[Prompt, Completion]]


async def answer(turn: Turn, role: str, asked: Sequence[Asked], sampling: Sampling) -> Answered:
    """Let a role answer the prompts, and return the rows that say so.

    A prompt that leaves no room for an answer is parked as an event, and the others go on.

    Raises:
        WrongWeights: the policy does not hold the weights that it was told to load.
        BadInput: `max_tokens` alone fills the context.
    """
    run = turn.run
    policy = await run.cast.speak(
        role, run.store, round=turn.round, champion=turn.champion, current=turn.current
    )
    rendered = _render(turn, run.cast.staging(role), policy, asked)
    room = policy.context_length - sampling.max_tokens
    if room <= 0:
        what = f"{sampling.max_tokens} leave no room for a prompt in {policy.context_length} tokens"
        raise BadInput.at(f"{turn.step}.max_tokens", what)
    fits = [a for a in asked if len(rendered[a.prompt.id]["token_ids"]) <= room]
    if len(fits) < len(asked):
        run.progress.note(
            f"round {turn.round} {turn.step}: {len(asked) - len(fits)} too long, left out"
        )
    ids = [_completion_id(turn, role, a, policy, sampling) for a in fits]
    requests = [
        Request(tuple(rendered[a.prompt.id]["token_ids"]), row_seed(identifier))
        for a, identifier in zip(fits, ids, strict=True)
    ]
    began = time.monotonic()
    generations = await run.cast.call(policy.generate, requests, sampling)
    seconds = (time.monotonic() - began) / max(1, len(fits))
    rows: dict[str, list[Row]] = {
        "rendered_prompt": [rendered[p] for p in dict.fromkeys(a.prompt.id for a in fits)],
        "completion": [],
        "completion_tokens": [],
        "content": [],
        "event": [_too_long(turn, a, room) for a in asked if a not in fits],
    }
    completions = []
    for a, identifier, generation in zip(fits, ids, generations, strict=True):
        text = content(generation.text, turn.round)
        facts = _facts(turn, role, a, sampling, rendered[a.prompt.id]["id"])
        facts |= {"id": identifier, "revision": policy.revision, "text_hash": text["hash"]}
        rows["completion"].append(facts | _payload(generation) | {"seconds": seconds})
        rows["completion_tokens"].append(_tokens(turn, identifier, generation))
        rows["content"].append(text)
        completions.append((a.prompt, _completion(identifier, a.prompt, policy, generation)))
    return Answered(rows, completions)


def _render(turn: Turn, staging: Staging, policy: Policy, asked: Sequence[Asked]) -> dict[str, Row]:
    """Render each prompt once, however many answers are wanted."""
    rendered: dict[str, Row] = {}
    for prompt in {a.prompt.id: a.prompt for a in asked}.values():
        rendered[prompt.id] = {
            "id": row_id(
                "rendered_prompt",
                round=turn.round,
                prompt=prompt.id,
                context=staging.digest,
                vocabulary=policy.vocabulary,
            ),
            "round": turn.round,
            "prompt_id": prompt.id,
            "context": staging.digest,
            "vocabulary": policy.vocabulary,
            "token_ids": list(policy.encode(staging.stage(prompt))),
            "created_at": now(),
        }
    return rendered


def _completion_id(turn: Turn, role: str, asked: Asked, policy: Policy, sampling: Sampling) -> str:
    return row_id(
        "completion",
        run=turn.run.key,
        round=turn.round,
        step=turn.step,
        parents=[asked.prompt.id],
        role=role,
        context=turn.run.cast.staging(role).digest,
        revision=policy.revision,
        sampling=asdict(sampling),
        slot=asked.slot,
        attempt=0,
    )


def _facts(turn: Turn, role: str, asked: Asked, sampling: Sampling, rendered_id: str) -> Row:
    return {
        "round": turn.round,
        "step": turn.step,
        "split": asked.prompt.split,
        "prompt_id": asked.prompt.id,
        "rendered_prompt_id": rendered_id,
        "parent_id": None,
        "slot": asked.slot,
        "attempt": 0,
        "role": role,
        "temperature": sampling.temperature,
        "sampling": json.dumps(asdict(sampling)),
        "created_at": now(),
    }


def _payload(generation: Generation) -> Row:
    return {
        "payload_hash": content_hash([list(generation.token_ids), generation.finish_reason]),
        "finish_reason": generation.finish_reason,
        "tokens": len(generation.token_ids),
    }


def _tokens(turn: Turn, identifier: str, generation: Generation) -> Row:
    return {
        "completion_id": identifier,
        "round": turn.round,
        "token_ids": list(generation.token_ids),
        "logprobs": list(generation.logprobs),
    }


def _completion(
    identifier: str, prompt: Prompt, policy: Policy, generation: Generation
) -> Completion:
    return Completion(
        id=identifier,
        prompt_id=prompt.id,
        text=generation.text,
        token_ids=generation.token_ids,
        logprobs=generation.logprobs,
        finish_reason=generation.finish_reason,
        revision=policy.revision,
    )


def _too_long(turn: Turn, asked: Asked, room: int) -> Row:
    detail = {"prompt_id": asked.prompt.id, "room": room}
    return {
        "id": row_id(
            "event", kind="too_long", round=turn.round, step=turn.step, prompt=asked.prompt.id
        ),
        "round": turn.round,
        "step": turn.step,
        "kind": "too_long",
        "detail": json.dumps(detail),
        "created_at": now(),
    }
