"""From `round` and `stages`, as YAML has them, to stages whose steps are operators with every setting.

Also `--set`, which changes the plain data before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from ..errors import BadInput, Problem
from ..store.pairing import Labels
from . import plugins, role_judges
from .operator import BUILTINS as OPERATORS
from .operator import ROUND, Operator
from .operators.curate import Pair, Select, settled
from .operators.feedback import Compare, Score
from .operators.improve import Train
from .roles import STUDENT

_STAGE_KEYS = ("repeat", "set", "round")
# Nodes of the graph and steps of the ledger that the loop makes itself, and keys of the graph's state.
RESERVED_STEPS = frozenset(
    [
        "begin",
        "promote",
        "reject",
        "baseline",
        "load",
        "test_initial",
        "test_champion",
        "gain",
        "stopped",
        "forked",
        "round",
        "champion",
        "challenger",
        "decision",
        "cursor",
    ]
)


def is_raw(data: Mapping[str, Any]) -> bool:
    """Whether `round` or any stage is as YAML has it, and not resolved."""
    stages = data.get("stages")
    if "round" in data or not isinstance(stages, list | tuple | None):
        return True
    return any(isinstance(stage, Mapping) for stage in stages or ())


def expand(data: dict[str, Any]) -> dict[str, Any]:
    """Resolve `round` and `stages` into stages whose steps are operators.

    Raises:
        BadInput: with every problem of every step.
    """
    base = data.pop("round", None)
    raw = data.get("stages")
    if raw is not None and not isinstance(raw, list | tuple):
        raise BadInput.at("stages", f"must be a list of stages, not {raw!r}")
    problems: list[Problem] = []
    stages: list[dict[str, Any]] = []
    roles = _role_names(data.get("roles"))
    base = role_judges.in_steps(base, roles)
    for index, stage in enumerate(raw or [_only_stage(data.get("loop"))]):
        where = f"stages[{index}]" if raw else ""
        built, faults = _stage(_spoken(stage, roles), base, where)
        problems += faults
        stages.append(built)
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    return data | {"stages": stages}


def _role_names(roles: Any) -> set[str]:
    return {STUDENT, *roles} if isinstance(roles, Mapping) else {STUDENT}


def _spoken(stage: Any, roles: set[str]) -> Any:
    """Resolve the judges of a stage that are roles."""
    if not isinstance(stage, Mapping):
        return stage
    ways = {"round": role_judges.in_steps, "set": role_judges.in_changes}
    changed = {key: way(stage[key], roles) for key, way in ways.items() if key in stage}
    return {**stage, **changed}


def _only_stage(loop: Any) -> dict[str, Any]:
    rounds = loop.get("rounds") if isinstance(loop, Mapping) else getattr(loop, "rounds", None)
    # What is no number of rounds is told where it stands, under `loop`.
    return {"repeat": rounds if isinstance(rounds, int) and rounds > 0 else 1}


def _stage(stage: Any, base: Any, where: str) -> tuple[dict[str, Any], list[Problem]]:
    if not isinstance(stage, Mapping):
        return {}, [Problem(where, f"must be a mapping, not {stage!r}")]
    problems = [
        Problem(
            f"{where}.{key}", "unknown key", plugins.did_you_mean(str(key), _STAGE_KEYS, "keys are")
        )
        for key in stage
        if key not in _STAGE_KEYS
    ]
    own = stage.get("round")
    steps = own if own is not None else base
    home = f"{where}.round" if own is not None else "round"
    if not isinstance(steps, list | tuple) or not steps:
        problems.append(Problem(home, "a round is a list of steps", "start with `- sample: {}`"))
        return {}, problems
    changes = stage.get("set") or {}
    if not isinstance(changes, Mapping):
        problems.append(Problem(f"{where}.set", f"must be a mapping, not {changes!r}"))
        changes = {}
    changed, faults = _with_settings(steps, changes, f"{where}.set")
    built, more = _steps(changed, home)
    return {"repeat": stage.get("repeat", 1), "steps": built}, [*problems, *faults, *more]


def step_name(step: Any) -> str:
    """Return the name of a step, as YAML has it or built; empty where it has none."""
    if isinstance(step, Operator):
        return step.step
    if isinstance(step, str):
        return step
    if isinstance(step, Mapping) and len(step) == 1:
        [(operator, settings)] = step.items()
        named = settings.get("as") if isinstance(settings, Mapping) else None
        return str(named or operator)
    return ""


def step_data(step: Operator) -> dict[str, Any]:
    """Return a step as plain data, every setting in full."""
    settings = step.model_dump(mode="json", by_alias=True)
    if not settings.get("as"):
        settings.pop("as", None)
    return {step.name: settings}


def written_at(where: str, data: Mapping[str, Any]) -> str:
    """Turn `stages[1].sample.role` of the resolved recipe into the place where the step is written."""
    head, _, rest = where.partition(".")
    if not head.startswith("stages[") or not rest:
        return where
    name, dot, setting = rest.partition(".")
    stages = data.get("stages")
    stage = stages[int(head[7:-1])] if isinstance(stages, list | tuple) and stages else {}
    own = stage.get("round") if isinstance(stage, Mapping) else None
    home, steps = (f"{head}.round", own) if own is not None else ("round", data.get("round"))
    for index, step in enumerate(steps or ()):
        if step_name(step) == name:
            operator = next(iter(step)) if isinstance(step, Mapping) else name
            return f"{home}[{index}].{operator}{dot}{setting}"
    return where


# -- settings that are replaced


def override(data: dict[str, Any], setting: str, keys: Iterable[str]) -> Problem | None:
    """Apply one `a.b=c`; a step of `round` is reached by its name, `train.beta` and `round.train.beta`.

    Args:
        data: the recipe as plain data; changed in place.
        setting: what the user wrote.
        keys: the recipe's own keys.
    """
    where = f"--set {setting}"
    path, equals, value = setting.partition("=")
    if not equals or not path:
        return Problem(where, "is no a.b=c")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return Problem(where, "the value is no YAML")
    steps = data.get("round")
    steps = steps if isinstance(steps, list) else []
    name, *rest = path.removeprefix("round.").split(".")
    names = [step_name(step) for step in steps]
    if name in names and rest:
        index = names.index(name)
        steps[index] = with_setting(steps[index], rest, parsed)
        return None
    head, *inner = path.split(".")
    if head not in keys:
        known = [*(n for n in names if n), *keys]
        return Problem(where, f"{head!r} is no step and no key", plugins.did_you_mean(head, known))
    try:
        data[head] = set_in(data.get(head), inner, parsed)
    except (LookupError, ValueError):
        return Problem(where, "names no setting", "a list's items are numbered from 0")
    return None


def with_setting(step: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a step with one setting changed; a bare name becomes a mapping for it."""
    if isinstance(step, Operator):
        step = step_data(step)
    [(operator, settings)] = step.items() if isinstance(step, Mapping) else [(step, {})]
    return {operator: set_in(settings or {}, keys, value)}


