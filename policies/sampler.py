"""Sampling and scoring with a causal language model: one batch in, one batch out.

Nothing here knows about revisions or threads. Rows are padded on the left, and the positions say so in
the prefill too: without them the text is garbled, and nothing complains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from ..types import TokenIds
from .batch import SPARE, Batch, Prefilled, StandingBatch, batch_for
from .policy import LOGIT_BYTES as LOGIT_BYTES
from .policy import ROWS_TOGETHER as ROWS
from .policy import Request, Sampling

PREFILLED = 2048
"""Most tokens of prompts, padding included, that are read at a time while others wait for their turn."""
SHARED = 64
"""Fewest tokens that must be saved by reading apart what the prompts of a reading begin with."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled completion before it is decoded."""

    token_ids: TokenIds
    logprobs: tuple[float, ...]
    """Raw, in nats."""
    ended: bool
    """Whether it closed with a stop token, which is then the last id."""


@torch.inference_mode()
def sample(
    model: Any,
    requests: Sequence[Request],
    sampling: Sampling,
    stop_ids: frozenset[int],
    *,
    rows: int = ROWS,
) -> list[Sampled]:
    """Sample one completion for each request.

    A prompt is prefilled once however many rows share it, what prompts begin with once for all of them, longest
    prompts first, and a row that has ended leaves the batch to the next one that waits. Row i draws by the inverse of its cumulative distribution, with uniforms
    of its own seed: which rows share the batch changes its answer no more than rounding does.

    Args:
        model: the causal language model.
        requests: what is wanted, each with at least one token.
        sampling: how to draw.
        stop_ids: tokens that end an answer.
        rows: most that are answered at a time. Models whose cache is not of all that was said (sliding
            windows, states) answer so many rows after another, with none that follow on others.
    """
    device = next(model.parameters()).device
    longest = max((len(r.prompt_ids) for r in requests), default=0)
    columns = longest + sampling.max_tokens + (SPARE if len(requests) > rows else 0)
    answers = _Answers(requests, sampling, stop_ids, device)
    batch = batch_for(model.config, min(rows, len(requests)), columns, device)
    if isinstance(batch, StandingBatch):
        _answer(model, _Waiting(model, answers, range(len(requests)), PREFILLED), answers, batch)
    else:
        for begin in range(0, len(requests), rows):
            part = range(begin, min(begin + rows, len(requests)))
            _answer(model, _Waiting(model, answers, part, None), answers, batch)
    return answers.told()


def _answer(model: Any, waiting: _Waiting, answers: _Answers, batch: Batch) -> None:
    """Answer all rows that wait."""
    rows = tokens = torch.zeros(0, dtype=torch.long, device=answers.device)
    while True:
        while batch.room and (new := waiting.take(batch.room)):
            batch.join(new)
            rows, tokens = torch.cat([rows, new.rows]), torch.cat([tokens, new.tokens])
        if not len(rows):
            return
        mask, positions = batch.grow()
        logits = _last_logits(model, tokens[:, None], mask, positions, batch.cache)
        tokens, on = answers.say(rows, logits)
        places = batch.keep(on)
        rows, tokens = rows[places], tokens[places]


class _Answers:
    """What each row has said, and the uniforms with which it draws.

    Args:
        requests: one a row.
        sampling: how to draw.
        stop_ids: tokens that end an answer.
        device: of the logits.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: frozenset[int],
        device: torch.device,
    ) -> None:
        self.requests, self.device = requests, device
        self._sampling = sampling
        self._uniforms = torch.from_numpy(_uniforms(requests, sampling)).to(device)
        self._stops = torch.tensor(sorted(stop_ids), device=device)
        room = (len(requests), sampling.max_tokens)
        self._tokens = torch.zeros(room, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(room, device=device)
        self._said = torch.zeros(len(requests), dtype=torch.long, device=device)

    def say(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the next token of some rows; return the tokens, and for each row whether it goes on."""
        at = self._said[rows]
        tokens = _draw(logits, self._sampling, self._uniforms[rows, at])
        self._tokens[rows, at] = tokens
        self._logprobs[rows, at] = _picked(logits, tokens)
        self._said[rows] = at + 1
        return tokens, ~torch.isin(tokens, self._stops) & (at + 1 < self._sampling.max_tokens)

    def told(self) -> list[Sampled]:
        """Return the answers."""
        stops = set(self._stops.tolist())
        said = zip(self._tokens.tolist(), self._logprobs.tolist(), self._said.tolist(), strict=True)
        return [Sampled(tuple(t[:n]), tuple(p[:n]), t[n - 1] in stops) for t, p, n in said]


