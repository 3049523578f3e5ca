"""No judge's label trains before it has passed an exam, or somebody has allowed it by name."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_judges
import planted_judges
import pytest
from gated import (
    PLANTED,
    checks,
    knows,
    place,
    recipe,
    sit,
)
from planted_judges import think

from redistill.agents import registry
from redistill.agents.admission import ask, conclude
from redistill.agents.exam import starter_exam
from redistill.agents.judges.chat import Chat
from redistill.agents.loop import Silent, prepare, resume, run
from redistill.agents.recipe import Recipe
from redistill.cli import main
from redistill.errors import BadInput, TryLater
from redistill.report.page import write_page
from redistill.report.summary import judge_notes, summary
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer
from redistill.testing.fakes import fake_recipe


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISTILL_HOME", str(tmp_path / "home"))


def problems(loaded: Recipe, base: Path) -> list[str]:
    """Return what stops a recipe before anything is loaded or made."""
    try:
        prepare(loaded, place(base))
    except BadInput as error:
        assert not (base / "runs").exists()
        return [str(problem) for problem in error.problems]
    return []


# -- before the run


def test_an_unexamined_judge_stops_before_any_call(tmp_path: Path) -> None:
    """One line with the way out; the judge is not asked, no server called, no folder made."""
    asked = []
    think(one=lambda task: float(not asked.append(task)))  # type: ignore[func-returns-value]
    [told] = problems(recipe(tmp_path), tmp_path)
    assert told == (
        "score.judge: one has not sat the exam, so nothing says that its labels are worth training on; "
        "`redistill judge admit planted_judges:one` examines it; or write `unproven_judge: allow` to use "
        "it all the same"
    )
    assert asked == []
    with FakeServer(fake_judges.judge) as server:
        roles = {"helper": {"policy": server.url, "model": "m"}}
        chat = recipe(tmp_path, {"chat": {"role": "helper"}}, roles=roles)
        with pytest.raises(BadInput, match="chat has not sat the exam"):
            run(chat, place=place(tmp_path))
        assert server.requests == 0
    assert not (tmp_path / "runs").exists()


def test_a_refused_judge_is_told_with_its_reason(tmp_path: Path) -> None:
    """What the exam found stands in the line."""
    record = sit(lambda task: float(len(task.completion.text) > 20))
    assert record.verdict == "refused"
    [told] = problems(recipe(tmp_path), tmp_path)
    assert told.startswith(
        f"score.judge: one was refused by the exam: {record.admission.reasons[0]}"
    )


def test_an_admitted_judge_may_label(tmp_path: Path) -> None:
    """The run begins, its admission is copied into it, and no report has anything to say."""
    record = sit(knows)
    assert record.verdict == "admitted"
    folder = run(recipe(tmp_path), place=place(tmp_path))
    [row] = read_rows(folder, "SELECT * FROM admission")
    assert (row["judge"], row["verdict"], row["exam"], row["n"]) == (
        "one",
        "admitted",
        "starter",
        360,
    )
    assert row["exam_hash"] == starter_exam().hash
    assert json.loads(row["detail"])["verdict"] == "admitted"
    assert judge_notes(summary(folder)) == []


def test_a_run_goes_on_without_the_registry(tmp_path: Path) -> None:
    """What it began with stands in its own store: on another computer it needs no exam again."""

    class Stopping(Silent):
        def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002
            if step == "sample":
                raise TryLater("stopped")

    sit(knows)
    with pytest.raises(TryLater):
        run(recipe(tmp_path, loop={"rounds": 1}), place=place(tmp_path), progress=Stopping())
    shutil.rmtree(registry.home())
    folder = resume(tmp_path / "runs" / "fake", place=place(tmp_path))
    assert summary(folder)["state"] == "finished"
    assert [row["kind"] for row in checks(folder)] == ["judge_anchors"]


def test_an_admission_is_of_one_model(tmp_path: Path) -> None:
    """The same rubric on another model is another judge, and has to sit the exam itself."""
    roles = {"helper": "https://a.example/v1 one"}
    record = replace(sit(knows), revision=Chat(role="helper").revision, roles=roles)
    registry.keep(record)
    spec = {"chat": {"role": "helper"}}

    def told(model: str) -> list[str]:
        roles = {"helper": {"policy": "https://a.example/v1", "model": model}}
        return problems(recipe(tmp_path, spec, roles=roles), tmp_path)

    assert told("one") == []
    shutil.rmtree(tmp_path / "runs")
    [other] = told("two")
    assert "chat has not sat the exam" in other
    assert "--recipe RECIPE" in other


def test_allowed_judges_are_told_in_every_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`unproven_judge: allow` runs, and summary, status and page say what it rests on."""
    think(one=knows)
    folder = run(recipe(tmp_path, unproven_judge="allow"), place=place(tmp_path))
    [judge] = summary(folder)["unproven_judges"]
    assert (judge["judge"], judge["verdict"]) == ("one", "unproven")
    said = "this run uses a judge that has passed no exam: one has not sat the exam"
    with pytest.raises(SystemExit):
        main(["status", folder.name, "--runs", str(folder.parent)])
    assert said in capsys.readouterr().out
    assert said in write_page(folder, tmp_path / "page.html").read_text("utf-8")


