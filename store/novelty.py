"""Whether a proposed prompt is new: like none that is there, and near to none that must not train.

ROUGE-L F1 (Lin 2004) is the measure of Self-Instruct (Wang et al. 2023, 2212.10560): the longest common
subsequence of the words of two texts, as a share of both. It is exact, and asks every prompt that shares
a word. MinHash (see `duplicates`) compares word trigrams, costs the same for any number of prompts, and
misses one near text in a thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .duplicates import Contamination, Guarded, Near, exact_key, words

Measure = Literal["rouge_l", "minhash"]
Verdict = Literal["kept", "known", "alike", "leaks", "short", "long", "empty", "cut"]


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two lists of words.

    Bit-parallel (Hyyro 2004): bit i of the row is 0 where the i-th word of `a` ends a longer subsequence.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    whole = row = (1 << len(a)) - 1
    for word in b:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & whole
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Return the ROUGE-L F1 of two lists of words, in [0, 1]; 0 where one is empty."""
    return 2 * lcs_length(a, b) / (len(a) + len(b)) if a and b else 0.0


class Index(Protocol):
    """Texts, asked for the one that is most like a new one."""

    def add(self, text: str) -> None:
        """Keep a text; places count from 0."""

    def nearest(self, text: str) -> tuple[int, float] | None:
        """Return place and similarity of the likest text, the first of equal ones; None where none is known."""


class RougeIndex:
    """Finds the likest text by ROUGE-L, exactly: only texts that can still be likelier are compared."""

    def __init__(self) -> None:
        self._texts: list[list[str]] = []
        self._holders: dict[str, list[tuple[int, int]]] = {}

    def add(self, text: str) -> None:
        """Keep a text."""
        found = words(text)
        for word, count in Counter(found).items():
            self._holders.setdefault(word, []).append((len(self._texts), count))
        self._texts.append(found)

    def nearest(self, text: str) -> tuple[int, float] | None:
        """Return place and similarity of the likest text; None where none shares a word."""
        found = words(text)
        shared: Counter[int] = Counter()
        for word, count in Counter(found).items():
            for place, held in self._holders.get(word, ()):
                shared[place] += min(count, held)
        # No subsequence is longer than the words that both have, in whatever order.
        bounds = [(2 * n / (len(found) + len(self._texts[p])), p) for p, n in shared.items()]
        best: tuple[float, int] | None = None
        for bound, place in sorted(bounds, key=lambda b: (-b[0], b[1])):
            if best is not None and bound < best[0]:
                break
            like = (rouge_l(self._texts[place], found), place)
            if best is None or (-like[0], place) < (-best[0], best[1]):
                best = like
        return (best[1], best[0]) if best else None


class MinhashIndex:
    """Finds a text whose word trigrams are near; it knows of none that is farther than the threshold."""

    def __init__(self, threshold: float) -> None:
        self._near = Near(threshold)

    def add(self, text: str) -> None:
        """Keep a text."""
        self._near.add(text)

    def nearest(self, text: str) -> tuple[int, float] | None:
        """Return place and Jaccard index of the first near text."""
        return self._near.find(text)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said of a proposed text, and the prompt that it is most like."""

    verdict: Verdict
    nearest: str | None = None
    """prompt.id."""
    similarity: float | None = None
    measure: str | None = None
    """What the similarity is: rouge_l, minhash, ngrams (share of a held-out text's n-grams), or equal."""


class Novelty:
    """Decides whether texts are new, in the order in which they come; what is kept is known from then on.

    Args:
        measure: how alike two texts are.
        most_alike: similarity from which a text is not new.
        known: (prompt.id, text) of every prompt that may train.
        guarded: held-out and test prompts with their answers; see `contamination.guarded_texts`.
    """

    def __init__(
        self,
        measure: Measure,
        most_alike: float,
        known: Iterable[tuple[str, str]],
        guarded: Sequence[Guarded],
    ) -> None:
        self._measure, self._most = measure, most_alike
        self._whole: dict[bytes, str] = {}
        self._ids: list[str] = []
        self._index = self._new_index()
        for identifier, text in known:
            self.keep(identifier, text)
        self._contamination = Contamination(guarded)
        self._guarded = [text for text in guarded if text.part == "prompt"]
        self._held_out = self._new_index()
        for prompt in self._guarded:
            self._held_out.add(prompt.text)

    def _new_index(self) -> Index:
        return RougeIndex() if self._measure == "rouge_l" else MinhashIndex(self._most)

    def keep(self, identifier: str, text: str) -> None:
        """Know a prompt from now on."""
        self._whole.setdefault(exact_key([text]), identifier)
        self._ids.append(identifier)
        self._index.add(text)

    def find(self, text: str) -> Finding:
        """Return whether a text is new: `leaks`, `known`, `alike` or `kept`; nothing is remembered."""
        if leak := self._leak(text):
            return leak
        if (same := self._whole.get(exact_key([text]))) is not None:
            return Finding("known", same, 1.0, "equal")
        near = self._index.nearest(text)
        if near is None:
            return Finding("kept")
        place, like = near
        verdict: Verdict = "alike" if like >= self._most else "kept"
        return Finding(verdict, self._ids[place], like, self._measure)

    def _leak(self, text: str) -> Finding | None:
        """Return what a text has of a held-out or test prompt: as a whole, in n-grams, or alike."""
        for hit in self._contamination.hits(text)[:1]:
            measure = "ngrams" if hit.n else "equal"
            return Finding("leaks", hit.guarded.prompt_id, hit.share, measure)
        near = self._held_out.nearest(text)
        if near is None or near[1] < self._most:
            return None
        return Finding("leaks", self._guarded[near[0]].prompt_id, near[1], self._measure)
