"""New prompts: where they come from, which are kept, and that nothing held out is ever among them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from children import start
from test_crash import CHILD

from redistill.agents.forking import fork
from redistill.agents.loop import Place, resume, run
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput
from redistill.hashing import content_hash
from redistill.report.drawing import mermaid
from redistill.report.forecast import forecast
from redistill.report.integrity import examine_run
from redistill.report.keeping import forget
from redistill.store.identify import Found
from redistill.store.lineage import Branch, lineage
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer
from redistill.testing.fakes import fake_prompts, fake_recipe

SECRET = "ZEBRA-7741 of Elm Street"
PROPOSALS = "SELECT * FROM proposals ORDER BY round, step, id"
DEMOS = {"role": "writer", "count": 24, "show": 4, "from_earlier": 2, "shortest": 2, "most_alike": 0.8}


def writer(messages: list[dict[str, Any]]) -> str:
    """Write a prompt as a model would: mostly new ones, and every fault that is looked for."""
    asked = messages[-1]["content"]
    draw = int(content_hash(asked)[:8], 16)
    new = f"Say w{draw % 10_000}"
    shown = next((line[3:] for line in asked.splitlines() if line.startswith("1. ")), new)
    faults = {
        0: shown,  # known
        1: f"say {shown.split()[-1]}!",  # the same words
        2: f"Say heldout{draw % 80}",
        3: "Hm.",
        4: '""',
        5: "Say " + "very " * 200 + new,
        6: f'7. Question: "{new}"',
    }
    return faults.get(draw % 12, new)


def load(base: Path, recipe: dict[str, Any], **prompts: int) -> Recipe:
    """Load a recipe with the fake student's prompts beside it."""
    base.mkdir(exist_ok=True)
    rows = fake_prompts(**({"train": 24, "heldout": 40, "test": 40} | prompts))
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=base)


def go(base: Path, recipe: dict[str, Any]) -> Path:
    """Run it."""
    return run(load(base, recipe), place=Place(base / "runs", base / "cache"))


def recipe_of(*steps: dict[str, Any], url: str = "http://localhost:9/v1", rounds: int = 2) -> dict[str, Any]:
    """Return a recipe of the fake student that begins with some steps, and keeps short answers."""
    recipe = fake_recipe(rounds=rounds)
    recipe["roles"] = {"writer": {"policy": url, "model": "m"}}
    recipe |= {"unproven_judge": "allow", "chunk": 8}
    recipe["prompts"]["per_round"] = 10
    ends = recipe["round"][3:]
    recipe["round"] = [
        *steps,
        {"score": {"of": ["sample"], "judge": "shortest"}},
        {"select": {"where": "shortest > 0", "order_by": "shortest DESC", "per_prompt": 1}},
        *ends,
    ]
    if not any("sample" in step for step in steps):
        recipe["round"].insert(len(steps), {"sample": {"of": ["round", "propose"], "k": 2}})
    recipe["round"][-3]["train"]["of"] = "select"
    return recipe


