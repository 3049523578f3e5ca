"""Who takes how much memory, before anything loads: the sampler, the models of roles and judges, and the trainer.

Sampler and trainer take turns on one card, so each has to fit alone; on two they stay side by side. Models of roles
take turns with the student. A reward model lies beside whoever speaks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import psutil

from ..errors import EnvironmentProblem
from ..policies import catalog
from ..policies.disk import readable
from ..policies.placement import Placement, as_torch_counts, place, visible_cards
from ..policies.policy import CPU_CACHE_GIB, LOGIT_BYTES, ROWS_TOGETHER
from ..trainers.distill import SelfDistill
from ..trainers.estimate import PROCESS, Estimate, Shape, first_that_fits, ways
from ..trainers.sampling import Sampler
from ..types import Prompt
from .engines import stays_up
from .judge import Judge, roles_of
from .judges.reward import RewardModel
from .judges.trained import trained_in
from .operator import Operator
from .operators.curate import Pair
from .operators.elicit import Rewrite, Sample
from .operators.feedback import Compare, Judging
from .operators.improve import Evaluate, Train
from .operators.propose import Propose
from .recipe import Recipe
from .roles import STUDENT
from .trained_judges import judges_asked
from .workload import RUBRIC, longest_asked, longest_proposal, longest_reply, request_tokens

_DRAWN = 20
"""Bytes of an entry of the vocabulary while a token is drawn: logits, probabilities, and their sum in float64."""
_READ_TOKENS = 8192
"""Most tokens of one batch of a reward model."""
_FIXED = ("weights", "gradients", "moments", "held models")
"""Parts that no smaller batch makes smaller."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model works on at once."""

    rows: int
    tokens: int
    """Of the longest row, prompt and answer."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A model that is loaded to speak or to judge."""

    name: str
    """`sampler`, `role NAME` or `judge NAME`."""
    model: str
    batch: Batch
    parts: Mapping[str, int]
    """Bytes by part; empty where the model's size is not known."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Who takes how much, and of which card."""

    tenants: tuple[Tenant, ...]
    """The sampler first."""
    training: Estimate | None
    """The largest training job, as it would be trained here; None where nothing is trained."""
    placement: Placement
    processes: int
    stays: bool
    """Whether the sampler keeps its memory although it shares it with the trainer; a vLLM engine may."""

    @property
    def sampler_free(self) -> int:
        """Bytes that are free where the sampler is."""
        cards = self.placement.sampler
        return cards[0].free if cards else free_memory()

    @property
    def trainer_free(self) -> int:
        """Bytes that are free where the trainer is."""
        cards = self.placement.trainer
        return min(card.free for card in cards) if cards else free_memory()

    def told(self) -> list[tuple[str, str]]:
        """Say who takes how much, and how sampler and trainer hand over: pairs of a name and what is said of it."""
        free = readable(self.sampler_free)
        beside = "the engine stays up beside the trainer, in the same memory, and takes new weights in place"
        speaking = [(tenant.name, _told(tenant, free)) for tenant in self.tenants]
        return [*speaking, ("hand-over", beside if self.stays else self.placement.told())]

    def lines(self) -> list[str]:
        """Say it a line each, with the trainer."""
        *speaking, handover = self.told()
        found = [f"memory: {name} {text}" for name, text in speaking]
        if self.training:
            size = (
                f"about {readable(self.training.total)}"
                if self.tenants[0].parts
                else "an unknown size"
            )
            found.append(f"memory: trainer {size} of {readable(self.trainer_free)} free")
        return [*found, ": ".join(handover)]

    def problems(self) -> list[str]:
        """Return a line for each who does not fit into what is free."""
        beside = sum(t.total for t in self.tenants if t.name.startswith("judge "))
        found = []
        for tenant in self.tenants:
            judge = tenant.name.startswith("judge ")
            needed = tenant.total + (0 if judge else beside)
            if tenant.parts and not judge and needed > self.sampler_free:
                found.append(
                    f"memory: the {tenant.name} ({tenant.model}) needs about {readable(needed)}"
                    f"{' with its judges' if beside else ''}, {readable(self.sampler_free)} are free; "
                    "make chunk or max_tokens smaller, or say `precision: bfloat16` or `nf4`"
                )
        job = self.training
        needed = (job.total if job else 0) + (self.tenants[0].total if self.stays else 0)
        if job and self.tenants[0].parts and needed > self.trainer_free:
            stays = ", with the engine that stays up beside it" if self.stays else ""
            found.append(
                f"memory: training needs about {readable(needed)}{stays}, {readable(self.trainer_free)} "
                "are free; make micro_batch or max_tokens smaller, say `weights: auto`, or take a smaller student"
            )
        return found

    def refuse(self) -> None:
        """Refuse what no machine of this size can hold, whatever else runs on it.

        Raises:
            EnvironmentProblem: the weights of a model, or what a job holds of them, exceed all memory there is.
        """
        cards = (*self.placement.sampler, *self.placement.trainer)
        there = max((c.total for c in cards), default=int(psutil.virtual_memory().total))
        fixed = [(f"the {t.name} ({t.model})", t.parts.get("weights", 0)) for t in self.tenants]
        if self.training:
            held = sum(size for part, size in self.training.parts.items() if part in _FIXED)
            fixed.append(("training", held))
        for who, size in fixed:
            if size > there:
                raise EnvironmentProblem(
                    f"memory: the weights of {who} take {readable(size)}, and there are {readable(there)} in "
                    "all; take a smaller model, or say `precision: nf4` and `weights: auto`"
                )

    def settled(self, student: str, say: Callable[[str], None]) -> Placement:
        """Say who will take how much, and return who gets which card.

        Torch is loaded where several cards are to be shared out, because it has a numbering of its own.

        Raises:
            EnvironmentProblem: a model is larger than all memory there is.
        """
        self.refuse()
        for line in self.lines():
            say(line)
        for problem in self.problems():
            say(f"does not fit: {problem}")
        if not self.placement.side_by_side or catalog.is_plugin(student):
            return self.placement  # an engine in a process of its own is given its cards by name
        job = self.training.total if self.training else 0
        cards = as_torch_counts(visible_cards())
        return place(cards, processes=self.processes, trainer_bytes=job)


