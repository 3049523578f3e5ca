"""Rounds that sample while they train, in the corners: killed under a teacher, in low precision, with odd judges."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from children import start
from test_crash import CHILD
from test_on_policy import DISTIL, base_of, facts, go

from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.policies import catalog
from redistill.policies.revision import Revision
from redistill.policies.transformers import TransformersPolicy
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts

needs_four_bits = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def rewrite(base: Path, change: Any) -> Path:
    """Change a base's recipe."""
    recipe = yaml.safe_load((base / "recipe.yaml").read_text("utf-8"))
    change(recipe)
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return base


def taught(base: Path) -> Path:
    """Write a recipe whose student is taught by a model of this machine."""
    settings = {**DISTIL, "trainer": "distill", "teacher": "teacher", "save_every": 1, "steps": 3}

    def change(recipe: dict[str, Any]) -> None:
        recipe["roles"] = {"teacher": {"policy": "tiny-teacher"}}
        recipe["round"][0] = {"train": settings}

    return rewrite(base_of(base, "verifier"), change)


def test_killed_under_a_teacher_ends_like_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before and after a step's record, and before the job's: the same rollouts, token rewards and weights."""
    monkeypatch.setenv("PYTHONPATH", str(CHILD.parent))
    points: list[list[Any]] = [
        [1, "train:learned:", 1, "before"],
        [1, "train:learned:", 2, "after"],
        [1, "train", 1, "before"],
    ]
    for name, kills in (("calm", []), ("struck", points)):
        base = taught(tmp_path / name)
        for kill in [*kills, None]:
            told = {"base": str(base), "kill": kill, "log": str(base / "log.jsonl")}
            ended = start(CHILD, told)
            wanted = -signal.SIGKILL if kill else 0
            assert ended.returncode == wanted, (kill, ended.stderr[-3000:])
    earned = "SELECT completion_id::VARCHAR AS i, rewards FROM completion_tokens ORDER BY 1"
    struck, calm = ((tmp_path / name) for name in ("struck", "calm"))
    assert facts(struck) == facts(calm)
    assert facts(calm)["trained"][0]["status"] == "trained"
    assert read_rows(struck / "runs" / "one", earned) == read_rows(calm / "runs" / "one", earned)


def test_a_job_that_goes_on_and_says_something_else_is_another_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollout that stands in the store as something else stays, and what is said now stands beside it, judged anew."""
    monkeypatch.setenv("PYTHONPATH", str(CHILD.parent))
    base = base_of(tmp_path, "counted_judges:early", steps=2)
    monkeypatch.setenv("BILL", str(base / "bill"))
    kill = [1, "train:learned:", 1, "before"]
    told = {"base": str(base), "kill": kill, "log": str(base / "log.jsonl")}
    assert start(CHILD, told).returncode == -signal.SIGKILL
    paid = len((base / "bill").read_text("utf-8").splitlines())
    with duckdb.connect(str(base / "runs" / "one" / "store.duckdb")) as store:
        # As if the machine that was lost had sampled otherwise.
        store.execute(
            "UPDATE completion SET payload_hash = 'other' WHERE step = 'train' AND slot = 3"
        )
    assert start(CHILD, told | {"kill": None}).returncode == 0
    rows = read_rows(
        base / "runs" / "one",
        """
        SELECT optimizer_step AS step, slot, list(attempt ORDER BY attempt) AS attempts FROM completion
        WHERE step = 'train' AND (slot = 3 OR optimizer_step = 1) GROUP BY ALL ORDER BY 1, 2
        """,
    )
    assert [(r["step"], r["slot"]) for r in rows if len(r["attempts"]) > 1] == [(1, 3)]
    assert next(r for r in rows if len(r["attempts"]) > 1)["attempts"] == [0, 1]
    bills = (base / "bill").read_text("utf-8").splitlines()
    assert paid == 16
    assert len(bills) >= 32  # the first step's were judged once, and the second step's


