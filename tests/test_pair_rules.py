"""Pairs by construction, their bounds, and pairs of earlier rounds: the laws that every one of them keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from store_rows import completion, identifier, judgement, opening, texts

from redistill.agents.operators.curate import Pair
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput
from redistill.hashing import row_id
from redistill.store.pairing import PairQuery, pairs
from redistill.store.store import Row, Store, content
from redistill.testing.fakes import fake_recipe

WORDS = "abcdefghijklmnopqrstuvwxyz"
RULES = ("best_worst", "best_random", "correct_incorrect", "contrast", "gold_self")


@dataclass(frozen=True)
class Said:
    """One answer of a step, and what the judge thinks of it."""

    word: str
    text: str
    step: str = "good"
    value: float | None = None
    prompt: str = "p"
    cut: bool = False
    slot: int = 0
    round: int = 1


def _write(store: Store, said: Sequence[Said]) -> None:
    for round_ in sorted({one.round for one in said}):
        mine = [one for one in said if one.round == round_]
        rows: Mapping[str, list[Row]] = {
            "completion": [_completion(one) for one in mine],
            "content": texts(*(one.text for one in mine), round_=round_),
            "judgement": [_judgement(one) for one in mine if one.value is not None],
        }
        store.commit(rows, round=round_, step="sample", chunk=0)


def _completion(one: Said) -> Row:
    return completion(
        one.word,
        one.text,
        round=one.round,
        step=one.step,
        prompt_id=identifier(one.prompt),
        finish_reason="length" if one.cut else "stop",
        slot=one.slot,
        split="heldout" if one.prompt == "h" else "train",
    )


def _judgement(one: Said) -> Row:
    return judgement(one.word, one.value, round=one.round) | {
        "id": row_id("judgement", word=one.word)
    }


def _begin(folder: Path) -> Store:
    store = Store(folder, ["verifier"])
    rows: dict[str, Any] = opening({"p": "train", "q": "train", "h": "heldout"})
    store.commit(rows, round=0, step="begin", chunk=0)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an open store with two prompts that train and one that is held out."""
    opened = _begin(tmp_path)
    yield opened
    opened.close()


def _found(store: Store, **asked: Any) -> set[str]:
    """Return pairs as two letters, chosen first."""
    query = {"round": 1, "steps": ("good", "bad"), "judge": "", "rule": "contrast"}
    query |= {"at_least": 0.0, "seed": 0} | asked
    words = {identifier(w): w for w in WORDS}
    return {words[p.chosen] + words[p.rejected] for p in pairs(store, PairQuery(**query))}  # type: ignore[arg-type]


# -- contrast


def test_every_answer_of_a_step_is_set_over_every_one_of_a_later_step(store: Store) -> None:
    """No judge is asked; answers of other prompts and rounds are in no pair, and the order of `of` decides."""
    _write(
        store,
        [
            Said("a", "1"),
            Said("b", "2", slot=1),
            Said("c", "3", "bad"),
            Said("d", "4", "bad", slot=1),
            Said("e", "5", "bad", prompt="q"),
            Said("f", "6", "bad", round=2),
        ],
    )
    assert _found(store) == {"ac", "ad", "bc", "bd"}
    assert _found(store, steps=("bad", "good")) == {"ca", "cb", "da", "db"}
    [one, *_] = pairs(store, PairQuery(1, ("good", "bad"), "", "contrast", 0.0, 0))
    assert (one.margin, one.probability) == (1.0, 1.0)


def test_of_three_steps_each_is_better_than_the_later_ones(store: Store) -> None:
    """A larger model over a middle one over a small one, by the order in which `of` names them."""
    _write(store, [Said("a", "1"), Said("b", "2", "middle"), Said("c", "3", "bad")])
    assert _found(store, steps=("good", "middle", "bad")) == {"ab", "ac", "bc"}


def test_what_both_steps_said_is_rejected_for_none(store: Store) -> None:
    """A text that the better step gave too is good, whoever says it: no pair with its own reverse beside it."""
    _write(
        store,
        [
            Said("a", "same"),
            Said("b", "other", slot=1),
            Said("c", "same", "bad"),
            Said("d", "other", "bad", slot=1),
            Said("e", "bad only", "bad", slot=2),
        ],
    )
    assert _found(store) == {"ae", "be"}


