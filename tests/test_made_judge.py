"""A judge that a round makes of its own pairs: examined on pairs that it has not seen, then asked in the same round."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from children import start
from test_crash import CHILD
from test_every_trainer import DATA

from redistill.agents.forking import fork
from redistill.agents.judge import JudgeTask
from redistill.agents.judges.reward import _HELD
from redistill.agents.judges.trained import Trained
from redistill.agents.loop import Place, resume, run
from redistill.agents.pair_exam import LEAST, Agreement, held_back
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput
from redistill.policies import catalog
from redistill.policies.revision import Revision
from redistill.report.drawing import mermaid
from redistill.report.forecast import forecast
from redistill.report.integrity import examine_run
from redistill.report.summary import judge_notes, summary
from redistill.store.query import read_rows
from redistill.testing import JudgeConformance

REWARD: dict[str, Any] = {
    "trainer": "reward",
    "learning_rate": 3e-4,
    "batch_size": 8,
    "micro_batch": 8,
    "steps": 16,
    "most_cut": 1.0,
}
GRPO: dict[str, Any] = {
    "trainer": "grpo",
    "k": 4,
    "batch_size": 8,
    "micro_batch": 8,
    "max_tokens": 16,
    "learning_rate": 1e-4,
    "steps": 2,
}
SAID = {"role": "teacher", "max_tokens": 44}
SAMPLE: list[dict[str, Any]] = [
    {"sample": {**SAID, "k": 1, "temperature": 0.7}},
    {"sample": {**SAID, "as": "wild", "k": 2, "temperature": 4.0}},
]
"""One answer that makes sense, and two that do not and are mostly longer."""
BOTH = ["sample", "wild"]
END: list[dict[str, Any]] = [
    {"evaluate": {"judge": "verifier", "max_tokens": 24}},
    {"gate": {"guards": []}},
]


def base_of(folder: Path, steps: Sequence[dict[str, Any]], **keys: Any) -> Path:
    """Write a recipe whose round has these steps before it measures and decides."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(map(json.loads, DATA.read_text("utf-8").splitlines()))
    few = [r for s, n in (("train", 48), ("heldout", 8), ("test", 8)) for r in _of(rows, s)[:n]]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, few)), "utf-8")
    recipe = {
        "name": "one",
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl"},
        "roles": {"teacher": {"policy": "tiny-teacher"}},
        "execution": {"threads": 1},
        "round": [*steps, *END],
        **keys,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    return folder


def _of(rows: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == split]


def loaded(base: Path) -> Recipe:
    """Load a base's recipe."""
    return load_recipe((base / "recipe.yaml").read_text("utf-8"), "recipe.yaml", base=base)


def go(base: Path) -> Path:
    """Run a base's recipe."""
    return run(loaded(base), place=Place(base / "runs", catalog.default_cache()))


def learns(judge: str, *more: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    """Return the steps of a round that learns a judge's taste, and rewards its student by what it has learned."""
    return [
        *SAMPLE,
        {"score": {"of": BOTH, "judge": judge}},
        {"pair": {"of": BOTH}},
        {"train": {"as": "taste", **REWARD, **settings}},
        *more,
        {"train": {**GRPO, "judge": {"trained": {"step": "taste"}}}},
    ]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round that makes two judges of the same comparisons, by hard and by soft labels, and is rewarded by both."""
    steps = [
        *SAMPLE,
        {"compare": {"of": BOTH, "judge": "plain_judges:Fairly"}},
        {"pair": {"of": BOTH}},
        {"train": {"as": "firm", **REWARD, "of": "pair"}},
        {"train": {"as": "mild", **REWARD, "of": "pair", "labels": "soft"}},
        {"score": {"of": "sample", "judge": {"trained": {"step": "firm"}}}},
        {
            "train": {
                **GRPO,
                "rewards": [
                    {"judge": {"trained": {"step": "firm"}}},
                    {"judge": {"trained": {"step": "mild", "name": "gentle"}}, "weight": 0.5},
                ],
            }
        },
    ]
    return go(base_of(tmp_path_factory.mktemp("ran"), steps))


def test_each_judge_is_trained_examined_and_asked(ran: Path) -> None:
    """Two judges of one round: jobs, weights, exams on unseen pairs, and rollouts and scores that name the weights."""
    jobs = read_rows(ran, "SELECT step, trainer, status, message, revision FROM training_run")
    by_step = {row["step"]: row for row in jobs}
    assert {s: (r["trainer"], r["status"]) for s, r in by_step.items()} == {
        "firm": ("reward", "trained"),
        "mild": ("reward", "trained"),
        "train": ("grpo", "trained"),
    }, jobs
    exams = read_rows(ran, "SELECT * FROM admission ORDER BY step")
    assert [(e["step"], e["judge_revision"], e["verdict"]) for e in exams] == [
        (step, by_step[step]["revision"], "admitted") for step in ("firm", "mild")
    ], exams
    for step in ("firm", "mild"):
        folder = ran / "judges" / by_step[step]["revision"]
        Revision.read(folder).verify_files()
    said = read_rows(
        ran,
        "SELECT step, judge, judge_revision, revision, count(*) AS n FROM judgement "
        "WHERE mode = 'score' AND status = 'ok' AND judge <> 'verifier' GROUP BY ALL ORDER BY step, judge",
    )
    firm, mild = (by_step[step]["revision"] for step in ("firm", "mild"))
    assert [tuple(row.values()) for row in said] == [
        ("score", "firm", firm, firm, 48),
        ("train", "firm", firm, firm, 16),
        ("train", "gentle", mild, mild, 16),
    ]
    assert not _HELD.is_set()  # the last one that was asked has given its memory back


def test_a_soft_label_reaches_the_loss(ran: Path) -> None:
    """The same pairs with the same order make other weights when each counts as surely as its probability says."""
    rows = {
        step: pq.read_table(
            ran / "judges" / "jobs" / f"round-1-{step}" / "rows.parquet"
        ).to_pylist()
        for step in ("firm", "mild")
    }
    assert {round(row["probability"], 6) for row in rows["mild"]} == {0.7}
    assert [row["chosen_ids"] for row in rows["firm"]] == [
        row["chosen_ids"] for row in rows["mild"]
    ]
    last = "SELECT arg_max(value, optimizer_step) AS v FROM training_metric m JOIN training_run t ON t.id = m.training_run_id WHERE name = 'loss' AND step = '{}'"
    firm, mild = (read_rows(ran, last.format(step))[0]["v"] for step in ("firm", "mild"))
    # No reward can do better on a label of 0.7 than its entropy.
    assert firm < 0.55 < 0.61 < mild


def test_a_query_shows_which_pairs_were_held_back(ran: Path) -> None:
    """A third of few prompts, with all their pairs; none of them is a training row, and each has the judge's verdict."""
    kept = read_rows(
        ran,
        "SELECT step, unnest(from_json(detail->'$.pairs', '[\"UUID\"]')) AS pair FROM event "
        "WHERE kind = 'held_back'",
    )
    pairs = read_rows(ran, "SELECT id, prompt_id, chosen_id, rejected_id FROM pair")
    prompts = {row["prompt_id"] for row in pairs}
    for step in ("firm", "mild"):
        mine = {row["pair"] for row in kept if row["step"] == step}
        apart = {row["prompt_id"] for row in pairs if row["id"] in mine}
        assert len(apart) == min(LEAST, len(prompts) // 3)
        learned = read_rows(
            ran, f"SELECT pair_id, prompt_id, split FROM training_row WHERE step = '{step}'"
        )
        assert {row["pair_id"] for row in learned} == {row["id"] for row in pairs} - mine
        assert not apart & {row["prompt_id"] for row in learned}
        shown = read_rows(
            ran, f"SELECT presented FROM judgement WHERE step = '{step}' AND mode = 'compare'"
        )
        asked = {frozenset((p["chosen_id"], p["rejected_id"])) for p in pairs if p["id"] in mine}
        assert {frozenset(row["presented"]) for row in shown} == asked


def test_a_reward_leads_to_the_pairs_that_taught_its_judge(ran: Path) -> None:
    """A rollout's judgement, the weights that gave it, the job that made them, the pairs that it learned."""
    from redistill.store.identify import Found
    from redistill.store.lineage import lineage

    [row] = read_rows(
        ran, "SELECT id FROM judgement WHERE step = 'train' AND judge = 'firm' ORDER BY id LIMIT 1"
    )
    found = Found("judgement", str(row["id"]))
    ways = [
        ("revision", "a judge; agrees with"),
        ("training_run", "reward on"),
        ("training_row", ""),
    ]
    for kind, line in [*ways, ("pair", "over")]:
        edges = lineage(ran, found, directions=("up",)).as_dict()["edges"]["up"]
        nodes = [node for fan in edges for node in fan["nodes"] if node["kind"] == kind]
        assert nodes, kind
        assert line in nodes[0]["line"]
        found = Found(kind, nodes[0]["id"])


def test_it_is_told_wherever_the_run_is_told(ran: Path) -> None:
    """Status and report say how each judge did; its round is one round; every check of the store holds."""
    found = summary(ran)
    notes = [note for note in judge_notes(found) if "trained in the round" in note]
    assert len(notes) == 2
    assert "firm, trained in the round, agrees with" in notes[0]
    assert [r["training"]["trainer"] for r in found["rounds"]] == ["grpo"]
    assert found["unproven_judges"] == []
    assert [check for check in examine_run(ran) if check["state"] == "bad"] == []


def test_a_fork_has_the_judges_of_its_parent(ran: Path) -> None:
    """Another gate: no judge is trained or asked again, and their weights are the fork's own."""
    folder = fork(ran, round_=1, changes=["gate.level=0.9"], name="again")
    resume(folder, place=Place(ran.parent, catalog.default_cache()))
    said = "SELECT id::VARCHAR AS i FROM judgement ORDER BY 1"
    assert read_rows(folder, said) == read_rows(ran, said)
    assert [check for check in examine_run(folder) if check["state"] == "bad"] == []
    made = read_rows(folder, "SELECT folder FROM revision WHERE starts_with(folder, 'judges/')")
    assert all((folder / row["folder"]).is_dir() for row in made)


def test_the_pages_query_and_recipe_are_real(ran: Path, tmp_path: Path) -> None:
    """The query of docs/judging.md shows each held-back pair with its verdict; its round is one that can be run."""
    page = (Path(catalog.__file__).parents[1] / "docs" / "judging.md").read_text("utf-8")
    section = page.partition("## A judge that a round makes")[2].partition("\n## ")[0]
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE))
    shown = read_rows(ran, blocks["sql"])
    kept = read_rows(ran, "SELECT sum(n) AS n FROM admission")[0]["n"]
    assert len(shown) == kept
    agreed = [row["first_won"] == float(row["chosen_was_first"]) for row in shown]
    assert sum(agreed) / kept > 0.8
    roles = {"helper": {"policy": "tiny-teacher"}}
    base = base_of(tmp_path, [], roles=roles, **yaml.safe_load(blocks["yaml"]))
    assert [step.made() for step in loaded(base).stages[0].steps][3:5] == ["judge", "revision"]


def test_it_keeps_the_protocol(ran: Path) -> None:
    """With its weights, and before anybody has made it."""
    revisions = read_rows(ran, "SELECT step, revision FROM training_run WHERE trainer = 'reward'")

    class Round:
        """Knows the judges of a round, as the speaker of a step does."""

        def made_judge(self, step: str) -> Path:
            """Return the folder of a step's judge."""
            [found] = [row["revision"] for row in revisions if row["step"] == step]
            return ran / "judges" / str(found)

    firm, mild = (
        Trained(step=step).bound(Round())  # type: ignore[arg-type]
        for step in ("firm", "mild")
    )
    JudgeConformance(firm, changed=[mild]).check()
    bare = Trained(step="firm")
    assert (bare.name, bare.revision != firm.revision) == ("firm", True)
    firm.release()


def test_what_no_exam_proves_rewards_nobody(tmp_path: Path) -> None:
    """Labels by chance: the judge agrees with half of what it has not seen, and the round is rejected with that."""
    folder = go(base_of(tmp_path, learns("plain_judges:coin", steps=4)))
    [decided] = read_rows(folder, "SELECT decision, reason, challenger FROM decision")
    assert (decided["decision"], decided["challenger"]) == ("rejected", None)
    assert decided["reason"].startswith("taste: agrees with ")
    [exam] = read_rows(folder, "SELECT verdict, ci_low FROM admission")
    assert exam["verdict"] != "admitted"
    assert exam["ci_low"] <= 0.5
    assert [r["step"] for r in read_rows(folder, "SELECT step FROM training_run")] == ["taste"]
    asked = "SELECT count(*) AS n FROM judgement WHERE judge = 'taste' AND mode = 'score'"
    assert read_rows(folder, asked)[0]["n"] == 0
    [told] = [note for note in judge_notes(summary(folder)) if "taste" in note]
    assert "taste, trained in the round, agrees with" in told


def facts(base: Path) -> dict[str, Any]:
    """Return what no crash may change."""
    folder = base / "runs" / "one"
    queries = {
        "said": "SELECT id::VARCHAR AS i, payload_hash, attempt FROM completion ORDER BY 1",
        "earned": "SELECT id::VARCHAR AS i, status, value, judge_revision FROM judgement ORDER BY 1",
        "learned": "SELECT id::VARCHAR AS i, position, reward, advantage FROM training_row ORDER BY 1",
        "trained": "SELECT step, status, revision, dataset_hash FROM training_run ORDER BY 1",
        "examined": "SELECT id::VARCHAR AS i, accuracy, reason FROM admission ORDER BY 1",
        "revisions": "SELECT id, folder FROM revision ORDER BY 1",
        "decided": "SELECT decision, delta, reason FROM decision",
        "events": "SELECT id::VARCHAR AS i, kind, detail FROM event "
        "WHERE kind NOT IN ('canary', 'handover') ORDER BY 1",
    }
    return {name: read_rows(folder, query) for name, query in queries.items()}


def test_killed_while_it_is_made_ends_like_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL between two steps of its job, and before its exam is written: the same ids, weights and verdicts."""
    monkeypatch.setenv("PYTHONPATH", str(CHILD.parent), prepend=os.pathsep)
    points: list[list[Any]] = [[1, "taste", 3, "during"], [1, "taste", 2, "before"]]
    for name, kills in (("calm", []), ("struck", points)):
        steps = learns("plain_judges:brief", steps=4)
        base = base_of(tmp_path / name, steps, unproven_judge="allow")
        for kill in kills:
            told = {"base": str(base), "kill": kill, "log": str(base / "log.jsonl")}
            ended = start(CHILD, told)
            assert ended.returncode == -signal.SIGKILL, (kill, ended.stderr[-3000:])
        go(base)
    calm = facts(tmp_path / "calm")
    assert facts(tmp_path / "struck") == calm
    assert [row["status"] for row in calm["trained"]] == ["trained", "trained"]


# -- what is refused when the recipe is read

TASTE = {"trained": {"step": "taste"}}
MAKE = {"train": {"as": "taste", **REWARD}}
LEARN = {"train": {**GRPO, "judge": TASTE}}
SFT = {"train": {"trainer": "sft", "of": "pair"}}
BEFORE = [*SAMPLE, {"score": {"of": BOTH, "judge": "verifier"}}, {"pair": {"of": BOTH}}]
JURY = {"judges": [TASTE, {"chat": {"role": "teacher"}}], "weights": "majority", "wait": False}
"""A judge that the round makes must not hide another one that nothing has proven."""
REFUSED: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([*BEFORE, LEARN], {}, "train.judge: no earlier step 'taste' makes a judge"),
    ([*BEFORE, LEARN, MAKE], {}, "must end with train, evaluate, gate"),
    ([*BEFORE, MAKE], {}, "has 0 train steps that make a student; give exactly one"),
    ([*BEFORE, MAKE, LEARN, SFT], {}, "two steps are named 'train'"),
    (
        [*BEFORE, {"train": {**MAKE["train"], "held_back": 0}}, LEARN],
        {},
        "held_back: no pair is held back, so nothing proves the judge that it makes",
    ),
    (
        [*BEFORE, {"train": {**MAKE["train"], "reference": "initial"}}, LEARN],
        {},
        "reference: says nothing to reward: it has none",
    ),
    ([*BEFORE, {"train": {**SFT["train"], "held_back": 0.2}}], {}, "only a judge is examined"),
    ([*BEFORE, {"train": {**MAKE["train"], "as": "select"}}, LEARN], {}, "SQL reserves the word"),
    (
        [
            *SAMPLE,
            {"score": {"of": BOTH, "judge": {"chat": {"role": "student"}}}},
            {"pair": {"of": BOTH}},
            MAKE,
            LEARN,
        ],
        {"unproven_judge": "allow"},
        "the student is its only judge",
    ),
    (
        [*BEFORE, MAKE, {"train": {**GRPO, "judge": {"jury": JURY}}}],
        {},
        "jury has not sat the exam",
    ),
    ([*BEFORE, MAKE, LEARN], {"student": "redistill.testing.fakes:FakeStudent"}, "is a plugin"),
    (
        [*BEFORE, MAKE, {"train": {**GRPO, "weights": "lora", "judge": TASTE}}],
        {},
        "from: a judge trains all its weights, and a champion may be an adapter",
    ),
]


@pytest.mark.parametrize(("steps", "keys", "said"), REFUSED)
def test_what_cannot_be_is_told(
    tmp_path: Path, steps: list[dict[str, Any]], keys: dict[str, Any], said: str
) -> None:
    """A user's mistake is told when the recipe is read, before anything is loaded or sampled."""
    from redistill.agents.loop import prepare

    with pytest.raises(BadInput) as error:
        prepare(loaded(base_of(tmp_path, steps, **keys)), Place(tmp_path / "runs"))
    assert said in " ".join(str(error.value).split())


def test_a_plan_and_a_graph_know_it(tmp_path: Path) -> None:
    """Its memory stands beside the sampler's, its step leads to the next one or to rejection, and who asks it is told."""
    recipe = loaded(base_of(tmp_path, learns("verifier")))
    told = forecast(recipe, catalog.default_cache(), tmp_path)
    assert "judge taste" in dict(told["memory"]["told"])
    [phase] = [row for row in told["phases"] if row["step"] == "taste"]
    assert phase["rows"] == "at most 16 steps of 8 rows"
    drawn = mermaid(recipe)
    assert "%% taste makes a judge, asked by train" in drawn
    assert [f"taste -.-> {to};" in drawn.replace("&nbsp;", "") for to in ("reject", "train")] == [
        True,
        True,
    ], drawn


def test_no_evaluation_asks_it(tmp_path: Path) -> None:
    """Rounds are compared by what one judge said of each, and this one is another in each round."""
    base = base_of(tmp_path, [*BEFORE, MAKE, LEARN])
    text = (base / "recipe.yaml").read_text("utf-8")
    recipe = json.loads(text)
    recipe["round"][-2] = {"evaluate": {"judge": TASTE}}
    (base / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    with pytest.raises(BadInput, match="evaluate with a judge that stays"):
        loaded(base)


def test_a_role_may_still_be_called_trained(tmp_path: Path) -> None:
    """`judge train --trainer sft` has always called its role so; the name alone means the role."""
    roles = {"teacher": {"policy": "tiny-teacher"}, "trained": {"policy": "tiny-teacher"}}
    steps = [
        SAMPLE[0],
        {"score": {"judge": "trained"}},
        {"select": {}},
        {"train": {"trainer": "sft"}},
    ]
    recipe = loaded(base_of(tmp_path, steps, roles=roles))
    assert recipe.stages[0].steps[1].judges().keys() == {"trained"}
    assert recipe.stages[0].steps[1].roles() == ("trained",)


# -- the exam


def test_pairs_are_held_back_by_prompt_and_for_all_alike() -> None:
    """A tenth, and at least twenty or a third; the same ones whatever the order; none where none are asked for."""
    many = [f"prompt {n}" for n in range(400)]
    assert len(held_back(many * 3, 0.1, seed=1)) == 40
    assert held_back(many, 0.1, seed=1) == held_back(list(reversed(many)), 0.1, seed=1)
    assert held_back(many, 0.1, seed=1) != held_back(many, 0.1, seed=2)
    assert [len(held_back(many[:n], 0.1, seed=1)) for n in (100, 60, 30, 2, 0)] == [
        20,
        20,
        10,
        0,
        0,
    ]
    assert held_back(many, 0.0, seed=1) == frozenset()


def test_an_interval_counts_prompts_and_decides() -> None:
    """Pairs of one prompt are one fact; what lies above one half admits, below it refuses, around it proves nothing."""
    right = Agreement.of([(f"p{n // 5}", 1.0) for n in range(100)])
    assert (right.pairs, right.prompts, right.share, right.verdict) == (100, 20, 1.0, "admitted")
    assert right.ci_low == pytest.approx(20 / (20 + 1.959964**2))
    assert Agreement.of([("p", 1.0)] * 50).verdict == "unproven"
    assert Agreement.of([(f"p{n}", float(n % 2)) for n in range(40)]).verdict == "unproven"
    assert Agreement.of([(f"p{n}", 0.0) for n in range(40)]).verdict == "refused"
    nothing = Agreement.of([("p", None), ("q", None)])
    assert (nothing.verdict, nothing.silent, nothing.pairs) == ("unproven", 2, 0)


def test_nobody_has_made_it_outside_of_a_round() -> None:
    """Asked without a round it fails with a status, and no exam takes it."""
    from redistill.testing.conformance import usual_tasks

    tasks: list[JudgeTask] = usual_tasks()[:2]
    said = asyncio.run(Trained(step="taste").score(tasks))
    assert [(j.status, j.value) for j in said] == [("error", None)] * 2
