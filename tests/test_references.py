"""A role that quotes: the prompt's own answer as a completion, of no model, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from redistill.agents.fitting import shapes
from redistill.agents.loop import Place, Silent, run
from redistill.agents.opening import anchored, prepared
from redistill.agents.planning import plan
from redistill.agents.quoted_answer import REVISION
from redistill.agents.recipe import load_recipe
from redistill.agents.right_answer import right_answer
from redistill.errors import BadInput
from redistill.policies import catalog
from redistill.report.integrity import examine_run
from redistill.store.query import read_rows
from redistill.testing.fakes import FakeStudent, fake_prompts, fake_recipe
from redistill.types import Message, Prompt

DATA = Path(catalog.__file__).parents[1] / "recipes" / "data" / "tiny.jsonl"
SPLITS = {"train": 48, "heldout": 12, "test": 4}
GOLD = {"policy": "references"}


def quoting(**trainer: Any) -> dict[str, Any]:
    """Return the fake recipe with a step that quotes, and training on what it says."""
    data = fake_recipe(rounds=1, **trainer)
    data["roles"] = {"gold": GOLD}
    data["round"][0] = {"sample": {"role": "gold", "k": 1}}
    return data


def begin(base: Path, data: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> Path:
    """Run a recipe on prompts, with their notes in `notes`."""
    rows = rows or fake_prompts(train=24, heldout=20, test=8)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    loaded = load_recipe(yaml.safe_dump(data), "r.yaml", base=base)
    cache = catalog.default_cache() if data["student"] == "tiny" else base / "cache"
    return run(loaded, place=Place(base / "runs", cache), progress=Notes(base / "notes"))


class Notes(Silent):
    """Keeps what is noted in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, text: str) -> None:
        """Keep a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ({"reference": "r", "answer": "a"}, "r"),
        ({"answer": "a", "verify": {"equals": "v"}}, "a"),
        ({"verify": {"equals": "v"}}, "v"),
        ({"verify": {"equals": {"text": "v", "ignore": ["case"]}}}, "v"),
        ({"verify": {"equals": "v", "max_words": 1}}, ""),
        ({"verify": {"include": "v"}}, ""),
        ({"verify": {"equals": {"txt": "v"}}}, ""),
        ({}, ""),
    ],
)
def test_the_right_answer_is_what_the_prompt_comes_with(details: dict[str, Any], told: str) -> None:
    """Its reference, else its answer, else the one text that its one checker takes; nothing is made up."""
    assert right_answer(Prompt("p", (Message("user", "x"),), "train", **details)) == told


def test_a_quoted_answer_is_a_completion_of_no_model(tmp_path: Path) -> None:
    """It passes its checker, has a revision that says what it is, and no tokens; no model was asked for it."""
    asked = []
    generate = FakeStudent.generate

    def watched(self: FakeStudent, requests: Any, sampling: Any) -> Any:
        asked.append(sampling.temperature)
        return generate(self, requests, sampling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeStudent, "generate", watched)
        folder = begin(tmp_path, quoting())
    assert set(asked) == {0.0}  # held-out prompts are answered greedily; nothing else was sampled
    rows = read_rows(
        folder,
        """
        SELECT DISTINCT c.revision, c.model, c.role, c.tokens, c.finish_reason, a.verifier, c.rendered_prompt_id AS saw,
               (SELECT count(*) FROM completion_tokens t WHERE t.completion_id = c.id) AS tokens_kept
        FROM completion c JOIN answers a ON a.id = c.id WHERE c.step = 'sample'
        """,
    )
    assert [tuple(row.values()) for row in rows] == [
        (REVISION, "references", "gold", None, "stop", 1.0, None, 0)
    ]
    trained = read_rows(folder, "SELECT DISTINCT tokens_from AS t FROM training_row")
    assert trained == [{"t": "encoded"}]
    assert not [check for check in examine_run(folder) if check["state"] == "bad"]


def test_prompts_without_a_reference_are_left_out(tmp_path: Path) -> None:
    """One event a chunk names them, and a line counts them; the others are answered."""
    rows = fake_prompts(train=24, heldout=20, test=8)
    for row in rows[:10]:
        row["verify"] = {"include": row["verify"]["equals"]}
    folder = begin(tmp_path, quoting() | {"chunk": 64, "prompts": {"file": "prompts.jsonl"}}, rows)
    assert read_rows(folder, "SELECT count(*) AS n FROM completion WHERE step = 'sample'") == [
        {"n": 14}
    ]
    [event] = read_rows(folder, "SELECT detail FROM event WHERE kind = 'no_reference'")
    assert len(json.loads(event["detail"])["prompts"]) == 10
    assert "10 of 24 prompts left out: they have no reference" in (tmp_path / "notes").read_text()


def test_the_gold_of_a_pair_is_encoded_once(tmp_path: Path) -> None:
    """SPIN's pairs: the prompt's own answer over each other one of the student's, by construction."""
    data = fake_recipe(rounds=2, rows_kind="pairs", gain=0.1)
    data["roles"] = {"gold": GOLD}
    data["round"][1:3] = [
        {"sample": {"as": "gold", "role": "gold", "k": 1}},
        {"pair": {"of": ["gold", "sample"], "rule": "gold_self"}},
    ]
    folder = begin(tmp_path, data)
    rows = read_rows(
        folder,
        """
        SELECT DISTINCT c.step AS chosen, r.step AS rejected, c.answer = r.answer AS same, p.judge, p.rule,
               ends_with(c.prompt, c.answer) AS right
        FROM pair p JOIN answers c ON c.id = p.chosen_id JOIN answers r ON r.id = p.rejected_id
        """,
    )
    assert [tuple(row.values()) for row in rows] == [
        ("gold", "sample", False, "", "gold_self", True)
    ]
    [table] = [pq.read_table(file) for file in (folder / "jobs" / "1").glob("*.parquet")]
    assert (
        table.num_rows
        == read_rows(folder, "SELECT count(*) AS n FROM pair WHERE round = 1")[0]["n"]
    )
    assert table.num_rows > 20
    assert not [check for check in examine_run(folder) if check["state"] == "bad"]


