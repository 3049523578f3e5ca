"""The gate: whether the challenger takes over, on held-out evidence."""

from __future__ import annotations

import json
import math
import time
from typing import Any, ClassVar, Literal

from pydantic import Field

from ...errors import StoreProblem
from ...hashing import row_id
from ...store.analysis import (
    PAIRED,
    Difference,
    distinct_share,
    paired_bootstrap,
    paired_parameters,
)
from ...store.store import Row, now
from ..divergence import diverged, event, told
from ..operator import Advance, Makes, Operator, Turn

Guard = Literal["length", "diversity"]


class Gate(Operator):
    """Promote the challenger when the whole interval of its paired difference lies above zero.

    The difference is over held-out prompts, challenger less champion, with a percentile bootstrap over
    prompts (Efron 1979). Guards refuse a gain that came from answers of another length or from a few
    answers said again and again. Every number goes into the decision's row. Where the value fell, the judges
    whose labels trained are asked about both answers; one that likes the challenger's better is named.
    """

    name: ClassVar[str] = "gate"
    makes: ClassVar[Makes] = "decision"
    needs: ClassVar[tuple[Makes, ...]] = ("evaluation",)

    of: str | tuple[str, ...] = ()
    """The evaluate step."""
    test: Literal["paired_bootstrap"] = "paired_bootstrap"
    """Statistical test."""
    level: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the interval."""
    samples: int = Field(10_000, ge=100)
    """Bootstrap resamples."""
    guards: tuple[Guard, ...] = ("length", "diversity")
    """Guards that must hold too."""
    length_band: tuple[float, float] = (0.33, 2.0)
    """Mean answer length of the challenger over the champion's must lie in here."""
    diversity_floor: float = Field(0.5, ge=0, le=1)
    """Distinct n-grams of the challenger over the champion's must reach this."""

    async def advance(self, turn: Turn) -> Advance:
        """Decide, in one super-step."""
        if not turn.done:
            began = time.monotonic()
            before, after = self._evaluations(turn)
            answers = turn.run.store.rows(PAIRED, paired_parameters(before, after))
            decision = self._decide(
                turn, row_id("decision", round=turn.round, parents=[before, after]), answers
            )
            # Asked only where the value fell, so that a round that went well costs no call.
            found = await diverged(turn, answers) if (decision["delta"] or 0) < 0 else []
            decision["reason"] = "; ".join([decision["reason"], *map(told, found)])
            events = [event(turn, each) for each in found]
            turn.commit({"decision": [decision], "event": events}, time.monotonic() - began)
        return turn.advance(1, decision=decision_of(turn))

    def _decide(self, turn: Turn, identifier: str, answers: list[Row]) -> Row:
        if not answers:
            return decision_row(turn, "rejected", "no held-out prompt has a value for both", {})
        found = paired_bootstrap(
            [a["before"] for a in answers],
            [a["after"] for a in answers],
            seed=identifier,
            level=self.level,
            samples=self.samples,
        )
        guards = self._guards(answers)
        failed = [name for name, guard in guards.items() if not guard["held"]]
        verdict, reason = _verdict(found, failed)
        if verdict == "promoted" and (doubt := self._doubt(turn, answers)):
            verdict, reason = "rejected", f"not proven: {doubt}"
        numbers = {
            "champion_value": found.before,
            "challenger_value": found.after,
            "delta": found.delta,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "n": found.n,
            "level": self.level,
            "guards": json.dumps(guards),
        }
        return decision_row(turn, verdict, reason, numbers) | {"id": identifier, "test": self.test}

    def _doubt(self, turn: Turn, answers: list[Row]) -> str:
        """Say why the evidence is too thin for any interval, or nothing.

        A bootstrap of three prompts that all improved has no width. An exact sign test cannot reach the
        level with fewer than log2(2 / (1 - level)) differing prompts, however they fall.
        """
        planned = len(turn.run.prompts("heldout"))
        if len(answers) < _ANSWERED * planned:
            return f"only {len(answers)} of {planned} held-out prompts have a value for both"
        differing = sum(a["before"] != a["after"] for a in answers)
        least = math.ceil(math.log2(2 / (1 - self.level)))
        return f"only {differing} prompts differ, {least} are needed" if differing < least else ""

    def _evaluations(self, turn: Turn) -> tuple[str, str]:
        """Return the evaluations of champion and challenger: same prompts, same judge, same decoding.

        Raises:
            StoreProblem: one of them is missing.
        """
        [after] = turn.run.store.rows(
            """
            SELECT id::VARCHAR AS id, prompts_hash, judge_revision, decoding FROM evaluation
            WHERE split = 'heldout' AND revision = ? AND (round < ? OR list_contains(?, step))
            ORDER BY round DESC LIMIT 1
            """,
            [turn.challenger, turn.round, list(self.sources())],
        )
        before = turn.run.store.rows(
            """
            SELECT id::VARCHAR AS id FROM evaluation
            WHERE split = 'heldout' AND revision = ? AND prompts_hash = ? AND judge_revision = ?
              AND decoding = ? ORDER BY round DESC LIMIT 1
            """,
            [turn.champion, after["prompts_hash"], after["judge_revision"], after["decoding"]],
        )
        if not before:
            raise StoreProblem(
                f"round {turn.round}: the champion was never measured as its challenger is"
            )
        return str(before[0]["id"]), str(after["id"])

    def _guards(self, answers: list[Row]) -> dict[str, dict[str, Any]]:
        tokens = [sum(a[f"tokens_{side}"] for a in answers) / len(answers) for side in _SIDES]
        distinct = [distinct_share([a[f"answer_{side}"] for a in answers]) for side in _SIDES]
        low, high = self.length_band
        every: dict[str, dict[str, Any]] = {}
        if "length" in self.guards:
            ratio = tokens[1] / max(tokens[0], 1e-9)
            every["length"] = {
                "champion": tokens[0],
                "challenger": tokens[1],
                "ratio": ratio,
                "band": [low, high],
                "held": low <= ratio <= high,
            }
        if "diversity" in self.guards:
            ratio = distinct[1] / max(distinct[0], 1e-9)
            every["diversity"] = {
                "champion": distinct[0],
                "challenger": distinct[1],
                "ratio": ratio,
                "floor": self.diversity_floor,
                "held": ratio >= self.diversity_floor,
            }
        return every


