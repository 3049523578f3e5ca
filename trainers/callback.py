"""What a job asks the driver while it trains: an address of this machine, and one JSON object a line.

A policy that samples while it trains needs judges, budgets and the store, and they have one owner: the driver. So
the worker asks `{"ticket": 3, "what": "judge", ...}` and goes on until it wants the reply, which bears the ticket.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Message = dict[str, Any]
Answerer = Callable[[str, Message], Awaitable[Message]]
"""Answers one question: what is asked, and what is told with it."""

_HOST = "127.0.0.1"
_LINE = 1 << 28
"""Most bytes of one line; a batch of rollouts with their tokens is one."""


class Caller:
    """The worker's side. Questions are asked at once and answered in any order."""

    def __init__(self, address: str) -> None:
        """Connect to `port:password`, as the driver has told it."""
        port, _, password = address.partition(":")
        self._socket = socket.create_connection((_HOST, int(port)))
        self._file = self._socket.makefile("rwb")
        self._tickets = 0
        self._known: dict[int, Message] = {}
        self._send({"password": password})

    def ask(self, what: str, **told: Any) -> int:
        """Ask, and return the ticket of the reply."""
        self._tickets += 1
        self._send({"ticket": self._tickets, "what": what, **told})
        return self._tickets

    def reply(self, ticket: int) -> Message:
        """Wait for a reply, and return it.

        Raises:
            ConnectionError: the driver has gone.
        """
        while ticket not in self._known:
            line = self._file.readline()
            if not line:
                raise ConnectionError("the driver does not answer any more")
            said = json.loads(line)
            self._known[said.pop("ticket")] = said
        return self._known.pop(ticket)

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def _send(self, message: Message) -> None:
        self._file.write(json.dumps(message).encode() + b"\n")
        self._file.flush()


@dataclass(frozen=True, slots=True)
class Desk:
    """Where the driver listens, and what has gone wrong there."""

    address: str
    trouble: asyncio.Future[None]
    """Has the exception of a question that could not be answered."""

    async def beside(self, work: Awaitable[T]) -> T:
        """Wait for work that asks questions here; where one cannot be answered, the work is given up."""
        task = asyncio.ensure_future(work)
        both: set[asyncio.Future[Any]] = {task, self.trouble}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self.trouble.done():
            self.trouble.result()  # raises
        return await task


@asynccontextmanager
async def listening(answer: Answerer) -> AsyncIterator[Desk]:
    """Listen for questions on an address that only who is told it can use.

    Args:
        answer: is asked each question as it comes; several at once.
    """
    password = secrets.token_hex(16)
    trouble: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running: set[asyncio.Task[None]] = set()
    lines: set[asyncio.StreamWriter] = set()

    async def one(said: Message, writer: asyncio.StreamWriter) -> None:
        try:
            ticket, what = said.pop("ticket"), said.pop("what")
            line = json.dumps({"ticket": ticket, **await answer(what, said)})
        except Exception as error:  # noqa: BLE001 - it ends the job, and is raised again there
            if not trouble.done():
                trouble.set_exception(error)
            return
        with suppress(ConnectionError):  # the worker has gone, which its own end tells
            writer.write(line.encode() + b"\n")
            await writer.drain()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = json.loads(await reader.readline() or b"{}")
        if not secrets.compare_digest(str(first.get("password", "")), password):
            writer.close()
            return
        lines.add(writer)
        async for line in reader:
            task = asyncio.create_task(one(json.loads(line), writer))
            running.add(task)
            task.add_done_callback(running.discard)
        lines.discard(writer)
        writer.close()

    server = await asyncio.start_server(visit, _HOST, 0, limit=_LINE)
    try:
        port = server.sockets[0].getsockname()[1]
        yield Desk(f"{port}:{password}", trouble)
    finally:
        server.close()
        for task in running:
            task.cancel()
        for writer in lines:  # whoever still waits for a reply is told that there will be none
            writer.close()
        await asyncio.gather(*running, return_exceptions=True)
        if trouble.done() and not trouble.cancelled():
            trouble.exception()  # looked at, or asyncio would complain
