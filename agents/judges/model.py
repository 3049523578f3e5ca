"""Judges that read a model's probabilities and not its words: `choice`, `rating`, `likelihood`.

They cost one token a verdict, never fail to be parsed, and say how sure they are.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from ...hashing import content_hash, row_seed
from ...types import Completion, Judgement, Message
from ..judge import ColumnName, JudgeTask, Mode
from ..ranking import total, verdict
from ..speaker import Ask, Given, Measured, Weighed
from ..template import fill, sound, template
from .material import LETTERS, brief, fenced, mark_of
from .speaking import Lesson, Speaking

_LARGEST = 700.0
"""Most nats whose exponential is a float."""
_EVEN = 0.5
"""Value of an answer that is neither good nor bad."""
_YES_NO = ("yes", "no")
_IS_GOOD = "Is it a good answer? Reply with one word: yes or no."


class Weighing(Speaking):
    """Base of judges that ask a model which of some given replies it would give."""

    rubric: str = "quality"
    """What to look at: a template that ships, or a text file."""
    needs_choice: ClassVar[bool] = True

    brief: bool = False
    """Leave out the fences around the texts, and what is said of them: for a context of a few hundred tokens;
    an answer can then pose as another one."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _text(self.rubric)
        return self

    @property
    def revision(self) -> str:
        """Content hash of settings, rubric, prompts and code version."""
        texts = [_text(name) for name in (self.rubric, *_WRAPPERS.values(), "brief")]
        settings = self.model_dump(mode="json", exclude={"name", "rubric"})
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return content_hash([kind, self.version, settings, texts])

    async def weigh(
        self, mode: Mode, tasks: Sequence[JudgeTask], form: str, options: Sequence[str]
    ) -> list[Weighed]:
        """Return how likely each option is as the reply to each task, put in the words of `form`."""
        revision = self.revision
        asks = []
        for task in tasks:
            text = self.asked(mode, task, form)
            seed = row_seed(content_hash([revision, mode, text, task.attempt]))
            asks.append(Ask((Message("user", text.strip()),), seed))
        return await self.speaker.choose(self.role, asks, options) if asks else []

    def asked(self, mode: Mode, task: JudgeTask, form: str) -> str:
        """Return what is asked about a task, put in the words of `form`."""
        return fill(
            _text("brief" if self.brief else _WRAPPERS[mode]),
            rubric=_text(self.rubric).strip(),
            mark=mark_of(task),
            material=brief(task) if self.brief else fenced(task),
            form=form,
        )


_WRAPPERS: Mapping[Mode, str] = {"score": "judge_score", "compare": "judge_compare"}


