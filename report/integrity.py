"""Whether a run's files hold only true facts: what `redistill doctor RUN` looks at.

The checks of rows read the snapshot. The live file is opened too, read-only, where nobody holds the run.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb

from .. import __version__
from ..errors import BadInput, Busy, RedistillError, StoreProblem
from ..hashing import content_hash
from ..policies.revision import Revision
from ..store.backup import GRAPH
from ..store.blanked import SIDE
from ..store.migrate import migrations
from ..store.query import jail, snapshot
from ..store.store import FILE, SNAPSHOT
from ..store.table import Table
from ..store.tables import TABLES

State = Literal["ok", "note", "bad"]
Check = dict[str, str]
Row = dict[str, Any]

_RESTORE = "`redistill restore` a backup; without one, keep the folder as it is and ask"
_SECONDS = 600.0
"""Longest time of one query: a large store is read whole."""


def check(name: str, state: State, detail: str, fix: str = "") -> Check:
    """Make a check."""
    return {"name": name, "state": state, "detail": detail, "fix": fix}


@dataclass(frozen=True, slots=True)
class _Book:
    """A store file that is open for reading and nothing else."""

    folder: Path
    connection: duckdb.DuckDBPyConnection

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        result = self.connection.execute(sql, list(parameters))
        names = [d[0] for d in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def count(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return int(self.rows(f"SELECT count(*) AS n FROM ({sql})", parameters)[0]["n"])  # noqa: S608


def examine_run(folder: Path) -> list[Check]:
    """Examine a run's snapshot, live store, inputs, revisions and what lies beside them.

    Raises:
        BadInput: there is no such run.
    """
    if not folder.is_dir():
        snapshot(folder)
    found = [*_snapshot(folder), *_live(folder), *_revisions(folder), *_left_over(folder)]
    return [one | {"of": "run"} for one in found]


def _snapshot(folder: Path) -> Iterator[Check]:
    """Examine the snapshot's rows; what cannot be read ends the examination."""
    fix = f"`redistill resume` publishes a new one, if {FILE} is whole"
    try:
        connection = jail(snapshot(folder), _SECONDS)
    except (StoreProblem, BadInput) as error:
        yield check("snapshot", "bad", str(error).partition("; ")[0], fix)
        return
    with closing(connection):
        book = _Book(folder, connection)
        try:
            [run] = book.rows("SELECT name, key, redistill_version, student FROM run")
        except (duckdb.Error, ValueError) as error:
            yield check("snapshot", "bad", f"{SNAPSHOT} holds no run: {_first(error)}", fix)
            return
        told = f"{run['name']}, made by redistill {run['redistill_version']}"
        yield check("snapshot", "ok", told)
        yield _recipe(folder, run)
        for part in (_readable, _keys, _parents, _texts, _ledger, _splits, _champions):
            yield from _tried(part, book)


def _tried(
    part: Callable[[_Book], Iterator[Check]], book: _Book, name: str = "store"
) -> list[Check]:
    """Return a part's checks, or the one check that says that its rows cannot be read."""
    try:
        return list(part(book))
    except (duckdb.Error, ValueError) as error:
        return [check(name, "bad", _first(error), _RESTORE)]


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _recipe(folder: Path, run: Row) -> Check:
    from ..agents.recipe import load_recipe

    file = folder / "recipe.yaml"
    if run["student"] is None and not file.exists():
        return check("recipe", "ok", "a run of imports has none")
    try:
        recipe = load_recipe(file.read_text("utf-8"), file.name, base=folder)
        key = recipe.key
    except (OSError, RedistillError) as error:
        return check(
            "recipe", "note", f"cannot be loaded here: {_first(error)}", "a resume would need it"
        )
    if key != run["key"] and run["redistill_version"] != __version__:
        told = f"this redistill is {__version__}, and reads the recipe otherwise"
        return check("recipe", "note", told, f"redistill {run['redistill_version']} can resume it")
    if key != run["key"]:
        told = "recipe.yaml or a file in inputs/ is not what this run was made with"
        return check("recipe", "bad", told, "put back what was there; the store keeps the recipe")
    return check("recipe", "ok", "recipe.yaml and inputs/ are what the run was made with")


