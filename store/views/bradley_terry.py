"""The view `bradley_terry`: strengths of revisions from who beat whom.

Bradley and Terry 1952: P(a beats b) = 1 / (1 + exp(s_b - s_a)). It is fitted in Python, so it is no view
of the file; `query` makes it in the reader's own memory where the SQL names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from ...hashing import content_hash, row_seed
from ..view import View

PRIOR = 0.1
"""Wins that every two revisions get over each other, so that one that never loses has a strength."""
_SAMPLES = 300
_LEVEL = 0.95

BRADLEY_TERRY = View(
    "bradley_terry",
    "Strength of each revision by judge, fitted to all `contests`, splits pooled (Bradley and Terry 1952); "
    f"ties count half for both, and every two revisions get {PRIOR} wins over each other, so that one that "
    "never loses has a finite strength. Made by `redistill query` only",
    {
        "judge": "Name of the judge",
        "revision": "Content hash of the weights that spoke, or the name of a model that is none of ours",
        "short_id": "First 8 characters of the revision; a model's name in full",
        "strength": "Natural log; the mean over a judge's revisions is 0",
        "ci_low": "Lower end of its 95 % interval, from resampled prompts",
        "ci_high": "Upper end of its 95 % interval",
        "wins": "Contests won, ties as half",
        "comparisons": "Contests",
    },
)

TABLE = """
CREATE {kind} TABLE bradley_terry (
    {run}judge VARCHAR, revision VARCHAR, short_id VARCHAR, strength DOUBLE, ci_low DOUBLE, ci_high DOUBLE,
    wins DOUBLE, comparisons BIGINT
)
"""


@dataclass(frozen=True, slots=True)
class Contest:
    """One meeting of two revisions on a prompt."""

    prompt: str
    revision: str
    opponent: str
    outcome: float


def strengths(connection: duckdb.DuckDBPyConnection, catalog: str) -> list[tuple[Any, ...]]:
    """Return the rows of the view for an attached store.

    Args:
        connection: a jail; its door is locked, since `contests` comes with the file.
        catalog: the store's name there, quoted.
    """
    found = connection.execute(
        f"SELECT judge, prompt_id::VARCHAR, revision, opponent, outcome FROM {catalog}.main.contests "  # noqa: S608
        "ORDER BY ALL"
    ).fetchall()
    by_judge: dict[str, list[Contest]] = {}
    for judge, *contest in found:
        by_judge.setdefault(judge, []).append(Contest(*contest))
    return [(judge, *row) for judge, contests in by_judge.items() for row in fit(contests)]


def fit(contests: Sequence[Contest]) -> list[tuple[str, str, float, float, float, float, int]]:
    """Return (revision, short id, strength, low, high, wins, comparisons), strongest first.

    The interval is a percentile bootstrap over prompts (Efron 1979), seeded by the contests themselves.
    """
    import numpy as np

    ordered = sorted(contests, key=lambda c: (c.prompt, c.revision, c.opponent, c.outcome))
    names = sorted({name for c in ordered for name in (c.revision, c.opponent)})
    place = {name: index for index, name in enumerate(names)}
    prompts = {name: index for index, name in enumerate(dict.fromkeys(c.prompt for c in ordered))}
    of_prompt = np.array([prompts[c.prompt] for c in ordered])
    sides = np.array([(place[c.revision], place[c.opponent]) for c in ordered])
    outcome = np.array([c.outcome for c in ordered])

    def wins(weight: Any) -> Any:
        """Return how often each revision (row) beat each other one (column)."""
        matrix = np.zeros((len(names), len(names)))
        np.add.at(matrix, (sides[:, 0], sides[:, 1]), outcome * weight)
        np.add.at(matrix, (sides[:, 1], sides[:, 0]), (1 - outcome) * weight)
        return matrix

    whole = wins(np.ones(len(ordered)))
    best = _strength(whole, None)
    draw = np.random.default_rng(row_seed(content_hash([_plain(c) for c in ordered])))
    samples = []
    for _ in range(_SAMPLES):
        picked = np.bincount(draw.integers(0, len(prompts), len(prompts)), minlength=len(prompts))
        samples.append(_strength(wins(picked[of_prompt]), best))
    low, high = np.quantile(samples, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    met = np.bincount(sides.ravel(), minlength=len(names))
    rows = [
        (name, _short(name), float(best[i]), float(low[i]), float(high[i]),
         float(whole[i].sum()), int(met[i]))
        for i, name in enumerate(names)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def _strength(wins: Any, start: Any) -> Any:
    import choix
    import numpy as np

    prior = PRIOR * (1 - np.eye(len(wins)))
    found = choix.ilsr_pairwise_dense(wins + prior, initial_params=start, max_iter=1000)
    return found - found.mean()


def _plain(contest: Contest) -> list[Any]:
    return [contest.prompt, contest.revision, contest.opponent, contest.outcome]


def _short(revision: str) -> str:
    """Return the first 8 characters of a content hash, a name in full."""
    is_hash = len(revision) >= 16 and not set(revision) - set("0123456789abcdef")
    return revision[:8] if is_hash else revision
