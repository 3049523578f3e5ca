"""Documents that cannot rot: rendered pages are fresh, and what the README says to type exists."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import redistill
from redistill.agents.recipe import load_recipe
from redistill.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    parts = README.split("```")[1::2]
    return [p.partition("\n")[2] for p in parts if p.partition("\n")[0] == language]


def test_rendered_pages_are_fresh() -> None:
    """`make docs` would change nothing."""
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "docs/render.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_readme_is_two_screens() -> None:
    """A screen is 50 lines."""
    assert len(README.splitlines()) <= 100


def test_the_readmes_recipe_loads(tmp_path: Path) -> None:
    """The recipe of the README is valid as it stands."""
    [text] = _blocks("yaml")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n', "utf-8")
    recipe = load_recipe(text, "README", base=tmp_path)
    assert recipe.rounds == yaml.safe_load(text)["loop"]["rounds"]


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_example_loads(file: Path) -> None:
    """A recipe in `examples/` is valid where it lies, and its name is its file's."""
    name = load_recipe(file.read_text("utf-8"), file.name, base=file.parent).name
    assert name.replace("_", "-") == file.stem.replace("_", "-")


def test_the_readmes_commands_exist() -> None:
    """Every `redistill COMMAND` and `make TARGET` of README and CONTRIBUTING is one."""
    commands = set(getattr(typer.main.get_command(app), "commands", {}))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    text = README + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    words = text.replace("`", " ` ").split()
    named = {b for a, b in itertools.pairwise(words) if a == "redistill" and b.isalpha()}
    assert {"quickstart", "init", "plan", "run", "resume", "query", "report"} <= named & commands
    targets = {b for a, b in itertools.pairwise(words) if a == "make" and b.isidentifier()}
    assert {t for t in targets if f"\n{t}:" not in makefile and f" {t} " not in makefile} <= {
        "needs"
    }


@pytest.mark.parametrize("name", sorted(set(redistill.__all__) - {"__version__"}))
def test_every_public_name_has_its_page(name: str) -> None:
    """A public name can be loaded, has a docstring, and stands in docs/python.md."""
    assert getattr(redistill, name).__doc__
    assert f"## {name}\n" in (ROOT / "docs/python.md").read_text("utf-8")


def test_every_command_has_its_page() -> None:
    """A command has help and stands in docs/cli.md, those of a group too."""
    page = (ROOT / "docs/cli.md").read_text("utf-8")
    for name, command in getattr(typer.main.get_command(app), "commands", {}).items():
        for inner, sub in getattr(command, "commands", {"": command}).items():
            assert sub.help
            assert f"## redistill {name} {inner}".rstrip() + "\n" in page
