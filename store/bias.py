"""What moves a judge besides merit: the place of an answer, its length, and who wrote it.

Estimated from the comparisons that stand in a store, without any label. Only what is no merit may be
taken out: where longer answers are better in truth, the length effect holds that too, and a judge that
was corrected on labelled pairs (`length_corrected`) is the better way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .duels import DUELS, Shift
from .store import Store

Effect = Literal["position", "length", "self"]
EFFECTS: tuple[Effect, ...] = get_args(Effect)
Floats = NDArray[np.float64]
LEAST = 20
"""Prompts without which nothing is estimated: an interval from fewer clusters is too short."""
_Z = 1.959964
_SEEN = (
    "WITH "
    + DUELS.format(rounds="<= $round")
    + """
SELECT prompt_id::VARCHAR AS prompt_id, position, length, own, share FROM met ORDER BY ALL
"""
)


@dataclass(frozen=True, slots=True)
class Estimated:
    """One effect in log-odds that the favoured answer wins, with its 95 % interval."""

    effect: Effect
    estimate: float
    ci_low: float
    ci_high: float

    @property
    def real(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.ci_low > 0 or self.ci_high < 0


@dataclass(frozen=True, slots=True)
class Bias:
    """What was estimated of one judge."""

    judge: str
    duels: int
    """Showings of two answers, every two of a list counted."""
    prompts: int
    effects: tuple[Estimated, ...]
    """Those that the comparisons can tell: the self-preference of a judge that wrote no answer is not there."""

    def shift(self, wanted: Collection[str]) -> Shift:
        """Return what is taken out: of the effects that are wanted, those whose interval leaves zero out."""
        real = {e.effect: e.estimate for e in self.effects if e.real and e.effect in wanted}
        return Shift(real.get("position", 0.0), real.get("length", 0.0), real.get("self", 0.0))

    def told(self, wanted: Collection[str]) -> str:
        """Return one line for people."""
        if not self.effects:
            return (
                f"{self.judge} compared answers to {self.prompts} prompts: too few to tell a bias"
            )
        parts = [
            f"{e.effect} {e.estimate:+.2f} ({e.ci_low:+.2f} to {e.ci_high:+.2f})"
            f"{' taken out' if e.real and e.effect in wanted else ''}"
            for e in self.effects
        ]
        return f"{self.judge} in log-odds: {', '.join(parts)}"

    def as_dict(self, wanted: Collection[str]) -> dict[str, Any]:
        """Return what an event says of it, with which effects were taken out."""
        told = [asdict(e) | {"removed": e.real and e.effect in wanted} for e in self.effects]
        return {"judge": self.judge, "duels": self.duels, "prompts": self.prompts, "effects": told}


def estimate_bias(store: Store, judge: str, round_: int) -> Bias:
    """Estimate a judge's effects from all its comparisons up to a round.

    logit P(the one shown first wins) = position x place + length x log ratio of the lengths + self x (1
    where the judge wrote the first one alone, -1 where the second). Place is 1 for two answers, and for two
    of a list their distance over the list's; the log ratio is of characters, within -2 and 2. A soft
    probability is a share of a win, a tie half of one (fractional logit: Papke and Wooldridge 1996), and the
    95 % intervals are Wald's with errors clustered by prompt, because the duels of a prompt are not
    independent (Liang and Zeger 1986). Length control by regression: AlpacaEval, arXiv 2404.04475.

    The effects are those on an average pair. Merit, which is not seen, makes them smaller than those on
    two equal answers: too little is taken out rather than too much.

    Args:
        store: the run's.
        judge: its name.
        round_: the last round that is looked at.
    """
    rows = store.rows(_SEEN, {"judge": judge, "round": round_})
    prompts = np.array([row["prompt_id"] for row in rows])
    columns: dict[Effect, Floats] = {
        "position": np.array([row["position"] for row in rows], dtype=float),
        "length": np.array([row["length"] for row in rows], dtype=float),
        "self": np.array([row["own"] for row in rows], dtype=float),
    }
    known = [effect for effect in EFFECTS if columns[effect].any()]
    count = np.unique(prompts).size
    if count < LEAST or not known:
        return Bias(judge, len(rows), count, ())
    share = np.array([row["share"] for row in rows], dtype=float)
    weights, errors = clustered(np.column_stack([columns[e] for e in known]), share, prompts)
    found = zip(known, weights.tolist(), errors.tolist(), strict=True)
    effects = tuple(Estimated(e, w, w - _Z * error, w + _Z * error) for e, w, error in found)
    return Bias(judge, len(rows), count, effects)


def logistic(x: Floats, y: Floats, *, ridge: float = 1.0, steps: int = 50) -> Floats:
    """Fit a logistic regression without intercept by Newton's method.

    Args:
        x: shape (n, d).
        y: shape (n,), in [0, 1].
        ridge: strength of the L2 penalty; without it, separable labels have no finite optimum.
        steps: at most so many.

    Returns:
        Shape (d,): weights in logits.
    """
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        share = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (share - y) + ridge * weights
        curve = (x * (share * (1 - share))[:, None]).T @ x + ridge * np.eye(x.shape[1])
        step = np.linalg.solve(curve, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def clustered(
    x: Floats, y: Floats, cluster: NDArray[Any], *, ridge: float = 1.0
) -> tuple[Floats, Floats]:
    """Fit a logistic regression, with standard errors that hold where rows of a cluster are dependent.

    Args:
        x: shape (n, d).
        y: shape (n,), in [0, 1].
        cluster: shape (n,), which rows belong together.
        ridge: strength of the L2 penalty.

    Returns:
        Weights and their standard errors, each of shape (d,).
    """
    weights = logistic(x, y, ridge=ridge)
    share = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
    curve = (x * (share * (1 - share))[:, None]).T @ x + ridge * np.eye(x.shape[1])
    _, place = np.unique(cluster, return_inverse=True)
    score = np.zeros((place.max() + 1, x.shape[1]))
    np.add.at(score, place, x * (y - share)[:, None])
    bread = np.linalg.inv(curve)
    count = len(score)
    spread = bread @ (score.T @ score) @ bread * (count / max(1, count - 1))
    return weights, np.sqrt(np.diag(spread))
