"""Fakes, tiny models and conformance tests, for the tests of users and our own.

The names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "FakeServer": "fake_server",
    "FakeStudent": "fakes",
    "FakeVllm": "fake_vllm",
    "JudgeConformance": "conformance",
}

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Load a public name from its home module (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
