"""Judges: values in [0, 1] or a status, revisions that follow settings, callables as judges."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.agents import judge
from redistill.agents.judge import CallableJudge, JudgeTask
from redistill.agents.judges.program import Longest, Random, Shortest, Verifier
from redistill.errors import BadInput
from redistill.types import Completion, Judgement, Message, Prompt


def task(text: str, *, ended: bool = True, name: str = "c", **prompt: Any) -> JudgeTask:
    """Return one answer to one prompt."""
    return JudgeTask(
        Prompt("p", (Message("user", "q"),), "train", **prompt),
        Completion(name, "p", text, (), (), "stop" if ended else "length", "r"),
    )


def score(judged_by: judge.Scorer, *tasks: JudgeTask) -> list[Judgement]:
    """Run a judge to its end."""
    return asyncio.run(judged_by.score(tasks))


def test_verifier_passes_only_when_every_checker_does() -> None:
    """The value is 0 or 1, and the parts say which checker failed, form and content apart."""
    verify = {"quoted": True, "include": "blue"}
    right, content, form = score(
        Verifier(),
        task('"blue"', verify=verify),
        task("It is blue.", verify=verify),
        task('"red"', verify=verify),
    )
    assert (right.value, content.value, form.value) == (1.0, 0.0, 0.0)
    assert content.parts == {
        "quoted": False,
        "include": True,
        "ended": True,
        "form": False,
        "content": True,
    }
    assert (form.parts["form"], form.parts["content"]) == (True, False)


def test_a_cut_answer_never_passes() -> None:
    """An answer that hit the token limit fails though it reads well, unless that is switched off."""
    cut = task("blue", ended=False, verify={"word": True})
    [strict], [lenient] = score(Verifier(), cut), score(Verifier(ended=False), cut)
    assert (strict.value, lenient.value) == (0.0, 1.0)
    assert strict.parts["ended"] is lenient.parts["ended"] is False


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        ("Paris", "paris.", 1.0),
        ("Paris", "It is Paris", 0.0),
        ("42", "So it is 42", 1.0),
        ("42", "43", 0.0),
        ("\\frac{1}{2}", "0.5", 1.0),
    ],
)
def test_verifier_compares_a_plain_answer(answer: str, text: str, value: float) -> None:
    """Without `verify` the prompt's answer is compared, by value where it is mathematical."""
    assert score(Verifier(), task(text, answer=answer))[0].value == value


def test_verifier_without_anything_to_check_has_no_opinion() -> None:
    """Neither `verify` nor `answer`: a status, not a zero."""
    assert score(Verifier(), task("x"))[0].status == "not_applicable"


def test_verifier_failures_are_statuses() -> None:
    """A broken spec, an overlong and an endless computation give no score."""
    broken, long, endless = score(
        Verifier(),
        task("x", verify={"wordd": True}),
        task("1" * 30_000, answer="1"),
        task("$9^{9^{9^{9}}}$", answer="1"),
    )
    assert [x.status for x in (broken, long, endless)] == ["error", "error", "timeout"]
    assert "did you mean word?" in broken.text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_length_judges_are_monotone_and_opposite(one: str, two: str) -> None:
    """More characters are never worth less to `longest`, nor more to `shortest`; values in [0, 1]."""
    long = score(Longest(unit="characters"), task(one), task(two))
    short = score(Shortest(unit="characters"), task(one), task(two))
    assert [x.raw for x in long] == [len(one), len(two)]
    difference = (len(one) > len(two)) - (len(one) < len(two))
    for (first, second), sign in ((long, 1), (short, -1)):
        assert first.value is not None
        assert second.value is not None
        assert (first.value > second.value) - (first.value < second.value) == sign * difference


def test_length_in_words_is_the_default() -> None:
    """64 words are worth one half."""
    assert score(Longest(), task("a " * 64))[0].value == 0.5


def test_random_depends_on_completion_and_seed_only() -> None:
    """The same completion has the same value in any company; seeds and ids differ."""
    tasks = [task("x", name=str(n)) for n in range(200)]
    values = [x.value for x in score(Random(), *tasks)]
    assert values == [x.value for x in reversed(score(Random(), *reversed(tasks)))]
    assert values != [x.value for x in score(Random(seed=1), *tasks)]
    assert len(set(values)) == 200
    assert 0.4 < np.mean([v for v in values if v is not None]) < 0.6


