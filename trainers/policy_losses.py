"""Losses of rollouts, as formulas of the log-probs of their tokens.

Tensors of tokens have shape (B, T), those of rollouts (B,). `tests/test_policy_losses.py` checks each formula against
one that is written out in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """What is known of a batch of rollouts."""

    logp: Tensor
    """Natural log of each token's probability; (B, T)."""
    there: Tensor
    """Which tokens there are; (B, T)."""
    advantage: Tensor
    """(B,)."""
    reference: Tensor | None = None
    """Of the reference policy; (B, T)."""
    said: Tensor | None = None
    """Of the weights that sampled, (B, T); None where they are those that are trained."""


def policy_gradient(
    tokens: TokenLogps, beta: float, average: str, longest: int, clip: float
) -> Tensor:
    """Return the loss of each rollout, whose gradient is the policy's; Shao et al. 2024 (arXiv:2402.03300), equation 3.

    Args:
        tokens: of the rollouts.
        beta: price of a nat that a token is from the reference.
        average: `constant` divides by `longest`, everything else by the rollout's own tokens.
        longest: tokens that a rollout may have.
        clip: how far from 1 a token's ratio still counts.
    """
    each = -_surrogate(tokens, clip)
    if beta:
        assert tokens.reference is not None
        each = each + beta * divergence(tokens.logp, tokens.reference)
    there = tokens.there
    divisor = longest if average == "constant" else there.sum(1)
    return (each * there).sum(1) / divisor


def _surrogate(tokens: TokenLogps, clip: float) -> Tensor:
    """Return what each token is worth; PPO's clipped ratio, Schulman et al. 2017 (arXiv:1707.06347), equation 7.

    Under the weights that sampled the ratio is 1, nothing is clipped, and its gradient is the log-prob's.
    """
    advantage = tokens.advantage[:, None]
    if tokens.said is None:
        return advantage * torch.exp(tokens.logp - tokens.logp.detach())
    ratio = torch.exp(tokens.logp - tokens.said)
    return torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - clip, 1 + clip))


def clipped(tokens: TokenLogps, clip: float) -> Tensor:
    """Return which tokens have gone as far as they may, so that they teach nothing more; (B, T)."""
    assert tokens.said is not None
    ratio = torch.exp(tokens.logp.detach() - tokens.said)
    worth = tokens.advantage[:, None]
    far = torch.where(worth > 0, ratio > 1 + clip, ratio < 1 - clip)
    return far & (worth != 0) & tokens.there.bool()


def divergence(logp: Tensor, reference: Tensor) -> Tensor:
    """Return the estimate of KL(policy || reference) of each token that is never negative; equation 4 there.

    Schulman 2020, "Approximating KL divergence", calls it k3.
    """
    apart = reference - logp
    return torch.exp(apart) - apart - 1


def counted_as(average: str, there: Tensor) -> Tensor:
    """Return how much each rollout counts in the step's mean: by its tokens, or the same."""
    return there.sum(1).float() if average == "token" else torch.ones(len(there))
