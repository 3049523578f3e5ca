"""Operators that decide which answers train."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from ...errors import Problem
from ...hashing import row_id
from ...store.bias import Bias, Effect, estimate_bias
from ...store.curation import Choice, Chosen, check_choice, choose
from ...store.duels import NOTHING
from ...store.pairing import ALONE, BY_STEPS, Labels, PairQuery, Rule, pairs
from ...store.store import Row, now
from ...types import Pair as PairOf
from ..operator import Advance, Makes, Operator, Turn

VERIFIER = "verifier"


class Select(Operator):
    """Keep the answers that a query of the `answers` view keeps; equal ones of a prompt count once.

    Ranking, filtering, weighting, rejection sampling: all of them are SQL over one row an answer. The SQL
    runs read-only on the published snapshot. A cut answer is never kept. Beside the columns of `answers` there are
    `prompt_mean.JUDGE`, `prompt_spread.JUDGE` and `prompt_answers`, of all answers to the prompt, and `rounds_ago`;
    see docs/curation.md. Other steps may name the step in their `of`, and read what it kept.
    """

    name: ClassVar[str] = "select"
    makes: ClassVar[Makes] = "rows"
    keeps: ClassVar[bool] = True
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)

    of: str | tuple[str, ...] = ()
    """Steps whose completions are looked at."""
    replay: int = Field(0, ge=0)
    """Earlier rounds whose answers of these steps are looked at too; what is kept of them can only train."""
    where: str = "true"
    """SQL condition, for example `verifier = 1`; its window functions see every answer of the steps, cut ones too."""
    order_by: str = "id"
    """SQL order; ties end at the id."""
    limit: int | None = Field(None, ge=1)
    """Most answers kept."""
    per_prompt: int | None = Field(None, ge=1)
    """Most answers of one prompt kept, in the same order."""
    weight: str = "1.0"
    """SQL number: weight of the answer's loss."""
    wanted: str = ""
    """SQL condition: whether the answer is one to learn or one to unlearn, for `kto`."""
    told: str = ""
    """SQL text that the prompt begins with in training, as a system turn: what kind of answer follows."""

    @model_serializer(mode="wrap")
    def _without_unused(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Recipes that are older than these keys have the key that they had.
        data: dict[str, Any] = told(self)
        return {k: v for k, v in data.items() if k not in ("wanted", "told", "replay") or v}

    @property
    def choice(self) -> Choice:
        """The query."""
        return Choice(
            where=self.where,
            order_by=self.order_by,
            weight=self.weight,
            limit=self.limit,
            per_prompt=self.per_prompt,
            wanted=self.wanted or "NULL",
            told=self.told or "NULL",
            replay=self.replay,
        )

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
            rows = [self._row(turn, place, found) for place, found in enumerate(kept)]
            turn.commit({"selection": rows}, time.monotonic() - began)
        return turn.advance(1)

    def _row(self, turn: Turn, place: int, chosen: Chosen) -> Row:
        parents = [chosen.completion_id]
        return {
            "id": row_id("selection", round=turn.round, step=turn.step, parents=parents),
            "round": turn.round,
            "step": turn.step,
            "split": "train",
            "prompt_id": chosen.prompt_id,
            "completion_id": chosen.completion_id,
            "position": place,
            "weight": chosen.weight,
            "wanted": chosen.wanted,
            "told": chosen.told,
            "created_at": now(),
        }


class Pair(Operator):
    """Make preference pairs of the answers to one prompt.

    `best_worst`: the best that ended against the worst. `best_random`: against any worse one.
    `correct_incorrect`: each better one against each worse one. `revised_original`: a rewrite against the
    answer that it rewrites, where the judge finds it better; in any case where there is no judge. `contrast`: every
    answer of a step against every answer of the steps that `of` names after it (RLCD, ALMoST, GRATH), and no judge
    is needed; one that `by` names must agree. `gold_self` is the same with a check that the first step is no answer
    of the student's, and the others are (SPIN). With the verifier, chosen must pass: partial credit was measured to
    teach the form of an answer at the cost of its content. From comparisons, best is who wins most, chosen has always
    beaten rejected when they were shown together, and the pair's probability is the mean over all showings of the two.
    """

    name: ClassVar[str] = "pair"
    makes: ClassVar[Makes] = "rows"
    needs: ClassVar[tuple[Makes, ...]] = ("completions",)

    of: str | tuple[str, ...] = ()
    """Steps whose completions are paired; of `revised_original` those with the rewrites, of `contrast` and `gold_self`
    the better one first."""
    by: str = ""
    """Judge whose values or comparisons decide; the one judge that gave some, where there is one."""
    from_: Labels | None = Field(None, alias="from")
    """Which of the two, where the judge gave both."""
    rule: Rule = "best_worst"
    """Pairing rule."""
    correct: tuple[Effect, ...] = ()
    """What is taken out of the judge's comparisons, as far as the store shows it: see docs/judging.md."""
    replay: int = Field(0, ge=0)
    """Earlier rounds whose answers of these steps are paired too, those of a round among themselves."""
    per_prompt: int | None = Field(None, ge=1)
    """Most pairs of one prompt: the newest, of these those with the widest margin, of these those of the same slot."""
    min_margin: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Smallest margin, chosen less rejected, of a pair that is made."""
    length_ratio: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Most characters of chosen for each of rejected; a pair beyond it is dropped, so that length alone is not learned."""
    limit: int | None = Field(None, ge=1)
    """Most pairs kept, in an order that the seed gives."""

    @model_serializer(mode="wrap")
    def _as_before(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Ids depend on the settings: a recipe that uses none of the keys must keep its own.
        data: dict[str, Any] = told(self)
        unused = [key for key in _LATER if not data.get(key, True)]
        return {key: value for key, value in data.items() if key not in unused}

    def check(self, where: str) -> list[Problem]:
        """Find a rule that lacks the steps that it sets against each other."""
        if self.rule not in BY_STEPS or len(self.sources()) > 1:
            return []
        hint = "say `of: [BETTER, WORSE]`"
        return [Problem(f"{where}.of", f"{self.rule} sets steps against each other", hint)]

    @property
    def compares(self) -> bool:
        """Whether comparisons decide."""
        return self.from_ == "comparisons"

    async def advance(self, turn: Turn) -> Advance:
        """Make the pairs, in one super-step."""
        if not turn.done:
            began = time.monotonic()
            bias = estimate_bias(turn.run.store, self.by, turn.round) if self.correct else None
            query = PairQuery(
                round=turn.round,
                steps=self.sources(),
                judge=self.by,
                rule=self.rule,
                at_least=1.0 if self.by == VERIFIER else 0.0,
                seed=turn.run.seed,
                labels="comparisons" if self.compares else "scores",
                shift=bias.shift(self.correct) if bias else NOTHING,
                replay=self.replay,
                per_prompt=self.per_prompt,
                min_margin=self.min_margin,
                length_ratio=self.length_ratio,
            )
            rows = [self._row(turn, pair) for pair in pairs(turn.run.store, query)]
            rows.sort(key=lambda row: str(row["id"]))
            told = {"event": [self._event(turn, bias)]} if bias else {}
            turn.commit({"pair": rows[: self.limit], **told}, time.monotonic() - began)
        return turn.advance(1)

    def _event(self, turn: Turn, bias: Bias) -> Row:
        """Say what was estimated, and what of it was taken out."""
        turn.run.progress.note(f"{turn.step}: {bias.told(self.correct)}")
        return {
            "id": row_id("event", run=turn.run.key, round=turn.round, step=turn.step, kind="bias"),
            "round": turn.round,
            "step": turn.step,
            "kind": "bias",
            "detail": json.dumps(bias.as_dict(self.correct)),
            "created_at": now(),
        }

    def _row(self, turn: Turn, pair: PairOf) -> Row:
        parents = [pair.chosen, pair.rejected]
        rule = json.dumps([self.rule, self.by, *(["comparisons"] if self.compares else [])])
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


_LATER = ("from", "from_", "correct", "replay", "per_prompt", "min_margin", "length_ratio")
"""Keys that older recipes do not have."""


def settled(step: Pair, given: Collection[tuple[str, Labels]]) -> Pair:
    """Return the step with `by` and `from` filled in, where what judges gave leaves one possibility.

    Args:
        step: as it was written.
        given: the judges of the answers, each with what it gave.
    """
    if step.rule in BY_STEPS and not step.by:
        return step  # a judge of other answers is not meant
    fitting = {(j, f) for j, f in given if step.by in ("", j) and step.from_ in (None, f)}
    if len({judge for judge, _ in fitting}) != 1:
        return step
    [judge] = {judge for judge, _ in fitting}
    changes: dict[str, Any] = {"by": judge}
    if {labels for _, labels in fitting} == {"comparisons"}:
        changes["from_"] = "comparisons"
    return step.model_copy(update=changes)


def unsettled(step: Pair, given: Collection[tuple[str, Labels]], where: str) -> list[Problem]:
    """Return what keeps a settled step from pairing the answers."""
    judges = sorted({judge for judge, _ in given})
    kinds = {labels for judge, labels in given if judge == step.by}
    if not step.by and (step.rule in BY_STEPS or (step.rule in ALONE and not judges)):
        return _unjudged(step, where)
    if not judges:
        hint = "put a `score` or a `compare` step before"
        return [Problem(where, "nothing has scored or compared these completions", hint)]
    verbs: dict[Labels, str] = {"scores": "scored", "comparisons": "compared"}
    if step.from_ and step.from_ not in {labels for _, labels in given}:
        return [Problem(f"{where}.from", f"nothing has {verbs[step.from_]} these completions")]
    if step.by not in judges:
        did = " or ".join(sorted({verbs[labels] for _, labels in given}, reverse=True))
        who = f"{step.by!r} has not" if step.by else f"{' and '.join(judges)} have"
        return [Problem(f"{where}.by", f"{who} {did} them", f"say `by: {' or '.join(judges)}`")]
    if step.from_ not in (None, *kinds):
        what = f"{step.by} has given no {step.from_}"
        return [Problem(f"{where}.from", what, f"say `from: {' or '.join(sorted(kinds))}`")]
    if step.from_ is None and len(kinds) > 1:
        what = f"{step.by} has both scored and compared them"
        return [Problem(f"{where}.from", what, "say `from: scores` or `from: comparisons`")]
    return [Problem(f"{where}.correct", _ONLY)] if step.correct and not step.compares else []


def _unjudged(step: Pair, where: str) -> list[Problem]:
    """Return the settings that say nothing where the rule alone decides."""
    idle = {"correct": step.correct, "from": step.from_, "min_margin": step.min_margin}
    what = "says nothing where no judge decides"
    problems = [Problem(f"{where}.{k}", what, "name one with `by:`") for k, v in idle.items() if v]
    return [Problem(f"{where}.correct", _ONLY)] if step.correct else problems


_ONLY = "only comparisons are corrected, and these pairs come of none"
