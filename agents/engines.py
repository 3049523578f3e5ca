"""Which engine samples with the models of this machine: transformers in this process, or vLLM in one of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import Problem
from ..policies.policy import Policy
from ..policies.revision import Revision

SamplerName = Literal["transformers", "vllm"]


class Vllm(BaseModel):
    """How a vLLM engine is run; for `sampler: vllm` alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache_gib: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Memory of its cache of keys and values; left out, all that is left on a card, and 1 GiB without one."""
    stays: bool | None = None
    """Whether the engine stays up while the student is trained, and takes the new weights in place; left out, it
    does without a card, where both share the memory, and does not on a card, which it has for itself."""
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


def open_engine(
    revision: Revision,
    sampler: SamplerName,
    options: Vllm,
    *,
    threads: int | None,
    rank: int,
    log: Path,
) -> Policy:
    """Return the policy of a model of this machine; nothing is loaded yet.

    Args:
        revision: what it starts with.
        sampler: the engine.
        options: how a vLLM engine is run.
        threads: cores that it may use.
        rank: highest rank of the adapters that it will hold; 0 for none.
        log: where an engine writes what it prints.
    """
    if sampler == "transformers":
        from ..policies.transformers import TransformersPolicy

        return TransformersPolicy(revision, threads=threads)
    from ..policies.vllm import EngineSettings, VllmPolicy

    card = has_card()
    settings = EngineSettings(
        cache_gib=options.cache_gib,
        stays=not card if options.stays is None else options.stays,
        start_seconds=options.start_seconds,
        # Without a card vLLM cannot score with an adapter that is not merged, but token by token.
        adapter_rank=rank if card else 0,
        threads=threads,
    )
    return VllmPolicy(revision, settings=settings, log=log)


def has_card() -> bool:
    """Tell whether there is a card, without loading torch for it."""
    return shutil.which("nvidia-smi") is not None and Path("/dev/nvidia0").exists()
