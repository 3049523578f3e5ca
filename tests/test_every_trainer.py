"""Each trainer in a round of its own: the rows that it trains on are the right ones, and a revision comes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import redistill
from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.errors import BadInput
from redistill.policies import catalog
from redistill.store.query import read_rows

DATA = Path(redistill.__file__).resolve().parent / "recipes" / "data" / "tiny.jsonl"
PAIR = {"pair": {"by": "verifier", "rule": "correct_incorrect"}}
FAST = {"learning_rate": 2e-5, "batch_size": 8, "micro_batch": 4, "steps": 3}
KEPT = {"wanted": "verifier = 1"}
ROUNDS: dict[str, tuple[dict[str, Any], str]] = {
    "sft": ({"select": {"where": "verifier = 1"}}, "sft"),
    "dpo": (PAIR, "dpo"),
    "simpo": (PAIR, "simpo"),
    "tpo": (PAIR, "tpo"),
    "kto of pairs": (PAIR, "kto"),
    "kto of answers": ({"select": KEPT}, "kto"),
    "sft told": ({"select": {"told": "CASE WHEN verifier = 1 THEN 'good' ELSE 'bad' END"}}, "sft"),
}


def prompts() -> list[dict[str, Any]]:
    """Take 40 prompts to train and a few to measure; every second one has a reference answer."""
    rows = list(map(json.loads, DATA.read_text("utf-8").splitlines()))
    found = [row for row in rows if row["split"] == "train"][:40]
    for split in ("heldout", "test"):
        found += [row for row in rows if row["split"] == split][:12]
    for row in found[::2]:
        row["reference"] = row["verify"]["equals"]["text"]
    return found


def begin(base: Path, curate: dict[str, Any], trainer: str, **settings: Any) -> Path:
    """Run one round of the tiny teacher's answers under a trainer."""
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts())), "utf-8")
    recipe = {
        "name": "one",
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl"},
        "roles": {"teacher": {"policy": "tiny-teacher"}},
        "round": [
            {"sample": {"role": "teacher", "k": 4, "temperature": 1.8, "max_tokens": 44}},
            {"score": {"judge": "verifier"}},
            curate,
            {"train": {"trainer": trainer, **FAST, **settings}},
            {"evaluate": {"judge": "verifier", "max_tokens": 44}},
            {"gate": {}},
        ],
        "loop": {"rounds": 1},
    }
    loaded = load_recipe(yaml.safe_dump(recipe), "one.yaml", base=base)
    return run(loaded, place=Place(base / "runs", catalog.default_cache()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run the round of a name, once."""

    @cache
    def make(name: str) -> Path:
        return begin(tmp_path_factory.mktemp("run"), *ROUNDS[name])

    return make


@pytest.mark.parametrize("name", ROUNDS)
def test_a_revision_comes_of_it(trained: Callable[[str], Path], name: str) -> None:
    """The job trains three steps on rows that are all in the store, and its metrics are rows."""
    folder = trained(name)
    [job] = read_rows(folder, "SELECT * FROM training_run")
    assert (job["status"], job["steps"]) == ("trained", 3), job["message"]
    frozen = read_rows(folder, "SELECT id::VARCHAR AS id FROM training_row ORDER BY position")
    table = pq.read_table(folder / "jobs" / "1" / "rows.parquet")
    assert table["id"].to_pylist() == [row["id"] for row in frozen]
    names = "SELECT DISTINCT name FROM training_metric"
    assert {"loss", "grad_norm"} <= {row["name"] for row in read_rows(folder, names)}


@pytest.mark.parametrize("name", ROUNDS)
def test_a_reference_is_named_where_the_loss_has_one(
    trained: Callable[[str], Path], name: str
) -> None:
    """Its revision is recorded, and each row says where its log-probs are from; other losses have none."""
    folder = trained(name)
    [job] = read_rows(
        folder, "SELECT trainer, start_revision, reference_revision FROM training_run"
    )
    rows = read_rows(folder, "SELECT DISTINCT reference_from AS f FROM training_row")
    if job["trainer"] in ("dpo", "kto"):
        assert job["reference_revision"] == job["start_revision"]
        # The teacher spoke, so that nothing of it is the student's own log-prob.
        assert rows == [{"f": "scored"}]
    else:
        assert (job["reference_revision"], rows) == (None, [{"f": None}])


def test_kto_sees_both_sides_beside_another_prompts_answer(
    trained: Callable[[str], Path],
) -> None:
    """An answer is wanted where it was chosen, and stands beside an answer to another prompt."""
    folder = trained("kto of pairs")
    [wrong] = read_rows(
        folder,
        """
        SELECT count(*) FILTER (WHERE t.label <> (a.verifier = 1)) AS labels,
               count(*) FILTER (WHERE o.prompt_id = t.prompt_id) AS own, count(*) AS n,
               count(DISTINCT t.completion_id) AS answers
        FROM training_row t JOIN answers a ON a.id = t.completion_id
        JOIN completion o ON o.id = t.other_id
        """,
    )
    assert (wrong["labels"], wrong["own"]) == (0, 0)
    assert wrong["n"] == wrong["answers"] > 20


def test_tpo_learns_the_reference_of_prompts_that_have_one(trained: Callable[[str], Path]) -> None:
    """Pairs of prompts without a reference are left out, and the gold answer is the reference, encoded."""
    folder = trained("tpo")
    table = pq.read_table(folder / "jobs" / "1" / "rows.parquet").to_pylist()
    paired = read_rows(folder, "SELECT count(*) AS n FROM pair")[0]["n"]
    assert 0 < len(table) < paired
    # A reference is right, and so are chosen answers: the two have the same tokens.
    assert all(row["gold_ids"] == row["chosen_ids"] for row in table)


def test_what_a_prompt_is_told_stands_before_it(trained: Callable[[str], Path]) -> None:
    """The text of `select: {told}` is a system turn of the training prompt, and the answers are of both kinds."""
    from transformers import AutoTokenizer

    folder = trained("sft told")
    rows = pq.read_table(folder / "jobs" / "1" / "rows.parquet")["prompt_ids"].to_pylist()
    [start] = (folder / "revisions").glob(
        read_rows(folder, "SELECT start_revision AS r FROM training_run")[0]["r"]
    )
    tokenizer = AutoTokenizer.from_pretrained(start)
    texts = {str(tokenizer.decode(ids)) for ids in rows}
    assert {text.split("|>")[1].split("<|")[0].strip() for text in texts} == {"good", "bad"}


def test_kto_wants_to_be_told_what_is_wanted(tmp_path: Path) -> None:
    """A select step that does not say so is refused in words, and so are answers of one kind."""
    with pytest.raises(BadInput, match=r"select\.wanted: says of an answer neither yes nor no"):
        begin(tmp_path, {"select": {"where": "verifier = 1"}}, "kto")
