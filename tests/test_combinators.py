"""Judges made of judges: both orders, repeats, juries, corrected and calibrated ones."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmbar import FILES, needs_llmbar, replay
from planted_judges import BILL, think
from test_conformance import exam_file

from redistill.agents.admission import Findings, Vote, ask, conclude
from redistill.agents.exam import Exam, ExamItem, load_exam
from redistill.agents.judge import Judge, JudgeTask, Mode, load, modes, standing_of
from redistill.agents.judges.combine import BothOrders, Repeat
from redistill.agents.judges.fitted import Calibrated, LengthCorrected, isotonic
from redistill.agents.judges.jury import Jury, fit_weights
from redistill.agents.judges.win_rate import WinRate
from redistill.errors import BadInput
from redistill.store.bias import logistic
from redistill.types import Completion, Judgement, Message, Prompt

ME = "planted_judges:"
BILLED = Judgement(1.0, usage=BILL)
ROOT = Path(__file__).parents[1]


def task(*texts: str, number: int = 0, attempt: int = 0) -> JudgeTask:
    """Return answers to a question."""
    said = [Completion(f"{number}/{t}", f"q{number}", t, (), (), "stop", "") for t in texts]
    prompt = Prompt(f"q{number}", (Message("user", "?"),), "train")
    return JudgeTask(prompt, said[0], tuple(said[1:]), attempt)


def judged(judge: Any, *tasks: JudgeTask, mode: Mode = "compare") -> list[Judgement]:
    """Let a judge judge."""
    found: list[Judgement] = asyncio.run(getattr(judge, mode)(list(tasks)))
    return found


# -- both orders


@given(st.floats(0, 1), st.floats(0, 1))
def test_both_orders_average_what_place_does(straight: float, back: float) -> None:
    """The probability is the mean of both orders, each for the same answer; one that likes a place ties."""
    think(one=lambda t: straight if t.completion.text == "a" else back)
    judge = BothOrders(judge=ME + "one")
    [found], [turned] = judged(judge, task("a", "b")), judged(judge, task("b", "a"))
    assert found.probability == pytest.approx((straight + 1 - back) / 2)
    assert found.probability is not None
    assert turned.probability == pytest.approx(1 - found.probability)
    assert found.usage is not None
    assert (found.usage.tokens_in, found.usage.dollars) == (20, 1.0)
    think(one=1.0)
    assert judged(judge, task("a", "b"))[0].ranks == (1, 1)


def test_both_orders_of_three_average_ranks() -> None:
    """Of more than two the ranks are averaged, each for its own answer."""
    think(one=lambda t: tuple(range(len(t.candidates))) if t.completion.text == "a" else (0, 2, 1))
    [found] = judged(BothOrders(judge=ME + "one"), task("a", "b", "c"))
    # Straight a1 b2 c3; back (c, b, a) = 1 3 2: a 1.5, b 2.5, c 2.
    assert found.ranks == (1, 3, 2)


def test_one_order_without_a_verdict_is_no_verdict() -> None:
    """A single order carries the place's pull; what it cost is kept."""
    think(one=lambda t: "timeout" if t.completion.text == "b" else 0.9)
    [found] = judged(BothOrders(judge=ME + "one"), task("a", "b"))
    assert (found.status, found.ranks) == ("timeout", None)
    assert found.usage is not None
    assert found.usage.dollars == 1.0


# -- repeat


def test_repeat_takes_means_and_majorities() -> None:
    """Attempts are numbered on; failures are left out while half of them are there."""
    think(one=lambda t: [0.2, 0.4, 0.9][t.attempt])
    judge = Repeat(judge=ME + "one", k=3)
    [scored] = judged(judge, task("a"), mode="score")
    assert scored.value == pytest.approx(0.5)
    assert scored.usage is not None
    assert scored.usage.tokens_in == 30
    think(one=lambda t: [1.0, 0.0, 1.0][t.attempt])
    assert judged(judge, task("a", "b"))[0].ranks == (1, 2)
    think(one=lambda t: [1.0, "timeout", "timeout"][t.attempt])
    [lost] = judged(judge, task("a", "b"))
    assert (lost.status, lost.usage and lost.usage.tokens_in) == ("timeout", 30)
    think(one=lambda t: [1.0, "timeout", 0.0][t.attempt])
    assert judged(judge, task("a", "b"))[0].ranks == (1, 1)


