"""The noun *judge*: what a completion is worth, as a judgement in [0, 1] or a status.

A judge that cannot judge says so with a status. It never raises for an answer, and never clamps or
guesses a number (facts F12 and F52 of what went wrong elsewhere: 9.2e124, 90 read as 1.0).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeGuard, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from ..errors import BadInput
from ..hashing import content_hash
from ..types import Completion, Judgement, Prompt
from . import plugins

BUILTINS = {
    "chat": "redistill.agents.judges.chat:Chat",
    "verifier": "redistill.agents.judges.program:Verifier",
    "longest": "redistill.agents.judges.program:Longest",
    "shortest": "redistill.agents.judges.program:Shortest",
    "random": "redistill.agents.judges.program:Random",
    "shuffled": "redistill.agents.judges.program:Shuffled",
    "replay": "redistill.agents.judges.replay:Replay",
    "first": "redistill.agents.judges.program:First",
    "human": "redistill.agents.judges.human:Human",
    "choice": "redistill.agents.judges.model:Choice",
    "rating": "redistill.agents.judges.model:Rating",
    "likelihood": "redistill.agents.judges.model:Likelihood",
    "agreement": "redistill.agents.judges.agreement:Agreement",
    "reward_model": "redistill.agents.judges.reward:RewardModel",
    "trained": "redistill.agents.judges.trained:Trained",
    "both_orders": "redistill.agents.judges.combine:BothOrders",
    "repeat": "redistill.agents.judges.combine:Repeat",
    "win_rate": "redistill.agents.judges.win_rate:WinRate",
    "jury": "redistill.agents.judges.jury:Jury",
    "length_corrected": "redistill.agents.judges.fitted:LengthCorrected",
    "calibrated": "redistill.agents.judges.fitted:Calibrated",
    "cached": "redistill.agents.judges.cached:Cached",
}

NOT_FOR_ROLES = BUILTINS.keys() - {"trained"}
"""Names of judges that no role may have, because each means the judge. `trained` alone means none, it needs a step; and
it is what `judge train` calls the role of a judge that it makes."""

JudgeSpec = Annotated[
    str | dict[str, Any], BeforeValidator(lambda judge: plugins.spec_of(judge, BUILTINS))
]
"""How a recipe, or another judge, names a judge; in Python the judge itself will do."""

_RESERVED = (
    "all analyse analyze and anti any array as asc asof asymmetric at authorization binary "
    "both by case cast check collate collation column columns concurrently constraint create "
    "cross default deferrable desc describe distinct do else end except false fetch for "
    "foreign freeze from full generated glob group having ilike in initially inner intersect "
    "into is isnull join lambda lateral leading left like limit map natural not notnull null "
    "offset on only or order outer overlaps pivot pivot_longer pivot_wider placing positional "
    "primary qualify references returning right select semi show similar some struct "
    "summarize symmetric table tablesample then to trailing true try_cast tuple union unique "
    "unpack unpivot using variadic verbose when where window with"
)
RESERVED = frozenset(_RESERVED.split())
"""Words that DuckDB does not take as a column name; a test compares them with DuckDB's own."""

Answer = bool | float | Judgement | None
"""What a plain callable may return: pass or fail, a value in [0, 1], a judgement, or no opinion."""


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One completion to be judged, or several beside each other, with the prompt that they answer."""

    prompt: Prompt
    completion: Completion
    """The one to be scored or criticised; of a comparison, the first one presented."""
    others: tuple[Completion, ...] = ()
    """The others of a comparison, in the order presented; of a score, where the judge says `needs_group`, all
    other samples of the prompt, in the order of their ids."""
    attempt: int = 0
    """Which asking of the same thing this is; a judge that samples takes it into its seed."""

    @property
    def candidates(self) -> tuple[Completion, ...]:
        """All completions in the order presented."""
        return (self.completion, *self.others)


class Judge(Protocol):
    """What every judge has. It can do one or more of `score`, `compare`, `critique`: see the classes below.

    A judge that speaks through a role (a policy or a server) has two methods more: `roles()`, the names
    of its roles, and `bound(speaker)`, which returns the judge ready to speak; see `speaker.py`.
    """

    @property
    def name(self) -> str:
        """Name of the judge's column in the `answers` view."""

    @property
    def revision(self) -> str:
        """Content hash of kind, settings and code version: equal revisions judge alike."""


class Scorer(Judge, Protocol):
    """A judge that gives a completion a value."""

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each task's completion a value in [0, 1], in the order given."""


class Comparer(Judge, Protocol):
    """A judge that ranks completions of one prompt."""

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates as presented; `Judgement.ranked` makes the verdict."""


class Critic(Judge, Protocol):
    """A judge that says in words what is wrong with a completion."""

    async def critique(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Return judgements whose text is the critique; a value is not needed."""


Mode = Literal["score", "compare", "critique"]


