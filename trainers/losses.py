"""TRL's trainers, fed with the tokens that were really sampled, and stopped before a bad step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

import torch
import transformers
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from .trainer import Trainer


class NonFiniteError(Exception):
    """A loss or a gradient is no finite number; the optimiser has not stepped on it."""

    def __init__(self, step: int, what: str, value: float) -> None:
        super().__init__(f"{what} is {value} in step {step}")


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
    """Stops before the optimiser takes a step on a non-finite loss or gradient.

    transformers itself logs a NaN loss as 0.0 and goes on.
    """

    config: ClassVar[type[Any]]
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
        self._must_be_finite("loss", float(loss))
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._must_be_finite("gradient norm", float(norm))
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand each step's values on."""
        super().log(logs, start_time)
        if "loss" in logs:
            self.report(self.state.global_step, dict(logs))

    def _must_be_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(self.state.global_step + 1, what, value)


class AnswerSFT(Guarded, SFTTrainer):
    """SFT on `input_ids` and `labels` as given, each row with its `weight`."""

    config = SFTConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        padded = self.data_collator

        def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            weights = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
            return {**padded(rows), "weights": weights}

        self.data_collator = collate

    @classmethod
    def settings(cls, trainer: Trainer) -> dict[str, Any]:  # noqa: ARG003 - the same for each
        """Take the rows as they are: no tokenising, no end token added."""
        return {"dataset_kwargs": {"skip_prepare_dataset": True}}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the answer tokens of a whole optimiser step, each as much as its row weighs."""
        counts = [
            (batch["labels"][:, 1:].ne(-100).sum(1) * batch["weights"]).sum()
            for batch in batch_samples
        ]
        return torch.stack(counts).sum().to(device)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Weigh each row's log-probs, and leave the rest to TRL."""
        weights = inputs.pop("weights")

        def weighted(**fields: Any) -> Any:
            outputs = model(**fields)
            outputs.log_probs = outputs.log_probs * weights[:, None]
            return outputs

        head = model if bool((weights == 1).all()) else weighted
        return super().compute_loss(head, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]


class AnswerDPO(Guarded, DPOTrainer):
    """DPO on token ids and reference log-probs as given; stock TRL tokenises and scores them anew."""

    config = DPOConfig

    @classmethod
    def settings(cls, trainer: Trainer) -> dict[str, Any]:
        """Take the reference log-probs from the rows, so that no reference model is loaded."""
        return {"beta": getattr(trainer, "beta"), "precompute_ref_log_probs": True}  # noqa: B009

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002 - TRL's signature
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002
        return dataset
