"""Checkers: small programs that say whether an answer has a form or a content.

A prompt's `verify` maps checkers to their arguments, and all of them must pass:
`{quoted: true, max_words: 1, include: blue}`. Answers are hostile input: every checker is one pass over
the text without regular expressions, so that none can be made to hang (`math` and `code` run aside, see
`maths` and `sandbox`).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ...errors import Problem
from .. import plugins
from . import code_cases, maths

VERSION = 1
"""Raised with every change that can change what a checker says."""

About = Literal["form", "content"]

ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "e.g", "i.e"})
"""Words whose dot ends no sentence."""
CLOSERS = "\"'\u201d\u2019)]"
"""What may follow the end mark of a sentence."""


class _Arguments(BaseModel):
    # Strict: "3" for a number is a mistake to be told, not to be mended.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Nothing(_Arguments):
    """No arguments: `{}`."""


class Bounds(_Arguments):
    """A range, both ends included."""

    min: int = Field(default=0, ge=0)
    max: int | None = Field(default=None, ge=0)

    def holds(self, count: int) -> bool:
        """Tell whether a count lies in the range."""
        return self.min <= count and (self.max is None or count <= self.max)


class Equal(_Arguments):
    """A text and what makes no difference."""

    text: str = Field(min_length=1)
    ignore: list[Literal["case", "final_dot", "quotes"]] = []


class Json(_Arguments):
    """An object with exactly these keys."""

    keys: list[str]


@dataclass(frozen=True, slots=True)
class Arguments:
    """The type of a checker's arguments, and how it is told to people."""

    type: Any
    told: str


_TEXT = Annotated[str, Field(min_length=1)]
_NATURAL = Annotated[int, Field(ge=0)]
_LIST = Annotated[list[_TEXT], Field(min_length=1)]

NUMBER = Arguments(_NATURAL, "a whole number")
COUNT = Arguments(_NATURAL | Bounds, "a whole number or {min: a, max: b}")
TEXT = Arguments(_TEXT, "a text")
TEXTS = Arguments(_TEXT | _LIST, "a text or a list of texts")
LIST = Arguments(_LIST, "a list of texts")
COUNTS = Arguments(dict[_TEXT, _NATURAL], "{text: a whole number}")
FLAG = Arguments(Literal[True] | Nothing, "true")
EQUAL = Arguments(
    _TEXT | Equal, "a text or {text: a text, ignore: some of [case, final_dot, quotes]}"
)
JSON = Arguments(Literal[True] | Json, "true or {keys: [names]}")
CODE = Arguments(code_cases.Code, code_cases.TOLD)


@dataclass(frozen=True, slots=True)
class Checker:
    """One row of the table: what it is about, what arguments it takes, and its test."""

    about: About
    arguments: Arguments
    passes: Callable[[str, Any], bool]


def check_spec(verify: object, where: str) -> list[Problem]:
    """Return every problem of a prompt's `verify`: unknown checkers and wrong arguments."""
    if not isinstance(verify, Mapping) or not verify:
        return [Problem(where, "is no mapping of checkers", "write {checker: arguments}")]
    problems: list[Problem] = []
    for name, arguments in verify.items():
        if not isinstance(name, str) or name not in CHECKERS:
            hint = plugins.did_you_mean(str(name), CHECKERS, "checkers are")
            problems.append(Problem(where, f"unknown checker {name!r}", hint))
            continue
        try:
            _adapter(name).validate_python(arguments)
        except ValidationError:
            what = f"{name} takes {CHECKERS[name].arguments.told}, not {arguments!r:.60}"
            problems.append(Problem(f"{where}.{name}", what))
    return problems


def run(verify: Mapping[str, Any], text: str) -> dict[str, bool]:
    """Return what each checker of a valid `verify` says of an answer.

    Raises:
        maths.MathTimeout, maths.MathError: a mathematical answer could not be compared.
        sandbox.SandboxError: a program could not be run.
    """
    text = unicodedata.normalize("NFC", text)
    return {name: CHECKERS[name].passes(text, wanted) for name, wanted in typed(verify).items()}


