"""Which cards there are, and who gets which: the sampler keeps the first, the trainer gets others where there are any.

No card is touched for it: the driver's own tool is asked.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

VISIBLE = "CUDA_VISIBLE_DEVICES"
_ASK = (
    "nvidia-smi",
    "--query-gpu=index,uuid,memory.total,memory.free",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True, slots=True)
class Card:
    """One card that this process may use."""

    uuid: str
    """As the driver names it; means the same card in every process, unlike a number."""
    total: int
    """Bytes."""
    free: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Who gets which cards; both are empty on a machine without any."""

    sampler: tuple[Card, ...] = ()
    """In the order in which torch numbers them: the first is `cuda:0`."""
    trainer: tuple[Card, ...] = ()

    @property
    def side_by_side(self) -> bool:
        """Whether both may hold their memory at once; else the sampler gives it back before a job."""
        return bool(self.trainer) and not set(self.sampler) & set(self.trainer)

    @property
    def device(self) -> str:
        """What torch calls the sampler's first card in the process that sees them all."""
        return "cuda:0" if self.sampler else "cpu"

    def trainer_environment(self) -> dict[str, str]:
        """Return what the trainer's process is told; nothing where it shares what there is."""
        return _only(self.trainer) if self.side_by_side else {}

    def sampler_environment(self) -> dict[str, str]:
        """Return what a sampler in a process of its own is told; nothing on a machine without cards."""
        return _only(self.sampler)

    def told(self) -> str:
        """Say it in words."""
        if not self.side_by_side:
            return (
                "one after the other: the sampler is released before each job and loaded after it"
            )
        trains = " and ".join(card.uuid for card in self.trainer)
        return f"side by side: {self.sampler[0].uuid} samples, {trains} trains"


def place(cards: Sequence[Card], *, processes: int = 1, trainer_bytes: int = 0) -> Placement:
    """Decide who gets which card.

    The sampler gets the first. The trainer gets as many others as it has processes, the emptiest first; where there
    are not so many on which a job fits, both share from the first on, and take turns.

    Args:
        cards: those that are there, in torch's order.
        processes: that share each optimiser step, one a card.
        trainer_bytes: what a job takes of each of its cards; 0 where it is not known.
    """
    others = sorted((c for c in cards[1:] if c.free >= trainer_bytes), key=lambda c: -c.free)
    if len(others) >= processes:
        return Placement(tuple(cards[:1]), tuple(others[:processes]))
    return Placement(tuple(cards[:1]), tuple(cards[:processes]))


def visible_cards(environment: Mapping[str, str] = os.environ) -> tuple[Card, ...]:
    """Return the cards that this process may use, in the order of `CUDA_VISIBLE_DEVICES`; none without a driver.

    Where that names parts of a card (MIG), nothing is known of them, and none is returned.
    """
    listed: list[tuple[str, Card]] = []
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(
            _ASK, capture_output=True, text=True, check=True, timeout=10, env=dict(environment)
        )
        for line in done.stdout.splitlines():
            index, uuid, total, free = (field.strip() for field in line.split(","))
            listed.append((index, Card(uuid, int(total) << 20, int(free) << 20)))
    named = environment.get(VISIBLE)
    if named is None:
        return tuple(card for _, card in listed)
    return _chosen(listed, named.split(","))


def _chosen(listed: Sequence[tuple[str, Card]], names: Sequence[str]) -> tuple[Card, ...]:
    """Return the cards that are named; as in CUDA, the first name that is none ends the list."""
    found: list[Card] = []
    for name in (n.strip() for n in names):
        card = next((c for i, c in listed if i == name or (name and c.uuid.startswith(name))), None)
        if card is None:
            break
        found.append(card)
    return tuple(found)


def as_torch_counts(cards: Sequence[Card]) -> tuple[Card, ...]:
    """Return cards in the order in which torch numbers them, without those that it does not see.

    Where nothing names the visible cards, CUDA puts the fastest first, and the driver's tool does not.
    """
    if len(cards) < 2:
        return tuple(cards)
    import torch

    seen = [torch.cuda.get_device_properties(i).uuid for i in range(torch.cuda.device_count())]
    by_name = {card.uuid: card for card in cards}
    return tuple(by_name[name] for name in (f"GPU-{uuid}" for uuid in seen) if name in by_name)


def _only(cards: Sequence[Card]) -> dict[str, str]:
    return {VISIBLE: ",".join(card.uuid for card in cards)} if cards else {}
