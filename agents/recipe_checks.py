"""What can be wrong with a recipe that only its steps, roles and judges together show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import Problem
from ..policies import catalog
from ..policies.address import is_remote
from ..store.curation import OWN
from ..store.pairing import BY_STEPS
from ..store.views import ANSWERS
from . import plugins
from .operator import Operator
from .operators.curate import Pair, Select, unsettled
from .operators.elicit import Sample
from .operators.feedback import Compare, Score
from .operators.improve import Evaluate, Train
from .roles import REFERENCES, STUDENT, RoleContext
from .stages import answering, labels_of, step_data
from .trained_judges import check_start, check_trained

if TYPE_CHECKING:
    from .recipe import Recipe, Stage

NO_ROUND = Problem("round", "the recipe has no round", "`redistill show quickstart` is one")


def check_stages(recipe: Recipe) -> list[Problem]:
    """Check what needs the whole recipe: roles, judges, SQL, comparable evidence."""
    problems: list[Problem] = []
    if not recipe.stages:
        return [NO_ROUND]
    judges = recipe.judges()
    folded = [name.casefold() for name in judges]
    for name in judges:
        if name.casefold() in {*ANSWERS, *OWN}:
            problems.append(
                Problem("round", f"judge {name!r} has the name of a column of `answers`")
            )
        if folded.count(name.casefold()) > 1:
            problems.append(
                Problem("round", f"judge {name!r}: SQL takes upper and lower case for one")
            )
    evidence = {
        str(step_data(s)) for g in recipe.stages for s in g.steps if isinstance(s, Evaluate)
    }
    if len(evidence) > 1:
        problems.append(
            Problem(
                "stages", "evaluate differs between stages", "held-out values must be comparable"
            )
        )
    for index, stage in enumerate(recipe.stages):
        problems += _check_scores(stage, f"stages[{index}]")
        problems += check_trained(stage.steps, f"stages[{index}]")
        for step in stage.steps:
            problems += _check_step(
                recipe, stage, step, f"stages[{index}].{step.step}", list(judges)
            )
    return problems


def _check_step(
    recipe: Recipe, stage: Stage, step: Operator, where: str, judges: Sequence[str]
) -> list[Problem]:
    problems = []
    for role in step.roles():
        if role not in recipe.roles:
            hint = plugins.did_you_mean(role, recipe.roles, "roles are")
            problems.append(Problem(f"{where}.role", f"unknown role {role!r}", hint))
        elif recipe.roles[role].policy == REFERENCES:
            problems += _check_quoting(step, role, where)
    if isinstance(step, Select):
        problems += step.check_sql(where, judges)
    if isinstance(step, Pair):
        problems += _check_pair(stage, step, where) + _check_gold(recipe, stage, step, where)
    if isinstance(step, Train):
        problems += _check_teachers(recipe, step, where)
        problems += check_start(step, recipe.student, recipe.precision, recipe.trainers(), where)
        if step.given == "critique" and not any(s.makes == "critiques" for s in stage.steps):
            what = "no step criticises, so there is nothing to show"
            problems.append(Problem(f"{where}.given", what, "put a `critique` step before"))
        if step.load_trainer().samples and recipe.execution.processes > 1:
            what = f"{step.trainer_name} samples while it trains, and does so in one process"
            problems.append(Problem("execution.processes", what, "leave it out"))
        source = next((s for s in stage.steps if s.step in step.sources()), None)
        each = step.load_trainer().batch_size
        if each % recipe.execution.processes:
            what = f"{recipe.execution.processes} processes cannot share {each} rows evenly"
            problems.append(Problem(f"{where}.batch_size", what))
        if step.load_trainer().rows in ("pairs", "ranked") and isinstance(source, Select):
            problems.append(
                Problem(where, f"{step.trainer_name} needs pairs", "put a `pair` step before")
            )
    return problems


def _check_quoting(step: Operator, role: str, where: str) -> list[Problem]:
    """Refuse more of a role that quotes the prompt's own answer than that answer."""
    if not isinstance(step, Sample):
        what = f"{role} quotes the prompt's own answer, and can do nothing else"
        return [Problem(f"{where}.role", what, "give it a model, or `sample` with it")]
    if step.k > 1:
        what = f"{role} has one answer to a prompt, its own, and not {step.k}"
        return [Problem(f"{where}.k", what, "say `k: 1`")]
    return []


