"""Rounds that train on earlier rounds too, and steps that read what a select step has kept: from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from redistill.agents.applying import apply
from redistill.agents.loop import Place, Silent, run
from redistill.agents.recipe import Recipe, load_recipe
from redistill.agents.workload import Workload
from redistill.errors import BadInput
from redistill.policies import catalog
from redistill.report.integrity import examine_run
from redistill.store.identify import Found
from redistill.store.lineage import Branch, lineage
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe
from redistill.types import Prompt


def loaded(base: Path, data: dict[str, Any], train: int = 24) -> Recipe:
    """Write the prompts, and load a recipe."""
    base.mkdir(parents=True, exist_ok=True)
    rows = fake_prompts(train=train, heldout=40, test=8)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return load_recipe(yaml.safe_dump(data), "r.yaml", base=base)


def go(base: Path, data: dict[str, Any], cache: Path | None = None) -> Path:
    """Run it, and return the run's folder."""
    return run(loaded(base, data), place=Place(base / "runs", cache or base / "cache"))


def replaying(curate: dict[str, Any], **train: Any) -> dict[str, Any]:
    """Return three promoted rounds of eight other prompts each."""
    data = fake_recipe(rounds=3, gain=0.3, **train)
    data["prompts"]["per_round"] = 8
    data["round"][2] = curate
    return data


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds whose pairs are those of the last two rounds."""
    pair = {"pair": {"rule": "correct_incorrect", "replay": 1, "per_prompt": 2}}
    data = replaying(pair, rows_kind="pairs")
    return go(tmp_path_factory.mktemp("paired"), data)


def test_replayed_pairs_train_beside_the_rounds_own(paired: Path) -> None:
    """Each round's pairs are of its own answers and of the round before, each answer with its tokens and prompt."""
    rows = read_rows(
        paired,
        """
        SELECT p.round, list(DISTINCT c.round ORDER BY c.round) AS of_rounds, count(*) AS n,
               bool_and(c.round = r.round) AS together
        FROM pair p JOIN answers c ON c.id = p.chosen_id JOIN answers r ON r.id = p.rejected_id
        GROUP BY p.round ORDER BY p.round
        """,
    )
    assert [(row["round"], row["of_rounds"], row["together"]) for row in rows] == [
        (1, [1], True),
        (2, [1, 2], True),
        (3, [2, 3], True),
    ]
    for row in rows:
        table = pq.read_table(paired / "jobs" / str(row["round"]) / "rows.parquet").to_pylist()
        assert len(table) == row["n"]
        for pair in table:
            word = "".join(map(chr, pair["prompt_ids"])).rsplit(maxsplit=1)[-1]
            assert "".join(map(chr, pair["chosen_ids"][:-1])) == word


def test_a_replayed_answer_has_no_stored_reference_but_of_its_own_weights(paired: Path) -> None:
    """Log-probs that were kept serve for answers of the weights that training starts from; older ones are scored."""
    rows = read_rows(
        paired,
        """
        SELECT DISTINCT t.round - c.round AS ago, c.revision = j.start_revision AS same, t.reference_from AS f,
               t.tokens_from AS tokens
        FROM training_row t JOIN completion c ON c.id = t.completion_id
        JOIN training_run j ON j.id = t.training_run_id ORDER BY ago
        """,
    )
    assert [tuple(row.values()) for row in rows] == [
        (0, True, "stored", "sampled"),
        (1, False, "scored", "sampled"),
    ]
    decided = read_rows(paired, "SELECT decision FROM decision ORDER BY round LIMIT 2")
    assert [row["decision"] for row in decided] == ["promoted"] * 2