# -- rows


def _readable(book: _Book) -> Iterator[Check]:
    """Read every column of every table to its end: a damaged block shows only then."""
    broken = []
    for table in TABLES:
        try:
            book.rows(f"SELECT max(hash(t)) AS h FROM {table.name} t")  # noqa: S608
        except duckdb.Error:
            broken += [
                f"{table.name}.{c.name}" for c in table.columns if not _reads(book, table, c)
            ]
    detail = (
        f"cannot be read: {', '.join(broken)}" if broken else "every column can be read to its end"
    )
    yield check("columns", "bad" if broken else "ok", detail, _RESTORE if broken else "")


def _reads(book: _Book, table: Table, column: Any) -> bool:
    try:
        book.rows(f"SELECT max(hash({column.name})) AS h FROM {table.name}")  # noqa: S608
    except duckdb.Error:
        return False
    return True


def _keys(book: _Book) -> Iterator[Check]:
    """Find rows that are there twice: no index keeps them unique, see `store/table.py`."""
    found = []
    for table in TABLES:
        key = ", ".join(_whole_key(table))
        twice = f"SELECT {key} FROM {table.name} GROUP BY {key} HAVING count(*) > 1"  # noqa: S608
        if count := book.count(twice):
            found.append(f"{table.name}: {count}")
    detail = (
        f"keys that are there twice: {'; '.join(found)}" if found else "every row is there once"
    )
    yield check("unique rows", "bad" if found else "ok", detail, _RESTORE if found else "")


_BY_CONTENT = ("content", "revision", "rubric")
"""Tables whose key names a content, which may come again in a later round."""


def _whole_key(table: Table) -> tuple[str, ...]:
    return (*table.key, "round") if table.name in _BY_CONTENT else table.key


_PARENTS: tuple[tuple[str, str, str], ...] = (
    ("run", "student", "revision.id"),
    ("round", "champion", "revision.id"),
    ("prompt", "parent_id", "prompt.id"),
    ("prompt", "completion_id", "completion.id"),
    ("proposal", "completion_id", "completion.id"),
    ("proposal", "unnest(seeds)", "prompt.id"),
    ("proposal", "answer_id", "completion.id"),
    ("proposal", "nearest_id", "prompt.id"),
    ("proposal", "prompt_id", "prompt.id"),
    ("rendered_prompt", "prompt_id", "prompt.id"),
    ("completion", "prompt_id", "prompt.id"),
    ("completion", "rendered_prompt_id", "rendered_prompt.id"),
    ("completion", "parent_id", "completion.id"),
    ("completion", "critique_id", "judgement.id"),
    ("completion", "revision", "revision.id"),
    ("completion_tokens", "completion_id", "completion.id"),
    ("token_distribution", "completion_id", "completion.id"),
    ("judgement", "completion_id", "completion.id"),
    ("judgement", "unnest(presented)", "completion.id"),
    ("judgement", "rubric_id", "rubric.id"),
    ("vote", "judgement_id", "judgement.id"),
    ("feedback", "prompt_id", "prompt.id"),
    ("feedback", "completion_id", "completion.id"),
    ("feedback", "other_id", "completion.id"),
    ("pair", "prompt_id", "prompt.id"),
    ("pair", "chosen_id", "completion.id"),
    ("pair", "rejected_id", "completion.id"),
    ("selection", "prompt_id", "prompt.id"),
    ("selection", "completion_id", "completion.id"),
    ("training_row", "prompt_id", "prompt.id"),
    ("training_row", "completion_id", "completion.id"),
    ("training_row", "rejected_id", "completion.id"),
    ("training_row", "unnest(ranked)", "completion.id"),
    ("training_row", "pair_id", "pair.id"),
    ("training_row", "selection_id", "selection.id"),
    ("training_metric", "training_run_id", "training_run.id"),
    ("training_run", "start_revision", "revision.id"),
    ("training_run", "revision", "revision.id"),
    ("evaluation", "revision", "revision.id"),
    ("decision", "champion", "revision.id"),
    ("decision", "challenger", "revision.id"),
    ("revision", "parent", "revision.id"),
    ("revision", "training_run_id", "training_run.id"),
    ("charge", "reservation_id", "reservation.id"),
)
_TEXT_OF = [
    (table.name, column.name)
    for table in TABLES
    for column in table.columns
    if column.comment.startswith("content.hash")
]


