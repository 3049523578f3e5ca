"""A chat server that answers from a function, and fails in every way that real ones were seen to fail.

    with FakeServer(lambda messages: "A", {"html_200": 0.05, "hang": 0.05}, seed=1) as server:
        ...  # call server.url, then look at server.counts

Which request fails, and how, follows from the seed and from the request alone, and not from the order in
which requests arrive: a run can be compared with that of a clean server, row by row.
"""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET
from types import TracebackType
from typing import Any, Literal, Self, get_args

from aiohttp import web

from ..hashing import content_hash

Mode = Literal[
    "ok",
    "html_200",
    "html_502",
    "unauthorized",
    "unknown_model",
    "rate_limited",
    "rate_limited_long",
    "server_error",
    "unavailable",
    "cut_body",
    "empty_object",
    "no_choices",
    "error_200",
    "refusal",
    "surrogate",
    "drip",
    "hang",
    "reset",
    "huge",
    "other_model",
    "redirect",
]
"""How a request is answered. `ok` and `surrogate` are replies; `other_model` is one of another model."""

ReplyTo = Callable[[list[dict[str, Any]]], str]
"""From the messages of a request to what the model says."""


class FakeServer:
    """An OpenAI-compatible chat server in a thread of this process.

    Args:
        reply: what the model says to a request's messages.
        modes: share of the requests that are answered in each mode; the rest is `ok`. A request that is
            sent again draws again.
        seed: of the draw.
        delay: seconds before each answer.
        not_taken: parameters that are refused with a 400, as models do that do not take them.
        drip: seconds between the bytes of the mode `drip`.
        huge: bytes of the mode `huge`.
        script: modes of the first requests, in their order of arrival.
        port: where it listens; any that is free where it is 0.
        speed: answers a second at most, one after the other; 0 for no limit.

    Attributes:
        counts: requests by mode.
        most_in_flight: the most requests that were open at once.
        bodies: what was asked, in the order of arrival.
        headers: the headers of each request, lower case.
    """

    def __init__(
        self,
        reply: ReplyTo = lambda _: "ok",
        modes: Mapping[Mode, float] | Mode = "ok",
        **options: Any,
    ) -> None:
        self._reply = reply
        self.modes: Mapping[Mode, float] = {modes: 1.0} if isinstance(modes, str) else modes
        known = _DEFAULTS.keys()
        if strange := [*(options.keys() - known), *(self.modes.keys() - set(get_args(Mode)))]:
            raise TypeError(f"a fake server knows no {strange[0]!r}")
        found = _DEFAULTS | options
        self.seed: int = found["seed"]
        self.delay: float = found["delay"]
        self.not_taken: Collection[str] = found["not_taken"]
        self.script: list[Mode] = list(found["script"])
        self.away = "http://localhost:9/v1/chat/completions"
        """Where the mode `redirect` leads."""
        self._drip: float = found["drip"]
        self.speed: float = found["speed"]
        self._free_at = 0.0
        self._huge: int = found["huge"]
        self.counts: Counter[str] = Counter()
        self.most_in_flight = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._in_flight = 0
        self._seen: dict[str, int] = defaultdict(int)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._ended = asyncio.Event()
        self._port: int = found["port"]
        self._thread = threading.Thread(target=self._serve, name="fake server", daemon=True)

    @property
    def url(self) -> str:
        """Address, as a role's `policy` has it."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def requests(self) -> int:
        """How many requests came."""
        return sum(self.counts.values())

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the fake server did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    # -- in the server's own thread

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        app.router.add_get("/health", _healthy)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port, backlog=4096, reuse_address=True)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._ended.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            body = json.loads(await request.read())
            self.bodies.append(body)
            self.headers.append({k.lower(): v for k, v in request.headers.items()})
            if refused := next((name for name in self.not_taken if name in body), None):
                self.counts["not_taken"] += 1
                return _not_taken(refused)
            mode = self._draw(body)
            self.counts[mode] += 1
            if wait := self.delay + self._queued():
                await asyncio.sleep(wait)
            return await _ANSWERS.get(mode, _plain)(_Asked(self, request, body, mode))
        finally:
            self._in_flight -= 1

    def _draw(self, body: Mapping[str, Any]) -> Mode:
        if self.script:
            return self.script.pop(0)
        if len(self.modes) == 1 and sum(self.modes.values()) >= 1:
            return next(iter(self.modes))
        asked = content_hash(body.get("messages") or body.get("prompt"))
        self._seen[asked] += 1
        drawn = int(content_hash([self.seed, asked, self._seen[asked]])[:13], 16) / 16**13
        for mode, share in self.modes.items():
            if drawn < share:
                return mode
            drawn -= share
        return "ok"

    def _queued(self) -> float:
        """Return the seconds until a request has had its turn, where answers take their time."""
        if not self.speed:
            return 0.0
        now = self._loop.time()
        self._free_at = max(now, self._free_at) + 1 / self.speed
        return self._free_at - now

    def answer(self, body: Mapping[str, Any]) -> web.Response:
        """Answer a request well: a conversation with a completion; of anything else this server knows nothing."""
        if "messages" not in body:
            return _error(404, "Not Found")
        return web.json_response(self.completion(body))

    def completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a good reply to a request."""
        text = self._reply(body["messages"])
        asked = sum(len(str(m["content"]).split()) for m in body["messages"])
        written = len(text.split())
        return {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": written,
                "total_tokens": asked + written,
            },
        }


_DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "delay": 0.0,
    "not_taken": (),
    "script": (),
    "drip": 0.5,
    "huge": 200 << 20,
    "port": 0,
    "speed": 0.0,
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request and how it is to be answered."""

    server: FakeServer
    request: web.Request
    body: dict[str, Any]
    mode: Mode


Answer = Callable[[_Asked], Awaitable[web.StreamResponse]]


async def _healthy(_: web.Request) -> web.Response:
    """Say that all is well, as real servers do also where nothing is."""
    return web.Response()


def _error(status: int, message: str, **fields: Any) -> web.Response:
    return web.json_response({"error": {"message": message, **fields}}, status=status)


def _not_taken(name: str) -> web.Response:
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    if name == "max_tokens":
        message += " Use 'max_completion_tokens' instead."
    return _error(400, message, param=name, code="unsupported_parameter")


async def _plain(asked: _Asked) -> web.StreamResponse:
    """Answer in one of the modes that are a plain response."""
    server, request, body, mode = asked.server, asked.request, asked.body, asked.mode
    page = "<!doctype html><html><body>Sign in to continue</body></html>"
    key = request.headers.get("Authorization", "").removeprefix("Bearer ")
    seconds = {"rate_limited_long": "3600"}.get(mode)
    plain: dict[str, Callable[[], web.Response]] = {
        "ok": lambda: server.answer(body),
        "html_200": lambda: web.Response(text=page, content_type="text/html"),
        "html_502": lambda: web.Response(text=page, content_type="text/html", status=502),
        # Real servers repeat the key that they refuse.
        "unauthorized": lambda: _error(401, f"Incorrect API key provided: {key}."),
        "unknown_model": lambda: _error(404, f"The model `{body['model']}` does not exist."),
        "rate_limited": lambda: _error(429, "Rate limit reached"),
        "server_error": lambda: _error(500, "The server had an error"),
        "unavailable": lambda: _error(503, "The server is overloaded"),
        "empty_object": lambda: web.json_response({}),
        "no_choices": lambda: web.json_response(server.completion(body) | {"choices": []}),
        "error_200": lambda: web.json_response({"error": {"message": "upstream failed"}}),
        "other_model": lambda: web.json_response(
            server.completion(body) | {"model": "other-model"}
        ),
    }
    if mode in plain:
        return plain[mode]()
    if mode == "rate_limited_long":
        response = _error(429, "Quota exceeded")
        response.headers["Retry-After"] = str(seconds)
        return response
    if mode == "redirect":
        return web.Response(status=307, headers={"Location": server.away})
    found = server.completion(body)
    message = found["choices"][0]["message"]
    if mode == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
        return web.json_response(found)
    message["content"] += " \ud83d"  # half of an emoji, as a cut stream leaves it
    return web.json_response(found)


async def _hang(asked: _Asked) -> web.StreamResponse:
    """Say nothing until the caller has gone or the server ends."""
    while not asked.server._ended.is_set() and not _gone(asked.request):
        await asyncio.sleep(0.02)
    return web.Response(status=500)


async def _drip(asked: _Asked) -> web.StreamResponse:
    """Send a good reply byte by byte."""
    data = json.dumps(asked.server.completion(asked.body)).encode()
    response = await _begun(asked.request, len(data))
    for byte in data:
        if asked.server._ended.is_set() or _gone(asked.request):
            break
        await response.write(bytes([byte]))
        await asyncio.sleep(asked.server._drip)
    return response


async def _cut(asked: _Asked) -> web.StreamResponse:
    """End the connection in the middle of a reply."""
    data = json.dumps(asked.server.completion(asked.body)).encode()
    response = await _begun(asked.request, len(data))
    await response.write(data[: len(data) // 2])
    if asked.request.transport is not None:
        asked.request.transport.close()
    return response


async def _reset(asked: _Asked) -> web.StreamResponse:
    """Reset the connection instead of a reply."""
    if asked.request.transport is not None:
        socket = asked.request.transport.get_extra_info("socket")
        socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        asked.request.transport.abort()
    return web.Response(status=500)


async def _huge(asked: _Asked) -> web.StreamResponse:
    """Send more than anybody should read, without saying how much it will be."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(asked.request)
    piece = b" " * (1 << 20)
    for _ in range(0, asked.server._huge, len(piece)):
        if _gone(asked.request):
            break
        try:
            await response.write(piece)
        except ConnectionError:
            break
    return response


async def _begun(request: web.Request, length: int) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", "Content-Length": str(length)}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


_ANSWERS: dict[str, Answer] = {
    "hang": _hang,
    "drip": _drip,
    "cut_body": _cut,
    "reset": _reset,
    "huge": _huge,
}


def say(texts: Sequence[str]) -> ReplyTo:
    """Return a function that says these texts in turn, and the last one for ever."""
    left = list(texts)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]
