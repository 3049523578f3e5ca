"""Forking a run: other settings from one round on, with every sample and judgement before that kept.

The fork is a run of its own: its recipe says what its rounds did, old settings first, and has a key of
its own. What it takes over are rows with their ids and their ledger, so that the loop, which walks it from
the start, finds each chunk done. The parent is only read, and of it only the published snapshot.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import BadInput, Problem
from ..hashing import row_id
from ..policies.revision import Revision
from ..store.copying import Reused, copy_rows
from ..store.facts import IMPORTED
from ..store.query import read_rows, snapshot
from ..store.store import FILE, Row, Rows, Store, now
from . import plugins
from .gating import admission_rows
from .opening import RECIPE, adopt, link_or_copy, run_folder, run_row
from .operators.improve import Evaluate
from .recipe import KEYS, Recipe, load_recipe
from .stages import override, step_data, step_name

_FREE = ("loop", "execution")
"""Keys of the recipe that a fork may change beside its steps: no earlier round has used them."""
_NEVER = ("test_champion", "gain", "stopped", "forked")
"""Steps that speak of the parent's end, or of its own beginning."""
_MEASURED = ("baseline", "test_initial")


def fork(parent: Path, *, round_: int, changes: Sequence[str], name: str) -> Path:
    """Make a run that goes on from a round of another one with other settings, and return its folder.

    `resume` runs it. Rounds before `round_` are as they are; of `round_`, every finished step before the
    first one whose settings changed.

    Args:
        parent: folder of the run that is forked; nothing in it is written.
        round_: first round with the new settings, from 1.
        changes: `a.b=c` settings, steps by their names.
        name: the fork's name; its folder lies beside the parent's.

    Raises:
        BadInput: the settings change nothing, or what earlier rounds have used; the rounds before are not
            finished; there is a run of that name.
    """
    recipe = _recipe_of(parent)
    folder = run_folder(parent.parent, name)
    if folder.exists():
        raise BadInput.at("--as", f"{folder} exists", "choose another name")
    _check_rounds(parent, round_)
    forked = forked_recipe(recipe, round_, changes, name)
    reused = _reused(parent, recipe, forked, round_)
    aside = parent.parent / f".{name}.fork"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        _write(parent, aside, forked, reused)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _recipe_of(parent: Path) -> Recipe:
    snapshot(parent)  # names the runs that are there, where this one is not
    file = parent / RECIPE
    if not file.exists():
        raise BadInput.at("", f"{parent} has no {RECIPE}", "a run of imports has nothing to fork")
    recipe = load_recipe(file.read_text("utf-8"), str(file), base=parent)
    [run] = read_rows(parent, "SELECT key FROM run")
    if run["key"] != recipe.key:
        raise BadInput.at(
            str(file), "or a file in inputs/ is not what this run began with", "put it back"
        )
    return recipe


def _check_rounds(parent: Path, round_: int) -> None:
    decided = {row["round"] for row in read_rows(parent, "SELECT round FROM decision")}
    missing = [r for r in range(1, round_) if r not in decided]
    if round_ < 1 or missing:
        what = f"round {missing[0]} is not finished" if missing else "rounds are from 1"
        hint = f"{parent.name} can be forked at 1 to {max(decided, default=0) + 1}"
        raise BadInput.at(f"--round {round_}", what, hint)


# -- the recipe


def forked_recipe(recipe: Recipe, round_: int, changes: Sequence[str], name: str) -> Recipe:
    """Return the recipe of a fork: old steps in the rounds before, new ones from `round_` on.

    Raises:
        BadInput: with every setting that cannot be changed, or where nothing would be.
    """
    forked = changed_recipe(recipe, round_, changes, name)
    if not _changed(recipe, forked, round_):
        hint = "give a --set that changes something"
        raise BadInput.at("--set", f"nothing differs from round {round_} on", hint)
    return forked


def changes_nothing(parent: Path, *, round_: int, changes: Sequence[str]) -> bool:
    """Tell whether a run has the settings already that a fork of it would have."""
    recipe = _recipe_of(parent)
    return not _changed(recipe, changed_recipe(recipe, round_, changes, recipe.name), round_)


def changed_recipe(recipe: Recipe, round_: int, changes: Sequence[str], name: str) -> Recipe:
    """Return a recipe with other settings from a round on, whether they change anything or not.

    Raises:
        BadInput: with every setting that cannot be changed.
    """
    data = recipe.resolved() | {"name": name}
    steps, free, problems = _sorted(recipe, round_, changes)
    problems += [p for change in free if (p := override(data, change, KEYS))]
    if problems:
        raise BadInput(*problems)
    total = data["loop"].get("rounds") or recipe.rounds
    if isinstance(total, int) and total < round_:
        hint = f"`--set loop.rounds={round_}` goes on"
        raise BadInput.at(f"--round {round_}", f"the fork has {total} rounds", hint)
    total = total if isinstance(total, int) else recipe.rounds
    data["stages"] = _stages(recipe, round_, total, steps)
    try:
        return Recipe.model_validate(data | {"base": recipe.base})
    except ValidationError as error:
        raise BadInput(*plugins.problems_of(error, "", Recipe)) from error


def _sorted(
    recipe: Recipe, round_: int, changes: Sequence[str]
) -> tuple[list[str], list[str], list[Problem]]:
    """Tell changes of steps from changes of free keys, and find those that no fork can make."""
    later = [recipe.stage_of(r)[1] for r in range(round_, max(round_, recipe.rounds) + 1)]
    names = {step.step for stage in later for step in stage.steps}
    steps, free, problems = [], [], []
    for change in changes:
        path = change.partition("=")[0].removeprefix("round.")
        head = path.partition(".")[0]
        if head in names:
            steps.append(change)
        elif head in _FREE:
            free.append(change)
        elif head in KEYS:
            hint = "start a run of its own for that" if head != "name" else "`--as` names it"
            problems.append(
                Problem(f"--set {change}", f"{head} is what earlier rounds have used", hint)
            )
        else:
            hint = plugins.did_you_mean(head, [*sorted(names), *_FREE])
            problems.append(Problem(f"--set {change}", f"{head!r} is no step and no key", hint))
    return steps, free, problems


