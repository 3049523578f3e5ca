"""Opening a run: check, settle in its folder, lock, resolve the policies, write what it begins with.

Everything that the user could have got wrong is found here, before a model loads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import __version__
from ..errors import BadInput, Busy
from ..hashing import row_id
from ..policies import catalog
from ..policies.address import is_remote
from ..policies.placement import Placement
from ..policies.policy import Policy
from ..policies.precision import Precision
from ..policies.revision import Revision
from ..policies.vllm import check_vllm
from ..store import facts
from ..store.store import FILE, Row, Store, now
from ..trainers.worker import Worker
from . import plugins
from .cast import Cast
from .engines import Seat, open_engine, unfit_for_engine
from .fitting import settled, shapes
from .forgotten import refuse_forgotten
from .gating import admission_rows, check_judges
from .memory import MemoryPlan, longest_rows, memory_plan
from .operator import Progress, RunContext
from .operators.improve import Train
from .prompts import load_prompts, ships
from .quoted_answer import check_quoted
from .recipe import LEAVE, Recipe, load_recipe
from .roles import REFERENCES, STUDENT, Staging
from .server_needs import check_servers
from .servers import Servers
from .trained_judges import made_anew

RECIPE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run lives, and where models are kept between runs."""

    runs: Path = Path("runs")
    cache: Path = field(default_factory=catalog.default_cache)


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe that was checked and settled, and what it needs to run."""

    recipe: Recipe
    folder: Path
    prompts: Sequence[Any]
    stagings: dict[str, Staging]
    cache: Path

    def memory(self) -> MemoryPlan:
        """Return who will take how much memory."""
        assert self.recipe.precision != "auto"  # settled
        known = shapes(self.recipe, self.cache, self.recipe.precision)
        return memory_plan(self.recipe, self.prompts, known)


def prepared(recipe: Recipe, place: Place) -> Plan:
    """Check all that can be checked without a model, and settle the run in its folder.

    Raises:
        BadInput: the recipe is wrong, or another recipe has this name already.
        EnvironmentProblem: a model or a package that it needs cannot be had.
    """
    folder = run_folder(place.runs, recipe.name)
    recipe = anchored(recipe)
    prompts = load_prompts(recipe.prompts, recipe.base, recipe.seed)
    precision = _begun(recipe, folder) or settled(recipe, prompts, place.cache)
    recipe = recipe.model_copy(update={"precision": precision})
    if problem := unfit_for_engine(recipe.execution.sampler, precision):
        raise BadInput(problem)
    if unquoted := check_quoted(recipe, prompts):
        raise BadInput(*unquoted)
    stagings = {name: Staging(name, role, recipe.base) for name, role in recipe.roles.items()}
    if unfit := check_judges(recipe, folder):
        raise BadInput(*unfit)
    _check_models(recipe, place.cache)
    if not (folder / RECIPE).exists() and (unable := check_servers(recipe)):
        raise BadInput(*unable)
    return Plan(_settle(recipe, folder), folder, prompts, stagings, place.cache)


def _begun(recipe: Recipe, folder: Path) -> Precision | None:
    """Return the precision that a run was begun with, where none is asked for."""
    if recipe.precision != "auto" or not (folder / RECIPE).exists():
        return None
    before = load_recipe((folder / RECIPE).read_text("utf-8"), str(folder / RECIPE), base=folder)
    return None if before.precision == "auto" else before.precision


def run_folder(runs: Path, name: str) -> Path:
    """Return the folder of a run.

    Raises:
        BadInput: the name could leave the runs' folder, or cannot name a folder everywhere.
    """
    good = name and len(name) <= 100 and all(c.isalnum() or c in "-_." for c in name)
    if not good or not name.isascii() or name[0] in ".-":
        raise BadInput.at(
            "name", f"{name!r} cannot name a run", "use letters, digits, - _ . and no path"
        )
    return runs / name


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the run's lock, and leave the holder's process id for whoever finds it taken."""
    lock = FileLock(folder / ".lock")
    owner = folder / ".lock.owner"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = f" (process {owner.read_text()})" if owner.exists() else ""
        raise Busy(f"run {folder.name!r} is being run by another process{who}") from error
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def _check_models(recipe: Recipe, cache: Path) -> None:
    bound = {role.policy for role in recipe.roles.values()} - {STUDENT, REFERENCES}
    for spec in {recipe.student, *bound}:
        if not catalog.is_plugin(spec) and not is_remote(spec):
            catalog.check(spec, cache)
    if recipe.execution.sampler == "vllm":
        check_vllm()
    Servers(recipe.roles)  # finds a key that is not there
    for stage in recipe.stages:
        for step in stage.steps:
            trainer = getattr(step, "load_trainer", None)
            problems = trainer().check() if trainer else []
            if problems:
                raise BadInput(*problems)


