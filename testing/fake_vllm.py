"""A fake vLLM: a server in this process that answers with a real policy's words, token ids and log-probs.

    with FakeVllm(policy, "teacher") as server:
        ...  # server.url serves /chat/completions and /completions

What it takes beside the messages: `structured_outputs: {choice}`, `response_format`, `logprobs` with
`top_logprobs`, `n`, `seed`; at /completions a text or token ids, `prompt_logprobs` and `return_token_ids`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from ..policies.policy import Request, Sampling, Teaching
from ..types import Message, TokenIds
from .fake_server import FakeServer


class FakeVllm(FakeServer):
    """An OpenAI-compatible server of one policy.

    Args:
        policy: holds its weights already; it is asked in the server's own thread.
        name: of the model, as it is served.
        most: likeliest tokens that it tells in one place, as `--max-logprobs` has it.
        without: parameters that it ignores without a word, as servers do that do not know them.
        options: those of a `FakeServer`.
    """

    def __init__(
        self,
        policy: Teaching,
        name: str = "m",
        *,
        most: int = 20,
        without: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._policy, self._name, self._most, self._without = policy, name, most, without

    def answer(self, body: Mapping[str, Any]) -> web.Response:
        """Answer a request as vLLM would."""
        if body["model"] != self._name:
            return _error(404, f"The model `{body['model']}` does not exist.")
        known = {key: value for key, value in body.items() if key not in self._without}
        asked = known.get("prompt_logprobs") or known.get("top_logprobs") or 0
        if asked > self._most:
            told = f"Requested prompt logprobs of {asked}, which is greater than max allowed"
            return _error(400, f"{told}: {self._most}")
        found = self.completion(known) if "messages" in body else self._read(known)
        return web.json_response({"model": self._name, **found})

    def completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a chat completion."""
        prompt = self._policy.encode([Message(m["role"], m["content"]) for m in body["messages"]])
        seed = body.get("seed", random.getrandbits(31))
        choices = [
            self._choice(prompt, body, seed + nth) | {"index": nth}
            for nth in range(body.get("n", 1))
        ]
        return {"choices": choices, "usage": _usage(len(prompt), len(choices))}

    def _choice(self, prompt: TokenIds, body: Mapping[str, Any], seed: int) -> dict[str, Any]:
        options = (body.get("structured_outputs") or {}).get("choice")
        weighed: dict[str, float] = {}
        if options:
            [shares] = self._policy.choose([prompt], options)
            weighed = {o: math.log(max(p, 1e-9)) for o, p in zip(options, shares, strict=True)}
            text = max(weighed, key=lambda option: weighed[option])
        elif "response_format" in body:
            text = _instance(body["response_format"]["json_schema"]["schema"])
        else:
            sampling = Sampling(body.get("temperature", 1.0), 1.0, 0, min(body["max_tokens"], 64))
            [said] = self._policy.generate([Request(prompt, seed)], sampling)
            text = said.text or "-"
        found: dict[str, Any] = {
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        if body.get("logprobs"):
            top = [{"token": t, "logprob": v} for t, v in (weighed or {text[:1]: -1.0}).items()]
            found["logprobs"] = {"content": [{"top_logprobs": top[: body["top_logprobs"]]}]}
        return found

    def _read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a completion with what the policy thinks of the prompt's tokens."""
        prompt = body["prompt"]
        ids = self._policy.spell(prompt)[:-1] if isinstance(prompt, str) else tuple(prompt)
        choice: dict[str, Any] = {"index": 0, "text": "-", "finish_reason": "length"}
        if body.get("return_token_ids"):
            choice["prompt_token_ids"] = list(ids)
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None, *self._places(ids, body["prompt_logprobs"])]
        return {"choices": [choice], "usage": _usage(len(ids), 1)}

    def _places(self, ids: TokenIds, k: int) -> list[dict[str, Any]]:
        if len(ids) < 2:
            return []
        pair = [(ids[:1], ids[1:])]
        [own] = self._policy.score(pair)
        [(tops, values)] = self._policy.distributions(pair, max(1, k))
        places = []
        for token, logprob, top, each in zip(ids[1:], own, tops, values, strict=True):
            known = dict(zip(top[:k], each[:k], strict=True)) | {token: logprob}
            places.append({str(i): {"logprob": v, "decoded_token": "?"} for i, v in known.items()})
        return places


def _instance(schema: Mapping[str, Any]) -> str:
    """Return the smallest JSON that fits an object's schema of words and numbers."""

    def value(of: Mapping[str, Any]) -> Any:
        return of["enum"][0] if "enum" in of else of.get("minimum", "-")

    return json.dumps({key: value(of) for key, of in schema["properties"].items()})


def _usage(read: int, written: int) -> dict[str, int]:
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)
