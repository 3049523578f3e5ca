"""A speaker for roles whose model is behind an address."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BadInput, TryLater
from ..policies.calls import Asking, Call, Caller, Outcome
from ..policies.policy import Policy, Sampling
from ..policies.server import SPELLED, Opinion, Reading, Spelling, differs, opinions
from ..types import Completion, Message, TokenIds
from .servers import Servers
from .speaker import Ask, Given, Measured, Reply, Weighed
from .spending import Ledger
from .weighing import answer_ids

Before = Callable[[str, Sequence[str] | None], tuple[Message, ...]]
_HOPELESS = ("unauthorized", "not_found", "redirect")
"""Kinds that a whole batch comes back with when the recipe is wrong."""
_COVERED = 0.5
"""Least probability that all options together must have, or the model was not held to them."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Whose tokens are meant where a server is asked about tokens."""

    policy: Policy
    """Has the tokenizer and the template; needs no weights."""
    call: Callable[..., Awaitable[Any]]
    """Runs a blocking method of it."""
    words: Callable[[str], str | None] = lambda _: None
    """From a revision to the vocabulary of what it has said, where that is known."""

    def pair(self, messages: Sequence[Message], answer: Completion) -> tuple[TokenIds, TokenIds]:
        """Return a conversation and an answer to it as tokens."""
        vocabulary = self.words(answer.revision)
        return self.policy.encode(messages), answer_ids(self.policy, answer, vocabulary)


class RemoteSpeaker:
    """Lets the roles behind addresses speak, all calls of a batch together.

    Args:
        servers: the clients by role.
        before: from a role, and the tags of a prompt, to the turns that the role sees first.
        ledger: keeps account of the calls; without one nobody does.
        reader: reads what given tokens are asked about; without one nobody can.
    """

    def __init__(
        self,
        servers: Servers,
        before: Before = lambda _role, _tags: (),
        ledger: Ledger | None = None,
        reader: Reader | None = None,
    ) -> None:
        self._servers = servers
        self._before = before
        self._ledger = ledger
        self._reader = reader

    async def say(self, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
        """Answer each conversation; a failure is a reply with a status."""
        calls = [
            Call(self._staged(role, ask.messages), sampling, ask.seed, ask.schema) for ask in asks
        ]
        return [
            Reply(found.text, found.status, found.usage)
            for found in await self.ask(role, calls, "judge")
        ]

    async def choose(self, role: str, asks: Sequence[Ask], options: Sequence[str]) -> list[Weighed]:
        """Return how likely each option is as the reply; the server must hold the model to them."""
        # The log-probs are to be those of temperature 1.
        sampling = Sampling(1.0, 1.0, 0, 1)
        calls = [
            Call(self._staged(role, ask.messages), sampling, ask.seed, options=tuple(options))
            for ask in asks
        ]
        return [_weigh(found, options) for found in await self.ask(role, calls, "judge")]

    async def logprobs(self, role: str, given: Sequence[Given]) -> list[Measured]:
        """Return the raw log-probs of each token of given answers, where the server reads the student's tokens.

        Raises:
            BadInput: it does not.
        """
        reader = await self._same_tokens(role)
        pairs = await reader.call(
            lambda: [reader.pair(self._staged(role, g.messages, g.tags), g.answer) for g in given]
        )
        asked = [pair for pair in pairs if pair[1]]
        found = iter(await self.ask(role, [Reading(*pair) for pair in asked], "score"))
        return [
            _measured(next(found))
            if ids
            else Measured((), "not_applicable", "the answer has no token")
            for _, ids in pairs
        ]

    async def opinions(
        self, role: str, pairs: Sequence[tuple[TokenIds, TokenIds]], k: int
    ) -> list[Opinion]:
        """Return what a role's server thinks of completions: of each token, and the `k` likeliest in its place.

        Raises:
            BadInput: it does not say, or has another vocabulary.
            TryLater: it is away.
        """
        await self._same_tokens(role)
        found = await self.ask(role, [Reading(*pair, k) for pair in pairs], "score")
        return opinions(found, self._servers.client(role).address, f"roles.{role}.policy")

    async def _same_tokens(self, role: str) -> Reader:
        """Return who reads for a role, once its server was seen to read the same tokens."""
        where = f"roles.{role}.policy"
        if self._reader is None:
            what = "there is no student whose tokens its server could read"
            raise BadInput.at(where, what, "use a role whose model runs on this machine")
        policy = self._reader.policy
        if not self._servers.reads(role, policy.vocabulary):
            [found] = await self.ask(role, [Spelling(SPELLED)], "score")
            if why := differs(found, await self._reader.call(policy.spell, SPELLED)):
                hint = "serve a model of the student's own family"
                raise BadInput.at(where, f"{found.host}: {why}", hint)
            self._servers.reads(role, policy.vocabulary, seen=True)
        return self._reader

    async def ask(self, role: str, calls: Sequence[Asking], purpose: str) -> list[Outcome]:
        """Make calls, keep what they cost, and return their outcomes in the order given.

        Raises:
            TryLater: the budget would not last, or the server was away for longer than patience lasts.
            BadInput: the server refuses every call, because of its key, model or address.
        """
        if not calls:
            return []
        client = self._servers.client(role)
        reservation = self._ledger.reserve(role, client, calls) if self._ledger else None
        outcomes = await asyncio.gather(*(client.call(call) for call in calls))
        found = [replace(o, usage=replace(o.usage, role=role)) for o in outcomes]
        if self._ledger:
            made = list(zip(calls, found, strict=True))
            self._ledger.charge(reservation, role, client, made, purpose)
        _stop_if_away(client, found)
        if all(outcome.kind in _HOPELESS for outcome in found):
            where = f"roles.{role}.{'key' if found[0].kind == 'unauthorized' else 'policy'}"
            raise BadInput.at(where, f"{client.address.host}: {found[0].text}")
        return found

    def _staged(
        self, role: str, messages: Sequence[Message], tags: Sequence[str] | None = None
    ) -> tuple[Message, ...]:
        return self._before(role, tags) + tuple(messages)


def _stop_if_away(client: Caller, found: Sequence[Outcome]) -> None:
    """End the run, to be resumed, rather than write failures that say nothing about their tasks."""
    waiting = next((outcome for outcome in found if outcome.waiting), None)
    if waiting is not None:
        address = client.address
        raise TryLater(
            f"{address.host} has been away for {address.patience:g} s ({waiting.text}); "
            "`redistill resume` goes on when it is back"
        )


def _measured(found: Outcome) -> Measured:
    if found.status != "ok":
        return Measured((), found.status, found.text, found.usage)
    return Measured(found.told.logprobs, usage=found.usage)


def _weigh(found: Outcome, options: Sequence[str]) -> Weighed:
    """Turn the log-probs of first tokens into probabilities of the options."""
    if found.status != "ok":
        return Weighed((), found.status, found.text, found.usage)
    shares = [0.0] * len(options)
    for token, logprob in found.weighed:
        text = token.strip()
        fits = [i for i, option in enumerate(options) if text and option.startswith(text)]
        if len(fits) == 1:
            shares[fits[0]] += math.exp(min(logprob, 0.0))
    total = sum(shares)
    if total < _COVERED:
        why = (
            f"the log-probs of the reply cover {total:.2f} of the options; use a server that takes "
        )
        return Weighed((), "parse_error", why + "`structured_outputs`, as vLLM does", found.usage)
    return Weighed(tuple(share / total for share in shares), usage=found.usage)
