"""What a recipe will do, before it does it: rows, calls, memory, hours, and what the gate can see.

Loads no model and pays no call; every figure is arithmetic over the recipe and a model's config.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ..policies.disk import existing
from ..store.analysis import smallest_gain
from ..trainers.estimate import Shape
from ..types import Prompt
from .memory import MemoryPlan, memory_plan
from .recipe import Recipe
from .workload import Speech, Work, Workload, measured

_GFLOPS_A_CORE = (30e9, 130e9)
"""Useful fp32 floating-point operations a second of one core in a transformer, slow and fast machine."""
_GPU_FLOPS = (10e12, 200e12)


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """One step of one stage's rounds."""

    stage: int
    rounds: str
    step: str
    rows: str
    """What is made, in words."""
    calls: int
    """Completions or judgements asked for."""
    tokens: int
    """Most tokens through the models of this machine, prompts included."""
    hours: tuple[float, float]
    remote: Mapping[str, Speech]
    """What leaves this machine, by role."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The whole run."""

    phases: list[PhasePlan]
    hours: tuple[float, float]
    memory: MemoryPlan
    """Who takes how much of it, and on which card."""
    disk_needed: int
    disk_there: int
    heldout: int
    smallest_gain: float
    bill: Mapping[str, tuple[int, float | None]]
    """By role that is called elsewhere: calls, and the most that they cost in dollars; None: no price is known."""


def plan(
    recipe: Recipe, prompts: Sequence[Prompt], shapes: Mapping[str, Shape], where: Path
) -> RunPlan:
    """Estimate a run.

    Args:
        recipe: what will run.
        prompts: all prompts of the recipe.
        shapes: the size of each model that is loaded here, by the policy that names it.
        where: a folder on the disk that the run will be on.
    """
    shape = shapes[recipe.student]
    by_split = {s: [p for p in prompts if p.split == s] for s in ("train", "heldout", "test")}
    speed = _speed(recipe)
    phases = [_phase((0, ""), "baseline", measured(recipe, by_split["heldout"]), shape, speed)]
    staged = [recipe.stage_of(round_)[0] for round_ in range(1, recipe.rounds + 1)]
    repeats = {index: staged.count(index) for index in staged}
    for index, count in repeats.items():
        first = staged.index(index) + 1
        rounds = f"{first}" if count == 1 else f"{first}-{first + count - 1}"
        train = by_split["train"][: recipe.prompts.per_round or None]
        workload = Workload(recipe, train, by_split["heldout"])
        phases += [
            _phase((index, rounds), step.step, workload.of(step), shape, speed)
            for step in recipe.stages[index - 1].steps
        ]
    twice = measured(recipe, by_split["test"] * 2)
    phases.append(_phase((0, ""), "test", twice, shape, speed))
    low = sum(p.hours[0] * repeats.get(p.stage, 1) for p in phases)
    high = sum(p.hours[1] * repeats.get(p.stage, 1) for p in phases)
    return RunPlan(
        phases=phases,
        hours=(low, high),
        memory=memory_plan(recipe, prompts, shapes),
        disk_needed=shape.held * (recipe.rounds + 2) + _judges(recipe, shape),
        disk_there=psutil.disk_usage(str(existing(where))).free,
        heldout=len(by_split["heldout"]),
        smallest_gain=smallest_gain(len(by_split["heldout"])),
        bill=_bill(recipe, [(p, repeats.get(p.stage, 1)) for p in phases]),
    )


def _judges(recipe: Recipe, shape: Shape) -> int:
    """Return the bytes of the judges that the rounds make, all weights in float32."""
    rounds = (recipe.stage_of(n)[1].steps for n in range(1, recipe.rounds + 1))
    made = sum(step.made() == "judge" for steps in rounds for step in steps)
    return made * replace(shape, precision="float32").held


def _speed(recipe: Recipe) -> tuple[float, float]:
    """Return slow and fast floating-point operations a second of this machine."""
    if Path("/dev/nvidia0").exists():
        return _GPU_FLOPS
    cores = recipe.execution.threads or os.cpu_count() or 1
    return _GFLOPS_A_CORE[0] * cores, _GFLOPS_A_CORE[1] * cores


def _hours(tokens: float, shape: Shape, speed: tuple[float, float]) -> tuple[float, float]:
    work = 2 * shape.parameters * tokens
    return work / speed[1] / 3600, work / speed[0] / 3600


def _phase(
    place: tuple[int, str], name: str, work: Work, shape: Shape, speed: tuple[float, float]
) -> PhasePlan:
    stage, rounds = place
    hours = _hours(work.tokens, shape, speed)
    return PhasePlan(stage, rounds, name, work.rows, work.calls, work.tokens, hours, work.remote)


def _bill(
    recipe: Recipe, phases: Sequence[tuple[PhasePlan, int]]
) -> dict[str, tuple[int, float | None]]:
    """Return what each role that is called elsewhere is asked, and what that costs at most."""
    found: dict[str, tuple[int, float | None]] = {}
    for phase, times in phases:
        for role, speech in phase.remote.items():
            price = recipe.roles[role].price
            dollars = (
                None
                if price is None
                else times * (speech.tokens_in * price.in_ + speech.tokens_out * price.out) / 1e6
            )
            calls, before = found.get(role, (0, 0.0))
            total = None if dollars is None or before is None else before + dollars
            found[role] = (calls + times * speech.calls, total)
    return found
