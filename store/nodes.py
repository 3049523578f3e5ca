"""Rows as people meet them in a lineage: one line of text and the facts behind it, by kind."""

# ruff: noqa: S608 - pieces of constants of this module; whatever comes from outside is bound
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any
from uuid import UUID

import duckdb

from .identify import Found, short
from .links import id_type

Row = dict[str, Any]
QUOTED = 70
"""Characters of a text that stand in a line."""
_DETAIL = 160

# A text that was forgotten is no JSON any more.
ASKED = "try(json_extract_string({}.text, '$[#-1].content'))"
CHECKERS = "coalesce(list_sort(try(json_keys({}.text, '$.verify'))), [])"

_SCORES = """
(SELECT list({{judge: judge, value: value}} ORDER BY judge) FROM (
    SELECT judge, arg_max(value, (attempt, id)) AS value FROM judgement j
    WHERE j.completion_id = {}.id AND j.mode = 'score' AND j.aspect = '' GROUP BY judge
)) AS scores
"""

ANCESTRY = """
ancestry AS (
    SELECT coalesce(
        (SELECT challenger FROM decision WHERE decision = 'promoted' ORDER BY round DESC LIMIT 1),
        (SELECT student FROM run LIMIT 1)
    ) AS id, 0 AS depth
    UNION
    SELECT coalesce(t.start_revision, r.parent), a.depth + 1
    FROM ancestry a JOIN revision r ON r.id = a.id LEFT JOIN training_run t ON t.id = r.training_run_id
    WHERE coalesce(t.start_revision, r.parent) IS NOT NULL AND a.depth < 10000
)
"""
"""The champion of a store as it stands, and all that it was trained from, nearest first."""


def _of_training(column: str) -> str:
    return f"(SELECT text FROM completion c JOIN content t ON t.hash = c.text_hash AND t.round = c.round WHERE c.id = {column})"


