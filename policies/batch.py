"""The noun *batch*: rows that are answered together, with their keys and values; rows join it and leave it.

All rows end at the same column, the next one that is written, so that a step is one plain forward pass. What the
model keeps of a token was turned by the token's own position, so it may stand in any column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..types import TokenIds

MOST_PARTS = 16
"""Into how many parts the rows of a call are cut at most."""
SPARE = 128
"""Columns beyond those of the longest row, where rows follow each other: what stands is moved this rarely."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Rows whose prompts were read, and whose first token was drawn."""

    cache: DynamicCache
    """Of the prompts, padded on the left."""
    width: int
    """Columns of the cache."""
    which: Tensor
    """The row of the cache that is each one's prompt."""
    lengths: Tensor
    """Tokens of each one's prompt."""
    rows: Tensor
    """Which of all rows each one is."""
    tokens: Tensor
    """The first token of each."""

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, these: slice | Tensor) -> Prefilled:
        """Return some of the rows."""
        chosen = (self.which[these], self.lengths[these], self.rows[these], self.tokens[these])
        return Prefilled(self.cache, self.width, *chosen)


@dataclass(slots=True)
class _Span:
    """What of the buffers is in use. Layers and batch share it, and not each other: buffers go when the batch does."""

    live: int = 0
    """Rows that are there."""
    begin: int = 0
    """The first column that any of them needs."""
    end: int = 0
    """The column after the last one."""

    @property
    def columns(self) -> slice:
        """The columns in use."""
        return slice(self.begin, self.end)


