"""A TRL trainer that stops before a bad step, and scores only what bears loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from .job import Job
from .trainer import Trainer
from .watch import Watch


@contextmanager
def answers_only() -> Iterator[None]:
    """Let TRL's fused head score only the positions that bear loss, on a CPU as on a GPU.

    Off the GPU it multiplies every prompt position with the whole vocabulary and masks the product,
    which was a third of a step for short answers to 60-token prompts. The result is the same.
    """
    fused: Any = import_module("trl.trainer.utils")
    kept = fused._use_triton
    fused._use_triton = lambda device: True  # noqa: ARG005 - only chooses which rows are scored
    try:
        yield
    finally:
        fused._use_triton = kept


class Guarded(transformers.Trainer):
    """Stops before the optimiser takes a step on a gradient that is none, and skips one far from all others."""

    config: ClassVar[type[Any]]
    trainer: Trainer
    """The recipe's own settings; its loss, where it has one."""
    job: Job
    """What is done."""
    watch: Watch
    report: Callable[[int, dict[str, float]], None]
    """Takes a step's number, from 1, and its measured values."""

    @classmethod
    def settings(cls, trainer: Trainer) -> dict[str, Any]:
        """Return the config fields that are this loss's own."""
        raise NotImplementedError

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one micro-batch forward and backward, and refuse a loss that is no number."""
        with answers_only():
            loss = super().training_step(*args, **kwargs)
        self.watch.finite(self.state.global_step + 1, "loss", float(loss))
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[no-untyped-call]
        if not self.watch.gradient(self.state.global_step + 1, float(norm)):
            # Without a gradient AdamW leaves a weight and its moments alone; with a zero it would not.
            assert self.optimizer is not None
            self.optimizer.zero_grad(set_to_none=True)
        return norm

    def keep(self, checkpoint: Path) -> None:
        """Write what the job needs to go on from a checkpoint, beside what transformers writes."""

    def take_up(self, checkpoint: Path) -> None:
        """Read what `keep` wrote."""

    def leave(self) -> None:
        """Let go of what the job held beside the model."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand each step's values on."""
        super().log(logs, start_time)
        if "loss" in logs:
            self.watch.measured(self.state.global_step, logs)
            self.report(self.state.global_step, dict(logs))


class Weighed(Guarded):
    """A loss of ours: the weighted mean over the rows of an optimiser step.

    So a row of weight 0 counts as if it were absent, and it makes no difference into how many micro-batches a
    step is cut.
    """

    @abstractmethod
    def losses(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the loss of each row, shape (B,)."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Weigh the rows of a whole optimiser step; `weights` has shape (B,)."""
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum()
        return of_all(self, total.to(device))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002, ARG002 - transformers' signature
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Return the micro-batch's share of the step's weighted mean."""
        losses = self.losses(model, inputs)
        share: Tensor = (losses * inputs["weights"]).sum() / num_items_in_batch
        # Several processes' gradients are averaged, and the divisor is all of their rows.
        return share * int(self.accelerator.num_processes)

    def note(self, **values: Tensor) -> None:
        """Keep measured values for the step's log, each the mean over its rows."""
        measured: Any = getattr(self, "_metrics")  # noqa: B009 - TRL's, of every trainer of its own
        for name, value in values.items():
            measured["train"][name].append(float(value.detach().mean()))


def of_all(trainer: transformers.Trainer, count: Tensor) -> Tensor:
    """Add up a count over all processes of a job."""
    if trainer.args.world_size == 1:
        return count
    total: Tensor = trainer.accelerator.gather(count).sum()
    return total
