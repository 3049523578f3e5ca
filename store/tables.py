"""Every table and column of the store, declared once.

DDL, Arrow schemas, column comments and the documentation page are rendered from this list, and a golden
test holds them together with `sql/0001_initial.sql`. No PRIMARY KEY, index or foreign key: a row is kept
unique by an anti-join that is bounded by its round, and `redistill doctor` checks (indexes of DuckDB were
seen to corrupt at checkpoints, and cost 40-70 bytes a row).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pyarrow as pa

from ..types import Status

_ARROW: dict[str, pa.DataType] = {
    "UUID": pa.string(),
    "VARCHAR": pa.string(),
    "JSON": pa.string(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
    "INTEGER[]": pa.list_(pa.int32()),
    "FLOAT[]": pa.list_(pa.float32()),
    "VARCHAR[]": pa.list_(pa.string()),
}


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
        comments = [f"COMMENT ON TABLE {self.name} IS {_quote(self.comment)};"]
        comments += [
            f"COMMENT ON COLUMN {self.name}.{c.name} IS {_quote(c.comment)};" for c in self.columns
        ]
        return f"CREATE TABLE {self.name} (\n    {body}\n);\n" + "\n".join(comments)

    def arrow(self) -> pa.Schema:
        """Return the Arrow schema in which rows are written; never inferred from data."""
        return pa.schema([pa.field(c.name, _ARROW[c.type], c.null) for c in self.columns])


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _c(name: str, kind: str, comment: str) -> Column:
    """Make a column; a type that ends in `?` may be NULL."""
    return Column(name, kind.rstrip("?"), comment, null=kind.endswith("?"))


_ID = _c("id", "UUID", "Hash of what was asked for; a retry has the same id")
_ROUND = _c("round", "INTEGER", "From 1; 0 is the baseline before the first round")
_STEP = _c("step", "VARCHAR", "Name of the step in the round")
_CREATED = _c("created_at", "TIMESTAMPTZ", "When the row was made, UTC")
_SPLIT = _c("split", "VARCHAR", "train, heldout or test")
_PROMPT = _c("prompt_id", "UUID", "prompt.id")
_TRAIN_ONLY = "split = 'train'"

TABLES: tuple[Table, ...] = (
    Table(
        "run",
        "The one run that this store belongs to",
        (
            _ID,
            _c("name", "VARCHAR", "Folder name under runs/"),
            _c("key", "VARCHAR", "Hash of the recipe without name, paths and execution"),
            _c("seed", "BIGINT", "Seed of the run"),
            _c("recipe", "JSON", "The resolved recipe"),
            _c("student", "VARCHAR", "revision.id of the initial student"),
            _c("redistill_version", "VARCHAR", "Version that made the store"),
            _CREATED,
        ),
    ),
    Table(
        "round",
        "One row a round, written when it begins",
        (
            _ID,
            _ROUND,
            _c("stage", "INTEGER", "Index of the stage in the recipe, from 1"),
            _c("champion", "VARCHAR", "revision.id from which the round starts"),
            _CREATED,
        ),
    ),
    Table(
        "step",
        "The steps of each round with their resolved settings",
        (
            _ID,
            _ROUND,
            _STEP,
            _c("position", "INTEGER", "Place in the round, from 1"),
            _c("operator", "VARCHAR", "Name of the operator"),
            _c("settings", "JSON", "Resolved settings"),
            _CREATED,
        ),
    ),
    Table(
        "prompt",
        "What is asked, with what its checker needs",
        (
            _ID,
            _c("round", "INTEGER", "0: prompts are there before the first round"),
            _SPLIT,
            _c("position", "INTEGER", "Place in its split, from 0"),
            _c("messages_hash", "VARCHAR", "content.hash of the JSON list of messages"),
            _c("details_hash", "VARCHAR", "content.hash of verify, answer, reference, privileged"),
            _c("tags", "VARCHAR[]", "key:value labels"),
            _c("source", "VARCHAR", "Where it comes from"),
            _c("licence", "VARCHAR", "Licence of the source"),
            _CREATED,
        ),
        checks=("split IN ('train', 'heldout', 'test')",),
    ),
    Table(
        "rendered_prompt",
        "A prompt with a role's context as the exact token ids that a policy saw",
        (
            _ID,
            _ROUND,
            _PROMPT,
            _c("context", "VARCHAR", "Hash of the role's context; empty for the plain prompt"),
            _c("vocabulary", "VARCHAR", "Hash of the tokenizer that made the ids"),
            _c("token_ids", "INTEGER[]", "Prompt token ids, template included"),
            _CREATED,
        ),
    ),
    Table(
        "completion",
        "One answer of a policy",
        (
            _ID,
            _ROUND,
            _STEP,
            _SPLIT,
            _PROMPT,
            _c("rendered_prompt_id", "UUID", "rendered_prompt.id: what the policy saw"),
            _c("parent_id", "UUID?", "completion.id that this one rewrites"),
            _c("slot", "INTEGER", "Which of the k answers to the prompt, from 0"),
            _c("attempt", "INTEGER", "From 0"),
            _c("role", "VARCHAR", "Role that spoke"),
            _c("revision", "VARCHAR", "Content hash of the weights that spoke"),
            _c("text_hash", "VARCHAR", "content.hash of the answer"),
            _c("payload_hash", "VARCHAR", "Hash of token ids and finish reason"),
            _c("finish_reason", "VARCHAR", "stop, or length where the answer was cut"),
            _c("temperature", "DOUBLE", "0 is greedy"),
            _c("sampling", "JSON", "All sampling settings"),
            _c("tokens", "INTEGER", "Tokens of the answer, end token included"),
            _c("seconds", "DOUBLE", "Its share of the wall time of its chunk"),
            _CREATED,
        ),
        checks=(
            "split IN ('train', 'heldout', 'test')",
            "finish_reason IN ('stop', 'length')",
        ),
    ),
    Table(
        "completion_tokens",
        "Token ids and raw log-probs as they were sampled",
        (
            _c("completion_id", "UUID", "completion.id"),
            _ROUND,
            _c("token_ids", "INTEGER[]", "As sampled, end token included"),
            _c("logprobs", "FLOAT[]", "Natural log, T = 1, before top-k and top-p"),
        ),
        key=("completion_id",),
        checks=("len(token_ids) = len(logprobs)",),
    ),
    Table(
        "judgement",
        "What one judge said of one completion; a failure has a status and no value",
        (
            _ID,
            _ROUND,
            _STEP,
            _c("completion_id", "UUID", "completion.id"),
            _c("judge", "VARCHAR", "Name of the judge"),
            _c("judge_revision", "VARCHAR", "Hash of the judge's kind, settings and version"),
            _c("attempt", "INTEGER", "From 0"),
            _c("status", "VARCHAR", "ok, or why there is no value"),
            _c("value", "DOUBLE?", "In [0, 1]; NULL unless the status is ok"),
            _c("raw", "DOUBLE?", "The judge's own number"),
            _c("parts", "JSON", "Named parts of the verdict"),
            _c("text_hash", "VARCHAR?", "content.hash of the judge's words"),
            _c("seconds", "DOUBLE", "Its share of the wall time of its chunk"),
            _CREATED,
        ),
        checks=(
            f"status IN ({', '.join(map(_quote, get_args(Status)))})",
            "(status = 'ok') = (value IS NOT NULL)",
            # NaN sorts above every number in DuckDB: without this line it would be chosen.
            "value IS NULL OR (isfinite(value) AND value >= 0 AND value <= 1)",
            "raw IS NULL OR isfinite(raw)",
        ),
    ),
    Table(
        "pair",
        "Two completions of one prompt, one preferred",
        (
            _ID,
            _ROUND,
            _STEP,
            _SPLIT,
            _PROMPT,
            _c("chosen_id", "UUID", "completion.id of the preferred answer"),
            _c("rejected_id", "UUID", "completion.id of the other"),
            _c("judge", "VARCHAR", "Judge whose values were compared"),
            _c("rule", "VARCHAR", "Pairing rule"),
            _c("margin", "DOUBLE", "Value of chosen less value of rejected"),
            _c("probability", "DOUBLE", "How sure the label is"),
            _CREATED,
        ),
        checks=(_TRAIN_ONLY, "chosen_id <> rejected_id", "isfinite(margin)"),
    ),
    Table(
        "selection",
        "Completions that a select step kept",
        (
            _ID,
            _ROUND,
            _STEP,
            _SPLIT,
            _PROMPT,
            _c("completion_id", "UUID", "completion.id"),
            _c("position", "INTEGER", "Place in the order asked for, from 0"),
            _c("weight", "DOUBLE", "Weight of its loss"),
            _CREATED,
        ),
        checks=(_TRAIN_ONLY, "isfinite(weight) AND weight >= 0"),
    ),
    Table(
        "training_row",
        "Frozen: what a revision was trained on",
        (
            _ID,
            _ROUND,
            _STEP,
            _SPLIT,
            _c("training_run_id", "UUID", "training_run.id"),
            _c("position", "INTEGER", "Place in the training file, from 0"),
            _PROMPT,
            _c("completion_id", "UUID", "completion.id that is learned, or the chosen one"),
            _c("rejected_id", "UUID?", "completion.id of the rejected one"),
            _c("weight", "DOUBLE", "Weight of its loss"),
            _c(
                "tokens_from", "VARCHAR", "sampled: ids as the policy gave them; encoded: from text"
            ),
            _c("reference_chosen", "DOUBLE?", "Reference log-prob of chosen, nats, summed"),
            _c("reference_rejected", "DOUBLE?", "Reference log-prob of rejected, nats, summed"),
            _c("reference_from", "VARCHAR?", "stored: kept at sampling; scored: one forward pass"),
            _CREATED,
        ),
        checks=(_TRAIN_ONLY, "tokens_from IN ('sampled', 'encoded')"),
    ),
    Table(
        "training_run",
        "One training job and how it ended",
        (
            _ID,
            _ROUND,
            _STEP,
            _c("trainer", "VARCHAR", "Name of the trainer"),
            _c("settings", "JSON", "Resolved settings of the trainer"),
            _c("start_revision", "VARCHAR", "revision.id from which training began"),
            _c("reference_revision", "VARCHAR?", "revision.id of the reference policy"),
            _c("dataset_hash", "VARCHAR", "Content hash of the training rows"),
            _c("rows", "INTEGER", "Training rows"),
            _c("status", "VARCHAR", "trained, or why nothing was published"),
            _c("message", "VARCHAR", "One line for people"),
            _c("revision", "VARCHAR?", "revision.id that came of it"),
            _c("steps", "INTEGER", "Optimizer steps done"),
            _c("seconds", "DOUBLE", "Wall seconds"),
            _c("cpu_seconds", "DOUBLE", "CPU seconds of the worker"),
            _c("peak_rss_mb", "DOUBLE", "Peak memory of the worker, MiB"),
            _CREATED,
        ),
    ),
    Table(
        "training_metric",
        "Every number that a trainer logged",
        (
            _c("training_run_id", "UUID", "training_run.id"),
            _ROUND,
            _c("optimizer_step", "INTEGER", "From 1"),
            _c("name", "VARCHAR", "Name of the number"),
            _c("value", "DOUBLE", "The number"),
        ),
        key=("training_run_id", "optimizer_step", "name"),
    ),
    Table(
        "revision",
        "A set of weights",
        (
            _c("id", "VARCHAR", "Content hash of the weights"),
            _ROUND,
            _c("parent", "VARCHAR?", "revision.id that it was trained from"),
            _c("folder", "VARCHAR", "Relative to the run's folder"),
            _c("training_run_id", "UUID?", "training_run.id that made it"),
            _CREATED,
        ),
    ),
    Table(
        "evaluation",
        "A finished evaluation of one revision on one split",
        (
            _ID,
            _ROUND,
            _STEP,
            _SPLIT,
            _c("revision", "VARCHAR", "revision.id that answered"),
            _c("prompts_hash", "VARCHAR", "Hash of the ids of the prompts"),
            _c("judge", "VARCHAR", "Name of the judge"),
            _c("judge_revision", "VARCHAR", "Hash of the judge"),
            _c("decoding", "JSON", "Sampling settings"),
            _c("n", "INTEGER", "Prompts with a value"),
            _c("value", "DOUBLE", "Mean value"),
            _CREATED,
        ),
    ),
    Table(
        "decision",
        "Whether a challenger became champion, with every number that led to it",
        (
            _ID,
            _ROUND,
            _STEP,
            _c("decision", "VARCHAR", "promoted or rejected"),
            _c("reason", "VARCHAR", "One line for people"),
            _c("champion", "VARCHAR", "revision.id of the champion before the decision"),
            _c("challenger", "VARCHAR?", "revision.id; NULL where training published none"),
            _c("test", "VARCHAR", "Statistical test of the gate"),
            _c("champion_value", "DOUBLE?", "Mean held-out value of the champion"),
            _c("challenger_value", "DOUBLE?", "Mean held-out value of the challenger"),
            _c("delta", "DOUBLE?", "Mean paired difference"),
            _c("ci_low", "DOUBLE?", "Lower end of its 95 % interval"),
            _c("ci_high", "DOUBLE?", "Upper end of its 95 % interval"),
            _c("n", "INTEGER", "Paired prompts"),
            _c(
                "heldout_reads",
                "INTEGER",
                "How often a gate has read these prompts, this one included",
            ),
            _c("guards", "JSON", "Each guard with its numbers and whether it held"),
            _CREATED,
        ),
        checks=("decision IN ('promoted', 'rejected')",),
    ),
    Table(
        "event",
        "What happened, in order: canaries, failures, stops, the gain",
        (
            _ID,
            _ROUND,
            _STEP,
            _c("kind", "VARCHAR", "Kind of event"),
            _c("detail", "JSON", "Its facts"),
            _CREATED,
        ),
    ),
    Table(
        "content",
        "Payload text by hash, once a round, so that it can be forgotten while rows and ids stay",
        (
            _c("hash", "VARCHAR", "Content hash of the text"),
            _ROUND,
            _c("text", "VARCHAR", "The text"),
        ),
        key=("hash",),
    ),
    Table(
        "write_batch",
        "Ledger: one row a committed chunk, written in the chunk's own transaction",
        (
            _ID,
            _ROUND,
            _STEP,
            _c("chunk", "INTEGER", "Index of the chunk in the step's planned order, from 0"),
            _c("counts", "JSON", "Rows sent, by table"),
            _c("seconds", "DOUBLE", "Wall time of the work that made the chunk"),
            _CREATED,
        ),
    ),
)

BY_NAME = {table.name: table for table in TABLES}


def render() -> str:
    """Return the DDL of the whole schema, as `sql/0001_initial.sql` holds it."""
    return "\n\n".join(table.ddl() for table in TABLES) + "\n"


def render_page() -> str:
    """Return the documentation page of the tables, as `docs/tables.md` holds it."""
    parts = ["# Tables of the store\n", "Rendered from `store/tables.py`; a test keeps it so.\n"]
    for table in TABLES:
        parts.append(
            f"## {table.name}\n\n{table.comment}.\n\n| column | type | meaning |\n|---|---|---|"
        )
        parts += [
            f"| `{c.name}` | {c.type}{' or NULL' if c.null else ''} | {c.comment} |"
            for c in table.columns
        ]
        parts.append("")
    return "\n".join(parts)
