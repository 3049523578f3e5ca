"""A store written anew without some texts: a new file, so that no old byte stays in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from ..errors import EnvironmentProblem, StoreProblem
from .store import FILE, Store, now
from .table import quote
from .tables import TABLES

if TYPE_CHECKING:
    from .forget import Forgetting

Row = dict[str, Any]
SIDE = ".forget"
"""Folder, in the run's, in which the new store is written."""
SEARCHED = 8
"""Characters from which on a text is looked for inside other texts; shorter ones are in everything."""

_COMPLETION = "completion_id IN (FROM gone_completion)"
_RENDERED = "id IN (FROM gone_rendered)"

# Column by column, what a row that is forgotten has instead. Checks of the tables hold for these.
_BLANKS: Mapping[str, Mapping[str, str]] = {
    "content": {
        "text": "coalesce((SELECT g.blank FROM gone_content g WHERE g.hash = o.hash), o.text)",
        "forgotten_at": "CASE WHEN o.hash IN (SELECT hash FROM gone_content) "
        "THEN coalesce(o.forgotten_at, gone_when()) ELSE o.forgotten_at END",
    },
    "completion_tokens": {
        "token_ids": f"CASE WHEN {_COMPLETION} THEN [] ELSE token_ids END",
        "logprobs": f"CASE WHEN {_COMPLETION} THEN [] ELSE logprobs END",
        "rewards": f"CASE WHEN {_COMPLETION} AND rewards IS NOT NULL THEN [] ELSE rewards END",
        "trainable": f"CASE WHEN {_COMPLETION} AND trainable IS NOT NULL THEN [] ELSE trainable END",
    },
    "token_distribution": {
        "logprobs": f"CASE WHEN {_COMPLETION} THEN [] ELSE logprobs END",
        "top_ids": f"CASE WHEN {_COMPLETION} AND top_ids IS NOT NULL THEN [] ELSE top_ids END",
        "top_logprobs": f"CASE WHEN {_COMPLETION} AND top_ids IS NOT NULL THEN [] ELSE top_logprobs END",
    },
    "rendered_prompt": {"token_ids": f"CASE WHEN {_RENDERED} THEN [] ELSE token_ids END"},
    "judgement": {"parts": "coalesce((SELECT g.new FROM gone_json g WHERE g.id = o.id), o.parts)"},
    "event": {"detail": "coalesce((SELECT g.new FROM gone_json g WHERE g.id = o.id), o.detail)"},
    "training_run": {
        "message": "coalesce((SELECT g.new FROM gone_json g WHERE g.id = o.id), o.message)"
    },
}


def write_blanked(folder: Path, side: Path, plan: Forgetting, event: Row) -> None:
    """Write the store of a run into another folder, blanked, with the event that says so.

    Raises:
        EnvironmentProblem: the new file cannot be written.
        StoreProblem: the new store has other rows than the old one.
    """
    if (folder / f"{FILE}.wal").exists():
        raise StoreProblem(f"{FILE} has rows that were never put into it; resume the run first")
    try:
        side.mkdir()
        with closing(Store(side)) as store:
            store.work(lambda connection: _fill(connection, folder / FILE, plan))
            store.refresh_views()
            step = f"forgotten:{event['id']}"
            store.commit({"event": [event]}, round=0, step=step, chunk=0)
    except (duckdb.Error, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise EnvironmentProblem(f"the store cannot be written anew: {first}") from error


def _fill(connection: duckdb.DuckDBPyConnection, old: Path, plan: Forgetting) -> None:
    connection.execute(f"ATTACH {quote(str(old.absolute()))} AS old (READ_ONLY)")
    try:
        _name_gone(connection, plan)
        for table in TABLES:
            blanks = _BLANKS.get(table.name, {})
            replaced = ", ".join(f"{sql} AS {name}" for name, sql in blanks.items())
            chosen = f"o.* REPLACE ({replaced})" if replaced else "o.*"
            connection.execute(
                f"INSERT INTO {table.name} BY NAME SELECT {chosen} FROM old.{table.name} o"  # noqa: S608
            )
        _compare(connection)
        _copy_answers(connection)
    finally:
        connection.execute("DETACH old")


def _name_gone(connection: duckdb.DuckDBPyConnection, plan: Forgetting) -> None:
    """Put what is forgotten into temporary tables; they hold ids and blanks, no text that goes."""
    for name, ids in (("gone_completion", plan.gone), ("gone_rendered", plan.rendered)):
        _table(connection, name, {"id": list(ids)}, "id::UUID AS id")
    blanks = {"hash": list(plan.blanks), "blank": list(plan.blanks.values())}
    _table(connection, "gone_content", blanks, "*")
    changed = _changed(connection, plan)
    named = {"id": list(changed), "new": list(changed.values())}
    _table(connection, "gone_json", named, "id::UUID AS id, new")
    when = quote(now().isoformat())
    connection.execute(f"CREATE TEMP MACRO gone_when() AS {when}::TIMESTAMPTZ")


def _table(
    connection: duckdb.DuckDBPyConnection, name: str, columns: dict[str, list[str]], chosen: str
) -> None:
    data = pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()})
    connection.register("incoming", data)
    connection.execute(f"CREATE TEMP TABLE {name} AS SELECT {chosen} FROM incoming")  # noqa: S608
    connection.unregister("incoming")


def _changed(connection: duckdb.DuckDBPyConnection, plan: Forgetting) -> dict[str, str]:
    """Return the new text of each JSON value and message that held one of the texts, by row id."""
    words = plan.sought
    changed = {}
    spoken = connection.execute(
        "SELECT id::VARCHAR, parts FROM old.judgement WHERE id IN (SELECT unnest(?::UUID[]))",
        [list(plan.judgements)],
    )
    for identifier, parts in spoken.fetchall():
        changed[identifier] = json.dumps(without(json.loads(parts), None))
    events = connection.execute("SELECT id::VARCHAR, detail FROM old.event")
    for identifier, detail in events.fetchall():
        value = json.loads(detail)
        if (new := without(value, words)) != value:
            changed[identifier] = json.dumps(new)
    runs = connection.execute("SELECT id::VARCHAR, message FROM old.training_run")
    for identifier, message in runs.fetchall():
        if (new := without(message, words)) != message:
            changed[identifier] = new
    return changed


def without(value: Any, words: Sequence[str] | None) -> Any:
    """Return a JSON value without some words in its texts; without any text where None is given."""
    if isinstance(value, str):
        if words is None:
            return ""
        for word in words:
            value = value.replace(word, "")
        return value
    if isinstance(value, dict):
        return {key: without(inner, words) for key, inner in value.items()}
    return [without(inner, words) for inner in value] if isinstance(value, list) else value


def _compare(connection: duckdb.DuckDBPyConnection) -> None:
    for table in TABLES:
        [counts] = connection.execute(
            f"SELECT (SELECT count(*) FROM {table.name}), (SELECT count(*) FROM old.{table.name})"  # noqa: S608
        ).fetchall()
        if counts[0] != counts[1]:
            raise StoreProblem(f"{table.name} would have {counts[0]} of {counts[1]} rows")


def _copy_answers(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the old `answers` anew: whoever makes the views afterwards keeps its columns, one a judge."""
    views = connection.execute(
        "SELECT sql FROM duckdb_views() WHERE database_name = 'old' AND view_name = 'answers'"
    ).fetchall()
    for (sql,) in views:
        connection.execute(sql.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1))
