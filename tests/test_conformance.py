"""The conformance kit: every built-in judge passes it, and each kind of fault is found."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from redistill.agents.exam import ExamItem, starter_exam
from redistill.agents.judge import BUILTINS, JudgeTask
from redistill.testing import JudgeConformance
from redistill.testing.conformance import SPEAKERS, Scripted, usual_tasks
from redistill.types import Judgement

GOOD_SCORE = Scripted('{"reasoning": "so", "score": 7}')
GOOD_CHOICE = Scripted('{"reasoning": "so", "better": "A"}')
ELSEWHERE = {"choice", "rating", "reward_model", "human", "agreement", "likelihood", "code"}
"""Judges whose own tests call the kit, with the models and people that they need."""


def exam_file(folder: Path, items: Sequence[ExamItem]) -> str:
    """Write pairs as an exam's file."""
    file = folder / "pairs.jsonl"
    lines = [
        {"id": i.id, "input": i.text, "output_1": i.answers[0], "output_2": i.answers[1]}
        | {"label": i.label}
        for i in items
    ]
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return str(file)


def votes_file(folder: Path) -> str:
    """Write recorded votes on the kit's own tasks."""
    file = folder / "votes.csv"
    rows = ["item_id,judge,strategy,order,winner", "known,m,s,good,1", "known,m,s,goodbad,1"]
    file.write_text("\n".join(rows), "utf-8")
    return str(file)


Specs = Callable[[Path], tuple[Any, list[Any]]]
"""A folder to the judge and to others with other settings."""


def _fitted(kind: str, **settings: Any) -> Specs:
    def specs(folder: Path) -> tuple[Any, list[Any]]:
        items = starter_exam().slices["easy"][:40]
        inner = settings or {"judge": "shortest"}
        few = folder / "few"
        few.mkdir()
        one = {kind: {**inner, "pairs": exam_file(folder, items)}}
        return one, [{kind: {**inner, "pairs": exam_file(few, items[:30])}}]

    return specs


CASES: dict[str, Specs] = {
    "verifier": lambda _: ("verifier", [{"verifier": {"ended": False}}]),
    "longest": lambda _: ("longest", [{"longest": {"unit": "characters"}}, "shortest"]),
    "shortest": lambda _: ("shortest", [{"shortest": {"unit": "characters"}}]),
    "random": lambda _: ("random", [{"random": {"seed": 1}}]),
    "first": lambda _: ("first", ["random"]),
    "shuffled": lambda _: (
        {"shuffled": {"judge": "longest"}},
        [{"shuffled": {"judge": "shortest"}}, {"shuffled": {"judge": "longest", "seed": 1}}],
    ),
    "replay": lambda folder: (
        {"replay": {"votes": votes_file(folder), "judge": "m", "strategy": "s"}},
        ["first"],
    ),
    "chat": lambda _: (
        "chat",
        [{"chat": {"role": "helper"}}, {"chat": {"rubric": "constitution"}}],
    ),
    "both_orders": lambda _: (
        {"both_orders": {"judge": "chat"}},
        [{"both_orders": {"judge": "first"}}],
    ),
    "repeat": lambda _: (
        {"repeat": {"judge": "chat"}},
        [{"repeat": {"judge": "chat", "k": 5}}, {"repeat": {"judge": "longest"}}],
    ),
    "win_rate": lambda _: (
        {"win_rate": {"judge": "chat"}},
        [{"win_rate": {"judge": {"longest": {"unit": "characters"}}}}],
    ),
    "trained": lambda _: ({"trained": {"step": "one"}}, [{"trained": {"step": "two"}}]),
    "cached": lambda _: (
        {"cached": {"judge": "chat"}},
        [{"cached": {"judge": {"chat": {"role": "helper"}}}}, {"cached": {"judge": "longest"}}],
    ),
    "jury": _fitted("jury", judges=["verifier", "shortest", "random"], wait=False),
    "calibrated": _fitted("calibrated"),
    "length_corrected": _fitted("length_corrected"),
}


def test_every_built_in_judge_is_held_to_the_kit() -> None:
    """A new built-in judge must be added here, or to its own tests with what it needs."""
    assert BUILTINS.keys() - ELSEWHERE == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_built_in_judges_conform(name: str, tmp_path: Path) -> None:
    """Batches, order, ranges, statuses, hostile texts, revisions; with every faulty speaker."""
    judge, changed = CASES[name](tmp_path)
    for speaker in (GOOD_SCORE, GOOD_CHOICE) if name == "chat" else (GOOD_CHOICE,):
        kit = JudgeConformance(
            judge, changed=changed, speaker=speaker, independent=name != "shuffled"
        )
        kit.check()


