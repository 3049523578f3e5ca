"""Write the quickstart's task: easy questions, each to be answered in one of four contrasting forms.

A question is easy (a word out of a sentence, an opposite, a capital), and the form decides: only the
word, one full sentence, `Answer: X`, or double quotes. What is right for one form is wrong for the three
others, so neither brevity nor length alone wins. Train, heldout and test share no item, no wording of a
question and no wording of a form. `transfer` rows ask for two forms that are never trained.

    python make_forms.py           writes forms.jsonl and forms_examples.jsonl beside this file
    python make_forms.py --check   exits 1 when they differ from what would be written
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")

SEED = 11
SPLITS = ("train", "heldout", "test")
FORMS = ("word", "answer", "quotes", "sentence")
EXTRACTED = ("name", "colour", "city", "object")
FAMILIES = (*EXTRACTED, *EXTRACTED, "opposite", "capital")
"""One turn of the families: what can be read off the prompt comes oftener than what must be known."""
COUNTS = {
    # "Only the word" is learned slowest and "sentence" needs no practice: pitfalls 2 and 3 of the
    # measurements that this task comes from.
    "train": {"word": 87, "answer": 72, "quotes": 72, "sentence": 57},
    "heldout": dict.fromkeys(FORMS, 40),
    "test": dict.fromkeys(FORMS, 60),
    "transfer": {"json": 20, "capitals": 20},
}
DEALT = ("train", "test", "heldout", "train", "test")
"""Who gets the next item of a list; the lists run from common to rare, so all get alike."""

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Isabel Jack Kate Leo Maria Nathan Olivia Peter
Rachel Simon Tina Victor Wendy Adam Bella Carlos Diana Edward Fiona George Hannah Ivan Julia Kevin Laura
Martin Nina Oscar Paula Robert Sarah Thomas Ursula Walter Alice Brian Cathy Daniel Ellen Frank Gina
Hugo Irene James Karen Louis Monica""".split()  # noqa: SIM905
CITIES = """Chicago Boston Toronto Sydney Munich Milan Mumbai Barcelona Manchester Shanghai Houston
Hamburg Osaka Venice Montreal Dallas Geneva Naples Seattle Melbourne Liverpool Denver Lyon Glasgow
Atlanta Frankfurt Karachi Detroit Zurich Valencia Miami Florence Bristol Cologne Kyoto Phoenix Leeds
Seville Istanbul Calgary Lagos Marseille Portland Rotterdam Antwerp Krakow Dresden Bologna Brisbane
Nashville Durban Turin Perth Porto Bergen""".split()  # noqa: SIM905
OBJECTS = """hat book lamp chair umbrella bicycle scarf basket bottle kite jacket pencil clock bag mug
blanket guitar ladder candle mirror shirt drum tent pillow spoon carpet helmet notebook glove teapot
bucket violin ribbon wallet sofa towel sweater plate whistle backpack hammer vase belt suitcase
necklace trumpet box envelope broom kettle cushion doll saddle apron flute""".split()  # noqa: SIM905
COLOURS = {
    "train": ["red", "blue", "green", "yellow", "black", "white", "brown"],
    "heldout": ["purple", "gold", "turquoise"],
    "test": ["pink", "orange", "silver", "violet", "beige"],
}
OPPOSITES = """hot/cold; big,large/small,little; rich,wealthy/poor; happy/sad,unhappy; fast,quick/slow;
old/young,new; tall/short; strong/weak; good/bad,evil; wet/dry; sharp/blunt,dull; loud,noisy/quiet,silent;
up/down; open/closed,close,shut; early/late; clean/dirty; thick/thin; wide,broad/narrow; deep/shallow;
true/false,untrue; begin,start/end,finish; win/lose; buy/sell; push/pull; love/hate,hatred;
friend/enemy,foe; always/never; inside/outside; above/below,beneath; success/failure; smooth/rough;
alive,living/dead; war/peace; north/south; safe/dangerous,unsafe; easy/difficult,hard; laugh/cry;
day/night; first/last; left/right; high/low; near/far; same/different; cheap/expensive,costly;
east/west; positive/negative; heavy/light; summer/winter; male/female; beautiful,pretty/ugly;
more/less; maximum/minimum; odd/even; increase/decrease"""
CAPITALS = """Italy/Rome; Spain/Madrid; China/Beijing; England/London; Egypt/Cairo; Greece/Athens;
Canada/Ottawa; Portugal/Lisbon; Ireland/Dublin; Sweden/Stockholm; Austria/Vienna; Australia/Canberra;
Norway/Oslo; Cuba/Havana; Denmark/Copenhagen; Poland/Warsaw; Thailand/Bangkok; Belgium/Brussels;
Kenya/Nairobi; South Korea/Seoul; Hungary/Budapest; Iraq/Baghdad; Finland/Helsinki; Turkey/Ankara;
Iran/Tehran; the Netherlands/Amsterdam; Peru/Lima; Chile/Santiago; Switzerland/Bern,Berne;
Scotland/Edinburgh; Indonesia/Jakarta; Vietnam/Hanoi; the Philippines/Manila; Ukraine/Kyiv,Kiev;
Afghanistan/Kabul; the Czech Republic/Prague; Romania/Bucharest; Syria/Damascus; Morocco/Rabat;
Jamaica/Kingston; Bulgaria/Sofia; Serbia/Belgrade; Iceland/Reykjavik; Nepal/Kathmandu; Lebanon/Beirut;
Pakistan/Islamabad; Croatia/Zagreb; Colombia/Bogota,Bogotá; Ghana/Accra; Venezuela/Caracas"""