# -- juries


def exam(count: int = 60) -> list[ExamItem]:
    """Return pairs whose better answer is `good`, in turns the first and the second."""
    return [
        ExamItem(f"i{n}", f"q{n}", ("good", "bad") if n % 2 else ("bad", "good"), 1 if n % 2 else 2)
        for n in range(count)
    ]


def right(share: float, seed: int) -> Callable[[JudgeTask], float]:
    """Return a judge that is right in a share of the questions, the same in both orders."""

    def opinion(t: JudgeTask) -> float:
        draw = random.Random(f"{seed} {t.prompt.id}").random()
        good = t.completion.text == "good"
        return float(good if draw < share else not good)

    return opinion


def jury(folder: Path, **settings: Any) -> Jury:
    """Return a jury of the three judges, fitted on 60 pairs."""
    names = [ME + name for name in ("one", "two", "three")]
    pairs = {"pairs": exam_file(folder, exam())} if settings.get("weights") != "majority" else {}
    return Jury(judges=names, **pairs, **settings)


def test_a_jury_weighs_its_members_by_their_worth(tmp_path: Path) -> None:
    """A good member outvotes two that are wrong together; a harmful one weighs 0; majority does not."""
    think(one=right(0.9, 1), two=right(0.2, 2), three=right(0.2, 2))
    fitted, plain = jury(tmp_path), jury(tmp_path, weights="majority")
    held = [i for i in exam(160) if int(i.id[1:]) >= 60]
    accuracy = {
        j.weights: conclude(Exam({"x": tuple(held)}), asyncio.run(ask(j, held)))
        .slices["x"]
        .accuracy
        for j in (fitted, plain)
    }
    assert accuracy["fitted"] == pytest.approx(0.9, abs=0.07)
    assert accuracy["majority"] == pytest.approx(0.2, abs=0.1)
    weights = asyncio.run(fitted.fit([])).weights([0, 1, 2])
    assert weights[0] > 0
    assert weights[1:].tolist() == [0, 0]


@given(st.integers(0, 10_000))
def test_no_weight_is_negative_and_absent_members_weigh_nothing(seed: int) -> None:
    """Whatever the votes say; and for each part of the members anew."""
    rng = np.random.default_rng(seed)
    votes, label = rng.uniform(-1, 1, (40, 3)), rng.integers(0, 2, 40).astype(float)
    for present in ([0, 1, 2], [0, 2], [1]):
        weights = fit_weights(votes, label, present)
        assert (weights >= 0).all()
        assert all(weights[n] == 0 for n in range(3) if n not in present)


def test_a_member_that_is_down_is_waited_for(tmp_path: Path) -> None:
    """By default there is no verdict, so that the answer is asked again; it says who was missing."""
    think(one=right(0.9, 1), two=right(0.8, 2), three=right(0.7, 3))
    judge = jury(tmp_path)
    judged(judge, task("good", "bad"))
    think(one=right(0.9, 1), two="timeout", three=right(0.7, 3))
    [found] = judged(judge, task("good", "bad", number=1))
    assert (found.status, found.ranks, found.parts) == ("timeout", None, {})
    assert found.text == "two gave no verdict: it says so"
    assert found.usage is not None
    assert found.usage.dollars == 1.5


def test_without_waiting_a_quorum_decides_and_the_row_is_partial(tmp_path: Path) -> None:
    """Weights fitted for the members that are there are used; below the quorum there is no verdict."""
    think(one=right(0.95, 1), two=right(0.7, 2), three=right(0.7, 3))
    judge = jury(tmp_path, wait=False)
    [whole] = judged(judge, task("good", "bad", number=200))
    assert whole.parts == {}
    ballots = asyncio.run(judge.fit([]))
    think(one="error", two=1.0, three=1.0)
    [found] = judged(judge, task("good", "bad"))
    assert found.parts == {"partial": True}
    there = ballots.weights([1, 2])
    assert there[0] == 0
    assert found.probability == pytest.approx(1 / (1 + np.exp(-there.sum())))
    assert there[1:].tolist() != ballots.weights([0, 1, 2])[1:].tolist()
    think(one="error", two="error", three=1.0)
    assert judged(judge, task("good", "bad"))[0].status == "error"
    [alone] = judged(jury(tmp_path, wait=False, quorum=1), task("good", "bad"))
    assert (alone.status, alone.parts) == ("error", {})
    assert "no member that is there is better than a coin" in alone.text


