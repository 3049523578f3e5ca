"""What a recipe says of itself: its header, the leaves that it claims, and whether its steps bear that out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from redistill.agents.extending import shipped, shipped_text
from redistill.agents.recipe import Recipe, load_recipe
from redistill.cli import main
from redistill.errors import BadInput
from redistill.report.coverage import TESTS, Standing, coverage, does, entries, unfounded
from redistill.report.header import Header, Paper, header_of
from redistill.report.listing import listing
from redistill.report.taxonomy import BRANCHES, leaves
from redistill.report.taxonomy_picture import as_svg, as_text

HEADER = """\
# A teacher answers,
# and the student learns.
#
# skill: whatever is asked,
#   and more
# seed knowledge: prompts
# teacher: a twin
# student: the toy
# elicitation: Labeling + Self-Knowledge
# objective: SFT
# paper: One Paper (ONE, arXiv 2402.13116)
#   Another: With (brackets) in it (arXiv 2306.13649)
# leaves out: much
# covers: Labeling, filter, SFT
#
# What else there is to say: anything.
name: x
"""


def _faults(text: str) -> list[str]:
    with pytest.raises(BadInput) as error:
        header_of(text, "x.yaml")
    return [str(problem) for problem in error.value.problems]


# -- the header


def test_a_header_is_read() -> None:
    """Sentence, six columns, papers, what is left out, and leaves; lines go on with two more spaces."""
    assert header_of(HEADER, "x.yaml") == Header(
        sentence="A teacher answers, and the student learns.",
        skill="whatever is asked, and more",
        seed_knowledge="prompts",
        teacher="a twin",
        student="the toy",
        elicitation=("Labeling", "Self-Knowledge"),
        objective=("SFT",),
        papers=(
            Paper("One Paper", "2402.13116", "ONE"),
            Paper("Another: With (brackets) in it", "2306.13649"),
        ),
        leaves_out="much",
        covers=("Labeling", "filter", "SFT"),
    )


def test_comments_are_no_header() -> None:
    """A recipe that says nothing of the fields has none, and that is no fault."""
    assert header_of("# 1. A teacher: it answers.\n#\n# Then more.\nname: x\n", "x.yaml") is None
    assert header_of("name: x\n", "x.yaml") is None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("# teacher: a twin\n", "", "x.yaml: its header lacks teacher; in this order: skill"),
        ("# teacher: a twin\n", "# teacher:\n", "x.yaml: its header says nothing of teacher"),
        ("# teacher: a twin\n# student: the toy\n", "# student: the toy\n# teacher: a twin\n", "seed knowledge, student, teacher"),
        ("# teacher: a twin", "# teacher: a\n# teacher: b", "x.yaml:8: teacher is given twice"),
        ("# teacher: a twin", "# techer: a twin", "x.yaml:7: '# techer: a twin' is no line of a header"),
        ("#   and more", "# and more", "x.yaml:5: '# and more' is no line of a header"),
        ("Labeling + Self-Knowledge", "Labelling", "x.yaml elicitation: 'Labelling' is none; of: Labeling"),
        ("objective: SFT", "objective: SFT, RL", "x.yaml objective: 'SFT, RL' is none; of: SFT"),
        ("(ONE, arXiv 2402.13116)", "2402.13116", "is no paper"),
        ("# A teacher answers,\n# and the student learns.\n", "", "in no sentence"),
    ],
)  # fmt: skip
def test_a_malformed_header_is_told(old: str, new: str, told: str) -> None:
    """A header that is begun has each field once, in order, with what belongs there."""
    assert old in HEADER
    faults = _faults(HEADER.replace(old, new))
    assert any(told in fault for fault in faults), faults


def test_a_preset_has_no_paper() -> None:
    """`-` stands for none."""
    lines = HEADER.splitlines(keepends=True)
    text = "".join(line for line in lines if "brackets" not in line)
    found = header_of(text.replace("One Paper (ONE, arXiv 2402.13116)", "-"), "x.yaml")
    assert found
    assert found.papers == ()


# -- what ships


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_header_is_short_and_true(name: str) -> None:
    """Forty lines, 110 characters a line, a name that is the file's, and no claim that the steps do not bear out."""
    text = shipped_text(name)
    header = header_of(text, f"{name}.yaml")
    assert (header is None) == name.startswith("quickstart")
    if header is None:
        return
    recipe = load_recipe(text, f"{name}.yaml", base=Path())
    assert unfounded(name, header, recipe) == []
    assert recipe.name == name
    assert len(text.splitlines()) <= 40
    assert [line for line in text.splitlines() if len(line) > 110] == []


