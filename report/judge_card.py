"""What an exam found, for people: tables for the terminal, and a card as HTML and as Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.table import Table
from rich.text import Text

from ..agents.admission import FIRST_BAND, LONGER_BAND, MOST_ATTACKS, Findings
from ..agents.examining import headline
from ..agents.registry import Record
from .console import clean

_COLUMNS = (
    "slice", "pairs", "right", "95 % interval", "first", "longer", "(labels)", "swap", "silent",
)  # fmt: skip
_LONGEST_SETTING = 24
"""Characters of a setting's value in a table."""
_STYLES = {"admitted": "green", "refused": "red", "unproven": "yellow"}


def cells(name: str, found: Findings) -> list[str]:
    """Return a slice as texts, one a column of the table."""
    interval = "-"
    if found.ci_low is not None and found.ci_high is not None:
        interval = f"{found.ci_low:.3f}-{found.ci_high:.3f}"
    shares = (found.first_position, found.longer, found.gold_longer, found.swap_consistent)
    return [
        clean(name),
        str(found.n),
        _share(found.accuracy),
        interval,
        *map(_share, shares),
        _share(found.abstained),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def slices_table(record: Record) -> Table:
    """Return the table of an exam's slices; it fits 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for name, found in record.admission.slices.items():
        style = "bold" if name == "all" else ""
        table.add_row(*(Text(cell, style=style) for cell in cells(name, found)))
    return table


def attacks_line(record: Record) -> str:
    """Return one line on the attacks."""
    tried = record.admission.attacks
    if tried is None:
        return "attacks: not run, recorded votes cannot be asked"
    won = {name: share for name, share in tried.items() if share > 0}
    if not won:
        return f"attacks: none of {len(tried)} families won"
    return "attacks that won: " + ", ".join(f"{n} {100 * s:.0f} %" for n, s in won.items())


def registry_table(records: Sequence[Record]) -> Table:
    """Return the table of all judges that were examined."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("judge", "what it is", "verdict", "right", "exam", "made", "revision"):
        fold = column in ("what it is", "exam")
        justify: Literal["left", "right"] = "right" if column == "right" else "left"
        table.add_column(column, justify=justify, no_wrap=not fold, overflow="fold")
    for record in records:
        texts = (record.exam, record.made_at[:10], record.revision[:8])
        table.add_row(
            Text(clean(record.judge)),
            Text(clean(", ".join(filter(None, (speaks(record), _settings(record)))) or "-")),
            Text(record.verdict, style=_STYLES[record.verdict]),
            _share(record.admission.slices["all"].accuracy),
            *(Text(clean(text)) for text in texts),
        )
    return table


def _settings(record: Record) -> str:
    """Return the values of a judge's own settings; of a file its name, of data nothing."""
    spec = record.spec
    given = next(iter(spec.values()), None) if isinstance(spec, dict) else None
    told = given.items() if isinstance(given, dict) else ()
    named = (value for key, value in told if key not in ("votes", "pairs"))
    return " ".join(Path(str(value)).name[:_LONGEST_SETTING] for value in named)


def speaks(record: Record) -> str:
    """Return who spoke as the judge."""
    return ", ".join(dict.fromkeys([*record.roles.values(), *record.models]))


# -- the card


def write_cards(records: Sequence[Record], out: Path) -> list[Path]:
    """Write a card of each record, `NAME-REVISION.html` and `.md`, and return the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for record in records:
        stem = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', record.judge)}-{record.file_name[:8]}"
        for suffix, text in ((".html", as_html(record)), (".md", as_markdown(record))):
            target = out / f"{stem}{suffix}"
            aside = target.with_name(f".{target.name}.{os.getpid()}")
            aside.write_text(text, "utf-8", errors="replace")
            aside.replace(target)
            files.append(target)
    return files


def facts(record: Record) -> list[tuple[str, str]]:
    """Return what a card says beside the slices: (name, text)."""
    dollars = record.dollars_per_1000
    per_call = [
        n / record.calls if record.calls else 0 for n in (record.tokens_in, record.tokens_out)
    ]
    return [
        ("judge", record.judge),
        ("settings", _as_given(record.spec)),
        ("model", speaks(record) or "none: no model speaks"),
        ("exam", f"{record.exam}, labelled by {record.labelled_by}"),
        ("exam hash", record.exam_hash),
        ("judge revision", record.revision),
        (
            "dollars per 1,000 verdicts",
            "not known" if dollars is None else f"{dollars:.4f}".rstrip("0").rstrip("."),
        ),
        (
            "tokens a verdict",
            "not known: recorded votes"
            if record.standing == "recorded"
            else f"{per_call[0]:.0f} read, {per_call[1]:.0f} written",
        ),
        (
            "time a verdict",
            f"{record.milliseconds:.1f} ms, {record.calls} verdicts asked for together",
        ),
        ("examined", f"{record.made_at}, redistill {record.redistill_version}"),
    ]


def _as_given(spec: Any) -> str:
    """Return a judge as `redistill judge admit` takes it."""
    text: str = yaml.safe_dump(spec, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def biases(record: Record) -> list[dict[str, Any]]:
    """Return each bias as the card draws it: name, value, the band that is allowed, what it means."""
    whole = record.admission.slices["all"]
    gold = whole.gold_longer
    found = [
        {
            "name": "Picks the answer shown first",
            "value": whole.first_position,
            "low": FIRST_BAND[0],
            "high": FIRST_BAND[1],
            "note": "a fair judge is near 0.5",
        },
        {
            "name": "Picks the longer answer",
            "value": whole.longer,
            "low": 0.0,
            "high": None if gold is None else min(1.0, gold + LONGER_BAND),
            "note": f"the labels do in {_share(gold)}",
        },
    ]
    return [bias for bias in found if bias["value"] is not None and bias["high"] is not None]


def as_markdown(record: Record) -> str:
    """Return the card as Markdown."""
    lines = [
        f"# Judge card: {escaped(record.judge)}",
        "",
        f"**{escaped(headline(record))}**",
        "",
        f"Verdict: **{record.verdict}**",
        "",
    ]
    lines += [f"- {escaped(reason)}" for reason in record.admission.reasons]
    lines += ["", "| " + " | ".join(_COLUMNS) + " |", "|---" + "|---:" * (len(_COLUMNS) - 1) + "|"]
    lines += [
        "| " + " | ".join(map(escaped, cells(name, found))) + " |"
        for name, found in record.admission.slices.items()
    ]
    lines += ["", "| attack | won |", "|---|---:|"]
    tried = record.admission.attacks
    lines += (
        ["| all families | not run |"]
        if tried is None
        else [f"| {escaped(name)} | {100 * share:.0f} % |" for name, share in tried.items()]
    )
    lines += ["", "| fact | |", "|---|---|"]
    lines += [f"| {name} | {escaped(text)} |" for name, text in facts(record)]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is: no mark in it is obeyed, no control either."""
    marks = str.maketrans({c: f"\\{c}" for c in "\\|*_`<>[]"})
    return clean(text).translate(marks)


def as_html(record: Record) -> str:
    """Return the card as one page that needs nothing else."""
    from jinja2 import Environment, StrictUndefined

    source = (resources.files("redistill.report") / "judge_card.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    tried = record.admission.attacks
    return environment.from_string(source).render(
        judge=clean(record.judge),
        verdict=record.verdict,
        headline=clean(headline(record)),
        reasons=[clean(reason) for reason in record.admission.reasons],
        columns=_COLUMNS,
        rows=[(cells(name, found), found) for name, found in record.admission.slices.items()],
        biases=biases(record),
        attacks=None if tried is None else [(clean(n), s) for n, s in tried.items()],
        most_attacks=MOST_ATTACKS,
        facts=[(name, clean(text)) for name, text in facts(record)],
    )
