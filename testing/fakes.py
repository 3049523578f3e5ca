"""A student without a model: a policy whose skill is one number, for tests of everything around it.

Its task: a prompt ends with the word that is the right answer. With the probability of its skill it says
that word, else something longer or shorter. Tokens are characters.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hashing import content_hash
from ..policies.policy import Generation, Request, Sampling
from ..policies.revision import Revision, publish
from ..types import Message, TokenIds
from .fakes_trainer import read_fake, write_fake

END = 3
"""The end token."""
LOGPROB = -0.5
"""Log-prob of every token, so that a stored reference equals a scored one."""


class FakeStudent:
    """A policy for `student: redistill.testing.fakes:FakeStudent`."""

    skill = 0.3
    """Skill of the initial student."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    @classmethod
    def initial(cls, cache: Path) -> Revision:
        """Make the initial revision under the cache folder."""
        root = cache / "fake"
        value = {"name": cls.__name__, "skill": cls.skill}
        folder = root / content_hash(value)
        if folder.exists():
            return Revision.read(folder)
        staging = root / ".staging"
        shutil.rmtree(staging, ignore_errors=True)
        write_fake(staging, value)
        return publish(
            staging, root, revision=content_hash(value), parent=None, canary=None, facts={}
        )

    @property
    def revision(self) -> str:
        """Content hash of what is held."""
        return content_hash(self._held) if self._held else ""

    @property
    def context_length(self) -> int:
        """Characters that prompt and answer may have together."""
        return 512

    @property
    def vocabulary(self) -> str:
        """Name of the fake tokenizer."""
        return "characters"

    def encode(self, messages: Sequence[Message]) -> TokenIds:
        """Return the characters of the last turn."""
        return tuple(ord(c) for c in messages[-1].content)

    def spell(self, text: str) -> TokenIds:
        """Return the characters and the end."""
        return (*(ord(c) for c in text), END)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        """Answer by skill; greedy answers depend on the prompt alone."""
        return [self._answer(r, sampling) for r in requests]

    def _answer(self, request: Request, sampling: Sampling) -> Generation:
        prompt = "".join(map(chr, request.prompt_ids))
        seed = request.seed if sampling.temperature else int(content_hash(prompt)[:12], 16)
        draw = random.Random(seed).random()  # noqa: S311 - reproducible, not secret
        right = prompt.rsplit(maxsplit=1)[-1]
        skill = float(self._held["skill"])
        text = right if draw < skill else right + "!" * (1 + int(draw * 5))
        ids = (*(ord(c) for c in text), END)[: sampling.max_tokens]
        reason = "stop" if ids[-1] == END else "length"
        return Generation(
            text, ids, (LOGPROB,) * len(ids), "stop" if reason == "stop" else "length"
        )

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """Return the one log-prob for every token."""
        return [(LOGPROB,) * len(completion) for _, completion in pairs]

    def choose(self, prompts: Sequence[TokenIds], options: Sequence[str]) -> list[list[float]]:
        """Find all options equally good."""
        return [[1 / len(options)] * len(options) for _ in prompts]

    def load(self, revision: Revision) -> None:
        """Hold a revision."""
        self._held = read_fake(revision.folder)

    def release(self) -> None:
        """Hold nothing."""
        self._held = {}

    def fingerprint(self) -> str:
        """Content hash of what is held."""
        return self.revision


class DeafStudent(FakeStudent):
    """Ignores every `load` after the first, as an engine does whose weight sync is broken."""

    _first: dict[str, Any] | None = None

    def load(self, revision: Revision) -> None:
        """Hold the first revision for ever."""
        if self._first is None:
            super().load(revision)
            self._first = self._held
        self._held = self._first


def fake_recipe(prompts: str = "prompts.jsonl", *, rounds: int = 2, **train: Any) -> dict[str, Any]:
    """Return a recipe that runs without any model, as plain data."""
    trainer = "redistill.testing.fakes_trainer:FakeTrainer"
    return {
        "name": "fake",
        "student": "redistill.testing.fakes:FakeStudent",
        "prompts": {"file": prompts, "per_round": 20},
        "chunk": 16,
        "round": [
            {"sample": {"k": 4, "max_tokens": 40}},
            {"score": {"judge": "verifier"}},
            {"select": {"where": "verifier = 1", "per_prompt": 1}},
            {"train": {"trainer": trainer, **train}},
            {"evaluate": {"judge": "verifier", "max_tokens": 40}},
            {"gate": {}},
        ],
        "loop": {"rounds": rounds},
    }


def fake_prompts(train: int = 60, heldout: int = 80, test: int = 80) -> list[dict[str, Any]]:
    """Return prompt rows for the fake student: each ends with its right answer."""
    rows = []
    for split, count in (("train", train), ("heldout", heldout), ("test", test)):
        for index in range(count):
            word = f"{split}{index}"
            rows.append(
                {
                    "prompt": f"Say {word}",
                    "verify": {"equals": word},
                    "tags": ["task:say"],
                    "split": split,
                    "source": "redistill",
                    "licence": "Apache-2.0",
                }
            )
    return rows
