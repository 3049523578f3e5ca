"""`redistill review`: blind, at once, resumable; and the exam that it makes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import waiting_run
from typer.testing import CliRunner

from redistill.agents.exam import load_exam
from redistill.agents.loop import resume
from redistill.agents.opening import only_one
from redistill.cli import app
from redistill.commands import people
from redistill.errors import BadInput, Busy
from redistill.report.integrity import examine_run
from redistill.report.reviewing import review_anchors, review_steps, shown
from redistill.store.query import read_rows
from redistill.store.store import Store
from redistill.testing.small_run import make_run

ASKED = {"score": {"judge": {"human": {"question": "Is it kind?"}}, "as": "people"}}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that waits for scores; tests copy it."""
    base = tmp_path_factory.mktemp("scored")
    return waiting_run.begin(base, waiting_run.recipe(ASKED))[0]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that waits for comparisons of three; tests copy it."""
    base = tmp_path_factory.mktemp("compared")
    three = {"compare": {"judge": "human", "size": 3, "both_orders": False}}
    return waiting_run.begin(base, waiting_run.recipe(three, k=8))[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run; tests copy it."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", spice="\x1b[31m\u202e")


class Terminal(io.StringIO):
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def different(folder: Path) -> int:
    """Return how many different answers wait for a score."""
    sql = "SELECT count(DISTINCT (prompt_id, answer)) AS n FROM answers WHERE step = 'sample'"
    return int(read_rows(folder, sql)[0]["n"])


def label(
    folder: Path, keys: str, out: Path, count: int = 50, author: str = "ann"
) -> dict[str, Any]:
    """Label pairs for an exam."""
    return review_anchors(
        folder, author, count, out, waiting_run.console()[0], waiting_run.typed(keys)
    )


def test_a_review_is_blind(scored: Path, tmp_path: Path) -> None:
    """What is shown names the question, the prompt and the answer: no step, model, judge or value."""
    folder = waiting_run.copied(scored, tmp_path)
    console, seen = waiting_run.console()
    review_steps(folder, "ann", console, waiting_run.typed("3" * 99))
    for word in ("Is it kind?", "Say train", "1 worst to 5 best"):
        assert word in seen()
    [run] = read_rows(folder, "SELECT student FROM run")
    ids = [row["id"] for row in read_rows(folder, "SELECT id::VARCHAR AS id FROM completion")]
    for word in (
        "sample",
        "student",
        "verifier",
        "score",
        run["student"][:8],
        *(i[:8] for i in ids),
    ):
        assert word not in seen()


def test_the_order_is_by_chance(scored: Path, tmp_path: Path) -> None:
    """It is neither the order of the store nor that of the prompts, and the same for everybody."""
    folders = [waiting_run.copied(scored, tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        waiting_run.review(folder, "3" * 99)
    orders = [
        [row["id"] for row in waiting_run.verdicts(f, "completion_id::VARCHAR AS id")]
        for f in folders
    ]
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])


def test_each_verdict_is_kept_at_once_and_nobody_is_asked_twice(
    scored: Path, tmp_path: Path
) -> None:
    """Sessions of different people add up; who said what, and in how many seconds, is in the row."""
    folder = waiting_run.copied(scored, tmp_path)
    things = different(folder)
    first = waiting_run.review(folder, "51", "ann")
    assert first == {
        "run": "fake", "answered": 2, "ties": 0, "skipped": 0, "left": things - 2,
    }  # fmt: skip
    second = waiting_run.review(folder, "s" + "3" * 99, "bob")
    assert (second["answered"], second["skipped"], second["left"]) == (things - 3, 1, 0)
    assert waiting_run.review(folder, "3")["answered"] == 0
    rows = waiting_run.verdicts(folder, "completion_id, status, value, raw, role, seconds")
    assert len({row["completion_id"] for row in rows}) == len(rows) == 12
    assert {(r["value"], r["raw"]) for r in rows if r["role"] == "ann"} == {(1.0, 5.0), (0.0, 1.0)}
    assert {r["status"] for r in rows if r["value"] is None} == {"not_applicable"}
    assert all(row["seconds"] >= 0 for row in rows)


def test_equal_answers_are_judged_once(scored: Path, tmp_path: Path) -> None:
    """The same text for the same prompt, sampled twice, is one thing to judge and two rows."""
    folder = waiting_run.copied(scored, tmp_path)
    assert different(folder) < 12
    waiting_run.review(folder, "123451234512")
    rows = read_rows(
        folder,
        "SELECT count(DISTINCT human) AS n FROM answers WHERE step = 'sample' GROUP BY prompt_id, answer",
    )
    assert {row["n"] for row in rows} == {1}
    assert len(waiting_run.verdicts(folder)) == 12


def test_a_verdict_can_be_taken_back(scored: Path, tmp_path: Path) -> None:
    """`u` asks the last thing again; one verdict stands, and the event tells what was withdrawn."""
    folder = waiting_run.copied(scored, tmp_path)
    waiting_run.review(folder, "u5u2u4")
    rows = waiting_run.verdicts(folder, "raw")
    assert {row["raw"] for row in rows} == {4.0}
    events = read_rows(folder, "SELECT detail FROM event WHERE kind = 'verdict_withdrawn'")
    assert sorted(json.loads(e["detail"])["value"] for e in events) == [0.25, 1.0]
    waiting_run.review(folder, "3u")
    assert {row["raw"] for row in waiting_run.verdicts(folder, "raw")} == {4.0}
    waiting_run.review(folder, "1" * 99)
    assert len(waiting_run.verdicts(folder)) == 12
    assert [c["name"] for c in examine_run(folder) if c["state"] == "bad"] == []


def test_what_means_nothing_is_asked_again(scored: Path, tmp_path: Path) -> None:
    """Keys outside the scale, empty lines and words are no verdict."""
    folder = waiting_run.copied(scored, tmp_path)
    console, seen = waiting_run.console()
    found = review_steps(
        folder, "ann", console, waiting_run.typed(["", "6", "0", "t", "12", "\u0663", " 2 ", "Q"])
    )
    assert found["answered"] == 1
    assert seen().count("1 worst to 5 best") == 8
    assert {row["raw"] for row in waiting_run.verdicts(folder, "raw")} == {2.0}


def test_several_answers_are_ranked(compared: Path, tmp_path: Path) -> None:
    """Of three, one number is the best one, three are an order, `t` is a tie; ranks are as presented."""
    folder = waiting_run.copied(compared, tmp_path)
    waiting_run.review(folder, ["231", "2", "12", "t", "q"])
    ranks = [tuple(row["ranks"]) for row in waiting_run.verdicts(folder, "ranks")]
    assert ranks == [(3, 1, 2), (2, 1, 2), (1, 1, 1)]


def test_a_review_holds_the_lock(scored: Path, tmp_path: Path) -> None:
    """While the run is being run nobody reviews it, and while it is reviewed it does not go on."""
    folder = waiting_run.copied(scored, tmp_path)
    with only_one(folder), pytest.raises(Busy):
        waiting_run.review(folder, "1")

    def impatient(_: bool) -> str | None:
        with pytest.raises(Busy):
            resume(folder, place=waiting_run.place(tmp_path))
        return None

    review_steps(folder, "ann", waiting_run.console()[0], impatient)


def test_the_command_reads_lines_and_counts(scored: Path, tmp_path: Path) -> None:
    """Answers may come a line each from standard input; `--json` gives the counts alone."""
    waiting_run.copied(scored, tmp_path)
    command = ["review", "fake", "--runs", str(tmp_path / "runs"), "--author", "ann"]
    told = CliRunner().invoke(app, command, input="4\n\ns\n", catch_exceptions=False)
    assert told.exit_code == 0
    assert "1 judged, 1 skipped," in told.stdout
    assert "go on with: redistill review fake" in told.stdout
    told = CliRunner().invoke(app, [*command, "--json"], input="5\n" * 99, catch_exceptions=False)
    found = json.loads(told.stdout)
    assert (found["left"], found["skipped"]) == (0, 0)
    assert {r["role"] for r in waiting_run.verdicts(tmp_path / "runs" / "fake", "role")} == {"ann"}


def test_a_terminal_needs_no_enter(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal one key is a verdict, and Ctrl-C goes without a fault."""
    folder = waiting_run.copied(scored, tmp_path)
    keys = iter("45")

    def press() -> str:
        if (key := next(keys, None)) is None:
            raise KeyboardInterrupt
        return key

    monkeypatch.setattr("typer.getchar", press)
    monkeypatch.setattr("sys.stdin", Terminal())
    people.review("fake", author="ann", runs=tmp_path / "runs", as_json=True)
    assert {row["raw"] for row in waiting_run.verdicts(folder, "raw")} == {4.0, 5.0}


