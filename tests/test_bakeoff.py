"""A bake-off: the same rows for all, the same cost, and figures that are those of the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_on_policy import lesson
from typer.testing import CliRunner

from redistill.agents.bakeoff import Arm, Contest, bakeoff
from redistill.agents.loop import Place
from redistill.agents.recipe import Recipe
from redistill.cli import app
from redistill.errors import BadInput, EnvironmentProblem
from redistill.policies import catalog
from redistill.report import bakeoff as standing
from redistill.store.analysis import nested_bootstrap
from redistill.store.query import read_rows

STEPS: list[Any] = [
    {"sample": {"role": "teacher", "k": 4, "max_tokens": 24, "temperature": 1.5}},
    {"score": {"judge": {"longest": {"unit": "characters"}}}},
    {"select": {"limit": 16}},
    {"pair": {"by": "longest", "rule": "best_worst"}},
]
FAST: dict[str, Any] = {"batch_size": 8, "micro_batch": 4, "learning_rate": 1e-4}
ARMS = [
    Arm("sft", FAST | {"steps": 2}),
    Arm("dpo", FAST | {"epochs": 2}),
    Arm("grpo", FAST | {"k": 4, "max_tokens": 24}),
]


def dough(base: Path) -> Recipe:
    """Return a recipe whose round makes rows for every kind of trainer."""
    train = {"trainer": "sft", "of": "select"}
    allowed = {"unproven_judge": "allow", "same_judge": "allow"}
    return lesson(base, STEPS, train, **allowed)


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three arms at one seed with an equal number of trained tokens."""
    base = tmp_path_factory.mktemp("bake")
    recipe = dough(base)
    contest = Contest(ARMS, "tokens", [0], [1.0], "teacher")
    place = Place(base / "runs", catalog.default_cache())
    return contest, recipe, place, bakeoff(recipe, contest, place)


def test_all_learn_from_the_same_rows(baked: Any) -> None:
    """Arms that learn from rows have the same samples and values, by id; those that sample share prompts and judge."""
    _, _, _, entries = baked
    sft, dpo, grpo = entries
    said = "SELECT id::VARCHAR AS id, payload_hash FROM completion WHERE step = 'sample' ORDER BY 1"
    assert read_rows(sft.folder, said) == read_rows(dpo.folder, said)
    assert read_rows(grpo.folder, "SELECT DISTINCT judge FROM judgement WHERE step = 'train'") == [
        {"judge": "longest"}
    ]
    assert {e.folder.parent for e in entries} == {sft.folder.parent}


def test_what_is_equal_is_equal(baked: Any) -> None:
    """Trained tokens of all arms are those of the first one, as nearly as whole steps allow."""
    _, _, _, entries = baked
    first = entries[0].costs
    for entry in entries[1:]:
        each = entry.costs.trained_tokens / entry.steps
        assert abs(entry.costs.trained_tokens - first.trained_tokens) <= each
        assert entry.costs.peak_mb > 0
    sft, dpo, grpo = (entry.costs for entry in entries)
    assert sft.sampled == dpo.sampled == 48
    assert grpo.sampled == grpo.judged == 8 * grpo.steps


def test_the_table_has_the_runs_figures(baked: Any, tmp_path: Path) -> None:
    """The gain is the mean paired difference on test of what was trained, promoted or not; files and table agree."""
    contest, _, _, entries = baked
    rows = standing.standings(entries)
    assert [row["gain"] for row in rows] == sorted((row["gain"] for row in rows), reverse=True)
    for row in rows:
        [entry] = [e for e in entries if e.arm == row["trainer"]]
        [job] = read_rows(entry.folder, "SELECT revision FROM training_run")
        told = read_rows(
            entry.folder,
            """
            SELECT revision, value FROM evaluation WHERE split = 'test'
            """,
        )
        values = {r["revision"]: r["value"] for r in told}
        [first] = read_rows(entry.folder, "SELECT student FROM run")
        assert row["test"] == pytest.approx(values[job["revision"]])
        assert row["gain"] == pytest.approx(values[job["revision"]] - values[first["student"]])
        assert row["n"] == 8
    files = standing.write(tmp_path, contest, rows)
    assert [f.name for f in files] == ["bakeoff.json", "bakeoff.md", "bakeoff.svg"]
    assert json.loads(files[0].read_text("utf-8"))["arms"] == rows
    assert files[1].read_text("utf-8").count("\n| ") == 3
    assert files[2].read_text("utf-8").count("grpo") >= 1


