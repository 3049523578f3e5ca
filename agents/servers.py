"""The servers of a run: which client calls for a role whose model is behind an address."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..hashing import canonical
from ..policies.address import Address, Price, Secret, is_provider, is_remote
from ..policies.calls import Caller
from ..policies.server import caller_of
from .roles import REMOTE_ONLY, Role


class Servers:
    """Hands out clients by role. Roles with the same settings share one, and so its limits.

    Args:
        roles: all roles of the run; those of models of this machine are passed over.
        say: is told in one line what a person should know.

    Raises:
        BadInput: a key is not in the environment.
        EnvironmentProblem: a provider's package is not installed.
    """

    def __init__(
        self, roles: Mapping[str, Role], say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.say = say
        self._clients: dict[bytes, Caller] = {}
        self._of: dict[str, bytes] = {}
        self._read: set[tuple[bytes, str]] = set()
        for name, role in roles.items():
            if not is_remote(role.policy):
                continue
            settings = role.model_dump(mode="json", include={"policy", *REMOTE_ONLY})
            self._of[name] = key = canonical(settings)
            if key not in self._clients:
                self._clients[key] = _client(name, role, self._told)

    def serve(self, role: str) -> bool:
        """Say whether a role's model is behind an address."""
        return role in self._of

    def client(self, role: str) -> Caller:
        """Return the client that calls for a role."""
        return self._clients[self._of[role]]

    def reads(self, role: str, vocabulary: str, *, seen: bool = False) -> bool:
        """Say whether a role's server was seen to read the tokens of a vocabulary; `seen` notes that it was."""
        key = (self._of[role], vocabulary)
        if seen:
            self._read.add(key)
        return key in self._read

    async def close(self) -> None:
        """Hang up everywhere."""
        for client in self._clients.values():
            await client.close()

    def _told(self, line: str) -> None:
        self.say(line)


def _client(name: str, role: Role, say: Callable[[str], None]) -> Caller:
    address = address_of(name, role)
    if is_provider(role.policy):
        from ..policies.provider import ProviderClient

        return ProviderClient(role.policy, address, say)
    return caller_of(address, say)


def address_of(name: str, role: Role) -> Address:
    """Return a role's address, or all those of its pool, its key read from the environment.

    Raises:
        BadInput: the key is not there.
    """
    given = {
        "concurrency": role.concurrency,
        "rpm": role.rpm,
        "tpm": role.tpm,
        "deadline": role.deadline,
        "answers_as": role.answers_as,
    }
    return Address(
        url=role.policy,
        model=role.model or role.policy.partition(":")[2],
        key=Secret.named(role.key, f"roles.{name}.key") if role.key else None,
        price=Price(role.price.in_, role.price.out) if role.price else None,
        **{k: v for k, v in given.items() if v is not None},  # type: ignore[arg-type]
    )
