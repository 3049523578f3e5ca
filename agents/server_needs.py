"""What a recipe asks of its servers beside answers, and whether they can do it: found before anything is paid.

Only a role that is asked for more than text is tried, and only for what it is asked. What a server was seen to do
is known for as long as this process lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import Problem
from ..policies.abilities import TOLD, Abilities, Ability, Found, abilities, cost, least
from ..policies.address import Address, is_address, is_remote
from ..policies.policy import Policy
from ..policies.server import strange
from ..policies.transport import Client
from .gating import seats
from .judge import needs_choice, needs_weights
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
    found = [*_of_judges(recipe), *_of_lessons(recipe)]
    return [need for need in dict.fromkeys(found) if is_remote(recipe.roles[need.role].policy)]


def _of_judges(recipe: Recipe) -> Iterator[Need]:
    for seat in seats(recipe):
        for judge in _leaves(seat.judge):
            wanted = _READS if needs_weights(judge) else _WEIGHS if needs_choice(judge) else ()
            for role in _roles(judge) if wanted else ():
                yield Need(role, wanted, seat.where, str(getattr(judge, "name", "the judge")))


def _leaves(judge: object) -> Iterator[object]:
    inner: Sequence[object] = getattr(judge, "inner", ())
    if not inner:
        yield judge
    for one in inner:
        yield from _leaves(one)


def _roles(judge: object) -> Sequence[str]:
    named: Callable[[], Sequence[str]] | None = getattr(judge, "roles", None)
    return named() if named else ()


def _of_lessons(recipe: Recipe) -> Iterator[Need]:
    for stage in recipe.stages:
        for step in stage.steps:
            if isinstance(step, Train):
                for role in sorted(set(step.teachers().values())):
                    yield Need(role, _READS, f"{step.step}.teacher", step.trainer_name)


def check_servers(recipe: Recipe) -> list[Problem]:
    """Return what a recipe needs of its servers and they cannot do; asks them what is not known yet.

    Raises:
        TryLater: one of them does not answer.
    """
    wanted = needs(recipe)
    problems = [_refused(need) for need in wanted if not is_address(recipe.roles[need.role].policy)]
    behind = served(recipe.roles)
    wanted = [need for need in wanted if need.role in behind]
    asked: dict[str, tuple[Ability, ...]] = {}
    for need in wanted:
        asked[need.role] = tuple(dict.fromkeys((*asked.get(need.role, ()), *need.abilities)))
    found = ask_servers(recipe.roles, asked)
    for need in wanted:
        can = found[need.role]
        missing = [ability for ability in need.abilities if not can[ability].level]
        for ability in missing[:1]:
            what = f"{need.who} needs {TOLD[ability]} of {need.role}'s server, which has none"
            why = f" ({can[ability].why})" if can[ability].why else ""
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


def check_tokens(recipe: Recipe, reader: Policy) -> list[Problem]:
    """Return which served roles whose log-probs are needed read other tokens than the student.

    Raises:
        TryLater: a server does not answer.
    """
    reading = {n.role: n.where for n in needs(recipe) if "prompt_log_probs" in n.abilities}

    async def work() -> list[Problem]:
        problems = []
        for role in reading:
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

    return asyncio.run(work()) if reading else []


def served(roles: Mapping[str, Role]) -> dict[str, Role]:
    """Return the roles behind addresses."""
    return {name: role for name, role in roles.items() if is_address(role.policy)}


def hosts(role: Role) -> str:
    """Return the hosts of a role behind an address, for people."""
    return Address(role.policy, role.model or "").host
