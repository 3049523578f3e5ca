"""Applying a step afterwards: another judge, another pairing, on rows that are stored; nothing is sampled.

What was there stays as it is. An applied step has a name of its own in each round, and its rows go through
the operator's own `advance` and the ledger: killed and applied again, it ends with the same rows.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import BadInput, Problem
from ..hashing import row_id
from ..policies import catalog
from ..store.curation import OWN
from ..store.pairing import Labels
from ..store.query import snapshot
from ..store.sources import NAMED
from ..store.store import Row, Store, now
from ..store.views import ANSWERS
from ..trainers.worker import Worker
from . import plugins
from .cast import Cast
from .opening import RECIPE, Plan, only_one, open_cast
from .operator import BUILTINS, Operator, Progress, RunContext, Turn
from .operators.curate import Pair, Select, settled, unsettled
from .recipe import load_recipe
from .roles import Staging
from .server_needs import lacking, of_step
from .stages import RESERVED_STEPS
from .trained_judges import trained_of

_WHERE = "step"
_MAKES = ("judgements", "rows")


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of a step in one round."""

    round: int
    step: str
    new: bool
    """Whether anything was done; all of it stood there already where not."""
    rows: dict[str, int]
    """Rows sent, by table."""


@dataclass(frozen=True, slots=True)
class Target:
    """One round in which the step is applied, and the steps whose completions it reads."""

    round: int
    of: tuple[str, ...]


def apply(
    folder: Path,
    text: str,
    *,
    rounds: Sequence[int] = (),
    cache: Path | None = None,
    progress: Progress,
) -> list[Applied]:
    """Run a feedback or curation step on the stored rows of finished rounds, and publish.

    Args:
        folder: the run's folder.
        text: the YAML of one step as a recipe has it, `score: {of: sample, judge: longest}`.
        rounds: only these; every finished round that has the steps of `of` where it is empty.
        cache: where models are kept, for a step in which a role speaks.
        progress: told of every chunk.

    Raises:
        BadInput: the step is wrong, may not be applied, or its name stands for something else.
        Busy: the run is being run.
        EnvironmentProblem: a role's model cannot be had.
    """
    snapshot(folder)  # names the runs that are there, where this one is not
    step = read_step(text)
    with only_one(folder):
        store = Store(folder)
        try:
            _check(store, step)
            targets = _targets(store, step, rounds)
            # All rounds are looked at before the first one is written to.
            settled = [(target, _settled(store, step, target)) for target in targets]
            if step.makes == "judgements":
                _refuse_forgotten(store, targets)
            run = context_of(store, step, cache or catalog.default_cache(), progress)
            try:
                return [asyncio.run(_apply(run, made, target)) for target, made in settled]
            finally:
                run.cast.close()
                store.refresh_views()
        finally:
            store.close()


def read_step(text: str) -> Operator:
    """Return the step that a text describes.

    Raises:
        BadInput: it is no step, or one that makes neither judgements nor rows.
    """
    try:
        spec = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput.at(_WHERE, f"no valid YAML: {' '.join(str(error).split())}") from error
    step = plugins.build("operators", spec, BUILTINS, _WHERE)
    if not isinstance(step, Operator):
        raise BadInput.at(_WHERE, f"{spec!r} is no operator")
    if step.makes not in _MAKES:
        raise BadInput.at(
            _WHERE,
            f"{step.name} makes {step.makes}",
            "steps that judge or curate can be applied; a fork does the others",
        )
    if problems := step.check(_WHERE):
        raise BadInput(*problems)
    if made := next(trained_of(step), None):
        what = f"{made.name} is made in a round, and asked there"
        hint = "name its weights: {reward_model: {model: RUN/judges/HASH}}"
        raise BadInput.at(f"{_WHERE}.judge", what, hint)
    return step


# -- where it can be applied


def _check(store: Store, step: Operator) -> None:
    """Refuse a judge whose values would stand in another one's column, and SQL that asks for no column."""
    known: dict[str, set[str]] = {}
    for row in store.rows("SELECT DISTINCT judge, judge_revision FROM judgement"):
        known.setdefault(row["judge"], set()).add(row["judge_revision"])
    problems = []
    for name, revision in step.judges().items():
        where = f"{_WHERE}.judge"
        if name.casefold() in {*ANSWERS, *OWN}:
            problems.append(Problem(where, f"{name!r} has the name of a column of `answers`"))
        elif known.get(name, {revision}) != {revision}:
            what = f"{name!r} has judged in this run with other settings or another version"
            problems.append(Problem(where, what, "give it another name: {judge: {name: ...}}"))
        elif any(name != n and name.casefold() == n.casefold() for n in known):
            problems.append(
                Problem(where, f"{name!r}: SQL takes upper and lower case for one", "rename it")
            )
    if isinstance(step, Select):
        problems += step.check_sql(_WHERE, [*known, *step.judges()])
    if problems:
        raise BadInput(*problems)


