"""Judges that were corrected on labelled pairs: calibrated, and freed of what length does to them.

The pairs are an exam's files. They are shown to the judge inside, in both orders, when it is first asked;
what it said is kept in this process by its revision and by the weights that answered, so that a judge
whose weights have changed is fitted anew.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ...errors import BadInput
from ...hashing import content_hash, file_sha256
from ...store.bias import logistic
from ...types import Judgement
from ..admission import Vote, ask
from ..exam import ExamItem, load_exam
from ..judge import ColumnName, JudgeSpec, JudgeTask, Mode, scorer
from ..ranking import first_wins, verdict
from .combine import Combined

Floats = NDArray[np.float64]
_LEAST = 20
"""Labelled pairs without which nothing is fitted: the interval of a share is then 0.4 wide."""
_FITS: dict[str, Any] = {}
"""What was fitted in this process, by (revision, weights that answered)."""


class Fitted(Combined):
    """Base of judges that need labelled pairs."""

    pairs: tuple[str, ...]
    """Labelled pairs, files as of an exam; never those that it is examined on."""

    @model_validator(mode="before")
    @classmethod
    def _one_file(cls, data: Any) -> Any:
        one = isinstance(data, dict) and isinstance(data.get("pairs"), str)
        return data | {"pairs": (data["pairs"],)} if one else data

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if len(self.items()) < self._least():
            raise ValueError(f"{len(self.items())} labelled pairs, {self._least()} are needed")
        return self

    def _least(self) -> int:
        return _LEAST

    @property
    def revision(self) -> str:
        """Content hash of the judges inside, the settings, and what is in the pairs' files."""
        held = [file_sha256(Path(file)) for file in self.pairs if Path(file).is_file()]
        return content_hash([super().revision, held])

    def items(self) -> tuple[ExamItem, ...]:
        """Return the labelled pairs."""
        try:
            return load_exam([Path(file) for file in self.pairs], {}).items
        except BadInput as error:
            raise ValueError(str(error)) from error

    def seen(self) -> frozenset[str]:
        """Return the keys of all labelled pairs that it, or anything inside, was fitted on."""
        return super().seen() | {item.key for item in self.items()}

    async def fit(self, answered: Sequence[Judgement]) -> Any:
        """Return what was fitted for the weights that have just answered, fitting it at first.

        Where the judges inside say too little of the labelled pairs, it is a text that says so.
        """
        who = sorted({f"{j.usage.model} {j.usage.revision}" for j in answered if j.usage})
        key = content_hash([self.revision, who])
        if key in _FITS:
            return _FITS[key]
        try:
            found = await self.learn(self.items())
        except BadInput as error:
            return f"not fitted: {error}"
        if getattr(found, "complete", True):
            _FITS[key] = found
        return found

    @abstractmethod
    async def learn(self, items: Sequence[ExamItem]) -> Any:
        """Ask the judges inside about labelled pairs, and fit."""


# -- calibrated


@dataclass(frozen=True, slots=True)
class Steps:
    """A monotone step function, fitted by pooling adjacent violators."""

    at: Floats
    """Where values were seen, ascending."""
    value: Floats

    def __call__(self, x: float) -> float:
        """Return the fitted value, between two of them on the line that joins them."""
        return float(np.interp(x, self.at, self.value))


def isotonic(x: Floats, y: Floats) -> Steps:
    """Fit the nearest non-decreasing function; Ayer et al. (1955), pool adjacent violators.

    Args:
        x: shape (n,), what a judge said.
        y: shape (n,), what was right, in [0, 1].
    """
    at, place = np.unique(x, return_inverse=True)
    weight = np.bincount(place).astype(float)
    level = np.bincount(place, weights=y) / weight
    blocks: list[tuple[float, float, int]] = []
    for mean, mass in zip(level, weight, strict=True):
        block = (float(mean), float(mass), 1)
        while blocks and blocks[-1][0] > block[0]:
            before = blocks.pop()
            total = before[1] + block[1]
            mean_of_both = (before[0] * before[1] + block[0] * block[1]) / total
            block = (mean_of_both, total, before[2] + block[2])
        blocks.append(block)
    return Steps(at, np.repeat([b[0] for b in blocks], [b[2] for b in blocks]))


