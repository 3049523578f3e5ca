"""The noun *header*: the comment lines with which a recipe that ships says what it is.

    # <one sentence: what the loop does>
    #
    # skill: ...
    #   <more of it>
    # ...

The fields are the columns by which a survey of the field describes a system (arXiv 2402.13116, table 3), then the
papers, what this version leaves out of them, and the leaves of the survey's taxonomy that the steps stand for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BadInput, Problem

FIELDS = (
    "skill",
    "seed knowledge",
    "teacher",
    "student",
    "elicitation",
    "objective",
    "paper",
    "leaves out",
    "covers",
)
SIX = FIELDS[:6]
"""The survey's own columns."""
ELICITATIONS = ("Labeling", "Expansion", "Curation", "Feature", "Feedback", "Self-Knowledge")
OBJECTIVES = ("SFT", "Divergence", "RL", "Rank")
_FIELD = re.compile(rf"# ({'|'.join(FIELDS)}):(?: (.*))?")
_NUMBER = r"\d{4}\.\d{4,5}"
_PAPER = re.compile(rf"((?:(?!{_NUMBER}).)+?) \((?:([^()]+), )?arXiv ({_NUMBER})\)\s*")


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper whose loop a recipe is."""

    title: str
    arxiv: str
    """Its number: `2402.13116`."""
    note: str = ""
    """The system's short name, or which part of the paper is meant."""

    def __str__(self) -> str:
        note = f"{self.note}, " if self.note else ""
        return f"{self.title} ({note}arXiv {self.arxiv})"


@dataclass(frozen=True, slots=True)
class Header:
    """What a recipe says of itself."""

    sentence: str
    skill: str
    seed_knowledge: str
    teacher: str
    student: str
    elicitation: tuple[str, ...]
    """How knowledge is had of the teacher: of `ELICITATIONS`."""
    objective: tuple[str, ...]
    """What training minimises: of `OBJECTIVES`."""
    papers: tuple[Paper, ...]
    """None for a preset, which stands for many."""
    leaves_out: str
    covers: tuple[str, ...]
    """Leaves of the taxonomy, as `report/taxonomy.py` names them."""

    def six(self) -> dict[str, str]:
        """Return the survey's six columns by their names."""
        told = (self.skill, self.seed_knowledge, self.teacher, self.student)
        joined = (" + ".join(self.elicitation), " + ".join(self.objective))
        return dict(zip(SIX, (*told, *joined), strict=True))


def header_of(text: str, name: str) -> Header | None:
    """Return the header of a recipe's text; None where its comments hold none of the fields.

    Args:
        text: the recipe as it is written.
        name: what to call it in messages.

    Raises:
        BadInput: the header is begun, and not as the module says.
    """
    comments = _comments(text)
    if not any(_FIELD.fullmatch(line) for line in comments):
        return None
    sentence, found, problems = _read(comments, name)
    if [*found] != [*FIELDS]:
        missing = [key for key in FIELDS if key not in found]
        what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(found)}"
        problems.append(Problem(name, f"its header {what}", f"in this order: {', '.join(FIELDS)}"))
    if not sentence:
        problems.append(Problem(f"{name}:1", "its header says in no sentence what the loop does"))
    if problems:
        raise BadInput(*problems)
    return _built(sentence, found, name)


def _comments(text: str) -> list[str]:
    """Return the comment lines that a text begins with."""
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.rstrip() for line in lines[:end]]


def _read(comments: Sequence[str], name: str) -> tuple[str, dict[str, str], list[Problem]]:
    """Return the sentence and the fields; they end at the next empty comment line."""
    begin = next((i for i, line in enumerate(comments) if line == "#"), len(comments))
    sentence = " ".join(line.removeprefix("# ").strip() for line in comments[:begin])
    found: dict[str, str] = {}
    problems: list[Problem] = []
    key = ""
    for number, line in enumerate(comments[begin + 1 :], start=begin + 2):
        if line == "#":
            break
        where = f"{name}:{number}"
        if field := _FIELD.fullmatch(line):
            key = field[1]
            if key in found:
                problems.append(Problem(where, f"{key} is given twice"))
            found[key] = field[2] or ""
        elif line.startswith("#   ") and key:
            found[key] = f"{found[key]} {line.removeprefix('#   ').strip()}".strip()
        else:
            hint = f"a field, or two more spaces to go on with one; fields are {', '.join(FIELDS)}"
            problems.append(Problem(where, f"{line!r} is no line of a header", hint))
    empty = [key for key, told in found.items() if not told]
    problems += [Problem(name, f"its header says nothing of {key}") for key in empty]
    return sentence, found, problems


def _built(sentence: str, found: dict[str, str], name: str) -> Header:
    elicitation = _words(found["elicitation"], " + ", ELICITATIONS, f"{name} elicitation")
    objective = _words(found["objective"], " + ", OBJECTIVES, f"{name} objective")
    return Header(
        sentence=sentence,
        skill=found["skill"],
        seed_knowledge=found["seed knowledge"],
        teacher=found["teacher"],
        student=found["student"],
        elicitation=elicitation,
        objective=objective,
        papers=_papers(found["paper"], f"{name} paper"),
        leaves_out=found["leaves out"],
        covers=tuple(word.strip() for word in found["covers"].split(",")),
    )


def _words(told: str, by: str, known: Sequence[str], where: str) -> tuple[str, ...]:
    words = tuple(told.split(by))
    if strange := [word for word in words if word not in known]:
        raise BadInput.at(where, f"{strange[0]!r} is none", f"of: {', '.join(known)}")
    return words


def _papers(told: str, where: str) -> tuple[Paper, ...]:
    if told == "-":
        return ()
    if _PAPER.sub("", told):
        raise BadInput.at(where, f"{told!r} is no paper", "as `Title (arXiv 2402.13116)`, or `-`")
    return tuple(Paper(title, number, note) for title, note, number in _PAPER.findall(told))
