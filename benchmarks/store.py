"""What the store costs beside SQLite: a million completions, three million judgements, the same questions.

Two arms, each a process of its own, so that peak memory is its own. Both make the same rows from the same
dicts, in 20 rounds. `redistill` writes through `Store.commit` and pairs with the product's own SQL, round
after round, at one thread. `sqlite` has the same tables and checks in WAL mode with synchronous=FULL, an
index on every join key (the judgements' one covers the question), ANALYZE, a cache of 1 GB, `executemany`
in one transaction a batch, and the md5 of the tie-breaks ready in a column. It is asked for all rounds at
once, in two formulations, of which the faster counts. Both arms must give the same pairs.

A batch of 256 is 256 completions with their texts and three judgements each, and one row of the ledger.
Writes `benchmarks/results/store.json`. Ratios are the figures; seconds belong to one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redistill.hashing import content_hash
from redistill.store.pairing import PairQuery, pairs, pairs_sql
from redistill.store.store import FILE, Row, Store
from redistill.store.table import Table
from redistill.store.tables import BY_NAME

RESULTS = Path(__file__).parent / "results" / "store.json"
ROUNDS, K = 20, 4
JUDGES = ("verifier", "helper", "longest")
BATCHES = {256: 30, 64: 30, 1024: 12}
"""Completions a batch, and how many batches are measured; growth is measured with the first kind."""
FILL = 10_000
WRITTEN = ("completion", "content", "judgement", "write_batch")
GOALS = "pairs <= 0.5 CPU s and >= 6x, inserts >= 0.4x at 256, growth <= 1.5, peak < 2000 MB"


def main() -> None:
    """Run both arms, compare their answers, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="completions")
    parser.add_argument("--smoke", action="store_true", help="20,000 completions, few repeats")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--arm", choices=list(ARMS))
    parser.add_argument("--folder", type=Path)
    told = parser.parse_args()
    plan = Plan(20_000, 3, 1) if told.smoke else Plan(told.rows)
    if told.arm:
        print(json.dumps(ARMS[told.arm](plan, told.folder)))
    else:
        measure(told.out, ["--smoke"] if told.smoke else ["--rows", str(told.rows)])


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is written and how often it is measured."""

    rows: int
    most_batches: int = 30
    repeats: int = 5

    @property
    def per_round(self) -> int:
        """Completions of one round."""
        return self.rows // ROUNDS


def measure(out: Path, size: list[str]) -> None:
    """Run one arm after the other, refuse answers that differ, and write what they cost."""
    found = {arm: _run(arm, size) for arm in ARMS}
    ours, other = found["redistill"], found["sqlite"]
    if ours.pop("pairs_found") != other.pop("pairs_found"):
        raise SystemExit("the two stores give different pairs")
    speeds = ours["insert_rows_per_s"], other["insert_rows_per_s"]
    ratios = {
        "pairs": round(other["pairs_cpu_s"] / ours["pairs_cpu_s"], 2),
        "inserts": {n: round(v / speeds[1][n], 2) for n, v in speeds[0].items()},
        "bytes": round(other["bytes_per_row"] / ours["bytes_per_row"], 2),
    }
    beside = {f"{name}_sqlite": value for name, value in other.items()}
    machine = {"processor": platform.machine(), "cores": os.cpu_count()}
    result = {"ratios": ratios, "growth": ours.pop("growth"), **ours, **beside, "machine": machine}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))
    print(f"goals at 1,000,000 completions: {GOALS}")


def _run(arm: str, size: list[str]) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="redistill-bench-"))
    command = [sys.executable, "-P", __file__, "--arm", arm, "--folder", str(folder), *size]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return figures


@contextmanager
def _phase(arm: str, what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{arm}: {what}, {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


# -- the rows, the same in both arms


_WHEN = datetime(2026, 11, 24, tzinfo=UTC)
_PHRASES = ["".join(random.Random(i).choices("etaoin shrdlu cm ", k=45)) for i in range(512)]
_SAMPLING = json.dumps({"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": 64})


def _id(word: str) -> str:
    h = content_hash(word)
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def batch(first: int, count: int, round_: int) -> dict[str, list[Row]]:
    """Make the rows of completions `first` ... `first + count - 1`, four to a prompt; some texts recur."""
    rows: dict[str, list[Row]] = {"completion": [], "content": [], "judgement": []}
    for n in range(first, first + count):
        dice = random.Random(n)
        prompt = _id(f"prompt {n // K % 40_000}")
        said = ", ".join(dice.choices(_PHRASES, k=4))
        text = f"{said}: {n}" if dice.random() < 0.85 else f"Answer: {n // K}"
        row = _completion(n, round_, prompt, text)
        row["finish_reason"] = "stop" if dice.random() < 0.95 else "length"
        rows["completion"].append(row)
        rows["content"].append({"hash": row["text_hash"], "round": round_, "text": text})
        values = (float(dice.random() < 0.4), dice.randrange(11) / 10, round(dice.random(), 4))
        rows["judgement"] += map(_judgement, [row] * len(JUDGES), JUDGES, values)
    return rows


def _completion(n: int, round_: int, prompt: str, text: str) -> Row:
    digest = content_hash(text)
    return {
        "id": _id(f"completion {n}"),
        "round": round_,
        "step": "sample",
        "split": "train",
        "prompt_id": prompt,
        "rendered_prompt_id": _id(f"rendered {prompt}"),
        "parent_id": None,
        "slot": n % K,
        "attempt": 0,
        "role": "student",
        "revision": f"{round_:032x}",
        "text_hash": digest,
        "payload_hash": content_hash(f"payload {digest}"),
        "temperature": 0.7,
        "sampling": _SAMPLING,
        "tokens": len(text) // 4,
        "seconds": 0.11,
        "created_at": _WHEN,
    }


def _judgement(of: Row, judge: str, value: float) -> Row:
    return {
        "id": _id(f"{of['id']} {judge}"),
        "round": of["round"],
        "step": f"score_{judge}",
        "mode": "score",
        "aspect": "",
        "completion_id": of["id"],
        "judge": judge,
        "judge_revision": f"{len(judge):032x}",
        "attempt": 0,
        "status": "ok",
        "value": value,
        "raw": value,
        "parts": "{}",
        "text_hash": None,
        "seconds": 0.01,
        "created_at": _WHEN,
    }


# -- what is measured, the same in both arms

Write = Callable[[dict[str, list[Row]], int, int], Any]
"""Writes the rows of a round as the chunk of a number."""


class Writer:
    """Writes completions in order, and times the batches that are measured."""

    def __init__(self, write: Write, most_batches: int) -> None:
        self.write, self.most_batches = write, most_batches
        self.next, self.chunk = 0, 0

    def _send(self, count: int, round_: int) -> tuple[float, float]:
        rows = batch(self.next, count, round_)
        wall, cpu = time.monotonic(), time.process_time()
        self.write(rows, round_, self.chunk)
        self.next, self.chunk = self.next + count, self.chunk + 1
        return time.monotonic() - wall, time.process_time() - cpu

    def fill(self, count: int, round_: int) -> None:
        """Write completions of a round in large batches."""
        for done in range(0, count, FILL):
            self._send(min(FILL, count - done), round_)

    def timed(self, size: int, round_: int) -> tuple[float, float]:
        """Return the median seconds of a batch, wall and CPU; the first two warm up."""
        count = 2 + min(BATCHES[size], self.most_batches)
        spent = [self._send(size, round_) for _ in range(count)][2:]
        return statistics.median(s[0] for s in spent), statistics.median(s[1] for s in spent)

    def speeds(self) -> dict[str, Any]:
        """Return rows a second and CPU milliseconds a batch, for each size, in the last round."""
        figures: dict[str, Any] = {"insert_rows_per_s": {}, "insert_cpu_ms": {}}
        for size in sorted(BATCHES):
            wall, cpu = self.timed(size, ROUNDS)
            figures["insert_rows_per_s"][str(size)] = round(((2 + len(JUDGES)) * size + 1) / wall)
            figures["insert_cpu_ms"][str(size)] = round(1000 * cpu, 2)
        return figures

    @property
    def rows(self) -> int:
        """All rows that were written."""
        return (2 + len(JUDGES)) * self.next + self.chunk


def _timed(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return the median seconds of some work, wall and CPU of all threads; a first time warms up."""
    spent = []
    for _ in range(1 + repeats):
        wall, cpu = time.monotonic(), time.process_time()
        work()
        spent.append((time.monotonic() - wall, time.process_time() - cpu))
    walls, cpus = zip(*spent[1:], strict=True)
    return statistics.median(walls), statistics.median(cpus)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _digest(found: list[Any]) -> list[Any]:
    """Return how many pairs there are and their hash; margins to nine digits, as sums of floats go."""
    rows = sorted((str(p), str(c), str(r), f"{margin:.9f}") for p, c, r, margin in found)
    return [len(rows), content_hash(json.dumps(rows))]


