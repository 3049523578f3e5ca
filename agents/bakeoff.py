"""A bake-off: several trainers on the same rows, prompts and judge, at the same cost, over several seeds.

Each seed is a run of the recipe, whose rows are shared: every trainer is a fork of it, so that what was sampled and judged
once is read by all that learn from rows. Learning rates are chosen by held-out values at the first seed, and by nothing
else; every run measures `test` at its end, and of that the table has what was chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BadInput, EnvironmentProblem
from ..hashing import content_hash
from ..store.analysis import PAIRED, paired_parameters
from ..store.query import read_rows
from ..trainers.distill import SelfDistill
from ..trainers.trainer import Trainer, trainer_class
from .costs import Costs, Resource, costs
from .forking import changed_recipe, changes_nothing, fork
from .loop import TRANSFER, Place, Silent, measure, resume, run
from .operator import Operator, Progress
from .operators.curate import Pair, Select
from .operators.feedback import Score
from .operators.improve import Train
from .recipe import Recipe

_PROBES = 2, 6
"""Steps of the two runs that tell what a step costs, and what is paid before the first one."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One trainer with its settings."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> type[Trainer]:
        """The trainer's class."""
        return trainer_class(self.name)

    def at(self, **settings: Any) -> Arm:
        """Return the arm with other settings."""
        return replace(self, settings={**self.settings, **settings})

    @property
    def built(self) -> Trainer:
        """The trainer with its settings."""
        return self.kind.model_validate(dict(self.settings))


@dataclass(frozen=True, slots=True)
class Contest:
    """What a bake-off compares, and by which rules."""

    arms: Sequence[Arm]
    equal: Resource
    seeds: Sequence[int]
    rates: Sequence[float]
    """Factors of each arm's own learning rate, of which the best on held-out prompts is taken."""
    teacher: str = ""
    """Role that teaches the arms that distil."""
    given: str = ""
    """What an arm that teaches itself sees."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One arm at one seed."""

    arm: str
    seed: int
    learning_rate: float
    steps: int
    heldout: float
    """Mean value on held-out prompts; where nothing was published, that of the first student."""
    status: str
    """`trained`, or why nothing was published."""
    before: Sequence[float]
    """Values of the first student on the test prompts."""
    after: Sequence[float]
    """Values of what was trained, on the same prompts."""
    costs: Costs
    folder: Path


def bakeoff(
    recipe: Recipe, contest: Contest, place: Place, progress: Progress | None = None
) -> list[Entry]:
    """Let trainers compete, and return what each came to at each seed.

    What is finished is not done again: the same call goes on where it stopped.

    Args:
        recipe: its round samples, scores, and curates with a `select` and, for trainers on pairs, a `pair` step.
        contest: who competes, and by which rules.
        place: where runs and models are kept.
        progress: told of every chunk.

    Raises:
        BadInput: an arm has no rows, judge or teacher in the recipe.
        EnvironmentProblem: an arm came to nothing at any learning rate.
    """
    kitchen = _Kitchen(recipe, contest, place, progress or Silent())
    for arm in contest.arms:  # what is missing is told before anything runs
        changed_recipe(recipe, 1, kitchen.changes(arm), recipe.name)
    chosen: list[Arm] = []
    budget = 0.0
    for nth, arm in enumerate(contest.arms):
        fair = arm if nth == 0 else kitchen.evened(arm, budget)
        best = kitchen.best_rate(fair)
        chosen.append(best)
        if nth == 0:
            budget = kitchen.bake(best, contest.seeds[0]).costs.of(contest.equal)
    return [kitchen.tasted(arm, seed) for seed in contest.seeds for arm in chosen]