QUESTIONS: dict[str, dict[str, list[str]]] = {
    "name": {
        "train": [
            "{name} bought {a_object} yesterday. Who bought the {object}?",
            "The {object} belongs to {name}. Who owns the {object}?",
            "{name} dropped the {object} on the stairs. Who dropped the {object}?",
            "The {object} was a present from {name}. Who gave the {object}?",
        ],
        "heldout": [
            "{name} repaired the old {object}. Who repaired the {object}?",
            "In the end {name} found the lost {object}. Who found the {object}?",
        ],
        "test": [
            "{name} hid the {object} in the garden. Who hid the {object}?",
            "This morning {name} sold the {object}. Who sold it?",
            "It was {name} who painted the {object}. Who painted it?",
        ],
    },
    "colour": {
        "train": [
            "{name} has {a_colour} {object}. What colour is the {object}?",
            "The {object} on the table is {colour}. What is the colour of the {object}?",
            "There is {a_colour} {object} in the hall. Which colour does the {object} have?",
            "{name} wants {a_object} that is {colour}. What colour does {name} want?",
        ],
        "heldout": [
            "{name} lost {a_colour} {object} in the snow. What colour was the {object}?",
            "My new {object} is {colour}. Which colour is my {object}?",
        ],
        "test": [
            "{name} saw {a_colour} {object} in the shop. In what colour was the {object}?",
            "Behind the door stands {a_colour} {object}. Which colour is it?",
            "{name} made the {object} {colour}. What colour did it get?",
        ],
    },
    "city": {
        "train": [
            "{name} lives in {city}. Which city does {name} live in?",
            "The train to {city} was late. Which city was the train going to?",
            "{name} bought {a_object} in {city}. In which city did {name} buy it?",
            "{name} sent a letter to {city}. To which city did the letter go?",
        ],
        "heldout": [
            "{name} works in a hotel in {city}. In what city is the hotel?",
            "Last year {name} moved to {city}. What city did {name} move to?",
        ],
        "test": [
            "{name} was born in {city}. In which city was {name} born?",
            "The concert in {city} was sold out. Which city had the concert?",
            "{name} spent the holidays in {city}. What city did {name} visit?",
        ],
    },
    "object": {
        "train": [
            "{name} bought {a_object}. What did {name} buy?",
            "On the table lies {a_object}. What lies on the table?",
            "{name} has {a_object}. What does {name} have?",
            "In the box was {a_object}. What was in the box?",
        ],
        "heldout": [
            "{name} found {a_object} under the bed. What did {name} find?",
            "{name} borrowed {a_object} from a friend. What did {name} borrow?",
        ],
        "test": [
            "{name} put {a_object} into the car. What did {name} put into the car?",
            "A thief stole {a_object} from {name}. What did the thief steal?",
            "{name} forgot {a_object} at school. What did {name} forget?",
        ],
    },
    "opposite": {
        "train": [
            "What is the opposite of {asked}?",
            "Which word is the opposite of {asked}?",
            "Give the opposite of the word {asked}.",
        ],
        "heldout": ["What word means the opposite of {asked}?", "Name the antonym of {asked}."],
        "test": [
            "What is an antonym for {asked}?",
            "Say what the opposite word to {asked} is.",
            "Which word has the opposite meaning of {asked}?",
        ],
    },
    "capital": {
        "train": [
            "What is the capital of {asked}?",
            "Which city is the capital of {asked}?",
            "Name the capital of {asked}.",
        ],
        "heldout": [
            "What is the capital city of {asked}?",
            "Which city serves as the capital of {asked}?",
        ],
        "test": [
            "What city is the capital of {asked}?",
            "Give the name of the capital of {asked}.",
            "The government of {asked} sits in which capital?",
        ],
    },
}
WORDINGS: dict[str, dict[str, list[str]]] = {
    "train": {
        "word": [
            "Answer with only the word.",
            "Reply with just one word.",
            "One word only, no sentence.",
            "Answer in one word.",
            "Reply with a one-word answer.",
        ],
        "answer": [
            "Start with Answer: and then give only the word.",
            "Put Answer: before the word.",
            "Begin with Answer: and then say the word.",
            "Write Answer: in front of the word.",
            "Use the format Answer: X, where X is the word.",
        ],
        "quotes": [
            "Reply with one word between double quotes.",
            "Put the one word in double quotes.",
            "Give the word in double quotes and nothing else.",
            "Answer with one word in double quotes.",
            "Reply with a quoted word, in double quotes.",
        ],
        "sentence": [
            "Answer in a full sentence.",
            "Reply with one complete sentence.",
            "Write your answer as a whole sentence.",
            "Give the answer as one full sentence.",
        ],
    },
    "heldout": {
        "word": [
            "Respond using a single word.",
            "I want one single word and nothing more.",
            "Do not write a sentence, just the word.",
        ],
        "answer": [
            "Respond in the form Answer: X",
            "Begin your response with Answer: and add the word.",
            "Your response should be Answer: plus the word.",
        ],
        "quotes": [
            "Respond with the word in double quotation marks.",
            "Enclose the word in double quotes and add nothing.",
            "Your response is the word within double quotes.",
        ],
        "sentence": [
            "Respond with a complete sentence.",
            "Your response should be one whole sentence.",
            "Do not write a single word, but a full sentence.",
        ],
    },
    "test": {
        "word": [
            "Use exactly one word.",
            "The bare word is enough, leave out everything else.",
            "Keep it to a single word.",
            "Tell me the word alone.",
        ],
        "answer": [
            "Follow the pattern Answer: X",
            "Let your line begin with Answer: and end with the word.",
            "Print Answer: and behind it the word.",
            "Please stick to the layout Answer: X",
        ],
        "quotes": [
            "Surround the word with double quotation marks.",
            "Only the word, please, with double quotes around it.",
            "Print the word wrapped in double quotes.",
            "Set the single word between double quotation marks.",
        ],
        "sentence": [
            "Use a complete sentence.",
            "Tell me in one full sentence.",
            "Please phrase it as a whole sentence.",
            "Make it one grammatical sentence, not a single word.",
        ],
        "json": [
            'Reply with JSON like {"answer": "..."}.',
            'Print a JSON object with the one key "answer".',
        ],
        "capitals": [
            "Use capital letters only.",
            "PRINT EVERYTHING IN CAPITAL LETTERS.",
        ],
    },
}
BEFORE, LINE_BEFORE, AFTER, LINE_AFTER = "{i} {q}", "{i}\n{q}", "{q} {i}", "{q}\n{i}"
PLACES = {
    # The student understands a form that is named first far better; train has more of those.
    "train": (BEFORE, BEFORE, LINE_BEFORE, LINE_AFTER, AFTER),
    "heldout": (BEFORE, LINE_BEFORE, LINE_AFTER, AFTER),
    "test": (BEFORE, LINE_BEFORE, LINE_AFTER, AFTER),
}
"""Where the form stands: before the question or after it, on a line of its own or not."""

