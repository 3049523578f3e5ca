"""What `redistill plan` says: what a recipe will do, need and cost, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..agents.fitting import settled, shapes, student_shape
from ..agents.gating import check_judges
from ..agents.operators.elicit import Sample
from ..agents.operators.improve import Train
from ..agents.operators.propose import Propose
from ..agents.planning import RunPlan, plan
from ..agents.prompts import load_prompts
from ..agents.recipe import Recipe
from ..agents.server_needs import check_servers
from ..policies.disk import readable
from ..types import Prompt
from .console import clean
from .servers import server_line, servers

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
_WAYS = {
    "full": "all weights",
    "lora": "an adapter",
    "qlora": "an adapter of a student in four bits",
}


def forecast(recipe: Recipe, cache: Path, runs: Path, *, ask: bool = False) -> Row:
    """Estimate a run; loads no model, and pays no call unless told to.

    Args:
        recipe: what would run.
        cache: where models are kept.
        runs: folder of all runs, for the disk that it is on.
        ask: whether servers are asked what they can do, by short calls.

    Raises:
        BadInput: the prompts are wrong.
    """
    prompts = load_prompts(recipe.prompts, recipe.base, recipe.seed)
    _, known_by = student_shape(recipe, cache)
    known = shapes(recipe, cache, settled(recipe, prompts, cache))
    shape = known[recipe.student]
    found = plan(recipe, prompts, known, runs)
    behind = servers(recipe, ask=ask)
    return {
        "name": recipe.name,
        "student": recipe.student,
        "parameters": shape.parameters,
        "size_known": known_by,
        "precision": shape.precision,
        "prompts": {s: _of(prompts, s) for s in ("train", "heldout", "test")},
        "rounds": recipe.rounds,
        "phases": [asdict(phase) | {"hours": list(phase.hours)} for phase in found.phases],
        "hours": list(found.hours) if shape.parameters else None,
        "memory": _memory(found),
        "disk": {"needed": found.disk_needed, "there": found.disk_there},
        "smallest_gain": found.smallest_gain if found.heldout else None,
        "calls": {role: calls for role, (calls, _) in found.bill.items()},
        "dollars": _dollars(found),
        "servers": behind,
        "problems": [
            *(str(problem) for problem in check_judges(recipe, runs / recipe.name)),
            *_problems(recipe, prompts, found),
            *_unable(recipe, behind, ask=ask),
        ],
    }


def _unable(recipe: Recipe, behind: Sequence[Row], *, ask: bool) -> list[str]:
    """Return a line for each server that does not answer, or cannot do what is needed of it."""
    if away := [row["fault"] for row in behind if row["fault"]]:
        return away
    return [str(problem) for problem in check_servers(recipe)] if ask else []


def _memory(found: RunPlan) -> Row:
    """Return what the largest training job takes, by part, who else takes memory, and what is free."""
    memory, job = found.memory, found.memory.training
    way = {"weights": job.way, "recompute": job.recompute} if job else {}
    return {
        "needed": job.total if job else 0,
        "there": memory.trainer_free,
        "parts": dict(job.parts) if job else {},
        "sampler_there": memory.sampler_free,
        "tenants": [asdict(tenant) for tenant in memory.tenants],
        "placement": {
            "sampler": [card.uuid for card in memory.placement.sampler],
            "trainer": [card.uuid for card in memory.placement.trainer],
            "side_by_side": memory.placement.side_by_side,
        },
        "told": [list(pair) for pair in memory.told()],
        **way,
    }


def _of(prompts: Sequence[Prompt], split: str) -> int:
    return sum(1 for prompt in prompts if prompt.split == split)


def _dollars(found: RunPlan) -> float | None:
    """Return the most that the run can cost; None where a price is not known."""
    dollars = [cost for _, cost in found.bill.values()]
    return None if None in dollars else sum(cost for cost in dollars if cost is not None)


def _problems(recipe: Recipe, prompts: Sequence[Prompt], found: RunPlan) -> list[str]:
    """Return a line for each thing that will not fit."""
    problems = found.memory.problems()
    if found.disk_needed > found.disk_there:
        problems.append(
            f"disk: {recipe.rounds} revisions take about {readable(found.disk_needed)}, "
            f"{readable(found.disk_there)} are free; give another folder with --runs"
        )
    train = min(_of(prompts, "train"), recipe.prompts.per_round or len(prompts))
    for index, stage in enumerate(recipe.stages, start=1):
        new = sum(step.calls(train) for step in stage.steps if isinstance(step, Propose))
        sampled = max([step.k for step in stage.steps if isinstance(step, Sample)], default=1)
        for step in stage.steps:
            if isinstance(step, Train):
                trainer = step.load_trainer()
                most = (train + new) * (
                    1 if trainer.rows in ("pairs", "ranked", "prompts") else sampled
                )
                if trainer.plan(most) == 0:
                    problems.append(f"stage {index} trains nothing: {trainer.arithmetic(most)}")
    return problems


# -- for people


def show_forecast(console: Console, found: Row) -> None:
    """Print the plan: phases, then what it needs against what is there, then what does not fit."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{found['name']}: {found['rounds']} rounds", title_justify="left")
    for name in ("round", "phase", "makes", "calls", "tokens", "time"):
        table.add_column(name, justify="right" if name in ("calls", "tokens", "time") else "left")
    for phase in found["phases"]:
        table.add_row(
            phase["rounds"] or "-",
            Text(clean(phase["step"])),
            phase["rows"],
            f"{phase['calls']:,}" if phase["calls"] else "-",
            f"{phase['tokens']:,}" if phase["tokens"] else "-",
            span(phase["hours"]) if found["parameters"] and phase["tokens"] else "-",
        )
    console.print(table)
    for line in _lines(found):
        console.print(Text(clean(line)))
    for problem in found["problems"]:
        console.print(Text(clean(f"does not fit: {problem}"), style="bold red"))