def set_in(settings: Any, keys: Sequence[str], value: Any) -> Any:
    """Return settings with the value put at a path, making the mappings on the way."""
    if not keys:
        return value
    if isinstance(settings, list):
        index = int(keys[0])
        items = list(settings)
        items[index] = set_in(items[index], keys[1:], value)
        return items
    base = dict(settings) if isinstance(settings, Mapping) else {}
    return base | {keys[0]: set_in(base.get(keys[0]), keys[1:], value)}


def _with_settings(
    steps: Sequence[Any], changes: Mapping[str, Any], where: str
) -> tuple[list[Any], list[Problem]]:
    """Return the steps with a stage's `set` applied: `{score.judge: longest}`."""
    changed = list(steps)
    problems = []
    names = [step_name(step) for step in changed]
    for path, value in changes.items():
        name, _, rest = str(path).partition(".")
        if name not in names or not rest:
            hint = plugins.did_you_mean(name, names, "steps are")
            problems.append(Problem(f"{where}.{path}", "names no setting of a step", hint))
            continue
        index = names.index(name)
        changed[index] = with_setting(changed[index], rest.split("."), value)
    return changed, problems


# -- steps


def _steps(raw: Sequence[Any], where: str) -> tuple[tuple[Operator, ...], list[Problem]]:
    """Build the operators of a round and resolve what each reads."""
    problems: list[Problem] = []
    steps: list[Operator] = []
    broken = False
    for index, spec in enumerate(raw):
        at = f"{where}[{index}]"
        try:
            step = spec if isinstance(spec, Operator) else _build(spec, at)
        except BadInput as error:
            problems += error.problems
            broken = True
            continue
        place = f"{at}.{step.name}"
        problems += step.check(place)
        fault, step = _resolve_of(step, steps, place)
        # Beside a step that could not be built, what seems to be missing may be what it makes.
        problems += [fault] if fault and not broken else []
        steps.append(step)
    if not problems:
        steps = [_resolve_by(step, steps[:index]) for index, step in enumerate(steps)]
        problems = _check_round(steps, where)
    return tuple(steps), problems


def _build(spec: Any, where: str) -> Operator:
    built = plugins.build("operators", spec, OPERATORS, where)
    if not isinstance(built, Operator):
        raise BadInput.at(where, f"{spec!r} is no operator")
    return built


