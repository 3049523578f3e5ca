"""One self-contained page about a run, read from its published snapshot alone.

Answers of a model are hostile text: jinja escapes all that it prints, control characters are shown, and
a policy in the page forbids scripts and every request, should anything slip through.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..hashing import content_hash
from ..store.analysis import PAIRED, paired_parameters
from ..store.query import read_rows, snapshot
from .charts import lengths_svg, rounds_svg, training_svg
from .console import clean, interval
from .summary import answers_on_test, breakdown, handover_lines, judge_notes, summary

Row = dict[str, Any]

PAGE = "report.html"
_LONGEST = 700
"""Characters of an answer that are shown."""
_SHOWN = (("got right", 5), ("got wrong", 3), ("did not change", 4))
"""How many answers are shown of each kind."""

QUERIES = {
    "gain": "SELECT detail FROM event WHERE kind = 'gain'",
    "rounds": "SELECT round, decision, champion_value, challenger_value, delta, ci_low, ci_high, n, "
    "reason FROM decision ORDER BY round",
    "lengths": "SELECT round, avg(tokens) FROM answers WHERE split = 'heldout' GROUP BY round "
    "ORDER BY round",
    "seconds": "SELECT round, step, sum(seconds) FROM write_batch GROUP BY ALL "
    "HAVING sum(seconds) > 0 ORDER BY round, min(created_at)",
    "groups": "SELECT tags[1] AS prompts, step, count(*) AS n, avg({judge}) AS value, avg(tokens) "
    "FROM answers WHERE split = 'test' GROUP BY ALL ORDER BY ALL",
    "loss": "SELECT round, optimizer_step, value FROM training_metric WHERE name = 'loss' ORDER BY ALL",
    "answers": "SELECT prompt, step, answer, {judge} FROM answers WHERE split = '{split}' "
    "ORDER BY prompt_id, round LIMIT 40",
    "recipe": "SELECT recipe FROM run",
}
"""The queries that the page names beside its numbers; each one runs as it stands."""


def write_page(folder: Path, out: Path | None) -> Path:
    """Write the page about a run and return its path.

    Args:
        folder: the run's folder.
        out: the file to write; `report.html` in the run's folder where it is None.

    Raises:
        BadInput: there is no such run.
    """
    text = page(folder)
    target = out or folder / PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    # A lone surrogate cannot come out of the store; should one, it is shown as `?`, and a page is made.
    aside.write_text(text, encoding="utf-8", errors="replace")
    aside.replace(target)
    return target


def page(folder: Path) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    view = _view(folder)
    # Pictures are our own SVG, in which the only text is numbers and words of ours.
    view |= {f"{name}_svg": Markup(svg) for name, svg in _pictures(view).items()}  # noqa: S704
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown, "number": _number, "change": _change}
    template = (resources.files("redistill.report") / "page.html").read_text("utf-8")
    return environment.from_string(template).render(view)


def shown(text: object, longest: int = _LONGEST) -> str:
    """Return text of a model for people: line breaks kept, all other controls visible, long ones cut."""
    whole = str(text)
    lines = [clean(line) for line in whole[:longest].split("\n")]
    more = f" [... {len(whole)} characters in all]" if len(whole) > longest else ""
    return "\n".join(lines) + more


@dataclass(frozen=True, slots=True)
class Sides:
    """The answers of two students to the same prompts."""

    where: str
    """Split of the prompts."""
    answers: list[Row]


def _view(folder: Path) -> Row:
    """Gather all that the template prints."""
    run = summary(folder)
    [about] = read_rows(folder, "SELECT recipe, redistill_version, created_at FROM run")
    judged = read_rows(folder, "SELECT judge FROM evaluation ORDER BY round LIMIT 1")
    recipe = json.loads(about["recipe"])
    sides = _sides(folder)
    judge = judged[0]["judge"] if judged else ""
    names = {"judge": judge or "tokens", "split": sides.where}
    return {
        "run": run,
        "about": about,
        "judge": judge,
        "planned": _planned(recipe),
        "published": datetime.fromtimestamp(snapshot(folder).stat().st_mtime, UTC),
        "headline": headline(run, judge),
        "judge_notes": judge_notes(run),
        "interval": interval,
        "seconds": _seconds(run),
        "handovers": handover_lines(run),
        "groups": breakdown(answers_on_test(folder)),
        "sides": sides,
        "chosen": pick(sides.answers),
        "lengths": read_rows(folder, QUERIES["lengths"]),
        "losses": read_rows(folder, QUERIES["loss"]),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100),
        "query": {
            name: f'redistill query {run["run"]} "{sql.format(**names)}"'
            for name, sql in QUERIES.items()
        },
    }


def _planned(recipe: Row) -> int:
    if not recipe:  # a run of imports
        return 0
    rounds = recipe["loop"].get("rounds")
    return int(rounds or sum(stage["repeat"] for stage in recipe["stages"]))


def _pictures(view: Row) -> dict[str, str]:
    run = view["run"]
    decisions = {row["round"]: row["decision"] for row in run["rounds"]}
    lengths = [tuple(row.values()) for row in view["lengths"]]
    curves: dict[int, list[tuple[int, float]]] = {}
    for row in view["losses"]:
        curves.setdefault(row["round"], []).append((row["optimizer_step"], row["value"]))
    drawn = {"rounds": rounds_svg(run) if run["baseline"] is not None else ""}
    drawn["lengths"] = lengths_svg(lengths, decisions) if lengths else ""
    drawn["training"] = training_svg(curves) if curves else ""
    return drawn


# -- the headline


def headline(run: Row, judge: str) -> tuple[str, str]:
    """Return what the run was worth: a few words, and the sentence behind them."""
    gain = run["gain"]
    if run["state"] == "imports":
        return "Imports", "Feedback from files. Nothing was trained in this run."
    if run["state"] == "stopped":
        return (
            "Stopped by an error",
            f"{run['stopped_by']}. `redistill resume {run['run']}` goes on.",
        )
    if not gain:
        decided = sum(1 for row in run["rounds"] if row["decision"])
        told = (
            f"The run is not finished: decided rounds: {decided}. Only the difference on test prompts, "
            "which are answered at the end, is called the gain."
        )
        return "No gain yet", told
    if not gain["n"]:
        return "No gain", "No test prompt has a value for both students."
    told = (
        f"Mean value of the judge {judge} on {gain['n']} test prompts that nothing else has read: "
        f"{gain['initial']:.3f} for the first student, {gain['champion']:.3f} for the champion. "
        f"The difference is {interval(gain)} (95 % interval, paired bootstrap)."
    )
    promoted = [row for row in run["rounds"] if row["decision"] == "promoted"]
    if not promoted:
        return "No gain: no round was promoted", "The champion is the first student. " + told
    if gain["ci_low"] > 0:
        return f"A gain of {gain['delta']:+.3f}", told
    if gain["ci_high"] < 0:
        return f"A loss of {gain['delta']:+.3f}", told
    return "No gain is proven: the interval holds zero", told


# -- tables


def _seconds(run: Row) -> Row:
    """Return wall seconds as a table: a row a phase, a column a round."""
    by_round = {0: run["seconds"]["baseline"]}
    by_round |= {row["round"]: row["seconds"] for row in run["rounds"]}
    phases = list(dict.fromkeys(phase for found in by_round.values() for phase in found))
    most = max([v for found in by_round.values() for v in found.values()], default=1.0)
    return {
        "rounds": list(by_round),
        "phases": [(phase, [found.get(phase) for found in by_round.values()]) for phase in phases],
        "totals": [sum(found.values()) for found in by_round.values()],
        "most": most or 1.0,
    }


def _sides(folder: Path) -> Sides:
    """Return the answers of the first student and the champion: on test, before that on heldout."""
    if answers := answers_on_test(folder):
        return Sides("test", answers)
    found = read_rows(
        folder,
        """
        SELECT e.id::VARCHAR AS id FROM evaluation e, (SELECT student FROM run) s
        WHERE e.split = 'heldout' AND (e.revision = s.student OR e.revision IN (
            SELECT challenger FROM decision WHERE decision = 'promoted'
        )) ORDER BY e.round
        """,
    )
    if len(found) < 2:
        return Sides("heldout", [])
    pair = paired_parameters(found[0]["id"], found[-1]["id"])
    return Sides("heldout", read_rows(folder, PAIRED, pair))


def pick(answers: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return a dozen answers by what became of them; chosen by the hash of the prompt, not by hand."""
    mixed = sorted(answers, key=lambda a: content_hash(["shown", a["prompt_id"]]))
    kinds = {
        "got right": [a for a in mixed if a["after"] > a["before"]],
        "got wrong": [a for a in mixed if a["after"] < a["before"]],
        "did not change": [a for a in mixed if a["after"] == a["before"]],
    }
    return [(kind, kinds[kind][:count]) for kind, count in _SHOWN if kinds[kind]]


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash for people


def _change(row: Row, part: str, digits: int = 2) -> str:
    before, after = row[f"{part}_before"], row[f"{part}_after"]
    return f"{_number(before, digits)} → {_number(after, digits)}"