def test_weights_that_were_fitted_while_a_member_was_down_are_not_kept(tmp_path: Path) -> None:
    """A member that was away while the pairs were asked is asked again, and then has its weight."""
    think(one="timeout", two=right(0.8, 2), three=right(0.7, 3))
    judge = jury(tmp_path, wait=False, quorum=2)
    [found] = judged(judge, task("good", "bad"))
    assert found.parts == {"partial": True}
    think(one=right(0.95, 1), two=right(0.8, 2), three=right(0.7, 3))
    judged(judge, task("good", "bad"))
    assert asyncio.run(judge.fit([BILLED])).weights([0, 1, 2])[0] > 0


def test_members_are_not_asked_about_pairs_while_there_is_nothing_to_decide(tmp_path: Path) -> None:
    """A member that is waited for costs the others no calls on the labelled pairs."""
    asked = []

    def count(t: JudgeTask) -> float:
        asked.append(t.prompt.id)
        return 1.0

    think(one="timeout", two=count, three=count)
    judged(jury(tmp_path), task("good", "bad", number=7))
    assert asked == ["q7", "q7"]


def test_a_majority_must_be_asked_for(tmp_path: Path) -> None:
    """A jury without labelled pairs is refused at load; so is a quorum of more than there are."""
    names = [ME + "one", ME + "two"]
    for settings in (
        {},
        {"pairs": exam_file(tmp_path, exam(19))},
        {"weights": "majority", "quorum": 3},
    ):
        with pytest.raises(BadInput):
            load({"jury": {"judges": names, **settings}}, "j")
    think(one=1.0, two=0.0, three=1.0)
    assert judged(jury(tmp_path, weights="majority"), task("a", "b"))[0].ranks == (1, 2)


def test_a_jury_ranks_lists_and_means_scores(tmp_path: Path) -> None:
    """Of more than two the weighed ranks decide, of scores the weighed mean."""
    think(one=(0, 1, 2), two=(0, 1, 2), three=(2, 1, 0))
    plain = jury(tmp_path, weights="majority")
    assert judged(plain, task("a", "b", "c"))[0].ranks == (1, 2, 3)
    think(one=0.2, two=0.4, three=0.9)
    assert judged(plain, task("a"), mode="score")[0].value == pytest.approx(0.5)


def cross_validated(members: list[Any], whole: Exam, folder: Path, folds: int = 5) -> list[Vote]:
    """Return a fitted jury's votes on every item, each by a jury that was fitted without it."""
    items = list(whole.items)
    random.Random(0).shuffle(items)
    votes: list[Vote] = []
    for fold in range(folds):
        held = items[fold::folds]
        known = [item for item in items if item not in held]
        here = folder / str(fold)
        here.mkdir()
        judge = Jury(judges=members, pairs=exam_file(here, known))
        assert not judge.seen() & {item.key for item in held}
        votes += asyncio.run(ask(judge, held))
    return votes


@needs_llmbar
def test_a_real_jurys_majority_is_worse_than_its_best_member(tmp_path: Path) -> None:
    """PaLM2, ChatGPT and LLaMA2 on LLMBar: bias adds up in a majority; fitted weights take it out.

    Each item is judged by weights that were fitted on other items. The numbers stand in the docs.
    """
    slices = {"adversarial": [Path("gptinst"), Path("neighbor")]}
    whole = load_exam(FILES, slices)
    members = [replay(name) for name in ("PaLM2", "ChatGPT", "LLaMA2")]

    def on_adversarial(judge: Judge) -> Findings:
        return conclude(whole, asyncio.run(ask(judge, whole.items))).slices["adversarial"]  # type: ignore[arg-type]

    alone = [on_adversarial(load(member, "j")).accuracy or 0 for member in members]
    majority = on_adversarial(
        load({"jury": {"judges": members, "weights": "majority"}}, "j")
    ).accuracy
    fitted = conclude(whole, cross_validated(members, whole, tmp_path)).slices
    assert majority is not None
    assert fitted["adversarial"].accuracy is not None
    assert majority < max(alone) - 0.3
    assert fitted["adversarial"].accuracy >= max(alone) - 0.005
    told = (ROOT / "docs/judging.md").read_text("utf-8")
    for number in (majority, max(alone), fitted["adversarial"].accuracy):
        assert f"{number:.3f}" in told