def _asked(round_: int) -> PairQuery:
    return PairQuery(round_, ("sample",), "verifier", "best_worst", at_least=1.0, seed=0)


# -- the store of redistill


def with_redistill(plan: Plan, folder: Path) -> dict[str, Any]:
    """Write and ask through the store's own ways."""
    with closing(Store(folder, JUDGES)) as store:
        writer = Writer(
            lambda rows, r, chunk: store.commit(rows, round=r, step="bench", chunk=chunk),
            plan.most_batches,
        )
        with _phase("redistill", f"round 1 of {plan.per_round} completions"):
            writer.fill(plan.per_round, 1)
            early = writer.timed(256, 1)[1]
        with _phase("redistill", f"all {plan.rows} completions"):
            for round_ in range(2, ROUNDS + 1):
                writer.fill(plan.per_round, round_)
        with _phase("redistill", "batches"):
            late = writer.timed(256, ROUNDS)[1]
            figures = writer.speeds()
        with _phase("redistill", "snapshots"):
            wall, cpu = _timed(lambda: store.publish(force=True), 3)
            figures |= {"publish_s": round(wall, 3), "publish_cpu_s": round(cpu, 3)}
        with _phase("redistill", "pairs"):
            figures |= _ask_store(store, plan.repeats)
        size = (folder / FILE).stat().st_size
    return figures | {
        "growth": round(late / early, 3),
        "bytes_per_row": round(size / writer.rows, 1),
        "rows": writer.rows,
    }


