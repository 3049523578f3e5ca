"""Duplicates and contamination: what is found, what is not, and that brute force finds the same."""

from __future__ import annotations

import gzip
import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import redistill
from redistill.errors import BadInput
from redistill.store.contamination import contamination
from redistill.store.duplicates import (
    Contamination,
    Guarded,
    N,
    Near,
    bands,
    exact_key,
    jaccard,
    normalised,
    shingles,
    words,
)
from redistill.testing.small_run import make_run

DATA = Path(redistill.__file__).resolve().parents[1] / "shared" / "data"
TEXTS = st.text(max_size=60)
LONG = " ".join(f"word{i}" for i in range(40))


def guarded(text: str, part: str = "prompt", identifier: str = "h") -> Guarded:
    """Make a held-out text."""
    return Guarded(identifier, "heldout", part, text)


# -- exact


@given(TEXTS)
def test_normalising_twice_changes_nothing(text: str) -> None:
    """A normalised text is its own normal form, so that equal keys mean equal reading."""
    assert normalised(normalised(text)) == normalised(text)


def test_case_width_and_spaces_make_no_difference() -> None:
    """What reads the same has one key; another word, or another cut between parts, has another."""
    assert exact_key(["What  is\n3?", "\uff26ull"]) == exact_key(["what is 3?", "full"])
    assert exact_key(["what is 3?", "full"]) != exact_key(["what is 4?", "full"])
    assert exact_key(["ab", "c"]) != exact_key(["a", "bc"])


# -- near


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=14).map(" ".join),
        min_size=2,
        max_size=12,
    ),
    st.sampled_from([0.5, 0.7, 0.8, 0.95]),
)
def test_near_duplicates_are_those_of_brute_force(texts: list[str], threshold: float) -> None:
    """The first near text is the one that comparing with every kept text by true Jaccard finds."""
    near = Near(threshold)
    kept: list[str] = []
    for text in texts:
        alike = [
            (place, jaccard(shingles(text), shingles(other))) for place, other in enumerate(kept)
        ]
        wanted = next(((p, j) for p, j in alike if j >= threshold), None)
        found = near.find_or_add(text)
        assert found == wanted
        if wanted is None:
            kept.append(text)


def test_near_never_reports_less_than_the_threshold() -> None:
    """The sketch may propose anything; a pair below the threshold is no near duplicate."""
    near = Near(0.8)
    base = LONG.split()
    texts = [" ".join([*base[:-k], *(f"new{k}{i}" for i in range(k))]) for k in (1, 6, 20)]
    assert near.find_or_add(LONG) is None
    found = near.find_or_add(texts[0])
    assert found is not None
    assert found[1] == jaccard(shingles(LONG), shingles(texts[0])) >= 0.8
    assert near.find_or_add(texts[1]) is None
    assert near.find_or_add(texts[2]) is None


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
def test_the_bands_find_what_is_just_near_enough(threshold: float) -> None:
    """Two texts at the threshold share a band with a probability of at least 99.9 %."""
    count = bands(threshold)
    rows = 128 // count
    assert 128 % count == 0
    assert 1 - (1 - threshold**rows) ** count >= 0.999


def test_near_duplicates_in_real_data() -> None:
    """On PandaLM's instructions the sketch finds every pair that brute force finds."""
    file = DATA / "pandalm" / "pairs.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"needs the data file {file}")
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()][:250]
    texts = [f"{row['instruction']} {row['input']}" for row in rows]
    near = Near(0.8)
    twice = sum(near.find_or_add(text) is not None for text in texts)
    sets = [shingles(text) for text in texts]
    alike = {b for a, b in combinations(range(len(sets)), 2) if jaccard(sets[a], sets[b]) >= 0.8}
    assert 0 < twice <= len(alike)
    assert twice == len(_greedy(sets))


def _greedy(sets: list[set[int]]) -> list[int]:
    kept: list[set[int]] = []
    dropped = []
    for place, one in enumerate(sets):
        if any(jaccard(one, other) >= 0.8 for other in kept):
            dropped.append(place)
        else:
            kept.append(one)
    return dropped


