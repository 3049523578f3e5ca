"""Pictures of a run as SVG text, drawn by matplotlib without a display.

Colours are CSS variables with a printable default, so that one picture serves light and dark pages.
What a picture says by colour it says by shape too: promoted is filled, rejected is hollow.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

# matplotlib takes no CSS variable, so each stands for one while it draws. Okabe-Ito blue and vermilion,
# which differ in lightness too.
_COLOURS = {
    "ink": ("#010101", "#1f2328", "#e6edf3"),
    "muted": ("#020202", "#6a737d", "#9aa4af"),
    "grid": ("#030303", "#d8dee4", "#30363d"),
    "paper": ("#040404", "#ffffff", "#161b22"),
    "good": ("#050505", "#0072b2", "#56b4e9"),
    "bad": ("#060606", "#d55e00", "#f0883e"),
}
MARKS = ("o", "s", "^", "D")
"""Shapes that tell lines apart where their colours do not."""
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a picture, or points without one."""

    points: Sequence[tuple[float, float]]
    colour: str
    """ink, muted, good or bad."""
    mark: str = "o"
    says: str = ""
    """What the legend calls it; empty for a line that looks like another one."""
    joined: bool = True


def rounds_svg(run: Row) -> str:
    """Return the picture of a run: held-out value by round, with the champion as a line.

    The interval of a challenger is the 95 % interval of its paired difference, set on the value of the
    champion that it was compared with.

    Args:
        run: as `summary.summary` returns it.
    """
    figure, axes = _figure("rounds", 7.2, 3.4)
    decided = [row for row in run["rounds"] if row["decision"]]
    _champion_line(axes, run["baseline"], decided)
    for row in decided:
        _challenger(axes, row, _champion_value(run, row))
    if run["baseline"] is not None:
        _point(axes, 0, run["baseline"], "D", "ink", filled=True)
        _label(axes, 0, run["baseline"], f"{run['baseline']:.2f}", "ink")
    last = max([row["round"] for row in run["rounds"]], default=0)
    axes.set_xlim(-0.4, last + 0.6)
    axes.set_xticks(range(last + 1), ["first\nstudent", *map(str, range(1, last + 1))])
    axes.set_xlabel("round")
    axes.set_ylabel("mean held-out value")
    _limit(axes, run, decided)
    _legend(axes)
    return _svg(figure, "rounds", "Held-out value by round")


def lengths_svg(lengths: Sequence[tuple[int, float]], decisions: Mapping[int, str | None]) -> str:
    """Return the picture of the mean answer length on held-out prompts, by round.

    Args:
        lengths: (round, mean tokens); round 0 is the first student.
        decisions: what was decided in each round.
    """
    figure, axes = _figure("lengths", 7.2, 2.1)
    rounds = [round_ for round_, _ in lengths]
    axes.plot(rounds, [v for _, v in lengths], color=_of("grid"), linewidth=1.2, zorder=1)
    for round_, value in lengths:
        rejected = decisions.get(round_) == "rejected"
        marker = "D" if round_ == 0 else "o"
        colour = "ink" if round_ == 0 else "bad" if rejected else "good"
        _point(axes, round_, value, marker, colour, filled=not rejected)
        _label(axes, round_, value, f"{value:.1f}", colour)
    last = max(rounds, default=0)
    axes.set_xlim(-0.4, last + 0.6)
    axes.set_xticks(range(last + 1), ["first\nstudent", *map(str, range(1, last + 1))])
    axes.set_ylim(0, 1.25 * max([v for _, v in lengths], default=1.0))
    axes.set_ylabel("tokens an answer")
    return _svg(figure, "lengths", "Mean answer length by round")


def training_svg(curves: Mapping[int, Sequence[tuple[int, float]]]) -> str:
    """Return the loss by optimiser step, one small picture a round, all with the same axes.

    Args:
        curves: round -> (optimiser step, loss).
    """
    columns = min(4, max(1, len(curves)))
    rows = math.ceil(len(curves) / columns) or 1
    figure, panels = _figures("training", (1.9 * columns + 0.4, 1.7 * rows + 0.3), (rows, columns))
    for axes, (round_, curve) in zip(panels, curves.items(), strict=False):
        steps, losses = [s for s, _ in curve], [v for _, v in curve]
        marker = "o" if len(curve) == 1 else ""
        axes.plot(steps, losses, color=_of("good"), linewidth=1.5, marker=marker, markersize=4)
        axes.set_title(f"round {round_}", fontsize=9, color=_of("ink"), loc="left")
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("optimiser step", fontsize=9, color=_of("muted"))
    return _svg(figure, "training", "Training loss by optimiser step")


