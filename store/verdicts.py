"""Verdicts that stand in a store, found again by what was judged and not by which row it was."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from .store import Row, Store

Key = tuple[str, tuple[str, ...]]
"""The prompt's id, and the text hashes of what was judged in the order presented."""

_TEXTS = """
SELECT id::VARCHAR AS id, prompt_id::VARCHAR AS prompt_id, text_hash
FROM completion WHERE list_contains(?::UUID[], prompt_id)
"""
_VERDICTS = """
SELECT coalesce(j.presented, [j.completion_id])::VARCHAR[] AS judged, j.aspect, j.value, j.raw, j.ranks,
       j.probability, j.parts, t.text, t.forgotten_at IS NOT NULL AS forgotten
FROM judgement j
LEFT JOIN content t ON t.hash = j.text_hash AND t.round = j.round
WHERE j.judge_revision = $judge AND j.mode = $mode AND coalesce(j.revision, '') = $weights
  AND j.status = 'ok' AND j.attempt = 0 AND j.partial IS NOT TRUE
  AND list_contains($ids::UUID[], coalesce(j.presented[1], j.completion_id))
ORDER BY j.round, j.created_at, j.id
"""


def read_verdicts(
    store: Store, prompts: Collection[str], *, judge: str, mode: str, weights: str
) -> dict[Key, Row]:
    """Return the first whole verdict of a judge on each thing that it has judged; no failure is one.

    Args:
        store: of the run.
        prompts: ids of the prompts that are looked at.
        judge: the judge's revision.
        mode: score, compare or critique.
        weights: content hash of the weights that judged; empty for those of a server.
    """
    texts = {row["id"]: row for row in store.rows(_TEXTS, [sorted(set(prompts))])}
    asked: dict[str, Any] = {"judge": judge, "mode": mode, "weights": weights, "ids": [*texts]}
    found: dict[Key, Row] = {}
    for row in store.rows(_VERDICTS, asked):
        if row["forgotten"] or not all(one in texts for one in row["judged"]):
            continue
        shown = [texts[one] for one in row["judged"]]
        key = (shown[0]["prompt_id"], tuple(text["text_hash"] for text in shown))
        if row["aspect"]:
            if key in found:
                found[key]["aspects"].setdefault(row["aspect"], row["value"])
        else:
            found.setdefault(key, row | {"parts": json.loads(row["parts"]), "aspects": {}})
    return found
