"""The page about a run: what it says, and that nothing a model writes can act in it."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from redistill.errors import BadInput
from redistill.report import charts
from redistill.report.page import QUERIES, headline, page, pick, shown, write_page
from redistill.report.summary import summary
from redistill.store.query import query
from redistill.testing.small_run import make_run

HOSTILE = '<script>alert(1)</script> " onmouseover="alert(2) \x1b[31m \u202e &amp; {{ 7 * 7 }} <svg/onload=x>'
VOID = {"meta", "link", "br", "img", "hr", "input"}
UNCLOSED = {"p", "tr", "td", "th"}


class Reader(HTMLParser):
    """Collects every tag, every attribute and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag and its attributes."""
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text += data


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds."""
    return make_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose answers try to act."""
    return make_run(tmp_path_factory.mktemp("runs") / "hostile", spice=HOSTILE)


def test_the_headline_is_the_gain_of_the_store_with_its_interval(small: Path) -> None:
    """The first thing on the page is the difference on test, with the interval that the store holds."""
    gain = summary(small)["gain"]
    text = Reader(page(small)).text
    assert f"A gain of {gain['delta']:+.3f}" in text
    assert f"{gain['delta']:+.3f} [{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}]" in text
    assert f"on {gain['n']} test prompts" in text


def test_nothing_that_a_model_writes_becomes_markup(hostile: Path) -> None:
    """A script, an attribute breaker and a template in answers and prompts stay text."""
    html = page(hostile)
    found = Reader(html)
    assert "script" not in found.tags
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert 'onmouseover="alert' not in html
    assert "<script>alert(1)</script>" in found.text
    assert "{{ 7 * 7 }}" in found.text
    assert found.tags.count("svg") == page(hostile).count('<svg class="redistill-')


def test_control_characters_of_a_model_are_shown(hostile: Path) -> None:
    """An escape sequence and a right-to-left override are visible, and not in the page themselves."""
    html = page(hostile)
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "\\x1b[31m \\u202e" in html


def test_the_page_asks_for_nothing_and_forbids_scripts(small: Path) -> None:
    """No element loads anything, no address of the network stands in it, and its policy says so."""
    html = page(small)
    found = Reader(html)
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)
    loads = [
        a for a in found.attributes if a[1] in ("src", "href", "xlink:href", "action", "srcset")
    ]
    assert all(value.startswith("#") for _, _, value in loads)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    policy = next(
        v for t, n, v in found.attributes if t == "meta" and n == "content" and "src" in v
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_query_on_the_page_runs(small: Path) -> None:
    """Each command under a number is one that the run's store answers with rows."""
    commands = re.findall(
        r'<code class="ask">redistill query small &#34;(.*?)&#34;</code>', page(small)
    )
    assert len(commands) == len(QUERIES)
    for sql in commands:
        assert query(small, unescape(sql)).table.num_rows > 0, sql


def test_every_opened_element_is_closed(small: Path) -> None:
    """The page is well-formed but for the elements that HTML lets stand open."""

    class Balance(HTMLParser):
        stack: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in VOID | UNCLOSED:
                self.stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in UNCLOSED:
                assert self.stack.pop() == tag

    balance = Balance()
    balance.feed(page(small))
    assert balance.stack == []


def test_an_unfinished_run_has_no_gain_and_a_page(tmp_path: Path) -> None:
    """Without test answers the page says that there is no gain yet, and shows held-out answers."""
    folder = make_run(tmp_path / "open", finished=False)
    text = Reader(page(folder)).text
    assert "No gain yet" in text
    assert "A gain of" not in text
    assert "on the same heldout prompts" in text


def test_a_run_without_rounds_has_a_page(tmp_path: Path) -> None:
    """The baseline alone is a picture with one point."""
    html = page(make_run(tmp_path / "none", rounds=0, finished=False))
    assert "0 of 1 rounds" in Reader(html).text
    assert 'class="redistill-rounds"' in html


def test_a_failed_training_is_told(tmp_path: Path) -> None:
    """A round whose training published nothing shows the status and why, and the picture a cross."""
    html = page(make_run(tmp_path / "failed", rounds=2, failed_round=2))
    text = Reader(html).text
    assert "training: nonfinite: the loss of step 3 is nan" in text
    assert ">published</text>" in html


def test_a_run_that_promoted_nothing_claims_nothing() -> None:
    """With the first student as champion the headline says that there is no gain."""
    run = _run([("rejected", 0.3, -0.02, 0.05)])
    run["gain"] = {
        "initial": 0.3,
        "champion": 0.3,
        "delta": 0.0,
        "ci_low": 0.0,
        "ci_high": 0.0,
        "n": 9,
    }
    assert headline(run, "verifier")[0] == "No gain: no round was promoted"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.2, "A gain of"), (-0.01, 0.2, "No gain is proven"), (-0.2, -0.01, "A loss of")],
)
def test_the_interval_decides_the_headline(low: float, high: float, said: str) -> None:
    """The word gain stands alone only where the whole interval is above zero."""
    run = _run([("promoted", 0.5, 0.1, 0.3)])
    delta = (low + high) / 2
    run["gain"] = {
        "initial": 0.3,
        "champion": 0.4,
        "delta": delta,
        "ci_low": low,
        "ci_high": high,
        "n": 9,
    }
    assert headline(run, "verifier")[0].startswith(said)