def test_a_cut_or_empty_answer_is_never_chosen_by_construction(store: Store) -> None:
    """It may be rejected; of equal texts of a step one that ended stands for both."""
    _write(
        store,
        [
            Said("a", "cut", cut=True),
            Said("b", "", slot=1),
            Said("c", "twice", cut=True, slot=2),
            Said("d", "twice", slot=3),
            Said("e", "worse", "bad", cut=True),
        ],
    )
    assert _found(store) == {"de"}


def test_a_judge_that_is_named_must_agree(store: Store) -> None:
    """Both have a value, chosen the higher one; with the verifier chosen must pass. Its margin is the difference."""
    _write(
        store,
        [
            Said("a", "1", value=1.0),
            Said("b", "2", value=0.5, slot=1),
            Said("c", "3", "bad", value=0.5),
            Said("d", "4", "bad", value=0.0, slot=1),
            Said("e", "5", "bad", slot=2),
        ],
    )
    assert _found(store, judge="verifier") == {"ac", "ad", "bd"}
    assert _found(store, judge="verifier", at_least=1.0) == {"ac", "ad"}
    assert _found(store, judge="verifier", min_margin=0.75) == {"ad"}


def test_comparisons_of_both_steps_must_agree(store: Store) -> None:
    """With `from: comparisons` those pairs are left that the verdicts do not turn round."""
    _write(store, [Said("a", "1"), Said("b", "2", slot=1), Said("c", "3", "bad")])
    shown = [("a", "c", [1, 2]), ("b", "c", [2, 1])]
    rows = [
        judgement(x, 1.0, mode="compare", step="compare")
        | {
            "id": row_id("judgement", x=x),
            "completion_id": None,
            "value": None,
            "raw": None,
            "presented": [identifier(x), identifier(y)],
            "ranks": ranks,
        }
        for x, y, ranks in shown
    ]
    store.commit({"judgement": rows}, round=1, step="compare", chunk=0)
    assert _found(store, judge="verifier", labels="comparisons") == {"ac"}


# -- bounds


def test_per_prompt_prefers_width_then_the_same_slot(store: Store) -> None:
    """Of all pairs of a prompt, those with the widest margin come first, and of equal ones those of one slot."""
    _write(
        store,
        [Said(w, w, "good", value=1.0, slot=i) for i, w in enumerate("abc")]
        + [Said(w, w, "bad", value=0.0, slot=i) for i, w in enumerate("def")]
        + [Said("g", "g", "bad", value=0.5, slot=3)],
    )
    assert _found(store, per_prompt=3) >= {"ad", "be", "cf"}
    assert _found(store, per_prompt=3) == {"ad", "be", "cf"}
    wide = _found(store, judge="verifier", rule="correct_incorrect", per_prompt=9)
    assert all(pair[1] in "def" for pair in wide)
    drawn = {frozenset(_found(store, per_prompt=1, seed=seed)) for seed in range(20)}
    assert drawn == {frozenset({p}) for p in ("ad", "be", "cf")}


def test_length_ratio_drops_pairs_that_teach_length(store: Store) -> None:
    """Chosen may have so many times the characters of rejected, the bound included, and no more."""
    _write(
        store, [Said("a", "12345678"), Said("b", "1234", "bad"), Said("c", "123", "bad", slot=1)]
    )
    assert _found(store, length_ratio=2.0) == {"ab"}
    assert _found(store, length_ratio=2.7) == {"ab", "ac"}
    assert _found(store, length_ratio=1.0) == set()


# -- earlier rounds


def test_pairs_of_earlier_rounds_are_replayed(store: Store) -> None:
    """The answers of each round are paired among themselves; two texts that come again are paired once, as the newest."""
    _write(
        store,
        [
            Said("a", "1", round=1),
            Said("b", "2", "bad", round=1),
            Said("c", "3", round=2),
            Said("d", "4", "bad", round=2),
            Said("e", "1", round=3),
            Said("f", "2", "bad", round=3),
        ],
    )
    assert _found(store, round=3) == {"ef"}
    assert _found(store, round=3, replay=1) == {"ef", "cd"}
    assert _found(store, round=3, replay=9) == {"ef", "cd"}
    assert _found(store, round=2, replay=1) == {"ab", "cd"}
    assert _found(store, round=3, replay=2, per_prompt=1) == {"ef"}


