"""The speaker of a step: sends each role to this machine or to its server."""

from __future__ import annotations

from collections.abc import Sequence

from ..policies.policy import Sampling
from .local_speaker import LocalSpeaker
from .operator import Turn
from .remote_speaker import RemoteSpeaker
from .speaker import Ask, Given, Measured, Reply, Speaker, Weighed
from .spending import Spending


class Speakers:
    """Lets every role of a turn speak, wherever its model runs."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    async def say(self, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
        """Answer each conversation, in the order given."""
        return await self._of(role).say(role, asks, sampling)

    async def choose(self, role: str, asks: Sequence[Ask], options: Sequence[str]) -> list[Weighed]:
        """Return how likely each option is as the reply to each conversation."""
        return await self._of(role).choose(role, asks, options)

    async def logprobs(self, role: str, given: Sequence[Given]) -> list[Measured]:
        """Return the raw log-probs of each token of given answers."""
        return await self._of(role).logprobs(role, given)

    def _of(self, role: str) -> Speaker:
        servers = self._turn.run.cast.servers
        return remote(self._turn) if servers.serve(role) else LocalSpeaker(self._turn)


def remote(turn: Turn) -> RemoteSpeaker:
    """Return the speaker of the roles behind addresses, which keeps account in the run's store."""
    cast = turn.run.cast
    cast.servers.say = turn.run.progress.note
    return RemoteSpeaker(cast.servers, lambda role: cast.staging(role).system, Spending(turn))