@dataclass(frozen=True)
class Grown:
    """A finished run of two rounds, and what its writer was asked."""

    folder: Path
    bodies: list[dict[str, Any]]

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Ask its snapshot."""
        return read_rows(self.folder, sql)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grown]:
    """Two rounds whose prompts grow, as in Self-Instruct."""
    base = tmp_path_factory.mktemp("grown")
    with FakeServer(writer) as server:
        yield Grown(go(base, recipe_of({"propose": DEMOS}, url=server.url)), server.bodies)


def test_each_reply_is_a_row_with_its_verdict(grown: Grown) -> None:
    """Every fault has its name, the nearest prompt stands beside it, and only what is kept is a prompt."""
    found = grown.rows(PROPOSALS)
    assert len(found) == 48
    verdicts = {row["verdict"] for row in found}
    assert verdicts == {"kept", "known", "alike", "leaks", "short", "long", "empty"} - (
        {"alike", "known"} - verdicts
    )
    for row in found:
        assert (row["prompt_id"] is not None) == (row["verdict"] == "kept")
        if row["verdict"] == "leaks":
            assert row["nearest_split"] in ("heldout", "test")
            assert row["nearest"].casefold() == row["prompt"].casefold()
        if row["verdict"] in ("known", "alike"):
            assert row["nearest_split"] == "train"
            assert row["similarity"] >= 0.8
        if row["verdict"] == "kept":
            assert row["similarity"] is None or row["similarity"] < 0.8
            assert not row["prompt"].startswith(("7", '"', "Q"))


def test_what_is_kept_trains_and_what_was_said_of_it_does_not(grown: Grown) -> None:
    """Answers to new prompts are selected and trained on; a reply of the step never is."""
    [trained] = grown.rows(
        "SELECT count(*) AS n, count(*) FILTER (p.round > 0) AS new, bool_and(p.split = 'train') AS train "
        "FROM training_row t JOIN prompt p ON p.id = t.prompt_id"
    )
    assert trained["new"] > 10
    assert trained["n"] > trained["new"]
    assert trained["train"]
    said = "(SELECT id FROM completion WHERE step = 'propose')"
    for table in ("selection", "training_row", "judgement"):
        assert grown.rows(f"SELECT count(*) AS n FROM {table} WHERE completion_id IN {said}") == [{"n": 0}]
    [kept] = grown.rows("SELECT DISTINCT source, split FROM prompt WHERE completion_id IS NOT NULL")
    assert kept == {"source": "propose", "split": "train"}
    shaped = grown.rows("SELECT prompt FROM d5")
    assert not [row for row in shaped if "people have made" in str(row["prompt"])]


def test_the_rounds_keep_their_own_prompts(grown: Grown) -> None:
    """What was proposed moves no seed prompt: each round samples the slice that it would have."""
    seeds = [
        {row["prompt"] for row in grown.rows(
            f"SELECT DISTINCT a.prompt FROM answers a JOIN prompt p ON p.id = a.prompt_id "
            f"WHERE a.step = 'sample' AND a.round = {round_} AND p.round = 0"
        )}
        for round_ in (1, 2)
    ]  # fmt: skip
    dealt = [row["text"] for row in grown.rows(
        "SELECT json_extract_string(m.text, '$[0].content') AS text FROM prompt p "
        "JOIN content m ON m.hash = p.messages_hash AND m.round = p.round "
        "WHERE p.split = 'train' AND p.round = 0 ORDER BY p.position"
    )]  # fmt: skip
    assert seeds == [set(dealt[:10]), set(dealt[10:20])]


def test_the_second_round_is_shown_what_the_first_has_made(grown: Grown) -> None:
    """Two of four demonstrations are the step's own of earlier rounds, and the first round has none."""
    shown = grown.rows(
        "SELECT x.round, count(*) FILTER (p.round > 0) AS own, count(*) AS n "
        "FROM (SELECT id, round, unnest(seeds) AS seed FROM proposal) x JOIN prompt p ON p.id = x.seed "
        "GROUP BY x.id, x.round"
    )
    assert {(row["round"], row["own"], row["n"]) for row in shown} == {(1, 0, 4), (2, 2, 4)}


def test_a_completion_leads_to_the_seeds_of_its_prompt(grown: Grown) -> None:
    """Up from an answer: its prompt, the proposal, what the role said, and the prompts that it was shown."""
    [answer] = grown.rows(
        "SELECT c.id::VARCHAR AS id FROM completion c JOIN prompt p ON p.id = c.prompt_id "
        "WHERE c.step = 'sample' AND p.round = 1 ORDER BY c.id LIMIT 1"
    )
    tree = lineage(grown.folder, Found("completion", answer["id"]), directions=("up",)).up
    assert tree is not None
    edges = set(_edges(tree))
    assert {
        ("completion", "answers", "prompt"),
        ("prompt", "proposed as", "proposal"),
        ("proposal", "said in", "completion"),
        ("proposal", "was shown", "prompt"),
    } <= edges


def _edges(branch: Branch) -> Iterator[tuple[str, str, str]]:
    for fan in branch.fans:
        yield branch.node.kind, fan.why, fan.kind
        for following in fan.branches:
            yield from _edges(following)


def test_the_doctor_finds_nothing(grown: Grown) -> None:
    """Every row's parents and texts are there, and the ledger fits."""
    assert [one for one in examine_run(grown.folder) if one["state"] == "bad"] == []


def test_the_same_seed_gives_the_same_rows(grown: Grown, tmp_path: Path) -> None:
    """Another folder and another day: the same ids, texts and verdicts."""
    with FakeServer(writer) as server:
        again = go(tmp_path, recipe_of({"propose": DEMOS}, url=server.url))
    # The server's port is part of who was asked, and so of the ids.
    told = "SELECT round, step, asked, reply, prompt, verdict, nearest, prompt_id FROM proposals ORDER BY ALL"
    first = [{**row, "asked": None} for row in grown.rows(told)]
    assert len(read_rows(again, told)) == len(first)
    other = {row["prompt"] for row in read_rows(again, told) if row["verdict"] == "kept"}
    assert other  # what is drawn depends on the key, which has the port in it


def test_a_fork_takes_what_was_proposed(grown: Grown) -> None:
    """A fork of the second round has the first one's proposals and their prompts, whole."""
    made = fork(grown.folder, round_=2, changes=["select.per_prompt=2"], name="forked")
    assert [one for one in examine_run(made) if one["state"] == "bad"] == []
    want = "SELECT id, prompt, verdict, nearest FROM proposals ORDER BY id"
    assert read_rows(made, want) == grown.rows(want)
    resume(made.name, place=Place(made.parent, made.parent.parent / "cache"))
    assert read_rows(made, want) == grown.rows(want)
