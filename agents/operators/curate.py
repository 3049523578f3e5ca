"""Operators that decide which answers train."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ...errors import Problem
from ...hashing import row_id
from ...store.curation import Choice, PairQuery, Rule, check_choice, choose, pairs
from ...store.store import Row, now
from ...types import Pair as PairOf
from ..operator import Advance, Makes, Operator, Turn

VERIFIER = "verifier"


class Select(Operator):
    """Keep the answers that a query of the `answers` view keeps; equal ones of a prompt count once.

    Ranking, filtering, weighting, rejection sampling: all of them are SQL over one row an answer. The SQL
    runs read-only on the published snapshot. A cut answer is never kept.
    """

    name: ClassVar[str] = "select"
    makes: ClassVar[Makes] = "rows"
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)

    of: str | tuple[str, ...] = ()
    """Steps whose completions are looked at."""
    where: str = "true"
    """SQL condition, for example `verifier = 1`."""
    order_by: str = "id"
    """SQL order; ties end at the id."""
    limit: int | None = Field(None, ge=1)
    """Most answers kept."""
    per_prompt: int | None = Field(None, ge=1)
    """Most answers of one prompt kept, in the same order."""
    weight: str = "1.0"
    """SQL number: weight of the answer's loss."""

    @property
    def choice(self) -> Choice:
        """The query."""
        return Choice(self.where, self.order_by, self.weight, self.limit, self.per_prompt)

    def check_sql(self, where: str, judges: Sequence[str]) -> list[Problem]:
        """Try the SQL on an empty store that has the recipe's judges."""
        fault = check_choice(self.choice, judges)
        return [Problem(where, f"SQL: {fault}", "see `redistill list views`")] if fault else []

    async def advance(self, turn: Turn) -> Advance:
        """Keep the answers, in one super-step."""
        if not turn.done:
            began = time.monotonic()
            turn.run.store.publish(force=True)
            kept = choose(turn.run.folder, self.choice, turn.round, self.sources())
            rows = [self._row(turn, place, *found) for place, found in enumerate(kept)]
            turn.commit({"selection": rows}, time.monotonic() - began)
        return turn.advance(1)

    def _row(self, turn: Turn, place: int, completion: str, prompt: str, weight: float) -> Row:
        return {
            "id": row_id("selection", round=turn.round, step=turn.step, parents=[completion]),
            "round": turn.round,
            "step": turn.step,
            "split": "train",
            "prompt_id": prompt,
            "completion_id": completion,
            "position": place,
            "weight": weight,
            "created_at": now(),
        }


class Pair(Operator):
    """Make preference pairs of the answers to one prompt.

    `best_worst`: the best that ended against the worst. `best_random`: against any worse one.
    `correct_incorrect`: each better one against each worse one. With the verifier, chosen must pass:
    partial credit was measured to teach the form of an answer at the cost of its content.
    """

    name: ClassVar[str] = "pair"
    makes: ClassVar[Makes] = "rows"
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)

    of: str | tuple[str, ...] = ()
    """Steps whose completions are paired."""
    by: str = ""
    """Judge whose values are compared; the one judge that scored, where there is one."""
    rule: Rule = "best_worst"
    """Pairing rule."""
    limit: int | None = Field(None, ge=1)
    """Most pairs kept, in an order that the seed gives."""

    async def advance(self, turn: Turn) -> Advance:
        """Make the pairs, in one super-step."""
        if not turn.done:
            began = time.monotonic()
            query = PairQuery(
                round=turn.round,
                steps=self.sources(),
                judge=self.by,
                rule=self.rule,
                at_least=1.0 if self.by == VERIFIER else 0.0,
                seed=turn.run.seed,
            )
            rows = [self._row(turn, pair) for pair in pairs(turn.run.store, query)]
            rows.sort(key=lambda row: str(row["id"]))
            turn.commit({"pair": rows[: self.limit]}, time.monotonic() - began)
        return turn.advance(1)

    def _row(self, turn: Turn, pair: PairOf) -> Row:
        parents = [pair.chosen, pair.rejected]
        rule = json.dumps([self.rule, self.by])
        return {
            "id": row_id("pair", round=turn.round, step=turn.step, parents=parents, rule=rule),
            "round": turn.round,
            "step": turn.step,
            "split": "train",
            "prompt_id": pair.prompt_id,
            "chosen_id": pair.chosen,
            "rejected_id": pair.rejected,
            "judge": self.by,
            "rule": self.rule,
            "margin": pair.margin,
            "probability": pair.probability,
            "weight": 1.0,
            "created_at": now(),
        }
