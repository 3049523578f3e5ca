"""Views of what was answered and what judges thought of it."""

from __future__ import annotations

from collections.abc import Sequence

from ..table import quote
from ..view import View, identifier

ANSWERS_ABOUT = (
    "One row an answer: what was asked, what came, what each judge thought, what it was used for"
)

ANSWERS: dict[str, str] = {
    "run": "Name of the run",
    "round": "From 1; 0 is the baseline before the first round",
    "step": "Step that asked; `baseline`, `test_initial` and `test_champion` are outside the rounds",
    "split": "train, heldout or test",
    "prompt": "Last turn of what was asked",
    "answer": "What came, without its end token",
    "revision": "Content hash of the weights that spoke; NULL where they are none of ours",
    "is_champion": "Whether these weights are the champion as the store stands",
    "used_as": "chosen, rejected or unused in the pairs and selections that trained",
    "tokens": "Tokens of the answer, end token included",
    "seconds": "Its share of the wall time of its chunk",
    "finish_reason": "stop, or length where the answer was cut",
    "role": "Role that spoke",
    "model": "Name of the model, where it is none of ours",
    "source": "Where the answer comes from, if it was imported",
    "slot": "Which of the k answers to the prompt, from 0",
    "tags": "key:value labels of the prompt",
    "thinking": "What was thought before the answer",
    "prompt_id": "prompt.id",
    "id": "completion.id",
    "short_id": "First 8 characters of the id",
}
"""Columns of `answers` in their order; one column a judge stands after `is_champion`."""

JUDGE_COLUMN = (
    "One column a judge, by its name: its newest value in [0, 1], NULL where it has none. Judges of the "
    "recipe come first, then the others that have scored, by name; a name that is taken gets `_judge`"
)
_BEFORE_JUDGES = "is_champion"

SCORES = View(
    "scores",
    "One row an answer and judge: the judge's newest value. The judges' columns of `answers`, below each other",
    {
        "round": "Round of the answer",
        "step": "Step that asked",
        "split": "train, heldout or test",
        "judge": "Name of the judge",
        "value": "In [0, 1]; a judge that failed has no row",
        "passed": "Whether the value is at least 0.5",
        "judge_revision": "Hash of the judge's kind, settings and version",
        "revision": "Content hash of the weights that spoke, or the name of a model that is none of ours",
        "slot": "Which of the k answers to the prompt, from 0",
        "prompt_id": "prompt.id",
        "completion_id": "completion.id",
        "short_id": "First 8 characters of completion_id",
    },
)


def answers(judges: Sequence[str]) -> View:
    """Return the view `answers` with one column a judge, in their order."""
    named = judge_columns(judges)
    # Of two revisions of a judge the later one counts, and of its attempts the last.
    values = "".join(
        ",\n        arg_max(value, epoch_us(created_at) * 1024 + attempt) "
        f"FILTER (judge = {quote(judge)}) AS {identifier(column)}"
        for column, judge in named.items()
    )
    shown = "".join(f",\n    verdict.{identifier(column)}" for column in named)
    columns: dict[str, str] = {}
    for column, about in ANSWERS.items():
        columns[column] = about
        if column == _BEFORE_JUDGES:
            columns |= {c: f"Newest value of the judge {j}, in [0, 1]" for c, j in named.items()}
    return View("answers", ANSWERS_ABOUT, columns, {"judge_values": values, "judge_columns": shown})


def judge_columns(judges: Sequence[str]) -> dict[str, str]:
    """Return the column of each judge: its name, or with `_judge` where SQL would take it for another.

    A recipe may not name a judge like a column; one from elsewhere may be called anything.
    """
    taken = {name.casefold() for name in ANSWERS}
    named: dict[str, str] = {}
    for judge in dict.fromkeys(judges):
        column = judge
        while column.casefold() in taken:
            column += "_judge"
        taken.add(column.casefold())
        named[column] = judge
    return named
