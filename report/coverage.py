"""Which leaves of the taxonomy the recipes that ship stand for, and whether their steps do what they claim.

A header's `covers` is a claim. Each leaf has a test of a recipe's resolved steps here, so that no claim is believed
whose steps do something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..agents.extending import shipped, shipped_text
from ..agents.plugins import did_you_mean, one_of
from ..agents.recipe import Recipe, load_recipe
from ..agents.roles import REFERENCES, STUDENT, RoleContext
from ..errors import Problem
from .header import Header, header_of
from .taxonomy import leaves

if TYPE_CHECKING:
    from ..agents.operator import Operator
    from ..trainers.trainer import Trainer

_CONTROLS = ("longest", "shortest", "random", "first", "shuffled")
_NO_TEACHER = (*_CONTROLS, "verifier", "agreement", "trained", "win_rate")
"""Judges that are no teacher whose opinion is asked."""
_META = ("topics", "documents")
"""What `propose` may be given that is no prompt."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe that ships and says what it is."""

    name: str
    header: Header
    recipe: Recipe

    def covered(self) -> list[str]:
        """Return the leaves that it claims and whose steps it has, as the taxonomy names them."""
        claimed = [word.casefold() for word in self.header.covers]
        return [
            leaf.name
            for _, leaf in leaves()
            if leaf.name.casefold() in claimed and does(leaf.name, self.recipe)
        ]


@dataclass(frozen=True, slots=True)
class Standing:
    """One leaf of the taxonomy, and who covers it."""

    tree: str
    branch: str
    leaf: str
    about: str
    left_out: str
    """Why nobody will; empty where somebody may."""
    recipes: tuple[str, ...]


@cache
def entries() -> tuple[Entry, ...]:
    """Return the recipes that ship and have a header, by name.

    Raises:
        BadInput: one of them is wrong.
    """
    found = []
    for name in shipped():
        text = shipped_text(name)
        if header := header_of(text, f"{name}.yaml"):
            recipe = load_recipe(text, f"{name}.yaml", base=Path())
            found.append(Entry(name, header, recipe))
    return tuple(found)


def coverage() -> list[Standing]:
    """Return every leaf with the recipes that cover it."""
    covered = {entry.name: entry.covered() for entry in entries()}
    return [
        Standing(
            branch.tree,
            branch.name,
            leaf.name,
            leaf.about,
            leaf.left_out,
            tuple(name for name, found in covered.items() if leaf.name in found),
        )
        for branch, leaf in leaves()
    ]


def counts(standings: list[Standing]) -> tuple[int, int]:
    """Return how many of the leaves that a recipe may stand for have one, and how many there are."""
    open_ = [standing for standing in standings if not standing.left_out]
    return sum(1 for standing in open_ if standing.recipes), len(open_)


def unfounded(name: str, header: Header, recipe: Recipe) -> list[Problem]:
    """Return the claims of a header that are no leaves, or that the recipe's steps do not bear out."""
    known = {leaf.name.casefold(): leaf for _, leaf in leaves()}
    problems = []
    for word in header.covers:
        leaf = known.get(word.casefold())
        if leaf is None:
            hint = did_you_mean(word, [leaf.name for leaf in known.values()], "leaves are")
            problems.append(Problem(f"{name} covers", f"{word!r} is no leaf", hint))
        elif not does(leaf.name, recipe):
            what = f"claims {leaf.name}, and no step does that"
            problems.append(Problem(f"{name} covers", what, leaf.left_out or leaf.about))
    return problems


def does(leaf: str, recipe: Recipe) -> bool:
    """Whether a recipe's steps do what a leaf of the taxonomy stands for."""
    test = TESTS.get(leaf)
    return test is not None and test(_Steps(recipe))


# -- what steps show


class _Steps:
    """A recipe's steps, by what the tests ask of them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rounds = [stage.steps for stage in recipe.stages]
        self.all: list[Any] = [step for steps in self.rounds for step in steps]

    def named(self, operator: str) -> Iterator[Any]:
        """Yield the steps of an operator."""
        return (step for step in self.all if step.name == operator)

    def trains(self, *trainers: str) -> Iterator[tuple[Any, Trainer]]:
        """Yield the train steps of some trainers; of all where none is named."""
        for step in self.named("train"):
            if not trainers or step.trainer_name in trainers:
                yield step, step.load_trainer()

    def judging(self) -> Iterator[tuple[Any, object]]:
        """Yield every judge that scores stored answers or rollouts, as it is named, with its step."""
        for step in self.named("score"):
            yield step, step.judge_spec()
        for step in self.named("train"):
            for reward in step.rewards:
                yield step, reward.judge

    def sources(self, step: Operator) -> Iterator[Any]:
        """Yield the steps of the same round that a step reads."""
        round_ = next(steps for steps in self.rounds if any(other is step for other in steps))
        return (other for other in round_ if other.step in step.sources())

    def policy(self, role: str) -> str:
        """Return the policy of a role."""
        return self.recipe.roles[role].policy

    def plain(self, role: str) -> bool:
        """Whether a role is the student as it is, or no speaker at all."""
        bound = self.recipe.roles[role]
        if bound.policy == REFERENCES:
            return True
        return bound.policy == STUDENT and bound.context == RoleContext()


def _kinds(spec: object) -> set[str]:
    """Return the names of a judge and of those in its settings."""
    name, settings = one_of(spec, "judge")
    inner = [settings.get("judge"), *(settings.get("judges") or ())]
    return {name}.union(*(_kinds(one) for one in inner if one))


def _speaks(spec: object) -> set[str]:
    """Return the roles through which a judge, or one of its settings, speaks."""
    _, settings = one_of(spec, "judge")
    inner = [settings.get("judge"), *(settings.get("judges") or ())]
    own = {str(settings["role"])} if settings.get("role") else set()
    return own.union(*(_speaks(one) for one in inner if one))


def speakers(step: Any) -> set[str]:
    """Return the roles through which the judges of a step speak."""
    specs = [reward.judge for reward in getattr(step, "rewards", ())]
    if hasattr(step, "judge_spec"):
        specs.append(step.judge_spec())
    return set().union(*map(_speaks, specs))


def _labels(steps: _Steps) -> bool:
    """A role that is more than the plain student answers."""
    return any(not steps.plain(step.role) for step in steps.named("sample"))


def _expands(steps: _Steps) -> bool:
    return any(step.given not in _META for step in steps.named("propose"))


def _curates(steps: _Steps) -> bool:
    return any(step.given in _META for step in steps.named("propose"))


def _reads_teacher(steps: _Steps) -> bool:
    return any(trainer.asks == "teacher" for _, trainer in steps.trains())


def _on_student_text(steps: _Steps) -> bool:
    """A teacher's distributions over what the student itself samples."""
    taught = (trainer for _, trainer in steps.trains() if trainer.asks == "teacher")
    return any(getattr(trainer, "on_policy", 0) > 0 for trainer in taught)