def test_load_builtins_with_and_without_settings() -> None:
    """A name, or a name with settings, gives a judge."""
    assert judge.load("verifier", "w").name == "verifier"
    assert judge.load({"random": {"seed": 3, "name": "dice"}}, "w").name == "dice"
    inner = {
        "shuffled", "both_orders", "repeat", "jury", "length_corrected", "calibrated", "cached",
        "win_rate",
    }  # fmt: skip
    for name in judge.BUILTINS.keys() - inner - {"replay", "reward_model", "trained"}:
        assert judge.load(name, "w").name == name


def test_shuffled_permutes_the_values_of_the_judge_inside() -> None:
    """As many pass as before, in the inner judge's column, and not the same ones."""
    inner: judge.Scorer = Shortest()
    control = judge.scorer({"shuffled": {"judge": "shortest"}}, "w")
    tasks = [task("word " * n, name=str(n)) for n in range(1, 40)]
    plain, mixed = (asyncio.run(j.score(tasks)) for j in (inner, control))
    assert control.name == inner.name
    assert sorted(str(v.value) for v in plain) == sorted(str(v.value) for v in mixed)
    assert [v.value for v in plain] != [v.value for v in mixed]


def test_revision_follows_kind_and_settings_but_not_the_name() -> None:
    """Equal judges have equal revisions; every setting changes it; the name is only a label."""
    assert Random().revision == Random(name="dice").revision
    revisions = {
        x.revision
        for x in (
            Random(),
            Random(seed=1),
            Verifier(),
            Verifier(ended=False),
            Longest(),
            Longest(unit="characters"),
            Shortest(),
        )
    }
    assert len(revisions) == 7


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("verifer", "w: unknown judge 'verifer'; did you mean verifier?"),
        ({"verifier": {"endd": True}}, "w.verifier.endd: unknown key; did you mean ended?"),
        ({"random": {"name": "order"}}, "w.random.name: 'order' names a column"),
        ({"random": {"name": "a b"}}, "w.random.name: 'a b' names a column"),
        (3, "w: int is no judge"),
        (lambda p, c: True, "w: '<lambda>' names a column"),
    ],
)
def test_load_refuses(spec: Any, said: str) -> None:
    """Bad judges are told in one line at load."""
    with pytest.raises(BadInput) as caught:
        judge.load(spec, "w")
    assert str(caught.value.problems[0]).startswith(said)


def test_load_refuses_a_function_of_other_parameters() -> None:
    """A callable that cannot take (prompt, completion) is found before anything is sampled."""

    def only_one(prompt: Prompt) -> bool:
        return True

    with pytest.raises(BadInput, match=r"only_one is called with \(prompt, completion\)"):
        judge.load(only_one, "w")


def test_reserved_words_are_duckdbs() -> None:
    """The list holds every word that DuckDB does not take as a column."""
    rows = duckdb.execute(
        "select keyword_name from duckdb_keywords() "
        "where keyword_category in ('reserved', 'type_function')"
    ).fetchall()
    assert {word for (word,) in rows} <= judge.RESERVED


def grade(prompt: Prompt, completion: Completion) -> Any:
    """Return or raise what the answer names."""
    return ANSWERS[completion.text]()


def _boom() -> None:
    raise RuntimeError("boom")


ANSWERS: dict[str, Any] = {
    "true": lambda: True,
    "half": lambda: 0.5,
    "one": lambda: 1,
    "np bool": lambda: np.bool_(True),
    "np float": lambda: np.float32(0.25),
    "own": lambda: Judgement(0.75, text="good"),
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "inf": lambda: float("1e999"),
    "minus": lambda: -1,
    "85": lambda: 85,
    "9.2e124": lambda: 9.2e124,
    "text": lambda: "7/10",
    "list": lambda: [1],
    "array": lambda: np.ones(2),
    "boom": _boom,
}


