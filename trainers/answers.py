"""TRL's trainers, fed with the tokens that were really sampled."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from .guarded import Guarded, Weighed, of_all
from .losses import LabelledLogps, PairLogps, RankedLogps
from .sharing import IGNORED, can_share, sharing
from .trainer import Trainer

Row = dict[str, Any]


def padded(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> dict[str, Tensor]:
    """Return prompts and answers as one batch, filled on the right.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, all (N, longest); what fills is masked, so that its
        id says nothing.
    """
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))

    def filled(make: Any) -> Tensor:
        rows = [make(p, a) for p, a in zip(prompts, answers, strict=True)]
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    return {
        "input_ids": filled(lambda p, a: p + a),
        "attention_mask": filled(lambda p, a: [1] * (len(p) + len(a))),
        "completion_mask": filled(lambda p, a: [0] * len(p) + [1] * len(a)),
    }


def token_logps(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the log-prob of each token of the answers of a batch, (N, longest - 1); 0 where there is none."""
    answers = batch["completion_mask"]
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["input_ids"].masked_fill(answers == 0, IGNORED),
        fused_lm_head=True,
        use_cache=False,
    )
    found: Tensor = outputs.log_probs[:, -(answers.size(1) - 1) :]
    return found


def logps(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the log-prob of each answer of a batch, shape (N,)."""
    return token_logps(model, batch).sum(1)


class AnswerSFT(Guarded, SFTTrainer):
    """SFT on `input_ids` and `labels` as given, each row with its `weight`, each token with its own."""

    config = SFTConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        padded_rows = self.data_collator

        def collate(rows: list[Row]) -> dict[str, Tensor]:
            batch = padded_rows([{k: row[k] for k in ("input_ids", "labels")} for row in rows])
            weights = torch.zeros(batch["labels"].shape)
            for place, row in enumerate(rows):
                weights[place, : len(row["weights"])] = torch.tensor(row["weights"])
            return {**batch, "weights": weights[:, 1:]}

        self.data_collator = collate

    @classmethod
    def settings(cls, trainer: Trainer) -> dict[str, Any]:  # noqa: ARG003 - the same for each
        """Take the rows as they are: no tokenising, no end token added."""
        return {"dataset_kwargs": {"skip_prepare_dataset": True}}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the answer tokens of a whole optimiser step, each as much as it weighs."""
        counts = [
            (batch["labels"][:, 1:].ne(IGNORED) * batch["weights"]).sum() for batch in batch_samples
        ]
        return of_all(self, torch.stack(counts).sum().to(device))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Weigh each token's log-prob, and leave the rest to TRL."""
        weights = inputs.pop("weights")

        def weighted(**fields: Any) -> Any:
            outputs = model(**fields)
            outputs.log_probs = outputs.log_probs * weights
            return outputs

        head = model if bool((weights == 1).all()) else weighted
        return super().compute_loss(head, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]


class Formula(Weighed, SFTTrainer):
    """TRL's loop and head under a loss of ours."""

    config = SFTConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_collator = self.collate
        # The head that TRL has put on also measures what is not asked for here, at a tenth of a step.
        self._bare.__dict__.pop("forward", None)
        add_fused_lm_head(self._bare)

    @property
    def _bare(self) -> Any:
        return getattr(self.model, "get_base_model", lambda: self.model)()

    @classmethod
    def settings(cls, trainer: Trainer) -> dict[str, Any]:  # noqa: ARG003 - the same for each
        """Take the rows as they are."""
        return {"dataset_kwargs": {"skip_prepare_dataset": True}}

    @staticmethod
    @abstractmethod
    def collate(rows: list[Row]) -> dict[str, Tensor]:
        """Return rows as a batch; `weights` has shape (B,)."""


class _Sharing:
    """Whether the prompts of pairs are computed once, proven on the longest rows so far."""

    def __init__(self) -> None:
        self._longest, self._fine = 0, True

    def read(self, model: Any, batch: Mapping[str, Tensor]) -> Any:
        """Return the model that reads a batch of pairs."""
        longest = batch["input_ids"].size(1)
        if self._fine and longest > self._longest:
            # A window that was wide enough for shorter rows may not be for these. The bare model is asked, because
            # the wrapper of several processes would wait for the others, whose rows may be no longer than before.
            self._longest, self._fine = longest, can_share(getattr(model, "module", model), batch)
        return sharing(model) if self._fine else model


class AnswerPairs(Formula):
    """Preference pairs under the trainer's own loss; both answers' prompt is computed once where that is the same."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sharing = _Sharing()

    @staticmethod
    def collate(rows: list[Row]) -> dict[str, Tensor]:
        """Put the chosen answers before the rejected ones, as TRL does."""
        prompts = [row["prompt_ids"] for row in rows]
        sides = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
        batch = padded(prompts * 2, sides)
        if rows[0]["gold_ids"] is not None:
            gold = padded(prompts, [row["gold_ids"] for row in rows])
            batch |= {f"gold_{name}": value for name, value in gold.items()}
        for name in ("ref_chosen_logp", "ref_rejected_logp", "margin", "probability", "weight"):
            key = "weights" if name == "weight" else name
            batch[key] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch

    def losses(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return each pair's loss."""
        read = self._sharing.read(model, inputs)
        chosen, rejected = logps(read, inputs).chunk(2)
        chosen_tokens, rejected_tokens = inputs["completion_mask"].sum(1).chunk(2)
        gold = {n[5:]: value for n, value in inputs.items() if n.startswith("gold_")}
        pairs = PairLogps(
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            ref_chosen=inputs["ref_chosen_logp"],
            ref_rejected=inputs["ref_rejected_logp"],
            probability=inputs["probability"],
            margin=inputs["margin"],
            gold=logps(model, gold) if gold else None,
            gold_tokens=gold["completion_mask"].sum(1) if gold else None,
        )
        self._measure(pairs)
        found: Tensor = self.trainer.loss(pairs)  # type: ignore[attr-defined]
        return found

    def _measure(self, pairs: PairLogps) -> None:
        """Note what TRL notes of a pair, under its names."""
        self.note(**{"logps/chosen": pairs.chosen, "logps/rejected": pairs.rejected})
        if not self.trainer.reference:
            return
        beta = getattr(self.trainer, "beta")  # noqa: B009 - every loss with a reference has one
        gains = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
        self.note(
            **{
                "rewards/chosen": beta * gains[0],
                "rewards/rejected": beta * gains[1],
                "rewards/margins": beta * pairs.log_ratio,
                "rewards/accuracies": (pairs.log_ratio > 0).float(),
                "chosen_change": gains[0] / pairs.chosen_tokens,
            }
        )


class AnswerLabels(Formula):
    """Answers that are wanted or not, each beside an answer to another prompt that tells how far the policy moved."""

    @staticmethod
    def collate(rows: list[Row]) -> dict[str, Tensor]:
        """Put answers and the others' answers side by side."""
        prompts = [row["prompt_ids"] for row in rows]
        batch = padded(prompts, [row["completion_ids"] for row in rows])
        other = padded(prompts, [row["other_ids"] for row in rows])
        batch |= {f"other_{name}": value for name, value in other.items()}
        batch["wanted"] = torch.tensor([row["wanted"] for row in rows])
        for name, key in (
            ("ref_logp", "ref"),
            ("ref_other_logp", "ref_other"),
            ("weight", "weights"),
        ):
            batch[key] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch

    def losses(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return each answer's loss."""
        with torch.no_grad():
            others = logps(model, {k[6:]: v for k, v in inputs.items() if k.startswith("other_")})
        moved = (others - inputs["ref_other"]).mean()
        shift = self.accelerator.reduce(moved, "mean").clamp(min=0)
        found = LabelledLogps(logps(model, inputs), inputs["ref"], inputs["wanted"], shift)
        gain = found.logp - found.ref
        wanted = found.wanted
        beta, tokens = getattr(self.trainer, "beta"), inputs["completion_mask"].sum(1)  # noqa: B009
        self.note(kl=shift)
        if bool(wanted.any()):
            self.note(chosen_change=(gain / tokens)[wanted])
            self.note(**{"rewards/chosen": beta * gain[wanted]})
        if not bool(wanted.all()):
            self.note(**{"rewards/rejected": beta * gain[~wanted]})
        loss: Tensor = self.trainer.loss(found)  # type: ignore[attr-defined]
        return loss


class AnswerLists(Formula):
    """Prompts with all their answers under the trainer's own loss."""

    @staticmethod
    def collate(rows: list[Row]) -> dict[str, Tensor]:
        """Put all answers of all prompts below each other; places are among all of the batch."""
        counts = [len(row["answers_ids"]) for row in rows]
        begins = [sum(counts[:nth]) for nth in range(len(counts))]
        prompts = [row["prompt_ids"] for row in rows for _ in row["answers_ids"]]
        batch = padded(prompts, [ids for row in rows for ids in row["answers_ids"]])
        for side in ("better", "worse"):
            places = [b + n for b, row in zip(begins, rows, strict=True) for n in row[side]]
            batch[side] = torch.tensor(places)
        batch["prompt"] = torch.tensor([nth for nth, n in enumerate(counts) for _ in range(n)])
        batch["best"] = torch.tensor(begins)
        batch["weights"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return batch

    def losses(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return each prompt's loss."""
        mean = logps(model, inputs) / inputs["completion_mask"].sum(1)
        names = ("prompt", "best", "better", "worse")
        lists = RankedLogps(mean, *(inputs[name] for name in names))
        lead = mean[lists.better] - mean[lists.worse]
        self.note(**{"logps/best": mean[lists.best], "lead": lead, "ordered": (lead > 0).float()})
        loss: Tensor = self.trainer.loss(lists)  # type: ignore[attr-defined]
        return loss


class AnswerDPO(Guarded, DPOTrainer):
    """One of TRL's own DPO losses, on token ids and reference log-probs as given.

    Stock TRL tokenises rows and scores them anew.
    """

    config = DPOConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sharing = _Sharing()

    @classmethod
    def settings(cls, trainer: Trainer) -> dict[str, Any]:
        """Take the reference log-probs from the rows, so that no reference model is loaded."""
        return {"beta": getattr(trainer, "beta"), "precompute_ref_log_probs": True}  # noqa: B009

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002 - TRL's signature
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute each prompt once where that gives the same numbers, and leave the rest to TRL."""
        chosen = inputs["completion_mask"].chunk(2)[0]
        self._metrics["train"]["chosen_tokens"].append(float(chosen.sum(1).float().mean()))
        read = model if self.aux_loss_enabled else self._sharing.read(model, inputs)
        return super().compute_loss(read, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell also by how much chosen answers have become likelier than under the reference."""
        means = {key: sum(values) / len(values) for key, values in self._metrics["train"].items()}
        if "loss" in logs and means.get("chosen_tokens"):
            logs["chosen_change"] = means["rewards/chosen"] / self.beta / means["chosen_tokens"]
        super().log(logs, start_time)