def typed(verify: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a valid `verify` as the types that its checkers take."""
    return {name: _adapter(name).validate_python(given) for name, given in verify.items()}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    kind = CHECKERS[name].arguments.type
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return TypeAdapter(kind)  # has its own configuration, and takes no other
    return TypeAdapter(kind, config=ConfigDict(strict=True))


# --- reading a text ---------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Return the words: what stands between spaces and holds a letter or a digit."""
    return [word for word in text.split() if any(char.isalnum() for char in word)]


def sentences(text: str) -> list[str]:
    """Return the sentences: they end at `.`, `!` or `?` before a space, or at the end of a line."""
    return [
        sentence
        for line in text.splitlines()
        for sentence in _sentences_of(line)
        if words(sentence)
    ]


def _sentences_of(line: str) -> Iterator[str]:
    current: list[str] = []
    for word in line.split():
        current.append(word)
        if _ends_sentence(word):
            yield " ".join(current)
            current = []
    if current:
        yield " ".join(current)


def _ends_sentence(word: str) -> bool:
    bare = word.rstrip(CLOSERS)
    if not bare or bare[-1] not in ".!?":
        return False
    stem = bare.rstrip(".").lstrip("\"'(\u201c")
    if bare[-1] != ".":
        return True
    initial = len(stem) == 1 and stem.isupper() and stem != "I"
    return not initial and stem.casefold() not in ABBREVIATIONS


def occurrences(text: str, wanted: str) -> int:
    """Count a wanted text as whole words, whatever the case and the width of spaces."""
    hay, needle = _folded(text), _folded(wanted)
    count = start = 0
    while needle and (found := hay.find(needle, start)) >= 0:
        end = found + len(needle)
        left = not (needle[0].isalnum() and hay[found - 1 : found].isalnum())
        right = not (needle[-1].isalnum() and hay[end : end + 1].isalnum())
        count += left and right
        start = end if left and right else found + 1
    return count


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


# --- the checkers -----------------------------------------------------------------------------


def _sentence_count(text: str, wanted: int | Bounds) -> bool:
    count = len(sentences(text))
    return wanted.holds(count) if isinstance(wanted, Bounds) else count == wanted


def _bullets(text: str, wanted: int | Bounds) -> bool:
    lines = (line.strip() for line in text.splitlines())
    count = sum(line[:2] in ("- ", "* ", "+ ", "\u2022 ") and bool(words(line)) for line in lines)
    return wanted.holds(count) if isinstance(wanted, Bounds) else count == wanted


def _include(text: str, wanted: str | list[str]) -> bool:
    return all(occurrences(text, part) for part in _listed(wanted))


def _any_of(text: str, accepted: list[str]) -> bool:
    return any(occurrences(text, part) for part in accepted)


def _include_count(text: str, wanted: dict[str, int]) -> bool:
    return all(occurrences(text, part) == count for part, count in wanted.items())


def _exclude(text: str, unwanted: str | list[str]) -> bool:
    return not any(occurrences(text, part) for part in _listed(unwanted))


def _forbid_chars(text: str, characters: str) -> bool:
    return not set(text) & set(characters)


def _uppercase(text: str, _: object) -> bool:
    return text.isupper()


def _lowercase(text: str, _: object) -> bool:
    return text.islower()


def _starts_with(text: str, start: str) -> bool:
    return text.lstrip().startswith(start)


def _ends_with(text: str, end: str) -> bool:
    return text.rstrip().endswith(end)


def _quoted(text: str, _: object) -> bool:
    """Pass one pair of double quotes around the whole answer; one final dot in or after it is free."""
    inner = text.strip().removesuffix(".")
    for opening, closing in (('"', '"'), ("\u201c", "\u201d")):
        if len(inner) > 2 and inner[0] == opening and inner[-1] == closing:
            return bool(words(inner)) and not set(inner[1:-1]) & set('"\u201c\u201d')
    return False


def _word(text: str, _: object) -> bool:
    """Pass one word of letters and digits, joined by hyphens or apostrophes; one final dot is free."""
    word = text.strip().removesuffix(".")
    inner = word.replace("-", "").replace("'", "").replace("\u2019", "")
    return bool(word) and inner.isalnum() and word[0].isalnum() and word[-1].isalnum()


def _sentence(text: str, _: object) -> bool:
    """Pass exactly one sentence: a capital letter, at least four words, an end mark."""
    text = text.strip()
    ended = text.rstrip(CLOSERS)[-1:] in (".", "!", "?")
    opened = text.lstrip("\"'(\u201c")[:1].isupper()
    return bool(text) and opened and ended and len(words(text)) >= 4 and len(sentences(text)) == 1


def _equals(text: str, wanted: str | Equal) -> bool:
    if isinstance(wanted, str):
        return text.strip() == unicodedata.normalize("NFC", wanted).strip()
    return _reduced(text, wanted.ignore) == _reduced(wanted.text, wanted.ignore)


def _reduced(text: str, ignore: Sequence[str]) -> str:
    text = unicodedata.normalize("NFC", text).strip()
    for _ in range(2):  # the dot may stand inside the quotes or after them
        if "final_dot" in ignore:
            text = text.removesuffix(".")
        if "quotes" in ignore and text[:1] in ('"', "'", "\u201c") and len(text) > 1:
            text = text[1:-1] if text[-1] in "\"'\u201d" else text
    return text.casefold() if "case" in ignore else text


def _json(text: str, wanted: Json | Literal[True]) -> bool:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    if isinstance(wanted, Json):
        return isinstance(value, dict) and set(value) == set(wanted.keys)
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _math(text: str, gold: str) -> bool:
    return maths.equal(gold, text)


CHECKERS: Mapping[str, Checker] = {
    "min_words": Checker("form", NUMBER, lambda text, n: len(words(text)) >= n),
    "max_words": Checker("form", NUMBER, lambda text, n: len(words(text)) <= n),
    "min_chars": Checker("form", NUMBER, lambda text, n: len(text.strip()) >= n),
    "max_chars": Checker("form", NUMBER, lambda text, n: len(text.strip()) <= n),
    "sentences": Checker("form", COUNT, _sentence_count),
    "bullets": Checker("form", COUNT, _bullets),
    "include": Checker("content", TEXTS, _include),
    "any_of": Checker("content", LIST, _any_of),
    "include_count": Checker("form", COUNTS, _include_count),
    "exclude": Checker("form", TEXTS, _exclude),
    "forbid_chars": Checker("form", TEXT, _forbid_chars),
    "uppercase": Checker("form", FLAG, _uppercase),
    "lowercase": Checker("form", FLAG, _lowercase),
    "starts_with": Checker("form", TEXT, _starts_with),
    "ends_with": Checker("form", TEXT, _ends_with),
    "quoted": Checker("form", FLAG, _quoted),
    "word": Checker("form", FLAG, _word),
    "sentence": Checker("form", FLAG, _sentence),
    "json": Checker("form", JSON, _json),
    "equals": Checker("content", EQUAL, _equals),
    "math": Checker("content", TEXT, _math),
    "code": Checker("content", CODE, code_cases.passes),
}
