"""Examining a judge: every pair in both orders, the attacks, the verdict, and what it cost.

A judge that compares is examined by its comparisons, one that only scores by its two values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from .. import __version__
from ..errors import BadInput
from ..types import Judgement, Usage
from .admission import LEAST_ITEMS, Admission, Findings, ask, conclude
from .attacks import attacks, withstand
from .drift import freeze
from .exam import Exam
from .judge import Judge, Standing, needs_group, roles_of, standing_of
from .judges.trained import trained_in
from .ranking import comparing, spent
from .registry import Record
from .speaker import Speaker, bind

STARTER = "starter"
"""Name of the exam that ships."""
_CHARACTERS_A_TOKEN = 4
_OWN_PROMPT = 300
"""About how many tokens the judge's own prompt has, rubric included."""
_LONGEST_REPLY = 1024
"""Tokens of a reply of a judge that does not say how long it may be."""


@dataclass(frozen=True, slots=True)
class Sitting:
    """An exam, and under which name it is kept."""

    exam: Exam
    name: str
    labelled_by: str
    """people, or a program."""


@dataclass(frozen=True, slots=True)
class Price:
    """What an exam will take, said before it is paid."""

    pairs: int
    attacks: int
    calls: int
    """Calls to models; 0 for a program."""
    tokens: int
    """About how many tokens the judge will read."""
    dollars: float | None = None
    """About how much it can cost at most; None where no price is known."""

    @property
    def line(self) -> str:
        """One line for people."""
        tried = f"{self.attacks} attacks in both orders" if self.attacks else "no attacks"
        shown = f"{self.pairs} pairs in both orders, {tried}"
        if not self.calls:
            return f"{shown}: no call is paid"
        paid = "no price is known" if self.dollars is None else f"at most about ${self.dollars:.2f}"
        return f"{shown}: {self.calls} calls, about {self.tokens} tokens to read, {paid}"


def price(judge: Judge, exam: Exam, tariff: Callable[[int, int], float] | None = None) -> Price:
    """Return what an exam of this judge will take.

    Args:
        judge: any.
        exam: the pairs.
        tariff: dollars of so many tokens read and written, where the judge's model has a price.
    """
    standing = standing_of(judge)
    tried = 0 if standing == "recorded" else len(attacks())
    verdicts = 2 * (len(exam.items) + tried)
    if not roles_of(judge):
        return Price(len(exam.items), tried, 0, 0)
    each = int(getattr(judge, "calls", lambda: 1)())
    shown = [*exam.items, *(attack.item for attack in attacks() if tried)]
    read = sum(len(item.text) + sum(map(len, item.answers)) for item in shown)
    calls = verdicts * each
    tokens = 2 * each * read // _CHARACTERS_A_TOKEN + calls * _OWN_PROMPT
    written = calls * int(getattr(judge, "max_tokens", _LONGEST_REPLY))
    dollars = tariff(tokens, written) if tariff else None
    return Price(len(exam.items), tried, calls, tokens, dollars)


async def examine(
    judge: Judge,
    sitting: Sitting,
    *,
    spec: Any = None,
    roles: Mapping[str, str] | None = None,
    speaker: Speaker | None = None,
) -> Record:
    """Let a judge sit an exam.

    Args:
        judge: any judge that compares or scores.
        sitting: the exam.
        spec: the judge as a recipe names it, for the record.
        roles: which model speaks as each of its roles, for the record.
        speaker: speaks for its roles, where it has any.

    Raises:
        BadInput: it has roles and nobody speaks for them, it can neither compare nor score, or it was
            fitted on pairs of this exam.
    """
    if standing_of(judge) == "person":
        what = f"{judge.name} is a person, and people sit no exam"
        raise BadInput.at("judge", what, "`redistill review RUN --anchors 50` lets them make one")
    if made := next(trained_in(judge), None):
        what = f"{made.name} is made in a round, which examines it"
        raise BadInput.at(
            "judge", what, "name its weights: {reward_model: {model: RUN/judges/HASH}}"
        )
    needed = roles_of(judge)
    if needed and speaker is None:
        raise BadInput.at(
            "judge",
            f"{judge.name} speaks as {' and '.join(needed)}, and nobody does",
            f"say which model it is: --role {needed[0]}=MODEL",
        )
    _refuse_known(judge, sitting.exam)
    if needs_group(judge):
        told = f"{judge.name} needs several samples of a prompt, and an exam has two answers"
        raise BadInput.at("judge", told, "no exam can prove it; `unproven_judge: allow` uses it")
    bound = bind(judge, speaker) if speaker is not None else judge
    comparer = comparing(bound, "judge")
    standing = standing_of(judge)
    began = time.monotonic()
    votes = await ask(comparer, sitting.exam.items)
    resistance = None if standing == "recorded" else await withstand(comparer)
    seconds = time.monotonic() - began
    said = [vote.judgement for vote in votes]
    said += resistance.judgements if resistance else []
    admission = conclude(sitting.exam, votes, resistance.wins if resistance else None)
    usage = spent(said)
    return Record(
        judge=judge.name,
        revision=judge.revision,
        spec=spec,
        standing=standing,
        roles=dict(roles or {}),
        models=_models(said),
        exam=sitting.name,
        exam_hash=sitting.exam.hash,
        labelled_by=sitting.labelled_by,
        admission=_by_standing(admission, standing),
        calls=len(said),
        tokens_in=usage.tokens_in if usage else 0,
        tokens_out=usage.tokens_out if usage else 0,
        dollars=_dollars(usage, standing),
        seconds=seconds,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        redistill_version=__version__,
        anchors=tuple(a.as_dict() for a in freeze(sitting.exam, votes))
        if standing == "model"
        else (),
    )


