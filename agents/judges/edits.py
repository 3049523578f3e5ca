"""The smallest edit of an answer after which its checkers pass: a rewrite that no model has to write.

A small model may never hit a form by itself, and then there is nothing to choose from. A program can bring an
answer into the form: it cuts, quotes, changes case, puts a start before it. It makes form and never content, as
every word of an edited answer is the answer's own, or is asked for by a checker of form.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from . import checkers
from .checkers import Bounds, Equal, Json

VERSION = 1
"""Raised with every change that can change an edit."""
_DEPTH = 3
"""Changes one after the other."""
_TRIED = 2000
"""Texts that are checked for one answer."""
_LONGEST = 4000
"""Characters of an answer that is edited at all."""
_RUN_ASIDE = ("code", "math")
"""Checkers that start a process: an answer that needs them is not edited."""

Edit = Callable[[str, Any], Iterable[str]]


def smallest_edit(verify: Mapping[str, Any], text: str) -> str | None:
    """Return the passing text that is nearest to an answer; None if it passes already, or none was found.

    Searched breadth first over at most three changes; nearest by the characters that are added and taken away.

    Args:
        verify: checkers with their arguments, as a prompt has them.
        text: the answer.
    """
    if len(text) > _LONGEST or any(name in verify for name in _RUN_ASIDE):
        return None
    if _passes(verify, text):
        return None
    wanted = checkers.typed(verify)
    seen, level = {text}, [text]
    for _ in range(_DEPTH):
        level = list(itertools.islice(_changed(wanted, level, seen), _TRIED - len(seen)))
        if right := [candidate for candidate in level if _passes(verify, candidate)]:
            return min(right, key=lambda candidate: (_distance(text, candidate), candidate))
    return None


def _passes(verify: Mapping[str, Any], text: str) -> bool:
    return all(checkers.run(verify, text).values())


def _changed(wanted: Mapping[str, Any], level: Iterable[str], seen: set[str]) -> Iterator[str]:
    """Yield what one change makes of each text, every text once."""
    # All changes, not only those of checkers that fail: two words are within `max_words: 2` until a start
    # of one word is put before them.
    for text in level:
        for name, arguments in wanted.items():
            for candidate in _EDITS.get(name, _none)(text, arguments):
                if candidate.strip() and candidate not in seen:
                    seen.add(candidate)
                    yield candidate


def _distance(before: str, after: str) -> int:
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    kept = sum(block.size for block in matcher.get_matching_blocks())
    return len(before) + len(after) - 2 * kept


# --- one change for each checker of form --------------------------------------------------------


def _none(_: str, __: object) -> Iterable[str]:
    return ()


def _runs(parts: list[str], most: int) -> Iterator[str]:
    """Yield each run of neighbours, the longest first."""
    for size in range(min(most, len(parts)), 0, -1):
        for start in range(len(parts) - size + 1):
            yield " ".join(parts[start : start + size])


def _fewer_words(text: str, most: int) -> Iterable[str]:
    return _runs(text.split(), most)


def _fewer_chars(text: str, most: int) -> Iterable[str]:
    parts = text.split()
    return (" ".join(parts[:n]) for n in range(len(parts), 0, -1) if len(text) > most)


def _fewer_sentences(text: str, wanted: int | Bounds) -> Iterable[str]:
    most = wanted.max if isinstance(wanted, Bounds) else wanted
    return _runs(checkers.sentences(text), most or 0)


def _bulleted(text: str, _: object) -> Iterable[str]:
    lines = [line for line in text.splitlines() if checkers.words(line)]
    for parts in (lines, checkers.sentences(text), text.split(", ")):
        yield "\n".join(f"- {part.strip().lstrip('-*+ ')}" for part in parts)


def _without(text: str, unwanted: str | list[str]) -> Iterable[str]:
    listed = [unwanted] if isinstance(unwanted, str) else unwanted
    kept = [w for w in text.split() if not any(checkers.occurrences(w, part) for part in listed)]
    yield " ".join(kept)


def _without_chars(text: str, characters: str) -> Iterable[str]:
    yield "".join(char for char in text if char not in characters)


def _started(text: str, start: str) -> Iterable[str]:
    if not text.lstrip().startswith(start):
        yield start + text.lstrip()


def _ended(text: str, end: str) -> Iterable[str]:
    if not text.rstrip().endswith(end):
        yield text.rstrip() + end


def _quoted(text: str, _: object) -> Iterable[str]:
    yield f'"{_bare(text)}"'


def _bare(text: str) -> str:
    return text.strip().strip("\"'\u201c\u201d").rstrip(".")


def _one_word(text: str, _: object) -> Iterable[str]:
    return (part.strip(".,;:!?()[]*_\"'\u201c\u201d") for part in text.split())


def _one_sentence(text: str, _: object) -> Iterable[str]:
    for sentence in checkers.sentences(text):
        ended = sentence if sentence.rstrip(checkers.CLOSERS)[-1:] in ".!?" else f"{sentence}."
        yield ended[:1].upper() + ended[1:]


def _as_json(text: str, wanted: Json | Literal[True]) -> Iterable[str]:
    if isinstance(wanted, Json) and len(wanted.keys) == 1:
        yield json.dumps({wanted.keys[0]: _bare(text)}, ensure_ascii=False)
    elif not isinstance(wanted, Json):
        yield json.dumps(_bare(text), ensure_ascii=False)


def _only(text: str, wanted: str | Equal) -> Iterable[str]:
    """Yield the wanted text where the answer says it among other things."""
    exact = wanted if isinstance(wanted, str) else wanted.text
    return (exact,) if checkers.occurrences(text, exact) else ()


_EDITS: Mapping[str, Edit] = {
    "max_words": _fewer_words,
    "max_chars": _fewer_chars,
    "sentences": _fewer_sentences,
    "bullets": _bulleted,
    "exclude": _without,
    "forbid_chars": _without_chars,
    "uppercase": lambda text, _: (text.upper(),),
    "lowercase": lambda text, _: (text.lower(),),
    "starts_with": _started,
    "ends_with": _ended,
    "quoted": _quoted,
    "word": _one_word,
    "sentence": _one_sentence,
    "json": _as_json,
    "equals": _only,
}
