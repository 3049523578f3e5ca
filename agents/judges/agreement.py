"""The judge `agreement`: an answer is worth what share of its siblings came to the same end."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

from ...types import Completion, Judgement
from ..judge import ColumnName, JudgeTask, SettledJudge
from . import maths

_NUMBER = re.compile(r"(?<![\w.,])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_EDGES = " \t\n.,;:!?\"'`*$\u201c\u201d\u2018\u2019"


class Agreement(SettledJudge):
    """Compare the final answers of all samples of a prompt: what most of them say is taken for right.

    Self-consistency (arXiv 2203.11171) as a label, as in TTRL (arXiv 2504.16084). It needs no reference and
    no model, and knows nothing that the student does not: a mistake that most samples share is rewarded. So
    it is no program that is exempt from the exam, and an exam of pairs cannot prove it.
    """

    name: ColumnName = "agreement"
    key: Literal["final", "text"] = "final"
    """What must be the same: the last boxed or else the last number, or else the text; or always the text."""
    value: Literal["share", "majority"] = "share"
    """The share of samples with the same key; or 1 for the key of most samples and 0 for all others."""
    ended: bool = True
    """Whether an answer that was cut at the token limit has no vote."""

    version: ClassVar[int] = 1
    needs_group: ClassVar[bool] = True

    async def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Judge each task by its candidates: the answer itself, and the other samples of its prompt."""
        return [self._judge(task) for task in tasks]

    def _judge(self, task: JudgeTask) -> Judgement:
        if not task.others:
            return Judgement.failed("not_applicable", "there is no other sample of this prompt")
        mine = self._key(task.completion)
        votes = Counter(key for one in task.candidates if (key := self._key(one)) is not None)
        share = votes[mine] / len(task.candidates) if mine is not None else 0.0
        most_votes = max(votes.values(), default=0)
        ahead = [key for key, count in votes.items() if count == most_votes]
        if self.value == "majority" and (most_votes < 2 or len(ahead) > 1):
            told = f"{len(ahead)} answers have {most_votes} votes" if ahead else "nobody votes"
            return Judgement.failed("not_applicable", f"no majority: {told}")
        most = ahead == [mine] and most_votes > 1
        worth = share if self.value == "share" else float(most)
        return Judgement(worth, raw=share, parts={"majority": most}, text=mine or "")

    def _key(self, answer: Completion) -> str | None:
        if self.ended and not answer.ended:
            return None
        return (final_answer(answer.text) if self.key == "final" else plain(answer.text)) or None


def final_answer(text: str) -> str:
    """Return what a text comes to: its last boxed answer, else its last number, else all of it.

    Numbers are equal by value, so that 1,000.0 and 1000 are one answer.
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        return _number(boxed) or plain(boxed)
    numbers = _NUMBER.findall(text)
    return (_number(numbers[-1]) or plain(numbers[-1])) if numbers else plain(text)


def plain(text: str) -> str:
    """Return a text without case, outer marks and the length of its spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


def _number(text: str) -> str | None:
    above, slash, below = text.replace("$", "").replace(" ", "").rstrip(",").partition("/")
    number, divisor = maths.plain_number(above), maths.plain_number(below) if slash else 1
    if number is None or not divisor:
        return None
    return str(number / divisor)


def _last_boxed(text: str) -> str | None:
    r"""Return what stands in the last \boxed{} whose braces close."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for place in range(begin := start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[begin + 1 : place]
        start = text.rfind("\\boxed{", 0, start)
    return None
