"""Every table of the store, in the order in which a run fills them."""

from __future__ import annotations

from ..table import Table
from .answers import ANSWERS
from .costs import COSTS
from .course import COURSE, KEPT
from .judgements import JUDGEMENTS
from .training import TRAINING

TABLES: tuple[Table, ...] = (*COURSE, *ANSWERS, *JUDGEMENTS, *TRAINING, *COSTS, *KEPT)
BY_NAME = {table.name: table for table in TABLES}


def render() -> str:
    """Return the DDL of the whole schema, as all migrations together make it."""
    return "\n\n".join(table.ddl() for table in TABLES) + "\n"


def render_page() -> str:
    """Return the documentation page of the tables, as `docs/tables.md` holds it."""
    parts = ["# Tables of the store\n", "Rendered from `store/tables/`; a test keeps it so.\n"]
    return "\n".join([*parts, *(table.page() for table in TABLES)])