def test_after_a_rejected_round_stored_log_probs_are_still_good(tmp_path: Path) -> None:
    """The champion is the same, so that replayed answers are its own."""
    pair = {"pair": {"rule": "correct_incorrect", "replay": 1}}
    data = replaying(pair, rows_kind="pairs") | {"loop": {"rounds": 2}}
    data["round"][3]["train"]["gain"] = -0.2
    folder = go(tmp_path, data)
    [row] = read_rows(
        folder,
        """
        SELECT count(DISTINCT c.round) AS rounds, list(DISTINCT t.reference_from) AS f
        FROM training_row t JOIN completion c ON c.id = t.completion_id WHERE t.round = 2
        """,
    )
    assert row == {"rounds": 2, "f": ["stored"]}


def _kinds(branch: Branch) -> set[tuple[str, int | None]]:
    inner = (_kinds(one) for fan in branch.fans for one in fan.branches)
    return {(branch.node.kind, branch.node.round)}.union(*inner)


def test_lineage_and_doctor_follow_a_replayed_row(paired: Path) -> None:
    """From the row up to the answer of the earlier round and its judgement; and nothing is amiss in the store."""
    [row] = read_rows(
        paired,
        """
        SELECT t.id::VARCHAR AS id FROM training_row t JOIN completion c ON c.id = t.completion_id
        WHERE t.round = 3 AND c.round = 2 ORDER BY t.position LIMIT 1
        """,
    )
    up = lineage(paired, Found("training_row", row["id"])).up
    assert up is not None
    assert {("pair", 3), ("completion", 2), ("judgement", 2)} <= _kinds(up)
    assert not [check for check in examine_run(paired) if check["state"] == "bad"]
    [known] = read_rows(paired, "SELECT count(*) AS n FROM d2 WHERE round = 3")
    assert known["n"] == read_rows(paired, "SELECT count(*) AS n FROM pair WHERE round = 3")[0]["n"]


def test_replayed_answers_are_selected_with_a_cap_and_less_weight(tmp_path: Path) -> None:
    """The example of the page: this round's answers, and a few older ones at half the weight."""
    select = {
        "select": {
            "replay": 2,
            "where": "verifier = 1",
            "order_by": "rounds_ago",
            "per_prompt": 1,
            "limit": 12,
            "weight": "CASE WHEN rounds_ago > 0 THEN 0.5 ELSE 1 END",
        }
    }
    folder = go(tmp_path, replaying(select))
    rows = read_rows(
        folder,
        """
        SELECT t.round - c.round AS ago, t.weight, count(*) AS n FROM training_row t
        JOIN completion c ON c.id = t.completion_id WHERE t.round = 3 GROUP BY ALL ORDER BY 1
        """,
    )
    assert {(row["ago"], row["weight"]) for row in rows} >= {(0, 1.0), (1, 0.5)}
    assert sum(row["n"] for row in rows) == 12
    assert not [check for check in examine_run(folder) if check["state"] == "bad"]


def test_a_step_is_applied_to_earlier_rounds_too(paired: Path, tmp_path: Path) -> None:
    """`redistill apply` with `replay` pairs a finished round anew, and says nothing of others."""
    copy = Path(shutil.copytree(paired, tmp_path / "runs" / "fake"))
    step = "pair: {as: wider, of: sample, by: verifier, rule: correct_incorrect, replay: 2}"
    apply(copy, step, rounds=[3], progress=Silent())
    rows = read_rows(
        copy,
        """
        SELECT list(DISTINCT c.round ORDER BY c.round) AS r FROM pair p
        JOIN completion c ON c.id = p.chosen_id WHERE p.step = 'wider'
        """,
    )
    assert rows == [{"r": [1, 2, 3]}]


# -- a policy that samples while it trains