def test_the_taxonomy_has_its_leaves() -> None:
    """24 that a recipe may stand for, each with a test of its steps, and two that are left out."""
    names = [leaf.name for _, leaf in leaves()]
    assert len({name.casefold() for name in names}) == len(names)
    assert len(names) == 26
    assert {leaf.name for _, leaf in leaves() if not leaf.left_out} == {*TESTS}


# -- claims and steps

_ENDS = "  - evaluate: {judge: verifier}\n  - gate: {}\n"
_DPO = "train: {trainer: dpo}"
_SFT = "train: {trainer: sft}"
_CHAT = "{chat: {role: critic, name: mark}}"
ROUNDS = [
    ("sample: {}|score: {judge: longest}|pair: {}|train: {trainer: orpo}", set()),
    ("sample: {}|score: {judge: verifier}|select: {where: verifier = 1}|" + _SFT, {"filter", "SFT"}),
    ("sample: {role: critic}|select: {}|" + _SFT, {"Labeling", "SFT"}),
    ("sample: {role: shown}|select: {}|" + _SFT, {"Labeling", "SFT"}),
    ("sample: {}|score: {judge: verifier}|pair: {rule: correct_incorrect}|" + _DPO, {"filter", "DPO"}),
    ("sample: {}|score: {judge: " + _CHAT + "}|pair: {}|" + _DPO, {"score", "DPO"}),
    ("sample: {}|score: {judge: {repeat: {judge: {chat: {role: student}}, k: 2}}}|pair: {}|" + _DPO, {"score", "reward", "DPO"}),
    ("sample: {}|score: {judge: agreement}|pair: {}|" + _DPO, {"vote", "DPO"}),
    ("sample: {}|compare: {judge: {choice: {role: critic}}}|pair: {}|" + _DPO, {"rank", "DPO"}),
    ("sample: {}|critique: {role: critic}|rewrite: {role: critic}|select: {of: rewrite}|" + _SFT, {"critique", "rewrite", "SFT"}),
    ("train: {trainer: grpo, judge: verifier}", {"direct"}),
    ("train: {trainer: grpo, judge: longest}", set()),
    ("train: {trainer: grpo, judge: agreement}", {"vote", "direct"}),
    ("train: {trainer: rloo, judge: " + _CHAT + "}", {"score", "direct"}),
    ("train: {trainer: distill, teacher: twin, beta: 0}", {"logits", "distribution", "forward KL"}),
    ("train: {trainer: distill, teacher: twin, beta: 0.5}", {"logits", "distribution", "JSD"}),
    ("train: {trainer: distill, teacher: twin, beta: 1}", {"logits", "distribution", "reverse KL"}),
    ("train: {trainer: distill, teacher: twin, across: true}", {"logits", "distribution"}),
    ("sample: {}|select: {}|train: {trainer: distill, teacher: twin, on_policy: 0, of: select}", {"logits", "reverse KL"}),
    ("train: {trainer: self_distill, given: reference}", {"logits", "distribution", "reverse KL"}),
]  # fmt: skip


def _recipe(steps: str) -> Recipe:
    head = (
        "student: tiny\nprompts: {file: 'redistill:tiny.jsonl'}\nroles:\n"
        "  critic: {policy: 'http://127.0.0.1:1/v1', model: m}\n  twin: {policy: tiny-teacher}\n"
        "  shown: {context: {system: Think.}}\nround:\n"
    )
    text = head + "".join(f"  - {step}\n" for step in steps.split("|")) + _ENDS
    return load_recipe(text, "x.yaml", base=Path())


