"""The noun *recipe*: what a run does, as YAML or as Python objects, resolved to the last setting.

Loading finds every mistake that can be found without a model, all of them in one go, each with its line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import BadInput, Problem
from ..hashing import canonical, content_hash
from . import plugins
from .judge import BUILTINS as JUDGES
from .operator import BUILTINS as OPERATORS
from .operator import Operator
from .operators.curate import Pair, Select
from .operators.feedback import Score
from .operators.improve import Evaluate, Train
from .prompts import PromptSource, locate
from .roles import STUDENT, Role, check_roles, describe
from .yaml_lines import line_of, parse

_RESERVED_STEPS = {"begin", "promote", "reject", "baseline", "load", "test_initial", "test_champion"}
_ANSWER_COLUMNS = (
    "run round step split prompt answer revision is_champion used_as tokens seconds finish_reason "
    "role slot tags prompt_id id short_id"
).split()


class Stage(BaseModel):
    """Rounds that are alike: how many, and their steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repeat: int = Field(1, ge=1)
    """Rounds."""
    steps: tuple[Operator, ...]
    """The steps of each."""


class Stop(BaseModel):
    """When a run ends before its last round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patience: int | None = Field(None, ge=1)
    """Rejected rounds in a row after which the run ends."""


class Loop(BaseModel):
    """How rounds follow each other. Each starts from the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int | None = Field(None, ge=1)
    """Rounds; the sum over the stages where it is left out. The last stage goes on if it is more."""
    stop: Stop = Stop()


class Execution(BaseModel):
    """Where and how it runs; no id depends on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int | None = Field(None, ge=1)
    """Threads of sampler and trainer; all cores where it is left out."""


class Recipe(BaseModel):
    """What a run does.

    `round` and `stages` as in YAML are accepted and resolved into `stages` with every step in full.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "run"
    """Name of the run's folder."""
    student: str
    """A catalog name, a hub id, a folder, or `module:Class`."""
    prompts: PromptSource
    roles: dict[str, Role] = Field({}, validate_default=True)
    """Who may speak besides the student."""
    stages: tuple[Stage, ...]
    loop: Loop = Loop()
    seed: int = Field(0, ge=0, lt=2**31)
    chunk: int = Field(64, ge=1, le=4096)
    """Rows of one super-step and one transaction."""
    execution: Execution = Execution()
    base: Path = Field(Path(), exclude=True)
    """Folder that the recipe's own paths are relative to."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and ("round" in data or _raw_stages(data.get("stages"))):
            return _expanded(dict(data))
        return data

    @field_validator("roles", mode="after")
    @classmethod
    def _with_student(cls, roles: dict[str, Role]) -> dict[str, Role]:
        return {STUDENT: Role(), **roles}

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        problems = check_roles(self.roles, list(JUDGES)) + _check_stages(self)
        if problems:
            raise BadInput(*problems)
        return self

    @property
    def rounds(self) -> int:
        """Rounds of the run, if nothing stops it before."""
        return self.loop.rounds or sum(stage.repeat for stage in self.stages)

    def stage_of(self, round_: int) -> tuple[int, Stage]:
        """Return the stage of a round, from 1, and its index, from 1."""
        last = 0
        for index, stage in enumerate(self.stages, start=1):
            last += stage.repeat
            if round_ <= last:
                return index, stage
        return len(self.stages), self.stages[-1]

    def judges(self) -> dict[str, str]:
        """Return every judge of the recipe: SQL name -> revision."""
        return {n: r for stage in self.stages for s in stage.steps for n, r in s.judges().items()}

    @property
    def evaluate(self) -> Evaluate:
        """The evaluate step, the same in every stage."""
        return next(s for s in self.stages[0].steps if isinstance(s, Evaluate))

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain data, every stage and setting in full."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude={"stages", "base"}, by_alias=True)
        data["roles"] = {k: v for k, v in data["roles"].items() if k != STUDENT}
        data["stages"] = [
            {"repeat": stage.repeat, "round": [_step_data(step) for step in stage.steps]}
            for stage in self.stages
        ]
        return data

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML; loading it gives the same run."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, width=100)

    @property
    def key(self) -> str:
        """Hash of all that decides what the run's rows are: no name, no path, no execution."""
        data = self.resolved()
        for left_out in ("name", "execution", "prompts", "roles"):
            data.pop(left_out)
        data["per_round"] = self.prompts.per_round
        data["roles"] = {name: describe(role) for name, role in self.roles.items()}
        data["files"] = [_file_hash(path, self.base) for path in self.data_files()]
        return content_hash(canonical(data))

    def data_files(self) -> list[str]:
        """Return every data file that the recipe names."""
        shots = [role.context.few_shot for role in self.roles.values()]
        return [p for p, _ in self.prompts.files()] + [shot.file for shot in shots if shot]


