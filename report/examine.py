"""What `redistill doctor` looks at: this machine, and whether a run's store holds only true facts."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from .. import __version__
from ..errors import RedistillError, StoreProblem
from ..policies.revision import MANIFEST, Revision
from ..store.query import read_rows
from ..store.table import Table
from ..store.tables import TABLES
from .console import clean

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["ok", "note", "bad"]
Check = dict[str, str]

_CORE = ("duckdb", "langgraph", "pyarrow", "pydantic")
_TRAIN = ("torch", "transformers", "trl")
_LEAST_DISK = 5e9
"""Bytes that a few revisions of a small student take."""
_LEAST_MEMORY = 4e9
"""Bytes in which the smallest student of the catalog trains."""


def examine(run_folder: Path | None, cache: Path) -> list[Check]:
    """Examine this machine, and a run where one is given.

    Each check: `name`, `state` (ok; note, which stops nothing; bad), `detail`, `fix`.

    Args:
        run_folder: the run to examine too.
        cache: where models are kept.

    Raises:
        BadInput: there is no such run.
    """
    checks = [*_machine(), *_packages(), *_models(cache)]
    return checks + (list(_run(run_folder)) if run_folder else [])


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


def _check(name: str, state: State, detail: str, fix: str = "") -> Check:
    return {"name": name, "state": state, "detail": detail, "fix": fix}


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


def _enough(name: str, free: float, least: float, fix: str) -> Check:
    enough = free >= least
    return _check(
        name, "ok" if enough else "note", f"{free / 1e9:.1f} GB free", "" if enough else fix
    )


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


# -- a run


def _run(folder: Path) -> Iterator[Check]:
    """Examine a run; what cannot be read ends the examination."""
    try:
        [run] = read_rows(folder, "SELECT name, key, redistill_version FROM run")
    except StoreProblem as error:
        fix = "`redistill resume` writes a new snapshot, if the live file is whole"
        yield _check("snapshot", "bad", str(error), fix)
        return
    yield _check("snapshot", "ok", f"{run['name']}, made by redistill {run['redistill_version']}")
    yield _recipe(folder, run)
    for examine_part in (_keys, _parents, _ledger, _splits, _champions, _revisions):
        yield from _tried(examine_part, folder)


def _tried(examine_part: Callable[[Path], Iterator[Check]], folder: Path) -> list[Check]:
    """Return a part's checks, or the one check that says that its rows cannot be read."""
    import duckdb

    try:
        return list(examine_part(folder))
    except (duckdb.Error, StoreProblem) as error:
        first = str(error).strip().partition("\n")[0]
        return [_check("store", "bad", first, "restore the store from a copy")]


def _recipe(folder: Path, run: dict[str, Any]) -> Check:
    from ..agents.recipe import load_recipe

    file = folder / "recipe.yaml"
    try:
        recipe = load_recipe(file.read_text("utf-8"), file.name, base=folder)
    except (OSError, RedistillError) as error:
        first = str(error).partition("\n")[0]
        return _check("recipe", "note", f"cannot be loaded here: {first}", "a resume would need it")
    if recipe.key != run["key"] and run["redistill_version"] != __version__:
        told = f"this redistill is {__version__}, and reads the recipe otherwise"
        return _check("recipe", "note", told, f"redistill {run['redistill_version']} can resume it")
    if recipe.key != run["key"]:
        told = "recipe.yaml or a file in inputs/ is not what this run was made with"
        return _check("recipe", "bad", told, "put back what was there; the store keeps the recipe")
    return _check("recipe", "ok", "recipe.yaml and inputs/ are what the run was made with")


def _keys(folder: Path) -> Iterator[Check]:
    """Find rows that are there twice: no index keeps them unique, see `store/table.py`."""
    found = []
    for table in TABLES:
        key = ", ".join(_whole_key(table))
        twice = f"SELECT {key} FROM {table.name} GROUP BY {key} HAVING count(*) > 1"  # noqa: S608
        sql = f"SELECT count(*) AS n FROM ({twice})"  # noqa: S608
        if count := read_rows(folder, sql)[0]["n"]:
            found.append(f"{table.name}: {count}")
    detail = (
        f"keys that are there twice: {'; '.join(found)}" if found else "every row is there once"
    )
    fix = "restore the store from a copy" if found else ""
    yield _check("unique rows", "bad" if found else "ok", detail, fix)


def _whole_key(table: Table) -> tuple[str, ...]:
    """Return the columns that make a row unique; content and weights may come again in a later round."""
    by_content = table.name in ("content", "revision")
    return (*table.key, "round") if by_content else table.key


_PARENTS: tuple[tuple[str, str, str], ...] = (
    ("completion", "prompt_id", "prompt.id"),
    ("completion", "rendered_prompt_id", "rendered_prompt.id"),
    ("completion", "parent_id", "completion.id"),
    ("completion", "revision", "revision.id"),
    ("completion_tokens", "completion_id", "completion.id"),
    ("judgement", "completion_id", "completion.id"),
    ("pair", "prompt_id", "prompt.id"),
    ("pair", "chosen_id", "completion.id"),
    ("pair", "rejected_id", "completion.id"),
    ("selection", "completion_id", "completion.id"),
    ("training_row", "completion_id", "completion.id"),
    ("training_row", "rejected_id", "completion.id"),
    ("training_metric", "training_run_id", "training_run.id"),
    ("training_run", "start_revision", "revision.id"),
    ("training_run", "revision", "revision.id"),
    ("evaluation", "revision", "revision.id"),
    ("decision", "champion", "revision.id"),
    ("decision", "challenger", "revision.id"),
    ("revision", "parent", "revision.id"),
)


