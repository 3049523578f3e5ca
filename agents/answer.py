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
from ..types import Completion, Message, Prompt
from .operator import Turn
from .roles import REFERENCES, Staging


@dataclass(frozen=True, slots=True)
class Asked:
    """One completion that is planned."""

    prompt: Prompt
    slot: int
    told: tuple[Message, ...] = ()
    """Turns that follow the prompt: of a rewrite, the answer before and what is to be better."""
    parent_id: str | None = None
    """completion.id that is rewritten."""
    critique_id: str | None = None
    """judgement.id of the critique that is answered."""

    @property
    def view(self) -> tuple[str, ...]:
        """What decides the rendered prompt beside the role: the prompt, and the turns that follow it."""
        return (self.prompt.id, *(f"{turn.role} {turn.content}" for turn in self.told))


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
    if run.cast.staging(role).role.policy == REFERENCES:
        from .quoted_answer import quote  # as is the next one

        return quote(turn, role, asked, sampling)
    if run.cast.servers.serve(role):
        from .remote_answer import answer_remotely  # which builds its rows with what stands here

        return await answer_remotely(turn, role, asked, sampling)
    policy = await run.cast.speak(
        role, run.store, round=turn.round, champion=turn.champion, current=turn.current
    )
    rendered = _render(turn, run.cast.staging(role), policy, asked)
    room = policy.context_length - sampling.max_tokens
    if room <= 0:
        what = f"{sampling.max_tokens} leave no room for a prompt in {policy.context_length} tokens"
        raise BadInput.at(f"{turn.step}.max_tokens", what)
    fits = [a for a in asked if len(rendered[a.view]["token_ids"]) <= room]
    if len(fits) < len(asked):
        run.progress.note(
            f"round {turn.round} {turn.step}: {len(asked) - len(fits)} too long, left out"
        )
    ids = [completion_id(turn, role, a, policy.revision, sampling) for a in fits]
    requests = [
        Request(tuple(rendered[a.view]["token_ids"]), row_seed(identifier))
        for a, identifier in zip(fits, ids, strict=True)
    ]
    began = time.monotonic()
    generations = await run.cast.call(policy.generate, requests, sampling)
    seconds = (time.monotonic() - began) / max(1, len(fits))
    rows: dict[str, list[Row]] = {
        "rendered_prompt": [rendered[view] for view in dict.fromkeys(a.view for a in fits)],
        "completion": [],
        "completion_tokens": [],
        "content": [],
        "event": [too_long(turn, a.prompt, room) for a in asked if a not in fits],
    }
    completions = []
    # What a stranger has sampled are no tokens of the student's: there is its text, as of a model behind an address.
    own = policy.vocabulary == run.cast.student.vocabulary
    for a, identifier, generation in zip(fits, ids, generations, strict=True):
        text = content(generation.text, turn.round)
        row = facts(turn, role, a, sampling, rendered[a.view]["id"])
        row |= {"id": identifier, "revision": policy.revision, "text_hash": text["hash"]}
        rows["completion"].append(row | _payload(generation) | {"seconds": seconds})
        rows["completion_tokens"] += [_tokens(turn, identifier, generation)] if own else []
        rows["content"].append(text)
        completions.append(
            (a.prompt, _completion(identifier, a.prompt, policy, generation, own=own))
        )
    return Answered(rows, completions)


def _render(
    turn: Turn, staging: Staging, policy: Policy, asked: Sequence[Asked]
) -> dict[tuple[str, ...], Row]:
    """Render each view of a prompt once, however many answers are wanted."""
    rendered: dict[tuple[str, ...], Row] = {}
    for a in {a.view: a for a in asked}.values():
        context = _context(staging, a)
        rendered[a.view] = {
            "id": row_id(
                "rendered_prompt",
                round=turn.round,
                prompt=a.prompt.id,
                context=context,
                vocabulary=policy.vocabulary,
            ),
            "round": turn.round,
            "prompt_id": a.prompt.id,
            "context": context,
            "vocabulary": policy.vocabulary,
            "token_ids": list(policy.encode((*staging.stage(a.prompt), *a.told))),
            "created_at": now(),
        }
    return rendered


def _context(staging: Staging, asked: Asked) -> str:
    """Hash what the policy sees beside the prompt; empty for nothing."""
    return content_hash([staging.digest, *asked.view[1:]]) if asked.told else staging.digest


def completion_id(turn: Turn, role: str, asked: Asked, revision: str, sampling: Sampling) -> str:
    """Return the id of a completion: what was asked of whom, never what came."""
    parents = [asked.prompt.id, asked.parent_id, asked.critique_id]
    return row_id(
        "completion",
        run=turn.run.key,
        round=turn.round,
        step=turn.step,
        parents=[parent for parent in parents if parent],
        role=role,
        context=_context(turn.run.cast.staging(role), asked),
        revision=revision,
        sampling=asdict(sampling),
        slot=asked.slot,
        attempt=0,
    )


def facts(turn: Turn, role: str, asked: Asked, sampling: Sampling, rendered_id: str | None) -> Row:
    """Return what is known of a completion before it is made."""
    return {
        "round": turn.round,
        "step": turn.step,
        "split": asked.prompt.split,
        "prompt_id": asked.prompt.id,
        "rendered_prompt_id": rendered_id,
        "parent_id": asked.parent_id,
        "critique_id": asked.critique_id,
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
    identifier: str, prompt: Prompt, policy: Policy, generation: Generation, *, own: bool
) -> Completion:
    return Completion(
        id=identifier,
        prompt_id=prompt.id,
        text=generation.text,
        token_ids=generation.token_ids if own else (),
        logprobs=generation.logprobs if own else (),
        finish_reason=generation.finish_reason,
        revision=policy.revision,
    )


def worded(
    row: Row, prompt: Prompt, text: str, *, model: str, revision: str | None
) -> tuple[Row, Completion]:
    """Return the row of an answer that no model has sampled, and the answer: its text, whole, and no tokens.

    Args:
        row: what is known of it: its id, its facts, the hash of its text.
        prompt: what it answers.
        text: what it says.
        model: who stands for a model.
        revision: what stands for weights; None where nothing does.
    """
    payload = {
        "temperature": None,
        "sampling": "{}",
        "revision": revision,
        "model": model,
        "payload_hash": content_hash([text, "stop"]),
        "finish_reason": "stop",
        "tokens": None,
        "seconds": 0.0,
    }
    said = Completion(
        id=row["id"],
        prompt_id=prompt.id,
        text=text,
        token_ids=(),
        logprobs=(),
        finish_reason="stop",
        revision=revision or "",
    )
    return row | payload, said


def too_long(turn: Turn, prompt: Prompt, room: int) -> Row:
    """Return the event of a prompt that leaves no room for an answer; `room` is for its tokens."""
    detail = {"prompt_id": prompt.id, "room": room}
    return {
        "id": row_id("event", kind="too_long", round=turn.round, step=turn.step, prompt=prompt.id),
        "round": turn.round,
        "step": turn.step,
        "kind": "too_long",
        "detail": json.dumps(detail),
        "created_at": now(),
    }
