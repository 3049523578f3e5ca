"""What only the steps of a round together tell of the judges that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..errors import Problem
from ..policies import catalog
from ..trainers.trainer import Trainer
from . import plugins
from .judge import Judge
from .judges.trained import Trained, trained_in
from .operator import Operator
from .operators.feedback import Judging
from .operators.improve import Evaluate, Train


def trained_of(step: Operator) -> Iterator[Trained]:
    """Yield the judges that a step asks, and a step of its round makes."""
    for judge in judges_asked(step):
        yield from trained_in(judge)


def made_anew(steps: Iterable[Operator]) -> set[str]:
    """Return the names of judges that have another revision in each round: those made there, and those around them."""
    found: set[str] = set()
    for step in steps:
        found |= {judge.name for judge in judges_asked(step) if any(trained_in(judge))}
        found |= {step.step} if step.made() == "judge" else set()
    return found


def judges_asked(step: Operator) -> list[Judge]:
    """Return the judges that a step asks; none of them is bound to a speaker."""
    if isinstance(step, Train):
        return [judge for judge, _ in step.reward_judges()]
    return [step.load_judge()] if isinstance(step, Judging) else []


def check_trained(steps: Sequence[Operator], where: str) -> list[Problem]:
    """Find steps that ask for a judge which no earlier step makes, and evaluations by one.

    Args:
        steps: of a round, in their order.
        where: the stage, for messages.
    """
    problems: list[Problem] = []
    makers: list[str] = []
    for step in steps:
        at = f"{where}.{step.step}.judge"
        for judge in trained_of(step):
            if isinstance(step, Evaluate):
                what = f"{judge.step} makes another judge in each round, and rounds are compared"
                problems.append(Problem(at, what, "evaluate with a judge that stays"))
            elif judge.step not in makers:
                hint = plugins.did_you_mean(judge.step, makers, "steps that do:")
                what = f"no earlier step {judge.step!r} makes a judge"
                problems.append(Problem(at, what, hint))
        makers += [step.step] if step.made() == "judge" else []
    return problems


def check_start(
    step: Train, student: str, precision: str, trainers: Sequence[Trainer], where: str
) -> list[Problem]:
    """Find a judge that cannot be made of the weights from which its training begins.

    Args:
        step: a train step.
        student: as the recipe names it.
        precision: in which the recipe asks for the student to be held.
        trainers: all of the recipe.
        where: the step's place, for messages.
    """
    if step.made() != "judge":
        return []
    ways = {trainer.weights for trainer in trainers if trainer.makes == "student"}
    if catalog.is_plugin(student):
        what = f"a judge is made of the student's folder, and {student} is a plugin"
        return [Problem(f"{where}.trainer", what)]
    if precision == "nf4" or (precision == "auto" and "qlora" in ways):
        what = "a judge trains all its weights, and the student is held in four bits"
        return [Problem(f"{where}.trainer", what, "take a student that is not")]
    if step.from_ == "champion" and ways - {"full"}:
        what = "a judge trains all its weights, and a champion may be an adapter"
        return [Problem(f"{where}.from", what, "say `from: initial`")]
    return []
