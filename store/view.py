"""The noun *view*: a question that is asked often, with what each of its columns means.

Analysts ask views, so that tables can change underneath. A view is declared once: its SQL in a file of
its own, its columns and their meaning here in Python; comments in the store, `redistill list views` and
the documentation page come from the declaration, and a test holds it together with what the SQL gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from .table import quote


@dataclass(frozen=True, slots=True)
class View:
    """One view: what a row is, what its columns mean in their order, and its SQL."""

    name: str
    comment: str
    columns: Mapping[str, str]
    fill: Mapping[str, str] = field(default_factory=dict)
    """What stands in the SQL for `{key}`."""

    @property
    def sql(self) -> str:
        """The SELECT, from `store/sql/views/<name>.sql`."""
        text = _file(self.name)
        for key, value in self.fill.items():
            text = text.replace(f"{{{key}}}", value)
        return text

    def ddl(self) -> str:
        """Render CREATE OR REPLACE VIEW and the comments, which replacing a view takes off."""
        comments = [f"COMMENT ON VIEW {self.name} IS {quote(self.comment)};"]
        comments += [
            f"COMMENT ON COLUMN {self.name}.{identifier(column)} IS {quote(about)};"
            for column, about in self.columns.items()
        ]
        return f"CREATE OR REPLACE VIEW {self.name} AS\n{self.sql};\n" + "\n".join(comments)


@cache
def _file(name: str) -> str:
    path = resources.files("redistill.store") / "sql" / "views" / f"{name}.sql"
    return path.read_text("utf-8").strip().removesuffix(";")


def identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
