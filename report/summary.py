"""A run in numbers, read from its snapshot: what `status`, the report page and the quickstart print."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..store.analysis import PAIRED, paired_parameters
from ..store.query import read_rows, snapshot

Row = dict[str, Any]
_METRIC = ("champion", "challenger", "delta", "ci_low", "ci_high", "n")


def summary(folder: Path) -> dict[str, Any]:
    """Return the run as `redistill status RUN --json` prints it.

    Raises:
        BadInput: there is no such run.
    """
    begun = read_rows(folder, "SELECT name, seed, student, key FROM run")
    if not begun:
        raise BadInput.at(
            "", f"run {folder.name!r} has not begun", f"redistill resume {folder.name}"
        )
    [run] = begun
    events = read_rows(folder, _EVENTS)
    gain = next((json.loads(e["detail"]) for e in events if e["kind"] == "gain"), None)
    stops = [json.loads(e["detail"]) for e in events[-1:] if e["kind"] == "stopped"]
    waits = None if gain else _waits_for(folder)
    seconds = _seconds(folder)
    handed = _handovers(events, seconds)
    baseline = read_rows(
        folder, "SELECT value, n FROM evaluation WHERE round = 0 AND split = 'heldout'"
    )
    return {
        "run": run["name"],
        "state": _state(run, gain, stops, waits),
        "stopped_by": stops[-1]["error"] if stops and not gain else None,
        "waits_for": waits,
        "seed": run["seed"],
        "key": run["key"],
        "student": run["student"],
        "snapshot_age_seconds": round(max(0.0, time.time() - snapshot(folder).stat().st_mtime), 1),
        "baseline": baseline[0]["value"] if baseline and baseline[0]["n"] else None,
        "unproven_judges": unproven_judges(folder),
        "made_judges": made_judges(folder),
        "judge_drift": [
            {"round": e["round"], **json.loads(e["detail"])}
            for e in events
            if e["kind"] == "judge_drift"
        ],
        "rounds": [
            _round(row, seconds) | {"handover": handed.get(row["round"])} for row in _rounds(folder)
        ],
        "gain": {k: v for k, v in gain.items() if k != "evaluations"} if gain else None,
        "seconds": {"baseline": seconds[0], "total": sum(map(_total, seconds.values()))},
    }


_EVENTS = """
SELECT round, kind, detail FROM event WHERE kind NOT IN ('anchor', 'verdict_withdrawn')
ORDER BY created_at
"""
"""What people do to a run that has stopped is no part of its course."""


def _waits_for(folder: Path) -> Row | None:
    """Return the round and the step of the recipe that waits for people, or None."""
    rows = read_rows(
        folder,
        """
        SELECT e.round, e.step FROM event e
        JOIN step s ON s.round = e.round AND s.step = e.step AND s.origin = 'round'
        WHERE e.kind = 'waiting_human' AND NOT EXISTS (
            SELECT 1 FROM write_batch w WHERE w.round = e.round AND w.step = e.step
        )
        ORDER BY e.round LIMIT 1
        """,
    )
    return rows[0] if rows else None


def unproven_judges(folder: Path) -> list[Row]:
    """Return the judges of a run that have passed no exam: `judge`, `verdict`, `reason`."""
    return read_rows(
        folder,
        "SELECT judge, verdict, reason FROM admission "
        "WHERE verdict <> 'admitted' AND round = 0 ORDER BY judge",
    )


def made_judges(folder: Path) -> list[Row]:
    """Return the judges that rounds have made, and how each did on the pairs that were held back for it."""
    return read_rows(
        folder,
        "SELECT round, judge, judge_revision AS revision, verdict, reason, n, accuracy, ci_low, ci_high "
        "FROM admission WHERE round > 0 ORDER BY round, created_at",
    )


def judge_notes(found: Row) -> list[str]:
    """Return what must be said of a run's judges wherever the run is told, a line each."""
    from ..agents.drift import told_drift

    return [
        *(
            f"this run uses a judge that has passed no exam: {judge['reason']}"
            for judge in found["unproven_judges"]
        ),
        *(
            f"round {drift['round']}: the judge has drifted: {told_drift(drift)}"
            for drift in found["judge_drift"]
        ),
        *(
            f"round {made['round']}: {made['judge']}, trained in the round, {made['reason']}"
            for made in found["made_judges"]
        ),
    ]


def _state(run: Row, gain: Row | None, stops: list[Row], waits: Row | None) -> str:
    if run["student"] is None:
        return "imports"
    if waits:
        return "waiting_human"
    return "finished" if gain else "stopped" if stops else "unfinished"


