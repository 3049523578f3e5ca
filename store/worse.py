"""What got worse between two revisions, prompt by prompt, and the training rows nearest to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ..errors import BadInput
from .identify import Found
from .links import READ
from .nearest import Nearest, nearest, runs_of
from .nodes import Node, Row, fetch, load, plain
from .query import jail, snapshot

ITEMS = 10
"""Items that got worse which are shown."""
NEAREST = 3
"""Training rows shown of each."""


@dataclass(frozen=True, slots=True)
class WorseItem:
    """A prompt whose value fell."""

    prompt: Node
    before: Node
    """The completion of the weights before."""
    after: Node
    value_before: float
    value_after: float
    failed: tuple[str, ...]
    """Parts of the verdict that held before and do not any more."""
    nearest: Sequence[Nearest]

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON has of it."""
        sides = {"prompt": self.prompt, "before": self.before, "after": self.after}
        return {
            **{f"{name}_id": node.id for name, node in sides.items()},
            **{name: node.facts.get("text") for name, node in sides.items()},
            "tags": self.prompt.facts.get("tags"),
            "value_before": self.value_before,
            "value_after": self.value_after,
            "failed": self.failed,
            "nearest": [near.as_dict() for near in self.nearest],
        }


@dataclass(frozen=True, slots=True)
class Worse:
    """What got worse between two evaluations of the same prompts, and what may have taught it."""

    split: str
    round: int
    judge: str
    before: Node
    """The revision before: the champion of the round, or the initial student."""
    after: Node
    """The revision after: the challenger of the round, or the champion."""
    n: int
    """Prompts with a value on both sides."""
    fell: int
    rose: int
    training_rows: int
    """Training rows among which the nearest were looked for."""
    items: Sequence[WorseItem]
    """The first of those that fell, the deepest fall first."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `redistill lineage --worse --json` prints."""
        return {
            "split": self.split,
            "round": self.round,
            "judge": self.judge,
            "before": self.before.id,
            "after": self.after.id,
            "n": self.n,
            "fell": self.fell,
            "rose": self.rose,
            "more": self.fell - len(self.items),
            "training_rows": self.training_rows,
            "items": [item.as_dict() for item in self.items],
        }


_FALLEN = """
WITH side AS (
    SELECT e.id AS evaluation, c.prompt_id, c.slot, c.id,
           arg_max(j.value, (j.attempt, j.id)) AS value, arg_max(j.parts, (j.attempt, j.id)) AS parts
    FROM evaluation e
    JOIN completion c
      ON c.round = e.round AND c.step = e.step AND c.revision = e.revision AND c.split = e.split
    JOIN judgement j ON j.completion_id = c.id AND j.round = c.round
                    AND j.step = c.step AND j.judge_revision = e.judge_revision
                    AND j.mode = 'score' AND j.aspect = ''
    WHERE e.id IN ($before::UUID, $after::UUID)
    GROUP BY ALL
)
SELECT a.prompt_id::VARCHAR AS prompt_id, a.id::VARCHAR AS before_id, b.id::VARCHAR AS after_id,
       a.value AS before, b.value AS after, a.parts AS parts_before, b.parts AS parts_after
FROM side a JOIN side b ON b.prompt_id = a.prompt_id AND b.slot = a.slot AND b.evaluation = $after::UUID
JOIN prompt p ON p.id = a.prompt_id
WHERE a.evaluation = $before::UUID AND a.value IS NOT NULL AND b.value IS NOT NULL
ORDER BY b.value - a.value, p.position, a.slot
"""


