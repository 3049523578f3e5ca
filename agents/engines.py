"""Which engine samples with the models of this machine: transformers in this process, or vLLM in one of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import BadInput, Problem
from ..policies.placement import VISIBLE, Placement, visible_cards
from ..policies.policy import Policy
from ..policies.precision import precision_of
from ..policies.revision import Revision

SamplerName = Literal["transformers", "vllm"]


class Vllm(BaseModel):
    """How a vLLM engine is run; for `sampler: vllm` alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache_gib: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Memory of its cache of keys and values; left out, all that is left on a card, and 1 GiB without one."""
    stays: bool | None = None
    """Whether the engine stays up while the student is trained, and takes the new weights in place; left out, it
    does without a card, where both share the memory, and where the trainer has a card of its own; it does not on
    one card, which it has for itself."""
    start_seconds: float = Field(600, gt=0, allow_inf_nan=False)
    """Within this an engine must have said its first token."""


def check_engine(sampler: SamplerName, options: Vllm) -> list[Problem]:
    """Return what is said to an engine that is not used."""
    if sampler == "vllm" or options == Vllm():
        return []
    what = "says nothing to the sampler transformers"
    return [Problem("execution.vllm", what, "say `sampler: vllm`, or leave it out")]


def unfit_for_engine(sampler: SamplerName, precision: str) -> Problem | None:
    """Say why an engine cannot hold what a run samples with, or nothing."""
    if sampler == "vllm" and precision == "nf4":
        hint = "use the sampler transformers, or another precision"
        return Problem("execution.sampler", "vllm is given no weights in four bits here", hint)
    return None


@dataclass(frozen=True, slots=True)
class Seat:
    """Where an engine runs."""

    placement: Placement
    """Which cards it has, and which the trainer."""
    threads: int | None
    """Cores that it may use."""
    log: Path
    """Where an engine writes what it prints."""
    needed: int = 0
    """Tokens of the longest row that it will be asked for."""


def stays_up(options: Vllm, placement: Placement) -> bool:
    """Say whether a vLLM engine stays up while the student is trained."""
    usual = placement.side_by_side or not has_card()
    return usual if options.stays is None else options.stays


def open_engine(
    revision: Revision, sampler: SamplerName, options: Vllm, seat: Seat, *, rank: int
) -> Policy:
    """Return the policy of a model of this machine; nothing is loaded yet.

    Args:
        revision: what it starts with.
        sampler: the engine.
        options: how a vLLM engine is run.
        seat: where it runs.
        rank: highest rank of the adapters that it will hold; 0 for none.

    Raises:
        BadInput: the engine would keep a card that the trainer needs.
    """
    if sampler == "transformers":
        from ..policies.transformers import TransformersPolicy

        device = seat.placement.device if seat.placement.side_by_side else None
        return TransformersPolicy(revision, threads=seat.threads, device=device)
    from ..policies.vllm import EngineSettings, VllmPolicy

    card, stays = has_card(), stays_up(options, seat.placement)
    if card and stays and options.cache_gib is None and not seat.placement.side_by_side:
        what = "an engine without `cache_gib` takes all of the card, and the trainer needs it too"
        raise BadInput.at("execution.vllm.stays", what, "say `cache_gib`, or leave it out")
    settings = EngineSettings(
        cache_gib=options.cache_gib,
        stays=stays,
        start_seconds=options.start_seconds,
        # Without a card vLLM cannot score with an adapter that is not merged, but token by token.
        # Its kernels for adapters know no float32.
        adapter_rank=rank if card and precision_of(revision.folder) != "float32" else 0,
        needed=seat.needed,
        threads=seat.threads,
        cards=seat.placement.sampler_environment().get(VISIBLE),
    )
    return VllmPolicy(revision, settings=settings, log=seat.log)


def has_card() -> bool:
    """Tell whether there is a card, without loading torch for it."""
    return bool(visible_cards())