def _settle(recipe: Recipe, folder: Path) -> Recipe:
    """Make the run's folder with its resolved recipe and its own copies of the input files.

    Raises:
        BadInput: the folder holds a run of another recipe.
    """
    file = folder / RECIPE
    if file.exists():
        before = load_recipe(file.read_text("utf-8"), str(file), base=folder)
        if before.key != recipe.key:
            changed = _differences(before.resolved(), recipe.resolved())
            raise BadInput.at(
                "",
                f"run {recipe.name!r} exists with another recipe: {changed}",
                "choose another name with --name, or remove the folder",
            )
        kept = ("execution", "loop", "precision", *LEAVE)
        return before.model_copy(update={name: getattr(recipe, name) for name in kept})
    if (folder / FILE).exists():
        raise BadInput.at(
            "", f"run {recipe.name!r} holds imports", "choose another name with --name"
        )
    settled = _with_inputs(recipe, folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{RECIPE}.tmp"
    aside.write_text(settled.to_yaml(), "utf-8")
    aside.replace(file)
    return settled


def _with_inputs(recipe: Recipe, folder: Path) -> Recipe:
    """Copy what the recipe reads into the run, so that the run needs nothing outside its folder."""
    moved: dict[str, str] = {}
    for index, path in enumerate(recipe.data_files()):
        if not ships(path):
            target = Path("inputs") / f"{index}-{Path(path).name}"
            (folder / "inputs").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recipe.base / path, folder / target)
            moved[path] = target.as_posix()
    read: dict[Path, str] = {}
    for index, file in enumerate(recipe.step_files(), start=len(recipe.data_files())):
        target = Path("inputs") / f"{index}-{file.name}"
        (folder / "inputs").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / target)
        read[file] = target.as_posix()
    prompts = recipe.prompts.model_dump()
    prompts |= {k: moved.get(v, v) for k, v in prompts.items() if isinstance(v, str)}
    roles = {}
    for name, role in recipe.roles.items():
        shot = role.context.few_shot
        if shot:
            shot = shot.model_copy(update={"file": moved.get(shot.file, shot.file)})
        context = role.context.model_copy(update={"few_shot": shot})
        roles[name] = role.model_copy(update={"context": context})
    settled = recipe.model_copy(update={"prompts": type(recipe.prompts)(**prompts), "roles": roles})
    return settled.moved(read, folder)


def anchored(recipe: Recipe) -> Recipe:
    """Resolve models that are folders from the recipe's own folder, as its files are."""

    def anchor(spec: str) -> str:
        folder = recipe.base / spec
        named = spec in (STUDENT, REFERENCES) or catalog.is_plugin(spec)
        is_folder = not named and folder.is_dir()
        return str(folder.resolve()) if is_folder else spec

    roles = {
        name: role.model_copy(update={"policy": anchor(role.policy)})
        for name, role in recipe.roles.items()
    }
    return recipe.model_copy(update={"student": anchor(recipe.student), "roles": roles})