def bakeoff_svg(arms: Sequence[Row]) -> str:
    """Return the picture of a bake-off: each trainer's gain on `test`, with its interval and its seeds.

    Args:
        arms: as `bakeoff.standings` returns them, the best first.
    """
    figure, axes = _figure("bakeoff", 7.2, 0.5 * len(arms) + 1.0)
    for place, arm in enumerate(arms):
        sure = arm["ci_low"] > 0
        colour = "good" if sure else "bad"
        style = "solid" if sure else (0, (3, 2))
        ends = arm["ci_low"], arm["ci_high"]
        axes.hlines(place, *ends, colors=_of(colour), linewidth=1.6, linestyles=style, zorder=3)
        for gain in arm["by_seed"]:
            axes.plot([gain], [place], marker="|", markersize=9, color=_of("muted"), zorder=2)
        _point(axes, arm["gain"], place, "o", colour, filled=sure)
        _label(axes, arm["gain"], place, f"{arm['gain']:+.2f}", colour)
    axes.axvline(0, color=_of("muted"), linewidth=1, zorder=1)
    axes.set_yticks(range(len(arms)), [arm["trainer"] for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.7)
    axes.set_xlabel("gain on test prompts, 95 % over seeds and prompts; each seed is a stroke")
    return _svg(figure, "bakeoff", "Gain on test by trainer")


def lines_svg(
    name: str,
    title: str,
    lines: Sequence[Line],
    labels: tuple[str, str],
    ticks: Mapping[float, str],
) -> str:
    """Return a picture of lines that are compared.

    Args:
        name: of the picture, for its own colours.
        title: what it shows, for who cannot see it.
        lines: the later ones lie above.
        labels: of both axes.
        ticks: what stands at which x.
    """
    figure, axes = _figure(name, 7.2, 3.4)
    for line in lines:
        axes.plot(
            *zip(*line.points, strict=True), color=_of(line.colour), marker=line.mark,
            markersize=6, linewidth=1.4 if line.joined else 0, label=line.says or "_",
        )  # fmt: skip
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9,
        labelcolor=_of("ink"), borderaxespad=0.2,
    )  # fmt: skip
    return _svg(figure, name, title)


# -- the rounds


def _champion_value(run: Row, row: Row) -> float | None:
    """Return the champion's value at a round that measured none of its own."""
    if row["metric"]:
        return float(row["metric"]["champion"])
    value: float | None = run["baseline"]
    for earlier in run["rounds"]:
        if earlier["round"] < row["round"] and earlier["decision"] == "promoted":
            value = float(earlier["metric"]["challenger"])
    return value


def _champion_line(axes: Any, baseline: float | None, decided: Sequence[Row]) -> None:
    """Draw the champion's value: it steps at promotions only."""
    if baseline is None:
        return
    xs, ys = [0.0], [baseline]
    for row in decided:
        if row["decision"] == "promoted":
            xs.append(row["round"])
            ys.append(row["metric"]["challenger"])
    end = max([row["round"] for row in decided], default=0) + 0.45
    axes.step([*xs, end], [*ys, ys[-1]], where="post", color=_of("good"), linewidth=2, zorder=2)


def _challenger(axes: Any, row: Row, champion: float | None) -> None:
    metric, promoted = row["metric"], row["decision"] == "promoted"
    if metric is None:
        if champion is not None:
            _point(axes, row["round"], champion, "X", "bad", filled=True)
            _label(axes, row["round"], champion, "nothing\npublished", "bad")
        return
    colour = "good" if promoted else "bad"
    value, base = metric["challenger"], metric["champion"]
    ends = [base + metric["ci_low"], base + metric["ci_high"]]
    style = "solid" if promoted else (0, (3, 2))
    axes.vlines(row["round"], *ends, colors=_of(colour), linewidth=1.4, linestyles=style, zorder=3)
    for end in ends:
        cap = [row["round"] - 0.05, row["round"] + 0.05]
        axes.plot(cap, [end, end], color=_of(colour), linewidth=1.4, zorder=3)
    _point(axes, row["round"], value, "o", colour, filled=promoted)
    _label(axes, row["round"], value, f"{value:.2f}", colour)


