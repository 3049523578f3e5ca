"""What is watched while a job trains, and what ends it before anything is published."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Literal

Ending = Literal["nonfinite", "no_signal", "spiked", "collapsed", "wrong_weights", "unfit_teacher"]
_HISTORY = 50
"""Steps whose gradient norms tell what is usual."""
_LEAST = 6
"""Steps before anything counts as unusual."""
_TIMES = 10.0
"""Share of the usual norm, and number of deviations from it, that is a spike."""
_MOST_SPIKES = 3
"""Skipped steps in a row that end the job: then it is no accident of one batch."""
_QUIET = 3
"""First steps without any gradient that end the job."""
_SILENT = 10
"""First steps whose rollouts say nothing that end the job: a small step may well be all right or all wrong."""
_ILL = 3
"""Steps in a row whose rollouts are ill that end the job."""
_ILL_SHARE = 0.5
"""Of rollouts that are cut, or of an answer that repeats itself, that is ill, where it was not so from the first."""
_WILD = 3.0, 1.0
"""How often the first steps' surprisal, and nats a token more, is ill."""
_APART = 0.5
"""Nats a token between what sampled and what is trained that only other weights explain."""


class Stopped(Exception):
    """The job must not go on; its last step has not been taken."""

    def __init__(self, status: Ending, message: str) -> None:
        super().__init__(message)
        self.status = status


class Watch:
    """Looks at each step's numbers.

    Args:
        floor: nats a token by which chosen answers may become rarer than under the reference; 0 for no floor.
    """

    def __init__(self, floor: float = 0.0) -> None:
        self._floor = floor
        self._norms: deque[float] = deque(maxlen=_HISTORY)
        self._in_a_row = self._quiet = self._silent = 0
        self._first: Mapping[str, float] = {}
        self._ill: list[str] = []
        self.spikes: list[int] = []
        """Steps that were skipped."""

    def finite(self, step: int, what: str, value: float) -> None:
        """Refuse a loss or a gradient that is no number.

        Raises:
            Stopped: it is none; transformers itself logs a NaN loss as 0.0 and goes on.
        """
        if not math.isfinite(value):
            raise Stopped("nonfinite", f"{what} is {value} in step {step}")

    def gradient(self, step: int, norm: float) -> bool:
        """Return whether the step may be taken: not where its gradient is far from all before it.

        Args:
            step: number of the step, from 1.
            norm: of its gradient, before it is scaled down.

        Raises:
            Stopped: the norm is no number, there is no gradient at all, or one spike follows another.
        """
        self.finite(step, "gradient norm", norm)
        self._quiet = self._quiet + 1 if norm == 0 else 0
        if self._quiet == _QUIET == step:
            told = f"the first {_QUIET} steps had no gradient: their rows prefer nothing"
            raise Stopped("no_signal", told)
        if not self._spikes(norm):
            self._norms.append(norm)
            self._in_a_row = 0
            return True
        self.spikes.append(step)
        self._in_a_row += 1
        if self._in_a_row == _MOST_SPIKES:
            usual = statistics.median(self._norms)
            told = f"gradient norms of {norm:.3g} in step {step} and before, {usual:.3g} is usual"
            raise Stopped("spiked", told)
        return False

    def past(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of a step that was taken before the job was cut off."""
        if values["grad_norm"] or not values.get("rollouts/tokens"):
            self.gradient(step, values["grad_norm"])
        if "rollouts/tokens" in values:
            self.heard(step, silent=values["rollouts/used"] == 0)
            self.sampled(step, values)

    def heard(self, step: int, *, silent: bool) -> None:
        """Take note of whether any rollout of a step is worth more than others.

        Raises:
            Stopped: none has been since the first step.
        """
        self._silent += silent
        if self._silent == step == _SILENT:
            told = f"in the first {_SILENT} steps all rollouts of a prompt earned the same"
            raise Stopped("no_signal", told)

    def sampled(self, step: int, values: Mapping[str, float]) -> None:
        """Look at what a step's rollouts were like.

        Raises:
            Stopped: they have become endless, repeat themselves, or are gibberish.
        """
        self._first = self._first or dict(values)
        ill = self._illness(values)
        self._ill = [*self._ill, ill] if ill else []
        if len(self._ill) == _ILL:
            told = f"{ill} in step {step} and the {_ILL - 1} before: a smaller learning_rate or a "
            raise Stopped("collapsed", told + "larger beta keeps the policy")

    def _illness(self, values: Mapping[str, float]) -> str:
        shares = {"cut": "of rollouts are cut", "repeats": "of what is said repeats itself"}
        for name, words in shares.items():
            share, before = (v[f"rollouts/{name}"] for v in (values, self._first))
            if share > max(_ILL_SHARE, 2 * before):
                return f"{share:.0%} {words}"
        now, before = (v["rollouts/surprisal"] for v in (values, self._first))
        if now > _WILD[0] * before + _WILD[1]:
            return f"rollouts have a surprisal of {now:.2f} nats a token, and had {before:.2f}"
        return ""

    def apart(self, step: int, gap: float) -> None:
        """Look at how far the log-probs at sampling are from those in training.

        Raises:
            Stopped: other weights sampled than are trained.
        """
        if gap > _APART:
            told = f"rollouts of step {step} are {gap:.2f} nats a token from what is trained"
            raise Stopped("wrong_weights", told)

    def _spikes(self, norm: float) -> bool:
        if len(self._norms) < _LEAST:
            return False
        usual = statistics.median(self._norms)
        spread = statistics.median(abs(n - usual) for n in self._norms)
        return norm > _TIMES * usual and norm > usual + _TIMES * spread

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Look at what a step was measured to do.

        Raises:
            Stopped: chosen answers have become too rare.
        """
        fallen = -values.get("chosen_change", 0.0)
        if self._floor and fallen > self._floor:
            told = (
                f"chosen answers have become {fallen:.2f} nats a token rarer by step {step}, "
                f"{self._floor:g} are allowed: a smaller learning_rate keeps them"
            )
            raise Stopped("collapsed", told)
