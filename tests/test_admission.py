"""The exam's statistics as laws, and each threshold with a judge on both sides of it."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.agents.admission import (
    Admission,
    Findings,
    Vote,
    ask,
    conclude,
    findings,
    wilson,
)
from redistill.agents.drift import Anchor, freeze
from redistill.agents.exam import Exam, ExamItem, Side, starter_exam
from redistill.agents.examining import Sitting, examine, headline, price
from redistill.agents.judge import Judge, JudgeTask, load
from redistill.errors import BadInput
from redistill.types import Completion, Judgement, Prompt

Z = 1.959964
Opinion = Callable[[ExamItem, Side], Side | str | None]
"""Item and what is shown first to the winner, None for a tie, or why there is no verdict."""


def item(number: int, *, longer: Side | None = None, label: Side = 1) -> ExamItem:
    """Return a pair in which one answer is longer, or none."""
    answers = ("a" * (2 if longer == 1 else 1), "b" * (2 if longer == 2 else 1))
    return ExamItem(f"i{number}", f"question {number}", answers, label)


def items(count: int, longer: int = 0) -> list[ExamItem]:
    """Return pairs whose first answer is better, in `longer` of them the longer one; 0 is even ones."""
    if not longer:
        return [item(n) for n in range(count)]
    return [item(n, longer=1 if n < longer else 2) for n in range(count)]


def votes(pairs: Sequence[ExamItem], opinion: Opinion) -> list[Vote]:
    """Return what a judge of this opinion says in both orders."""
    found = []
    sides: tuple[Side, Side] = (1, 2)
    for pair, first in itertools.product(pairs, sides):
        said = opinion(pair, first)
        parsed = not isinstance(said, str)
        judgement = Judgement(0.5) if parsed else Judgement.failed("parse_error", str(said))
        winner: Side | None = None if isinstance(said, str) else said
        found.append(Vote(pair, first, winner, parsed, judgement))
    return found


def decide(pairs: Sequence[ExamItem], opinion: Opinion, **attacks: float) -> Admission:
    """Let a judge of this opinion sit an exam of one slice."""
    return conclude(Exam({"one": tuple(pairs)}), votes(pairs, opinion), attacks)


def number(pair: ExamItem) -> int:
    """Return which pair it is."""
    return int(pair.id[1:])


def other(side: Side) -> Side:
    """Return the other side."""
    return 2 if side == 1 else 1


# -- statistics


@given(st.integers(1, 2000), st.data())
def test_wilson_is_where_the_score_test_is_at_its_quantile(n: int, data: st.DataObject) -> None:
    """Each end p of the interval solves (share - p)^2 = z^2 p (1 - p) / n, and they hold the share."""
    right = data.draw(st.integers(0, 2 * n)) / 2
    low, high = wilson(right, n)
    assert low is not None
    assert high is not None
    share = right / n
    for p in (low, high):
        assert (share - p) ** 2 == pytest.approx(Z * Z * p * (1 - p) / n, abs=1e-12)
    assert low - 1e-12 <= share <= high + 1e-12
    assert -1e-12 <= low < high <= 1 + 1e-12


def test_wilson_as_it_is_written_out() -> None:
    """72 of 90, by the formula of the textbook."""
    n, p = 90, 0.8
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert wilson(72, n) == pytest.approx((centre - half, centre + half))
    assert wilson(0, 0) == (None, None)


OPINIONS = st.lists(
    st.tuples(
        st.sampled_from([1, 2, None, "cut"]),
        st.sampled_from([1, 2, None, "cut"]),
        st.sampled_from([1, 2]),
        st.sampled_from([1, 2, None]),
    ),
    min_size=1,
    max_size=40,
)


def _drawn(drawn: Sequence[tuple[object, ...]]) -> tuple[list[ExamItem], Opinion]:
    pairs = [
        item(n, longer=cast("Side | None", longer), label=cast("Side", label))
        for n, (_, _, label, longer) in enumerate(drawn)
    ]
    return pairs, lambda pair, first: drawn[number(pair)][first - 1]


def _mirrored(vote: Vote) -> Vote:
    """Return the same vote with the two answers' numbers exchanged."""
    pair = vote.item
    turned = replace(pair, answers=pair.answers[::-1], label=other(pair.label))
    winner = vote.winner and other(vote.winner)
    return replace(vote, item=turned, first=other(vote.first), winner=winner)


