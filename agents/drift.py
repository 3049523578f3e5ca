"""Drift: whether a judge that was admitted still is what it was, asked again once a round.

An exam freezes some of its pairs, *anchors*, with what the judge said of them. Before a judge that is a
model labels anything in a round it judges them again, and meets the attacks again. Accuracy outside the
anchors' own 95 % interval of the exam is an event, `judge_drift`; an attack that wins stops the round.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UnfitJudge
from ..hashing import content_hash, row_id, row_seed
from ..store.store import Row, now
from .admission import MOST_ATTACKS, NEAR, Vote, ask, findings, wilson
from .attacks import withstand
from .exam import Exam, ExamItem
from .judge import Judge, standing_of
from .operator import Turn
from .ranking import comparing
from .speaker import bind
from .speakers import Speakers

MOST = 40
"""Anchors that an exam freezes."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A pair of the exam, and how right the judge was on it."""

    item: ExamItem
    right: float
    """Mean over both orders, a tie counts half."""

    def as_dict(self) -> dict[str, Any]:
        """Return the anchor as a record holds it."""
        item = self.item
        one, two = item.answers
        said = {"id": item.id, "input": item.text, "output_1": one, "output_2": two}
        return said | {"label": item.label, "right": self.right}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Anchor:
        """Return the anchor that a record holds."""
        answers = (kept["output_1"], kept["output_2"])
        return cls(ExamItem(kept["id"], kept["input"], answers, kept["label"]), kept["right"])


def freeze(exam: Exam, votes: Sequence[Vote], most: int = MOST) -> tuple[Anchor, ...]:
    """Choose the anchors of an exam: the slices take turns, within one their pairs come by chance.

    So each beginning of the list holds the slices in equal parts. Pairs without a verdict in both orders
    are left out: what a judge could not say before cannot drift.
    """
    by_item: dict[str, list[Vote]] = {}
    for vote in votes:
        if vote.parsed:
            by_item.setdefault(vote.item.id, []).append(vote)
    queues = [
        sorted(
            (item for item in items if len(by_item.get(item.id, ())) == 2),
            key=lambda item: row_seed(content_hash([item.text, *item.answers])),
        )
        for items in exam.slices.values()
    ]
    turns = max(map(len, queues), default=0)
    chosen = {q[n].id: q[n] for n in range(turns) for q in queues if n < len(q)}
    return tuple(
        Anchor(item, findings(by_item[item.id]).accuracy or 0.0)
        for item in list(chosen.values())[:most]
    )


async def watch(turn: Turn, judge: Judge) -> None:
    """Ask a judge about its anchors and let it meet the attacks, once a round.

    Only a judge that is a model and was admitted as the run began is asked. The calls are charged to the
    step `anchors`.

    Raises:
        UnfitJudge: an attack wins more than 5 % of its tries; nothing of this step was labelled.
    """
    most, store = turn.run.anchors, turn.run.store
    if not most or standing_of(judge) != "model":
        return
    there = f"anchors:{judge.revision}"
    if store.done(round=turn.round, step=there, chunk=0):
        return
    anchors = _anchors(turn, judge)[:most]
    if not anchors:
        return
    asked = replace(turn, step="anchors", cursor=0)
    comparer = comparing(bind(judge, Speakers(asked)), f"{turn.step}.judge")
    votes = await ask(comparer, [anchor.item for anchor in anchors])
    tried = await withstand(comparer)
    found = _compared(judge, anchors, votes) | {"attacks": dict(tried.wins)}
    won = {name: share for name, share in tried.wins.items() if share > MOST_ATTACKS}
    if won:
        # Not under the step's own name: when the run goes on, the judge is asked again.
        event = _event(asked, judge, "judge_canary", found | {"nth": _earlier(turn)})
        store.commit({"event": [event]}, round=turn.round, step=f"canary:{event['id']}", chunk=0)
        raise UnfitJudge(_told_canary(turn, judge, won))
    kinds = ["judge_anchors", *(["judge_drift"] if found["drifted"] else [])]
    if found["drifted"]:
        turn.run.progress.note(f"round {turn.round}: {told_drift(found)}")
    events = [_event(asked, judge, kind, found) for kind in kinds]
    store.commit({"event": events}, round=turn.round, step=there, chunk=0)


def _anchors(turn: Turn, judge: Judge) -> tuple[Anchor, ...]:
    """Return the anchors of the exam with which a judge began this run."""
    rows = turn.run.store.rows(
        "SELECT detail FROM admission WHERE judge_revision = ? AND verdict = 'admitted'",
        [judge.revision],
    )
    kept = json.loads(rows[0]["detail"]).get("anchors", []) if rows else []
    return tuple(map(Anchor.from_dict, kept))


def _compared(judge: Judge, anchors: Sequence[Anchor], votes: Sequence[Vote]) -> dict[str, Any]:
    """Return the facts of a check: accuracy before and now, and whether it has left the interval."""
    right = sum(anchor.right for anchor in anchors)
    low, high = wilson(right, len(anchors))
    whole = findings(votes)
    silent = 2 * whole.n < len(anchors)
    outside = whole.accuracy is None or not (
        (low or 0.0) - NEAR <= whole.accuracy <= (high or 1.0) + NEAR
    )
    return {
        "judge": judge.name,
        "judge_revision": judge.revision,
        "before": right / len(anchors),
        "ci_low": low,
        "ci_high": high,
        "accuracy": whole.accuracy,
        "n": whole.n,
        "anchors": len(anchors),
        "abstained": whole.abstained,
        "drifted": silent or outside,
    }


def told_drift(found: dict[str, Any]) -> str:
    """Return what drift means, in one line for people."""
    name, asked = found["judge"], found["anchors"]
    if found["accuracy"] is None or 2 * found["n"] < asked:
        return f"{name} gave a verdict on {found['n']} of its {asked} anchors"
    return (
        f"{name} is right on {100 * found['accuracy']:.0f} % of its {asked} anchors, in its exam it was "
        f"on {100 * found['before']:.0f} % ({found['ci_low']:.2f}-{found['ci_high']:.2f})"
    )


def _told_canary(turn: Turn, judge: Judge, won: dict[str, float]) -> str:
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in won.items())
    return (
        f"round {turn.round} {turn.step}: attacks win against {judge.name} ({shares} of their tries, "
        f"{100 * MOST_ATTACKS:.0f} % is the limit), and what it labels would teach them; mend the judge "
        "and resume, or write `execution: {anchors: 0}` to go on unwatched"
    )


def _earlier(turn: Turn) -> int:
    [found] = turn.run.store.rows("SELECT count(*) AS n FROM event WHERE kind = 'judge_canary'")
    return int(found["n"])


def _event(turn: Turn, judge: Judge, kind: str, detail: dict[str, Any]) -> Row:
    nth = detail.get("nth", 0)
    return {
        "id": row_id(
            "event",
            run=turn.run.key,
            round=turn.round,
            kind=kind,
            judge=judge.revision,
            nth=nth,
        ),
        "round": turn.round,
        "step": turn.step,
        "kind": kind,
        "detail": json.dumps(detail),
        "created_at": now(),
    }
