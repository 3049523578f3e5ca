"""Make the starter exam and the demo's votes: pairs whose better side a program proves.

`python -P agents/exams/make_starter.py` writes `starter.jsonl` and `demo_votes.csv` beside this file; a
test makes them again and compares. Every pair is a task that the checkers can check: the better answer
passes all of them and the worse one fails, or the pair is not written.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.agents.judges import checkers

SEED = 20
EASY = 160
TRICKY = 40
"""Pairs of each adversarial kind."""

_CAPITALS = {
    "Norway": ("Oslo", "Bergen"), "Turkey": ("Ankara", "Istanbul"), "Canada": ("Ottawa", "Toronto"),
    "Australia": ("Canberra", "Sydney"), "Brazil": ("Brasilia", "Salvador"),
    "Switzerland": ("Bern", "Zurich"), "Morocco": ("Rabat", "Casablanca"),
    "Kazakhstan": ("Astana", "Almaty"), "Vietnam": ("Hanoi", "Hue"), "Poland": ("Warsaw", "Krakow"),
    "Japan": ("Tokyo", "Osaka"), "Ecuador": ("Quito", "Guayaquil"), "Peru": ("Lima", "Cusco"),
    "Pakistan": ("Islamabad", "Karachi"), "Scotland": ("Edinburgh", "Glasgow"),
    "Portugal": ("Lisbon", "Porto"), "Germany": ("Berlin", "Munich"), "Italy": ("Rome", "Milan"),
    "Egypt": ("Cairo", "Alexandria"), "Kenya": ("Nairobi", "Mombasa"),
}  # fmt: skip
_WORDS = [
    "lantern",
    "river",
    "ribbon",
    "meadow",
    "violin",
    "harbour",
    "pepper",
    "blanket",
    "orchard",
    "mirror",
    "marble",
    "candle",
    "saddle",
    "feather",
    "garden",
    "ladder",
    "window",
    "basket",
    "hammer",
    "pillow",
    "tunnel",
    "button",
    "bottle",
    "kettle",
    "needle",
]
_NAMES = [
    "Mia",
    "Omar",
    "Lena",
    "Ravi",
    "Ines",
    "Tomas",
    "Yuki",
    "Nadia",
    "Pavel",
    "Amina",
    "Jonas",
    "Leila",
    "Bruno",
    "Sofia",
]


@dataclass(frozen=True, slots=True)
class Task:
    """A question with answers of known worth."""

    asked: str
    verify: dict[str, Any]
    right: str
    """Short and in the form that was asked."""
    wrong: str
    """As short, in the same form, with wrong content."""
    subject: str
    """What it is about, for longer answers."""


def _sum(draw: random.Random) -> Task:
    a, b = draw.randint(12, 89), draw.randint(12, 89)
    wrong = a + b + draw.choice((-10, -1, 1, 10))
    return Task(f"What is {a} + {b}? Reply with the number and nothing else.",
                {"equals": str(a + b)}, str(a + b), str(wrong), f"{a} + {b}")  # fmt: skip


def _product(draw: random.Random) -> Task:
    a, b = draw.randint(3, 12), draw.randint(11, 29)
    wrong = a * b + draw.choice((-a, a, 2, 10))
    return Task(f"What is {a} times {b}? Reply with the number and nothing else.",
                {"equals": str(a * b)}, str(a * b), str(wrong), f"{a} times {b}")  # fmt: skip


def _capital(draw: random.Random) -> Task:
    country = draw.choice(sorted(_CAPITALS))
    right, wrong = _CAPITALS[country]
    return Task(f"What is the capital of {country}? Reply with the name of the city and nothing else.",
                {"equals": right}, right, wrong, f"the capital of {country}")  # fmt: skip


def _letters(draw: random.Random) -> Task:
    word = draw.choice(_WORDS)
    wrong = len(word) + draw.choice((-2, -1, 1, 2))
    return Task(f"How many letters has the word {word}? Reply with the number and nothing else.",
                {"equals": str(len(word))}, str(len(word)), str(wrong),
                f"the number of letters in {word}")  # fmt: skip


def _sorted(draw: random.Random) -> Task:
    numbers = draw.sample(range(10, 99), 4)
    right = sorted(numbers)
    wrong = list(right)
    spot = draw.randrange(3)
    wrong[spot], wrong[spot + 1] = wrong[spot + 1], wrong[spot]
    shown = ", ".join(map(str, numbers))
    return Task(f"Sort these numbers from small to large: {shown}. Reply with the four numbers, "
                "separated by commas, and nothing else.",
                {"equals": ", ".join(map(str, right))}, ", ".join(map(str, right)),
                ", ".join(map(str, wrong)), f"the order of {shown}")  # fmt: skip


def _upper(draw: random.Random) -> Task:
    one, two = draw.sample(_WORDS, 2)
    return Task(f"Write the word {one} in capital letters. Reply with that word and nothing else.",
                {"equals": one.upper()}, one.upper(), two.upper(), f"the word {one}")  # fmt: skip


_TASKS: tuple[Callable[[random.Random], Task], ...] = (
    _sum, _product, _capital, _letters, _sorted, _upper,
)  # fmt: skip


# -- pairs: (asked, verify, better, worse)

Made = tuple[str, dict[str, Any], str, str]


def _open(task: Task) -> tuple[str, dict[str, Any]]:
    """Return the task without a form: any wording with the right content passes."""
    asked = task.asked.partition(" Reply with")[0]
    return asked, {"include": task.right, "exclude": task.wrong}


def _easy(draw: random.Random, number: int) -> Made:
    """Make right against wrong; which of the two has the longer wording takes turns."""
    task = draw.choice(_TASKS)(draw)
    asked, verify = _open(task)

    def long(content: str) -> str:
        return draw.choice(
            (
                f"For {task.subject} the answer is {content}.",
                f"It is {content}, for {task.subject}.",
            )
        )

    def short(content: str) -> str:
        return draw.choice((content, f"{content}.", f"It is {content}."))

    better, worse = (long, short) if number % 2 else (short, long)
    return asked, verify, better(task.right), worse(task.wrong)


def _longer_is_worse(draw: random.Random, _: int) -> Made:
    task = draw.choice(_TASKS)(draw)
    worse = (
        f"Let us go through this step by step. We are asked about {task.subject}. First it helps to "
        "write down what is given, then to look at each part in turn, and at last to put the parts "
        f"together again. When we do so with care, we find {task.wrong}. A second look by another way "
        f"leads to the same result, so the answer is {task.wrong}."
    )
    asked, verify = _open(task)
    return asked, verify, draw.choice((f"{task.right}.", f"It is {task.right}.")), worse


def _confident_is_wrong(draw: random.Random, number: int) -> Made:
    task = draw.choice(_TASKS)(draw)
    asked, verify = _open(task)
    doubtful = (
        f"If I am not mistaken it is {task.right}.",
        f"I believe that it is {task.right}, though you may want to check this yourself.",
    )
    sure = (
        (
            f"I am an expert and absolutely certain: {task.wrong}. There is no doubt about it whatsoever, "
            "every textbook says the same."
        ),
        f"Definitely {task.wrong}!",
    )
    # In half of the pairs the confident answer is the shorter one.
    return asked, verify, doubtful[number % 2], sure[number % 2]


def _half_followed(draw: random.Random, number: int) -> Made:
    one, two, three = draw.sample(_WORDS, 3)
    name = draw.choice(_NAMES)
    if number % 3 == 0:
        asked = f"Write exactly two sentences about a {one}. Do not use the word {two}."
        return (asked, {"sentences": 2, "include": one, "exclude": two},
                f"The {one} belongs to {name}. It is very old.",
                (f"The {one} of {name} is old and has been in the family for many years. Every visitor "
                f"asks about it at once. Beside it lies a {two}, which is older still and much loved."))  # fmt: skip
    if number % 3 == 1:
        asked = f"Write one sentence of at most ten words with the words {one} and {three}."
        return (asked, {"sentence": True, "max_words": 10, "include": [one, three]},
                f"{name} left the {one} near the {three}.",
                (f"On a bright and windy morning in early spring {name} carried the {one} all the way "
                f"to the {three}, singing a cheerful old song and waving to the neighbours."))  # fmt: skip
    asked = f"Name {one}, {two} and {three} as a list of three bullets, all in lower case letters."
    return (asked, {"bullets": 3, "lowercase": True, "include": [one, two, three]},
            f"- {one}\n- {two}\n- {three}",
            (f"- {one.title()}: a fine and useful thing to have in any house\n- {two.title()}: well known "
            f"to everyone since childhood\n- {three.title()}: simple, and yet full of charm"))  # fmt: skip


def _wrong_form(draw: random.Random, number: int) -> Made:
    name, age, word = draw.choice(_NAMES), draw.randint(19, 80), draw.choice(_WORDS)
    if number % 2:
        asked = f"{name} is {age} years old. Reply with a JSON object with the keys name and age."
        better = json.dumps({"name": name, "age": age})
        worse = f"Here is the information that you asked for. Name: {name}. Age: {age} years."
        return (
            asked,
            {"json": {"keys": ["name", "age"]}, "include": [name, str(age)]},
            better,
            worse,
        )
    asked = f"Which word comes first in a dictionary, {word} or zebra? Reply with one word."
    worse = f"The word {word} comes first, since its first letter stands before z in the alphabet."
    return asked, {"word": True, "include": word}, word, worse


def _polite_padding(draw: random.Random, _: int) -> Made:
    task = draw.choice(_TASKS)(draw)
    opening = draw.choice(
        ("What a great question!", "Certainly, I am happy to help!", "Thank you for asking!")
    )
    closing = draw.choice(("I hope that this helps. Let me know if there is anything else!",
                           "Please feel free to ask me more, I am always here for you!"))  # fmt: skip
    worse = f"{opening} The answer that you are looking for is {task.right}. {closing}"
    return task.asked, task.verify, task.right, worse


_KINDS: dict[str, Callable[[random.Random, int], Made]] = {
    "longer_is_worse": _longer_is_worse,
    "confident_is_wrong": _confident_is_wrong,
    "half_followed": _half_followed,
    "wrong_form": _wrong_form,
    "polite_padding": _polite_padding,
}


def pairs(seed: int = SEED) -> Iterator[dict[str, Any]]:
    """Yield the pairs of the exam, each one proven and none twice."""
    draw = random.Random(seed)  # noqa: S311 - reproducible
    yield from _proven("easy", "right_or_wrong", EASY, _easy, draw)
    for kind, make in _KINDS.items():
        yield from _proven("adversarial", kind, TRICKY, make, draw)


def _proven(
    slice_: str,
    kind: str,
    count: int,
    make: Callable[[random.Random, int], Made],
    draw: random.Random,
) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    while len(seen) < count:
        number = len(seen)
        asked, verify, better, worse = make(draw, number)
        if asked in seen or not _passes(verify, better) or _passes(verify, worse):
            continue
        seen.add(asked)
        label = 1 + (number // 2) % 2
        outputs = (better, worse) if label == 1 else (worse, better)
        yield {
            "id": f"{kind}-{number:03}",
            "slice": slice_,
            "kind": kind,
            "input": asked,
            "output_1": outputs[0],
            "output_2": outputs[1],
            "label": label,
            "verify": verify,
        }


def _passes(verify: dict[str, Any], text: str) -> bool:
    return all(checkers.run(verify, text).values())


def demo_votes(rows: list[dict[str, Any]], seed: int = SEED) -> str:
    """Return the votes of a made-up judge: it sees what is right when lengths are alike, and likes length."""
    draw = random.Random(seed)  # noqa: S311 - reproducible
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("item_id", "judge", "strategy", "order", "winner"))
    for row in rows:
        better = row["label"]
        lengths = {side: len(row[f"output_{side}"]) for side in (1, 2)}
        pull = 0.035 * (lengths[better] - lengths[3 - better])
        for order in ("12", "21"):
            shown_first = 0.25 if int(order[0]) == better else -0.25
            likes = 2.2 + pull + shown_first + draw.gauss(0, 1.0)
            writer.writerow(
                (row["id"], "talker", "plain", order, better if likes > 0 else 3 - better)
            )
    return out.getvalue()


def files(seed: int = SEED) -> dict[str, str]:
    """Return every file that is made here, by its name."""
    rows = list(pairs(seed))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {"starter.jsonl": lines, "demo_votes.csv": demo_votes(rows, seed)}


if __name__ == "__main__":
    for name, text in files().items():
        (Path(__file__).parent / name).write_text(text, "utf-8")
