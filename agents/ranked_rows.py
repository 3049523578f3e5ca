"""From the pairs of a prompt to one list: its answers best first, and which of them is better than which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..store.store import Row


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answers to one prompt that stand in a pair."""

    prompt_id: str
    answers: tuple[str, ...]
    """completion.ids: first those that no pair says are worse than another, then those that are better than most."""
    better: tuple[int, ...]
    """Of each pair, the place of the better answer."""
    worse: tuple[int, ...]
    weight: float
    """Mean of its pairs'."""


def rankings(pairs: Iterable[Row]) -> list[Ranking]:
    """Return a list for each prompt that has pairs, in the order in which the prompts come.

    Args:
        pairs: with `prompt_id`, `chosen`, `rejected`, `margin` and `weight`.
    """
    by_prompt: dict[str, list[Row]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair["prompt_id"], []).append(pair)
    return [_ranking(prompt, found) for prompt, found in by_prompt.items()]


def _ranking(prompt: str, pairs: Sequence[Row]) -> Ranking:
    lead = Counter(pair["chosen"] for pair in pairs)
    lead.subtract(pair["rejected"] for pair in pairs)
    beaten = {pair["rejected"] for pair in pairs}
    by_far: Counter[str] = Counter()
    for pair in pairs:
        by_far[pair["chosen"]] += pair["margin"]
        by_far[pair["rejected"]] -= pair["margin"]

    def order(answer: str) -> tuple[Any, ...]:
        # Where not every pair was made, who leads most may still be worse than somebody.
        return answer in beaten, -lead[answer], -by_far[answer], answer

    answers = sorted(lead, key=order)
    place = {answer: nth for nth, answer in enumerate(answers)}
    return Ranking(
        prompt_id=prompt,
        answers=tuple(answers),
        better=tuple(place[pair["chosen"]] for pair in pairs),
        worse=tuple(place[pair["rejected"]] for pair in pairs),
        weight=fmean(pair["weight"] for pair in pairs),
    )
