"""The speaker of a step: sends each role to this machine or to its server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import StoreProblem
from ..hashing import content_hash
from ..policies.policy import Sampling
from ..store.store import Row
from ..store.verdicts import Key, read_verdicts
from ..types import Judgement, Usage
from .judge import JudgeTask, Mode
from .judge_rows import JUDGES
from .local_speaker import LocalSpeaker
from .operator import Turn
from .remote_speaker import Reader, RemoteSpeaker
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

    async def recall(
        self, judge: str, mode: Mode, roles: Sequence[str], tasks: Sequence[JudgeTask]
    ) -> list[Judgement | None]:
        """Return the verdicts that the run's store holds already, None for each task without one.

        Args:
            judge: the judge's revision.
            mode: what is asked of it.
            roles: who speaks for it; where several of this machine do, nothing is remembered.
            tasks: what is to be judged.
        """
        weights = self._weights(roles)
        if weights is None:
            return [None] * len(tasks)
        prompts = [task.prompt.id for task in tasks]
        known = read_verdicts(
            self._turn.run.store, prompts, judge=judge, mode=mode, weights=weights
        )
        return [_remembered(known, task, roles, weights) for task in tasks]

    def made_judge(self, step: str) -> Path:
        """Return the folder of the judge that a train step of this round has made.

        Raises:
            StoreProblem: it has made none.
        """
        turn = self._turn
        rows = turn.run.store.rows(
            "SELECT revision FROM training_run WHERE round = ? AND step = ? AND revision IS NOT NULL",
            [turn.round, step],
        )
        if not rows:
            raise StoreProblem(f"round {turn.round}: {step} has made no judge")
        return turn.run.folder / JUDGES / str(rows[0]["revision"])

    def _weights(self, roles: Sequence[str]) -> str | None:
        """Return the weights by which a verdict must have been given: none of this machine, or one."""
        turn, cast = self._turn, self._turn.run.cast
        here = [role for role in roles if not cast.servers.serve(role)]
        if not here:
            return ""
        if len(roles) > 1:
            return None
        _, revision = cast.named(
            here[0],
            turn.run.store,
            round=turn.round,
            champion=turn.champion,
            current=turn.current,
        )
        return revision.id

    def _of(self, role: str) -> Speaker:
        servers = self._turn.run.cast.servers
        return remote(self._turn) if servers.serve(role) else LocalSpeaker(self._turn)


def _remembered(
    known: Mapping[Key, Row], task: JudgeTask, roles: Sequence[str], weights: str
) -> Judgement | None:
    hashes = tuple(content_hash(c.text) for c in task.candidates)
    row = known.get((task.prompt.id, hashes))
    if row is None or task.attempt:
        return None
    return Judgement(
        row["value"],
        raw=row["raw"],
        parts=row["parts"],
        text=row["text"] or "",
        ranks=tuple(row["ranks"]) if row["ranks"] else None,
        probability=row["probability"],
        aspects=row["aspects"],
        usage=Usage(role=" + ".join(roles), revision=weights, dollars=0.0),
    )


def remote(turn: Turn) -> RemoteSpeaker:
    """Return the speaker of the roles behind addresses, which keeps account in the run's store."""
    cast = turn.run.cast
    cast.servers.say = turn.run.progress.note
    return RemoteSpeaker(
        cast.servers,
        lambda role, tags: cast.staging(role).before(tags),
        Spending(turn),
        Reader(cast.student, cast.call, cast.vocabulary),
    )
