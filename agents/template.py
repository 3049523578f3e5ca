"""The noun *template*: text with fixed slots, such as a rubric or a request to rewrite.

Slots are `{name}` and are filled in one pass, so that what a model wrote is never read as a slot. It is no
template language: a rubric from somewhere else can run nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ..errors import BadInput, Problem
from ..hashing import content_hash
from .plugins import did_you_mean

_SLOT = re.compile(r"\{([a-z_]+)\}")
_LARGEST = 100_000
"""Characters of a template; more is some other file."""


@dataclass(frozen=True, slots=True)
class Template:
    """A text and what is wrong with it."""

    text: str
    problems: list[Problem]

    @property
    def hash(self) -> str:
        """Content hash of the text."""
        return content_hash(self.text)


def shipped() -> list[str]:
    """Return the names of the templates that ship."""
    folder = resources.files("redistill.agents") / "templates"
    return sorted(f.name.removesuffix(".txt") for f in folder.iterdir() if f.name.endswith(".txt"))


def template(name: str, slots: Sequence[str], where: str) -> Template:
    """Return a template that ships, or that of a file, with what is wrong with it.

    Args:
        name: a shipped name, or the path of a text file.
        slots: slots that must be there.
        where: the key's path, for messages.
    """
    if name in shipped():
        text = (resources.files("redistill.agents") / "templates" / f"{name}.txt").read_text(
            "utf-8"
        )
        return Template(text, _slotless(name, text, slots, where))
    path = Path(name)
    if not path.is_file():
        hint = did_you_mean(name, shipped(), "give a file, or one that ships:")
        return Template("", [Problem(where, f"no template {name!r}", hint)])
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Template("", [Problem(where, f"{name} cannot be read: {error}")])
    problems = _slotless(name, text, slots, where)
    if len(text) > _LARGEST or not text.strip():
        problems.append(Problem(where, f"{name} has {len(text)} characters, no template has"))
    return Template(text, problems)


def _slotless(name: str, text: str, slots: Sequence[str], where: str) -> list[Problem]:
    return [
        Problem(where, f"{name} has no slot {{{slot}}}")
        for slot in slots
        if f"{{{slot}}}" not in text
    ]


def fill(text: str, **values: str) -> str:
    """Put values into their slots; a slot without a value stays as it is."""
    return _SLOT.sub(lambda slot: values.get(slot[1], slot[0]), text)


def sound(found: Template) -> str:
    """Return the text of a template that nothing is wrong with.

    Raises:
        BadInput: something is.
    """
    if found.problems:
        raise BadInput(*found.problems)
    return found.text
