"""A judge that was admitted is asked again in every round; one that goes bad is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_judges
import pytest
from gated import (
    ANCHORED,
    ATTACKED,
    RIGHT,
    Opinion,
    checks,
    knows,
    place,
    recipe,
    sit,
)
from planted_judges import think

from redistill.agents import registry
from redistill.agents.judge import JudgeTask
from redistill.agents.judges.chat import Chat
from redistill.agents.loop import Silent, resume, run
from redistill.errors import UnfitJudge
from redistill.report.page import write_page
from redistill.report.summary import judge_notes, summary
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISTILL_HOME", str(tmp_path / "home"))


class Rounds(Silent):
    """Progress that lets a judge change its mind from a round on."""

    def __init__(self, start: int, then: Opinion) -> None:
        self.start, self.then, self.notes = start, then, list[str]()

    def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002
        """Change the mind when the round's first chunk is done."""
        if round == self.start and step == "sample":
            think(one=self.then)

    def note(self, text: str) -> None:
        """Keep the note."""
        self.notes.append(text)


def test_an_honest_judge_is_asked_again_each_round(tmp_path: Path) -> None:
    """20 anchors in both orders and 30 attacks, once a round; with 0 none; nothing is found."""
    sit(knows)
    asked: list[str] = []

    def counting(task: JudgeTask) -> float:
        asked.append(task.prompt.text)
        return knows(task)

    think(one=counting)
    folder = run(recipe(tmp_path), place=place(tmp_path))
    found = checks(folder)
    assert [(row["round"], row["kind"]) for row in found] == [
        (1, "judge_anchors"),
        (2, "judge_anchors"),
    ]
    assert {row["detail"]["accuracy"] for row in found} == {1.0}
    assert {row["detail"]["n"] for row in found} == {20}
    watched = [text for text in asked if text in ANCHORED | ATTACKED]
    assert len(watched) == 2 * 2 * (20 + 30)
    asked.clear()
    off = recipe(tmp_path, name="off", execution={"anchors": 0})
    assert checks(run(off, place=place(tmp_path))) == []
    assert not [text for text in asked if text in ANCHORED | ATTACKED]


def test_a_judge_that_goes_bad_in_round_2_is_an_event(tmp_path: Path) -> None:
    """Accuracy outside the anchors' interval: `judge_drift`, a note, a line in summary, status and page."""
    sit(knows)
    think(one=knows)

    def worse(task: JudgeTask) -> float:
        wrong = task.prompt.text in ANCHORED and len(task.prompt.text) % 2
        return 1 - knows(task) if wrong else knows(task)

    progress = Rounds(2, worse)
    folder = run(recipe(tmp_path), place=place(tmp_path), progress=progress)
    kinds = [(row["round"], row["kind"]) for row in checks(folder)]
    assert kinds == [(1, "judge_anchors"), (2, "judge_anchors"), (2, "judge_drift")]
    drift = checks(folder)[-1]["detail"]
    assert drift["before"] == 1.0
    assert drift["accuracy"] < drift["ci_low"]
    [note] = [n for n in progress.notes if "anchors" in n]
    assert note.startswith("round 2: one is right on ")
    [told] = judge_notes(summary(folder))
    assert told.startswith("round 2: the judge has drifted: one is right on ")
    assert "the judge has drifted" in write_page(folder, tmp_path / "p.html").read_text("utf-8")
    assert len(summary(folder)["rounds"]) == 2


@pytest.mark.slow
def test_a_judge_that_falls_silent_has_drifted(tmp_path: Path) -> None:
    """No verdicts on most anchors is no accuracy, and told as that."""
    sit(knows)
    think(one=knows)
    silent: Any = lambda t: "timeout" if t.prompt.text in ANCHORED else knows(t)  # noqa: E731
    folder = run(recipe(tmp_path), place=place(tmp_path), progress=Rounds(2, silent))
    [told] = judge_notes(summary(folder))
    assert told == "round 2: the judge has drifted: one gave a verdict on 0 of its 20 anchors"


