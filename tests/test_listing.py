"""What `redistill list` and `redistill graph` show."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from pydantic import BaseModel, Field
from rich.console import Console

from redistill.agents import plugins
from redistill.agents.recipe import load_recipe
from redistill.errors import BadInput
from redistill.report.drawing import mermaid
from redistill.report.listing import describe_fields, listing, show_listing
from redistill.store.views import BY_NAME, VERSION
from redistill.testing.small_rows import RECIPE
from redistill.testing.small_run import make_run


class Base(BaseModel):
    """A base of settings."""

    depth: int = Field(3, ge=1, lt=9)
    """How deep,
    in layers."""


class Knob(Base):
    """A plugin."""

    word: str
    alias_: str | None = Field(None, alias="alias")
    """Written in a recipe without the underscore."""
    bare: float = 0.5


def test_a_field_is_told_as_a_recipe_writes_it() -> None:
    """Key, type with bounds, default and the text below it in the source, inherited ones too."""
    assert describe_fields(Knob) == [
        {"key": "depth", "type": "int, >= 1, < 9", "default": "3", "about": "How deep, in layers."},
        {"key": "word", "type": "str", "default": "required", "about": ""},
        {
            "key": "alias",
            "type": "str | None",
            "default": "-",
            "about": "Written in a recipe without the underscore.",
        },
        {"key": "bare", "type": "float", "default": "0.5", "about": ""},
    ]


@pytest.mark.parametrize("kind", ["operators", "judges", "trainers"])
def test_everything_built_in_says_what_it_is(kind: str) -> None:
    """Each has a first line, and each setting of an operator or trainer a type."""
    found = listing(kind, Path())
    assert len(found) >= 2
    for row in found:
        assert row["about"].endswith((".", ":")) or len(row["about"]) > 20, row["name"]
        assert not row["about"].startswith("cannot be loaded")
        assert all(field["type"] for field in row["fields"])


def test_a_plugin_that_fails_to_load_is_listed_with_its_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One broken package does not hide all the others."""
    broken = EntryPoint("broken", "no_such_module:Thing", "redistill.judges")
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [broken] if "judges" in group else []
    )
    found = {row["name"]: row["about"] for row in listing("judges", Path())}
    assert "cannot be loaded" in found["broken"]
    assert found["verifier"].startswith("Check an answer")


def test_every_view_is_listed_with_the_meaning_of_its_columns() -> None:
    """Each has its version, a comment, and a line for each column in the view's own order."""
    found = {row["name"]: row for row in listing("views", Path())}
    assert list(found) == list(BY_NAME)
    assert {row["version"] for row in found.values()} == {VERSION}
    for name, row in found.items():
        keys = [field["key"] for field in row["fields"] if field["key"] != "(judge)"]
        assert keys == list(BY_NAME[name].columns)
        assert all(len(field["about"]) > 5 for field in row["fields"])
        assert len(row["about"]) > 20
    assert found["answers"]["fields"][-1]["key"] == "(judge)"


def test_the_version_of_the_views_is_shown_once() -> None:
    """Who writes SQL sees which interface it is."""
    out = io.StringIO()
    show_listing(Console(file=out, width=100), listing("views", Path()))
    assert out.getvalue().count(f"version {VERSION} of the views") == 1


def test_an_unknown_kind_gets_a_suggestion() -> None:
    """A slip of the keyboard costs one line."""
    with pytest.raises(BadInput, match="did you mean judges"):
        listing("judge", Path())


def test_runs_are_listed_with_state_and_gain(tmp_path: Path) -> None:
    """A finished run shows its gain, an unfinished one none, a folder that is no run is not there."""
    make_run(tmp_path / "a", rounds=1)
    make_run(tmp_path / "b", rounds=1, finished=False)
    (tmp_path / "c").mkdir()
    found = listing("runs", tmp_path)
    assert [(r["name"], r["state"], r["rounds"]) for r in found] == [
        ("a", "finished", 1),
        ("b", "unfinished", 1),
    ]
    assert found[0]["gain"].startswith("+")
    assert found[1]["gain"] is None


def test_a_damaged_run_is_listed_and_hides_no_other(tmp_path: Path) -> None:
    """A store that cannot be read is a state, not an end."""
    make_run(tmp_path / "a", rounds=0, finished=False)
    (tmp_path / "a" / "store.read.duckdb").write_bytes(b"not a database, but long enough " * 500)
    make_run(tmp_path / "b", rounds=0, finished=False)
    states = [row["state"] for row in listing("runs", tmp_path)]
    assert states[0].startswith("unreadable")
    assert states[1] == "unfinished"


@pytest.mark.parametrize("kind", ["operators", "models", "views", "recipes", "runs"])
def test_every_listing_can_be_shown(kind: str, tmp_path: Path) -> None:
    """The table holds every name, and a list of none says so."""
    out = io.StringIO()
    found = listing(kind, tmp_path)
    show_listing(Console(file=out, width=100), found)
    assert all(row["name"] in out.getvalue() for row in found)
    assert found or "there is none" in out.getvalue()


def test_listing_loads_no_model_library() -> None:
    """`list` answers at once, on a machine without torch too."""
    code = (
        "import sys; from pathlib import Path; from redistill.report.listing import listing; "
        "[listing(k, Path('/nowhere')) for k in ('operators', 'judges', 'trainers', 'models', 'views')]; "
        "sys.exit(str({'torch', 'transformers', 'trl'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stderr.strip() == ""


def test_the_drawing_has_every_step_and_both_ends(tmp_path: Path) -> None:
    """Steps follow each other, training may lead to reject, the gate to promote or reject."""
    text = RECIPE.replace("NAME", "x").replace("ROUNDS", "2")
    drawn = mermaid(load_recipe(text, "recipe.yaml", base=tmp_path))
    assert drawn.startswith("graph TD;")
    for edge in ("sample -.-> score", "train -.-> reject", "gate -.-> promote", "gate -.-> reject"):
        assert edge in drawn


def test_the_drawing_tells_how_later_stages_differ(tmp_path: Path) -> None:
    """A setting that a stage changes is a comment, and so is a round of its own."""
    text = RECIPE.replace("NAME", "x").replace(
        "loop: {rounds: ROUNDS}", "stages: [{}, {set: {sample.k: 8}}]"
    )
    drawn = mermaid(load_recipe(text, "recipe.yaml", base=tmp_path))
    assert "%% round 1" in drawn
    assert "%% round 2: sample.k = 8" in drawn


def test_stages_with_the_same_steps_share_a_drawing(tmp_path: Path) -> None:
    """Of four stages the first, third and last have the same steps: two graphs, and what the later ones change."""
    other = (
        RECIPE.partition("round:\n")[2]
        .partition("loop:")[0]
        .replace("pair: {by", "pair: {as: p, by")
    )
    stages = "stages:\n- {}\n- round:\n" + "".join(f"  {line}\n" for line in other.splitlines())
    stages += "- {set: {sample.k: 8}}\n- {}\nloop: {rounds: 6}\n"
    text = RECIPE.replace("NAME", "x").replace("loop: {rounds: ROUNDS}\n", stages)
    drawn = mermaid(load_recipe(text, "recipe.yaml", base=tmp_path))
    assert drawn.count("subgraph") == 2
    assert 'subgraph s1 ["round 1, round 3, rounds 4 to 6"]' in drawn
    assert "%% round 3: sample.k = 8" in drawn
    assert "%% rounds 4 to 6: unchanged" in drawn
    assert 'subgraph s2 ["round 2"]' in drawn