def _limit(axes: Any, run: Row, decided: Sequence[Row]) -> None:
    values = [run["baseline"]] if run["baseline"] is not None else []
    for row in decided:
        if metric := row["metric"]:
            base = metric["champion"]
            values += [metric["challenger"], base + metric["ci_low"], base + metric["ci_high"]]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max(0.1 - (high - low) / 2, 0.12 * (high - low))
    axes.set_ylim(max(-0.03, low - room), min(1.08, high + room))


def _legend(axes: Any) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, colour: str, label: str, *, filled: bool = True) -> Line2D:
        face = _of(colour) if filled else _of("paper")
        return Line2D(
            [], [], linestyle="", marker=marker, color=_of(colour), markerfacecolor=face,
            markeredgewidth=1.8, label=label,
        )  # fmt: skip

    axes.legend(
        handles=[
            mark("D", "ink", "first student"),
            mark("o", "good", "promoted"),
            mark("o", "bad", "rejected", filled=False),
            Line2D([], [], color=_of("good"), linewidth=2, label="champion"),
        ],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=_of("ink"),
        handletextpad=0.4,
        columnspacing=1.6,
        borderaxespad=0.2,
    )


# -- drawing


def _of(colour: str) -> str:
    return _COLOURS[colour][0]


def _point(axes: Any, x: float, y: float, marker: str, colour: str, *, filled: bool) -> None:
    face = _of(colour) if filled else _of("paper")
    axes.plot(
        [x], [y], marker=marker, markersize=8, color=_of(colour), markerfacecolor=face,
        markeredgewidth=1.8, linestyle="", zorder=4,
    )  # fmt: skip


def _label(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(8, 5), textcoords="offset points", va="bottom", fontsize=9,
        color=_of(colour), zorder=5,
    )  # fmt: skip


def _figure(name: str, width: float, height: float) -> tuple[Any, Any]:
    figure, [axes] = _figures(name, (width, height), (1, 1))
    return figure, axes


def _figures(
    name: str, size: tuple[float, float], grid: tuple[int, int]
) -> tuple[Any, Sequence[Any]]:
    """Return a figure with its axes; no global state of matplotlib is read or changed."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor=_of("paper"), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(*grid, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels:
        axes.set_facecolor("none")
        axes.grid(axis="y", color=_of("grid"), linewidth=0.7, zorder=0)
        axes.tick_params(colors=_of("muted"), labelsize=9, length=0)
        axes.xaxis.label.set_color(_of("muted"))
        axes.yaxis.label.set_color(_of("muted"))
        axes.locator_params(axis="y", nbins=5)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_of("grid"))
        if name == "training":
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    return figure, list(panels)


def _svg(figure: Any, name: str, title: str) -> str:
    """Return the figure as one `<svg>` element: text as text, the same bytes for the same numbers."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"redistill-{name}"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib styles every element of the page that it is put into, and asks for a font of its own.
    text = re.sub(r"<defs>\s*<style[^>]*>\*.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", text)
    # Several pictures share a page, so only the ids that something refers to are kept.
    used = set(re.findall(r"#([A-Za-z][\w.-]*)", text))
    text = re.sub(
        r' id="([^"]*)"', lambda found: found.group(0) if found.group(1) in used else "", text
    )
    for variable, (stand_in, light, _) in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{variable}, {light})")
    return with_style(text, name, title)


def with_style(text: str, name: str, title: str) -> str:
    """Give the picture its own colours, light and dark, for where no page gives it any."""
    light = ";".join(f"--{variable}:{shades[1]}" for variable, shades in _COLOURS.items())
    dark = ";".join(f"--{variable}:{shades[2]}" for variable, shades in _COLOURS.items())
    style = (
        f"<style>svg.redistill-{name}{{{light}}}"
        f"@media (prefers-color-scheme: dark){{svg.redistill-{name}{{{dark}}}}}"
        f"@media print{{svg.redistill-{name}{{{light}}}}}</style>"
    )
    opening = f'<svg class="redistill-{name}" role="img" aria-label="{title}" '
    head, _, rest = text.removeprefix("<svg ").partition(">")
    return f"{opening}{head}>{style}{rest}"
