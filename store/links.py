"""What comes of what: every edge between two rows of a store, declared once.

Up and down are the same query read from either end, so that each edge has its reverse.
"""

# ruff: noqa: S608 - pieces of constants of this module; whatever comes from outside is bound
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]
_TYPES = {"revision": "VARCHAR", "round": "INTEGER"}


def id_type(kind: str) -> str:
    """Return the SQL type of a kind's ids."""
    return _TYPES.get(kind, "UUID")


@dataclass(frozen=True, slots=True)
class Link:
    """One kind of edge."""

    parent: str
    """Kind of what was there first."""
    child: str
    """Kind of what came of it."""
    up: str
    """How the child says it, before the parent: a completion is `spoken by` a revision."""
    down: str
    """How the parent says it, before the child: a completion was `chosen in` a pair."""
    sql: str
    """Gives parent, child, and the place of an edge among others."""
    wide: Direction | None = None
    """The direction in which one row may have thousands; there, only the row asked for shows single ones."""
    first: bool = False
    """Whether the edge is shown at the row asked for alone."""

    def kinds(self, direction: Direction) -> tuple[str, str]:
        """Return the kinds of the near and the far end."""
        return (self.child, self.parent) if direction == "up" else (self.parent, self.child)

    def query(self, direction: Direction) -> str:
        """Return SQL that gives near, far, place and n, the edges of each near row of `$ids`.

        At most `$limit` of each near row come back.
        """
        near, far = ("child", "parent") if direction == "up" else ("parent", "child")
        kind = id_type(self.kinds(direction)[0])
        return (
            f"SELECT {near}::VARCHAR AS near, {far}::VARCHAR AS far, "
            f"count(*) OVER (PARTITION BY {near}) AS n FROM ({self.sql}) "
            f"WHERE {near} IN (SELECT unnest($ids::{kind}[])) "
            f"QUALIFY row_number() OVER (PARTITION BY {near} ORDER BY place, {far}) <= $limit "
            f"ORDER BY {near}, place, {far}"
        )


# Rows of stores that are older than the columns pair_id and selection_id are found by what they hold.
_OLD = "t.pair_id IS NULL AND t.selection_id IS NULL"
_OLD_PAIR = "p.round = t.round AND p.chosen_id = t.completion_id AND p.rejected_id = t.rejected_id"
_OLD_SELECTION = "s.round = t.round AND s.completion_id = t.completion_id AND t.rejected_id IS NULL AND t.ranked IS NULL"

# The judgements that ordered a pair: those that its judge gave to both, the last attempt with a value. A
# judge that was asked again after the pair was made has no part in it.
_ORDERED = """
WITH side AS (
    SELECT id AS pair, judge, judge_revision, created_at, unnest([chosen_id, rejected_id]) AS completion
    FROM pair
)
SELECT arg_max(j.id, (j.attempt, j.id)) AS parent, s.pair AS child, 0 AS place
FROM side s JOIN judgement j ON j.completion_id = s.completion AND j.judge = s.judge
WHERE j.mode = 'score' AND j.aspect = '' AND j.value IS NOT NULL AND j.created_at <= s.created_at
  AND coalesce(s.judge_revision, j.judge_revision) = j.judge_revision
GROUP BY s.pair, j.completion_id, j.judge_revision
UNION ALL
SELECT j.id, p.id, 1
FROM pair p JOIN (
    SELECT id, judge, judge_revision, created_at, presented, unnest(presented) AS seen
    FROM judgement WHERE mode = 'compare' AND status = 'ok'
) j ON j.seen = p.chosen_id AND j.judge = p.judge
WHERE list_contains(j.presented, p.rejected_id) AND j.created_at <= p.created_at
  AND coalesce(p.judge_revision, j.judge_revision) = j.judge_revision
"""

