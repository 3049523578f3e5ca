"""Sampling and scoring with a causal language model: one batch in, one batch out.

Nothing here knows about revisions or threads. Rows are padded on the left, and the positions say so in
the prefill too: without them the text is garbled, and nothing complains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from ..types import TokenIds
from .policy import LOGIT_BYTES as LOGIT_BYTES
from .policy import Request, Sampling


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
    model: Any, requests: Sequence[Request], sampling: Sampling, stop_ids: frozenset[int]
) -> list[Sampled]:
    """Sample one completion for each request.

    A prompt is prefilled once however many rows share it, and a row that has ended leaves the batch. Row i
    draws by the inverse of its cumulative distribution, with uniforms of its own seed: which rows share
    the batch changes its answer no more than rounding does.
    """
    device = next(model.parameters()).device
    prompts = list(dict.fromkeys(r.prompt_ids for r in requests))
    ids, mask, positions = _left_padded(prompts, device)
    cache = DynamicCache(config=model.config)
    logits = _last_logits(model, ids, mask, positions, cache)
    place = {prompt: i for i, prompt in enumerate(prompts)}
    rows = torch.tensor([place[r.prompt_ids] for r in requests], device=device)
    cache.batch_select_indices(rows)
    logits, mask, position = logits[rows], mask[rows], positions[rows, -1]

    uniforms = torch.from_numpy(_uniforms(requests, sampling)).to(device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    live = torch.arange(len(requests), device=device)
    answers: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    ended = [False] * len(requests)
    for step in range(sampling.max_tokens):
        token = _draw(logits, sampling, uniforms[live, step])
        logprob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
        stopped = torch.isin(token, stops)
        said = zip(live.tolist(), token.tolist(), logprob.tolist(), stopped.tolist(), strict=True)
        for row, one, value, stop in said:
            answers[row].append(one)
            logprobs[row].append(value)
            ended[row] = stop
        on = (~stopped).nonzero()[:, 0]
        if len(on) == 0 or step + 1 == sampling.max_tokens:
            break
        if len(on) < len(live):
            cache.batch_select_indices(on)
            live, mask, position, token = live[on], mask[on], position[on], token[on]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        position = position + 1
        logits = _last_logits(model, token[:, None], mask, position[:, None], cache)
    return [
        Sampled(tuple(a), tuple(p), e) for a, p, e in zip(answers, logprobs, ended, strict=True)
    ]


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


def _last_logits(
    model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
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