@pytest.mark.parametrize(("steps", "done"), ROUNDS)
def test_steps_show_the_leaves_that_they_do(steps: str, done: set[str]) -> None:
    """Of all leaves exactly these: a test that took too much for granted would find another one."""
    recipe = _recipe(steps)
    assert {leaf for leaf in TESTS if does(leaf, recipe)} == done


def test_a_false_claim_is_found() -> None:
    """A header that claims what no step does, what is left out, or what is no leaf, has three faults."""
    text = HEADER.replace("covers: Labeling, filter, SFT", "covers: sft, DPO, hidden states, logit")
    header = header_of(text, "x.yaml")
    assert header
    told = [str(problem) for problem in unfounded("x", header, _recipe(ROUNDS[1][0]))]
    assert [line.partition(": ")[2].partition(";")[0] for line in told] == [
        "claims DPO, and no step does that",
        "claims hidden states, and no step does that",
        "'logit' is no leaf",
    ]
    assert "did you mean logits?" in told[2]


# -- what is shown


def test_recipes_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, elicitation, objective and the paper's number; nothing of these where there is no header."""
    rows = {row["name"]: row for row in listing("recipes", Path("runs"))}
    assert rows["rejection_sft"]["elicitation"] == "Self-Knowledge"
    assert rows["rejection_sft"]["about"].startswith("The student answers")
    assert rows["rejection_sft"]["arxiv"] == "2308.01825"
    assert rows["quickstart"]["objective"] is None
    _main("list", "recipes", "--json")
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {*shipped()}


def test_coverage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Every leaf has its recipes or is said to be empty; JSON has the same; other listings have no coverage."""
    _main("list", "recipes", "--coverage")
    told = capsys.readouterr().out
    assert told.rstrip("\n") == as_text(coverage())
    line = next(line for line in told.splitlines() if line.strip().startswith("filter"))
    assert "rejection_sft" in line
    assert "24 of 24 leaves" in told
    bare = [replace(one, recipes=()) if one.leaf == "PRO" else one for one in coverage()]
    assert "PRO             empty" in as_text(bare)
    assert "23 of 24 leaves" in as_text(bare)
    _main("list", "recipes", "--coverage", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [row["leaf"] for row in found] == [leaf.name for _, leaf in leaves()]
    with pytest.raises(SystemExit) as ended:
        main(["list", "judges", "--coverage"])
    assert ended.value.code == 2


def test_a_claim_that_is_not_borne_out_covers_nothing() -> None:
    """What is listed as covered is what is claimed and done, in the taxonomy's own words."""
    by_name = {entry.name: entry for entry in entries()}
    assert by_name["rejection_sft"].covered() == ["filter", "SFT"]
    shown = {standing.leaf: standing.recipes for standing in coverage()}
    assert "rejection_sft" in shown["SFT"]
    assert "rejection_sft" not in shown["Labeling"]


def test_the_picture_has_every_leaf_and_who_covers_it() -> None:
    """It is XML that stands alone; a long list of recipes goes on in the next line, and nothing is cut."""
    many = tuple(f"recipe_with_a_long_name_{n}" for n in range(9))
    standings = [
        Standing(b.tree, b.name, leaf.name, leaf.about, leaf.left_out, () if n else many)
        for n, (b, leaf) in enumerate(leaves())
    ]
    svg = as_svg(standings)
    root = ElementTree.fromstring(svg)
    said = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {leaf.name for _, leaf in leaves()} <= {*said}
    assert {branch.name for branch in BRANCHES} <= {*said}
    assert all(any(name in text for text in said) for name in many)
    assert max(map(len, said)) <= 80
    assert said.count("empty") == 23
    assert said[-1] == "1 of 24 leaves are covered; 2 are left out by design"
    assert "prefers-color-scheme: dark" in svg


def _main(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert not ended.value.code
