"""Which judges may train and decide in a run: those that passed an exam, and programs.

Checked before a model loads or a call is paid. Three things must be allowed by name in the recipe: a judge
without a passed exam (`unproven_judge`), the student as its only judge (`self_judge`), and evidence from
the judge that also labelled what trains (`same_judge`). None of them changes a row, so none is part of
any id; each is told wherever the run is told.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..hashing import content_hash, row_id
from ..store.query import read_rows
from ..store.store import Row, now
from . import registry
from .judge import EXEMPT, Judge, Standing, needs_group, roles_of, standing_of
from .judges.trained import Trained, trained_in
from .operator import Operator
from .operators.feedback import Critique, Judging
from .operators.improve import Evaluate, Train
from .recipe import Recipe, Stage
from .roles import STUDENT, RoleContext, reached
from .verdicts import Rows

_SNAPSHOT = "store.read.duckdb"


@dataclass(frozen=True, slots=True)
class Seat:
    """A judge where it sits in a recipe."""

    stage: int
    step: str
    judge: Judge
    spec: Any
    labels: bool
    """Whether what it says trains; else it measures what was trained."""
    roles: Mapping[str, str]
    """Role -> model that speaks as it."""

    @property
    def standing(self) -> Standing:
        """What the judge is to the exam."""
        return standing_of(self.judge)

    @property
    def examined(self) -> Judge:
        """The judge whose exam counts: one that ranks with another one is as good as that."""
        found: Judge = getattr(self.judge, "examined_as", self.judge)
        return found

    @property
    def trained(self) -> bool:
        """Whether a step of the round makes and examines it, or all in it that would need an exam."""
        return any(trained_in(self.judge)) and _needs_no_record(self.judge)

    @property
    def where(self) -> str:
        """The key's path."""
        return f"{self.step}.judge"


def seats(recipe: Recipe) -> list[Seat]:
    """Return every judge of a recipe that gives labels or evidence; a critic's words are neither."""
    return [seat for n, stage in enumerate(recipe.stages) for seat in _seats(recipe, n, stage)]


def _seats(recipe: Recipe, number: int, stage: Stage) -> Iterator[Seat]:
    models = role_models(recipe)
    for step in stage.steps:
        for judge, spec in judges_of(step):
            speaks = {role: models.get(role, "") for role in roles_of(judge)}
            yield Seat(number, step.step, judge, spec, not isinstance(step, Evaluate), speaks)


def judges_of(step: Operator) -> list[tuple[Judge, Any]]:
    """Return the judges of a step that give labels, rewards or evidence, each with how it is named."""
    if isinstance(step, Train):
        return list(step.reward_judges())
    if isinstance(step, Judging) and not isinstance(step, Critique):
        return [(step.load_judge(), step.judge_spec())]
    return []


def role_models(recipe: Recipe) -> dict[str, str]:
    """Return what stands for the model of each role: its policy, its model, and what it is shown first."""
    found = {}
    for name, role in recipe.roles.items():
        policy = recipe.student if role.policy == STUDENT else reached(role.policy)
        named = f"{policy} {getattr(role, 'model', None) or ''}".strip()
        told = role.context.model_dump(mode="json")
        plain = role.context == RoleContext()
        found[name] = named if plain else f"{named} with context {content_hash(told)[:8]}"
    return found


# -- what must be allowed


def check_judges(recipe: Recipe, folder: Path) -> list[Problem]:
    """Return what a recipe's judges lack, one line each.

    Args:
        recipe: with every model's place resolved.
        folder: the run's; what it began with still holds.
    """
    found = seats(recipe)
    problems: list[Problem] = []
    if recipe.unproven_judge != "allow":
        problems += _unproven(found, _begun_with(folder))
        problems += _unexamined(recipe)
    if recipe.self_judge != "allow":
        problems += _own_judges(recipe, found)
    if recipe.same_judge != "allow":
        problems += _same_judges(found)
    return list(dict.fromkeys(problems))


def _unproven(found: list[Seat], begun: frozenset[str]) -> Iterator[Problem]:
    for seat in found:
        if seat.trained:
            continue  # no record can know it: its step examines it, see `pair_exam.py`
        if seat.standing in EXEMPT or {seat.judge.revision, seat.examined.revision} & begun:
            continue
        told, proven = _told(seat)
        if not proven:
            yield Problem(seat.where, told, _way_in(seat))


def _needs_no_record(judge: Judge) -> bool:
    """Say whether nothing in a judge needs an exam that is on record: programs, people, and what the round makes."""
    if inner := getattr(judge, "inner", ()):
        return all(map(_needs_no_record, inner))
    return isinstance(judge, Trained) or standing_of(judge) in EXEMPT


def _unexamined(recipe: Recipe) -> Iterator[Problem]:
    for step in (step for stage in recipe.stages for step in stage.steps):
        if isinstance(step, Train) and step.held_back == 0:
            what = "no pair is held back, so nothing proves the judge that it makes"
            hint = "leave it out, or write `unproven_judge: allow` to use it all the same"
            yield Problem(f"{step.step}.held_back", what, hint)


