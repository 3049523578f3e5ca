"""The pages of the recipes that ship: what they tell to write can be written, and figures are the benchmark's."""

from __future__ import annotations

from pathlib import Path

import pytest

from redistill.agents.gating import check_judges
from redistill.agents.recipe import Recipe, load_recipe
from redistill.report.coverage import Entry, coverage, entries
from redistill.report.drawing import mermaid
from redistill.report.header import Header
from redistill.report.recipe_page import duties, index, inside, outside, page, sizes

ENTRIES = entries()
FIGURES = {
    "gain": 0.1234,
    "low": -0.01,
    "high": 0.2,
    "by_seed": [0.1, 0.2, 0.3],
    "judge_calls": 2400,
    "seconds": 31.4,
}
PLAYED = """\
student: tiny
prompts: {file: "redistill:tiny.jsonl", per_round: 200}
roles:
  asked:   {policy: tiny-teacher}
  judge:   {policy: "redistill.testing.fakes:FakeStudent"}
  critic:  {policy: "redistill.testing.fakes:FakeStudent"}
  own:     {policy: student, revision: initial}
  unused:  {policy: tiny-teacher}
stages:
  - round:
      - sample:   {role: asked, k: 2, max_tokens: 44}
      - sample:   {as: older, role: own}
      - critique: {of: sample, role: critic, max_tokens: 44}
      - score:    {of: [sample, older], judge: {chat: {role: judge, name: mark}}}
      - pair:     {of: [sample, older]}
      - train:    {trainer: {dpo: {learning_rate: 1.0e-3}}}
      - evaluate: {judge: verifier, max_tokens: 44}
      - gate:     {}
  - round:
      - train:    {trainer: distill, teacher: asked, max_tokens: 44}
      - evaluate: {judge: verifier, max_tokens: 44}
      - gate:     {}
"""


def _played() -> Recipe:
    return load_recipe(PLAYED, "played.yaml", base=Path())


def _blocks(text: str, language: str) -> list[str]:
    return [
        block.partition("\n")[2]
        for block in text.split("```")[1::2]
        if block.partition("\n")[0] == language
    ]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_what_a_page_says_to_write_is_a_recipe(entry: Entry, tmp_path: Path) -> None:
    """Each variant loads, and needs no other leave than that for a judge without an exam."""
    variants = _blocks(page(entry, None), "yaml")
    assert len(variants) == (2 if duties(entry.recipe) else 1)
    for number, text in enumerate(variants):
        mine = load_recipe(text + "unproven_judge: allow\n", f"mine{number}.yaml", base=tmp_path)
        assert mine.student == "smollm2-135m"
        assert mine.prompts.per_round == entry.recipe.prompts.per_round
        assert [[s.step for s in stage.steps] for stage in mine.stages] == [
            [s.step for s in stage.steps] for stage in entry.recipe.stages
        ]
        assert check_judges(mine, tmp_path) == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_page_has_all_that_the_recipe_is(entry: Entry) -> None:
    """Sentence, six columns, papers, what is left out, the graph, a row a step, and each loss."""
    text = page(entry, None)
    told = [entry.header.sentence, entry.header.leaves_out, *entry.header.six().values()]
    told += [f"https://arxiv.org/abs/{paper.arxiv}" for paper in entry.header.papers]
    told += [step.step for stage in entry.recipe.stages for step in stage.steps]
    told += [f"trainers.md#{trainer.name}" for trainer in entry.recipe.trainers()]
    assert [word for word in told if word not in text] == []
    assert _blocks(text, "mermaid") == [mermaid(entry.recipe) + "\n"]
    assert "not measured yet" in text


def test_figures_are_those_of_the_benchmark() -> None:
    """What is measured is shown, on the recipe's page and in the index; what is not is left out."""
    entry = ENTRIES[0]
    text = page(entry, FIGURES)
    assert "| gain on `test` over 3 seeds | +0.123 [-0.010, +0.200] |" in text
    assert "| judge calls | 2,400 |" in text
    assert "tokens sampled" not in text
    rest = {"before": 0.4, "length_before": 13.9, "length_after": 11.1, "promoted": 1.3}
    whole = {**FIGURES, **rest, "rounds": 3.0, "tokens": 9000.0, "seconds": 60.0}
    listed = index(ENTRIES, coverage(), {entry.name: whole, "smollm2_x": whole | {"gain": 0.5}})
    [row] = [line for line in listed.splitlines() if line.startswith(f"| [{entry.name}]")]
    assert row.endswith("| +0.123 [-0.010, +0.200] |")
    told = "3 | 0.400 | {} [-0.010, +0.200] | 13.9 → 11.1 | 1.3 of 3 | 2,400 | 9,000 | 60 |"
    assert f"| {entry.name} | {told.format('+0.123')}" in listed
    assert f"| smollm2_x | {told.format('+0.500')}" in listed
    assert (
        listed.index("## What they came to") < listed.index("On SmolLM2") < listed.index("## The")
    )
    assert "](../taxonomy.svg)" in listed


def test_each_role_gets_a_line_for_what_it_does() -> None:
    """Roles that are the student already, and those that nobody asks, are left as they are."""
    doing = duties(_played())
    assert doing == {"asked": {"sample", "teach"}, "judge": {"judge"}, "critic": {"critique"}}
    assert outside(doing)["judge"].startswith('{policy: "http://')
    assert outside(doing)["asked"].startswith("{policy: OWNER/")  # its distributions are wanted
    assert inside(doing)["critic"] == "{policy: student}"
    assert "revision: initial" in inside(doing)["asked"]
    assert "context:" in inside({"teacher": {"sample"}})["teacher"]


def test_sizes_are_given_where_every_stage_has_them() -> None:
    """A setting that the step of one stage lacks could not be set; rates are the smallest that is usual."""
    assert sizes(_played()) == {
        "sample.max_tokens": "256",
        "older.max_tokens": "256",
        "critique.max_tokens": "256",
        "evaluate.max_tokens": "256",
        "train.learning_rate": "5.0e-06",
    }


def test_a_page_draws_every_stage() -> None:
    """Two stages with other steps are two graphs, whose nodes do not meet; the rows say of which stage they are."""
    header = Header("It is.", "a", "b", "c", "d", ("Feature",), ("Rank",), (), "e", ("logits",))
    entry = Entry("sft_distill", header, _played())
    text = page(entry, None)
    [drawn] = _blocks(text, "mermaid")
    assert drawn.count("subgraph") == drawn.count("    end\n") == 2
    assert 'subgraph s1 ["round 1"]' in drawn
    assert 'subgraph s2 ["round 2"]' in drawn
    assert "s1_critique -.-> s1_score;" in drawn
    assert "s2___start__ --> s2_train;" in drawn
    nodes = [line.strip().partition(" ")[0] for line in drawn.splitlines() if ">" in line]
    assert all(node.startswith(("s1_", "s2_")) for node in nodes)
    assert "| 2 | `train` | teacher `asked` |" in text
    assert "- `train` reads the shape [`d5`](../views.md#d5)" in text
    assert "- Leaves of [the taxonomy](index.md): logits." in text