def memory_plan(
    recipe: Recipe, prompts: Sequence[Prompt], shapes: Mapping[str, Shape]
) -> MemoryPlan:
    """Estimate who takes how much memory of a run; loads nothing.

    Args:
        recipe: what will run.
        prompts: all prompts of the recipe.
        shapes: the size of each model that is loaded here, by the policy that names it.
    """
    cards, processes = visible_cards(), recipe.execution.processes
    train = [prompt for prompt in prompts if prompt.split == "train"]
    free = cards[0].free if cards else free_memory()
    job = largest_job(recipe, train, shapes, free)
    placement = place(cards, processes=processes, trainer_bytes=job.total if job else 0)
    if placement.side_by_side:
        job = largest_job(recipe, train, shapes, placement.trainer[0].free)
    tenants = tuple(_tenants(recipe, prompts, shapes, on_card=bool(cards)))
    execution = recipe.execution
    stays = execution.sampler == "vllm" and stays_up(execution.vllm, placement)
    return MemoryPlan(
        tenants, job, placement, processes, stays=stays and not placement.side_by_side
    )


# -- who speaks and judges


def _tenants(
    recipe: Recipe, prompts: Sequence[Prompt], shapes: Mapping[str, Shape], *, on_card: bool
) -> Iterator[Tenant]:
    """Yield the student, the models of roles, and the reward models of judges."""
    batches = _batches(recipe, prompts)
    roles: dict[str, list[str]] = {}
    for name, role in recipe.roles.items():
        roles.setdefault(role.policy, []).append(name)
    for policy in (STUDENT, *sorted(roles.keys() & shapes.keys())):
        spec = recipe.student if policy == STUDENT else policy
        name = "sampler" if policy == STUDENT else f"role {' and '.join(roles[policy])}"
        batch = batches.get(policy, Batch(1, 1))
        yield Tenant(name, spec, *_speaking(recipe, shapes[spec], batch, on_card=on_card))
    steps = [step for stage in recipe.stages for step in stage.steps]
    for name, model, shape in _judges(recipe, steps, shapes):
        yield _reward_tenant(recipe, (name, model), prompts, shape)