def test_what_was_forgotten_of_an_earlier_round_is_not_replayed(store: Store) -> None:
    """Neither as chosen nor as rejected: its words are gone, and training it again would be no forgetting."""
    _write(
        store,
        [
            Said("a", "1"),
            Said("b", "2", slot=1),
            Said("c", "3", "bad"),
            Said("d", "4", "bad", slot=1),
            Said("e", "5", round=2),
            Said("f", "6", "bad", round=2),
        ],
    )
    assert _found(store, round=2, replay=1) == {"ef", "ac", "ad", "bc", "bd"}
    for text in ("1", "4"):
        store.rows(
            "UPDATE content SET text = '', forgotten_at = now() WHERE hash = ? RETURNING hash",
            [content(text, 1)["hash"]],
        )
    assert _found(store, round=2, replay=1) == {"ef", "bc"}


# -- what a select step kept


@pytest.mark.parametrize("rule", ["contrast", "correct_incorrect"])
def test_answers_that_a_select_step_kept_are_paired(store: Store, rule: str) -> None:
    """`of` may name select steps: then the answers that they kept are in pairs, and no others."""
    _write(
        store,
        [
            Said("a", "1", "sample", value=1.0),
            Said("b", "2", "sample", value=0.0, slot=1),
            Said("c", "3", "sample", value=0.0, slot=2),
        ],
    )
    kept = [("good", "a"), ("bad", "b")]
    rows = [
        {
            "id": row_id("selection", step=step, word=word),
            "round": 1,
            "step": step,
            "split": "train",
            "prompt_id": identifier("p"),
            "completion_id": identifier(word),
            "position": 0,
            "weight": 1.0,
            "created_at": completion("x", "x")["created_at"],
        }
        for step, word in kept
    ]
    store.commit({"selection": rows}, round=1, step="good", chunk=0)
    judge = "" if rule == "contrast" else "verifier"
    assert _found(store, rule=rule, judge=judge) == {"ab"}
    assert _found(store, rule=rule, judge="verifier", steps=("good", "sample")) == {"ab", "ac"}


# -- laws

ANSWERS = st.lists(
    st.tuples(
        st.sampled_from("pqh"),
        st.sampled_from(["x", "yy", "zzz", "", "xxxxx"]),
        st.sampled_from(["good", "bad"]),
        st.sampled_from([None, 0.0, 0.5, 1.0]),
        st.booleans(),
        st.sampled_from([1, 2, 3]),
    ),
    min_size=1,
    max_size=14,
)
BOUNDS = st.fixed_dictionaries(
    {
        "per_prompt": st.sampled_from([None, 1, 2]),
        "min_margin": st.sampled_from([0.0, 0.5, 1.0]),
        "length_ratio": st.sampled_from([None, 0.5, 1.0, 2.0]),
        "replay": st.sampled_from([0, 1, 5]),
    }
)


@settings(max_examples=12)
@given(ANSWERS, BOUNDS)
def test_the_laws_of_pairs(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, str, str, float | None, bool, int]],
    bounds: dict[str, Any],
) -> None:
    """Whatever the rule: other texts, one training prompt and round, chosen whole, bounds kept, and no pair's reverse."""
    said = {
        WORDS[i]: Said(WORDS[i], text, step, value, asked, cut, slot=i, round=round_)
        for i, (asked, text, step, value, cut, round_) in enumerate(drawn)
    }
    store = _begin(tmp_path_factory.mktemp("store"))
    _write(store, list(said.values()))
    ratio, most = bounds["length_ratio"], bounds["per_prompt"]
    for rule in RULES:
        for judge in ("verifier", "") if rule in RULES[3:] else ("verifier",):
            found = _found(store, round=3, rule=rule, judge=judge, **bounds)
            sides = [(said[pair[0]], said[pair[1]]) for pair in found]
            texts_ = {(good.prompt, good.text, bad.text) for good, bad in sides}
            for good, bad in sides:
                assert good.prompt != "h"
                assert good.text != bad.text
                assert (good.prompt, good.round) == (bad.prompt, bad.round)
                assert good.text
                assert not good.cut
                assert ratio is None or len(good.text) <= ratio * len(bad.text)
                assert 3 - bounds["replay"] <= good.round <= 3
                if judge:
                    assert good.value is not None
                    assert bad.value is not None
                    assert good.value - bad.value >= max(bounds["min_margin"], 1e-9)
                if rule in RULES[3:]:
                    assert good.step == "good"
                if good.round == bad.round and not bounds["replay"]:
                    assert (good.prompt, bad.text, good.text) not in texts_
            if most:
                assert max(Counter(g.prompt for g, _ in sides).values(), default=0) <= most
            if bounds["replay"]:
                assert len(texts_) == len(found)
    store.close()