# Worked examples: other questions than in any split, in the wordings of train. (form, question, word,
# sentence): the answer is the sentence for `sentence`, else it follows from the word.
EXAMPLES = [
    ("The sock belongs to Lily. Who owns the sock?", "Lily", "The sock belongs to Lily."),
    ("Sam has a grey parrot. What colour is the parrot?", "grey", "The parrot is grey."),
    ("Lucy bought an apple. What did Lucy buy?", "apple", "Lucy bought an apple."),
    ("Zoe sent a card to Oxford. Which city did it go to?", "Oxford", "The card went to Oxford."),
    ("What is the capital of France?", "Paris", "The capital of France is Paris."),
    ("In the pond was a frog. What was in the pond?", "frog", "There was a frog in the pond."),
    ("Paul found a stone. Who found the stone?", "Paul", "Paul found the stone."),
    ("What is the opposite of come?", "go", "The opposite of come is go."),
]


@dataclass(frozen=True)
class Question:
    """A question with the contents that are right, the first one as a key would give it."""

    family: str
    text: str
    accepted: tuple[str, ...]


def main(arguments: list[str]) -> int:
    """Write the files, or compare them."""
    here = Path(__file__).parent
    wrong = 0
    for name, rows in (("forms.jsonl", prompts()), ("forms_examples.jsonl", examples())):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = here / name
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{name} differs from what make_forms.py writes\n")
            wrong = 1
    return wrong