def _stages(
    recipe: Recipe, round_: int, total: int, changes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the stages as YAML has them: rounds that are alike are one stage, and `round_` begins one."""
    rounds = [(r >= round_, recipe.stage_of(r)[0]) for r in range(1, total + 1)]
    stages: list[dict[str, Any]] = []
    for (new, index), alike in groupby(rounds):
        steps = [step_data(step) for step in recipe.stages[index - 1].steps]
        names = [step_name(step) for step in steps]
        stage = {"repeat": len(list(alike)), "round": steps}
        for change in changes if new else ():
            head = change.removeprefix("round.").partition("=")[0].partition(".")[0]
            if head in names and (problem := override(stage, change, ())):
                raise BadInput(problem)
        stages.append(stage)
    return stages


def _changed(recipe: Recipe, forked: Recipe, round_: int) -> bool:
    same_loop = recipe.loop.stop == forked.loop.stop and recipe.rounds == forked.rounds
    rounds = range(round_, forked.rounds + 1)
    return not same_loop or any(_steps(recipe, r) != _steps(forked, r) for r in rounds)


def _steps(recipe: Recipe, round_: int) -> list[dict[str, Any]]:
    return [step_data(step) for step in recipe.stage_of(round_)[1].steps]


# -- the rows


def _reused(parent: Path, recipe: Recipe, forked: Recipe, round_: int) -> Reused:
    """Return which rows the fork takes over."""
    old, new = _steps(recipe, round_), _steps(forked, round_)
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
    same = [step_name(step) for step, _ in alike]
    if read_rows(parent, "SELECT 1 FROM decision WHERE round = ?", [round_]):
        steps = [*same, "promote", "reject"] if len(same) == len(old) == len(new) else same
    else:  # the last step that has begun may be in the middle of it
        ledger = read_rows(parent, "SELECT step FROM write_batch WHERE round = ?", [round_])
        begun = {row["step"] for row in ledger}
        names = [step.step for step in recipe.stage_of(round_)[1].steps if step.step in begun]
        steps = [name for name in same if name in names[:-1]]
    without = [*_NEVER]
    if _evidence(recipe) != _evidence(forked):  # then this is round 1, and all is measured anew
        applied = read_rows(parent, "SELECT step FROM step WHERE round = 0")
        names = [*_MEASURED, *(row["step"] for row in applied)]
        without += [*names, *(f"apply:{name}" for name in names)]
    return Reused(round_, tuple(steps), tuple(without))


def _evidence(recipe: Recipe) -> list[dict[str, Any]]:
    return [step_data(s) for s in recipe.stages[0].steps if isinstance(s, Evaluate)]


def _write(parent: Path, folder: Path, recipe: Recipe, reused: Reused) -> None:
    """Fill the fork's folder."""
    if (parent / "inputs").is_dir():
        shutil.copytree(parent / "inputs", folder / "inputs", copy_function=link_or_copy)
    (folder / RECIPE).write_text(recipe.to_yaml(), "utf-8")
    # A copy, because it may have to be migrated; and one of the snapshot, because the live file may be in use.
    source = folder / "parent"
    source.mkdir()
    shutil.copyfile(snapshot(parent), source / FILE)
    Store(source).close()
    store = Store(folder, list(recipe.judges()))
    try:
        store.work(lambda connection: copy_rows(connection, source / FILE, reused))
        begin = _opening_rows(source, parent, recipe, reused)
        store.commit(begin, round=0, step="begin", chunk=0)
        store.refresh_views()
        for row in store.rows("SELECT DISTINCT folder FROM revision"):
            adopt(Revision.read(parent / row["folder"]), (folder / row["folder"]).parent)
    finally:
        store.close()
    shutil.rmtree(source)


def _opening_rows(source: Path, parent: Path, recipe: Recipe, reused: Reused) -> Rows:
    """Return what a run writes when it begins, with the parent's prompts and initial student."""
    [run] = read_rows(source, "SELECT name, key, student FROM run")
    prompts = read_rows(
        source,
        "SELECT * REPLACE (id::VARCHAR AS id, completion_id::VARCHAR AS completion_id, parent_id::VARCHAR AS parent_id) "
        "FROM prompt WHERE round = 0 AND NOT list_contains(tags, ?)",
        [IMPORTED],
    )
    texts = read_rows(
        source,
        "SELECT c.* FROM content c WHERE c.round = 0 AND EXISTS (SELECT 1 FROM prompt p "
        "WHERE c.hash IN (p.messages_hash, p.details_hash, p.tools_hash))",
    )
    revisions = read_rows(
        source, "SELECT * FROM revision WHERE id = ? AND round = 0", [run["student"]]
    )
    event: Row = {
        "id": row_id("event", run=recipe.key, kind="forked"),
        "round": 0,
        "step": "forked",
        "kind": "forked",
        "detail": json.dumps(
            {"run": parent.name, "key": run["key"], "round": reused.before, "steps": reused.steps}
        ),
        "created_at": now(),
    }
    return {
        "run": [run_row(recipe, run["student"])],
        "prompt": prompts,
        "content": texts,
        "revision": revisions,
        "event": [event],
        **admission_rows(recipe),
    }
