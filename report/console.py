"""What a person sees in the terminal: progress, tables, and the next three commands."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]


def clean(text: str) -> str:
    """Return text whose control characters are shown, not obeyed: answers of a model are untrusted.

    So are the marks that would make it read in another order than it has.
    """
    return "".join(repr(c)[1:-1] if _obeyed(c) else c for c in text)


_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _obeyed(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or character in _REORDERING


class Progressing:
    """Tells how far a run is: a moving line in a terminal, plain lines elsewhere, a log file always."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._live: Progress | None = None
        self._quiet = quiet
        self._task: TaskID | None = None
        self._at: tuple[int, str] = (-1, "")
        self._began = time.monotonic()
        self._first = 0
        self._log: logging.Logger | None = None

    def open(self, folder: Path) -> None:
        """Begin a log file in the run's folder, and the moving line where there is a terminal."""
        handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._log = logging.Logger("redistill.run", logging.INFO)
        self._log.addHandler(handler)
        if self._console.is_terminal and not self._quiet:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._live.start()

    def close(self) -> None:
        """End the moving line and the log file."""
        if self._live:
            self._live.stop()
        for handler in self._log.handlers if self._log else ():
            handler.close()

    def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002
        """Show that `done` of `total` parts of a step are finished."""
        name = f"round {round}  {step}" if round else f"before round 1  {step}"
        if self._log:
            self._log.info("round=%d step=%s done=%d/%d", round, step, done, total)
        if self._at != (round, step):
            self._at, self._began, self._first = (round, step), time.monotonic(), done
            self._begin(name, total)
        rate = self._rate(done, total)
        if self._live and self._task is not None:
            self._live.update(self._task, completed=done, total=total, rate=rate)
        elif done == total and not self._quiet and not self._console.is_terminal:
            self._console.print(f"{name}: {total} of {total}", highlight=False)

    def _begin(self, name: str, total: int) -> None:
        if self._live:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(name, total=total, rate="")

    def _rate(self, done: int, total: int) -> str:
        spent = time.monotonic() - self._began
        if done <= self._first or spent <= 0:
            return ""
        pace = (done - self._first) / spent
        return f"{pace * 60:.0f} a minute, {(total - done) / pace:.0f} s left"

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if self._log:
            self._log.info("%s", text)
        if not self._quiet:
            (self._live.console if self._live else self._console).print(
                Text(clean(text)), highlight=False
            )


def interval(metric: Row | None) -> str:
    """Return `+0.250 [+0.170, +0.330]`."""
    if not metric or metric.get("delta") is None:
        return "-"
    return f"{metric['delta']:+.3f} [{metric['ci_low']:+.3f}, {metric['ci_high']:+.3f}]"


def rounds_table(run: Row) -> Table:
    """Return the table of rounds; it fits 80 columns."""
    table = Table(title=f"{run['run']}: held-out value by round", title_justify="left")
    for name in ("round", "trainer", "rows", "held-out", "difference", "decision"):
        justify: Any = "left" if name in ("trainer", "decision") else "right"
        # A trainer of one's own may have a long name; a number must never be cut.
        table.add_column(name, justify=justify, no_wrap=name != "trainer")
    for row in run["rounds"]:
        metric, training = row["metric"], row["training"] or {}
        decision = row["decision"] or "running"
        values = f"{metric['champion']:.3f} -> {metric['challenger']:.3f}" if metric else "-"
        table.add_row(
            str(row["round"]),
            training.get("trainer", "-"),
            str(training.get("rows", "-")),
            values,
            interval(metric),
            Text(decision, style={"promoted": "green", "rejected": "red"}.get(decision, "")),
        )
    return table


def gain_line(run: Row) -> str:
    """Return the sentence that says what the run was worth."""
    gain = run["gain"]
    if run["state"] == "imports":
        return "a run of imports: nothing was trained; see `redistill query` and `export`"
    if not gain:
        return "no gain measured yet: the run is not finished"
    if not gain["n"]:
        return "no test prompt has a value for both students"
    return (
        f"gain on test: {gain['initial']:.3f} -> {gain['champion']:.3f}, "
        f"{interval(gain)} on {gain['n']} unseen prompts"
    )


def breakdown_table(rows: Sequence[Row]) -> Table:
    """Return the table of what changed, by group of prompts, in per cent; it fits 80 columns."""
    caption = "* a form that was not trained on" if any(row["transfer"] for row in rows) else None
    title = "test prompts, first student -> champion (per cent; mean tokens)"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in ("prompts", "n", "pass", "form", "content", "ended", "tokens"):
        justify: Any = "left" if name == "prompts" else "right"
        table.add_column(name, justify=justify, no_wrap=name != "prompts")
    for row in rows:
        cells = [_change(row, part, 100, 0) for part in ("pass", "form", "content", "ended")]
        name = ("*" if row["transfer"] else "") + clean(row["group"])
        table.add_row(name, str(row["n"]), *cells, _change(row, "tokens", 1, 1))
    return table


def _change(row: Row, part: str, scale: float, digits: int) -> str:
    before, after = row[f"{part}_before"], row[f"{part}_after"]
    if before is None or after is None:
        return "-"
    return f"{before * scale:.{digits}f} -> {after * scale:.{digits}f}"


def next_commands(name: str, runs: Path) -> list[str]:
    """Return the three commands that are worth typing next."""
    sql = "SELECT prompt, answer, verifier FROM answers WHERE split = 'train' AND used_as = 'chosen' LIMIT 5"
    where = "" if runs == Path("runs") else f" --runs {runs}"
    return [
        f"redistill report {name}{where}",
        f'redistill query {name} "{sql}"{where}',
        "redistill init --student smollm2-135m --prompts prompts.jsonl --judge verifier",
    ]
