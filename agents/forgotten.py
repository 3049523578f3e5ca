"""What a run still needs of what was forgotten: going on without it would write false facts."""

from __future__ import annotations

from ..errors import BadInput
from ..store import facts
from ..store.store import Store
from .recipe import Recipe

_PROMPTS = """
SELECT count(*) AS n FROM prompt p
WHERE EXISTS (
    SELECT 1 FROM content t WHERE t.forgotten_at IS NOT NULL AND t.round = p.round
      AND t.hash IN (p.messages_hash, p.details_hash, p.tools_hash)
) AND (
    p.split <> 'train' OR (p.round = 0 AND list_contains($places, p.position))
    OR (p.round > 0 AND p.round NOT IN (SELECT round FROM decision))
)
"""
# The rows of a round that is not decided are still read, and so is what the champion said when it was
# measured: the gate compares every challenger with it.
_ANSWERS = """
SELECT count(*) AS n FROM completion c
JOIN content t ON t.hash = c.text_hash AND t.round = c.round AND t.forgotten_at IS NOT NULL
WHERE (c.round > 0 AND c.split <> 'test' AND c.round NOT IN (SELECT round FROM decision))
   OR (c.split = 'heldout' AND c.revision = ?)
"""


def refuse_forgotten(recipe: Recipe, store: Store) -> None:
    """Refuse to go on when what coming rounds need was forgotten; a finished run needs nothing.

    Raises:
        BadInput: prompts of coming rounds, or answers of the round that is running, are gone.
    """
    if store.rows("SELECT 1 FROM event WHERE kind = 'gain'"):
        return
    prompts = store.rows(_PROMPTS, {"places": _coming(recipe, store)})[0]["n"]
    answers = store.rows(_ANSWERS, [facts.champion(store)])[0]["n"]
    found = [f"{n} {what}" for n, what in ((prompts, "prompts"), (answers, "answers")) if n]
    if found:
        raise BadInput.at(
            "", f"{' and '.join(found)} that coming rounds need were forgotten", "start a new run"
        )


def _coming(recipe: Recipe, store: Store) -> list[int]:
    """Return the places in the train split that rounds without a decision ask."""
    size = store.rows("SELECT count(*) AS n FROM prompt WHERE split = 'train' AND round = 0")[0][
        "n"
    ]
    decided = {row["round"] for row in store.rows("SELECT round FROM decision")}
    count = min(recipe.prompts.per_round or size, size)
    return sorted(
        {
            ((round_ - 1) * count + place) % size
            for round_ in range(1, recipe.rounds + 1)
            if round_ not in decided
            for place in range(count)
        }
    )
