"""GGUF through llama.cpp's own converter, where it is found; and what to type where it is not.

The package `gguf` reads and writes the format and converts nothing. The converter comes with a checkout of
llama.cpp, which `LLAMA_CPP` names, or lies on the PATH.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput, EnvironmentProblem
from ..types import TokenIds
from .exporting import Taken, compared, opened
from .precision import LEAST_NOISE, Precision
from .revision import record_canary

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
_OUTTYPE: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
_LAST_LINES = 3


def find_converter() -> list[str] | None:
    """Return the words that start llama.cpp's converter; None where there is none.

    Raises:
        BadInput: `LLAMA_CPP` is set and names none.
    """
    if named := os.environ.get(VARIABLE):
        place = Path(named).expanduser()
        script = place / SCRIPT if place.is_dir() else place
        if not script.is_file():
            what = f"{VARIABLE}={named} holds no {SCRIPT}"
            raise BadInput.at(VARIABLE, what, "name a checkout of llama.cpp, or unset it")
        # Not by its first line: that asks for any python3, and the packages are in this one.
        return [sys.executable, str(script)]
    found = shutil.which(SCRIPT)
    return [found] if found else None


def arguments(folder: Path, out: Path, precision: Precision) -> list[str]:
    """Return what the converter is told; the precision stays that of the folder."""
    return [str(folder), "--outfile", str(out), "--outtype", _OUTTYPE[precision]]


def command(folder: Path, out: Path, precision: Precision) -> str:
    """Return what a person types who has a checkout of llama.cpp."""
    script = f"$LLAMA_CPP/{SCRIPT}"
    told = " ".join(map(shlex.quote, arguments(folder, out, precision)))
    return f"python {script} {told}"


def convert(converter: Sequence[str], folder: Path, out: Path, precision: Precision) -> None:
    """Convert a Hugging Face folder.

    Raises:
        EnvironmentProblem: the converter failed; with the last that it said.
    """
    # It finds its own modules beside itself, which this setting would forbid.
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [*converter, *arguments(folder, out, precision)],
        env=surroundings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0 or not out.is_file():
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = " / ".join(lines[-_LAST_LINES:]) or "it said nothing"
        raise EnvironmentProblem(
            f"{Path(converter[-1]).name} ended with {done.returncode} and no file: {said}"
        )


def check(folder: Path, file: Path, sequences: Sequence[TokenIds], precision: Precision) -> Taken:
    """Compare a GGUF file with the folder that it was made of; both speak in fp32.

    Raises:
        EnvironmentProblem: transformers cannot read the file, so that nothing can be said of it.
        StoreProblem: it does not answer as the folder does.
    """
    told = record_canary(opened(folder, "float32"), sequences)
    gc.collect()
    found = record_canary(_read_back(file), sequences)
    return compared(told, found, "gguf", precision, 10 * LEAST_NOISE["float32"])


def _read_back(file: Path) -> Any:
    import torch
    import transformers

    kind: Any = transformers.AutoModelForCausalLM
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting switches off
            model = kind.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    except Exception as error:
        first = " ".join(str(error).split())
        raise EnvironmentProblem(
            f"{file.name} cannot be read back, so that it cannot be checked: {first}"
        ) from error
    return model.eval()
