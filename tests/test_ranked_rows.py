"""Lists made of pairs: which answer is best, and what is said where the pairs do not order everything."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from redistill.agents.ranked_rows import rankings

Row = dict[str, Any]


def pair(chosen: str, rejected: str, margin: float = 1.0, prompt: str = "p") -> Row:
    """Make a pair."""
    return {
        "prompt_id": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "margin": margin,
        "weight": 1.0,
    }


VALUES = st.lists(st.integers(0, 3), min_size=2, max_size=7).filter(lambda v: len(set(v)) > 1)


@given(VALUES, st.randoms())
def test_every_pair_of_values_gives_the_order_of_the_values(values: list[int], draw: Any) -> None:
    """Each better answer against each worse one: the list falls, its pairs are those, and equal answers are in none."""
    names = [f"{place}" for place in range(len(values))]
    worth = dict(zip(names, values, strict=True))
    pairs = [pair(a, b, worth[a] - worth[b]) for a in names for b in names if worth[a] > worth[b]]
    draw.shuffle(pairs)
    [found] = rankings(pairs)
    ordered = [worth[answer] for answer in found.answers]
    assert ordered == sorted(values, reverse=True)
    told = {
        (found.answers[b], found.answers[w]) for b, w in zip(found.better, found.worse, strict=True)
    }
    assert told == {(one["chosen"], one["rejected"]) for one in pairs}


def test_the_best_is_one_that_nothing_beats() -> None:
    """Who leads three others but has lost to somebody is not first; of two that nobody beats, the wider margins are."""
    [found] = rankings([pair("a", "b"), pair("b", "c"), pair("b", "d"), pair("b", "e")])
    assert found.answers[:2] == ("a", "b")
    [found] = rankings([pair("x", "z", 0.2), pair("a", "z", 0.1)])
    assert found.answers == ("x", "a", "z")


def test_pairs_in_a_circle_are_a_list_all_the_same() -> None:
    """Judges may contradict themselves: every pair stays, and the one that leads by most is first."""
    [found] = rankings([pair("a", "b", 0.1), pair("b", "c", 0.5), pair("c", "a", 0.2)])
    assert found.answers == ("b", "a", "c")
    assert len(found.better) == 3


def test_each_prompt_has_its_own_list() -> None:
    """In the order in which prompts come, with the mean weight of their pairs."""
    pairs = [pair("a", "b"), pair("c", "d", prompt="q"), pair("a", "e") | {"weight": 0.5}]
    one, two = rankings(pairs)
    assert (one.prompt_id, one.weight, set(one.answers)) == ("p", 0.75, {"a", "b", "e"})
    assert (two.prompt_id, two.answers) == ("q", ("c", "d"))
