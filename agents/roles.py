"""Roles: bindings of a name to a policy, a revision of it, and a context.

No operator asks whether the teacher is the student: it names a role, and the role says who speaks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from ..errors import BadInput, Problem
from ..hashing import content_hash
from ..policies.address import (
    address_fault,
    is_address,
    is_pool,
    is_provider,
    is_remote,
    key_fault,
)
from ..types import Message, Prompt
from .plugins import did_you_mean
from .prompts import first_few, read_rows

STUDENT = "student"
REFERENCES = "references"
"""A policy without a model: it quotes the answer that the prompt itself comes with."""
RevisionName = Literal["current", "champion", "previous", "initial"]


class FewShot(BaseModel):
    """Worked examples that are shown as earlier turns of the conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """JSONL rows `{prompt, answer, tags?}`; `redistill:NAME.jsonl` is one that ships."""
    n: int = Field(3, ge=1)
    """Examples shown."""
    match: str | None = None
    """Show examples whose tag of this key equals the prompt's, for example `form`."""


class RoleContext(BaseModel):
    """What a role sees before the prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str | None = None
    """A system turn."""
    few_shot: FewShot | None = None
    """Worked examples."""


class RolePrice(BaseModel):
    """What a model costs, in dollars for a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    in_: float = Field(alias="in", ge=0, allow_inf_nan=False)
    """Tokens read."""
    out: float = Field(ge=0, allow_inf_nan=False)
    """Tokens written, those of reasoning included."""


class Role(BaseModel):
    """Who speaks: a policy, which revision of it, and what it is shown first.

    The settings after `context` are of models behind an address or at a provider. Of these only `model`
    decides what a run is; the others say how it is reached.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = STUDENT
    """`student`, `references` (the answer that comes with the prompt), a model as in the recipe's `student` key, an
    OpenAI-compatible address such as
    `http://127.0.0.1:8000/v1`, a list of such addresses of one model, or `provider:model` where LangChain is
    installed."""
    revision: RevisionName = "current"
    """current is the champion until `train`, the challenger after; the student's only."""
    context: RoleContext = RoleContext()
    """What the role is shown before the prompt; training prompts leave it out."""
    model: str | None = None
    """Name of the model at the address."""
    key: str | None = None
    """`env:NAME`, the environment variable that holds the key."""
    concurrency: int | None = Field(None, ge=1, le=20_000)
    """Calls in flight, at each address; 64 where it is left out."""
    rpm: int | None = Field(None, ge=1)
    """Most calls a minute, at each address."""
    tpm: int | None = Field(None, ge=1)
    """Most tokens a minute, at each address."""
    deadline: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds that one call may last, retries included; 120 where it is left out."""
    price: RolePrice | None = None
    """What it costs; a money budget needs it."""
    answers_as: str | None = None
    """Name by which the server calls the model in its replies, where it is another than `model`."""

    @field_validator("policy", mode="before")
    @classmethod
    def _pooled(cls, policy: Any) -> Any:
        """Write the addresses of a pool as one text, in an order that does not depend on the recipe's."""
        if not isinstance(policy, list | tuple):
            if isinstance(policy, str) and len(policy.split()) > 1 and is_address(policy):
                raise ValueError("several addresses are a list: [http://a/v1, http://b/v1]")
            return policy
        if not policy or not all(isinstance(one, str) and is_address(one) for one in policy):
            raise ValueError("a list is of addresses: [http://a/v1, http://b/v1]")
        each = [one.strip().rstrip("/") for one in policy]
        if twice := next((one for one in each if each.count(one) > 1), None):
            raise ValueError(f"{twice} stands in it twice")
        return " ".join(sorted(each)) if len(each) > 1 else policy[0]

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A recipe of models of this machine reads, and is hashed, as if these settings did not exist.
        data: dict[str, Any] = told(self)
        if is_pool(self.policy):
            data["policy"] = self.policy.split()
        return {k: v for k, v in data.items() if v is not None or k not in REMOTE_ONLY}


_HOW = ("key", "concurrency", "rpm", "tpm", "deadline", "price", "answers_as")
"""Settings that say how a model is reached, and not which one it is."""
REMOTE_ONLY = ("model", *_HOW)


class Staging:
    """A role's context, ready to be put before prompts.

    Raises:
        BadInput: the examples' file is missing or malformed.
    """

    def __init__(self, name: str, role: Role, base: Path) -> None:
        self.role = role
        self.system = role.context.system
        shot = role.context.few_shot
        self._shot = shot
        where = f"roles.{name}.context.few_shot"
        self._examples = _examples(shot, base, where) if shot else []
        if shot and shot.match:
            _check_match(shot, self._examples, where)

    @property
    def digest(self) -> str:
        """Hash of all that the context shows; empty for none."""
        if not self.system and not self._examples:
            return ""
        shown = [[list(turn) for turn in example] for example in self._examples]
        rule = [self._shot.n, self._shot.match] if self._shot else []
        return content_hash([self.system, rule, shown])

    def stage(self, prompt: Prompt) -> tuple[Message, ...]:
        """Return the conversation that the role sees."""
        return self.before(prompt.tags) + prompt.messages

    def before(self, tags: Sequence[str] | None) -> tuple[Message, ...]:
        """Return the turns that the role sees first.

        Args:
            tags: of the prompt that follows; None where none does, and no worked answer belongs.
        """
        system = (Message("system", self.system),) if self.system else ()
        return system + tuple(
            message
            for question, answer, _ in ([] if tags is None else self._matching(tags))
            for message in (Message("user", question), Message("assistant", answer))
        )

    def _matching(self, tags: Sequence[str]) -> Sequence[tuple[str, str, tuple[str, ...]]]:
        if self._shot is None:
            return []
        key = self._shot.match
        # As `Prompt.tag` has it: of several tags of a key the first counts.
        own = next((tag for tag in tags if key and tag.startswith(f"{key}:")), f"{key}:None")
        fits = [e for e in self._examples if key is None or own in e[2]]
        return fits[: self._shot.n]


