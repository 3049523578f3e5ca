"""Taking over rows of another run: the same facts with the same ids, in one transaction.

A chunk is found in the ledger by round, step and chunk alone. So a run that holds another one's rows with
their ledger has done those chunks, and does not do them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb

from .facts import IMPORTED
from .table import Table, quote
from .tables import BY_NAME, TABLES


@dataclass(frozen=True, slots=True)
class Reused:
    """Which rows are taken over."""

    before: int
    """Rounds before this one are, with all their steps."""
    steps: tuple[str, ...]
    """Of this round, the rows of these steps."""
    without: tuple[str, ...]
    """Steps that are not, whatever their round."""


_NEVER = ("run", "schema_migration")
"""Tables whose rows a run writes itself; of its prompts it writes those that were neither imported nor proposed."""

_LINKED = {
    "completion_tokens": ("completion_id", "completion.id"),
    "rendered_prompt": ("id", "completion.rendered_prompt_id"),
    "vote": ("judgement_id", "judgement.id"),
    "rubric": ("id", "judgement.rubric_id"),
    "training_metric": ("training_run_id", "training_run.id"),
    "revision": ("training_run_id", "training_run.id"),
}
"""Tables that know no step: their rows follow those that they belong to."""


def copy_rows(connection: duckdb.DuckDBPyConnection, source: Path, reused: Reused) -> None:
    """Insert another store's rows into this one, which has none of those rounds and steps.

    Args:
        connection: open on the live file, its tables migrated.
        source: the other store's file; is attached read-only, and has the same schema.
        reused: what is taken over.

    Raises:
        duckdb.Error: nothing was inserted.
    """
    path = str(source.absolute()).replace("'", "''")
    connection.execute(f"ATTACH '{path}' AS other (READ_ONLY)")
    try:
        connection.begin()
        try:
            for statement in _statements():
                wanted = {"before": reused.before, "steps": list(reused.steps)}
                wanted["without"] = list(reused.without)
                # A parameter that a statement does not name is refused.
                named = {k: v for k, v in wanted.items() if f"${k}" in statement}
                connection.execute(statement, named)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
    finally:
        connection.execute("DETACH other")


def _statements() -> Iterator[str]:
    """Yield the INSERTs: rows that have a step, then rows that belong to those, then all their texts."""
    late = ("prompt", "content")
    own = [table for table in TABLES if table.name not in (*_NEVER, *late, *_LINKED)]
    linked = [table for table in TABLES if table.name in _LINKED]
    for table in (*own, *linked, BY_NAME["prompt"]):
        yield _insert(table.name, _wanted(table))
    yield _insert(
        "content",
        f"EXISTS (SELECT 1 FROM ({_texts()}) u WHERE u.hash = o.hash AND u.round = o.round)",  # noqa: S608
    )


def _insert(table: str, wanted: str) -> str:
    return f"INSERT INTO {table} BY NAME SELECT o.* FROM other.{table} o WHERE {wanted}"  # noqa: S608


def _wanted(table: Table) -> str:
    if table.name in _LINKED:
        column, target = _LINKED[table.name]
        parent, key = target.split(".")
        return f"o.{column} IN (SELECT p.{key} FROM {parent} p WHERE p.{key} IS NOT NULL)"  # noqa: S608
    if table.name == "prompt":
        # What was proposed knows no step: it follows what the role was asked, and what became a prompt.
        asked = "SELECT prompt_id FROM completion UNION ALL SELECT prompt_id FROM proposal"
        followed = f"o.id IN (SELECT prompt_id FROM ({asked}) WHERE prompt_id IS NOT NULL)"  # noqa: S608
        return f"list_contains(o.tags, {quote(IMPORTED)}) OR (o.round > 0 AND {followed})"
    earlier = "o.round < $before"
    if (
        table.name == "admission"
    ):  # of round 0 are those of the recipe's judges, which each run writes as it begins
        earlier += " AND o.round > 0"
    if not any(column.name == "step" for column in table.columns):
        return earlier
    earlier += " AND NOT list_contains($without::VARCHAR[], o.step)"
    if table.name == "write_batch":
        # `begin` of round 0 tells of the rows that a run writes itself; a stop is named with its id.
        earlier += (
            " AND NOT (o.round = 0 AND o.step = 'begin') AND NOT starts_with(o.step, 'stopped:')"
        )
    if table.name == "step":  # a round that is begun anew writes its steps with their new settings
        return earlier
    of_step = "o.step"
    if table.name == "write_batch":  # `charge:score:ID`, `train:said:ID` are chunks of their steps
        parts = "string_split(o.step, ':')"
        of_step = f"{parts}[CASE WHEN {parts}[1] IN ('charge', 'reservation') THEN 2 ELSE 1 END]"
    return f"({earlier}) OR (o.round = $before AND list_contains($steps::VARCHAR[], {of_step}))"


def _texts() -> str:
    """Return the query of every text that a row in this store names, as the tables declare it."""
    return " UNION ".join(
        f"SELECT {column.name} AS hash, round FROM {table.name} WHERE {column.name} IS NOT NULL"  # noqa: S608
        for table in TABLES
        for column in table.columns
        if column.comment.startswith("content.hash")
    )
