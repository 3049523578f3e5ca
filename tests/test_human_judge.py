"""The judge `human`: the graph waits for people, the run parks, and goes on when they have answered."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import waiting_run
import yaml

from redistill.agents.applying import apply
from redistill.agents.exam import starter_exam
from redistill.agents.examining import STARTER, Sitting, examine
from redistill.agents.judge import load, modes, standing_of
from redistill.agents.judges.human import Human
from redistill.agents.loop import Silent, resume
from redistill.agents.recipe import load_recipe
from redistill.errors import BadInput, TryLater
from redistill.report.summary import summary
from redistill.store.query import read_rows

SCORE = {"score": {"judge": "human", "as": "people"}}
COMPARE = {"compare": {"judge": "human", "per_prompt": 1}}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TryLater]:
    """Return a run that waits for scores, and how it ended; tests copy it."""
    return waiting_run.begin(tmp_path_factory.mktemp("scored"), waiting_run.recipe(SCORE))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TryLater]:
    """Return a run that waits for comparisons and then for scores; tests copy it."""
    described = waiting_run.recipe(COMPARE, SCORE)
    return waiting_run.begin(tmp_path_factory.mktemp("compared"), described)


def test_a_run_parks_and_says_what_to_type(scored: tuple[Path, TryLater]) -> None:
    """It ends as other parks do, with exit code 75 and both next commands; `status` says that it waits."""
    folder, parked = scored
    assert parked.exit_code == 75
    where = f"--runs {folder.parent}"
    assert "round 1 people waits for people: 12 verdicts are missing" in str(parked)
    assert f"redistill review fake {where}, then go on with: redistill resume fake {where}" in str(
        parked
    )
    found = summary(folder)
    assert (found["state"], found["stopped_by"]) == ("waiting_human", None)
    assert found["waits_for"] == {"round": 1, "step": "people"}
    assert waiting_run.verdicts(folder) == []


def test_it_waits_as_long_as_anything_is_missing(tmp_path: Path) -> None:
    """Resuming without answers, or with some, parks again; with all it ends, and their values are used."""
    described = waiting_run.recipe(SCORE)
    described["round"][3] = {"select": {"where": "human >= 0.75", "of": "sample"}}
    folder, _ = waiting_run.begin(tmp_path, described)
    waiting_run.review(folder, "5")
    with pytest.raises(TryLater, match="waits for people"):
        resume(folder, place=waiting_run.place(tmp_path))
    waiting_run.review(folder, "4123" * 12)
    resume(folder, place=waiting_run.place(tmp_path))
    found = summary(folder)
    assert (found["state"], found["waits_for"]) == ("finished", None)
    kept = read_rows(folder, "SELECT completion_id AS id FROM selection")
    good = read_rows(
        folder,
        "SELECT DISTINCT id FROM answers WHERE human >= 0.75 AND finish_reason = 'stop' "
        "AND step = 'sample' QUALIFY row_number() OVER (PARTITION BY prompt_id, answer ORDER BY slot) = 1",
    )
    assert {row["id"] for row in kept} == {row["id"] for row in good}
    assert len(kept) > 0


def test_nothing_is_sampled_or_judged_again_after_the_wait(
    scored: tuple[Path, TryLater], tmp_path: Path
) -> None:
    """Rows of before the park are the rows of after it, and each answer has one verdict."""
    folder = waiting_run.copied(scored[0], tmp_path)
    sql = "SELECT id, created_at FROM completion WHERE step = 'sample' ORDER BY id"
    before = read_rows(folder, sql)
    waiting_run.review(folder, "3" * 12)
    resume(folder, place=waiting_run.place(tmp_path))
    assert read_rows(folder, sql) == before
    [counted] = read_rows(
        folder,
        "SELECT count(*) AS n, count(DISTINCT completion_id) AS d FROM judgement WHERE judge = 'human'",
    )
    assert (counted["n"], counted["d"]) == (12, 12)


def test_the_checkpoint_holds_the_step_and_a_number(
    scored: tuple[Path, TryLater], tmp_path: Path
) -> None:
    """What waits is a LangGraph interrupt of three scalars: no text of an answer is in the graph's file."""
    folder = waiting_run.copied(scored[0], tmp_path)
    with sqlite3.connect(folder / "graph.sqlite") as graph:
        writes = graph.execute(
            "SELECT value FROM writes WHERE channel = '__interrupt__'"
        ).fetchall()
        largest = graph.execute("SELECT max(length(checkpoint)) FROM checkpoints").fetchone()[0]
        every = b"".join(
            bytes(value) for (value,) in graph.execute("SELECT value FROM writes").fetchall()
        )
    assert len(writes) == 1
    assert b"missing" in writes[0][0]
    assert len(writes[0][0]) < 300
    assert largest < 4000
    assert b"train" not in every.replace(b"training", b"")