def test_f12_a_callable_is_a_judge_and_its_faults_are_statuses() -> None:
    """A bool or a number in [0, 1] is a value; anything else is a status and never clamped."""
    tasks = [task(text) for text in ANSWERS]
    got = dict(zip(ANSWERS, score(judge.scorer(grade, "w"), *tasks), strict=True))
    assert {k: j.value for k, j in got.items() if j.status == "ok"} == {
        "true": 1.0,
        "half": 0.5,
        "one": 1.0,
        "np bool": 1.0,
        "np float": 0.25,
        "own": 0.75,
    }
    assert got["none"].status == "not_applicable"
    assert {k for k, j in got.items() if j.status == "parse_error"} == {
        "nan",
        "inf",
        "minus",
        "85",
        "9.2e124",
        "text",
        "list",
    }
    assert got["boom"] == Judgement.failed("error", "RuntimeError: boom")
    assert got["array"].status == "error"


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(), st.binary()))
def test_judged_never_raises_and_never_invents(answer: Any) -> None:
    """Any return value is a judgement; a value is exactly the number that was returned."""
    found = judge.judged(answer)
    if found.status == "ok":
        assert found.value == float(answer)


async def slowly(prompt: Prompt, completion: Completion) -> float:
    """Judge after a moment, as a call over a network does."""
    await asyncio.sleep(float(completion.text))
    return float(completion.text)


def test_a_coroutine_function_is_awaited_for_all_answers_together() -> None:
    """Twenty calls of 0.1 s take about 0.1 s, and keep their order."""
    started = time.monotonic()
    delays = [0.1 - n / 1000 for n in range(20)]
    got = score(judge.scorer(slowly, "w"), *(task(str(delay)) for delay in delays))
    assert [j.value for j in got] == delays
    assert time.monotonic() - started < 1.5


def test_a_slow_coroutine_times_out() -> None:
    """A call beyond the deadline is a timeout, the others keep their values."""
    got = score(CallableJudge("s", "r", slowly, deadline=0.2), task("0.01"), task("30"))
    assert [j.status for j in got] == ["ok", "timeout"]


def test_a_hanging_function_neither_stops_the_loop_nor_the_process() -> None:
    """A function that never returns is left behind; after three, the rest is not asked."""
    calls = []

    def hang(prompt: Prompt, completion: Completion) -> bool:
        calls.append(completion.text)
        time.sleep(3600)
        return True

    started = time.monotonic()
    got = score(CallableJudge("hang", "r", hang, deadline=0.1), *(task(str(n)) for n in range(8)))
    assert [j.status for j in got] == ["timeout"] * 8
    assert len(calls) == 3
    assert time.monotonic() - started < 5


def test_a_blocking_function_leaves_the_loop_free() -> None:
    """While a synchronous judge works, other coroutines go on."""

    def block(prompt: Prompt, completion: Completion) -> bool:
        time.sleep(0.3)
        return True

    async def both() -> int:
        ticks = 0
        job = asyncio.create_task(CallableJudge("b", "r", block).score([task("x")]))
        while not job.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(both()) > 5


def test_callable_revision_follows_the_source() -> None:
    """Two functions of one name and other bodies are two judges; the same one is one."""

    def first() -> Any:
        def same(p: Any, c: Any) -> float:
            return 1.0

        return same

    def second() -> Any:
        def same(p: Any, c: Any) -> float:
            return 0.5

        return same

    one, two = judge.load(first(), "w"), judge.load(second(), "w")
    assert one.name == two.name == "same"
    assert one.revision != two.revision
    assert one.revision == judge.load(first(), "w").revision


def test_callable_revision_follows_bound_arguments() -> None:
    """A partial is its function's judge with other settings."""

    def above(limit: float, p: Any, c: Any) -> bool:
        return limit < 0.5

    low, high = (judge.scorer(functools.partial(above, limit), "w") for limit in (0.1, 0.9))
    assert low.name == high.name == "above"
    assert low.revision != high.revision
    assert [score(x, task("x"))[0].value for x in (low, high)] == [1.0, 0.0]


def test_a_judge_object_is_taken_as_it_is() -> None:
    """From Python, an instance with name, revision and an async score needs no wrapping."""
    own = Longest(name="mine")
    assert judge.load(own, "w") is own
