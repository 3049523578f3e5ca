"""Numbered migrations: each file in one transaction, recorded, with a backup of the file before.

Forward only. A store that is newer than this code is refused, never written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import duckdb

from ..errors import StoreProblem

LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version INTEGER NOT NULL, name VARCHAR NOT NULL, sha256 VARCHAR NOT NULL,
    redistill_version VARCHAR NOT NULL, applied_at TIMESTAMPTZ NOT NULL
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file of the package."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Hash of the SQL, kept in the store."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the migrations of this version in order."""
    files = sorted(
        (f for f in (resources.files("redistill.store") / "sql").iterdir() if f.name[:4].isdigit()),
        key=lambda f: f.name,
    )
    return [Migration(int(f.name[:4]), f.name, f.read_text("utf-8")) for f in files]


def migrate(
    connection: duckdb.DuckDBPyConnection, path: Path, version: str, copy: Callable[[Path], None]
) -> list[int]:
    """Bring a store up to date and return the versions that were applied.

    Args:
        connection: open on the live file.
        path: the live file.
        version: of redistill.
        copy: copies the live file; nobody else may, see `store.py`.

    Raises:
        StoreProblem: the file is some other database, is newer than this code, or an applied migration
            was edited since.
    """
    known = migrations()
    _refuse_other(connection, path)
    connection.execute(LEDGER)
    applied = {
        int(row[0]): (row[1], row[2])
        for row in connection.execute(
            "SELECT version, sha256, redistill_version FROM schema_migration"
        ).fetchall()
    }
    _refuse_strange(known, applied, path, version)
    pending = [m for m in known if m.version not in applied]
    if applied and pending:
        # The engine cannot undo a migration that proves wrong later; the copy can.
        connection.execute("CHECKPOINT")
        copy(path.with_name(f"{path.name}.bak-v{max(applied)}"))
    for migration in pending:
        connection.begin()
        connection.execute(migration.sql)
        connection.execute(
            "INSERT INTO schema_migration VALUES (?, ?, ?, ?, now())",
            [migration.version, migration.name, migration.sha256, version],
        )
        connection.commit()
    if pending:
        connection.execute("CHECKPOINT")
    return [m.version for m in pending]


def _refuse_other(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Write nothing into a database that is not ours: it has tables, and not our ledger."""
    found = connection.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_catalog = current_database()"
    ).fetchall()
    if found and ("schema_migration",) not in found:
        raise StoreProblem(f"{path.name} is a DuckDB file, but no store of redistill")


def _refuse_strange(
    known: list[Migration], applied: dict[int, tuple[str, str]], path: Path, version: str
) -> None:
    newest = max((m.version for m in known), default=0)
    if applied and max(applied) > newest:
        writer = applied[max(applied)][1]
        raise StoreProblem(
            f"{path.name} was written by redistill {writer}, this is {version}: use that version"
        )
    for migration in known:
        if migration.version in applied and applied[migration.version][0] != migration.sha256:
            raise StoreProblem(
                f"{path.name}: migration {migration.name} is not the one that made this store"
            )
