"""Lessons of a judge: what it would be asked about answers of a run, and the replies that say what was judged.

They are what a generative judge is trained on: the question exactly as the judge asks it, rendered with the
student's chat template, and the verdict that somebody has given. Only judgements that are ok, of train prompts,
become lessons; texts that were forgotten are gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..policies.policy import Policy
from ..store.facts import prompt_of
from ..store.query import read_rows
from ..store.store import Row
from ..types import Completion, Judgement
from .inputs import located
from .judge import Judge, JudgeTask, load
from .judges.speaking import Lesson, Speaking
from .opening import RECIPE
from .operators.feedback import Judging
from .recipe import load_recipe

ROLE = "trained"
"""Role through which a trained judge speaks, and its name."""
_SAID = """
    SELECT j.id::VARCHAR AS id, j.step, j.judge, j.judge_revision, j.mode, j.value, j.ranks,
           coalesce(j.presented, [j.completion_id])::VARCHAR[] AS shown, t.text, r.text AS reply
    FROM judgement j
    LEFT JOIN content t ON t.hash = j.text_hash AND t.round = j.round AND t.forgotten_at IS NULL
    LEFT JOIN content r ON r.hash = j.reply_hash AND r.round = j.round AND r.forgotten_at IS NULL
    WHERE j.status = 'ok' AND j.aspect = '' AND (? = '' OR j.judge = ?)
      AND (len(?) = 0 OR list_contains(?, j.step)) AND (j.mode <> 'critique' OR t.text IS NOT NULL)
    ORDER BY j.round, j.id
"""
_ANSWERS = """
    SELECT c.id::VARCHAR AS completion_id, p.id::VARCHAR AS id, p.split, p.tags, p.source, p.licence,
           a.text, m.text AS messages, d.text AS details
    FROM completion c
    JOIN content a ON a.hash = c.text_hash AND a.round = c.round AND a.forgotten_at IS NULL
    JOIN prompt p ON p.id = c.prompt_id
    JOIN content m ON m.hash = p.messages_hash AND m.round = p.round AND m.forgotten_at IS NULL
    JOIN content d ON d.hash = p.details_hash AND d.round = p.round AND d.forgotten_at IS NULL
    WHERE c.split = 'train'
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which verdicts of a run a judge learns, and how it asks."""

    judge: str = ""
    """Name of the judge who gave them; the only one where it is empty."""
    asks: Any = None
    """The judge that is trained, as a recipe names one; the one who gave them, if it asks a model."""
    steps: Sequence[str] = ()
    """Only verdicts of these steps."""


@dataclass(slots=True)
class Lessons:
    """The rows that a judge is trained on."""

    judge: Speaking
    """Who will ask."""
    learned_from: str
    """Name of the judge who gave the verdicts."""
    revision: str
    """Its revision."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Verdicts that are no rows, by the reason."""


def lessons_of(run: Path, student: Policy, wanted: Wanted) -> Lessons:
    """Return the lessons that a run's judgements give.

    Args:
        run: the run's folder.
        student: reads the questions; no weights are needed.
        wanted: which verdicts, and who asks.

    Raises:
        BadInput: there are no such verdicts, they are of several judges, or none of them can be learned.
    """
    steps = list(wanted.steps)
    answers = {row["completion_id"]: row for row in read_rows(run, _ANSWERS)}
    found = read_rows(run, _SAID, [wanted.judge, wanted.judge, steps, steps])
    found = [row for row in found if all(shown in answers for shown in row["shown"])]
    name, revision = _one_judge(run, found, wanted)
    lessons = Lessons(_asker(run, name, revision, wanted.asks), name, revision)
    for row, lesson in _told(lessons.judge, found, answers):
        _add(lessons, row, lesson, student)
    if not lessons.rows:
        why = " and ".join(f"{n} {reason}" for reason, n in lessons.left_out.items())
        hint = "`--as '{choice: {brief: true}}'` asks shortly and wants a letter"
        raise BadInput.at("--as", f"no verdict of {name} can be learned: {why}", hint)
    # By what they say, not by their ids: the same verdicts make the same weights, in whatever run they were given.
    lessons.rows.sort(key=lambda row: (row["prompt_ids"], row["completion_ids"]))
    return lessons