def _parents(book: _Book) -> Iterator[Check]:
    """Find rows that name a row which is not there."""
    found = []
    others = _other_roles(book)
    for child, column, parent in _PARENTS:
        table, key = parent.split(".")
        # What another model than the student says has that model's revision, which is no row here.
        spoken = (child, column) == ("completion", "revision")
        own = "WHERE NOT list_contains(?, role)" if spoken else ""
        sql = (
            f"FROM (SELECT {column} AS named FROM {child} {own}) c WHERE c.named IS NOT NULL "  # noqa: S608
            f"AND NOT EXISTS (SELECT 1 FROM {table} p WHERE p.{key} = c.named)"
        )
        if count := book.count(sql, [others] if spoken else []):
            found.append(f"{child}.{column.removeprefix('unnest(').rstrip(')')}: {count}")
    # The job that freezes its rows is a row only when it has ended.
    jobs = (
        "SELECT 1 FROM training_row t WHERE NOT EXISTS (SELECT 1 FROM training_run r WHERE r.id = "
        "t.training_run_id) AND t.round IN (SELECT round FROM decision)"
    )
    if count := book.count(jobs):
        found.append(f"training_row.training_run_id: {count}")
    detail = (
        f"rows without a parent: {'; '.join(found)}" if found else "every row's parents are there"
    )
    yield check("parents", "bad" if found else "ok", detail, _RESTORE if found else "")


def _other_roles(book: _Book) -> list[str]:
    """Return the roles of a run that are bound to another model than the student."""
    recipe = json.loads(book.rows("SELECT recipe FROM run")[0]["recipe"])
    roles: dict[str, Any] = recipe.get("roles") or {}
    return [name for name, role in roles.items() if role.get("policy", "student") != "student"]


def _texts(book: _Book) -> Iterator[Check]:
    """Compare each text with its hash, and look for texts that are named and not there."""
    reader = book.connection.execute("SELECT hash, text FROM content WHERE forgotten_at IS NULL")
    changed = 0
    while part := reader.fetchmany(2048):
        changed += sum(content_hash(text) != name for name, text in part)
    found = [f"{changed} texts are not what their hash names"] if changed else []
    for table, column in _TEXT_OF:
        sql = (
            f"SELECT 1 FROM {table} c WHERE c.{column} IS NOT NULL AND NOT EXISTS "  # noqa: S608
            f"(SELECT 1 FROM content t WHERE t.hash = c.{column} AND t.round = c.round)"
        )
        if count := book.count(sql):
            found.append(f"{table}.{column}: {count} have no text")
    gone = book.count("SELECT 1 FROM content WHERE forgotten_at IS NOT NULL")
    whole = "every text is what its hash names" + (f"; {gone} were forgotten" if gone else "")
    yield check(
        "texts", "bad" if found else "ok", "; ".join(found) or whole, _RESTORE if found else ""
    )


_SENT_AGAIN = (
    *("content", "rendered_prompt", "revision", "rubric", "event", "training_metric"),
    # A file that is imported again brings rows that are there.
    *("step", "prompt", "completion", "judgement", "feedback", "reservation"),
)
"""Tables whose rows may be sent more than once, and are written once."""


def _ledger(book: _Book) -> Iterator[Check]:
    """Compare the ledger of batches with the rows that are there."""
    imported = book.count("SELECT 1 FROM step WHERE origin <> 'round'") > 0
    again = _SENT_AGAIN if imported else _SENT_AGAIN[:6]
    sent: dict[str, int] = {}
    for row in book.rows("SELECT counts FROM write_batch"):
        for name, count in json.loads(row["counts"]).items():
            sent[name] = sent.get(name, 0) + count
    found = []
    for table in TABLES:
        if table.name == "write_batch":
            continue
        there = book.count(f"SELECT 1 FROM {table.name}")  # noqa: S608
        told = sent.get(table.name, 0)
        lost = (there < told and table.name not in again) or (told > 0 and there == 0)
        if there > told or lost:
            found.append(f"{table.name}: {there} rows, {told} in the ledger")
    detail = "; ".join(found) or "its counts fit the rows"
    fix = f"something else has written to the store; {_RESTORE}" if found else ""
    yield check("ledger", "bad" if found else "ok", detail, fix)