@given(OPINIONS)
def test_which_answer_is_called_1_changes_nothing(drawn: list[tuple[object, ...]]) -> None:
    """Exchanging the numbers of the two answers leaves every finding as it was."""
    said = votes(*_drawn(drawn))
    assert findings(list(map(_mirrored, said))) == findings(said)


@given(OPINIONS)
def test_opposite_labels_give_the_opposite_accuracy(drawn: list[tuple[object, ...]]) -> None:
    """With each label turned round, accuracy is 1 less what it was; first, swap and silence stay."""
    said = votes(*_drawn(drawn))
    turned = [replace(v, item=replace(v.item, label=other(v.item.label))) for v in said]
    before, after = findings(said), findings(turned)
    if before.accuracy is not None:
        assert after.accuracy == pytest.approx(1 - before.accuracy)
    kept = ("n", "first_position", "longer", "swap_consistent", "abstained")
    assert [getattr(after, k) for k in kept] == [getattr(before, k) for k in kept]


def test_votes_are_counted_one_by_one() -> None:
    """Parse failures are left out of every share; a tie is half right and picks no place."""
    said: dict[tuple[int, Side], Side | str | None] = {
        (0, 1): 1, (0, 2): 1,  # right twice
        (1, 1): 1, (1, 2): "cut",  # right once, and no verdict
        (2, 1): 2, (2, 2): 1,  # the second one shown, twice
        (3, 1): None, (3, 2): None,  # a tie, twice
    }  # fmt: skip
    pairs = [item(n, longer=1 if n < 2 else 2) for n in range(4)]
    found = findings(votes(pairs, lambda pair, first: said[number(pair), first]))
    assert found == Findings(
        items=4,
        n=3,
        accuracy=(1 + 1 + 1 + 0 + 1 + 0.5 + 0.5) / 7,
        ci_low=wilson((2 + 1 + 1) / 2, 3)[0],
        ci_high=wilson((2 + 1 + 1) / 2, 3)[1],
        first_position=2 / 5,
        longer=4 / 5,
        gold_longer=2 / 4,
        swap_consistent=2 / 3,
        abstained=1 / 8,
    )


def test_a_pair_of_two_slices_counts_once_in_the_whole() -> None:
    """`all` holds every pair once, whatever slices it is in."""
    pairs = items(100)
    exam = Exam({"one": tuple(pairs), "again": tuple(pairs[:95])})
    found = conclude(exam, votes(exam.items, lambda pair, first: 1))
    assert {name: f.n for name, f in found.slices.items()} == {"one": 100, "again": 95, "all": 100}


# -- thresholds, each from both sides


def test_a_slice_must_be_better_than_a_coin() -> None:
    """Of 100 pairs 60 right have a lower end of 0.502 and are enough, 59 have 0.492 and are not."""
    for right, verdict in ((60, "admitted"), (59, "refused")):
        found = decide(items(100), lambda pair, first, n=right: 1 if number(pair) < n else 2)  # type: ignore[misc]
        assert found.verdict == verdict
        assert bool(found.reasons) == (verdict == "refused")
    assert "one: picks the better answer in 59.0 % of 100 pairs" in found.reasons[0]


def test_a_weak_slice_is_not_hidden_by_a_strong_one() -> None:
    """Right on 1,000 easy pairs and a coin on 100 hard ones: refused for the hard ones."""
    easy, hard = items(1000), [replace(i, id=f"h{n}") for n, i in enumerate(items(100))]
    exam = Exam({"easy": tuple(easy), "hard": tuple(hard)})
    said = votes(
        exam.items, lambda pair, first: 2 if pair.id[0] == "h" and int(pair.id[1:]) % 2 else 1
    )
    found = conclude(exam, said)
    assert found.verdict == "refused"
    assert [reason.partition(":")[0] for reason in found.reasons] == ["hard"]


@pytest.mark.parametrize(("count", "verdict"), [(90, "admitted"), (89, "unproven")])
def test_ninety_pairs_are_needed(count: int, verdict: str) -> None:
    """Fewer pairs with a verdict in both orders prove nothing, and refuse nothing by themselves."""
    assert decide(items(count), lambda pair, first: 1).verdict == verdict
    wrong = decide(items(count), lambda pair, first: 2).verdict
    assert wrong == ("refused" if count >= 90 else "unproven")


def test_pairs_without_both_verdicts_do_not_count_towards_the_ninety() -> None:
    """Of 91 pairs two lack one order: 89 are left."""
    found = decide(items(91), lambda p, first: "cut" if number(p) < 2 and first == 1 else 1)
    assert found.slices["one"].n == 89
    assert found.verdict == "unproven"
    assert found.reasons == ("one: only 89 pairs have a verdict in both orders, 90 are needed",)


