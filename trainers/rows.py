"""The rows of a training job: their columns, their hash, their order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadInput
from ..hashing import content_hash

RowsKind = Literal["completions", "pairs"]

_IDS = pa.list_(pa.int32())
ROWS: Mapping[RowsKind, pa.Schema] = {
    "completions": pa.schema(
        [
            ("id", pa.string()),
            ("prompt_ids", _IDS),
            ("completion_ids", _IDS),
            ("weight", pa.float64()),
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
        ]
    ),
}
"""Columns of `rows.parquet`. Token ids are those that were sampled, the end token included; reference
log-probs are sums over the completion's tokens, in nats, at T = 1."""


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
    if any(column.null_count for column in table.columns):
        raise BadInput.at(str(file), "a value is missing")
    for name in (name for name in schema.names if name.endswith("_ids")):
        if any(not ids for ids in table.column(name).to_pylist()):
            raise BadInput.at(str(file), f"a row has no tokens in {name}")
    return table.select(schema.names).cast(schema)


def training_order(rows: int, steps: int, batch_size: int, seed: int) -> list[int]:
    """Return the row that each place of each batch takes: shuffled epochs, end to end."""
    order: list[int] = []
    shuffle = random.Random(seed).shuffle  # noqa: S311 - reproducible, not secret
    while len(order) < steps * batch_size:
        epoch = list(range(rows))
        shuffle(epoch)
        order += epoch
    return order[: steps * batch_size]


def rows_table(kind: RowsKind, rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as the table that `rows.parquet` holds."""
    return pa.Table.from_pylist(rows, schema=ROWS[kind])


def write_rows(file: Path, table: pa.Table) -> str:
    """Write the rows of a job and return their `dataset_hash`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, compression="zstd")
    return dataset_hash(table)
