"""What a model card tells, gathered from a run's snapshot: gain, lineage, judges, teachers, data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agents.held_revision import Named
from ..policies.address import is_address
from ..policies.catalog import is_plugin
from ..policies.origin import Origin, licence_of, origin_of
from ..store.query import read_rows

Row = dict[str, Any]

_ROUNDS = """
WITH RECURSIVE chain AS (
    SELECT $1 AS id, 0 AS depth
    UNION
    SELECT coalesce(t.start_revision, r.parent), c.depth + 1 FROM chain c
    JOIN revision r ON r.id = c.id LEFT JOIN training_run t ON t.id = r.training_run_id
    WHERE coalesce(t.start_revision, r.parent) IS NOT NULL AND c.depth < 10000
)
SELECT o.round, t.trainer, t.rows, t.steps, t.status, t.revision, d.decision, d.reason, d.delta,
       d.ci_low, d.ci_high, d.n, t.revision IS NOT NULL AND t.revision IN (SELECT id FROM chain) AS inside
FROM round o LEFT JOIN training_run t ON t.round = o.round LEFT JOIN decision d ON d.round = o.round
ORDER BY o.round, t.created_at
"""
_GAIN = """
SELECT e.detail, a.revision AS before, b.revision AS after, b.judge
FROM event e
LEFT JOIN evaluation a ON a.id::VARCHAR = e.detail->>'$.evaluations[0]'
LEFT JOIN evaluation b ON b.id::VARCHAR = e.detail->>'$.evaluations[1]'
WHERE e.kind = 'gain'
"""
_JUDGES = """
SELECT j.judge, list_sort(list(DISTINCT coalesce(s.operator, 'evaluate'))) AS steps, count(*) AS n,
       any_value(a.verdict) AS verdict, any_value(a.reason) AS reason, any_value(a.exam) AS exam,
       any_value(a.accuracy) AS accuracy, any_value(a.ci_low) AS ci_low, any_value(a.ci_high) AS ci_high
FROM judgement j LEFT JOIN step s ON s.round = j.round AND s.step = j.step
LEFT JOIN admission a ON a.judge_revision = j.judge_revision
WHERE coalesce(s.origin, 'round') = 'round'
GROUP BY j.judge, j.judge_revision ORDER BY j.judge, n DESC
"""
_LEARNED = """
SELECT c.role, c.model, count(DISTINCT w.id) AS n FROM training_row w
JOIN training_run t ON t.id = w.training_run_id AND t.revision IS NOT NULL
JOIN revision v ON v.id = t.revision AND v.round = t.round AND NOT starts_with(v.folder, 'judges/')
JOIN completion c ON c.id = w.completion_id
WHERE list_contains($1, t.round) GROUP BY ALL ORDER BY n DESC, c.role
"""
_PROMPTS = """
SELECT split, source, licence, count(*) AS n FROM prompt WHERE NOT list_contains(tags, 'redistill:proposing')
GROUP BY ALL ORDER BY split, n DESC, source
"""
_FEEDBACK = """
SELECT kind, source, licence, count(*) AS n FROM feedback GROUP BY ALL ORDER BY n DESC, kind, source
"""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything that a card says of a revision, beside how it was written."""

    named: Named
    origin: Origin
    version: str
    """Of redistill, that made the run."""
    rounds: list[Row]
    gain: Row | None
    """Of this very revision, on `test`; None where it was not measured."""
    judges: list[Row]
    roles: list[Row]
    """Each with `name`, `speaks`, `revision`, `licence`."""
    learned: list[Row]
    """Whose words it was trained on: `role`, `model`, `n` rows."""
    prompts: list[Row]
    feedback: list[Row]

    @property
    def lineage(self) -> list[Row]:
        """The rounds whose training the revision holds, the first one first."""
        return [row for row in self.rounds if row["inside"]]

    @property
    def trainers(self) -> list[str]:
        """Names of the trainers that made it."""
        return list(dict.fromkeys(str(row["trainer"]) for row in self.lineage))


def model_facts(named: Named, cache: Path) -> ModelFacts:
    """Gather the facts about a revision from the snapshot of its run."""
    run = named.run
    [about] = read_rows(run, "SELECT recipe, redistill_version FROM run")
    rounds = read_rows(run, _ROUNDS, [named.revision.id])
    inside = [row["round"] for row in rounds if row["inside"]]
    return ModelFacts(
        named=named,
        origin=origin_of(named.initial),
        version=about["redistill_version"],
        rounds=rounds,
        gain=_gain(named),
        judges=read_rows(run, _JUDGES),
        roles=_roles(json.loads(about["recipe"]).get("roles") or {}, cache),
        learned=read_rows(run, _LEARNED, [inside]),
        prompts=read_rows(run, _PROMPTS),
        feedback=read_rows(run, _FEEDBACK),
    )


def _gain(named: Named) -> Row | None:
    """Return the gain of the revision; that of another one says nothing of it."""
    for row in read_rows(named.run, _GAIN):
        found: Row = json.loads(row["detail"])
        if found["n"] and row["after"] == named.revision.id != row["before"]:
            return found | {"judge": row["judge"]}
    return None


def _roles(roles: Mapping[str, Row], cache: Path) -> list[Row]:
    return [
        {
            "name": name,
            "speaks": speaks(role),
            "revision": role.get("revision", "current"),
            "licence": licence_of(str(role.get("policy", "student")), cache),
            "is_student": role.get("policy", "student") == "student",
        }
        for name, role in roles.items()
        if name != "student"
    ]


def speaks(role: Row) -> str:
    """Return who speaks as a role, for strangers: no host of a network, no folder of a machine."""
    policy, model = str(role.get("policy", "student")), role.get("model")
    if is_address(policy):
        return f"{model}, behind an address"
    if not is_plugin(policy) and ("\\" in policy or policy.startswith(("/", ".", "~"))):
        return f"a model in a folder {Path(policy).name}"
    return policy
