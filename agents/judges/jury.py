"""The judge `jury`: several judges, each weighed by how well it does on labelled pairs.

A plain majority amplifies a bias that its members share: three plausible judges voted 0.36 on adversarial
pairs where the best of them alone has 0.66 (docs/judging.md).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ...store.bias import logistic
from ...types import Judgement
from ..admission import ask
from ..exam import ExamItem
from ..judge import ColumnName, JudgeSpec, JudgeTask, Scorer, scorer
from ..ranking import first_wins, spent, verdict
from .fitted import Fitted, Floats


@dataclass(frozen=True, slots=True)
class Ballots:
    """What the members said of labelled comparisons."""

    votes: Floats
    """Shape (comparisons, members): 1 for the first answer, -1 for the second, 0 for neither."""
    label: Floats
    """Shape (comparisons,): 1 where the first answer is better, else 0."""
    complete: bool = True
    """Whether every member had a verdict on at least half of them; else it was down, and is asked anew."""
    _known: dict[tuple[int, ...], Floats] = field(default_factory=dict)

    def weights(self, present: Sequence[int]) -> Floats:
        """Return the log-odds weights of these members alone; of the others 0."""
        members = tuple(present)
        if members not in self._known:
            self._known[members] = fit_weights(self.votes, self.label, members)
        return self._known[members]


def fit_weights(votes: Floats, label: Floats, present: Sequence[int]) -> Floats:
    """Fit log-odds weights by logistic regression; a member that does harm is cut to 0 and left out.

    Args:
        votes: shape (comparisons, members), in [-1, 1].
        label: shape (comparisons,), in [0, 1].
        present: the members that take part.
    """
    weights = np.zeros(votes.shape[1])
    kept = list(present)
    while kept:
        fitted = logistic(votes[:, kept], label)
        if (fitted >= 0).all():
            weights[kept] = fitted
            break
        del kept[int(fitted.argmin())]
    return weights


class Jury(Fitted):
    """Let several judges vote, with weights that were fitted on labelled pairs.

    The weights are log-odds, by logistic regression; a member that does harm weighs 0. A member that is
    down is waited for: there is no verdict. With `wait: false` the others decide, if they are `quorum`,
    by weights fitted for them alone, and the row is marked partial. A plain majority must be asked for.
    """

    name: ColumnName = "jury"
    judges: tuple[JudgeSpec, ...] = Field(min_length=2)
    """The members."""
    weights: Literal["fitted", "majority"] = "fitted"
    """`majority` counts every vote alike: it amplifies what the members have in common."""
    pairs: tuple[str, ...] = ()
    """Labelled pairs for the weights, files as of an exam; never those that it is examined on."""
    quorum: int | None = Field(None, ge=1)
    """Members that must have a verdict; more than half of them where it is left out."""
    wait: bool = True
    """Whether a member that is down leaves the answer without a verdict, to be asked again."""

    def specs(self) -> tuple[JudgeSpec, ...]:
        """Return how the members are named."""
        return self.judges

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.quorum is not None and self.quorum > len(self.judges):
            raise ValueError(f"quorum {self.quorum} of {len(self.judges)} judges")
        return self

    def _least(self) -> int:
        return super()._least() if self.weights == "fitted" else 0

    def items(self) -> tuple[ExamItem, ...]:
        """Return the labelled pairs; a majority needs none."""
        return super().items() if self.pairs else ()

    async def learn(self, items: Sequence[ExamItem]) -> Ballots:
        """Ask every member about the labelled pairs."""
        asked = await asyncio.gather(*(ask(member, items) for member in self.comparers()))
        votes = np.array(
            [[_signed(v.judgement) if v.parsed else 0.0 for v in votes] for votes in asked]
        ).T
        label = np.array([float(v.item.label == v.first) for v in asked[0]])
        there = [2 * sum(v.parsed for v in votes) >= len(votes) for votes in asked]
        return Ballots(votes, label, complete=all(there))

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates by the members' weighed votes."""
        said = await asyncio.gather(*(member.compare(tasks) for member in self.comparers()))
        rows = list(zip(*said, strict=True))
        ballots = await self._ballots(rows)
        return [
            self._decide(row, ballots, len(t.candidates))
            for row, t in zip(rows, tasks, strict=True)
        ]

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each task's completion the weighed mean of the members' values."""
        members: list[Scorer] = [scorer(judge, self.name) for judge in self.inner]
        said = await asyncio.gather(*(member.score(tasks) for member in members))
        rows = list(zip(*said, strict=True))
        ballots = await self._ballots(rows)
        return [self._value(row, ballots) for row in rows]

    async def _ballots(self, rows: Sequence[Sequence[Judgement]]) -> Ballots | None:
        """Return what the members said of the labelled pairs, if any row can be decided by it."""
        present = [sum(j.status == "ok" for j in row) for row in rows]
        if self.weights == "majority" or not any(self._enough_of(n) for n in present):
            return None
        found: Ballots = await self.fit([j for row in rows for j in row])
        return found

    def _enough_of(self, present: int) -> bool:
        whole = len(self.judges)
        return present == whole or (not self.wait and present >= (self.quorum or whole // 2 + 1))

    def _decide(
        self, row: Sequence[Judgement], ballots: Ballots | None, candidates: int
    ) -> Judgement:
        present = [n for n, j in enumerate(row) if j.status == "ok" and j.ranks]
        weights = self._weights(row, ballots, present)
        if isinstance(weights, Judgement):
            return weights
        if candidates == 2:
            log_odds = sum(weights[n] * _signed(row[n]) for n in present)
            probability = 1 / (1 + math.exp(-max(-30.0, min(30.0, log_odds))))
            costs = [1 - probability, probability]
        else:
            probability = None
            ranked = [(weights[n], row[n].ranks or ()) for n in present]
            costs = [sum(w * ranks[c] for w, ranks in ranked) for c in range(candidates)]
        return self._signed_off(verdict(costs, probability=probability), row, present)

    def _value(self, row: Sequence[Judgement], ballots: Ballots | None) -> Judgement:
        present = [n for n, j in enumerate(row) if j.value is not None]
        weights = self._weights(row, ballots, present)
        if isinstance(weights, Judgement):
            return weights
        total = sum(weights[n] for n in present)
        mean = sum(weights[n] * (row[n].value or 0.0) for n in present) / total
        return self._signed_off(Judgement(min(1.0, mean), raw=mean), row, present)

    def _weights(
        self, row: Sequence[Judgement], ballots: Ballots | None, present: Sequence[int]
    ) -> Floats | Judgement:
        """Return the members' weights, or why there can be no verdict."""
        missing = [n for n in range(len(row)) if n not in present]
        if not self._enough_of(len(present)):
            down = row[missing[0]]
            status = down.status if down.status != "ok" else "parse_error"
            told = f"{self.inner[missing[0]].name} gave no verdict: {down.text}"
            return Judgement.failed(status, told, usage=spent(row))
        if ballots is None:
            return np.ones(len(row))
        weights = ballots.weights(present)
        if not weights.any():
            told = "no member that is there is better than a coin on the labelled pairs"
            return Judgement.failed("error", told, usage=spent(row))
        return weights

    def _signed_off(
        self, made: Judgement, row: Sequence[Judgement], present: Sequence[int]
    ) -> Judgement:
        partial = {"partial": True} if len(present) < len(row) else {}
        votes = ", ".join(f"{self.inner[n].name} {row[n].value}" for n in present)
        return replace(made, usage=spent(row), parts=partial, text=votes)


def _signed(judgement: Judgement) -> float:
    """Return a verdict on two answers in [-1, 1]: 1 where the first one won."""
    return 2 * first_wins(judgement) - 1
