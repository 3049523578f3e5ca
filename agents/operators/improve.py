"""Operators that make a challenger and measure it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ...errors import BadInput, Problem
from ...hashing import content_hash, row_id
from ...policies.policy import Sampling
from ...store.store import Row, now
from ...trainers.distill import SelfDistill
from ...trainers.sampling import Sampler
from ...trainers.trainer import BUILTINS as TRAINERS
from ...trainers.trainer import Trainer
from ...types import Split
from .. import plugins
from ..answer import Asked, answer
from ..dataset import Sources, prepare
from ..drift import watch
from ..judge import JudgeSpec, Scorer, let_go, needs_group, roles_of, scorer
from ..judge_making import Making, make_judge
from ..judges.trained import Trained
from ..operator import Advance, Makes, Operator, Turn
from ..pair_exam import SHARE
from ..prompt_rows import prepare_prompts
from ..roles import STUDENT
from ..rollouts import Reward
from ..speaker import bind
from ..speakers import Speakers
from ..train_checks import unfit
from ..training import run_job
from ..verdicts import judge_chunk
from .feedback import Judging

_LATER = {"most_cut": 0.2, "rewards": [], "teacher": "", "given": "", "held_back": None}
"""Keys that older recipes do not have, as they are written where nobody has set them."""


class RewardSpec(BaseModel):
    """A judge whose values rollouts earn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: JudgeSpec
    """A judge's name, `{name: {settings}}`, or `module:callable`."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """How much its value counts in the sum."""


class Train(Operator):
    """Train the champion on the rows of the round; what comes out is the challenger.

    The trainer's own settings stand beside `trainer`: `train: {trainer: dpo, beta: 0.1}`. Training
    prompts are rendered without the role's context (context distillation), unless `keep_context`.

    With the trainer `reward` what comes out is a judge of this round, which later steps ask as
    `{trained: {step: NAME}}`. It is examined on pairs that were held back from its training; where they do not
    prove it, the round ends and is rejected, unless the recipe says `unproven_judge: allow`.
    """

    name: ClassVar[str] = "train"
    makes: ClassVar[Makes] = "revision"
    needs: ClassVar[tuple[Makes, ...]] = ("rows",)
    """And `prompts` for a trainer that samples."""

    trainer: str | dict[str, Any]
    """A trainer's name, or `{name: {settings}}`."""
    of: str | tuple[str, ...] = ()
    """The select or pair step whose rows train; of a trainer that samples, the select or propose step whose prompts."""
    from_: Literal["champion", "initial"] = Field("champion", alias="from")
    """Where training begins."""
    reference: Literal["start", "previous", "initial"] = "start"
    """The reference policy of preference losses; start is where training begins."""
    keep_context: bool = False
    """Train on the prompt as the role saw it."""
    rewards: tuple[RewardSpec, ...] = ()
    """For a trainer that samples while it trains: the judges whose values its rollouts earn, the one that must
    tell them apart first. `judge: verifier` is one."""
    teacher: str | dict[str, str] = ""
    """For a trainer that distils: the role that teaches, or the roles by a prompt's tag, with `*` for all others."""
    given: Literal["", "critique", "answer", "reference", "unrelated"] = ""
    """For `self_distill`: what the teaching student sees, of the answers that the step `of` has kept; `unrelated` is
    an answer to another prompt, and a control."""
    held_back: float | None = Field(None, ge=0, lt=1)
    """Of a step that makes a judge: share of the prompts whose pairs examine it instead of training it, 0.1 where it is
    left out; 20 prompts at least, or a third where there are fewer than 60. With 0 nothing proves the judge."""
    most_cut: float = Field(0.2, ge=0, le=1)
    """Share of the round's answers that may be cut at `max_tokens`; above it nothing is trained, because
    what could still be learned of the round is its short answers."""

    @model_serializer(mode="wrap")
    def _without_the_usual(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Recipes that are older than the keys have the ids that they had.
        data: dict[str, Any] = told(self)
        return {k: v for k, v in data.items() if k not in _LATER or v not in (_LATER[k], ())}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        """Move the keys that are not the step's own into the trainer's settings."""
        if not isinstance(data, dict) or "trainer" not in data:
            return data
        data = data | {"trainer": plugins.spec_of(data["trainer"], TRAINERS)}
        if "judge" in data:
            data = {"rewards": [{"judge": data["judge"]}], **data}
            del data["judge"]
        own = {field.alias or name for name, field in cls.model_fields.items()} | set(
            cls.model_fields
        )
        rest = {key: value for key, value in data.items() if key not in own}
        if not rest:
            return data
        name, settings = plugins.one_of(data["trainer"], "trainer")
        kept = {key: value for key, value in data.items() if key in own}
        return kept | {"trainer": {name: {**settings, **rest}}}

    @property
    def trainer_name(self) -> str:
        """The trainer's name as the recipe has it."""
        return plugins.one_of(self.trainer, "train.trainer")[0]

    def load_trainer(self, where: str = "train.trainer") -> Trainer:
        """Return the trainer with its settings."""
        built = plugins.build("trainers", self.trainer, TRAINERS, where)
        if not isinstance(built, Trainer):
            raise BadInput.at(where, f"{built!r} is no trainer", "subclass redistill's Trainer")
        return built

    def check(self, where: str) -> list[Problem]:
        """Find a trainer that does not exist, has wrong settings, or needs others than it has."""
        try:
            trainer = self.load_trainer(f"{where}.trainer")
        except BadInput as error:
            return list(error.problems)
        return unfit(self, trainer, where)

    def teachers(self) -> dict[str, str]:
        """Return the roles that teach, by a prompt's tag, or `*` for all others."""
        if isinstance(self.teacher, str):
            return {"*": self.teacher} if self.teacher else {}
        return dict(self.teacher)

    def reward_judges(self) -> list[tuple[Scorer, object]]:
        """Return the judges that reward rollouts, each with how it is named."""
        return [(scorer(r.judge, f"{self.step}.judge"), r.judge) for r in self.rewards]

    def made(self) -> Makes:
        """What comes of the trainer: the next student, or a judge."""
        return "judge" if self.load_trainer().makes == "judge" else "revision"

    def judges(self) -> Mapping[str, str]:
        """The judges that reward rollouts, or the one that is made."""
        if self.made() == "judge":
            return {self.step: Trained(step=self.step).revision}
        return {judge.name: judge.revision for judge, _ in self.reward_judges()}

    def roles(self) -> tuple[str, ...]:
        """The roles through which they speak, and those that teach."""
        judging = (role for judge, _ in self.reward_judges() for role in roles_of(judge))
        return (*judging, *self.teachers().values())

    def required(self) -> tuple[Makes, ...]:
        """A trainer that samples needs no rows, unless it trains on answers that stand, or shows them to itself."""
        trainer = self.load_trainer()
        own = isinstance(trainer, SelfDistill) and self.given != "reference"
        asks = trainer.samples and not own and not trainer.reads
        makes: tuple[Makes, ...] = (*self.needs, "prompts") if asks else self.needs
        return makes if self.of or own or trainer.reads else ()

    async def advance(self, turn: Turn) -> Advance:
        """First freeze the training rows, then run the job: two super-steps; a judge is examined in a third."""
        trainer = self.load_trainer()
        if trainer.makes == "judge":
            return await make_judge(turn, self._making(trainer))
        if turn.cursor == 1:
            # The job tells its own progress, by optimiser step.
            rewards = [
                Reward(bind(judge, Speakers(turn)), spec.weight)
                for (judge, _), spec in zip(self.reward_judges(), self.rewards, strict=True)
            ]
            for reward, (judge, _) in zip(rewards, self.reward_judges(), strict=True):
                if not turn.done and not needs_group(reward.judge):
                    await watch(turn, judge)
            made = await run_job(turn, self.trainer_name, trainer, self.most_cut, rewards)
            for reward in rewards:
                let_go(reward.judge)
            return Advance(None, challenger=made)
        if not turn.done:
            began = time.monotonic()
            sources = Sources(
                step=next(iter(self.sources()), ""),
                start=self.from_,
                reference=self.reference,
                keep_context=self.keep_context,
                trainer=self.trainer_name,
                teachers=self.teachers(),
                given=self.given,
            )
            if isinstance(trainer, Sampler):
                rows = await prepare_prompts(turn, trainer, sources)
            else:
                rows = await prepare(turn, trainer, sources)
            turn.commit(rows, time.monotonic() - began)
        return Advance(1)

    def _making(self, trainer: Trainer) -> Making:
        return Making(
            of=next(iter(self.sources())),
            start=self.from_,
            called=self.trainer_name,
            trainer=trainer,
            held_back=SHARE if self.held_back is None else self.held_back,
            most_cut=self.most_cut,
        )


class Evaluate(Judging):
    """Let the challenger answer the held-out prompts, and judge its answers.

    An evaluation is kept by (revision, prompts, judge, decoding), so that a champion is measured once.
    """

    name: ClassVar[str] = "evaluate"
    makes: ClassVar[Makes] = "evaluation"
    needs: ClassVar[tuple[Makes, ...]] = ()

    temperature: float = Field(0.0, ge=0, le=4)
    """0 is greedy."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer."""

    def check(self, where: str) -> list[Problem]:
        """Find also a judge that needs several samples of a prompt: here there is one."""
        if problems := super().check(where):
            return problems
        judge = self.load_judge(f"{where}.judge")
        if not needs_group(judge):
            return []
        what = f"{judge.name} needs several samples of a prompt, and here is one of each"
        return [Problem(f"{where}.judge", what, "use it in `score`")]

    @property
    def sampling(self) -> Sampling:
        """How the answers are decoded."""
        return Sampling(self.temperature, 1.0, 0, self.max_tokens)

    async def advance(self, turn: Turn) -> Advance:
        """Measure the current revision on the held-out prompts, chunk by chunk."""
        return await self.measure(turn, "heldout")

    async def measure(self, turn: Turn, split: Split) -> Advance:
        """Measure the current revision on a split; after the last chunk comes the evaluation's row."""
        prompts = turn.run.prompts(split)
        planned = [Asked(prompt, 0) for prompt in prompts]
        total = turn.chunks(planned) + 1
        identifier = self.key(turn, turn.current, split)
        here = (turn.round, turn.step)
        if turn.cursor == 0 and any(
            (e["round"], e["step"]) != here for e in self.stored(turn, turn.current, split)
        ):
            return Advance(None)
        if turn.done:
            return self.after(turn, total, self.load_judge())
        began = time.monotonic()
        if turn.cursor == total - 1:
            rows = {"evaluation": [self._summary(turn, identifier, split)]}
        else:
            answered = await answer(turn, STUDENT, turn.slice(planned), self.sampling)
            verdicts = await judge_chunk(turn, self.scorer(turn), answered.completions)
            rows = {**answered.rows, "judgement": verdicts["judgement"]}
            rows["content"] = answered.rows["content"] + verdicts["content"]
        turn.commit(rows, time.monotonic() - began)
        return self.after(turn, total, self.load_judge())

    def key(self, turn: Turn, revision: str, split: Split) -> str:
        """Return the id of the evaluation of a revision."""
        return row_id(
            "evaluation",
            run=turn.run.key,
            revision=revision,
            prompts=prompts_hash(turn, split),
            judge=self.load_judge().revision,
            decoding=asdict(self.sampling),
            seed=turn.run.seed,
        )

    def stored(self, turn: Turn, revision: str, split: Split) -> list[Row]:
        """Return `id`, `round` and `step` of every stored evaluation of a revision that is this one.

        Told by what was measured and not by the id: a fork has a key of its own, and its parent's answers.
        """
        rows = turn.run.store.rows(
            """
            SELECT id::VARCHAR AS id, round, step, decoding FROM evaluation
            WHERE split = ? AND revision = ? AND prompts_hash = ? AND judge_revision = ?
            ORDER BY round, step
            """,
            [split, revision, prompts_hash(turn, split), self.load_judge().revision],
        )
        return [row for row in rows if json.loads(row["decoding"]) == asdict(self.sampling)]

    def _summary(self, turn: Turn, identifier: str, split: Split) -> Row:
        judge = self.load_judge()
        [found] = turn.run.store.rows(
            """
            SELECT count(j.value) AS n, coalesce(avg(j.value), 0) AS value
            FROM completion c
            JOIN judgement j ON j.completion_id = c.id AND j.round = c.round AND j.step = c.step
            WHERE c.round = ? AND c.step = ? AND j.judge_revision = ?
              AND j.mode = 'score' AND j.aspect = ''
            """,
            [turn.round, turn.step, judge.revision],
        )
        return {
            "id": identifier,
            "round": turn.round,
            "step": turn.step,
            "split": split,
            "revision": turn.current,
            "prompts_hash": prompts_hash(turn, split),
            "judge": judge.name,
            "judge_revision": judge.revision,
            "decoding": json.dumps(asdict(self.sampling)),
            "n": found["n"],
            "value": found["value"],
            "created_at": now(),
        }


def prompts_hash(turn: Turn, split: Split) -> str:
    """Name a set of prompts by its ids."""
    return content_hash([prompt.id for prompt in turn.run.prompts(split)])
