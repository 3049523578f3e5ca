"""A program that plays an LLM teacher for the toy task: it answers, judges, criticises, rewrites and asks, in words.

It stands in for a model behind an API, so that every loop can be run where there is none: as the policy of a role,
`policy: "redistill.testing.tutor:Tutor"`, or behind a `FakeServer(tutor.reply)`. It is no oracle. What it says is
wrong with the chance of its `slip`, drawn from what it was asked, and it never sees what a prompt's checker knows.
"""

from __future__ import annotations

import difflib
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..hashing import content_hash
from ..policies.policy import Generation, Request, Sampling
from ..types import Message, TokenIds
from .fakes import FakeStudent

SLIP = 0.1
"""Chance that what it says is wrong."""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SKILLS = ("reverse", "double", "odd", "spell")
_TASK = re.compile(r"(?:please |can you )?(reverse|double|odd|spell) ([a-z]+|\d+)(?: please|\?)?")
_FENCED = re.compile(r"--- (\w{12}) ([a-z A-Z]+) begins\n(.*?)\n--- \1 \2 ends", re.DOTALL)
_NEAR = 0.6
"""Worth of an answer that is wrong, and all but right."""


def solve(question: str) -> str | None:
    """Return the right answer to a question of the toy; None where it is none."""
    found = _TASK.fullmatch(question.strip())
    if found is None:
        return None
    skill, word = found.groups()
    if skill == "spell":
        return " ".join(_DIGITS[int(digit)] for digit in word) if word.isdigit() else None
    return {"reverse": word[::-1], "odd": word[::2], "double": re.sub("(.)", r"\1\1", word)}[skill]


def worth(question: str, answer: str) -> float:
    """Return how good an answer is, from 0 to 1; only the right one has 1."""
    right = solve(question)
    if right is None or answer.strip() == right:
        return float(right is not None)
    return _NEAR * difflib.SequenceMatcher(None, answer.strip(), right, autojunk=False).ratio()


def reply(messages: Sequence[Mapping[str, Any]], *, seed: int | None = None) -> str:
    """Say what the tutor says to a conversation.

    Args:
        messages: turns with `role` and `content`, as a chat server gets them.
        seed: of its slips; from the conversation where it is left out.
    """
    said = [str(turn["content"]) for turn in messages if turn["role"] != "system"]
    rng = random.Random(content_hash(said) if seed is None else seed)  # noqa: S311 - reproducible
    asked = said[-1]
    parts = {title: text for _, title, text in _FENCED.findall(asked)}
    if "question" in parts:
        return _judge(asked, parts, rng)
    if (right := solve(asked)) is not None:
        return _slipped(right, rng)
    earlier = [right for text in said[:-1] if (right := solve(text)) is not None]
    return _slipped(earlier[-1], rng) if earlier else _ask(asked, rng)


def _slipped(right: str, rng: random.Random) -> str:
    """Return the right answer, or, by chance, one with a letter too many."""
    if rng.random() >= SLIP:
        return right
    place = rng.randrange(len(right))
    return right[:place] + right[place] + right[place:]


def _judge(asked: str, parts: Mapping[str, str], rng: random.Random) -> str:
    """Score, compare or criticise what stands between the fences, in the form asked for."""
    answers = [text for title, text in parts.items() if title.startswith("answer")]
    worths = [worth(parts["question"], answer) for answer in answers]
    if rng.random() < SLIP:  # careless: it takes the good for bad
        worths = [1 - value for value in worths]
    if "JSON object" in asked:
        reasons = {"reasoning": "I worked it out."} if '"reasoning"' in asked else {}
        return json.dumps(reasons | _verdict(asked, worths))
    if worths[0] == 1:
        return "no fault"
    return (
        f"It is not what was asked for: {_slipped(solve(parts['question']) or '?', rng)} is right."
    )


def _verdict(asked: str, worths: Sequence[float]) -> dict[str, Any]:
    """Return which is better, the ranks, a score on the scale that is asked for, or one for each aspect."""
    if '"better"' in asked:
        first, second = worths
        return {"better": "tie" if first == second else "A" if first > second else "B"}
    if '"ranks"' in asked:
        ranks = [1 + sum(other > value for other in worths) for value in worths]
        return {"ranks": dict(zip("ABCDEFGH", ranks, strict=False))}
    low, high = (int(end) for end in re.findall(r"from (\d+) \(worst\) to (\d+)", asked)[-1])
    score = low + round(worths[0] * (high - low))
    listed = re.search(r'"scores": \{(.*?)\}', asked)
    if listed is None:
        return {"score": score}
    return {"scores": dict.fromkeys(re.findall(r'"([^"]+)": \.\.\.', listed[1]), score)}


def _ask(asked: str, rng: random.Random) -> str:
    """Propose a question of the toy: of the skill that was talked of last, where one was."""
    named = re.findall("|".join(_SKILLS), asked)
    skill = rng.choice(named or _SKILLS)
    if skill == "spell":
        word = "".join(rng.choices("0123456789", k=rng.randint(3, 5)))
    else:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 7)))
    return rng.choice(("{} {}", "{} {} please", "please {} {}", "can you {} {}?")).format(
        skill, word
    )


class Tutor(FakeStudent):
    """The tutor as the policy of a role: `policy: "redistill.testing.tutor:Tutor"`."""

    skill = 1 - SLIP

    @property
    def context_length(self) -> int:
        """Characters that conversation and answer may have together."""
        return 1 << 16

    @property
    def vocabulary(self) -> str:
        """Name of its tokenizer: a token is a character of the conversation's JSON."""
        return "tutor"

    def encode(self, messages: Sequence[Message]) -> TokenIds:
        """Return the whole conversation, a character a token."""
        return tuple(map(ord, json.dumps([turn.as_dict() for turn in messages])))

    def choose(self, prompts: Sequence[TokenIds], options: Sequence[str]) -> list[list[float]]:
        """Return how likely each option is: by the worth of what is judged."""
        return [self._weighed(_turns(ids), options) for ids in prompts]

    def _weighed(self, turns: list[dict[str, str]], options: Sequence[str]) -> list[float]:
        parts = {title: text for _, title, text in _FENCED.findall(turns[-1]["content"])}
        worths = [
            worth(parts.get("question", ""), parts[t]) for t in parts if t.startswith("answer")
        ]
        if not worths:
            return [1 / len(options)] * len(options)
        if options[0] in ("yes", "0", "1"):  # of one answer: good or not, or a digit of a scale
            best = worths[0] * (len(options) - 1)
            place = best if options[0] != "yes" else len(options) - 1 - best
            heights = [2.0 ** -(4 * abs(place - index)) for index in range(len(options))]
        else:
            heights = [4.0**value for value in (*worths, *[0.0] * len(options))[: len(options)]]
        return [height / sum(heights) for height in heights]

    def _answer(self, request: Request, sampling: Sampling) -> Generation:
        turns = _turns(request.prompt_ids)
        text = reply(turns, seed=request.seed if sampling.temperature else None)
        spelt = self.spell(text)
        ids = spelt[: sampling.max_tokens]
        return Generation(
            text[: len(ids)], ids, (-0.1,) * len(ids), "stop" if ids == spelt else "length"
        )


def _turns(ids: TokenIds) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = json.loads("".join(map(chr, ids)))
    return turns
