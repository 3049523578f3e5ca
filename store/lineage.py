"""Where a row comes from and what came of it, as a tree of rows.

The edges are those of `links.py`. A tree grows level by level, one query a kind of edge; a row is shown
in full once, where it is nearest. Where thousands of rows meet, as at a training run, they are counted
by what tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from .identify import Found
from .links import LINKS, Direction, Link
from .nearest import Nearest, teachers
from .nodes import Node, fetch, load, taught_sql
from .query import jail, snapshot

DEPTH = 1000
"""Levels that a tree has at most; a run has two a round."""
LIMIT = 5
"""Single rows shown of one kind of edge."""
_ALL = 1 << 62


@dataclass(slots=True)
class Branch:
    """A row in a tree, with what it leads to."""

    node: Node
    fans: list[Fan] = field(default_factory=list)
    elsewhere: bool = False
    """Whether it is shown in full at another place of the tree, nearer to the root."""
    followed: bool = True
    """Whether its own edges were looked for."""

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON has of it."""
        node = self.node
        found: dict[str, Any] = {"kind": node.kind, "id": node.id, "short_id": node.found.short}
        found |= {"round": node.round, "step": node.step, "line": node.line}
        if self.elsewhere:
            return found | {"elsewhere": True}
        found |= {"facts": dict(node.facts)}
        return found | ({"edges": [fan.as_dict() for fan in self.fans]} if self.followed else {})


@dataclass(slots=True)
class Fan:
    """The edges of one kind that one row has, of which the first few are shown."""

    why: str
    """What stands between the two rows: `spoken by`, `chosen in`."""
    kind: str
    """Kind of the rows at the far end."""
    total: int
    branches: list[Branch]
    wide: bool = False
    """Whether there may be thousands, so that single ones are named and not followed."""
    groups: list[tuple[str, int]] = field(default_factory=list)
    """All of them counted, where not all are shown."""

    @property
    def more(self) -> int:
        """How many are not shown."""
        return self.total - len(self.branches)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON has of it."""
        return {
            "why": self.why,
            "kind": self.kind,
            "total": self.total,
            "more": self.more,
            "groups": dict(self.groups),
            "nodes": [branch.as_dict() for branch in self.branches],
        }


@dataclass(frozen=True, slots=True)
class Lineage:
    """One row, what it came from, what came of it, and what taught it."""

    node: Node
    up: Branch | None
    down: Branch | None
    taught_by: Sequence[Nearest]
    """For an answer on held-out or test prompts: the nearest training rows of the weights that spoke."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `redistill lineage --json` prints."""
        sides = {"up": self.up, "down": self.down}
        return {
            **Branch(self.node).as_dict(),
            "edges": {name: branch.as_dict()["edges"] for name, branch in sides.items() if branch},
            "taught_by": [near.as_dict() for near in self.taught_by],
        }


def lineage(
    run_folder: Path,
    found: Found,
    *,
    directions: Sequence[Direction] = ("up", "down"),
    depth: int = DEPTH,
    limit: int = LIMIT,
) -> Lineage:
    """Return a row with what it came from and what came of it, read from the published snapshot.

    Args:
        run_folder: the run's folder.
        found: the row, see `identify`.
        directions: up: what it came from; down: what came of it.
        depth: levels of the tree.
        limit: most single rows of one kind of edge; how many more there are is told.

    Raises:
        BadInput: there is no such run.
    """
    with closing(jail(snapshot(run_folder))) as connection:
        node = load(connection, [found])[found]
        grower = _Grower(connection, depth, limit)
        up, down = (
            grower.grow(node, direction) if direction in directions else None
            for direction in ("up", "down")
        )
        taught_by = teachers(connection, node, limit) if up else []
        return Lineage(node, up, down, taught_by)


@dataclass(frozen=True, slots=True)
class _Grower:
    """Grows one tree in one direction."""

    connection: duckdb.DuckDBPyConnection
    depth: int
    limit: int

    def grow(self, root: Node, direction: Direction) -> Branch:
        """Return the tree below a row; each row's own edges are followed once."""
        tree = Branch(root)
        seen = {root.found}
        level = [tree]
        links = sorted(
            LINKS, key=lambda link: link.wide == direction
        )  # what is counted stands last
        for depth in range(self.depth):
            fans = [
                fan
                for link in links
                for fan in self._fans(link, direction, level, shallow=depth == 0)
            ]
            wanted = [found for *_, far in fans for found in far]
            nodes = load(self.connection, dict.fromkeys(wanted))
            level = []
            for fan, branch, far in fans:
                for found in far:
                    following = Branch(nodes[found], elsewhere=found in seen, followed=not fan.wide)
                    seen.add(found)
                    fan.branches.append(following)
                    level += [following] if following.followed and not following.elsewhere else []
                branch.fans.append(fan)
        for branch in level:
            branch.followed = False
        return tree

    def _fans(
        self, link: Link, direction: Direction, level: Sequence[Branch], *, shallow: bool
    ) -> list[tuple[Fan, Branch, list[Found]]]:
        """Return the edges of one kind that the rows of a level have, with the rows to show of each."""
        near, far = link.kinds(direction)
        asking = {branch.node.id: branch for branch in level if branch.node.kind == near}
        if not asking or (link.first and not shallow):
            return []
        rows = fetch(
            self.connection, link.query(direction), {"ids": list(asking), "limit": self.limit}
        )
        fans: dict[str, tuple[Fan, Branch, list[Found]]] = {}
        for row in rows:
            why = link.up if direction == "up" else link.down
            fan = fans.setdefault(
                row["near"],
                (Fan(why, far, row["n"], [], link.wide == direction), asking[row["near"]], []),
            )
            if shallow or not fan[0].wide:
                fan[2].append(Found(far, row["far"]))
        cut = [near for near, (fan, _, shown) in fans.items() if len(shown) < fan.total]
        for near, groups in _groups(self.connection, link, direction, cut).items():
            fans[near][0].groups = groups
        return list(fans.values())


# What tells rows of a kind apart, as (label, id).
_LABELS = {
    "completion": "SELECT 'round ' || round || ' ' || step AS label, id FROM completion",
    "judgement": "SELECT judge || ' in ' || step AS label, id FROM judgement",
    "rendered_prompt": "SELECT 'round ' || round AS label, id FROM rendered_prompt",
    "training_row": """
        SELECT unnest(list_concat(
            ['from ' || w.origin], [('judged by ' || judge) FOR judge IN w.judges], p.tags
        )) AS label, w.id FROM ({taught}) w JOIN prompt p ON p.id = w.prompt_id""",
}


def _groups(
    connection: duckdb.DuckDBPyConnection, link: Link, direction: Direction, ids: Sequence[str]
) -> dict[str, list[tuple[str, int]]]:
    """Return, for each near row, all its edges counted by what tells the far rows apart, most first."""
    kind = link.kinds(direction)[1]
    if kind not in _LABELS or not ids:
        return {}
    edges, labels = link.query(direction), _LABELS[kind].replace("{taught}", taught_sql())
    rows = fetch(
        connection,
        f"SELECT e.near, label, count(*) AS n FROM ({edges}) e JOIN ({labels}) l ON l.id = e.far::UUID "  # noqa: S608
        "GROUP BY e.near, label ORDER BY e.near, n DESC, label",
        {"ids": list(ids), "limit": _ALL},
    )
    groups: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        groups.setdefault(row["near"], []).append((row["label"], row["n"]))
    return groups