def load_recipe(
    text: str, name: str, *, base: Path, overrides: Sequence[str] = ()
) -> Recipe:
    """Read a recipe.

    Args:
        text: YAML.
        name: what to call the file in messages.
        base: the folder that its paths are relative to.
        overrides: `a.b=c` settings, each replacing what the file says.

    Raises:
        BadInput: with every problem that was found, each with its line.
    """
    data, lines = parse(text, name)
    problems = [p for o in overrides if (p := _override(data, o))]
    if problems:
        raise BadInput(*problems)
    try:
        return Recipe.model_validate(data | {"base": base})
    except ValidationError as error:
        found = plugins.problems_of(error, "", Recipe)
    except BadInput as error:
        found = list(error.problems) + _others(data)
    raise BadInput(*(_placed(problem, name, lines) for problem in found))


def _others(data: dict[str, Any]) -> list[Problem]:
    """Return the problems outside the steps, where the steps have stopped validation already."""
    rest = {k: v for k, v in data.items() if k not in ("round", "stages")}
    try:
        Recipe.model_validate(rest | {"stages": []})
    except ValidationError as error:
        return plugins.problems_of(error, "", Recipe)
    except BadInput:
        return []  # told already, beside the steps
    return []


def _placed(problem: Problem, name: str, lines: Mapping[tuple[str | int, ...], int]) -> Problem:
    """Put file and line before a key's path; a data file's `name:line` stands as it is."""
    if problem.where.partition(":")[0].endswith((".jsonl", ".yaml")):
        return problem
    line = line_of(problem.where, lines)
    at = f"{name}:{line}" if line else name
    return Problem(f"{at} {problem.where}".rstrip(), problem.what, problem.hint)


def _override(data: dict[str, Any], setting: str) -> Problem | None:
    """Apply one `a.b=c`; a step of `round` is reached by its name, `train.beta` and `round.train.beta`."""
    path, equals, value = setting.partition("=")
    if not equals or not path:
        return Problem(f"--set {setting}", "is no a.b=c")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return Problem(f"--set {setting}", "the value is no YAML")
    keys = path.removeprefix("round.").split(".")
    for step in data.get("round", []):
        if _step_name(step) == keys[0] and isinstance(step, dict) and len(keys) > 1:
            operator = next(iter(step))
            step[operator] = _set_in(step[operator] or {}, keys[1:], parsed)
            return None
    data.update(_set_in(data, path.split("."), parsed))
    return None


