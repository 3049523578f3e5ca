"""Finding what is there already, and what must not train: duplicates and contamination.

*Exact* duplicates read the same after normalisation (NFKC, case, white space). *Near* ones share most
of their word trigrams: MinHash (Broder 1997) with banded LSH proposes, the true Jaccard index decides,
so that a false alarm of the sketch drops nothing.

*Contamination* is word n-grams of a held-out or test prompt, or of its reference answer, in a row that
would train. n is 13 as for GPT-3 (Brown et al. 2020, appendix C), and for shorter texts their own
length, down to 8: a text of 8 to 13 words must be there as a whole. Below 8 words ("What is 3 + 4?")
an overlap says nothing, and only an equal prompt counts. Of a longer text a share of all n-grams must
be found: prompts made from one template share their frame and are no leak.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

N = 13
"""Words of an n-gram of a long text."""
SHORTEST_N = 8
"""Words below which a text is compared as a whole prompt only."""
SHARE = 0.5
"""Share of a held-out text's n-grams from which a row counts as contaminated."""
_PERMUTATIONS = 128
_SEED = 1
_RECALL = 0.999
_SHINGLE = 3

# A sentence of Chinese, Japanese or Thai has no spaces: each such character counts as a word.
_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


def normalised(text: str) -> str:
    """Return the text by which exact duplicates are known: NFKC, case folded, one space for many."""
    # Folding can undo NFKC, and the other way round: what is folded is normalised again.
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).casefold().split())


def exact_key(parts: Iterable[str]) -> bytes:
    """Return 16 bytes that are equal for equal parts, read through `normalised`."""
    digest = blake2b(digest_size=16)
    for part in parts:
        data = normalised(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def words(text: str) -> list[str]:
    """Return the words of a text, case folded, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


# -- near duplicates


def shingles(text: str) -> set[int]:
    """Return the word trigrams of a text as 64-bit hashes; of a shorter text, the whole."""
    found = words(text)
    grams = [found[i : i + _SHINGLE] for i in range(max(1, len(found) - _SHINGLE + 1))]
    return {
        int.from_bytes(blake2b(" ".join(gram).encode(), digest_size=8).digest(), "big")
        for gram in grams
    }


def jaccard(a: set[int], b: set[int]) -> float:
    """Return the share of all shingles that both have; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def bands(threshold: float) -> int:
    """Return the fewest bands of LSH that find 99.9 % of the pairs that are just at the threshold."""
    for rows in (32, 16, 8, 4, 2):
        count = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= _RECALL:
            return count
    return _PERMUTATIONS


@dataclass(slots=True)
class Near:
    """Texts seen so far, asked for the first one that is near to a new one."""

    threshold: float
    """Jaccard index of word trigrams from which two texts count as near, in (0, 1]."""
    _index: Any = None
    _kept: list[array[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from rensa import RMinHashLSH

        self._index = RMinHashLSH(self.threshold, _PERMUTATIONS, bands(self.threshold))

    def find(self, text: str) -> tuple[int, float] | None:
        """Return (place, Jaccard index) of the first near text."""
        return self._first(*_sketched(text))

    def add(self, text: str) -> None:
        """Keep a text, whatever it is near to."""
        self._keep(*_sketched(text))

    def find_or_add(self, text: str) -> tuple[int, float] | None:
        """Return (place, Jaccard index) of the first near text; where there is none, keep this one."""
        found, sketch = _sketched(text)
        near = self._first(found, sketch)
        if near is None:
            self._keep(found, sketch)
        return near

    def _first(self, found: set[int], sketch: Any) -> tuple[int, float] | None:
        for place in sorted(self._index.query(sketch)):
            if (index := jaccard(found, set(self._kept[place]))) >= self.threshold:
                return place, index
        return None

    def _keep(self, found: set[int], sketch: Any) -> None:
        self._index.insert(len(self._kept), sketch)
        self._kept.append(array("Q", sorted(found)))


def _sketched(text: str) -> tuple[set[int], Any]:
    """Return the shingles of a text, and their MinHash."""
    from rensa import RMinHash

    found = shingles(text)
    sketch = RMinHash(_PERMUTATIONS, _SEED)
    sketch.update([str(shingle) for shingle in sorted(found)])
    return found, sketch


# -- contamination


@dataclass(frozen=True, slots=True)
class Guarded:
    """A text that must not train."""

    prompt_id: str
    split: str
    part: str
    """prompt, answer or reference."""
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """What a text has of a guarded one."""

    guarded: Guarded
    share: float
    """Share of the guarded text's n-grams; 1 where it is there as a whole."""
    n: int
    """Words of an n-gram; 0 where the two prompts are equal."""

    def reason(self) -> str:
        """Return the line that says why."""
        of = f"the {self.guarded.part} of {self.guarded.split} prompt {self.guarded.prompt_id[:8]}"
        return (
            f"equals {of}" if not self.n else f"has {self.share:.0%} of the {self.n}-grams of {of}"
        )


class Contamination:
    """An index of guarded texts, asked for what a training text has of them."""

    def __init__(self, guarded: Iterable[Guarded], share: float = SHARE) -> None:
        self._share = share
        self._guarded: list[Guarded] = []
        self._whole: dict[bytes, int] = {}
        self._counts: list[int] = []
        # Only the first words of an n-gram are looked up; the rest is compared where they are found.
        self._grams: dict[tuple[str, ...], list[tuple[tuple[str, ...], int]]] = {}
        for text in guarded:
            self._add(text)

    def _add(self, guarded: Guarded) -> None:
        place = len(self._guarded)
        self._guarded.append(guarded)
        if guarded.part == "prompt":
            self._whole.setdefault(exact_key([guarded.text]), place)
        found = words(guarded.text)
        grams = set(_grams(found, min(N, len(found)))) if len(found) >= SHORTEST_N else set()
        self._counts.append(len(grams))
        for gram in grams:
            self._grams.setdefault(gram[:SHORTEST_N], []).append((gram, place))

    def hits(self, prompt: str, answers: Sequence[str] = ()) -> list[Hit]:
        """Return every guarded text that a row holds enough of, the largest share first."""
        found = []
        equal = self._whole.get(exact_key([prompt]))
        if equal is not None:
            found.append(Hit(self._guarded[equal], 1.0, 0))
        seen: dict[int, set[tuple[str, ...]]] = {}
        for text in (prompt, *answers) if self._grams else ():
            for gram, place in self._matches(words(text)):
                seen.setdefault(place, set()).add(gram)
        for place, grams in seen.items():
            share = len(grams) / self._counts[place]
            if share >= self._share and place != equal:
                found.append(Hit(self._guarded[place], share, len(next(iter(grams)))))
        return sorted(found, key=lambda hit: (-hit.share, hit.guarded.prompt_id, hit.guarded.part))

    def _matches(self, text: list[str]) -> Iterator[tuple[tuple[str, ...], int]]:
        for start in range(len(text) - SHORTEST_N + 1):
            for gram, place in self._grams.get(tuple(text[start : start + SHORTEST_N]), ()):
                if tuple(text[start : start + len(gram)]) == gram:
                    yield gram, place


def _grams(text: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    for start in range(len(text) - n + 1):
        yield tuple(text[start : start + n])
