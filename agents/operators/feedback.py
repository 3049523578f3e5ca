"""Operators that ask judges."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

from pydantic import Field

from ...errors import BadInput, Problem
from ...hashing import row_seed
from ...store.facts import find_prompts, read_completions
from ...types import Completion, Prompt
from ..drift import watch
from ..judge import (
    Comparer,
    Critic,
    Judge,
    JudgeSpec,
    JudgeTask,
    Mode,
    Scorer,
    comparer,
    critic,
    let_go,
    load,
    roles_of,
    scorer,
)
from ..operator import Advance, Makes, Operator, Turn
from ..people import is_person, wait
from ..roles import STUDENT
from ..speaker import bind
from ..speakers import Speakers
from ..verdicts import Rows, compare_chunk, critique_chunk, judge_chunk


class Judging(Operator):
    """What steps that ask a judge have in common."""

    asks: ClassVar[Mode] = "score"
    waits: ClassVar[bool] = False
    """Whether the step can wait for people."""

    judge: JudgeSpec
    """A judge's name, `{name: {settings}}`, or `module:callable`."""

    def judge_spec(self) -> object:
        """Return how the step's judge is named."""
        return self.judge

    def load_judge(self, where: str = "") -> Judge:
        """Return the judge; it may still have to be bound to a speaker."""
        able: dict[Mode, Any] = {"score": scorer, "compare": comparer, "critique": critic}
        judge: Judge = able[self.asks](self.judge_spec(), where or f"{self.step}.judge")
        return judge

    def scorer(self, turn: Turn) -> Scorer:
        """Return the judge, ready to give values."""
        return bind(scorer(self.judge_spec(), f"{self.step}.judge"), Speakers(turn))

    def judges(self) -> Mapping[str, str]:
        """The one judge of the step."""
        judge = self.load_judge()
        return {judge.name: judge.revision}

    def roles(self) -> tuple[str, ...]:
        """The roles through which the judge speaks."""
        return roles_of(load(self.judge_spec(), f"{self.step}.judge"))

    def check(self, where: str) -> list[Problem]:
        """Find a judge that does not exist, has wrong settings, or cannot do what is asked of it."""
        try:
            judge = self.load_judge(f"{where}.judge")
        except BadInput as error:
            return list(error.problems)
        if is_person(judge) and not self.waits:
            what = f"{self.name} cannot wait for people"
            return [Problem(f"{where}.judge", what, "people judge in `score` and `compare`")]
        return []

    def people(self, turn: Turn, judge: Judge) -> bool:
        """Whether the judge is a person; if so, wait for all verdicts, which then stand in the store."""
        if is_person(judge) and not turn.done:
            wait(turn, judge, self.asks, self.planned(turn))
            turn.commit({}, 0.0)
        return is_person(judge)

    def after(self, turn: Turn, chunks: int, judge: Judge) -> Advance:
        """Go on; with the last chunk the judge gives its memory back, so that a trainer can have it."""
        found = turn.advance(chunks)
        if found.cursor is None:
            let_go(judge)
        return found

    def planned(self, turn: Turn) -> list[JudgeTask]:  # noqa: ARG002 - for subclasses
        """Return all that is judged in the step, in an order that depends on ids and seed alone."""
        return []


class Score(Judging):
    """Let a judge give each completion a value in [0, 1].

    Survey family: feedback (Eq. 7). A judgement that fails is a row with a status and no value.
    """

    name: ClassVar[str] = "score"
    makes: ClassVar[Makes] = "judgements"
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)
    waits: ClassVar[bool] = True

    of: str | tuple[str, ...] = ()
    """Steps whose completions are judged; the one earlier step that makes some."""

    def planned(self, turn: Turn) -> list[JudgeTask]:
        """Return every completion, to be scored."""
        return [JudgeTask(*answer) for answer in answers_of(turn, self.sources())]

    async def advance(self, turn: Turn) -> Advance:
        """Judge one chunk of completions."""
        judge = self.load_judge()
        if self.people(turn, judge):
            return turn.advance(1)
        completions = read_completions(turn.run.store, turn.round, self.sources())
        if not turn.done:
            await watch(turn, judge)
            began = time.monotonic()
            answers = with_prompts(turn, turn.slice(completions))
            ready = cast("Scorer", bind(judge, Speakers(turn)))
            rows = await judge_chunk(turn, ready, answers, completions)
            turn.commit(rows, time.monotonic() - began)
        return self.after(turn, turn.chunks(completions), judge)


