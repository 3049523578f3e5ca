"""The starter exam and the demo's votes: made by a program from a seed, each label proven."""

from __future__ import annotations

import importlib.util
from collections import Counter
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

from redistill.agents.admission import wilson
from redistill.agents.exam import starter_exam
from redistill.agents.judges import checkers

FOLDER = Path(str(resources.files("redistill.agents.exams")))


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The program that made the files."""
    spec = importlib.util.spec_from_file_location("make_starter", FOLDER / "make_starter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_large_enough_to_prove_something() -> None:
    """At least 300 pairs, and in each slice at least 90, different ones."""
    exam = starter_exam()
    assert set(exam.slices) == {"easy", "adversarial"}
    assert len(exam.items) >= 300
    assert min(map(len, exam.slices.values())) >= 90
    assert len({i.key for i in exam.items}) == len(exam.items)
    kinds = Counter(i.id.rpartition("-")[0] for i in exam.slices["adversarial"])
    assert {"longer_is_worse", "confident_is_wrong", "half_followed"} <= kinds.keys()


def test_every_label_is_proven() -> None:
    """The better answer passes its pair's checkers, and the worse one fails."""
    for item in starter_exam().items:
        assert item.verify
        assert not checkers.check_spec(item.verify, item.id)
        better, worse = item.answers if item.label == 1 else item.answers[::-1]
        assert all(checkers.run(item.verify, better).values()), item
        assert not all(checkers.run(item.verify, worse).values()), item


def test_neither_place_nor_length_solves_it() -> None:
    """`first` is a coin; on easy pairs length is too, and on adversarial ones it misleads."""
    exam = starter_exam()
    for items in exam.slices.values():
        low, high = wilson(sum(i.label == 1 for i in items), len(items))
        assert low is not None
        assert high is not None
        assert low < 0.5 < high
    easy, adversarial = (
        sum(i.label == i.longer for i in items) / len(items) for items in exam.slices.values()
    )
    assert 0.4 < easy < 0.6
    assert adversarial < 0.3


def test_the_seed_makes_the_shipped_files_again(maker: ModuleType) -> None:
    """Byte for byte: exam and demo votes; another seed makes others."""
    made = maker.files()
    assert set(made) == {"starter.jsonl", "demo_votes.csv"}
    for name, text in made.items():
        assert (FOLDER / name).read_bytes() == text.encode(), name
    assert maker.files(seed=maker.SEED + 1)["starter.jsonl"] != made["starter.jsonl"]