def modes(judge: object) -> tuple[Mode, ...]:
    """Return what a judge can do; one made of other judges says in `able()` what they leave it."""
    every: tuple[Mode, ...] = ("score", "compare", "critique")
    able = getattr(judge, "able", None)
    allowed = able() if callable(able) and not isinstance(judge, type) else every
    found = (m for m in every if inspect.iscoroutinefunction(getattr(judge, m, None)))
    return tuple(m for m in found if m in allowed)


Standing = Literal["program", "person", "baseline", "recorded", "model"]
"""What a judge is to the exam: programs and people are exempt, a baseline is never proven, the others are
examined; only recorded votes cannot be attacked."""
EXEMPT: tuple[Standing, ...] = ("program", "person")
"""Standings that need no exam."""


def standing_of(judge: object) -> Standing:
    """Return what a judge is to the exam.

    It says so itself in `standing`. A plain function counts as a program, a coroutine function as a
    model, because it waits for something; any other judge is a model until it says otherwise.
    """
    function = _innermost(judge.function) if isinstance(judge, CallableJudge) else None
    said = getattr(judge if function is None else function, "standing", None)
    if said in get_args(Standing):
        return cast("Standing", said)
    return "model" if function is None or _is_awaited(function) else "program"


def _is_awaited(function: Any) -> bool:
    """Tell whether a call of it is a coroutine; a callable object has its own `__call__`."""
    called = getattr(function, "__call__", None)  # noqa: B004 - to look at it, not to call it
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def column_name(name: str) -> str:
    """Return a name that can be an SQL column.

    Raises:
        ValueError: it cannot, with what to do.
    """
    if not (name.isascii() and name.isidentifier()):
        raise ValueError(f"{name!r} names a column: letters, digits and _ only, no digit first")
    if name.casefold() in RESERVED:
        raise ValueError(f"{name!r} names a column, and SQL reserves the word; use another name")
    return name


ColumnName = Annotated[str, AfterValidator(column_name)]


class SettledJudge(BaseModel):
    """Base of judges that are a pydantic class: the revision follows from the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ColumnName
    """Name of the judge's column; give one when a recipe holds two judges of a kind."""

    version: ClassVar[int] = 1
    """Raised with every change of code that can change a judgement."""

    @property
    def revision(self) -> str:
        """Content hash of kind, settings and code version; the name is only a label."""
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        settings = self.model_dump(mode="json", exclude={"name"})
        return content_hash([kind, self.version, settings])


def load(spec: object, where: str) -> Judge:
    """Return the judge that a recipe's `judge:` describes.

    Args:
        spec: a name, `{name: {settings}}`, `module:Attr`, or, from Python, a judge or a callable.
        where: the key's path, for messages.

    Raises:
        BadInput: with every problem of the spec at once.
    """
    built: object = spec
    if isinstance(spec, str | Mapping):
        built = plugins.build("judges", spec, BUILTINS, where)
    if _is_judge(built):
        try:
            column_name(built.name)
        except ValueError as error:
            raise BadInput.at(where, str(error)) from None
        return built
    if not callable(built):
        raise BadInput.at(
            where,
            f"{type(built).__name__} is no judge",
            "a judge has `name`, `revision` and `async def score(tasks)`, or is a function of "
            "(prompt, completion)",
        )
    return _from_callable(built, where)


def scorer(spec: object, where: str) -> Scorer:
    """Return a judge that gives values; `load` says what may be given.

    Raises:
        BadInput: the judge cannot do it.
    """
    return cast("Scorer", _able(load(spec, where), "score", where))


def comparer(spec: object, where: str) -> Comparer:
    """Return a judge that compares; `load` says what may be given.

    Raises:
        BadInput: the judge cannot do it.
    """
    return cast("Comparer", _able(load(spec, where), "compare", where))


def critic(spec: object, where: str) -> Critic:
    """Return a judge that criticises; `load` says what may be given.

    Raises:
        BadInput: the judge cannot do it.
    """
    return cast("Critic", _able(load(spec, where), "critique", where))


def _able(judge: Judge, mode: Mode, where: str) -> Judge:
    able = modes(judge)
    if mode not in able:
        raise BadInput.at(where, f"{judge.name} cannot {mode}", f"it can {' and '.join(able)}")
    return judge


def roles_of(judge: Judge) -> tuple[str, ...]:
    """Return the roles through which a judge speaks; a program speaks through none."""
    named = getattr(judge, "roles", None)
    return tuple(named()) if callable(named) else ()


def needs_group(judge: object) -> bool:
    """Tell whether a judge scores a completion beside all other samples of its prompt; it says so itself."""
    return bool(getattr(judge, "needs_group", False))


def let_go(judge: object) -> None:
    """Let a judge that holds a model of its own give the memory back; it is loaded again when asked again."""
    release: Callable[[], None] | None = getattr(judge, "release", None)
    if release is not None:
        release()