def test_a_finished_run_waits_for_nothing(small: Path) -> None:
    """Where nothing waits, nothing is asked."""
    assert waiting_run.review(small, "1") == {
        "run": "small", "answered": 0, "ties": 0, "skipped": 0, "left": 0,
    }  # fmt: skip


def test_what_an_answer_would_do_to_a_terminal_is_spelt_out() -> None:
    """Escape sequences and marks that turn the order of reading are shown; lines stay lines."""
    assert shown("a\n\x1b[2Jb\r\u202ec").plain == "a\n\\x1b[2Jb\\r\\u202ec"
    assert shown("[bold]x[/bold]").plain == "[bold]x[/bold]"


def test_anchors_make_an_exam(small: Path, tmp_path: Path) -> None:
    """Pairs with a winner are lines that `judge admit --pairs` reads; ties and skips are asked once, and kept out."""
    out = tmp_path / "mine.jsonl"
    found = label(small, "1t2s1q", out)
    assert {k: found[k] for k in ("answered", "ties", "skipped", "labelled", "left")} == {
        "answered": 4, "ties": 1, "skipped": 1, "labelled": 3, "left": 47,
    }  # fmt: skip
    exam = load_exam([out], {})
    assert [item.label for item in exam.items] == [1, 2, 1]
    assert all(a != b for a, b in (item.answers for item in exam.items))
    prompts = {
        r["prompt"] for r in read_rows(small, "SELECT prompt FROM answers WHERE split = 'train'")
    }
    assert {item.text for item in exam.items} <= prompts
    again = label(small, "2", out, author="bob")
    assert again["labelled"] == 4
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [line["author"] for line in lines] == ["ann", "ann", "ann", "bob"]
    assert len({line["id"] for line in lines}) == 4
    seen = read_rows(small, "SELECT detail FROM event WHERE kind = 'anchor'")
    assert len({json.loads(row["detail"])["item"] for row in seen}) == 6