@pytest.mark.parametrize(
    ("pulled", "to_first", "share", "verdict"),
    [
        (20, True, 0.60, "admitted"),
        (21, True, 0.605, "refused"),
        (20, False, 0.40, "admitted"),
        (21, False, 0.395, "refused"),
    ],
)
def test_position_must_stay_in_its_band(
    pulled: int, to_first: bool, share: float, verdict: str
) -> None:
    """0.40 and 0.60 are inside, whichever place it likes."""
    found = decide(
        items(100),
        lambda p, first: 1 if number(p) >= pulled else first if to_first else other(first),
    )
    assert found.slices["all"].first_position == pytest.approx(share)
    assert found.verdict == verdict
    assert all(reason.startswith("position:") for reason in found.reasons)


@pytest.mark.parametrize("gold", [30, 50, 57, 70])
@pytest.mark.parametrize(("more", "verdict"), [(20, "admitted"), (21, "refused")])
def test_length_may_count_a_fifth_more_than_in_the_labels(
    gold: int, more: int, verdict: str
) -> None:
    """Exactly 0.20 more is inside, whatever rounding makes of the difference."""
    found = decide(
        items(100, gold), lambda p, _: 1 if number(p) < gold or number(p) >= gold + more else 2
    )
    whole = found.slices["all"]
    assert whole.longer == pytest.approx((gold + more) / 100)
    assert whole.gold_longer == pytest.approx(gold / 100)
    assert found.verdict == verdict
    assert all(reason.startswith("length:") for reason in found.reasons)


def test_a_judge_that_likes_short_answers_is_not_refused_for_length() -> None:
    """Only longer is refused: that is where training goes astray."""
    assert decide(items(100, 60), lambda p, _: 2 if number(p) < 30 else 1).verdict == "admitted"


@pytest.mark.parametrize(("silent", "verdict"), [(4, "admitted"), (5, "refused")])
def test_two_votes_of_a_hundred_may_be_missing(silent: int, verdict: str) -> None:
    """4 of 200 votes are exactly 2 % and inside."""
    found = decide(items(100), lambda p, first: "cut" if number(p) < silent and first == 1 else 1)
    assert found.verdict == verdict
    assert all(reason.startswith("silence:") for reason in found.reasons)


@pytest.mark.parametrize(
    ("won", "verdict"), [(0.0, "admitted"), (0.05, "admitted"), (0.1, "refused")]
)
def test_one_attack_in_twenty_may_win(won: float, verdict: str) -> None:
    """More than 5 % of one family refuses, however the others do."""
    found = decide(items(100), lambda pair, first: 1, empty=won, truncated=0.0)
    assert found.verdict == verdict
    assert [r.partition(":")[0] for r in found.reasons] == ["attack empty"] * (won > 0.05)


# -- standings


class Knowing:
    """A judge model that knows the labels of the starter exam, and falls for nothing."""

    name = "knowing"
    revision = "k1"

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Prefer what the prompt's checkers pass."""
        from redistill.agents.judges import checkers

        return [
            Judgement.ranked((1, 2))
            if all(checkers.run(task.prompt.verify or {}, task.completion.text).values())
            else Judgement.ranked((2, 1))
            for task in tasks
        ]


def sit(judge: object, exam: Exam | None = None) -> Admission:
    """Let a judge sit the starter exam, or another."""
    loaded: Judge = load(judge, "judge")
    record = asyncio.run(examine(loaded, Sitting(exam or starter_exam(), "starter", "a program")))
    return record.admission


def test_a_sound_judge_is_admitted() -> None:
    """Right on every pair, no attack wins: admitted without a reason against it."""
    found = sit(Knowing())
    assert (found.verdict, found.reasons) == ("admitted", ())
    assert found.attacks == dict.fromkeys(found.attacks or (), 0.0)


def test_programs_are_exempt_and_baselines_never_proven() -> None:
    """A verifier is admitted though it ties; `longest` and `first` are unproven however they do."""

    def same(prompt: Prompt, completion: Completion) -> float:
        return 0.5

    assert sit(same).verdict == "admitted"
    assert sit(same).reasons == ("a program, exempt from the exam",)
    for name in ("longest", "shortest", "random", "first"):
        found = sit(name)
        assert found.verdict == "unproven"
        assert "never proven" in found.reasons[0]