@pytest.mark.parametrize(
    ("precision", "weights", "bound"),
    [
        ("bfloat16", "full", 0.1),
        pytest.param("nf4", "qlora", 0.1, marks=needs_four_bits),
    ],
)
def test_a_student_of_low_precision_samples_while_it_trains(
    tmp_path: Path, precision: str, weights: str, bound: float
) -> None:
    """Its first rollouts have the log-probs of the student that the run began with, within that precision's noise."""
    rate = 1e-3 if weights == "qlora" else 1e-4

    def change(recipe: dict[str, Any]) -> None:
        recipe["precision"] = precision
        recipe["round"][0]["train"] |= {"weights": weights, "learning_rate": rate, "steps": 2}

    folder = go(rewrite(base_of(tmp_path, "longest"), change))
    [job] = read_rows(folder, "SELECT status, message, start_revision AS s FROM training_run")
    assert job["status"] == "trained", job["message"]
    rows = read_rows(
        folder,
        """
        SELECT t.token_ids AS said, t.logprobs, c.prompt_id::VARCHAR AS prompt FROM completion c
        JOIN completion_tokens t ON t.completion_id = c.id
        WHERE c.step = 'train' AND c.optimizer_step = 1
        """,
    )
    start_ = Revision.read(folder / "revisions" / job["s"])
    policy = TransformersPolicy(start_)
    policy.load(start_)
    given = pq.read_table(folder / "jobs" / "1" / "rows.parquet").to_pylist()
    prompts = {row["id"]: tuple(row["prompt_ids"]) for row in given}
    asked = [(prompts[r["prompt"]], tuple(r["said"])) for r in rows]
    assert len(asked) == 16
    for row, score in zip(rows, policy.score(asked), strict=True):
        apart = [abs(a - b) for a, b in zip(row["logprobs"], score, strict=True)]
        assert sum(apart) / len(apart) < bound


def test_a_ranking_of_the_group_is_a_reward(tmp_path: Path) -> None:
    """GRPO on `win_rate`: each rollout is worth the share of its own group that it beats, and they sum to half of it."""
    judge = {"win_rate": {"judge": {"longest": {"unit": "characters"}}}}
    folder = go(base_of(tmp_path, judge, steps=2))
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]
    rows = read_rows(
        folder,
        """
        SELECT c.optimizer_step AS step, c.slot, r.reward, length(a.answer) AS long
        FROM completion c JOIN training_row r ON r.completion_id = c.id JOIN answers a ON a.id = c.id
        WHERE c.step = 'train' ORDER BY 1, 2
        """,
    )
    assert len(rows) == 32
    for begin in range(0, len(rows), 4):
        group = rows[begin : begin + 4]
        told = [r for r in group if r["reward"] is not None]
        for one in told:
            for other in told:
                if one["long"] > other["long"]:
                    assert one["reward"] > other["reward"]


def test_f10_a_reward_that_is_up_while_the_evaluation_is_down_is_named(tmp_path: Path) -> None:
    """GRPO pleases its judge and ruins the answers: rejected, and the decision names the judge that was pleased."""
    rows = fake_prompts(train=12, heldout=24, test=4)
    train = {
        "trainer": "grpo",
        "k": 8,
        "batch_size": 32,
        "micro_batch": 32,
        "max_tokens": 40,
        "learning_rate": 2e-4,
        "steps": 8,
        "judge": {"longest": {"unit": "characters"}},
    }
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = {
        "name": "pleased",
        "student": "tiny",
        "prompts": {"file": "redistill:tiny.jsonl"},
        "unproven_judge": "allow",
        "round": [
            {"train": train},
            {"evaluate": {"judge": "verifier", "max_tokens": 40}},
            {"gate": {"guards": []}},
        ],
    }
    recipe = load_recipe(json.dumps(data), "recipe.yaml", base=tmp_path)
    folder = run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()))
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]
    [decision] = read_rows(folder, "SELECT decision, delta, reason FROM decision")
    assert decision["decision"] == "rejected"
    assert "longest, whose labels trained it, prefers its answers" in decision["reason"], decision
    [found] = read_rows(folder, "SELECT detail FROM event WHERE kind = 'judge_diverged'")
    assert json.loads(found["detail"])["judge"] == "longest"