def _ask_store(store: Store, repeats: int) -> dict[str, Any]:
    def ask() -> None:
        def work(connection: Any) -> None:
            connection.execute("SET threads = 1")
            connection.execute(
                "CREATE OR REPLACE TEMP TABLE found "
                "(prompt_id UUID, chosen UUID, rejected UUID, margin DOUBLE)"
            )
            for round_ in range(1, ROUNDS + 1):
                sql, bound = pairs_sql(_asked(round_))
                connection.execute(f"INSERT INTO found {sql}", bound)

        store.work(work)

    wall, cpu = _timed(ask, repeats)
    one = _timed(lambda: pairs(store, _asked(ROUNDS)), repeats)[1]
    peak = _peak_mb()
    found = store.work(lambda c: c.execute("SELECT * FROM found").fetchall())
    return {
        "pairs_cpu_s": round(cpu, 3),
        "pairs_wall_s": round(wall, 3),
        "pairs_one_round_cpu_s": round(one, 4),
        "peak_rss_mb": peak,
        "pairs_found": _digest(found),
    }


# -- SQLite

_ASIDE = """
judged AS (  -- a bare column beside max() is of the row that has the maximum
    SELECT completion_id, value, max(attempt) FROM judgement
    WHERE judge = 'verifier' AND mode = 'score' AND aspect = '' AND value IS NOT NULL GROUP BY completion_id
),
answered AS (
    SELECT c.round, c.prompt_id, c.text_hash, c.id, c.tie, c.finish_reason <> 'stop' AS cut, j.value
    FROM completion c JOIN judged j ON j.completion_id = c.id
    WHERE c.step IN ('sample') AND c.split = 'train'
)"""
WAYS = {
    "windows": f"""WITH {_ASIDE},
once AS (
    SELECT *, row_number() OVER (PARTITION BY round, prompt_id, text_hash ORDER BY cut, id) AS twin
    FROM answered
),
ranked AS (
    SELECT round, prompt_id, id, value, NOT cut AND value >= 1.0 AS may,
           row_number() OVER (PARTITION BY round, prompt_id
                              ORDER BY NOT cut AND value >= 1.0 DESC, value DESC, tie DESC, id DESC) AS best,
           row_number() OVER (PARTITION BY round, prompt_id ORDER BY value, tie, id) AS worst
    FROM once WHERE twin = 1
)
SELECT prompt_id, max(CASE WHEN best = 1 THEN id END) AS chosen, max(CASE WHEN worst = 1 THEN id END) AS rejected,
       max(CASE WHEN may THEN value END) - min(value) AS margin
FROM ranked GROUP BY round, prompt_id HAVING max(CASE WHEN may THEN value END) > min(value)""",
    "groups": f"""WITH {_ASIDE},
once AS (
    SELECT round, prompt_id, id, value, tie, cut, min(cut || id) FROM answered
    GROUP BY round, prompt_id, text_hash
),
keyed AS (
    SELECT round, prompt_id, value, NOT cut AND value >= 1.0 AS may, printf('%.9f', value) || tie || id AS key
    FROM once
)
SELECT prompt_id, substr(max(CASE WHEN may THEN key END), -36) AS chosen, substr(min(key), -36) AS rejected,
       max(CASE WHEN may THEN value END) - min(value) AS margin
FROM keyed GROUP BY round, prompt_id HAVING max(CASE WHEN may THEN value END) > min(value)""",
}
_KINDS = {"INTEGER": "INTEGER", "BIGINT": "INTEGER", "DOUBLE": "REAL"}
_INDEXES = (
    *(f"CREATE UNIQUE INDEX {t}_id ON {t} (id)" for t in WRITTEN if t != "content"),
    "CREATE INDEX completion_prompt ON completion (round, prompt_id)",
    "CREATE INDEX completion_text ON completion (text_hash)",
    "CREATE INDEX judgement_of ON judgement (completion_id, judge, mode, aspect, attempt, value)",
    "ANALYZE",
)


