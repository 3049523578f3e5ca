"""Finding operators, judges and trainers by name: built-in, installed, or `module:Attr`.

Nothing is registered at import: a built-in is a line of text in its noun's table, an installed one an
entry point of the group `redistill.<kind>`, and both are imported when a recipe first names them.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Mapping
from functools import reduce
from importlib import import_module
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ..errors import BadInput, EnvironmentProblem, Problem


def names(kind: str, builtins: Mapping[str, str]) -> list[str]:
    """Return every name that `find` knows without a colon, sorted."""
    installed = {point.name for point in entry_points(group=f"redistill.{kind}")}
    return sorted(installed | set(builtins))


def find(kind: str, name: str, builtins: Mapping[str, str], where: str) -> Any:
    """Return the class or callable that a name stands for.

    A built-in wins over an installed plugin of the same name, so that installing a package cannot
    change what a recipe means.

    Args:
        kind: the plural noun: `operators`, `judges` or `trainers`.
        name: a built-in's name, an entry point's name, or `module:Attr`.
        builtins: name -> "package.module:Attr".
        where: the key's path, for messages.

    Raises:
        BadInput: the name is unknown, or its module or attribute cannot be loaded.
        EnvironmentProblem: a built-in needs a package that is not installed.
    """
    if name in builtins:
        return _load_builtin(kind, name, builtins[name])
    for point in entry_points(group=f"redistill.{kind}"):
        if point.name == name:
            return _load(kind, name, point.value, where)
    if ":" in name:
        return _load(kind, name, name, where)
    known = names(kind, builtins)
    raise BadInput.at(
        where, f"unknown {_singular(kind)} {name!r}", did_you_mean(name, known, f"{kind} are")
    )


def one_of(spec: object, where: str) -> tuple[str, dict[str, Any]]:
    """Split `name` or `{name: {settings}}` into the name and its settings.

    Raises:
        BadInput: the spec is neither.
    """
    shape = "write a name, or one name with its settings: {name: {key: value}}"
    if isinstance(spec, str) and spec:
        return spec, {}
    if not isinstance(spec, Mapping):
        raise BadInput.at(where, f"{_shown(spec)} is no name", shape)
    if len(spec) != 1:
        given = ", ".join(str(key) for key in spec) or "none"
        raise BadInput.at(where, f"exactly one name is wanted, given: {given}", shape)
    [(name, settings)] = spec.items()
    if not isinstance(name, str) or not name:
        raise BadInput.at(where, f"{_shown(name)} is no name", shape)
    if settings is None:
        return name, {}
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise BadInput.at(
            f"{where}.{name}", f"settings are a mapping of names, not {_shown(settings)}", shape
        )
    return name, dict(settings)


def spec_of(thing: Any, builtins: Mapping[str, str]) -> Any:
    """Return the spec of an object, as YAML would say it; a spec is returned as it is.

    So `Score(judge=Verifier())` and `Score(judge=my_function)` are the recipe's own words.
    """
    if isinstance(thing, BaseModel):
        path = f"{type(thing).__module__}:{type(thing).__qualname__}"
        name = next((n for n, p in builtins.items() if p == path), path)
        settings = thing.model_dump(mode="json", exclude_defaults=True)
        return {name: settings} if settings else name
    if callable(thing):
        return f"{thing.__module__}:{thing.__qualname__}"
    return thing


def build(kind: str, spec: object, builtins: Mapping[str, str], where: str) -> Any:
    """Return what a spec describes: a validated instance of a pydantic class, or a callable as it is.

    Raises:
        BadInput: with every problem of the spec at once.
        EnvironmentProblem: a built-in needs a package that is not installed.
    """
    name, settings = one_of(spec, where)
    target = find(kind, name, builtins, where)
    inner = f"{where}.{name}" if isinstance(spec, Mapping) else where
    if isinstance(target, type):
        if not issubclass(target, BaseModel):
            told = "make an object of it in the module, and name that"
            raise BadInput.at(where, f"{name} is a class, but no pydantic model", told)
        try:
            return target.model_validate(settings)
        except ValidationError as error:
            raise BadInput(*problems_of(error, inner, target)) from error
    # A judge may be an object that is ready; `judge.load` says whether it is one.
    if not callable(target) and kind != "judges":
        raise BadInput.at(where, f"{name} is neither a class nor a callable")
    if settings:
        raise BadInput.at(inner, f"{name} is no class and takes no settings")
    return target


def problems_of(
    error: ValidationError, where: str, fields: type[BaseModel] | Iterable[str]
) -> list[Problem]:
    """Turn every error of a pydantic validation into one `Problem`, in pydantic's order.

    Args:
        error: what pydantic raised.
        where: path of the value that was validated; empty for the top.
        fields: the model, or the known keys; unknown keys are compared with them. With a model,
            nested models are followed, and the branches of a union are told as one problem.
    """
    model, top = (fields, list(_keys(fields))) if isinstance(fields, type) else (None, list(fields))
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        steps, known = _follow(detail["loc"], model, top)
        what, hint = _told(detail, known)
        place = _join(where, steps)
        if earlier := found.get(place):
            what = f"{earlier.what}, or: {what}" if what != earlier.what else what
        found[place] = Problem(place, what, hint)
    return list(found.values())


def did_you_mean(given: str, known: Iterable[str], lead: str = "known:") -> str:
    """Return a hint that names the nearest known word, and all of them."""
    every = list(known)
    near = difflib.get_close_matches(given.casefold(), every, n=1, cutoff=0.6)
    listed = f"{lead} {', '.join(every)}" if every else "none is known"
    return f"did you mean {near[0]}? {listed}" if near else listed


def _load_builtin(kind: str, name: str, path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == __name__.partition(".")[0]:
            raise
        raise EnvironmentProblem(
            f"the {_singular(kind)} {name} needs the package {error.name}, which is not installed; "
            "pip install 'redistill[train]' brings what models and training need"
        ) from error


def _load(kind: str, name: str, path: str, where: str) -> Any:
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise BadInput.at(where, f"{_singular(kind)} {name!r}", "write it as module:Attr")
    try:
        loaded = import_module(module)
    except Exception as error:  # whatever a user's module raises is the user's to read
        last = traceback.format_exception_only(error)[-1].strip()
        raise BadInput.at(
            where,
            f"{_singular(kind)} {name!r}: importing {module} failed: {last}",
            "the module must be installed, or lie in a folder on PYTHONPATH",
        ) from error
    try:
        return reduce(getattr, attribute.split("."), loaded)
    except AttributeError:
        hint = did_you_mean(attribute, [n for n in vars(loaded) if not n.startswith("_")], "it has")
        raise BadInput.at(where, f"module {module} has no {attribute!r}", hint) from None


def _follow(
    loc: tuple[int | str, ...], model: type[BaseModel] | None, top: list[str]
) -> tuple[list[int | str], list[str]]:
    """Walk a pydantic location: the steps that the user wrote, and the keys known at its end.

    Pydantic puts a union's branch (`int`, a model's name) into the location, which no user wrote.
    """
    steps: list[int | str] = []
    known = top
    keyed = model is None
    branch = False
    for step in loc:
        field = _keys(model).get(str(step)) if model else None
        if branch and isinstance(step, str):
            branch = False
            continue
        if field is not None:
            branch = _is_union(field.annotation)
            model, keyed = _model_in(field.annotation), _takes_keys(field.annotation)
            known = list(_keys(model)) if model else []
        elif isinstance(step, str) and (step == model.__name__ if model else not keyed):
            continue
        steps.append(step)
    return steps, known


def _told(detail: ErrorDetails, known: Iterable[str]) -> tuple[str, str]:
    """Return (what, hint) of one pydantic error."""
    if detail["type"] == "extra_forbidden":
        return "unknown key", did_you_mean(str(detail["loc"][-1]), known)
    if detail["type"] == "missing":
        return "is missing", ""
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    return f"{message}, given: {_shown(detail['input'])}", ""


def _join(where: str, steps: Iterable[int | str]) -> str:
    """Return a path as people write it: `round[2].score.judge`."""
    path = where
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    return path


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a model's fields by the key that a user writes."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the one pydantic model that an annotation holds, directly or inside Optional or list."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    inside = [model for part in get_args(annotation) if (model := _model_in(part))]
    return inside[0] if len(inside) == 1 else None


def _is_union(annotation: Any) -> bool:
    """Tell whether an annotation has several branches; pydantic names none where one of two is None."""
    branches = [part for part in get_args(annotation) if part is not NoneType]
    return get_origin(annotation) in (Union, UnionType) and len(branches) > 1


def _takes_keys(annotation: Any) -> bool:
    """Tell whether an annotation holds a mapping, whose keys are the user's own words."""
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return True
    return any(_takes_keys(part) for part in get_args(annotation))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _singular(kind: str) -> str:
    return kind.removesuffix("s")
