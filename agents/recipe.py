"""The noun *recipe*: what a run does, as YAML or as Python objects, resolved to the last setting.

Loading finds every mistake that can be found without a model, all of them in one go, each with its line.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from ..errors import BadInput, Problem
from ..hashing import canonical, content_hash
from ..policies import catalog
from ..store.traces import WAS
from ..trainers.trainer import Trainer
from . import extending, inputs, plugins
from .engines import SamplerName, Vllm, check_engine
from .extending import Places
from .judge import NOT_FOR_ROLES
from .operator import Operator
from .operators.improve import Evaluate, Train
from .prompts import PromptSource, locate, ships
from .recipe_checks import NO_ROUND, check_precision, check_stages
from .roles import (
    REFERENCES,
    STUDENT,
    Role,
    check_money,
    check_roles,
    describe,
    reached,
)
from .stages import expand, is_raw, override, step_data, written_at
from .yaml_lines import line_of

LEAVE = ("unproven_judge", "self_judge", "same_judge", "lossy_prompts")
"""Keys that allow what is refused else."""
NOT_IN_ID = ("name", "execution", *LEAVE)
"""Keys that change no row: how the run is called, where it runs, and what is allowed."""
_ROLES = TypeAdapter(dict[str, Role])


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
    budget_usd: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Dollars that calls may cost; the most that a chunk can cost is set aside before its first call."""

    @model_serializer(mode="wrap")
    def _without_no_budget(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = told(self)
        return {k: v for k, v in data.items() if v is not None or k != "budget_usd"}


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
    processes: int = Field(1, ge=1)
    """Processes that share each optimiser step; on GPUs one for each."""
    anchors: int = Field(20, ge=0, le=40)
    """Frozen pairs of its exam about which a judge that is a model is asked again each round; with 0 it
    does not meet the attacks again either."""
    sampler: SamplerName = "transformers"
    """What samples with the models of this machine: transformers in the run's own process, or vllm."""
    vllm: Vllm = Vllm()
    """How vLLM is run."""

    @model_serializer(mode="wrap")
    def _without_the_usual(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        data: dict[str, Any] = told(self)
        return {
            k: v for k, v in data.items() if k == "threads" or getattr(self, k) != fields[k].default
        }


class Recipe(BaseModel):
    """What a run does.

    `round` and `stages` as in YAML are accepted and resolved into `stages` with every step in full.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "run"
    """Name of the run's folder."""
    student: str
    """A catalog name, a hub id, a folder, or `module:Class`."""
    precision: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    """In which the student, and every other model that is loaded here, is held; `auto` is bfloat16 on a card,
    float32 elsewhere, and nf4 (four bits) where a trainer asks for `weights: qlora`."""
    prompts: PromptSource
    roles: dict[str, Role] = Field({}, validate_default=True)
    """Who may speak besides the student."""
    stages: tuple[Stage, ...]
    loop: Loop = Loop()
    seed: int = Field(0, ge=0, lt=2**31)
    chunk: int = Field(64, ge=1, le=4096)
    """Rows of one super-step and one transaction."""
    execution: Execution = Execution()
    unproven_judge: Literal["refuse", "allow"] = "refuse"
    """Whether a judge that has not passed the exam may label or measure; every report then says so."""
    self_judge: Literal["refuse", "allow"] = "refuse"
    """Whether the student may be its only judge."""
    same_judge: Literal["refuse", "allow"] = "refuse"
    """Whether the judge that labels what trains may also measure what came of it."""
    lossy_prompts: Literal["refuse", "allow"] = "refuse"
    """Whether more than 1 % of the prompts may lose characters in the student's tokenizer."""
    base: Path = Field(Path(), exclude=True)
    """Folder that the recipe's own paths are relative to."""

    def __init__(self, **data: Any) -> None:
        # Typed by hand, because `round` is no field: it is resolved into `stages`.
        super().__init__(**data)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not is_raw(data):
            return data
        steps = {key: data[key] for key in ("round", "stages") if key in data}
        return expand({**data, **inputs.located(steps, Path(data.get("base", "")))})

    @field_validator("roles", mode="after")
    @classmethod
    def _with_student(cls, roles: dict[str, Role]) -> dict[str, Role]:
        return {STUDENT: Role(), **roles}

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        problems = (
            check_roles(self.roles, NOT_FOR_ROLES)
            + check_money(self.student, self.roles, self.loop.stop.budget_usd)
            + check_stages(self)
            + check_precision(self)
            + check_engine(self.execution.sampler, self.execution.vllm)
        )
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

    def trainers(self) -> list[Trainer]:
        """Return the trainer of every train step."""
        steps = [step for stage in self.stages for step in stage.steps]
        return [step.load_trainer() for step in steps if isinstance(step, Train)]

    @property
    def evaluate(self) -> Evaluate:
        """The evaluate step, the same in every stage."""
        return next(s for s in self.stages[0].steps if isinstance(s, Evaluate))

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain data, every stage and setting in full."""
        data: dict[str, Any] = self.model_dump(
            mode="json", exclude={"stages", "base"}, by_alias=True
        )
        data["roles"] = {k: v for k, v in data["roles"].items() if k != STUDENT}
        data["stages"] = inputs.written(self._steps(), self.base)
        return data

    def _steps(self) -> list[dict[str, Any]]:
        return [
            {"repeat": stage.repeat, "round": [step_data(step) for step in stage.steps]}
            for stage in self.stages
        ]

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML; loading it gives the same run."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, width=100)

    @property
    def key(self) -> str:
        """Hash of all that decides what the run's rows are: no name, path, execution or leave."""
        data = self.resolved()
        for left_out in NOT_IN_ID:
            data.pop(left_out)
        data["loop"]["stop"].pop("budget_usd", None)  # it decides how far, and not what
        if self.precision in ("auto", "float32"):  # what it was before there was a choice
            data.pop("precision")
        data["stages"] = inputs.hashed(data["stages"], self.base)
        data["student"] = _policy_key(self.student, self.base)
        for name, path in self.prompts.named().items():
            data["prompts"][name] = _file_hash(path, self.base)
        data["roles"] = {name: self._role_key(role) for name, role in self.roles.items()}
        return content_hash(canonical(data))

    def _role_key(self, role: Role) -> dict[str, Any]:
        shot = role.context.few_shot
        return describe(role) | {
            "policy": _policy_key(reached(role.policy), self.base),
            "examples": _file_hash(shot.file, self.base) if shot else None,
        }

    def data_files(self) -> list[str]:
        """Return every data file that the recipe names."""
        shots = [role.context.few_shot for role in self.roles.values()]
        return [p for p, _ in self.prompts.files()] + [shot.file for shot in shots if shot]

    def step_files(self) -> list[Path]:
        """Return every file that a step reads: rubrics, templates, votes, labelled pairs."""
        return inputs.named(self._steps(), self.base)

    def moved(self, targets: Mapping[Path, str], base: Path) -> Recipe:
        """Return the recipe with other files for its steps, in another folder.

        Args:
            targets: file -> path from the new folder.
            base: the new folder; the files are there.
        """
        if not targets:
            return self.model_copy(update={"base": base})
        stages = inputs.moved(self._steps(), self.base, targets)
        data = self.resolved() | {"stages": stages, "base": base}
        return Recipe.model_validate(data)


KEYS = (
    *(name for name in Recipe.model_fields if name not in ("stages", "base")),
    "round",
    "stages",
)
"""What a recipe's file may hold, beside what says of which other recipe it is a variant."""


def load_recipe(text: str, name: str, *, base: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with all that it extends.

    Args:
        text: YAML.
        name: what to call the file in messages.
        base: the folder that its paths are relative to.
        overrides: `a.b=c` settings, each replacing what the file says.

    Raises:
        BadInput: with every problem that was found, each with its line.
    """
    written = extending.read(text, name, base, ("name", *LEAVE))
    data, places = written.data, written.places
    found = [p for o in overrides if (p := override(data, o, KEYS))]
    if found:
        raise BadInput(*found)
    found += _misspelt(data, places)
    if "round" not in data and "stages" not in data:
        found.append(NO_ROUND)
        data["stages"] = ()
    try:
        recipe = Recipe.model_validate(data | {"base": base})
    except ValidationError as error:
        found += [*plugins.problems_of(error, "", Recipe), *_role_problems(data)]
    except BadInput as error:
        found += [*error.problems, *_others(data), *_role_problems(data)]
    if found:
        raise BadInput(*dict.fromkeys(_placed(p, name, data, places) for p in found))
    return recipe


def _others(data: dict[str, Any]) -> list[Problem]:
    """Return the problems outside the steps, where the steps have stopped validation already."""
    rest = {k: v for k, v in data.items() if k not in ("round", "stages")}
    try:
        Recipe.model_validate(rest | {"stages": ()})
    except ValidationError as error:
        return plugins.problems_of(error, "", Recipe)
    except BadInput as error:
        return [problem for problem in error.problems if problem != NO_ROUND]
    return []


def _misspelt(data: dict[str, Any], places: Places) -> list[Problem]:
    """Report unknown keys, and read each as the key that it is nearest to, if that one is missing."""
    problems = []
    for key in [key for key in data if key not in KEYS]:
        hint = plugins.did_you_mean(str(key), (*KEYS, *extending.KEYS), "keys are")
        problems.append(Problem(str(key), "unknown key", hint))
        value = data.pop(key)
        near = difflib.get_close_matches(str(key), KEYS, n=1)
        if near and near[0] not in data:
            data[near[0]] = value
            places |= {(near[0], *path[1:]): n for path, n in places.items() if path[:1] == (key,)}
    return problems


def _role_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Check the names of roles, where something else has stopped validation already."""
    try:
        roles = _ROLES.validate_python(data.get("roles", {}))
    except ValidationError:
        return []  # told already
    return check_roles(roles, NOT_FOR_ROLES)


def _placed(problem: Problem, name: str, data: Mapping[str, Any], places: Places) -> Problem:
    """Put file and line before a key's path."""
    where = written_at(problem.where, data)
    # A trainer's settings may be written beside its name.
    beside = re.sub(r"\.trainer\.\w+\.(\w+)$", r".\1", where)
    at = line_of(beside, places, exact=True) or line_of(where, places) or name
    return Problem(f"{at} {where}".rstrip(), problem.what, problem.hint)


def _policy_key(spec: str, base: Path) -> str:
    """Return what stands for a policy in ids: for a folder not its path, which may change."""
    config = base / spec / "config.json"
    named = spec in (STUDENT, REFERENCES) or catalog.is_plugin(spec)
    if named or not config.is_file():
        return spec
    return f"folder {hashlib.sha256(config.read_bytes()).hexdigest()}"


def _file_hash(path: str, base: Path) -> str:
    """Return the hash of a data file, or the one that it had before rows of it were forgotten."""
    digest = hashlib.sha256(locate(path, base).read_bytes()).hexdigest()
    note = base / f"{path}{WAS}"
    known = json.loads(note.read_bytes()) if not ships(path) and note.is_file() else {}
    return str(known["was"]) if known.get("is") == digest else digest