# A gate reads the challenger's newest evaluation, and the champion's of the same prompts, judge and
# decoding; see agents/operators/gate.py.
READ = """
WITH after AS (
    SELECT d.id AS decision, d.champion, d.round, e.id, e.prompts_hash, e.judge_revision, e.decoding
    FROM decision d JOIN evaluation e
      ON e.revision = d.challenger AND e.split = 'heldout' AND e.round <= d.round
    QUALIFY rank() OVER (PARTITION BY d.id ORDER BY e.round DESC) = 1
)
SELECT id AS parent, decision AS child, 1 AS place FROM after
UNION
SELECT e.id, a.decision, 0
FROM after a JOIN evaluation e
  ON e.revision = a.champion AND e.split = 'heldout' AND e.round <= a.round
 AND e.prompts_hash = a.prompts_hash AND e.judge_revision = a.judge_revision AND e.decoding = a.decoding
QUALIFY rank() OVER (PARTITION BY a.decision, a.judge_revision ORDER BY e.round DESC) = 1
"""

# A list is made of the pairs of its prompt, of the step that it was trained on.
_LISTED = """
SELECT p.id AS parent, t.id AS child, t.round AS place
FROM training_row t
JOIN step d ON d.round = t.round AND d.step = t.step
JOIN pair p ON p.round = t.round AND p.prompt_id = t.prompt_id AND list_contains((d.settings -> 'of')::VARCHAR[], p.step)
WHERE t.ranked IS NOT NULL
"""

# A student that teaches itself was shown what its step's selection has kept of the prompt. Which of several answers it was
# the rows do not say, and all of them are told.
_SHOWN = """
SELECT s.id AS parent, t.id AS child, s.position AS place
FROM training_row t
JOIN step d ON d.round = t.round AND d.step = t.step AND d.settings ->> 'given' IN ('answer', 'critique')
JOIN selection s ON s.round = t.round AND s.prompt_id = t.prompt_id
                AND list_contains((d.settings -> 'of')::VARCHAR[], s.step)
"""


def _plain(table: str, column: str, place: str = "round") -> str:
    """Return the edges that a column of the child's table holds."""
    return (
        f"SELECT {column} AS parent, id AS child, {place} AS place "
        f"FROM {table} WHERE {column} IS NOT NULL"
    )