def test_rejected_rounds_are_hollow_and_promoted_ones_filled() -> None:
    """A reader of a black-and-white print can tell them apart."""
    promoted = charts.rounds_svg(_run([("promoted", 0.5, 0.1, 0.3)]))
    rejected = charts.rounds_svg(_run([("rejected", 0.5, -0.1, 0.3)]))
    # The legend has one filled and one hollow mark of its own.
    assert (_marks(promoted, "good"), _marks(promoted, "paper")) == (2, 1)
    assert (_marks(rejected, "good"), _marks(rejected, "paper")) == (1, 2)
    assert "stroke-dasharray" in rejected
    assert "stroke-dasharray" not in promoted


def test_the_champion_line_steps_at_promotions_only() -> None:
    """A rejected challenger above the champion leaves the line where it was."""
    flat = charts.rounds_svg(_run([("rejected", 0.9, -0.1, 0.7)]))
    steps = charts.rounds_svg(_run([("promoted", 0.9, 0.1, 0.7)]))
    assert len(_champion_heights(flat)) == 1
    assert len(_champion_heights(steps)) == 2


def test_a_picture_is_the_same_bytes_twice(small: Path) -> None:
    """Nothing random, no date and no process id comes into a picture."""
    run = summary(small)
    assert charts.rounds_svg(run) == charts.rounds_svg(run)
    assert "<text" in charts.rounds_svg(run)


def test_lines_that_are_compared_have_one_name_each() -> None:
    """Lines without a name of their own are drawn, and stand in no legend; the same lines give the same bytes."""
    again = [charts.Line([(0, 0.1), (1, 0.9)], "good", says=name) for name in ("distill", "")]
    drawn = [charts.lines_svg("two", "Two", again, ("cost", "value"), {0: "1"}) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].count(">distill</text>") == 1
    assert ">_</text>" not in drawn[0]


def test_pictures_share_no_id(small: Path) -> None:
    """Several pictures in one page keep their own clip paths and markers."""
    ids = re.findall(r' id="([^"]+)"', page(small))
    assert len(ids) == len(set(ids))


def test_answers_are_picked_by_hash_and_of_each_kind() -> None:
    """The order in which answers come makes no difference to which are shown."""
    answers = [
        {"prompt_id": str(i), "before": float(i % 2), "after": float(i % 3 == 0)} for i in range(60)
    ]
    forward, backward = pick(answers), pick(answers[::-1])
    assert forward == backward
    assert [(kind, len(found)) for kind, found in forward] == [
        ("got right", 5),
        ("got wrong", 3),
        ("did not change", 4),
    ]


def test_long_answers_are_cut_and_say_so() -> None:
    """A reader is told how long an answer that is cut really is."""
    assert shown("a" * 900).endswith("[... 900 characters in all]")
    assert shown("one\ntwo\tthree") == "one\ntwo\\tthree"


def test_the_page_is_written_whole_where_it_is_asked(small: Path, tmp_path: Path) -> None:
    """`--out` names the file; without it the page lies in the run's folder; nothing else is left."""
    out = tmp_path / "new" / "page.html"
    assert write_page(small, out) == out
    assert [p.name for p in out.parent.iterdir()] == ["page.html"]
    assert write_page(small, None) == small / "report.html"
    assert out.read_text("utf-8").startswith("<!doctype html>")


def test_no_run_no_page(tmp_path: Path) -> None:
    """A run that is not there is the user's mistake, and no file is made."""
    with pytest.raises(BadInput, match="no run"):
        write_page(tmp_path / "nowhere", tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_page_loads_no_plotting_and_no_torch() -> None:
    """`status` and `query` stay quick: matplotlib and jinja come when a page is drawn."""
    code = (
        "import sys, redistill.report.page; "
        "sys.exit(str({'matplotlib', 'jinja2', 'torch'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stderr.strip() == ""


def _run(rounds: list[tuple[str, float, float, float]]) -> dict[str, Any]:
    """Return a run as `summary` does: (decision, challenger's value, ends of the interval)."""
    rows = [
        {
            "round": i,
            "decision": decision,
            "metric": {
                "champion": 0.3,
                "challenger": value,
                "delta": value - 0.3,
                "ci_low": low,
                "ci_high": high,
                "n": 50,
            },
        }
        for i, (decision, value, low, high) in enumerate(rounds, start=1)
    ]
    return {"run": "made up", "state": "finished", "baseline": 0.3, "rounds": rows, "gain": None}


def _marks(svg: str, colour: str) -> int:
    """Return how many round marks are filled with a colour."""
    styles = re.findall(r'<use [^>]*style="([^"]*)"', svg)
    return sum(
        f"fill: var(--{colour}," in style and "stroke-width: 1.8" in style for style in styles
    )


def _champion_heights(svg: str) -> set[str]:
    """Return the heights at which the champion's line runs level."""
    paths = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="([^"]*)"', svg)
    [line] = [d for d, style in paths if re.search(r"stroke-width: 2[;\s]", style + ";")]
    return {y for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)}
