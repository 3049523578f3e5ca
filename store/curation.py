"""Curation in SQL: which completions make preference pairs, and which are kept.

Labels are derived here by query, so that a judge can be changed and a round paired anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb

from ..errors import BadInput
from ..hashing import content_hash
from ..types import Pair
from . import duels
from .duels import NOTHING, Shift
from .migrate import LEDGER
from .query import explain, jail, snapshot
from .store import Store
from .tables import render
from .views import render_views

_CHECK_SECONDS = 5.0
"""Longest time of a query on an empty store."""

Rule = Literal["best_worst", "best_random", "correct_incorrect", "revised_original"]
Labels = Literal["scores", "comparisons"]
"""What a judge said that pairs are made of: values, or verdicts on answers beside each other."""

# A cut answer is never chosen, and an answer without a value is in no pair. Equal texts count once: the
# same answer sampled twice says nothing about which is better; of them, one that ended is kept. Ties end
# by a hash of the id, so that a pair depends on no row order. Groups instead of a window and a join of the
# answers with themselves: this way takes half the CPU (`make bench-store`).
_SCORED = """
WITH judged AS (
    -- A judge may be asked again in a step that is applied later: the last value counts, as in `answers`.
    SELECT completion_id, arg_max(value, epoch_us(created_at) * 1024 + attempt) AS value FROM judgement
    WHERE round = $round AND judge = $judge AND mode = 'score' AND aspect = ''
    GROUP BY completion_id HAVING value IS NOT NULL
),
once AS (
    SELECT c.prompt_id, min({'cut': c.finish_reason <> 'stop', 'id': c.id, 'value': j.value}) AS kept
    FROM completion c JOIN judged j ON j.completion_id = c.id
    WHERE c.round = $round AND list_contains($steps, c.step) AND c.split = 'train'
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
                     AND list_contains($steps, c.step) AND c.finish_reason = 'stop'
"""
_ONCE = """
    QUALIFY row_number() OVER (PARTITION BY c.prompt_id, c.text_hash, o.text_hash ORDER BY c.id) = 1
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
    """,  # noqa: S608
}

# Without a judge every rewrite is taken to be better than what it rewrites.
_BY_RULE = f"""
    SELECT c.prompt_id, c.id AS chosen, o.id AS rejected, 1.0 AS margin, 1.0 AS probability
    FROM {_REWRITES} {_ONCE}
"""  # noqa: S608


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


def pairs_sql(query: PairQuery) -> tuple[str, dict[str, Any]]:
    """Return the query of a round's pairs, and its parameters.

    Its columns are prompt_id, chosen, rejected, margin and probability; a label by values is sure.
    """
    bound: dict[str, Any] = {"round": query.round, "steps": list(query.steps)}
    if not query.judge:
        return _BY_RULE, bound
    bound |= {"judge": query.judge}
    if query.labels == "comparisons":
        sql = duels.sql(query.rule)
        bound |= duels.parameters(query.shift)
    else:
        sql = f"SELECT *, 1.0 AS probability FROM ({_SCORED} {_RULES[query.rule]})"  # noqa: S608
        bound |= {"at_least": query.at_least}
    return sql, bound | ({"seed": query.seed} if "$seed" in sql else {})


def pairs(store: Store, query: PairQuery) -> list[Pair]:
    """Return the preference pairs of a round.

    At most one a prompt but for `correct_incorrect`, and one a rewrite for `revised_original`.
    """
    sql, bound = pairs_sql(query)
    # A judge of length likes an answer that says nothing best; what has no words is never chosen.
    rows = store.rows(
        "SELECT prompt_id::VARCHAR AS prompt_id, chosen::VARCHAR AS chosen, "  # noqa: S608
        "rejected::VARCHAR AS rejected, margin::DOUBLE AS margin, probability::DOUBLE AS probability "
        f"FROM ({sql}) WHERE chosen NOT IN "
        "(SELECT id FROM completion WHERE round = $round AND text_hash = $nothing) ORDER BY ALL",
        bound | {"nothing": content_hash("")},
    )
    return [Pair(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Chosen:
    """An answer that a select step keeps."""

    completion_id: str
    prompt_id: str
    weight: float
    wanted: bool | None
    told: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a select step asks for, in SQL over the `answers` view."""

    where: str = "true"
    order_by: str = "id"
    weight: str = "1.0"
    limit: int | None = None
    per_prompt: int | None = None
    wanted: str = "NULL"
    told: str = "NULL"

    @property
    def fragments(self) -> tuple[str, ...]:
        """The user's own SQL, each as one expression."""
        expressions = (self.where, self.weight, self.wanted, self.told)
        return (*expressions, f"list(1 ORDER BY {self.order_by}\n)")

    def sql(self) -> str:
        """Return the query; the user's own SQL runs only in the jail.

        Raises:
            duckdb.Error: a fragment is not one expression. Pasted in unread, `1=1) OR (true` would reach
                around the conditions beside it, and held-out answers would train.
        """
        for fragment in self.fragments:
            duckdb.SQLExpression(fragment)
        # Equal answers to one prompt count once, before anything is ordered or counted.
        once = "QUALIFY row_number() OVER (PARTITION BY prompt_id, answer ORDER BY slot, id) = 1"
        return (
            f"WITH kept AS (SELECT * FROM answers WHERE round = ? AND list_contains(?, step) "  # noqa: S608
            f"AND split = 'train' AND finish_reason = 'stop' AND answer <> '' AND ({self.where}\n) {once}) "
            f"SELECT id::VARCHAR AS id, prompt_id::VARCHAR AS prompt_id, "
            f"({self.weight}\n)::DOUBLE AS weight, ({self.wanted}\n)::BOOLEAN AS wanted, "
            f"({self.told}\n)::VARCHAR AS told FROM kept ORDER BY {self.order_by}\n, id"
        )

    def cut(self, found: Sequence[Chosen]) -> list[Chosen]:
        """Apply `per_prompt`, then `limit`, to rows in their order."""
        seen: dict[str, int] = {}
        kept = []
        for row in found:
            seen[row.prompt_id] = seen.get(row.prompt_id, 0) + 1
            if self.per_prompt is None or seen[row.prompt_id] <= self.per_prompt:
                kept.append(row)
        return kept[: self.limit]


def choose(run_folder: Path, choice: Choice, round_: int, steps: Sequence[str]) -> list[Chosen]:
    """Return the answers that a select step keeps, in order.

    Runs the user's SQL on the published snapshot, in the same jail as `redistill query`.

    Raises:
        BadInput: the SQL fails on these rows.
    """
    connection = jail(snapshot(run_folder))
    try:
        found = [
            Chosen(*row)
            for row in connection.execute(choice.sql(), [round_, list(steps)]).fetchall()
        ]
    except duckdb.Error as error:
        raise BadInput.at("select", explain(error)) from error
    finally:
        connection.close()
    for row in found:
        if row.weight is None or not math.isfinite(row.weight) or row.weight < 0:
            raise BadInput.at(
                "select",
                f"the weight of answer {row.completion_id[:8]} is {row.weight}",
                "0 or more is wanted",
            )
    return choice.cut(found)


def check_choice(choice: Choice, judges: Sequence[str]) -> str:
    """Return what is wrong with the SQL of a select step, or nothing; asks an empty store."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "max_execution_time": str(int(_CHECK_SECONDS * 1000)),
    }
    connection = duckdb.connect(":memory:", config=config)
    try:
        connection.execute(f"BEGIN; {LEDGER}; {render()} {render_views(judges)} COMMIT")
        connection.execute("SET lock_configuration = true")
        connection.execute(choice.sql(), [1, ["sample"]]).fetchall()
        if _looks_elsewhere(connection, choice):
            return "a query inside it could read test prompts; use the columns of `answers` alone"
    except duckdb.Error as error:
        return explain(error)
    finally:
        connection.close()
    return ""


def _looks_elsewhere(connection: duckdb.DuckDBPyConnection, choice: Choice) -> bool:
    """Whether a fragment holds a query of its own, and so could see rows of other splits."""
    parsed = [
        connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {f}"]).fetchone()
        for f in choice.fragments
    ]
    return any(tree is None or '"class":"SUBQUERY"' in str(tree[0]) for tree in parsed)