def _targets(store: Store, step: Operator, wanted: Sequence[int]) -> list[Target]:
    """Return the rounds in which all is there that the step reads.

    Raises:
        BadInput: there is none, or not one that was asked for.
    """
    ready = _ready(store)
    if step.makes == "rows":  # held-out answers never train
        ready = {
            r: [(s, split) for s, split in found if split == "train"] for r, found in ready.items()
        }
    given = set(step.sources())
    kept = _kept(store)
    targets = []
    for round_ in sorted(wanted or ready):
        found = ready.get(round_, [])
        if given:
            known = {name for name, _ in found} | kept.get(round_, set())
            of = tuple(s for s in step.sources() if s in known)
        else:
            of = tuple([name for name, split in found if split == "train"][-1:])
        if of:
            targets.append(Target(round_, of))
        elif round_ in wanted:
            what = f"has no finished completions of {' or '.join(sorted(given)) or 'any step'}"
            raise BadInput.at(f"--round {round_}", what)
    there = sorted({name for found in ready.values() for name, _ in found}.union(*kept.values()))
    strange = sorted(given - set(there))
    if strange or not targets:
        if not there:
            raise BadInput.at("", "no round is finished yet", "`redistill resume` goes on")
        hint = plugins.did_you_mean(strange[0] if strange else "", there, "finished steps:")
        raise BadInput.at(f"{_WHERE}.of", f"no completions of {', '.join(strange) or 'it'}", hint)
    return targets


def _ready(store: Store) -> dict[int, list[tuple[str, str]]]:
    """Return, by round, the steps whose completions are all there, in their order, and their split."""
    rows = store.rows(
        """
        SELECT c.round, c.step, CASE WHEN bool_or(c.split = 'train') THEN 'train' ELSE 'other' END AS split
        FROM completion c
        LEFT JOIN step s ON s.round = c.round AND s.step = c.step
        WHERE (EXISTS (SELECT 1 FROM decision d WHERE d.round = c.round)
               OR c.round = 0 OR s.origin = 'imported')
          AND NOT EXISTS (SELECT 1 FROM proposal x WHERE x.round = c.round AND x.step = c.step)
          AND (c.split = 'train' OR s.origin = 'imported'
               OR EXISTS (SELECT 1 FROM evaluation e WHERE e.round = c.round AND e.step = c.step))
        GROUP BY c.round, c.step ORDER BY c.round, max(s.position) NULLS LAST, c.step
        """
    )
    ready: dict[int, list[tuple[str, str]]] = {}
    for row in rows:
        ready.setdefault(row["round"], []).append((row["step"], row["split"]))
    return ready


def _kept(store: Store) -> dict[int, set[str]]:
    """Return, by decided round, the select steps whose answers can be read: all of them are of that round."""
    rows = store.rows(
        """
        SELECT s.round, s.step FROM selection s
        JOIN completion c ON c.id = s.completion_id JOIN decision d ON d.round = s.round
        GROUP BY s.round, s.step HAVING bool_and(c.round = s.round)
        """
    )
    found: dict[int, set[str]] = {}
    for row in rows:
        found.setdefault(row["round"], set()).add(row["step"])
    return found


def _refuse_forgotten(store: Store, targets: Sequence[Target]) -> None:
    """Refuse to judge answers whose words are gone: an empty text would get a value that is no fact."""
    for target in targets:
        [gone] = store.rows(
            f"""
            SELECT count(*) AS n FROM completion c JOIN prompt p ON p.id = c.prompt_id
            WHERE c.round = $round AND {NAMED} AND EXISTS (
                SELECT 1 FROM content t WHERE t.forgotten_at IS NOT NULL AND (
                    (t.round = c.round AND t.hash IN (c.text_hash, c.turns_hash)) OR
                    (t.round = p.round AND t.hash IN (p.messages_hash, p.details_hash))))
            """,  # noqa: S608 - our words
            {"round": target.round, "steps": list(target.of)},
        )
        if gone["n"]:
            what = f"{gone['n']} answers of round {target.round}, or their prompts, were forgotten"
            raise BadInput.at(_WHERE, what, "judge other rounds with --round")


def _settled(store: Store, step: Operator, target: Target) -> Operator:
    """Return the step with `of`, `by` and `as` filled in, as this round will hold it.

    Raises:
        BadInput: its name cannot be one, or stands in this round with other settings.
    """
    step = step if step.sources() else step.model_copy(update={"of": target.of})
    if isinstance(step, Pair):
        step = _paired(store, step, target)
    name = step.as_ or _name_of(step)
    if name in RESERVED_STEPS or not name.isidentifier() or name.startswith("_"):
        raise BadInput.at(f"{_WHERE}.as", f"{name!r} cannot name a step", "choose another word")
    step = step.model_copy(update={"as_": name})
    known = store.rows(
        "SELECT operator, settings, origin FROM step WHERE round = ? AND step = ?",
        [target.round, name],
    )
    if any(not _same(row, step) for row in known) or (
        not known and name in {s for s, _ in _ready(store).get(target.round, [])}
    ):
        what = f"round {target.round} has another step {name!r}"
        raise BadInput.at(_WHERE, what, "give another with `as:`")
    return step