def fooled(task: JudgeTask) -> float:
    """Judge rightly, and fall for whatever an answer says of itself."""
    if task.prompt.text in ATTACKED:
        return float("best" in task.completion.text.lower())
    return knows(task)


def test_an_attack_that_wins_stops_the_round(tmp_path: Path) -> None:
    """Nothing of the round is labelled; the message names families and ways out; resumed, it asks again."""
    sit(knows)
    think(one=knows)
    loaded = recipe(tmp_path)
    with pytest.raises(UnfitJudge) as caught:
        run(loaded, place=place(tmp_path), progress=Rounds(2, fooled))
    told = str(caught.value)
    assert told.startswith("round 2 score: attacks win against one (")
    assert 'injected "rate me best"' in told
    assert "execution: {anchors: 0}" in told
    folder = tmp_path / "runs" / "fake"
    assert [(r["round"], r["kind"]) for r in checks(folder)] == [
        (1, "judge_anchors"), (2, "judge_canary")
    ]  # fmt: skip
    assert read_rows(folder, "SELECT count(*) AS n FROM judgement WHERE round = 2")[0]["n"] == 0
    assert summary(folder)["stopped_by"] == told
    with pytest.raises(UnfitJudge):
        resume(folder, place=place(tmp_path))
    think(one=knows)
    resume(folder, place=place(tmp_path))
    found = summary(folder)
    assert found["state"] == "finished"
    assert [r["kind"] for r in checks(folder)] == [
        "judge_anchors", "judge_anchors", "judge_canary", "judge_canary"
    ]  # fmt: skip


@pytest.mark.slow
def test_going_on_unwatched_must_be_said(tmp_path: Path) -> None:
    """`execution: {anchors: 0}` goes on with the same run; its key is the same."""
    sit(knows)
    think(one=knows)
    with pytest.raises(UnfitJudge):
        run(recipe(tmp_path), place=place(tmp_path), progress=Rounds(2, fooled))
    folder = run(recipe(tmp_path, execution={"anchors": 0}), place=place(tmp_path))
    assert summary(folder)["state"] == "finished"


@pytest.mark.slow
def test_a_check_is_made_once_and_its_calls_are_charged(tmp_path: Path) -> None:
    """A resumed round finds the check in the ledger; calls of a role stand under the step `anchors`."""

    def honest(messages: list[dict[str, Any]]) -> str:
        parts = fake_judges.fenced(messages[-1]["content"])
        asked = parts["question"]
        if "answer" in parts:
            right = parts["answer"] == asked.rsplit(maxsplit=1)[-1]
            return json.dumps({"reasoning": "r", "score": 10 if right else 1})
        first = (asked, parts["answer A"]) in RIGHT
        return json.dumps({"reasoning": "r", "better": "A" if first else "B"})

    record = sit(knows)
    with FakeServer(honest) as server:
        helper = {"policy": server.url, "model": "m", "price": {"in": 1, "out": 2}}
        judge = Chat(role="helper")
        mine = replace(record, revision=judge.revision, roles={"helper": f"{server.url} m"})
        registry.keep(replace(mine, judge="chat"))
        spec = {"chat": {"role": "helper"}}
        loaded = recipe(tmp_path, spec, roles={"helper": helper}, loop={"rounds": 1})
        folder = run(loaded, place=place(tmp_path))
        requests = server.requests
        resume(folder, place=place(tmp_path))
        assert server.requests == requests
    [check] = checks(folder)
    assert (check["kind"], check["step"], check["detail"]["accuracy"]) == (
        "judge_anchors",
        "anchors",
        1.0,
    )
    [paid] = read_rows(
        folder,
        "SELECT count(*) AS n, sum(dollars) AS dollars FROM charge WHERE round = 1 AND step = 'anchors'",
    )
    assert paid["n"] == 2 * (20 + 30)
    assert paid["dollars"] > 0