def test_anchors_stop_at_their_number_and_can_be_taken_back(small: Path, tmp_path: Path) -> None:
    """Labels of earlier sessions count; a label taken back leaves the file; the file is made anew at will."""
    out = tmp_path / "mine.jsonl"
    there = label(small, "", out, count=1000)["labelled"]
    label(small, "1u2", out, count=there + 2)
    assert label(small, "11111", out, count=there + 2)["answered"] == 1
    assert label(small, "11111", out, count=there + 2)["answered"] == 0
    exam = load_exam([out], {})
    assert len(exam.items) == there + 2
    assert [item.label for item in exam.items][-2:] == [2, 1]
    kept = out.read_bytes()
    out.unlink()
    label(small, "", out, count=there + 2)
    assert out.read_bytes() == kept


def test_a_file_of_somebody_else_is_not_written_over(small: Path, tmp_path: Path) -> None:
    """Pairs that are not from this run stay where they are."""
    out = tmp_path / "theirs.jsonl"
    for text in ('{"input": "a", "output_1": "b", "output_2": "c", "label": 1}\n', "notes\n"):
        out.write_text(text, "utf-8")
        with pytest.raises(BadInput, match="holds what is not from this run"):
            label(small, "1", out)
        assert out.read_text("utf-8") == text


def test_an_anchor_shows_no_trick(small: Path, tmp_path: Path) -> None:
    """Hostile answers reach the terminal spelt out, and the exam file whole."""
    console, seen = waiting_run.console()
    out = tmp_path / "mine.jsonl"
    review_anchors(small, "ann", 500, out, console, waiting_run.typed("1" * 400))
    assert "\x1b" not in seen()
    assert "\u202e" not in seen()
    assert "\\x1b[31m\\u202e" in seen()
    answers = [a for item in load_exam([out], {}).items for a in item.answers]
    assert any("\u202e" in answer for answer in answers)


def test_an_exam_of_people_examines_a_judge(small: Path, tmp_path: Path) -> None:
    """`review --anchors` and then `judge admit --pairs` on what it wrote, through the commands."""
    runner, out = CliRunner(), tmp_path / "own.jsonl"
    asked = ["review", "small", "--runs", str(small.parent), "--anchors", "200", "--out", str(out)]
    told = runner.invoke(app, [*asked, "--json"], input="1\n" * 300, catch_exceptions=False)
    assert told.exit_code == 0
    assert json.loads(told.stdout)["file"] == str(out)
    told = runner.invoke(
        app, ["judge", "admit", "longest", "--pairs", str(out), "--json"], catch_exceptions=False
    )
    found = json.loads(told.stdout)
    assert found["labelled_by"] == "people"
    assert found["slices"]["own"]["n"] > 0


def test_forgotten_answers_leave_the_exam(tmp_path: Path) -> None:
    """An answer whose text was blanked is in no line, though it was labelled."""
    folder = make_run(tmp_path / "runs" / "small", rounds=1)
    out = tmp_path / "mine.jsonl"
    label(folder, "1111", out)
    item = load_exam([out], {}).items[0]
    store = Store(folder)
    store.work(
        lambda connection: connection.execute(
            "UPDATE content SET text = '', forgotten_at = now() WHERE text = ?", [item.answers[0]]
        )
    )
    store.close()
    label(folder, "", out)
    assert item.answers[0] not in out.read_text("utf-8")
