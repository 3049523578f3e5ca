"""The noun *operator*: one step of a round, one node of its graph.

An operator is a small pydantic class: its fields are the YAML keys, its docstring the manual page, and
`advance` does one chunk. A chunk is a fixed slice of the planned order and one transaction; the cursor
says which slice. Everything that an operator observes is a row in the store, so a chunk that runs twice
finds itself in the ledger and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ..errors import Problem, StoreProblem
from ..store.facts import read_prompts
from ..store.store import Rows, Store
from ..trainers.worker import Worker
from ..types import Prompt, Split
from .cast import Cast

T = TypeVar("T")
Makes = Literal[
    "prompts",
    "completions",
    "judgements",
    "critiques",
    "rows",
    "judge",
    "revision",
    "evaluation",
    "decision",
]

ROUND = "round"
"""What stands in `of` for the round's own prompts; no step can be named so."""
BUILTINS = {
    "propose": "redistill.agents.operators.propose:Propose",
    "sample": "redistill.agents.operators.elicit:Sample",
    "rewrite": "redistill.agents.operators.elicit:Rewrite",
    "score": "redistill.agents.operators.feedback:Score",
    "compare": "redistill.agents.operators.feedback:Compare",
    "critique": "redistill.agents.operators.feedback:Critique",
    "select": "redistill.agents.operators.curate:Select",
    "pair": "redistill.agents.operators.curate:Pair",
    "train": "redistill.agents.operators.improve:Train",
    "evaluate": "redistill.agents.operators.improve:Evaluate",
    "gate": "redistill.agents.operators.gate:Gate",
}
"""Name to `module:Class`; imported when a recipe first names it."""


class Progress(Protocol):
    """Whoever wants to know how far the run is."""

    def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002
        """`done` of `total` chunks of a step are finished."""

    def note(self, text: str) -> None:
        """Something worth a line."""


@dataclass(slots=True)
class RunContext:
    """What every node of the graph shares; handed over by the graph's runtime, never in its state."""

    folder: Path
    store: Store
    key: str
    """Hash of the recipe without name, paths and execution; part of every id."""
    seed: int
    chunk: int
    """Rows of one chunk."""
    per_round: int | None
    threads: int
    cast: Cast
    worker: Worker
    progress: Progress
    processes: int = 1
    """Processes of a training job."""
    budget_usd: float | None = None
    """Dollars that calls may cost."""
    anchors: int = 0
    """Frozen pairs about which a judge that is a model is asked again each round."""
    unproven: bool = False
    """Whether a judge that the round has made is used although its exam does not prove it."""
    steps: Callable[[int], Sequence[Operator]] = lambda _: ()
    """The recipe's steps of a round; none where a single step is applied."""
    _prompts: dict[str, list[Prompt]] = field(default_factory=dict)

    def prompts(self, split: Split) -> list[Prompt]:
        """Return the prompts of a split in their planned order."""
        if split not in self._prompts:
            self._prompts[split] = read_prompts(self.store, split)
        return self._prompts[split]

    def round_prompts(self, round_: int) -> list[Prompt]:
        """Return the train prompts of one round: the next slice, from the start again at the end."""
        train = self.prompts("train")
        count = min(self.per_round or len(train), len(train))
        start = (round_ - 1) * count
        return [train[(start + i) % len(train)] for i in range(count)]


@dataclass(frozen=True, slots=True)
class Turn:
    """One super-step: where in which round an operator stands."""

    run: RunContext
    round: int
    step: str
    cursor: int
    champion: str
    """revision.id from which the round started."""
    challenger: str = ""
    """revision.id that training made; empty before."""

    @property
    def current(self) -> str:
        """The challenger once there is one, else the champion."""
        return self.challenger or self.champion

    @property
    def done(self) -> bool:
        """Whether this chunk stands in the ledger.

        Raises:
            StoreProblem: the graph saw the chunk before this one committed, and the ledger lacks it.
        """
        store = self.run.store
        if self.cursor and not store.done(round=self.round, step=self.step, chunk=self.cursor - 1):
            raise StoreProblem(
                f"round {self.round} {self.step}: chunk {self.cursor - 1} was committed and is gone; "
                "restore the store from a copy"
            )
        return store.done(round=self.round, step=self.step, chunk=self.cursor)

    def slice(self, planned: Sequence[T]) -> Sequence[T]:
        """Return this chunk's part of the planned order."""
        size = self.run.chunk
        return planned[self.cursor * size : (self.cursor + 1) * size]

    def commit(self, rows: Rows, seconds: float) -> None:
        """Write the chunk's rows in one transaction."""
        self.run.store.commit(
            rows, round=self.round, step=self.step, chunk=self.cursor, seconds=seconds
        )

    def advance(self, total: int, decision: str = "") -> Advance:
        """Say that this chunk is finished; `total` is the number of chunks of the step."""
        self.run.progress.phase(self.round, self.step, self.cursor + 1, total)
        following = self.cursor + 1 if self.cursor + 1 < total else None
        return Advance(following, decision=decision)

    def chunks(self, planned: Sequence[object]) -> int:
        """Return how many chunks a plan has; an empty one has one, which commits nothing."""
        return max(1, math.ceil(len(planned) / self.run.chunk))


@dataclass(frozen=True, slots=True)
class Advance:
    """What a chunk tells the graph: where to go on, and what the round has come to."""

    cursor: int | None
    """The next chunk; None when the step is finished."""
    challenger: str = ""
    decision: str = ""
    ends: bool = False
    """Whether nothing of the round can follow: it is rejected."""


class Operator(BaseModel):
    """Base of all operators. A subclass sets the class variables and writes `advance`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: ClassVar[str]
    makes: ClassVar[Makes]
    needs: ClassVar[tuple[Makes, ...]] = ()
    """What `of` may name; the nearest earlier step that makes it is the default."""
    keeps: ClassVar[bool] = False
    """Whether a step that reads completions may name this one too, and then reads the answers that it kept."""
    asks_prompts: ClassVar[bool] = False
    """Whether `of` names prompts to ask, of which those of the round are some."""

    as_: str = Field("", alias="as")
    """Name of the step; the operator's name where it is left out."""

    @property
    def step(self) -> str:
        """The step's name in rows, graph and `of`."""
        return self.as_ or self.name

    def named(self) -> tuple[str, ...]:
        """Return what `of` names: steps, and `round` where the round's own prompts may be named."""
        of: Any = getattr(self, "of", None)
        return (of,) if isinstance(of, str) else tuple(of or ())

    def sources(self) -> tuple[str, ...]:
        """Return the steps whose rows this one reads."""
        return tuple(name for name in self.named() if name != ROUND)

    def required(self) -> tuple[Makes, ...]:
        """Return what must be made before this step, which `of` names."""
        return self.needs

    def made(self) -> Makes:
        """Return what the step makes as it is set: a train step makes the next student, or a judge."""
        return self.makes

    def roles(self) -> tuple[str, ...]:
        """Return the names of the roles that speak in this step."""
        return ()

    def judges(self) -> Mapping[str, str]:
        """Return the judges of this step: SQL name -> revision."""
        return {}

    def check(self, where: str) -> list[Problem]:  # noqa: ARG002 - for subclasses
        """Return what is wrong with the settings, found without loading a model."""
        return []

    async def advance(self, turn: Turn) -> Advance:
        """Do one chunk."""
        raise NotImplementedError
