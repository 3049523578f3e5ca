"""New prompts: where they come from, which are kept, and that nothing held out is ever among them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from children import start
from test_crash import CHILD
from two_names import two_names

from redistill.agents.forking import fork
from redistill.agents.loop import Place, resume, run
from redistill.agents.memory import longest_rows
from redistill.agents.prompts import load_prompts
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

PROPOSALS = "SELECT * FROM proposals ORDER BY round, step, id"
DEMOS = {
    "role": "writer",
    "count": 24,
    "show": 4,
    "from_earlier": 2,
    "shortest": 2,
    "most_alike": 0.8,
}


def writer(messages: list[dict[str, Any]]) -> str:
    """Write a prompt as a model would: mostly new ones, and every fault that is looked for."""
    asked = messages[-1]["content"]
    draw = int(content_hash(asked)[:8], 16)
    new = f"Say w{draw % 10_000}"
    shown = next((line[3:] for line in asked.splitlines() if line.startswith("1. ")), new)
    faults = {
        0: shown,  # known
        1: f"{shown}!",  # the same words
        2: f"Say heldout{draw % 24}",
        3: "Hm.",
        4: '""',
        5: "Say " + "very " * 200 + new,
        6: f'7. Question: "{new}"',
    }
    return faults.get(draw % 12, new)


def load(base: Path, recipe: dict[str, Any], **prompts: int) -> Recipe:
    """Load a recipe with the fake student's prompts beside it."""
    base.mkdir(exist_ok=True)
    rows = fake_prompts(**({"train": 24, "heldout": 24, "test": 8} | prompts))
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=base)


def go(base: Path, recipe: dict[str, Any]) -> Path:
    """Run it."""
    return run(load(base, recipe), place=Place(base / "runs", base / "cache"))


def recipe_of(
    *steps: dict[str, Any], url: str = "http://localhost:9/v1", rounds: int = 2
) -> dict[str, Any]:
    """Return a recipe of the fake student that begins with some steps, and keeps short answers."""
    recipe = fake_recipe(rounds=rounds)
    recipe["roles"] = {"writer": {"policy": two_names(url), "model": "m"}}
    recipe["chunk"] = 8
    recipe["prompts"]["per_round"] = 10
    ends = recipe["round"][3:]
    recipe["round"] = [
        *steps,
        {"score": {"of": ["sample"], "judge": "proposed_judges:ends_alike"}},
        {"select": {"of": "sample", "where": "ends_alike = 1", "per_prompt": 1}},
        *ends,
    ]
    if not any("sample" in step for step in steps):
        recipe["round"].insert(len(steps), {"sample": {"of": ["round", "propose"], "k": 2}})
    recipe["round"][-3]["train"]["of"] = "select"
    return recipe


@dataclass(frozen=True)
class Grown:
    """A finished run of two rounds, the writer that it asked, and what that was asked."""

    folder: Path
    url: str
    bodies: list[dict[str, Any]]

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Ask its snapshot."""
        return read_rows(self.folder, sql)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grown]:
    """Two rounds whose prompts grow, as in Self-Instruct."""
    base = tmp_path_factory.mktemp("grown")
    with FakeServer(writer) as server:
        folder = go(base, recipe_of({"propose": DEMOS}, url=server.url))
        yield Grown(folder, server.url, list(server.bodies))


def test_each_reply_is_a_row_with_its_verdict(grown: Grown) -> None:
    """Every fault has its name, the nearest prompt stands beside it, and only what is kept is a prompt."""
    found = grown.rows(PROPOSALS)
    assert len(found) == 48
    verdicts = {row["verdict"] for row in found}
    assert verdicts == {"kept", "known", "alike", "leaks", "short", "long", "empty"}
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
        assert grown.rows(f"SELECT count(*) AS n FROM {table} WHERE completion_id IN {said}") == [
            {"n": 0}
        ]
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
    """Another folder and another time: the same ids, texts and verdicts; chunks of another size, the same verdicts."""
    again = go(tmp_path / "again", recipe_of({"propose": DEMOS}, url=grown.url))
    assert read_rows(again, PROPOSALS) == grown.rows(PROPOSALS)
    prompts = "SELECT id, position, tags FROM prompt ORDER BY id"
    assert read_rows(again, prompts) == grown.rows(prompts)


def test_a_fork_takes_what_was_proposed(grown: Grown) -> None:
    """A fork of the second round has the first one's proposals and their prompts, whole."""
    made = fork(grown.folder, round_=2, changes=["select.per_prompt=2"], name="forked")
    assert [one for one in examine_run(made) if one["state"] == "bad"] == []
    want = "SELECT id, prompt, verdict, nearest FROM proposals ORDER BY id"
    assert read_rows(made, want) == grown.rows(want)
    resume(made, place=Place(made.parent, made.parent.parent / "cache"))
    assert read_rows(made, want) == grown.rows(want)


