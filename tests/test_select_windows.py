"""Select steps that look at a prompt's other answers, at earlier rounds, and at what another step has kept."""

from __future__ import annotations

import re
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

import redistill
from redistill.agents.operators.curate import Pair, Select
from redistill.hashing import row_id
from redistill.store.curation import Choice, check_choice, choose
from redistill.store.store import Row, Store

ROOT = Path(redistill.__file__).resolve().parent
WORDS = "abcdefghijklmnopqrstuvwxyz"
BAND = "avg(verifier) OVER (PARTITION BY prompt_id) BETWEEN 0.2 AND 0.8"


@dataclass(frozen=True)
class Said:
    """One answer and what two judges think of it."""

    word: str
    verifier: float | None
    other: float | None = None
    prompt: str = "p"
    text: str = ""
    cut: bool = False
    slot: int = 0
    round: int = 1
    step: str = "sample"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an open store with three prompts that train, and one that is held out."""
    opened = _begin(tmp_path)
    yield opened
    opened.close()


def _begin(folder: Path) -> Store:
    store = Store(folder, ["verifier", "other"])
    rows = opening({**dict.fromkeys("pqr", "train"), "h": "heldout"})
    store.commit(rows, round=0, step="begin", chunk=0)
    return store


def _write(store: Store, *said: Said) -> None:
    for round_ in sorted({one.round for one in said}):
        mine = [one for one in said if one.round == round_]
        rows: Mapping[str, list[Row]] = {
            "completion": [_completion(one) for one in mine],
            "content": texts(*(one.text or one.word for one in mine), round_=round_),
            "judgement": [
                judgement(one.word, value, judge=judge, round=round_)
                for one in mine
                for judge, value in (("verifier", one.verifier), ("other", one.other))
            ],
        }
        store.commit(rows, round=round_, step="sample", chunk=0)


def _completion(one: Said) -> Row:
    return completion(
        one.word,
        one.text or one.word,
        round=one.round,
        step=one.step,
        prompt_id=identifier(one.prompt),
        finish_reason="length" if one.cut else "stop",
        slot=one.slot,
        split="heldout" if one.prompt == "h" else "train",
    )


def _kept(
    store: Store, round_: int = 1, steps: Sequence[str] = ("sample",), **choice: Any
) -> list[str]:
    store.publish(force=True)
    words = {identifier(w): w for w in WORDS}
    return [words[r.completion_id] for r in choose(store.folder, Choice(**choice), round_, steps)]


@pytest.fixture
def three(store: Store) -> Store:
    """One prompt that never passes, one that passes half of the time, one that always does."""
    _write(
        store,
        *(Said(word, 0.0, 0.0, "p", slot=i) for i, word in enumerate("ab")),
        Said("c", 1.0, 1.0, "q"),
        Said("d", 0.0, 1.0, "q", slot=1),
        *(Said(word, 1.0, 1.0, "r", slot=i) for i, word in enumerate("ef")),
    )
    return store


@pytest.mark.parametrize("band", [BAND, "prompt_mean.verifier BETWEEN 0.2 AND 0.8"])
def test_a_band_of_pass_rates_keeps_what_can_be_learned(three: Store, band: str) -> None:
    """Prompts that never pass and those that always do are left out, in either way of saying it."""
    assert check_choice(Choice(where=band), ["verifier"]) == ""
    assert _kept(three, where=band, order_by="slot") == ["c", "d"]
    assert _kept(three, where=f"{band} AND verifier = 1") == ["c"]


def test_the_rate_is_of_every_answer_that_was_sampled(store: Store) -> None:
    """Answers that were cut, equal ones, and those that are not kept count in it; a judge that failed does not."""
    _write(
        store,
        Said("a", 1.0, text="same"),
        Said("b", 1.0, text="same", slot=1),
        Said("c", 0.0, cut=True, slot=2),
        Said("d", 0.0, slot=3),
        Said("e", None, slot=4),
    )
    assert _kept(store, where="prompt_mean.verifier = 0.5 AND verifier = 1") == ["a"]
    assert _kept(store, where="avg(verifier) OVER (PARTITION BY prompt_id) = 0.5 AND slot = 3") == [
        "d"
    ]
    assert _kept(store, where="prompt_answers = 5 AND verifier = 1") == ["a"]
    assert _kept(store, where="prompt_spread.verifier = 0.5 AND verifier = 1") == ["a"]


def test_judges_that_disagree_can_be_looked_for(three: Store) -> None:
    """About one answer, or about how often a prompt is answered well."""
    assert _kept(three, where="abs(verifier - other) > 0.5") == ["d"]
    apart = "abs(prompt_mean.verifier - prompt_mean.other) > 0.4 AND verifier = 1"
    assert _kept(three, where=apart) == ["c"]
    wavers = "stddev_pop(verifier) OVER (PARTITION BY prompt_id) > 0"
    assert set(_kept(three, where=wavers)) == {"c", "d"}


def test_the_hardest_prompts_come_first(three: Store) -> None:
    """The order sees how all answers did, although those that are kept all passed."""
    hardest: dict[str, Any] = {"where": "verifier = 1", "order_by": "prompt_mean.verifier, slot"}
    assert _kept(three, **hardest) == ["c", "e", "f"]
    assert _kept(three, **hardest, per_prompt=1) == ["c", "e"]


def test_a_share_of_all_answers_can_be_kept(three: Store) -> None:
    """A threshold may rise with the values: the upper half by rank, as in ReST."""
    half = "percent_rank() OVER (ORDER BY other + verifier) >= 0.5"
    assert set(_kept(three, where=half)) == {"c", "e", "f"}


def test_windows_see_the_answers_of_the_steps_alone(store: Store) -> None:
    """Neither another step's answers nor another round's move a rate."""
    _write(
        store,
        Said("a", 1.0),
        Said("b", 1.0, slot=1),
        Said("c", 0.0, step="rewrite"),
        Said("d", 0.0, round=2),
    )
    assert _kept(store, where="prompt_mean.verifier = 1") == ["a", "b"]
    assert _kept(store, where="prompt_mean.verifier = 1", steps=("sample", "rewrite")) == []


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("avg(verifier) > 0.5", "OVER \\(PARTITION BY prompt_id\\)"),
        ("prompt_mean.verifer > 0.5", 'Candidate Entries: "verifier"'),
        ("verifier > $round", "a parameter stands in it"),
        ("(SELECT avg(verifier) FROM answers) > 0.5", "a query inside it"),
        ("avg(verifier) OVER (PARTITION BY prompt_id) > (SELECT 1)", "a query inside it"),
    ],
)
def test_what_a_window_cannot_say_is_refused_at_load(where: str, told: str) -> None:
    """In one line with a way out; a window is no way around the jail."""
    fault = check_choice(Choice(where=where), ["verifier"])
    assert re.search(told, fault), fault
    assert "\n" not in fault


ANSWERS = st.lists(
    st.tuples(
        st.sampled_from("pqh"),
        st.sampled_from(["x", "y", "z", " "]),
        st.sampled_from([None, 0.0, 0.5, 1.0]),
        st.booleans(),
        st.sampled_from([1, 2]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=8)
@given(ANSWERS, st.sampled_from([None, 1, 2]), st.sampled_from([None, 3]), st.sampled_from([0, 1]))
def test_the_laws_of_selection(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, str, float | None, bool, int]],
    per_prompt: int | None,
    limit: int | None,
    replay: int,
) -> None:
    """None is cut, held out or too old; each text of a prompt once; the caps hold; rates are those counted by hand."""
    said = {
        WORDS[i]: Said(WORDS[i], value, prompt=asked, text=text, cut=cut, slot=i, round=round_)
        for i, (asked, text, value, cut, round_) in enumerate(drawn)
    }
    store = _begin(tmp_path_factory.mktemp("store"))
    _write(store, *said.values())
    caps: dict[str, Any] = {"per_prompt": per_prompt, "limit": limit, "replay": replay}
    kept = [said[word] for word in _kept(store, 2, where="prompt_mean.verifier >= 0.5", **caps)]
    store.close()
    for one in kept:
        assert not one.cut
        assert one.prompt != "h"
        assert one.round == 2 or replay
        beside = [
            other.verifier
            for other in said.values()
            if (other.prompt, other.round) == (one.prompt, one.round) and other.verifier is not None
        ]
        assert sum(beside) / len(beside) >= 0.5
    texts_ = [(one.prompt, one.text) for one in kept]
    assert len(texts_) == len(set(texts_))
    assert max(Counter(one.prompt for one in kept).values(), default=0) <= (per_prompt or 99)
    assert len(kept) <= (limit or 99)


def _steps(name: str) -> list[dict[str, Any]]:
    """Return the steps of a name in the page's examples."""
    page = (ROOT / "docs" / "curation.md").read_text("utf-8")
    blocks = [yaml.safe_load(part.partition("```")[0]) for part in page.split("```yaml")[1:]]
    rounds = [block["round"] if isinstance(block, dict) else block for block in blocks]
    return [step[name] for steps in rounds for step in steps if name in step]


