"""What every test runs under: no network, no tracing, a cache of its own, examples that repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
