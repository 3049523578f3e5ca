"""The graph of a round as Mermaid text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..agents.operator import Operator
from ..agents.recipe import Recipe
from ..agents.round import build_round
from ..agents.trained_judges import trained_of


def mermaid(recipe: Recipe) -> str:
    """Return the graph of the first stage's rounds as LangGraph draws it.

    Stages that differ from the first are told in comment lines: what each changes. So are judges that a step makes,
    because no edge shows who asks them.
    """
    text = build_round(recipe.stages[0].steps).compile().get_graph().draw_mermaid()
    # The colours and the curve are a matter of where it is shown; the front matter breaks old renderers.
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"__(start|end)__\(\[<p>__\w+__</p>\]\):::\w+", r"__\1__([\1])", text)
    lines = [line for line in text.splitlines() if not line.strip().startswith("classDef")]
    head = "%% every round"
    first = 1
    notes = []
    for index, stage in enumerate(recipe.stages):
        last = first + stage.repeat - 1
        rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
        if index == 0 and len(recipe.stages) > 1:
            head = f"%% {rounds}"
        elif index:
            changes = _changes(recipe.stages[0].steps, stage.steps)
            notes.append(f"%% {rounds}: {changes}")
        first = last + 1
    notes += _judges(recipe.stages[0].steps)
    notes.append("%% an edge from a step to itself is its next chunk")
    return "\n".join([lines[0], head, *notes, *lines[1:]]).replace("\t", "    ").rstrip()


def _judges(steps: Sequence[Operator]) -> list[str]:
    """Say who asks each judge that a step makes."""
    made = [step.step for step in steps if step.made() == "judge"]
    asked = {
        name: [s.step for s in steps if name in {judge.step for judge in trained_of(s)}]
        for name in made
    }
    return [
        f"%% {name} makes a judge, asked by {' and '.join(who) or 'nobody'}"
        for name, who in asked.items()
    ]


def _changes(base: Any, steps: Any) -> str:
    """Say in one line how a stage differs from the first."""
    names = [step.step for step in steps]
    if names != [step.step for step in base]:
        return " -> ".join(names)
    changed = []
    for before, after in zip(base, steps, strict=True):
        old, new = before.model_dump(by_alias=True), after.model_dump(by_alias=True)
        changed += [f"{after.step}.{key} = {new[key]}" for key in new if old.get(key) != new[key]]
    return ", ".join(changed) or "as the first"
