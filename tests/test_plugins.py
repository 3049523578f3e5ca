"""Plugins: one door for built-ins, installed packages and `module:Attr`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from redistill.agents import plugins
from redistill.errors import BadInput, EnvironmentProblem


class Inner(BaseModel):
    """A nested model."""

    model_config = ConfigDict(extra="forbid")
    depth: int = 1


class Knob(BaseModel):
    """A plugin with settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: float = Field(1.0, ge=0)
    count: int
    label: int | bool = 0
    inner: Inner = Inner()
    many: list[Inner] = []
    by_name: dict[str, Inner] = {}
    weights: dict[str, float] = {}
    alias: str = Field("x", alias="as")

    @field_validator("count")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("count must be even")
        return value


class Bare:
    """A class that is no pydantic model."""


def plain(prompt: Any, completion: Any) -> bool:
    """Judge nothing."""
    return True


BUILTINS = {"knob": f"{__name__}:Knob", "plain": f"{__name__}:plain", "bare": f"{__name__}:Bare"}


@pytest.fixture(autouse=True)
def _importable() -> Iterator[None]:
    """Make this test module importable by its own name, as a user's module would be."""
    sys.modules.setdefault(__name__, sys.modules[Knob.__module__])
    yield


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes a module which a recipe may name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def problems(error: pytest.ExceptionInfo[BadInput]) -> list[str]:
    """Return the printed lines of a refusal."""
    return [str(problem) for problem in error.value.problems]


def test_finds_a_builtin() -> None:
    """A built-in's name gives its class."""
    assert plugins.find("judges", "knob", BUILTINS, "w").__name__ == "Knob"


def test_unknown_name_says_which_are_known() -> None:
    """A misspelt name is one line with the nearest name and all names."""
    with pytest.raises(BadInput) as caught:
        plugins.find("judges", "knbo", BUILTINS, "round[1].score.judge")
    [line] = problems(caught)
    assert line == (
        "round[1].score.judge: unknown judge 'knbo'; did you mean knob? judges are bare, knob, plain"
    )


def test_user_module(user_module: Any) -> None:
    """`module:Attr` finds a user's own function, dotted attributes included."""
    name = user_module("mine_a", "class Box:\n    @staticmethod\n    def f(p, c): return 1.0\n")
    assert plugins.find("judges", f"{name}:Box.f", {}, "w")(None, None) == 1.0


@pytest.mark.parametrize(
    ("text", "attribute", "said"),
    [
        ("import no_such_package_x\n", "f", "No module named 'no_such_package_x'"),
        ("1 / 0\n", "f", "ZeroDivisionError: division by zero"),
        ("def f(:\n", "f", "SyntaxError"),
        ("def grade(): ...\n", "grad", "did you mean grade?"),
    ],
)
def test_broken_user_module_is_bad_input(
    user_module: Any, text: str, attribute: str, said: str, request: pytest.FixtureRequest
) -> None:
    """A module that cannot be loaded is the user's mistake, told by its last line."""
    name = user_module(f"broken_{abs(hash(text))}", text)
    with pytest.raises(BadInput) as caught:
        plugins.find("judges", f"{name}:{attribute}", {}, "w")
    assert said in problems(caught)[0]


def test_builtin_without_its_package_is_an_environment_problem(user_module: Any) -> None:
    """A built-in whose package is missing is no mistake in the recipe."""
    name = user_module("needs_it", "import no_such_package_y\n")
    with pytest.raises(EnvironmentProblem, match="no_such_package_y"):
        plugins.find("trainers", "big", {"big": f"{name}:Big"}, "w")


