"""The taxonomy with the recipes that cover each leaf, as text and as a picture.

The picture is written by hand and not drawn by matplotlib: it is rows of text, and its bytes depend on no version.
Filled is covered, hollow is empty, dashed is left out by design; colours are variables, as in `charts.py`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from .charts import with_style
from .coverage import Standing, counts

_WIDTH, _MARGIN = 800, 20
_LEAF_AT, _RECIPES_AT = 170, 300
_LINE, _ROW, _TREE = 15, 9, 38
"""Heights: of a line of text, of the gap between leaves, of a tree's title."""
_WRAP = 76
"""Characters of recipes in one line."""
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_INK, _MUTED = "var(--ink, #1f2328)", "var(--muted, #6a737d)"
_GRID, _PAPER = "var(--grid, #d8dee4)", "var(--paper, #ffffff)"
_GOOD = "var(--good, #0072b2)"
EMPTY = "empty"


def as_text(standings: Sequence[Standing]) -> str:
    """Return the trees as indented lines; an empty leaf is said to be empty."""
    lines = []
    for tree, branches in groupby(standings, lambda standing: standing.tree):
        lines.append(tree)
        for branch, found in groupby(branches, lambda standing: standing.branch):
            alone = list(found)
            if [standing.leaf for standing in alone] == [branch]:
                lines.append(f"  {branch:<18}{_who(alone[0])}")
                continue
            lines.append(f"  {branch}")
            lines += [f"    {standing.leaf:<16}{_who(standing)}" for standing in alone]
    return "\n".join([*lines, told(standings)])


def told(standings: Sequence[Standing]) -> str:
    """Return in a line how many leaves are covered."""
    covered, every = counts(list(standings))
    out = len(standings) - every
    return f"{covered} of {every} leaves are covered; {out} are left out by design"


def as_svg(standings: Sequence[Standing]) -> str:
    """Return the trees as one `<svg>` element."""
    parts: list[str] = []
    y = _MARGIN
    for tree, branches in groupby(standings, lambda standing: standing.tree):
        y += _TREE
        parts.append(_text(_MARGIN, y - 14, tree, size=15, weight=600))
        for branch, leaves in groupby(branches, lambda standing: standing.branch):
            parts.append(_rule(y))
            y += _ROW
            parts.append(_text(_MARGIN, y + 11, branch, weight=600))
            for standing in leaves:
                told_in = _wrapped(standing)
                parts += _leaf(standing, told_in, y)
                y += _LINE * len(told_in) + _ROW
        parts.append(_rule(y))
        y += _ROW
    y += _MARGIN
    parts.append(_text(_MARGIN, y, told(standings), colour=_MUTED))
    height = y + _MARGIN
    title = "The survey's taxonomy, and the recipes that cover each leaf"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}"><title>{title}</title>'
        f'<rect width="{_WIDTH}" height="{height}" fill="{_PAPER}"/>'
    )
    return with_style("\n".join([head, *parts, "</svg>"]), "taxonomy", title) + "\n"


def _who(standing: Standing) -> str:
    if standing.left_out:
        return f"left out: {standing.left_out}"
    return ", ".join(standing.recipes) or EMPTY


def _wrapped(standing: Standing) -> list[str]:
    return textwrap.wrap(_who(standing), _WRAP, break_on_hyphens=False)


def _leaf(standing: Standing, lines: Sequence[str], y: int) -> Iterator[str]:
    """Yield the mark of a leaf, its name, and who covers it."""
    colour = _INK if standing.recipes else _MUTED
    look = (
        f'fill="{_GOOD}" stroke="{_GOOD}"' if standing.recipes else f'fill="none" stroke="{_MUTED}"'
    )
    dashes = ' stroke-dasharray="2 2"' if standing.left_out else ""
    yield f'<circle cx="{_LEAF_AT - 14}" cy="{y + 7}" r="4.5" {look} stroke-width="1.5"{dashes}/>'
    yield _text(_LEAF_AT, y + 11, standing.leaf, colour=colour)
    for number, line in enumerate(lines):
        yield _text(_RECIPES_AT, y + 11 + _LINE * number, line, size=11, colour=colour)


def _text(
    x: int, y: int, said: str, *, size: int = 12, weight: int = 400, colour: str = _INK
) -> str:
    look = f'font-family="{_FONT}" font-size="{size}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x}" y="{y}" {look}>{escape(said)}</text>'


def _rule(y: int) -> str:
    return f'<path d="M {_MARGIN} {y} H {_WIDTH - _MARGIN}" stroke="{_GRID}" stroke-width="1"/>'
