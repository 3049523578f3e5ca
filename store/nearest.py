"""From a bad answer to the training rows that are most like its prompt.

No gradient says which row taught what. What is known of both sides is how they are checked, their tags,
and who judged them; rows that agree in these are the first to look at. Ties are ordered by the words
that the two prompts share. It is a pointer, never a proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from .identify import Found
from .nodes import ASKED, CHECKERS, Node, Row, fetch, load, taught_sql

_WORDS = 4


@dataclass(frozen=True, slots=True)
class Nearest:
    """A training row that is like a prompt, and in what."""

    row: Node
    origin: str
    """Step that curated it."""
    source: Found | None
    """The pair or selection that it froze."""
    prompt_id: str
    prompt: str | None
    """What the row asks."""
    checkers: tuple[str, ...]
    """Checkers that both have."""
    same_checkers: bool
    """Whether neither has any other."""
    tags: tuple[str, ...]
    """Tags that both have."""
    judges: tuple[str, ...]
    """Judges of both."""
    words: tuple[str, ...]
    """Words of the prompts that both have, longest first."""

    @property
    def why(self) -> str:
        """Say in one line what makes it near."""
        kind = "same checkers" if self.same_checkers else "checkers"
        parts = (
            (kind, self.checkers, ": "),
            ("tags", self.tags, " "),
            ("judge", self.judges, " "),
            ("words", self.words[:_WORDS], " "),
        )
        told = [f"{name}{between}{', '.join(found)}" for name, found, between in parts if found]
        return "; ".join(told) or "nothing in common but the training run"

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON has of it."""
        return {
            "id": self.row.id,
            "short_id": self.row.found.short,
            "round": self.row.round,
            "line": self.row.line,
            "why": self.why,
            "origin": self.origin,
            "source": {"kind": self.source.kind, "id": self.source.id} if self.source else None,
            "prompt_id": self.prompt_id,
            "prompt": self.prompt,
            "checkers": self.checkers,
            "same_checkers": self.same_checkers,
            "tags": self.tags,
            "judges": self.judges,
            "words": self.words,
            "facts": dict(self.row.facts),
        }


_NEAREST = f"""
WITH taught AS MATERIALIZED (
    SELECT * FROM ({{taught}}) WHERE training_run_id IN (SELECT unnest($runs::UUID[]))
),
about AS MATERIALIZED (
    SELECT p.id, p.tags, {ASKED.format("m")} AS text, {CHECKERS.format("d")} AS checkers,
           list_distinct(regexp_extract_all(lower(coalesce({ASKED.format("m")}, '')), '\\w+')) AS words
    FROM prompt p LEFT JOIN content m ON m.hash = p.messages_hash AND m.round = p.round
    LEFT JOIN content d ON d.hash = p.details_hash AND d.round = p.round
    WHERE p.id IN (SELECT prompt_id FROM taught UNION SELECT unnest($prompts::UUID[]))
),
shared AS (
    SELECT item.id AS item, there.id AS prompt_id, there.text AS prompt,
           list_intersect(item.checkers, there.checkers) AS checkers,
           list_intersect(item.tags, there.tags) AS tags,
           list_intersect(item.words, there.words) AS words,
           len(list_distinct(item.checkers || there.checkers)) AS all_checkers,
           len(list_distinct(item.tags || there.tags)) AS all_tags,
           len(item.words) + len(there.words) AS all_words
    FROM about item CROSS JOIN about there
    WHERE item.id IN (SELECT unnest($prompts::UUID[])) AND there.id IN (SELECT prompt_id FROM taught)
),
-- Jaccard: what both have among what either has.
beside AS (
    SELECT s.*, len(checkers) / greatest(1, all_checkers) AS by_checkers, len(tags) / greatest(1, all_tags) AS by_tags,
           len(words) / greatest(1, all_words - len(words)) AS by_words
    FROM shared s
),
ranked AS (
    SELECT b.item, w.id, w.origin, w.pair_id, w.selection_id, w.judges, b.prompt_id,
           row_number() OVER (
               PARTITION BY b.item
               ORDER BY b.by_checkers DESC, b.by_tags DESC, list_has_any(w.judges, $judges::VARCHAR[]) DESC,
                        b.by_words DESC, w.position, w.id
           ) AS place
    FROM beside b JOIN taught w ON w.prompt_id = b.prompt_id
    QUALIFY place <= $limit
)
SELECT r.item::VARCHAR AS item, r.id::VARCHAR AS id, r.origin, r.pair_id, r.selection_id,
       r.prompt_id::VARCHAR AS prompt_id, b.prompt, list_sort(b.checkers) AS checkers,
       len(b.checkers) = b.all_checkers AS same_checkers, list_sort(b.tags) AS tags,
       list_sort(list_intersect(r.judges, $judges::VARCHAR[])) AS judges, b.words
FROM ranked r JOIN beside b ON b.item = r.item AND b.prompt_id = r.prompt_id
ORDER BY r.item, r.place
"""  # noqa: S608

