"""What judges that speak through one role have in common."""

from __future__ import annotations

from typing import Self

from pydantic import PrivateAttr

from ..judge import SettledJudge
from ..roles import STUDENT
from ..speaker import Speaker


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

    @property
    def speaker(self) -> Speaker:
        """Who speaks for the role.

        Raises:
            RuntimeError: nobody does.
        """
        if self._speaker is None:
            raise RuntimeError(f"{self.name} speaks as {self.role}, and was not bound to a speaker")
        return self._speaker