def _speaking(
    recipe: Recipe, shape: Shape, batch: Batch, *, on_card: bool
) -> tuple[Batch, dict[str, int]]:
    """Return what a policy works on at once, and the bytes that it takes by part."""
    wanted = min(batch.rows, recipe.chunk)
    batches = math.ceil(wanted / ROWS_TOGETHER)
    together = 1 if on_card else min(batches, recipe.execution.threads or os.cpu_count() or 1)
    rows = min(wanted, together * ROWS_TOGETHER)
    if not shape.parameters:
        return Batch(rows, batch.tokens), {}
    # A cache grows by one layer at a time, which is there twice while it is copied; vLLM's is there from the start.
    cache = rows * batch.tokens * shape.cached * (1 + 1 / max(1, shape.layers))
    if recipe.execution.sampler == "vllm" and not (on_card and not recipe.execution.vllm.cache_gib):
        cache = (recipe.execution.vllm.cache_gib or CPU_CACHE_GIB) * 2**30
    each = 4 if shape.precision == "float32" else 2
    block = rows * batch.tokens * (4 * shape.width + 2 * shape.inner) * each
    scored = min(2 * LOGIT_BYTES, 2 * 4 * rows * batch.tokens * shape.vocabulary) * together
    parts = {
        "weights": shape.held,
        "KV cache": int(cache),
        "logits": max(rows * shape.vocabulary * _DRAWN, scored),
        "activations": block,
        "process": PROCESS,
    }
    return Batch(rows, batch.tokens), parts


