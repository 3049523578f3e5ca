"""Pairs in SQL: which answers to one prompt make preference pairs, by which rule.

Labels are derived here by query, so that a judge can be changed and a round paired anew.
"""

# ruff: noqa: S608 - pieces of constants of this module; whatever comes from outside is bound
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..hashing import content_hash, row_seed
from ..types import Pair
from . import duels
from .duels import NOTHING, Shift
from .sources import PLACED, SOURCE
from .store import Row, Store

Rule = Literal[
    "best_worst", "best_random", "correct_incorrect", "revised_original", "contrast", "gold_self"
]
Labels = Literal["scores", "comparisons"]
"""What a judge said that pairs are made of: values, or verdicts on answers beside each other."""
BY_STEPS: tuple[Rule, ...] = ("contrast", "gold_self")
"""Rules in which the steps say which answer is better, an earlier one than a later one."""
ALONE: tuple[Rule, ...] = ("revised_original", *BY_STEPS)
"""Rules that need no judge."""

# A judge may be asked again in a step that is applied later: the last value counts, as in `answers`.
_JUDGED = """
judged AS (
    SELECT completion_id, arg_max(value, epoch_us(created_at) * 1024 + attempt) AS value FROM judgement
    WHERE round = $round AND judge = $judge AND mode = 'score' AND aspect = ''
    GROUP BY completion_id HAVING value IS NOT NULL
)
"""

# A cut answer is never chosen, and an answer without a value is in no pair. Equal texts count once: the
# same answer sampled twice says nothing about which is better; of them, one that ended is kept. Ties end
# by a hash of the id, so that a pair depends on no row order. Groups instead of a window and a join of the
# answers with themselves: this way takes half the CPU (`make bench-store`).
_SCORED = """
once AS (
    SELECT c.prompt_id, min({'cut': c.finish_reason <> 'stop', 'id': c.id, 'value': j.value}) AS kept
    FROM source c JOIN judged j ON j.completion_id = c.id
    GROUP BY c.prompt_id, c.text_hash
),
scored AS (
    SELECT prompt_id, kept.id AS id, kept.value AS value, NOT kept.cut AND kept.value >= $at_least AS may
    FROM once
),
best AS (
    SELECT prompt_id, arg_max(id, (value, md5(id::VARCHAR), id)) AS id, max(value) AS value
    FROM scored WHERE may GROUP BY prompt_id
)
"""

# The answers that rewrite another one, each with its original; equal texts count once.
_REWRITES = """
    completion c
    JOIN completion o ON o.id = c.parent_id AND o.prompt_id = c.prompt_id AND o.text_hash <> c.text_hash
                     AND c.round = $round AND o.round = $round AND c.split = 'train' AND o.split = 'train'
                     AND c.id IN (SELECT id FROM source) AND c.finish_reason = 'stop'
"""
_ONCE = """
    QUALIFY row_number() OVER (PARTITION BY c.prompt_id, c.text_hash, o.text_hash ORDER BY c.id) = 1
"""

# Every answer of a step against every answer of a later one.
_AGAINST = """
    placed good JOIN placed bad ON bad.prompt_id = good.prompt_id AND bad.place > good.place AND NOT good.cut
"""

# Where a judge is asked too, it must have looked at both, and agree.
_AGREED = f"""
    SELECT good.prompt_id, good.id AS chosen, bad.id AS rejected, new.value - old.value AS margin
    FROM {_AGAINST}
    JOIN judged new ON new.completion_id = good.id AND new.value >= $at_least
    JOIN judged old ON old.completion_id = bad.id AND old.value < new.value
"""

