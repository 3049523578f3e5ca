"""An engine's process without vLLM: the embedded policy behind the same questions, with faults on demand.

`REDISTILL_FAULT` is `half` (dies in the middle of an answer), `hangs` and `odd` (when it is to answer), `mute` (never says its first token), `deaf` (loads nothing after it has started), `mortal` (dies
of the first prompt) or `stale` (answers out of the weights that it held before, and scores with the new ones).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from redistill.policies.engine import Engine, Ids, serve
from redistill.policies.policy import Request, Sampling
from redistill.policies.revision import Revision
from redistill.policies.transformers import TransformersPolicy

FAULT = "REDISTILL_FAULT"
REPLIES = 0
"""The file of answers: what standard output was before it was claimed."""


class FakeEngine(Engine):
    """Answers with the embedded policy."""

    policy: TransformersPolicy
    older: TransformersPolicy

    def open(
        self, folder: str, dtype: str, cache_gib: float | None, adapter_rank: int
    ) -> dict[str, Any]:
        """Hold a folder, in two policies: what is held, and what was held before."""
        if os.environ.get(FAULT) == "mute":
            time.sleep(600)
        home = Revision.read(Path(folder))
        self.policy, self.older = (TransformersPolicy(home, threads=1) for _ in range(2))
        self.policy.load(home)
        return {"version": "0", "context": 200}

    def load(self, folder: str, adapter: str, *, merge: bool) -> None:
        """Hold other weights, and keep those of before."""
        if os.environ.get(FAULT) == "deaf":
            return
        self.older, self.policy = self.policy, self.older
        self.policy.load(Revision.read(Path(adapter or folder)))

    def generate(
        self, prompts: list[Ids], seeds: list[int], sampling: Any, stops: Ids, schemas: Any
    ) -> list[dict[str, Any]]:
        """Answer with what is held."""
        fault = os.environ.get(FAULT)
        if fault == "half":
            os.write(REPLIES, b'{"said": [{"ids": [1, 2')
        if fault in ("mortal", "half"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hangs":
            time.sleep(600)
        if fault == "odd":
            raise ValueError("nobody can do this")
        asked = [Request(tuple(p), s) for p, s in zip(prompts, seeds, strict=True)]
        return [
            {"ids": g.token_ids, "logprobs": g.logprobs, "ended": g.finish_reason == "stop"}
            for g in self.policy.generate(asked, Sampling(**sampling))
        ]

    def score(self, prompts: list[Ids], completions: list[Ids]) -> list[list[float]]:
        """Score with what is held."""
        return self._scored(self.policy, prompts, completions)

    def first(self, prompts: list[Ids], tokens: list[Ids]) -> list[list[float]]:
        """Score single tokens, as a real engine does out of its cache."""
        stale = os.environ.get(FAULT) == "stale" and self.older.revision
        policy = self.older if stale else self.policy
        rows = [(p, [t]) for p, wanted in zip(prompts, tokens, strict=True) for t in wanted]
        said = iter(self._scored(policy, [p for p, _ in rows], [c for _, c in rows]))
        return [[next(said)[0] for _ in wanted] for wanted in tokens]

    def likeliest(
        self, prompts: list[Ids], completions: list[Ids], k: int
    ) -> list[tuple[list[Ids], list[list[float]]]]:
        """Tell what is likeliest to what is held."""
        pairs = [(tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True)]
        return self.policy.distributions(pairs, k)

    def held(self) -> str:
        """Hash what is held."""
        return self.policy.fingerprint()

    def _scored(
        self, policy: TransformersPolicy, prompts: list[Ids], completions: list[Ids]
    ) -> list[list[float]]:
        pairs = [(tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True)]
        return [list(row) for row in policy.score(pairs)]


if __name__ == "__main__":
    REPLIES = os.dup(1)
    serve(FakeEngine())