def test_an_on_policy_trainer_takes_the_prompts_of_a_band(tmp_path: Path) -> None:
    """Of all prompts of the round those that the select step names, each once, and those that it replays."""
    data = replaying({"select": {"as": "band", "where": "verifier >= 0", "replay": 1}})
    data |= {"student": "tiny", "unproven_judge": "allow", "loop": {"rounds": 2}, "chunk": 64}
    data["prompts"]["per_round"] = 4
    train = {"trainer": "grpo", "of": "band", "judge": "longest", "k": 4, "steps": 1}
    data["round"][0]["sample"] = {"k": 2, "max_tokens": 12, "temperature": 1.0}
    data["round"][3] = {
        "train": train | {"batch_size": 16, "micro_batch": 8, "max_tokens": 12, "most_cut": 1.0}
    }
    folder = go(tmp_path, data, catalog.default_cache())
    for round_ in (1, 2):
        wanted = read_rows(
            folder,
            f"SELECT DISTINCT prompt_id::VARCHAR AS id FROM selection WHERE round = {round_}",
        )
        table = pq.read_table(folder / "jobs" / str(round_) / "rows.parquet")
        assert sorted(table["id"].to_pylist()) == sorted(row["id"] for row in wanted)
    jobs = read_rows(folder, "SELECT round, status FROM training_run ORDER BY round")
    assert [job["status"] for job in jobs] == ["trained", "trained"]
    [older] = read_rows(
        folder,
        """
        SELECT count(*) AS n FROM selection s JOIN completion c ON c.id = s.completion_id
        WHERE s.round = 2 AND c.round = 1
        """,
    )
    assert older["n"] > 0


# -- what a select step has kept

STAR: list[dict[str, Any]] = [
    {"sample": {"k": 2, "max_tokens": 40}},
    {"score": {"judge": "verifier"}},
    {"select": {"as": "failed", "where": "verifier = 0"}},
    {"rewrite": {"of": "failed", "given": "reference", "max_tokens": 40}},
    {"score": {"as": "again", "of": "rewrite", "judge": "verifier"}},
    {"score": {"as": "longer", "of": "failed", "judge": "longest"}},
    {"compare": {"of": ["failed", "rewrite"], "judge": "first"}},
    {"select": {"of": ["sample", "rewrite"], "where": "verifier = 1"}},
]


def test_steps_read_what_a_select_step_has_kept(tmp_path: Path) -> None:
    """STaR: what failed is answered again with the right answer told, judged, compared; nothing else is."""
    data = fake_recipe(rounds=1)
    data |= {"unproven_judge": "allow"}
    data["round"][:3] = STAR
    folder = go(tmp_path, data)
    [seen] = read_rows(
        folder,
        """
        WITH failed AS (SELECT completion_id AS id FROM selection WHERE step = 'failed')
        SELECT (SELECT count(*) FROM failed) AS failed,
               (SELECT count(*) FROM completion WHERE step = 'rewrite') AS rewritten,
               (SELECT count(*) FROM completion c WHERE c.step = 'rewrite'
                AND c.parent_id NOT IN (SELECT id FROM failed)) AS strange,
               (SELECT count(*) FROM judgement WHERE step = 'longer') AS longer,
               (SELECT count(*) FROM judgement j WHERE j.step = 'longer'
                AND j.completion_id NOT IN (SELECT id FROM failed)) AS strangers,
               (SELECT count(*) FROM answers WHERE step = 'sample' AND verifier = 1) AS passed,
               (SELECT count(*) FROM judgement j, unnest(j.presented) AS p(id) JOIN completion c ON c.id = p.id
                WHERE j.step = 'compare' AND c.step = 'sample' AND p.id NOT IN (SELECT id FROM failed)) AS compared
        """,
    )
    assert seen["failed"] > 10
    assert seen["passed"] > 5
    assert seen["failed"] == seen["rewritten"] == seen["longer"]
    assert (seen["strange"], seen["strangers"], seen["compared"]) == (0, 0, 0)
    assert not [check for check in examine_run(folder) if check["state"] == "bad"]