def _resolve_of(
    step: Operator, earlier: Sequence[Operator], where: str
) -> tuple[Problem | None, Operator]:
    """Fill in `of`: the one earlier step that makes what is needed."""
    needs = _required(step)
    if not needs:
        return None, step
    makers = [s.step for s in earlier if s.makes in needs]
    keepers = [s for s in earlier if s.keeps and "completions" in needs]
    wanted = " or ".join(needs)
    given = step.named()
    if given:
        known = [*makers, *(s.step for s in keepers), *([ROUND] if step.asks_prompts else [])]
        strange = [name for name in given if name not in known]
        if strange:
            hint = plugins.did_you_mean(strange[0], known, f"earlier steps with {wanted}:")
            return Problem(f"{where}.of", f"{strange[0]!r} makes no {wanted}", hint), step
        old = [s.step for s in keepers if s.step in given and isinstance(s, Select) and s.replay]
        if old:
            what = f"{old[0]!r} keeps answers of earlier rounds, which can only train"
            return Problem(f"{where}.of", what, f"say `replay:` in {step.step}, not there"), step
        if len(given) > 1 and isinstance(step, Train):
            return Problem(
                f"{where}.of", f"names {len(given)} steps", "train reads exactly one"
            ), step
        return None, step.model_copy(update={"of": given})
    # What an earlier step has read of a select step was kept for that step, and not to be the default of this one.
    read = {name for s in earlier if s.makes != "revision" for name in s.sources()}
    unread = [s.step for s in earlier if s.makes in needs and not (s.keeps and s.step in read)]
    makers = unread or makers
    if not makers:
        return Problem(where, f"no earlier step makes {wanted}"), step
    if len(makers) > 1:
        return Problem(where, f"{' and '.join(makers)} make {wanted}", "say which with `of:`"), step
    return None, step.model_copy(update={"of": (makers[0],)})


def _required(step: Operator) -> tuple[str, ...]:
    """Return what a step needs; one that cannot even be built is told of elsewhere."""
    try:
        return step.required()
    except BadInput:
        return step.needs


def _resolve_by(step: Operator, earlier: Sequence[Operator]) -> Operator:
    """Fill in `pair.by` where one judge alone has scored or compared, and which of the two it did."""
    return settled(step, labels_of(earlier)) if isinstance(step, Pair) else step


def answering(names: Iterable[str], steps: Sequence[Operator]) -> set[str]:
    """Return the steps that gave the answers of these: what a step has kept is of those that it reads."""
    found: set[str] = set()
    for name in names:
        keeper = next((s for s in steps if s.step == name and s.keeps), None)
        found |= answering(keeper.sources(), steps) if keeper else {name}
    return found


def labels_of(steps: Iterable[Operator]) -> set[tuple[str, Labels]]:
    """Return the judges of some steps, each with what it gives that pairs can be made of."""
    kinds: dict[type[Operator], Labels] = {Score: "scores", Compare: "comparisons"}
    return {(n, kinds[type(s)]) for s in steps if type(s) in kinds for n in s.judges()}


def _check_round(steps: Sequence[Operator], where: str) -> list[Problem]:
    """Check what only the steps together can show."""
    problems = []
    names = [step.step for step in steps]
    for step in steps:
        if names.count(step.step) > 1:
            problems.append(
                Problem(where, f"two steps are named {step.step!r}", "name one with `as:`")
            )
        plain = step.step.isidentifier() and not step.step.startswith("_")
        if step.step in RESERVED_STEPS or not plain:
            problems.append(
                Problem(where, f"{step.step!r} cannot name a step", "choose another word")
            )
    made: list[str] = [step.made() for step in steps]
    for makes, word in (("revision", "train"), ("evaluation", "evaluate"), ("decision", "gate")):
        if made.count(makes) != 1:
            beside = " that make a student" if makes == "revision" and "judge" in made else ""
            what = f"has {made.count(makes)} {word} steps{beside}"
            problems.append(Problem(where, what, "give exactly one"))
    if not problems and made[-3:] != ["revision", "evaluation", "decision"]:
        problems.append(Problem(where, "must end with train, evaluate, gate in this order"))
    return list(dict.fromkeys([*problems, *_check_prompts(steps, where)]))


def _check_prompts(steps: Sequence[Operator], where: str) -> list[Problem]:
    """Find prompts that are proposed for nobody, and steps that would ask the prompts of pairs."""
    read = {name for step in steps for name in step.sources()}
    pairing = {step.step for step in steps if isinstance(step, Pair)}
    problems = []
    for index, step in enumerate(steps):
        at = f"{where}[{index}].{step.name}"
        if step.makes == "prompts" and step.step not in read:
            hint = f"say `sample: {{of: {step.step}}}`, or `of: [round, {step.step}]`"
            problems.append(Problem(at, "no step answers the prompts that it proposes", hint))
        if step.asks_prompts and (pairs := pairing.intersection(step.sources())):
            what = f"{min(pairs)!r} keeps pairs, and no prompts"
            problems.append(Problem(f"{at}.of", what, "name a `propose` or a `select` step"))
    return problems