def _splits(book: _Book) -> Iterator[Check]:
    """Find a question that is in two splits, and a training row that is not of train."""
    # Forgotten questions all read the same, and keep the hashes that they had.
    twice = book.count(
        "SELECT messages_hash FROM prompt GROUP BY messages_hash HAVING count(DISTINCT split) > 1"
    )
    leaked = book.count(
        "SELECT 1 FROM training_row t JOIN prompt p ON p.id = t.prompt_id WHERE p.split <> 'train'"
    )
    if leaked or twice:
        detail = f"{twice} questions are in two splits, {leaked} training rows are held out"
        yield check("splits", "bad", detail, "the evidence of this run proves nothing; split anew")
    else:
        yield check("splits", "ok", "train, heldout and test share no question")


def _champions(book: _Book) -> Iterator[Check]:
    """Walk the decisions: each round starts from the one champion that the rounds before have made."""
    champion = book.rows("SELECT student FROM run")[0]["student"]
    if champion is None:
        yield check("champion", "ok", "a run of imports has none")
        return
    rows = book.rows(
        "SELECT r.round, r.champion, d.decision, d.challenger, d.champion AS before "
        "FROM round r LEFT JOIN decision d ON d.round = r.round ORDER BY r.round"
    )
    wrong = []
    for row in rows:
        if row["champion"] != champion or row["before"] not in (None, champion):
            wrong.append(f"round {row['round']} did not start from the champion")
        if row["decision"] == "promoted":
            champion = row["challenger"]
    rounds = [row["round"] for row in rows]
    wrong += [
        f"round {r} was decided twice" for r in sorted({r for r in rounds if rounds.count(r) > 1})
    ]
    detail = "; ".join(wrong) or f"one: {champion[:8]}"
    yield check("champion", "bad" if wrong else "ok", detail, _RESTORE if wrong else "")


# -- the live file


def _live(folder: Path) -> Iterator[Check]:
    """Open the live file where nobody holds it: its schema, its columns, and what it must not lack."""
    from ..agents.opening import only_one

    if not (folder / FILE).exists():
        fix = f"{_RESTORE}; `redistill backup` and `restore` make one of the snapshot"
        yield check("live store", "bad", f"{FILE} is gone", fix)
        return
    try:
        with only_one(folder), closing(jail(folder / FILE, _SECONDS)) as connection:
            yield from _tried(_whole, _Book(folder, connection), "live store")
    except Busy as error:
        yield check("live store", "note", f"not looked at: {error}")
    except StoreProblem as error:
        if "Conflicting lock" in str(error):
            yield check("live store", "note", f"not looked at: {_first(error)}")
            return
        fix = "`redistill restore` a backup, or `redistill backup` and `restore` the snapshot"
        yield check("live store", "bad", _first(error), fix)


def _whole(book: _Book) -> Iterator[Check]:
    known = max(m.version for m in migrations())
    [found] = book.rows(
        "SELECT max(version) AS v, arg_max(redistill_version, version) AS w FROM schema_migration"
    )
    if (found["v"] or 0) > known:
        told = f"its schema is {found['v']}, of redistill {found['w']}; this one knows {known}"
        yield check("live store", "bad", told, "use that version")
        return
    if (found["v"] or 0) < known:
        told = f"its schema is {found['v']}, {known} is the newest"
        yield check("live store", "note", told, "`redistill resume` brings it up, and keeps a copy")
        return
    for part in _readable(book):
        yield part | {"name": "live columns"}
    yield _nothing_lost(book)