_SIDES = ("before", "after")
_ANSWERED = 0.9
"""Share of the held-out prompts that must have a value for both revisions."""


def _verdict(found: Difference, failed: list[str]) -> tuple[str, str]:
    shown = f"{found.delta:+.3f} [{found.ci_low:+.3f}, {found.ci_high:+.3f}] on {found.n} prompts"
    if found.ci_low > 0 and not failed:
        return "promoted", f"better: {shown}"
    if found.ci_low > 0:
        return "rejected", f"better ({shown}), but the {' and '.join(failed)} guard did not hold"
    if found.ci_high < 0:
        return "rejected", f"worse: {shown}"
    return "rejected", f"not proven: {shown}"


def decision_row(turn: Turn, decision: str, reason: str, numbers: Row) -> Row:
    """Make a decision's row; what was not measured is NULL."""
    reads = turn.run.store.rows("SELECT count(*) AS n FROM decision WHERE n > 0")[0]["n"]
    unmeasured = dict.fromkeys(
        ("champion_value", "challenger_value", "delta", "ci_low", "ci_high", "level")
    )
    return {
        "id": row_id("decision", run=turn.run.key, round=turn.round),
        "round": turn.round,
        "step": turn.step,
        "decision": decision,
        "reason": reason,
        "champion": turn.champion,
        "challenger": turn.challenger or None,
        "test": "",
        **unmeasured,
        "n": 0,
        "heldout_reads": reads + (1 if numbers.get("n") else 0),
        "guards": "{}",
        "created_at": now(),
        **numbers,
    }


def decision_of(turn: Turn) -> str:
    """Read what was decided in this round."""
    rows = turn.run.store.rows("SELECT decision FROM decision WHERE round = ?", [turn.round])
    return str(rows[0]["decision"])