class Sound:
    """A judge that does as it should; each subclass does one thing wrong."""

    name = "sound"
    revision = "1"

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Find every answer half good."""
        return [Judgement(0.5) for _ in tasks]


class Shorter(Sound):
    """Forgets the last answer."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Leave one out."""
        return [Judgement(0.5) for _ in tasks[1:]]


class Raising(Sound):
    """Raises for one of the hostile texts."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Encode each answer."""
        for task in tasks:
            task.completion.text.encode()
        return [Judgement(0.5) for _ in tasks]


class Unordered(Sound):
    """Sorts its batch."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Return the values in another order than the answers."""
        return [Judgement(v) for v in sorted(1 / (1 + len(t.completion.text)) for t in tasks)]


class Restless(Sound):
    """Has a new revision at each look."""

    looks = 0

    @property
    def revision(self) -> str:  # type: ignore[override]
        """Count the looks."""
        type(self).looks += 1
        return str(self.looks)


class Wordless(Sound):
    """Criticises without words."""

    async def critique(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Say a blank."""
        return [Judgement(None, text=" ") for _ in tasks]


class OnePlace(Sound):
    """Ranks two candidates, however many there are."""

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Prefer the first of two."""
        return [Judgement.ranked((1, 2)) for _ in tasks]


class TwoMinds(Sound):
    """Says one thing by its ranks and another by its value."""

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank the first one first, and give the value to the other."""
        return [Judgement(0.0, ranks=tuple(range(1, 1 + len(task.candidates)))) for task in tasks]


class Lenient(Judgement):
    """A judgement that checks nothing."""

    def __post_init__(self) -> None:
        """Check nothing."""


class Unbound(Sound):
    """Gives values beyond the range."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Go to infinity."""
        return [Lenient(math.inf) for _ in tasks]


class Inventive(Sound):
    """Has a status of its own, and a value with a failure."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Be tired."""
        return [Lenient(None, "tired") for _ in tasks]  # type: ignore[arg-type]


class Guessing(Sound):
    """Scores though it failed."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Guess."""
        return [Lenient(0.5, "timeout") for _ in tasks]


class Squandering(Sound):
    """Speaks through a role, and loses the bill of what it could not read."""

    _speaker: Any = None

    def roles(self) -> tuple[str, ...]:
        """One role."""
        return ("helper",)

    def bound(self, speaker: Any) -> Squandering:
        """Take the speaker."""
        self._speaker = speaker
        return self

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Read nothing."""
        return [Judgement.failed("parse_error", "no verdict") for _ in tasks]


FAULTS = {
    Shorter: "and not a judgement each",
    Raising: "raises UnicodeEncodeError",
    Unordered: "is judged otherwise alone than in a batch",
    Restless: "the same settings give another one",
    Wordless: "a critique without words",
    OnePlace: "3 candidates have the ranks (1, 2)",
    TwoMinds: "do not say the same",
    Unbound: "a number is not in [0, 1]: [inf]",
    Inventive: "the status 'tired' is not known",
    Guessing: "a failure has a value",
    Squandering: "a call that failed has lost its usage",
}


def test_a_sound_judge_has_no_fault() -> None:
    """The base of the faulty judges below passes."""
    JudgeConformance(Sound()).check()


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_each_fault_is_found(kind: type[Sound]) -> None:
    """A judge that does one thing wrong is told which."""
    with pytest.raises(AssertionError) as caught:
        JudgeConformance(kind()).check()
    assert FAULTS[kind] in str(caught.value)
    assert str(caught.value).startswith("sound is no sound judge:\n")


def test_other_settings_need_another_revision() -> None:
    """Two judges of one revision would be taken for each other in the store."""
    kit = JudgeConformance("random", changed=[{"random": {"name": "dice"}}])
    assert kit.faults() == ["revision: other settings give the same one"]


def test_the_kit_asks_hostile_texts_and_faulty_models() -> None:
    """What it asks holds control tokens, half characters, and models that are down."""
    texts = [c.text for task in usual_tasks() for c in task.candidates]
    assert {"", "\ud800 half a character"} <= set(texts)
    assert max(map(len, texts)) >= 20_000
    [down] = asyncio.run(SPEAKERS["a model that is down"].choose("r", [None], ["A", "B"]))  # type: ignore[list-item]
    assert (down.status, down.probabilities) == ("timeout", ())