def test_the_plan_counts_what_is_kept_and_paired(tmp_path: Path) -> None:
    """At most: what a select step keeps is read by the next, and pairs are counted by their rule and bounds."""
    data = fake_recipe(rounds=1) | {"unproven_judge": "allow"}
    pair = {"of": ["failed", "rewrite"], "rule": "contrast", "per_prompt": 3}
    data["round"][:3] = [
        *STAR,
        {"pair": pair},
        {"pair": {"as": "two", "of": "sample", "by": "verifier"}},
    ]
    data["round"][2]["select"]["per_prompt"] = 1
    data["round"][-3]["train"]["of"] = "pair"
    recipe = loaded(tmp_path, data)
    work = Workload(recipe, [Prompt(str(n), (), "train") for n in range(20)], [])
    told = {step.step: work.of(step).rows for step in recipe.stages[0].steps}
    assert told["failed"] == "at most 20 answers kept"
    assert told["rewrite"] == "at most 20 rewrites"
    assert told["longer"] == "20 judgements"
    assert told["select"] == "at most 60 answers kept"
    assert told["pair"] == "at most 20 pairs"
    assert told["two"] == "at most 20 pairs"


def test_a_step_is_applied_to_what_was_kept(tmp_path: Path) -> None:
    """`redistill apply` reads a select step too, where all that it kept is of the round."""
    folder = go(tmp_path, fake_recipe(rounds=1))
    [done] = apply(folder, "score: {of: select, judge: longest}", progress=Silent())
    [kept] = read_rows(folder, "SELECT count(*) AS n FROM selection")
    assert done.rows == {"judgement": kept["n"]}
    with pytest.raises(BadInput, match="no completions of selct; did you mean select"):
        apply(folder, "score: {of: selct, judge: longest}", progress=Silent())


def test_a_select_step_that_was_read_is_not_the_default_of_training(tmp_path: Path) -> None:
    """`train` without `of` takes the one that nobody has read; where there are two such, it says which to name."""
    data = fake_recipe(rounds=1)
    data |= {"unproven_judge": "allow"}
    data["round"][:3] = STAR
    assert loaded(tmp_path, data).stages[0].steps[8].sources() == ("select",)
    data["round"][2:2] = [{"select": {"as": "more"}}]
    with pytest.raises(BadInput, match="more and select make rows; say which with `of:`"):
        loaded(tmp_path, data)


def test_defaults_are_what_they_were(tmp_path: Path) -> None:
    """A step that leaves `of` out reads a step that makes answers, and never one that keeps some."""
    data = fake_recipe(rounds=1)
    data["round"][3:3] = [{"score": {"as": "again", "judge": {"longest": {}}}}]
    data |= {"unproven_judge": "allow"}
    steps = loaded(tmp_path, data).stages[0].steps
    assert steps[3].sources() == ("sample",)
    assert steps[4].sources() == ("select",)


WRONG: list[tuple[list[dict[str, Any]], str]] = [
    (
        [
            {"select": {"as": "old", "replay": 1}},
            {"score": {"as": "b", "of": "old", "judge": "longest"}},
        ],
        "'old' keeps answers of earlier rounds, which can only train; say `replay:` in b, not there",
    ),
    (
        [{"select": {"as": "old", "replay": 1}}, {"pair": {"of": "old"}}],
        "'old' keeps answers of earlier rounds",
    ),
    (
        [{"pair": {"as": "p"}}, {"score": {"as": "b", "of": "p", "judge": "longest"}}],
        "'p' makes no completions",
    ),
    (
        [{"score": {"as": "b", "of": "late", "judge": "longest"}}, {"select": {"as": "late"}}],
        "'late' makes no completions",
    ),
    (
        [
            {"select": {"as": "s", "where": "rounds_back = 0"}},
            {"score": {"as": "b", "of": "s", "judge": "longest"}},
        ],
        "rounds_back",
    ),
    (
        [{"score": {"as": "b", "judge": {"longest": {"name": "rounds_ago"}}}}],
        "has the name of a column",
    ),
]


@pytest.mark.parametrize(("steps", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_cannot_be_read_is_refused_at_load(
    tmp_path: Path, steps: list[dict[str, Any]], told: str
) -> None:
    """In one line, before anything is sampled."""
    data = fake_recipe(rounds=1) | {"unproven_judge": "allow"}
    data["round"] = [*data["round"][:2], *steps, *data["round"][2:]]
    with pytest.raises(BadInput, match=told):
        loaded(tmp_path, data)
