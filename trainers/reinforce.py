"""Training on rewards of the policy's own rollouts: reinforcement from judges."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .advantages import Rewards, Scale, group_relative, leave_one_out
from .job import Emit, FitResult, Job
from .sampling import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from .policy_losses import TokenLogps

Average = Literal["token", "sequence", "constant"]
_CLIP = 0.2
"""PPO's (arXiv:1707.06347), and TRL's."""


class Reinforce(Sampler):
    """What trainers on rewards have in common.

    A group is the `k` rollouts of a prompt. A rollout that a judge could not judge leaves its group, as if it had
    not been sampled; a group whose rewards do not differ says nothing and counts for nothing. Where there are several
    judges, the first one's rewards must differ: a term for length or form beside it must not teach alone.
    """

    k: int = Field(8, ge=2)
    """Rollouts of a prompt; divides `batch_size`."""
    beta: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Price of a nat by which a token leaves the reference (start of the round, unless `reference` says otherwise)."""
    average: Average = "token"
    """Whether each token counts the same (DAPO, arXiv:2503.14476, equation 8), each rollout (GRPO), or a token the
    same whatever its rollout's length, with `max_tokens` as the divisor (Dr. GRPO)."""
    ahead: int = Field(0, ge=0, le=8)
    """Optimiser steps by which sampling is ahead of training, so that slow judges work while the policy trains. A rollout
    is then learned from by weights so many steps newer than those that said it (arXiv:2410.18252)."""
    clip: float | None = Field(None, gt=0, lt=1)
    """With `ahead`, how far from 1 the ratio of a token's probability to that at sampling still counts; 0.2 unless
    given."""

    @model_validator(mode="after")
    def _clips_what_is_old(self) -> Self:
        if self.clip is not None and not self.ahead:
            told = "clip is of rollouts of older weights, and without `ahead` there are none"
            raise ValueError(told)
        return self

    @property
    def bound(self) -> float:
        """How far from 1 a ratio still counts."""
        return _CLIP if self.clip is None else self.clip

    @property
    def anchored(self) -> bool:
        """Whether the job holds the reference."""
        return self.beta > 0

    @abstractmethod
    def advantages(self, groups: Sequence[Rewards]) -> list[list[float | None]]:
        """Return what each rollout is worth beside those of its group."""

    def loss(self, tokens: TokenLogps) -> Tensor:
        """Return the loss of each rollout, shape (B,)."""
        from .policy_losses import policy_gradient

        return policy_gradient(tokens, self.beta, self.average, self.max_tokens, self.bound)

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Train on what the rollouts earn, and publish the new revision."""
        from .rewarded import Rewarded
        from .tuning import tune

        return tune(self, job, Rewarded, self.examples(job), emit)


class GRPO(Reinforce):
    """Group relative policy optimisation: make rollouts likelier that earn more than those beside them.

    Rows: prompts, whose answers are sampled while it trains. With r the rewards of a group, A = (r - mean r) /
    deviation, and p the policy's probability of a token, the gradient of a step is that of

        mean over tokens of  -A * p / stop_gradient(p)  +  beta * (ref / p - log (ref / p) - 1)

    which is equation 3 of Shao et al. 2024 (arXiv:2402.03300) where each rollout is learned from by the weights that
    said it, so that no ratio ever leaves 1 and nothing is clipped; the last term is its equation 4. With `ahead` the
    first term is -min(A r, A clip(r, 1 - clip, 1 + clip)) with r = p / p at sampling. `scale: none` with `average:
    constant` is Dr. GRPO (arXiv:2503.20783).

    The survey's family is feedback (RLAIF).
    """

    name: ClassVar[str] = "grpo"

    scale: Scale = "group"
    """What rewards are divided by: the deviation of their group, of the whole step, or nothing."""

    def advantages(self, groups: Sequence[Rewards]) -> list[list[float | None]]:
        """Return each reward less its group's mean, scaled."""
        return group_relative(groups, self.scale)


class RLOO(Reinforce):
    """REINFORCE with the other rollouts as the baseline, which needs no critic and no deviation.

    Rows: prompts. A rollout's advantage is its reward less the mean of the others of its group, unscaled; the loss
    is GRPO's, and groups that say nothing are left out of its mean; Ahmadian et al. 2024 (arXiv:2402.14740), equation 9. The survey's family is feedback (RLAIF).
    """

    name: ClassVar[str] = "rloo"

    average: Average = "sequence"
    """Whether each rollout counts the same, each token, or a token the same whatever its rollout's length."""

    def advantages(self, groups: Sequence[Rewards]) -> list[list[float | None]]:
        """Return each reward less the mean of the others."""
        return leave_one_out(groups)
