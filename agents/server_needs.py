"""What a recipe asks of its servers beside answers, and whether they can do it: found before anything is paid.

Only a role that is asked for more than text is tried, and only for what it is asked. What a server was seen to do
is known for as long as this process lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import BadInput, Problem
from ..policies.abilities import TOLD, Abilities, Ability, Found, abilities, cost, least
from ..policies.address import Address, is_address, is_remote
from ..policies.policy import Policy
from ..policies.server import strange
from ..policies.transport import Client
from .gating import judges_of
from .judge import needs_choice, needs_weights
from .operator import Operator
from .operators.improve import Train
from .recipe import Recipe
from .roles import Role
from .servers import address_of

_WEIGHS: tuple[Ability, ...] = ("choice", "log_probs")
_READS: tuple[Ability, ...] = ("token_ids", "prompt_log_probs")
_PATIENCE = 30.0
"""Seconds that one question may take."""

_known: dict[tuple[str, str], dict[Ability, Found]] = {}
"""By address and model."""


@dataclass(frozen=True, slots=True)
class Need:
    """What somebody asks of a role's server."""

    role: str
    abilities: tuple[Ability, ...]
    where: str
    """The key's path."""
    who: str


def needs(recipe: Recipe) -> list[Need]:
    """Return what is asked of roles behind addresses beside answers in words."""
    steps = [step for stage in recipe.stages for step in stage.steps]
    found = dict.fromkeys(need for step in steps for need in of_step(step))
    return [need for need in found if is_remote(recipe.roles[need.role].policy)]


def of_step(step: Operator) -> Iterator[Need]:
    """Return what a step asks of its roles beside words: a critic's are no more than that."""
    for judge, _ in judges_of(step):
        yield from of_judge(judge, f"{step.step}.judge")
    if isinstance(step, Train):
        for role in sorted(set(step.teachers().values())):
            yield Need(role, _READS, f"{step.step}.teacher", step.trainer_name)


def of_judge(judge: object, where: str) -> Iterator[Need]:
    """Return what a judge, or those inside it, ask of their roles beside words; `where` names its key."""
    inner: Sequence[object] = getattr(judge, "inner", ())
    for one in inner:
        yield from of_judge(one, where)
    if inner:
        return
    wanted = _READS if needs_weights(judge) else _WEIGHS if needs_choice(judge) else ()
    named: Callable[[], Sequence[str]] | None = getattr(judge, "roles", None)
    for role in named() if named and wanted else ():
        yield Need(role, wanted, where, str(getattr(judge, "name", "the judge")))


def check_servers(recipe: Recipe) -> list[Problem]:
    """Return what a recipe needs of its servers and they cannot do; asks them what is not known yet.

    Raises:
        TryLater: one of them does not answer.
    """
    return lacking(recipe.roles, needs(recipe))


def lacking(roles: Mapping[str, Role], wanted: Iterable[Need]) -> list[Problem]:
    """Return what is needed of roles elsewhere that they cannot do; asks their servers what is not known yet.

    Raises:
        TryLater: one of them does not answer.
    """
    far = [need for need in wanted if is_remote(roles[need.role].policy)]
    behind = served(roles)
    problems = [_refused(need) for need in far if need.role not in behind]
    far = [need for need in far if need.role in behind]
    asked: dict[str, tuple[Ability, ...]] = {}
    for need in far:
        asked[need.role] = tuple(dict.fromkeys((*asked.get(need.role, ()), *need.abilities)))
    found = ask_servers(roles, asked)
    for need in far:
        can = found[need.role]
        if missing := next((a for a in need.abilities if not can[a].level), None):
            what = f"{need.who} needs {TOLD[missing]} of {need.role}'s server, which has none"
            why = f" ({can[missing].why})" if can[missing].why else ""
            hint = "vLLM has them; else give it a role whose model runs on this machine"
            problems.append(Problem(need.where, what + why, hint))
    return list(dict.fromkeys(problems))


def _refused(need: Need) -> Problem:
    what = f"{need.who} needs {TOLD[need.abilities[0]]}, which {need.role}'s provider does not tell"
    return Problem(need.where, what, "give it an address of vLLM, or a model of this machine")


def ask_servers(
    roles: Mapping[str, Role], wanted: Mapping[str, Sequence[Ability]]
) -> dict[str, Abilities]:
    """Return what the servers of roles can do, each asked only what is not known of it yet.

    Raises:
        TryLater: one of them does not answer.
    """

    async def work() -> dict[str, Abilities]:
        found = await asyncio.gather(
            *(_ask(address_of(name, roles[name]), asked) for name, asked in wanted.items())
        )
        return dict(zip(wanted, found, strict=True))

    return asyncio.run(work()) if wanted else {}


async def _ask(address: Address, wanted: Sequence[Ability]) -> Abilities:
    """Ask each server of an address, and return what all of them can do."""
    each = []
    for url in address.urls:
        one = _patient(replace(address, url=url))
        known = _known.setdefault((url, address.model), {})
        if missing := [ability for ability in wanted if ability not in known]:
            client = Client(one)
            try:
                known.update(await abilities(client, missing))
            finally:
                await client.close()
        each.append((one.host, {ability: known[ability] for ability in wanted}))
    return least(each)


def _patient(address: Address) -> Address:
    """Return an address that is not waited for long."""
    deadline = min(address.deadline, _PATIENCE)
    return replace(address, deadline=deadline, attempts=3, patience=_PATIENCE)


def most_asked(role: Role, wanted: Sequence[Ability]) -> tuple[int, float | None]:
    """Return the calls that it takes to ask a role's servers, and the most dollars; None where no price is known."""
    calls, read, written = cost(wanted)
    servers = len(role.policy.split())
    price = role.price
    dollars = None if price is None else servers * (read * price.in_ + written * price.out) / 1e6
    return servers * calls, dollars


def check_tokens(recipe: Recipe, reader: Policy) -> None:
    """Refuse served roles whose log-probs are needed, and which read other tokens than the student.

    Raises:
        BadInput: there are some.
        TryLater: a server does not answer.
    """
    reading = {n.role for n in needs(recipe) if "prompt_log_probs" in n.abilities}

    async def work() -> list[Problem]:
        problems = []
        for role in sorted(reading):
            address = address_of(role, recipe.roles[role])
            for url in address.urls:
                client = Client(_patient(replace(address, url=url)))
                try:
                    why = await strange(client, reader)
                finally:
                    await client.close()
                if why:
                    told = f"{client.address.host} cannot speak of the student's tokens: {why}"
                    hint = "serve a model of the student's own family"
                    problems.append(Problem(f"roles.{role}.policy", told, hint))
        return problems

    if reading and (problems := asyncio.run(work())):
        raise BadInput(*problems)


def served(roles: Mapping[str, Role]) -> dict[str, Role]:
    """Return the roles behind addresses."""
    return {name: role for name, role in roles.items() if is_address(role.policy)}


def hosts(role: Role) -> str:
    """Return the hosts of a role behind an address, for people."""
    return Address(role.policy, role.model or "").host
