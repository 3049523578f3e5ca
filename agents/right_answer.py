"""The right answer to a prompt, where the prompt comes with one."""

from __future__ import annotations

from ..types import Prompt
from .judges import checkers


def right_answer(prompt: Prompt) -> str:
    """Return a prompt's `reference`, else its `answer`, else the text that its one checker demands; empty for none.

    A checker that demands a text is `equals`. Beside others it proves nothing: the text could fail them.
    """
    if prompt.reference or prompt.answer:
        return prompt.reference or prompt.answer or ""
    verify = prompt.verify or {}
    if set(verify) != {"equals"} or checkers.check_spec(verify, "verify"):
        return ""
    demanded = checkers.typed(verify)["equals"]
    return demanded if isinstance(demanded, str) else str(demanded.text)
