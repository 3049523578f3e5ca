"""The exam of a judge that a round has made: pairs that were held back from its training.

It shows that the judge has learned what the pairs say, and no more: not that the pairs are right, and not what
attacks do to it. The starter exam and `redistill judge admit` ask for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ..hashing import content_hash, row_id, row_seed
from ..store.facts import find_completions, find_prompts
from ..store.store import Row, now
from .admission import COIN, Verdict, wilson
from .judge import Comparer, JudgeTask
from .operator import Turn
from .verdicts import Rows, compare_chunk

SHARE = 0.1
"""Of the prompts, whose pairs are held back where nobody says otherwise."""
LEAST = 20
"""Prompts that are held back where there are three times as many: the interval of a share of 0.75 then lies above
one half."""
_MOST = 3
"""At least so many times as many prompts are left to train on, where more than the share asked for is held back."""


def held_back(prompts: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """Return the prompts whose pairs are held back, by chance and alike for every judge of a run.

    A prompt's pairs go together, because two of them share an answer.

    Args:
        prompts: prompt.id of each pair.
        share: of the prompts, in [0, 1); at least `LEAST` of them, or a third where there are few; none for 0.
        seed: of the run.
    """
    every = sorted(set(prompts), key=lambda prompt: row_seed(f"held back {seed} {prompt}"))
    if not share:
        return frozenset()
    return frozenset(every[: max(round(share * len(every)), min(LEAST, len(every) // _MOST))])


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a judge agrees with the labels of pairs that it has not seen."""

    pairs: int
    """With a verdict."""
    silent: int
    """Without one."""
    prompts: int
    """The interval's unit: two pairs of one prompt share an answer."""
    share: float | None
    """Mean over prompts of the share of their pairs that it orders as they are labelled; a tie counts half."""
    ci_low: float | None
    """Wilson's 95 % interval."""
    ci_high: float | None

    @classmethod
    def of(cls, wins: Sequence[tuple[str, float | None]]) -> Agreement:
        """Count verdicts: each pair's prompt, and how far the judge agreed; None where it said nothing."""
        said: dict[str, list[float]] = {}
        for prompt, win in wins:
            if win is not None:
                said.setdefault(prompt, []).append(win)
        means = [fmean(each) for each in said.values()]
        pairs = sum(map(len, said.values()))
        low, high = wilson(sum(means), len(means))
        share = fmean(means) if means else None
        return cls(pairs, len(wins) - pairs, len(means), share, low, high)

    @property
    def verdict(self) -> Verdict:
        """Admitted where the whole interval lies above one half, refused where none of it does."""
        if self.ci_low is None or self.ci_high is None:
            return "unproven"
        if self.ci_low > COIN:
            return "admitted"
        return "refused" if self.ci_high <= COIN else "unproven"

    def told(self) -> str:
        """Say it in one line."""
        if self.share is None:
            return "no pair that was held back from its training tells whether it agrees with any"
        found = (
            f"agrees with {100 * self.share:.0f} % of the {self.pairs} pairs held back from its training "
            f"({self.ci_low:.2f}-{self.ci_high:.2f})"
        )
        doubt = {"unproven": ", and so may a coin", "refused": ", no better than a coin"}
        return found + doubt.get(self.verdict, "")


async def sit(turn: Turn, judge: Comparer, pairs: Sequence[Row], of: str) -> tuple[Rows, Agreement]:
    """Ask a judge about pairs, and return what it said as rows, with the row that says how it did.

    Args:
        turn: of the step that made the judge.
        judge: ready to speak.
        pairs: `id`, `prompt_id`, `chosen_id` and `rejected_id` of each.
        of: the step that made the pairs.
    """
    prompts = find_prompts(turn.run.store, [pair["prompt_id"] for pair in pairs])
    sides = [pair[side] for pair in pairs for side in ("chosen_id", "rejected_id")]
    answers = find_completions(turn.run.store, sides)
    tasks = []
    for pair in pairs:
        shown = [answers[completion] for completion in _shown(pair)]
        tasks.append(JudgeTask(prompts[pair["prompt_id"]], shown[0], (shown[1],)))
    rows = await compare_chunk(turn, judge, tasks)
    wins = [
        (pair["prompt_id"], _win(pair, said))
        for pair, said in zip(pairs, rows["judgement"], strict=True)
    ]
    found = Agreement.of(wins)
    return {**rows, "admission": [_admission(turn, judge, pairs, of, found)]}, found


def _shown(pair: Row) -> tuple[str, str]:
    """Return both answers in the order in which they are shown: by chance, never by which is better."""
    sides = pair["chosen_id"], pair["rejected_id"]
    return sides if row_seed(f"shown {pair['id']}") % 2 else sides[::-1]


def _win(pair: Row, said: Mapping[str, Any]) -> float | None:
    """Return how far a judgement agrees with the pair's label; None where there is no verdict."""
    if said["ranks"] is None:
        return None
    first, second = said["ranks"]
    if first == second:
        return 0.5
    return float((first < second) == (said["presented"][0] == pair["chosen_id"]))


def _admission(turn: Turn, judge: Comparer, pairs: Sequence[Row], of: str, found: Agreement) -> Row:
    return {
        "id": row_id(
            "admission",
            run=turn.run.key,
            round=turn.round,
            step=turn.step,
            judge=judge.revision,
        ),
        "round": turn.round,
        "step": turn.step,
        "judge": judge.name,
        "judge_revision": judge.revision,
        "exam": f"pairs of {of} that were held back",
        "exam_hash": content_hash([pair["id"] for pair in pairs]),
        "verdict": found.verdict,
        "reason": found.told(),
        "n": found.pairs,
        "accuracy": found.share,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "swap_consistency": None,
        "detail": json.dumps(asdict(found)),
        "created_at": now(),
    }
