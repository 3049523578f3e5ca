"""The judge `replay`: recorded votes, so that a judge can be examined without asking it again."""

from __future__ import annotations

import csv
import functools
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ...errors import BadInput
from ...hashing import content_hash, file_sha256
from ...types import Judgement
from ..judge import ColumnName, JudgeTask, SettledJudge, Standing

_COLUMNS = ("item_id", "judge", "strategy", "order", "winner")


class Replay(SettledJudge):
    """Say what a judge said before: votes of a CSV file, by item and by the order shown.

    The file has the columns `item_id, judge, strategy, order, winner`: `order` is 12 as listed or 21
    swapped, `winner` is 1 or 2 in the numbering of the item, and empty where the reply could not be
    parsed. A pair that was never asked is `not_applicable`.
    """

    name: ColumnName = "replay"
    votes: str
    """CSV file, may be gzipped."""
    judge: str
    """Whose votes."""
    strategy: str = Field("Vanilla")
    """The judge's prompt, as the file names it."""

    version: ClassVar[int] = 1
    standing: ClassVar[Standing] = "recorded"

    @property
    def revision(self) -> str:
        """Content hash of the file, the judge and its strategy."""
        votes = file_sha256(Path(self.votes)) if Path(self.votes).exists() else ""
        return content_hash(["replay", self.version, votes, self.judge, self.strategy])

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Look up the vote on each pair, in the order shown."""
        votes = _votes(self.votes, self.judge, self.strategy)
        return [self._vote(votes, task) for task in tasks]

    def _vote(self, votes: Mapping[tuple[str, str], str], task: JudgeTask) -> Judgement:
        sides = [completion.id.rpartition("/")[2] for completion in task.candidates]
        vote = votes.get((task.prompt.id, "".join(sides)))
        if vote is None:
            return Judgement.failed("not_applicable", "no vote on this pair is recorded")
        if vote not in ("1", "2"):
            return Judgement.failed("parse_error", "the recorded reply could not be parsed")
        return Judgement.ranked((1, 2) if sides[0] == vote else (2, 1))


@functools.lru_cache(maxsize=8)
def _votes(file: str, judge: str, strategy: str) -> Mapping[tuple[str, str], str]:
    """Read the votes of one judge: (item, order) -> winner.

    Raises:
        BadInput: the file cannot be read, has other columns, or holds no vote of this judge.
    """
    every = _rows(Path(file))
    mine = [row for row in every if (row["judge"], row["strategy"]) == (judge, strategy)]
    if not mine:
        known = sorted({f"{row['judge']} {row['strategy']}" for row in every})
        raise BadInput.at(file, f"holds no vote of {judge} {strategy}", f"it has {known[:12]}")
    return {(row["item_id"], row["order"]): row["winner"].strip() for row in mine}


def _rows(path: Path) -> list[dict[str, str]]:
    packed = path.suffix == ".gz"
    try:
        text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if missing := [c for c in _COLUMNS if c not in (rows.fieldnames or ())]:
            raise BadInput.at(str(path), f"has no column {', '.join(missing)}")
        return list(rows)
    except (OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        raise BadInput.at(str(path), f"cannot be read: {error}") from error
