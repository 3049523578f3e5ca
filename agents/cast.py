"""The cast: which policy speaks for a role, and with which weights.

One policy holds memory at a time, and every load is proven by canaries before a token is believed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..errors import WrongWeights
from ..hashing import content_hash, row_id
from ..policies.placement import Placement
from ..policies.policy import Engined, Policy
from ..policies.proof import prove
from ..policies.revision import Revision
from ..store.store import Store, now
from .handover import Handover
from .roles import STUDENT, RevisionName, Staging, reached
from .servers import Servers

T = TypeVar("T")


class Cast:
    """Hands out policies by role.

    Args:
        folder: the run's folder; student revisions lie in `revisions/<id>`.
        initial: the initial student.
        stagings: each role with its context.
        policies: each policy by the name that roles use; `student` is one of them.
        others: the one revision of each policy that is not the student.
        servers: the clients of roles whose model is behind an address.
    """

    def __init__(
        self,
        folder: Path,
        initial: str,
        stagings: Mapping[str, Staging],
        policies: Mapping[str, Policy],
        others: Mapping[str, Revision],
        servers: Servers | None = None,
    ) -> None:
        self._folder = folder
        self.initial = initial
        self._stagings = stagings
        self._policies = policies
        self._others = others
        self.servers = servers or Servers({})
        self._parents: dict[str, Revision] = {}
        self._handover: Handover | None = None
        self.placement = Placement()
        """Which cards the policies have, and which the trainer."""
        # Kernels keep per-thread state, and two threads that sample at once would fight for the cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="redistill-policy")
        self.stage = asyncio.Lock()
        """Held from `speak` to the last call: else another role's weights could come in between."""

    def staging(self, role: str) -> Staging:
        """Return a role with its context."""
        return self._stagings[role]

    @property
    def student(self) -> Policy:
        """The student, whatever it holds; good for `encode`, which needs no weights."""
        return self._policies[STUDENT]

    def policy(self, role: str) -> Policy:
        """Return a role's policy, whatever it holds; for one behind an address the student's, whose tokens it reads."""
        if self.servers.serve(role):
            return self.student
        return self._policies[self._stagings[role].role.policy]

    def vocabulary(self, revision: str) -> str | None:
        """Return the vocabulary of what a revision says; None where its weights are none of this run's."""
        for name, other in self._others.items():
            if other.id == revision:
                return self._policies[name].vocabulary
        if revision and (self._folder / "revisions" / revision).is_dir():
            return self.student.vocabulary
        return None

    async def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run a policy's blocking method in the policies' own thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def speak(
        self,
        role: str,
        store: Store,
        *,
        round: int,  # noqa: A002 - the column's name
        champion: str,
        current: str,
    ) -> Policy:
        """Return the role's policy, holding the revision that the role names.

        Raises:
            WrongWeights: the policy does not answer with the weights that it was told to load.
        """
        name, revision = self.named(role, store, round=round, champion=champion, current=current)
        return await self.hold(name, revision, store, round)

    def named(
        self,
        role: str,
        store: Store,
        *,
        round: int,  # noqa: A002 - the column's name
        champion: str,
        current: str,
    ) -> tuple[str, Revision]:
        """Return which policy and which of its revisions a role names at this point of the run."""
        binding = self._stagings[role].role
        if self.servers.serve(role):
            # Nobody here can hash its weights: what stands for them is who answers.
            who = content_hash(["server", reached(binding.policy), binding.model])
            return binding.policy, Revision(who, Path(), None, None)
        if binding.policy != STUDENT:
            return binding.policy, self._others[binding.policy]
        names: dict[RevisionName, Callable[[], str]] = {
            "current": lambda: current,
            "champion": lambda: champion,
            "initial": lambda: self.initial,
            "previous": lambda: _previous(store, round, self.initial),
        }
        return STUDENT, self.revision(names[binding.revision]())

    def revision(self, identifier: str) -> Revision:
        """Read a student revision of this run."""
        return Revision.read(self._folder / "revisions" / identifier)

    async def hold(self, name: str, revision: Revision, store: Store, round_: int) -> Policy:
        """Make a policy hold a revision, and prove that it does."""
        policy = self._policies[name]
        if policy.revision == revision.id:
            self._handed_over(name, store, 0.0, 0.0)
            return policy
        for other, held in self._policies.items():
            if other != name and held.revision:
                if self.placement.sampler and isinstance(held, Engined):
                    # On a card an engine that stays would keep what this one needs.
                    await self.call(held.close)
                else:
                    await self.call(held.release)
        began = time.monotonic()
        await self.call(policy.load, revision)
        loaded = time.monotonic()
        parent = self._parents.get(name) or self._parent_of(name, revision)
        proof = await self.call(prove, policy, revision, parent)
        proven = time.monotonic()
        engine = policy.engine if isinstance(policy, Engined) else "transformers"
        detail = {"policy": name, "revision": revision.id, "engine": engine, **asdict(proof)}
        _record(store, round_, "canary", detail)
        if proof.verdict == "wrong":
            await self.call(policy.release)  # or it would be believed when it is asked for next
            older = (
                "" if proof.d_parent is None else f", {proof.d_parent:.2g} to what it held before"
            )
            raise WrongWeights(
                f"{name} was told to load revision {revision.id[:8]} and does not answer with it: {proof.d_new:.2g} "
                f"nats a token away{older}, noise {proof.noise:.2g}; {engine} sampled, another `execution.sampler` may do"
            )
        self._parents[name] = revision
        self._handed_over(name, store, loaded - began, proven - loaded)
        return policy

    def _parent_of(self, name: str, revision: Revision) -> Revision | None:
        if name != STUDENT or revision.parent is None:
            return None
        return self.revision(revision.parent)

    async def make_room(self, store: Store, round_: int, step: str) -> Handover:
        """Make every policy give its memory back, so that a trainer can have it; unless it has cards of its own."""
        if self._handover is not None:  # two jobs, and the student has not spoken in between
            self._handover.write(store)
            self._handover = None
        began = time.monotonic()
        side_by_side = self.placement.side_by_side
        for policy in () if side_by_side else self._policies.values():
            if policy.revision:
                await self.call(policy.release)
        return Handover(round_, step, side_by_side, time.monotonic() - began)

    def take_back(self, handover: Handover) -> None:
        """Let a hand-over end, and be kept, when the student speaks next; the trainer has gone."""
        self._handover = handover

    def _handed_over(self, name: str, store: Store, load: float, proof: float) -> None:
        """End the hand-over that is under way, once the student has its next weights."""
        if self._handover is not None and name == STUDENT:
            self._handover.load, self._handover.proof = load, proof
            self._handover.write(store)
            self._handover = None

    def close(self) -> None:
        """End the engines that run in processes of their own, and the policies' thread."""
        engines = [policy for policy in self._policies.values() if isinstance(policy, Engined)]
        for policy in engines:  # what the thread waits for
            policy.close()
        self._thread.shutdown()
        for policy in engines:  # what the thread has started meanwhile
            policy.close()


def _previous(store: Store, round_: int, initial: str) -> str:
    """Return the champion before the last completed round."""
    rows = store.rows("SELECT champion FROM round WHERE round = ?", [max(1, round_ - 1)])
    return str(rows[0]["champion"]) if rows else initial


def _record(store: Store, round_: int, kind: str, detail: dict[str, Any]) -> None:
    subject = f"{kind}:{detail['policy']}:{detail['revision']}"
    if (detail["engine"], detail["verdict"]) != ("transformers", "ok"):
        # Another engine in the same round, or another verdict, is another fact.
        subject += f":{detail['engine']}:{detail['verdict']}"
    row = {
        "id": row_id("event", round=round_, kind=kind, subject=subject),
        "round": round_,
        "step": "load",
        "kind": kind,
        "detail": json.dumps(detail),
        "created_at": now(),
    }
    store.commit({"event": [row]}, round=round_, step=f"load:{subject}", chunk=0)
