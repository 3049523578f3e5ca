"""YAML that remembers its lines, and refuses what YAML usually lets pass in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import yaml

from ..errors import BadInput, Problem
from ..store.text import storable

Path = tuple[str | int, ...]
T = TypeVar("T")
_DEPTH = 40


def decode(data: bytes, name: str) -> str:
    """Return the text of a file.

    Raises:
        BadInput: it is no UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"no UTF-8: {error.reason} at byte {error.start}"
        raise BadInput.at(name, what, "a recipe is a text file") from error


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """Read a YAML mapping and the line of each of its keys and items.

    Args:
        text: the document.
        name: what to call it in messages.

    Raises:
        BadInput: no YAML, no mapping, a key given twice, an alias, or nested beyond reason.
    """
    text = text.removeprefix("\ufeff")
    try:
        # A few bytes of aliases can stand for gigabytes, and a recipe has no use for them.
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                line = token.start_mark.line + 1
                raise BadInput.at(
                    f"{name}:{line}", f"*{token.value}: aliases are not read", "write it out"
                )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data: dict[str, Any] = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise BadInput.at(f"{name}{line}", f"no valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter: 2026-13-45 is read as a date
        raise BadInput.at(name, f"no valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise BadInput.at(name, "nested too deeply") from error
    if not isinstance(node, yaml.MappingNode):
        raise BadInput.at(name, "a recipe is a mapping of keys", "`redistill init` writes one")
    lines: dict[Path, int] = {}
    problems: list[Problem] = []
    _walk(node, (), lines, problems, name)
    if problems:
        raise BadInput(*problems)
    return data, lines


def _walk(
    node: yaml.Node, path: Path, lines: dict[Path, int], problems: list[Problem], name: str
) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > _DEPTH:
        problems.append(Problem(f"{name}:{node.start_mark.line + 1}", "nested too deeply"))
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            word = str(key.value)
            line = key.start_mark.line + 1
            if (*path, word) in lines:
                first = lines[(*path, word)]
                problems.append(
                    Problem(f"{name}:{line} {word}", f"key given twice, first in line {first}")
                )
                continue
            lines[(*path, word)] = line
            _walk(value, (*path, word), lines, problems, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, problems, name)
    elif storable(node.value) != node.value:
        where = f"{name}:{node.start_mark.line + 1}"
        problems.append(
            Problem(where, "holds half of a surrogate pair", "write the character itself")
        )


def line_of(where: str, lines: Mapping[Path, T], *, exact: bool = False) -> T | None:
    """Return the line, or what else stands for it, of a dotted path such as `round[2].score.judge`.

    Args:
        where: the path.
        lines: of each key and item.
        exact: else the nearest parent's will do.
    """
    parts = where.replace("]", "").replace("[", ".#").split(".")
    path = [
        int(part[1:]) if part[1:].isdigit() and part[0] == "#" else part for part in parts if part
    ]
    # A key of its own may hold dots, as `score.judge` under a stage's `set` does.
    for end in range(len(path), len(path) - 1 if exact else 0, -1):
        for start in range(end - 1, -1, -1):
            key = ".".join(str(part) for part in path[start:end])
            found = (*path[:end],) if start == end - 1 else (*path[:start], key)
            if found in lines:
                return lines[found]
    return None