def _examples(shot: FewShot, base: Path, where: str) -> list[tuple[str, str, tuple[str, ...]]]:
    examples = []
    problems = []
    for number, row in read_rows(shot.file, base, where):
        prompt, answer, tags = row.get("prompt"), row.get("answer"), row.get("tags", [])
        place = f"{shot.file}:{number}"
        if not isinstance(prompt, str) or not isinstance(answer, str):
            problems.append(Problem(place, "needs the texts `prompt` and `answer`"))
        elif not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            problems.append(Problem(place, f"tags must be a list of texts, not {tags!r}"))
        else:
            examples.append((prompt, answer, tuple(tags)))
    if problems:
        raise BadInput(*first_few(problems))
    return examples


def _check_match(
    shot: FewShot, examples: Sequence[tuple[str, str, tuple[str, ...]]], where: str
) -> None:
    """Refuse a `match` that fits no example: the role would be shown nothing, and nobody told."""
    keys = {tag.partition(":")[0] for _, _, tags in examples for tag in tags}
    if shot.match not in keys:
        hint = did_you_mean(str(shot.match), sorted(keys), "keys of their tags are")
        raise BadInput.at(f"{where}.match", f"no example has a tag {shot.match}:...", hint)


def check_roles(roles: Mapping[str, Role], judges: Collection[str]) -> list[Problem]:
    """Return what is wrong with the names of roles."""
    problems = []
    for name, role in roles.items():
        where = f"roles.{name}"
        if name == STUDENT and role != Role():
            hint = "give a role of another name the policy `student`"
            problems.append(Problem(where, "the student's own role is fixed", hint))
        if name in judges:
            problems.append(Problem(where, "is the name of a judge", "give the role another name"))
        if role.policy != STUDENT and role.revision != "current":
            problems.append(
                Problem(
                    f"{where}.revision", f"{role.revision!r} is of the student only", "leave it out"
                )
            )
        if role.policy == REFERENCES and role.context != RoleContext():
            what = "nobody is shown it: the role quotes the prompt's own answer"
            problems.append(Problem(f"{where}.context", what, "leave it out"))
        problems += _check_remote(role, where)
    return problems


def check_money(student: str, roles: Mapping[str, Role], budget: float | None) -> list[Problem]:
    """Refuse a student that cannot be trained, and a budget that nobody could keep."""
    problems = []
    if is_remote(student):
        hint = "give a model of this machine; a role may have an address"
        problems.append(Problem("student", "a model behind an address cannot be trained", hint))
    if budget is not None:
        hint = "say `price: {in: ..., out: ...}` in dollars per million tokens; 0 is a price too"
        problems += [
            Problem(f"roles.{name}.price", "is needed to keep `loop.stop.budget_usd`", hint)
            for name, role in roles.items()
            if is_remote(role.policy) and role.price is None
        ]
    return problems


def _check_remote(role: Role, where: str) -> list[Problem]:
    """Check what only a model elsewhere has; a key that stands in the recipe is never repeated."""
    given = [name for name in REMOTE_ONLY if getattr(role, name) is not None]
    if not is_remote(role.policy):
        hint = "give the role an address as its policy, or leave it out"
        return [Problem(f"{where}.{n}", "is only for a model at an address", hint) for n in given]
    problems = []
    if is_address(role.policy):
        faults = map(address_fault, role.policy.split())
        problems += [Problem(f"{where}.policy", *fault) for fault in faults if fault]
        if not role.model:
            hint = "say `model:` as the server names it; GET /models lists them"
            problems.append(Problem(f"{where}.model", "is needed with an address", hint))
    if is_provider(role.policy) and role.model is not None:
        problems.append(Problem(f"{where}.model", "stands in the policy already", "leave it out"))
    if role.key is not None and (fault := key_fault(role.key)):
        problems.append(Problem(f"{where}.key", *fault))
    return problems


def reached(policy: str) -> str:
    """Return what a policy is called in ids. Of a pool its addresses are how a model is reached, and not which."""
    return "pool" if is_pool(policy) else policy


def describe(role: Role) -> dict[str, Any]:
    """Return a role's settings without file paths and without how it is reached, for ids."""
    how: dict[str, Any] = dict.fromkeys(_HOW, True)
    told = role.model_dump(mode="json", exclude=how | {"context": {"few_shot": {"file"}}})
    return told | {"policy": reached(role.policy)}
