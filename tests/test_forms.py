"""The quickstart's task: what the shipped files hold, and that its forms exclude each other."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import redistill
from redistill.agents.judges import checkers

DATA = Path(redistill.__file__).parent / "recipes" / "data"


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """Return the generator as a module; `recipes` is no package."""
    spec = importlib.util.spec_from_file_location("make_forms", DATA / "make_forms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_forms"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Return the shipped prompts."""
    return _rows("forms.jsonl")


def _tag(row: dict[str, Any], key: str) -> str:
    tags: list[str] = row["tags"]
    return next(tag[len(key) + 1 :] for tag in tags if tag.startswith(f"{key}:"))


def _word(row: dict[str, Any]) -> str:
    verify = row["verify"]
    word: str = verify["include"] if "include" in verify else verify["any_of"][0]
    return word


def _part(row: dict[str, Any]) -> str:
    return "transfer" if "transfer" in row["tags"] else str(row["split"])


def _passes(row: dict[str, Any], answer: str) -> bool:
    return all(checkers.run(row["verify"], answer).values())


def test_shipped_files_are_what_the_maker_writes() -> None:
    """`make_forms.py --check` agrees; changing a file by hand, or the maker alone, is noticed."""
    command = [sys.executable, "-P", str(DATA / "make_forms.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_check_notices_a_difference(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--check` fails on missing and on changed files."""
    monkeypatch.setattr(maker, "__file__", str(tmp_path / "make_forms.py"))
    assert maker.main(["--check"]) == 1
    assert maker.main([]) == 0
    assert maker.main(["--check"]) == 0
    (tmp_path / "forms.jsonl").write_text("{}\n")
    assert maker.main(["--check"]) == 1


def test_counts_by_split_and_form(rows: list[dict[str, Any]], maker: ModuleType) -> None:
    """288 train, 160 heldout, 240 test rows, and 40 test rows of forms that never train."""
    counts = Counter((_part(row), _tag(row, "form")) for row in rows)
    wanted = {(part, form): n for part, forms in maker.COUNTS.items() for form, n in forms.items()}
    assert counts == wanted
    assert Counter(_part(row) for row in rows) == {
        "train": 288,
        "heldout": 160,
        "test": 240,
        "transfer": 40,
    }
    assert {row["split"] for row in rows if "transfer" in row["tags"]} == {"test"}


def test_every_stretch_of_train_is_balanced(rows: list[dict[str, Any]], maker: ModuleType) -> None:
    """Any 48 rows in a row hold each form as often as its weight says, give or take two."""
    forms = [_tag(row, "form") for row in rows if row["split"] == "train"]
    shares = {form: n / 288 for form, n in maker.COUNTS["train"].items()}
    for start in range(len(forms) - 47):
        counts = Counter(forms[start : start + 48])
        for form, share in shares.items():
            assert abs(counts[form] - 48 * share) <= 2, (start, form)


def test_every_family_is_asked_in_every_form(rows: list[dict[str, Any]], maker: ModuleType) -> None:
    """In each split each form meets each family, so that form and question are not confounded."""
    met = {(_part(row), _tag(row, "form"), _tag(row, "family")) for row in rows}
    parts = [(part, form) for part, forms in maker.COUNTS.items() for form in forms]
    assert met == {(part, form, family) for part, form in parts for family in set(maker.FAMILIES)}


def test_prompts_are_unique(rows: list[dict[str, Any]]) -> None:
    """No prompt stands twice, in one split or in two, nor as a worked example."""
    prompts = [row["prompt"] for row in [*rows, *_rows("forms_examples.jsonl")]]
    assert len(set(prompts)) == len(prompts)


def test_wordings_of_questions_and_forms_belong_to_one_split(maker: ModuleType) -> None:
    """Train, heldout and test word every question and every form differently."""
    for tables in (
        [maker.QUESTIONS[family][split] for split in maker.SPLITS] for family in set(maker.FAMILIES)
    ):
        every = [template for templates in tables for template in templates]
        assert len(set(every)) == len(every)
    forms = [w for split in maker.SPLITS for ws in maker.WORDINGS[split].values() for w in ws]
    assert len(set(forms)) == len(forms)


def test_each_row_uses_a_wording_of_its_own_split(
    rows: list[dict[str, Any]], maker: ModuleType
) -> None:
    """A row's form is worded as its split words it, before the question or after it."""
    for row in rows:
        wordings = maker.WORDINGS[row["split"]][_tag(row, "form")]
        prompt = row["prompt"]
        assert any(prompt.startswith(w) or prompt.endswith(w) for w in wordings), prompt


def test_items_belong_to_one_split(rows: list[dict[str, Any]], maker: ModuleType) -> None:
    """What a question asks for in one split is asked for in no other, nor in a worked example."""
    answers = {
        split: {
            (_tag(row, "family"), word.casefold())
            for row in rows
            if row["split"] == split
            for word in row["verify"].get("any_of", [row["verify"].get("include")])
        }
        for split in maker.SPLITS
    }
    shown = {word.casefold() for _, word, _ in maker.EXAMPLES}
    for split, others in (("train", "heldout"), ("train", "test"), ("heldout", "test")):
        assert not answers[split] & answers[others], (split, others)
    for split in maker.SPLITS:
        assert not {word for _, word in answers[split]} & shown


def test_names_cities_and_objects_are_dealt_without_overlap(maker: ModuleType) -> None:
    """Also what is only mentioned belongs to one split; no item stands twice in a list."""
    colours = [colour for pool in maker.COLOURS.values() for colour in pool]
    for items in (maker.NAMES, maker.CITIES, maker.OBJECTS, colours):
        assert len(set(items)) == len(items)
    asked = [
        word
        for table in (maker.OPPOSITES, maker.CAPITALS)
        for pair in maker._pairs(table)
        for half in pair
        for word in half
    ]
    assert [word for word, n in Counter(asked).items() if n > 1] == []


def test_every_spec_is_valid(rows: list[dict[str, Any]]) -> None:
    """Every row's `verify` is accepted at load, with form and content both checked."""
    for row in rows:
        assert checkers.check_spec(row["verify"], row["prompt"]) == []
        about = {checkers.CHECKERS[name].about for name in row["verify"]}
        assert about == {"form", "content"}
        assert (row["source"], row["licence"]) == ("redistill", "Apache-2.0")


def test_right_answers_pass_and_the_other_forms_fail(
    rows: list[dict[str, Any]], maker: ModuleType
) -> None:
    """For each row its form's right answer passes, and the right answers of the other forms fail."""
    for row in rows:
        own = _tag(row, "form")
        passed = [
            form
            for form in dict.fromkeys([*maker.FORMS, own])
            if _passes(row, maker.right_answer(form, _word(row)))
        ]
        assert passed == [own], row["prompt"]


def test_every_accepted_content_passes(rows: list[dict[str, Any]], maker: ModuleType) -> None:
    """Each accepted content is right in the row's form, in any case."""
    for row in rows:
        for word in row["verify"].get("any_of", [_word(row)]):
            for spelled in (word, word.capitalize()):
                assert _passes(row, maker.right_answer(_tag(row, "form"), spelled)), row["prompt"]


def test_wrong_content_fails(rows: list[dict[str, Any]], maker: ModuleType) -> None:
    """The right form around another word fails, and so does the word that the question asks about."""
    for row in rows:
        assert not _passes(row, maker.right_answer(_tag(row, "form"), "zebra"))
        assert not _passes(row, row["prompt"])
        assert not _passes(row, "")


def test_extracted_answers_stand_in_the_prompt(
    rows: list[dict[str, Any]], maker: ModuleType
) -> None:
    """What is to be pulled out of a sentence is there, and what must be known is not."""
    for row in rows:
        there = checkers.run({"include": _word(row)}, row["prompt"])["include"]
        assert there == (_tag(row, "family") in maker.EXTRACTED), row["prompt"]


def test_worked_examples_are_right(maker: ModuleType) -> None:
    """At least three examples a form, each right in its form, in the wordings of train."""
    examples = _rows("forms_examples.jsonl")
    counts = Counter(_tag(row, "form") for row in examples)
    assert set(counts) == set(maker.FORMS)
    assert min(counts.values()) >= 3
    words = [word for _ in maker.FORMS for _, word, _ in maker.EXAMPLES]
    for row, word in zip(examples, words, strict=True):
        form = _tag(row, "form")
        assert all(checkers.run(maker.verify(form, (word,)), row["answer"]).values()), row
        assert any(wording in row["prompt"] for wording in maker.WORDINGS["train"][form])