class Compare(Judging):
    """Let a judge rank completions of one prompt, each set in both orders.

    Survey family: feedback, ranking. Each order is a row of its own, with what was presented in which
    order; labels average over the orders when they are derived. Equal answers are never compared.
    """

    name: ClassVar[str] = "compare"
    makes: ClassVar[Makes] = "judgements"
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)
    asks: ClassVar[Mode] = "compare"
    waits: ClassVar[bool] = True

    of: str | tuple[str, ...] = ()
    """Steps whose completions are compared."""
    size: int = Field(2, ge=2, le=8)
    """Completions that are presented together."""
    both_orders: bool = True
    """Present each set in the opposite order too: one order alone carries the judge's position bias."""
    per_prompt: int | None = Field(None, ge=1)
    """Most sets of one prompt, drawn by the run's seed; all of them where it is left out."""

    async def advance(self, turn: Turn) -> Advance:
        """Compare one chunk of sets."""
        judge = self.load_judge()
        if self.people(turn, judge):
            return turn.advance(1)
        planned = self.planned(turn)
        if not turn.done:
            await watch(turn, judge)
            began = time.monotonic()
            ready = cast("Comparer", bind(judge, Speakers(turn)))
            rows = await compare_chunk(turn, ready, turn.slice(planned))
            turn.commit(rows, time.monotonic() - began)
        return self.after(turn, turn.chunks(planned), judge)

    def planned(self, turn: Turn) -> list[JudgeTask]:
        """Return the comparisons in an order that depends on ids and seed alone."""
        return list(self._planned(turn))

    def _planned(self, turn: Turn) -> Iterator[JudgeTask]:
        by_prompt: dict[str, list[tuple[Prompt, Completion]]] = {}
        for prompt, completion in answers_of(turn, self.sources()):
            by_prompt.setdefault(prompt.id, []).append((prompt, completion))
        for answers in by_prompt.values():
            different = {completion.text: completion for _, completion in reversed(answers)}
            found = sorted(different.values(), key=lambda c: c.id)
            sets = list(itertools.combinations(found, min(self.size, max(2, len(found)))))
            sets.sort(key=lambda group: row_seed(f"{turn.run.seed} {[c.id for c in group]}"))
            for group in sets[: self.per_prompt]:
                yield from self._orders(answers[0][0], group)

    def _orders(self, prompt: Prompt, group: Sequence[Completion]) -> Iterator[JudgeTask]:
        # By chance, never by place: what a step samples first would else always be shown first.
        shown = sorted(group, key=lambda completion: row_seed(f"shown {completion.id}"))
        yield JudgeTask(prompt, shown[0], tuple(shown[1:]))
        if self.both_orders:
            yield JudgeTask(prompt, shown[-1], tuple(reversed(shown[:-1])))


class Critique(Judging):
    """Let a role say in words what is wrong with each completion, by a rubric.

    Survey family: feedback. The words are a judgement with text; `rewrite` and self-distillation read
    them. Without `judge`, the role is asked through the `chat` judge.
    """

    name: ClassVar[str] = "critique"
    makes: ClassVar[Makes] = "critiques"
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)
    asks: ClassVar[Mode] = "critique"

    of: str | tuple[str, ...] = ()
    """Steps whose completions are criticised."""
    role: str = STUDENT
    """Who criticises; the student may be its own critic."""
    rubric: str = "constitution"
    """A rubric that ships, or a text file."""
    max_tokens: int = Field(256, ge=1)
    """Longest critique."""
    judge: JudgeSpec = ""
    """Another judge than `chat`."""

    def judge_spec(self) -> object:
        """Return the judge that is given, or `chat` on the role."""
        settings = {"role": self.role, "rubric": self.rubric, "max_tokens": self.max_tokens}
        return self.judge or {"chat": settings}

    async def advance(self, turn: Turn) -> Advance:
        """Criticise one chunk of completions."""
        judge, answers = self.load_judge(), answers_of(turn, self.sources())
        if not turn.done:
            began = time.monotonic()
            ready = cast("Critic", bind(judge, Speakers(turn)))
            rows: Rows = await critique_chunk(turn, ready, turn.slice(answers))
            turn.commit(rows, time.monotonic() - began)
        return self.after(turn, turn.chunks(answers), judge)


def answers_of(turn: Turn, steps: Sequence[str]) -> list[tuple[Prompt, Completion]]:
    """Return the completions of some steps of this round with their prompts, in the order of their ids."""
    return with_prompts(turn, read_completions(turn.run.store, turn.round, steps))


def with_prompts(turn: Turn, completions: Sequence[Completion]) -> list[tuple[Prompt, Completion]]:
    """Return completions with the prompts that they answer."""
    prompts = find_prompts(turn.run.store, [c.prompt_id for c in completions])
    return [(prompts[c.prompt_id], c) for c in completions]
