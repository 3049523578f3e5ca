"""The scripts for a card: each runs end to end without one, on a toy, and never says that a goal was met there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from redistill.trainers import tuning

SCRIPTS = Path(__file__).parents[1] / "benchmarks" / "gpu"
RATIOS = {
    "memory": ("share",),
    "steps": ("sft.ratio", "dpo.ratio", "grpo.ratio", "distill.ratio"),
    "rounds": ("equal_decisions",),
    "sampling": ("transformers.ratio", "busy"),
}
"""Where each script's figures beside a goal are."""


def ran(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script on a machine that shows it no card."""
    command = [sys.executable, "-P", str(SCRIPTS / f"{name}.py"), *options]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def dry(name: str, out: Path) -> dict[str, Any]:
    """Run a script's dry run, and return what it has printed and kept."""
    done = ran(name, "--shape", "tiny", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = _strict(done.stdout)
    assert _strict(out.read_text("utf-8"))[name] == found
    assert (found["device"], found["dry_run"]) == ("cpu", True)
    for path in RATIOS[name]:
        assert _at(found, path)["value"] > 0
    assert "met" not in set(_keys(found))
    return found


def _strict(text: str) -> Any:
    """Read JSON that holds nothing but JSON: no NaN and no infinity."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def _at(found: dict[str, Any], path: str) -> dict[str, Any]:
    for part in path.split("."):
        found = found[part]
    return found


def _keys(found: object) -> Iterator[str]:
    if isinstance(found, dict):
        yield from found
        for value in found.values():
            yield from _keys(value)


@pytest.mark.parametrize("name", sorted(RATIOS))
def test_without_a_card_a_script_says_so_in_one_line(name: str) -> None:
    """Exit code 4, as of every machine that lacks something; nothing is printed as a figure."""
    done = ran(name)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{name}: no CUDA card")


def test_memory_has_an_estimate_and_a_peak(tmp_path: Path) -> None:
    """The estimate is the sum of its parts, of the way that the job took; what other scripts have found is kept."""
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps({"steps": 1, "memory": 2}), "utf-8")
    found = dry("memory", out)
    assert json.loads(out.read_text("utf-8"))["steps"] == 1
    told = found["estimated"]
    assert told["total"] == sum(size for part, size in told.items() if part != "total")
    assert found["way"] == {"weights": "full", "recompute": False}  # a toy fits anywhere


@pytest.mark.slow
def test_steps_are_timed_beside_trl(tmp_path: Path) -> None:
    """Both sides of each kind, on answers of one length."""
    found = dry("steps", tmp_path / "gpu.json")
    for kind in ("grpo", "distill"):
        told = found[kind]["answer_tokens"]
        assert told["ours"] == told["theirs"] == 6


@pytest.mark.slow
def test_rounds_are_decided_twice(tmp_path: Path) -> None:
    """The same processor twice decides and gains the same."""
    found = dry("rounds", tmp_path / "gpu.json")
    assert found["on_device"]["rounds"] == found["on_processor"]["rounds"]
    assert found["gain_difference"] == 0


@pytest.mark.slow
def test_sampling_and_one_round_are_measured(tmp_path: Path) -> None:
    """Speeds of both sides, the hand-over by part, and what of the round a model worked."""
    found = dry("sampling", tmp_path / "gpu.json")
    assert set(found["handover"]) >= {"release", "start", "train", "load", "proof"}
    assert 0 < found["busy"]["value"] <= 1
    assert set(found["vllm"]) in ({"left_out"}, {"tokens_a_second", "ratio"})


@pytest.mark.parametrize(("share", "reserved", "free"), [(0.25, 100, 900), (1.0, 100, 3000)])
def test_a_job_has_no_more_of_a_card_than_its_process_was_given(
    monkeypatch: pytest.MonkeyPatch, share: float, reserved: int, free: int
) -> None:
    """Of 4000 bytes with 3000 free, a quarter is 1000 less what is held already; all is what is free."""
    planted = {
        "is_available": lambda: True,
        "mem_get_info": lambda: (3000, 4000),
        "get_per_process_memory_fraction": lambda: share,
        "memory_reserved": lambda: reserved,
    }
    for name, answer in planted.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert tuning._free_memory() == free
