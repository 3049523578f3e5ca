"""Where the recorded votes of six real judges lie; tests that need them skip where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _folder() -> Path:
    own = os.environ.get("REDISTILL_DATA")
    shared = Path(own) if own else Path(__file__).parents[2] / "shared" / "data"
    return shared / "llmbar"


LLMBAR = _folder()
VOTES = LLMBAR / "votes.csv.gz"
FILES = tuple(LLMBAR / f"{name}.jsonl" for name in ("natural", "gptinst", "neighbor"))

needs_llmbar = pytest.mark.skipif(
    not all(file.is_file() for file in (VOTES, *FILES)),
    reason=f"the LLMBar pairs and votes are not at {LLMBAR}; REDISTILL_DATA names their folder",
)


def replay(judge: str, strategy: str = "Vanilla") -> dict[str, dict[str, str]]:
    """Return a recorded judge as a recipe names it."""
    return {"replay": {"votes": str(VOTES), "judge": judge, "strategy": strategy}}
