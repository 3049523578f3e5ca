"""What is judged, as a model is shown it.

The texts stand in fences whose mark is a hash of the material itself: no answer can contain it, so none can
close its fence or speak in the judge's own turn.
"""

from __future__ import annotations

import re

from ...hashing import content_hash
from ..judge import JudgeTask

LETTERS = "ABCDEFGH"
"""Names of the candidates, by the order presented."""
_CONTROL = re.compile(
    r"<(?=\|[^<>|\n]{1,40}\|>|\uff5c[^<>\n]{1,40}\uff5c>|/?s>|/?(?:bos|eos|pad|unk)>"
    r"|(?:start|end)_of_(?:turn|role)>|</?SYS>>)|\[(?=/?INST\])",
    re.IGNORECASE,
)
"""Where what looks like a control token of some model begins."""


def mark_of(task: JudgeTask) -> str:
    """Return the mark of a task's fences: a hash of all that stands between them."""
    asked = [[m.role, m.content] for m in task.prompt.messages]
    return content_hash([asked, [completion.text for completion in task.candidates]])[:12]


def fenced(task: JudgeTask) -> str:
    """Put the question and the answers between their fences, letters by the order presented."""
    mark = mark_of(task)
    parts = [("question", question_of(task))]
    if task.prompt.reference:
        parts.append(("a right answer", task.prompt.reference))
    several = len(task.candidates) > 1
    parts += [
        (f"answer {letter}" if several else "answer", completion.text)
        for letter, completion in zip(LETTERS, task.candidates, strict=False)
    ]
    return "\n\n".join(
        f"--- {mark} {title} begins\n{defused(text)}\n--- {mark} {title} ends"
        for title, text in parts
    )


def brief(task: JudgeTask) -> str:
    """Put the question and the answers on lines of their own, with nothing around them.

    An answer can pose as another part of it: it is for a model whose context has no room for fences.
    """
    letters = LETTERS if len(task.candidates) > 1 else ("Answer",)
    answers = [
        f"{letter}: {completion.text}"
        for letter, completion in zip(letters, task.candidates, strict=False)
    ]
    right = [f"Right: {task.prompt.reference}"] if task.prompt.reference else []
    return defused("\n".join([question_of(task), *right, *answers]))


def question_of(task: JudgeTask) -> str:
    """Return what was asked; of several turns, each with who said it."""
    turns = task.prompt.messages
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def defused(text: str) -> str:
    """Take a control token's look from what was written, so that no server reads it as one."""
    return _CONTROL.sub(lambda found: found[0] + " ", text)
