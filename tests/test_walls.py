"""The walls of the house: who may import whom, what costs nothing to import, and how long a thing may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import redistill

ROOT = Path(redistill.__file__).resolve().parent
PACKAGE = "redistill"
FLOORS = {
    "types": 0,
    "errors": 0,
    "hashing": 0,
    "store": 1,
    "policies": 1,
    "trainers": 2,
    "agents": 3,
    "": 4,
    "cli": 4,
    "commands": 4,
    "report": 4,
    "testing": 4,
}
FORBIDDEN = {
    ("store", "policies"),
    ("policies", "store"),
    ("trainers", "store"),
    ("trainers", "agents"),
}
MAY_IMPORT_TORCH = {
    "policies.transformers",
    "policies.sampler",
    "policies.engine",
    "policies.batch",
    "policies.cpu",
    "policies.reward",
    "policies.convert",
    "trainers.supervised",
    "trainers.preference",
    "trainers.tuning",
    "trainers.losses",
    "trainers.sharing",
    "trainers.answers",
    "trainers.guarded",
    "trainers.checkpoints",
    "trainers.weights",
    "trainers.rewards",
    "trainers.rollouts",
    "trainers.rewarded",
    "trainers.policy_losses",
    "trainers.distilled",
    "trainers.divergences",
    "trainers.heads",
    "trainers.across",
    "testing.tiny",
}
"""Imported only where a model is loaded or trained; `test_torch_is_imported_lazily` keeps it so."""
GIVES_DATASETS = "store.arrow"
"""Imports the library `datasets`, inside a function."""
HEAVY = {"torch", "trl", "transformers", "peft", "accelerate", "datasets"}
LONGEST_FUNCTION = 80
LONGEST_MODULE = 600


@dataclass(frozen=True)
class Import:
    """One import statement of a module."""

    target: str
    line: int
    top: bool
    """Whether it runs when the module is imported."""


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> Mapping[str, ast.Module]:
    """Return every module of the package, parsed."""
    folders = ["", *(f for f in FLOORS if f and (ROOT / f).is_dir())]
    files = [f for folder in folders for f in (ROOT / folder).glob("**/*.py" if folder else "*.py")]
    # What makes data and weights lies beside them and is no module of the package.
    return {
        _name(file): ast.parse(file.read_text("utf-8"))
        for file in files
        if "weights" not in file.relative_to(ROOT).parts
    }


def _is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/") / "__init__.py").is_file()


def _imports(module: str) -> Iterator[Import]:
    """Yield the imports of a module, ours as names inside the package with a leading dot."""
    lazy = {
        id(inner)
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(_ours(alias.name), node.lineno, id(node) not in lazy)
        elif isinstance(node, ast.ImportFrom):
            for target in _targets(module, node):
                yield Import(target, node.lineno, id(node) not in lazy)


def _ours(name: str) -> str:
    return "." + name[len(PACKAGE) + 1 :] if name.partition(".")[0] == PACKAGE else name


def _targets(module: str, node: ast.ImportFrom) -> list[str]:
    if node.level == 0:
        base = _ours(node.module or "")
    else:
        parts = module.split(".") if module else []
        keep = len(parts) - node.level + (1 if _is_package(module) else 0)
        base = "." + ".".join([*parts[:keep], *(node.module or "").split(".")]).strip(".")
    if not base.startswith("."):
        return [base]
    # `from ..policies import catalog` is an import of the module `policies.catalog`.
    inner = [f"{base}.{alias.name}".replace("..", ".") for alias in node.names]
    return [name if name[1:] in modules() else base for name in inner]


def _floor(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", modules())
def test_nothing_imports_upward(module: str) -> None:
    """A floor imports its own and lower ones, lazily or not; store and policies do not know each other."""
    here = _floor(module)
    wrong = [
        f"line {found.line}: {found.target}"
        for found in _imports(module)
        if found.target.startswith(".")
        and found.target != "."  # the version; the next test looks at it
        and (FLOORS[there := _floor(found.target[1:])] > FLOORS[here] or (here, there) in FORBIDDEN)
    ]
    assert wrong == []


def test_only_the_version_is_read_from_the_top() -> None:
    """`from .. import x` reaches the top of the house; only `__version__` may be taken from there."""
    wrong = [
        f"{module}:{node.lineno} {alias.name}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias, target in zip(node.names, _targets(module, node), strict=False)
        if target == "." and alias.name != "__version__"
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module", [m for m in modules() if _floor(m) in ("store", "types", "errors", "hashing")]
)
def test_the_store_needs_no_model_and_no_graph(module: str) -> None:
    """Nobody needs torch or langgraph to read facts, not even inside a function.

    Who asks for a `datasets.Dataset` loads that library, and no torch with it.
    """
    found = list(_imports(module))
    targets = {
        each.target.partition(".")[0] for each in found if each.top or module != GIVES_DATASETS
    }
    assert not targets & (HEAVY | {"langgraph", "langchain_core"})
    inside = {each.target.partition(".")[0] for each in found}
    assert not inside & (HEAVY - {"datasets"})


@pytest.mark.parametrize("module", [m for m in modules() if m not in MAY_IMPORT_TORCH])
def test_torch_is_imported_lazily(module: str) -> None:
    """Only modules that hold a model import torch at the top, and nobody imports those at the top."""
    for found in _imports(module):
        if found.top:
            assert found.target.partition(".")[0] not in HEAVY, f"line {found.line}"
            assert found.target[1:] not in MAY_IMPORT_TORCH, f"line {found.line}"


def test_no_import_circles() -> None:
    """No module is imported, through others, by itself."""
    graph = {
        module: sorted(
            {
                found.target[1:]
                for found in _imports(module)
                if found.top and found.target.startswith(".") and found.target[1:] in modules()
            }
            - {module, ""}
        )
        for module in modules()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for following in graph[module]:
                visit(following, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_walls_would_be_seen_to_fall() -> None:
    """The rules above look at something: they find the imports that are known to be there."""
    found = {(i.target, i.top) for i in _imports("agents.opening")}
    assert (".store.store", True) in found
    assert (".policies.catalog", True) in found
    engines = {(i.target, i.top) for i in _imports("agents.engines")}
    assert (".policies.transformers", False) in engines
    assert len(modules()) > 40


@pytest.mark.parametrize("module", modules())
def test_no_error_is_swallowed(module: str) -> None:
    """No bare `except`, and none that only passes: what may be ignored is said with `suppress`."""
    wrong = [
        f"line {node.lineno}"
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or all(_says_nothing(inner) for inner in node.body))
    ]
    assert wrong == []


def _says_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


@pytest.mark.parametrize("module", modules())
def test_a_reader_can_hold_it_in_mind(module: str) -> None:
    """Functions stay under 80 lines and modules under 600."""
    tree = modules()[module]
    last = max((getattr(node, "end_lineno", 0) or 0 for node in ast.walk(tree)), default=0)
    assert last < LONGEST_MODULE
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 >= LONGEST_FUNCTION
    ]
    assert long == []