@pytest.mark.parametrize("step", _steps("select"), ids=str)
def test_every_selection_of_the_page_is_accepted(step: dict[str, Any]) -> None:
    """Its SQL is valid with the judges that it names."""
    judges = ["verifier", "judge", "helpful", "harmless"]
    assert Select(**step).check_sql("round[0].select", judges) == []


@pytest.mark.parametrize("step", _steps("pair"), ids=str)
def test_every_pairing_of_the_page_is_accepted(step: dict[str, Any]) -> None:
    """Its keys and values are valid."""
    assert Pair(**step).check("round[0].pair") == []


# -- earlier rounds


@pytest.fixture
def rounds(store: Store) -> Store:
    """Three rounds, with answers of one step to one prompt."""
    _write(
        store,
        Said("a", 1.0, round=1),
        Said("b", 1.0, round=2),
        Said("c", 1.0, round=3),
        Said("d", 0.0, round=3, slot=1),
        Said("e", 1.0, round=3, step="other"),
    )
    return store


def test_answers_of_earlier_rounds_are_replayed(rounds: Store) -> None:
    """`replay` counts rounds back from this one, and `rounds_ago` tells them apart; without it nothing is older."""
    newest = {"where": "verifier = 1", "order_by": "rounds_ago"}
    assert _kept(rounds, 3, **newest) == ["c"]
    assert _kept(rounds, 3, **newest, replay=1) == ["c", "b"]
    assert _kept(rounds, 3, **newest, replay=7) == ["c", "b", "a"]
    assert _kept(rounds, 2, **newest, replay=7) == ["b", "a"]
    assert _kept(rounds, 3, **newest, replay=7, per_prompt=2) == ["c", "b"]