def _told(seat: Seat) -> tuple[str, bool]:
    """Return what is known of a judge's exam, and whether it passed."""
    name = seat.judge.name
    if seat.standing == "baseline":
        return f"{name} is a baseline, and no baseline is ever proven", False
    record = registry.find(seat.examined.revision, seat.roles)
    if record is None:
        return (
            f"{name} has not sat the exam, so nothing says that its labels are worth training on",
            False,
        )
    reason = record.admission.reasons[0] if record.admission.reasons else ""
    return f"{name} was {record.verdict} by the exam: {reason}".rstrip(
        ": "
    ), record.verdict == "admitted"


def _way_in(seat: Seat) -> str:
    allow = "write `unproven_judge: allow` to use it all the same"
    if seat.standing == "baseline" or needs_group(seat.judge):
        return allow
    spec = seat.spec if isinstance(seat.spec, str) else json.dumps(seat.spec)
    speaks = " --recipe RECIPE" if seat.roles else ""
    return f"`redistill judge admit {shlex.quote(spec)}{speaks}` examines it; or {allow}"


def _begun_with(folder: Path) -> frozenset[str]:
    """Return the judges that a run has begun with as admitted: it goes on without the registry."""
    if not (folder / _SNAPSHOT).is_file():
        return frozenset()
    rows = read_rows(folder, "SELECT judge_revision FROM admission WHERE verdict = 'admitted'")
    return frozenset(str(row["judge_revision"]) for row in rows)


def _own_judges(recipe: Recipe, found: list[Seat]) -> Iterator[Problem]:
    students = {name for name, role in recipe.roles.items() if role.policy == STUDENT}
    for number in range(len(recipe.stages)):
        # One that the round makes says what its pairs say, and is no second opinion beside who labelled them.
        mine = [s for s in found if s.labels and s.stage == number and not s.trained]
        if mine and all(_is_student(seat.judge, students) for seat in mine):
            yield Problem(
                mine[0].where,
                "the student is its only judge, and a model prefers its own words",
                "add a judge that is not the student, or write `self_judge: allow`",
            )


def _is_student(judge: Judge, students: set[str]) -> bool:
    """Say whether nobody but the student speaks in a judge.

    A baseline beside it is no second opinion, and neither is a judge that the round makes.
    """
    if inner := getattr(judge, "inner", ()):
        others = (one for one in inner if not isinstance(one, Trained))
        mine = [one for one in others if standing_of(one) != "baseline"]
        return bool(mine) and all(_is_student(one, students) for one in mine)
    spoken = roles_of(judge)
    return bool(spoken) and set(spoken) <= students


def _same_judges(found: list[Seat]) -> Iterator[Problem]:
    labelled = [seat for seat in found if seat.labels and seat.standing != "program"]
    for seat in found:
        if seat.labels or seat.standing == "program":
            continue
        models = set(seat.roles.values())
        same = [
            other
            for other in labelled
            if other.judge.revision == seat.judge.revision or models & set(other.roles.values())
        ]
        if same:
            yield Problem(
                seat.where,
                f"{seat.judge.name} measures what {same[0].judge.name} has trained, and both are one judge",
                "evaluate with another judge, or write `same_judge: allow`",
            )


# -- what the run keeps


def admission_rows(recipe: Recipe) -> Rows:
    """Return the `admission` rows of every judge that is neither program nor person, as the run begins.

    One that a round makes has its row in that round, once it is there.
    """
    rows: dict[str, Row] = {}
    for seat in seats(recipe):
        if seat.standing not in EXEMPT and not seat.trained:
            rows.setdefault(seat.judge.revision, _row(recipe, seat))
    return {"admission": list(rows.values())}


def _row(recipe: Recipe, seat: Seat) -> Row:
    baseline = seat.standing == "baseline"
    record = None if baseline else registry.find(seat.examined.revision, seat.roles)
    whole = record.admission.slices["all"] if record else None
    detail = record.as_dict() if record else {"roles": dict(seat.roles)}
    reason = "; ".join(record.admission.reasons) if record else _told(seat)[0]
    return {
        "id": row_id("admission", run=recipe.key, judge=seat.judge.revision),
        "round": 0,
        "step": "begin",
        "judge": seat.judge.name,
        "judge_revision": seat.judge.revision,
        "exam": record.exam if record else "",
        "exam_hash": record.exam_hash if record else "",
        "verdict": record.verdict if record else "unproven",
        "reason": reason,
        "n": whole.n if whole else 0,
        "accuracy": whole.accuracy if whole else None,
        "ci_low": whole.ci_low if whole else None,
        "ci_high": whole.ci_high if whole else None,
        "swap_consistency": whole.swap_consistent if whole else None,
        "detail": json.dumps(detail),
        "created_at": now(),
    }
