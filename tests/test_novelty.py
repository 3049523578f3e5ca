"""Laws of what counts as a new prompt, and how a prompt is read in a reply."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.agents.novel import read_prompt
from redistill.store.duplicates import Guarded, jaccard, normalised, shingles, words
from redistill.store.novelty import Measure, MinhashIndex, Novelty, RougeIndex, lcs_length, rouge_l

WORDS = st.lists(st.sampled_from(["say", "the", "word", "red", "blue", "now", "twice"]), max_size=9)
TEXTS = st.lists(WORDS.map(" ".join), max_size=12)
SOME = WORDS.filter(bool).map(" ".join)


def naive(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by the table of the textbook."""
    row = [0] * (len(b) + 1)
    for left in a:
        before = row
        row = [0]
        for place, right in enumerate(b):
            row.append(before[place] + 1 if left == right else max(row[place], before[place + 1]))
    return row[-1]


@given(WORDS, WORDS)
def test_the_subsequence_is_as_long_as_the_textbooks(a: list[str], b: list[str]) -> None:
    """Bits and table agree, and the share lies in [0, 1], is 1 for equal texts, and knows no order of the two."""
    assert lcs_length(a, b) == naive(a, b)
    assert rouge_l(a, b) == rouge_l(b, a)
    assert 0 <= rouge_l(a, b) <= 1
    assert rouge_l(a, a) == (1 if a else 0)


def test_a_long_text_is_no_trouble() -> None:
    """More words than a machine word has bits."""
    text = [f"w{n}" for n in range(1000)]
    assert lcs_length(text, text[::2]) == 500
    assert lcs_length(text, text[::-1]) == 1


@given(TEXTS, SOME)
def test_the_nearest_is_the_nearest_of_all(texts: list[str], text: str) -> None:
    """What the index leaves out is never likelier; of equal ones it is the first."""
    index = RougeIndex()
    for one in texts:
        index.add(one)
    every = [(rouge_l(words(one), words(text)), -place) for place, one in enumerate(texts)]
    best = max((one for one in every if one[0] > 0), default=None)
    assert index.nearest(text) == ((-best[1], best[0]) if best else None)


def novelty(measure: Measure, most: float, known: Sequence[str], held: Sequence[str]) -> Novelty:
    """Return the judge of new texts against some that are known, named by themselves, and some that are held out."""
    guarded = [Guarded(text, "heldout", "prompt", text) for text in held]
    return Novelty(measure, most, [(text, text) for text in known], guarded)


@given(TEXTS, TEXTS, TEXTS, st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]))
def test_nothing_that_is_kept_is_near(
    seeds: list[str], held: list[str], proposals: list[str], most: float
) -> None:
    """No kept text is as near as the threshold to a seed, to one kept before it, or to one that is held out."""
    judge = novelty("rouge_l", most, seeds, held)
    kept: list[str] = []
    for text in proposals:
        if judge.find(text).verdict == "kept":
            judge.keep(text, text)
            kept.append(text)
    for place, text in enumerate(kept):
        for other in [*seeds, *kept[:place], *held]:
            assert rouge_l(words(text), words(other)) < most
            assert normalised(text) != normalised(other)


@given(st.permutations(["say the red word", "say the blue word now", "now", "twice red"]), SOME)
def test_a_verdict_knows_no_order_of_what_is_known(known: list[str], text: str) -> None:
    """Only which prompts are known decides, and not when they came."""
    first = novelty("rouge_l", 0.7, sorted(known), []).find(text)
    found = novelty("rouge_l", 0.7, known, []).find(text)
    assert (found.verdict, found.similarity) == (first.verdict, first.similarity)


@given(TEXTS, SOME)
def test_minhash_is_never_wrong_about_a_near_text(texts: list[str], text: str) -> None:
    """What it finds is as near as it says; sketches propose, and the true index decides."""
    index = MinhashIndex(0.6)
    for one in texts:
        index.add(one)
    if found := index.nearest(text):
        assert found[1] == jaccard(shingles(text), shingles(texts[found[0]])) >= 0.6


LONG = "write a short letter to the town in which you ask for a bench beside the pond"


@pytest.mark.parametrize(
    ("text", "verdict", "measure"),
    [
        ("Say it  THRICE!", "leaks", "equal"),
        (
            f"My friend says: {LONG}, and then sing a song of nine verses about winter",
            "leaks",
            "ngrams",
        ),
        ("say it thrice please", "leaks", "rouge_l"),
        ("paint  the FENCE.", "known", "equal"),
        ("paint the old fence", "alike", "rouge_l"),
        ("how far is the moon", "kept", "rouge_l"),
        ("elephants dream", "kept", None),
    ],
)
def test_what_is_held_out_comes_first(text: str, verdict: str, measure: str | None) -> None:
    """As a whole, in its n-grams inside a longer text, or alike: a held-out prompt is told before anything else."""
    judge = novelty(
        "rouge_l", 0.7, ["Paint the fence.", "how old is the sea"], ["Say it thrice!", LONG]
    )
    found = judge.find(text)
    assert (found.verdict, found.measure) == (verdict, measure)


@pytest.mark.parametrize(
    ("reply", "prompt"),
    [
        ("What is a fjord?", "What is a fjord?"),
        ("  \n 12. What is a fjord?\n", "What is a fjord?"),
        ('Question: "What is a fjord?"', "What is a fjord?"),
        ("3) New instruction 3: `Name a fjord.`", "Name a fjord."),
        ("\u201cWhat is a fjord?\u201d", "What is a fjord?"),
        ('"Yes" or "no"?', '"Yes" or "no"?'),
        ('Say "yes" or "no"', 'Say "yes" or "no"'),
        ("3.5 litres of what?", "3.5 litres of what?"),
        ("Two lines\nof one task", "Two lines\nof one task"),
        ('""', ""),
        ("Task:", ""),
        ("half \ud800 a pair", "half \ufffd a pair"),
    ],
)
def test_one_prompt_is_read_in_a_reply(reply: str, prompt: str) -> None:
    """Numbers, labels and quotes around the whole go; what belongs to the prompt stays."""
    assert read_prompt(reply) == prompt


@given(st.text(max_size=60))
def test_what_was_read_reads_the_same_again(reply: str) -> None:
    """Reading is idempotent, on any text."""
    assert read_prompt(read_prompt(reply)) == read_prompt(reply)
