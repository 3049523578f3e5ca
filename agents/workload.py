"""How much work a step is: what it makes, which calls it takes, and how many tokens go where.

Arithmetic over a recipe and its prompts: no model is loaded and no call is paid. Answers count at their
longest, so a bill is "at most"; a token is taken for 3.5 characters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..policies.address import is_remote
from ..store.pairing import BY_STEPS
from ..trainers.sampling import Sampler
from ..types import Message, Prompt
from .attacks import attacks
from .judge import Judge, roles_of, standing_of
from .operator import ROUND, Operator
from .operators.curate import Pair, Select
from .operators.elicit import Rewrite, Sample
from .operators.feedback import Compare, Critique, Judging
from .operators.improve import Evaluate, Train
from .operators.propose import Propose
from .proposing import read_documents
from .recipe import Recipe
from .right_answer import right_answer
from .roles import REFERENCES, STUDENT

_CHARACTERS_A_TOKEN = 3.5
_TEMPLATE = 25
"""Tokens that a chat template puts around a conversation."""
_REQUEST = 100
"""Tokens of a request for a prompt besides what is shown."""
RUBRIC = 300
"""Tokens that a judge reads besides the question and the answers."""
_TRAINING_PASSES = 3
"""A backward pass costs about twice a forward pass."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What one role is asked in a step."""

    calls: int
    tokens_in: int
    tokens_out: int
    """At most."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step takes."""

    rows: str
    """What is made, in words."""
    calls: int = 0
    """Completions or judgements asked for."""
    tokens: int = 0
    """Most tokens through the models of this machine, prompts included."""
    remote: Mapping[str, Speech] = field(default_factory=dict)
    """What leaves this machine, by role."""
    made: int = 0
    """Completions."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Prompts that a step may ask."""

    count: int
    tokens: int
    """Of all of them."""


