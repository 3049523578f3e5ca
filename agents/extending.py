"""The noun *base*: the recipe that another one extends, and what the other one changes of it.

    extends: NAME_OR_FILE
    set: {sample.k: 8}

What comes out is plain data, as if it had been written in one file; each key of it keeps the place where it
is written. The base may extend a recipe itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import BadInput, Problem
from ..policies import catalog
from . import inputs, yaml_lines
from .plugins import did_you_mean
from .prompts import PromptSource, ships
from .roles import STUDENT
from .stages import set_in, step_name, with_setting

EXTENDS, SET = "extends", "set"
KEYS = (EXTENDS, SET)
"""Keys of a recipe's file that are gone when it is read."""
_BY_KEY = ("prompts", "roles", "loop", "execution")
"""Mappings of which the extending recipe replaces single keys; of `roles`, whole roles."""
_COURSE = ("round", "stages")
Places = dict[yaml_lines.Path, str]


@dataclass(frozen=True, slots=True)
class Written:
    """A recipe as plain data, and where each of its keys and items stands: `file:line`."""

    data: dict[str, Any]
    places: Places


@dataclass(frozen=True, slots=True)
class _Source:
    """A recipe's text."""

    text: str
    name: str
    """What messages call it."""
    folder: Path
    """That its paths are relative to."""
    key: str
    """What no other recipe has: by it a circle is found."""


def shipped() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("redistill") / "recipes"
    return sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )


def shipped_text(name: str) -> str:
    """Return a recipe that comes with the package as it is written, comments included."""
    return (resources.files("redistill") / "recipes" / f"{name}.yaml").read_text("utf-8")


