"""TRL's loop over rows that the policy itself samples, anew for each optimiser step, with its weights of that time."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..hashing import row_id, row_seed
from ..policies.policy import Generation, Request, Sampling
from ..policies.revision import Revision
from ..policies.transformers import TransformersPolicy
from .answers import Formula, Row, padded
from .callback import Caller
from .weights import base_folder, open_held

if TYPE_CHECKING:
    from .sampling import Sampler

_PIECE = 64
"""Rollouts after which the driver is asked, so that judges work while the rest is sampled."""
_SEEDS = 2**63
"""Seeds are below it."""
_AHEAD = "ahead.json"
"""File of a checkpoint with what was sampled for later steps."""
_GRAM = 4
"""Tokens in a row that are repeated when a policy has fallen into a loop."""


@dataclass(slots=True)
class Rollout:
    """One answer that was sampled while the policy trains, and what it is worth."""

    row: Row
    """Of the prompt."""
    slot: int
    """Its place in the optimiser step, from 0."""
    said: Generation
    reward: float | None = None
    """None where no judge could tell."""
    advantage: float = 0.0
    weight: float = 1.0
    """0 where it is as if it had not been sampled."""
    token_rewards: Sequence[float] | None = None
    """What each token earned, where that is known."""
    stands: bool = False
    """Whether it is no rollout, but an answer that the store holds already."""

    def told(self) -> Row:
        """Return what the driver is told of it."""
        return {
            "prompt_id": self.row["id"],
            "slot": self.slot,
            "text": self.said.text,
            "token_ids": list(self.said.token_ids),
            "logprobs": list(self.said.logprobs),
            "finish_reason": self.said.finish_reason,
        }

    def earned(self) -> Row:
        """Return what the driver is told of what it was worth."""
        return {
            "completion_id": self.row["completion_id"] if self.stands else None,
            "prompt_id": self.row["id"],
            "slot": self.slot,
            "reward": self.reward,
            "advantage": self.advantage,
            "weight": self.weight,
            "token_rewards": self.token_rewards,
        }


class Sampled(Formula):
    """Samples the rollouts of each optimiser step, lets them be judged, and trains on those that say something."""

    trainer: Sampler

    @staticmethod
    def collate(rows: list[Row]) -> Any:
        """Leave the prompts as they are; batches are made of what is sampled."""
        return rows

    @abstractmethod
    def learn(self, step: int, rollouts: list[Rollout]) -> None:
        """Find out what the rollouts of a step are worth, and write it into them."""

    @abstractmethod
    def form(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Return rollouts as a batch; `weights` has shape (B,)."""

    def heard(self, step: int, rollouts: Sequence[Rollout], piece: tuple[int, int]) -> None:
        """Take rollouts as they are sampled, before those of the whole step are.

        Args:
            step: optimiser step, from 1.
            rollouts: of whole prompts.
            piece: which piece of the step this is, and of how many.
        """

    def get_batch_samples(
        self,
        epoch_iterator: Iterator[Any],
        num_batches: int,
        device: torch.device,  # noqa: ARG002 - transformers' signature
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Sample what the step's prompts are answered, and return as many micro-batches as it had."""
        for _ in range(num_batches):
            next(epoch_iterator)  # a step's rows are known by their place, also where it is ahead
        step = self.state.global_step + 1
        for due in range(step, min(step + self.lead, self.args.max_steps) + 1):
            if due not in self._due:
                self._due[due] = self._sample(due, self._slots(due))
        rollouts = self._due.pop(step)
        self.learn(step, rollouts)
        live = sorted((r for r in rollouts if r.weight > 0), key=_length)
        self._silent = not live
        batches = [self.form(part) for part in _dealt(live, rollouts[0], num_batches)]
        self._record(step, rollouts)
        self._measure(step, [r for r in rollouts if not r.stands])
        self.watch.heard(step, silent=self._silent)
        total = torch.stack([batch["weights"].sum() for batch in batches]).sum()
        return batches, total.clamp(min=1.0) if self._silent else total

    @property
    def lead(self) -> int:
        """Optimiser steps by which sampling is ahead of training."""
        return 0

    def keep(self, checkpoint: Path) -> None:
        """Write what was sampled ahead: the weights that said it are not kept, so nobody can say it again."""
        said = {step: [asdict(r.said) for r in rollouts] for step, rollouts in self._due.items()}
        if said:
            (checkpoint / _AHEAD).write_text(json.dumps(said), "utf-8")

    def take_up(self, checkpoint: Path) -> None:
        """Read what was sampled ahead; it is told to the driver when its turn comes, as if it were said then."""
        file = checkpoint / _AHEAD
        for step, rows in json.loads(file.read_text("utf-8")).items() if file.exists() else ():
            for row in rows:
                row |= {"token_ids": tuple(row["token_ids"]), "logprobs": tuple(row["logprobs"])}
            self.brought[int(step)] = [Generation(**row) for row in rows]

    @cached_property
    def _due(self) -> dict[int, list[Rollout]]:
        """What was sampled for each step that is not learned from yet."""
        return {}

    @cached_property
    def brought(self) -> dict[int, list[Generation]]:
        """What was said ahead before the job was cut off, by step, in the order of its slots."""
        return {}

    def _slots(self, step: int) -> list[Row]:
        """Return the prompts of a step, in the order of its slots."""
        size = self.trainer.batch_size
        rows: Any = self.train_dataset
        return [rows[place] for place in range((step - 1) * size, step * size)]

    def _record(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Let the driver keep what the rollouts of a step were, and what they were worth."""
        new = [] if self.trainer.asks == "judge" else [r.told() for r in rollouts if not r.stands]
        told = {"step": step, "said": new, "rollouts": [r.earned() for r in rollouts]}
        self.caller.reply(self.caller.ask("record", **told))

    def standing(self, row: Row, draw: float) -> Generation | None:  # noqa: ARG002 - for subclasses
        """Return the answer that stands already and is trained on in place of a new one.

        Args:
            row: of the prompt.
            draw: a number in [0, 1) that belongs to this rollout.
        """
        return None

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Leave the weights alone where no rollout said anything: momentum would move them."""
        if not self._silent:
            return super()._get_grad_norm(*args, **kwargs)
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        return 0.0

    def leave(self) -> None:
        """Hang up, and give the memory of frozen models back."""
        if "caller" in self.__dict__:
            self.caller.close()
        self._models.clear()

    @cached_property
    def caller(self) -> Caller:
        """The line to the driver."""
        return Caller(self.job.address)

    @cached_property
    def policy(self) -> TransformersPolicy:
        """The weights that are trained, as a policy that samples."""
        home = Revision(id="", folder=base_folder(self.job), parent=None, canary=None)
        policy = TransformersPolicy(home, threads=self.job.threads)
        policy.follow(self._bare, self.compute_loss_context_manager)
        return policy

    def held(self, name: str) -> Any:
        """Return the frozen model of a name that the job holds beside what it trains."""
        if name not in self._models:
            model: Any = open_held(self.job, name)
            self._models[name] = model.to(self.args.device)
        return self._models[name]

    @cached_property
    def _models(self) -> dict[str, Any]:
        return {}

    def _sample(self, step: int, slots: Sequence[Row]) -> list[Rollout]:
        each = max(1, _PIECE // self.trainer.k) * self.trainer.k
        pieces = range(0, len(slots), each)
        rollouts: list[Rollout] = []
        for nth, begin in enumerate(pieces):
            part = list(enumerate(slots[begin : begin + each], start=begin))
            known = {n: self.standing(row, self._seed(step, n) / _SEEDS) for n, row in part}
            missing = [(n, row) for n, row in part if known[n] is None]
            known |= zip((n for n, _ in missing), self._generate(step, missing), strict=True)
            new = {n for n, _ in missing}
            found = [
                Rollout(row, n, said, stands=n not in new)
                for n, row in part
                if (said := known[n]) is not None
            ]
            self.heard(step, found, (nth, len(pieces)))
            rollouts += found
        return rollouts

    def _generate(self, step: int, slots: Sequence[tuple[int, Row]]) -> list[Generation]:
        if step in self.brought:
            return [self.brought[step][n] for n, _ in slots]
        sampling = Sampling(1.0, max_tokens=self.trainer.max_tokens)
        requests = [Request(tuple(row["prompt_ids"]), self._seed(step, n)) for n, row in slots]
        model: Any = self.model
        model.eval()
        try:
            return self.policy.generate(requests, sampling)
        finally:
            model.train()

    def _seed(self, step: int, slot: int) -> int:
        """Return the seed of a rollout, of what is asked for, so that a job that is resumed samples it again."""
        job = self.job
        named = {"rows": job.dataset_hash, "start": job.start_revision, "seed": job.seed}
        return row_seed(row_id("rollout", **named, step=step, slot=slot))

    def _measure(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Note what the step's rollouts were like."""
        if not rollouts:
            return
        said = [r.said for r in rollouts]
        known = [r.reward for r in rollouts if r.reward is not None]
        values = {
            "rollouts/tokens": fmean(len(one.token_ids) for one in said),
            "rollouts/cut": fmean(one.finish_reason == "length" for one in said),
            "rollouts/repeats": fmean(_repeats(one.token_ids) for one in said),
            "rollouts/surprisal": -fmean(p for one in said for p in one.logprobs),
            "rollouts/used": fmean(r.weight > 0 for r in rollouts),
        }
        if self.trainer.asks == "judge":
            values["rollouts/unjudged"] = fmean(r.reward is None for r in rollouts)
        if known:
            values["reward"] = fmean(known)
        for name, value in values.items():
            self._metrics["train"][name].append(value)
        self.watch.sampled(step, values)


def answered(rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """Return the tokens of rollouts as a batch, each with its weight."""
    prompts = [r.row["prompt_ids"] for r in rollouts]
    batch = padded(prompts, [list(r.said.token_ids) for r in rollouts])
    batch["weights"] = torch.tensor([r.weight for r in rollouts], dtype=torch.float32)
    said = torch.zeros(batch["input_ids"].shape)
    # What stands in the store was said by somebody else, if its log-probs are known at all.
    said[batch["completion_mask"].bool()] = torch.tensor(
        [p for r in rollouts for p in r.said.logprobs or [0.0] * len(r.said.token_ids)]
    )
    batch["said"] = said[:, 1:]
    return batch


def gap(logp: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return by how many nats a token the log-probs of the trained weights are from those at sampling, on average."""
    there = batch["completion_mask"][:, 1:]
    return ((logp.detach() - batch["said"]).abs() * there).sum() / there.sum()


def _length(rollout: Rollout) -> int:
    return len(rollout.row["prompt_ids"]) + len(rollout.said.token_ids)


def _dealt(live: Sequence[Rollout], any_one: Rollout, parts: int) -> list[list[Rollout]]:
    """Cut rollouts into so many parts; an empty one is filled with a rollout that counts for nothing."""
    share, more = divmod(len(live), parts)
    found, begin = [], 0
    for part in range(parts):
        end = begin + share + (part < more)
        found.append(list(live[begin:end]) or [Rollout(any_one.row, -1, any_one.said, weight=0.0)])
        begin = end
    return found


def _repeats(ids: Sequence[int]) -> float:
    """Return the share of an answer that it has said before."""
    grams = [tuple(ids[i : i + _GRAM]) for i in range(len(ids) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
