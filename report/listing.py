"""What there is to choose from: operators, judges, trainers, recipes, models, views, runs."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, RedistillError
from .console import clean, interval

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo
    from rich.console import Console

Row = dict[str, Any]


def listing(what: str, runs: Path) -> list[Row]:
    """Return what there is of a kind, each with `name` and `about`.

    Operators, judges, trainers and views have `fields` too: `key type default about`. Views have the
    `version` of their interface, recipes their `elicitation`, `objective` and `paper`.

    Args:
        what: operators, judges, trainers, recipes, models, views, formats or runs.
        runs: folder of all runs.

    Raises:
        BadInput: there is no such kind.
    """
    kinds: dict[str, Callable[[], list[Row]]] = {
        "operators": lambda: _plugins("operators"),
        "judges": lambda: _plugins("judges"),
        "trainers": lambda: _plugins("trainers"),
        "recipes": _recipes,
        "models": _models,
        "views": _views,
        "formats": _formats,
        "runs": lambda: _runs(runs),
    }
    if what not in kinds:
        from ..agents.plugins import did_you_mean

        raise BadInput.at("", f"nothing to list is called {what!r}", did_you_mean(what, kinds))
    return kinds[what]()


def show_listing(console: Console, found: list[Row]) -> None:
    """Print a listing: fields below their owner where there are any, else one table."""
    from rich.table import Table
    from rich.text import Text

    if not found:
        console.print("there is none", highlight=False)
        return
    if "fields" in found[0]:
        for row in found:
            console.print(Text(row["name"], style="bold"), Text(clean(row["about"])))
            if row["fields"]:
                console.print(_fields_table(row["fields"]))
        if "version" in found[0]:
            console.print(f"version {found[0]['version']} of the views", highlight=False)
        return
    table = Table()
    for key in found[0]:
        table.add_column(key, no_wrap=key == "name")
    for row in found:
        table.add_row(
            *(Text(clean("-" if value is None else str(value))) for value in row.values())
        )
    console.print(table)


def _fields_table(fields: list[Row]) -> Any:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    keys = list(fields[0])
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key in keys:
        table.add_column(key, style="cyan" if key == "key" else "", overflow="fold")
    for field in fields:
        table.add_row(*(Text(clean(field[key])) for key in keys))
    return Padding(table, (0, 0, 1, 4))


# -- operators, judges, trainers


def _plugins(kind: str) -> list[Row]:
    from ..agents import plugins
    from ..agents.judge import BUILTINS as JUDGES
    from ..agents.operator import BUILTINS as OPERATORS
    from ..trainers.trainer import BUILTINS as TRAINERS

    builtins: Mapping[str, str] = {"operators": OPERATORS, "judges": JUDGES, "trainers": TRAINERS}[
        kind
    ]
    rows = []
    for name in plugins.names(kind, builtins):
        try:
            rows.append(_plugin(name, plugins.find(kind, name, builtins, name)))
        except RedistillError as error:
            rows.append({"name": name, "about": f"cannot be loaded: {error}", "fields": []})
    return rows


def _plugin(name: str, found: Any) -> Row:
    """Describe a class by its docstring's first line and its fields, a callable by its docstring."""
    about = (inspect.getdoc(found) or "").partition("\n")[0]
    fields = describe_fields(found) if hasattr(found, "model_fields") else []
    return {"name": name, "about": about, "fields": fields}


def describe_fields(model: type[BaseModel]) -> list[Row]:
    """Return the settings of a pydantic class, as a recipe writes them.

    Each row: `key`, `type` with its bounds, `default` (`required` where there is none), `about`.
    """
    told = _docstrings(model)
    rows = []
    for name, field in model.model_fields.items():
        rows.append(
            {
                "key": field.alias or name,
                "type": _type_of(field),
                "default": "required" if field.is_required() else _default_of(field),
                "about": field.description or told.get(name, ""),
            }
        )
    return rows


