"""A judge model without a model: one function from a conversation to a reply, here or behind an address."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from redistill.agents.judge import ColumnName, JudgeTask, SettledJudge, Standing
from redistill.policies.policy import Generation, Request, Sampling
from redistill.testing.fakes import END, FakeStudent
from redistill.types import Judgement, TokenIds

_FENCED = re.compile(r"--- (\w+) ([^\n]+) begins\n(.*?)\n--- \1 \2 ends", re.DOTALL)


def fenced(text: str) -> dict[str, str]:
    """Return what stands between a prompt's fences, by title."""
    return {title: inner for _, title, inner in _FENCED.findall(text)}


def judge(messages: list[dict[str, Any]]) -> str:
    """Judge as an honest model would: the answer that ends like its question is best; else the shorter."""
    parts = fenced(messages[-1]["content"])
    word = parts["question"].rsplit(maxsplit=1)[-1]

    def score(answer: str) -> int:
        return 10 if answer == word else max(1, 8 - len(answer) // 8)

    if "answer" in parts:
        if "JSON" not in messages[-1]["content"].rpartition("ends")[2]:
            return f"It should end with {word}."
        told = {"reasoning": f"I looked for {word}.", "score": score(parts["answer"])}
        return json.dumps(told)
    scores = {title[-1]: score(text) for title, text in parts.items() if title != "question"}
    if len(scores) == 2:
        a, b = scores["A"], scores["B"]
        better = "tie" if a == b else "A" if a > b else "B"
        return json.dumps({"reasoning": "compared", "better": better})
    ranks = {k: 1 + sum(other > v for other in scores.values()) for k, v in scores.items()}
    return json.dumps({"reasoning": "compared", "ranks": ranks})


class LocalJudge(FakeStudent):
    """The same judge as a policy of this machine."""

    @property
    def context_length(self) -> int:
        """Characters."""
        return 100_000

    def encode(self, messages: Any) -> TokenIds:
        """Return the characters of the whole conversation."""
        return tuple(map(ord, json.dumps([m.as_dict() for m in messages])))

    def _answer(self, request: Request, sampling: Sampling) -> Generation:
        messages = json.loads("".join(map(chr, request.prompt_ids)))
        text = judge(messages)
        ids = (*map(ord, text), END)
        return Generation(text, ids, (-0.5,) * len(ids), "stop")


class Holding(SettledJudge):
    """A program that holds something while it works, and counts how often it was let go."""

    name: ColumnName = "holding"
    standing: ClassVar[Standing] = "program"
    let_go: ClassVar[list[str]] = []
    """`held` at each batch, `released` at each release."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Find every answer half good."""
        Holding.let_go.append("held")
        return [Judgement(0.5) for _ in tasks]

    def release(self) -> None:
        """Give back."""
        Holding.let_go.append("released")