def prompts() -> list[dict[str, Any]]:
    """Return every row of forms.jsonl: train, heldout, test, and the transfer part of test."""
    rows: list[dict[str, Any]] = []
    for split in SPLITS:
        ask = {family: _questions(family, split) for family in dict.fromkeys(FAMILIES)}
        rows += _rows(split, COUNTS[split], ask, [])
        if split == "test":
            rows += _rows(split, COUNTS["transfer"], ask, ["transfer"])
    return rows


def examples() -> list[dict[str, Any]]:
    """Return every row of forms_examples.jsonl: each example question in each form."""
    rows = []
    for form in FORMS:
        wordings = itertools.cycle(WORDINGS["train"][form])
        places = itertools.cycle((BEFORE, LINE_BEFORE))
        for question, word, sentence in EXAMPLES:
            prompt = next(places).format(q=question, i=next(wordings))
            answer = sentence if form == "sentence" else right_answer(form, word)
            rows.append({"prompt": prompt, "answer": answer, "tags": [f"form:{form}"]})
    return rows


def right_answer(form: str, word: str) -> str:
    """Return an answer that is right in form and content."""
    return {
        "word": word,
        "answer": f"Answer: {word}",
        "quotes": f'"{word}"',
        "sentence": f"The answer to this question is {word}.",
        "json": json.dumps({"answer": word}),
        "capitals": word.upper(),
    }[form]


def verify(form: str, accepted: tuple[str, ...]) -> dict[str, Any]:
    """Return the checkers of a form, with those of the content."""
    content: dict[str, Any] = (
        {"include": accepted[0]} if len(accepted) == 1 else {"any_of": list(accepted)}
    )
    checks: dict[str, dict[str, Any]] = {
        "word": {"word": True},
        "answer": {"starts_with": "Answer: ", "max_words": 2, "forbid_chars": '"'},
        "quotes": {"quoted": True, "max_words": 1},
        "sentence": {"sentence": True},
        "json": {"json": {"keys": ["answer"]}},
        "capitals": {"uppercase": True},
    }
    return checks[form] | content


