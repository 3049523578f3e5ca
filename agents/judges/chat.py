"""The judge `chat`: a model that is asked in words, and answers with a verdict in JSON.

What is judged stands in fences whose mark is a hash of the material itself: no answer can contain it, so
none can close its fence or speak in the judge's own turn. A verdict is the last JSON object of the reply
that has exactly the fields asked for. Whatever else comes is `parse_error`: no number is picked out of
prose, brought into the scale, or made up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self

from pydantic import Field, field_validator, model_validator

from ...hashing import content_hash, row_seed
from ...policies.policy import Sampling
from ...types import Judgement, Message
from ..judge import ColumnName, JudgeTask, Mode
from ..speaker import Ask, Reply
from ..template import fill, sound, template
from .material import LETTERS, fenced, mark_of
from .speaking import Lesson, Speaking

_REASONS = 4000
"""Characters of the reasons that a model held to a schema may write."""
_SEARCHED = 1 << 15
"""Characters at a reply's end in which the verdict is looked for."""


class Chat(Speaking):
    """Ask a model for its verdict.

    The role may be the student, a model of this machine, or one behind an address. It can `score` (a
    whole number of the scale, or one for each aspect, whose mean is the value), `compare` two answers or a
    list, and `critique`. A role that can be held to a JSON Schema is; of the others the last fitting JSON
    object counts. The name of a role alone, `judge: helper`, means this judge on that role.
    """

    name: ColumnName = "chat"
    rubric: str = "quality"
    """What to look at: a template that ships, or a text file."""
    aspects: tuple[str, ...] = ()
    """What is scored one by one, for example [correct, clear]; the whole where it is left out."""
    scale: tuple[int, int] = (1, 10)
    """Worst and best score."""
    reasoning: bool = True
    """Whether reasons come before the verdict; they help strong judges, and were measured to harm weak ones."""
    temperature: float = Field(0.0, ge=0, le=4)
    """0 is greedy."""
    max_tokens: int = Field(1024, ge=1)
    """Longest reply, reasoning included."""

    version: ClassVar[int] = 1

    @field_validator("scale")
    @classmethod
    def _ascending(cls, scale: tuple[int, int]) -> tuple[int, int]:
        if scale[0] >= scale[1]:
            raise ValueError("a scale is [worst, best], the lower number first")
        return scale

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if len(set(self.aspects)) < len(self.aspects) or not all(map(str.strip, self.aspects)):
            raise ValueError("aspects are different words")
        sound(template(self.rubric, (), "rubric"))
        return self

    @property
    def revision(self) -> str:
        """Content hash of settings, rubric, prompts and code version."""
        texts = [_text(name) for name in (self.rubric, *_WRAPPERS.values())]
        settings = self.model_dump(mode="json", exclude={"name", "rubric"})
        return content_hash(["chat", self.version, settings, texts])

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each answer a value; of aspects, their mean."""
        replies = await self._ask("score", tasks)
        return [self._scored(task, reply) for task, reply in zip(tasks, replies, strict=True)]

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank the answers of each task as presented."""
        few = [task for task in tasks if len(task.candidates) <= len(LETTERS)]
        replies = await self._ask("compare", few)
        found = iter(map(self._compared, few, replies))
        many = f"more than {len(LETTERS)} answers"
        return [
            next(found)
            if len(task.candidates) <= len(LETTERS)
            else Judgement.failed("not_applicable", many)
            for task in tasks
        ]

    async def critique(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Say in words what is wrong with each answer."""
        replies = await self._ask("critique", tasks)
        return [
            Judgement(None, text=reply.text.strip(), reply=reply.text, usage=reply.usage)
            if reply.status == "ok" and reply.text.strip()
            else _failed(reply, "an empty critique")
            for reply in replies
        ]

    def lesson(self, mode: Mode, task: JudgeTask, said: Judgement) -> Lesson | None:
        """Return what it asks about a task, and the reply that says a judgement.

        The stored reply where it is read as just that; else the verdict in the form asked for. Scores of several
        aspects, and reasons that nobody has written, are not made up: there is no reply then.
        """
        if len(task.candidates) > len(LETTERS):
            return None
        kept = Reply(said.reply)
        if mode == "critique":
            reply = said.reply.strip() or said.text
        else:
            read = self._scored(task, kept) if mode == "score" else self._compared(task, kept)
            same = (read.status, read.value, read.ranks) == (said.status, said.value, said.ranks)
            reply = said.reply if same else self._spoken(mode, said)
        return Lesson(self._conversation(mode, task).messages, reply) if reply else None

    def _spoken(self, mode: Mode, said: Judgement) -> str:
        """Return a verdict in the form asked for; empty where something of it is missing."""
        found: dict[str, Any] = {}
        if self.reasoning:
            if not said.text:
                return ""
            found["reasoning"] = said.text[:_REASONS]
        if mode == "score":
            if self.aspects or said.value is None:
                return ""
            low, high = self.scale
            found["score"] = low + round(said.value * (high - low))
        elif not said.ranks:
            return ""
        elif len(said.ranks) == 2:
            first, second = said.ranks
            found["better"] = "tie" if first == second else "A" if first < second else "B"
        else:
            found["ranks"] = dict(zip(LETTERS, said.ranks, strict=False))
        return json.dumps(found, ensure_ascii=False)

    # -- asking

    async def _ask(self, mode: Mode, tasks: Sequence[JudgeTask]) -> list[Reply]:
        asks = [self._conversation(mode, task) for task in tasks]
        sampling = Sampling(self.temperature, 1.0, 0, self.max_tokens)
        return await self.speaker.say(self.role, asks, sampling)

    def _conversation(self, mode: Mode, task: JudgeTask) -> Ask:
        form = self._form_of(mode, task)
        text = fill(
            _text(_WRAPPERS[mode]),
            rubric=_text(self.rubric).strip(),
            mark=mark_of(task),
            material=fenced(task),
            form=self._told(form) if form else "",
        )
        asked = content_hash([self.revision, mode, text, task.attempt])
        return Ask((Message("user", text.strip()),), row_seed(asked), form)

    def _told(self, form: Mapping[str, Any]) -> str:
        """Say in words what a schema says, for roles that cannot be held to one."""
        wanted: dict[str, Any] = form["properties"]
        parts = [f'"{key}": {field["description"]}' for key, field in wanted.items()]
        return f"Reply with one JSON object, and nothing after it: {{{', '.join(parts)}}}"

    def _form_of(self, mode: Mode, task: JudgeTask) -> Mapping[str, Any] | None:
        if mode == "critique":
            return None
        return self._score_form(task) if mode == "score" else self._compare_form(task)

    def _score_form(self, task: JudgeTask) -> Mapping[str, Any]:  # noqa: ARG002 - as the other form
        low, high = self.scale
        number = {
            "type": "integer",
            "minimum": low,
            "maximum": high,
            "description": f"a whole number from {low} (worst) to {high} (best)",
        }
        if not self.aspects:
            return self._form({"score": number})
        listed = ", ".join(f'"{aspect}": ...' for aspect in self.aspects)
        scores = _object(dict.fromkeys(self.aspects, number))
        told = f"{{{listed}}}, each {number['description']}"
        return self._form({"scores": scores | {"description": told}})

    def _compare_form(self, task: JudgeTask) -> Mapping[str, Any]:
        letters = LETTERS[: len(task.candidates)]
        if len(letters) == 2:
            told = '"A", "B", or "tie" if neither is better'
            return self._form(
                {"better": {"type": "string", "enum": [*letters, "tie"], "description": told}}
            )
        rank = {"type": "integer", "minimum": 1, "maximum": len(letters)}
        listed = ", ".join(f'"{letter}": ...' for letter in letters)
        told = f"{{{listed}}}, the rank of each: 1 is best, equal answers have equal ranks"
        return self._form({"ranks": _object(dict.fromkeys(letters, rank)) | {"description": told}})

    def _form(self, verdict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the schema of a reply: reasons first, or they could only defend the verdict."""
        told = "your reasons, in a few sentences"
        reasons = {"reasoning": {"type": "string", "maxLength": _REASONS, "description": told}}
        return _object((reasons if self.reasoning else {}) | dict(verdict))

    # -- reading

    def _scored(self, task: JudgeTask, reply: Reply) -> Judgement:
        found = self._verdict(task, reply, self._score_form(task))
        if found is None:
            return _failed(reply, "no verdict in the reply")
        given = found["scores"] if self.aspects else {"": found["score"]}
        low, high = self.scale
        values = {aspect: (number - low) / (high - low) for aspect, number in given.items()}
        return Judgement(
            value=math.fsum(values.values()) / len(values),
            raw=math.fsum(given.values()) / len(given),
            aspects=values if self.aspects else {},
            text=found.get("reasoning", ""),
            reply=reply.text,
            usage=reply.usage,
        )

    def _compared(self, task: JudgeTask, reply: Reply) -> Judgement:
        found = self._verdict(task, reply, self._compare_form(task))
        if found is None:
            return _failed(reply, "no verdict in the reply")
        if "better" in found:
            ranks = {"A": (1, 2), "B": (2, 1), "tie": (1, 1)}[found["better"]]
        else:
            ranks = tuple(found["ranks"][letter] for letter in LETTERS[: len(task.candidates)])
            if min(ranks) != 1:
                return _failed(reply, "the ranks have no first")
        plain = Judgement.ranked(ranks)
        return Judgement(
            plain.value,
            ranks=ranks,
            text=found.get("reasoning", ""),
            reply=reply.text,
            usage=reply.usage,
        )

    def _verdict(
        self, task: JudgeTask, reply: Reply, form: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        if reply.status != "ok":
            return None
        return verdict(reply.text, form, [completion.text for completion in task.candidates])


_WRAPPERS: Mapping[Mode, str] = {
    "score": "judge_score",
    "compare": "judge_compare",
    "critique": "judge_critique",
}


def verdict(
    text: str, form: Mapping[str, Any], candidates: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Return the last JSON object of a reply that fits a form; None where there is none.

    An object that stands word for word in a candidate is a quotation of it and no verdict.

    Args:
        text: the reply.
        form: JSON Schema, of the kinds that this judge asks for.
        candidates: the answers that were judged.
    """
    text = text[-_SEARCHED:]
    found = None
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        whole = text[place:end]
        if _fits(value, form) and not any(whole in candidate for candidate in candidates):
            found = value
        place = text.find("{", end)
    return found


def _fits(value: Any, form: Mapping[str, Any]) -> bool:
    """Say whether a value fits a form, no more and no less."""
    if form["type"] == "object":
        fields: Mapping[str, Any] = form["properties"]
        return (
            isinstance(value, dict)
            and value.keys() == fields.keys()
            and all(_fits(value[key], fields[key]) for key in fields)
        )
    if form["type"] == "string":
        return isinstance(value, str) and value in form.get("enum", (value,))
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and form["minimum"] <= value <= form["maximum"]


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _object(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(fields),
        "required": list(fields),
        "additionalProperties": False,
    }


def _failed(reply: Reply, why: str) -> Judgement:
    """Return the judgement of a reply that is none; what it cost is kept."""
    if reply.status != "ok":
        return Judgement.failed(reply.status, reply.text, usage=reply.usage)
    return Judgement(None, "parse_error", text=why, reply=reply.text, usage=reply.usage)


def _text(name: str) -> str:
    return sound(template(name, (), "rubric"))