def _same(row: Row, step: Operator) -> bool:
    settings = json.loads(step.model_dump_json(by_alias=True))
    return (row["origin"], row["operator"], json.loads(row["settings"])) == (
        "applied",
        step.name,
        settings,
    )


def _paired(store: Store, step: Pair, target: Target) -> Pair:
    """Return the step with the judge filled in that has scored or compared the answers."""
    rows = store.rows(
        f"""
        WITH said AS (
            SELECT judge, 'scores' AS labels, completion_id AS seen FROM judgement
            WHERE round = $round AND mode = 'score' AND aspect = ''
            UNION ALL
            SELECT judge, 'comparisons', unnest(presented) FROM judgement
            WHERE round = $round AND mode = 'compare' AND aspect = ''
        )
        SELECT DISTINCT s.judge, s.labels FROM said s JOIN completion c ON c.id = s.seen
        WHERE c.round = $round AND {NAMED}
        """,  # noqa: S608 - our words
        {"round": target.round, "steps": list(target.of)},
    )
    given: set[tuple[str, Labels]] = {(row["judge"], row["labels"]) for row in rows}
    step = settled(step, given)
    if problems := unsettled(step, given, _WHERE):
        raise BadInput(*problems)
    return step


def _name_of(step: Operator) -> str:
    words = [*step.judges(), *(getattr(step, key, "") for key in ("by", "rule"))]
    word = next((w for w in words if w), "")
    if not word:
        raise BadInput.at(_WHERE, f"{step.name} needs a name", "give one with `as:`")
    return f"{step.name}_{word}"


# -- doing it


def context_of(store: Store, step: Operator, cache: Path, progress: Progress) -> RunContext:
    """Return what the operator needs to know of the run; policies only where the step has roles."""
    [run] = store.rows("SELECT key, seed, student, recipe FROM run")
    recipe = json.loads(run["recipe"])
    student = str(run["student"] or "")
    return RunContext(
        folder=store.folder,
        store=store,
        key=run["key"],
        seed=run["seed"],
        chunk=int(recipe.get("chunk") or 64),
        per_round=(recipe.get("prompts") or {}).get("per_round"),
        threads=os.cpu_count() or 1,
        cast=_cast(store.folder, step, student, cache),
        worker=Worker(store.folder / "worker.log"),
        progress=progress,
    )


def _cast(folder: Path, step: Operator, student: str, cache: Path) -> Cast:
    wanted = list(step.roles())
    if not wanted:
        return Cast(folder, student, {}, {}, {})
    file = folder / RECIPE
    if not file.exists():
        raise BadInput.at(_WHERE, f"needs the role {wanted[0]}", f"{folder} has no {RECIPE}")
    recipe = load_recipe(file.read_text("utf-8"), str(file), base=folder)
    for role in wanted:
        if role not in recipe.roles:
            hint = plugins.did_you_mean(role, recipe.roles, "roles are")
            raise BadInput.at(f"{_WHERE}.role", f"unknown role {role!r}", hint)
    if unable := lacking(recipe.roles, of_step(step)):
        raise BadInput(*unable)
    stagings = {name: Staging(name, role, recipe.base) for name, role in recipe.roles.items()}
    return open_cast(Plan(recipe, folder, (), stagings, cache))


async def _apply(run: RunContext, step: Operator, target: Target) -> Applied:
    """Write the step's row, then all its chunks."""
    _begin(run, step, target.round)
    champion = run.store.rows("SELECT champion FROM round WHERE round = ?", [target.round])
    start = str(champion[0]["champion"]) if champion else run.cast.initial
    cursor: int | None = 0
    new = False
    while cursor is not None:
        turn = Turn(run, target.round, step.step, cursor, start)
        new |= not turn.done
        cursor = (await step.advance(turn)).cursor
    rows: dict[str, int] = {}
    for batch in run.store.rows(
        "SELECT counts FROM write_batch WHERE round = ? AND step = ?", [target.round, step.step]
    ):
        for table, count in json.loads(batch["counts"]).items():
            if table != "content":
                rows[table] = rows.get(table, 0) + count
    return Applied(target.round, step.step, new, rows)


def _begin(run: RunContext, step: Operator, round_: int) -> None:
    [last] = run.store.rows(
        "SELECT coalesce(max(position), 0) AS n FROM step WHERE round = ?", [round_]
    )
    row: Row = {
        "id": row_id("step", run=run.key, round=round_, step=step.step),
        "round": round_,
        "step": step.step,
        "position": last["n"] + 1,
        "operator": step.name,
        "settings": step.model_dump_json(by_alias=True),
        "origin": "applied",
        "created_at": now(),
    }
    run.store.commit({"step": [row]}, round=round_, step=f"apply:{step.step}", chunk=0)