_SELECT: dict[str, str] = {
    "prompt": f"""
        SELECT x.* EXCLUDE (messages_hash, details_hash, tools_hash), {ASKED.format("m")} AS text,
               {CHECKERS.format("d")} AS checkers
        FROM prompt x LEFT JOIN content m ON m.hash = x.messages_hash AND m.round = x.round
        LEFT JOIN content d ON d.hash = x.details_hash AND d.round = x.round""",
    "proposal": """
        SELECT x.* EXCLUDE (text_hash), t.text
        FROM proposal x LEFT JOIN content t ON t.hash = x.text_hash AND t.round = x.round""",
    "rendered_prompt": """
        SELECT x.* EXCLUDE (token_ids), len(token_ids) AS tokens FROM rendered_prompt x""",
    "completion": f"""
        SELECT x.* EXCLUDE (text_hash, thinking_hash, turns_hash, payload_hash), t.text, {_SCORES.format("x")}
        FROM completion x LEFT JOIN content t ON t.hash = x.text_hash AND t.round = x.round""",
    "judgement": """
        SELECT x.* EXCLUDE (text_hash, reply_hash), t.text,
               (SELECT list({judge: v.judge, status: v.status, value: v.value, weight: v.weight} ORDER BY v.judge)
                FROM vote v WHERE v.judgement_id = x.id) AS votes
        FROM judgement x LEFT JOIN content t ON t.hash = x.text_hash AND t.round = x.round""",
    "pair": f"""
        SELECT x.*, {_of_training("x.chosen_id")} AS chosen, {_of_training("x.rejected_id")} AS rejected
        FROM pair x""",
    "selection": f"SELECT x.*, {_of_training('x.completion_id')} AS chosen FROM selection x",
    "training_row": f"""
        SELECT x.* EXCLUDE (token_weights), {_of_training("x.completion_id")} AS chosen,
               {_of_training("x.rejected_id")} AS rejected
        FROM training_row x""",
    "training_run": "SELECT x.* FROM training_run x",
    "revision": """
        SELECT x.*, '' AS step, x.id = (SELECT student FROM run LIMIT 1) AS is_initial,
               (SELECT min(depth) FROM ancestry a WHERE a.id = x.id) AS generations,
               (SELECT arg_max(decision, round) FROM decision d WHERE d.challenger = x.id) AS decision,
               (SELECT arg_max(reason, round) FROM admission a WHERE a.judge_revision = x.id) AS exam
        FROM revision x""",
    "evaluation": "SELECT x.* FROM evaluation x",
    "decision": "SELECT x.* FROM decision x",
    "feedback": """
        SELECT x.* EXCLUDE (text_hash), t.text
        FROM feedback x LEFT JOIN content t ON t.hash = x.text_hash AND t.round = x.round""",
    "event": "SELECT x.* FROM event x",
    "round": """
        SELECT x.* EXCLUDE (id), x.round AS id, '' AS step,
               (SELECT count(*) FROM completion c WHERE c.round = x.round) AS completions,
               (SELECT count(*) FROM pair p WHERE p.round = x.round) AS pairs,
               (SELECT count(*) FROM selection s WHERE s.round = x.round) AS selections,
               (SELECT count(*) FROM training_row t WHERE t.round = x.round) AS training_rows
        FROM round x""",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One row of the store."""

    kind: str
    id: str
    round: int | None
    step: str
    line: str
    """What people read of it, in one line; it may hold what a model wrote."""
    facts: Mapping[str, Any]
    """Its columns, with texts in full; values that JSON can hold."""

    @property
    def found(self) -> Found:
        """Its kind and id."""
        return Found(self.kind, self.id)


def taught_sql() -> str:
    """Return the query that says of each training row what it taught."""
    return (resources.files("redistill.store") / "sql" / "taught.sql").read_text("utf-8")


def fetch(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, Any]
) -> list[Row]:
    """Return the rows of a query of ours as dicts."""
    result = connection.execute(sql, dict(parameters))
    names = [d[0] for d in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def load(connection: duckdb.DuckDBPyConnection, wanted: Iterable[Found]) -> dict[Found, Node]:
    """Return the rows that are named; one that the store lacks is a node without facts."""
    by_kind: dict[str, list[str]] = {}
    for found in wanted:
        by_kind.setdefault(found.kind, []).append(found.id)
    nodes: dict[Found, Node] = {}
    for kind, ids in by_kind.items():
        column = "x.round" if kind == "round" else "x.id"
        head = f"WITH RECURSIVE {ANCESTRY}" if kind == "revision" else ""
        sql = f"{head}{_SELECT[kind]} WHERE {column} IN (SELECT unnest($ids::{id_type(kind)}[]))"
        for row in fetch(connection, sql, {"ids": ids}):
            facts = {key: plain(value) for key, value in row.items()}
            found = Found(kind, str(facts.pop("id")))
            line = " ".join(_LINES[kind](facts).split())
            nodes[found] = Node(
                kind, found.id, facts.pop("round"), facts.pop("step", ""), line, facts
            )
        for identifier in ids:
            about = (
                "weights that are no revision of this run" if kind == "revision" else "not stored"
            )
            lost = Node(kind, identifier, None, "", about, {})
            nodes.setdefault(Found(kind, identifier), lost)
    return nodes


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value


def quoted(text: str | None, most: int = QUOTED) -> str:
    """Return a text in quotes, cut, on one line."""
    if text is None:
        return "(no text)"
    line = " ".join(text.split())
    return f'"{line[: most - 3]}..."' if len(line) > most else f'"{line}"'


# -- one line a kind


def _prompt(row: Row) -> str:
    checks = f"checks {', '.join(row['checkers'])}" if row["checkers"] else ""
    return _joined(f"{row['split']} {quoted(row['text'])}", " ".join(row["tags"] or []), checks)


def _proposal(row: Row) -> str:
    like = f"{row['measure']} {_number(row['similarity'])}" if row["measure"] else ""
    return _joined(quoted(row["text"]), row["verdict"], like)


def _completion(row: Row) -> str:
    scores = ", ".join(f"{s['judge']} {_number(s['value'])}" for s in row["scores"] or [])
    cut = {"length": "cut", "refused": "refused"}.get(row["finish_reason"], "")
    split = row["split"] if row["split"] != "train" else ""
    return _joined(quoted(row["text"]), scores, split, cut, row["model"] or "")


def _judgement(row: Row) -> str:
    who = row["judge"] + (f" on {row['aspect']}" if row["aspect"] else "")
    if row["status"] != "ok":
        said = row["status"]
    elif row["ranks"]:
        said = "ranks " + ", ".join(
            f"{short(seen)} {rank}"
            for seen, rank in zip(row["presented"], row["ranks"], strict=True)
        )
    else:
        said = _number(row["value"]) if row["value"] is not None else ""
    votes = ", ".join(
        f"{v['judge']} {_number(v['value']) if v['status'] == 'ok' else v['status']}"
        for v in row["votes"] or []
    )
    failed = ", ".join(name for name, held in _parts(row["parts"]).items() if held is False)
    return _joined(
        f"{who} {said}".strip(),
        f"failed: {failed}" if failed else "",
        f"votes: {votes}" if votes else "",
        quoted(row["text"]) if row["text"] else "",
    )


def _pair(row: Row) -> str:
    return _joined(
        f"{quoted(row['chosen'], 40)} over {quoted(row['rejected'], 40)}",
        f"{row['judge']} +{_number(row['margin'])} {row['rule']}",
        f"sure {_number(row['probability'])}" if row["probability"] < 1 else "",
    )


def _selection(row: Row) -> str:
    return _joined(quoted(row["chosen"]), f"weight {_number(row['weight'])}")


def _training_row(row: Row) -> str:
    over = f" over {quoted(row['rejected'], 40)}" if row["rejected_id"] else ""
    label = {True: "wanted", False: "unwanted", None: ""}[row["label"]]
    reward = f"reward {_number(row['reward'])}" if row["reward"] is not None else ""
    weight = f"weight {_number(row['weight'])}" if row["weight"] != 1 else ""
    listed = f"best of {len(row['ranked'])}" if row["ranked"] else ""
    said = f"{quoted(row['chosen'], 40 if over else QUOTED)}{over}"
    return _joined(said, label, listed, reward, weight)


def _training_run(row: Row) -> str:
    done = f"{row['steps']} steps" if row["status"] == "trained" else row["status"]
    return _joined(f"{row['trainer']} on {row['rows']} rows", done, row["message"])


def _revision(row: Row) -> str:
    """Say what became of the weights, which no single row does."""
    if row["folder"].startswith("judges/"):
        return _joined("a judge", row["exam"] or "not examined")
    first = "the initial student" if row["is_initial"] else ""
    if row["generations"] == 0:
        return _joined(first, "the champion")
    decision = "" if row["is_initial"] else row["decision"] or "no decision"
    kept = "the champion comes of it" if row["generations"] else "the champion does not come of it"
    return _joined(first, decision, kept)


def _evaluation(row: Row) -> str:
    return f"{row['split']}: {row['judge']} {row['value']:.3f} on {row['n']} prompts"


def _decision(row: Row) -> str:
    return f"{row['decision']}: {row['reason']}"


def _feedback(row: Row) -> str:
    value = _number(row["value"]) if row["value"] is not None else ""
    by = f"by {row['author']}" if row["author"] else ""
    return _joined(f"{row['kind']} {value}".strip(), by, quoted(row["text"]) if row["text"] else "")


def _event(row: Row) -> str:
    detail = row["detail"]
    return _joined(row["kind"], detail if len(detail) <= _DETAIL else detail[: _DETAIL - 3] + "...")


def _round(row: Row) -> str:
    counts = ("completions", "pairs", "selections", "training_rows")
    return ", ".join(f"{row[name]} {name.replace('_', ' ')}" for name in counts if row[name])


def _rendered(row: Row) -> str:
    return _joined(f"{row['tokens']} tokens", "with context" if row["context"] else "")


_LINES: dict[str, Callable[[Row], str]] = {
    "prompt": _prompt,
    "proposal": _proposal,
    "rendered_prompt": _rendered,
    "completion": _completion,
    "judgement": _judgement,
    "pair": _pair,
    "selection": _selection,
    "training_row": _training_row,
    "training_run": _training_run,
    "revision": _revision,
    "evaluation": _evaluation,
    "decision": _decision,
    "feedback": _feedback,
    "event": _event,
    "round": _round,
}


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _parts(text: str) -> dict[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}
