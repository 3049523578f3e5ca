"""The noun *table*: columns declared once, from which everything else about them is rendered.

DDL, Arrow schemas, column comments and the documentation page come from here; a golden test holds them
together with the migrations. No PRIMARY KEY, index or foreign key: a row is kept unique by an anti-join
that is bounded by its round, and `redistill doctor` checks (indexes of DuckDB were seen to corrupt at
checkpoints, and cost 40-70 bytes a row).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

_ARROW: dict[str, pa.DataType] = {
    "UUID": pa.string(),
    "VARCHAR": pa.string(),
    "JSON": pa.string(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
}


def _arrow(kind: str) -> pa.DataType:
    """Return the Arrow type of an SQL type, lists of lists included."""
    if kind == "FLOAT[]":  # log-probs: 32 bits as the sampler gave them, never widened
        return pa.list_(pa.float32())
    if kind == "FLOAT[][]":
        return pa.list_(pa.list_(pa.float32()))
    return pa.list_(_arrow(kind[:-2])) if kind.endswith("[]") else _ARROW[kind]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its SQL type, whether it may be NULL, and what it means."""

    name: str
    type: str
    comment: str
    null: bool = False

    def ddl(self) -> str:
        """Render the column for CREATE TABLE."""
        return f"{self.name} {self.type}" + ("" if self.null else " NOT NULL")


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its columns, its checks, and the columns that make a row the same row."""

    name: str
    comment: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ("id",)
    checks: tuple[str, ...] = ()

    def ddl(self) -> str:
        """Render CREATE TABLE and the comments."""
        lines = [c.ddl() for c in self.columns] + [f"CHECK ({check})" for check in self.checks]
        body = ",\n    ".join(lines)
        comments = [f"COMMENT ON TABLE {self.name} IS {quote(self.comment)};"]
        comments += [
            f"COMMENT ON COLUMN {self.name}.{c.name} IS {quote(c.comment)};" for c in self.columns
        ]
        return f"CREATE TABLE {self.name} (\n    {body}\n);\n" + "\n".join(comments)

    def arrow(self) -> pa.Schema:
        """Return the Arrow schema in which rows are written; never inferred from data."""
        return pa.schema([pa.field(c.name, _arrow(c.type), c.null) for c in self.columns])

    def page(self) -> str:
        """Render the table's part of the documentation."""
        lines = [f"## {self.name}\n\n{self.comment}.\n\n| column | type | meaning |\n|---|---|---|"]
        lines += [
            f"| `{c.name}` | {c.type}{' or NULL' if c.null else ''} | {c.comment} |"
            for c in self.columns
        ]
        return "\n".join([*lines, ""])


def quote(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def one_of(column: str, words: Iterable[str]) -> str:
    """Return the check that a column holds one of some words."""
    return f"{column} IN ({', '.join(map(quote, words))})"


def column(name: str, kind: str, comment: str) -> Column:
    """Make a column; a type that ends in `?` may be NULL."""
    return Column(name, kind.rstrip("?"), comment, null=kind.endswith("?"))


ID = column("id", "UUID", "Hash of what was asked for; a retry has the same id")
ROUND = column("round", "INTEGER", "From 1; 0 is the baseline before the first round")
STEP = column("step", "VARCHAR", "Name of the step in the round")
CREATED = column("created_at", "TIMESTAMPTZ", "When the row was made, UTC")
SPLIT = column("split", "VARCHAR", "train, heldout or test")
PROMPT = column("prompt_id", "UUID", "prompt.id")
TRAIN_ONLY = "split = 'train'"