def test_baselines_need_leave_and_programs_do_not(tmp_path: Path) -> None:
    """No exam proves `longest`; the verifier needs none."""
    [told] = problems(recipe(tmp_path, "longest"), tmp_path)
    assert told == (
        "score.judge: longest is a baseline, and no baseline is ever proven; write `unproven_judge: allow` "
        "to use it all the same"
    )
    assert problems(recipe(tmp_path, "verifier"), tmp_path) == []


def test_the_student_as_its_only_judge_needs_leave(tmp_path: Path) -> None:
    """`self_judge: allow`, or a second judge that is not the student."""
    own = {"chat": {"role": "student"}}
    allowed = {"unproven_judge": "allow"}
    [told] = problems(recipe(tmp_path, own, **allowed), tmp_path)
    assert "the student is its only judge" in told
    assert "`self_judge: allow`" in told
    assert problems(recipe(tmp_path, own, self_judge="allow", **allowed), tmp_path) == []
    shutil.rmtree(tmp_path / "runs")
    both = fake_recipe()["round"]
    both[1:2] = [{"score": {"judge": own}}, {"score": {"as": "check", "judge": "verifier"}}]
    assert problems(recipe(tmp_path, own, round=both, **allowed), tmp_path) == []
    shutil.rmtree(tmp_path / "runs")

    def jury(*members: Any) -> list[str]:
        spec = {"jury": {"judges": list(members), "weights": "majority"}}
        return problems(recipe(tmp_path, spec, **allowed), tmp_path)

    assert len(jury(own, {"repeat": {"judge": own}}, "longest")) == 1
    assert jury(own, "verifier") == []


def test_a_gate_whose_judge_also_trained_needs_leave(tmp_path: Path) -> None:
    """Evidence from who labelled shows what it was taught to show."""
    steps = fake_recipe()["round"]
    steps[1] = {"score": {"judge": PLANTED}}
    steps[2] = {"select": {"where": "one = 1", "per_prompt": 1}}
    steps[4] = {"evaluate": {"judge": PLANTED, "max_tokens": 40}}
    sit(knows)
    [told] = problems(recipe(tmp_path, round=steps), tmp_path)
    assert told.startswith(
        "evaluate.judge: one measures what one has trained, and both are one judge"
    )
    assert "`same_judge: allow`" in told
    assert problems(recipe(tmp_path, round=steps, same_judge="allow"), tmp_path) == []


def test_leave_and_anchors_change_no_row_and_no_key(tmp_path: Path) -> None:
    """The three kinds of leave and the anchors say what may run, and not what it is."""
    allow = dict.fromkeys(("unproven_judge", "self_judge", "same_judge"), "allow")
    loaded = recipe(tmp_path, **allow, execution={"anchors": 0})
    assert loaded.key == recipe(tmp_path).key
    assert "anchors" not in recipe(tmp_path).resolved()["execution"]
    assert loaded.resolved()["execution"]["anchors"] == 0


def test_the_verdict_of_an_exam_reaches_the_run_whole(tmp_path: Path) -> None:
    """The numbers in the run are those of the record: no second account of them."""
    record = sit(knows)
    votes = asyncio.run(ask(planted_judges.one, starter_exam().items))
    assert record.admission == conclude(starter_exam(), votes, record.admission.attacks)
    kept = registry.find(record.revision, {})
    assert kept is not None
    assert kept.as_dict() == record.as_dict()