@dataclass(slots=True)
class _Kitchen:
    """Where the arms' runs are made."""

    recipe: Recipe
    contest: Contest
    place: Place
    progress: Progress

    def changes(self, arm: Arm) -> list[str]:
        """Return the settings by which an arm differs from the recipe.

        Raises:
            BadInput: the recipe has no step that makes what the arm needs.
        """
        steps = self.recipe.stages[0].steps
        train = _student_step(self.recipe)
        kind = arm.kind
        told: dict[str, Any] = {"trainer": {arm.name: dict(arm.settings)}}
        told["of"] = [] if kind.samples else [_maker(steps, kind).step]
        told |= {"rewards": [], "teacher": "", "given": ""}
        if kind.asks == "judge":
            score = next((step for step in steps if isinstance(step, Score)), None)
            if score is None:
                raise BadInput.at("round", f"{arm.name} needs a `score` step's judge")
            told["rewards"] = [{"judge": score.judge}]
        if kind.asks == "teacher":
            key = "given" if issubclass(kind, SelfDistill) else "teacher"
            told[key] = getattr(self.contest, key)
            if not told[key]:
                raise BadInput.at(f"--{key}", f"{arm.name} needs it")
        return [f"{train.step}.{key}={json.dumps(value)}" for key, value in told.items()]

    def used(self, arm: Arm) -> list[str]:
        """Return the steps whose rows an arm has used."""
        names = [step.step for step in self.recipe.stages[0].steps]
        train = _student_step(self.recipe).step
        return [train] if arm.kind.samples else names[: names.index(train) + 1]

    def base(self, seed: int) -> Path:
        """Return the run whose rows all arms of a seed share."""
        name = f"{self.recipe.name}-{seed}"
        recipe = self.recipe.model_copy(update={"name": name, "seed": seed})
        return run(recipe, rounds=1, place=self.place, progress=self.progress)

    def bake(self, arm: Arm, seed: int) -> Entry:
        """Train an arm at a seed, or find it trained, and return it without its test values."""
        base, changes = self.base(seed), self.changes(arm)
        word = re.sub(r"[^A-Za-z0-9]+", "-", arm.name)
        name = f"{base.name}-{word}-{content_hash(changes)[:8]}"
        folder = base.parent / name
        if changes_nothing(base, round_=1, changes=changes):
            folder = base  # the recipe's own trainer
        elif not folder.exists():
            fork(base, round_=1, changes=changes, name=name)
        resume(folder, place=self.place, progress=self.progress)
        job = self._job(folder)
        [first] = read_rows(folder, "SELECT student FROM run")
        [measured] = read_rows(
            folder,
            "SELECT value FROM evaluation WHERE split = 'heldout' AND revision = ? LIMIT 1",
            [job["revision"] or first["student"]],
        )
        return Entry(
            arm=arm.name,
            seed=seed,
            learning_rate=arm.built.learning_rate,
            steps=job["steps"],
            heldout=float(measured["value"]),
            status=job["status"],
            before=(),
            after=(),
            costs=costs(folder, self.used(arm)),
            folder=folder,
        )

    def _job(self, folder: Path) -> dict[str, Any]:
        """Return how the student's training went.

        Raises:
            EnvironmentProblem: the round ended before, with a judge that came to nothing.
        """
        found = read_rows(
            folder,
            "SELECT status, revision, steps FROM training_run WHERE step = ?",
            [_student_step(self.recipe).step],
        )
        if not found:
            raise EnvironmentProblem(
                f"{folder.name}: the round ended before its student was trained"
            )
        return found[0]

    def evened(self, arm: Arm, budget: float) -> Arm:
        """Return an arm with as many steps as a budget pays for; one that uses none of it keeps its own."""
        if not arm.kind.samples and self.contest.equal in ("samples", "judge"):
            return arm  # its rows are sampled and judged already, and are the same for all
        few, more = (
            self.bake(arm.at(steps=n, epochs=None), self.contest.seeds[0]) for n in _PROBES
        )
        used, more_used = (probe.costs.of(self.contest.equal) for probe in (few, more))
        each = (more_used - used) / (more.steps - few.steps) if more.steps > few.steps else 0.0
        if each <= 0:
            return arm
        # What it costs before the first step, such as rows that are sampled and judged, is paid once.
        fixed = max(0.0, used - each * few.steps)
        return arm.at(steps=max(1, round((budget - fixed) / each)), epochs=None)

    def best_rate(self, arm: Arm) -> Arm:
        """Return an arm with the learning rate that is best on held-out prompts at the first seed.

        Raises:
            EnvironmentProblem: no rate gave weights that could be published.
        """
        rate = arm.built.learning_rate
        tried = [arm.at(learning_rate=rate * factor) for factor in self.contest.rates]
        found = [(self.bake(one, self.contest.seeds[0]), one) for one in tried]
        trained = [
            (entry.heldout, nth)
            for nth, (entry, _) in enumerate(found)
            if entry.status == "trained"
        ]
        if not trained:
            ends = ", ".join(f"{e.learning_rate:g} {e.status}" for e, _ in found)
            raise EnvironmentProblem(f"{arm.name} came to nothing at any learning rate: {ends}")
        return tried[max(trained, key=lambda pair: (pair[0], -pair[1]))[1]]

    def tasted(self, arm: Arm, seed: int) -> Entry:
        """Return an arm at a seed with its test values, which are read now."""
        entry = self.bake(arm, seed)
        job = self._job(entry.folder)
        [first] = read_rows(entry.folder, "SELECT student FROM run")
        made = job["revision"] or first["student"]  # nothing published is no gain
        found = _test(entry.folder, made)
        if found is None:
            measure(entry.folder, made, place=self.place, progress=self.progress)
            found = _test(entry.folder, made)
        before = _test(entry.folder, first["student"])
        assert found is not None
        assert before is not None
        rows = read_rows(entry.folder, PAIRED, paired_parameters(before, found))
        rows = [row for row in rows if TRANSFER not in row["tags"]]
        return replace(
            entry, before=[row["before"] for row in rows], after=[row["after"] for row in rows]
        )


def _student_step(recipe: Recipe) -> Train:
    """Return the train step that makes the next student; others make judges."""
    steps = recipe.stages[0].steps
    return next(s for s in steps if isinstance(s, Train) and s.made() == "revision")


def _maker(steps: Sequence[Operator], kind: type[Trainer]) -> Operator:
    """Return the step that makes a trainer's rows; unpaired losses take pairs, which say what is wanted."""
    wanted = Select if kind.rows == "completions" else Pair
    for step in steps:
        if isinstance(step, wanted):
            return step
    what = f"{kind.name} needs the rows of a `{wanted.name}` step"
    raise BadInput.at("round", what, "the recipe's round has both `select` and `pair`")


def _test(folder: Path, revision: str) -> str | None:
    rows = read_rows(
        folder,
        "SELECT id::VARCHAR AS id FROM evaluation WHERE split = 'test' AND revision = ? LIMIT 1",
        [revision],
    )
    return str(rows[0]["id"]) if rows else None
