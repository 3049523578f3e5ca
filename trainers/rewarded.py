"""Rollouts that judges reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .advantages import Rewards, combined, differ
from .answers import token_logps
from .policy_losses import TokenLogps, counted_as, divergence
from .rollouts import Rollout, Sampled, answered, gap

if TYPE_CHECKING:
    from .reinforce import Reinforce


class Rewarded(Sampled):
    """Lets the driver's judges reward each step's rollouts, and learns from what differs within a group."""

    trainer: Reinforce

    @cached_property
    def _tickets(self) -> list[int]:
        """Of the questions of this step."""
        return []

    def heard(self, step: int, rollouts: Sequence[Rollout], piece: tuple[int, int]) -> None:
        """Ask the judges at once, and sample on while they judge."""
        told = {"step": step, "piece": piece[0], "pieces": piece[1]}
        said = [r.told() for r in rollouts]
        self._tickets.append(self.caller.ask("judge", **told, rollouts=said))

    def learn(self, step: int, rollouts: list[Rollout]) -> None:  # noqa: ARG002 - its tickets know
        """Turn the judges' rewards into advantages."""
        replies = [self.caller.reply(ticket) for ticket in self._tickets]
        self._tickets.clear()
        weights = replies[0]["weights"]
        judges: list[Rewards] = [
            [r for reply in replies for r in reply["rewards"][nth]] for nth in range(len(weights))
        ]
        for rollout, reward in zip(rollouts, combined(judges, weights), strict=True):
            rollout.reward = reward
        self._weigh(rollouts, judges[0])

    def _weigh(self, rollouts: Sequence[Rollout], first: Rewards) -> None:
        """Give each rollout its advantage; what says nothing gets the weight 0."""
        k = self.trainer.k
        groups = [rollouts[i : i + k] for i in range(0, len(rollouts), k)]
        # What the first judge said of a rollout that another one could not judge tells nothing of the others.
        told = [f if r.reward is not None else None for f, r in zip(first, rollouts, strict=True)]
        heard = [differ(told[i : i + k]) for i in range(0, len(rollouts), k)]
        found = self.trainer.advantages([[r.reward for r in group] for group in groups])
        for group, advantages, tells in zip(groups, found, heard, strict=True):
            for rollout, advantage in zip(group, advantages, strict=True):
                if advantage is None or not tells:
                    rollout.weight = 0.0
                else:
                    rollout.advantage = advantage
                    rollout.weight = float(rollout.row["weight"])

    def form(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Return rollouts as a batch, with their advantages and the reference's log-probs."""
        batch = answered(rollouts)
        batch["advantages"] = torch.tensor([r.advantage for r in rollouts])
        there = batch["completion_mask"][:, 1:]
        batch["weights"] = batch["weights"] * counted_as(self.trainer.average, there)
        if self.trainer.anchored:
            device = self.args.device
            with torch.no_grad(), self.compute_loss_context_manager():
                on = {name: value.to(device) for name, value in batch.items()}
                batch["reference"] = token_logps(self.held("reference"), on)
        return batch

    def losses(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return each rollout's loss."""
        tokens = TokenLogps(
            logp=token_logps(model, inputs),
            there=inputs["completion_mask"][:, 1:],
            advantage=inputs["advantages"],
            reference=inputs.get("reference"),
        )
        apart_now = gap(tokens.logp, inputs)
        self.note(**{"rollouts/gap": apart_now})
        self.watch.apart(self.state.global_step + 1, float(apart_now))
        if tokens.reference is not None:
            apart = divergence(tokens.logp, tokens.reference) * tokens.there
            self.note(kl=apart.sum() / tokens.there.sum())
        loss: Tensor = self.trainer.loss(tokens)
        return loss