# -- corrected and calibrated


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_isotonic_is_monotone_and_keeps_the_mean(seen: list[tuple[float, bool]]) -> None:
    """A higher value is never worth less; the fitted values have the mean of the labels, in [0, 1]."""
    x, y = (np.array(column, dtype=float) for column in zip(*seen, strict=True))
    steps = isotonic(x, y)
    found = [steps(float(value)) for value in x]
    assert np.mean(found) == pytest.approx(y.mean())
    ordered = [steps(v) for v in np.linspace(0, 1, 50)]
    assert all(0 <= a <= b + 1e-12 <= 1 + 1e-9 for a, b in itertools.pairwise(ordered))


def test_isotonic_as_it_is_known() -> None:
    """Ayer et al.: neighbours that fall are pooled to their mean."""
    steps = isotonic(np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 0, 1]))
    assert steps.value.tolist() == [0, 0.5, 0.5, 1]


def test_logistic_is_where_its_gradient_is_zero() -> None:
    """Newton's method ends at the optimum of the penalised likelihood."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 2))
    y = (rng.uniform(size=200) < 1 / (1 + np.exp(-(x @ np.array([1.5, -1]))))).astype(float)
    w = logistic(x, y)
    gradient = x.T @ (1 / (1 + np.exp(-x @ w)) - y) + w
    assert np.abs(gradient).max() < 1e-6
    assert w == pytest.approx([1.5, -1], abs=0.5)


def test_calibrated_says_how_often_it_is_right(tmp_path: Path) -> None:
    """A judge that is always sure and right in 70 % is brought to 0.7; order and price stay."""
    think(one=right(0.7, 5))
    judge = Calibrated(judge=ME + "one", pairs=(exam_file(tmp_path, exam(200)),))
    [found] = judged(judge, task("good", "bad", number=900))
    assert found.probability is not None
    assert max(found.probability, 1 - found.probability) == pytest.approx(0.7, abs=0.08)
    assert found.usage == BILL
    think(one=lambda t: 0.9 if t.completion.text == "good" else 0.8)
    scored = Calibrated(judge=ME + "one", pairs=(exam_file(tmp_path, exam(100)),))
    values = [j.value for j in judged(scored, task("good"), task("bad"), mode="score")]
    assert values == [1.0, 0.0]
    think(one="timeout")
    assert judged(judge, task("good", "bad"))[0].status == "timeout"


@pytest.mark.parametrize("kind", [Calibrated, LengthCorrected])
def test_what_cannot_be_fitted_is_a_status(kind: Any, tmp_path: Path) -> None:
    """A judge inside that says nothing of the labelled pairs leaves no verdict, and no exception."""
    judge = kind(judge=ME + "one", pairs=(exam_file(tmp_path, exam(30)),))
    think(one=lambda t: 1.0 if t.prompt.id == "q77" else "refused")
    [found] = judged(judge, task("good", "bad", number=77))
    assert (found.status, found.usage) == ("error", BILL)
    assert "not fitted" in found.text


def _tempted(t: JudgeTask) -> float:
    """Judge rightly in half of the questions, by length in the others."""
    good, longer = (
        t.completion.text.startswith("good"),
        len(t.completion.text) > len(t.others[0].text),
    )
    return float(good if int(t.prompt.id[1:]) % 2 else longer)


def tempting(start: int, count: int) -> list[ExamItem]:
    """Return pairs of which in half the better answer is the longer one, independently of the parity."""
    found = []
    for n in range(start, start + count):
        texts = ("good" + "!" * 40, "bad") if n // 2 % 2 else ("good", "bad" + "!" * 40)
        turned = n // 4 % 2
        answers = texts[::-1] if turned else texts
        found.append(ExamItem(f"q{n}", f"q{n}", answers, 2 if turned else 1))
    return found


def test_length_corrected_trusts_the_shorter_answer_more(tmp_path: Path) -> None:
    """A vote for the shorter answer becomes stronger than one for the longer; a fair judge is left alone."""
    think(one=_tempted)
    judge = LengthCorrected(judge=ME + "one", pairs=exam_file(tmp_path, tempting(0, 80)))
    for_shorter, for_longer = judged(
        judge,
        JudgeTask(*_parts(1, "good", "bad" + "!" * 40)),
        JudgeTask(*_parts(1, "good" + "!" * 40, "bad")),
    )
    assert for_shorter.probability is not None
    assert for_longer.probability is not None
    assert for_shorter.probability > 0.8 > for_longer.probability
    think(one=right(0.8, 3))
    fair = LengthCorrected(judge=ME + "one", pairs=(exam_file(tmp_path, exam(200)),))
    effect = asyncio.run(fair.learn(exam(200)))
    assert effect.quality > 0.5
    assert abs(effect.length) < 1e-6 or abs(effect.length) < effect.quality


def _parts(number: int, first: str, second: str) -> tuple[Prompt, Completion, tuple[Completion]]:
    made = task(first, second, number=number)
    return made.prompt, made.completion, (made.others[0],)


# -- what all of them keep


def test_a_combined_judge_is_what_its_members_are(tmp_path: Path) -> None:
    """Programs make a program, baselines a baseline, anything else a model; revisions follow members."""

    def of(*judges: Any) -> Judge:
        return load({"jury": {"judges": list(judges), "weights": "majority"}}, "j")

    assert standing_of(of("verifier", "verifier")) == "program"
    assert standing_of(of("longest", "random")) == "baseline"
    assert standing_of(of("verifier", "longest")) == "model"
    assert standing_of(load({"both_orders": {"judge": "chat"}}, "j")) == "model"
    assert of("longest", "random").revision != of("longest", {"random": {"seed": 2}}).revision
    assert modes(load({"both_orders": {"judge": "first"}}, "j")) == ("compare",)
    assert modes(load({"repeat": {"judge": "longest"}}, "j")) == ("score", "compare")


# -- win_rate


async def later_wins(task: JudgeTask) -> Judgement:
    """Prefer what comes later in the alphabet, and fail where an answer is "x"."""
    a, b = (c.text for c in task.candidates)
    if "x" in (a, b):
        return Judgement.failed("timeout", "late")
    return Judgement.ranked((1, 2) if a > b else (2, 1))


class Later(WinRate):
    """A win rate over a judge that is made up here."""

    def comparers(self) -> tuple[Any, ...]:
        """Compare by the alphabet, and keep what was asked."""

        class Inside:
            name = revision = "later"

            async def compare(self, tasks: Any) -> list[Judgement]:
                ASKED.extend(tasks)
                return [await later_wins(one) for one in tasks]

        return (Inside(),)


ASKED: list[JudgeTask] = []


def test_a_win_rate_is_the_share_of_others_that_are_beaten() -> None:
    """Four samples, two of them alike, and one that no verdict is had of: each pair once in each order, by hand."""
    ASKED.clear()
    whole = task("a", "b", "b", "x")
    said = [
        Completion(f"{n}", c.text, c.text, (), (), "stop", "")
        for n, c in enumerate(whole.candidates)
    ]
    tasks = [JudgeTask(whole.prompt, one, tuple(o for o in said if o.id != one.id)) for one in said]
    judge = Later(judge="shortest")
    found = asyncio.run(judge.score(tasks))
    assert [j.value for j in found] == [0.0, 0.75, 0.75, None]
    assert found[3].status == "timeout"
    assert len(ASKED) == 2 * 5
    assert {c.text for one in ASKED for c in one.candidates} == {"a", "b", "x"}


def test_a_win_rate_scores_groups_and_is_examined_as_the_judge_inside() -> None:
    """It gives values alone, of a whole group; a sample that is alone is not judged."""
    longest = {"longest": {"unit": "characters"}}
    judge = WinRate(judge={"repeat": {"judge": longest}})
    assert (modes(judge), judge.needs_group) == (("score",), True)
    assert judge.examined_as.revision == load({"repeat": {"judge": longest}}, "").revision
    [alone] = asyncio.run(judge.score([task("a")]))
    assert alone.status == "not_applicable"
    first, second, third = task("a", "bbb", "bb"), task("bbb", "a", "bb"), task("bb", "a", "bbb")
    values = [j.value for j in asyncio.run(judge.score([first, second, third]))]
    assert values == [0.0, 1.0, 0.5]
