"""The review: shows people one thing after the other, blind, and writes what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from ..agents.opening import only_one
from ..agents.reviewing import (
    LEFT,
    RIGHT,
    SKIP,
    TIE,
    Anchor,
    Item,
    Labels,
    Verdicts,
    unlabelled,
    waiting,
    write_exam,
)
from ..errors import BadInput
from ..store.query import snapshot
from ..store.store import Store
from .console import clean

Keys = Callable[[bool], str | None]
"""Return what the person has typed next, None at the end; the argument is whether one key is enough."""
UNDO, QUIT = "u", "q"


class Desk(Protocol):
    """What is judged in a session, one thing after the other."""

    def __len__(self) -> int:
        """Return how many there are."""

    def show(self, console: Console, place: int) -> None:
        """Show one of them."""

    def keys(self, place: int) -> str:
        """Return what can be typed, for people."""

    def one_key(self, place: int) -> bool:
        """Whether one key says everything."""

    def fits(self, place: int, key: str) -> bool:
        """Whether a key says something of it."""

    def give(self, place: int, key: str, seconds: float) -> None:
        """Keep what was said of it."""

    def take_back(self, place: int) -> None:
        """Take back what was said of it."""

    def finished(self, given: Sequence[str]) -> bool:
        """Whether enough was said."""


def review_steps(folder: Path, author: str, console: Console, keys: Keys) -> dict[str, Any]:
    """Let a person give the verdicts that a run waits for, and return the counts.

    Raises:
        BadInput: there is no such run, or nothing waits.
        Busy: the run is being run, or reviewed by somebody else.
    """
    snapshot(folder)  # names the runs that are there, where this one is not
    with only_one(folder):
        store = Store(folder)
        try:
            items = waiting(store)
            given = _session(_Steps(items, Verdicts(store, author)), console, keys)
        finally:
            store.close()
    return _counts(folder, given) | {"left": len(items) - len(given)}


def review_anchors(
    folder: Path, author: str, count: int, out: Path, console: Console, keys: Keys
) -> dict[str, Any]:
    """Let a person label pairs of the run's own answers into an exam file, and return the counts.

    Args:
        folder: the run's.
        author: who labels.
        count: pairs with a winner that the exam shall have; those of earlier sessions count.
        out: the exam file.
        console: where it is shown.
        keys: what the person types.

    Raises:
        BadInput: there is no such run, no two answers differ, or the file cannot be written.
        Busy: the run is being run, or reviewed by somebody else.
    """
    snapshot(folder)
    with only_one(folder):
        store = Store(folder)
        try:
            labels = Labels(store, author)
            wanted = count - write_exam(labels, out)
            found = list(unlabelled(store, labels)) if wanted > 0 else []
            if wanted > 0 and not found and not labels.said():
                what = "has no train prompt with two different finished answers"
                raise BadInput.at("", f"{folder.name} {what}", "another round samples more")
            given = _session(_Pairs(found, labels, wanted, out), console, keys)
            labelled = write_exam(labels, out)
        finally:
            store.close()
    left = max(0, count - labelled)
    return _counts(folder, given) | {"left": left, "labelled": labelled, "file": str(out)}


def _session(desk: Desk, console: Console, keys: Keys) -> list[str]:
    """Show, ask, keep; until all is said, or the person goes."""
    given: list[str] = []
    while len(given) < len(desk) and not desk.finished(given):
        place = len(given)
        desk.show(console, place)
        began = time.monotonic()
        key = _ask(desk, place, console, keys)
        if key in (None, QUIT):
            break
        if key == UNDO:
            if given:
                given.pop()
                desk.take_back(len(given))
            continue
        desk.give(place, str(key), round(time.monotonic() - began, 3))
        given.append(str(key))
    return given


def _ask(desk: Desk, place: int, console: Console, keys: Keys) -> str | None:
    """Ask until the person types something that can be typed."""
    told = desk.keys(place)
    while True:
        console.print(told, style="dim", highlight=False, markup=False)
        key = keys(desk.one_key(place))
        key = key if key is None else key.strip().lower()
        if key is None or key in (UNDO, QUIT) or desk.fits(place, key):
            return key


def _counts(folder: Path, given: Sequence[str]) -> dict[str, Any]:
    ties, skipped = given.count(TIE), given.count(SKIP)
    return {"run": folder.name, "answered": len(given) - skipped, "ties": ties, "skipped": skipped}


def _show_texts(
    console: Console, head: str, question: str, asked: str, texts: Sequence[str]
) -> None:
    console.rule(head)
    if question:
        console.print(shown(question), style="bold")
    console.print(shown(asked))
    for number, text in enumerate(texts, start=1):
        console.print(Text(f"\n--- {number}" if len(texts) > 1 else "\n---", style="bold"))
        console.print(shown(text))
    console.print()


def shown(text: str) -> Text:
    """Return a text as it is safe to print: its lines stay, what would be obeyed is spelt out."""
    return Text("\n".join(clean(line) for line in text.split("\n")))


@dataclass(slots=True)
class _Steps:
    """What a run waits for."""

    items: list[Item]
    verdicts: Verdicts

    def __len__(self) -> int:
        return len(self.items)

    def show(self, console: Console, place: int) -> None:
        item = self.items[place]
        texts = [completion.text for completion in item.task.candidates]
        asked = "\n\n".join(message.content for message in item.task.prompt.messages)
        _show_texts(console, f"{place + 1} of {len(self)}", item.question, asked, texts)

    def keys(self, place: int) -> str:
        item = self.items[place]
        if item.scale:
            return f"1 worst to {item.scale} best, s skip, u undo, q quit"
        if len(item.task.candidates) == 2:
            return "1 or 2 is better, t tie, s skip, u undo, q quit"
        return (
            "the best one's number, or all with the best first (231); t tie, s skip, u undo, q quit"
        )

    def one_key(self, place: int) -> bool:
        return len(self.items[place].task.candidates) <= 2

    def fits(self, place: int, key: str) -> bool:
        return self.items[place].verdict(key) is not None

    def give(self, place: int, key: str, seconds: float) -> None:
        self.verdicts.give(self.items[place], key, seconds)

    def take_back(self, place: int) -> None:
        self.verdicts.take_back(self.items[place])

    def finished(self, given: Sequence[str]) -> bool:
        return len(given) == len(self)


@dataclass(slots=True)
class _Pairs:
    """Pairs for an exam."""

    pairs: list[Anchor]
    labels: Labels
    wanted: int
    out: Path

    def __len__(self) -> int:
        return len(self.pairs)

    def show(self, console: Console, place: int) -> None:
        pair = self.pairs[place]
        _show_texts(console, f"pair {place + 1}", "", pair.asked, pair.texts)

    def keys(self, place: int) -> str:  # noqa: ARG002 - all are alike
        return "1 or 2 is better, t tie, s skip, u undo, q quit"

    def one_key(self, place: int) -> bool:  # noqa: ARG002 - all are alike
        return True

    def fits(self, place: int, key: str) -> bool:  # noqa: ARG002 - all are alike
        return key in (LEFT, RIGHT, TIE, SKIP)

    def give(self, place: int, key: str, seconds: float) -> None:
        self.labels.give(self.pairs[place], key, seconds)
        write_exam(self.labels, self.out)

    def take_back(self, place: int) -> None:
        self.labels.give(self.pairs[place], None, 0.0)
        write_exam(self.labels, self.out)

    def finished(self, given: Sequence[str]) -> bool:
        return sum(key in (LEFT, RIGHT) for key in given) >= self.wanted
