"""TRL's reward trainer, fed with pairs of conversations as they are."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from .answers import padded
from .guarded import Weighed
from .trainer import Trainer

Row = dict[str, Any]


class AnswerRewards(Weighed, RewardTrainer):
    """Pairs of rewards under the trainer's own loss."""

    config = RewardConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_collator = self.collate
        self.model_accepts_loss_kwargs = True  # the loss divides by the weights of the whole step

    @classmethod
    def settings(cls, trainer: Trainer) -> dict[str, Any]:  # noqa: ARG003 - the same for each
        """Leave the model its dropout, which it has none of, and the rows as they are."""
        return {"disable_dropout": True}

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002 - TRL's signature
        return dataset

    @staticmethod
    def collate(rows: list[Row]) -> dict[str, Tensor]:
        """Put the chosen conversations before the rejected ones."""
        prompts = [row["prompt_ids"] for row in rows]
        sides = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
        batch = padded(prompts * 2, sides)
        for name in ("margin", "probability", "weight"):
            key = "weights" if name == "weight" else name
            batch[key] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch

    def losses(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return each pair's loss."""
        chosen, rejected = self._rewards(model, inputs).chunk(2)
        self.note(
            **{
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/accuracies": (chosen > rejected).float(),
            }
        )
        found: Tensor = self.trainer.loss(chosen, rejected, inputs)  # type: ignore[attr-defined]
        return found

    def _rewards(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        # The head reads the last token that is not the pad token: so what pads is one that no row holds.
        used = set(ids[mask.bool()].unique().tolist())
        pad = next(i for i in itertools.count() if i not in used)
        config = getattr(model, "module", model).config.get_text_config()
        kept, config.pad_token_id = config.pad_token_id, pad
        try:
            filled = ids.masked_fill(mask == 0, pad)
            logits: Tensor = model(input_ids=filled, attention_mask=mask, use_cache=False).logits
        finally:
            config.pad_token_id = kept
        return logits[:, 0].float()
