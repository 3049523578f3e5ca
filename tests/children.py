"""Processes of their own that tests start, kill, or send into a full disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def start(child: Path, told: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a script that reads what it is told from standard input, and wait for its end."""
    return subprocess.run(
        [sys.executable, "-P", str(child)],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
