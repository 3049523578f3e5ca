"""Render from the code what documents repeat of it: the reference pages.

`python docs/render.py` writes them, `--check` says which are stale; a test runs the check.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

import redistill
from redistill.cli import app
from redistill.report.coverage import coverage, entries
from redistill.report.listing import listing
from redistill.report.recipe_page import index, page
from redistill.report.taxonomy_picture import as_svg
from redistill.store.format import find_format
from redistill.store.tables import render_page

ROOT = Path(__file__).parents[1]
_NOTE = "Rendered from the code by `make docs`; a test keeps it so.\n"


def pages() -> dict[Path, str]:
    """Return every rendered file by its path."""
    return {
        ROOT / "docs/tables.md": render_page(),
        ROOT / "docs/cli.md": _commands(),
        ROOT / "docs/python.md": _names(),
        ROOT / "docs/formats.md": _formats(),
        **{
            ROOT / f"docs/{kind}.md": _listed(kind, title)
            for kind, title in (
                ("operators", "Operators: the steps of a round"),
                ("judges", "Judges"),
                ("trainers", "Trainers"),
                ("views", "Views: what to ask in SQL"),
            )
        },
        **_recipes(),
    }


def _recipes() -> dict[Path, str]:
    """Return the pages of the recipes that ship, with the page and the picture that lead to them."""
    measured = ROOT / "benchmarks/results/recipes.json"
    figures = json.loads(measured.read_text("utf-8")) if measured.exists() else {}
    found, standings = entries(), coverage()
    return {
        ROOT / "docs/taxonomy.svg": as_svg(standings),
        ROOT / "docs/recipes/index.md": index(found, standings, figures),
        **{
            ROOT / f"docs/recipes/{entry.name}.md": page(entry, figures.get(entry.name))
            for entry in found
        },
    }


def _commands() -> str:
    """Return the page of the command line."""
    command = typer.main.get_command(app)
    parts = [
        "# Commands\n",
        _NOTE,
        "Exit codes: 0 done, 2 bad input, 3 busy, 4 environment, 75 try later.\n",
    ]
    for name, sub in _leaves("", command):
        parts.append(f"## redistill {name}\n\n{(sub.help or '').strip()}\n")
        parts.append("| argument | meaning |\n|---|---|")
        for parameter in sub.params:
            shown = ", ".join(f"`{o}`" for o in parameter.opts if o.startswith("-")) or (
                f"`{(parameter.name or '').upper()}`"
            )
            parts.append(f"| {shown} | {getattr(parameter, 'help', None) or ''} |")
        parts.append("")
    return "\n".join(parts)


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with the words that call it."""
    for name, sub in sorted(getattr(command, "commands", {}).items()):
        words = f"{path} {name}".strip()
        if getattr(sub, "commands", None):
            yield from _leaves(words, sub)
        else:
            yield words, sub


def _names() -> str:
    """Return the page of the public Python names."""
    parts = [
        "# Python\n",
        _NOTE,
        "`import redistill` loads nothing heavy; each name is loaded when used.\n",
    ]
    for name in sorted(set(redistill.__all__) - {"__version__"}):
        thing = getattr(redistill, name)
        home = import_module(thing.__module__).__name__
        parts.append(f"## {name}\n\nFrom `{home}`.\n\n{inspect.cleandoc(thing.__doc__ or '')}\n")
        if inspect.isfunction(thing):
            parts.append(f"```python\n{name}{inspect.signature(thing)}\n```\n")
    return "\n".join(parts)


def _formats() -> str:
    """Return the page of the formats, each with its manual."""
    parts = ["# Formats: what comes in and goes out\n", _NOTE]
    for entry in listing("formats", Path("runs")):
        manual = inspect.getdoc(type(find_format(entry["name"]))) or ""
        parts.append(f"## {entry['name']}\n\nHolds {entry['holds']}; {entry['for']}.\n\n{manual}\n")
    return "\n".join(parts)


def _listed(kind: str, title: str) -> str:
    """Return the page of a noun's built-ins, as `redistill list` knows them."""
    parts = [f"# {title}\n", _NOTE]
    for entry in listing(kind, Path("runs")):
        parts.append(f"## {entry['name']}\n\n{entry['about']}\n")
        fields = entry["fields"]
        whole = fields and "type" in fields[0]
        parts.append(
            "| key | type | default | meaning |\n|---|---|---|---|"
            if whole
            else "| column | meaning |\n|---|---|"
        )
        for field in fields:
            cells = [f"`{field['key']}`"]
            cells += [str(field["type"]), str(field["default"])] if whole else []
            cells.append(field["about"])
            parts.append(
                "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
            )
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    fresh = pages()
    stale = [
        path for path, text in fresh.items() if not path.exists() or path.read_text("utf-8") != text
    ]
    for path in stale:
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(fresh[path], "utf-8")
        print(("stale: " if check else "wrote ") + str(path.relative_to(ROOT)))
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
