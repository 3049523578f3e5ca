"""What a run is and what it does, in order."""

from __future__ import annotations

from ..table import (
    CREATED,
    ID,
    ROUND,
    STEP,
    Table,
    column,
    one_of,
)

COURSE: tuple[Table, ...] = (
    Table(
        "run",
        "The one run that this store belongs to",
        (
            ID,
            column("name", "VARCHAR", "Folder name under runs/"),
            column("key", "VARCHAR", "Hash of the recipe without name, paths and execution"),
            column("seed", "BIGINT", "Seed of the run"),
            column("recipe", "JSON", "The resolved recipe"),
            column(
                "student",
                "VARCHAR?",
                "revision.id of the initial student; NULL in a run of imports",
            ),
            column("redistill_version", "VARCHAR", "Version that made the store"),
            CREATED,
        ),
    ),
    Table(
        "round",
        "One row a round, written when it begins",
        (
            ID,
            ROUND,
            column("stage", "INTEGER", "Index of the stage in the recipe, from 1"),
            column("champion", "VARCHAR", "revision.id from which the round starts"),
            CREATED,
        ),
    ),
    Table(
        "step",
        "The steps of each round with their resolved settings",
        (
            ID,
            ROUND,
            STEP,
            column("position", "INTEGER", "Place in the round, from 1"),
            column("operator", "VARCHAR", "Name of the operator"),
            column("settings", "JSON", "Resolved settings"),
            column(
                "origin",
                "VARCHAR",
                "round: the recipe's; applied: afterwards; imported: from a file",
            ),
            CREATED,
        ),
        checks=(one_of("origin", ("round", "applied", "imported")),),
    ),
)

KEPT: tuple[Table, ...] = (
    Table(
        "event",
        "What happened, in order: canaries, failures, stops, the gain",
        (
            ID,
            ROUND,
            STEP,
            column("kind", "VARCHAR", "Kind of event"),
            column("detail", "JSON", "Its facts"),
            CREATED,
        ),
    ),
    Table(
        "content",
        "Payload text by hash, once a round, so that it can be forgotten while rows and ids stay",
        (
            column("hash", "VARCHAR", "Content hash of the text"),
            ROUND,
            column("text", "VARCHAR", "The text; empty where it was forgotten"),
            column("forgotten_at", "TIMESTAMPTZ?", "When the text was blanked, UTC"),
        ),
        key=("hash",),
    ),
    Table(
        "write_batch",
        "Ledger: one row a committed chunk, written in the chunk's own transaction",
        (
            ID,
            ROUND,
            STEP,
            column("chunk", "INTEGER", "Index of the chunk in the step's planned order, from 0"),
            column("counts", "JSON", "Rows sent, by table"),
            column("seconds", "DOUBLE", "Wall time of the work that made the chunk"),
            CREATED,
        ),
    ),
)
