"""What is watched while a job trains, and what ends it before anything is published."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Literal

Ending = Literal["nonfinite", "no_signal", "spiked", "collapsed"]
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
        self._in_a_row = self._quiet = 0
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