def _nothing_lost(book: _Book) -> Check:
    """Compare the live ledger with the two counts that lie outside it: the snapshot's and the graph's."""
    there = {row["id"] for row in book.rows("SELECT id::VARCHAR AS id FROM write_batch")}
    lost = [i for i in _published(book.folder) if i not in there]
    if lost:
        told = f"the snapshot has {len(lost)} chunks that the live store lacks"
        return check("live store", "bad", told, _RESTORE)
    seen = _seen_by_graph(book.folder)
    if seen > len(there):
        told = f"the graph saw {seen} chunks committed, {len(there)} are there"
        return check("live store", "bad", told, _RESTORE)
    return check("live store", "ok", f"{len(there)} chunks, none that others saw is missing")


def _published(folder: Path) -> list[str]:
    """Return the chunks of the snapshot; none where it cannot be read, which is told elsewhere."""
    try:
        with closing(jail(snapshot(folder))) as connection:
            rows = connection.execute("SELECT id::VARCHAR FROM write_batch").fetchall()
    except (StoreProblem, BadInput, duckdb.Error):
        return []
    return [row[0] for row in rows]


def _seen_by_graph(folder: Path) -> int:
    """Return the largest number of chunks that the graph's checkpoint has seen in the ledger."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    file = folder / GRAPH
    if not file.is_file():
        return 0
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as source:
            source.backup(copy)
        newest = list(SqliteSaver(copy).list(None, limit=1))
        values = newest[0].checkpoint["channel_values"] if newest else {}
        return int(values.get("committed", 0))
    except sqlite3.Error as error:
        raise ValueError(f"{GRAPH} cannot be read: {error}") from error
    finally:
        copy.close()


# -- files


def _revisions(folder: Path) -> Iterator[Check]:
    """Read every revision's files and compare them with their manifest."""
    try:
        with closing(jail(snapshot(folder))) as connection:
            rows = _Book(folder, connection).rows(
                "SELECT DISTINCT id, folder FROM revision ORDER BY id"
            )
    except (StoreProblem, BadInput, duckdb.Error):
        return  # told by the snapshot's check
    known = set()
    for row in rows:
        known.add(Path(row["folder"]).name)
        try:
            revision = Revision.read(folder / row["folder"])
            revision.verify_files()
        except (StoreProblem, OSError) as error:
            fix = "`redistill resume` trains a lost challenger anew; a lost champion is needed to go on"
            yield check(f"revision {row['id'][:8]}", "bad", str(error), fix)
            continue
        if revision.id != row["id"]:
            told = f"its folder holds {revision.id[:8]}"
            yield check(f"revision {row['id'][:8]}", "bad", told, "restore the folder from a copy")
    yield check("revisions", "ok", f"{len(rows)} read")
    orphans = [p.name for p in sorted((folder / "revisions").glob("*")) if p.name not in known]
    if orphans:
        told = f"in revisions/ and in no row: {', '.join(orphans)}"
        fix = "a run that goes on uses or replaces them; remove them when it is finished"
        yield check("orphan revisions", "note", told, fix)


def _left_over(folder: Path) -> Iterator[Check]:
    """Name what lies in the run's folder and belongs to nothing."""
    jobs = [p.name for p in sorted((folder / "jobs").glob("*")) if not (p / "job.json").is_file()]
    if jobs:
        told = f"in jobs/ without a job.json: {', '.join(jobs)}"
        yield check(
            "orphan jobs", "note", told, "left by a run that was killed; a resume writes it"
        )
    copies = [p.name for p in sorted(folder.glob(f"{FILE}.bak-*"))]
    if copies:
        told = f"from before a migration: {', '.join(copies)}"
        yield check(
            "old copies", "note", told, "remove them when the run works; forget removes them"
        )
    if (folder / SIDE).exists():
        told = "a forgetting was killed, and may not be done"
        yield check("forgetting", "bad", told, "repeat `redistill forget` with the same condition")
    halves = [*folder.glob("*.tmp"), *folder.glob(".*.tmp"), *folder.glob(".restore-*")]
    if halves:
        told = f"half written: {', '.join(sorted(p.name for p in halves))}"
        yield check("half files", "note", told, "left by a process that was killed; remove them")
