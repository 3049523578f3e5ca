"""The loop: baseline, rounds, and the gain on `test`; resumable at every chunk.

Each round starts from the champion. What is finished stands in the store; where the running round stands
is the graph's checkpoint. So `run` and `resume` are the same walk over the same plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl

from .. import __version__
from ..errors import BadInput, Busy, RedistillError, TryLater
from ..hashing import row_id
from ..policies import catalog
from ..policies.policy import Policy
from ..policies.revision import Revision
from ..store import facts
from ..store.analysis import PAIRED, Difference, paired_bootstrap, paired_parameters
from ..store.store import FILE, Row, Store, now
from ..trainers.trainer import BUILTINS as TRAINERS
from ..trainers.worker import Worker
from . import plugins
from .cast import Cast
from .operator import Progress, RunContext, Turn
from .operators.improve import Train
from .prompts import load_prompts, ships
from .recipe import Recipe, load_recipe
from .roles import STUDENT, Staging
from .round import Graph, build_measurement, build_round, opening

TRANSFER = "transfer"
"""A test prompt with this tag is scored and shown beside the gain, and never counts in it."""

RECIPE = "recipe.yaml"


class Silent:
    """Progress that nobody looks at."""

    def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run lives, and where models are kept between runs."""

    runs: Path = Path("runs")
    cache: Path = field(default_factory=catalog.default_cache)


