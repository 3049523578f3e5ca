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


def policy_gradient(tokens: TokenLogps, beta: float, average: str, longest: int) -> Tensor:
    """Return the loss of each rollout, whose gradient is the policy's; Shao et al. 2024 (arXiv:2402.03300), equation 3.

    The ratio to the policy that sampled is 1, and has the gradient of the log-prob.

    Args:
        tokens: of the rollouts.
        beta: price of a nat that a token is from the reference.
        average: `constant` divides by `longest`, everything else by the rollout's own tokens.
        longest: tokens that a rollout may have.
    """
    ratio = torch.exp(tokens.logp - tokens.logp.detach())
    each = -tokens.advantage[:, None] * ratio
    if beta:
        assert tokens.reference is not None
        each = each + beta * divergence(tokens.logp, tokens.reference)
    there = tokens.there
    divisor = longest if average == "constant" else there.sum(1)
    return (each * there).sum(1) / divisor


def divergence(logp: Tensor, reference: Tensor) -> Tensor:
    """Return the estimate of KL(policy || reference) of each token that is never negative; equation 4 there.

    Schulman 2020, "Approximating KL divergence", calls it k3.
    """
    apart = reference - logp
    return torch.exp(apart) - apart - 1


def counted_as(average: str, there: Tensor) -> Tensor:
    """Return how much each rollout counts in the step's mean: by its tokens, or the same."""
    return there.sum(1).float() if average == "token" else torch.ones(len(there))
