"""A judge of proposed prompts, which have no checker: a program that processes of their own can import."""

from __future__ import annotations

from redistill.types import Completion, Prompt


def ends_alike(prompt: Prompt, completion: Completion) -> float:
    """Return 1 where the answer is the last word of its prompt, else less the longer it is."""
    right = prompt.text.rsplit(maxsplit=1)[-1]
    return 1.0 if completion.text == right else 1 / (2 + len(completion.text))


def backwards(prompt: Prompt, completion: Completion) -> float:
    """Return 1 where the answer is the last word of its prompt from right to left, else 0."""
    return float(completion.text == prompt.text.rsplit(maxsplit=1)[-1].rstrip("?")[::-1])


def vowels(prompt: Prompt, completion: Completion) -> float:
    """Return the share of vowels, so that answers differ."""
    text = completion.text
    return sum(c in "aeiou" for c in text) / len(text) if text else 0.0