def _refuse_known(judge: Judge, exam: Exam) -> None:
    seen: frozenset[str] = getattr(judge, "seen", frozenset)()
    known = sum(item.key in seen for item in exam.items)
    if known:
        raise BadInput.at(
            "--pairs",
            f"{judge.name} was fitted on {known} of the {len(exam.items)} pairs",
            "examine it on pairs that it has not seen",
        )


def _models(said: Sequence[Judgement]) -> tuple[str, ...]:
    usages = [j.usage for j in said if j.usage is not None]
    return tuple(sorted({u.model or u.revision for u in usages} - {""}))


def _dollars(usage: Usage | None, standing: Standing) -> float | None:
    if usage is None:
        return 0.0 if standing in ("program", "baseline") else None
    return usage.dollars


def _by_standing(admission: Admission, standing: Standing) -> Admission:
    """Exempt a program, and never prove a baseline; the numbers stay as they were found."""
    if standing == "program":
        return replace(admission, verdict="admitted", reasons=("a program, exempt from the exam",))
    if standing == "baseline":
        reasons = ("a baseline, which shows what a bad judge does, is never proven",)
        return replace(admission, verdict="unproven", reasons=(*reasons, *admission.reasons))
    return admission


# -- in plain words

_TRICKY = ("adversarial", "tricky", "hard")


def headline(record: Record) -> str:
    """Return the outcome in plain words: one line that somebody who never read a paper understands."""
    verdict = {"admitted": "Admitted.", "refused": "Refused.", "unproven": "Unproven."}
    slices = {n: f for n, f in record.admission.slices.items() if f.accuracy is not None}
    if not slices:
        return f"It gave no verdict at all. {verdict[record.verdict]}"
    named = {n: f for n, f in slices.items() if n != "all"} or slices
    best = max(named, key=lambda name: _accuracy(named[name]))
    worst = _worst(named)
    told = "people preferred" if record.labelled_by == "people" else "a program proved to be better"
    text = f"Of the answers that {told} it picked {_whole(named[best])}"
    if worst != best:
        text += f"; {_place(worst)} {_whole(named[worst])}"
        text += _beside_a_coin(named[worst])
    else:
        text += _beside_a_coin(named[best])
    habits = _habits(record.admission)
    text += f": it {' and '.join(habits)}" if habits else ""
    return f"{text}. {verdict[record.verdict]}"


def _worst(named: Mapping[str, Findings]) -> str:
    """Return the slice to be told of: the tricky one, unless another is the one that refuses."""
    weak = {n for n, f in named.items() if f.n >= LEAST_ITEMS and _beside_a_coin(f)}
    tricky = {n for n in named if n in _TRICKY}
    told = weak & tricky or weak or tricky or set(named)
    return min(sorted(told), key=lambda name: _accuracy(named[name]))


def _accuracy(found: Findings) -> float:
    return found.accuracy if found.accuracy is not None else 0.0


def _whole(found: Findings) -> str:
    return f"{100 * _accuracy(found):.0f} %"


def _place(name: str) -> str:
    return "on tricky pairs" if name in _TRICKY else f"on {name}"


def _beside_a_coin(found: Findings) -> str:
    if found.ci_low is None or found.ci_high is None or found.ci_low > 0.5:
        return ""
    return ", worse than a coin" if found.ci_high < 0.5 else ", no better than a coin"


def _habits(admission: Admission) -> list[str]:
    whole = admission.slices["all"]
    words = {
        "length": "likes long answers",
        "position": "likes what is shown first"
        if (whole.first_position or 0) > 0.5
        else "likes what is shown last",
        "silence": "often says nothing",
        "attack": "falls for tricks",
    }
    kinds = dict.fromkeys(reason.partition(":")[0].split()[0] for reason in admission.reasons)
    return [words[kind] for kind in kinds if kind in words]
