"""Which prompts a step asks: those of the round, those that were proposed in it, or those that a query kept."""

from __future__ import annotations

from collections.abc import Sequence

from ..store.proposals import proposed, selected
from ..types import Prompt
from .operator import ROUND, Turn


def asked_prompts(turn: Turn, named: Sequence[str]) -> list[Prompt]:
    """Return the prompts of what `of` names, in that order and each once; the round's own where it names nothing.

    Args:
        turn: where the run stands.
        named: `propose` and `select` steps of this round, and the word `round` for the round's own prompts.
    """
    found: dict[str, Prompt] = {}
    for name in named or (ROUND,):
        if name == ROUND:
            prompts = turn.run.round_prompts(turn.round)
        else:  # a step is one of the two, and the other has no row of it
            store = turn.run.store
            prompts = proposed(store, turn.round, name) + selected(store, turn.round, name)
        found |= {prompt.id: prompt for prompt in prompts if prompt.id not in found}
    return list(found.values())