class Choice(Weighing):
    """Ask a model which answer is better, and take the chances of its next token for the verdict.

    Of two answers the probability is the share of `A` in `A` and `B`; a tie counts half for each. Of a list
    each answer has its chance of being the best one. As a score it is the share of `yes` in `yes` and `no`.
    The place of an answer weighs much with small models: `compare` asks in both orders by itself.
    """

    name: ColumnName = "choice"
    tie: bool = False
    """Whether neither of two answers may be better."""

    version: ClassVar[int] = 1

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates by their chances."""
        sizes = {len(task.candidates) for task in tasks}
        asked = sorted(size for size in sizes if size <= len(LETTERS))
        groups = {n: [task for task in tasks if len(task.candidates) == n] for n in asked}
        said = await asyncio.gather(*(self._compare(n, group) for n, group in groups.items()))
        found = {n: iter(judgements) for n, judgements in zip(groups, said, strict=True)}
        many = Judgement.failed("not_applicable", f"more than {len(LETTERS)} answers")
        return [next(found[n]) if (n := len(task.candidates)) in found else many for task in tasks]

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each answer the chance that the model calls it good."""
        found = []
        for each in await self.weigh("score", tasks, _IS_GOOD, _YES_NO):
            good = None if each.status != "ok" else min(1.0, each.probabilities[0])
            found.append(
                _unweighed(each)
                if good is None
                else Judgement(good, raw=good, reply=_shown(_YES_NO, each), usage=each.usage)
            )
        return found

    def lesson(self, mode: Mode, task: JudgeTask, said: Judgement) -> Lesson | None:
        """Return what it asks about a task, and the letter or word that says a judgement.

        No letter says that several are best, but for two where `tie` is allowed; no word says 0.5.
        """
        size = len(task.candidates)
        if mode == "score" and said.value is not None and said.value != _EVEN:
            form, reply = _IS_GOOD, _YES_NO[said.value < _EVEN]
        elif mode == "compare" and said.ranks and size <= len(LETTERS):
            form, options = self._options(size)
            best = [letter for letter, rank in zip(options, said.ranks, strict=False) if rank == 1]
            if len(best) > 1 and len(options) == size:
                return None
            reply = best[0] if len(best) == 1 else options[-1]
        else:
            return None
        return Lesson((Message("user", self.asked(mode, task, form).strip()),), reply)

    def _options(self, size: int) -> tuple[str, list[str]]:
        """Return the words that ask for one of so many answers, and the letters that may come."""
        letters = list(LETTERS[:size])
        neither = self.tie and size == 2
        named = [*letters, f"{LETTERS[size]} if neither is better"] if neither else letters
        form = f"Reply with one letter: {', '.join(named[:-1])} or {named[-1]}."
        return form, list(LETTERS[: len(named)])

    async def _compare(self, size: int, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        form, options = self._options(size)
        return [
            self._ranked(size, options, each)
            for each in await self.weigh("compare", tasks, form, options)
        ]

    def _ranked(self, size: int, options: Sequence[str], each: Weighed) -> Judgement:
        if each.status != "ok":
            return _unweighed(each)
        shares = each.probabilities
        if size == 2:
            probability = min(1.0, shares[0] + (shares[2] / 2 if len(shares) > 2 else 0.0))
            tied = len(shares) > 2 and shares[2] > max(shares[:2])
            costs = [0.0, 0.0] if tied else [-shares[0], -shares[1]]
            ranked = verdict(costs, probability=probability, usage=each.usage)
        else:
            ranked = verdict([-share for share in shares], usage=each.usage)
        return Judgement(
            ranked.value,
            ranks=ranked.ranks,
            probability=ranked.probability,
            reply=_shown(options, each),
            usage=each.usage,
        )


class Rating(Weighing):
    """Ask a model for a score, and take the mean of the scores by the chances of their tokens.

    The expectation over a scale of single digits tells answers apart that have the same most likely score
    (G-Eval, arXiv 2303.16634, Eq. 1). `raw` is the expected score, `value` its place in the scale; of
    several aspects the means.
    """

    name: ColumnName = "rating"
    scale: tuple[int, int] = (1, 5)
    """Worst and best score, single digits: each must be one token."""
    aspects: tuple[str, ...] = ()
    """What is scored one by one, for example [correct, clear]; the whole where it is left out."""

    version: ClassVar[int] = 1

    @field_validator("scale")
    @classmethod
    def _digits(cls, scale: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= scale[0] < scale[1] <= 9:
            raise ValueError("a scale is [worst, best], two digits, the lower one first")
        return scale

    @field_validator("aspects")
    @classmethod
    def _different(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(aspects)) < len(aspects) or not all(map(str.strip, aspects)):
            raise ValueError("aspects are different words")
        return aspects

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each answer its expected score; of aspects, their mean."""
        low, high = self.scale
        options = [str(digit) for digit in range(low, high + 1)]
        told = f"with one digit from {low} (worst) to {high} (best)"
        forms = [f"How {aspect} is it? Reply {told}." for aspect in self.aspects]
        forms = forms or [f"How good is the answer? Reply {told}."]
        each = await asyncio.gather(*(self.weigh("score", tasks, form, options) for form in forms))
        return [self._expected(options, row) for row in zip(*each, strict=True)]

    def calls(self) -> int:
        """Return how many times the model is asked for one verdict."""
        return max(1, len(self.aspects))

    def _expected(self, options: Sequence[str], row: Sequence[Weighed]) -> Judgement:
        low, high = self.scale
        usage = total(each.usage for each in row)
        failed = next((each for each in row if each.status != "ok"), None)
        if failed is not None:
            return Judgement.failed(failed.status, failed.reason, usage=usage)
        expected = [expectation(range(low, high + 1), each.probabilities) for each in row]
        values = [(score - low) / (high - low) for score in expected]
        shown = [_shown(options, each) for each in row]
        return Judgement(
            fmean(values),
            raw=fmean(expected),
            aspects=dict(zip(self.aspects, values, strict=True)) if self.aspects else {},
            reply="\n".join(shown),
            usage=usage,
        )


def expectation(scores: Sequence[int], shares: Sequence[float]) -> float:
    """Return the mean of scores by their shares, which sum to 1; never outside of the scores."""
    mean = math.fsum(score * share for score, share in zip(scores, shares, strict=True))
    # Shares sum to 1 up to rounding only.
    return min(max(mean / math.fsum(shares), float(min(scores))), float(max(scores)))


class Likelihood(Speaking):
    """Ask how well a model expected an answer: how fluent, or how difficult to learn, it is for the model.

    `perplexity`: `raw` is the mean log-prob of a token in nats, `value` its exponential, the geometric mean
    of the tokens' probabilities: one over the perplexity. `ifd` is instruction-following difficulty as a
    ratio of perplexities (arXiv 2402.00530; in arXiv 2308.12032 it is one of mean losses): `raw` is the
    perplexity of the answer after its question over that after an empty one, so that 1 means that the
    question helped nothing and more that it misled; `value` is raw / (1 + raw). The tokens are those that
    were sampled, the end included, where the role reads with the tokenizer that they are of; else the text
    is spelled anew. For `perplexity` a role's worked examples stand before the question, so that a student that
    sees some can judge one that sees none.
    """

    name: ColumnName = "likelihood"
    of: Literal["perplexity", "ifd"] = "perplexity"
    """What is measured: the value grows with the likelihood of the answer, or with its difficulty."""

    version: ClassVar[int] = 2
    needs_weights: ClassVar[bool] = True

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each answer its likelihood, or its difficulty."""
        if self.of == "perplexity":
            shown = [Given(t.prompt.messages, t.completion, t.prompt.tags) for t in tasks]
            return [_fluency(each) for each in await self.speaker.logprobs(self.role, shown)]
        after = [Given(task.prompt.messages, task.completion) for task in tasks]
        # An empty question and not none: most templates have no conversation without one, and both
        # perplexities are then of an answer that stands in its place.
        alone = list(dict.fromkeys(_alone(task.completion) for task in tasks))
        said = await self.speaker.logprobs(self.role, [*after, *alone])
        by_answer = dict(zip(alone, said[len(after) :], strict=True))
        billed: set[Given] = set()
        found = []
        for task, given in zip(tasks, said[: len(after)], strict=True):
            key = _alone(task.completion)
            found.append(_difficulty(given, by_answer[key], once=key not in billed))
            billed.add(key)
        return found


def _alone(answer: Completion) -> Given:
    return Given((Message("user", ""),), answer)


def _fluency(found: Measured) -> Judgement:
    if found.status != "ok":
        return Judgement.failed(found.status, found.reason, usage=found.usage)
    mean = fmean(found.logprobs)
    # A log-prob of a certain token can be above 0 by rounding.
    return Judgement(min(1.0, math.exp(mean)), raw=mean, usage=found.usage)


def _difficulty(given: Measured, alone: Measured, *, once: bool) -> Judgement:
    usage = total([given.usage, alone.usage if once else None])
    failed = next((m for m in (given, alone) if m.status != "ok"), None)
    if failed is not None:
        return Judgement.failed(failed.status, failed.reason, usage=usage)
    gap = fmean(alone.logprobs) - fmean(given.logprobs)
    if abs(gap) > _LARGEST:
        return Judgement.failed("error", f"{gap:.0f} nats a token are no ratio", usage=usage)
    return Judgement(1 / (1 + math.exp(-gap)), raw=math.exp(gap), usage=usage)


def _unweighed(each: Weighed) -> Judgement:
    return Judgement.failed(each.status, each.reason, usage=each.usage)


def _shown(options: Sequence[str], each: Weighed) -> str:
    shares = (round(share, 6) for share in each.probabilities)
    return json.dumps(dict(zip(options, shares, strict=True)))


def _text(name: str) -> str:
    return sound(template(name, (), "rubric"))