def _differences(before: Any, after: Any) -> str:
    """Name the first keys that differ; where a file lies says nothing, what is in it does."""
    found: list[str] = []

    def walk(a: Any, b: Any, at: str) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in {**a, **b}:
                walk(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                walk(x, y, f"{at}[{index}]")
        elif a != b and at != "name" and not str(a).startswith("inputs/"):
            found.append(f"{at} was {a!r}, is {b!r}")

    walk(before, after, "")
    return "; ".join(found[:3]) or "its data files have changed"


def open_cast(plan: Plan, placement: Placement | None = None) -> Cast:
    """Resolve every policy, and put the initial student into the run.

    Args:
        plan: of the run.
        placement: who gets which card; policies take the first that they see where it is None.
    """
    place = placement or Placement()
    initial, student = _open_policy(plan, plan.recipe.student, place)
    revisions = plan.folder / "revisions"
    adopt(initial, revisions)
    policies: dict[str, Policy] = {STUDENT: student}
    others: dict[str, Revision] = {}
    for name, role in plan.recipe.roles.items():
        if role.policy == REFERENCES or is_remote(role.policy):
            continue
        if role.policy not in policies:
            others[role.policy], policies[role.policy] = _open_policy(plan, role.policy, place)
        foreign = policies[role.policy].vocabulary != student.vocabulary
        if foreign and name in _taught_by_token(plan.recipe):
            raise BadInput.at(
                f"roles.{name}.policy",
                f"{role.policy} has another tokenizer than the student",
                "use a teacher of the student's model family, or `distill` with `across: true`",
            )
    servers = Servers(plan.recipe.roles)
    cast = Cast(plan.folder, initial.id, plan.stagings, policies, others, servers)
    cast.placement = place
    return cast


def _taught_by_token(recipe: Recipe) -> set[str]:
    """Return the roles that need the student's tokenizer: they say what they would have said at each of its tokens.

    All others speak, judge and measure in words, which each tokenizer spells in its own way.
    """
    steps = [s for stage in recipe.stages for s in stage.steps if isinstance(s, Train)]
    alike = [step for step in steps if not getattr(step.load_trainer(), "across", False)]
    return {role for step in alike for role in step.teachers().values()}


def _open_policy(plan: Plan, spec: str, place: Placement) -> tuple[Revision, Policy]:
    """Return a policy and the revision that it starts with; nothing is loaded yet."""
    if catalog.is_plugin(spec):
        kind = plugins.find("policies", spec, {}, "student")
        return kind.initial(plan.cache), kind()
    recipe = plan.recipe
    assert recipe.precision != "auto"
    model = catalog.resolve(spec, cache=plan.cache, precision=recipe.precision)
    execution, of_student = recipe.execution, spec == recipe.student
    adapters = [t.rank for t in recipe.trainers() if t.weights != "full"] if of_student else []
    policy = open_engine(
        model.revision,
        execution.sampler,
        # Only the student's weights change, and engines of others that stayed up would be in its way.
        execution.vllm if of_student else execution.vllm.model_copy(update={"stays": False}),
        Seat(
            place,
            execution.threads,
            plan.folder / "engine.log",
            longest_rows(recipe, plan.prompts).get(STUDENT if of_student else spec, 0),
        ),
        rank=max(adapters, default=0),
    )
    return model.revision, policy


def adopt(revision: Revision, revisions: Path) -> None:
    """Link a revision into the run, so that the run is whole without the cache or another run."""
    target = revisions / revision.id
    if target.exists():
        return
    aside = revisions / f".adopt-{revision.id}"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(revision.folder, aside, copy_function=link_or_copy)
    aside.rename(target)


def link_or_copy(source: str, target: str) -> None:
    """Link a file, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def run_context(
    plan: Plan, store: Store, cast: Cast, worker: Worker, progress: Progress
) -> RunContext:
    """Return what every node of the graph shares."""
    recipe = plan.recipe
    return RunContext(
        folder=plan.folder,
        store=store,
        key=recipe.key,
        seed=recipe.seed,
        chunk=recipe.chunk,
        per_round=recipe.prompts.per_round,
        threads=recipe.execution.threads or os.cpu_count() or 1,
        cast=cast,
        worker=worker,
        progress=progress,
        processes=recipe.execution.processes,
        budget_usd=recipe.loop.stop.budget_usd,
        anchors=recipe.execution.anchors,
        steps=lambda round_: recipe.stage_of(round_)[1].steps,
        unproven=recipe.unproven_judge == "allow",
    )


def write_opening(plan: Plan, store: Store, cast: Cast) -> None:
    """Write the run, its prompts and the initial revision."""
    recipe = plan.recipe
    revision: Row = {
        "id": cast.initial,
        "round": 0,
        "parent": None,
        "folder": f"revisions/{cast.initial}",
        "training_run_id": None,
        "precision": recipe.precision if recipe.precision in ("bfloat16", "nf4") else None,
        "created_at": now(),
    }
    run = run_row(recipe, cast.initial)
    rows = {"run": [run], "revision": [revision], **facts.prompt_rows(plan.prompts)}
    rows |= admission_rows(recipe)
    store.commit(rows, round=0, step="begin", chunk=0)
    _same_as_begun(recipe, store, cast)
    refuse_forgotten(recipe, store)
    store.publish(force=True)


def run_row(recipe: Recipe, initial: str) -> Row:
    """Return the one row that says whose store it is."""
    return {
        "id": row_id("run", key=recipe.key),
        "name": recipe.name,
        "key": recipe.key,
        "seed": recipe.seed,
        "recipe": json.dumps(recipe.resolved()),
        "student": initial,
        "redistill_version": __version__,
        "created_at": now(),
    }


def _same_as_begun(recipe: Recipe, store: Store, cast: Cast) -> None:
    """Refuse to go on with another student, other data or another judge than the run began with.

    Raises:
        BadInput: one of them has changed; its values could not be compared with the earlier ones.
    """
    way_out = "put it back as it was, or start a run of another name"
    [begun] = store.rows("SELECT key, student FROM run")
    if begun["student"] != cast.initial:
        raise BadInput.at("student", "is not the model that this run began with", way_out)
    if begun["key"] != recipe.key:
        raise BadInput.at("prompts", "a data file is not what it was when this run began", way_out)
    steps = [step for stage in recipe.stages for step in stage.steps]
    revisions = {revision for step in steps for revision in step.judges().values()}
    made = made_anew(steps)
    # Judgements of steps that were applied or imported are no part of the recipe, and never train.
    own = """
        SELECT DISTINCT j.judge, j.judge_revision FROM judgement j WHERE NOT EXISTS (
            SELECT 1 FROM step s WHERE s.round = j.round AND s.step = j.step AND s.origin <> 'round'
        )
    """
    for row in store.rows(own):
        if row["judge"] not in made and row["judge_revision"] not in revisions:
            raise BadInput.at(
                "judge", f"{row['judge']} is not what it was when this run began", way_out
            )
