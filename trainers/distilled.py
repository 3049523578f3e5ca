"""Rollouts whose every token a teacher has an opinion of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..policies.policy import Generation
from ..policies.precision import NOISE, precision_of
from .answers import Row, padded
from .divergences import divergence, likeliest
from .heads import Scores, scores, tiled
from .rollouts import Rollout, Sampled, answered
from .watch import Stopped
from .weights import base_folder

if TYPE_CHECKING:
    from .distill import Distill


class Distilled(Sampled):
    """Lets a teacher read what the student has said, and moves the student's distributions towards the teacher's."""

    trainer: Distill

    def standing(self, row: Row, draw: float) -> Generation | None:
        """Return the answer that stands already, for as many prompts as are not sampled."""
        if draw < self.trainer.on_policy:
            return None
        ids = tuple(row["completion_ids"])
        return Generation("", ids, (), "stop")  # of its own words nothing is asked again

    def learn(self, step: int, rollouts: list[Rollout]) -> None:
        """Weigh each rollout as its prompt; what it is worth its teacher says when it is formed."""
        for rollout in rollouts:
            rollout.weight = float(rollout.row["weight"])
        if step == 1 and not self.trainer.stored and not self.trainer.negative:
            for name in sorted({r.row["teacher"] for r in rollouts}):
                mine = [r for r in rollouts if r.row["teacher"] == name]
                self._repeatable(name, mine[: self.trainer.micro_batch])

    def form(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """Return rollouts as a batch, with what their teachers think of each token."""
        batch: dict[str, Any] = answered(rollouts)
        batch["counts"] = batch["completion_mask"].sum(1)
        batch["weights"] = batch["weights"] * batch["counts"]
        batch["views"] = [] if self.trainer.negative else list(self._views(rollouts))
        return batch

    def losses(self, model: Any, inputs: dict[str, Any]) -> Tensor:  # noqa: ARG002 - its head is run apart
        """Return each rollout's loss, the mean over the tokens that bear it."""
        student = scores(self._bare, inputs)
        if self.trainer.negative:
            each = self._rarer(student, inputs)
        else:
            each = torch.zeros(len(student.hidden), device=student.hidden.device)
            for view in inputs["views"]:
                each = each.index_put((view["tokens"],), self._apart(student, view))
        there = inputs["completion_mask"][:, 1:].bool()
        spread = torch.zeros(there.shape, device=each.device).masked_scatter(there, each)
        self.note(divergence=each.sum() / inputs["counts"].sum().clamp(min=1))
        means: Tensor = spread.sum(1) / inputs["counts"].clamp(min=1)
        return means

    @property
    def _vocabulary(self) -> int:
        return int(self._bare.config.get_text_config().vocab_size)

    def _apart(self, student: Scores, view: Row) -> Tensor:
        """Return how far the student is from one teacher, for each token that the teacher has looked at."""
        mine = student.of(view["tokens"])
        beta, skew = self.trainer.beta, self.trainer.skew
        if "top_ids" in view:

            def at_the_top(tile: Tensor, ids: Tensor, told: Tensor) -> Tensor:
                return divergence(*likeliest(mine.logps(tile), ids, told), beta, skew)

            beside = view["top_ids"], view["top_logprobs"]
            return tiled(at_the_top, mine, *beside, vocabulary=self._vocabulary)
        teacher: Scores = view["seen"]
        width = min(self._vocabulary, teacher.vocabulary)
        top = self.trainer.top_k

        def everywhere(tile: Tensor, seen: Tensor) -> Tensor:
            with torch.no_grad():
                told = teacher.logps(seen, width)
            student = mine.logps(tile, width)
            if not top:
                return divergence(student, told, beta, skew)
            best = told.topk(min(top, width), -1)
            return divergence(*likeliest(student, best.indices, best.values), beta, skew)

        return tiled(everywhere, mine, teacher.hidden, vocabulary=width)

    def _rarer(self, student: Scores, inputs: dict[str, Any]) -> Tensor:
        """Return the control's loss: an advantage of -1 for every token, whatever it says."""
        there = inputs["completion_mask"][:, 1:].bool()
        said = inputs["input_ids"][:, 1:][there]

        def rarer(tile: Tensor, ids: Tensor) -> Tensor:
            logp = student.logps(tile).gather(-1, ids[:, None])[:, 0]
            return torch.exp(logp - logp.detach())

        return tiled(rarer, student, said, vocabulary=self._vocabulary)

    # -- what teachers think

    def _views(self, rollouts: Sequence[Rollout]) -> Iterator[Row]:
        """Yield what each teacher thinks of its rollouts' tokens; `tokens` are their places among all of the batch."""
        ends = torch.tensor([len(r.said.token_ids) for r in rollouts]).cumsum(0).tolist()
        places = [
            torch.arange(end - len(r.said.token_ids), end)
            for end, r in zip(ends, rollouts, strict=True)
        ]
        groups: dict[str, list[int]] = {}
        for nth, rollout in enumerate(rollouts):
            groups.setdefault("" if self.trainer.stored else rollout.row["teacher"], []).append(nth)
        for name, members in groups.items():
            tokens = torch.cat([places[n] for n in members])
            mine = [rollouts[n] for n in members]
            seen = self._read(name, mine) if name else _stored(mine)
            yield {"tokens": tokens, **seen}

    def _read(self, name: str, rollouts: Sequence[Rollout]) -> Row:
        """Let a teacher read rollouts, and keep what each token is worth to it."""
        told = self._ask(name, rollouts)
        values = self._values(told, rollouts).tolist()
        begin = 0
        for rollout in rollouts:
            count = len(rollout.said.token_ids)
            if rollout.said.logprobs:
                pairs = zip(values[begin : begin + count], rollout.said.logprobs, strict=True)
                rollout.token_rewards = [teacher - student for teacher, student in pairs]
                rollout.reward = fmean(rollout.token_rewards)
            begin += count
        return {"seen": told}

    def _ask(self, name: str, rollouts: Sequence[Rollout]) -> Scores:
        prompts = [r.row["teacher_prompt_ids"] or r.row["prompt_ids"] for r in rollouts]
        return self._look(
            self._teacher(name), padded(prompts, [list(r.said.token_ids) for r in rollouts])
        )

    def _look(self, model: Any, batch: dict[str, Tensor]) -> Scores:
        """Let a frozen model read a batch."""
        training, device = model.training, self.args.device
        model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                return scores(model, {n: value.to(device) for n, value in batch.items()})
        finally:
            model.train(training)

    def _teacher(self, name: str) -> Any:
        return self._bare if self.trainer.live else self.held(name)

    def _values(self, told: Scores, rollouts: Sequence[Rollout]) -> Tensor:
        """Return the log-prob of every token that was said, one rollout after the other."""
        said = torch.cat([torch.tensor(r.said.token_ids) for r in rollouts])

        def picked(tile: Tensor, ids: Tensor) -> Tensor:
            return told.logps(tile).gather(-1, ids[:, None])[:, 0]

        with torch.no_grad(), self.compute_loss_context_manager():
            vocabulary = told.vocabulary
            return tiled(picked, told, said.to(told.hidden.device), vocabulary=vocabulary)

    def _repeatable(self, name: str, rollouts: Sequence[Rollout]) -> None:
        """Ask a teacher twice, in another order.

        Raises:
            Stopped: it does not say the same again, so that what it says is no distribution to learn.
        """
        once = self._values(self._ask(name, rollouts), rollouts)
        again = self._values(self._ask(name, rollouts[::-1]), rollouts[::-1])
        sizes = [len(r.said.token_ids) for r in rollouts]
        turned = torch.cat(again.split(sizes[::-1])[::-1])
        apart = float((once - turned).abs().mean())
        if not apart <= NOISE[precision_of(base_folder(self.job))]:
            told = f"{name} is {apart:.3g} nats a token from itself when it is asked again"
            raise Stopped("unfit_teacher", told)


def _stored(rollouts: Sequence[Rollout]) -> Row:
    """Return the distributions that stand in the rows."""
    ids = [torch.tensor(r.row["top_ids"]) for r in rollouts]
    logprobs = [torch.tensor(r.row["top_logprobs"], dtype=torch.float32) for r in rollouts]
    return {"top_ids": torch.cat(ids), "top_logprobs": torch.cat(logprobs)}
