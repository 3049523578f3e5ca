"""Who gets which card: a rule over what is there, tested with cards that are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from planted_cards import plant

from redistill.policies.placement import Card, Placement, as_torch_counts, place, visible_cards

GB = 1 << 30
A, B, C = (
    Card(f"GPU-{name}", 80 * GB, free * GB) for name, free in (("a", 80), ("b", 70), ("c", 75))
)


@pytest.mark.parametrize(
    ("cards", "processes", "job", "sampler", "trainer"),
    [
        ((), 1, 0, (), ()),
        ((A,), 1, 0, (A,), (A,)),
        ((A, B), 1, 60 * GB, (A,), (B,)),
        ((A, B), 1, 71 * GB, (A,), (A,)),  # no other card has room: both take turns on the first
        ((A, B, C), 1, 0, (A,), (C,)),  # the emptier one
        ((A, B, C), 2, 0, (A,), (C, B)),
        ((A, B), 2, 0, (A,), (A, B)),  # the trainer needs them all
    ],
)
def test_who_gets_which_card(
    cards: tuple[Card, ...],
    processes: int,
    job: int,
    sampler: tuple[Card, ...],
    trainer: tuple[Card, ...],
) -> None:
    """The sampler has the first card; the trainer has others where enough of them have room for a job."""
    assert place(cards, processes=processes, trainer_bytes=job) == Placement(sampler, trainer)


def test_each_process_is_told_its_own_cards() -> None:
    """Side by side each sees its own, by name; on one card or none the trainer sees what there is."""
    apart = place((A, B, C), processes=2)
    assert apart.side_by_side
    assert apart.device == "cuda:0"
    assert apart.trainer_environment() == {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-b"}
    assert apart.sampler_environment() == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    together = place((A,))
    assert not together.side_by_side
    assert together.trainer_environment() == {}
    assert together.sampler_environment() == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    nothing = place(())
    assert (nothing.side_by_side, nothing.device) == (False, "cpu")
    assert nothing.trainer_environment() == nothing.sampler_environment() == {}


@pytest.mark.parametrize(
    ("named", "found"),
    [
        (None, ["GPU-aa", "GPU-ab", "GPU-b"]),
        ("2,0", ["GPU-b", "GPU-aa"]),
        ("GPU-b", ["GPU-b"]),
        (" 1 , GPU-aa ", ["GPU-ab", "GPU-aa"]),
        ("", []),
        ("-1", []),
        ("1,7,0", ["GPU-ab"]),
        ("MIG-GPU-aa/1/0", []),
    ],
)
def test_only_visible_cards_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, found: list[str]
) -> None:
    """Cards come in the order of CUDA_VISIBLE_DEVICES, by number or name, up to the first that is none."""
    cards = (("GPU-aa", 100, 90), ("GPU-ab", 200, 150), ("GPU-b", 300, 10))
    plant(monkeypatch, tmp_path, *cards)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    seen = visible_cards()
    assert [card.uuid for card in seen] == found
    sizes = {name: (total << 20, free << 20) for name, total, free in cards}
    assert all((card.total, card.free) == sizes[card.uuid] for card in seen)


def test_without_a_driver_there_is_no_card(tmp_path: Path) -> None:
    """No tool, a tool that fails, and a tool that says something else are all no card."""
    assert visible_cards({"PATH": str(tmp_path)}) == ()
    for script in ("exit 9", "echo No devices were found"):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)
        assert visible_cards({"PATH": f"{tmp_path}{os.pathsep}/bin"}) == ()


def test_cards_that_torch_does_not_see_are_none() -> None:
    """Where torch was built for the processor, a second card helps nobody."""
    torch = pytest.importorskip("torch")
    seen = torch.cuda.device_count()
    assert len(as_torch_counts((A, B))) <= seen
