"""Answers of a role that quotes: the one that each prompt comes with, of no model and without token ids.

So supervised training on references, self-play against them (SPIN) and preferences for them are bindings of a role.
Where such an answer trains, its text is encoded with the student's tokenizer, as a remote one's is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..errors import Problem
from ..hashing import content_hash, row_id
from ..policies.policy import Sampling
from ..store.store import Row, content, now
from ..types import Prompt
from .answer import Answered, Asked, completion_id, facts, worded
from .operator import Turn
from .operators.elicit import Sample
from .recipe import Recipe
from .right_answer import right_answer
from .roles import REFERENCES

REVISION = content_hash([REFERENCES, 1])
"""What stands where the hash of weights does; raised with every change of which text is quoted."""


def quote(turn: Turn, role: str, asked: Sequence[Asked], sampling: Sampling) -> Answered:
    """Return the rows of the prompts' own answers; prompts without one are left out, and one event names them."""
    rows: dict[str, list[Row]] = {"completion": [], "content": [], "event": []}
    completions = []
    for a in asked:
        if not (right := right_answer(a.prompt)):
            continue
        text = content(right, turn.round)
        row = facts(turn, role, a, sampling, None) | {"text_hash": text["hash"]}
        row |= {"id": completion_id(turn, role, a, REVISION, sampling)}
        row, said = worded(row, a.prompt, right, model=REFERENCES, revision=REVISION)
        rows["completion"].append(row)
        rows["content"].append(text)
        completions.append((a.prompt, said))
    if bare := [a.prompt.id for a in asked if not right_answer(a.prompt)]:
        rows["event"] = [_unquoted(turn, bare)]
        told = f"{len(bare)} of {len(asked)} prompts left out: they have no reference"
        turn.run.progress.note(f"round {turn.round} {turn.step}: {told}")
    return Answered(rows, completions)


def check_quoted(recipe: Recipe, prompts: Sequence[Prompt]) -> list[Problem]:
    """Refuse a step that quotes the prompts' own answers, where not one that trains has any."""
    train = [prompt for prompt in prompts if prompt.split == "train"]
    if any(right_answer(prompt) for prompt in train):
        return []
    what = "no prompt has a `reference` or an `answer` that could be quoted"
    hint = "add them to the prompts' file, or give the role a model"
    return [
        Problem(f"roles.{step.role}.policy", what, hint)
        for stage in recipe.stages
        for step in stage.steps
        if isinstance(step, Sample)
        and not step.sources()  # other prompts than those of the file are not known yet
        and recipe.roles[step.role].policy == REFERENCES
    ]


def _unquoted(turn: Turn, prompts: Sequence[str]) -> Row:
    return {
        "id": row_id(
            "event", kind="no_reference", round=turn.round, step=turn.step, chunk=turn.cursor
        ),
        "round": turn.round,
        "step": turn.step,
        "kind": "no_reference",
        "detail": json.dumps({"prompts": list(prompts)}),
        "created_at": now(),
    }
