"""The rows of a policy that samples while it trains: the prompts of the round, as it and its teachers see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import BadInput
from ..policies.revision import Revision
from ..store.proposals import proposed, selected_answers
from ..store.store import Row
from ..trainers.distill import SELF, Distill, SelfDistill
from ..trainers.sampling import Sampler
from ..types import Completion, Message, Prompt, TokenIds
from .answer import too_long
from .dataset import Sources
from .distributions import think
from .job_files import named, revision_named, write_job
from .operator import Turn
from .privileged import views_of


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt to train on, with an answer that stands and what its teacher sees, where there are any."""

    prompt: Prompt
    answer: Completion | None = None
    teacher: str = ""
    """The role that teaches, or `self`."""
    sees: Sequence[Message] = ()
    """What the teacher sees in place of the prompt; empty for the prompt itself."""


async def prepare_prompts(turn: Turn, trainer: Sampler, sources: Sources) -> dict[str, list[Row]]:
    """Write the job's folder; what it trains on becomes rows while it samples.

    A prompt that leaves no room for an answer is parked as an event, and the others go on.
    """
    start = revision_named(turn, sources.start)
    lessons = _lessons(turn, trainer, sources)
    rows: list[Row] = []
    events: list[Row] = []
    for lesson in lessons:
        row = await _row(turn, lesson)
        over = trainer.row_tokens(row) - turn.run.cast.student.context_length
        if over > 0:
            events.append(too_long(turn, lesson.prompt, len(row["prompt_ids"]) - over))
        else:
            rows.append(row)
    held = _held(turn, trainer, sources, start)
    _refuse_itself(turn, rows, held, start)
    if isinstance(trainer, Distill) and trainer.stored:
        await think(turn, rows, held, trainer.top_k)
        held = {}
    reference = held["reference"].id if trainer.anchored else None
    write_job(turn, (sources.trainer, trainer), start, rows, reference=reference, held=held)
    return {"event": events}


def _refuse_itself(
    turn: Turn, rows: Sequence[Row], held: Mapping[str, Revision], start: Revision
) -> None:
    """Refuse a teacher that has the student's weights and sees what the student sees.

    Raises:
        BadInput: there is one; it would teach nothing.
    """
    for name, revision in held.items():
        mine = [row for row in rows if row["teacher"] == name]
        if mine and revision.id == start.id and not any(r["teacher_prompt_ids"] for r in mine):
            what = f"{name} has the student's own weights in round {turn.round}, and sees the same"
            hint = "give it a context or another model"
            raise BadInput.at(f"{turn.step}.teacher", what, hint)


def _lessons(turn: Turn, trainer: Sampler, sources: Sources) -> list[Lesson]:
    """Return the round's prompts, what was proposed, or the answers that a select step has kept, with their teachers."""
    lessons = [Lesson(prompt) for prompt in turn.run.round_prompts(turn.round)]
    if sources.step:  # a step is one of the two, and the other has no row of it
        new = proposed(turn.run.store, turn.round, sources.step)
        kept = selected_answers(turn.run.store, turn.round, sources.step)
        lessons = [Lesson(prompt, said) for prompt, said in kept]
        lessons += [Lesson(prompt) for prompt in new]
    if isinstance(trainer, SelfDistill):
        views = views_of(turn, sources.given, [(one.prompt, one.answer) for one in lessons])
        shown = [
            Lesson(one.prompt, one.answer, SELF, sees)
            for one, sees in zip(lessons, views, strict=True)
            if sees is not None
        ]
        if bare := len(lessons) - len(shown):
            told = f"{bare} of {len(lessons)} prompts left out: there is no {sources.given} to show"
            turn.run.progress.note(f"round {turn.round}: {told}")
        return shown
    if not isinstance(trainer, Distill):
        return list({one.prompt.id: one for one in lessons}.values())
    found = []
    for one in lessons:
        role = _teacher(one.prompt, sources)
        found.append(
            Lesson(one.prompt, one.answer, role, turn.run.cast.staging(role).stage(one.prompt))
        )
    return found


def _teacher(prompt: Prompt, sources: Sources) -> str:
    """Return the role that teaches a prompt.

    Raises:
        BadInput: its tags name none, and there is none for all others.
    """
    for tag in prompt.tags:
        if tag in sources.teachers:
            return sources.teachers[tag]
    if "*" not in sources.teachers:
        told = f"no teacher for a prompt tagged {', '.join(prompt.tags) or 'with nothing'}"
        raise BadInput.at("train.teacher", told, "name one for `*`, all others")
    return sources.teachers["*"]


async def _row(turn: Turn, lesson: Lesson) -> Row:
    student = turn.run.cast.student
    call = turn.run.cast.call
    ids = await call(student.encode, lesson.prompt.messages)
    teacher = student if lesson.teacher in ("", SELF) else turn.run.cast.policy(lesson.teacher)
    sees = await call(teacher.encode, lesson.sees) if lesson.sees else None
    said: TokenIds = ()
    if lesson.answer is not None:
        said = lesson.answer.token_ids or await call(student.spell, lesson.answer.text)
    return {
        "id": lesson.prompt.id,
        "prompt_ids": list(ids),
        "weight": 1.0,
        "teacher": lesson.teacher or None,
        "teacher_prompt_ids": list(sees) if sees and sees != ids else None,
        "completion_id": lesson.answer.id if lesson.answer else None,
        "completion_ids": list(said) or None,
        "top_ids": None,
        "top_logprobs": None,
    }


def _held(turn: Turn, trainer: Sampler, sources: Sources, start: Revision) -> dict[str, Revision]:
    """Return what a job holds beside what it trains, by name."""
    if trainer.anchored:
        against = sources.reference
        return {"reference": start if against == "start" else revision_named(turn, against)}
    if isinstance(trainer, SelfDistill):
        return {} if trainer.live or trainer.negative else {SELF: start}
    return {role: named(turn, role)[1] for role in sorted(set(sources.teachers.values()))}