# Where `run` is the newest training run of some weights; further ones taught the weights that it began with.
_RUNS = """
WITH RECURSIVE run AS (
    SELECT t.id, t.start_revision, 0 AS depth FROM revision r JOIN training_run t ON t.id = r.training_run_id
    WHERE r.id = $revision
    UNION
    SELECT t.id, t.start_revision, run.depth + 1
    FROM run JOIN revision r ON r.id = run.start_revision JOIN training_run t ON t.id = r.training_run_id
    WHERE run.depth < $rounds
)
SELECT DISTINCT id::VARCHAR AS id FROM run
"""


def teachers(connection: duckdb.DuckDBPyConnection, node: Node, limit: int) -> list[Nearest]:
    """Return the training rows nearest to an answer on held-out or test prompts, of the weights that spoke.

    Held-out answers measure one training run, so its rows alone are looked at; test answers measure all
    training runs from the initial student on.
    """
    facts = node.facts
    if node.kind != "completion" or facts.get("split") == "train" or not facts.get("revision"):
        return []
    runs = runs_of(connection, facts["revision"], facts["split"])
    judges = [score["judge"] for score in facts["scores"] or []]
    return nearest(connection, [facts["prompt_id"]], judges, runs, limit).get(
        facts["prompt_id"], []
    )


def runs_of(connection: duckdb.DuckDBPyConnection, revision: str, split: str) -> list[str]:
    """Return the training runs that an answer on a split says something of, newest first."""
    rounds = 0 if split == "heldout" else 10_000
    return [row["id"] for row in fetch(connection, _RUNS, {"revision": revision, "rounds": rounds})]


def nearest(
    connection: duckdb.DuckDBPyConnection,
    prompts: Sequence[str],
    judges: Sequence[str],
    runs: Sequence[str],
    limit: int,
) -> dict[str, list[Nearest]]:
    """Return the training rows nearest to each prompt, nearest first."""
    if not prompts or not runs:
        return {}
    asked = {"prompts": list(prompts), "judges": list(judges), "runs": list(runs), "limit": limit}
    rows = fetch(connection, _NEAREST.replace("{taught}", taught_sql()), asked)
    nodes = load(connection, dict.fromkeys(Found("training_row", row["id"]) for row in rows))
    found: dict[str, list[Nearest]] = {}
    for row in rows:
        found.setdefault(row["item"], []).append(
            Nearest(
                row=nodes[Found("training_row", row["id"])],
                origin=row["origin"],
                source=_source(row),
                prompt_id=row["prompt_id"],
                prompt=row["prompt"],
                checkers=tuple(row["checkers"]),
                same_checkers=bool(row["same_checkers"] and row["checkers"]),
                tags=tuple(row["tags"]),
                judges=tuple(row["judges"]),
                words=tuple(sorted(row["words"], key=lambda word: (-len(word), word))),
            )
        )
    return found


def _source(row: Row) -> Found | None:
    """Return the pair or the selection of a row; rows that were made while training have neither."""
    kind = next((kind for kind in ("pair", "selection") if row[f"{kind}_id"]), None)
    return Found(kind, str(row[f"{kind}_id"])) if kind else None
