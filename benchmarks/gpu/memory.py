"""What a job takes of a card beside what was estimated: DPO on a random Llama of 7B in bfloat16, 24 GiB at most.

The process may take 24 GiB of the card, and the trainer says `weights: auto`, so that the job itself has to find out
that all weights do not fit and an adapter does. Measured is the most that torch has reserved while the job ran, and
what the card holds for the process beside it (its context); estimated is what `redistill plan` prints for the same shape,
trainer and row length, of the way that the job took. Goal: the peak is within 10 % of the estimate.

A dry run takes the most memory that the process has held in place of the card's.

    python benchmarks/gpu/memory.py [--shape 7b|tiny] [--device cuda|cpu] [--out FILE]
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))  # also where Python does not look beside a script

from shapes import Asked, Row, goal, random_ids, random_revision, script
from timed_jobs import run

from redistill.errors import EnvironmentProblem

if TYPE_CHECKING:
    from redistill.policies.placement import Card

CAP = 24 << 30
"""Bytes of the card that the process may take."""
PAIRS, BATCH, MICRO, STEPS = 16, 8, 2, 3
LENGTHS = {"7b": (256, 256), "tiny": (24, 16)}
"""Tokens of a prompt and of each of its answers."""


def measure(asked: Asked) -> Row:
    """Run the job, and return the estimate and the peak.

    Raises:
        EnvironmentProblem: the driver does not tell the card's memory.
    """
    from redistill.policies.placement import visible_cards
    from redistill.trainers.estimate import estimate, shape_of
    from redistill.trainers.preference import DPO

    before = visible_cards()  # asks the driver, so the card is not touched yet
    if asked.device == "cuda" and not before:
        raise EnvironmentProblem("nvidia-smi does not tell this card's memory (part of one, MIG?)")
    start = random_revision(asked, "bfloat16")
    rows = pairs(asked.shape)
    trainer = DPO(
        weights="auto", learning_rate=1e-4, batch_size=BATCH, micro_batch=MICRO, steps=STEPS
    )
    cap(asked)
    result, way = run(asked.folder, start, trainer, rows)
    taken = peak(asked, before)
    longest = max(map(trainer.row_tokens, rows))
    shape = shape_of(start.folder)
    told = estimate(shape, trainer, longest, way["weights"], recompute=way["recompute"])
    return {
        "parameters": shape.parameters,
        "row_tokens": longest,
        "way": {"weights": way["weights"], "recompute": way["recompute"]},
        "message": result.message,  # says so where memory ran out and the micro-batch was halved
        "estimated": {"total": told.total, **told.parts},
        "measured": taken,
        "share": goal(asked, taken["total"] / told.total, least=0.9, most=1.1),
    }


def pairs(shape: str) -> list[Row]:
    """Make pairs of random tokens, with log-probs of a reference out of thin air."""
    asked, said = LENGTHS[shape]
    prompts = random_ids(shape, PAIRS, asked)
    answers = random_ids(shape, 2 * PAIRS, said, seed=1)
    return [
        {
            "id": str(place),
            "prompt_ids": prompt,
            "chosen_ids": answers[2 * place],
            "rejected_ids": answers[2 * place + 1],
            "ref_chosen_logp": -10.0 * said,
            "ref_rejected_logp": -10.0 * said,
            "weight": 1.0,
            "margin": 0.0,
            "probability": None,
            "gold_ids": None,
        }
        for place, prompt in enumerate(prompts)
    ]


def cap(asked: Asked) -> None:
    """Let this process take no more than `CAP`, and count from here on."""
    if asked.device == "cuda":
        import torch

        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total))
        torch.cuda.reset_peak_memory_stats()


def peak(asked: Asked, before: Sequence[Card]) -> Row:
    """Return the bytes that the job has taken at most, by part.

    Args:
        asked: on which device.
        before: the cards before this process touched one; what others hold is taken to have stayed as it was.
    """
    if asked.device == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return {"total": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    import torch

    free = torch.cuda.mem_get_info()[0]
    context = max(0, before[0].free - free - torch.cuda.memory_reserved())
    reserved = torch.cuda.max_memory_reserved()
    return {
        "total": reserved + context,
        "reserved": reserved,
        "allocated": torch.cuda.max_memory_allocated(),
        "context": context,
    }


if __name__ == "__main__":
    script("memory", __doc__, measure, "7b", ("7b", "tiny"))
