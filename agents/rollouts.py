"""What a policy that samples while it trains asks the driver: judges for its rollouts, and room in the store.

Rollouts are completions like any other, of the train step, with the job and its optimiser step beside them. Their ids
are of what was asked for, so a job that was cut off and samples them again finds its verdicts in the store, and nobody
is paid twice.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..hashing import content_hash, row_id
from ..store.store import Row, content, now
from ..trainers.callback import Message
from ..types import Completion, Prompt
from .judge import Scorer
from .operator import Turn
from .roles import STUDENT
from .verdicts import Rows, judge_chunk

Place = tuple[int, int]
"""Of a rollout: optimiser step and slot."""
_PIECES = 10_000
"""More than the pieces of one optimiser step."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A judge whose values rollouts earn, and how much they count."""

    judge: Scorer
    weight: float


class Rollouts:
    """Answers the questions of one training job."""

    def __init__(
        self, turn: Turn, rewards: Sequence[Reward], prompts: Mapping[str, Prompt]
    ) -> None:
        """Take a turn of the train step, its judges, and its prompts by id."""
        self._turn, self._rewards, self._prompts = turn, rewards, prompts
        self._run_id = row_id("training_run", run=turn.run.key, round=turn.round, step=turn.step)
        self._asking: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        """By the verdicts' place in the ledger. A try that breaks off leaves its questions on their way, and the next
        try asks the same: it waits for them, so that nobody is paid twice."""
        self._ids: dict[Place, str] = {}
        """completion.id of each rollout that was told of."""

    async def answer(self, what: str, told: Message) -> Message:
        """Answer one question of the job."""
        if what == "judge":
            return await self.judge(told)
        if what == "record":
            return self.record(told)
        raise ValueError(f"a job asks for {what!r}, and nobody here knows what that is")

    async def judge(self, told: Message) -> Message:
        """Keep rollouts and what each judge gives them; a verdict that stands is not asked for again.

        Returns:
            `rewards`, a list for each judge with a number or None for each rollout, and the judges' `weights`.
        """
        answers = self._keep(told)
        chunk = told["step"] * _PIECES + told["piece"]
        at = replace(self._turn, cursor=chunk)
        for nth, reward in enumerate(self._rewards):
            step = f"{self._turn.step}:judge-{nth}:{content_hash([c.id for _, c in answers])}"
            async with self._asking[step, chunk]:
                if self._turn.run.store.done(round=at.round, step=step, chunk=chunk):
                    continue
                began = time.monotonic()
                rows = await judge_chunk(at, reward.judge, answers, [c for _, c in answers])
                self._commit(rows, step, chunk, time.monotonic() - began)
        return {
            "rewards": [self._values(reward.judge, answers) for reward in self._rewards],
            "weights": [reward.weight for reward in self._rewards],
        }

    def record(self, told: Message) -> Message:
        """Keep what the rollouts of an optimiser step were worth."""
        step, turn = told["step"], self._turn
        if told["said"]:
            self._keep(told | {"piece": 0, "rollouts": self._with_token_rewards(told)})
        each = len(told["rollouts"])
        rows = [
            self._learned(step, earned) | {"position": (step - 1) * each + earned["slot"]}
            for earned in told["rollouts"]
        ]
        ledger = f"{turn.step}:learned:{content_hash([row['id'] for row in rows])}"
        self._commit({"training_row": rows}, ledger, step, 0.0)
        return {}

    def _with_token_rewards(self, told: Message) -> list[Row]:
        earned = {row["slot"]: row["token_rewards"] for row in told["rollouts"]}
        return [said | {"token_rewards": earned[said["slot"]]} for said in told["said"]]

    def _keep(self, told: Message) -> list[tuple[Prompt, Completion]]:
        """Store rollouts as completions, and return them with their prompts."""
        found: list[tuple[Prompt, Completion]] = []
        rows: Rows = {"completion": [], "completion_tokens": [], "content": []}
        for said, (identifier, attempt, known) in zip(
            told["rollouts"], self._named(told), strict=True
        ):
            place = told["step"], said["slot"]
            self._ids[place] = identifier
            prompt = self._prompts[said["prompt_id"]]
            found.append((prompt, _completion(identifier, said)))
            if not known:
                text = content(said["text"], self._turn.round)
                row = self._row(place, prompt, said)
                row |= {"id": identifier, "attempt": attempt, "text_hash": text["hash"]}
                rows["completion"].append(row)
                rows["completion_tokens"].append(self._tokens(identifier, said))
                rows["content"].append(text)
        if rows["completion"]:
            named = content_hash([row["id"] for row in rows["completion"]])
            chunk = told["step"] * _PIECES + told["piece"]
            self._commit(rows, f"{self._turn.step}:said:{named}", chunk, 0.0)
        return found

    def _named(self, told: Message) -> list[tuple[str, int, bool]]:
        """Return each rollout's id, its attempt, and whether it stands in the store.

        A machine that computes otherwise may say something else when a job goes on: that is another attempt.
        """
        found: dict[int, tuple[str, int, bool]] = {}
        attempt = 0
        while len(found) < len(told["rollouts"]):
            ids = {
                n: self._id(told["step"], said, attempt)
                for n, said in enumerate(told["rollouts"])
                if n not in found
            }
            stored = self._payloads(list(ids.values()))
            for n, identifier in ids.items():
                there = stored.get(identifier)
                if there is None or there == _payload(told["rollouts"][n]):
                    found[n] = identifier, attempt, there is not None
            attempt += 1
        return [found[n] for n in range(len(found))]

    def _id(self, step: int, said: Row, attempt: int) -> str:
        turn = self._turn
        return row_id(
            "completion",
            run=turn.run.key,
            round=turn.round,
            step=turn.step,
            parents=[said["prompt_id"]],
            optimizer_step=step,
            slot=said["slot"],
            attempt=attempt,
        )

    def _payloads(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the payload hashes of those completions that stand in the store."""
        rows = self._turn.run.store.rows(
            """
            SELECT id::VARCHAR AS id, payload_hash FROM completion
            WHERE round = ? AND list_contains(?, id::VARCHAR)
            """,
            [self._turn.round, list(ids)],
        )
        return {row["id"]: row["payload_hash"] for row in rows}

    def _row(self, place: Place, prompt: Prompt, said: Row) -> Row:
        return {
            "round": self._turn.round,
            "step": self._turn.step,
            "split": prompt.split,
            "prompt_id": prompt.id,
            "slot": place[1],
            "role": STUDENT,
            "revision": None,  # none is published between two optimiser steps
            "payload_hash": _payload(said),
            "finish_reason": said["finish_reason"],
            "temperature": 1.0,
            "sampling": json.dumps({"temperature": 1.0}),
            "tokens": len(said["token_ids"]),
            "seconds": 0.0,
            "training_run_id": self._run_id,
            "optimizer_step": place[0],
            "created_at": now(),
        }

    def _tokens(self, identifier: str, said: Row) -> Row:
        return {
            "completion_id": identifier,
            "round": self._turn.round,
            "token_ids": said["token_ids"],
            "logprobs": said["logprobs"],
            "rewards": said.get("token_rewards"),
        }

    def _learned(self, step: int, earned: Row) -> Row:
        turn = self._turn
        identifier = earned["completion_id"] or self._ids[step, earned["slot"]]
        return {
            "id": row_id(
                *("training_row",),
                round=turn.round,
                step=turn.step,
                parents=[identifier, None],
                optimizer_step=step,
                slot=earned["slot"],
            ),
            "round": turn.round,
            "step": turn.step,
            "split": "train",
            "training_run_id": self._run_id,
            "prompt_id": earned["prompt_id"],
            "completion_id": identifier,
            "weight": earned["weight"],
            "reward": earned["reward"],
            "advantage": earned["advantage"],
            "tokens_from": "sampled",
            "created_at": now(),
        }

    def _values(
        self, judge: Scorer, answers: Sequence[tuple[Prompt, Completion]]
    ) -> list[float | None]:
        """Return what a judge gave each answer; None where it failed."""
        turn = self._turn
        rows = turn.run.store.rows(
            """
            SELECT completion_id::VARCHAR AS id, value FROM judgement
            WHERE round = ? AND step = ? AND judge_revision = ? AND mode = 'score' AND aspect = ''
              AND list_contains(?, completion_id::VARCHAR)
            """,
            [turn.round, turn.step, judge.revision, [c.id for _, c in answers]],
        )
        values = {row["id"]: row["value"] for row in rows}
        return [values[completion.id] for _, completion in answers]

    def _commit(self, rows: Mapping[str, list[Row]], step: str, chunk: int, seconds: float) -> None:
        self._turn.run.store.commit(
            rows, round=self._turn.round, step=step, chunk=chunk, seconds=seconds
        )


def _payload(said: Row) -> str:
    return content_hash([said["token_ids"], said["finish_reason"]])


def _completion(identifier: str, said: Row) -> Completion:
    return Completion(
        id=identifier,
        prompt_id=said["prompt_id"],
        text=said["text"],
        token_ids=tuple(said["token_ids"]),
        logprobs=tuple(said["logprobs"]),
        finish_reason=said["finish_reason"],
        revision="",
    )
