"""Checkers: what each one accepts and refuses, on friendly and on hostile text."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.agents.judges import checkers, maths

PARIS = {"text": "Paris", "ignore": ["case", "final_dot", "quotes"]}

CASES: list[tuple[str, Any, list[str], list[str]]] = [
    ("min_words", 3, ["one two three", "a - b c"], ["one two", "", "a - b"]),
    ("max_words", 2, ["one two", "", "- one"], ["one two three"]),
    ("min_chars", 3, ["abc", " abcd "], ["ab  ", ""]),
    ("max_chars", 3, ["abc", " abc ", ""], ["abcd"]),
    (
        "sentences",
        2,
        ["One. Two!", "Dr. Smith left. He ran.", "It cost 3.50 euros. Why?", "A title\nIt is one."],
        ["One.", "", "One. Two. Three."],
    ),
    ("sentences", {"min": 1, "max": 2}, ["One.", "One. Two."], ["", "A b. C d. E f."]),
    (
        "include",
        "blue",
        ["It is Blue.", "blue-green", '"BLUE"'],
        ["bluer", "sky", "truebluesky", ""],
    ),
    ("include", ["red", "New York"], ["Red in new\n york!"], ["red in Newark", "New York"]),
    ("any_of", ["Kyiv", "Kiev"], ["It is Kiev.", "KYIV"], ["Kievan", "Lviv"]),
    ("include_count", {"la": 2}, ["la la land", "La, la"], ["la", "la la la"]),
    ("exclude", ["sorry", "as an AI"], ["I can."], ["Sorry, no.", "As an  ai I"]),
    ("forbid_chars", ",;", ["no comma"], ["a, b", "a; b"]),
    ("uppercase", True, ["BLUE!", "A 1"], ["Blue", "123", ""]),
    ("lowercase", {}, ["blue!"], ["Blue", "123", ""]),
    (
        "bullets",
        2,
        ["- a\n* b", "Items:\n  - a\n  \u2022 b"],
        ["- a", "- a\n- b\n- c", "-a\n-b", "- \n- "],
    ),
    ("bullets", {"min": 1}, ["- a", "- a\n- b"], ["a"]),
    ("json", True, ['{"a": 1}', "[]", " 3 "], ["", "{", "NaN", '{"a": Infinity}', "Sure! {}"]),
    ("json", {"keys": ["a"]}, ['{"a": [1]}'], ["[]", "{}", '{"a": 1, "b": 2}', '["a"]', '"a"']),
    (
        "starts_with",
        "Answer: ",
        ["Answer: x", "\nAnswer: x"],
        ["Answer:x", "answer: x", "The Answer: x"],
    ),
    ("ends_with", "Done.", ["x Done.", "Done.\n"], ["Done", "Done. x"]),
    (
        "quoted",
        True,
        ['"blue"', '"blue."', '"blue".', " \u201cblue\u201d\n", '"It is blue."'],
        [
            "blue",
            '"blue',
            'blue"',
            '""',
            '"',
            '"."',
            '"a" and "b"',
            'It is "blue"',
            "'blue'",
            '""blue""',
        ],
    ),
    (
        "word",
        {},
        ["blue", "Blue.", " well-known ", "o'clock", "42", "Bogotá"],
        [
            "",
            ".",
            "two words",
            '"blue"',
            "blue!",
            "Answer:blue",
            "-",
            "blue-",
            "blue..",
            "**blue**",
        ],
    ),
    (
        "sentence",
        {},
        ["The sky is blue.", "Is it really blue?", "Dr. Smith is in Rome.", '"The sky is blue."'],
        [
            "",
            "Blue.",
            "The sky is blue",
            "the sky is blue.",
            "It is blue.",
            "The sky is blue. So it is.",
            "The sky\nis so blue.",
        ],
    ),
    ("equals", "Paris", ["Paris", " Paris\n"], ["paris", "Paris.", '"Paris"', ""]),
    ("equals", PARIS, ["paris", '"Paris."', '"PARIS".', "'Paris'"], ["Paris, France", '"', ""]),
    ("equals", {"text": "x", "ignore": ["final_dot"]}, ["x", "x."], ["X", '"x"']),
]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_accepts_and_refuses(name: str, arguments: Any, right: list[str], wrong: list[str]) -> None:
    """Every checker passes what it asks for and fails what comes close."""
    assert checkers.check_spec({name: arguments}, "w") == []
    said = {text: checkers.run({name: arguments}, text)[name] for text in right + wrong}
    assert said == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)


def test_every_checker_has_a_case() -> None:
    """No checker goes untested; `math` and `code` have tests of their own."""
    assert {case[0] for case in CASES} | {"math", "code"} == set(checkers.CHECKERS)


def test_words_of_another_normal_form_are_the_same() -> None:
    """A decomposed accent is the composed one."""
    assert checkers.run({"include": "Bogot\u00e1", "equals": "Bogota\u0301"}, "Bogota\u0301") == {
        "include": True,
        "equals": True,
    }


@pytest.mark.parametrize(
    ("verify", "said"),
    [
        ({"wordd": {}}, "v: unknown checker 'wordd'; did you mean word?"),
        ({3: {}}, "v: unknown checker 3"),
        ({"max_words": "3"}, "v.max_words: max_words takes a whole number, not '3'"),
        ({"max_words": True}, "v.max_words: "),
        ({"max_words": -1}, "v.max_words: "),
        (
            {"sentences": {"mx": 2}},
            "v.sentences: sentences takes a whole number or {min: a, max: b}",
        ),
        ({"sentences": 1.5}, "v.sentences: "),
        ({"include": []}, "v.include: include takes a text or a list of texts, not []"),
        ({"include": ""}, "v.include: "),
        ({"word": False}, "v.word: word takes true, not False"),
        ({"json": {"key": ["a"]}}, "v.json: "),
        ({"equals": {"text": "a", "ignore": ["spaces"]}}, "v.equals: "),
        ({"math": 42}, "v.math: math takes a text, not 42"),
        ({}, "v: is no mapping of checkers"),
        ([], "v: is no mapping of checkers"),
        (None, "v: is no mapping of checkers"),
    ],
)
def test_bad_spec_is_told_at_load(verify: Any, said: str) -> None:
    """An unknown checker or wrong arguments are found before anything is sampled."""
    [problem] = checkers.check_spec(verify, "v")
    assert str(problem).startswith(said)


def test_all_problems_of_a_spec_come_at_once() -> None:
    """Two mistakes are two lines."""
    assert len(checkers.check_spec({"wordd": {}, "max_words": "x", "word": True}, "v")) == 2


HOSTILE = [
    "a" * 200_000,
    "a " * 100_000,
    "." * 200_000,
    ". " * 100_000,
    '"' * 200_000,
    "[" * 200_000,
    '{"a":' * 50_000,
    "9" * 200_000,
    "- \n" * 70_000,
    "\u0301" * 50_000,
    "blue" * 50_000,
    "\x00\ud800\u202e" * 20_000,
    "Dr. " * 50_000,
    "(\"'" * 60_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_judged_quickly(text: str) -> None:
    """No checker hangs or raises on a long hostile answer: all of them within five seconds."""
    started = time.process_time()
    for name, arguments, _, _ in CASES:
        assert checkers.run({name: arguments}, text)[name] in (True, False)
    assert time.process_time() - started < 5


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_forms_exclude_each_other(text: str) -> None:
    """No text at all is at once two of: one word, one quoted word, one full sentence."""
    specs: dict[str, dict[str, Any]] = {
        "w": {"word": True},
        "q": {"quoted": True, "max_words": 1},
        "s": {"sentence": True},
    }
    passed = [key for key, verify in specs.items() if all(checkers.run(verify, text).values())]
    assert len(passed) <= 1


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80), st.integers(0, 8))
def test_bounds_law(text: str, n: int) -> None:
    """At least n + 1 words, or at most n: exactly one of them holds."""
    said = checkers.run({"min_words": n + 1, "max_words": n}, text)
    assert said["min_words"] != said["max_words"]


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("42", "42", True),
        ("42", "42.", True),
        ("42", "So the answer is 42.", True),
        ("42", "There are 42 people and 7 dogs", False),
        ("1000", "1,000", True),
        ("1", "1,5", False),
        ("-3.50", "-3.5", True),
        ("1/2", "0.5", True),
        ("\\frac12", "it is $\\frac{2}{4}$", True),
        ("42", "", False),
        ("42", "no number here", False),
        ("0", "-0", True),
    ],
)
def test_mathematical_answers(gold: str, answer: str, equal: bool) -> None:
    """The last mathematical answer of a text is compared by value."""
    assert checkers.run({"math": gold}, answer) == {"math": equal}


def test_plain_numbers_need_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plain numbers are compared without starting a process."""
    monkeypatch.setattr(maths._Helper, "ask", lambda *_: pytest.fail("asked the helper"))
    assert maths.equal("12,000", "12000.0")
    assert not maths.equal("12,000", "12")


def test_endless_mathematics_is_cut_off_and_the_next_answer_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tower of powers ends as a timeout in seconds, off the main thread too, and hurts no other."""
    started = time.monotonic()
    with pytest.raises(maths.MathTimeout):
        maths.equal("1", "$9^{9^{9^{9}}}$")
    assert time.monotonic() - started < maths.DEADLINE + 10
    assert maths.equal("1/2", "0.5")


def test_overlong_mathematics_is_refused() -> None:
    """An answer beyond the limit is an error, not a score."""
    with pytest.raises(maths.MathError, match="too long"):
        maths.equal("1", "1" * (maths.LONGEST + 1))