def test_what_is_forgotten_goes_wherever_it_was_shown(grown: Grown, tmp_path: Path) -> None:
    """A prompt that was kept goes with what the role said of it, and from every request that showed it."""
    copy = tmp_path / "runs" / grown.folder.name
    shutil.copytree(grown.folder, copy)
    [prompt] = read_rows(
        copy,
        "SELECT x.prompt, x.prompt_id::VARCHAR AS id FROM proposals x WHERE x.verdict = 'kept' AND x.prompt_id IN "
        "(SELECT unnest(seeds) FROM proposal) ORDER BY x.id LIMIT 1",
    )
    before = [
        row["n"]
        for row in read_rows(
            copy, "SELECT count(*) AS n FROM prompt UNION ALL SELECT count(*) FROM proposal"
        )
    ]
    found = forget(copy, f"prompt_id = '{prompt['id']}'", prompts=True, reason="", sure=True)
    assert found["prompts"] == [prompt["id"]]
    held = read_rows(copy, f"SELECT text FROM content WHERE contains(text, '{prompt['prompt']}')")
    assert [row["text"] for row in held] == []
    after = [
        row["n"]
        for row in read_rows(
            copy, "SELECT count(*) AS n FROM prompt UNION ALL SELECT count(*) FROM proposal"
        )
    ]
    assert after == before
    assert [one for one in examine_run(copy) if one["state"] == "bad"] == []
    spelled = (
        f"SELECT 1 FROM rendered_prompt WHERE prompt_id = '{prompt['id']}' AND len(token_ids) > 0"
    )
    assert read_rows(copy, spelled) == []


# -- what is given


def test_topics_documents_prompts_and_failures(tmp_path: Path) -> None:
    """Each is shown what its recipe says; a document is the reference, a varied prompt the parent."""
    base = tmp_path / "base"
    base.mkdir()
    documents = [
        {"text": f"Text {n} of the sea.", "source": "sea book", "licence": "CC0"} for n in range(3)
    ]
    (base / "docs.jsonl").write_text("\n".join(map(json.dumps, documents)), "utf-8")
    (base / "topics.txt").write_text("fjords\n\nmoss\n", "utf-8")
    shared = {"role": "writer", "shortest": 1, "most_alike": 1.0}
    steps: list[dict[str, Any]] = [
        {
            "propose": {
                "as": "by_topic",
                "given": "topics",
                "topics": "topics.txt",
                "count": 3,
                **shared,
            }
        },
        {
            "propose": {
                "as": "by_list",
                "given": "topics",
                "topics": ["ice"],
                "count": 1,
                "tags": ["kind:ice"],
                **shared,
            }
        },
        {
            "propose": {
                "as": "by_text",
                "given": "documents",
                "documents": "docs.jsonl",
                "count": 2,
                **shared,
            }
        },
        {"propose": {"as": "harder", "given": "prompts", "of": "by_text", "variants": 2, **shared}},
        {"propose": {"as": "own", "given": "prompts", **shared}},
        {
            "sample": {
                "as": "first",
                "of": ["by_topic", "by_list", "by_text", "harder", "own"],
                "k": 1,
            }
        },
        {"score": {"as": "looked", "of": "first", "judge": "proposed_judges:ends_alike"}},
        {"select": {"as": "failed", "of": "first", "where": "ends_alike < 1"}},
        {"propose": {"as": "again", "given": "failures", "of": "failed", **shared}},
        {"sample": {"of": ["failed", "again"], "k": 1}},
    ]

    def write(messages: list[dict[str, Any]]) -> str:
        # The same words to the same question, so that of two variants the second is known.
        return f"Say x{content_hash(messages[-1]['content'])[:12]}"

    with FakeServer(write) as server:
        folder = go(base, recipe_of(*steps, url=server.url, rounds=2))
    asked = "SELECT round, step, asked, verdict FROM proposals ORDER BY round, step, id"
    found = read_rows(folder, asked)
    assert {row["verdict"] for row in found} <= {"kept", "known"}
    by_topic = Counter(
        (row["round"], "fjords" in row["asked"]) for row in found if row["step"] == "by_topic"
    )
    assert by_topic == {(1, True): 2, (1, False): 1, (2, True): 1, (2, False): 2}
    texts = {
        row["asked"].splitlines()[2]
        for row in found
        if row["step"] == "by_text" and row["round"] == 2
    }
    assert texts == {"Text 2 of the sea.", "Text 0 of the sea."}
    references = read_rows(
        folder,
        "SELECT json_extract_string(d.text, '$.reference') AS reference, p.source, p.licence "
        "FROM proposal x JOIN prompt p ON p.id = x.prompt_id "
        "JOIN content d ON d.hash = p.details_hash AND d.round = p.round WHERE x.step = 'by_text' AND x.round = 1",
    )
    assert {tuple(row.values()) for row in references} == {
        (f"Text {n} of the sea.", "propose from sea book", "CC0") for n in (0, 1)
    }
    parents = read_rows(
        folder,
        "SELECT x.step, count(*) AS n, bool_and(p.parent_id = x.seeds[1]) AS held FROM proposal x "
        "JOIN prompt p ON p.id = x.prompt_id WHERE x.step IN ('harder', 'own') AND x.round = 1 GROUP BY 1 ORDER BY 1",
    )
    assert parents == [
        {"step": "harder", "n": 2, "held": True},
        {"step": "own", "n": 10, "held": True},
    ]
    shown = read_rows(
        folder,
        "SELECT count(*) AS n, count(a.id) AS answers, bool_and(contains(v.asked, a.answer)) AS told "
        "FROM proposal x JOIN proposals v ON v.id = x.id LEFT JOIN answers a ON a.id = x.answer_id "
        "WHERE x.step = 'again'",
    )
    assert shown[0]["n"] == shown[0]["answers"] > 10
    assert shown[0]["told"]
    [last] = read_rows(
        folder,
        "SELECT count(DISTINCT prompt_id) AS n FROM completion c WHERE step = 'sample' AND round = 1 AND "
        "prompt_id IN (SELECT prompt_id FROM selection WHERE step = 'failed' AND round = 1)",
    )
    assert last["n"] > 0
    [tagged] = read_rows(
        folder,
        "SELECT DISTINCT p.tags FROM proposal x JOIN prompt p ON p.id = x.prompt_id WHERE x.step = 'by_list'",
    )
    assert tagged["tags"] == ["kind:ice"]
    assert [one for one in examine_run(folder) if one["state"] == "bad"] == []


