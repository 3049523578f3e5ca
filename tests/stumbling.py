"""A trainer whose memory runs out once, in the first loss that it computes, and a judge that is slow after one batch."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import ClassVar

import counted_judges
from torch import Tensor

from redistill.trainers.policy_losses import TokenLogps
from redistill.trainers.reinforce import GRPO
from redistill.types import Completion, Prompt


class Stumbling(GRPO):
    """GRPO; the file that `STUMBLED` names is there from the fall on."""

    name: ClassVar[str] = "stumbling"

    def loss(self, tokens: TokenLogps) -> Tensor:
        """Fail the first time."""
        mark = Path(os.environ["STUMBLED"])
        if not mark.exists():
            mark.touch()
            raise RuntimeError("not enough memory")
        return super().loss(tokens)


_asked = itertools.count()


async def slow(prompt: Prompt, completion: Completion) -> float:
    """Judge the first sixteen answers at once, and each later one after a while; note who was asked about."""
    wait = 4.0 if next(_asked) >= 16 else 0.0
    value = await counted_judges.early(prompt, completion)
    await asyncio.sleep(wait)
    return value


slow.standing = "program"  # type: ignore[attr-defined]
