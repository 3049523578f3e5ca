"""The graph of a run's rounds as Mermaid text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..agents.operator import Operator
from ..agents.recipe import Recipe, Stage
from ..agents.round import build_round
from ..agents.trained_judges import trained_of

_NODE = re.compile(r"\s+(\w+)(\(.*\))")
_EDGE = re.compile(r"\s+(\w+) (-.*->) (\w+);")
_CHUNKS = "%% an edge from a step to itself is its next chunk"


def mermaid(recipe: Recipe) -> str:
    """Return the graph of the rounds as LangGraph draws it.

    Stages with other steps than the first have a graph of their own beside it, each with its rounds as its title. One
    with the same steps and other settings is told in a comment line: what it changes. Judges that a step makes
    are told so too, because no edge shows who asks them.
    """
    shapes = _shapes(recipe)
    if len(shapes) == 1:
        head, *lines = _drawn(shapes[0][0][1].steps)
        return "\n".join([head, *_notes(shapes[0]), _CHUNKS, *lines])
    parts = ["graph TD;", _CHUNKS]
    for number, stages in enumerate(shapes, start=1):
        title = ", ".join(rounds for rounds, _ in stages)
        parts.append(f'    subgraph s{number} ["{title}"]')
        parts += [f"    {line}" for line in _notes(stages)[1:]]
        parts += [f"    {_own(line, number)}" for line in _drawn(stages[0][1].steps)[1:]]
        parts.append("    end")
    return "\n".join(parts)


Staged = tuple[str, Stage]
"""A stage, and which rounds it is in words."""


def _shapes(recipe: Recipe) -> list[list[Staged]]:
    """Return the stages in groups of the same steps, in the order of their first round."""
    found: dict[tuple[str, ...], list[Staged]] = {}
    for rounds, stage in _staged(recipe):
        found.setdefault(tuple(step.step for step in stage.steps), []).append((rounds, stage))
    return list(found.values())


def _staged(recipe: Recipe) -> Iterator[Staged]:
    first = 1
    for index, stage in enumerate(recipe.stages):
        last = first + stage.repeat - 1
        if index == len(recipe.stages) - 1:  # which goes on
            last = max(last, recipe.rounds)
        rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
        yield "every round" if len(recipe.stages) == 1 else rounds, stage
        first = last + 1


def _notes(stages: Sequence[Staged]) -> list[str]:
    """Return comment lines: which rounds the first is, and what each later one changes of it."""
    rounds, first = stages[0]
    later = [f"%% {when}: {_changes(first.steps, stage.steps)}" for when, stage in stages[1:]]
    return [f"%% {rounds}", *later, *_judges(first.steps)]


def _drawn(steps: Sequence[Operator]) -> list[str]:
    """Return the lines of one round's graph; the first says that it is one."""
    text = build_round(steps).compile().get_graph().draw_mermaid()
    # The colours and the curve are a matter of where it is shown; the front matter breaks old renderers.
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"__(start|end)__\(\[<p>__\w+__</p>\]\):::\w+", r"__\1__([\1])", text)
    lines = [line for line in text.splitlines() if not line.strip().startswith("classDef")]
    return [line.replace("\t", "    ") for line in lines]


def _own(line: str, number: int) -> str:
    """Return a line of one of several graphs: nodes of the same name must not meet."""
    if edge := _EDGE.fullmatch(line):
        return f"    s{number}_{edge[1]} {edge[2]} s{number}_{edge[3]};"
    if node := _NODE.fullmatch(line):
        return f"    s{number}_{node[1]}{node[2]}"
    return line


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


def _changes(base: Sequence[Operator], steps: Sequence[Operator]) -> str:
    """Say in one line how a stage differs from one with the same steps."""
    changed = []
    for before, after in zip(base, steps, strict=True):
        old: dict[str, Any] = before.model_dump(by_alias=True)
        new: dict[str, Any] = after.model_dump(by_alias=True)
        changed += [f"{after.step}.{key} = {new[key]}" for key in new if old.get(key) != new[key]]
    return ", ".join(changed) or "unchanged"