def with_sqlite(plan: Plan, folder: Path) -> dict[str, Any]:
    """Write and ask the same with the standard library's SQLite."""
    path = folder / "store.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for setting in ("journal_mode = WAL", "synchronous = OFF", "cache_size = -1000000"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("PRAGMA temp_store = MEMORY")
        for name in WRITTEN:
            connection.execute(_sqlite_ddl(BY_NAME[name]))
        connection.execute("CREATE UNIQUE INDEX content_hash ON content (hash, round)")
        writer = Writer(_sqlite_write(connection), plan.most_batches)
        with _phase("sqlite", f"all {plan.rows} completions and indexes"):
            writer.fill(plan.per_round, 1)
            writer.timed(256, 1)
            for round_ in range(2, ROUNDS + 1):
                writer.fill(plan.per_round, round_)
            for statement in _INDEXES:
                connection.execute(statement)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA synchronous = FULL")
        with _phase("sqlite", "batches"):
            writer.timed(256, ROUNDS)
            figures = writer.speeds()
        with _phase("sqlite", "pairs"):
            figures |= _ask_sqlite(connection, plan.repeats)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return figures | {"bytes_per_row": round(path.stat().st_size / writer.rows, 1)}


def _sqlite_ddl(table: Table) -> str:
    """Return a table of the store for SQLite; lists are left out, since no row here holds one."""
    lines = []
    for column in table.columns:
        line = f"{column.name} {_KINDS.get(column.type, 'TEXT')}"
        line += "" if column.null else " NOT NULL"
        lines.append(
            line + (f" CHECK (json_valid({column.name}))" if column.type == "JSON" else "")
        )
    lines += ["tie TEXT NOT NULL"] if table.name == "completion" else []
    known = (check for check in table.checks if "len(" not in check)
    checks = [f"CHECK ({c.replace('isfinite(value) AND ', '')})" for c in known if c[:3] != "raw"]
    return f"CREATE TABLE {table.name} ({', '.join(lines + checks)})"


def _sqlite_write(connection: sqlite3.Connection) -> Write:
    """Return what writes a chunk: one transaction, one `executemany` a table, nothing twice."""
    names = {name: [c.name for c in BY_NAME[name].columns] for name in WRITTEN}
    names["completion"].append("tie")
    insert = {
        name: f"INSERT OR IGNORE INTO {name} VALUES ({', '.join('?' * len(columns))})"
        for name, columns in names.items()
    }

    def values(name: str, rows: list[Row]) -> Iterator[list[Any]]:
        for row in rows:
            more = {"created_at": row["created_at"].isoformat()} if "created_at" in row else {}
            if name == "completion":
                more["tie"] = hashlib.md5(row["id"].encode(), usedforsecurity=False).hexdigest()
            yield list(map((row | more).get, names[name]))

    def write(rows: dict[str, list[Row]], round_: int, chunk: int) -> None:
        identifier = _id(f"write_batch {round_} {chunk}")
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute("SELECT 1 FROM write_batch WHERE id = ?", [identifier])
        if found.fetchone():
            raise SystemExit("a batch was sent twice")
        ledger = {"id": identifier, "round": round_, "step": "bench", "chunk": chunk}
        counts = json.dumps({name: len(part) for name, part in rows.items()})
        ledger |= {"counts": counts, "seconds": 0.0, "created_at": datetime.now(UTC)}
        for name, part in {**rows, "write_batch": [ledger]}.items():
            connection.executemany(insert[name], values(name, part))
        connection.execute("COMMIT")

    return write


def _ask_sqlite(connection: sqlite3.Connection, repeats: int) -> dict[str, Any]:
    """Ask in each formulation, and keep the faster."""
    spent: dict[str, tuple[float, float]] = {}
    answers = []
    for name, sql in WAYS.items():

        def ask(sql: str = sql) -> None:
            connection.execute("DROP TABLE IF EXISTS temp.found")
            connection.execute(f"CREATE TEMP TABLE found AS {sql}")

        spent[name] = _timed(ask, min(3, repeats))
        answers.append(_digest(connection.execute("SELECT * FROM found").fetchall()))
    if answers[0] != answers[1]:
        raise SystemExit("two ways to ask SQLite give different pairs")
    way = min(spent, key=lambda name: spent[name][1])
    return {
        "pairs_cpu_s": round(spent[way][1], 3),
        "pairs_wall_s": round(spent[way][0], 3),
        "pairs_ways_cpu_s": {name: round(cpu, 3) for name, (_, cpu) in spent.items()},
        "peak_rss_mb": _peak_mb(),
        "pairs_found": answers[0],
    }


ARMS: dict[str, Callable[[Plan, Path], dict[str, Any]]] = {
    "redistill": with_redistill,
    "sqlite": with_sqlite,
}


if __name__ == "__main__":
    main()
