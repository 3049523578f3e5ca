"""redistill: make a language model better with feedback, round after round.

The names below are loaded when they are first used, so that ``import redistill`` and
``redistill --help`` load neither torch nor duckdb nor langgraph.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Completion": "types",
    "Evaluate": "agents.operators.improve",
    "Gate": "agents.operators.gate",
    "Judgement": "types",
    "Pair": "agents.operators.curate",
    "Place": "agents.loop",
    "Prompt": "types",
    "Propose": "agents.operators.propose",
    "Recipe": "agents.recipe",
    "RedistillError": "errors",
    "Sample": "agents.operators.elicit",
    "Score": "agents.operators.feedback",
    "Select": "agents.operators.curate",
    "Store": "store.store",
    "Train": "agents.operators.improve",
    "dataset": "store.arrow",
    "resume": "agents.loop",
    "run": "agents.loop",
    "to_parquet": "store.arrow",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Load a public name from its home module (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'redistill' has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