def test_a_real_student_learns_from_references(tmp_path: Path) -> None:
    """The toy's prompts say their answers in their checkers alone: they are quoted, encoded once, and learned."""
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    few = [
        row
        for split, n in SPLITS.items()
        for row in [row for row in rows if row["split"] == split][:n]
    ]
    sft = {"trainer": "sft", "steps": 3, "batch_size": 16, "micro_batch": 16, "learning_rate": 5e-4}
    data = quoting() | {"student": "tiny", "prompts": {"file": "prompts.jsonl"}, "chunk": 64}
    data["round"] = [
        data["round"][0],
        {"select": {}},
        {"train": sft},
        {"evaluate": {"judge": "verifier", "max_tokens": 24}},
        {"gate": {}},
    ]
    folder = begin(tmp_path, data, few)
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]
    losses = read_rows(
        folder, "SELECT value FROM training_metric WHERE name = 'loss' ORDER BY optimizer_step"
    )
    assert losses[-1]["value"] < losses[0]["value"]
    [row] = read_rows(
        folder, "SELECT count(*) AS n, list(DISTINCT tokens_from) AS f FROM training_row"
    )
    assert row == {"n": SPLITS["train"], "f": ["encoded"]}


def test_the_plan_says_that_no_model_is_asked(tmp_path: Path) -> None:
    """Of a quoting role there are no calls, no tokens, and no memory."""
    (tmp_path / "prompts.jsonl").write_text(
        "\n".join(map(json.dumps, fake_prompts(train=24, heldout=20, test=8))), "utf-8"
    )
    recipe = quoting() | {"student": "tiny", "prompts": {"file": "prompts.jsonl"}}
    made = prepared(
        load_recipe(yaml.safe_dump(recipe), "r.yaml", base=tmp_path),
        Place(tmp_path / "runs", catalog.default_cache()),
    )
    known = shapes(made.recipe, made.cache, "float32")
    assert set(known) == {"tiny"}
    found = plan(made.recipe, made.prompts, known, tmp_path)
    [phase] = [p for p in found.phases if p.step == "sample"]
    assert (phase.rows, phase.calls, phase.tokens) == ("24 prompts' own answers, of no model", 0, 0)
    assert [tenant.name for tenant in found.memory.tenants] == ["sampler"]


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"round": [{"sample": {"role": "gold"}}]},
        "gold has one answer to a prompt, its own, and not 4",
    ),
    (
        {"round": [{"sample": {}}, {"critique": {"role": "gold"}}]},
        "gold quotes the prompt's own answer, and can do nothing else",
    ),
    (
        {"round": [{"sample": {}}, {"rewrite": {"role": "gold", "given": "nothing"}}]},
        "gold quotes the prompt's own answer, and can do nothing else",
    ),
    (
        {"round": [{"sample": {}}, {"score": {"judge": {"chat": {"role": "gold"}}}}]},
        "gold quotes the prompt's own answer, and can do nothing else",
    ),
    (
        {"round": [{"sample": {}}, {"score": {"judge": {"likelihood": {"role": "gold"}}}}]},
        "gold quotes the prompt's own answer, and can do nothing else",
    ),
    ({"roles": {"gold": GOLD | {"revision": "initial"}}}, "'initial' is of the student only"),
    ({"roles": {"gold": GOLD | {"context": {"system": "x"}}}}, "nobody is shown it"),
    ({"roles": {"gold": GOLD | {"model": "m"}}}, "is only for a model at an address"),
]


@pytest.mark.parametrize(("changed", "told"), WRONG, ids=[told for _, told in WRONG])
def test_a_quoting_role_can_only_answer(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    """All else is refused in one line at load, before anything is loaded."""
    data = quoting()
    rest = [{"select": {"of": "sample"}}, *data["round"][3:]]
    steps = changed.get("round", data["round"][:1])
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', "utf-8")
    data |= changed | {"round": [*steps, *rest]}
    with pytest.raises(BadInput, match=told):
        load_recipe(yaml.safe_dump(data), "r.yaml", base=tmp_path)


def test_prompts_of_which_none_has_an_answer_are_refused(tmp_path: Path) -> None:
    """There is nothing to quote: one line with a way out, and no run is made."""
    rows = fake_prompts(train=4, heldout=4, test=4)
    for row in rows:
        row["verify"] = {"include": "a"}
    with pytest.raises(BadInput, match="no prompt has a `reference` or an `answer`"):
        begin(tmp_path, quoting(), rows)
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_that_name_is_no_model(tmp_path: Path) -> None:
    """A folder `references` beside the recipe does not turn the word into a path, nor into another id."""
    data = yaml.safe_dump(quoting())
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', "utf-8")
    before = load_recipe(data, "r.yaml", base=tmp_path).key
    (tmp_path / "references").mkdir()
    (tmp_path / "references" / "config.json").write_text("{}", "utf-8")
    loaded = load_recipe(data, "r.yaml", base=tmp_path)
    assert (loaded.key, anchored(loaded).roles["gold"].policy) == (before, "references")
