"""One revision behind an OpenAI-compatible address, so that whoever speaks to such servers can speak to it.

    /v1/models  /v1/chat/completions  /v1/completions  /health

What is sampled is sampled as in a run: own generator a row, raw log-probs. An answer that is streamed comes
when it is whole, in the shape of a stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from aiohttp import web

from ..hashing import row_seed
from ..types import TokenIds
from .batching import MOST_ROWS, Batching, Full
from .openai_reply import ChatShape, Choice, Shape, TextShape, Told, choice_of, cut, usage_of
from .openai_request import Refusal, Wanted, parse
from .policy import Generation, Request, Sampling, Teaching

_LARGEST = 8 << 20
"""Bytes of a request."""
_HEALTHY = 30.0
"""Seconds in which a server that is well answers one token."""
_LAST_WORDS = 60.0
"""Seconds that requests in hand have when the server stops."""
_LOG = logging.getLogger("redistill.serving")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Served(Teaching, Protocol):
    """What a server needs of a policy."""

    @property
    def tokens(self) -> int:
        """How many tokens the model knows; every id is below."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token by itself; of a control token nothing."""


class Endpoint:
    """Answers requests in OpenAI's shape with one policy; good for one event loop.

    Args:
        policy: holds its weights.
        name: of the model, as clients call it.
    """

    def __init__(self, policy: Served, name: str) -> None:
        self.policy = policy
        self.name = name
        self.batching = Batching(policy)
        self._since = int(time.time())

    def app(self) -> web.Application:
        """Return the web application."""
        app = web.Application(client_max_size=_LARGEST, middlewares=[_in_openais_words])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._text)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        """One token within a deadline: a server that hangs is not well."""
        prompt = self.policy.spell("a")[:1]
        try:
            async with asyncio.timeout(_HEALTHY):
                await self.batching.generate([Request(prompt, 0)], Sampling(0.0, max_tokens=1))
        except (TimeoutError, Full):
            return web.json_response({"status": "busy"}, status=503)
        return web.json_response({"status": "ok", "revision": self.policy.revision})

    async def _models(self, _: web.Request) -> web.Response:
        model = {
            "id": self.name,
            "object": "model",
            "created": self._since,
            "owned_by": "redistill",
            "root": self.policy.revision,
            "max_model_len": self.policy.context_length,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        wanted = parse(await request.read(), "chat", self.name)
        prompts = [self.policy.encode(wanted.messages)]
        choices = await self._choices(wanted, prompts)
        return await self._reply(
            request, wanted, ChatShape(self.name, self.policy.revision), prompts, choices
        )

    async def _text(self, request: web.Request) -> web.StreamResponse:
        wanted = parse(await request.read(), "text", self.name)
        # A text is spelt as an answer is, without the token that would end it.
        prompts = [p if isinstance(p, tuple) else self.policy.spell(p)[:-1] for p in wanted.prompts]
        if any(i >= self.policy.tokens for prompt in prompts for i in prompt):
            what = f"token ids of this model are below {self.policy.tokens}"
            raise Refusal(what, "prompt", "invalid_value")
        choices = await self._choices(wanted, prompts)
        return await self._reply(
            request, wanted, TextShape(self.name, self.policy.revision), prompts, choices
        )

    # -- answering

    async def _choices(self, wanted: Wanted, prompts: Sequence[TokenIds]) -> list[Choice]:
        if not all(prompts):
            raise Refusal("the prompt holds no token", "prompt", "invalid_value")
        sampling = self._fitted(wanted, prompts)
        asked = [prompt for prompt in prompts for _ in range(wanted.n)]
        if len(asked) > MOST_ROWS:
            raise Refusal(f"a request has at most {MOST_ROWS} answers", "n", "invalid_value")
        seed = secrets.randbits(63) if wanted.seed is None else wanted.seed
        seeds = [row_seed(f"serve {seed} {place}") for place in range(len(asked))]
        if wanted.options:
            return await self._chosen(wanted, asked, seeds)
        requests = [Request(*one) for one in zip(asked, seeds, strict=True)]
        said = await self.batching.generate(requests, sampling)
        told = await self._told(wanted, asked, said)
        return [cut(choice_of(g, t), wanted.stop) for g, t in zip(said, told, strict=True)]

    def _fitted(self, wanted: Wanted, prompts: Sequence[TokenIds]) -> Sampling:
        """Return how to sample within the context."""
        longest, context = max(map(len, prompts)), self.policy.context_length
        room = context - longest
        if room < (wanted.sampling.max_tokens if wanted.bounded else 1):
            raise Refusal(
                f"the maximum context length is {context} tokens; the prompt has {longest}, and "
                f"{wanted.sampling.max_tokens} were asked for",
                "messages" if wanted.messages else "prompt",
                "context_length_exceeded",
            )
        return replace(wanted.sampling, max_tokens=min(wanted.sampling.max_tokens, room))

    async def _chosen(
        self, wanted: Wanted, asked: Sequence[TokenIds], seeds: Sequence[int]
    ) -> list[Choice]:
        """Let the policy weigh the answers that it may give, and take one of them."""
        found = []
        every = await self.batching.call(self.policy.choose, asked, wanted.options)
        for weights, seed in zip(every, seeds, strict=True):
            ranked = sorted(zip(wanted.options, weights, strict=True), key=lambda one: -one[1])
            draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
            text, weight = ranked[0]
            if wanted.sampling.temperature > 0:
                [(text, weight)] = draw.choices(ranked, [w for _, w in ranked])
            told = [(option, _logarithm(w)) for option, w in ranked[: wanted.top]]
            found.append(Choice(text, "stop", 1, [(text, _logarithm(weight), told)]))
        return found

    async def _told(
        self, wanted: Wanted, asked: Sequence[TokenIds], said: Sequence[Generation]
    ) -> list[list[Told]]:
        """Return of each answer its tokens with log-probs, where they are wanted."""
        if not wanted.logprobs:
            return [[] for _ in said]
        pairs = [(prompt, g.token_ids) for prompt, g in zip(asked, said, strict=True)]
        none: list[tuple[list[list[int]], list[list[float]]]] = [([], [])] * len(said)
        likeliest = (
            await self.batching.call(self.policy.distributions, pairs, wanted.top)
            if wanted.top
            else none
        )
        return [
            self._tokens(g, ids, values) for g, (ids, values) in zip(said, likeliest, strict=True)
        ]

    def _tokens(
        self, said: Generation, ids: Sequence[Sequence[int]], values: Sequence[Sequence[float]]
    ) -> list[Told]:
        """Return an answer's tokens without the one that ends it."""
        written = said.token_ids[:-1] if said.finish_reason == "stop" else said.token_ids
        return [
            (
                text,
                said.logprobs[place],
                list(zip(self.policy.pieces(ids[place]), values[place], strict=True))
                if ids
                else [],
            )
            for place, text in enumerate(self.policy.pieces(written))
        ]

    async def _reply(
        self,
        request: web.Request,
        wanted: Wanted,
        shape: Shape,
        prompts: Sequence[TokenIds],
        choices: Sequence[Choice],
    ) -> web.StreamResponse:
        usage = usage_of(prompts, choices)
        if not wanted.stream:
            return web.json_response(shape.whole(choices, usage, logprobs=wanted.logprobs))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        for part in shape.parts(choices, logprobs=wanted.logprobs):
            await response.write(f"data: {json.dumps(part)}\n\n".encode())
        if wanted.usage_in_stream:
            last = shape.frame([], chunk=True) | {"usage": usage}
            await response.write(f"data: {json.dumps(last)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def _logarithm(weight: float) -> float:
    return math.log(weight) if weight > 0 else -9999.0  # OpenAI's own stand-in for minus infinity


# -- errors, and the life of the server


@web.middleware
async def _in_openais_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell every failure as JSON in OpenAI's shape."""
    try:
        return await handler(request)
    except Refusal as refusal:
        told = refusal
    except Full:
        told = Refusal("too many requests wait", None, "overloaded", 503)
    except web.HTTPRequestEntityTooLarge:
        told = Refusal(f"a request has at most {_LARGEST} bytes", None, "too_large", 413)
    except web.HTTPException as error:
        known = "GET /v1/models, POST /v1/chat/completions, POST /v1/completions, GET /health"
        told = Refusal(f"{error.reason}; served are {known}", None, None, error.status)
    except Exception:  # noqa: BLE001 - whoever asked is told, and the next request may go well
        _LOG.exception("%s %s", request.method, request.path)
        told = Refusal("the server has failed, and says more where it runs", status=500)
    headers = {"Retry-After": "1"} if told.status == 503 else None
    return web.json_response(told.body, status=told.status, headers=headers)


async def serve(
    endpoint: Endpoint,
    host: str,
    port: int,
    ready: Callable[[int], None],
    stop: asyncio.Event,
) -> None:
    """Serve until `stop` is set; requests in hand are answered first.

    Args:
        endpoint: what answers.
        host: address to listen on.
        port: 0 takes a free one.
        ready: is told the port once the server listens.
        stop: ends it.

    Raises:
        OSError: the address is taken, or not of this machine.
    """
    async with endpoint.batching:
        # Whoever hangs up is not answered: what it waits for leaves the queue.
        runner = web.AppRunner(
            endpoint.app(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=_LAST_WORDS,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            ready(runner.addresses[0][1])
            await stop.wait()
        finally:
            await runner.cleanup()