def worse(
    run_folder: Path,
    *,
    split: str = "heldout",
    round_: int | None = None,
    limit: int = ITEMS,
) -> Worse:
    """Return the prompts whose value fell, each with the training rows nearest to it.

    Args:
        run_folder: the run's folder; its published snapshot is read.
        split: heldout: the challenger of a round beside its champion; test: the champion beside the
            initial student.
        round_: the round of held-out prompts; the last one that measured a challenger, where not given.
        limit: most prompts; how many more there are is told.

    Raises:
        BadInput: there is no such run, split or round, or the round measured no challenger.
    """
    with closing(jail(snapshot(run_folder))) as connection:
        before, after = _evaluations(connection, split, round_)
        every = fetch(connection, _FALLEN, {"before": before["id"], "after": after["id"]})
        fallen = [row for row in every if row["after"] < row["before"]]
        runs = runs_of(connection, after["revision"], split)
        nodes = load(
            connection,
            [Found("revision", before["revision"]), Found("revision", after["revision"])]
            + [Found("training_run", run) for run in runs],
        )
        return Worse(
            split=split,
            round=after["round"],
            judge=after["judge"],
            before=nodes[Found("revision", before["revision"])],
            after=nodes[Found("revision", after["revision"])],
            n=len(every),
            fell=len(fallen),
            rose=sum(row["after"] > row["before"] for row in every),
            training_rows=sum(nodes[Found("training_run", run)].facts["rows"] for run in runs),
            items=_items(connection, fallen[:limit], after["judge"], runs),
        )


def _items(
    connection: duckdb.DuckDBPyConnection, rows: Sequence[Row], judge: str, runs: Sequence[str]
) -> list[WorseItem]:
    near = nearest(connection, [r["prompt_id"] for r in rows], [judge], runs, NEAREST)
    named = [Found("prompt", row["prompt_id"]) for row in rows]
    named += [Found("completion", row[side]) for row in rows for side in ("before_id", "after_id")]
    nodes = load(connection, dict.fromkeys(named))
    return [
        WorseItem(
            prompt=nodes[Found("prompt", row["prompt_id"])],
            before=nodes[Found("completion", row["before_id"])],
            after=nodes[Found("completion", row["after_id"])],
            value_before=row["before"],
            value_after=row["after"],
            failed=_failed(row),
            nearest=near.get(row["prompt_id"], []),
        )
        for row in rows
    ]


def _failed(row: Row) -> tuple[str, ...]:
    before, after = json.loads(row["parts_before"]), json.loads(row["parts_after"])
    return tuple(name for name, held in after.items() if held is False and before.get(name) is True)


def _evaluations(
    connection: duckdb.DuckDBPyConnection, split: str, round_: int | None
) -> tuple[Row, Row]:
    """Return the evaluations to put beside each other.

    Raises:
        BadInput: they are not there.
    """
    if split == "test":
        gains = fetch(connection, "SELECT detail FROM event WHERE kind = 'gain'", {})
        if round_ is not None:
            raise BadInput.at(
                "--round", "the test split is measured once, at the end", "leave it out"
            )
        if not gains:
            raise BadInput.at("", "the test split is not measured yet", "finish the run first")
        ids = json.loads(gains[-1]["detail"])["evaluations"]
    elif split == "heldout":
        ids = _of_round(connection, round_)
    else:
        raise BadInput.at("--split", f"{split!r} is not measured", "give heldout or test")
    sql = "SELECT id::VARCHAR AS id, round, revision, judge FROM evaluation WHERE id IN ($before::UUID, $after::UUID)"
    rows = fetch(connection, sql, {"before": ids[0], "after": ids[1]})
    known: Mapping[str, Row] = {row["id"]: row for row in rows}
    if missing := [identifier for identifier in ids if identifier not in known]:
        raise BadInput.at("", f"evaluation {missing[0]} is not in the store")
    return known[ids[0]], known[ids[1]]


def _of_round(connection: duckdb.DuckDBPyConnection, round_: int | None) -> list[str]:
    rows = fetch(
        connection,
        f"SELECT d.round, e.parent AS id, e.place FROM ({READ}) e JOIN decision d ON d.id = e.child "  # noqa: S608
        "ORDER BY d.round, d.created_at, e.place",
        {},
    )
    # The newest decision of the round comes last, its champion's evaluation before its challenger's.
    measured = {row["round"] for row in rows}
    wanted = max(measured, default=0) if round_ is None else round_
    found = [plain(row["id"]) for row in rows if row["round"] == wanted]
    if len(found) >= 2:
        return found[-2:]
    if not measured:
        raise BadInput.at("", "no round has measured a challenger yet", "finish a round first")
    known = ", ".join(map(str, sorted(measured)))
    raise BadInput.at(
        "--round", f"round {round_} has measured no challenger", f"these have: {known}"
    )
