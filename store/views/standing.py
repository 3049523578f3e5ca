"""What views a store has, and which judges its `answers` must have a column for."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from .answers import ANSWERS, judge_columns


def standing_hash(connection: duckdb.DuckDBPyConnection) -> str:
    """Return the hash of the views that are there; the view `snapshot` was made in one transaction with them."""
    try:
        found = connection.execute("SELECT views_hash FROM snapshot").fetchall()
    except (duckdb.CatalogException, duckdb.BinderException):
        return ""  # a new store, or one from before this view
    return str(found[0][0])


def all_judges(connection: duckdb.DuckDBPyConnection, first: Sequence[str]) -> list[str]:
    """Return the judges of the recipe, then the others that have scored, by name.

    Args:
        connection: open on a store.
        first: the judges of the recipe. Who opens a store without its recipe gives none, and leaves the
            columns in the order that they have.
    """
    found = connection.execute(
        "SELECT DISTINCT judge FROM judgement WHERE mode = 'score' AND aspect = '' ORDER BY judge"
    ).fetchall()
    scored = [name for (name,) in found]
    columns = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE database_name = current_database() "
        "AND table_name = 'answers' ORDER BY column_index"
    ).fetchall()
    renamed = judge_columns(scored)
    standing = [renamed.get(name, name) for (name,) in columns if name not in ANSWERS]
    return list(dict.fromkeys([*(first or standing), *scored]))