def _docstrings(model: type[Any]) -> dict[str, str]:
    """Return the text that stands below each field in the source, the base classes' fields included."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except (OSError, TypeError):
            continue  # a class of C, or one that was made at run time
        tree = ast.parse(source).body[0]
        if isinstance(tree, ast.ClassDef):
            found |= _docstrings_of(tree)
    return found


def _docstrings_of(tree: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, following in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[field.target.id] = " ".join(following.value.value.split())
    return found


def _type_of(field: FieldInfo) -> str:
    annotation = field.annotation
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    text = annotation.__name__ if plain and annotation else str(annotation)
    text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", text)
    # A validator is shown with its address, which is another one in every process.
    text = re.sub(r"\bAnnotated\[(.+?), \w+\([^()]*\)\]", r"\1", text)
    bounds = []
    for part in field.metadata:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (bound := getattr(part, name, None)) is not None:
                bounds.append(f"{sign} {bound:g}")
    return ", ".join([text.replace("NoneType", "None"), *bounds])


def _default_of(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, str):
        return default or "-"
    if default is None:
        return "-"
    return str(list(default) if isinstance(default, tuple) else default)


# -- the others


def _recipes() -> list[Row]:
    from ..agents.extending import shipped, shipped_text
    from .header import header_of

    rows: list[Row] = []
    for name in shipped():
        text = shipped_text(name)
        header = header_of(text, f"{name}.yaml")
        about = header.sentence if header else text.partition("\n")[0].lstrip("# ")
        row: Row = dict.fromkeys(("name", "elicitation", "objective", "arxiv", "about"))
        row |= {"name": name, "about": about}
        if header:
            six = header.six()
            row |= {key: six[key] for key in ("elicitation", "objective")}
            row["arxiv"] = ", ".join(paper.arxiv for paper in header.papers) or None
        rows.append(row)
    return rows


def _models() -> list[Row]:
    from ..policies import catalog

    return [{"name": e.name, "licence": e.licence, "about": e.note} for e in catalog.known()]


def _views() -> list[Row]:
    from ..store.views import BY_NAME, JUDGE_COLUMN, VERSION

    rows = []
    for view in BY_NAME.values():
        fields = [{"key": key, "about": about} for key, about in view.columns.items()]
        if view.name == "answers":
            fields.append({"key": "(judge)", "about": JUDGE_COLUMN})
        rows.append(
            {"name": view.name, "version": VERSION, "about": view.comment, "fields": fields}
        )
    return rows


def _formats() -> list[Row]:
    from ..store.exports import KINDS
    from ..store.format import BUILTINS, find_format

    rows = []
    for name in BUILTINS:
        form = find_format(name)
        manual = (inspect.getdoc(type(form)) or "").partition("\n")[0]
        held = " ".join(what for what, kind in KINDS.items() if kind in form.reads)
        ways = "both ways" if form.writes else "import"
        rows.append({"name": name, "holds": held, "for": ways, "about": manual})
    return rows


def _runs(runs: Path) -> list[Row]:
    from ..store.store import SNAPSHOT

    # A run of imports has a snapshot, and no recipe.
    return [
        _run(folder)
        for folder in sorted(runs.glob("*"))
        if (folder / "recipe.yaml").is_file() or (folder / SNAPSHOT).is_file()
    ]


def _run(folder: Path) -> Row:
    from .summary import summary

    try:
        found = summary(folder)
    except BadInput:
        return {"name": folder.name, "state": "begun", "rounds": 0, "gain": None}
    except RedistillError as error:
        return {"name": folder.name, "state": f"unreadable: {error}", "rounds": None, "gain": None}
    gain = found["gain"] if found["gain"] and found["gain"]["n"] else None
    return {
        "name": folder.name,
        "state": found["state"],
        "rounds": sum(1 for row in found["rounds"] if row["decision"]),
        "gain": interval(gain) if gain else None,
    }