def test_again_it_does_nothing_again(baked: Any) -> None:
    """What is finished is read: the same figures, and no chunk more in any run."""
    contest, recipe, place, entries = baked
    count = "SELECT count(*) AS n FROM write_batch"
    before = [read_rows(e.folder, count) for e in entries]
    assert bakeoff(recipe, contest, place) == entries
    assert [read_rows(e.folder, count) for e in entries] == before


def test_a_rate_that_comes_to_nothing_loses(baked: Any) -> None:
    """Two seeds and two rates, one of them absurd: the other is taken, and other settings make other runs."""
    _, recipe, place, entries = baked
    contest = Contest(ARMS[:1], "tokens", [0, 1], [1e9, 1.0])
    found = bakeoff(recipe, contest, place)
    assert [(e.seed, e.learning_rate) for e in found] == [(0, 1e-4), (1, 1e-4)]
    assert found[0] == entries[0]
    assert found[1].folder != found[0].folder
    hopeless = Contest(ARMS[:1], "tokens", [0], [1e9])
    with pytest.raises(EnvironmentProblem, match="came to nothing at any learning rate"):
        bakeoff(recipe, hopeless, place)
    wider = Contest([Arm("sft", FAST | {"steps": 2, "batch_size": 4})], "tokens", [0], [1.0])
    [other] = bakeoff(recipe, wider, place)
    assert other.folder != entries[0].folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--trainers", "sft,nobody"], "nobody"),
        (["--trainers", "sft", "--equal", "money"], "--equal"),
        (["--trainers", "sft", "--rates", "much"], "--rates"),
        (["--trainers", "sft", "--with", "dpo.beta=1"], "--with"),
        (["--trainers", "distill"], "--teacher"),
        (["--trainers", "dpo"], "needs the rows of a `pair` step"),
        (["--trainers", "self_distill"], "--given"),
        (["--trainers", "distill", "--teacher", "nobody"], "unknown role 'nobody'"),
    ],
)
def test_what_cannot_compete_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    """One line and exit code 2; no run is begun."""
    monkeypatch.chdir(tmp_path)
    steps = [
        {"sample": {"k": 2, "max_tokens": 24}},
        {"score": {"judge": "verifier"}},
        {"select": {}},
    ]
    rows = [
        {"prompt": f"Say {s}", "verify": {"equals": s}, "split": s}
        for s in ("train", "heldout", "test")
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = {
        "name": "one",
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl"},
        "round": [
            *steps,
            {"train": {"trainer": "sft"}},
            {"evaluate": {"judge": "verifier"}},
            {"gate": {}},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(data), "utf-8")
    with pytest.raises(BadInput) as caught:
        CliRunner().invoke(app, ["bakeoff", "recipe.yaml", *arguments], catch_exceptions=False)
    assert told in str(caught.value)
    assert not list((tmp_path / "runs").glob("one-[0-9]*"))


@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=20), min_size=1, max_size=4))
def test_an_interval_is_around_its_mean(differences: list[list[float]]) -> None:
    """The interval holds the mean of seeds, lies in what was seen, and has no width where nothing differs."""
    mean, low, high = nested_bootstrap(differences, seed="x", samples=200)
    seen = [d for one in differences for d in one]
    assert min(seen) - 1e-9 <= low <= high <= max(seen) + 1e-9
    if max(seen) == min(seen):
        assert low == pytest.approx(high) == pytest.approx(mean)


def test_seeds_count_beside_prompts() -> None:
    """Three trainings that differ give a wider interval than one of them with as many prompts in all."""
    apart = [[0.1] * 60, [0.3] * 60, [0.5] * 60]
    _, low, high = nested_bootstrap(apart, seed="x")
    _, alone_low, alone_high = nested_bootstrap([[0.3] * 180], seed="x")
    assert high - low > 0.2 > alone_high - alone_low
