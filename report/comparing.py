"""Two runs beside each other: what their recipes do differently, round by round, and on shared prompts.

Reads the two published snapshots only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hashing import SHORT, content_hash
from ..store.analysis import paired_bootstrap
from ..store.query import read_rows
from .console import clean, interval
from .summary import summary

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
_LEFT_OUT = ("name", "stages", "execution")
_ABSENT = None

# What the last champion said in an evaluation, with every judge that has judged it since; where the
# evaluation's own judge was asked again, what was measured counts.
_ANSWERS = """
SELECT c.prompt_id::VARCHAR AS prompt_id, p.tags, j.judge, j.judge_revision,
       arg_max(j.value, (j.step = e.step, j.created_at, j.attempt, j.id)) AS value
FROM evaluation e
JOIN completion c ON c.round = e.round AND c.step = e.step AND c.revision = e.revision AND c.split = e.split
JOIN prompt p ON p.id = c.prompt_id
JOIN judgement j ON j.completion_id = c.id AND j.round = c.round AND j.mode = 'score' AND j.aspect = ''
WHERE e.id = ? AND j.value IS NOT NULL GROUP BY c.prompt_id, p.tags, j.judge, j.judge_revision
ORDER BY c.prompt_id
"""
_TRAINED = """
SELECT DISTINCT prompt_id::VARCHAR AS prompt, completion_id::VARCHAR AS chosen,
       rejected_id::VARCHAR AS rejected
FROM training_row
"""


def comparison(first: Path, second: Path) -> dict[str, Any]:
    """Return how the second run differs from the first.

    Keys: `runs`; `recipe`, each setting that differs with the rounds in which it does; `rounds`, held-out
    value and decision of each side; `champions`, the paired difference of the last champions, second less
    first, on the prompts that both answered; `training_rows`, how many they share.

    Raises:
        BadInput: one of the runs does not exist.
    """
    sides = [summary(folder) for folder in (first, second)]
    recipes = [
        json.loads(read_rows(folder, "SELECT recipe FROM run")[0]["recipe"])
        for folder in (first, second)
    ]
    return {
        "runs": [side["run"] for side in sides],
        "recipe": recipe_difference(*recipes),
        "rounds": _rounds(sides),
        "champions": _champions(first, second),
        "training_rows": _training_rows(first, second),
    }


# -- recipes


def recipe_difference(first: Row, second: Row) -> list[Row]:
    """Return the settings that differ between two resolved recipes: `key`, `rounds`, `first`, `second`.

    Stages are compared by what each round does, since the same rounds can be cut into stages in many ways.
    A setting that one side lacks is None there.
    """
    found: list[Row] = []
    for key, a, b in _walk(_without(first), _without(second), ""):
        found.append({"key": key, "rounds": [], "first": a, "second": b})
    by_key: dict[str, Row] = {}
    a_rounds, b_rounds = _steps_by_round(first), _steps_by_round(second)
    for round_ in sorted(a_rounds.keys() & b_rounds.keys()):
        for key, a, b in _walk(a_rounds[round_], b_rounds[round_], ""):
            name = content_hash([key, a, b])
            row = by_key.setdefault(name, {"key": key, "rounds": [], "first": a, "second": b})
            row["rounds"].append(round_)
    return [*found, *by_key.values()]


def _without(recipe: Row) -> Row:
    kept = {key: value for key, value in recipe.items() if key not in _LEFT_OUT}
    rounds = len(_steps_by_round(recipe))
    return kept | {"loop": (kept.get("loop") or {}) | {"rounds": rounds}}


def _steps_by_round(recipe: Row) -> dict[int, Row]:
    stages = recipe.get("stages") or []
    rounds = [stage["round"] for stage in stages for _ in range(stage["repeat"])]
    wanted = (recipe.get("loop") or {}).get("rounds") or len(rounds)
    rounds = [*rounds, *rounds[-1:] * (wanted - len(rounds))][:wanted]
    return {r: dict(_step(step) for step in steps) for r, steps in enumerate(rounds, start=1)}


def _step(step: Row) -> tuple[str, Row]:
    [(operator, settings)] = step.items()
    trainer = settings.get("trainer")
    if isinstance(trainer, dict):  # its settings stand beside it, as people write them
        [(name, own)] = trainer.items()
        settings = {**settings, **own, "trainer": name}
    return str(settings.get("as") or operator), settings


def _walk(a: Any, b: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _walk(a.get(key, _ABSENT), b.get(key, _ABSENT), f"{at}.{key}" if at else key)
    elif a != b:
        yield at, a, b


# -- rounds


def _rounds(sides: Sequence[Row]) -> list[Row]:
    by_round = [{row["round"]: row for row in side["rounds"]} for side in sides]
    return [
        {
            "round": round_,
            "first": _round(by_round[0].get(round_)),
            "second": _round(by_round[1].get(round_)),
        }
        for round_ in sorted(by_round[0].keys() | by_round[1].keys())
    ]


def _round(row: Row | None) -> Row | None:
    if row is None:
        return None
    metric = row["metric"] or {}
    return {
        "heldout": metric.get("challenger"),
        "delta": metric.get("delta"),
        "ci_low": metric.get("ci_low"),
        "ci_high": metric.get("ci_high"),
        "decision": row["decision"],
        "rows": (row["training"] or {}).get("rows"),
        "revision": row["revision"],
    }


# -- the last champions on shared prompts


def _champions(first: Path, second: Path) -> Row:
    """Return the paired difference, or why there is none: `split`, `judge`, numbers, `comparable`, `reason`."""
    split = "test"
    evaluations = [_evaluation(folder, split) for folder in (first, second)]
    if None in evaluations:
        split = "heldout"
        evaluations = [_evaluation(folder, split) for folder in (first, second)]
    one, two = evaluations
    found: Row = {"split": split, "comparable": False, "reason": "", "judge": None, "n": 0}
    if one is None or two is None:
        which = first.name if one is None else second.name
        return found | {"reason": f"the champion of {which} has not been measured"}
    found["revisions"] = [one["revision"], two["revision"]]
    if one["decoding"] != two["decoding"]:
        return found | {"reason": "their answers were decoded with other settings"}
    answers = [read_rows(f, _ANSWERS, [e["id"]]) for f, e in ((first, one), (second, two))]
    judge = _shared_judge(one, answers)
    if judge is None:
        hint = f"`redistill apply {second.name}` with the judge of {first.name} makes them so"
        return found | {"reason": f"no judge of one revision has judged both; {hint}"}
    values = [
        {
            a["prompt_id"]: a["value"]
            for a in side
            if _key(a) == judge and "transfer" not in a["tags"]
        }
        for side in answers
    ]
    shared = sorted(values[0].keys() & values[1].keys())
    if not shared:
        return found | {"judge": judge[0], "reason": "they have no prompt in common"}
    result = paired_bootstrap(
        [values[0][p] for p in shared],
        [values[1][p] for p in shared],
        seed=content_hash([one["id"], two["id"]]),
    )
    numbers = asdict(result)
    numbers = {"first": numbers.pop("before"), "second": numbers.pop("after"), **numbers}
    unshared = [len(side) - len(shared) for side in values]
    return found | {"comparable": True, "judge": judge[0], "unshared": unshared, **numbers}


def _evaluation(folder: Path, split: str) -> Row | None:
    """Return the last evaluation of the run's last champion on a split."""
    rows = read_rows(
        folder,
        """
        SELECT e.id::VARCHAR AS id, e.revision, e.judge, e.judge_revision, e.decoding
        FROM evaluation e WHERE e.split = ? AND e.revision = coalesce(
            (SELECT challenger FROM decision WHERE decision = 'promoted' ORDER BY round DESC LIMIT 1),
            (SELECT student FROM run LIMIT 1)
        ) ORDER BY e.round DESC, e.step LIMIT 1
        """,
        [split],
    )
    return rows[0] | {"decoding": json.loads(rows[0]["decoding"])} if rows else None


