"""The judge `reward_model`: a sequence classifier that was trained to score answers."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PrivateAttr

from ...errors import BadInput
from ...hashing import content_hash, file_sha256
from ...policies import hub
from ...policies.model_folder import reward_problems
from ...types import Judgement, Message, Usage
from ..judge import ColumnName, JudgeTask, SettledJudge
from ..ranking import total, verdict

_PINNED = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")
_READ = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_ONE = threading.Lock()
"""Held while a reward model works: two at once would fight for the cores."""
_HELD = threading.Event()
"""Set while a reward model may be in memory."""


class RewardModel(SettledJudge):
    """Score an answer with a reward model: a classifier with one output (Bradley-Terry head).

    `raw` is its logit for the conversation, rendered with its own chat template, and `value` the logit's
    sigmoid. Of two answers the probability is the sigmoid of the difference of the logits. What is longer
    than the model reads is `too_big`.
    """

    name: ColumnName = "reward_model"
    model: str
    """A folder, or `owner/name@commit` of the Hugging Face hub with the whole commit."""

    version: ClassVar[int] = 1
    _files: str | None = PrivateAttr(None)

    @property
    def revision(self) -> str:
        """Content hash of the weights and all that lies beside them; of the hub's, its commit.

        Raises:
            BadInput: there is no such model.
        """
        return content_hash(["reward_model", self.version, self.weights])

    @property
    def weights(self) -> str:
        """What names the weights: a hash of the folder's files, or the commit."""
        if self._files is None:
            self._files = _digest(_folder(self.model)) if self._is_folder else self._pinned()[1]
        return self._files

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each answer the sigmoid of its logit."""
        return await asyncio.to_thread(self._score, tasks)

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates by their logits; each answer is read once."""
        asked = {(t.prompt.id, c.id): JudgeTask(t.prompt, c) for t in tasks for c in t.candidates}
        said = dict(zip(asked, await self.score(list(asked.values())), strict=True))
        billed: set[tuple[str, str]] = set()
        found = []
        for task in tasks:
            keys = [(task.prompt.id, candidate.id) for candidate in task.candidates]
            usage = total(said[key].usage for key in keys if key not in billed)
            billed.update(keys)
            found.append(_compared([said[key] for key in keys], usage))
        return found

    def _score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        with _ONE:
            model = self._loaded()
            rendered = [
                model.encode((*t.prompt.messages, Message("assistant", t.completion.text)))
                for t in tasks
            ]
            # Each once: in another company the same words would get another last digit, and a tie would be none.
            fits = [i for i in dict.fromkeys(rendered) if len(i) <= model.context_length]
            logits = dict(zip(fits, model.score(fits), strict=True))
        found = []
        for ids in rendered:
            if len(ids) > model.context_length:
                told = f"{len(ids)} tokens are more than the {model.context_length} that it reads"
                found.append(Judgement.failed("too_big", told))
                continue
            usage = Usage(revision=self.weights, tokens_in=len(ids), dollars=0.0)
            found.append(_scored(logits[ids], usage))
        return found

    def release(self) -> None:
        """Give the model's memory back."""
        release_held()

    def _loaded(self) -> Any:
        from ...policies.reward import held

        _HELD.set()
        if self._is_folder:
            return held(_folder(self.model), self.weights)
        name, commit = self._pinned()
        return held(hub.bring(name, commit), commit)

    @property
    def _is_folder(self) -> bool:
        return Path(self.model).expanduser().is_dir()

    def _pinned(self) -> tuple[str, str]:
        found = _PINNED.fullmatch(self.model)
        if found is None:
            raise BadInput.at(
                "reward_model.model",
                f"{self.model!r} is no folder and no owner/name@commit of the hub",
                "the whole commit is needed, because a name alone can come to mean other weights",
            )
        return found["name"], found["commit"]


def release_held() -> None:
    """Give back the memory of every reward model that is loaded."""
    if _HELD.is_set():  # else torch would be loaded for nothing
        from ...policies.reward import held

        held.cache_clear()
        _HELD.clear()


def _folder(model: str) -> Path:
    folder = Path(model).expanduser().resolve()
    if problems := reward_problems(folder):
        raise BadInput(*problems)
    return folder


def _digest(folder: Path) -> str:
    """Hash a folder's files; weights that have not changed since are not read again."""
    return content_hash([[file.name, _hashed(file, *_stamp(file))] for file in _files(folder)])


def _files(folder: Path) -> Iterable[Path]:
    return sorted({file for pattern in _READ for file in folder.glob(pattern)})


def _stamp(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


@lru_cache(maxsize=64)
def _hashed(file: Path, size: int, changed: int) -> str:  # noqa: ARG001 - what tells a change
    return file_sha256(file)


def _scored(logit: float, usage: Usage) -> Judgement:
    if not math.isfinite(logit):
        return Judgement.failed("error", "the model gave no finite number", usage=usage)
    return Judgement(_sigmoid(logit), raw=logit, usage=usage)


def _compared(scored: Sequence[Judgement], usage: Usage | None) -> Judgement:
    failed = next((j for j in scored if j.raw is None), None)
    if failed is not None:
        return Judgement.failed(failed.status, failed.text, usage=usage)
    logits = [j.raw for j in scored if j.raw is not None]
    sure = _sigmoid(logits[0] - logits[1]) if len(logits) == 2 else None
    return verdict([-logit for logit in logits], probability=sure, usage=usage)


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))
