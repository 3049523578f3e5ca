"""The command line: light to start, and for each bad input one clear line, exit code 2, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli import main
from redistill.testing.fakes import fake_prompts, fake_recipe

HEAVY = (
    "torch",
    "duckdb",
    "langgraph",
    "pandas",
    "pyarrow",
    "transformers",
    "trl",
    "numpy",
    "yaml",
)


def _redistill(
    folder: Path, *arguments: str, data: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with a cache that holds nothing and no network."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "redistill.cli", *arguments],
        cwd=folder,
        env={**os.environ, "REDISTILL_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
        input=data,
        capture_output=True,
        check=False,
    )
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(arguments, done.returncode, out, err)


@dataclass(frozen=True)
class Case:
    """One bad input."""

    said: tuple[str, ...]
    """What the lines must hold."""
    recipe: Any = None
    """What the recipe's file holds; the fake recipe where it is left out."""
    prompts: bytes | None = b""
    """What the prompts' file holds; good ones where it is empty, no file where it is None."""
    arguments: tuple[str, ...] = ("run", "recipe.yaml")
    lines: int = 1


def _changed(**changes: Any) -> dict[str, Any]:
    return fake_recipe() | changes


def _with_step(index: int, step: Any) -> dict[str, Any]:
    recipe = fake_recipe()
    recipe["round"][index] = step
    return recipe


GOOD_LINES = "\n".join(json.dumps(row) for row in fake_prompts(4, 4, 4))
FOLDERS = {
    "no-tokenizer": ("tokenizer.json", "tokenizer_config.json"),
    "no-weights": ("model.safetensors",),
}

CASES: dict[str, Case] = {
    "a misspelt key": Case(("recipe.yaml:", "unknown key", "did you mean seed?"), _changed(sed=1)),
    "a misspelt setting": Case(("sample.kk", "unknown key"), _with_step(0, {"sample": {"kk": 2}})),
    "a misspelt operator": Case(("round[0]", "did you mean sample?"), _with_step(0, {"smaple": {}})),
    "a misspelt judge": Case(("round[1]", "did you mean verifier?"), _with_step(1, {"score": {"judge": "verifer"}})),
    "a misspelt trainer": Case(("unknown trainer", "did you mean dpo?"), _with_step(3, {"train": {"trainer": "dppo"}})),
    "a wrong type": Case(("sample.k", "'lots'"), _with_step(0, {"sample": {"k": "lots"}})),
    "wrong SQL": Case(("SQL: ", "verifer"), _with_step(2, {"select": {"where": "verifer = 1"}})),
    "SQL that reaches out": Case(("SQL: ",), _with_step(2, {"select": {"where": "1=1) OR (true"}})),
    "no recipe": Case(("no such recipe: other.yaml",), arguments=("run", "other.yaml")),
    "an empty recipe": Case(("a recipe is a mapping",), b""),
    "a binary recipe": Case(("recipe.yaml: no UTF-8",), b"\x1f\x8b\x08\xff\xfe"),
    "no YAML": Case(("recipe.yaml:1: no valid YAML",), b"{a"),
    "no prompts file": Case(("prompts: no such file: prompts.jsonl",), prompts=None),
    "an empty prompts file": Case(("prompts.jsonl is empty",), prompts=b"\n"),
    "a bad line of JSON": Case(("prompts.jsonl:13: no valid JSON",), prompts=f"{GOOD_LINES}\n{{".encode()),
    "a line in Latin-1": Case(("prompts.jsonl:1: no UTF-8",), prompts=b'{"prompt": "caf\xe9"}'),
    "an unknown checker": Case(("prompts.jsonl:13", "did you mean equals?"), prompts=(GOOD_LINES + '\n{"prompt": "a", "verify": {"eqals": "a"}}').encode()),
    "a missing split": Case(("no prompt is in the split test",), prompts="\n".join(json.dumps(r) for r in fake_prompts(4, 4, 0)).encode()),
    "a run name that climbs": Case(("'../x' cannot name a run",), _changed(name="../x")),
    "an absolute run name": Case(("cannot name a run",), arguments=("run", "recipe.yaml", "--name", "/tmp/x")),
    "an empty run name": Case(("'' cannot name a run",), arguments=("run", "recipe.yaml", "--name", "")),
    "a hidden run name": Case(("'.x' cannot name a run",), _changed(name=".x")),
    "a wrong --set": Case(("--set sampel.k=3", "did you mean sample?"), arguments=("run", "recipe.yaml", "--set", "sampel.k=3")),
    "no student": Case(("no such folder: ./nowhere",), _changed(student="./nowhere")),
    "a misspelt student": Case(("did you mean smollm2-135m?",), _changed(student="smollm2-135")),
    "no tokenizer": Case(("no-tokenizer", "tokenizer"), _changed(student="./no-tokenizer")),
    "no weights": Case(("no-weights", "safetensors"), _changed(student="./no-weights")),
    "an unknown run": Case(("no run 'nothing'",), arguments=("status", "nothing")),
    "an unknown run to ask": Case(("no run 'nothing'",), arguments=("query", "nothing", "SELECT 1")),
    "an unknown run to resume": Case(("no run 'nothing'",), arguments=("resume", "nothing")),
    "many mistakes": Case(
        ("recipe.yaml:1 nam", "unknown operator", "prompts.per_round"),
        {"nam": "x", **_changed(prompts={"file": "p", "per_round": "x"}, round=[{"smaple": {}}])},
        lines=3,
    ),
}  # fmt: skip


