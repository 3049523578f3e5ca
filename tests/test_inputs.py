"""Files that steps read are named from the recipe's folder, and a run keeps copies of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.agents.loop import Place, run
from redistill.agents.recipe import Recipe, load_recipe
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe

TEMPLATE = "Say it better: {given}"


def _folder(base: Path, template: str = TEMPLATE) -> Path:
    """Make a folder with a recipe and all that it names."""
    base.mkdir(parents=True)
    rows = fake_prompts(train=24, heldout=40, test=40)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (base / "again.txt").write_text(template, "utf-8")
    (base / "pairs.jsonl").write_text("\n".join(json.dumps(_pair(n)) for n in range(30)), "utf-8")
    (base / "recipe.yaml").write_text(yaml.safe_dump(_recipe()), "utf-8")
    return base


def _pair(n: int) -> dict[str, Any]:
    right, wrong = f"w{n}", f"w{n}!!"
    return {
        "id": str(n),
        "input": f"Say w{n}",
        "output_1": right if n % 2 else wrong,
        "output_2": wrong if n % 2 else right,
        "label": 1 if n % 2 else 2,
    }


def _recipe() -> dict[str, Any]:
    recipe = fake_recipe(gain=0.3, rounds=1)
    [sample, _, select, train, evaluate, gate] = recipe["round"]
    judge = {"calibrated": {"judge": "shortest", "pairs": "pairs.jsonl", "name": "fit"}}
    recipe["round"] = [
        sample,
        {"rewrite": {"given": "nothing", "template": "again.txt", "max_tokens": 40}},
        {"score": {"of": ["sample", "rewrite"], "judge": judge}},
        {"score": {"of": ["sample", "rewrite"], "judge": "verifier", "as": "checked"}},
        {"select": select["select"] | {"of": ["sample", "rewrite"]}},
        train,
        evaluate,
        gate,
    ]
    return recipe | {"unproven_judge": "allow"}


def _load(folder: Path, name: str = "recipe.yaml") -> Recipe:
    return load_recipe((folder / name).read_text("utf-8"), name, base=folder)


def test_a_run_needs_nothing_outside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template and labelled pairs are found beside the recipe from any folder; the run has its own copies."""
    home = _folder(tmp_path / "home")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = run(_load(home), place=Place(tmp_path / "runs", tmp_path / "cache"))
    assert read_rows(folder, "SELECT count(fit) > 0 AS fitted FROM answers") == [{"fitted": True}]
    key = _load(home).key
    shutil.rmtree(home)
    kept = _load(Path(shutil.move(folder, tmp_path / "moved")))
    assert kept.key == key
    assert {path.name for path in kept.step_files()} == {"1-again.txt", "2-pairs.jsonl"}
    assert str(tmp_path) not in kept.to_yaml()


def test_what_is_in_a_file_counts_and_not_where_it_lies(tmp_path: Path) -> None:
    """The same files in another folder are the same run; another word in one of them is another run."""
    here, there = _folder(tmp_path / "here"), _folder(tmp_path / "there")
    changed = _folder(tmp_path / "changed", TEMPLATE + "!")
    assert _load(here).key == _load(there).key != _load(changed).key
    assert _load(here).judges() == _load(there).judges()


def test_a_written_recipe_names_its_files_as_before(tmp_path: Path) -> None:
    """What `show` prints can be put beside the files again."""
    resolved = _load(_folder(tmp_path / "here")).resolved()
    [stage] = resolved["stages"]
    assert stage["round"][1]["rewrite"]["template"] == "again.txt"
    [(_, settings)] = stage["round"][2]["score"]["judge"].items()
    assert settings["pairs"] == "pairs.jsonl"
