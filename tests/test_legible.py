"""Prompts that a tokenizer cannot write and templates that do not render them are refused before anything is paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from redistill import cli
from redistill.agents.legible import check_legible
from redistill.agents.loop import Place, run
from redistill.agents.prompts import load_prompts
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput
from redistill.policies import catalog
from redistill.policies.chat import ChatCodec
from redistill.policies.transformers import TransformersPolicy
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe
from redistill.testing.tiny import CHAT_TEMPLATE, make_tiny_model
from redistill.types import Message

STRIPS = CHAT_TEMPLATE.replace(
    "message['content']",
    "(message['content'] if loop.last else message['content'].split('</think>')[-1])",
)
"""Drops the thinking of all turns but the last."""
OPENS = CHAT_TEMPLATE.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
"""Begins each answer with a thought that it does not keep."""
DROPS = CHAT_TEMPLATE.replace("in messages %}", "in messages[-2:] %}")
"""Forgets all but the last two turns."""
TURNS = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "<think>easy</think>1"},
    {"role": "user", "content": "Two?"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny model, which has letters of ASCII alone."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "m")


def written(base: Path, student: str, prompts: list[dict[str, Any]], **changed: Any) -> Recipe:
    """Write a recipe with its prompts, and load it."""
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    recipe = json.loads(json.dumps(fake_recipe() | {"student": student} | changed))
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return load_recipe((base / "recipe.yaml").read_text("utf-8"), "recipe.yaml", base=base)


def looked(recipe: Recipe, base: Path, model: Path) -> list[str]:
    """Look at a recipe's prompts, and return what was noted."""
    student = TransformersPolicy(catalog.resolve(str(model), cache=base / "cache").revision)
    notes: list[str] = []
    prompts = load_prompts(recipe.prompts, base, 0)
    check_legible(recipe, prompts, student, notes.append)
    return notes


def test_f21_prompts_that_lose_characters_are_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above 1 % the run ends in one line with an example, exit 2, and no token is sampled."""
    prompts = fake_prompts(40, 40, 40)
    for row in prompts[:2]:
        row["prompt"] = f"a\u6f22b {row['prompt']}"
    written(tmp_path, str(model), prompts)
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs")])
    assert end.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "prompts: 2 of 120 prompts lose characters in the student's tokenizer, for example "
        "'a\u6f22b Say train"
    )
    assert "is read as 'ab Say train" in told
    assert told.endswith("; choose another student, or write `lossy_prompts: allow`")
    assert read_rows(tmp_path / "runs/fake", "SELECT count(*) AS n FROM completion") == [{"n": 0}]


def test_f21_few_of_them_or_a_leave_are_told(tmp_path: Path, model: Path) -> None:
    """Up to 1 %, or where the recipe allows it, a note counts them; the leave is part of no id."""
    prompts = fake_prompts(40, 40, 40)
    prompts[0]["prompt"] += " \u6f22"
    recipe = written(tmp_path, str(model), prompts)
    [note] = looked(recipe, tmp_path, model)
    assert note.startswith("1 of 120 prompts lose characters")
    prompts[1]["prompt"] += " \u6f22"
    refused = written(tmp_path, str(model), prompts)
    allowed = written(tmp_path, str(model), prompts, lossy_prompts="allow")
    with pytest.raises(BadInput, match="2 of 120"):
        looked(refused, tmp_path, model)
    assert len(looked(allowed, tmp_path, model)) == 1
    assert refused.key == allowed.key


def test_f21_accents_and_space_around_are_no_loss(tmp_path: Path, model: Path) -> None:
    """A letter whose accent the tokenizer composes is the same letter."""
    prompts = fake_prompts(40, 40, 40)
    for row in prompts:
        row["prompt"] = f" caf\u00e9 {row['prompt']}\n"
    assert looked(written(tmp_path, str(model), prompts), tmp_path, model) == []


def with_template(base: Path, template: str) -> Path:
    """Return a copy of the tiny model with another template."""
    folder = make_tiny_model(base / "other")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def edited_recipe() -> list[dict[str, Any]]:
    """Return a round in which a program's answers train."""
    [sample, score, select, *others] = fake_recipe()["round"]
    both = {"of": ["sample", "rewrite"]}
    return [
        sample,
        {"rewrite": {"given": "edit"}},
        {"score": {**score["score"], **both}},
        {"select": {**select["select"], **both}},
        *others,
    ]


@pytest.mark.parametrize(
    ("template", "edits", "fault"),
    [
        (STRIPS, True, ""),
        (OPENS, False, ""),
        (OPENS, True, "renders a question otherwise once it is answered"),
        (DROPS, False, "leaves a turn out"),
    ],
    ids=["strips thoughts", "own answers", "answers of others", "drops turns"],
)
def test_f19_a_template_that_does_not_go_on_is_refused(
    tmp_path: Path, template: str, edits: bool, fault: str
) -> None:
    """Refused where it makes a difference: turns that vanish, and others' answers behind what is no beginning.

    What the student samples follows the tokens that it was asked with; thoughts of earlier turns may go.
    """
    folder = with_template(tmp_path, template)
    prompts: list[dict[str, Any]] = [{"messages": TURNS, "split": "train"}, *fake_prompts(4, 4, 4)]
    changed = {"round": edited_recipe()} if edits else {}
    recipe = written(tmp_path, str(folder), prompts, **changed)
    if not fault:
        assert looked(recipe, tmp_path, folder) == []
        return
    with pytest.raises(BadInput) as error:
        looked(recipe, tmp_path, folder)
    assert str(error.value).startswith(f"student: its chat template {fault}; ")
    assert "\n" not in str(error.value)


def test_f19_a_single_turn_is_not_hit_by_what_happens_to_several(tmp_path: Path) -> None:
    """A template that forgets turns is good enough for a run that has none to forget."""
    folder = with_template(tmp_path, DROPS)
    assert looked(written(tmp_path, str(folder), fake_prompts(4, 4, 4)), tmp_path, folder) == []


def test_f19_the_next_question_begins_with_the_answer_before(model: Path) -> None:
    """Of the tiny model's own template, every conversation is the beginning of the one that goes on."""
    codec = ChatCodec(AutoTokenizer.from_pretrained(model))
    turns = [Message(turn["role"], turn["content"]) for turn in TURNS]
    assert codec.misrendered(turns, answered=True) == ""


def test_a_policy_without_a_tokenizer_is_taken_at_its_word(tmp_path: Path) -> None:
    """A student that tells nothing of its tokens runs, whatever the prompts hold."""
    prompts = fake_prompts(20, 40, 40)
    for row in prompts:
        row["prompt"] = "\u6f22 " + row["prompt"]
    student = fake_recipe()["student"]
    recipe = written(tmp_path, student, prompts, loop={"rounds": 1})
    assert run(recipe, place=Place(tmp_path / "runs", tmp_path / "cache")).is_dir()
