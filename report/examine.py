"""What `redistill doctor` looks at: this machine, and whether a run's store holds only true facts."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..errors import BadInput
from ..policies.revision import MANIFEST
from .console import clean
from .integrity import Check, State, examine_run
from .integrity import check as _check

if TYPE_CHECKING:
    from rich.console import Console

_CORE = ("duckdb", "langgraph", "pyarrow", "pydantic")
_TRAIN = ("torch", "transformers", "trl")
_LEAST_DISK = 5e9
"""Bytes that a few revisions of a small student take."""
_LEAST_MEMORY = 4e9
"""Bytes in which the smallest student of the catalog trains."""


def examine(run_folder: Path | None, cache: Path, *, ask: bool = False) -> list[Check]:
    """Examine this machine, and a run where one is given.

    Each check: `name`, `state` (ok; note, which stops nothing; bad), `detail`, `fix`; those of a run have
    `of`: run.

    Args:
        run_folder: the run to examine too.
        cache: where models are kept.
        ask: whether the run's servers are asked what they can do, by short calls.

    Raises:
        BadInput: there is no such run.
    """
    checks = [*_machine(), *_packages(), *_models(cache)]
    if run_folder is None:
        return checks
    return checks + examine_run(run_folder) + list(_servers(run_folder, ask=ask))


def _servers(run_folder: Path, *, ask: bool) -> Iterator[Check]:
    """Say what the servers of a run can do; one that does not answer is no fault of the run."""
    from ..agents.opening import RECIPE
    from ..agents.recipe import load_recipe
    from .servers import server_line, servers

    file = run_folder / RECIPE
    if not file.is_file():
        return
    try:
        recipe = load_recipe(file.read_text("utf-8"), str(file), base=run_folder)
    except BadInput as error:
        yield _check("servers", "note", f"not known: {error.problems[0]}")
        return
    for row in servers(recipe, ask=ask):
        fix = "start it, or wait: the run waits for it too" if row["fault"] else ""
        state: State = "bad" if row["fault"] else "ok" if row["can"] else "note"
        yield _check(f"server of {row['role']}", state, server_line(row), fix)


def exit_code(found: list[Check]) -> int:
    """Return 2 where a run is not what it should be, 4 where the machine is not, else 0."""
    bad = {check.get("of", "machine") for check in found if check["state"] == "bad"}
    return 2 if "run" in bad else 4 if bad else 0


def show_examination(console: Console, found: list[Check]) -> None:
    """Print one line a check, and what to do about those that are not ok."""
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"ok": "green", "note": "yellow", "bad": "bold red"}
    table = RichTable(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in found:
        detail = Text(clean(check["detail"]))
        if check["fix"]:
            detail.append(f"\n{clean(check['fix'])}", style="italic")
        table.add_row(Text(check["state"], style=styles[check["state"]]), check["name"], detail)
    console.print(table)
    bad = sum(check["state"] == "bad" for check in found)
    console.print(f"{len(found)} checks, {bad} bad", highlight=False)


# -- the machine


def _machine() -> Iterator[Check]:
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] < (3, 15)
    fix = "" if fits else "use Python 3.11 to 3.14"
    yield _check("python", "ok" if fits else "bad", version, fix)
    yield _check("platform", "ok", f"{platform.system()} {platform.machine()}")
    yield _check("cores", "ok", str(os.cpu_count() or 1))
    free = psutil.virtual_memory().available
    yield _enough("memory", free, _LEAST_MEMORY, "close other programs, or take the student `tiny`")
    free = psutil.disk_usage(str(Path.cwd())).free
    yield _enough(
        "disk here", free, _LEAST_DISK, "each revision of a student is kept; free some space"
    )
    yield _bf16()
    yield _sandbox()


def _enough(name: str, free: float, least: float, fix: str) -> Check:
    enough = free >= least
    return _check(
        name, "ok" if enough else "note", f"{free / 1e9:.1f} GB free", "" if enough else fix
    )


def _sandbox() -> Check:
    """Say which walls stand around the code of answers, where a prompt verifies code."""
    from ..agents.judges.sandbox import layer, why_none

    found = layer()
    if found is not None:
        return _check("code sandbox", "ok", found.told)
    return _check("code sandbox", "note", "none: prompts that verify code are refused", why_none())


def _bf16() -> Check:
    """Say whether the processor multiplies bf16 numbers itself."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return _check("bf16 in the processor", "note", "not known on this platform; fp32 is used")
    flags = set(info.read_text(errors="replace").split())
    units = sorted(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
    if units:
        return _check(
            "bf16 in the processor", "ok", f"yes ({', '.join(units)}); students run in fp32"
        )
    told = "no: bf16 would be emulated, many times slower than fp32; students run in fp32"
    return _check("bf16 in the processor", "ok", told)


def _packages() -> Iterator[Check]:
    wanted = _wanted()
    for name in (*_CORE, *_TRAIN):
        yield _package(name, wanted.get(name), needed=name in _CORE)
    yield _gpu()


def _package(name: str, wanted: Any, *, needed: bool) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if needed:
            return _check(name, "bad", "not installed", "pip install redistill")
        fix = "pip install 'redistill[train]'; without it, query and report still work"
        return _check(name, "note", "not installed", fix)
    if wanted is None or wanted.specifier.contains(version.partition("+")[0], prereleases=True):
        return _check(name, "ok", f"{version} ({wanted.specifier})" if wanted else version)
    fix = f'pip install "{name}{wanted.specifier}"'
    return _check(name, "bad", f"{version}, wanted {wanted.specifier}", fix)


def _wanted() -> dict[str, Any]:
    """Return what this version asks of each package: from its metadata, or its source's pyproject."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("redistill") or []
    except metadata.PackageNotFoundError:
        lines = _from_source()
    requirements = [Requirement(line) for line in lines]
    return {requirement.name: requirement for requirement in requirements}


def _from_source() -> list[str]:
    import tomllib

    file = Path(__file__).parents[1] / "pyproject.toml"
    if not file.is_file():
        return []
    project: dict[str, Any] = tomllib.loads(file.read_text("utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["train"]]


def _gpu() -> Check:
    if not Path("/dev/nvidia0").exists():
        return _check("GPU", "ok", "none found; the processor is used")
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a broken installation raises whatever it likes
        return _check("GPU", "note", f"there is one, and torch cannot be loaded: {error}")
    if not torch.cuda.is_available():
        return _check(
            "GPU", "note", "there is one, and torch does not see it", "install torch for CUDA"
        )
    free, whole = torch.cuda.mem_get_info()
    return _check(
        "GPU",
        "ok",
        f"{torch.cuda.get_device_name()}: {free / 1e9:.0f} of {whole / 1e9:.0f} GB free",
    )


def _models(cache: Path) -> Iterator[Check]:
    held = sorted(
        file.parents[1].name
        for file in (cache / "models").glob(f"*/*/{MANIFEST}")
        if not file.parent.name.startswith(".")
    )
    told = f"{cache}: {', '.join(held)}" if held else f"{cache}: no model yet"
    home = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(home, os.W_OK):
        fix = "set REDISTILL_CACHE to a folder of yours"
        yield _check("model cache", "bad", f"{home} cannot be written", fix)
    yield _check("model cache", "ok", told)
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    told = (
        "HF_HUB_OFFLINE is set: only cached models are used"
        if offline
        else "may be asked; not tried"
    )
    yield _check("Hugging Face hub", "note" if offline else "ok", told)