# md5, because the engine's own `hash(id, seed)` draws unevenly (of three answers it gave one half of all
# draws), and need not stay the same from one version to the next.
_RULES: dict[Rule, str] = {
    "best_worst": """
        SELECT prompt_id, arg_max(id, (value, md5(id::VARCHAR), id)) FILTER (may) AS chosen,
               arg_min(id, (value, md5(id::VARCHAR), id)) AS rejected,
               max(value) FILTER (may) - min(value) AS margin
        FROM scored GROUP BY prompt_id HAVING max(value) FILTER (may) > min(value)
    """,
    "best_random": """
        SELECT b.prompt_id, b.id AS chosen, arg_min(s.id, (md5(s.id::VARCHAR || $seed), s.id)) AS rejected,
               b.value - arg_min(s.value, (md5(s.id::VARCHAR || $seed), s.id)) AS margin
        FROM best b JOIN scored s ON s.prompt_id = b.prompt_id AND s.value < b.value
        GROUP BY b.prompt_id, b.id, b.value
    """,
    "correct_incorrect": """
        SELECT good.prompt_id, good.id AS chosen, bad.id AS rejected, good.value - bad.value AS margin
        FROM scored good JOIN scored bad ON bad.prompt_id = good.prompt_id AND bad.value < good.value
        WHERE good.may
    """,
    # The original is of any step; where the judge has no value of one of the two, there is no pair.
    "revised_original": f"""
        SELECT c.prompt_id, c.id AS chosen, o.id AS rejected, new.value - old.value AS margin
        FROM {_REWRITES}
        JOIN judged new ON new.completion_id = c.id AND new.value >= $at_least
        JOIN judged old ON old.completion_id = o.id AND old.value < new.value
        {_ONCE}
    """,
    "contrast": _AGREED,
    "gold_self": _AGREED,
}

# Without a judge every rewrite is taken to be better than what it rewrites, and every answer of a step than
# those of later ones.
_ALONE: dict[Rule, str] = {
    "revised_original": f"SELECT c.prompt_id, c.id AS chosen, o.id AS rejected FROM {_REWRITES} {_ONCE}",
    **dict.fromkeys(
        BY_STEPS, f"SELECT good.prompt_id, good.id AS chosen, bad.id AS rejected FROM {_AGAINST}"
    ),
}


@dataclass(frozen=True, slots=True)
class PairQuery:
    """What is paired."""

    round: int
    steps: tuple[str, ...]
    judge: str
    """Its name; empty where the rule alone decides."""
    rule: Rule
    at_least: float
    """Smallest value that may be chosen; 1 where the judge is the verifier. Comparisons know no value."""
    seed: int
    labels: Labels = "scores"
    shift: Shift = NOTHING
    """What is taken out of comparisons."""
    replay: int = 0
    """Earlier rounds whose answers are paired too, each among themselves."""
    per_prompt: int | None = None
    """Most pairs of one prompt."""
    min_margin: float = 0.0
    """Smallest margin."""
    length_ratio: float | None = None
    """Most characters of chosen for each of rejected."""


def pairs_sql(query: PairQuery) -> tuple[str, dict[str, Any]]:
    """Return the query of a round's pairs, and its parameters.

    Its columns are prompt_id, chosen, rejected, margin and probability; a label by values is sure.
    """
    bound: dict[str, Any] = {"round": query.round, "steps": list(query.steps)}
    placed = f", {PLACED}" if query.rule in BY_STEPS else ""
    if not query.judge:
        made = f"WITH {SOURCE}{placed} {_ALONE[query.rule]}"
        return f"SELECT *, 1.0 AS margin, 1.0 AS probability FROM ({made})", bound
    bound |= {"judge": query.judge}
    if query.labels == "comparisons":
        sql = duels.sql(query.rule)
        bound |= duels.parameters(query.shift)
    else:
        scored = "" if query.rule in ALONE else f", {_SCORED}"
        made = f"WITH {SOURCE}{placed}, {_JUDGED}{scored} {_RULES[query.rule]}"
        sql = f"SELECT *, 1.0 AS probability FROM ({made})"
        bound |= {"at_least": query.at_least}
    return sql, bound | ({"seed": query.seed} if "$seed" in sql else {})


