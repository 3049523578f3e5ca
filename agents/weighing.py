"""What a policy of this machine says, and makes of given replies: chances of options, log-probs of answers.

The two speakers of this machine share it. Everything here blocks, and belongs into the policy's thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..policies.policy import Policy, Request, Sampling
from ..types import Completion, Message, TokenIds, Usage
from .speaker import Ask, Measured, Reply, Weighed

Conversation = tuple[Message, ...]


def speak(policy: Policy, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
    """Answer conversations, each by its own seed, all of them in one batch."""
    encoded = [policy.encode(ask.messages) for ask in asks]
    room = policy.context_length - sampling.max_tokens
    wanted = [
        Request(ids, ask.seed, ask.schema)
        for ids, ask in zip(encoded, asks, strict=True)
        if len(ids) <= room
    ]
    said = iter(policy.generate(wanted, sampling) if wanted else [])
    replies = []
    for ids in encoded:
        if len(ids) > room:
            replies.append(Reply(f"{len(ids)} tokens leave no room for a reply", "too_big"))
            continue
        answer = next(said)
        usage = _usage(role, policy, len(ids), len(answer.token_ids))
        replies.append(Reply(answer.text, usage=usage))
    return replies


def weigh(
    policy: Policy, role: str, told: Sequence[Conversation], options: Sequence[str]
) -> list[Weighed]:
    """Return how likely each option is as the reply to each conversation, all of them in one batch."""
    encoded = [policy.encode(conversation) for conversation in told]
    # A token is at least one character, so that an option never has more tokens than this.
    room = policy.context_length - max(map(len, options))
    fits = [ids for ids in encoded if len(ids) <= room]
    shares = iter(policy.choose(fits, options) if fits else [])
    found = []
    for ids in encoded:
        if len(ids) > room:
            found.append(Weighed((), "too_big", f"{len(ids)} tokens leave no room for a reply"))
            continue
        each, usage = next(shares), _usage(role, policy, len(ids), 1)
        if not all(map(math.isfinite, each)):
            found.append(Weighed((), "error", "the policy gave no finite numbers", usage))
            continue
        found.append(Weighed(tuple(each), usage=usage))
    return found


def measure(
    policy: Policy, role: str, given: Sequence[tuple[Conversation, Completion, str | None]]
) -> list[Measured]:
    """Return the raw log-probs of each token of given answers, all of them in one batch.

    Args:
        policy: whose opinion is asked.
        role: its name, for the account.
        given: conversation, answer, and the vocabulary of the answer's token ids where it is known.
    """
    pairs = [
        (policy.encode(told), answer_ids(policy, answer, words)) for told, answer, words in given
    ]
    why = [_unfit(policy, *pair) for pair in pairs]
    fits = [pair for pair, wrong in zip(pairs, why, strict=True) if wrong is None]
    scored = iter(policy.score(fits) if fits else [])
    found = []
    for (prompt, ids), wrong in zip(pairs, why, strict=True):
        if wrong is not None:
            found.append(wrong)
            continue
        logprobs, usage = next(scored), _usage(role, policy, len(prompt) + len(ids), 0)
        if not all(map(math.isfinite, logprobs)):
            found.append(Measured((), "error", "the policy gave no finite numbers", usage))
            continue
        found.append(Measured(tuple(logprobs), usage=usage))
    return found


def answer_ids(policy: Policy, answer: Completion, vocabulary: str | None) -> TokenIds:
    """Return an answer as a policy's tokens: as sampled where they are of its vocabulary, else spelled.

    The ids that were sampled need not be those that the text is spelled with. A cut answer has no end.
    """
    if answer.token_ids and vocabulary == policy.vocabulary:
        return answer.token_ids
    ids = policy.spell(answer.text)
    return ids if answer.ended else ids[:-1]


def _unfit(policy: Policy, prompt: TokenIds, ids: TokenIds) -> Measured | None:
    if not ids:
        return Measured((), "not_applicable", "the answer has no token")
    if len(prompt) + len(ids) > policy.context_length:
        return Measured((), "too_big", f"{len(prompt) + len(ids)} tokens exceed the context")
    return None


def _usage(role: str, policy: Policy, read: int, written: int) -> Usage:
    return Usage(role, "", policy.revision, read, written, 0.0)