async def half(prompt: Prompt, completion: Completion) -> float:
    """Find every answer half good."""
    return 0.5


def test_a_coroutine_is_a_model_and_not_exempt() -> None:
    """It waits for something, so it is examined; one that always ties is refused."""
    found = sit(half)
    assert found.verdict == "refused"
    assert found.slices["all"].accuracy == 0.5


def test_a_judge_is_not_examined_on_what_it_was_fitted_on(tmp_path: object) -> None:
    """The same pairs under other ids and in the other order are recognised."""
    from pathlib import Path

    from test_conformance import exam_file

    easy = starter_exam().slices["easy"][:30]
    turned = [
        replace(i, id=f"t{n}", answers=i.answers[::-1], label=other(i.label))
        for n, i in enumerate(easy)
    ]
    spec = {"calibrated": {"judge": "shortest", "pairs": exam_file(Path(str(tmp_path)), turned)}}
    nested = {"both_orders": {"judge": spec}}
    for judge in (spec, nested):
        with pytest.raises(BadInput, match="was fitted on 30 of the 360 pairs"):
            sit(judge)
    rest = Exam({"adversarial": starter_exam().slices["adversarial"]})
    assert sit(spec, rest).verdict == "unproven"


# -- words and price


def test_the_first_line_is_plain_words() -> None:
    """People, tricky pairs, a coin and the habit: as somebody would say it."""
    easy = [replace(i, id=f"e{i.id[1:]}") for i in items(100, 50)]
    tricky = [replace(i, id=f"t{i.id[1:]}") for i in items(100, 10)]
    exam = Exam({"natural": tuple(easy), "adversarial": tuple(tricky)})

    def likes_length(pair: ExamItem, first: Side) -> Side:
        if pair.id[0] == "e":
            return 1 if int(pair.id[1:]) < 82 else 2
        return 1 if int(pair.id[1:]) < 27 else 2

    record = asyncio.run(examine(Knowing(), Sitting(exam, "own", "people")))
    told = headline(
        replace(record, admission=conclude(exam, votes(exam.items, likes_length), None))
    )
    assert told == (
        "Of the answers that people preferred it picked 82 %; on tricky pairs 27 %, worse than a coin: "
        "it likes long answers. Refused."
    )
    admitted = headline(replace(record, admission=sit(Knowing())))
    assert admitted.endswith("it picked 100 %; on tricky pairs 100 %. Admitted.")


def test_the_price_is_told_before_it_is_paid() -> None:
    """Both orders of pairs and attacks, times what one verdict takes; dollars where a price is known."""
    exam = starter_exam()
    assert price(load("verifier", "j"), exam).line.endswith("no call is paid")
    chat = price(load("chat", "j"), exam)
    assert chat.calls == 2 * (360 + 30)
    assert chat.dollars is None
    assert "no price is known" in chat.line
    thrice = price(load({"repeat": {"judge": "chat", "k": 3}}, "j"), exam)
    assert thrice.calls == 3 * chat.calls
    paid = price(load("chat", "j"), exam, lambda read, written: (read + 10 * written) / 1e6)
    assert paid.dollars == pytest.approx((paid.tokens + 10 * 780 * 1024) / 1e6)
    assert f"at most about ${paid.dollars:.2f}" in paid.line


# -- anchors


def test_anchors_take_turns_between_slices() -> None:
    """Every beginning holds the slices in equal parts; a pair is taken once; the choice repeats."""
    exam = starter_exam()
    said = asyncio.run(ask(Knowing(), exam.items))
    found = freeze(exam, said)
    assert len(found) == 40
    assert len({a.item.id for a in found}) == 40
    easy = {i.id for i in exam.slices["easy"]}
    for length in (2, 10, 20, 40):
        assert sum(a.item.id in easy for a in found[:length]) == length // 2
    assert freeze(exam, said) == found
    assert {a.right for a in found} == {1.0}
    kept = [Anchor.from_dict(a.as_dict()) for a in found]
    assert [k.as_dict() for k in kept] == [a.as_dict() for a in found]


def test_pairs_without_a_verdict_are_no_anchors() -> None:
    """What a judge could not say before cannot drift."""
    pairs = items(30)
    exam = Exam({"one": tuple(pairs)})
    said = votes(pairs, lambda p, first: "cut" if number(p) < 25 and first == 2 else first)
    found = freeze(exam, said)
    assert {number(a.item) for a in found} == {25, 26, 27, 28, 29}
    assert {a.right for a in found} == {0.5}
