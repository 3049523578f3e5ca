"""A program's smallest edit: it makes form out of the answer's own words, and never content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.agents.judges import checkers
from redistill.agents.judges.edits import smallest_edit
from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.errors import BadInput
from redistill.store.query import read_rows
from redistill.testing.fakes import fake_prompts, fake_recipe

CASES: list[tuple[dict[str, Any], str, str | None]] = [
    ({"word": True, "include": "white"}, "The pencil is white.", "white"),
    (
        {"starts_with": "Answer: ", "max_words": 2, "forbid_chars": '"', "include": "white"},
        'It is "white".',
        "Answer: white.",
    ),
    ({"quoted": True, "max_words": 1, "include": "Ann"}, "Ann dropped it.", '"Ann"'),
    ({"json": {"keys": ["answer"]}, "include": "Ann"}, "Ann.", '{"answer": "Ann"}'),
    ({"json": True, "max_words": 1}, "blue", '"blue"'),
    ({"uppercase": True, "include": "blue"}, "blue", "BLUE"),
    ({"lowercase": True}, "It is Blue.", "it is blue."),
    (
        {"sentence": True, "include": "lamp"},
        "A lamp. It is on the lamp now. Yes!",
        "It is on the lamp now.",
    ),
    ({"sentence": True, "include": "lamp"}, "it is a lamp", "It is a lamp."),
    ({"sentences": 1}, "One. Two three four.", "Two three four."),
    ({"bullets": 2}, "First thing. Second thing.", "- First thing.\n- Second thing."),
    ({"max_chars": 9}, "one two three", "one two"),
    ({"exclude": "sorry"}, "Sorry, it is blue.", "it is blue."),
    ({"ends_with": "Done."}, "All is said. ", "All is said.Done."),
    ({"equals": "Paris"}, "It is Paris, of course.", "Paris"),
    # What passes is left alone, and so is what lacks the content.
    ({"word": True, "include": "white"}, "white", None),
    ({"word": True, "include": "white"}, "The pencil is black.", None),
    ({"equals": "Paris"}, "It is Rome.", None),
    ({"min_words": 3}, "one two", None),
    # What takes a process to check is not edited.
    ({"math": "4", "max_words": 1}, "It is 4", None),
]
FORMS = st.fixed_dictionaries(
    {},
    optional={
        "max_words": st.integers(1, 6),
        "uppercase": st.just(True),
        "quoted": st.just(True),
        "word": st.just(True),
        "forbid_chars": st.sampled_from([",", "ab", '"']),
        "starts_with": st.sampled_from(["Answer: ", "So "]),
        "include": st.sampled_from(["blue", "a b"]),
    },
).filter(bool)
TEXTS = st.text(alphabet="abc blue.,\"'AN\n", max_size=60)


@pytest.mark.parametrize(("verify", "text", "edited"), CASES)
def test_the_nearest_text_that_passes(
    verify: dict[str, Any], text: str, edited: str | None
) -> None:
    """Each form is reached by the change that a person would make."""
    assert smallest_edit(verify, text) == edited


@settings(max_examples=150, deadline=None)
@given(FORMS, TEXTS)
def test_an_edit_passes_and_adds_no_content(verify: dict[str, Any], text: str) -> None:
    """Whatever comes out passes every checker, did not before, and has no word but the answer's and the start's."""
    edited = smallest_edit(verify, text)
    if edited is None:
        return
    assert all(checkers.run(verify, edited).values())
    assert not all(checkers.run(verify, text).values())
    said = (text + verify.get("starts_with", "")).casefold()
    assert set(_letters(edited.casefold())) <= set(_letters(said))


def _letters(text: str) -> list[str]:
    return [char for char in text if char.isalnum()]


def _run(base: Path, rewrite: dict[str, Any]) -> Path:
    rows = fake_prompts(train=24, heldout=40, test=40)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = fake_recipe(gain=0.3, rounds=1)
    [sample, _, _, train, evaluate, gate] = recipe["round"]
    recipe["round"] = [
        sample,
        {"rewrite": rewrite},
        {"score": {"of": ["sample", "rewrite"], "judge": "verifier"}},
        {"pair": {"of": ["sample", "rewrite"], "by": "verifier", "rule": "revised_original"}},
        {"select": {"of": ["sample", "rewrite"], "where": "verifier = 1", "per_prompt": 1}},
        {"train": train["train"] | {"of": "select"}},
        evaluate,
        gate,
    ]
    loaded = load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=base)
    return run(loaded, place=Place(base / "runs", base / "cache"))


def test_edits_are_rewrites_of_the_answers_that_failed(tmp_path: Path) -> None:
    """Each is a completion with a parent that failed; it passes, is preferred to it, and names the program."""
    folder = _run(tmp_path, {"given": "edit"})
    found = read_rows(
        folder,
        """
        SELECT e.role, e.model, e.revision, p.verifier AS before, a.verifier AS after
        FROM completion e JOIN answers a ON a.id = e.id JOIN answers p ON p.id = e.parent_id
        WHERE e.step = 'rewrite'
        """,
    )
    failed = read_rows(folder, "SELECT * FROM answers WHERE step = 'sample' AND verifier = 0")
    assert len(found) == len(failed) > 20
    assert {tuple(row.values()) for row in found} == {("program", "smallest_edit 1", None, 0, 1)}
    preferred = read_rows(
        folder,
        """
        SELECT e.parent_id = q.rejected_id AS own FROM pair q JOIN completion e ON e.id = q.chosen_id
        WHERE e.step = 'rewrite'
        """,
    )
    assert len(preferred) > 10
    assert all(row["own"] for row in preferred)


def test_a_programs_edit_has_no_role_to_set(tmp_path: Path) -> None:
    """A setting that says nothing to a program is refused, and the recipe as it was resolved is not."""
    with pytest.raises(BadInput, match=r"rewrite\.temperature: says nothing to a program's edit"):
        _run(tmp_path, {"given": "edit", "temperature": 0.2})
    folder = _run(tmp_path, {"given": "edit"})
    assert load_recipe((folder / "recipe.yaml").read_text("utf-8"), "again", base=folder)
