"""What the servers of a recipe can do, for `redistill plan` and `redistill doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..agents.recipe import Recipe
from ..agents.roles import Role
from ..agents.server_needs import ask_servers, hosts, most_asked, needs, served
from ..errors import TryLater
from ..policies.abilities import ABILITIES

Row = dict[str, Any]


def servers(recipe: Recipe, *, ask: bool) -> list[Row]:
    """Return a row for each role behind an address.

    Args:
        recipe: whose roles.
        ask: whether the servers are asked by short calls, which cost what `ask` of a row says.

    Each row: `role`, `host`, `ask` and `before` (calls and dollars of asking for all, and of what the run asks before
    it starts), `can` (by ability: level and why; None where it was not asked), `fault` (why it does not answer).
    """
    wanted: dict[str, list[Any]] = {}
    for need in needs(recipe):
        wanted.setdefault(need.role, []).extend(need.abilities)
    return [
        _row(name, role, list(dict.fromkeys(wanted.get(name, ()))), ask=ask)
        for name, role in served(recipe.roles).items()
    ]


def _row(name: str, role: Role, wanted: list[Any], *, ask: bool) -> Row:
    row: Row = {
        "role": name,
        "host": hosts(role),
        "ask": _price(*most_asked(role, ABILITIES)),
        "before": _price(*most_asked(role, wanted)) if wanted else None,
        "can": None,
        "fault": "",
    }
    if not ask:
        return row
    try:
        found = ask_servers({name: role}, {name: ABILITIES})[name]
    except TryLater as error:
        return row | {"fault": str(error)}
    return row | {"can": {a: {"level": f.level, "why": f.why} for a, f in found.items()}}


def _price(calls: int, dollars: float | None) -> Row:
    return {"calls": calls, "dollars": dollars}


def server_line(row: Row) -> str:
    """Say in a line what a role's server can do, or that it was not asked."""
    if row["fault"]:
        return f"{row['host']}: {row['fault']}"
    if row["can"] is None:
        asking = f"{row['host']}: not asked what it can do; --ask-servers asks: {_told(row['ask'])}"
        before = row["before"]
        return asking + (f"; before the run {_told(before)} ask what it needs" if before else "")
    able = ", ".join(_able(a, can["level"]) for a, can in row["can"].items() if can["level"])
    unable = ", ".join(_name(a) for a, can in row["can"].items() if not can["level"])
    return f"{row['host']}: {able or 'words alone'}" + (f"; not: {unable}" if unable else "")


def _told(price: Mapping[str, Any]) -> str:
    calls, dollars = price["calls"], price["dollars"]
    cost = "" if not dollars else f", at most {dollars:.6f} dollars"
    return f"{calls} short call{'s' if calls > 1 else ''}{cost}"


def _able(ability: str, level: int) -> str:
    return f"{_name(ability)} of {level}" if ability == "log_probs" else _name(ability)


def _name(ability: str) -> str:
    return {"log_probs": "log-probs", "prompt_log_probs": "log-probs of given tokens"}.get(
        ability, ability.replace("_", " ")
    )
