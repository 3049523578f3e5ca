"""A role's name where a judge is wanted: `score: {judge: helper}` means `chat` on the role `helper`.

Resolved where a recipe's roles are known, before its steps are built: from there on the recipe says
`{chat: {role: helper, name: helper}}`, in full, as all else in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..store.views import ANSWERS
from .judge import NOT_FOR_ROLES, column_name
from .operator import Operator

_INNER = ("judge", "judges")
"""Keys of a judge's settings that name judges themselves."""


def in_steps(steps: Any, roles: Collection[str]) -> Any:
    """Return the steps of a round, as YAML has them or built, with every judge that is a role resolved."""
    if not isinstance(steps, list | tuple):
        return steps
    return [_in_step(step, roles) for step in steps]


def in_changes(changes: Any, roles: Collection[str]) -> Any:
    """Return a stage's `set:` with every judge that is a role resolved."""
    if not isinstance(changes, Mapping):
        return changes
    return {
        key: in_spec(value, roles) if str(key).endswith(".judge") else value
        for key, value in changes.items()
    }


def in_spec(spec: Any, roles: Collection[str]) -> Any:
    """Return how a judge is named, with every role in it resolved."""
    if isinstance(spec, str):
        return _chat(spec) if spec in roles and spec not in NOT_FOR_ROLES else spec
    if not isinstance(spec, Mapping):
        return spec
    # The settings of `replay` name whose votes they are, which is no judge of this recipe.
    return {
        kind: _in_settings(settings, roles) if kind != "replay" else settings
        for kind, settings in spec.items()
    }


def _in_step(step: Any, roles: Collection[str]) -> Any:
    if isinstance(step, Operator):
        judge = getattr(step, "judge", None)
        resolved = in_spec(judge, roles)
        return step if resolved == judge else step.model_copy(update={"judge": resolved})
    if not isinstance(step, Mapping):
        return step
    return {name: _in_keys(settings, roles) for name, settings in step.items()}


def _in_keys(settings: Any, roles: Collection[str]) -> Any:
    """Resolve a step's own judge, and those that reward rollouts."""
    if not isinstance(settings, dict):
        return settings
    found = dict(settings)
    if "judge" in settings:
        found["judge"] = in_spec(settings["judge"], roles)
    if isinstance(settings.get("rewards"), list | tuple):
        found["rewards"] = [_in_keys(reward, roles) for reward in settings["rewards"]]
    return found


def _in_settings(settings: Any, roles: Collection[str]) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    changed = {key: _inner(settings[key], roles) for key in _INNER if key in settings}
    return {**settings, **changed}


def _inner(value: Any, roles: Collection[str]) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [in_spec(one, roles) for one in value]
    return in_spec(value, roles)


def _chat(role: str) -> dict[str, Any]:
    """Return the judge of a role, in a column of the role's name where that can be one."""
    settings = {"role": role}
    if _is_column(role):
        settings["name"] = role
    return {"chat": settings}


def _is_column(name: str) -> bool:
    try:
        column_name(name)
    except ValueError:
        return False
    return name.casefold() not in ANSWERS