LINKS = (
    Link(
        "prompt", "proposal", "was shown", "shown for",
        "SELECT unnest(seeds) AS parent, id AS child, round AS place FROM proposal", "down",
    ),
    Link("completion", "proposal", "was shown the failed", "failed, shown for", _plain("proposal", "answer_id")),
    Link("completion", "proposal", "said in", "read as", _plain("proposal", "completion_id")),
    Link("prompt", "proposal", "most like", "likest to", _plain("proposal", "nearest_id"), "down"),
    Link(
        "proposal", "prompt", "proposed as", "kept as",
        "SELECT id AS parent, prompt_id AS child, 0 AS place FROM proposal WHERE prompt_id IS NOT NULL",
    ),
    Link("prompt", "rendered_prompt", "renders", "rendered as", _plain("rendered_prompt", "prompt_id"), "down"),
    Link("prompt", "completion", "answers", "answered by", _plain("completion", "prompt_id", "round"), "down"),
    Link("rendered_prompt", "completion", "saw", "seen by", _plain("completion", "rendered_prompt_id"), "down"),
    Link("revision", "completion", "spoken by", "spoke", _plain("completion", "revision"), "down"),
    Link("completion", "completion", "rewrites", "rewritten as", _plain("completion", "parent_id")),
    Link("judgement", "completion", "answers the critique", "answered by", _plain("completion", "critique_id")),
    Link(
        "completion", "judgement", "looks at", "judged in",
        _plain("judgement", "completion_id", "attempt")
        + " UNION ALL SELECT unnest(presented), id, 0 FROM judgement WHERE presented IS NOT NULL",
    ),
    Link("revision", "judgement", "judged by", "judged", _plain("judgement", "revision"), "down"),
    Link("completion", "feedback", "is about", "people said", _plain("feedback", "completion_id")),
    Link("completion", "feedback", "against", "people said against it", _plain("feedback", "other_id")),
    Link("completion", "pair", "chosen", "chosen in", _plain("pair", "chosen_id")),
    Link("completion", "pair", "rejected", "rejected in", _plain("pair", "rejected_id")),
    Link("judgement", "pair", "ordered by", "ordered", _ORDERED),
    Link("completion", "selection", "keeps", "kept in", _plain("selection", "completion_id")),
    Link(
        "judgement", "selection", "scored in", "was read by",
        "SELECT j.id AS parent, s.id AS child, s.round AS place FROM selection s "
        "JOIN judgement j ON j.completion_id = s.completion_id AND j.mode = 'score' AND j.created_at <= s.created_at",
    ),
    Link(
        "pair", "training_row", "froze", "frozen as",
        _plain("training_row", "pair_id") + " UNION ALL SELECT p.id, t.id, t.round "
        f"FROM training_row t JOIN pair p ON {_OLD_PAIR} WHERE {_OLD}",
    ),
    Link("pair", "training_row", "lists", "listed in", _LISTED),
    Link(
        "selection", "training_row", "froze", "frozen as",
        _plain("training_row", "selection_id") + " UNION ALL SELECT s.id, t.id, t.round "
        f"FROM training_row t JOIN selection s ON {_OLD_SELECTION} WHERE {_OLD}",
    ),
    Link("selection", "training_row", "its teacher saw", "shown to the teacher of", _SHOWN),
    Link(
        "judgement", "training_row", "rewarded by", "rewarded",
        "SELECT j.id AS parent, t.id AS child, j.attempt AS place FROM training_row t JOIN judgement j "
        "ON j.completion_id = t.completion_id AND j.round = t.round AND j.step = t.step AND j.aspect = '' "
        "WHERE t.reward IS NOT NULL",
    ),
    Link(
        "completion", "training_row", "learns", "learned in",
        "SELECT unnest(list_distinct(coalesce(t.ranked, []) || [t.completion_id, t.rejected_id])) AS parent, "
        f"t.id AS child, t.round AS place FROM training_row t WHERE {_OLD} "
        f"AND NOT EXISTS (SELECT 1 FROM pair p WHERE {_OLD_PAIR}) "
        f"AND NOT EXISTS (SELECT 1 FROM selection s WHERE {_OLD_SELECTION})",
    ),
    Link(
        "training_row", "training_run", "trained on", "trained in",
        "SELECT id AS parent, training_run_id AS child, position AS place FROM training_row", "up",
    ),
    Link("revision", "training_run", "started from", "trained further in", _plain("training_run", "start_revision")),
    Link(
        "revision", "training_run", "held near", "reference of",
        _plain("training_run", "reference_revision") + " AND reference_revision <> start_revision",
    ),
    Link("training_run", "revision", "made by", "made", _plain("revision", "training_run_id")),
    Link(
        "revision", "revision", "derived from", "became",
        _plain("revision", "parent") + " AND training_run_id IS NULL",
    ),
    Link("revision", "revision", "adapter on", "under the adapter", _plain("revision", "base")),
    Link("revision", "evaluation", "answers of", "measured in", _plain("evaluation", "revision")),
    Link(
        "completion", "evaluation", "counts", "counted in",
        "SELECT c.id AS parent, e.id AS child, c.slot AS place FROM evaluation e JOIN completion c "
        "ON c.round = e.round AND c.step = e.step AND c.split = e.split AND c.revision = e.revision",
        "up",
    ),
    Link("evaluation", "decision", "read", "read by", READ),
    Link("revision", "decision", "challenger", "challenger in", _plain("decision", "challenger")),
    Link("revision", "decision", "champion", "champion before", _plain("decision", "champion")),
    Link(
        "revision", "round", "started from", "started",
        "SELECT champion AS parent, round AS child, round AS place FROM round",
    ),
    *(
        Link("round", kind, "in", "held", f"SELECT round AS parent, id AS child, 0 AS place FROM {kind}",
             first=True)
        for kind in ("training_run", "decision", "event")
    ),
)  # fmt: skip
"""Every kind of edge; what was sampled stands before what was made of it."""