class Workload:
    """Estimates the steps of one stage, in their order.

    Args:
        recipe: what will run.
        train: the prompts of one round.
        heldout: those of its evaluation.
    """

    def __init__(self, recipe: Recipe, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
        self._recipe, self._train, self._heldout = recipe, train, heldout
        self._made: dict[str, int] = {}
        self._pools = {ROUND: Pool(len(train), asked(train))}
        self._roots: dict[str, frozenset[str]] = {}
        self._pairs: dict[str, int] = {}
        self._listed: dict[str, tuple[int, int]] = {}
        """Of each pair step, the answers that a prompt's list has, and how many lists there are."""
        self._longest = 1
        self._asked: set[str] = set()

    def of(self, step: Operator) -> Work:
        """Return what a step takes."""
        work = self._work(step)
        if work.made:
            self._made[step.step] = work.made
            self._longest = max(self._longest, int(getattr(step, "max_tokens", 1)))
        self._roots[step.step] = self._roots_of(step)
        if isinstance(step, Propose):
            self._pools[step.step] = Pool(work.calls, work.calls * (step.max_tokens + _TEMPLATE))
            self._roots[step.step] = frozenset([step.step])
        return work

    def _roots_of(self, step: Operator) -> frozenset[str]:
        """Return where the prompts of a step's rows come from: the round, and steps that propose some."""
        named = [self._roots.get(name, frozenset([ROUND])) for name in step.named()]
        return frozenset[str]().union(*named) or frozenset([ROUND])

    def _pool(self, step: Operator) -> Pool:
        """Return the prompts of what a step reads, at most."""
        pools = [self._pools[root] for root in self._roots_of(step)]
        return Pool(sum(p.count for p in pools), sum(p.tokens for p in pools))

    def _work(self, step: Operator) -> Work:
        if isinstance(step, Sample):
            return self._sample(step)
        if isinstance(step, Propose):
            return self._propose(step)
        if isinstance(step, Rewrite):
            return self._rewrite(step)
        if isinstance(step, Train):
            return self._train_work(step)
        if isinstance(step, Evaluate):
            return measured(self._recipe, self._heldout)
        if isinstance(step, Judging):
            return self._judged(step)
        if isinstance(step, Pair):
            self._pairs[step.step] = self._paired(step)
            return Work(f"at most {self._pairs[step.step]} pairs")
        if isinstance(step, Select):
            return Work(f"at most {self._kept(step)} answers kept", made=self._kept(step))
        return Work("rows of the store")

    def _paired(self, step: Pair) -> int:
        """Return how many pairs a step makes at most, were no two answers to a prompt the same."""
        prompts = max(1, len(self._train))
        each = [math.ceil(self._made.get(name, 0) / prompts) for name in step.sources()]
        every = math.comb(sum(each), 2)
        by_rule = {
            "correct_incorrect": every,
            "revised_original": sum(each),
            # What is left are the pairs across steps.
            **dict.fromkeys(BY_STEPS, every - sum(math.comb(n, 2) for n in each)),
        }
        most = by_rule.get(step.rule, 1)
        self._listed[step.step] = max(1, sum(each)), prompts * (1 + step.replay)
        found = prompts * min(most, step.per_prompt or most) * (1 + step.replay)
        return min(found, step.limit or found)

    def _kept(self, step: Select) -> int:
        """Return how many answers a select step keeps at most."""
        answers = self._answers(step)
        each = len(self._train) * step.per_prompt if step.per_prompt else answers
        found = min(answers, each) * (1 + step.replay)
        return min(found, step.limit or found)

    def _propose(self, step: Propose) -> Work:
        calls = step.calls(self._parents(step))
        told = calls * request_tokens(step, self._mean_asked(), self._longest)
        tokens, remote = placed(
            self._recipe, step.role, Speech(calls, told, calls * step.max_tokens)
        )
        return Work(f"at most {calls} prompts", calls, tokens, remote)

    def _parents(self, step: Propose) -> int:
        """Return the prompts or failed answers that are varied, at most."""
        if step.given == "failures":
            return max([len(self._train), *self._made.values()])
        return self._pool(step).count

    def _sample(self, step: Sample) -> Work:
        if self._recipe.roles[step.role].policy == REFERENCES:
            quoted = sum(1 for prompt in self._train if right_answer(prompt))
            return Work(f"{quoted} prompts' own answers, of no model", made=quoted)
        prompts = self._pool(step)
        calls = prompts.count * step.k
        speech = Speech(calls, prompts.tokens * step.k, calls * step.max_tokens)
        tokens, remote = placed(self._recipe, step.role, speech)
        return Work(f"{calls} completions", calls, tokens, remote, calls)

    def _rewrite(self, step: Rewrite) -> Work:
        calls = self._answers(step)
        if not step.roles():
            return Work(f"at most {calls} edits", made=calls)
        told = 2 * self._longest  # the earlier answer, and what is to be better
        speech = Speech(calls, calls * (self._mean_asked() + told), calls * step.max_tokens)
        tokens, remote = placed(self._recipe, step.role, speech)
        return Work(f"at most {calls} rewrites", calls, tokens, remote, calls)

    def _judged(self, step: Judging) -> Work:
        calls, shown, noun = self._answers(step), 1, "judgements"
        if isinstance(step, Compare):
            calls, shown, noun = self._comparisons(step), step.size, "comparisons"
        elif isinstance(step, Critique):
            noun = "critiques"
        each = self._mean_asked() + shown * self._longest
        judge = step.load_judge()
        verdicts = calls if isinstance(step, Critique) else calls + self._watched(judge)
        tokens, remote = judged(self._recipe, judge, verdicts, each)
        return Work(f"{calls} {noun}", calls, tokens, remote)

    def _watched(self, judge: Judge) -> int:
        """Return the verdicts that show whether a judge is what it was: anchors and attacks, once a round."""
        anchors = self._recipe.execution.anchors
        if not anchors or standing_of(judge) != "model" or judge.revision in self._asked:
            return 0
        self._asked.add(judge.revision)
        return 2 * (anchors + len(attacks()))

    def _comparisons(self, step: Compare) -> int:
        prompts = self._pool(step).count
        each = self._answers(step) // max(1, prompts)
        sets = math.comb(each, min(step.size, each)) if each > 1 else 0
        sets = min(sets, step.per_prompt or sets)
        return prompts * sets * (2 if step.both_orders else 1)

    def _train_work(self, step: Train) -> Work:
        trainer = step.load_trainer()
        if isinstance(trainer, Sampler):
            return self._sampled_work(step, trainer)
        prompts = self._pool(step).count
        source = next(iter(step.sources()), "")
        many, most = 1, max(prompts, *self._made.values(), 1)
        if trainer.rows == "pairs":
            many, most = 2, self._pairs.get(source, prompts)
        elif trainer.rows == "ranked":
            many, most = self._listed.get(source, (1, prompts))
        steps = trainer.plan(most)
        each = self._mean_asked() + self._recipe.evaluate.max_tokens
        seen = steps * trainer.batch_size * many
        rows = f"at most {steps} steps of {trainer.batch_size} rows"
        return Work(rows, 0, seen * each * _TRAINING_PASSES)

    def _sampled_work(self, step: Train, trainer: Sampler) -> Work:
        steps = trainer.plan(self._pool(step).count)
        calls = steps * trainer.batch_size
        each = self._mean_asked() + trainer.max_tokens
        tokens, remote = calls * each * (1 + _TRAINING_PASSES), dict[str, Speech]()
        for judge, _ in step.reward_judges():
            more, elsewhere = judged(self._recipe, judge, calls, each)
            tokens, remote = tokens + more, remote | elsewhere
        if getattr(trainer, "stored", False):
            answers = max(len(self._train), *self._made.values(), 1)
            for role in step.teachers().values():
                read = Speech(answers, answers * each, answers)
                remote |= placed(self._recipe, role, read)[1]
        rows = f"at most {steps} steps of {trainer.batch_size} rollouts"
        return Work(rows, calls, tokens, remote)

    def _answers(self, step: Operator) -> int:
        return sum(self._made.get(name, 0) for name in step.sources())

    def _mean_asked(self) -> int:
        return asked(self._train) // max(1, len(self._train))


def request_tokens(step: Propose, each: int, said: int) -> int:
    """Return about how many tokens a propose step asks its role with in one call.

    Args:
        step: what it is given.
        each: tokens of a prompt.
        said: tokens of the longest answer before it.
    """
    if step.given == "documents":
        texts = [document.text for document in read_documents(step.documents, "documents")]
        return _REQUEST + int(max(map(len, texts)) / _CHARACTERS_A_TOKEN)
    shown = {"demos": step.show * each, "prompts": each, "failures": each + said}
    return _REQUEST + shown.get(step.given, 0)


def longest_proposal(step: Propose) -> Prompt:
    """Return a prompt that is as long as any that a propose step may make."""
    text = "x" * int(step.max_tokens * _CHARACTERS_A_TOKEN)
    return Prompt(step.step, (Message("user", text),), "train")


def asked(prompts: Sequence[Prompt]) -> int:
    """Return about how many tokens prompts have, in their chat template."""
    characters = sum(len(m.content) for p in prompts for m in p.messages)
    return int(characters / _CHARACTERS_A_TOKEN) + _TEMPLATE * len(prompts)


def longest_asked(prompt: Prompt) -> int:
    """Return about how many tokens one prompt has, in its chat template."""
    return asked((prompt,))


def measured(recipe: Recipe, prompts: Sequence[Prompt]) -> Work:
    """Return what it takes to answer prompts and judge the answers, as `evaluate` does."""
    step, calls = recipe.evaluate, len(prompts)
    tokens = asked(prompts) + calls * step.max_tokens
    each = asked(prompts) // max(1, calls) + step.max_tokens
    more, remote = judged(recipe, step.load_judge(), calls, each)
    return Work(f"{calls} answers, judged", calls, tokens + more, remote)


def judged(recipe: Recipe, judge: Judge, verdicts: int, each: int) -> tuple[int, dict[str, Speech]]:
    """Return the tokens of this machine and the calls elsewhere of some verdicts of a judge.

    Args:
        recipe: binds the judge's roles.
        judge: a program takes neither.
        verdicts: how many are asked for.
        each: tokens of the material of one.
    """
    roles = roles_of(judge)
    times = int(getattr(judge, "calls", lambda: 1)())
    tokens, remote = 0, dict[str, Speech]()
    for role in roles:
        calls = verdicts * times // len(roles)
        speech = Speech(calls, calls * (each + RUBRIC), calls * longest_reply(judge))
        more, elsewhere = placed(recipe, role, speech)
        tokens, remote = tokens + more, remote | elsewhere
    return tokens, remote


def placed(recipe: Recipe, role: str, speech: Speech) -> tuple[int, dict[str, Speech]]:
    """Return the tokens that a role's speech is here, and what of it is elsewhere."""
    bound = recipe.roles.get(role)
    if role != STUDENT and bound is not None and is_remote(bound.policy):
        return 0, {role: speech}
    return speech.tokens_in + speech.tokens_out, {}


def longest_reply(judge: Judge) -> int:
    """Return the most tokens that a judge writes for a verdict; one where it only weighs labels."""
    inner: Sequence[Judge] = getattr(judge, "inner", ())
    return max([int(getattr(judge, "max_tokens", 1)), *map(longest_reply, inner)])
