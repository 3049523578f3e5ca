"""What makes a model quicker on a CPU for the time of one call, and changes its answers by rounding alone.

A decoding step multiplies few rows by all weights. From weights as they lie in the file that takes half as long again
as from weights in oneDNN's own order; here they are brought into that order once a call. And heads that share keys
read them where they stand: the library would copy them for each head. `docs/sampling.md` has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "redistill_grouped"
"""The name of `grouped_attention` among the library's attentions."""
PACKED_FROM = 128
"""Fewest tokens for which weights are packed: it takes as long as some thirty of them."""
SPARE_MEMORY = 2
"""How often the packed weights must fit into the memory that is free."""


@contextmanager
def quick(model: Any, tokens: int) -> Iterator[None]:
    """Let a model on a CPU be quicker inside. Its weights may not change there, and are its own again afterwards.

    Only what is known to be equal is exchanged: plain linear layers in float32 or bfloat16, where memory has room for
    a second copy of them, and SDPA attention of models that let it be chosen.

    Args:
        model: the causal language model.
        tokens: most that will be said; below `PACKED_FROM` it is not worth it to copy weights.
    """
    with ExitStack() as stack:
        if tokens >= PACKED_FROM:
            stack.enter_context(packed(model))
        stack.enter_context(grouped(model))
        yield


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Give linear layers a copy of their weights in the order that oneDNN reads fastest."""
    kinds = _packable()
    layers: list[Any] = [
        m
        for m in model.modules()
        if type(m) is nn.Linear  # a subclass may do something else
        and m.weight.device.type == "cpu"
        and m.weight.dtype in kinds
        and "forward" not in m.__dict__  # somebody else's hook
    ]
    size = sum(m.weight.numel() * m.weight.element_size() for m in layers)
    if SPARE_MEMORY * size > psutil.virtual_memory().available:
        layers = []
    try:
        for layer in layers:
            layer.forward = _multiplied(layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _packable() -> tuple[torch.dtype, ...]:
    """Return the precisions that oneDNN multiplies on this processor."""
    if not torch.backends.mkldnn.is_available():
        return ()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return (torch.float32,)
    return (torch.float32, torch.bfloat16)


def _multiplied(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    plain = layer.forward
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    bias = None if layer.bias is None else layer.bias.detach()

    def forward(states: Tensor) -> Tensor:
        if states.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
            return plain(states)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
        return out

    return forward


@contextmanager
def grouped(model: Any) -> Iterator[None]:
    """Let heads that share keys read them where they stand."""
    config = model.config
    if (
        config._attn_implementation != "sdpa"
        or not model._supports_attention_backend
        or config.get_text_config() is not config
    ):
        yield
        return
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend as SDPA does; where one token a row asks, heads that share keys are as if several tokens of one head."""
    rows, heads, asking, width = query.shape
    alike = asking == 1 and heads > key.shape[1]
    masked = attention_mask is not None and attention_mask.shape[1] > 1  # each head in its own way
    if not alike or masked or settings.get("dropout") or settings.get("position_bias") is not None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return found
    together = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    out = F.scaled_dot_product_attention(
        together, key, value, attn_mask=attention_mask, scale=settings.get("scaling")
    )
    return out.reshape(rows, 1, heads, value.shape[-1]), None