def test_installed_plugin_is_found_and_never_shadows_a_builtin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Entry points are found by name; a built-in of the same name wins."""
    installed = [
        EntryPoint("extra", f"{__name__}:plain", "redistill.judges"),
        EntryPoint("knob", f"{__name__}:Bare", "redistill.judges"),
    ]
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: installed if group == "redistill.judges" else []
    )
    assert plugins.find("judges", "extra", BUILTINS, "w") is plain
    assert plugins.find("judges", "knob", BUILTINS, "w").__name__ == "Knob"
    assert plugins.names("judges", BUILTINS) == ["bare", "extra", "knob", "plain"]
    assert plugins.names("trainers", {}) == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("knob", ("knob", {})),
        ({"knob": None}, ("knob", {})),
        ({"knob": {"count": 2}}, ("knob", {"count": 2})),
    ],
)
def test_one_of_accepts(spec: Any, expected: Any) -> None:
    """A name stands alone or with its settings."""
    assert plugins.one_of(spec, "w") == expected


@pytest.mark.parametrize(
    "spec", [None, 3, [], "", {}, {"a": 1}, {"a": {}, "b": {}}, {3: {}}, {"a": {3: 1}}, {"a": []}]
)
def test_one_of_refuses(spec: Any) -> None:
    """Anything else is refused with the shape that is wanted."""
    with pytest.raises(BadInput, match=r"^w.*name"):
        plugins.one_of(spec, "w")


def test_build_validates_a_class() -> None:
    """Settings become a validated instance."""
    built = plugins.build("judges", {"knob": {"count": 2, "as": "y"}}, BUILTINS, "w")
    assert (built.count, built.alias) == (2, "y")


def test_build_tells_every_problem_at_once() -> None:
    """All mistakes come in one go, each one line with its own path, and no pydantic jargon."""
    settings = {
        "temprature": 0.5,
        "count": 3,
        "label": "x",
        "inner": {"dept": 1},
        "many": [{"depth": 1}, {"depth": "deep"}],
        "by_name": {"a": {"depht": 2}},
        "weights": {"b": "much"},
    }
    with pytest.raises(BadInput) as caught:
        plugins.build("judges", {"knob": settings}, BUILTINS, "round[0].score.judge")
    lines = problems(caught)
    at = "round[0].score.judge.knob"
    assert f"{at}.count: count must be even, given: 3" in lines
    assert any(
        x.startswith(f"{at}.temprature: unknown key; did you mean temperature?") for x in lines
    )
    assert f"{at}.inner.dept: unknown key; did you mean depth? known: depth" in lines
    assert any(x.startswith(f"{at}.many[1].depth: input should be a valid integer") for x in lines)
    assert f"{at}.by_name.a.depht: unknown key; did you mean depth? known: depth" in lines
    assert any(x.startswith(f"{at}.weights.b: input should be a valid number") for x in lines)
    [label] = [x for x in lines if x.startswith(f"{at}.label: ")]
    assert ", or: " in label
    assert len(lines) == 7
    assert not any("pydantic" in x or "\n" in x for x in lines)


def test_build_names_a_missing_key() -> None:
    """A key that must be given is named."""
    with pytest.raises(BadInput) as caught:
        plugins.build("judges", "knob", BUILTINS, "w")
    assert problems(caught) == ["w.count: is missing"]


def test_build_returns_a_plain_callable_as_it_is() -> None:
    """A function needs no class, and takes no settings."""
    assert plugins.build("judges", "plain", BUILTINS, "w") is plain
    with pytest.raises(BadInput, match="takes no settings"):
        plugins.build("judges", {"plain": {"a": 1}}, BUILTINS, "w")


def test_build_refuses_other_classes() -> None:
    """A class that is no pydantic model has no settings that could be checked."""
    with pytest.raises(BadInput, match="no pydantic model"):
        plugins.build("judges", "bare", BUILTINS, "w")


def test_problems_of_takes_plain_field_names() -> None:
    """A list of names does for the did-you-mean where there is no model."""
    with pytest.raises(ValidationError) as caught:
        Knob.model_validate({"count": 2, "cuont": 1})
    [problem] = plugins.problems_of(caught.value, "", ["count"])
    assert str(problem) == "cuont: unknown key; did you mean count? known: count"