def run_name(stem: str) -> str:
    """Return a file's name as it can name a run."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run"


def read(text: str, name: str, base: Path, own: Collection[str]) -> Written:
    """Read a recipe with all that it extends.

    Args:
        text: YAML.
        name: what to call the file in messages.
        base: the folder that its paths are relative to.
        own: keys that a recipe says for itself alone: its base's are left out.

    Raises:
        BadInput: no YAML, no such base, bases that lead back to themselves, or a setting of no step.
    """
    file = base / Path(name).name
    key = str(file.resolve()) if file.is_file() else name
    return _whole((_Source(text, name, base, key),), own)


def _whole(chain: tuple[_Source, ...], own: Collection[str]) -> Written:
    """Read the last recipe of a chain, each of which extends the next."""
    source = chain[-1]
    data, lines = yaml_lines.parse(source.text, source.name)
    written = Written(data, {path: f"{source.name}:{line}" for path, line in lines.items()})
    if EXTENDS not in data:
        if SET in data:
            at = f"{written.places[SET,]} {SET}"
            raise BadInput.at(at, "changes what is extended, and nothing is", "change the step")
        return written
    found = _base(data.pop(EXTENDS), source, f"{written.places[EXTENDS,]} {EXTENDS}")
    if found.key in [other.key for other in chain]:
        circle = " -> ".join([*(other.name for other in chain), found.name])
        raise BadInput.at(f"{written.places[EXTENDS,]} {EXTENDS}", f"goes in a circle: {circle}")
    below = _whole((*chain, found), own)
    if found.folder != source.folder:
        below = Written(_Move(found.folder, source.folder).recipe(below.data), below.places)
    whole = _merged(written, below, own)
    if source.name.endswith((".yaml", ".yml")):
        whole.data.setdefault("name", run_name(Path(source.name).stem))
    _check_round(written, whole)
    return _changed(whole)


def _base(spec: Any, source: _Source, where: str) -> _Source:
    """Find the recipe that one extends.

    Raises:
        BadInput: there is none of that name, or it cannot be read.
    """
    names = shipped()
    if not isinstance(spec, str):
        raise BadInput.at(where, f"names one recipe, not {spec!r}", "give a name or a file")
    if spec in names:
        # Its own folder is the package's, where it names nothing: what it reads is `redistill:NAME`.
        return _Source(shipped_text(spec), f"{spec}.yaml", source.folder, f"redistill:{spec}")
    file = Path(os.path.normpath(source.folder / spec))
    if not file.is_file():
        near = Path(f"{spec}.yaml")
        hint = (
            f"did you mean {near}?"
            if (source.folder / near).is_file()
            else did_you_mean(spec, names, "give a file beside this one, or one that ships:")
        )
        raise BadInput.at(where, f"no such recipe: {spec}", hint)
    text = yaml_lines.decode(file.read_bytes(), str(file))
    return _Source(text, str(file), file.parent, str(file.resolve()))


@dataclass(frozen=True, slots=True)
class _Move:
    """What a recipe's paths become when they are read from another folder than its own."""

    home: Path
    folder: Path

    def recipe(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a recipe's data, in which each path leads to what it led to."""
        moved = data | inputs.located({k: data[k] for k in _COURSE if k in data}, self.home)
        if "student" in data:
            moved["student"] = self.model(data["student"])
        if prompts := _mapping(data.get("prompts")):
            moved["prompts"] = {
                key: self.file(told) if key in PromptSource.FILES else told
                for key, told in prompts.items()
            }
        if roles := _mapping(data.get("roles")):
            moved["roles"] = {name: self.role(told) for name, told in roles.items()}
        return dict(moved)

    def file(self, path: Any) -> Any:
        """Return where a data file is; what is no path is told where it is validated."""
        if not isinstance(path, str) or ships(path):
            return path
        return Path(os.path.relpath(self.home.resolve() / path, self.folder.resolve())).as_posix()

    def model(self, spec: Any) -> Any:
        """Return a model; only a folder is somewhere."""
        named = not isinstance(spec, str) or spec == STUDENT or catalog.is_plugin(spec)
        return spec if named or not (self.home / spec).is_dir() else self.file(spec)

    def role(self, told: Any) -> Any:
        """Return a role whose model or worked examples may be somewhere."""
        moved = dict(_mapping(told))
        if "policy" in moved:
            moved["policy"] = self.model(moved["policy"])
        context = _mapping(moved.get("context"))
        shot = _mapping(context.get("few_shot"))
        if "file" in shot:
            moved["context"] = {**context, "few_shot": {**shot, "file": self.file(shot["file"])}}
        return moved or told


def _mapping(found: Any) -> Mapping[str, Any]:
    """Return what is a mapping; what is none is told where the recipe is validated."""
    return found if isinstance(found, Mapping) else {}


def _merged(above: Written, below: Written, own: Collection[str]) -> Written:
    """Put what a recipe says over what its base says."""
    data = {key: value for key, value in below.data.items() if key not in own}
    hidden: list[yaml_lines.Path] = [(key,) for key in own]
    for key, value in above.data.items():
        single = key in _BY_KEY and isinstance(value, dict) and isinstance(data.get(key), dict)
        hidden += [(key, inner) for inner in value] if single else [(key,)]
        data[key] = {**data[key], **value} if single else value
    return Written(data, _without(below.places, hidden) | above.places)


def _without(places: Places, hidden: Collection[yaml_lines.Path]) -> Places:
    """Return the places of what is not below any of some keys."""
    lengths = {len(path) for path in hidden}
    covered = set(hidden)
    return {
        path: place
        for path, place in places.items()
        if not any(path[:length] in covered for length in lengths)
    }


def _check_round(above: Written, whole: Written) -> None:
    """Refuse a round that the base's stages, each with its own, leave without a use.

    Raises:
        BadInput: there is one.
    """
    if "round" in above.data and "stages" not in above.data and not _shared(whole.data):
        what = "is used nowhere: each stage of the base has a round of its own"
        raise BadInput.at(f"{above.places['round',]} round", what, "give `stages:` too")


def _stages(data: Mapping[str, Any]) -> list[Any]:
    """Return the stages as they are written; what is no mapping is told where it is validated."""
    stages = data.get("stages")
    return stages if isinstance(stages, list) else []


def _shared(data: Mapping[str, Any]) -> bool:
    """Whether any stage has the steps of the recipe's own `round`."""
    stages = _stages(data)
    return not stages or any("round" not in _mapping(stage) for stage in stages)


def _rounds(data: Mapping[str, Any]) -> Iterator[tuple[yaml_lines.Path, list[Any]]]:
    """Yield every list of steps that a stage has, with the path to it."""
    if isinstance(data.get("round"), list) and _shared(data):
        yield ("round",), data["round"]
    for index, stage in enumerate(_stages(data)):
        steps = _mapping(stage).get("round")
        if isinstance(steps, list):
            yield ("stages", index, "round"), steps


# -- set


def _changed(whole: Written) -> Written:
    """Apply `set:` in every stage that has the step.

    Raises:
        BadInput: with every key that names no setting of a step.
    """
    changes = whole.data.pop(SET, None) or {}
    if not isinstance(changes, Mapping):
        at = f"{whole.places[SET,]} {SET}"
        raise BadInput.at(at, f"must be a mapping, not {changes!r}", "as {sample.k: 8}")
    problems = []
    moved: Places = {}
    for path, value in changes.items():
        place = whole.places[SET, str(path)]
        try:
            moved |= dict.fromkeys(_change(whole.data, str(path), value), place)
        except BadInput as error:
            problems += [Problem(f"{place} {p.where}", p.what, p.hint) for p in error.problems]
    if problems:
        raise BadInput(*problems)
    places = _without(whole.places, moved) | moved
    for path, place in moved.items():
        for end in range(len(path)):  # mappings that were made on the way
            places.setdefault(path[:end], place)
    return Written(whole.data, places)


def _change(data: Mapping[str, Any], path: str, value: Any) -> list[yaml_lines.Path]:
    """Change one setting in every round that has its step, and return where it then is.

    Raises:
        BadInput: no stage has the step, or the step no such setting.
    """
    name, _, rest = path.partition(".")
    keys = rest.split(".")
    found: list[yaml_lines.Path] = []
    try:
        for home, steps in _rounds(data):
            for index in [i for i, step in enumerate(steps) if step_name(step) == name and rest]:
                steps[index] = with_setting(steps[index], keys, value)
                inner = (int(key) if key.isdigit() else key for key in keys)
                found.append((*home, index, next(iter(steps[index])), *inner))
        for stage in _stages(data):
            _win(_mapping(stage).get(SET), path, value)
    except (LookupError, ValueError) as error:
        told = "a list's items are numbered from 0"
        raise BadInput.at(f"{SET}.{path}", "names no setting", told) from error
    if not found:
        known = dict.fromkeys(step_name(step) for _, steps in _rounds(data) for step in steps)
        hint = did_you_mean(name, filter(None, known), "steps are")
        raise BadInput.at(f"{SET}.{path}", "names no setting of a step", hint)
    return found


def _win(earlier: Any, path: str, value: Any) -> None:
    """Let a setting win over what a stage's own `set` says of the same one, or of a part of it."""
    for key in list(earlier) if isinstance(earlier, dict) else ():
        if key == path or str(key).startswith(f"{path}."):
            del earlier[key]
        elif path.startswith(f"{key}."):
            earlier[key] = set_in(earlier[key], path.removeprefix(f"{key}.").split("."), value)