def _parents(folder: Path) -> Iterator[Check]:
    """Find rows that name a row which is not there."""
    found = []
    others = _other_roles(folder)
    for child, column, parent in _PARENTS:
        table, key = parent.split(".")
        # What another model than the student says has that model's revision, which is no row here.
        spoken = (child, column) == ("completion", "revision")
        own = "AND NOT list_contains(?, c.role)" if spoken else ""
        sql = (
            f"SELECT count(*) AS n FROM {child} c WHERE c.{column} IS NOT NULL {own} "  # noqa: S608
            f"AND NOT EXISTS (SELECT 1 FROM {table} p WHERE p.{key} = c.{column})"
        )
        if count := read_rows(folder, sql, [others] if spoken else [])[0]["n"]:
            found.append(f"{child}.{column}: {count}")
    detail = (
        f"rows without a parent: {'; '.join(found)}" if found else "every row's parents are there"
    )
    fix = "restore the store from a copy" if found else ""
    yield _check("parents", "bad" if found else "ok", detail, fix)


def _other_roles(folder: Path) -> list[str]:
    """Return the roles of a run that are bound to another model than the student."""
    recipe = json.loads(read_rows(folder, "SELECT recipe FROM run")[0]["recipe"])
    roles: dict[str, Any] = recipe.get("roles") or {}
    return [name for name, role in roles.items() if role.get("policy", "student") != "student"]


_SENT_AGAIN = ("content", "rendered_prompt", "revision", "event", "training_metric")
"""Tables whose rows may be sent more than once, and are written once."""


def _ledger(folder: Path) -> Iterator[Check]:
    """Compare the ledger of batches with the rows that are there."""
    sent: dict[str, int] = {}
    for row in read_rows(folder, "SELECT counts FROM write_batch"):
        for name, count in json.loads(row["counts"]).items():
            sent[name] = sent.get(name, 0) + count
    found = []
    for table in TABLES:
        if table.name == "write_batch":
            continue
        there = read_rows(folder, f"SELECT count(*) AS n FROM {table.name}")[0]["n"]  # noqa: S608
        told = sent.get(table.name, 0)
        lost = (there < told and table.name not in _SENT_AGAIN) or (told > 0 and there == 0)
        if there > told or lost:
            found.append(f"{table.name}: {there} rows, {told} in the ledger")
    detail = "; ".join(found) or "its counts fit the rows"
    fix = "something else has written to the store; restore it from a copy" if found else ""
    yield _check("ledger", "bad" if found else "ok", detail, fix)


def _splits(folder: Path) -> Iterator[Check]:
    """Find a question that is in two splits, and a training row that is not of train."""
    [twice] = read_rows(
        folder,
        "SELECT count(*) AS n FROM (SELECT messages_hash FROM prompt GROUP BY messages_hash "
        "HAVING count(DISTINCT split) > 1)",
    )
    [leaked] = read_rows(
        folder,
        "SELECT count(*) AS n FROM training_row t JOIN prompt p ON p.id = t.prompt_id "
        "WHERE p.split <> 'train'",
    )
    if leaked["n"] or twice["n"]:
        detail = (
            f"{twice['n']} questions are in two splits, {leaked['n']} training rows are held out"
        )
        yield _check("splits", "bad", detail, "the evidence of this run proves nothing; split anew")
    else:
        yield _check("splits", "ok", "train, heldout and test share no question")


def _champions(folder: Path) -> Iterator[Check]:
    """Walk the decisions: each round starts from the one champion that the rounds before have made."""
    champion = read_rows(folder, "SELECT student FROM run")[0]["student"]
    rows = read_rows(
        folder,
        "SELECT r.round, r.champion, d.decision, d.challenger, d.champion AS before "
        "FROM round r LEFT JOIN decision d ON d.round = r.round ORDER BY r.round",
    )
    wrong = []
    for row in rows:
        if row["champion"] != champion or row["before"] not in (None, champion):
            wrong.append(f"round {row['round']} did not start from the champion")
        if row["decision"] == "promoted":
            champion = row["challenger"]
    rounds = [row["round"] for row in rows]
    wrong += [
        f"round {r} was decided twice" for r in sorted({r for r in rounds if rounds.count(r) > 1})
    ]
    detail = "; ".join(wrong) or f"one: {champion[:8]}"
    fix = "restore the store from a copy" if wrong else ""
    yield _check("champion", "bad" if wrong else "ok", detail, fix)


def _revisions(folder: Path) -> Iterator[Check]:
    """Read every revision's files and compare them with their manifest."""
    rows = read_rows(folder, "SELECT DISTINCT id, folder FROM revision ORDER BY id")
    for row in rows:
        try:
            revision = Revision.read(folder / row["folder"])
            revision.verify_files()
        except (StoreProblem, OSError) as error:
            fix = "`redistill resume` trains a lost challenger anew; a lost champion is needed to go on"
            yield _check(f"revision {row['id'][:8]}", "bad", str(error), fix)
            continue
        if revision.id != row["id"]:
            told = f"its folder holds {revision.id[:8]}"
            yield _check(f"revision {row['id'][:8]}", "bad", told, "restore the folder from a copy")
    yield _check("revisions", "ok", f"{len(rows)} read")