def run(
    recipe: Recipe,
    *,
    rounds: int | None = None,
    place: Place | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run a recipe, or go on where it stopped, and return the run's folder.

    Args:
        recipe: what to do; its `name` is the folder's name under `place.runs`.
        rounds: replaces the recipe's `loop.rounds`.
        place: where runs and models are kept.
        progress: told of every chunk.

    Raises:
        BadInput: the recipe is wrong, or another recipe has this name already.
        Busy: another process runs this run.
        WrongWeights: a policy does not hold the weights that it was told to load.
        TryLater: the run was asked to stop; `resume` goes on.
    """
    place = place or Place()
    if rounds is not None:
        loop = recipe.loop.model_copy(update={"rounds": rounds})
        recipe = recipe.model_copy(update={"loop": loop})
    plan = _prepared(recipe, place)
    with _only_one(plan.folder):
        return _run(plan, progress or Silent())


def prepare(recipe: Recipe, place: Place) -> Path:
    """Check all that can be checked without a model, make the run's folder, and return it.

    Raises:
        BadInput: the recipe is wrong, or another recipe has this name already.
    """
    return _prepared(recipe, place).folder


def _prepared(recipe: Recipe, place: Place) -> _Plan:
    folder = _run_folder(place.runs, recipe.name)
    recipe = _anchored(recipe)
    prompts = load_prompts(recipe.prompts, recipe.base, recipe.seed)
    stagings = {name: Staging(name, role, recipe.base) for name, role in recipe.roles.items()}
    _check_models(recipe, place.cache)
    return _Plan(_settle(recipe, folder), folder, prompts, stagings, place.cache)


def resume(folder: Path, *, place: Place | None = None, progress: Progress | None = None) -> Path:
    """Go on with a run where it stopped; a finished one changes nothing."""
    file = folder / RECIPE
    if not file.exists():
        raise BadInput.at("", f"{folder} holds no run", "`redistill list runs` shows what is there")
    recipe = load_recipe(file.read_text("utf-8"), str(file), base=folder)
    return run(recipe, place=Place(folder.parent, (place or Place()).cache), progress=progress)


@dataclass(frozen=True, slots=True)
class _Plan:
    recipe: Recipe
    folder: Path
    prompts: Sequence[Any]
    stagings: dict[str, Staging]
    cache: Path


def _run(plan: _Plan, progress: Progress) -> Path:
    """Open everything, walk the plan, close everything."""
    store = Store(plan.folder, list(plan.recipe.judges()))
    worker = Worker(plan.folder / "worker.log", warm=_warm(plan.recipe))
    cast = None
    try:
        cast = _cast(plan)
        context = _context(plan, store, cast, worker, progress)
        _write_opening(plan, store, cast)
        asyncio.run(_walk_and_close(plan, context))
    except RedistillError as error:
        # A store that is broken cannot keep why it broke, and must not hide it either.
        with contextlib.suppress(RedistillError):
            _write_stop(store, error)
        raise
    finally:
        if cast is not None:
            cast.close()
        store.close()
    return plan.folder


async def _walk_and_close(plan: _Plan, run: RunContext) -> None:
    try:
        await run.worker.start()
        await _walk(plan, run)
    finally:
        await run.worker.close()


def _warm(recipe: Recipe) -> str | None:
    """Return what the worker may import while the first round samples."""
    names = {s.trainer_name for g in recipe.stages for s in g.steps if isinstance(s, Train)}
    return "trl" if names & TRAINERS.keys() else None


async def _walk(plan: _Plan, run: RunContext) -> None:
    """Baseline, rounds, gain: the whole run, top to bottom."""
    recipe, store = plan.recipe, run.store
    initial = str(store.rows("SELECT student FROM run")[0]["student"])
    evaluate = recipe.evaluate
    async with AsyncSqliteSaver.from_conn_string(str(plan.folder / "graph.sqlite")) as saver:
        walker = _Walker(run, saver, recipe)
        baseline = build_measurement(evaluate, "baseline", "heldout")
        await walker.walk(baseline, "baseline", 0, initial)
        for round_ in range(1, recipe.rounds + 1):
            if _out_of_patience(store, recipe.loop.stop.patience):
                run.progress.note(f"stopped: {recipe.loop.stop.patience} rejected rounds in a row")
                break
            champion = _begin_round(plan, run, round_)
            graph = build_round(recipe.stage_of(round_)[1].steps)
            await walker.walk(graph, str(round_), round_, champion)
        last = _rounds_done(store)
        for name, round_, revision in (
            ("test_initial", 0, initial),
            ("test_champion", last, facts.champion(store)),
        ):
            await walker.walk(build_measurement(evaluate, name, "test"), name, round_, revision)
        _write_gain(run, evaluate, initial, last)


@dataclass(slots=True)
class _Walker:
    """Walks graphs, each in a thread of its own in the checkpointer."""

    run: RunContext
    saver: AsyncSqliteSaver
    recipe: Recipe

    async def walk(self, graph: Graph, name: str, round_: int, revision: str) -> None:
        """Take a graph to its end, from its checkpoint where there is one.

        Raises:
            TryLater: a signal asked the run to stop; the chunk in hand was finished.
        """
        compiled = graph.compile(checkpointer=self.saver)
        config: Any = {"configurable": {"thread_id": f"{self.recipe.name}:{name}"}}
        control = RunControl()
        snapshot = await compiled.aget_state(config)
        if snapshot.created_at is not None and not snapshot.next:
            return
        begun = snapshot.created_at is not None
        with _drained_by_signals(control):
            try:
                await compiled.ainvoke(
                    None if begun else opening(round_, revision),
                    config,
                    context=self.run,
                    durability="sync",
                    control=control,
                )
            except GraphDrained as error:
                raise TryLater(
                    f"stopped; go on with: redistill resume {self.recipe.name}"
                ) from error


@contextlib.contextmanager
def _drained_by_signals(control: RunControl) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the run at the next chunk; a second one ends it at once."""
    loop = asyncio.get_running_loop()
    handled = []

    def drain(number: signal.Signals) -> None:
        control.request_drain(number.name)
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        # Outside the main thread, as in a notebook or a test, signals are not ours to take.
        with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
            loop.add_signal_handler(number, drain, number)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


# -- opening


def _run_folder(runs: Path, name: str) -> Path:
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
def _only_one(folder: Path) -> Iterator[None]:
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
    for spec in {recipe.student, *(r.policy for r in recipe.roles.values() if r.policy != STUDENT)}:
        if not catalog.is_plugin(spec):
            catalog.check(spec, cache)
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
        return before.model_copy(update={"execution": recipe.execution})
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
    prompts = recipe.prompts.model_dump()
    prompts |= {k: moved.get(v, v) for k, v in prompts.items() if isinstance(v, str)}
    roles = {}
    for name, role in recipe.roles.items():
        shot = role.context.few_shot
        if shot:
            shot = shot.model_copy(update={"file": moved.get(shot.file, shot.file)})
        context = role.context.model_copy(update={"few_shot": shot})
        roles[name] = role.model_copy(update={"context": context})
    return recipe.model_copy(
        update={"prompts": type(recipe.prompts)(**prompts), "roles": roles, "base": folder}
    )


def _anchored(recipe: Recipe) -> Recipe:
    """Resolve models that are folders from the recipe's own folder, as its files are."""

    def anchor(spec: str) -> str:
        folder = recipe.base / spec
        is_folder = not catalog.is_plugin(spec) and spec != STUDENT and folder.is_dir()
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


def _cast(plan: _Plan) -> Cast:
    """Resolve every policy, and put the initial student into the run."""
    initial, student = _open_policy(plan, plan.recipe.student)
    revisions = plan.folder / "revisions"
    _adopt(initial, revisions)
    policies: dict[str, Policy] = {STUDENT: student}
    others: dict[str, Revision] = {}
    for role in plan.recipe.roles.values():
        if role.policy not in policies:
            others[role.policy], policies[role.policy] = _open_policy(plan, role.policy)
    return Cast(plan.folder, initial.id, plan.stagings, policies, others)


def _open_policy(plan: _Plan, spec: str) -> tuple[Revision, Policy]:
    """Return a policy and the revision that it starts with; nothing is loaded yet."""
    if catalog.is_plugin(spec):
        kind = plugins.find("policies", spec, {}, "student")
        return kind.initial(plan.cache), kind()
    from ..policies.transformers import TransformersPolicy

    model = catalog.resolve(spec, cache=plan.cache)
    threads = plan.recipe.execution.threads
    return model.revision, TransformersPolicy(model.revision, threads=threads)


def _adopt(revision: Revision, revisions: Path) -> None:
    """Link a revision into the run, so that the run is whole without the cache."""
    target = revisions / revision.id
    if target.exists():
        return
    aside = revisions / f".adopt-{revision.id}"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(revision.folder, aside, copy_function=_link_or_copy)
    aside.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _context(
    plan: _Plan, store: Store, cast: Cast, worker: Worker, progress: Progress
) -> RunContext:
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
    )


