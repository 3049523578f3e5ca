"""The chat: a person types, two revisions answer side by side, and what is said of it is kept."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..agents.chatting import Chat, Said, Shown, Side
from ..agents.held_revision import Named, find_revision, speaking
from ..agents.opening import only_one
from ..agents.reviewing import LEFT, RIGHT, SKIP, TIE
from ..errors import BadInput
from ..policies.policy import Sampling
from ..store.identify import short
from ..store.store import Store
from ..store.text import storable
from .reviewing import QUIT, shown

Hear = Callable[[str], str | None]
"""Ask for a line and return it; None where nobody types any more."""
Improve = Callable[[str], str | None]
"""Let the person change a text; None where nobody does."""
LONG, END = "/long", "."
"""What begins and ends a prompt of several lines."""
_WIDE = 72
"""Columns of a terminal in which two answers stand beside each other."""
_KEYS = "1 or 2 is better, t tie, e1 or e2 improve that one, s nothing, q quit> "
_KEYS_SAME = "both say the same: e1 improve it, s nothing, q quit> "


@dataclass(frozen=True, slots=True)
class Talk:
    """Who talks, and how."""

    beside: str
    """The revision that is compared with."""
    revision: str
    sampling: Sampling
    author: str
    blind: bool = True
    longest: bool = True
    """Whether the answers' length was asked for; else a short context halves it."""


def talk(run: Path, wanted: Talk, console: Console, hear: Hear, improve: Improve) -> dict[str, Any]:
    """Talk until the person goes, and return the counts.

    Args:
        run: the run's folder.
        wanted: who answers.
        console: where it is shown.
        hear: what the person types.
        improve: how the person changes an answer.

    Raises:
        BadInput: there is no such run or revision, or both are one.
        Busy: the run is being run, reviewed, or talked with by somebody else.
    """
    pair = _pair(run, wanted)
    with only_one(run):
        console.print(f"loading {pair[0].line} and {pair[1].line}", style="dim", highlight=False)
        sides = (Side(pair[0], speaking(pair[0])), Side(pair[1], speaking(pair[1])))
        store = Store(run)
        try:
            chat = Chat(store, sides, _fitting(wanted, sides), wanted.author, wanted.blind)
            counts = _Session(chat, console, hear, improve).go()
        finally:
            store.close()
    told = {
        name: counts[name] for name in ("asked", "preferred", "tied", "edited", "skipped", "barred")
    }
    return {"run": run.name, **told}


def _fitting(wanted: Talk, sides: tuple[Side, Side]) -> Sampling:
    """Return how to sample, so that a prompt of usual length leaves room for an answer."""
    half = min(side.policy.context_length for side in sides) // 2
    if wanted.longest or wanted.sampling.max_tokens <= half:
        return wanted.sampling
    return replace(wanted.sampling, max_tokens=half)


def _pair(run: Path, wanted: Talk) -> tuple[Named, Named]:
    first, second = find_revision(run, wanted.beside), find_revision(run, wanted.revision)
    if first.revision.id == second.revision.id:
        what = f"{first.called} and {second.called} of {run.name} are one revision, {short(first.revision.id)}"
        raise BadInput.at("--revision", what, "no round was promoted yet, or name another one")
    return first, second


@dataclass(slots=True)
class _Session:
    chat: Chat
    console: Console
    hear: Hear
    improve: Improve

    def go(self) -> Counter[str]:
        """Ask, answer, judge; until the person goes."""
        counts: Counter[str] = Counter()
        self._say(
            f"a line is a prompt; {LONG} begins one of several lines, {END} alone ends it; q quits"
        )
        while (text := self._prompt()) is not None:
            try:
                answers = self.chat.ask(storable(text))
            except BadInput as error:
                self._say(str(error))
                continue
            counts["asked"] += 1
            self._show(answers)
            fate = self._judge(answers)
            if fate is None:
                break
            counts[fate] += 1
            self._reveal(answers)
        return counts

    def _prompt(self) -> str | None:
        """Return the next prompt; None where the person goes."""
        while (line := self.hear("you> ")) is not None:
            text = line.strip()
            if text == QUIT:
                return None
            if text == LONG:
                text = lines_until_end(self.hear).strip()
            if text:
                return text
        return None

    def _judge(self, answers: Shown) -> str | None:
        """Ask until something can be kept, or the person wants nothing kept; return what became of it."""
        if answers.barred:
            self._say(f"nothing is kept: {answers.barred}")
            return "barred"
        began = time.monotonic()
        while (key := self.hear(_KEYS_SAME if answers.same else _KEYS)) is not None:
            key, seconds = key.strip().lower(), round(time.monotonic() - began, 3)
            if key == QUIT:
                return None
            if key == SKIP:
                return "skipped"
            if key in (LEFT, RIGHT, TIE) and not answers.same:
                self.chat.prefer(answers, key, seconds)
                return "tied" if key == TIE else "preferred"
            if key in ("e1", "e2") and self._improved(answers, int(key[1]) - 1, began):
                return "edited"
        return None

    def _improved(self, answers: Shown, place: int, began: float) -> bool:
        """Let the person write a better answer; whether it was kept."""
        before = answers.answers[place].generation.text
        after = storable((self.improve(before) or "").strip())
        if not after or after == before.strip():
            self._say("nothing was changed")
            return False
        seconds = round(time.monotonic() - began, 3)
        if reason := self.chat.improve(answers, place, after, seconds):
            self._say(f"not kept: {reason}")
            return False
        return True

    # -- showing

    def _show(self, answers: Shown) -> None:
        heads = [self._head(place, said) for place, said in enumerate(answers.answers, start=1)]
        texts = [self._text(said) for said in answers.answers]
        if self.console.width >= _WIDE:
            table = Table(expand=True)
            for head in heads:
                table.add_column(head, ratio=1)
            table.add_row(*texts)
            self.console.print(table)
            return
        for head, text in zip(heads, texts, strict=True):
            self.console.print(Text(f"--- {head}", style="bold"))
            self.console.print(text)

    def _head(self, place: int, said: Said) -> str:
        return str(place) if self.chat.blind else f"{place} {_called(said.side.named)}"

    @staticmethod
    def _text(said: Said) -> Text:
        text = shown(said.generation.text)
        if not said.ended:
            text.append(f" [cut at {len(said.generation.token_ids)} tokens]", style="dim")
        return text

    def _reveal(self, answers: Shown) -> None:
        if self.chat.blind:
            who = (
                f"{n} was {_called(s.side.named)}" for n, s in enumerate(answers.answers, start=1)
            )
            self._say(", ".join(who))

    def _say(self, text: str) -> None:
        self.console.print(shown(text), style="dim", highlight=False, soft_wrap=True)


def _called(named: Named) -> str:
    name = short(named.revision.id)
    return (
        name if named.called == named.revision.id[: len(named.called)] else f"{named.called} {name}"
    )


def lines_until_end(hear: Hear) -> str:
    """Return the lines up to one that is `.` alone, or to the end."""
    lines: list[str] = []
    while (line := hear("... ")) is not None and line.rstrip("\r\n") != END:
        lines.append(line.rstrip("\r\n"))
    return "\n".join(lines)


def in_editor(editor: str, text: str) -> str | None:
    """Let the person change a text in an editor; None where it could not be started or failed."""
    with tempfile.TemporaryDirectory(prefix="redistill-") as place:
        file = Path(place) / "answer.md"
        file.write_text(text, "utf-8")
        try:
            done = subprocess.run([*shlex.split(editor), str(file)], check=False)
        except (OSError, ValueError):
            return None
        return file.read_text("utf-8", "replace") if done.returncode == 0 else None