def _one_judge(run: Path, found: Sequence[Row], wanted: Wanted) -> tuple[str, str]:
    """Return name and revision of the judge whose verdicts these are."""
    if not found:
        named = f" of {wanted.judge}" if wanted.judge else ""
        named += f" in {' or '.join(wanted.steps)}" if wanted.steps else ""
        hint = "a step `score`, `compare` or `critique` makes them"
        raise BadInput.at(str(run), f"has no verdicts{named} on train prompts", hint)
    several = sorted({(row["judge"], row["judge_revision"]) for row in found})
    if len(several) > 1:
        steps = sorted({f"{row['judge']} in {row['step']}" for row in found})
        what = f"{len(several)} judges have judged: {', '.join(steps)}"
        raise BadInput.at("--judge", what, "choose one, with --step where two have one name")
    name, revision = several[0]
    return str(name), str(revision)


def _asker(run: Path, name: str, revision: str, asks: Any) -> Speaking:
    """Return the judge that is trained, speaking through the role of trained judges.

    Raises:
        BadInput: it asks a model nothing.
    """
    judge = _in_recipe(run, revision) if asks is None else load(located(asks, Path()), "--as")
    if not isinstance(judge, Speaking):
        what = f"{judge.name if judge else name} asks one model no question of its own"
        hint = "say how the trained judge asks: --as chat, or --as '{choice: {brief: true}}'"
        raise BadInput.at("--as", what, hint)
    return judge.model_copy(update={"role": ROLE, "name": ROLE})


def _in_recipe(run: Path, revision: str) -> Judge | None:
    """Return the judge of a revision that the run's recipe has; None for one that was applied later."""
    recipe = load_recipe((run / RECIPE).read_text("utf-8"), RECIPE, base=run)
    steps = [step for stage in recipe.stages for step in stage.steps if isinstance(step, Judging)]
    judges = (step.load_judge() for step in steps)
    return next((judge for judge in judges if judge.revision == revision), None)


def _told(
    judge: Speaking, found: Sequence[Row], answers: Mapping[str, Row]
) -> Iterator[tuple[Row, Lesson | None]]:
    """Yield each judgement with its lesson."""
    for row in found:
        prompt = prompt_of(answers[row["shown"][0]])
        shown = [
            Completion(key, prompt.id, answers[key]["text"], (), (), "stop", "")
            for key in row["shown"]
        ]
        said = Judgement(
            row["value"],
            ranks=tuple(row["ranks"]) if row["ranks"] else None,
            text=row["text"] or "",
            reply=row["reply"] or "",
        )
        yield row, judge.lesson(row["mode"], JudgeTask(prompt, shown[0], tuple(shown[1:])), said)


def _add(lessons: Lessons, row: Row, lesson: Lesson | None, student: Policy) -> None:
    """Add a lesson, or count why it is none: what the judge could never be asked teaches it nothing."""
    if lesson is None:
        lessons.left_out["that no reply of it says"] += 1
        return
    asked, reply = student.encode(lesson.asked), student.spell(lesson.reply)
    most = int(getattr(lessons.judge, "max_tokens", len(reply)))
    if len(reply) > most:
        lessons.left_out[f"with a reply longer than max_tokens {most}"] += 1
        return
    if len(asked) + most > student.context_length:
        room = f"a reply of {most} in the {student.context_length} tokens that it reads"
        lessons.left_out[f"that leave no room for {room}"] += 1
        return
    lessons.rows.append(
        {
            "id": row["id"],
            "prompt_ids": list(asked),
            "completion_ids": list(reply),
            "weight": 1.0,
            "token_weights": None,
        }
    )
