"""Packaging: what is declared is what is there, so that an installed redistill is whole."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import redistill

ROOT = Path(redistill.__file__).resolve().parent
NOT_SHIPPED = {"tests", "benchmarks", "docs", "examples", "shared", "runs"}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def _packages() -> set[str]:
    found = {file.parent.relative_to(ROOT).parts for file in ROOT.rglob("__init__.py")}
    return {
        ".".join(("redistill", *parts))
        for parts in found
        if not parts or (parts[0] not in NOT_SHIPPED and not parts[0].startswith("."))
    }


def test_every_package_is_declared() -> None:
    """A folder with `__init__.py` that is not listed would be missing from the wheel."""
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == _packages() - {"redistill.build"}


def _shipped() -> set[str]:
    data: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]
    return {
        file.relative_to(ROOT).as_posix()
        for package, patterns in data.items()
        for pattern in patterns
        for file in (ROOT / "/".join(package.split(".")[1:])).glob(pattern)
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("recipes", "*.yaml"),
        ("recipes/data", "*.jsonl"),
        ("policies/weights", "*/*"),
        ("store/sql", "*.sql"),
        ("report", "*.html"),
        (".", "py.typed"),
    ],
)
def test_every_file_that_is_read_at_run_time_ships(folder: str, pattern: str) -> None:
    """Recipes, data, weights, SQL and templates are matched by the patterns, and each pattern matches."""
    files = [
        f for f in (ROOT / folder).glob(pattern) if f.is_file() and "__pycache__" not in f.parts
    ]
    assert files
    assert {f.relative_to(ROOT).as_posix() for f in files} <= _shipped()


def test_no_pattern_matches_nothing() -> None:
    """A pattern that fits no file stands for a file that was forgotten or renamed."""
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / "/".join(package.split(".")[1:])).glob(pattern)), (package, pattern)


def test_nothing_is_read_that_does_not_ship() -> None:
    """No other kind of file lies in the packages unnoticed."""
    kinds = {".sql", ".html", ".jsonl", ".yaml", ".jinja", ".safetensors", ".json", ".css", ".txt"}
    folders = [ROOT / "/".join(name.split(".")[1:]) for name in _packages() if name != "redistill"]
    there = {
        file.relative_to(ROOT).as_posix()
        for folder in [*folders, ROOT / "recipes"]
        for file in folder.rglob("*")
        if file.suffix in kinds and "__pycache__" not in file.parts
    }
    assert there - _shipped() == set()


def test_the_shipped_data_is_small() -> None:
    """The wheel stays small enough for every index and every train."""
    assert sum((ROOT / name).stat().st_size for name in _shipped()) < 30_000_000


def _constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_constraints_are_plain_versions() -> None:
    """Exact versions of packages: no address of an index, no path, no option, each package once."""
    names = [line.partition("==")[0].casefold().replace("_", "-") for line in _constraints()]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in _constraints())
    assert len(set(names)) == len(names)


def test_torch_is_not_constrained() -> None:
    """`make setup` takes torch by itself, so that a CPU build is taken where one is offered."""
    names = {line.partition("==")[0] for line in _constraints()}
    assert not names & {"torch", "triton"}
    assert not [name for name in names if name.startswith("nvidia")]


def test_constraints_satisfy_the_ranges() -> None:
    """Every constrained version lies in the range that the project declares for it."""
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [*PROJECT["project"]["dependencies"], *extras["train"], *extras["dev"]]
    fixed = {
        name.casefold().replace("_", "-"): version
        for name, _, version in (line.partition("==") for line in _constraints())
    }
    for text in declared:
        wanted = Requirement(text)
        name = wanted.name.casefold().replace("_", "-")
        if name != "torch":
            assert wanted.specifier.contains(fixed[name]), text


def test_no_index_is_named_anywhere() -> None:
    """The project names no host of a package index; where packages come from is the user's."""
    named = re.compile(
        r"--(extra-)?index-url|--find-links|https?://[^\s\"')]*(pypi|/simple)", re.IGNORECASE
    )
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        assert not named.search((ROOT / name).read_text("utf-8")), name


def test_the_version_is_one() -> None:
    """The package says the version that it is built as."""
    assert redistill.__version__ == PROJECT["project"]["version"]


def test_the_command_leads_somewhere() -> None:
    """The console script names a function that is there."""
    [target] = PROJECT["project"]["scripts"].values()
    assert callable(importlib.metadata.EntryPoint("redistill", target, "console_scripts").load())


def test_every_public_name_is_there() -> None:
    """All that `redistill` offers can be imported."""
    for name in redistill.__all__:
        assert getattr(redistill, name) is not None
