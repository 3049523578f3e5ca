"""Hosted models through LangChain's `init_chat_model`, for providers without an OpenAI-compatible address.

About ten times the processor time of the transport a call, and fewer kinds of failure are told apart.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from ..errors import EnvironmentProblem
from .address import Address
from .calls import Asking, Call
from .replies import Read, clean, http_kind, too_big
from .transport import Client


class ProviderClient(Client):
    """Calls `provider:model`; pace, deadline, retries and accounts are the transport's.

    Raises:
        EnvironmentProblem: LangChain is not installed.
    """

    def __init__(
        self, spec: str, address: Address, say: Callable[[str], None] = lambda _: None
    ) -> None:
        super().__init__(address, say)
        if find_spec("langchain") is None:
            provider = spec.partition(":")[0]
            raise EnvironmentProblem(
                f"{spec} is called through LangChain, which is not installed; "
                f"pip install langchain langchain-{provider.replace('_', '-')}"
            )
        self._spec = spec

    async def _send(self, call: Asking) -> tuple[Read, float]:
        """Call once; what a provider's package raises is told by its HTTP status, where it has one."""
        if not isinstance(call, Call):
            return Read("bad_request", "LangChain takes conversations only"), 0.0
        try:
            found = _read(await self._model(call).ainvoke(_messages(call)))
        except (TimeoutError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - each provider has exceptions of its own
            status = getattr(error, "status_code", None)
            reason = self._scrubbed(f"{type(error).__name__}: {error}")[:200]
            kind = http_kind(status) if isinstance(status, int) else "bad_request"
            return Read(kind, reason), 0.0
        body, largest = found.raw.encode(), self.address.largest
        if len(body) > largest:
            cut = too_big(largest, body)
            found = replace(found, kind=cut.kind, text=cut.text, raw=cut.raw)
        return found, 0.0

    def _model(self, call: Call) -> Any:
        from langchain.chat_models import init_chat_model  # type: ignore[import-not-found]

        key = {"api_key": self.address.key.reveal()} if self.address.key else {}
        sampling = call.sampling
        return init_chat_model(
            self._spec,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            max_retries=0,
            **key,
        )

    def _scrubbed(self, text: str) -> str:
        key = self.address.key
        return key.scrub(text.encode("utf-8", "replace")).decode() if key else text


def _messages(call: Call) -> list[tuple[str, str]]:
    return [(message.role, clean(message.content)) for message in call.messages]


def _read(reply: Any) -> Read:
    """Read a LangChain message; its usage has the same names for every provider."""
    usage = reply.usage_metadata or {}
    details = usage.get("input_token_details") or {}
    facts = reply.response_metadata or {}
    text = clean(reply.text if isinstance(reply.text, str) else str(reply.content))
    return Read(
        kind="ok" if text.strip() else "empty",
        text=text or "an empty reply",
        model=str(facts.get("model_name") or facts.get("model") or ""),
        tokens_in=int(usage.get("input_tokens", 0)),
        tokens_cached=int(details.get("cache_read", 0)),
        tokens_out=int(usage.get("output_tokens", 0)),
        metered=bool(usage),
        finish=str(facts.get("finish_reason") or facts.get("stop_reason") or ""),
        raw=json.dumps(reply.content, default=str),
    )
