"""Policies and trainers with planted faults, named as `module:Class` in the recipes of the tests."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from redistill.policies import catalog
from redistill.policies.policy import Generation, Policy, Request, Sampling
from redistill.policies.revision import Revision
from redistill.policies.transformers import TransformersPolicy
from redistill.testing.fakes import DeafStudent as Deaf
from redistill.testing.fakes import FakeStudent
from redistill.testing.tiny import make_tiny_model
from redistill.trainers.supervised import SFT
from redistill.trainers.trainer import Emit, FitResult, Job
from redistill.types import Message, TokenIds

DeafStudent = Deaf


def tiny_revision(cache: Path) -> Revision:
    """Return a random tiny model as an initial revision in the cache."""
    folder = cache / "planted-tiny"
    if not folder.exists():
        aside = cache / "planted-tiny.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        make_tiny_model(aside, seed=5)
        aside.rename(folder)
    return catalog.resolve(str(folder), cache=cache).revision


class HeadKeeper:
    """A tiny model that, after its first load, takes every new tensor but those of its head."""

    _home: Revision | None = None

    def __init__(self) -> None:
        assert HeadKeeper._home is not None
        self._inner = TransformersPolicy(HeadKeeper._home, threads=1)
        self._head: Any = None

    @classmethod
    def initial(cls, cache: Path) -> Revision:
        """Return the initial revision."""
        HeadKeeper._home = tiny_revision(cache)
        return HeadKeeper._home

    def load(self, revision: Revision) -> None:
        """Load all but the head."""
        self._inner.load(revision)
        head = self._inner._model.get_output_embeddings().weight
        if self._head is None:
            self._head = head.detach().clone()
        head.data.copy_(self._head)

    @property
    def revision(self) -> str:
        """What it claims to hold."""
        return self._inner.revision

    @property
    def context_length(self) -> int:
        """As the model's."""
        return self._inner.context_length

    @property
    def vocabulary(self) -> str:
        """As the model's."""
        return self._inner.vocabulary

    def encode(self, messages: Sequence[Message]) -> TokenIds:
        """As the model's."""
        return self._inner.encode(messages)

    def spell(self, text: str) -> TokenIds:
        """As the model's."""
        return self._inner.spell(text)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        """As the model's."""
        return self._inner.generate(requests, sampling)

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """As the model's."""
        return self._inner.score(pairs)

    def choose(self, prompts: Sequence[TokenIds], options: Sequence[str]) -> list[list[float]]:
        """As the model's."""
        return self._inner.choose(prompts, options)

    def release(self) -> None:
        """As the model's."""
        self._inner.release()

    def fingerprint(self) -> str:
        """As the model's."""
        return self._inner.fingerprint()


def _is_a_policy(planted: HeadKeeper) -> Policy:
    """Let the type checker see that the planted policy is one."""
    return planted


class MergingStudent(FakeStudent):
    """Says `in1` in three tokens, and has one token for it, as byte pairs leave it to chance."""

    def spell(self, text: str) -> TokenIds:
        """Return the characters, the merged ones as one."""
        return super().spell(text.replace("in1", "\ue000"))


class NanSFT(SFT):
    """SFT whose loss is NaN from the second optimiser step on."""

    name: ClassVar[str] = "planted:NanSFT"

    def fit(self, job: Job, emit: Emit) -> FitResult:
        """Poison the loss of this process, and train."""
        from redistill.trainers import answers

        whole = answers.AnswerSFT.compute_loss

        def poisoned(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = whole(trainer, model, inputs, *args, **kwargs)
            return loss * float("nan") if trainer.state.global_step >= 1 else loss

        answers.AnswerSFT.compute_loss = poisoned  # type: ignore[method-assign,assignment]
        return super().fit(job, emit)
