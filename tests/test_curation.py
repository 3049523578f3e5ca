"""Curation: which answers become pairs and which are kept, and that SQL of a recipe stays in its place."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_rows import completion, identifier, judgement, opening, prompt, texts

from redistill.errors import BadInput
from redistill.hashing import row_id
from redistill.store.curation import Choice, check_choice, choose
from redistill.store.pairing import PairQuery, pairs
from redistill.store.store import Row, Store

RULES = ("best_worst", "best_random", "correct_incorrect")


@dataclass(frozen=True)
class Said:
    """One answer and what the judge thinks of it."""

    word: str
    text: str
    value: float | None
    prompt: str = "p"
    cut: bool = False
    slot: int = 0
    split: str = "train"
    judge: str = "verifier"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an open store with prompts."""
    opened = Store(tmp_path, ["verifier", "longest"])
    rows: dict[str, Any] = opening({"p": "train", "q": "train", "h": "heldout"})
    rows["prompt"] = [
        prompt("p", "train", ("form:word",)),
        prompt("q", "train", ("form:quotes",)),
        prompt("h", "heldout"),
    ]
    opened.commit(rows, round=0, step="begin", chunk=0)
    yield opened
    opened.close()


def _write(store: Store, said: Sequence[Said], *, round_: int = 1) -> None:
    rows: Mapping[str, list[Row]] = {
        "completion": [_completion(one, round_) for one in said],
        "content": texts(*(one.text for one in said), round_=round_),
        "judgement": [
            judgement(one.word, one.value, judge=one.judge, round=round_)
            | {
                "id": row_id("judgement", word=one.word, judge=one.judge, round=round_),
                "completion_id": _id(one.word, round_),
            }
            for one in said
        ],
    }
    store.commit(rows, round=round_, step="sample", chunk=0)


def _id(word: str, round_: int = 1) -> str:
    return identifier(word if round_ == 1 else f"{word} of {round_}")


def _completion(one: Said, round_: int) -> Row:
    return completion(
        one.word,
        one.text,
        id=_id(one.word, round_),
        round=round_,
        prompt_id=identifier(one.prompt),
        finish_reason="length" if one.cut else "stop",
        slot=one.slot,
        split=one.split,
    )


def _pairs(store: Store, rule: Any = "best_worst", **changed: Any) -> set[tuple[str, str]]:
    """Return (chosen, rejected) as the words of the answers."""
    asked: dict[str, Any] = {"round": 1, "steps": ("sample",), "judge": "verifier", "rule": rule}
    asked |= {"at_least": 0.0, "seed": 0} | changed
    found = pairs(store, PairQuery(**asked))
    words = {identifier(w): w for w in "abcdefghijklmnopqrstuvwxyz"}
    return {(words[pair.chosen], words[pair.rejected]) for pair in found}


# -- pairs


@pytest.mark.parametrize("rule", RULES)
def test_f17_a_cut_answer_is_never_chosen(store: Store, rule: str) -> None:
    """The best answer was cut, so the next best is chosen; a cut one may be rejected."""
    _write(
        store, [Said("a", "x", 1.0, cut=True), Said("b", "y", 0.5), Said("c", "z", 0.0, cut=True)]
    )
    assert _pairs(store, rule) == {("b", "c")}


@pytest.mark.parametrize("rule", RULES)
def test_with_the_verifier_chosen_must_pass(store: Store, rule: str) -> None:
    """Partial credit is no pass: nothing below 1 is chosen."""
    _write(store, [Said("a", "x", 0.75), Said("b", "y", 0.0)])
    assert _pairs(store, rule, at_least=1.0) == set()
    assert _pairs(store, rule) == {("a", "b")}


@pytest.mark.parametrize("rule", RULES)
def test_a_tie_gives_no_pair(store: Store, rule: str) -> None:
    """Equal values say nothing about which is better."""
    _write(store, [Said("a", "x", 1.0), Said("b", "y", 1.0)])
    assert _pairs(store, rule) == set()


@pytest.mark.parametrize("rule", RULES)
def test_f09_equal_texts_give_no_pair(store: Store, rule: str) -> None:
    """One answer sampled twice is one answer, even where the judge wavered."""
    _write(store, [Said("a", "same", 1.0), Said("b", "same", 0.0)])
    assert _pairs(store, rule) == set()


