"""The loop: baseline, rounds, and the gain on `test`; resumable at every chunk.

Each round starts from the champion. What is finished stands in the store; where the running round stands
is the graph's checkpoint. So `run` and `resume` are the same walk over the same plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl

from ..errors import BadInput, RedistillError, StoreProblem, TryLater
from ..hashing import row_id
from ..store import facts
from ..store.analysis import PAIRED, Difference, paired_bootstrap, paired_parameters
from ..store.backup import GRAPH
from ..store.store import FILE, Row, Store, now
from ..trainers.trainer import BUILTINS as TRAINERS
from ..trainers.worker import Worker
from .legible import check_legible
from .opening import RECIPE, Place, Plan, only_one, open_cast, prepared, run_context, write_opening
from .operator import Progress, RunContext, Turn
from .operators.improve import Train
from .people import parked
from .recipe import Recipe, load_recipe
from .round import Graph, build_measurement, build_round, opening
from .server_needs import check_tokens

TRANSFER = "transfer"
"""A test prompt with this tag is scored and shown beside the gain, and never counts in it."""


class Silent:
    """Progress that nobody looks at."""

    def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


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
        if rounds < 1:
            raise BadInput.at("rounds", f"{rounds} rounds", "give 1 or more")
        loop = recipe.loop.model_copy(update={"rounds": rounds})
        recipe = recipe.model_copy(update={"loop": loop})
    plan = prepared(recipe, place)
    with only_one(plan.folder):
        return _run(plan, progress or Silent())


def prepare(recipe: Recipe, place: Place) -> Path:
    """Check all that can be checked without a model, make the run's folder, and return it.

    Raises:
        BadInput: the recipe is wrong, or another recipe has this name already.
    """
    return prepared(recipe, place).folder


def resume(folder: Path, *, place: Place | None = None, progress: Progress | None = None) -> Path:
    """Go on with a run where it stopped; a finished one changes nothing."""
    return run(
        _recipe_of(folder), place=Place(folder.parent, (place or Place()).cache), progress=progress
    )


def _recipe_of(folder: Path) -> Recipe:
    """Return the recipe of a run.

    Raises:
        BadInput: the folder holds none.
    """
    file = folder / RECIPE
    if not file.exists():
        raise BadInput.at("", f"{folder} holds no run", "`redistill list runs` shows what is there")
    recipe = load_recipe(file.read_text("utf-8"), str(file), base=folder)
    # A folder that was renamed or copied is the run; its recipe still has the old name.
    return recipe.model_copy(update={"name": folder.name})


def measure(folder: Path, revision: str, *, place: Place, progress: Progress | None = None) -> None:
    """Measure a revision of a finished run on `test`, whether it was promoted or not.

    For comparisons of whole runs, after everything has been chosen: nothing in a run reads what is found.
    """
    recipe = _recipe_of(folder)
    plan = prepared(recipe, place)

    async def walk(run: RunContext) -> None:
        async with AsyncSqliteSaver.from_conn_string(str(folder / GRAPH)) as saver:
            graph = build_measurement(recipe.evaluate, f"compared_{revision[:8]}", "test")
            name = f"compared:{revision}"
            await _Walker(run, saver, recipe).walk(graph, name, _rounds_done(run.store), revision)
        run.store.publish(force=True)

    with only_one(folder):
        _run(plan, progress or Silent(), walk)


def _run(
    plan: Plan, progress: Progress, walk: Callable[[RunContext], Awaitable[None]] | None = None
) -> Path:
    """Open everything, walk the plan or what is given instead, close everything."""
    if (plan.folder / GRAPH).exists() and not (plan.folder / FILE).exists():
        raise StoreProblem(f"{plan.folder / FILE} is gone; restore the run from a backup")
    placement = plan.memory().settled(plan.recipe.student, progress.note)
    store = Store(plan.folder, list(plan.recipe.judges()))
    cards = placement.trainer_environment()
    worker = Worker(plan.folder / "worker.log", warm=_warm(plan.recipe), cards=cards)
    cast = None
    try:
        cast = open_cast(plan, placement)
        if not store.rows("SELECT 1 FROM run"):
            check_legible(plan.recipe, plan.prompts, cast.student, progress.note)
            check_tokens(plan.recipe, cast.student)
        context = run_context(plan, store, cast, worker, progress)
        write_opening(plan, store, cast)
        asyncio.run(_walk_and_close(walk(context) if walk else _walk(plan, context), context))
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


async def _walk_and_close(walk: Awaitable[None], run: RunContext) -> None:
    try:
        await run.worker.start()
        await walk
    finally:
        await run.cast.servers.close()
        await run.worker.close()


def _warm(recipe: Recipe) -> str | None:
    """Return what the worker may import while the first round samples."""
    names = {s.trainer_name for g in recipe.stages for s in g.steps if isinstance(s, Train)}
    return "trl" if names & TRAINERS.keys() else None


async def _walk(plan: Plan, run: RunContext) -> None:
    """Baseline, rounds, gain: the whole run, top to bottom."""
    recipe, store = plan.recipe, run.store
    initial = str(store.rows("SELECT student FROM run")[0]["student"])
    evaluate = recipe.evaluate
    async with AsyncSqliteSaver.from_conn_string(str(plan.folder / GRAPH)) as saver:
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
            TryLater: a signal asked the run to stop, and the chunk in hand was finished; or a step
                waits for people.
        """
        compiled = graph.compile(checkpointer=self.saver)
        config: Any = {"configurable": {"thread_id": f"{self.recipe.name}:{name}"}}
        control = RunControl()
        snapshot = await compiled.aget_state(config)
        _refuse_loss(self.run.store, snapshot.values.get("committed", 0))
        if snapshot.created_at is not None and not snapshot.next:
            return
        begun = snapshot.created_at is not None
        with _drained_by_signals(control, self.run.progress):
            try:
                found = await compiled.ainvoke(
                    None if begun else opening(round_, revision),
                    config,
                    context=self.run,
                    durability="sync",
                    control=control,
                )
            except GraphDrained as error:
                raise _stopped(self.run.folder) from error
        for waits in found.get("__interrupt__", ()):
            raise parked(self.run.folder, waits.value)
        if control.drain_requested:  # asked for in the graph's last chunk, which ends it by itself
            raise _stopped(self.run.folder)


