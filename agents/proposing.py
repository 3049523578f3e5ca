"""From a `propose` step to what its role is asked: who is shown what, in which words, in which order.

The plan depends on the run's key and seed, and on rows of earlier steps and rounds alone: a chunk that is
planned anew after a crash asks the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import BadInput, Problem
from ..hashing import row_id, row_seed
from ..store.contamination import asked_text
from ..store.facts import PROPOSING
from ..store.proposals import proposed_before, selected_answers
from ..types import Completion, Message, Prompt
from .asked_prompts import asked_prompts
from .operator import Turn
from .prompts import first_few, read_rows
from .template import fill

if TYPE_CHECKING:
    from .operators.propose import Propose

Given = Literal["demos", "topics", "documents", "prompts", "failures"]
SLOTS: dict[Given, tuple[str, ...]] = {
    "demos": ("demos",),
    "topics": ("topic",),
    "documents": ("document",),
    "prompts": ("prompt",),
    "failures": ("prompt", "answer"),
}
"""The slots of a template, by what is given."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that a prompt is asked for."""

    text: str
    source: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One proposal that is planned: its place, and what the role is shown."""

    place: int
    seeds: tuple[Prompt, ...] = ()
    topic: str = ""
    document: Document | None = None
    answer: Completion | None = None
    parent_id: str | None = None
    """prompt.id that is varied."""

    def shown(self) -> dict[str, str]:
        """Return what stands in the slots of the template."""
        texts = [asked_text(prompt.messages).strip() for prompt in self.seeds]
        return {
            "demos": "\n".join(f"{n}. {text}" for n, text in enumerate(texts, start=1)),
            "prompt": "\n".join(texts),
            "topic": self.topic,
            "document": self.document.text if self.document else "",
            "answer": self.answer.text if self.answer else "",
        }


def plan_calls(turn: Turn, step: Propose) -> list[Call]:
    """Return everything that a step asks its role, in order."""
    plans: dict[Given, Callable[[Turn, Propose], Iterator[Call]]] = {
        "demos": _from_demos,
        "topics": _from_topics,
        "documents": _from_documents,
        "prompts": _from_prompts,
        "failures": _from_failures,
    }
    return list(plans[step.given](turn, step))


def request(turn: Turn, call: Call, text: str) -> Prompt:
    """Return what the role is asked: a prompt of its own, so that what it says is no answer to a seed.

    Args:
        turn: where the run stands.
        call: what is shown.
        text: the template.
    """
    asked = fill(text, **call.shown()).strip()
    return Prompt(
        # Of this call alone: the same words in another round are another request.
        id=row_id(
            "prompt",
            run=turn.run.key,
            round=turn.round,
            step=turn.step,
            place=call.place,
            asked=asked,
        ),
        messages=(Message("user", asked),),
        split="train",
        tags=(PROPOSING,),
        source="redistill",
    )


def _from_demos(turn: Turn, step: Propose) -> Iterator[Call]:
    given = _unforgotten(turn.run.prompts("train"))
    earlier = proposed_before(turn.run.store, turn.round, turn.step) if step.from_earlier else []
    for place in range(step.count):
        draw = row_id("draw", run=turn.run.key, round=turn.round, step=turn.step, place=place)
        mixed = _drawn(earlier, step.from_earlier, f"{draw} earlier")
        mixed += _drawn(given, step.show - len(mixed), f"{draw} given")
        # By chance, not by kind: what stands last is followed most.
        yield Call(place, tuple(_drawn(mixed, len(mixed), draw)))


def _drawn(pool: Sequence[Prompt], count: int, seed: str) -> list[Prompt]:
    """Draw without putting back; all of a pool that has no more."""
    places: dict[int, None] = {}
    attempt = 0
    while len(places) < min(count, len(pool)):
        places.setdefault(row_seed(f"{seed} {attempt}") % len(pool))
        attempt += 1
    return [pool[place] for place in places]


def _from_topics(turn: Turn, step: Propose) -> Iterator[Call]:
    topics = read_topics(step.topics, f"{step.step}.topics")
    for place, nth in enumerate(_slice(turn, step, len(topics))):
        yield Call(place, topic=topics[nth])


def _from_documents(turn: Turn, step: Propose) -> Iterator[Call]:
    documents = read_documents(step.documents, f"{step.step}.documents")
    for place, nth in enumerate(_slice(turn, step, len(documents))):
        yield Call(place, document=documents[nth])


def _slice(turn: Turn, step: Propose, size: int) -> list[int]:
    """Return the places of a list that a round takes: the next ones, from the start again at the end."""
    return [((turn.round - 1) * step.count + n) % size for n in range(step.count)]


def _from_prompts(turn: Turn, step: Propose) -> Iterator[Call]:
    parents = _unforgotten(asked_prompts(turn, step.named()))
    planned = [prompt for prompt in parents for _ in range(step.variants)]
    for place, prompt in enumerate(planned):
        yield Call(place, (prompt,), parent_id=prompt.id)


def _from_failures(turn: Turn, step: Propose) -> Iterator[Call]:
    store = turn.run.store
    found = [pair for name in step.named() for pair in selected_answers(store, turn.round, name)]
    planned = [pair for pair in found for _ in range(step.variants)]
    for place, (prompt, said) in enumerate(planned):
        yield Call(place, (prompt,), answer=said, parent_id=prompt.id)


def _unforgotten(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts if asked_text(prompt.messages).strip()]


# -- what users give


def read_topics(given: str | tuple[str, ...], where: str) -> list[str]:
    """Return topics: a list as it stands, or the lines of a text file.

    Raises:
        BadInput: there is none, or the file cannot be read.
    """
    lines: Sequence[str] = () if isinstance(given, str) else given
    if isinstance(given, str) and given:
        try:
            lines = Path(given).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            hint = "give a list, or a text file with a topic a line"
            raise BadInput.at(where, f"{given!r} cannot be read", hint) from error
    topics = [line.strip() for line in lines if line.strip()]
    if not topics:
        raise BadInput.at(
            where, "names no topic", "give a list, or a text file with a topic a line"
        )
    return topics


def read_documents(given: str, where: str) -> list[Document]:
    """Return the documents of a JSONL file, `{text, source?, licence?}` a line.

    Raises:
        BadInput: with the first problems of the file.
    """
    if not given:
        raise BadInput.at(where, "names no file", "give JSONL rows {text, source?, licence?}")
    problems: list[Problem] = []
    documents = []
    for number, row in read_rows(given, Path(), where):
        fields = {key: row.get(key, "") for key in ("text", "source", "licence")}
        if strange := row.keys() - fields.keys():
            problems.append(Problem(f"{given}:{number}", f"unknown key {min(strange)!r}"))
        elif not all(isinstance(v, str) for v in fields.values()) or not fields["text"].strip():
            problems.append(
                Problem(f"{given}:{number}", "needs the text `text`; source and licence are texts")
            )
        else:
            documents.append(Document(**fields))
    if problems:
        raise BadInput(*first_few(problems))
    return documents