@pytest.mark.parametrize("rule", RULES)
def test_f25_an_answer_without_words_is_never_chosen(store: Store, rule: Any) -> None:
    """A judge of shortness likes nothing best; it is in no pair's better half, and no select step keeps it."""
    _write(store, [Said("a", "", 1.0), Said("b", "three words here", 0.5, slot=1)])
    assert pairs(store, PairQuery(1, ("sample",), "verifier", rule, 0.0, 0)) == []
    assert _chosen(store) == ["b"]


def test_of_equal_texts_the_one_that_ended_counts(store: Store) -> None:
    """An answer that ended is not lost because another one was cut at the same text."""
    for order in ("ab", "ba"):
        one, other = order
        said = [Said(one, "same", 1.0, cut=True), Said(other, "same", 1.0), Said("c", "z", 0.0)]
        round_ = 1 if order == "ab" else 2
        _write(store, said, round_=round_)
        found = pairs(store, PairQuery(round_, ("sample",), "verifier", "best_worst", 0.0, 0))
        assert [pair.chosen for pair in found] == [_id(other, round_)]


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_without_a_value_is_in_no_pair(store: Store, rule: str) -> None:
    """A judge that failed says nothing, neither good nor bad."""
    _write(store, [Said("a", "x", 1.0), Said("b", "y", None), Said("c", "z", None)])
    assert _pairs(store, rule) == set()


def test_pairs_are_of_one_prompt_one_round_one_split_and_one_judge(store: Store) -> None:
    """Nothing of another prompt, round, step, split or judge comes into a pair."""
    _write(
        store,
        [
            Said("a", "x", 1.0),
            Said("b", "y", 0.0, prompt="q"),
            Said("c", "x", 1.0, prompt="h", split="heldout"),
            Said("d", "y", 0.0, prompt="h", split="heldout"),
            Said("e", "z", 0.0, judge="longest"),
        ],
    )
    _write(store, [Said("f", "w", 0.0)], round_=2)
    assert _pairs(store, "correct_incorrect") == set()
    assert _pairs(store, "correct_incorrect", steps=("rewrite",)) == set()


def test_the_rules_by_hand(store: Store) -> None:
    """Best against worst; best against any worse one; each better against each worse."""
    _write(
        store, [Said("a", "w", 1.0), Said("b", "x", 0.5), Said("c", "y", 0.25), Said("d", "z", 0.0)]
    )
    assert _pairs(store, "best_worst") == {("a", "d")}
    every = {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")}
    assert _pairs(store, "correct_incorrect") == every
    [only] = pairs(store, PairQuery(1, ("sample",), "verifier", "best_worst", 1.0, 0))
    assert (only.margin, only.probability) == (1.0, 1.0)


def test_a_random_rejected_answer_is_drawn_evenly(store: Store) -> None:
    """Each worse answer is as likely as the others, and the seed alone decides."""
    said = [Said("a", "w", 1.0), Said("b", "x", 0.5), Said("c", "y", 0.25), Said("d", "z", 0.0)]
    _write(store, said)
    drawn = [next(iter(_pairs(store, "best_random", seed=seed))) for seed in range(150)]
    assert all(35 <= drawn.count(("a", worse)) <= 65 for worse in "bcd")
    assert _pairs(store, "best_random", seed=3) == {drawn[3]}


def test_the_last_attempt_of_a_judge_counts(store: Store) -> None:
    """A judgement that was asked for again replaces the one before, in pairs and in `answers`."""
    _write(store, [Said("a", "x", 0.0), Said("b", "y", 0.5)])
    again = judgement("a", 1.0, attempt=1) | {"id": identifier("again")}
    store.commit({"judgement": [again]}, round=1, step="again", chunk=0)
    assert _pairs(store) == {("a", "b")}
    [row] = store.rows("SELECT verifier FROM answers WHERE id = ?", [identifier("a")])
    assert row["verifier"] == 1.0


ANSWERS = st.lists(
    st.tuples(
        st.sampled_from("pq"),
        st.sampled_from(["x", "y", "z"]),
        st.sampled_from([None, 0.0, 0.5, 1.0]),
        st.booleans(),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=6)
@given(ANSWERS, st.randoms(use_true_random=False))
def test_pairs_do_not_depend_on_the_order_of_rows(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, str, float | None, bool]],
    mixer: random.Random,
) -> None:
    """However rows come in, the same pairs come out, and each keeps the laws of a pair."""
    said = [
        Said("abcdefghij"[i], text, value, prompt=asked, cut=cut)
        for i, (asked, text, value, cut) in enumerate(drawn)
    ]
    by_word = {one.word: one for one in said}
    mixed = said.copy()
    mixer.shuffle(mixed)
    found = []
    for rows in (said, mixed):
        store = Store(tmp_path_factory.mktemp("store"))
        _write(store, rows)
        found.append([_pairs(store, rule) for rule in RULES])
        store.close()
    assert found[0] == found[1]
    for chosen, rejected in set().union(*found[0]):
        good, bad = by_word[chosen], by_word[rejected]
        assert good.prompt == bad.prompt
        assert good.text != bad.text
        assert not good.cut
        assert good.value is not None
        assert bad.value is not None
        assert good.value > bad.value


