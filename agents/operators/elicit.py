"""Operators that elicit completions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from ...errors import Problem
from ...policies.policy import Sampling
from ...store.facts import read_critiques, read_failures
from ...types import Completion, Message, Prompt
from ..answer import Asked, answer
from ..asked_prompts import asked_prompts
from ..edited_answer import edited
from ..operator import Advance, Makes, Operator, Turn
from ..right_answer import right_answer
from ..roles import STUDENT
from ..template import fill, sound, template
from .feedback import answers_of


class Sample(Operator):
    """Let a role answer each prompt of the round `k` times, or those that steps before it have proposed or kept.

    Survey family: labelling (Eq. 3) where the role is a teacher, self-knowledge (Eq. 8) where it is the
    student. A role with a context is prompt distillation: training leaves the context out.
    """

    name: ClassVar[str] = "sample"
    makes: ClassVar[Makes] = "completions"
    needs: ClassVar[tuple[Makes, ...]] = ("prompts", "rows")
    asks_prompts: ClassVar[bool] = True

    of: str | tuple[str, ...] = ()
    """Whose prompts are answered: of `propose` steps, or of what `select` steps have kept; `round` in the list adds
    the round's own, which are asked alone where it is left out."""
    role: str = STUDENT
    """Who answers."""
    k: int = Field(4, ge=1, le=1024)
    """Answers to each prompt."""
    temperature: float = Field(0.7, ge=0, le=4)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus; 1 keeps the whole vocabulary."""
    top_k: int = Field(0, ge=0)
    """0 keeps the whole vocabulary."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer; a cut one is never chosen."""

    @model_serializer(mode="wrap")
    def _without_unused(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Recipes that are older than the key have the ids that they had.
        data: dict[str, Any] = told(self)
        return {k: v for k, v in data.items() if k != "of" or v}

    def required(self) -> tuple[Makes, ...]:
        """Nothing, unless `of` names it: a round has prompts of its own."""
        return self.needs if self.of else ()

    def roles(self) -> tuple[str, ...]:
        """The one role that answers."""
        return (self.role,)

    @property
    def sampling(self) -> Sampling:
        """The settings as policies take them."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens)

    async def advance(self, turn: Turn) -> Advance:
        """Sample one chunk of (prompt, slot), all slots of a prompt side by side."""
        prompts = asked_prompts(turn, self.named())
        planned = [Asked(prompt, slot) for prompt in prompts for slot in range(self.k)]
        if not turn.done:
            began = time.monotonic()
            answered = await answer(turn, self.role, turn.slice(planned), self.sampling)
            turn.commit(answered.rows, time.monotonic() - began)
        return turn.advance(turn.chunks(planned))


class Rewrite(Operator):
    """Let a role answer again, knowing its earlier answer and what is to be better.

    Survey family: feedback (Eq. 7), revision. A rewrite is a completion with a parent; `pair` with the rule
    `revised_original` prefers it to its parent where the judge does too. It is learned as an answer to the
    plain prompt: neither the earlier answer nor the critique is seen in training. With `given: edit` no
    role is asked: a program makes the smallest edit after which the prompt's checkers pass, where there is one.
    """

    name: ClassVar[str] = "rewrite"
    makes: ClassVar[Makes] = "completions"
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)

    of: str | tuple[str, ...] = ()
    """Steps whose completions are rewritten."""
    role: str = STUDENT
    """Who rewrites."""
    given: Literal["critique", "reference", "error", "edit", "nothing"] = "critique"
    """What is told: the critiques of this round, the prompt's reference, what the verifier missed; or an edit."""
    temperature: float = Field(0.7, ge=0, le=4)
    """0 is greedy."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer; a cut one is never chosen."""
    template: str = "rewrite"
    """A template that ships, or a text file with the slots {answer} and {given}."""

    def roles(self) -> tuple[str, ...]:
        """The one role that rewrites; a program's edit needs none."""
        return () if self.given == "edit" else (self.role,)

    def check(self, where: str) -> list[Problem]:
        """Find a template that does not exist or lacks a slot, and what a program's edit has no use for."""
        if self.given == "edit":
            fields, idle = (
                type(self).model_fields,
                ("role", "temperature", "max_tokens", "template"),
            )
            told = [name for name in idle if getattr(self, name) != fields[name].default]
            what = "says nothing to a program's edit"
            return [Problem(f"{where}.{name}", what, "leave it out") for name in told]
        return template(self.template, ("given",), f"{where}.template").problems

    @property
    def sampling(self) -> Sampling:
        """The settings as policies take them."""
        return Sampling(self.temperature, 1.0, 0, self.max_tokens)

    async def advance(self, turn: Turn) -> Advance:
        """Rewrite one chunk of completions; what has nothing to be told is left as it is."""
        planned = self._planned(turn)
        if not turn.done:
            began = time.monotonic()
            chunk = turn.slice(planned)
            answered = (
                await edited(turn, chunk)
                if self.given == "edit"
                else await answer(turn, self.role, chunk, self.sampling)
            )
            turn.commit(answered.rows, time.monotonic() - began)
        return turn.advance(turn.chunks(planned))

    def _planned(self, turn: Turn) -> list[Asked]:
        if self.given == "edit":
            answers = answers_of(turn, self.sources())
            return [Asked(p, 0, (Message("assistant", c.text),), c.id) for p, c in answers]
        text = sound(template(self.template, ("given",), f"{self.step}.template"))
        found = _READ[self.given](turn.run.store, turn.round) if self.given in _READ else {}
        planned = []
        for prompt, said in answers_of(turn, self.sources()):
            for told, source in self._told(prompt, said, found):
                asked = fill(text, answer=said.text, given=told)
                turns = (Message("assistant", said.text), Message("user", asked))
                planned.append(Asked(prompt, 0, turns, said.id, source))
        return planned

    def _told(
        self, prompt: Prompt, said: Completion, found: Mapping[str, list[tuple[str, str]]]
    ) -> list[tuple[str, str | None]]:
        """Return what the role is told about an answer, each with the judgement that it is from."""
        if self.given == "nothing":
            return [("Look at it again.", None)]
        if self.given == "reference":
            right = right_answer(prompt)
            return [(f"A right answer is: {right}", None)] if right else []
        lead = "These checks failed: " if self.given == "error" else ""
        return [(lead + text, source) for text, source in found.get(said.id, [])]


_READ = {"critique": read_critiques, "error": read_failures}
