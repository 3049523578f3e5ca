"""Numbers from rows: paired differences with intervals, lengths, distinct n-grams, and a run's summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..hashing import row_seed

# One answer of each revision to each prompt, in the evaluations that two keys name. A prompt that the
# judge could not judge for either revision is in neither.
PAIRED = """
WITH side AS (
    SELECT e.id AS evaluation, c.prompt_id, c.text_hash, c.round, c.tokens, c.finish_reason,
           arg_max(j.value, j.attempt) AS value, arg_max(j.parts, j.attempt) AS parts
    FROM evaluation e
    JOIN completion c
      ON c.round = e.round AND c.step = e.step AND c.revision = e.revision AND c.split = e.split
    JOIN judgement j ON j.completion_id = c.id AND j.round = c.round
                    AND j.step = c.step AND j.judge_revision = e.judge_revision
                    AND j.mode = 'score' AND j.aspect = ''
    WHERE e.id IN (?, ?)
    GROUP BY ALL
)
SELECT a.prompt_id::VARCHAR AS prompt_id, p.tags, a.value AS before, b.value AS after,
       a.tokens AS tokens_before, b.tokens AS tokens_after,
       a.finish_reason = 'stop' AS ended_before, b.finish_reason = 'stop' AS ended_after,
       a.parts AS parts_before, b.parts AS parts_after,
       ta.text AS answer_before, tb.text AS answer_after,
       json_extract_string(asked.text, '$[#-1].content') AS prompt
FROM side a
JOIN side b ON b.prompt_id = a.prompt_id AND b.evaluation = ?
JOIN prompt p ON p.id = a.prompt_id
JOIN content asked ON asked.hash = p.messages_hash AND asked.round = p.round
JOIN content ta ON ta.hash = a.text_hash AND ta.round = a.round
JOIN content tb ON tb.hash = b.text_hash AND tb.round = b.round
WHERE a.evaluation = ? AND a.value IS NOT NULL AND b.value IS NOT NULL
ORDER BY p.position
"""


def paired_parameters(before: str, after: str) -> list[str]:
    """Return the parameters of `PAIRED` for two evaluation ids."""
    return [before, after, after, before]


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference with its interval."""

    before: float
    after: float
    delta: float
    ci_low: float
    ci_high: float
    n: int


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    *,
    seed: str,
    level: float = 0.95,
    samples: int = 10_000,
) -> Difference:
    """Resample prompts, and return the mean difference with its percentile interval.

    Efron (1979). The pair stays together, so what makes a prompt hard cancels out.

    Args:
        before: values of the one revision, by prompt.
        after: values of the other, same prompts in the same order.
        seed: any text; the same text gives the same interval.
        level: coverage of the interval.
        samples: resamples.

    Raises:
        ValueError: there is no pair.
    """
    a, b = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if a.size == 0 or a.shape != b.shape:
        raise ValueError(f"{a.size} values before and {b.size} after make no pairs")
    difference = b - a
    means = _resampled_means(difference, samples, np.random.default_rng(row_seed(seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(
        float(a.mean()), float(b.mean()), float(difference.mean()), float(low), float(high), a.size
    )


def nested_bootstrap(
    differences: Sequence[Sequence[float]], *, seed: str, level: float = 0.95, samples: int = 2000
) -> tuple[float, float, float]:
    """Return the mean over seeds of mean differences, and its interval over seeds and items.

    A resample draws seeds, and of each one prompts: what differs between trainings counts beside what differs between
    prompts; Davison and Hinkley (1997), section 3.8.

    Args:
        differences: of each seed, by prompt.
        seed: any text; the same text gives the same interval.
        level: coverage of the interval.
        samples: resamples.
    """
    generator = np.random.default_rng(row_seed(seed))
    rows = [np.asarray(one, dtype=float) for one in differences]
    means = []
    for _ in range(samples):
        drawn = generator.integers(0, len(rows), len(rows))
        means.append(
            np.mean(
                [rows[n][generator.integers(0, rows[n].size, rows[n].size)].mean() for n in drawn]
            )
        )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([row.mean() for row in rows])), float(low), float(high)


def _resampled_means(
    values: np.ndarray[Any, np.dtype[np.float64]], samples: int, generator: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the means of resamples, drawn in blocks so that memory stays bounded."""
    block = max(1, 4_000_000 // values.size)
    means = []
    for start in range(0, samples, block):
        count = min(block, samples - start)
        picks = generator.integers(0, values.size, size=(count, values.size))
        means.append(values[picks].mean(axis=1))
    return np.concatenate(means)


def distinct_share(texts: Sequence[str], n: int = 2) -> float:
    """Return the share of distinct word n-grams (1 to n) in all answers; Li et al. 2016, distinct-n.

    Short answers have no bigram, so single words count too. No words at all give 0.
    """
    total = 0
    seen: set[tuple[str, ...]] = set()
    for text in texts:
        words = text.casefold().split()
        for size in range(1, n + 1):
            grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
            total += len(grams)
            seen.update(grams)
    return len(seen) / total if total else 0.0


def smallest_gain(n: int, *, discordant: float = 0.3) -> float:
    """Return the gain that a paired test on `n` prompts finds four times in five.

    Args:
        n: held-out prompts.
        discordant: share of prompts on which the two revisions are expected to differ.
    """
    return float(2.8 * np.sqrt(discordant / n)) if n else float("inf")
