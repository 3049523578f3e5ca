"""A student that is criticised, answers again, and learns from what a program finds better: from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import redistill
from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.policies import catalog
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer

ROOT = Path(redistill.__file__).resolve().parent
RECIPE = ROOT / "examples" / "critique_revise.yaml"
RIGHT = {
    row["prompt"]: row["verify"]["equals"]["text"]
    for row in map(
        json.loads, (ROOT / "recipes" / "data" / "tiny.jsonl").read_text("utf-8").splitlines()
    )
}
FORMS = {
    row["prompt"]: (row["tags"][0].removeprefix("form:"), row["verify"])
    for row in map(
        json.loads, (ROOT / "recipes" / "data" / "forms.jsonl").read_text("utf-8").splitlines()
    )
}
WRITTEN = {
    "word": "{}",
    "answer": "Answer: {}",
    "quotes": '"{}"',
    "sentence": "The right word is {}.",
    "json": '{{"answer": "{}"}}',
    "capitals": "{}",
}
LOCAL = {
    "critic": {"policy": "student", "revision": "initial"},
    "reviser": {"policy": "tiny-teacher"},
}


def teacher(messages: list[dict[str, Any]]) -> str:
    """Criticise every answer, and know the right one when asked to write it again."""
    asked = messages[0]["content"]
    rewriting = len(messages) > 1 and messages[-1]["content"].startswith(
        "Your answer can be better"
    )
    return RIGHT[asked] if rewriting else "The letters are not in the order that was asked for."


def shipped(tmp_path: Path, roles: dict[str, Any]) -> Path:
    """Run the shipped recipe on the toy: other roles, other prompts, a shorter round."""
    data = yaml.safe_load(RECIPE.read_text("utf-8"))
    data |= {"student": "tiny", "prompts": {"file": "redistill:tiny.jsonl", "per_round": 64}}
    data["roles"] = roles
    for step in data["round"]:
        for name, settings in step.items():
            if "max_tokens" in settings and name != "critique":
                settings["max_tokens"] = 44
            if name == "train":
                settings["trainer"]["dpo"] |= {"learning_rate": 2.5e-5, "steps": 12}
    recipe = load_recipe(yaml.safe_dump(data), "toy.yaml", base=tmp_path)
    return run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run it with a teacher over HTTP."""
    with FakeServer(teacher) as server:
        far = {"policy": server.url, "model": "m"}
        return shipped(tmp_path_factory.mktemp("far"), {"critic": far, "reviser": dict(far)})


def test_a_teacher_over_http_makes_the_student_better(taught: Path) -> None:
    """Its rewrites pass, the pairs prefer them to what they were made of, and the gate promotes."""
    [decision] = read_rows(
        taught, "SELECT decision, champion_value, challenger_value FROM decision"
    )
    assert decision["decision"] == "promoted"
    assert decision["challenger_value"] > decision["champion_value"] + 0.1
    pairs = read_rows(
        taught,
        """
        SELECT c.step, c.verifier AS chosen, r.verifier AS rejected, x.parent_id = r.id AS own
        FROM pair p JOIN answers c ON c.id = p.chosen_id JOIN answers r ON r.id = p.rejected_id
        JOIN completion x ON x.id = p.chosen_id
        """,
    )
    assert len(pairs) > 30
    assert {tuple(pair.values()) for pair in pairs} == {("rewrite", 1.0, 0.0, True)}


def test_what_was_told_is_not_trained_on(taught: Path) -> None:
    """The rewrite is learned as an answer to the plain prompt: neither first answer nor critique is in it."""
    plain = read_rows(
        taught,
        """
        SELECT DISTINCT p.token_ids FROM completion c
        JOIN rendered_prompt p ON p.id = c.rendered_prompt_id WHERE c.step = 'sample'
        """,
    )
    [file] = taught.glob("jobs/*/*.parquet")
    trained = pq.read_table(file)["prompt_ids"].to_pylist()
    assert len(trained) > 30
    assert {tuple(ids) for ids in trained} <= {tuple(row["token_ids"]) for row in plain}


def test_a_critique_can_be_followed_to_what_came_of_it(taught: Path) -> None:
    """Each rewrite names its parent and the critique that it was given."""
    [found] = read_rows(
        taught,
        """
        SELECT count(*) AS rewrites, count(j.id) AS told, count(DISTINCT j.id) AS critiques
        FROM completion c LEFT JOIN judgement j ON j.id = c.critique_id AND j.completion_id = c.parent_id
        WHERE c.step = 'rewrite'
        """,
    )
    assert found["rewrites"] == found["told"] == found["critiques"] == 128


def test_the_same_recipe_runs_without_a_server(tmp_path: Path) -> None:
    """Other role lines alone: a toy whose window is too small for the critique says so, row by row.

    Nothing is rewritten, nothing is trained, and the champion stays.
    """
    folder = shipped(tmp_path, LOCAL)
    said = read_rows(folder, "SELECT DISTINCT status FROM judgement WHERE mode = 'critique'")
    assert [row["status"] for row in said] == ["too_big"]
    [decision] = read_rows(folder, "SELECT decision FROM decision")
    assert decision["decision"] == "rejected"
    assert read_rows(folder, "SELECT count(*) AS n FROM pair") == [{"n": 0}]


def knower(messages: list[dict[str, Any]]) -> str:
    """Criticise, and write the right word in the form that was asked for."""
    asked = messages[0]["content"]
    if len(messages) == 1 or not messages[-1]["content"].startswith("Your answer can be better"):
        return "It has another form than the one that was asked for."
    form, verify = FORMS[asked]
    word = verify.get("include") or verify["any_of"][0]
    return WRITTEN[form].format(word)


@pytest.mark.slow
def test_smollm2_learns_from_revisions(tmp_path: Path) -> None:
    """The shipped recipe with SmolLM2 and a teacher over HTTP: revised over original, DPO, promoted."""
    data = yaml.safe_load(RECIPE.read_text("utf-8"))
    with FakeServer(knower) as server:
        data["roles"] = {
            role: {"policy": server.url, "model": "m"} for role in ("critic", "reviser")
        }
        recipe = load_recipe(yaml.safe_dump(data), "smol.yaml", base=tmp_path)
        folder = run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()))
    shares = "SELECT step, avg(verifier) AS v FROM answers WHERE split = 'train' GROUP BY step"
    passed = {row["step"]: row["v"] for row in read_rows(folder, shares)}
    assert passed["rewrite"] > 0.9 > 0.5 > passed["sample"]
    [found] = read_rows(folder, "SELECT decision, champion_value, challenger_value FROM decision")
    print(passed, found, read_rows(folder, "SELECT count(*) AS pairs FROM pair"))
    assert found["decision"] == "promoted"


@pytest.mark.slow
def test_smollm2_learns_from_its_own_edited_answers(tmp_path: Path) -> None:
    """The shipped recipe without a teacher: a program edits what failed, and the gate promotes."""
    text = (ROOT / "examples" / "smallest_edit.yaml").read_text("utf-8")
    recipe = load_recipe(text, "smallest_edit.yaml", base=tmp_path)
    folder = run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()))
    edits = (
        "SELECT avg(verifier) AS passed, count(*) > 60 AS many FROM answers WHERE step = 'rewrite'"
    )
    assert read_rows(folder, edits) == [{"passed": 1.0, "many": True}]
    [found] = read_rows(folder, "SELECT decision, champion_value, challenger_value FROM decision")
    print(found, read_rows(folder, "SELECT count(*) AS pairs FROM pair"))
    assert found["decision"] == "promoted"
