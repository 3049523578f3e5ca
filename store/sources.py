"""Which answers a step reads: those that a step has made, or those that a select step has kept.

A step names either in its `of`. Both are told apart by what the store holds, because no two steps of a round have one
name. A select step that keeps answers of earlier rounds is read by training alone, so all of them are of one round.
"""

from __future__ import annotations

# Of a completion `c`: whether it is one that `$steps` name in `$round`.
NAMED = """
(list_contains($steps, c.step) OR c.id IN (
    SELECT completion_id FROM selection WHERE round = $round AND list_contains($steps, step)
))
"""

# Training answers with the place of their step among `$steps`, from 1. One that was made by a step and kept by another
# stands here for both.
SOURCE = """
source AS (
    SELECT id, prompt_id, text_hash, finish_reason, slot, list_position($steps, step) AS place
    FROM completion WHERE round = $round AND list_contains($steps, step) AND split = 'train'
    UNION ALL
    SELECT c.id, c.prompt_id, c.text_hash, c.finish_reason, c.slot, list_position($steps, s.step)
    FROM selection s JOIN completion c ON c.id = s.completion_id AND c.round = s.round AND c.split = 'train'
    WHERE s.round = $round AND c.round = $round AND list_contains($steps, s.step)
)
"""

# A text that several of the steps gave is an answer of the first of them: it is rejected for no later one. Of equal texts
# of one step, one that ended is kept.
PLACED = """
placed AS (
    SELECT prompt_id, text_hash, kept.id AS id, kept.place AS place, kept.cut AS cut
    FROM (
        SELECT prompt_id, text_hash, min({'place': place, 'cut': finish_reason <> 'stop', 'slot': slot, 'id': id}) AS kept
        FROM source GROUP BY prompt_id, text_hash
    )
)
"""
