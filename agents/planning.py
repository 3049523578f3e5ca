"""What a recipe will do, before it does it: rows, calls, memory, hours, and what the gate can see.

Loads no model and pays no call; every figure is arithmetic over the recipe and a model's config.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ..store.analysis import smallest_gain
from ..trainers.distill import SelfDistill
from ..trainers.estimate import Estimate, Shape, first_that_fits, ways
from ..trainers.sampling import Sampler
from ..types import Prompt
from .operators.elicit import Rewrite, Sample
from .operators.improve import Train
from .recipe import Recipe
from .roles import STUDENT
from .workload import Speech, Work, Workload, longest_asked, measured

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
    training: Estimate | None
    """The largest training job, as it would be trained here; None where nothing is trained."""
    memory_there: int
    """Bytes that are free: of the card, where there is one."""
    disk_needed: int
    disk_there: int
    heldout: int
    smallest_gain: float
    bill: Mapping[str, tuple[int, float | None]]
    """By role that is called elsewhere: calls, and the most that they cost in dollars; None: no price is known."""


def plan(recipe: Recipe, prompts: Sequence[Prompt], shape: Shape, where: Path) -> RunPlan:
    """Estimate a run.

    Args:
        recipe: what will run.
        prompts: all prompts of the recipe.
        shape: the student's size.
        where: a folder on the disk that the run will be on.
    """
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
        training=largest_job(recipe, by_split["train"], shape, free := free_memory()),
        memory_there=free,
        disk_needed=shape.held * (recipe.rounds + 2),
        disk_there=psutil.disk_usage(str(_existing(where))).free,
        heldout=len(by_split["heldout"]),
        smallest_gain=smallest_gain(len(by_split["heldout"])),
        bill=_bill(recipe, [(p, repeats.get(p.stage, 1)) for p in phases]),
    )


def largest_job(
    recipe: Recipe, prompts: Sequence[Prompt], shape: Shape, free: int
) -> Estimate | None:
    """Return what the training job takes that takes most, trained in the first way that fits."""
    asked = max((longest_asked(prompt) for prompt in prompts), default=0)
    found = []
    for stage in recipe.stages:
        # A program's edit is about as long as what it edits.
        speaking = (s for s in stage.steps if isinstance(s, Sample | Rewrite) and s.roles())
        said = max((s.max_tokens for s in speaking), default=256)
        for step in stage.steps:
            if isinstance(step, Train):
                trainer = step.load_trainer()
                if isinstance(trainer, Sampler):
                    said = trainer.max_tokens
                # A pair has its prompt once, an answer beside another prompt's has it twice.
                rows = {"pairs": asked + 2 * said, "labelled": 2 * (asked + said)}
                tokens = rows.get(trainer.rows, asked + said)
                held = shape.held * _held(recipe, step)
                job = first_that_fits(ways(trainer, shape, tokens, "full"), free - held)
                found.append(job and replace(job, parts={**job.parts, **_part(held)}))
    jobs = [job for job in found if job is not None]
    return max(jobs, key=lambda job: job.total, default=None)


def _held(recipe: Recipe, step: Train) -> int:
    """Return how many models of the student's size a job holds beside what it trains; of others nothing is known yet."""
    trainer = step.load_trainer()
    if isinstance(trainer, SelfDistill):
        return int(not trainer.live and not trainer.negative)
    teachers = {role for role in step.teachers().values() if role in recipe.roles}
    own = [role for role in teachers if recipe.roles[role].policy == STUDENT]
    return int(trainer.anchored) + (0 if getattr(trainer, "stored", False) else len(own))


def _part(held: int) -> dict[str, int]:
    return {"held models": held} if held else {}


def free_memory() -> int:
    """Return the bytes that a training job may take: of the first card, where its driver tells."""
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return int(told.stdout.split()[0]) << 20
    return int(psutil.virtual_memory().available)


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


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