def _lay_out(folder: Path, case: Case) -> set[str]:
    """Write a case's files, and return what lies in the folder."""
    folder.mkdir()
    recipe = fake_recipe() if case.recipe is None else case.recipe
    text = recipe if isinstance(recipe, bytes) else yaml.safe_dump(recipe, sort_keys=False).encode()
    (folder / "recipe.yaml").write_bytes(text)
    if case.prompts is not None:
        (folder / "prompts.jsonl").write_bytes(case.prompts or GOOD_LINES.encode())
    for name, lacking in FOLDERS.items():
        if name in text.decode("utf-8", "replace"):
            with resources.as_file(resources.files("redistill") / "policies/weights/tiny") as tiny:
                shutil.copytree(tiny, folder / name, ignore=shutil.ignore_patterns(*lacking))
    return _files(folder)


def _files(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*")}


def _check(case: Case, code: Any, out: str, err: str) -> None:
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.strip().split("\n")) == case.lines, err
    assert out == ""
    for words in case.said:
        assert words in err


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_told_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """Exit code 2, a line for each mistake, no traceback, no file: before any model is loaded."""
    before = _lay_out(tmp_path / "here", CASES[name])
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(SystemExit) as end:
        main(list(CASES[name].arguments))
    _check(CASES[name], end.value.code, *capsys.readouterr())
    assert _files(tmp_path / "here") == before


@pytest.mark.parametrize("name", ["a misspelt judge", "a binary recipe", "an empty prompts file"])
def test_a_process_tells_the_same(tmp_path: Path, name: str) -> None:
    """The same from outside: what a shell sees."""
    before = _lay_out(tmp_path / "here", CASES[name])
    done = _redistill(tmp_path / "here", *CASES[name].arguments)
    _check(CASES[name], done.returncode, done.stdout, done.stderr)
    assert _files(tmp_path / "here") == before


@pytest.mark.parametrize(
    "arguments", [("--help",), *((name, "--help") for name in ("run", "query"))]
)
def test_help_loads_nothing_heavy(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Help is shown without the libraries of the work: it must come at once."""
    script = (
        "import sys\nfrom redistill.cli import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "print(sorted(n for n in sys.modules if n.partition('.')[0] in "
        f"{HEAVY!r} and '.' not in n))"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split("\n")[-1] == "[]"
    assert time.monotonic() - began < 10  # 0.3 s on a machine that does nothing else
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_name_shows_the_help(tmp_path: Path) -> None:
    """Without a command there is the help, and the exit code of bad input."""
    done = _redistill(tmp_path)
    assert done.returncode == 2
    assert "quickstart" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments", [("rum",), ("run",), ("run", "a", "b"), ("run", "a", "--sed", "1")]
)
def test_wrong_arguments_are_bad_input(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A command, argument or option that there is not has the same exit code as other bad input."""
    done = _redistill(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """Who looks for a bug can see where a line came from."""
    done = _redistill(tmp_path, "--debug", "run", "nothing.yaml")
    assert "Traceback" in done.stderr
    assert "no such recipe" in done.stderr


def test_a_recipe_from_standard_input_is_told_by_that_name(tmp_path: Path) -> None:
    """`-` is a recipe too, and binary input is no traceback."""
    done = _redistill(tmp_path, "plan", "-", data=b"nam: x\n")
    assert done.returncode == 2
    assert "standard input:1 nam: unknown key; did you mean name?" in done.stderr
    done = _redistill(tmp_path, "plan", "-", data=b"\xff\xfe")
    assert done.returncode == 2
    assert done.stderr.startswith("standard input: no UTF-8")


def test_a_fake_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan`, `run`, `status`, `query`, and `run` again, on a student that needs no model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def say(*arguments: str) -> tuple[Any, str, str]:
        code = None
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code
        return code or 0, *capsys.readouterr()

    recipe = fake_recipe(rounds=1, gain=0.3)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    rows = fake_prompts(train=20, heldout=30, test=30)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    code, out, err = say("plan", "recipe.yaml", "--json")
    assert code == 0, err
    json.loads(out)
    assert not (tmp_path / "runs").exists()
    done = _redistill(tmp_path, "run", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gain"]["n"] == 30
    [round_] = json.loads(say("status", "fake", "--json")[1])["rounds"]
    assert round_["decision"] == "promoted"
    counting = ("query", "fake", "SELECT count(*) AS n FROM completion", "--json")
    counted = say(*counting)[1]
    code, _, err = say("run", "recipe.yaml")
    assert code == 0, err
    assert say(*counting)[1] == counted
    code, _, err = say("run", "recipe.yaml", "--seed", "5")
    assert code == 2
    assert "exists with another recipe" in err
    assert "seed was 0, is 5" in err
    code, _, err = say("query", "fake", "SELECT anser FROM answers")
    assert code == 2
    assert err.startswith("SQL: Binder Error")
