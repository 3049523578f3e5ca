"""Every view of a store, in the order in which they are made: later ones ask earlier ones."""

from __future__ import annotations

from collections.abc import Sequence

from ..view import View
from .answers import ANSWERS, ANSWERS_ABOUT, JUDGE_COLUMN, SCORES, answers, judge_columns
from .bradley_terry import BRADLEY_TERRY
from .datasets import DATASETS
from .proposed import PROPOSALS
from .rolled import ROLLOUTS
from .statistics import STATISTICS, snapshot

__all__ = [
    "ANSWERS",
    "ANSWERS_ABOUT",
    "BY_NAME",
    "JUDGE_COLUMN",
    "VERSION",
    "VIEWS",
    "answers",
    "judge_columns",
    "render_snapshot",
    "render_views",
    "stored",
]

VERSION = 1
"""Of the views' interface: raised when a column gets another name or another meaning."""


def stored(judges: Sequence[str]) -> tuple[View, ...]:
    """Return the views that stand in the file, but for `snapshot`."""
    return (answers(judges), SCORES, PROPOSALS, ROLLOUTS, *STATISTICS, *DATASETS)


BY_NAME: dict[str, View] = {
    view.name: view for view in (*stored(()), BRADLEY_TERRY, snapshot("", "", (VERSION, "")))
}
"""Every view by name, `answers` without judges."""

VIEWS = tuple(BY_NAME)
"""Names of the views."""


def render_views(judges: Sequence[str]) -> str:
    """Return the SQL that makes all views of a store but `snapshot`."""
    return "\n\n".join(view.ddl() for view in stored(judges)) + "\n"


def render_snapshot(published_at: str, redistill_version: str, views_hash: str) -> str:
    """Return the SQL that makes the view `snapshot`, anew at each publish.

    Args:
        published_at: ISO 8601 with an offset.
        redistill_version: of the code that publishes.
        views_hash: of what `render_views` gave for this store.
    """
    return snapshot(published_at, redistill_version, (VERSION, views_hash)).ddl() + "\n"
