"""What every test runs under: no network, no tracing, a cache of its own, examples that repeat."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from jobs import Bench

settings.register_profile(
    "redistill",
    deadline=None,
    derandomize=True,
    max_examples=50,
    # Each example makes its own files under one tmp_path; none reads what another has left.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("redistill")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for converted models that all tests of a session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, session_cache: Path) -> None:
    """Keep a test away from the network, from tracing, and from the user's own cache."""
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("REDISTILL_CACHE", str(session_cache))
    monkeypatch.setenv("REDISTILL_HOME", str(session_cache / "home"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Make one tiny random student for all tests of trainers: its folder and its revision."""
    import torch
    from jobs import load

    from redistill.policies.revision import fingerprint_model
    from redistill.testing.tiny import make_tiny_model

    torch.set_num_threads(1)
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny") / "start")
    return folder, fingerprint_model(load(folder))


@pytest.fixture
def bench(tmp_path: Path, tiny: tuple[Path, str]) -> Bench:
    """Give each test its own run folder with the student inside."""
    from jobs import Bench

    shutil.copytree(tiny[0], tmp_path / "start")
    return Bench(tmp_path, tmp_path / "start", tiny[1])
