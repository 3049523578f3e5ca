"""docs/judging.md cannot rot: its judges run and conform, its recipe and commands are real."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from redistill.agents.exam import starter_exam
from redistill.agents.judge import load, modes, standing_of
from redistill.agents.roles import Role
from redistill.cli import main
from redistill.testing import JudgeConformance

PAGE = (Path(__file__).parents[1] / "docs/judging.md").read_text("utf-8")
_OURS = PAGE.partition("\n## Judges made of judges")[0]
"""What comes after it is tested beside the code that it tells of."""
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", _OURS, re.DOTALL | re.MULTILINE)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every Python block of the page, in one module as a reader would write it."""
    source = "from __future__ import annotations\n" + "\n\n".join(
        text for language, text in BLOCKS if language == "python"
    )
    (tmp_path / "my_judges.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_judges", raising=False)
    found: ModuleType = __import__("my_judges")
    yield found
    sys.modules.pop("my_judges", None)


def test_the_pages_own_test_passes(module: Any) -> None:
    """Its three judges pass the conformance kit as the page calls it."""
    module.test_my_judges()


def test_the_pages_judges_are_named_as_it_says(module: Any) -> None:
    """A function is a program, a coroutine a model; the class takes settings and can compare."""
    polite, words = load("my_judges:polite", "j"), load("my_judges:plain_words", "j")
    keywords = load({"my_judges:Keywords": {"words": ["moon"]}}, "j")
    assert [standing_of(j) for j in (polite, words, keywords)] == ["program", "model", "model"]
    assert modes(keywords) == ("score", "compare")
    for judge in (polite, words, keywords):
        JudgeConformance(judge).check()


def test_a_judge_is_short() -> None:
    """No judge of the page has more than 30 lines, imports included."""
    judges = [t for language, t in BLOCKS if language == "python" and "JudgeConformance" not in t]
    assert len(judges) == 3
    assert all(len(text.strip().splitlines()) <= 30 for text in judges)


def test_the_pages_role_loads() -> None:
    """The role with key and price is a valid one."""
    [text] = [t for language, t in BLOCKS if language == "yaml"]
    assert Role(**yaml.safe_load(text)["roles"]["helper"]).key == "env:JUDGE_KEY"


def test_the_pages_demo_is_what_the_demo_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line for line, and the number of pairs that it tells of."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["judge", "demo"])
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    [shown] = [t.splitlines()[1:] for _, t in BLOCKS if "judge demo" in t]
    assert printed[: len(shown)] == shown
    assert f"{len(starter_exam().items)} pairs that a program made" in PAGE