def test_comparisons_are_shown_in_both_orders(
    compared: tuple[Path, TryLater], tmp_path: Path
) -> None:
    """Each order is a row with what was presented; what a person prefers is a rank, never a place."""
    folder = waiting_run.copied(compared[0], tmp_path)
    waiting_run.review(folder, "1" * 99)
    rows = waiting_run.verdicts(folder, "presented, ranks, value, mode, status, role")
    seen = [tuple(map(str, row["presented"])) for row in rows]
    assert len(seen) == len(set(seen)) > 0
    assert {tuple(reversed(pair)) for pair in seen} == set(seen)
    assert {(*row["ranks"], row["value"], row["role"]) for row in rows} == {(1, 2, 1.0, "ann")}
    first = seen[: len(seen) // 2]
    assert not {tuple(reversed(pair)) for pair in first} & set(first), "second orders come last"


def test_one_order_is_drawn_by_chance(tmp_path: Path) -> None:
    """With `both_orders: false` each pair is shown once, and the order shown is in its row."""
    one = {"compare": {"judge": "human", "both_orders": False}}
    folder, _ = waiting_run.begin(tmp_path, waiting_run.recipe(one))
    waiting_run.review(folder, "2" * 99)
    rows = waiting_run.verdicts(folder, "presented, ranks")
    seen = [frozenset(map(str, row["presented"])) for row in rows]
    assert len(seen) == len(set(seen)) > 0
    assert {tuple(row["ranks"]) for row in rows} == {(2, 1)}


def test_a_step_is_applied_with_people_afterwards(
    scored: tuple[Path, TryLater], tmp_path: Path
) -> None:
    """`apply` parks in the same way, and ends when it is asked again after the review."""
    folder = waiting_run.copied(scored[0], tmp_path)
    waiting_run.review(folder, "3" * 12)
    resume(folder, place=waiting_run.place(tmp_path))
    step = "score: {of: sample, judge: {human: {name: second}}}"
    with pytest.raises(TryLater, match="then apply the step again"):
        apply(folder, step, progress=Silent())
    assert waiting_run.review(folder, "5" * 12)["left"] == 0
    [applied] = apply(folder, step, progress=Silent())
    assert applied.new
    [found] = read_rows(
        folder, "SELECT count(*) AS n, avg(second) AS v FROM answers WHERE second IS NOT NULL"
    )
    assert (found["n"], found["v"]) == (12, 1.0)


def test_two_steps_wait_one_after_the_other(
    compared: tuple[Path, TryLater], tmp_path: Path
) -> None:
    """Each step parks for itself, and a review serves whatever has been reached."""
    assert "round 1 compare waits" in str(compared[1])
    folder = waiting_run.copied(compared[0], tmp_path)
    waiting_run.review(folder, "t" * 99)
    with pytest.raises(TryLater, match="round 1 people waits"):
        resume(folder, place=waiting_run.place(tmp_path))
    waiting_run.review(folder, "1" * 99)
    resume(folder, place=waiting_run.place(tmp_path))
    assert summary(folder)["state"] == "finished"


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ({"evaluate": {"judge": "human", "max_tokens": 40}}, "evaluate cannot wait for people"),
        ({"critique": {"judge": "human"}}, "human cannot critique"),
        ({"score": {"judge": {"repeat": {"judge": "human"}}}}, "no judge can wait for people"),
    ],
)
def test_people_judge_where_a_step_can_wait(
    step: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    """Elsewhere the recipe is refused when it is loaded."""
    described = waiting_run.recipe({"score": {"judge": "longest"}})
    if "evaluate" in step:
        described["round"][-2] = step
    else:
        described["round"][2] = step
    with pytest.raises(BadInput, match=fault):
        load_recipe(yaml.safe_dump(described), "recipe.yaml", base=tmp_path)


def test_people_sit_no_exam(scored: tuple[Path, TryLater], tmp_path: Path) -> None:
    """A person is exempt: no `unproven_judge` is needed, no row says unproven, and `admit` says why not."""
    folder = waiting_run.copied(scored[0], tmp_path)
    assert read_rows(folder, "SELECT * FROM admission") == []
    assert standing_of(Human()) == "person"
    with pytest.raises(BadInput, match="people sit no exam"):
        asyncio.run(examine(Human(), Sitting(starter_exam(), STARTER, "a program")))


def test_its_settings_are_its_revision() -> None:
    """Another question or scale is another judge; outside of a step it has no opinion."""
    judge = load({"human": {"question": "Which is kinder?"}}, "judge")
    assert isinstance(judge, Human)
    assert len({judge.revision, Human().revision, Human(scale=7).revision}) == 3
    assert Human(name="ann").revision == Human().revision
    assert modes(judge) == ("score", "compare")
    [said] = asyncio.run(judge.compare([None]))  # type: ignore[list-item]
    assert said.status == "not_applicable"
