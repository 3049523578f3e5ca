"""A lineage for people: a tree in the terminal, or a Mermaid flowchart."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from ..store.lineage import Branch, Fan, Lineage
from ..store.nearest import Nearest
from ..store.nodes import Node, quoted
from ..store.worse import Worse, WorseItem
from .console import clean

_SIDES = (("came from", "up"), ("came of it", "down"))
_GROUPS = 8
"""Groups of a wide fan that are named."""


def lineage_tree(found: Lineage) -> Tree:
    """Return the tree of a row: where it came from, what taught it, what came of it."""
    tree = Tree(_line(found.node), guide_style="dim")
    for title, side in _SIDES:
        branch: Branch | None = getattr(found, side)
        if branch is not None and branch.fans:
            _hang(tree.add(Text(title, style="bold")), branch)
        if side == "up" and found.taught_by:
            below = tree.add(Text("taught by (the training rows nearest to it)", style="bold"))
            for near in found.taught_by:
                below.add(nearest_lines(near))
    if not tree.children:
        tree.add(Text("nothing in this store is joined to it", style="dim"))
    return tree


def _hang(tree: Tree, branch: Branch) -> None:
    for fan in branch.fans:
        repeated = [following.node.found.short for following in fan.branches if following.elsewhere]
        for following in fan.branches:
            if not following.elsewhere:
                line = _line(following.node, fan.why)
                line.append("" if following.followed or fan.wide else " ...", style="dim")
                _hang(tree.add(line), following)
        if repeated:
            line = Text(f"{fan.why} ", style="dim").append(fan.kind, style="not dim cyan")
            tree.add(
                line.append(f" {', '.join(repeated)}", "not dim cyan").append(" (shown nearer)")
            )
        if fan.more:
            tree.add(_rest(fan))


def _name(node: Node, why: str = "") -> Text:
    """Return how a row is called: why it stands here, kind and short id."""
    line = Text(f"{why} " if why else "", style="dim")
    called = f"round {node.id}" if node.kind == "round" else f"{node.kind} {node.found.short}"
    return line.append(called, style="not dim cyan")


def _line(node: Node, why: str = "") -> Text:
    """Return a row as people read it: how it is called, when it was made, and its text."""
    line = _name(node, why)
    if when := _when(node):
        line.append(f" {clean(when)}", style="dim")
    if node.line:
        line.append(f"  {clean(node.line)}", style="not dim")
    return line


def _when(node: Node) -> str:
    """Return the round and step of a row; a prompt has none, and a round is its own."""
    if node.round is None or node.kind in ("prompt", "round"):
        return ""
    return f"round {node.round} {node.step}".strip()


def _rest(fan: Fan) -> Text:
    """Return the line of the rows that are not shown, counted by what tells them apart."""
    count = f"{fan.more} more {fan.kind}s" if fan.branches else f"{fan.why} {fan.total} {fan.kind}s"
    told = [f"{label} {n}" for label, n in fan.groups[:_GROUPS]]
    if len(fan.groups) > _GROUPS:
        told.append(f"{len(fan.groups) - _GROUPS} more groups")
    whole = " (of all: " if fan.branches else ": "
    text = count + (whole + ", ".join(told) + (")" if fan.branches else "") if told else "")
    return Text(clean(text), style="dim")


def nearest_lines(near: Nearest) -> Text:
    """Return a near training row: what it asks, what it taught, and why it is near."""
    line = _line(near.row)
    line.append(f"\nasked {clean(quoted(near.prompt, 100))}")
    if near.source:
        line.append("\nfrozen of ", style="dim")
        line.append(f"{near.source.kind} {near.source.short}", style="not dim cyan")
    line.append(f"\nnear by {clean(near.why)}", style="dim")
    return line


def worse_view(found: Worse, name: str) -> Iterator[RenderableType]:
    """Yield the items that got worse, each with the training rows nearest to it, then what to type next."""
    what = "held-out" if found.split == "heldout" else "test"
    sides = f"revision {found.before.found.short} -> {found.after.found.short}"
    yield Text(
        f"{found.fell} of {found.n} {what} prompts got worse, {found.rose} got better, by {clean(found.judge)}"
        f" (round {found.round}, {sides})"
    )
    for number, item in enumerate(found.items, start=1):
        yield _item(number, item)
    if more := found.fell - len(found.items):
        yield Text(f"{more} more got worse; --limit {found.fell} shows them all", style="dim")
    if not found.items:
        return
    if not found.training_rows:
        yield Text("nothing was trained between the two", style="dim")
    else:
        yield Text(
            f"looked at {found.training_rows} training rows; nearness is a pointer, no proof",
            style="dim",
        )
    near = next((n for item in found.items for n in item.nearest), None)
    if near is not None:
        yield Text(f"next: redistill lineage {clean(name)} {near.row.found.short}")


def _item(number: int, item: WorseItem) -> RenderableType:
    tree = Tree(_line(item.prompt, f"{number}."), guide_style="dim")
    failed = f"; fails {', '.join(item.failed)}" if item.failed else ""
    for title, node, value in (
        ("before", item.before, f"{item.value_before:.3g}"),
        ("after", item.after, f"{item.value_after:.3g}{failed}"),
    ):
        line = Text(f"{title} ", style="bold")
        line.append(f"{clean(value)}  ", style="green" if title == "before" else "red")
        line.append(clean(quoted(node.facts.get("text"), 120)))
        line.append(f"  completion {node.found.short}", style="cyan")
        tree.add(line)
    if item.nearest:
        below = tree.add(Text("nearest training rows", style="bold"))
        for near in item.nearest:
            below.add(nearest_lines(near))
    return Group(Text(""), tree)


# -- Mermaid

_PLAIN = frozenset(" .,:/+-=_")


def lineage_mermaid(found: Lineage) -> str:
    """Return a flowchart: what came first stands above what came of it."""
    chart = _Chart()
    top = chart.node(found.node)
    for _, side in _SIDES:
        branch: Branch | None = getattr(found, side)
        if branch is not None:
            chart.hang(top, branch, up=side == "up")
    for near in found.taught_by:
        chart.edge(chart.node(near.row), top, f"near by {near.why}", dotted=True)
    return "\n".join(["flowchart TD", *chart.lines, f"    style {top} stroke-width:3px"])


class _Chart:
    """The lines of a flowchart, with a name for each row."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names: dict[tuple[str, str], str] = {}
        self._edges: set[str] = set()

    def node(self, node: Node) -> str:
        """Return the name of a row, which is drawn once."""
        key = (node.kind, node.id)
        if key not in self._names:
            self._names[key] = f"n{len(self._names)}"
            title = _line(node).plain
            self.lines.append(f'    {self._names[key]}["{label(title)}"]')
        return self._names[key]

    def hang(self, top: str, branch: Branch, *, up: bool) -> None:
        """Draw what a row leads to."""
        for fan in branch.fans:
            for following in fan.branches:
                there = self.node(following.node)
                self.edge(*((there, top) if up else (top, there)), fan.why)
                self.hang(there, following, up=up)
            if fan.more:
                rest = f"n{len(self._names)}"
                self._names[("", rest)] = rest
                self.lines.append(f'    {rest}(["{label(_rest(fan).plain)}"])')
                self.edge(*((rest, top) if up else (top, rest)), fan.why)

    def edge(self, source: str, target: str, why: str, *, dotted: bool = False) -> None:
        """Draw an edge once."""
        line = f'    {source} {"-.->" if dotted else "-->"}|"{label(why)}"| {target}'
        if line not in self._edges:
            self._edges.add(line)
            self.lines.append(line)


def label(text: str) -> str:
    """Return a text that is safe inside a quoted label of Mermaid.

    Whatever is no letter, digit or plain mark becomes a numbered entity, so that no quote ends the label
    and no markup reaches the page.
    """
    return "".join(c if c.isalnum() or c in _PLAIN else f"#{ord(c)};" for c in clean(text))
