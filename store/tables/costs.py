"""What it costs: calls that are billed, and what was set aside for them."""

from __future__ import annotations

from ..table import CREATED, ID, ROUND, STEP, Table, column

COSTS: tuple[Table, ...] = (
    Table(
        "reservation",
        "The most that a chunk may cost, set aside before its first call",
        (
            ID,
            ROUND,
            STEP,
            column("role", "VARCHAR", "Role that will speak"),
            column("model", "VARCHAR", "Name of the model"),
            column("tokens", "BIGINT", "Most tokens, read and written"),
            column("dollars", "DOUBLE", "Most dollars"),
            CREATED,
        ),
    ),
    Table(
        "charge",
        "One call to a server, whether or not its reply could be used",
        (
            ID,
            ROUND,
            STEP,
            column("reservation_id", "UUID?", "reservation.id that covers it"),
            column("role", "VARCHAR", "Role that spoke"),
            column("model", "VARCHAR", "Name of the model"),
            column("host", "VARCHAR?", "Host that was called"),
            column("purpose", "VARCHAR", "sample, judge or score"),
            column("status", "VARCHAR", "ok, or what went wrong"),
            column("tokens_in", "BIGINT", "Tokens read"),
            column("tokens_cached", "BIGINT", "Of these, from the server's cache"),
            column("tokens_out", "BIGINT", "Tokens written"),
            column("dollars", "DOUBLE?", "What it cost; NULL where no price is known"),
            column("price", "VARCHAR?", "Where the price is from"),
            column("seconds", "DOUBLE", "Wall seconds"),
            CREATED,
        ),
    ),
)
