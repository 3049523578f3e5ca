"""What the student's tokenizer and template make of the prompts, looked at before anything is sampled."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from itertools import takewhile

from ..errors import BadInput, Problem
from ..policies.address import is_remote
from ..policies.policy import Legible, Policy
from ..types import Message, Prompt
from .operators.elicit import Rewrite, Sample
from .operators.improve import Train
from .recipe import Recipe
from .roles import REFERENCES

_MOST_LOSSY = 0.01
"""Share of the prompts that may lose characters."""
_LOOKED_AT = 2000
"""Prompts that are looked at, evenly taken: a share of them all within half a per cent."""
_AROUND = 12
"""Characters of a prompt that are shown on both sides of the first one that is lost."""


def check_legible(
    recipe: Recipe, prompts: Sequence[Prompt], student: Policy, note: Callable[[str], None]
) -> None:
    """Refuse prompts that the tokenizer cannot write, and a template that does not render them as it should.

    Args:
        recipe: what the run does.
        prompts: of all splits.
        student: no weights are needed.
        note: told where few prompts lose characters.

    Raises:
        BadInput: more than 1 % of the prompts lose characters, and that is not allowed; or the template
            leaves turns out, or does not continue a prompt that others have answered.
    """
    if not isinstance(student, Legible):
        return
    problems = _misrendered(recipe, prompts, student)
    share, told = _lossy(prompts, student)
    if share > _MOST_LOSSY and recipe.lossy_prompts == "refuse":
        hint = "choose another student, or write `lossy_prompts: allow`"
        problems.append(Problem("prompts", told, hint))
    elif told:
        note(told)
    if problems:
        raise BadInput(*problems)


def _lossy(prompts: Sequence[Prompt], student: Legible) -> tuple[float, str]:
    """Return the share of prompts that lose characters, and a line about it where there are any."""
    looked = prompts[:: math.ceil(len(prompts) / _LOOKED_AT)]
    found = [shown for prompt in looked if (shown := _lost(prompt, student))]
    if not found:
        return 0.0, ""
    told = f"{len(found)} of {len(looked)} prompts lose characters in the student's tokenizer"
    return len(found) / len(looked), f"{told}, for example {found[0]}"


def _lost(prompt: Prompt, student: Legible) -> str:
    """Show where a prompt first loses something, or nothing."""
    for message in prompt.messages:
        # How an accent is composed, and space around a text, are not what a text says.
        before, after = (
            unicodedata.normalize("NFC", text).strip()
            for text in (message.content, student.reread(message.content))
        )
        if before != after:
            same = zip(before, after, strict=False)
            at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], same))
            here = slice(max(0, at - _AROUND), at + _AROUND)
            return f"{before[here]!r} is read as {after[here]!r}"
    return ""


def _misrendered(recipe: Recipe, prompts: Sequence[Prompt], student: Legible) -> list[Problem]:
    """Render one prompt of each shape that the run asks."""
    shapes = {tuple(m.role for m in prompt.messages): prompt.messages for prompt in prompts}
    turns = (Message("user", "One?"), Message("assistant", "1"), Message("user", "Two?"))
    steps = [step for stage in recipe.stages for step in stage.steps]
    if any(isinstance(s, Rewrite) for s in steps) or any(
        role.context.few_shot for role in recipe.roles.values()
    ):
        shapes.setdefault(tuple(m.role for m in turns), turns)
    answered = _encodes_answers(recipe)
    faults = (student.misrendered(messages, answered=answered) for messages in shapes.values())
    hint = (
        "others' answers cannot be put behind it: choose another student, or let it answer itself"
        if answered
        else "choose another student"
    )
    return [Problem("student", f"its chat template {f}", hint) for f in dict.fromkeys(faults) if f]


def _encodes_answers(recipe: Recipe) -> bool:
    """Whether answers may train that the student's own tokens do not give: a server's, a program's, a reference."""
    for step in (step for stage in recipe.stages for step in stage.steps):
        if isinstance(step, Train) and step.load_trainer().gold:
            return True
        if isinstance(step, Rewrite) and step.given == "edit":
            return True
        if isinstance(step, Sample | Rewrite):
            policy = recipe.roles[step.role].policy
            if policy == REFERENCES or is_remote(policy):
                return True
    return False