def longest_rows(recipe: Recipe, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Return the tokens of the longest row that each policy of this machine is asked for, prompt and answer."""
    return {policy: batch.tokens for policy, batch in _batches(recipe, prompts).items()}


def _batches(recipe: Recipe, prompts: Sequence[Prompt]) -> dict[str, Batch]:
    """Return the largest batch that each policy of this machine is asked for."""
    found: dict[str, Batch] = {}
    for stage in recipe.stages:
        said = 1
        every = [*prompts, *_proposals(stage.steps)]
        for step in stage.steps:
            for role, batch in _asked(step, recipe, every, said):
                policy = recipe.roles[role].policy if role in recipe.roles else STUDENT
                found[policy] = max(found.get(policy, batch), batch, key=_size)
            if step.makes == "completions":
                said = max(said, int(getattr(step, "max_tokens", 1)))
    return found


def _asked(
    step: Operator, recipe: Recipe, prompts: Sequence[Prompt], said: int
) -> Iterator[tuple[str, Batch]]:
    """Yield whom a step asks, and for how much at once; `said` are the tokens of the longest answer before it."""
    split = "heldout" if isinstance(step, Evaluate) else "train"
    those = [prompt for prompt in prompts if prompt.split == split]
    longest = max(map(longest_asked, those), default=0)
    count = (
        min(len(those), recipe.prompts.per_round or len(those)) if split == "train" else len(those)
    )
    if isinstance(step, Propose):
        # The longest prompts may all be shown in one call, each of them once.
        most = sorted(map(longest_asked, those), reverse=True)[: step.show]
        each = sum(most) // step.show if step.given == "demos" else longest
        told = request_tokens(step, each, said)
        yield step.role, Batch(recipe.chunk, told + step.max_tokens)
    elif isinstance(step, Sample):
        yield step.role, Batch(count * step.k, longest + step.max_tokens)
    elif isinstance(step, Rewrite) and step.roles():
        # The earlier answer and what is to be better stand before the new one.
        yield step.role, Batch(recipe.chunk, longest + 2 * said + step.max_tokens)
    elif isinstance(step, Evaluate):
        yield STUDENT, Batch(count, longest + step.max_tokens)
    if isinstance(step, Judging):
        judge = step.load_judge()
        own = step.max_tokens if isinstance(step, Evaluate) else said
        shown = own * (step.size if isinstance(step, Compare) else 1)
        for role in roles_of(judge):
            yield role, Batch(recipe.chunk, longest + shown + RUBRIC + longest_reply(judge))


def _proposals(steps: Sequence[Operator]) -> list[Prompt]:
    return [longest_proposal(step) for step in steps if isinstance(step, Propose)]


def _size(batch: Batch) -> int:
    return batch.rows * batch.tokens


def reward_models(recipe: Recipe) -> list[RewardModel]:
    """Return the judges of a recipe that hold a model of their own, each model once."""
    judges = (judge for stage in recipe.stages for s in stage.steps for judge in judges_asked(s))
    found = {inner.model: inner for judge in judges for inner in _reward_models(judge)}
    return list(found.values())


def _reward_models(judge: Judge) -> Iterator[RewardModel]:
    """Yield the reward models in a judge that may be made of others."""
    if isinstance(judge, RewardModel):
        yield judge
    for inner in getattr(judge, "inner", ()):
        yield from _reward_models(inner)


def _judges(
    recipe: Recipe, steps: Iterable[Operator], shapes: Mapping[str, Shape]
) -> list[tuple[str, str, Shape]]:
    """Return name, model and size of each reward model that steps ask; one that a round makes is held in float32."""
    made = replace(shapes[recipe.student], precision="float32")
    found: dict[str, tuple[str, str, Shape]] = {}
    for judge in (judge for step in steps for judge in judges_asked(step)):
        found |= {m.model: (m.name, m.model, shapes[m.model]) for m in _reward_models(judge)}
        found |= {f"step {t.step}": (t.name, recipe.student, made) for t in trained_in(judge)}
    return list(found.values())


def _reward_tenant(
    recipe: Recipe, judge: tuple[str, str], prompts: Sequence[Prompt], shape: Shape
) -> Tenant:
    name, model = judge
    longest = max(map(longest_asked, prompts), default=0) + recipe.evaluate.max_tokens
    tokens = min(_READ_TOKENS, ROWS_TOGETHER * longest)
    parts = {
        "weights": shape.held,
        "activations": tokens * (4 * shape.width + 2 * shape.inner) * 4,
    }
    batch = Batch(max(1, tokens // max(1, longest)), longest)
    return Tenant(f"judge {name}", model, batch, parts if shape.parameters else {})


def _told(tenant: Tenant, free: str) -> str:
    if not tenant.parts:
        return f"{tenant.model}: size not known, {free} free"
    parts = ", ".join(f"{name} {readable(size)}" for name, size in tenant.parts.items())
    many = f"{tenant.batch.rows} rows of {tenant.batch.tokens} tokens"
    return f"{tenant.model}: about {readable(tenant.total)} of {free} free for {many}: {parts}"


# -- who trains


def largest_job(
    recipe: Recipe, prompts: Sequence[Prompt], shapes: Mapping[str, Shape], free: int
) -> Estimate | None:
    """Return what the training job takes that takes most, trained in the first way that fits.

    Args:
        recipe: what will run.
        prompts: those of a round.
        shapes: the size of each model that is loaded here, by the policy that names it.
        free: bytes that a job may take.
    """
    shape = shapes[recipe.student]
    found = []
    for stage in recipe.stages:
        asked = max(map(longest_asked, [*prompts, *_proposals(stage.steps)]), default=0)
        # A program's edit is about as long as what it edits.
        speaking = (s for s in stage.steps if isinstance(s, Sample | Rewrite) and s.roles())
        said = max((s.max_tokens for s in speaking), default=256)
        for step in stage.steps:
            if isinstance(step, Train):
                trainer = step.load_trainer()
                if isinstance(trainer, Sampler):
                    said = trainer.max_tokens
                # A pair has its prompt once, an answer beside another prompt's has it twice, a list each time.
                rows = {"pairs": asked + 2 * said, "labelled": 2 * (asked + said)}
                rows["ranked"] = _most_answers(stage.steps) * (asked + said)
                tokens = rows.get(trainer.rows, asked + said)
                held = _held(recipe, step, shapes)
                job = first_that_fits(ways(trainer, shape, tokens, "full"), free - held)
                found.append(job and replace(job, parts={**job.parts, **_part(held)}))
    jobs = [job for job in found if job is not None]
    return max(jobs, key=lambda job: job.total, default=None)


def _most_answers(steps: Sequence[Operator]) -> int:
    """Return how many answers to a prompt a list may have: sampled, rewritten, and of earlier rounds."""
    sampled = sum(step.k for step in steps if isinstance(step, Sample)) or 1
    rewrites = sum(isinstance(step, Rewrite) for step in steps)
    replayed = max((step.replay for step in steps if isinstance(step, Pair)), default=0)
    return sampled * (1 + rewrites) * (1 + replayed)


def _held(recipe: Recipe, step: Train, shapes: Mapping[str, Shape]) -> int:
    """Return the bytes of the models beside what a job trains: its reference, self and teachers, and reward models."""
    trainer, own = step.load_trainer(), shapes[recipe.student].held
    if isinstance(trainer, SelfDistill):
        return own * int(not trainer.live and not trainer.negative)
    taught = {role for role in step.teachers().values() if role in recipe.roles}
    teachers = () if getattr(trainer, "stored", False) else taught
    held = {name: shape.held for name, shape in shapes.items()} | {STUDENT: own}
    beside = [held.get(recipe.roles[role].policy, 0) for role in teachers]
    beside += [shape.held for *_, shape in _judges(recipe, [step], shapes)]
    return own * int(trainer.anchored) + sum(beside)


def _part(held: int) -> dict[str, int]:
    return {"held models": held} if held else {}


def free_memory() -> int:
    """Return the bytes that a training job may take: of the first card that is visible, where there is one."""
    cards = visible_cards()
    return cards[0].free if cards else int(psutil.virtual_memory().available)