def _rows(
    split: str, counts: dict[str, int], ask: dict[str, Iterator[Question]], extra: list[str]
) -> list[dict[str, Any]]:
    """Return the rows of a split, forms and families mixed evenly over every stretch of the list."""
    styles = {form: _styles(split, form) for form in counts}
    families = {form: _shuffled_forever(FAMILIES, f"{split} {form}") for form in counts}
    rows: list[dict[str, Any]] = []
    used: set[str] = set()
    for form in _spread(counts):
        question = next(ask[next(families[form])])
        prompt = next(styles[form]).format(q=question.text)
        while prompt in used:
            prompt = next(styles[form]).format(q=question.text)
        used.add(prompt)
        rows.append(
            {
                "prompt": prompt,
                "verify": verify(form, question.accepted),
                "tags": [f"form:{form}", f"family:{question.family}", *extra],
                "split": split,
                "source": "redistill",
                "licence": "Apache-2.0",
            }
        )
    return rows


def _spread(counts: dict[str, int]) -> Iterator[str]:
    """Yield each form as often as it is wanted, always the one that lags furthest behind."""
    total = sum(counts.values())
    given = dict.fromkeys(counts, 0)
    for n in range(1, total + 1):
        form = max(counts, key=lambda form: counts[form] * n / total - given[form])
        given[form] += 1
        yield form


def _styles(split: str, form: str) -> Iterator[str]:
    """Yield templates that hold the form's wording and a place for the question, without end."""
    every = [
        place.replace("{i}", wording.replace("{", "{{").replace("}", "}}"))
        for wording in WORDINGS[split][form]
        for place in PLACES[split]
    ]
    return _shuffled_forever(every, f"styles {split} {form}")


def _questions(family: str, split: str) -> Iterator[Question]:
    if family in EXTRACTED:
        return _extracted(family, split)
    return _known(family, split)


def _extracted(family: str, split: str) -> Iterator[Question]:
    """Yield questions whose answer stands in a sentence; each item comes round before any repeats."""
    pools = {
        "name": _dealt(NAMES, split),
        "colour": COLOURS[split],
        "city": _dealt(CITIES, split),
        "object": _dealt(OBJECTS, split),
    }
    draw = {key: _shuffled_forever(pool, f"{split} {family} {key}") for key, pool in pools.items()}
    for template in _shuffled_forever(QUESTIONS[family][split], f"wordings {split} {family}"):
        slots = {key: next(items) for key, items in draw.items()}
        for key in ("colour", "object"):
            slots[f"a_{key}"] = f"{'an' if slots[key][0] in 'aeiou' else 'a'} {slots[key]}"
        yield Question(family, template.format(**slots), (slots[family],))


def _known(family: str, split: str) -> Iterator[Question]:
    """Yield questions about opposites (both ways) or capitals."""
    facts = []
    for left, right in _dealt(_pairs(OPPOSITES if family == "opposite" else CAPITALS), split):
        facts.append((left[0], right))
        if family == "opposite":
            facts.append((right[0], left))
    wordings = _shuffled_forever(QUESTIONS[family][split], f"wordings {split} {family}")
    for asked, accepted in _shuffled_forever(facts, f"facts {split} {family}"):
        yield Question(family, next(wordings).format(asked=asked), accepted)


def _pairs(table: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    halves = (entry.strip().split("/") for entry in table.replace("\n", " ").split(";"))
    return [(tuple(left.split(",")), tuple(right.split(","))) for left, right in halves]


def _dealt(items: list[Item], split: str) -> list[Item]:
    return [item for item, owner in zip(items, itertools.cycle(DEALT)) if owner == split]


def _shuffled_forever(items: list[Item] | tuple[Item, ...], key: str) -> Iterator[Item]:
    """Yield all items in random order, then all in another order, without end."""
    generator = random.Random(f"{SEED} {key}")  # noqa: S311 - reproducible, not secret
    while True:
        yield from generator.sample(items, len(items))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
