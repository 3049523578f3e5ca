"""What judges that speak through one role have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import PrivateAttr

from ...types import Judgement, Message
from ..judge import JudgeTask, Mode, SettledJudge
from ..roles import STUDENT
from ..speaker import Speaker


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a model is asked as a judge, and the reply that it should learn to give."""

    asked: tuple[Message, ...]
    reply: str


class Speaking(SettledJudge):
    """Base of judges that speak through one role."""

    role: str = STUDENT
    """Who judges."""

    _speaker: Speaker | None = PrivateAttr(None)

    def roles(self) -> tuple[str, ...]:
        """The one role that judges."""
        return (self.role,)

    def bound(self, speaker: Speaker) -> Self:
        """Return the judge ready to speak."""
        judge = self.model_copy()
        judge._speaker = speaker
        return judge

    def lesson(self, mode: Mode, task: JudgeTask, said: Judgement) -> Lesson | None:  # noqa: ARG002
        """Return what it asks about a task, and the reply that it would read as a given judgement.

        None where no reply says it; a judge that cannot be taught by replies has none for anything.
        """
        return None

    @property
    def speaker(self) -> Speaker:
        """Who speaks for the role.

        Raises:
            RuntimeError: nobody does.
        """
        if self._speaker is None:
            raise RuntimeError(f"{self.name} speaks as {self.role}, and was not bound to a speaker")
        return self._speaker
