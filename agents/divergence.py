"""Divergence: the judge whose labels trained likes the challenger better, and the evaluation finds it worse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..hashing import row_id, row_seed
from ..store.facts import find_prompts
from ..store.store import Row, now
from ..types import Completion, Prompt
from .admission import wilson
from .judge import Judge, JudgeTask, let_go, needs_group
from .operator import Operator, Turn
from .operators.feedback import Compare, Score
from .operators.improve import Evaluate, Train
from .people import is_person
from .ranking import comparing, first_wins
from .speaker import bind
from .speakers import Speakers


async def diverged(turn: Turn, answers: Sequence[Row]) -> list[dict[str, Any]]:
    """Ask the judges whose labels trained about both revisions' answers; return what those find that like the new ones.

    Only a chunk of the answers is shown, in an order by chance. People, judges that need a group of answers, and
    the judge that measures are not asked.

    Args:
        turn: of the gate.
        answers: of champion and challenger, as `PAIRED` gives them.
    """
    different = [a for a in answers if a["answer_before"] != a["answer_after"]]
    asked = different[: turn.run.chunk]
    prompts = find_prompts(turn.run.store, [a["prompt_id"] for a in asked])
    found = []
    for judge in _labelling(turn):
        # Who speaks as the student's current revision spoke as the champion when it labelled.
        speakers = Speakers(Turn(turn.run, turn.round, turn.step, turn.cursor, turn.champion))
        bound = bind(judge, speakers)
        ready = comparing(bound, turn.step)
        tasks = [_shown(prompts[a["prompt_id"]], a) for a in asked]
        verdicts = await ready.compare([task for task, _ in tasks])
        let_go(judge)
        won = [
            first_wins(verdict) if first else 1 - first_wins(verdict)
            for (_, first), verdict in zip(tasks, verdicts, strict=True)
            if verdict.value is not None
        ]
        low, _ = wilson(sum(won), len(won))
        if low is not None and low > 0.5:
            share = {"prefers": sum(won) / len(won), "ci_low": low, "n": len(won)}
            found.append({"judge": bound.name, "judge_revision": bound.revision, **share})
    return found


def told(found: Mapping[str, Any]) -> str:
    """Return what a divergence means, for the reason of a decision."""
    return (
        f"{found['judge']}, whose labels trained it, prefers its answers to "
        f"{100 * found['prefers']:.0f} % of {found['n']} prompts: judge up, evaluation down"
    )


def event(turn: Turn, found: Mapping[str, Any]) -> Row:
    """Return the event of a divergence."""
    return {
        "id": row_id(
            "event", kind="judge_diverged", round=turn.round, judge=found["judge_revision"]
        ),
        "round": turn.round,
        "step": turn.step,
        "kind": "judge_diverged",
        "detail": json.dumps(dict(found)),
        "created_at": now(),
    }


def _labelling(turn: Turn) -> Iterator[Judge]:
    """Return the judges of the round whose labels train, each once."""
    steps = turn.run.steps(turn.round)
    seen = {r for step in steps if isinstance(step, Evaluate) for r in step.judges().values()}
    for step in steps:
        for judge in _judges(step):
            if not (judge.revision in seen or needs_group(judge) or is_person(judge)):
                yield judge
            seen.add(judge.revision)


def _judges(step: Operator) -> list[Judge]:
    """Return the judges of a step whose values train, as labels or as rewards."""
    if isinstance(step, Score | Compare):
        return [step.load_judge()]
    return [judge for judge, _ in step.reward_judges()] if isinstance(step, Train) else []


def _shown(prompt: Prompt, answers: Row) -> tuple[JudgeTask, bool]:
    """Return both answers to a prompt, to be compared, and whether the challenger's is shown first."""
    before, after = (
        Completion(
            id=f"{prompt.id} {side}",
            prompt_id=prompt.id,
            text=answers[f"answer_{side}"],
            token_ids=(),
            logprobs=(),
            finish_reason="stop" if answers[f"ended_{side}"] else "length",
            revision="",
        )
        for side in ("before", "after")
    )
    first = bool(row_seed(f"shown {prompt.id}") % 2)
    return (
        JudgeTask(prompt, after, (before,)) if first else JudgeTask(prompt, before, (after,)),
        first,
    )
