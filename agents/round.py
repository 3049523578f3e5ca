"""One round as a LangGraph graph: a node an operator, a loop over its chunks, promote or reject at the end.

    sample -> score -> pair -> train -> evaluate -> gate -> promote
                                  |                    `--> reject
                                  `--- nothing published ----^

A train step that makes a judge stands before the student's, and ends the round where nothing proves that judge.

A node does one chunk and returns its cursor; a conditional edge leads back to it until the step is
finished. The state is a handful of scalars, because the checkpointer writes it whole at every step; what
the operators see and make lies in the store. Nodes are idempotent: a chunk that is run again after a
crash finds itself in the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from ..hashing import row_id
from ..store.facts import committed
from ..store.store import now
from .operator import Advance, Operator, RunContext, Turn
from .operators.gate import decision_row
from .operators.improve import Evaluate

PROMOTE, REJECT = "promote", "reject"
_FINISHED, _ENDED = -1, -2
"""Cursors of a step that is finished, and of one with which the round ends."""


class RoundState(TypedDict):
    """The cursors of a round; under 2 kB."""

    round: int
    champion: str
    challenger: str
    decision: str
    cursor: int
    """The next chunk of the running step; -1 when it is finished, -2 when the round ends with it."""
    committed: int
    """Chunks in the store's ledger when the state was written: a count that the store itself cannot lose."""


class Node(Protocol):
    """One node: the state's scalars in, what changes out; the runtime brings the context."""

    def __call__(
        self, state: RoundState, *, runtime: Runtime[RunContext]
    ) -> Awaitable[dict[str, Any]]:
        """Do one super-step."""


Graph = StateGraph[RoundState, RunContext, RoundState, RoundState]


def opening(round_: int, champion: str, challenger: str = "") -> RoundState:
    """Return the state in which a graph begins."""
    return RoundState(
        round=round_, champion=champion, challenger=challenger, decision="", cursor=0, committed=0
    )


def build_round(steps: Sequence[Operator]) -> Graph:
    """Return the graph of one round; compile it with a checkpointer to run it."""
    graph: Graph = StateGraph(RoundState, context_schema=RunContext)
    for step in steps:
        graph.add_node(step.step, _node(step.step, step.advance))
    graph.add_node(PROMOTE, _end(PROMOTE))
    graph.add_node(REJECT, _end(REJECT))
    graph.add_edge(START, steps[0].step)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        _connect(graph, step, following)
    graph.add_edge(PROMOTE, END)
    graph.add_edge(REJECT, END)
    return graph


def build_measurement(evaluate: Evaluate, name: str, split: Any) -> Graph:
    """Return the graph that only measures the current revision on a split."""

    async def measure(turn: Turn) -> Advance:
        return await evaluate.measure(turn, split)

    graph: Graph = StateGraph(RoundState, context_schema=RunContext)
    graph.add_node(name, _node(name, measure))
    graph.add_edge(START, name)
    graph.add_conditional_edges(name, lambda s: name if s["cursor"] >= 0 else END, [name, END])
    return graph


def _node(step: str, advance: Callable[[Turn], Awaitable[Advance]]) -> Node:
    async def node(state: RoundState, *, runtime: Runtime[RunContext]) -> dict[str, Any]:
        turn = _turn(state, runtime, step)
        found = await advance(turn)
        update: dict[str, Any] = {"cursor": _cursor(found)}
        update["committed"] = committed(runtime.context.store)
        if found.cursor is None:
            runtime.context.store.publish()
        if found.challenger:
            update["challenger"] = found.challenger
        if found.decision:
            update["decision"] = found.decision
        return update

    return node


def _cursor(found: Advance) -> int:
    if found.cursor is not None:
        return found.cursor
    return _ENDED if found.ends else _FINISHED


def _turn(state: RoundState, runtime: Runtime[RunContext], step: str) -> Turn:
    return Turn(
        run=runtime.context,
        round=state["round"],
        step=step,
        # A step that begins finds what the one before it has left, which is below 0.
        cursor=max(0, state["cursor"]),
        champion=state["champion"],
        challenger=state["challenger"],
    )


def _connect(graph: Graph, step: Operator, following: Operator | None) -> None:
    """Lead from a step back to itself, onward, or to one of the two ends."""

    def route(state: RoundState) -> str:
        if state["cursor"] >= 0:
            return step.step
        if state["cursor"] == _ENDED or (step.made() == "revision" and not state["challenger"]):
            return REJECT
        if step.makes == "decision":
            return PROMOTE if state["decision"] == "promoted" else REJECT
        return following.step if following else REJECT

    ends = [PROMOTE, REJECT] if step.makes == "decision" else []
    if step.made() in ("judge", "revision"):
        ends = [REJECT]
    targets = [step.step, *([following.step] if following else []), *ends]
    graph.add_conditional_edges(step.step, route, targets)


def _end(name: str) -> Node:
    async def node(state: RoundState, *, runtime: Runtime[RunContext]) -> dict[str, Any]:
        turn = _turn(state, runtime, name)
        rows: dict[str, list[dict[str, Any]]] = {"event": [_event(turn)]}
        if not state["decision"]:
            rows["decision"] = [decision_row(turn, "rejected", _why(turn), {})]
        turn.commit(rows, 0.0)
        runtime.context.store.publish(force=True)
        return {
            "decision": "promoted" if name == PROMOTE else "rejected",
            "cursor": _FINISHED,
            "committed": committed(runtime.context.store),
        }

    return node


def _event(turn: Turn) -> dict[str, Any]:
    champion = turn.challenger if turn.step == PROMOTE else turn.champion
    return {
        "id": row_id("event", run=turn.run.key, round=turn.round, kind=turn.step),
        "round": turn.round,
        "step": turn.step,
        "kind": turn.step,
        "detail": json.dumps({"champion": champion}),
        "created_at": now(),
    }


def _why(turn: Turn) -> str:
    """Say what the round's last training has come to: nothing published, or a judge that nothing proves."""
    rows = turn.run.store.rows(
        """
        SELECT t.step, t.status, t.message, a.reason FROM training_run t
        LEFT JOIN admission a ON a.round = t.round AND a.step = t.step
        WHERE t.round = ? ORDER BY t.created_at DESC LIMIT 1
        """,
        [turn.round],
    )
    if not rows:
        return "nothing was trained"
    [row] = rows
    judges = {step.step for step in turn.run.steps(turn.round) if step.made() == "judge"}
    who = row["step"] if row["step"] in judges else "training"
    unproven = row["reason"] if row["status"] == "trained" else None
    return f"{who}: {unproven or row['status'] + ': ' + row['message']}"
