"""The rows of a training job: their columns, their hash, their order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadInput
from ..hashing import content_hash

RowsKind = Literal["completions", "pairs", "labelled", "ranked", "prompts"]

_IDS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
ROWS: Mapping[RowsKind, pa.Schema] = {
    "completions": pa.schema(
        [
            ("id", pa.string()),
            ("prompt_ids", _IDS),
            ("completion_ids", _IDS),
            ("weight", pa.float64()),
            ("token_weights", _FLOATS),
        ]
    ),
    "pairs": pa.schema(
        [
            ("id", pa.string()),
            ("prompt_ids", _IDS),
            ("chosen_ids", _IDS),
            ("rejected_ids", _IDS),
            ("ref_chosen_logp", pa.float64()),
            ("ref_rejected_logp", pa.float64()),
            ("weight", pa.float64()),
            ("margin", pa.float64()),
            ("probability", pa.float64()),
            ("gold_ids", _IDS),
        ]
    ),
    "labelled": pa.schema(
        [
            ("id", pa.string()),
            ("prompt_ids", _IDS),
            ("completion_ids", _IDS),
            ("wanted", pa.bool_()),
            ("weight", pa.float64()),
            ("ref_logp", pa.float64()),
            ("other_ids", _IDS),
            ("ref_other_logp", pa.float64()),
        ]
    ),
    "ranked": pa.schema(
        [
            ("id", pa.string()),
            ("prompt_ids", _IDS),
            ("answers_ids", pa.list_(_IDS)),
            ("better", _IDS),
            ("worse", _IDS),
            ("weight", pa.float64()),
        ]
    ),
    "prompts": pa.schema(
        [
            ("id", pa.string()),
            ("prompt_ids", _IDS),
            ("weight", pa.float64()),
            ("teacher", pa.string()),
            ("teacher_prompt_ids", _IDS),
            ("completion_id", pa.string()),
            ("completion_ids", _IDS),
            ("top_ids", pa.list_(_IDS)),
            ("top_logprobs", pa.list_(_FLOATS)),
        ]
    ),
}
"""Columns of `rows.parquet`. Token ids are those that were sampled, the end token included; reference
log-probs are sums over the completion's tokens, in nats, at T = 1. `other_ids` answer another prompt. `better` and
`worse` are places among `answers_ids`, a pair each. Of a prompt that is sampled while a policy trains,
`teacher_prompt_ids` is what its teacher sees, `completion_id` an answer that stands already, and `top_ids` and
`top_logprobs` what the teacher thought of each of its tokens."""
MAY_BE_MISSING = frozenset(
    (
        *("ref_chosen_logp", "ref_rejected_logp", "probability", "gold_ids", "token_weights"),
        *("teacher", "teacher_prompt_ids", "completion_id", "completion_ids"),
        *("top_ids", "top_logprobs"),
    )
)
"""Columns that only some trainers need."""


def dataset_hash(table: pa.Table) -> str:
    """Return the content hash of rows: names, values and their order, whatever the file's encoding.

    Raises:
        ValueError: a number is not finite.
    """
    return content_hash([[name, table.column(name).to_pylist()] for name in table.column_names])


def read_rows(file: Path, kind: RowsKind, expected: str) -> pa.Table:
    """Return a job's rows, checked against the schema and against the hash that the job names.

    Raises:
        BadInput: columns or values are not those of the kind, or the rows are not the recorded ones.
    """
    table = pq.read_table(file)
    schema = ROWS[kind]
    if set(table.column_names) != set(schema.names):
        raise BadInput.at(
            str(file), f"columns are {table.column_names}", f"{kind} have {schema.names}"
        )
    if dataset_hash(table) != expected:
        raise BadInput.at(str(file), f"the rows are not those of {expected}")
    for name in schema.names:
        if table.column(name).null_count and name not in MAY_BE_MISSING:
            raise BadInput.at(str(file), f"a value is missing in {name}")
    for name in (name for name in schema.names if name.endswith("_ids")):
        if any(ids is not None and not ids for ids in table.column(name).to_pylist()):
            raise BadInput.at(str(file), f"a row has no tokens in {name}")
    return table.select(schema.names).cast(schema)


def counted(rows: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Return the rows of a weight above 0; those of weight 0 are as good as absent.

    Raises:
        BadInput: a weight is negative.
    """
    if bad := [row["id"] for row in rows if row["weight"] < 0]:
        raise BadInput.at(str(file), f"the weight of row {bad[0]} is negative")
    return [row for row in rows if row["weight"] > 0]


def surely(rows: list[dict[str, Any]], labels: str, file: Path) -> list[dict[str, Any]]:
    """Return pairs with the probability of their label: 1 for hard labels, their own for soft ones.

    Raises:
        BadInput: labels are soft, and a pair has no probability.
    """
    if labels == "hard":
        return [row | {"probability": 1.0} for row in rows]
    if bare := [row["id"] for row in rows if row["probability"] is None]:
        told = f"pair {bare[0]} has no probability, and labels are soft"
        raise BadInput.at(str(file), told, "make the pairs `from: comparisons`")
    return rows


def training_order(
    rows: int, steps: int, batch_size: int, seed: int, kinds: Sequence[object] = ()
) -> list[int]:
    """Return the row that each place of each batch takes: shuffled epochs, end to end.

    Args:
        rows: how many there are.
        steps: optimiser steps.
        batch_size: rows of a step.
        seed: of the shuffles.
        kinds: of each row; rows of each kind are then spread evenly over an epoch, so that a batch has both.
    """
    order: list[int] = []
    draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
    while len(order) < steps * batch_size:
        epoch = list(range(rows))
        draw.shuffle(epoch)
        order += _spread(epoch, kinds) if kinds else epoch
    return order[: steps * batch_size]


def _spread(epoch: Sequence[int], kinds: Sequence[object]) -> list[int]:
    """Interleave the rows of each kind in proportion, keeping their order within the kind."""
    total = Counter(kinds)
    seen: Counter[object] = Counter()
    place: dict[int, float] = {}
    for row in epoch:
        kind = kinds[row]
        place[row] = (seen[kind] + 0.5) / total[kind]
        seen[kind] += 1
    return sorted(epoch, key=place.__getitem__)


def rows_table(kind: RowsKind, rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as the table that `rows.parquet` holds."""
    return pa.Table.from_pylist(rows, schema=ROWS[kind])


def write_rows(file: Path, table: pa.Table) -> str:
    """Write the rows of a job and return their `dataset_hash`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, compression="zstd")
    return dataset_hash(table)
