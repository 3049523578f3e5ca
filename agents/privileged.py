"""What a student that teaches itself sees, and the student that learns does not."""

from __future__ import annotations

from collections.abc import Sequence

from ..store.facts import read_critiques
from ..types import Completion, Message, Prompt
from .operator import Turn
from .template import fill, sound, template

Lesson = tuple[Prompt, Completion | None]
View = tuple[Message, ...] | None
"""The teacher's conversation; None where there is nothing to show, and so nothing to teach."""


def views_of(turn: Turn, given: str, lessons: Sequence[Lesson]) -> list[View]:
    """Return what the teacher sees of each lesson.

    Args:
        turn: of the train step.
        given: `critique` of the answer, the `answer` itself, the prompt's `reference`, or an `unrelated` answer;
            empty where no teacher is asked.
        lessons: prompts, each with an answer that stands.
    """
    if not given:
        return [prompt.messages for prompt, _ in lessons]
    if given == "critique":
        found = read_critiques(turn.run.store, turn.round)
        return [_criticised(prompt, answer, found) for prompt, answer in lessons]
    if given == "reference":
        return [_shown(prompt, prompt.reference or prompt.answer or "") for prompt, _ in lessons]
    texts = [answer.text if answer else "" for _, answer in lessons]
    if given == "unrelated":
        texts = [_another(lessons, place) for place in range(len(lessons))]
    return [_shown(prompt, text) for (prompt, _), text in zip(lessons, texts, strict=True)]


def _shown(prompt: Prompt, text: str) -> View:
    if not text:
        return None
    words = sound(template("shown", ("question", "given"), "train.given"))
    *before, last = prompt.messages
    asked = fill(words, question=last.content, given=text)
    return (*before, Message(last.role, asked.strip()))


def _criticised(
    prompt: Prompt, answer: Completion | None, found: dict[str, list[tuple[str, str]]]
) -> View:
    if answer is None or answer.id not in found:
        return None
    words = sound(template("rewrite", ("given",), "train.given"))
    told = fill(words, answer=answer.text, given=found[answer.id][0][0])
    return (*prompt.messages, Message("assistant", answer.text), Message("user", told))


def _another(lessons: Sequence[Lesson], place: int) -> str:
    """Return the next answer that is to another prompt."""
    mine = lessons[place][0].id
    for step in range(1, len(lessons)):
        prompt, answer = lessons[(place + step) % len(lessons)]
        if prompt.id != mine and answer is not None:
            return answer.text
    return ""
