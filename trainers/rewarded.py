"""Rollouts that judges reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .advantages import Rewards, combined, differ
from .answers import token_logps
from .policy_losses import TokenLogps, clipped, counted_as, divergence
from .rollouts import Rollout, Sampled, answered, gap

if TYPE_CHECKING:
    from .reinforce import Reinforce


class Rewarded(Sampled):
    """Lets the driver's judges reward each step's rollouts, and learns from what differs within a group."""

    trainer: Reinforce

    @property
    def lead(self) -> int:
        """Optimiser steps by which sampling is ahead."""
        return self.trainer.ahead

    @cached_property
    def _tickets(self) -> dict[int, list[int]]:
        """Of the questions of each step that is not learned from yet."""
        return {}

    def heard(self, step: int, rollouts: Sequence[Rollout], piece: tuple[int, int]) -> None:
        """Ask the judges at once, and sample on while they judge."""
        told = {"step": step, "piece": piece[0], "pieces": piece[1]}
        said = [r.told() for r in rollouts]
        asked = self.caller.ask("judge", **told, rollouts=said)
        self._tickets.setdefault(step, []).append(asked)
        # What a checkpoint brought was said by weights that are no more.
        if self.lead and piece[0] == 0 and step not in self.brought:
            self._look(step, rollouts[: self.args.per_device_train_batch_size])

    def learn(self, step: int, rollouts: list[Rollout]) -> None:
        """Turn the judges' rewards into advantages."""
        replies = [self.caller.reply(ticket) for ticket in self._tickets.pop(step)]
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
            said=inputs["said"] if self.lead else None,
        )
        if tokens.said is None:
            self._together(self.state.global_step + 1, gap(tokens.logp, inputs))
        else:
            self._moved(tokens, inputs)
        if tokens.reference is not None:
            apart = divergence(tokens.logp, tokens.reference) * tokens.there
            self.note(kl=apart.sum() / tokens.there.sum())
        loss: Tensor = self.trainer.loss(tokens)
        return loss

    def _look(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Compare sampler and trainer while the weights that sampled are those that are trained."""
        batch = {name: value.to(self.args.device) for name, value in answered(rollouts).items()}
        with torch.no_grad(), self.compute_loss_context_manager():
            self._together(step, gap(token_logps(self.model, batch), batch))

    def _together(self, step: int, apart: Tensor) -> None:
        """Note by how much the sampler's log-probs are not the trainer's, and go on if it is noise."""
        self.note(**{"rollouts/gap": apart})
        self.watch.apart(step, float(apart))

    def _moved(self, tokens: TokenLogps, inputs: dict[str, Tensor]) -> None:
        """Note how far the weights have moved since they sampled, and which share of tokens may go no further."""
        live = inputs["weights"] > 0
        if not bool(live.any()):
            return
        heard = {name: inputs[name][live] for name in ("completion_mask", "said")}
        stopped = clipped(tokens, self.trainer.bound)[live].sum() / tokens.there[live].sum()
        moved = gap(tokens.logp[live], heard)
        self.note(**{"rollouts/drift": moved, "rollouts/clipped": stopped})
