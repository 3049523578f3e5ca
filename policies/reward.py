"""A reward model: a Hugging Face sequence classifier with one output, in this process, in fp32."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput
from ..types import Message, TokenIds
from .chat import ChatCodec
from .model_folder import read_model, reward_problems
from .revision import check_finite_files
from .speech import read_tokenizer

SCORED_TOKENS = 8192
"""Most tokens, padding included, of one batch."""
ROWS = 16
"""Most conversations of one batch."""


class RewardModel:
    """Gives a whole conversation one number, in the units of its own head.

    Args:
        folder: a Hugging Face folder with safetensors, a tokenizer and its chat template.

    Raises:
        BadInput: a file is missing, it has more than one output, no head that was trained, or no embedding for a
            token of its tokenizer.
        StoreProblem: a tensor holds NaN or an infinity.
    """

    def __init__(self, folder: Path) -> None:
        if problems := reward_problems(folder):
            raise BadInput(*problems)
        tokenizer = read_tokenizer(folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = _built(folder).to(self._device)
        self._codec = ChatCodec(tokenizer)
        config = self._model.config.get_text_config()
        told = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
        self.context_length = int(told)
        """Most tokens of a conversation."""

    def encode(self, messages: Sequence[Message]) -> TokenIds:
        """Render a finished conversation with the chat template; what is said is no control token."""
        return self._codec.conversation(messages, answered=True)

    @torch.inference_mode()
    def score(self, conversations: Sequence[TokenIds]) -> list[float]:
        """Return the raw logit of each conversation, in the order given.

        Raises:
            ValueError: one is empty, or exceeds the context.
        """
        if any(not 0 < len(ids) <= self.context_length for ids in conversations):
            raise ValueError(f"a conversation has 1 to {self.context_length} tokens")
        logits: dict[int, float] = {}
        for rows in _together([len(ids) for ids in conversations]):
            found = self._batch([conversations[i] for i in rows])
            logits.update(zip(rows, found, strict=True))
        return [logits[i] for i in range(len(conversations))]

    def _batch(self, rows: Sequence[TokenIds]) -> list[float]:
        # The head reads the last token that is not the pad token. Where that is the end token too, as in
        # many models, it would read one further to the left: so what pads is a token that no row holds.
        used = set().union(*rows)
        pad = next(i for i in itertools.count() if i not in used)
        config = self._model.config.get_text_config()
        if pad >= config.vocab_size and len(rows) > 1:
            return [logit for row in rows for logit in self._batch([row])]
        config.pad_token_id = pad
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        found = self._model(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False
        )
        logits: list[float] = found.logits[:, 0].float().tolist()
        return logits


@cache
def held(folder: Path, digest: str) -> RewardModel:  # noqa: ARG001 - other files are another model
    """Return the reward model of a folder whose files have this digest; it stays loaded until all are released.

    Rollouts that two of them reward would else load both anew at each optimiser step.
    """
    return RewardModel(folder)


def _built(folder: Path) -> Any:
    check_finite_files(folder)
    model, misfits = read_model(folder, "AutoModelForSequenceClassification", "float32")
    if misfits:
        told = f"is no whole sequence classifier: {'; '.join(misfits)[:300]}"
        raise BadInput.at(str(folder), told, "a reward model has a trained head of its own")
    if model.config.num_labels != 1:
        told = f"it has {model.config.num_labels} outputs, a reward model has one"
        raise BadInput.at(str(folder), told)
    return model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature


def _together(lengths: Sequence[int]) -> list[list[int]]:
    """Return batches of conversations by index, like lengths together, so that little is padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        room = min(ROWS, max(1, SCORED_TOKENS // lengths[i]))
        if not batches or len(batches[-1]) >= room:
            batches.append([])
        batches[-1].append(i)
    return batches