def _write_opening(plan: _Plan, store: Store, cast: Cast) -> None:
    """Write the run, its prompts and the initial revision."""
    recipe = plan.recipe
    opening_run = {
        "id": row_id("run", key=recipe.key),
        "name": recipe.name,
        "key": recipe.key,
        "seed": recipe.seed,
        "recipe": json.dumps(recipe.resolved()),
        "student": cast.initial,
        "redistill_version": __version__,
        "created_at": now(),
    }
    revision: Row = {
        "id": cast.initial,
        "round": 0,
        "parent": None,
        "folder": f"revisions/{cast.initial}",
        "training_run_id": None,
        "created_at": now(),
    }
    rows = {"run": [opening_run], "revision": [revision], **facts.prompt_rows(plan.prompts)}
    store.commit(rows, round=0, step="begin", chunk=0)
    store.publish(force=True)


def _write_stop(store: Store, error: RedistillError) -> None:
    """Keep what stopped the run, for `status`; a stop that was asked for is no fault."""
    if isinstance(error, TryLater):
        return
    last = _rounds_done(store)
    identifier = row_id("event", kind="stopped", round=last, error=str(error))
    event = {
        "id": identifier,
        "round": last,
        "step": "stopped",
        "kind": "stopped",
        "detail": json.dumps({"error": str(error), "kind": type(error).__name__}),
        "created_at": now(),
    }
    store.commit({"event": [event]}, round=last, step=f"stopped:{identifier}", chunk=0)


# -- between rounds


def _begin_round(plan: _Plan, run: RunContext, round_: int) -> str:
    """Write the round and its steps, and return the champion that it starts from."""
    store = run.store
    known = store.rows("SELECT champion FROM round WHERE round = ?", [round_])
    if known:
        return str(known[0]["champion"])
    index, stage = plan.recipe.stage_of(round_)
    champion = facts.champion(store)
    round_row = {
        "id": row_id("round", run=run.key, round=round_),
        "round": round_,
        "stage": index,
        "champion": champion,
        "created_at": now(),
    }
    steps = [
        {
            "id": row_id("step", run=run.key, round=round_, step=step.step),
            "round": round_,
            "step": step.step,
            "position": position,
            "operator": step.name,
            "settings": step.model_dump_json(by_alias=True),
            "created_at": now(),
        }
        for position, step in enumerate(stage.steps, start=1)
    ]
    store.commit({"round": [round_row], "step": steps}, round=round_, step="begin", chunk=0)
    return champion


def _out_of_patience(store: Store, patience: int | None) -> bool:
    decisions = store.rows("SELECT decision FROM decision ORDER BY round DESC")
    latest = [row["decision"] for row in decisions[: patience or 0]]
    return patience is not None and len(latest) == patience and set(latest) == {"rejected"}


def _rounds_done(store: Store) -> int:
    return int(store.rows("SELECT coalesce(max(round), 0) AS n FROM decision")[0]["n"])


def _write_gain(run: RunContext, evaluate: Any, initial: str, last: int) -> None:
    """Write the gain: the paired difference on `test`, the one number that may be called so."""
    turn = Turn(run, last, "gain", 0, facts.champion(run.store))
    if turn.done:
        return
    before = evaluate.key(turn, initial, "test")
    after = evaluate.key(turn, turn.champion, "test")
    answers = run.store.rows(PAIRED, paired_parameters(before, after))
    detail = gain_of(answers, seed=before) | {"evaluations": [before, after]}
    event = {
        "id": row_id("event", run=run.key, kind="gain"),
        "round": last,
        "step": "gain",
        "kind": "gain",
        "detail": json.dumps(detail),
        "created_at": now(),
    }
    turn.commit({"event": [event]}, 0.0)
    run.store.publish(force=True)


def gain_of(answers: Sequence[Row], *, seed: str) -> dict[str, Any]:
    """Return the gain as `status --json` shows it; transfer prompts never count."""
    counted = [a for a in answers if TRANSFER not in a["tags"]]
    if not counted:
        return {"n": 0}
    found: Difference = paired_bootstrap(
        [a["before"] for a in counted], [a["after"] for a in counted], seed=seed
    )
    return {
        "initial": found.before,
        "champion": found.after,
        "delta": found.delta,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "n": found.n,
    }


__all__ = ["FILE", "Place", "Silent", "resume", "run"]