# -- contamination


def test_a_held_out_text_inside_a_longer_one_is_found() -> None:
    """All 13-grams of a text that was pasted into another are there, whatever stands around it."""
    index = Contamination([guarded(LONG)])
    [hit] = index.hits(f"Please answer: {LONG.upper()}!! Thank you.")
    assert (hit.share, hit.n) == (1.0, N)
    assert hit.reason() == "has 100% of the 13-grams of the prompt of heldout prompt h"


def test_the_answer_of_a_row_counts_as_its_prompt_does() -> None:
    """A reference answer that stands in a chosen text is as much of a leak."""
    index = Contamination([guarded(LONG, "reference")])
    assert index.hits("Something else?", ["no", f"well, {LONG}"])[0].guarded.part == "reference"
    assert index.hits("Something else?", ["no"]) == []


def test_a_template_is_no_leak() -> None:
    """Two questions of one long frame share n-grams, and less than half of them."""
    frame = "Read the following text with care and then say in one word {} whether it is true {}"
    index = Contamination([guarded(frame.format("only " * 9 + "A", "B " * 12))])
    assert index.hits(frame.format("please " * 9 + "C", "D " * 12)) == []


def test_short_texts_must_be_there_as_a_whole() -> None:
    """From 8 words a text is its own n-gram; below, only an equal prompt counts."""
    eight = "one two three four five six seven eight"
    index = Contamination([guarded(eight), guarded("What is 3 + 4?", identifier="s")])
    assert [h.n for h in index.hits(f"so {eight} then")] == [8]
    assert index.hits(eight.replace("four", "for")) == []
    assert index.hits("Tell me: what is 3 + 4?") == []
    assert [h.n for h in index.hits("what is  3 + 4?")] == [0]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(0, 40))
def test_shares_are_those_of_counting(found: list[str], cut: int) -> None:
    """The share is the number of the held-out text's distinct n-grams in the row over all of them."""
    text, row = " ".join(found), " ".join(found[cut:])
    n = min(N, len(found))
    grams = (
        {tuple(found[i : i + n]) for i in range(len(found) - n + 1)} if len(found) >= 8 else set()
    )
    there = found[cut:]
    seen = {g for g in grams if any(tuple(there[i : i + n]) == g for i in range(len(there)))}
    hits = [h for h in Contamination([guarded(text)], 1e-9).hits(row) if h.n]
    wanted = len(seen) / len(grams) if grams else 0.0
    equal = bool(found[cut:] == found)
    assert [h.share for h in hits] == ([wanted] if wanted and not equal else [])


def test_words_of_scripts_without_spaces_are_characters() -> None:
    """A Chinese sentence is as many words as characters, so that it has n-grams at all."""
    assert words("我们 like, Äpfel") == ["我", "们", "like", "äpfel"]


def test_a_run_is_compared_with_its_own_held_out_prompts(tmp_path: Path) -> None:
    """The small run shares frames and no question; a share of nothing is refused."""
    folder = make_run(tmp_path / "r")
    found = contamination(folder)
    assert (found["contaminated"], found["hits"]) == (0, [])
    assert found["train_prompts"] > 0 < found["guarded_prompts"]
    with pytest.raises(BadInput, match="--share"):
        contamination(folder, 0.0)


def test_gsm8k_train_and_test_share_no_question() -> None:
    """On real data of two splits, no question is held by another; a planted one is found."""
    files = [DATA / "gsm8k" / f"{split}.jsonl.gz" for split in ("train", "test")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"needs the data files {files}")
    train, test = (
        [json.loads(line)["question"] for line in gzip.decompress(f.read_bytes()).splitlines()]
        for f in files
    )
    index = Contamination(guarded(text, identifier=f"{i}") for i, text in enumerate(test))
    assert sum(bool(index.hits(text)) for text in train[:3000]) <= 3
    [hit] = index.hits("A riddle. " + test[7])
    assert hit.guarded.prompt_id == "7"