def _rounds(folder: Path) -> list[Row]:
    return read_rows(
        folder,
        """
        SELECT r.round, r.stage, d.decision, d.reason, d.champion_value, d.challenger_value, d.delta,
               d.ci_low, d.ci_high, d.n, d.challenger AS revision, d.guards, d.heldout_reads,
               t.trainer, t.status, t.message, t.rows, t.dataset_hash, t.steps, t.peak_rss_mb
        FROM round r
        LEFT JOIN decision d ON d.round = r.round
        -- A round may make judges first; the last job is the student's, or the one that ended the round.
        LEFT JOIN training_run t ON t.round = r.round
        QUALIFY row_number() OVER (PARTITION BY r.round ORDER BY t.created_at DESC) = 1
        ORDER BY r.round
        """,
    )


def _round(row: Row, seconds: dict[int, dict[str, float]]) -> dict[str, Any]:
    values = dict(zip(_METRIC[:2], (row["champion_value"], row["challenger_value"]), strict=True))
    values |= {name: row[name] for name in _METRIC[2:]}
    return {
        "round": row["round"],
        "decision": row["decision"],
        "reason": row["reason"],
        "metric": values if row["n"] else None,
        "guards": json.loads(row["guards"] or "{}"),
        "heldout_reads": row["heldout_reads"],
        "revision": row["revision"],
        "training": {
            name: row[name]
            for name in (
                "trainer",
                "status",
                "message",
                "rows",
                "steps",
                "dataset_hash",
                "peak_rss_mb",
            )
        }
        if row["status"]
        else None,
        "seconds": seconds.get(row["round"], {}),
    }


def _seconds(folder: Path) -> dict[int, dict[str, float]]:
    """Return the wall seconds of each phase of each round, from the ledger."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    rows = read_rows(
        folder,
        """
        SELECT round, step, sum(seconds) AS seconds FROM write_batch
        WHERE seconds > 0 GROUP BY round, step ORDER BY round, min(created_at)
        """,
    )
    for row in rows:
        found[row["round"]][row["step"]] = round(row["seconds"], 2)
    return found


def _handovers(events: list[Row], seconds: dict[int, dict[str, float]]) -> dict[int, Row]:
    """Return of each round the hand-overs between sampler and trainer: seconds by part, and their share of it."""
    found: dict[int, Row] = {}
    for event in events:
        if event["kind"] == "handover":
            told = json.loads(event["detail"])
            earlier = found.get(event["round"], {})  # of a judge that the round has made
            parts, train = (
                {name: round(told[name] + earlier.get(name, 0.0), 3) for name in names}
                for names in (("release", "start", "load", "proof"), ("train",))
            )
            whole = _total(seconds.get(event["round"], {}))
            spent = round(sum(parts.values()), 3)
            found[event["round"]] = {
                **parts,
                **train,
                "side_by_side": told["side_by_side"],
                "seconds": spent,
                "share": round(min(1.0, spent / whole), 4) if whole else None,
            }
    return found


def handover_lines(found: Row) -> list[str]:
    """Return a line for each round in which sampler and trainer handed over."""
    lines = []
    for row in found["rounds"]:
        if told := row.get("handover"):
            parts = ", ".join(f"{n} {told[n]:.1f}" for n in ("release", "start", "load", "proof"))
            share = f", {100 * told['share']:.0f} % of the round" if told["share"] else ""
            how = "side by side" if told["side_by_side"] else "one after the other"
            lines.append(
                f"round {row['round']}: hand-over {told['seconds']:.1f} s{share} ({parts}; {how})"
            )
    return lines


def _total(phases: dict[str, float]) -> float:
    return sum(phases.values())


def answers_on_test(folder: Path) -> list[Row]:
    """Return the answers of the initial student and the last champion to each test prompt."""
    events = read_rows(folder, "SELECT detail FROM event WHERE kind = 'gain'")
    if not events:
        return []
    before, after = json.loads(events[0]["detail"])["evaluations"]
    return read_rows(folder, PAIRED, paired_parameters(before, after))


def breakdown(answers: Sequence[Row]) -> list[Row]:
    """Return, by the prompts' first tag, how form, content, ending and length have changed.

    Each row: group, transfer, n, and for both sides `pass form content ended tokens`; a side that the
    judge has no parts for has None.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for answer in answers:
        tags = answer["tags"] or ["all"]
        groups[tags[0].partition(":")[2] or tags[0]].append(answer)
    whole = [a for a in answers if "transfer" not in a["tags"]]
    table = [_group("all", whole)] if whole else []
    return table + [_group(name, found) for name, found in groups.items()]


def _group(name: str, answers: Sequence[Row]) -> Row:
    row: Row = {"group": name, "n": len(answers), "transfer": "transfer" in answers[0]["tags"]}
    for side, value in (("before", "before"), ("after", "after")):
        parts = [json.loads(a[f"parts_{side}"]) for a in answers]
        row[f"pass_{side}"] = _mean([a[value] for a in answers])
        row[f"ended_{side}"] = _mean([a[f"ended_{side}"] for a in answers])
        row[f"tokens_{side}"] = _mean([a[f"tokens_{side}"] for a in answers])
        for part in ("form", "content"):
            row[f"{part}_{side}"] = _mean([p[part] for p in parts if part in p])
    return row


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
