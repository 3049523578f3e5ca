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
    events = read_rows(folder, "SELECT round, kind, detail FROM event ORDER BY created_at")
    gain = next((json.loads(e["detail"]) for e in events if e["kind"] == "gain"), None)
    stops = [json.loads(e["detail"]) for e in events[-1:] if e["kind"] == "stopped"]
    seconds = _seconds(folder)
    baseline = read_rows(
        folder, "SELECT value, n FROM evaluation WHERE round = 0 AND split = 'heldout'"
    )
    return {
        "run": run["name"],
        "state": _state(run, gain, stops),
        "stopped_by": stops[-1]["error"] if stops and not gain else None,
        "seed": run["seed"],
        "key": run["key"],
        "student": run["student"],
        "snapshot_age_seconds": round(max(0.0, time.time() - snapshot(folder).stat().st_mtime), 1),
        "baseline": baseline[0]["value"] if baseline and baseline[0]["n"] else None,
        "rounds": [_round(row, seconds) for row in _rounds(folder)],
        "gain": {k: v for k, v in gain.items() if k != "evaluations"} if gain else None,
        "seconds": {"baseline": seconds[0], "total": sum(map(_total, seconds.values()))},
    }


def _state(run: Row, gain: Row | None, stops: list[Row]) -> str:
    if run["student"] is None:
        return "imports"
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
        LEFT JOIN training_run t ON t.round = r.round
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
