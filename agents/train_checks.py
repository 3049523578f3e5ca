"""What can be wrong with the settings of a `train` step, found without loading a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadInput, Problem
from ..trainers.distill import SelfDistill
from ..trainers.trainer import Trainer
from .judge import column_name, scorer
from .people import is_person

if TYPE_CHECKING:
    from .operators.improve import Train


def unfit(step: Train, trainer: Trainer, where: str) -> list[Problem]:
    """Return what a step's trainer lacks, and what it has no use for.

    Args:
        step: with the settings that are its own.
        trainer: its trainer.
        where: the step's place, for messages.
    """
    found = (_misjudged, _mistaught, _idle, _misnamed)
    return [problem for find in found for problem in find(step, trainer, where)]


def _misjudged(step: Train, trainer: Trainer, where: str) -> list[Problem]:
    """Find judges that a trainer has no use for or lacks, and what is wrong with them."""
    if trainer.asks != "judge":
        what = f"{trainer.name} asks no judge while it trains"
        return [Problem(f"{where}.judge", what, "leave it out")] if step.rewards else []
    if not step.rewards:
        what = f"{trainer.name} samples while it trains, and nobody judges that"
        return [Problem(f"{where}.judge", what, "say `judge: verifier`, or another")]
    problems: list[Problem] = []
    names: set[str] = set()
    for spec in step.rewards:
        try:
            judge = scorer(spec.judge, f"{where}.judge")
        except BadInput as error:
            problems += error.problems
            continue
        if is_person(judge):
            what = f"{trainer.name} cannot wait for people"
            problems.append(Problem(f"{where}.judge", what, "people judge in `score`"))
        if judge.name in names:
            what = f"two judges are named {judge.name!r}"
            problems.append(Problem(f"{where}.rewards", what, "give one another `name`"))
        names.add(judge.name)
    return problems


def _idle(step: Train, trainer: Trainer, where: str) -> list[Problem]:
    """Find settings that a trainer that samples, or makes a judge, or makes none, has no use for."""
    told = {
        "keep_context": step.keep_context,
        "reference": step.reference != "start",
        "held_back": step.held_back is not None,
    }
    idle: dict[str, str] = {}
    if trainer.makes == "judge":
        plain = "it learns whole conversations"
        idle |= {"keep_context": plain, "reference": "it has none"}
    else:
        idle["held_back"] = "only a judge is examined"
    if trainer.samples:
        idle["keep_context"] = "it samples on plain prompts"
        idle |= {} if trainer.anchored else {"reference": "`beta` is 0"}
    return [
        Problem(f"{where}.{key}", f"says nothing to {trainer.name}: {why}", "leave it out")
        for key, why in idle.items()
        if told[key]
    ]


def _misnamed(step: Train, trainer: Trainer, where: str) -> list[Problem]:
    """Find a step whose judge could have no column of the step's name, or learns from no pairs."""
    if trainer.makes != "judge":
        return []
    if trainer.rows != "pairs":
        what = f"{trainer.name} makes a judge of {trainer.rows}, and a round makes one of pairs"
        return [Problem(f"{where}.trainer", what, "use `reward`")]
    try:
        column_name(step.step)
    except ValueError as error:
        return [Problem(f"{where}.as", str(error))]
    return []


def _mistaught(step: Train, trainer: Trainer, where: str) -> list[Problem]:
    """Find a teacher that a trainer has no use for, or lacks."""
    own = isinstance(trainer, SelfDistill)
    control = isinstance(trainer, SelfDistill) and trainer.negative
    wants = {"teacher": trainer.asks == "teacher" and not own, "given": own and not control}
    hints = {
        "teacher": "name a role: `teacher: helper`",
        "given": "say what it sees: `given: critique`, answer or reference",
    }
    problems = []
    for key, wanted in wants.items():
        if wanted and not getattr(step, key):
            problems.append(Problem(f"{where}.{key}", f"{trainer.name} needs it", hints[key]))
        if getattr(step, key) and not wanted:
            what = f"{trainer.name} has no use for it"
            problems.append(Problem(f"{where}.{key}", what, "leave it out"))
    return problems
