"""Distillation from a teacher with another tokenizer: where both begin a token at the same letter.

There both tell what comes next after the same text, over vocabularies that have nothing to do with each other. ULD, Boizard
et al. 2024 (arXiv:2402.12030), compares what is at the same place in both rows of tokens, which drift apart; here the
letters decide which places belong together, as in TRL's GOLD.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ..policies.chat import ChatCodec
from ..types import TokenIds
from .answers import Row, padded
from .distilled import Distilled
from .divergences import universal
from .heads import Scores, tiled
from .rollouts import Rollout, answered

_NOWHERE = -1
"""Where a token begins within a letter, so that no other one can begin there."""


class Across(Distilled):
    """Lets a teacher read what the student has said in its own tokens."""

    def form(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """Return rollouts as a batch, with the teachers' distributions at the places that both have."""
        batch: dict[str, Any] = answered(rollouts)
        batch["views"], counts = [], torch.zeros(len(rollouts))
        for view in self._seen(rollouts):
            counts[view.pop("rows")] = view.pop("count")
            batch["views"].append(view)
        batch["counts"] = counts
        batch["weights"] = batch["weights"] * counts
        return batch

    def _apart(self, student: Scores, view: Row) -> Tensor:
        mine, teacher = student.of(view["tokens"]), view["seen"]

        def everywhere(tile: Tensor, seen: Tensor) -> Tensor:
            with torch.no_grad():
                told = teacher.logps(seen)
            return universal(mine.logps(tile), told)

        wider = max(self._vocabulary, teacher.vocabulary)
        return tiled(everywhere, mine, teacher.hidden, vocabulary=wider)

    def _seen(self, rollouts: Sequence[Rollout]) -> Iterator[Row]:
        """Yield what each rollout's teacher thinks where a token begins for both, and where that is."""
        begin = 0
        for nth, rollout in enumerate(rollouts):
            ids, name = rollout.said.token_ids, rollout.row["teacher"]
            text = self._own.decode(ids)
            theirs = self._spelt(name, text, ended=rollout.said.finish_reason == "stop")
            both = aligned(begins(self._own, ids, text), begins(self._codec(name), theirs, text))
            told = self._read_as(name, rollout.row, theirs)
            yield {
                "rows": nth,
                "count": len(both),
                "tokens": torch.tensor([begin + mine for mine, _ in both], dtype=torch.long),
                "seen": told.of(torch.tensor([other for _, other in both], dtype=torch.long)),
            }
            begin += len(ids)

    def _read_as(self, name: str, row: Row, ids: TokenIds) -> Scores:
        asked = row["teacher_prompt_ids"] or row["prompt_ids"]
        return self._look(self._teacher(name), padded([asked], [list(ids)]))

    @property
    def _own(self) -> ChatCodec:
        return _codec_of(self.job.start_folder)

    def _codec(self, name: str) -> ChatCodec:
        return _codec_of(self.job.held[name].folder)

    def _spelt(self, name: str, text: str, *, ended: bool) -> TokenIds:
        codec = self._codec(name)
        ids = codec.plain(text)
        return (*ids, codec.end) if ended else ids

    def _repeatable(self, name: str, rollouts: Sequence[Rollout]) -> None:
        """Ask nothing twice: the student's tokens are none of the teacher's."""


@cache
def _codec_of(folder: Path) -> ChatCodec:
    return ChatCodec(AutoTokenizer.from_pretrained(folder, local_files_only=True))


def begins(codec: ChatCodec, ids: Sequence[int], text: str) -> list[int]:
    """Return at which letter of a text each token begins; the end token begins where the text ends."""
    found = []
    for place in range(len(ids)):
        before = codec.decode(ids[:place])
        found.append(len(before) if text.startswith(before) else _NOWHERE)
    return found


def aligned(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Return the places of tokens of two rows that begin at the same letter.

    Where several tokens of a row begin at a letter, because some have none of their own, the last one counts: what it
    says next is said after all of them.
    """
    last = {letter: place for place, letter in enumerate(other) if letter != _NOWHERE}
    mine = {letter: place for place, letter in enumerate(one) if letter != _NOWHERE}
    return [(place, last[letter]) for letter, place in mine.items() if letter in last]