class Batch(ABC):
    """Rows, each from its first column to the last one.

    Args:
        rows: most that are in it at a time.
        device: of the model.
    """

    cache: Cache
    """What the model is given as `past_key_values`."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        self._span = _Span()
        self._starts = torch.zeros(rows, dtype=torch.long, device=device)

    @property
    @abstractmethod
    def room(self) -> int:
        """Rows that can join now."""

    def join(self, new: Prefilled) -> None:
        """Take in rows; none of their prompts is longer than the longest row here, if there is any."""
        self._take(new)
        self._starts[self._span.live : self._span.live + len(new)] = self._span.end - new.lengths
        self._span.live += len(new)

    def keep(self, on: Tensor) -> Tensor:
        """Let all rows leave but those where `on` is true; return where each that is left was before."""
        places = on.nonzero()[:, 0]
        if len(places) < self._span.live:
            places = self._move(places)
            self._starts[: len(places)] = self._starts[places]
            self._span.live = len(places)
        return places

    def grow(self) -> tuple[Tensor, Tensor]:
        """Add a column for the rows' next tokens; return the attention mask and the tokens' positions."""
        self._span.end += 1
        starts = self._starts[: self._span.live, None]
        columns = torch.arange(self._span.begin, self._span.end, device=starts.device)
        return (columns >= starts).long(), self._span.end - 1 - starts

    @abstractmethod
    def _take(self, new: Prefilled) -> None:
        """Hold what new rows have."""

    @abstractmethod
    def _move(self, places: Tensor) -> Tensor:
        """Hold these rows alone, first of all; return them in the order in which they stand now."""


class GrowingBatch(Batch):
    """A batch in a cache of the library's own kind, which is made anew at each step.

    For models that do not attend to all that was said: what such a cache holds cannot be lined up with new rows, so
    rows join together, and join an empty batch only.
    """

    @property
    def room(self) -> int:
        """All or nothing."""
        return 0 if self._span.live else self.rows

    def _take(self, new: Prefilled) -> None:
        new.cache.batch_select_indices(new.which)
        self.cache, self._span.end = new.cache, new.width

    def _move(self, places: Tensor) -> Tensor:
        self.cache.batch_select_indices(places)
        return places


class StandingBatch(Batch):
    """A batch in buffers that are made once: a step writes one column, and the model reads them where they stand.

    Args:
        rows: most that are in it at a time.
        columns: of the buffers; at least those of the longest row.
        layers: of the model's cache.
        device: of the model.
    """

    def __init__(self, rows: int, columns: int, layers: int, device: torch.device) -> None:
        super().__init__(rows, device)
        self._columns = columns
        self._layers = [_Standing(self._span, rows, columns) for _ in range(layers)]
        self.cache = Cache(layers=list(self._layers))

    @property
    def room(self) -> int:
        """Whatever is free."""
        return self.rows - self._span.live

    def grow(self) -> tuple[Tensor, Tensor]:
        """Add a column as a batch does, and show no more of them than the rows need."""
        self._span.begin = int(self._starts[: self._span.live].min())
        if self._span.end == self._columns:
            self._shift()
        return super().grow()

    def _take(self, new: Prefilled) -> None:
        width = int(new.lengths.max())
        if not self._span.live:
            self._span.end = width
        rows = slice(self._span.live, self._span.live + len(new))
        columns = slice(self._span.end - width, self._span.end)
        given: list[Any] = new.cache.layers
        for layer, theirs in zip(self._layers, given, strict=True):
            keys, values = theirs.keys[:, :, -width:], theirs.values[:, :, -width:]
            layer.take(keys[new.which], values[new.which], rows, columns)

    def _move(self, places: Tensor) -> Tensor:
        """Let the last rows step into the places of those that leave."""
        count = len(places)
        there = torch.zeros(self._span.live, dtype=torch.bool, device=places.device)
        there[places] = True
        holes = (~there[:count]).nonzero()[:, 0]
        last = count + there[count:].nonzero()[:, 0]
        order = torch.arange(count, device=places.device)
        order[holes] = last
        for layer in self._layers:
            layer.move(last, holes)
        return order

    def _shift(self) -> None:
        """Move what is shown to the left end."""
        for layer in self._layers:
            layer.shift()
        self._starts -= self._span.begin
        self._span.begin, self._span.end = 0, self._span.end - self._span.begin


class _Standing(DynamicLayer):
    """One layer's keys and values: (rows, heads, columns, width of a head), zeros where nothing was written yet."""

    keys: Tensor
    values: Tensor

    def __init__(self, span: _Span, rows: int, columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._span, self._rows, self._columns = span, rows, columns

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the newest column, and return what the rows have of this layer."""
        live, columns = self._span.live, self._span.columns
        self.keys[:live, :, columns.stop - 1 : columns.stop] = key_states
        self.values[:live, :, columns.stop - 1 : columns.stop] = value_states
        return self.keys[:live, :, columns], self.values[:live, :, columns]

    def get_seq_length(self) -> int:
        """Return how many columns stood there before the newest one."""
        return self._span.end - 1 - self._span.begin

    def take(self, keys: Tensor, values: Tensor, rows: slice, columns: slice) -> None:
        """Write what new rows have."""
        if not self.is_initialized:
            self.keys, self.values = self._buffer(keys), self._buffer(values)
            self.is_initialized = True
        self.keys[rows, :, columns] = keys
        self.values[rows, :, columns] = values

    def _buffer(self, states: Tensor) -> Tensor:
        # Zeros: what is masked still meets a weight of zero, and zero times NaN is NaN.
        return states.new_zeros(self._rows, states.shape[1], self._columns, states.shape[3])

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows onto others."""
        for held in (self.keys, self.values):
            held[target, :, : self._span.end] = held[source, :, : self._span.end]

    def shift(self) -> None:
        """Copy the columns in use to the left end."""
        live, columns = self._span.live, self._span.columns
        for held in (self.keys, self.values):
            held[:live, :, : columns.stop - columns.start] = held[:live, :, columns].clone()


def batch_for(config: Any, rows: int, columns: int, device: torch.device) -> Batch:
    """Return the batch that fits a model: standing where each of its layers attends to all that was said.

    The model's own config decides; sliding windows, chunks, states and other kinds grow.
    """
    layers = DynamicCache(config=config).layers
    if layers and all(type(layer) is DynamicLayer for layer in layers):
        return StandingBatch(rows, columns, len(layers), device)
    return GrowingBatch(rows, device)


def parts_of(prompts: Sequence[TokenIds], rows: int) -> list[list[int]]:
    """Return which rows are sampled one after the other, longest prompts first, those of a prompt together.

    Each part is one worker's. There are two at least where the rows fill more than one batch, and more for more
    rows, so that few steps are for a handful of rows alone; how many workers there are has no say.
    """
    lengths = {prompt: (len(prompt), place) for place, prompt in enumerate(dict.fromkeys(prompts))}
    order = sorted(range(len(prompts)), key=lambda i: lengths[prompts[i]], reverse=True)
    if not order:
        return []
    count = 1 if len(order) <= rows else min(MOST_PARTS, max(2, len(order) // (2 * rows)))
    ends = [len(order) * n // count for n in range(count + 1)]
    return [order[a:b] for a, b in pairwise(ends)]
