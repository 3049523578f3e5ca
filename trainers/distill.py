"""Training on a teacher's next-token distributions: distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..errors import BadInput
from .job import Emit, FitResult, Job
from .sampling import Row, Sampler
from .trainer import Asks


class Distill(Sampler):
    """Distillation on the student's own words: a teacher says at each token what it would have said instead.

    Rows: prompts, whose answers the student samples while it trains, and what the teacher sees in their place (its
    role's context, or another). With p the teacher's distribution of the next token and q the student's, after the
    same answer up to there, the loss is the mean over tokens of

        beta * KL(p || m) + (1 - beta) * KL(q || m),    m = beta * p + (1 - beta) * q

    which at its ends is forward KL (`beta: 0`) and reverse KL (`beta: 1`, MiniLLM, arXiv:2306.08543); GKD, Agarwal et
    al. 2023 (arXiv:2306.13649). No gradient goes through the sampling. Divided is by the tokens that bear the loss,
    whoever said them. `on_policy` below 1 takes the other prompts' answers from the store; at 0 nothing is sampled, and
    with `top_k` the teacher's likeliest tokens are stored once and read again by every later job.

    The survey's family is feature and on-policy distillation.
    """

    name: ClassVar[str] = "distill"
    asks: ClassVar[Asks] = "teacher"

    beta: float = Field(1.0, ge=0, le=1)
    """0 is forward KL, which covers the teacher; 1 is reverse KL, which seeks its best. The scale jumps at both ends."""
    skew: float = Field(0.0, ge=0, lt=1)
    """Of a KL's first distribution, how much is mixed into its second one (DistiLLM); at the ends of beta alone."""
    on_policy: float = Field(1.0, ge=0, le=1)
    """Share of answers that the student samples; the others are those that a `select` step has kept."""
    top_k: int = Field(0, ge=0)
    """Likeliest tokens of the teacher that are looked at, all others as one; 0 for the whole vocabulary."""
    across: bool = False
    """Whether the teacher has another tokenizer. Then the loss is ULD's: where both begin a token at the same letter, the
    sorted probabilities of both are compared (arXiv:2402.12030, equation 6)."""

    @model_validator(mode="after")
    def _skewed_at_an_end(self) -> Self:
        if self.skew and self.beta not in (0, 1):
            raise ValueError("skew is of forward or reverse KL: beta is 0 or 1")
        if self.across and (self.beta != 1 or self.skew or self.top_k):
            raise ValueError("across has a loss of its own, without beta, skew and top_k")
        if self.on_policy == 0 and self.k > 1:
            raise ValueError("k is of what is sampled, and with on_policy: 0 nothing is")
        return self

    @property
    def reads(self) -> bool:
        """Whether some of its answers are the store's."""
        return self.on_policy < 1

    @property
    def live(self) -> bool:
        """Whether the teacher's weights are those that are trained."""
        return False

    @property
    def negative(self) -> bool:
        """Whether no teacher is asked."""
        return False

    @property
    def stored(self) -> bool:
        """Whether the teacher's distributions are rows, and no teacher is held."""
        return self.on_policy == 0 and self.top_k > 0

    def row_tokens(self, row: Mapping[str, Any]) -> int:
        """Return the tokens of a prompt, as student or teacher sees it, with the longest answer."""
        asked = max(len(row["prompt_ids"]), len(row.get("teacher_prompt_ids") or ()))
        return asked + max(self.max_tokens, len(row.get("completion_ids") or ()))

    def examples(self, job: Job) -> list[Row]:
        """Return a job's prompts.

        Raises:
            BadInput: an answer is to be taken that is not there, or has no teacher.
        """
        rows = super().examples(job)
        for row in rows:
            if row["completion_ids"] is None and self.on_policy < 1:
                told = f"prompt {row['id']} has no answer, and not all are sampled"
                raise BadInput.at(
                    str(job.rows), told, "train `of:` a select step, or `on_policy: 1`"
                )
            if not self.taught(row, job):
                raise BadInput.at(str(job.rows), f"prompt {row['id']} has no teacher")
        return rows

    def taught(self, row: Row, job: Job) -> bool:
        """Whether a row's teacher is there, or what it thought."""
        return row["top_ids"] is not None if self.stored else row["teacher"] in job.held

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train towards the teacher, and publish the new revision."""
        from .across import Across
        from .distilled import Distilled
        from .tuning import tune

        method = Across if self.across else Distilled
        return tune(self, job, method, self.examples(job), emit)


SELF = "self"
"""Name of the teacher that is the student itself."""


class SelfDistill(Distill):
    """Self-distillation: the student that sees more teaches the student that does not.

    Rows: prompts of a `select` step's answers. The teacher is the student with something in its prompt that a plain one
    lacks, as the step's `given` says: the critique of an answer, a passing answer, the prompt's reference. The loss is
    `distill`'s, on what the plain student samples; SDFT (Shenfeld et al. 2026, arXiv:2601.19897), OPSD (Zhao et al.
    2026, arXiv:2601.18734). Two controls tell what the words do: `given: unrelated` shows what belongs to another prompt,
    and `signal: negative` makes every sampled token rarer by the same amount and asks no teacher.

    The survey's family is self-knowledge.
    """

    name: ClassVar[str] = "self_distill"

    teacher_weights: Literal["start", "live"] = "start"
    """Whether the teacher's weights stay as they were, or are the student's own of each step."""
    signal: Literal["teacher", "negative"] = "teacher"
    """What the student learns from; `negative` is the control."""

    @property
    def live(self) -> bool:
        """Whether the teacher's weights are those that are trained."""
        return self.teacher_weights == "live"

    @property
    def negative(self) -> bool:
        """Whether no teacher is asked."""
        return self.signal == "negative"

    @model_validator(mode="after")
    def _of_itself(self) -> Self:
        if self.across:
            raise ValueError("across is for a teacher with another tokenizer than the student's")
        if self.stored and self.live:
            raise ValueError(
                "what a live teacher thinks changes with each step and cannot be stored"
            )
        return self

    def taught(self, row: Row, job: Job) -> bool:
        """Whether a row's teacher is there; one that is the student's own weights always is."""
        return self.negative or self.live or super().taught(row, job)
