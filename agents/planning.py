"""What a recipe will do, before it does it: rows, calls, memory, hours, and what the gate can see.

Loads no model and pays no call; every figure is arithmetic over the recipe and a model's config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..store.analysis import smallest_gain
from ..types import Prompt
from .operator import Operator
from .operators.elicit import Sample
from .operators.improve import Evaluate, Train
from .recipe import Recipe

_GFLOPS_A_CORE = (30e9, 130e9)
"""Useful fp32 floating-point operations a second of one core in a transformer, slow and fast machine."""
_GPU_FLOPS = (10e12, 200e12)
_CHARACTERS_A_TOKEN = 3.5
_TRAINING_PASSES = 3
"""A backward pass costs about twice a forward pass."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an estimate needs to know of a model."""

    parameters: int
    vocabulary: int
    bytes_on_disk: int


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
    """Most tokens through the model, prompts included."""
    hours: tuple[float, float]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The whole run."""

    phases: list[PhasePlan]
    hours: tuple[float, float]
    memory_needed: int
    memory_there: int
    disk_needed: int
    disk_there: int
    heldout: int
    smallest_gain: float


def shape_of(folder: Path) -> Shape:
    """Read a model folder's size from its files, without loading it."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    files = list(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    width = {"bfloat16": 2, "float16": 2}.get(str(config.get("dtype", "float32")), 4)
    return Shape(size // width, int(config.get("vocab_size", 0)), size)


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
    phases: list[PhasePlan] = [_measure("baseline", recipe, by_split["heldout"], shape, speed)]
    staged = [recipe.stage_of(round_)[0] for round_ in range(1, recipe.rounds + 1)]
    repeats = {index: staged.count(index) for index in staged}
    for index, count in repeats.items():
        first = staged.index(index) + 1
        rounds = f"{first}" if count == 1 else f"{first}-{first + count - 1}"
        steps = recipe.stages[index - 1].steps
        phases += [_phase(s, (index, rounds), recipe, by_split, (shape, speed)) for s in steps]
    phases.append(_measure("test", recipe, by_split["test"] * 2, shape, speed))
    low = sum(p.hours[0] * repeats.get(p.stage, 1) for p in phases)
    high = sum(p.hours[1] * repeats.get(p.stage, 1) for p in phases)
    return RunPlan(
        phases=phases,
        hours=(low, high),
        memory_needed=memory_needed(recipe, shape),
        memory_there=psutil.virtual_memory().available,
        disk_needed=shape.parameters * 4 * (recipe.rounds + 2),
        disk_there=psutil.disk_usage(str(_existing(where))).free,
        heldout=len(by_split["heldout"]),
        smallest_gain=smallest_gain(len(by_split["heldout"])),
    )


def memory_needed(recipe: Recipe, shape: Shape) -> int:
    """Return the peak bytes of training: weights, gradients, two moments, logits and activations.

    Logits, not weights, fill the memory of a small model with a large vocabulary.
    """
    longest = 256
    rows = 1
    for stage in recipe.stages:
        for step in stage.steps:
            if isinstance(step, Train):
                trainer = step.load_trainer()
                rows = max(rows, trainer.micro_batch * (2 if trainer.rows == "pairs" else 1))
            if isinstance(step, Sample | Evaluate):
                longest = max(longest, 2 * step.max_tokens)
    logits = rows * longest * shape.vocabulary * 4 * 2
    return shape.parameters * 4 * 4 + logits + shape.parameters * 4


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


def _tokens(prompts: Sequence[Prompt], answers: int, longest: int) -> int:
    asked = sum(len(m.content) for p in prompts for m in p.messages) / _CHARACTERS_A_TOKEN
    return int(asked + len(prompts) * 25 + answers * longest)


def _hours(tokens: float, shape: Shape, speed: tuple[float, float]) -> tuple[float, float]:
    work = 2 * shape.parameters * tokens
    return work / speed[1] / 3600, work / speed[0] / 3600


def _measure(
    name: str, recipe: Recipe, prompts: Sequence[Prompt], shape: Shape, speed: tuple[float, float]
) -> PhasePlan:
    tokens = _tokens(prompts, len(prompts), recipe.evaluate.max_tokens)
    return PhasePlan(
        0, "", name, f"{len(prompts)} answers", len(prompts), tokens, _hours(tokens, shape, speed)
    )


def _phase(
    step: Operator,
    place: tuple[int, str],
    recipe: Recipe,
    by_split: dict[str, list[Prompt]],
    model: tuple[Shape, tuple[float, float]],
) -> PhasePlan:
    stage, rounds = place
    train = by_split["train"][: recipe.prompts.per_round or None]
    calls, tokens, rows = 0, 0, "rows of the store"
    if isinstance(step, Sample):
        calls = len(train) * step.k
        tokens = _tokens(train, calls, step.max_tokens)
        rows = f"{calls} completions"
    elif isinstance(step, Evaluate):
        calls = len(by_split["heldout"])
        tokens = _tokens(by_split["heldout"], calls, step.max_tokens)
        rows = f"{calls} answers, judged"
    elif isinstance(step, Train):
        trainer = step.load_trainer()
        sampled = max(
            (s.k for g in recipe.stages for s in g.steps if isinstance(s, Sample)), default=1
        )
        most = len(train) * (1 if trainer.rows == "pairs" else sampled)
        steps = trainer.plan(most)
        longest = recipe.evaluate.max_tokens
        seen = steps * trainer.batch_size * (2 if trainer.rows == "pairs" else 1)
        each = _tokens(train, len(train), longest) / max(1, len(train))
        tokens = int(seen * each * _TRAINING_PASSES)
        rows = f"at most {steps} steps of {trainer.batch_size} rows"
    elif step.makes == "judgements":
        calls = sum(
            len(train) * s.k for s in recipe.stages[stage - 1].steps if isinstance(s, Sample)
        )
        rows = f"{calls} judgements"
    return PhasePlan(stage, rounds, step.step, rows, calls, tokens, _hours(tokens, *model))