def needs_weights(judge: object) -> bool:
    """Tell whether a judge reads log-probs of given answers, which most servers do not tell."""
    return bool(getattr(judge, "needs_weights", False))


def needs_choice(judge: object) -> bool:
    """Tell whether a judge weighs given replies, to which a server must be able to hold its model."""
    return bool(getattr(judge, "needs_choice", False))


def _is_judge(value: object) -> TypeGuard[Judge]:
    return (
        isinstance(getattr(value, "name", None), str)
        and isinstance(getattr(value, "revision", None), str)
        and bool(modes(value))
    )


def _from_callable(function: Callable[..., Any], where: str) -> CallableJudge:
    """Wrap a plain function, once its name and its parameters are known to fit."""
    inner = _innermost(function)
    name = getattr(inner, "__name__", type(inner).__name__)
    try:
        column_name(name)
    except ValueError as error:
        raise BadInput.at(
            where, str(error), "define the judge with `def` and a plain name"
        ) from None
    # A function in C may have no signature to look at: the first call tells.
    with contextlib.suppress(ValueError):
        signature = inspect.signature(function)
        try:
            signature.bind(None, None)
        except TypeError as error:
            raise BadInput.at(
                where, f"{name} is called with (prompt, completion), but {error}"
            ) from None
    return CallableJudge(name=name, revision=_callable_revision(function), function=function)


def _innermost(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _callable_revision(function: Any) -> str:
    """Hash where a function lives, what it says (where its source is at hand) and what is bound."""
    inner = _innermost(function)
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError):
        source = ""
    bound = ""
    if isinstance(function, functools.partial):
        bound = repr((function.args, sorted(function.keywords.items())))
    return content_hash(["callable", 1, f"{named.__module__}:{named.__qualname__}", source, bound])


@dataclass(frozen=True)
class CallableJudge:
    """A judge made of a plain function `f(prompt, completion) -> bool | float | Judgement | None`.

    A synchronous function runs in a thread of its own, one answer after another; a coroutine function
    is awaited for all answers together. One call may last `deadline` seconds. Python cannot stop a
    thread, so after `patience` calls that hung, the rest of the batch is not asked: every hung call
    may still burn a core, and a judge that hangs on each answer would leave a thread for each.
    """

    name: str
    revision: str
    function: Callable[..., Any] = field(repr=False)
    deadline: float = 60.0
    """Seconds."""
    patience: int = 3

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Judge each task, in the order given."""
        if _is_awaited(_innermost(self.function)):
            return list(await asyncio.gather(*(self._awaited(task) for task in tasks)))
        judgements: list[Judgement] = []
        hung = 0
        for task in tasks:
            if hung >= self.patience:
                judgements.append(
                    Judgement.failed("timeout", f"not asked: {self.name} hung {hung} times")
                )
                continue
            judgements.append(await self._threaded(task))
            hung += judgements[-1].status == "timeout"
        return judgements

    async def _awaited(self, task: JudgeTask) -> Judgement:
        try:
            async with asyncio.timeout(self.deadline) as limit:
                return judged(await self.function(task.prompt, task.completion))
        except Exception as error:  # noqa: BLE001 - a judge's failure is data, whatever it raises
            return self._late() if limit.expired() else _failure(error)

    async def _threaded(self, task: JudgeTask) -> Judgement:
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Judgement] = loop.create_future()

        def settle(judgement: Judgement) -> None:
            if not reply.done():
                reply.set_result(judgement)

        def work() -> None:
            try:
                judgement = judged(self.function(task.prompt, task.completion))
            except Exception as error:  # noqa: BLE001 - a judge's failure is data
                judgement = _failure(error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, judgement)

        # Not the loop's own executor: it would wait for a hung call when the loop ends.
        threading.Thread(target=work, name=f"judge {self.name}", daemon=True).start()
        try:
            return await asyncio.wait_for(reply, self.deadline)
        except TimeoutError:
            return self._late()

    def _late(self) -> Judgement:
        return Judgement.failed("timeout", f"no judgement within {self.deadline:g} s")


def judged(answer: Any) -> Judgement:
    """Turn what a callable returned into a judgement; what is no answer becomes `parse_error`."""
    if isinstance(answer, Judgement):
        return answer
    if answer is None:
        return Judgement.failed("not_applicable", "the judge has no opinion")
    if type(answer).__module__ == "numpy" and callable(getattr(answer, "item", None)):
        answer = answer.item()  # numpy's own bool and float32 are neither bool nor float
    if not isinstance(answer, Real):
        return Judgement.failed(
            "parse_error", f"a judge returns a bool or a number, not {type(answer).__name__}"
        )
    value = float(answer)
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        return Judgement.failed("parse_error", f"a judge's number lies in [0, 1], not {answer!r}")
    return Judgement(value=value, raw=value)


def _failure(error: BaseException) -> Judgement:
    return Judgement.failed("error", f"{type(error).__name__}: {error}"[:500])
