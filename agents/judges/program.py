"""Judges that are programs: the verifier, and controls that no sensible run should trust."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from ...hashing import content_hash, row_seed
from ...types import Judgement, Prompt
from ..judge import ColumnName, JudgeTask, SettledJudge, Standing, load, needs_group, scorer
from . import checkers, maths, sandbox


class Verifier(SettledJudge):
    """Check an answer by program: 1 when every checker of the prompt passes, else 0.

    The prompt's `verify` names the checkers; without it, its `answer` is compared, mathematically
    where it is a number or LaTeX. A prompt with neither is `not_applicable`. The parts tell which
    checker failed, and `form` and `content` apart: right form with wrong content is what partial
    credit would teach.
    """

    name: ColumnName = "verifier"
    ended: bool = True
    """Whether an answer that was cut at the token limit fails, whatever it says so far."""

    version: ClassVar[int] = checkers.VERSION
    standing: ClassVar[Standing] = "program"

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Judge each task, in the order given."""
        # Aside, because one hostile mathematical answer may last `maths.DEADLINE` seconds.
        return await asyncio.to_thread(lambda: [self._judge(task) for task in tasks])

    def _judge(self, task: JudgeTask) -> Judgement:
        verify = wanted(task.prompt)
        if verify is None:
            return Judgement.failed("not_applicable", "the prompt has neither verify nor answer")
        if problems := checkers.check_spec(verify, "verify"):
            return Judgement.failed("error", "; ".join(map(str, problems)))
        try:
            results = checkers.run(verify, task.completion.text)
        except maths.MathTimeout as late:
            return Judgement.failed("timeout", str(late))
        except (maths.MathError, sandbox.SandboxError) as error:
            return Judgement.failed("error", str(error))
        passed = all(results.values()) and (task.completion.ended or not self.ended)
        return Judgement(
            value=float(passed), raw=float(passed), parts=_parts(results, task.completion.ended)
        )


def wanted(prompt: Prompt) -> Mapping[str, object] | None:
    """Return the checkers of a prompt: its `verify`, or the one that its `answer` asks for."""
    if prompt.verify:
        return prompt.verify
    if not prompt.answer:
        return None
    if any(char.isdigit() or char in "\\$" for char in prompt.answer):
        return {"math": prompt.answer}
    return {"equals": {"text": prompt.answer, "ignore": ["case", "final_dot", "quotes"]}}


def _parts(results: Mapping[str, bool], ended: bool) -> dict[str, bool]:  # noqa: FBT001
    about = {name: checkers.CHECKERS[name].about for name in results}
    return {
        **results,
        "ended": ended,
        "form": all(ok for name, ok in results.items() if about[name] == "form"),
        "content": all(ok for name, ok in results.items() if about[name] == "content"),
    }


class _Length(SettledJudge):
    """Base of the two judges that look at nothing but length."""

    unit: Literal["words", "characters"] = "words"
    standing: ClassVar[Standing] = "baseline"
    half: ClassVar[int] = 64
    """Length at which the value is one half."""

    def _raw(self, task: JudgeTask) -> int:
        text = task.completion.text
        return len(checkers.words(text)) if self.unit == "words" else len(text)


class Longest(_Length):
    """Prefer the longer answer: value n / (n + 64). A control that shows what a bad judge does."""

    name: ColumnName = "longest"

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Judge each task, in the order given."""
        lengths = [self._raw(task) for task in tasks]
        return [Judgement(value=n / (n + self.half), raw=n) for n in lengths]


class Shortest(_Length):
    """Prefer the shorter answer: value 64 / (n + 64). A control, like `longest`."""

    name: ColumnName = "shortest"

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Judge each task, in the order given."""
        lengths = [self._raw(task) for task in tasks]
        return [Judgement(value=self.half / (n + self.half), raw=n) for n in lengths]


class Random(SettledJudge):
    """Prefer at random: a value that depends on the completion's id and the seed alone."""

    name: ColumnName = "random"
    seed: int = 0

    standing: ClassVar[Standing] = "baseline"

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Judge each task, in the order given."""
        seeds = [row_seed(content_hash([self.seed, task.completion.id])) for task in tasks]
        return [Judgement(value=seed / 2**63, raw=seed / 2**63) for seed in seeds]


class First(SettledJudge):
    """Prefer what is shown first: a control, which only a comparison in both orders finds out."""

    name: ColumnName = "first"

    standing: ClassVar[Standing] = "baseline"

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates in the order presented."""
        return [Judgement.ranked(tuple(range(1, len(t.candidates) + 1))) for t in tasks]


class Shuffled(SettledJudge):
    """Give each answer the value of another answer: a control, in which labels say nothing.

    The values are the inner judge's own, permuted among the answers that are judged together, so that
    as many pass as did before. It has the inner judge's column, because `where` and `by` name that.
    """

    name: ColumnName = ""
    judge: str | dict[str, Any]
    """The judge whose values are permuted."""
    seed: int = 0
    """Seeds the permutation."""

    standing: ClassVar[Standing] = "baseline"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if isinstance(data, dict) and "judge" in data and not data.get("name"):
            return data | {"name": load(data["judge"], "judge").name}
        return data

    @property
    def needs_group(self) -> bool:
        """As the inner judge."""
        return needs_group(load(self.judge, "judge"))

    @property
    def revision(self) -> str:
        """Content hash of the inner judge, the seed and the code version."""
        inner = load(self.judge, "judge").revision
        return content_hash(["shuffled", self.version, inner, self.seed])

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Judge each task, in the order given."""
        verdicts = await scorer(self.judge, "judge").score(tasks)
        asked = [task.completion.id for task in tasks]
        order = random.Random(row_seed(content_hash([self.seed, asked])))  # noqa: S311 - reproducible
        order.shuffle(verdicts)
        # The parts and the words are about another answer: only the value moves.
        return [
            Judgement(v.value, v.status, v.raw, text="the value of another answer")
            for v in verdicts
        ]
