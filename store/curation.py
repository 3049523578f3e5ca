"""Selection in SQL: which answers a select step keeps, in which order, and with which weight.

The SQL of a recipe runs in the jail of `query`, over the answers of its steps alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ..errors import BadInput
from .migrate import LEDGER
from .query import explain, jail, snapshot
from .table import quote
from .tables import render
from .view import identifier
from .views import ANSWERS, render_views

_CHECK_SECONDS = 5.0
"""Longest time of a query on an empty store."""

OWN: dict[str, str] = {
    "rounds_ago": "0 for an answer of this round; more with `replay`",
    "prompt_answers": "How many answers to the prompt the steps gave in that round",
    "prompt_mean": "Mean value of each judge over them: `prompt_mean.verifier`",
    "prompt_spread": "Standard deviation of each judge over them: `prompt_spread.verifier`",
}
"""Columns that a select step has beside those of `answers`."""


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
    replay: int = 0
    """Earlier rounds whose answers are looked at too."""

    @property
    def fragments(self) -> tuple[str, ...]:
        """The user's own SQL, each as one expression."""
        expressions = (self.where, self.weight, self.wanted, self.told)
        return (*expressions, f"list(1 ORDER BY {self.order_by}\n)")

    def sql(self, judges: Sequence[str]) -> str:
        """Return the query; the user's own SQL runs only in the jail.

        `where` is asked of every answer that the steps gave, cut ones too, so that its window functions see all that
        was sampled; the rest of those that are kept.

        Args:
            judges: columns of `answers` that hold values.

        Raises:
            duckdb.Error: a fragment is not one expression. Pasted in unread, `1=1) OR (true` would reach
                around the conditions beside it, and held-out answers would train.
        """
        for fragment in self.fragments:
            duckdb.SQLExpression(fragment)
        # Equal answers to one prompt count once, before anything is ordered or counted.
        once = (
            "row_number() OVER (PARTITION BY prompt_id, answer ORDER BY rounds_ago, slot, id) = 1"
        )
        return f"""
            WITH looked AS ({_looked(judges)}),
            met AS (SELECT * FROM (SELECT *, ({self.where}\n)::BOOLEAN AS "is met" FROM looked) WHERE "is met"),
            kept AS (
                -- What was forgotten, an answer or a prompt, has no words.
                SELECT * FROM met WHERE finish_reason = 'stop' AND answer <> '' AND prompt IS NOT NULL
                QUALIFY {once}
            )
            SELECT id::VARCHAR AS id, prompt_id::VARCHAR AS prompt_id,
                   ({self.weight}\n)::DOUBLE AS weight, ({self.wanted}\n)::BOOLEAN AS wanted,
                   ({self.told}\n)::VARCHAR AS told
            FROM kept ORDER BY {self.order_by}\n, id
        """  # noqa: S608 - the fragments are expressions, and the jail is locked

    def bound(self, round_: int, steps: Sequence[str]) -> dict[str, Any]:
        """Return the query's parameters."""
        return {"round": round_, "oldest": round_ - self.replay, "steps": list(steps)}

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
        sql = choice.sql(_judges(connection))
        found = [
            Chosen(*row) for row in connection.execute(sql, choice.bound(round_, steps)).fetchall()
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


_OF_WHAT = "an aggregate over which answers? say `avg(verifier) OVER (PARTITION BY prompt_id)`"


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
        sql = choice.sql(_judges(connection))
        if _holds(connection, choice, "PARAMETER"):
            return "a parameter stands in it; write the value"
        if _holds(connection, choice, "SUBQUERY"):
            return "a query inside it could read test prompts; use the columns of `answers` alone"
        connection.execute(sql, choice.bound(1, ["sample"])).fetchall()
    except duckdb.Error as error:
        fault = explain(error)
        return _OF_WHAT if "must appear in the GROUP BY" in fault else fault
    finally:
        connection.close()
    return ""


def _holds(connection: duckdb.DuckDBPyConnection, choice: Choice, what: str) -> bool:
    """Whether a fragment holds what it may not: with a query of its own it could see rows of other splits."""
    parsed = [
        connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {f}"]).fetchone()
        for f in choice.fragments
    ]
    return any(tree is None or f'"class":"{what}"' in str(tree[0]) for tree in parsed)


def _judges(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the columns of `answers` that hold a judge's values."""
    columns = [str(row[0]) for row in connection.execute("DESCRIBE answers").fetchall()]
    return [column for column in columns if column not in ANSWERS]


def _looked(judges: Sequence[str]) -> str:
    """Return the query of all answers that a select step looks at, each with the columns of `OWN`."""
    own = ""
    for column, aggregate in (("prompt_mean", "avg"), ("prompt_spread", "stddev_pop")):
        each = (f"{quote(j)}: {aggregate}({identifier(j)}) OVER prompt" for j in judges)
        own += f", {{{', '.join(each)}}} AS {column}" if judges else ""
    return f"""
        SELECT *, ($round - round)::INTEGER AS rounds_ago, count(*) OVER prompt AS prompt_answers{own}
        FROM answers
        WHERE split = 'train' AND round BETWEEN $oldest AND $round AND (
            list_contains($steps, step) OR id IN (
                SELECT s.completion_id FROM selection s
                WHERE s.round BETWEEN $oldest AND $round AND list_contains($steps, s.step)))
        WINDOW prompt AS (PARTITION BY round, prompt_id)
    """  # noqa: S608 - judges are quoted, the rest is ours