def test_a_call_that_is_not_answered_proposes_nothing(tmp_path: Path) -> None:
    """It is an event with its reason, as of a sample, and the others go on."""
    with FakeServer(writer, {"refusal": 0.3}, seed=3) as server:
        folder = go(tmp_path, recipe_of({"propose": DEMOS}, url=server.url, rounds=1))
    [told] = read_rows(
        folder,
        "SELECT (SELECT count(*) FROM proposal) AS n, "
        "(SELECT count(*) FROM event WHERE kind = 'unanswered' AND step = 'propose') AS left_out",
    )
    assert told["left_out"] > 0
    assert told["n"] + told["left_out"] == 24
    assert [one for one in examine_run(folder) if one["state"] == "bad"] == []


# -- killed


SAYING = {
    "count": 12,
    "show": 3,
    "from_earlier": 1,
    "template": "said.txt",
    "shortest": 1,
    "max_tokens": 9,
}


def base_of(base: Path) -> Path:
    """Write a recipe whose student proposes: it says the last word that it is shown, or that with a mark."""
    recipe = recipe_of({"propose": SAYING})
    recipe["roles"] = {}
    load(base, fake_recipe())
    (base / "said.txt").write_text("Another one.\n\n{demos}\n", "utf-8")
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return base


def test_killed_while_it_proposes_ends_like_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before and after chunks of proposals: the same ids, verdicts, nearest prompts and answers."""
    monkeypatch.setenv("PYTHONPATH", str(CHILD.parent), prepend=os.pathsep)
    points: list[list[Any]] = [[1, "propose", 0, "after"], [2, "propose", 1, "before"]]
    for name, kills in (("calm", []), ("struck", points)):
        base = base_of(tmp_path / name)
        for kill in [*kills, None]:
            told = {"base": str(base), "kill": kill, "log": str(base / "log.jsonl")}
            ended = start(CHILD, told)
            assert ended.returncode == (-signal.SIGKILL if kill else 0), (
                kill,
                ended.stderr[-3000:],
            )
    calm, struck = (tmp_path / name / "runs" / "fake" for name in ("calm", "struck"))
    same = (
        PROPOSALS,
        "SELECT id, round, split, position, messages_hash, completion_id, parent_id FROM prompt ORDER BY id",
        "SELECT id, prompt_id, payload_hash FROM completion ORDER BY id",
        "SELECT id, seeds, position FROM proposal ORDER BY id",
        "SELECT id, completion_id FROM training_row ORDER BY id",
    )
    for sql in same:
        assert read_rows(struck, sql) == read_rows(calm, sql)
    # More than a fifth of what was said in a round is cut, and none of that is an answer to train on.
    verdicts = Counter(row["verdict"] for row in read_rows(calm, PROPOSALS))
    assert verdicts.keys() >= {"kept", "cut"}, verdicts
    assert verdicts.keys() & {"known", "alike"}, verdicts
    trained = read_rows(calm, "SELECT status FROM training_run")
    assert [row["status"] for row in trained] == ["trained", "trained"]


# -- what is refused, and what is told before


def refused(base: Path, recipe: dict[str, Any]) -> str:
    """Return the one line that refuses a recipe."""
    with pytest.raises(BadInput) as caught:
        load(base, recipe)
    assert len(caught.value.problems) == 1, caught.value.problems
    return str(caught.value.problems[0])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"given": "topics"}, "names no topic"),
        ({"given": "topics", "topics": "nowhere.txt"}, "cannot be read"),
        ({"given": "documents"}, "names no file"),
        ({"given": "documents", "documents": "nowhere.jsonl"}, "no such file"),
        ({"given": "demos", "topics": ["a"]}, "says nothing to `given: demos`"),
        ({"given": "prompts", "count": 3}, "says nothing to `given: prompts`"),
        ({"from_earlier": 9}, "9 of 8 that are shown"),
        ({"shortest": 200}, "200 words at least, and 150 at most"),
        ({"template": "quality"}, "has no slot {demos}"),
        ({"template": "propose_prompt"}, "did you mean"),
        ({"tags": ["redistill:imported"]}, "redistill's own"),
        ({"given": "failures"}, "no earlier step makes rows"),
        ({"role": "nobody"}, "unknown role"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    """Found at load, before a model or a call."""
    assert told in refused(tmp_path, recipe_of({"propose": settings}))


def test_prompts_for_nobody_are_refused(tmp_path: Path) -> None:
    """A round that proposes and never asks is a mistake."""
    recipe = recipe_of({"propose": {"role": "writer"}}, {"sample": {}})
    line = refused(tmp_path, recipe)
    assert "no step answers the prompts that it proposes" in line
    assert "recipe.yaml:" in line
    assert "sample: {of: propose}" in line


def test_a_sample_names_steps_that_have_prompts(tmp_path: Path) -> None:
    """Neither an answer, nor a pair, nor a step that comes later has any."""
    for of, told in (("score", "makes no prompts or rows"), ("nobody", "makes no prompts or rows")):
        assert told in refused(tmp_path, recipe_of({"sample": {"of": of}}))
    recipe = recipe_of({"sample": {}})
    recipe["round"][1:3] = [
        {"score": {"of": "sample", "judge": "verifier"}},
        {"pair": {"by": "verifier"}},
        {"sample": {"as": "more", "of": "pair"}},
    ]
    recipe["round"][-3]["train"]["of"] = "pair"
    assert "keeps pairs, and no prompts" in refused(tmp_path, recipe)


def test_a_recipe_without_the_new_key_keeps_its_ids(tmp_path: Path) -> None:
    """`of` is not written where nobody gave it; `of: [round]` is."""
    plain = load(tmp_path, fake_recipe())
    assert "of" not in plain.resolved()["stages"][0]["round"][0]["sample"]
    recipe = fake_recipe()
    recipe["round"][0]["sample"]["of"] = ["round"]
    assert load(tmp_path, recipe).key != plain.key


def test_plan_and_graph_know_the_step(tmp_path: Path) -> None:
    """Calls, tokens and dollars of proposals, and of the answers to them, at most."""
    recipe = recipe_of(
        {"propose": DEMOS | {"max_tokens": 20}},
        {"sample": {"of": ["round", "propose"], "k": 2, "max_tokens": 40}},
    )
    recipe["roles"]["writer"]["price"] = {"in": 1.0, "out": 2.0}
    loaded = load(tmp_path, recipe)
    phases = {
        p["step"]: p for p in forecast(loaded, tmp_path / "cache", tmp_path / "runs")["phases"]
    }
    assert (phases["propose"]["rows"], phases["propose"]["calls"]) == ("at most 24 prompts", 24)
    assert phases["propose"]["remote"]["writer"]["tokens_out"] == 24 * 20
    assert phases["sample"]["calls"] == 2 * (10 + 24)
    assert phases["score"]["calls"] == 2 * (10 + 24)
    graph = mermaid(loaded)
    assert "propose" in graph
    assert load_recipe(loaded.to_yaml(), "again", base=tmp_path).key == loaded.key


def test_memory_is_planned_for_answers_to_what_may_come(tmp_path: Path) -> None:
    """A proposal may be longer than every prompt that is there, and is answered and trained on all the same."""
    recipe = recipe_of(
        {"propose": {"max_tokens": 300}}, {"sample": {"of": "propose", "max_tokens": 40}}
    )
    loaded = load(tmp_path, recipe)
    prompts = load_prompts(loaded.prompts, loaded.base, loaded.seed)
    assert longest_rows(loaded, prompts)["student"] > 300 + 40