# -- select


def _chosen(store: Store, **choice: Any) -> list[str]:
    store.publish(force=True)
    words = {identifier(w): w for w in "abcdefghijklmnopqrstuvwxyz"}
    kept = choose(store.folder, Choice(**choice), 1, ["sample"])
    return [words[row.completion_id] for row in kept]


@pytest.fixture
def six(store: Store) -> Store:
    """Return a store with six answers to two prompts."""
    _write(
        store,
        [
            Said("a", "aa", 1.0, slot=0),
            Said("b", "b", 1.0, slot=1),
            Said("c", "ccc", 0.0, slot=2),
            Said("d", "dddd", 1.0, prompt="q", slot=0),
            Said("e", "eeeee", 1.0, prompt="q", slot=1, cut=True),
            Said("f", "ffffff", None, prompt="q", slot=2),
            Said("g", "aa", 1.0, slot=3),
            Said("h", "hh", 1.0, prompt="h", slot=0, split="heldout"),
        ],
    )
    return store


def test_select_filters_orders_and_limits(six: Store) -> None:
    """`where`, `order_by`, `limit` and `per_prompt` mean what they say; a cut answer is never kept."""
    assert set(_chosen(six)) == {"a", "b", "c", "d", "f"}
    assert _chosen(six, where="verifier = 1", order_by="tokens") == ["b", "a", "d"]
    assert _chosen(six, where="verifier = 1", order_by="tokens DESC") == ["d", "a", "b"]
    assert _chosen(six, where="verifier = 1", order_by="tokens", limit=2) == ["b", "a"]
    assert _chosen(six, where="verifier = 1", order_by="tokens", per_prompt=1) == ["b", "d"]
    assert _chosen(six, where="verifier = 1", order_by="tokens DESC", per_prompt=1, limit=1) == [
        "d"
    ]
    assert _chosen(six, where="verifier IS NULL") == ["f"]
    assert _chosen(six, where="false") == []


def test_equal_answers_of_a_prompt_count_once(six: Store) -> None:
    """The first of them by slot stays, before anything is counted."""
    assert "g" not in _chosen(six)
    assert _chosen(six, where="answer = 'aa'", per_prompt=2) == ["a"]
    assert _chosen(six, where="slot = 3") == ["g"]


def test_a_round_robin_takes_one_of_each_kind_in_turn(six: Store) -> None:
    """The quickstart's order: one answer of each form, then the second of each."""
    order = "row_number() OVER (PARTITION BY tags[1] ORDER BY slot, id)"
    kept = _chosen(six, order_by=order)
    forms = {"a": "word", "b": "word", "c": "word", "d": "quotes", "f": "quotes"}
    assert [forms[w] for w in kept][:4].count("word") == 2
    assert [w for w in kept if forms[w] == "word"] == ["a", "b", "c"]
    assert kept[-1] == "c"


def test_weights_come_from_sql(six: Store) -> None:
    """A weight is any number of the row; none, a negative one or no number is refused with the answer."""
    six.publish(force=True)
    kept = choose(six.folder, Choice(where="verifier = 1", weight="1.0 / tokens"), 1, ["sample"])
    assert {row.weight for row in kept} == {0.25, 0.5, 1.0}
    for weight in ("verifier", "tokens - 3", "1 / 0", "'x'", "sqrt(-tokens)"):
        with pytest.raises(BadInput, match=r"^select: "):
            choose(six.folder, Choice(weight=weight), 1, ["sample"])


