"""Rounds of a real model on prompts that were proposed: from a teacher's idea to the weights that it moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from two_names import two_names

from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.hashing import content_hash
from redistill.policies import catalog
from redistill.report.integrity import examine_run
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer

DATA = Path(catalog.__file__).parents[1] / "recipes" / "data" / "tiny.jsonl"
PROPOSE = {"role": "writer", "count": 12, "show": 4, "most_alike": 0.95}
ENDS: list[dict[str, Any]] = [
    {"evaluate": {"judge": "verifier", "max_tokens": 44}},
    {"gate": {"guards": []}},
]


def writer(messages: list[dict[str, Any]]) -> str:
    """Write a task of the toy with a word of its own."""
    drawn = content_hash(messages[-1]["content"])
    return "please reverse " + "".join(chr(ord("a") + int(c, 16)) for c in drawn[:5])


def go(base: Path, steps: list[dict[str, Any]], **settings: Any) -> Path:
    """Run one round of the toy that begins with some steps."""
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    few = [row for split in ("train", "heldout", "test") for row in _first(rows, split)]
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, few)), "utf-8")
    recipe = {
        "name": "toy",
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl"},
        "execution": {"threads": 1},
        "round": [*steps, *ENDS],
        **settings,
    }
    loaded = load_recipe(yaml.safe_dump(recipe), "toy.yaml", base=base)
    return run(loaded, place=Place(base / "runs", catalog.default_cache()))


def _first(rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == split][:12]


def test_a_proposed_prompt_is_answered_judged_kept_and_learned(tmp_path: Path) -> None:
    """A teacher over HTTP proposes, one of this machine answers, and SFT trains on what a program found right."""
    steps: list[dict[str, Any]] = [
        {"propose": PROPOSE},
        {"sample": {"of": "propose", "role": "teacher", "k": 2, "max_tokens": 44}},
        {"score": {"judge": "proposed_judges:backwards"}},
        {"select": {"where": "backwards = 1", "per_prompt": 1}},
        {"train": {"trainer": "sft", "steps": 2, "batch_size": 4, "micro_batch": 4}},
    ]
    with FakeServer(writer) as server:
        roles = {
            "writer": {"policy": two_names(server.url), "model": "m"},
            "teacher": {"policy": "tiny-teacher"},
        }
        folder = go(tmp_path, steps, roles=roles)
    [job] = read_rows(folder, "SELECT status, revision FROM training_run")
    assert job["status"] == "trained"
    learned = read_rows(
        folder,
        "SELECT v.prompt, a.answer, v.verdict FROM training_row t JOIN answers a ON a.id = t.completion_id "
        "JOIN proposals v ON v.prompt_id = t.prompt_id",
    )
    assert len(learned) >= 4
    for row in learned:
        assert row["verdict"] == "kept"
        assert row["answer"] == row["prompt"].split()[-1][::-1]
    assert [one for one in examine_run(folder) if one["state"] == "bad"] == []


def test_a_policy_samples_on_what_was_proposed(tmp_path: Path) -> None:
    """`grpo` takes the prompts of the propose step, and no others."""
    settings = {"k": 4, "batch_size": 8, "micro_batch": 8, "max_tokens": 16, "steps": 1}
    judged = {"trainer": "grpo", "of": "propose", "judge": "proposed_judges:vowels", **settings}
    with FakeServer(writer) as server:
        roles = {"writer": {"policy": two_names(server.url), "model": "m"}}
        folder = go(tmp_path, [{"propose": PROPOSE}, {"train": judged}], roles=roles)
    [job] = read_rows(folder, "SELECT status, rows FROM training_run")
    assert job["status"] == "trained"
    [said] = read_rows(
        folder,
        "SELECT count(*) AS n, bool_and(v.verdict = 'kept') AS new FROM completion c "
        "LEFT JOIN proposals v ON v.prompt_id = c.prompt_id WHERE c.step = 'train'",
    )
    assert said == {"n": 8, "new": True}


def test_a_request_that_is_too_long_proposes_nothing(tmp_path: Path) -> None:
    """The toy's window has no room for four demonstrations: each call is an event, and the round goes on."""
    steps: list[dict[str, Any]] = [
        {"propose": PROPOSE | {"role": "student", "max_tokens": 16}},
        {"sample": {"of": ["round", "propose"], "k": 1, "max_tokens": 44}},
        {"score": {"judge": "verifier"}},
        {"select": {"where": "verifier = 1"}},
        {"train": {"trainer": "sft", "steps": 1, "batch_size": 1, "micro_batch": 1}},
    ]
    folder = go(tmp_path, steps)
    [found] = read_rows(
        folder,
        "SELECT (SELECT count(*) FROM proposal) AS n, (SELECT count(DISTINCT prompt_id) FROM completion "
        "WHERE step = 'sample') AS asked, (SELECT count(*) FROM event WHERE kind = 'too_long') AS parked",
    )
    assert found == {"n": 0, "asked": 12, "parked": 12}