def _set_in(settings: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return settings with the value put at a path, making the mappings on the way."""
    base = dict(settings) if isinstance(settings, Mapping) else {}
    if len(keys) == 1:
        return base | {keys[0]: value}
    return base | {keys[0]: _set_in(base.get(keys[0]), keys[1:], value)}


# -- stages


def _raw_stages(stages: Any) -> bool:
    """Whether any stage is as YAML has it, and not resolved."""
    return isinstance(stages, list | tuple) and any(isinstance(s, Mapping) for s in stages)


def _expanded(data: dict[str, Any]) -> dict[str, Any]:
    """Resolve `round` and `stages` into stages whose steps are operators.

    Raises:
        BadInput: with every problem of every step.
    """
    base = data.pop("round", None)
    raw = data.get("stages") or [{"repeat": (data.get("loop") or {}).get("rounds") or 1}]
    problems: list[Problem] = []
    stages: list[dict[str, Any]] = []
    for index, stage in enumerate(raw):
        where = f"stages[{index}]" if data.get("stages") else ""
        if not isinstance(stage, Mapping):
            problems.append(Problem(where, f"must be a mapping, not {stage!r}"))
            continue
        for key in stage.keys() - {"repeat", "set", "round"}:
            hint = plugins.did_you_mean(str(key), ["repeat", "set", "round"], "keys are")
            problems.append(Problem(f"{where}.{key}", "unknown key", hint))
        own = stage.get("round")
        steps = own if own is not None else base
        home = f"{where}.round" if own is not None else "round"
        if not isinstance(steps, list | tuple) or not steps:
            problems.append(Problem(home, "a round is a list of steps", "start with `- sample: {}`"))
            continue
        changed, faults = _with_settings(steps, stage.get("set") or {}, f"{where}.set")
        problems += faults
        built, faults = _steps(changed, home)
        problems += faults
        stages.append({"repeat": stage.get("repeat", 1), "steps": built})
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    return data | {"stages": stages}


def _step_name(step: Any) -> str:
    if isinstance(step, Operator):
        return step.step
    if isinstance(step, str):
        return step
    if isinstance(step, Mapping) and len(step) == 1:
        [(operator, settings)] = step.items()
        named = settings.get("as") if isinstance(settings, Mapping) else None
        return str(named or operator)
    return ""


def _with_settings(
    steps: Sequence[Any], changes: Mapping[str, Any], where: str
) -> tuple[list[Any], list[Problem]]:
    """Return the steps with a stage's `set` applied: `{score.judge: longest}`."""
    changed = [dict(s) if isinstance(s, Mapping) else s for s in steps]
    problems = []
    names = [_step_name(step) for step in changed]
    for path, value in changes.items():
        name, _, rest = str(path).partition(".")
        if name not in names or not rest:
            hint = plugins.did_you_mean(name, names, "steps are")
            problems.append(Problem(f"{where}.{path}", "names no setting of a step", hint))
            continue
        index = names.index(name)
        step = changed[index]
        [(operator, settings)] = step.items() if isinstance(step, dict) else [(step, {})]
        changed[index] = {operator: _set_in(settings or {}, rest.split("."), value)}
    return changed, problems


def _steps(raw: Sequence[Any], where: str) -> tuple[tuple[Operator, ...], list[Problem]]:
    """Build the operators of a round and resolve what each reads."""
    problems: list[Problem] = []
    steps: list[Operator] = []
    for index, spec in enumerate(raw):
        at = f"{where}[{index}]"
        try:
            step = spec if isinstance(spec, Operator) else _build(spec, at)
        except BadInput as error:
            problems += error.problems
            continue
        place = f"{at}.{step.name}"
        problems += step.check(place)
        fault, step = _resolve_of(step, steps, place)
        problems += [fault] if fault else []
        steps.append(_resolve_by(step, steps))
    if not problems:
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
    if not step.needs:
        return None, step
    makers = [s.step for s in earlier if s.makes in step.needs]
    wanted = " or ".join(step.needs)
    given = step.sources()
    if given:
        strange = [name for name in given if name not in makers]
        if strange:
            hint = plugins.did_you_mean(strange[0], makers, f"earlier steps with {wanted}:")
            return Problem(f"{where}.of", f"{strange[0]!r} makes no {wanted}", hint), step
        return None, step
    if not makers:
        return Problem(where, f"no earlier step makes {wanted}"), step
    if len(makers) > 1:
        return Problem(where, f"{' and '.join(makers)} make {wanted}", "say which with `of:`"), step
    return None, step.model_copy(update={"of": (makers[0],)})


def _resolve_by(step: Operator, earlier: Sequence[Operator]) -> Operator:
    """Fill in `pair.by` where one judge alone has scored."""
    if not isinstance(step, Pair) or step.by:
        return step
    scored = {name for s in earlier if isinstance(s, Score) for name in s.judges()}
    return step.model_copy(update={"by": scored.pop()}) if len(scored) == 1 else step


def _check_round(steps: Sequence[Operator], where: str) -> list[Problem]:
    """Check what only the steps together can show."""
    problems = []
    names = [step.step for step in steps]
    for step in steps:
        if names.count(step.step) > 1:
            problems.append(Problem(where, f"two steps are named {step.step!r}", "name one with `as:`"))
        if step.step in _RESERVED_STEPS or not step.step.isidentifier():
            problems.append(Problem(where, f"{step.step!r} cannot name a step", "choose another word"))
    made: list[str] = [step.makes for step in steps]
    for makes, word in (("revision", "train"), ("evaluation", "evaluate"), ("decision", "gate")):
        if made.count(makes) != 1:
            problems.append(Problem(where, f"has {made.count(makes)} {word} steps", "give exactly one"))
    if not problems and made[-3:] != ["revision", "evaluation", "decision"]:
        problems.append(Problem(where, "must end with train, evaluate, gate in this order"))
    return list(dict.fromkeys(problems))


def _check_stages(recipe: Recipe) -> list[Problem]:
    """Check what needs the whole recipe: roles, judges, SQL, comparable evidence."""
    problems: list[Problem] = []
    if not recipe.stages:
        return [Problem("round", "the recipe has no round", "`redistill show quickstart` is one")]
    judges = recipe.judges()
    for name in judges:
        if name in _ANSWER_COLUMNS:
            problems.append(Problem("round", f"judge {name!r} has the name of a column of `answers`"))
    evidence = {str(_step_data(s)) for g in recipe.stages for s in g.steps if isinstance(s, Evaluate)}
    if len(evidence) > 1:
        problems.append(
            Problem("stages", "evaluate differs between stages", "held-out values must be comparable")
        )
    for index, stage in enumerate(recipe.stages):
        for step in stage.steps:
            problems += _check_step(recipe, stage, step, f"stages[{index}].{step.step}", list(judges))
    return problems


def _check_step(
    recipe: Recipe, stage: Stage, step: Operator, where: str, judges: Sequence[str]
) -> list[Problem]:
    problems = []
    for role in step.roles():
        if role not in recipe.roles:
            hint = plugins.did_you_mean(role, recipe.roles, "roles are")
            problems.append(Problem(f"{where}.role", f"unknown role {role!r}", hint))
    if isinstance(step, Select):
        problems += step.check_sql(where, judges)
    if isinstance(step, Pair):
        problems += _check_pair(stage, step, where)
    if isinstance(step, Train):
        source = next(s for s in stage.steps if s.step == step.sources()[0])
        if step.load_trainer().rows == "pairs" and isinstance(source, Select):
            problems.append(Problem(where, f"{step.trainer_name} needs pairs", "put a `pair` step before"))
    return problems


def _check_pair(stage: Stage, step: Pair, where: str) -> list[Problem]:
    scored = [
        name
        for other in stage.steps
        if isinstance(other, Score) and set(other.sources()) & set(step.sources())
        for name in other.judges()
    ]
    if not scored:
        return [Problem(where, "nothing has scored these completions", "put a `score` step before")]
    if step.by not in scored:
        known = " or ".join(scored)
        return [Problem(f"{where}.by", f"{step.by!r} has not scored them", f"say `by: {known}`")]
    return []


def _step_data(step: Operator) -> dict[str, Any]:
    settings = step.model_dump(mode="json", by_alias=True)
    if not settings.get("as"):
        settings.pop("as", None)
    return {step.name: settings}


def _file_hash(path: str, base: Path) -> str:
    return hashlib.sha256(locate(path, base).read_bytes()).hexdigest()