class Calibrated(Fitted):
    """Turn what a judge says into how often it is right, by isotonic regression on labelled pairs.

    A value becomes the share of labelled answers of that value that were the better of their pair; a
    comparison's probability becomes the share of labelled comparisons that the first one won.
    """

    name: ColumnName = "calibrated"
    judge: JudgeSpec
    """The judge whose values or verdicts are calibrated."""

    async def learn(self, items: Sequence[ExamItem]) -> Mapping[Mode, Steps]:
        """Fit values where the judge scores, and verdicts where it compares."""
        found: dict[Mode, Steps] = {}
        able = self.able()
        if "score" in able:
            said, right = await _scored(self, items)
            found["score"] = isotonic(said, right)
        if "compare" in able:
            votes = _parsed(await ask(self.comparers()[0], items))
            said = np.array([first_wins(vote.judgement) for vote in votes])
            right = np.array([float(vote.item.label == vote.first) for vote in votes])
            found["compare"] = isotonic(said, right)
        return found

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each task's completion its calibrated value."""
        said = await scorer(self.inner[0], self.name).score(tasks)
        fitted = await self.fit(said)
        if isinstance(fitted, str):
            return [_unfitted(j, fitted) for j in said]
        steps: Steps = fitted["score"]
        return [j if j.value is None else replace(j, value=steps(j.value)) for j in said]

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank two candidates by the calibrated probability; more of them keep their ranks."""
        said = await self.comparers()[0].compare(tasks)
        fitted = await self.fit(said)
        if isinstance(fitted, str):
            return [_unfitted(j, fitted) for j in said]
        steps: Steps = fitted["compare"]
        return [_as_probable(j, steps(first_wins(j))) if _of_two(j) else j for j in said]


async def _scored(judge: Fitted, items: Sequence[ExamItem]) -> tuple[Floats, Floats]:
    tasks = [item.task(1) for item in items]
    asked = [JudgeTask(t.prompt, c) for t in tasks for c in t.candidates]
    said = await scorer(judge.inner[0], judge.name).score(asked)
    right = [float(item.label == side) for item in items for side in (1, 2)]
    kept = [(j.value, r) for j, r in zip(said, right, strict=True) if j.value is not None]
    if len(kept) < _LEAST:
        raise BadInput.at(judge.name, f"the judge inside scored {len(kept)} labelled answers")
    return np.array([v for v, _ in kept]), np.array([r for _, r in kept])


# -- length corrected


@dataclass(frozen=True, slots=True)
class LengthEffect:
    """What moves a judge's vote: the better answer, and the longer one; in logits."""

    quality: float
    length: float


class LengthCorrected(Fitted):
    """Take out of a judge's verdicts what the length of the answers put in.

    On labelled pairs, logit P(vote for the first) = quality x (first is better: +1 or -1) + length x d,
    where d is the log ratio of the answers' lengths, within -2 and 2. A verdict then counts as what it
    says of the label beyond length: by Bayes with even odds. A vote for the longer answer is weak
    evidence, one for the shorter answer strong (length control as in AlpacaEval, arXiv 2404.04475).
    """

    name: ColumnName = "length_corrected"
    judge: JudgeSpec
    """The judge that is corrected."""
    margin: float = Field(0.05, ge=0, lt=0.5)
    """A corrected probability that is nearer to one half is a tie."""

    can: ClassVar[tuple[Mode, ...]] = ("compare",)

    async def learn(self, items: Sequence[ExamItem]) -> LengthEffect:
        """Fit what quality and length do to the judge's votes."""
        votes = _parsed(await ask(self.comparers()[0], items))
        x = np.array([[1.0 if v.item.label == v.first else -1.0, _longer(v)] for v in votes])
        y = np.array([first_wins(v.judgement) for v in votes])
        quality, length = logistic(x, y)
        return LengthEffect(float(quality), float(length))

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank two candidates by the corrected probability; more of them keep their ranks."""
        said = await self.comparers()[0].compare(tasks)
        effect: LengthEffect | str = await self.fit(said)
        if isinstance(effect, str):
            return [_unfitted(j, effect) for j in said]
        return [
            self._corrected(j, effect, log_ratio(*(c.text for c in t.candidates)))
            if _of_two(j)
            else j
            for j, t in zip(said, tasks, strict=True)
        ]

    def _corrected(self, said: Judgement, effect: LengthEffect, ratio: float) -> Judgement:
        better = _sigmoid(effect.quality + effect.length * ratio)
        worse = _sigmoid(-effect.quality + effect.length * ratio)
        share = first_wins(said)
        # How likely this vote is where the first one is better, and where the second one is.
        if_first = share * better + (1 - share) * (1 - better)
        if_second = share * worse + (1 - share) * (1 - worse)
        probability = if_first / (if_first + if_second)
        near = abs(probability - 0.5) < self.margin
        return _as_probable(said, probability, tie=near)


def _longer(vote: Vote) -> float:
    first, second = vote.item.answers if vote.first == 1 else vote.item.answers[::-1]
    return log_ratio(first, second)


def log_ratio(first: str, second: str) -> float:
    """Return how much longer the first text is: log of the ratio of characters, within -2 and 2."""
    return max(-2.0, min(2.0, math.log((len(first) + 1) / (len(second) + 1))))


# -- what they share


def _parsed(votes: Sequence[Vote]) -> list[Vote]:
    parsed = [vote for vote in votes if vote.parsed]
    if len(parsed) < _LEAST:
        raise BadInput.at(
            "pairs", f"the judge inside gave {len(parsed)} verdicts on labelled pairs"
        )
    return parsed


def _unfitted(said: Judgement, why: str) -> Judgement:
    """Return the failure of a judge that could not be fitted; what the call has cost is kept."""
    return said if said.status != "ok" else Judgement.failed("error", why, usage=said.usage)


def _of_two(judgement: Judgement) -> bool:
    return judgement.status == "ok" and judgement.ranks is not None and len(judgement.ranks) == 2


def _as_probable(said: Judgement, probability: float, *, tie: bool = False) -> Judgement:
    cost = 0.5 if tie else 1 - probability
    made = verdict([cost, 1 - cost], probability=probability, usage=said.usage, text=said.text)
    return replace(made, reply=said.reply)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, x))))
