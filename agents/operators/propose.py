"""The operator that makes new prompts."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

from pydantic import Field, field_validator

from ...errors import BadInput, Problem
from ...policies.policy import Sampling
from ...store.novelty import Measure
from ...store.proposals import verdicts
from ...types import Prompt
from ..answer import Asked, answer
from ..novel import proposal_rows
from ..operator import ROUND, Advance, Makes, Operator, Turn
from ..proposing import SLOTS, Call, Given, plan_calls, read_documents, read_topics, request
from ..roles import STUDENT
from ..template import Template, sound, template

_IDLE: dict[Given, tuple[str, ...]] = {
    "demos": ("of", "topics", "documents", "variants"),
    "topics": ("of", "documents", "variants", "show", "from_earlier"),
    "documents": ("of", "topics", "variants", "show", "from_earlier"),
    "prompts": ("topics", "documents", "show", "from_earlier", "count"),
    "failures": ("topics", "documents", "show", "from_earlier", "count"),
}
"""Settings that say nothing, by what is given."""


class Propose(Operator):
    """Let a role write new prompts; what is new becomes a prompt to train on, and a later step answers it.

    Survey family: expansion (Eq. 4: demonstrations, prior prompts), curation (Eq. 5: topics, documents) and the
    hard examples of feedback (failures). Each reply is read as one prompt: all of it, without a number, a
    label such as `Question:`, or quotes around it. It is refused where it is cut, empty, too short or long,
    known, alike to a prompt that is there, or near to a held-out or test prompt (`leaks`); the view `proposals`
    tells of each. Nobody samples it by itself: `sample: {of: propose}` does.
    """

    name: ClassVar[str] = "propose"
    makes: ClassVar[Makes] = "prompts"
    needs: ClassVar[tuple[Makes, ...]] = ("prompts", "rows")
    asks_prompts: ClassVar[bool] = True

    given: Given = "demos"
    """What the role is shown: prompts of the run as demonstrations, a topic, a document, a prompt to make another
    one of, or such a prompt with an answer that failed."""
    role: str = STUDENT
    """Who proposes."""
    count: int = Field(32, ge=1, le=100_000)
    """Proposals that are asked for in a round; of topics and documents the next ones, from the start again at the
    end."""
    show: int = Field(8, ge=1, le=64)
    """Demonstrations that are shown in a call, drawn by the run's seed."""
    from_earlier: int = Field(0, ge=0, le=64)
    """How many of these this step proposed in earlier rounds, as far as there are some: the pool grows."""
    of: str | tuple[str, ...] = ()
    """Of `prompts`: the steps whose prompts are varied, `round` for the round's own, which is also the default.
    Of `failures`: the select step that kept the failed answers."""
    variants: int = Field(1, ge=1, le=64)
    """Proposals for each prompt or failed answer."""
    topics: str | tuple[str, ...] = ()
    """A list, or a text file with a topic a line."""
    documents: str = ""
    """JSONL rows {text, source?, licence?}; the text becomes the `reference` of the prompt."""
    template: str = ""
    """A template that ships, or a text file with the slots {demos}, {topic}, {document}, {prompt} or {prompt} and
    {answer}; the one for what is given where it is left out."""
    temperature: float = Field(0.7, ge=0, le=4)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus; 1 keeps the whole vocabulary."""
    max_tokens: int = Field(256, ge=1)
    """Longest proposal; a cut one is refused."""
    novelty: Measure = "rouge_l"
    """How alike two prompts are: ROUGE-L F1 of their words, exactly, or MinHash of word trigrams for very many."""
    most_alike: float = Field(0.7, gt=0, le=1)
    """Similarity from which a proposal is not new, or leaks; 1 leaves it at the same words in the same order."""
    shortest: int = Field(3, ge=1)
    """Fewest words of a proposal."""
    longest: int = Field(150, ge=1)
    """Most words of a proposal."""
    tags: tuple[str, ...] = ()
    """`key:value` labels of the prompts that are kept."""

    @field_validator("tags")
    @classmethod
    def _not_ours(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        if any(tag.startswith("redistill:") for tag in tags):
            raise ValueError("labels that begin with `redistill:` are redistill's own")
        return tags

    def named(self) -> tuple[str, ...]:
        """Return what `of` names; the round's own prompts are varied where it names nothing."""
        return super().named() or ((ROUND,) if self.given == "prompts" else ())

    def required(self) -> tuple[Makes, ...]:
        """Failures are answers that a select step has kept; prompts may be the round's own."""
        if self.given == "failures":
            return ("rows",)
        return self.needs if self.given == "prompts" else ()

    def roles(self) -> tuple[str, ...]:
        """The one role that proposes."""
        return (self.role,)

    def check(self, where: str) -> list[Problem]:
        """Find settings that say nothing, and files that are missing or wrong."""
        fields = type(self).model_fields
        idle = [name for name in _IDLE[self.given] if getattr(self, name) != fields[name].default]
        what = f"says nothing to `given: {self.given}`"
        problems = [Problem(f"{where}.{name}", what, "leave it out") for name in idle]
        problems += self.load_template(f"{where}.template").problems
        if self.from_earlier > self.show:
            what = f"{self.from_earlier} of {self.show} that are shown"
            problems.append(Problem(f"{where}.from_earlier", what, "raise `show`"))
        if self.shortest > self.longest:
            what = f"{self.shortest} words at least, and {self.longest} at most"
            problems.append(Problem(f"{where}.shortest", what, "make it smaller"))
        if self.given == "failures" and ROUND in self.named():
            problems.append(Problem(f"{where}.of", "the round's prompts are no failed answers"))
        try:
            self._read(where)
        except BadInput as error:
            problems += error.problems
        return problems

    def _read(self, where: str) -> list[Any]:
        if self.given == "topics":
            return list(read_topics(self.topics, f"{where}.topics"))
        return (
            list(read_documents(self.documents, f"{where}.documents"))
            if self.given == "documents"
            else []
        )

    def load_template(self, where: str = "") -> Template:
        """Return the words in which the role is asked."""
        name = self.template or f"propose_{self.given}"
        return template(name, SLOTS[self.given], where or f"{self.step}.template")

    @property
    def sampling(self) -> Sampling:
        """The settings as policies take them."""
        return Sampling(self.temperature, self.top_p, 0, self.max_tokens)

    def calls(self, parents: int) -> int:
        """Return how many proposals a round asks for; `parents` are the prompts or failed answers that are there."""
        return parents * self.variants if self.given in ("prompts", "failures") else self.count

    async def advance(self, turn: Turn) -> Advance:
        """Ask for one chunk of proposals, and decide which are new."""
        planned = plan_calls(turn, self)
        if not turn.done:
            began = time.monotonic()
            text = sound(self.load_template())
            asked: dict[str, Call] = {}
            requests: list[Prompt] = []
            for call in turn.slice(planned):
                requests.append(request(turn, call, text))
                asked[requests[-1].id] = call
            answered = await answer(turn, self.role, [Asked(r, 0) for r in requests], self.sampling)
            # Aside: with many prompts to compare with, a chunk takes seconds.
            rows = await asyncio.to_thread(proposal_rows, turn, self, asked, answered)
            turn.commit(rows, time.monotonic() - began)
            if turn.cursor + 1 == turn.chunks(planned):
                self._tell(turn)
        return turn.advance(turn.chunks(planned))

    def _tell(self, turn: Turn) -> None:
        """Say what became of the step's proposals: who sees only that few were kept looks in the wrong place."""
        found = verdicts(turn.run.store, turn.round, turn.step)
        told = ", ".join(f"{n} {verdict}" for verdict, n in found.items()) or "none"
        turn.run.progress.note(
            f"round {turn.round} {turn.step}: {sum(found.values())} proposals: {told}"
        )
