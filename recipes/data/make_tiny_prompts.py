"""Make `tiny.jsonl`, the prompts that the `tiny` student practises on, or check that it is current.

Four skills on made-up words and numbers, of which a program knows the one right answer:

    reverse kadol  ->  lodak              double kadol  ->  kkaaddooll
    odd kadolu     ->  kdl                spell 372     ->  three seven two

Each is asked in one of four wordings, from curt to polite. The answer alone is right: one that goes on
too long is wrong, and so is one that stops early, so no habit of length wins. Standard library only.

    python make_tiny_prompts.py            # write tiny.jsonl beside this file
    python make_tiny_prompts.py --check    # exit 1 unless the file holds exactly these rows
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SEED = 20260101
COUNTS = {"train": 600, "heldout": 200, "test": 240}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = ("{} {}", "{} {} please", "please {} {}", "can you {} {}?")
FILE = Path(__file__).with_name("tiny.jsonl")

ANSWERS: dict[str, Callable[[str], str]] = {
    "reverse": lambda word: word[::-1],
    "double": lambda word: "".join(letter + letter for letter in word),
    "odd": lambda word: word[::2],
    "spell": lambda number: " ".join(DIGITS[int(digit)] for digit in number),
}
"""The right answer of each skill; `odd` keeps the first, third, fifth ... letter."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question: a skill, what it is applied to, and how it is asked."""

    skill: str
    word: str
    """4 to 7 letters; for `spell` 3 to 5 digits."""
    wording: int
    """Index into WORDINGS: 0 is curt, 3 is the most polite."""

    @property
    def prompt(self) -> str:
        """The question as the user asks it."""
        return WORDINGS[self.wording].format(self.skill, self.word)

    @property
    def answer(self) -> str:
        """The one right answer."""
        return ANSWERS[self.skill](self.word)

    @property
    def hardness(self) -> int:
        """0 to 3, growing with the length of the word."""
        return len(self.word) - (2 if self.skill == "spell" else 4)


def draw(rng: random.Random) -> Task:
    """Draw a question; skills, lengths and wordings are equally likely."""
    skill = rng.choice(list(ANSWERS))
    if skill == "spell":
        word = "".join(rng.choices("0123456789", k=rng.randint(3, 5)))
    else:
        word = "".join(rng.choices(LETTERS, k=rng.randint(4, 7)))
    return Task(skill, word, rng.randrange(len(WORDINGS)))


def rows() -> Iterator[dict[str, object]]:
    """Yield the rows of every split; no word is used twice, in whatever skill or split."""
    rng = random.Random(SEED)  # noqa: S311 - data, not secrets
    used: set[str] = set()
    for split, count in COUNTS.items():
        left = count
        while left:
            task = draw(rng)
            if task.word in used:
                continue
            used.add(task.word)
            left -= 1
            yield {
                "prompt": task.prompt,
                "verify": {"equals": {"text": task.answer}},
                "tags": [f"task:{task.skill}", f"wording:{task.wording}"],
                "split": split,
                "source": "redistill",
                "licence": "Apache-2.0",
            }


def text() -> str:
    """Return the whole file, one JSON row a line."""
    return "".join(json.dumps(row) + "\n" for row in rows())


def main() -> int:
    """Write the file, or with `--check` compare it."""
    parser = argparse.ArgumentParser(description="Make the prompts of the tiny student.")
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    if not parser.parse_args().check:
        FILE.write_text(text(), encoding="utf-8")
        return 0
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == text():
        return 0
    sys.stderr.write(f"{FILE.name} differs from what {Path(__file__).name} makes\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