def _lines(found: Row) -> list[str]:
    size = f"{found['parameters'] / 1e6:.1f} million parameters" if found["parameters"] else "size"
    prompts = found["prompts"]
    gain = found["smallest_gain"]
    memory, disk = found["memory"], found["disk"]
    return [
        f"student   {found['student']}: {size} ({found['size_known']})",
        f"prompts   {prompts['train']} to train, {prompts['heldout']} held out, {prompts['test']} for test",
        f"time      {span(found['hours'])} on this machine" if found["hours"] else "time      not known",
        *(f"{name:<9} {text}" for name, text in memory["told"]),
        f"trainer   about {readable(memory['needed'])} of {readable(memory['there'])} free{_parts(memory)}",
        f"disk      about {readable(disk['needed'])} of {readable(disk['there'])} free",
        f"evidence  a gain of about {gain:.2f} or more shows four times in five" if gain else
        "evidence  none: no prompt is held out",
        f"cost      {_cost(found)}",
        *(f"server    {row['role']} at {server_line(row)}" for row in found["servers"]),
    ]  # fmt: skip


def _parts(memory: Row) -> str:
    """Return what the memory is for: the largest training job."""
    if not memory["parts"]:
        return ""
    parts = ", ".join(f"{name} {readable(size)}" for name, size in memory["parts"].items())
    way = _WAYS[memory["weights"]]
    again = ", activations computed again" if memory["recompute"] else ""
    return f" to train {way}{again}: {parts}"


def _cost(found: Row) -> str:
    if not found["calls"]:
        return "nothing: no call leaves this machine"
    calls = " and ".join(f"{count:,} calls to {role}" for role, count in found["calls"].items())
    if found["dollars"] is None:
        return f"not known: at most {calls}, and a role without `price`"
    return f"at most {found['dollars']:.2f} dollars: {calls}"


def span(hours: Sequence[float]) -> str:
    """Return a range of hours in the unit that people would use."""
    low, high = hours
    for unit, size, most in (
        ("s", 3600, 1 / 60),
        ("min", 60, 1.5),
        ("h", 1, 48),
        ("days", 1 / 24, None),
    ):
        if most is None or high <= most:
            first, last = _rounded(low * size), _rounded(high * size)
            return f"{last} {unit}" if first == last else f"{first}-{last} {unit}"
    raise AssertionError("the last unit takes everything")


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 2 else f"{value:.1f}".removesuffix(".0")
