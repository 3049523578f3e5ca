"""Chosen and rejected answer in one row, so that their prompt is computed once.

A row is the prompt without its last token, then twice that last token with an answer behind it. Positions go on
from the prompt in both, and a mask hides the first answer from the second. Every token sees what it sees in a row
of its own, so that the numbers are the same; for short answers to a long prompt it is half the work and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that bears no loss."""
_FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")
_MASKED = ("sdpa", "eager")
"""Attention that takes any mask."""
_NOISE = 1e-3
"""Nats a token by which two ways to compute the same log-prob may differ in fp32; bf16 is 50 times coarser."""
_COARSE = 50


@dataclass(frozen=True, slots=True)
class Shared:
    """A batch of pairs, each in one row.

    Shapes: B pairs, T the longest row, L the longest sequence of the batch as TRL has it.
    """

    input_ids: Tensor
    """(B, T)."""
    position_ids: Tensor
    """(B, T)."""
    mask: Tensor
    """(B, 1, T, T), whether a query sees a key."""
    labels: Tensor
    """(B, T), the next token of each position's own sequence; IGNORED where it is no answer's."""
    source: Tensor
    """(2B, L - 1), the place in its row of each label of TRL's batch."""
    there: Tensor
    """(2B, L - 1), whether that label is an answer's."""


def share(batch: Mapping[str, Tensor]) -> Shared:
    """Lay out TRL's batch of pairs, chosen halves first, as one row a pair.

    Args:
        batch: `input_ids` and `completion_mask`, both (2B, L), padded on the right.
    """
    ids, answers = batch["input_ids"], batch["completion_mask"]
    pairs = len(ids) // 2
    prompt = answers.argmax(1)[:pairs, None] - 1  # tokens before the one that is repeated
    chosen, rejected = (side[:, None] for side in answers.sum(1).chunk(2))
    longest = int((prompt + chosen + rejected).max())
    place = torch.arange(longest, device=ids.device).expand(pairs, -1)
    used = place < prompt + chosen + rejected
    second = place >= prompt + chosen
    position = (place - chosen * second) * used
    row = torch.arange(pairs, device=ids.device)[:, None] + pairs * second
    following = ids[row, (position + 1).clamp(max=ids.size(1) - 1)]
    shift = torch.arange(ids.size(1) - 1, device=ids.device)
    there = answers[:, 1:].bool()
    return Shared(
        input_ids=ids[row, position] * used,
        position_ids=position,
        mask=_mask(place, prompt, chosen, used)[:, None],
        labels=torch.where(used & (place >= prompt), following, IGNORED),
        source=(shift + torch.cat([torch.zeros_like(chosen), chosen])) * there,
        there=there,
    )


def _mask(place: Tensor, prompt: Tensor, chosen: Tensor, used: Tensor) -> Tensor:
    """Return (B, T, T): a query sees the prompt, and of its own answer what is not after it."""
    branch = (place >= prompt).int() + (place >= prompt + chosen).int()
    before = place[:, :, None] >= place[:, None, :]
    same = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    # Padding sees itself, because a softmax over nothing is no number.
    return (before & same & used[:, None, :]) | torch.eye(
        place.size(1), dtype=torch.bool, device=place.device
    )


def sharing(model: Any) -> Callable[..., Any]:
    """Return the model as TRL calls it, which computes the prompts of a batch of pairs once."""

    def forward(*, input_ids: Tensor, labels: Tensor, **fields: Any) -> Any:
        shared = share({"input_ids": input_ids, "completion_mask": (labels != IGNORED).int()})
        fields.pop("attention_mask")
        outputs = model(
            input_ids=shared.input_ids,
            position_ids=shared.position_ids,
            attention_mask=_as_attended(shared.mask, model),
            shift_labels=shared.labels,
            **fields,
        )
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None] % len(
            shared.input_ids
        )
        for name in _FIELDS:
            value = getattr(outputs, name)
            if value is not None:
                setattr(outputs, name, value[rows, shared.source] * shared.there)
        return outputs

    return forward


def _as_attended(mask: Tensor, model: Any) -> Tensor:
    """Return the mask as the model's attention takes it: eager attention adds it to its scores."""
    if _attention(model) == "sdpa":
        return mask
    dtype = next(model.parameters()).dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _attention(model: Any) -> str:
    # One of several processes sees the model through a wrapper.
    return str(getattr(model, "module", model).config._attn_implementation)


def can_share(model: Any, batch: Mapping[str, Tensor]) -> bool:
    """Tell whether sharing gives the same numbers, by computing a batch both ways.

    A model with a sliding window, a state that runs over the row, or attention that takes no mask would give
    others; which models do is not to be told from their settings.

    Args:
        model: with TRL's fused head, in no wrapper.
        batch: pairs as TRL has them.
    """
    if _attention(model) not in _MASKED:
        return False
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    fields = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            apart = model(**fields, labels=labels, fused_lm_head=True, use_cache=False).log_probs
            together = sharing(model)(
                **fields, labels=labels, fused_lm_head=True, use_cache=False
            ).log_probs
    except (RuntimeError, TypeError, ValueError):  # its attention takes no such mask
        return False
    finally:
        model.train(training)
    fine = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled()
    worst = float((apart - together).abs().max())
    return worst <= _NOISE * (1 if fine else _COARSE)
