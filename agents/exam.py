"""The noun *exam*: pairs of answers of which a person, or a program, has said which one is better.

An exam file is JSONL (or JSONL.gz), one pair a line: `{id?, input | prompt, output_1, output_2, label,
verify?}`, where `label` is 1 or 2. Each file is a slice; `--slice NAME=FILE1,FILE2` names several files
together. The starter exam ships: its pairs were made, and its labels proven, by a program.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ..errors import BadInput, Problem
from ..hashing import content_hash
from ..types import Completion, Message, Prompt
from .judge import JudgeTask
from .judges.checkers import check_spec

Side = Literal[1, 2]
WHOLE = "all"
"""Name of what all slices are together."""
_MOST_PROBLEMS = 20
"""Problems of a file that are told at once."""


@dataclass(frozen=True, slots=True)
class ExamItem:
    """One labelled pair."""

    id: str
    text: str
    """What was asked."""
    answers: tuple[str, str]
    label: Side
    """The better answer."""
    verify: Mapping[str, Any] | None = None
    """What the better answer passes and the worse one fails, where a program has proven it."""

    def task(self, first: Side) -> JudgeTask:
        """Return the comparison in which the answer `first` is shown first."""
        sides: tuple[Side, Side] = (1, 2) if first == 1 else (2, 1)
        shown = [self._completion(side) for side in sides]
        prompt = Prompt(self.id, (Message("user", self.text),), "heldout", self.verify)
        return JudgeTask(prompt, shown[0], (shown[1],))

    def _completion(self, side: Side) -> Completion:
        text = self.answers[side - 1]
        return Completion(f"{self.id}/{side}", self.id, text, (), (), "stop", "")

    @property
    def key(self) -> str:
        """Content hash of question and answers, in whatever order and under whatever id."""
        return content_hash([self.text, *sorted(self.answers)])

    @property
    def longer(self) -> Side | None:
        """The answer with more characters; None where both have as many."""
        first, second = map(len, self.answers)
        return None if first == second else 1 if first > second else 2


@dataclass(frozen=True, slots=True)
class Exam:
    """Labelled pairs by slice; an item may be in several slices, and counts once in the whole."""

    slices: Mapping[str, tuple[ExamItem, ...]]

    @property
    def items(self) -> tuple[ExamItem, ...]:
        """Every item once, in the order of the slices."""
        every = {item.id: item for items in self.slices.values() for item in items}
        return tuple(every.values())

    @property
    def hash(self) -> str:
        """Content hash of slices, texts and labels."""
        return content_hash(
            {
                name: [[i.id, i.text, list(i.answers), i.label] for i in items]
                for name, items in self.slices.items()
            }
        )


def load_exam(files: Sequence[Path], slices: Mapping[str, Sequence[Path]]) -> Exam:
    """Read an exam: a slice for each file, and those that join several.

    A slice joins files, or names of files that are read already: `adversarial=gptinst,neighbor`.

    Raises:
        BadInput: a file is missing, a line is no labelled pair, or two files or pairs have one name.
    """
    named: dict[str, Path] = {}
    for file in files:
        name = file.name.partition(".")[0]
        if name == WHOLE:
            raise BadInput.at("--pairs", f"the name {name} is taken", "rename the file")
        if name in named:
            raise BadInput.at("--pairs", f"two files are called {name}", "rename one of them")
        named[name] = file
    joined: dict[str, list[Path]] = {name: [file] for name, file in named.items()}
    for name, group in slices.items():
        if name == WHOLE:
            raise BadInput.at("--slice", f"the name {name} is taken", "choose another")
        if name in named:
            told = f"{name} is a file of --pairs too"
            raise BadInput.at("--slice", told, "name one of them anew")
        joined[name] = list(dict.fromkeys(named.get(str(file), file) for file in group))
    read = {file: _items(file) for group in joined.values() for file in group}
    _refuse_doubles(read)
    return Exam({name: tuple(i for f in group for i in read[f]) for name, group in joined.items()})


def _refuse_doubles(read: Mapping[Path, Sequence[ExamItem]]) -> None:
    """Refuse two pairs of one id: their votes could not be told apart."""
    places: dict[str, Path] = {}
    problems = []
    for file, items in read.items():
        for item in items:
            if item.id in places:
                told = f"the pair {item.id!r} stands in {places[item.id].name} already"
                problems.append(Problem(file.name, told, "give each pair an id of its own"))
            places.setdefault(item.id, file)
    if problems:
        raise BadInput(*problems[:_MOST_PROBLEMS])


def starter_exam() -> Exam:
    """Return the exam that ships: the slices `easy` and `adversarial`."""
    file = Path(str(resources.files("redistill.agents.exams") / "starter.jsonl"))
    slices: dict[str, list[ExamItem]] = {}
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        answers = (row["output_1"], row["output_2"])
        item = ExamItem(row["id"], row["input"], answers, row["label"], row["verify"])
        slices.setdefault(row["slice"], []).append(item)
    return Exam({name: tuple(items) for name, items in slices.items()})


def _items(file: Path) -> list[ExamItem]:
    items: list[ExamItem] = []
    problems: list[Problem] = []
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        found = _item(line, f"{file.name}:{number}")
        if isinstance(found, Problem):
            problems.append(found)
        else:
            items.append(found)
    if problems:
        raise BadInput(*problems[:_MOST_PROBLEMS])
    if not items:
        raise BadInput.at(str(file), "holds no pair")
    return items


def _lines(file: Path) -> Iterator[str]:
    try:
        if file.suffix == ".gz":
            with gzip.open(file, "rt", encoding="utf-8") as stream:
                yield from stream
        else:
            with file.open(encoding="utf-8") as stream:
                yield from stream
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise BadInput.at(str(file), f"cannot be read: {error}") from error


def _item(line: str, where: str) -> ExamItem | Problem:
    shape = "a pair is {input, output_1, output_2, label: 1 or 2}"
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        return Problem(where, f"is no JSON: {error.msg}", shape)
    if not isinstance(row, dict):
        return Problem(where, "is no JSON object", shape)
    asked = row.get("input", row.get("prompt"))
    answers = (row.get("output_1"), row.get("output_2"))
    if not isinstance(asked, str) or not all(isinstance(a, str) for a in answers):
        return Problem(where, "lacks a text: input, output_1 or output_2", shape)
    if row.get("label") not in (1, 2) or isinstance(row["label"], bool):
        return Problem(where, f"label is {row.get('label')!r}", shape)
    identifier = row.get("id") or content_hash([asked, *answers])
    verify = row.get("verify")
    if problems := check_spec(verify, f"{where} verify") if verify is not None else []:
        return problems[0]
    return ExamItem(
        str(identifier), asked, (str(answers[0]), str(answers[1])), row["label"], verify
    )
