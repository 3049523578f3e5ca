"""The judge `trained`: the reward model that an earlier step of the same round has made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, model_validator

from ...types import Judgement
from ..judge import ColumnName, Judge, JudgeTask, SettledJudge
from ..speaker import Speaker
from .reward import RewardModel, release_held

MadeJudge = Callable[[str], Path]
"""From the name of a train step to the folder of the judge that it has made in this round."""
_NOBODY = "it is made in a round, and no step of one has made it yet"


class Trained(SettledJudge):
    """Judge with the reward model that an earlier `train` step of the round has made of the round's pairs.

    It speaks as `reward_model` does. Each round makes it anew, so its revision is that of the weights: all that it
    says names the weights that said it. A step is given it only when pairs that were held back from its training
    prove that it agrees with them; `unproven_judge: allow` lets it in all the same. No evaluation can use it, because
    the values of two rounds could not be compared.
    """

    name: ColumnName = Field("", validate_default=False)
    """Name of its column; the step's name where it is left out."""
    step: str
    """The train step that makes it."""

    _made: RewardModel | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _called_like_its_step(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("step") and not data.get("name"):
            return data | {"name": data["step"]}
        return data

    @property
    def revision(self) -> str:
        """The revision of this round's weights; before there are any, a hash of which step will make them."""
        return super().revision if self._made is None else _weights(self._made)

    def bound(self, speaker: Speaker) -> Self:
        """Return the judge with this round's weights, where the speaker is a step's of a round."""
        find: MadeJudge | None = getattr(speaker, "made_judge", None)
        if find is None:
            return self
        copy = self.model_copy()
        copy._made = RewardModel(name=self.name, model=str(find(self.step)))
        return copy

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Give each answer the sigmoid of its logit."""
        if self._made is None:
            return [Judgement.failed("error", _NOBODY) for _ in tasks]
        return [_signed(said, self.revision) for said in await self._made.score(tasks)]

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank each task's candidates by their logits."""
        if self._made is None:
            return [Judgement.failed("error", _NOBODY) for _ in tasks]
        return [_signed(said, self.revision) for said in await self._made.compare(tasks)]

    def release(self) -> None:
        """Give the model's memory back."""
        release_held()


def trained_in(judge: object) -> Iterator[Trained]:
    """Yield the judges in a judge that a round makes: itself, or those that it is made of."""
    if isinstance(judge, Trained):
        yield judge
    inner: Sequence[Judge] = getattr(judge, "inner", ())
    for one in inner:
        yield from trained_in(one)


def _weights(model: RewardModel) -> str:
    """Return the revision of a judge's weights, which names its folder."""
    return Path(model.model).name


def _signed(said: Judgement, revision: str) -> Judgement:
    """Return a judgement with the revision of the weights that gave it, as the store knows them."""
    if said.usage is None:
        return said
    return replace(said, usage=replace(said.usage, revision=revision))
