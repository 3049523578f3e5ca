"""The nouns keep their laws, whoever makes them."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.types import Completion, Judgement, Message, Pair, Prompt, Status

FAILURES = [status for status in get_args(Status) if status != "ok"]
PAIRS = st.builds(
    Pair,
    prompt_id=st.just("p"),
    chosen=st.just("a"),
    rejected=st.just("b"),
    margin=st.floats(allow_nan=False, allow_infinity=False),
    probability=st.floats(0, 1),
)


@given(PAIRS)
def test_swap_twice_is_identity(pair: Pair) -> None:
    """Swapping a label back gives the label, to the last bit of 1 - (1 - p)."""
    again = pair.swap().swap()
    assert (again.chosen, again.rejected, again.margin) == (pair.chosen, pair.rejected, pair.margin)
    assert again.probability == pytest.approx(pair.probability, abs=1e-15)


@given(PAIRS)
def test_swap_is_the_opposite_label(pair: Pair) -> None:
    """The opposite label has the sides, the sign and the certainty turned round."""
    other = pair.swap()
    assert (other.chosen, other.rejected) == (pair.rejected, pair.chosen)
    assert other.margin == -pair.margin
    assert other.probability == 1 - pair.probability


@pytest.mark.parametrize(
    "wrong",
    [
        {"rejected": "a"},
        {"probability": 1.1},
        {"probability": -0.1},
        {"probability": math.nan},
        {"margin": math.nan},
        {"margin": math.inf},
    ],
)
def test_pair_refuses_what_is_no_label(wrong: dict[str, Any]) -> None:
    """A pair of one answer, or with a number that is none, is never made."""
    good: dict[str, Any] = {"prompt_id": "p", "chosen": "a", "rejected": "b", "margin": 0.5}
    with pytest.raises(ValueError, match=r"twice|no label"):
        Pair(**good | wrong)


@given(st.floats(0, 1))
def test_judgement_takes_every_value_in_range(value: float) -> None:
    """All of [0, 1] is a value."""
    assert Judgement(value).value == value


@given(st.floats().filter(lambda v: not 0 <= v <= 1))
def test_judgement_refuses_every_other_value(value: float) -> None:
    """NaN, infinities and what lies outside [0, 1] are refused, never clamped."""
    with pytest.raises(ValueError, match="lies in"):
        Judgement(value)


@pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf])
def test_judgement_refuses_a_raw_value_that_is_no_number(raw: float) -> None:
    """The judge's own number is finite too."""
    with pytest.raises(ValueError, match="finite"):
        Judgement(0.5, raw=raw)


@pytest.mark.parametrize("status", FAILURES)
def test_a_failed_judgement_has_no_value(status: Any) -> None:
    """A failure is a status and never a score; without a failure there is a score."""
    assert Judgement.failed(status, "why").value is None
    with pytest.raises(ValueError, match="only when it is ok"):
        Judgement(0.0, status=status)
    with pytest.raises(ValueError, match="only when it is ok"):
        Judgement(None, status=status, ranks=(1, 2))


def test_a_judgement_that_is_ok_says_something() -> None:
    """A value, ranks or words: an empty verdict would count as one."""
    with pytest.raises(ValueError, match="says something"):
        Judgement(None)
    assert Judgement(None, text="too long").text


@pytest.mark.parametrize(("ranks", "value"), [((1, 2), 1.0), ((2, 1), 0.0), ((1, 1), 0.5)])
def test_a_comparison_of_two_has_the_first_ones_win_as_its_value(
    ranks: tuple[int, ...], value: float
) -> None:
    """Of a longer list there is no such number."""
    assert Judgement.ranked(ranks).value == value
    assert Judgement.ranked((2, 1, 3)).value is None


def test_judgement_refuses_a_status_of_its_own() -> None:
    """A judge from outside cannot invent a status that the store would refuse later."""
    with pytest.raises(ValueError, match="status is one of"):
        Judgement(None, status="crashed")  # type: ignore[arg-type]


def test_prompt_reads_its_tags_and_its_last_turn() -> None:
    """`text` is the last turn, `tag` the first value of a key; neither fails on nothing."""
    turns = (Message("system", "s"), Message("user", "hello"))
    prompt = Prompt("id", turns, "train", tags=("form:word", "form:quotes", "loose"))
    assert (prompt.text, prompt.tag("form"), prompt.tag("loose"), prompt.tag("for")) == (
        "hello",
        "word",
        None,
        None,
    )
    assert Prompt("id", (), "train").text == ""
    assert turns[0].as_dict() == {"role": "system", "content": "s"}


def test_only_an_answer_that_ended_itself_has_ended() -> None:
    """A cut answer has not ended."""
    said: dict[str, Any] = {"id": "i", "prompt_id": "p", "text": "t", "token_ids": (1,)}
    said |= {"logprobs": (-0.1,), "revision": "r"}
    assert Completion(**said, finish_reason="stop").ended
    assert not Completion(**said, finish_reason="length").ended
