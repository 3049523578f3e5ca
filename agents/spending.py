"""What calls to servers cost: a row for each, and money that is set aside before a chunk begins.

A reservation without charges is a chunk that a crash has cut off. It counts in full, because its calls
may have been billed: so a run stays under its budget over any number of restarts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from ..errors import TryLater
from ..hashing import row_id
from ..policies.calls import Asking, Caller, Outcome
from ..store.store import Row, now
from .operator import Turn


class Ledger(Protocol):
    """Keeps account of calls."""

    def reserve(self, role: str, client: Caller, calls: Sequence[Asking]) -> str | None:
        """Set aside the most that calls can cost, and return the reservation's id, where one is kept."""

    def charge(
        self, reservation: str | None, role: str, client: Caller, made: Sequence[Made], purpose: str
    ) -> None:
        """Keep what calls have cost."""


Made = tuple[Asking, Outcome]


class Spending:
    """The ledger of a run: rows of `reservation` and `charge`, each batch a transaction of its own.

    They are written aside from the rows of the chunk, so that what was billed is known even if the chunk
    is never finished.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def reserve(self, role: str, client: Caller, calls: Sequence[Asking]) -> str | None:
        """Set aside the most that calls can cost.

        Raises:
            TryLater: that would go beyond the budget.
        """
        budget, price = self._turn.run.budget_usd, client.address.price
        if budget is None or price is None:
            return None
        most = [call.most() for call in calls]
        tokens_in, tokens_out = (sum(side) for side in zip(*most, strict=True))
        dollars = price.of(tokens_in, tokens_out)
        spent = spent_usd(self._turn)
        if spent + dollars > budget:
            raise TryLater(
                f"the budget of ${budget:g} is kept: ${spent:.4f} is spent or set aside, and the next "
                f"{len(calls)} calls to {client.address.model} can cost ${dollars:.4f}; raise "
                f"`loop.stop.budget_usd` in {self._turn.run.folder / 'recipe.yaml'} and resume"
            )
        row = self._facts(role, client, "reservation", self._count("reservation"))
        row |= {"tokens": tokens_in + tokens_out, "dollars": dollars}
        self._commit("reservation", {"reservation": [row]}, row["id"])
        return str(row["id"])

    def charge(
        self, reservation: str | None, role: str, client: Caller, made: Sequence[Made], purpose: str
    ) -> None:
        """Keep what calls have cost, and what was learned on the way."""
        rows = []
        for nth, (call, outcome) in enumerate(made, start=self._count("charge")):
            dollars, price = cost(client, call, outcome)
            rows.append(
                self._facts(role, client, "charge", nth)
                | {
                    "reservation_id": reservation,
                    "model": outcome.usage.model,
                    "host": outcome.host,
                    "purpose": purpose,
                    "status": outcome.kind,
                    "tokens_in": outcome.usage.tokens_in,
                    "tokens_cached": outcome.tokens_cached,
                    "tokens_out": outcome.usage.tokens_out,
                    "dollars": dollars,
                    "price": price,
                    "seconds": outcome.seconds,
                }
            )
        if rows:
            self._commit("charge", {"charge": rows, "event": self._events(client)}, rows[0]["id"])

    def _facts(self, role: str, client: Caller, table: str, nth: int) -> Row:
        turn = self._turn
        return {
            "id": row_id(table, run=turn.run.key, round=turn.round, step=turn.step, nth=nth),
            "round": turn.round,
            "step": turn.step,
            "role": role,
            "model": client.address.model,
            "created_at": now(),
        }

    def _count(self, table: str) -> int:
        """Count the rows of this step so far: a call is an event, and billed again when made again."""
        turn = self._turn
        [found] = turn.run.store.rows(
            f"SELECT count(*) AS n FROM {table} WHERE round = ? AND step = ?",  # noqa: S608 - our words
            [turn.round, turn.step],
        )
        return int(found["n"])

    def _events(self, client: Caller) -> list[Row]:
        """Return what is worth keeping of how the server behaved; the same news is one row."""
        turn = self._turn
        return [
            {
                "id": row_id("event", kind=kind, round=turn.round, step=turn.step, detail=detail),
                "round": turn.round,
                "step": turn.step,
                "kind": kind,
                "detail": json.dumps(detail),
                "created_at": now(),
            }
            for kind, detail in client.news()
        ]

    def _commit(self, what: str, rows: dict[str, list[Row]], identifier: str) -> None:
        turn = self._turn
        turn.run.store.commit(
            rows, round=turn.round, step=f"{what}:{turn.step}:{identifier}", chunk=turn.cursor
        )


def cost(client: Caller, call: Asking, outcome: Outcome) -> tuple[float | None, str | None]:
    """Return the dollars of a call and where they are from; what did not say counts at its most."""
    price = client.address.price
    if price is None:
        return None, None
    usage = outcome.usage
    known = price.of(usage.tokens_in, usage.tokens_out)
    if not outcome.unmetered:
        return known, "recipe"
    return known + outcome.unmetered * price.of(*call.most()), "recipe, at most"


def spent_usd(turn: Turn) -> float:
    """Return the dollars that the run has spent or set aside so far."""
    [found] = turn.run.store.rows(
        """
        SELECT coalesce((SELECT sum(dollars) FROM charge), 0)
             + coalesce((SELECT sum(dollars) FROM reservation r
                         WHERE NOT EXISTS (SELECT 1 FROM charge c WHERE c.reservation_id = r.id)), 0) AS n
        """
    )
    return float(found["n"])
