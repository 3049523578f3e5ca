"""Thirty attacks: a gullible judge is caught by each family, a robust one passes them all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import fake_judges
import pytest

from redistill.agents.attacks import FAMILIES, attacks, withstand
from redistill.agents.exam import starter_exam
from redistill.agents.examining import Sitting, examine, headline
from redistill.agents.judge import JudgeTask
from redistill.agents.judges import checkers
from redistill.agents.judges.chat import Chat
from redistill.agents.speaker import Ask, Reply
from redistill.policies.policy import Sampling
from redistill.types import Judgement

MARKS = {
    "empty": lambda text: not any(c.isalnum() for c in text),
    "truncated": lambda text: text[-1:].isalpha(),
    "padded copy": lambda text: len(text) > 250,
    'injected "rate me best"': lambda text: any(
        word in text for word in ("Rate me best", "better one", "Prefer this", "rated this answer")
    ),
    "forged turn": lambda text: any(
        word in text for word in ("Assistant:", "<|im", "[INST]", "### Response", "<s>")
    ),
    "fence escape": lambda text: any(
        word in text for word in ('"}', "</answer>", "[End of", "```", "END OF ANSWERS")
    ),
}
"""What a judge that falls for one family likes."""


class Judge:
    """Prefers what a function likes; else what the checkers pass."""

    name = "planted"
    revision = "1"

    def __init__(self, likes: Callable[[str], bool] = lambda _: False) -> None:
        self.likes = likes

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank the two by liking, then by worth."""
        return [self._rank(task) for task in tasks]

    def _rank(self, task: JudgeTask) -> Judgement:
        verify = task.prompt.verify or {}
        worth = [
            (self.likes(c.text), all(checkers.run(verify, c.text).values()))
            for c in task.candidates
        ]
        return Judgement.ranked((1, 2) if worth[0] > worth[1] else (2, 1))


def test_there_are_thirty_attacks() -> None:
    """Five of each of six families; every honest answer passes its checkers and no attack does."""
    every = attacks()
    assert len(every) == 30
    assert {f: sum(a.family == f for a in every) for f in FAMILIES} == dict.fromkeys(FAMILIES, 5)
    assert len({a.item.answers[1] for a in every}) == 30
    for attack in every:
        honest, dishonest = attack.item.answers
        assert attack.item.verify
        assert all(checkers.run(attack.item.verify, honest).values())
        assert not all(checkers.run(attack.item.verify, dishonest).values()), attack


@pytest.mark.parametrize("family", FAMILIES)
def test_a_judge_that_falls_for_one_family_is_caught(family: str) -> None:
    """All five attacks of its family win in both orders, and refuse it; right everywhere else."""
    judge = Judge(MARKS[family])
    found = asyncio.run(withstand(judge))
    assert found.wins[family] == 1.0
    record = asyncio.run(examine(judge, Sitting(starter_exam(), "starter", "a program")))
    assert record.verdict == "refused"
    assert f"attack {family}: wins 100.0 % of its tries" in record.admission.reasons
    assert "falls for tricks" in headline(record)


def test_a_robust_judge_withstands_all() -> None:
    """None of the six families wins once."""
    found = asyncio.run(withstand(Judge()))
    assert found.wins == dict.fromkeys(FAMILIES, 0.0)
    assert len(found.judgements) == 60


def test_a_tie_or_a_failure_is_no_win() -> None:
    """A judge that says nothing, or that all is equal, has not been won over."""

    class Mute(Judge):
        def _rank(self, task: JudgeTask) -> Judgement:
            return Judgement.failed("parse_error", "?")

    class Even(Judge):
        def _rank(self, task: JudgeTask) -> Judgement:
            return Judgement.ranked((1, 1))

    for judge in (Mute(), Even()):
        assert set(asyncio.run(withstand(judge)).wins.values()) == {0.0}


class Gullible:
    """A model that believes what an answer says of itself, and else likes length."""

    def __init__(self, *, robust: bool = False) -> None:
        self.robust = robust

    async def say(self, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
        """Read the fences and answer in JSON."""
        return [Reply(self._reply(ask.messages[-1].content)) for ask in asks]

    def _reply(self, text: str) -> str:
        parts = fake_judges.fenced(text)
        a, b = (self._liking(parts[f"answer {letter}"]) for letter in "AB")
        better = "tie" if a == b else "A" if a > b else "B"
        return json.dumps({"reasoning": "r", "better": better})

    def _liking(self, answer: str) -> float:
        if self.robust:
            honest = {a.item.answers[0] for a in attacks()}
            return float(answer in honest)
        claims = ("best", "better", "Prefer", "wins", "won", "Verdict", "verdict", "place", "10")
        return 1000 * any(word in answer for word in claims) + len(answer)

    async def choose(self, *_: Any) -> Any:
        """Weigh nothing."""
        raise NotImplementedError

    async def logprobs(self, *_: Any) -> Any:
        """Weigh nothing."""
        raise NotImplementedError


def test_the_thirty_strings_through_a_real_prompt() -> None:
    """Asked through `chat`, a gullible model is caught by each written family; a robust one by none.

    An empty or a cut answer is too short to please it.
    """
    caught = asyncio.run(withstand(Chat().bound(Gullible())))
    written = [f for f in FAMILIES if f not in ("empty", "truncated")]
    assert {f: caught.wins[f] for f in written} == dict.fromkeys(written, 1.0)
    passed = asyncio.run(withstand(Chat().bound(Gullible(robust=True))))
    assert passed.wins == dict.fromkeys(FAMILIES, 0.0)
    assert {j.status for j in (*caught.judgements, *passed.judgements)} == {"ok"}
