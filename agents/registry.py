"""The noun *registry*: which judges of this user have sat an exam, and what came of it.

One JSON file a judge in `judges/` of the home folder: `REDISTILL_HOME`, or `$XDG_CONFIG_HOME/redistill`,
or `~/.config/redistill`. A record belongs to a judge revision and to the models that spoke as its roles:
the same rubric on another model is another judge. A later exam replaces an earlier one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..hashing import content_hash
from .admission import Admission, Findings, Verdict


@dataclass(frozen=True, slots=True)
class Record:
    """An exam that a judge sat."""

    judge: str
    """Name of the judge's column."""
    revision: str
    """Of the judge: kind, settings, code version."""
    spec: Any
    """The judge as a recipe names it."""
    standing: str
    """program, baseline, recorded or model."""
    roles: Mapping[str, str]
    """Who spoke: role -> model."""
    models: tuple[str, ...]
    """Which models answered by their own account, or which weights."""
    exam: str
    exam_hash: str
    labelled_by: str
    """people, or a program."""
    admission: Admission
    calls: int
    """Verdicts that were asked for."""
    tokens_in: int
    tokens_out: int
    dollars: float | None
    """None where no price is known; 0 for a program."""
    seconds: float
    """Wall time of the exam."""
    made_at: str
    """UTC, ISO 8601."""
    redistill_version: str = ""
    anchors: tuple[Mapping[str, Any], ...] = ()
    """Pairs of the exam with what was found on each, for every round to ask again; see `drift`."""

    @property
    def verdict(self) -> Verdict:
        """Whether its labels may train."""
        return self.admission.verdict

    @property
    def file_name(self) -> str:
        """Name of the record's file, from what it belongs to."""
        return f"{self.revision}-{content_hash(dict(self.roles))[:8]}.json"

    @property
    def dollars_per_1000(self) -> float | None:
        """What 1,000 verdicts cost."""
        return None if self.dollars is None or not self.calls else 1000 * self.dollars / self.calls

    @property
    def milliseconds(self) -> float:
        """Wall time of one verdict when many are asked for together."""
        return 1000 * self.seconds / self.calls if self.calls else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the record as `--json` prints it and as its file holds it."""
        facts = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in ("admission", "roles")
        }
        return (
            self.admission.as_dict()
            | facts
            | {
                "roles": dict(self.roles),
                "models": list(self.models),
                "anchors": [dict(anchor) for anchor in self.anchors],
                "dollars_per_1000": self.dollars_per_1000,
                "milliseconds": self.milliseconds,
            }
        )


def home() -> Path:
    """Return the folder of what belongs to this user."""
    if own := os.environ.get("REDISTILL_HOME"):
        return Path(own).expanduser()
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "redistill"


def folder() -> Path:
    """Return the folder of the records."""
    return home() / "judges"


def keep(record: Record) -> Path:
    """Write a record, whole or not at all, and return its file."""
    target = folder() / record.file_name
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    with tempfile.NamedTemporaryFile(
        "w", dir=target.parent, prefix=".", suffix=".tmp", delete=False, encoding="utf-8"
    ) as aside:
        aside.write(text + "\n")
        aside.flush()
        os.fsync(aside.fileno())
    Path(aside.name).replace(target)
    return target


def every() -> list[Record]:
    """Return all records, the latest first.

    Raises:
        BadInput: a file is no record.
    """
    files = sorted(folder().glob("*.json")) if folder().is_dir() else []
    return sorted((_read(file) for file in files), key=lambda r: r.made_at, reverse=True)


def find(revision: str, roles: Mapping[str, str]) -> Record | None:
    """Return the record of a judge whose roles these models speak, or None."""
    file = folder() / f"{revision}-{content_hash(dict(roles))[:8]}.json"
    record = _read(file) if file.is_file() else None
    return record if record and dict(record.roles) == dict(roles) else None


def _read(file: Path) -> Record:
    try:
        data: dict[str, Any] = json.loads(file.read_text("utf-8"))
        slices = {name: Findings(**found) for name, found in data["slices"].items()}
        attacks = data["attacks"] if isinstance(data["attacks"], dict) else None
        admission = Admission(data["verdict"], tuple(data["reasons"]), slices, attacks)
        kept = {name: data[name] for name in Record.__slots__ if name in data}
        tuples = {name: tuple(data.get(name, ())) for name in ("models", "anchors")}
        return Record(**kept | tuples | {"admission": admission})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput.at(
            str(file),
            f"is no record of an exam: {error!r}",
            "remove it and examine the judge again",
        ) from error