def _check_teachers(recipe: Recipe, step: Train, where: str) -> list[Problem]:
    """Find a teacher whose distributions cannot be had, or are the student's own."""
    problems = []
    for role in sorted(set(step.teachers().values()) & recipe.roles.keys()):
        bound = recipe.roles[role]
        at = f"{where}.teacher"
        if catalog.is_plugin(bound.policy):
            what = f"{role} is a plugin, whose weights a training job cannot hold"
            problems.append(Problem(at, what, "give the role a catalog name, a hub id or a folder"))
        if is_remote(bound.policy) and not getattr(step.load_trainer(), "stored", False):
            what = f"{role}'s server tells what it thinks of answers that stand only"
            hint = "say `on_policy: 0` and `top_k: 20`, or give the role a model of this machine"
            problems.append(Problem(at, what, hint))
        shown = bound.context != RoleContext()
        if bound.policy == STUDENT and bound.revision in ("current", "champion") and not shown:
            what = f"{role} is the student itself, and sees the same: there is nothing to learn"
            hint = "give the role a context or another model, or use `self_distill`"
            problems.append(Problem(at, what, hint))
    return problems


def check_precision(recipe: Recipe) -> list[Problem]:
    """Find a trainer that cannot train a student that is held as the recipe says."""
    ways = {trainer.weights for trainer in recipe.trainers() if trainer.makes == "student"}
    quantised = recipe.precision == "nf4" or (recipe.precision == "auto" and "qlora" in ways)
    if quantised and "full" in ways:
        what = "a student in four bits is trained by an adapter, and a step trains all weights"
        return [Problem("precision", what, "say `weights: qlora` in each")]
    if "qlora" in ways and not quantised:
        what = f"`weights: qlora` holds the student in nf4, and not in {recipe.precision}"
        return [Problem("precision", what, "leave it out, or say `weights: lora`")]
    return []


_NAMING = (Score, Compare, Train)
"""Steps whose judges are columns of `answers`."""


def _check_scores(stage: Stage, where: str) -> list[Problem]:
    """Refuse one name for two judges: rows and SQL columns are told apart by it."""
    problems = []
    known: dict[str, str] = {}
    for step in stage.steps:
        for name, revision in step.judges().items() if isinstance(step, _NAMING) else ():
            if known.setdefault(name, revision) != revision:
                hint = "give one of them another `name`"
                problems.append(
                    Problem(
                        f"{where}.{step.step}.judge",
                        f"two different judges are named {name!r}",
                        hint,
                    )
                )
    return problems


def _check_pair(stage: Stage, step: Pair, where: str) -> list[Problem]:
    """Find a pair step whose answers no judge has looked at; of rewrites, the originals too."""
    labelling = [other for other in stage.steps if isinstance(other, Score | Compare)]
    looked = [(other, answering(other.sources(), stage.steps)) for other in labelling]
    own = answering(step.sources(), stage.steps)
    wanted = [own]
    if step.rule == "revised_original":
        rewrites = [s for s in stage.steps if s.step in own and "completions" in s.needs]
        wanted += [answering(s.sources(), stage.steps) for s in rewrites]
    if step.rule in BY_STEPS:
        wanted = [answering((name,), stage.steps) for name in step.sources()]
    given = [labels_of(s for s, at in looked if at & of) for of in wanted]
    return unsettled(step, set.intersection(*given), where)


def _check_gold(recipe: Recipe, stage: Stage, step: Pair, where: str) -> list[Problem]:
    """Find a gold answer that is the student's own, and one beside it that is not."""
    if step.rule != "gold_self":
        return []
    problems = []
    for place, name in enumerate(step.sources()):
        made = answering((name,), stage.steps)
        speaking = {role for s in stage.steps if s.step in made for role in s.roles()}
        own = {r for r in speaking & recipe.roles.keys() if recipe.roles[r].policy == STUDENT}
        if place == 0 and own:
            what = f"{name!r} comes first and is the student's own: it would be its own gold"
            hint = "name the gold step first, or use `rule: contrast`"
            problems.append(Problem(f"{where}.of", what, hint))
        if place and speaking - own:
            what = f"{name!r} is not the student's own, and would be rejected"
            problems.append(Problem(f"{where}.of", what, "use `rule: contrast`"))
    return problems