def _ranks(steps: _Steps) -> bool:
    compares = any(True for _ in steps.named("compare"))
    return compares or any("win_rate" in _kinds(spec) for _, spec in steps.judging())


def _scores(steps: _Steps) -> bool:
    return any(not _kinds(spec) & {*_NO_TEACHER} for _, spec in steps.judging())


def _has(operator: str) -> Callable[[_Steps], bool]:
    return lambda steps: any(True for _ in steps.named(operator))


def _works_on_failures(steps: _Steps) -> bool:
    """What a `select` step has found is rewritten, or varied into new prompts."""
    rewritten = any(s.name == "select" for r in steps.named("rewrite") for s in steps.sources(r))
    return rewritten or any("fail" in str(step.given) for step in steps.named("propose"))


def _filters(steps: _Steps) -> bool:
    """Some answers are kept for what they are, or some proposals; the others are dropped."""
    kept = any(step.where != "true" for step in steps.named("select"))
    right = any(step.rule == "correct_incorrect" for step in steps.named("pair"))
    return kept or right or any(True for _ in steps.named("propose"))


def _votes(steps: _Steps) -> bool:
    return any("agreement" in _kinds(spec) for _, spec in steps.judging())


def _judges_itself(steps: _Steps) -> bool:
    """Who asks or answers also judges, and pairs, weights or rewards are made of what it says."""
    speakers = {STUDENT, *(s.role for s in steps.all if s.name in ("sample", "propose"))}
    return any(_speaks(spec) & speakers for _, spec in steps.judging())


def _pairs_by(rule: str) -> Callable[[_Steps], bool]:
    return lambda steps: any(step.rule == rule for step in steps.named("pair"))


def _plays_itself(steps: _Steps) -> bool:
    """The reference of a prompt is preferred to what the student says."""
    gold = {s.step for s in steps.named("sample") if steps.policy(s.role) == REFERENCES}
    return any(p.rule == "gold_self" and gold & {*p.sources()} for p in steps.named("pair"))


def _diverges(fits: Callable[[float], bool]) -> Callable[[_Steps], bool]:
    def test(steps: _Steps) -> bool:
        found = [trainer for _, trainer in steps.trains("distill", "self_distill")]
        return any(
            fits(float(getattr(trainer, "beta", -1))) and not getattr(trainer, "across", False)
            for trainer in found
        )

    return test


def _by_reward_model(steps: _Steps) -> bool:
    """A `train` step makes a reward model, and rollouts earn what it gives."""
    made = any(True for _ in steps.trains("reward"))
    return made and any("trained" in _kinds(r.judge) for s, _ in steps.trains() for r in s.rewards)


def _directly(steps: _Steps) -> bool:
    """Rollouts earn what a judge says that no step has trained."""
    rewards = (reward.judge for step, _ in steps.trains() for reward in step.rewards)
    return any(not _kinds(judge) & {"trained", "reward_model", *_CONTROLS} for judge in rewards)


def _trains(*trainers: str) -> Callable[[_Steps], bool]:
    return lambda steps: any(True for _ in steps.trains(*trainers))


TESTS: Mapping[str, Callable[[_Steps], bool]] = {
    "Labeling": _labels,
    "Expansion": _expands,
    "Curation": _curates,
    "logits": _reads_teacher,
    "rank": _ranks,
    "score": _scores,
    "critique": _has("critique"),
    "rewrite": _has("rewrite"),
    "hard examples": _works_on_failures,
    "distribution": _on_student_text,
    "filter": _filters,
    "vote": _votes,
    "reward": _judges_itself,
    "contrast": _pairs_by("contrast"),
    "self-play": _plays_itself,
    "SFT": _trains("sft"),
    "forward KL": _diverges(lambda beta: beta == 0),
    "reverse KL": _diverges(lambda beta: beta == 1),
    "JSD": _diverges(lambda beta: 0 < beta < 1),
    "reward model": _by_reward_model,
    "direct": _directly,
    "DPO": _trains("dpo"),
    "RRHF": _trains("rrhf"),
    "PRO": _trains("pro"),
}
"""Leaf -> whether steps do it; a leaf that is left out has none."""
