"""Next-token distributions of a whole vocabulary, a tile of tokens at a time.

At 50 000 tokens of vocabulary a thousand log-probs fill 200 MB, and a loss wants several of them with gradients. So the
head is run on a tile, the loss of the tile is taken, and the tile is made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_TILE_BYTES = 1 << 26
"""Most memory of one tensor of a tile."""
_NOISE = 1e-3
"""Share of the largest logit by which head and model may differ; a bfloat16 has eight bits."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model thinks of the tokens of some answers, before its head; a row for each token."""

    hidden: Tensor
    """(N, width)."""
    head: Callable[[Tensor], Tensor]

    @property
    def vocabulary(self) -> int:
        """Tokens that the head tells of."""
        with torch.no_grad():
            return int(self.head(self.hidden[:1]).size(-1))

    def logps(self, tile: Tensor, width: int | None = None) -> Tensor:
        """Return the log-probs of rows of `hidden`, of the first `width` tokens of the vocabulary; fp32."""
        return self.head(tile)[:, :width].float().log_softmax(-1)

    def of(self, rows: Tensor) -> Scores:
        """Return those of some rows."""
        return Scores(self.hidden[rows], self.head)


def scores(model: Any, batch: Mapping[str, Tensor]) -> Scores:
    """Return what a model thinks of the answers of a batch, a row for each token, batch row after batch row.

    Args:
        model: a causal language model of transformers, in no wrapper.
        batch: `input_ids`, `attention_mask` and `completion_mask`.
    """
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    before = batch["completion_mask"][:, 1:].bool()  # the place before a token predicts it
    if not _explains(model, asked):
        whole = model(**asked, use_cache=False).logits[:, :-1][before]
        return Scores(whole, _as_it_is)
    hidden = model.base_model(**asked, use_cache=False).last_hidden_state
    return Scores(hidden[:, :-1][before], model.get_output_embeddings())


def tiled(work: Callable[..., Tensor], student: Scores, *beside: Tensor, vocabulary: int) -> Tensor:
    """Return a value for each token, (N,), without holding the whole vocabulary's log-probs of all of them.

    Args:
        work: gets a tile of the student's `hidden`, and the same rows of each tensor beside it.
        student: what the loss has a gradient for.
        beside: tensors with a row for each token, without gradients.
        vocabulary: its size.
    """
    each = max(1, _TILE_BYTES // (4 * vocabulary))
    if len(student.hidden) <= each:
        return work(student.hidden, *beside)
    found = []
    for begin in range(0, len(student.hidden), each):
        part = [tensor[begin : begin + each] for tensor in (student.hidden, *beside)]
        made: Any = checkpoint(work, *part, use_reentrant=False)
        found.append(made)
    return torch.cat(found)


def _as_it_is(logits: Tensor) -> Tensor:
    return logits


_EXPLAINED = "_redistill_head_explains"


def _explains(model: Any, asked: Mapping[str, Tensor]) -> bool:
    """Tell whether a model's logits are its head's view of its last hidden state, by looking once.

    Some scale or cap their logits afterwards, which no setting tells for all of them.
    """
    known = model.__dict__.get(_EXPLAINED)
    if known is None:
        one = {name: tensor[:1] for name, tensor in asked.items()}
        head, training = model.get_output_embeddings(), model.training
        model.eval()
        with torch.no_grad():
            told = model(**one, use_cache=False).logits.float()
            made = head(model.base_model(**one, use_cache=False).last_hidden_state).float()
        model.train(training)
        known = told.shape == made.shape and bool(
            (told - made).abs().max() <= _NOISE * told.abs().max()
        )
        model.__dict__[_EXPLAINED] = known
    return bool(known)