def test_what_is_wanted_and_told_comes_from_sql(six: Store) -> None:
    """Both are expressions over the row, and absent where they are not asked for."""
    six.publish(force=True)
    plain = choose(six.folder, Choice(), 1, ["sample"])
    assert {(row.wanted, row.told) for row in plain} == {(None, None)}
    asked = Choice(wanted="verifier = 1", told="CASE WHEN verifier = 1 THEN 'good' ELSE 'bad' END")
    found = {(row.wanted, row.told) for row in choose(six.folder, asked, 1, ["sample"])}
    assert found == {(True, "good"), (False, "bad"), (None, "bad")}
    assert check_choice(Choice(told="(SELECT max(prompt) FROM answers)"), ["verifier"])


REACH_AROUND: list[dict[str, Any]] = [
    {"where": "1=1) OR (split = 'heldout'"},
    {"where": "true) UNION ALL SELECT * FROM answers WHERE (true"},
    {"where": "true) SELECT id::VARCHAR, prompt_id::VARCHAR, 1.0 FROM answers --"},
    {"where": "true; DROP TABLE completion"},
    {"where": "true /*", "weight": "*/ 1"},
    {"where": "read_text('/etc/passwd') IS NOT NULL"},
    {"where": "EXISTS (FROM read_text('/etc/passwd'))"},
    {"where": "EXISTS (FROM '/etc/passwd')"},
    {"where": "tokens < ?"},
    {"where": "tokens > 1, true"},
    {"where": ""},
    {"weight": "1) FROM answers; --"},
    {"weight": "1 FROM answers --"},
    {"weight": "1, 2"},
    {"order_by": "id; SELECT 1"},
    {"order_by": "id LIMIT 1 --"},
    {"order_by": "id) + (1"},
    {"order_by": "id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW"},
    {"order_by": ""},
    {"where": "verifer = 1"},
    {"order_by": "count(*)"},
]


@pytest.mark.parametrize("choice", REACH_AROUND, ids=str)
def test_sql_that_reaches_around_is_refused_at_load(choice: dict[str, Any]) -> None:
    """A fragment is one expression over one row; what would reach beyond it is a fault, in one line."""
    fault = check_choice(Choice(**choice), ["verifier"])
    assert fault
    assert "\n" not in fault


@pytest.mark.parametrize("choice", REACH_AROUND[:3], ids=str)
def test_held_out_answers_are_never_selected(six: Store, choice: dict[str, Any]) -> None:
    """Also where the check at load was gone around: nothing of another split comes out."""
    with pytest.raises(BadInput):
        _chosen(six, **choice)


@pytest.mark.parametrize(
    "choice",
    [
        {"where": "verifier = 1 -- only what passes"},
        {"where": "answer LIKE '%) OR (%' AND /* note */ tokens < 9"},
        {"order_by": "tokens DESC NULLS LAST, slot -- longest first"},
        {"order_by": "row_number() OVER (PARTITION BY tags[1] ORDER BY slot, id)"},
        {"weight": "CASE WHEN verifier = 1 THEN 2 ELSE 1 END"},
        {"where": "list_contains(tags, 'form:word')"},
    ],
    ids=str,
)
def test_plain_sql_is_accepted(six: Store, choice: dict[str, Any]) -> None:
    """Comments, strings with brackets, window functions: what people write works."""
    assert check_choice(Choice(**choice), ["verifier"]) == ""
    _chosen(six, **choice)


def test_a_wrong_column_is_told_with_the_ones_that_are_near() -> None:
    """The judges of the recipe are columns too, and are named."""
    fault = check_choice(Choice(where="verifer = 1"), ["verifier"])
    assert 'Candidate bindings: "verifier"' in fault


def test_endless_sql_ends_at_load() -> None:
    """A condition that would never come to an end is a query of its own, and is refused before it is asked."""
    endless = (
        "(WITH RECURSIVE r AS (SELECT 1 a UNION ALL SELECT a + 1 FROM r) SELECT max(a) FROM r) > 0"
    )
    assert "a query inside it" in check_choice(Choice(where=endless), ["verifier"])