class _Waiting:
    """Rows that wait for their turn, longest prompts first.

    Args:
        model: reads the prompts.
        answers: keeps what is said.
        rows: that wait.
        tokens: most that are read at a time, padding included; all prompts at once if None.
    """

    def __init__(
        self, model: Any, answers: _Answers, rows: Iterable[int], tokens: int | None
    ) -> None:
        self._model, self._answers, self._most = model, answers, tokens
        asked: dict[TokenIds, list[int]] = {}
        for row in rows:
            asked.setdefault(answers.requests[row].prompt_ids, []).append(row)
        self._asked = sorted(asked.items(), key=lambda one: len(one[0]))
        self._ready: Prefilled | None = None

    def take(self, most: int) -> Prefilled | None:
        """Return the next rows, so many at most, or None when none is left."""
        while not self._ready:
            if not self._asked:
                return None
            self._ready = self._read()
        taken = self._ready.part(slice(most))
        self._ready = self._ready.part(slice(most, None))
        return taken

    def _read(self) -> Prefilled:
        """Prefill the longest prompts, and let their rows say their first token."""
        count = len(self._asked)
        if self._most is not None:
            count = min(count, max(1, self._most // len(self._asked[-1][0])))
        asked, self._asked = self._asked[: -count - 1 : -1], self._asked[:-count]
        device = self._answers.device
        prompts = [prompt for prompt, _ in asked]
        shared = 0 if self._most is None else _beginning(prompts)
        cache, logits, lengths = _read(self._model, prompts, shared, device)
        which = torch.tensor([i for i, (_, rows) in enumerate(asked) for _ in rows], device=device)
        rows = torch.tensor([row for _, rows in asked for row in rows], device=device)
        tokens, on = self._answers.say(rows, logits[which])
        width = max(map(len, prompts))
        return Prefilled(cache, width, which, lengths[which], rows, tokens).part(on)


def _beginning(prompts: Sequence[TokenIds]) -> int:
    """Return how many tokens all prompts begin with, or 0 where it is not worth it to read them apart."""
    differ = (i for i, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    # Each prompt is asked for what follows its last token, so that one is no part of it.
    alike = min(next(differ, len(prompts[0])), len(min(prompts, key=len)) - 1)
    return alike if alike * (len(prompts) - 1) >= SHARED else 0


def _read(
    model: Any, prompts: Sequence[TokenIds], shared: int, device: torch.device
) -> tuple[DynamicCache, Tensor, Tensor]:
    """Prefill prompts, the tokens that they all begin with only once.

    Returns:
        The cache, padded on the left, the logits of the last tokens, and the prompts' lengths.
    """
    ids, mask, positions = _left_padded([prompt[shared:] for prompt in prompts], device)
    cache = DynamicCache(config=model.config)
    if not shared:
        return cache, _last_logits(model, ids, mask, positions, cache), mask.sum(1)
    _last_logits(model, *_left_padded([prompts[0][:shared]], device), cache)
    cache.batch_repeat_interleave(len(prompts))
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], 1)
    logits = _last_logits(model, ids, mask, positions + shared, cache)
    lengths = mask.sum(1)
    # The padding lies between beginning and end now: it goes to the left.
    columns = torch.arange(mask.shape[1], device=device)
    gaps = mask.shape[1] - lengths[:, None]
    source = torch.where(columns < gaps + shared, (columns - gaps).clamp(min=0), columns)
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys = layer.keys.take_along_dim(source[:, None, :, None], 2)
        layer.values = layer.values.take_along_dim(source[:, None, :, None], 2)
    return cache, logits, lengths


@torch.inference_mode()
def score(model: Any, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
    """Return the raw log-probs of each completion's tokens, in nats.

    Logits exist only where a completion token is predicted, and `LOGIT_BYTES` of them at a time: longer
    completions go through in windows over one cache.

    Args:
        model: the causal language model.
        pairs: (prompt, completion), prompts with at least one token.
    """
    device = next(model.parameters()).device
    ids, mask, positions = _left_padded([p + c for p, c in pairs], device)
    length = ids.shape[1]
    longest = max(1, *(len(c) for _, c in pairs))
    first = length - longest - 1  # predicts the first token of the longest completion
    width = max(1, LOGIT_BYTES // (4 * len(pairs) * model.config.get_text_config().vocab_size))
    cache = DynamicCache(config=model.config) if width < longest else None
    done, found = 0, []
    for begin in range(first, length - 1, width):
        end = min(begin + width, length - 1)
        logits = model(
            input_ids=ids[:, done:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, done:end],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=end - begin,
        ).logits
        targets = ids[:, begin + 1 : end + 1]
        found.append(torch.stack([_picked(a, b) for a, b in zip(logits, targets, strict=True)]))
        done = end
    picked = torch.cat(found, 1).tolist()
    return [tuple(row[longest - len(c) :]) for row, (_, c) in zip(picked, pairs, strict=True)]


@torch.inference_mode()
def likeliest(
    model: Any, pairs: Sequence[tuple[TokenIds, TokenIds]], k: int
) -> list[tuple[list[list[int]], list[list[float]]]]:
    """Return the `k` likeliest tokens at the place of each completion token, and their raw log-probs, in nats."""
    device = next(model.parameters()).device
    ids, mask, positions = _left_padded([p + c for p, c in pairs], device)
    longest = max(1, *(len(c) for _, c in pairs))
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=longest + 1,
    ).logits[:, :-1]
    found = []
    for row, (_, completion) in zip(logits, pairs, strict=True):
        best = row[longest - len(completion) :].float().log_softmax(-1).topk(k, -1)
        found.append((best.indices.tolist(), best.values.tolist()))
    return found


@torch.inference_mode()
def first_tokens(
    model: Any, prompts: Sequence[TokenIds], tokens: Sequence[int]
) -> list[tuple[float, ...]]:
    """Return for each prompt the raw log-probs of some tokens as the next one, in nats."""
    ids, mask, positions = _left_padded(prompts, next(model.parameters()).device)
    answer = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=1,
    )
    logits = answer.logits[:, -1].float()
    found = logits[:, list(tokens)] - logits.logsumexp(-1, keepdim=True)
    return [tuple(row) for row in found.tolist()]


def _picked(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def _left_padded(rows: Sequence[TokenIds], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and positions, each (rows, longest row)."""
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = torch.tensor(row)
        mask[i, length - len(row) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return ids.to(device), mask.to(device), positions.to(device)


def _last_logits(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """Run the model on new tokens and return the last position's logits: (rows, vocabulary), fp32."""
    answer = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = answer.logits[:, -1].float()
    return logits


def _uniforms(requests: Sequence[Request], sampling: Sampling) -> np.ndarray[Any, np.dtype[Any]]:
    """Return every row's own uniforms, (rows, max_tokens), float64 in [0, 1)."""
    if sampling.temperature == 0:
        return np.zeros((len(requests), sampling.max_tokens))
    draws = [
        np.random.Generator(np.random.Philox(r.seed)).random(sampling.max_tokens) for r in requests
    ]
    return np.stack(draws)


def _draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Return one token a row: (rows,)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = _truncated((logits / sampling.temperature).softmax(-1), sampling)
    # In float64: over 50 000 tokens a float32 sum loses the rare ones.
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    targets = uniforms[:, None] * cumulative[:, -1:]
    # right=True passes over tokens of probability zero.
    found = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return found.clamp(max=logits.shape[-1] - 1)


def _truncated(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Set to zero what top-k and then top-p (nucleus sampling, arXiv 1904.09751) leave out."""
    if 0 < sampling.top_k < probabilities.shape[-1]:
        least = probabilities.topk(sampling.top_k, -1).values[:, -1:]
        probabilities = probabilities.where(probabilities >= least, 0.0)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(stable=True, dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.where(before < sampling.top_p * ordered.sum(-1, keepdim=True), 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return probabilities