def test_a_share_of_replayed_answers_is_sql(rounds: Store) -> None:
    """Weights fall with age, and a condition caps what is replayed; the rates are each round's own."""
    rounds.publish(force=True)
    older = Choice(where="verifier = 1", weight="0.5 ** rounds_ago", replay=2)
    weights = {row.weight for row in choose(rounds.folder, older, 3, ["sample"])}
    assert weights == {1.0, 0.5, 0.25}
    capped = (
        "rounds_ago = 0 OR row_number() OVER (PARTITION BY rounds_ago > 0 ORDER BY rounds_ago) <= 1"
    )
    assert set(_kept(rounds, 3, where=capped, replay=2)) == {"c", "d", "b"}
    rates = "prompt_mean.verifier = 1"
    assert set(_kept(rounds, 3, where=rates, replay=2)) == {"a", "b"}


def test_an_answer_that_comes_again_counts_once_as_the_newest(store: Store) -> None:
    """The same words in two rounds are one answer of the later round."""
    _write(store, Said("a", 1.0, text="same"), Said("b", 1.0, text="same", round=2, slot=5))
    assert _kept(store, 2, replay=1) == ["b"]


# -- what another step has kept


def test_a_select_step_may_read_what_another_has_kept(three: Store) -> None:
    """It looks at those answers alone, and at no other round's."""
    rows = [
        {
            "id": row_id("selection", word=word, round=round_),
            "round": round_,
            "step": "failed",
            "split": "train",
            "prompt_id": identifier(asked),
            "completion_id": identifier(word),
            "position": 0,
            "weight": 1.0,
            "created_at": completion("x", "x")["created_at"],
        }
        for word, asked, round_ in (("a", "p", 1), ("d", "q", 1))
    ]
    three.commit({"selection": rows}, round=1, step="failed", chunk=0)
    assert set(_kept(three, steps=("failed",))) == {"a", "d"}
    assert _kept(three, steps=("failed",), where="other = 1") == ["d"]
    assert _kept(three, 2, steps=("failed",), replay=1) == _kept(three, steps=("failed",))
    assert _kept(three, steps=("failed",), where="prompt_answers = 1 AND other = 1") == ["d"]