def _refuse_loss(store: Store, seen: int) -> None:
    """Refuse to go on when the graph has seen more chunks in the ledger than are there.

    A store that lost its write-ahead log opens without a word; this count lies in another file.

    Raises:
        StoreProblem: chunks that were committed are gone.
    """
    if (there := facts.committed(store)) < seen:
        raise StoreProblem(
            f"{seen} chunks were committed and {there} are in the store: it has lost rows; "
            "restore the run from a backup"
        )


def _stopped(folder: Path) -> TryLater:
    where = "" if folder.parent == Path("runs") else f" --runs {folder.parent}"
    return TryLater(f"stopped; go on with: redistill resume {folder.name}{where}")


@contextlib.contextmanager
def _drained_by_signals(control: RunControl, progress: Progress) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the run at the next chunk; a second one ends it at once."""
    loop = asyncio.get_running_loop()
    handled = []

    def drain(number: signal.Signals) -> None:
        progress.note(f"{number.name}: stopping after this chunk; once more stops at once")
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


def _write_stop(store: Store, error: RedistillError) -> None:
    """Keep what stopped the run, for `status`; a stop that was asked for is no fault."""
    if isinstance(error, TryLater):
        return
    last = _rounds_done(store)
    earlier = store.rows("SELECT count(*) AS n FROM event WHERE kind = 'stopped'")[0]["n"]
    identifier = row_id("event", kind="stopped", round=last, error=str(error), nth=earlier)
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


def _begin_round(plan: Plan, run: RunContext, round_: int) -> str:
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
            "origin": "round",
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
    before, after = (
        evaluate.stored(turn, revision, "test")[0]["id"] for revision in (initial, turn.champion)
    )
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


__all__ = ["RECIPE", "Place", "Silent", "gain_of", "prepare", "resume", "run"]