def _key(row: Row) -> tuple[str, str]:
    return row["judge"], row["judge_revision"]


def _shared_judge(one: Row, answers: Sequence[Sequence[Row]]) -> tuple[str, str] | None:
    """Return a judge that has judged both sides: the first run's own, where it has."""
    shared = {_key(a) for a in answers[0]} & {_key(a) for a in answers[1]}
    return _key(one) if _key(one) in shared else min(shared, default=None)


def _training_rows(first: Path, second: Path) -> Row:
    """Return how many training rows each has, and how many are the same: prompt, chosen and rejected."""
    sides = [{tuple(r.values()) for r in read_rows(f, _TRAINED)} for f in (first, second)]
    return {"first": len(sides[0]), "second": len(sides[1]), "shared": len(sides[0] & sides[1])}


# -- for people


def show_comparison(console: Console, found: dict[str, Any]) -> None:
    """Print the recipes' difference, the table of rounds, and the champions' difference."""
    names = [clean(name) for name in found["runs"]]
    _show_recipe(console, names, found["recipe"])
    _show_rounds(console, names, found["rounds"])
    rows = found["training_rows"]
    _say(
        console,
        f"training rows: {rows['first']} and {rows['second']}, {rows['shared']} of them shared",
    )
    champions = found["champions"]
    if not champions["comparable"]:
        _say(console, f"champions are not comparable: {champions['reason']}")
        return
    _say(
        console,
        f"champions on {champions['split']} ({clean(champions['judge'])}): {names[0]} "
        f"{champions['first']:.3f}, {names[1]} {champions['second']:.3f}, "
        f"{interval(champions)} on {champions['n']} shared prompts",
        "bold",
    )
    left = sum(champions["unshared"])
    if left:
        _say(console, f"{left} prompts have a value in one run only and do not count")


def _show_recipe(console: Console, names: Sequence[str], rows: Sequence[Row]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        _say(console, "the recipes do the same")
        return
    table = Table(title="settings that differ", title_justify="left")
    for name in ("setting", "rounds", *names):
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        values = (json.dumps(row[side], ensure_ascii=False) for side in ("first", "second"))
        rounds = ", ".join(map(str, row["rounds"])) or "all"
        table.add_row(*(Text(clean(cell)) for cell in (row["key"], rounds, *values)))
    console.print(table)


def _show_rounds(console: Console, names: Sequence[str], rows: Sequence[Row]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="held-out value and decision by round", title_justify="left")
    table.add_column("round", justify="right")
    for name in names:
        table.add_column(Text(name))
    for row in rows:
        cells = [_told(row[side]) for side in ("first", "second")]
        table.add_row(str(row["round"]), *(Text(cell) for cell in cells))
    console.print(table)


def _told(side: Row | None) -> str:
    if side is None:
        return "-"
    value = "-" if side["heldout"] is None else f"{side['heldout']:.3f} ({interval(side)})"
    revision = f" {side['revision'][:SHORT]}" if side["revision"] else ""
    return f"{value} {side['decision'] or 'running'}{revision}"


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False)