# -- at load


def _recipe(tmp_path: Path, *steps: dict[str, Any], **roles: Any) -> Recipe:
    data = fake_recipe()
    data["roles"] = roles
    data["round"] = [*steps, *data["round"][3:]]
    return load_recipe(yaml.safe_dump(data), "r.yaml", base=tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a folder with a prompt."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', "utf-8")
    return tmp_path


GOLD = {"sample": {"as": "gold", "role": "gold", "k": 1}}
SAMPLE: dict[str, Any] = {"sample": {"k": 2}}
QUOTES = {"policy": "references"}
WRONG: list[tuple[list[dict[str, Any]], str]] = [
    ([GOLD, SAMPLE, {"pair": {"rule": "contrast"}}], "contrast sets steps against each other"),
    ([GOLD, SAMPLE, {"pair": {"rule": "contrast", "of": "gold"}}], "say `of: .BETTER, WORSE.`"),
    (
        [GOLD, SAMPLE, {"pair": {"rule": "gold_self", "of": ["sample", "gold"]}}],
        "'sample' comes first and is the student's own",
    ),
    (
        [GOLD, SAMPLE, {"pair": {"rule": "gold_self", "of": ["sample", "gold"]}}],
        "'gold' is not the student's own, and would be rejected",
    ),
    (
        [
            GOLD,
            SAMPLE,
            {"score": {"judge": "verifier", "of": "sample"}},
            {"pair": {"rule": "contrast", "of": ["gold", "sample"], "by": "verifier"}},
        ],
        "nothing has scored or compared these completions",
    ),
    (
        [GOLD, SAMPLE, {"pair": {"rule": "contrast", "of": ["gold", "sample"], "min_margin": 0.1}}],
        "min_margin: says nothing where no judge decides",
    ),
    ([SAMPLE, {"score": {"judge": "verifier"}}, {"pair": {"per_prompt": 0}}], "per_prompt"),
    ([SAMPLE, {"score": {"judge": "verifier"}}, {"pair": {"length_ratio": 0}}], "length_ratio"),
    ([SAMPLE, {"score": {"judge": "verifier"}}, {"pair": {"replay": -1}}], "replay"),
]


@pytest.mark.parametrize(("steps", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_cannot_be_paired_is_refused_at_load(
    base: Path, steps: list[dict[str, Any]], told: str
) -> None:
    """In one line, before a model loads."""
    with pytest.raises(BadInput, match=told):
        _recipe(base, *steps, gold=QUOTES)


def test_construction_needs_no_judge_and_takes_none_unasked(base: Path) -> None:
    """A judge that has scored other answers in the round does not come into it."""
    recipe = _recipe(
        base,
        GOLD,
        SAMPLE,
        {"score": {"judge": "verifier", "of": "sample"}},
        {"pair": {"rule": "gold_self", "of": ["gold", "sample"]}},
        gold=QUOTES,
    )
    pair = recipe.stages[0].steps[3]
    assert isinstance(pair, Pair)
    assert pair.by == ""


def test_a_select_step_has_the_judges_of_what_it_read(base: Path) -> None:
    """`pair: {of: kept}` finds the judge that scored the answers before they were kept, and must name no other."""
    steps = [SAMPLE, {"score": {"judge": "verifier"}}, {"select": {"as": "kept"}}]
    recipe = _recipe(
        base,
        *steps,
        {"pair": {"of": "kept"}},
        {"score": {"as": "again", "of": "kept", "judge": "longest"}},
    )
    assert recipe.stages[0].steps[3].sources() == ("kept",)
    with pytest.raises(BadInput, match="by: 'longest' has not scored them"):
        _recipe(base, *steps, {"pair": {"of": "kept", "by": "longest"}})


def test_new_keys_change_no_id_where_they_are_not_used(base: Path) -> None:
    """A pair step that uses none of them is written and hashed as before they were there."""
    recipe = _recipe(base, SAMPLE, {"score": {"judge": "verifier"}}, {"pair": {}})
    [pair] = [step for step in recipe.resolved()["stages"][0]["round"] if "pair" in step]
    assert set(pair["pair"]) == {"of", "by", "rule", "limit"}