def pairs(store: Store, query: PairQuery) -> list[Pair]:
    """Return the preference pairs of a round, and of those before it that are replayed.

    At most one a prompt and round for `best_worst` and `best_random`, and one a rewrite for `revised_original`. The
    same two texts are paired once, in the newest round. With `per_prompt` the newest come first, then those with the
    widest margin, then those of the same slot, then as the seed draws.
    """
    found: list[Row] = []
    for age in range(query.replay + 1):
        made = _pairs_of(store, query, age)
        found += [row | {"age": age} for row in made] if query.replay else made
    if query.replay:
        once: dict[tuple[str, str, str], Row] = {}
        for row in found:
            once.setdefault((row["prompt_id"], row["chosen_text"], row["rejected_text"]), row)
        found = list(once.values())
    return [
        Pair(row["prompt_id"], row["chosen"], row["rejected"], row["margin"], row["probability"])
        for row in _capped(found, query)
    ]


# What the bounds ask of the two answers; joined only where there is one, because these joins take as long as the rest.
_SIDES = """
        JOIN completion c ON c.id = m.chosen AND c.round = $round
        JOIN completion r ON r.id = m.rejected AND r.round = $round
"""
_NO_LONGER = """
        JOIN content t ON t.hash = c.text_hash AND t.round = c.round
        JOIN content u ON u.hash = r.text_hash AND u.round = r.round
                      AND length(t.text) <= $ratio * length(u.text)
"""
# Of the round that is running nothing may be forgotten; of earlier ones it may, and then nothing of it is trained again.
_STILL_THERE = """
        AND c.text_hash NOT IN (SELECT hash FROM content WHERE forgotten_at IS NOT NULL AND round = $round)
        AND r.text_hash NOT IN (SELECT hash FROM content WHERE forgotten_at IS NOT NULL AND round = $round)
        AND m.prompt_id NOT IN (
            SELECT p.id FROM prompt p JOIN content q ON q.hash = p.messages_hash AND q.round = p.round
            WHERE q.forgotten_at IS NOT NULL)
"""


def _pairs_of(store: Store, query: PairQuery, age: int) -> list[Row]:
    """Return the pairs of the query's round, or of one so many rounds ago, that keep its bounds."""
    sql, bound = pairs_sql(replace(query, round=query.round - age))
    bound |= {"nothing": content_hash(""), "margin": query.min_margin}
    columns = sides = ""
    if query.replay or query.per_prompt or query.length_ratio:
        columns = (
            ", c.text_hash AS chosen_text, r.text_hash AS rejected_text, c.slot <> r.slot AS apart"
        )
        sides = _SIDES
    if query.length_ratio:
        bound["ratio"] = query.length_ratio
        sides += _NO_LONGER
    # A judge of length likes an answer that says nothing best; what has no words is never chosen.
    return store.rows(
        f"""
        SELECT m.prompt_id::VARCHAR AS prompt_id, m.chosen::VARCHAR AS chosen,
               m.rejected::VARCHAR AS rejected, m.margin::DOUBLE AS margin,
               m.probability::DOUBLE AS probability {columns}
        FROM ({sql}) m {sides}
        WHERE m.chosen NOT IN (SELECT id FROM completion WHERE round = $round AND text_hash = $nothing)
          AND round(m.margin, 9) >= $margin {_STILL_THERE if age else ""}
        ORDER BY m.prompt_id, m.chosen, m.rejected
        """,
        bound,
    )


def _capped(found: Iterable[Row], query: PairQuery) -> Sequence[Row]:
    """Apply `per_prompt`."""
    if query.per_prompt is None:
        return list(found)

    def order(row: Row) -> tuple[Any, ...]:
        drawn = row_seed(f"{query.seed} {row['chosen']} {row['rejected']}")
        return (row.get("age", 0), -round(row["margin"], 9), row["apart"], drawn)

    by_prompt: dict[str, list[Row]] = {}
    for row in sorted(found, key=order):
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    return [row for rows in by_prompt.values() for row in rows[: query.per_prompt]]
