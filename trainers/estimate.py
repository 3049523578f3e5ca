"""How much memory a job takes, by part, before it is started; and the first way to train that fits.

Arithmetic over a model's config. Activations are counted as what a transformer block of the Llama kind keeps for
its backward pass: nine vectors of the model's width and four of the feed-forward's, for each token and layer. What
is trained is fp32, with its gradient and two moments; what is not trained is held as its folder has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..policies.precision import Precision, precision_of
from .trainer import Trainer

Way = Literal["full", "lora", "qlora"]
_BYTES = 4
"""Of a number in fp32."""
_HALF = 2
_NF4 = 0.52
"""Bytes of a weight in four bits, with its share of the scales."""
PROCESS = 550 << 20
"""Of Python, torch and TRL themselves."""
_TILE, _ROWS = 32_768, 4096
"""Most entries of the vocabulary, and tokens, whose logits are held at once."""
SHARE = 0.9
"""Of the memory that is free, how much a job may be expected to take."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an estimate needs to know of a model."""

    parameters: int
    layers: int
    width: int
    inner: int
    vocabulary: int
    linear: int
    """Inputs and outputs of all linear layers of one block, added up."""
    precision: Precision = "float32"
    """In which the model's folder holds it."""
    keys: int = 0
    """Numbers of the key of one token in one block, all heads together; its value has as many."""

    @property
    def cached(self) -> int:
        """Bytes that one token takes in the cache of keys and values."""
        return 2 * self.layers * self.keys * (_BYTES if self.precision == "float32" else _HALF)

    @property
    def held(self) -> int:
        """Bytes of the weights as the folder holds them."""
        if self.precision == "nf4":
            inside = self.parameters - self.vocabulary * self.width
            return int(inside * _NF4) + 2 * self.vocabulary * self.width
        return self.parameters * (_BYTES if self.precision == "float32" else _HALF)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by part."""

    way: Way
    recompute: bool
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def shape_of(folder: Path) -> Shape:
    """Read a model folder's shape from its config and its files, without loading it."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    config = config.get("text_config", config)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    precision = precision_of(folder)

    def known(*names: str) -> int:
        return next((int(config[name]) for name in names if config.get(name)), 0)

    width, heads = known("hidden_size", "n_embd"), known("num_attention_heads", "n_head")
    inner = known("intermediate_size", "n_inner") or 4 * width
    few = known("num_key_value_heads", "num_attention_heads", "n_head")
    grouped = width * few // max(1, heads)
    return Shape(
        parameters=_parameters(size, precision, known("vocab_size") * width),
        layers=known("num_hidden_layers", "n_layer"),
        width=width,
        inner=inner,
        vocabulary=known("vocab_size"),
        linear=2 * (width + width) + 2 * (width + grouped) + 3 * (width + inner),
        precision=precision,
        keys=few * known("head_dim") or grouped,
    )


def _parameters(size: int, precision: Precision, embeddings: int) -> int:
    """Return how many weights the files of a folder hold."""
    if precision == "nf4":  # all but the embeddings is in four bits
        return embeddings + int((size - _HALF * embeddings) / _NF4)
    return size // (_BYTES if precision == "float32" else _HALF)


def estimate(
    shape: Shape, trainer: Trainer, row_tokens: int, way: Way, *, recompute: bool
) -> Estimate:
    """Return what a job takes at most.

    Args:
        shape: of the student.
        trainer: its micro-batch and its adapter's rank.
        row_tokens: tokens of the longest row, both answers of a pair with their one prompt.
        way: whether all weights are trained, or an adapter, of a base in four bits or not.
        recompute: whether activations are computed again in the backward pass.
    """
    tokens = row_tokens * trainer.micro_batch
    trained = shape.parameters
    held = 0
    if way != "full":
        trained, held = trainer.rank * shape.linear * shape.layers, shape.held
    elif shape.precision == "bfloat16":
        held = shape.held  # autocast's copy of the weights
    each = _BYTES if shape.precision == "float32" else _HALF
    block = (9 * shape.width + 4 * shape.inner) * tokens * each
    kept = shape.width * tokens * shape.layers * each + block if recompute else block * shape.layers
    parts = {
        "weights": held + trained * _BYTES,
        "gradients": trained * _BYTES,
        "moments": 2 * trained * _BYTES,
        "activations": kept,
        # Logits of a tile of the vocabulary, and their gradients.
        "log-probs": 2 * min(tokens, _ROWS) * min(shape.vocabulary, _TILE) * _BYTES,
        "process": PROCESS,
    }
    return Estimate(way, recompute, parts)


def ways(trainer: Trainer, shape: Shape, row_tokens: int, start: Way) -> Iterator[Estimate]:
    """Yield the ways in which a trainer may train, the best first.

    Args:
        trainer: `weights` and `recompute` say which are allowed.
        shape: of the student.
        row_tokens: tokens of the longest row.
        start: what training begins from; an adapter is continued as one.
    """
    some: Way = "qlora" if shape.precision == "nf4" else "lora"
    whole: tuple[Way, ...] = () if shape.precision == "nf4" or start != "full" else ("full",)
    asked: tuple[Way, ...] = (*whole, some) if trainer.weights == "auto" else (trainer.weights,)
    again = (False, True) if trainer.recompute == "auto" else (trainer.recompute,)
    for way in asked:
        if way in (*whole, some):
            for recompute in again:
                yield estimate(shape, trainer, row_tokens, way, recompute=recompute)


def first_that_fits(found: Iterator[Estimate], free: int) -> Estimate | None:
    """Return the first way whose estimate fits into what is free; where none does, the smallest one."""
    every = list(found)
    fitting = (one for one in every if one.total <= SHARE * free)
    return next(fitting, min(every, key=lambda one: one.total, default=None))
