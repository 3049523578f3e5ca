"""A revision of a run by its name, and a policy that holds it: for commands that use what a run has made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, WrongWeights
from ..policies import catalog
from ..policies.policy import Policy
from ..policies.proof import prove
from ..policies.revision import Revision
from ..store.identify import LEAST, short
from ..store.query import read_rows, snapshot
from . import plugins

NAMES = ("champion", "initial", "previous")
"""What a revision can be called beside the beginning of its id."""
_NAMED = """
SELECT run.student AS initial, run.recipe->>'student' AS student,
       coalesce((SELECT challenger FROM decision WHERE decision = 'promoted'
                 ORDER BY round DESC LIMIT 1), run.student) AS champion,
       coalesce((SELECT champion FROM round WHERE round = (SELECT max(round) FROM decision)),
                run.student) AS previous
FROM run
"""
_SPEAKING = "SELECT id FROM revision WHERE NOT starts_with(folder, 'judges/') ORDER BY round"
"""Revisions of the student; a judge that a round has made cannot speak."""
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Named:
    """One revision of a run."""

    run: Path
    called: str
    """As it was asked for: `champion`, or the beginning of an id."""
    revision: Revision
    initial: Revision
    """The student with which the run began; tokenizer and architecture are its."""
    student: str
    """The student as the recipe names it."""

    @property
    def base(self) -> Revision | None:
        """The whole model under the revision; None where it is one itself."""
        held = self.revision.base
        return None if held is None else Revision.read(self.run / "revisions" / held)

    @property
    def line(self) -> str:
        """The revision in a few words."""
        kind = "" if self.revision.base is None else f", an adapter on {short(self.revision.base)}"
        name = self.called if self.called in NAMES else "revision"
        return f"{name} {short(self.revision.id)} of {self.run.name}{kind}"


def find_revision(run: Path, called: str) -> Named:
    """Return a revision of a run, from its snapshot.

    Args:
        run: the run's folder.
        called: one of `NAMES`, or at least 4 characters that one id begins with. `previous` is the champion
            before the last decided round, as for roles.

    Raises:
        BadInput: there is no such run or revision, or the run has no weights.
        StoreProblem: the revision's folder is missing or damaged.
    """
    snapshot(run)  # names the runs that are there, where this one is not
    rows = read_rows(run, _NAMED)
    if not rows or rows[0]["initial"] is None:
        what = f"{run.name} has no weights: it holds imports, or has not begun"
        raise BadInput.at("RUN", what, "name a run that has trained or sampled")
    [names] = rows
    identifier = str(names[called]) if called in NAMES else _by_prefix(run, called)
    revisions = run / "revisions"
    return Named(
        run,
        called,
        Revision.read(revisions / identifier),
        Revision.read(revisions / str(names["initial"])),
        str(names["student"]),
    )


def _by_prefix(run: Path, called: str) -> str:
    known = [str(row["id"]) for row in read_rows(run, _SPEAKING)]
    asked = called.strip().lower()
    found = [identifier for identifier in known if identifier.startswith(asked)]
    if len(asked) >= LEAST and len(found) == 1:
        return found[0]
    few = ", ".join(map(short, known[:_SHOWN])) + (", ..." if len(known) > _SHOWN else "")
    what = f"{called!r} is no revision of {run.name}"
    if len(asked) < LEAST:
        what = f"{called!r} is too short for an id"
    elif found:
        what = f"{len(found)} revisions of {run.name} begin with {called!r}"
    hint = f"{', '.join(NAMES)}, or {LEAST} characters of an id: {few}"
    raise BadInput.at("--revision", what, hint)


def speaking(named: Named) -> Policy:
    """Return a policy that holds a revision, and has proven it.

    Raises:
        WrongWeights: it does not answer as the revision did where it was made.
        StoreProblem: the revision's files are not what was written.
    """
    policy = _policy(named)
    policy.load(named.revision)
    proof = prove(policy, named.revision, None)
    if proof.verdict == "wrong":
        raise WrongWeights(
            f"{named.line} does not answer here as it did where it was made "
            f"({proof.d_new:.2g} nats a token away, noise {proof.noise:.2g})"
        )
    return policy


def _policy(named: Named) -> Policy:
    if catalog.is_plugin(named.student):
        kind: Any = plugins.find("policies", named.student, {}, "student")
        made: Policy = kind()
        return made
    from ..policies.transformers import TransformersPolicy

    return TransformersPolicy(named.initial)
