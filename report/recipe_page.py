"""The page of a recipe that ships, as Markdown: what it is, its graph, the rows it makes, its loss, whom to put in.

All but the figures is read from the header and the resolved steps, so that a page says what the recipe does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ..agents.extending import EXTENDS, shipped_text
from ..agents.operator import Operator
from ..agents.operators.improve import Train
from ..agents.recipe import Recipe
from ..agents.roles import REFERENCES, STUDENT
from ..trainers.distill import SelfDistill
from ..trainers.trainer import Trainer
from .coverage import Entry, Standing, speakers
from .drawing import mermaid
from .recipe_figures import Figures, sections
from .taxonomy_picture import as_text, told

_TABLES = {
    "propose": "`proposal`, `prompt`",
    "sample": "`completion`",
    "rewrite": "`completion`, each with its parent",
    "score": "`judgement`, a value each",
    "compare": "`judgement`, a preference each",
    "critique": "`judgement`, words each",
    "select": "`selection`",
    "pair": "`pair`",
    "train": "`training_row`, `training_run`, `revision`",
    "evaluate": "`completion`, `judgement`, `evaluation` of the held-out prompts",
    "gate": "`decision`",
}
"""Operator -> tables of the store that get rows."""
_SHAPES = {
    "completions": ("d1", "answers to learn"),
    "pairs": ("d2", "one answer over another"),
    "labelled": ("d3", "answers that are wanted or not"),
    "ranked": ("d4", "answers to a prompt, best first"),
    "prompts": ("d5", "prompts, whose answers are sampled in training"),
}
"""What a trainer reads -> the view of that dataset."""
_FIGURES = (
    ("before", "first student on `test`", "{:.3f}"),
    ("length_before", "tokens of its answers", "{:.1f}"),
    ("length_after", "tokens of the last champion's", "{:.1f}"),
    ("rounds", "rounds", "{:.0f}"),
    ("promoted", "of these promoted", "{:.1f}"),
    ("judge_calls", "judge calls", "{:,.0f}"),
    ("tokens", "tokens sampled to train on", "{:,.0f}"),
    ("seconds", "seconds", "{:.0f}"),
)
_NOT_MEASURED = "not measured yet"
_RUNS = """\
Each runs as it stands on a toy, and on a model of yours by [`extends:`](../recipes.md). `redistill list recipes` has the
same table.
"""
_TAXONOMY = """\
What a survey of the field (arXiv 2402.13116) tells apart: how knowledge is had of a teacher, and how it is distilled.
{}. A recipe counts for a leaf where its steps do what the leaf stands for.
"""
NOTE = "Rendered from the recipe by `make docs`; a test keeps it so.\n"


def page(entry: Entry, figures: Figures | None) -> str:
    """Return the page of one recipe."""
    header, recipe = entry.header, entry.recipe
    base = yaml.safe_load(shipped_text(entry.name)).get(EXTENDS)
    parts = [
        f"# {entry.name}\n",
        NOTE,
        f"{header.sentence} [The recipe](../../recipes/{entry.name}.yaml)"
        + (f" is a variant of [{base}]({base}.md).\n" if base else ".\n"),
        "| | |\n|---|---|\n" + "".join(f"| {k} | {v} |\n" for k, v in header.six().items()),
        *(f"- {_paper(paper)}" for paper in header.papers),
        f"- Left out here: {header.leaves_out}.",
        f"- Leaves of [the taxonomy](index.md): {', '.join(entry.covered())}.\n",
        f"```\nredistill run {entry.name}\n```\n",
        f"## Graph\n\n```mermaid\n{mermaid(recipe)}\n```\n",
        f"## Rows\n\n{_rows(recipe)}\n",
        f"## Loss\n\n{_losses(recipe)}\n",
        f"## With your own models\n\n{_bindings(entry)}\n",
        f"## On the toy\n\n{_figures(figures)}\n",
    ]
    return "\n".join(parts)


def index(
    found: Sequence[Entry], standings: Sequence[Standing], figures: Mapping[str, Figures]
) -> str:
    """Return the page that leads to the others, with the taxonomy."""
    rows = [
        f"| [{entry.name}]({entry.name}.md) | {entry.header.sentence} "
        f"| {' + '.join(entry.header.elicitation)} | {' + '.join(entry.header.objective)} "
        f"| {_gain(figures.get(entry.name)) or '-'} |"
        for entry in found
    ]
    return "\n".join(
        [
            "# Recipes that ship\n",
            NOTE,
            _RUNS,
            "| recipe | loop | elicitation | objective | gain on `test` of the toy |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *sections(figures),
            "## The taxonomy\n",
            _TAXONOMY.format(told(standings)),
            "![Each leaf of the taxonomy with the recipes that cover it](../taxonomy.svg)\n",
            f"```\n{as_text(standings)}\n```\n",
        ]
    )


def _paper(paper: Any) -> str:
    return str(paper).replace(
        f"arXiv {paper.arxiv}", f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"
    )


# -- rows and loss


def _rows(recipe: Recipe) -> str:
    """Return a table of the steps with the tables of the store that they write, and what trains."""
    staged = len(recipe.stages) > 1
    lines = ["| step | who | rows |", "|---|---|---|"]
    if staged:
        lines = ["| stage | step | who | rows |", "|---|---|---|---|"]
    for number, stage in enumerate(recipe.stages, start=1):
        for step in stage.steps:
            who = ", ".join(_asked(step)) or "-"
            cells = [f"`{step.step}`", who, _tables(step)]
            lines.append("| " + " | ".join([str(number)] * staged + cells) + " |")
    shapes = [_shape(step) for step in _training(recipe)]
    return "\n".join([*lines, "", *dict.fromkeys(shapes)])


def _tables(step: Operator) -> str:
    if isinstance(step, Train) and step.load_trainer().makes == "judge":
        return "`training_row`, `training_run`, and a judge that later steps ask"
    return _TABLES.get(step.name, f"`{step.makes}`")


def _asked(step: Operator) -> Iterator[str]:
    """Yield who speaks or judges in a step: its own role, its judges, those that teach."""
    if role := getattr(step, "role", ""):
        yield f"role `{role}`"
    # A step that makes a judge is named as the judge that it makes.
    yield from (f"judge `{name}`" for name in step.judges() if name != step.step)
    if isinstance(step, Train):
        yield from (f"teacher `{role}`" for role in dict.fromkeys(step.teachers().values()))


def _training(recipe: Recipe) -> list[Train]:
    return [step for stage in recipe.stages for step in stage.steps if isinstance(step, Train)]


def _shape(step: Train) -> str:
    trainer = step.load_trainer()
    view, what = _SHAPES[trainer.rows]
    if isinstance(trainer, SelfDistill):
        view, what = "d6", "prompts with what the teacher sees and the student does not"
    elif getattr(trainer, "stored", False):
        view, what = "d7", "answers with the teacher's likeliest tokens"
    soft = ", with soft labels" if getattr(trainer, "labels", "hard") == "soft" else ""
    return f"- `{step.step}` reads the shape [`{view}`](../views.md#{view}): {what}{soft}."


def _losses(recipe: Recipe) -> str:
    """Return each trainer once, with its formula and the settings that the recipe gives."""
    parts: dict[str, str] = {}
    for step in _training(recipe):
        trainer = step.load_trainer()
        told_of = trainer.model_dump(mode="json", exclude_defaults=True)
        given = ", ".join(f"`{key}: {value}`" for key, value in told_of.items())
        link = f"`{step.step}`: [`{step.trainer_name}`](../trainers.md#{step.trainer_name})"
        parts[f"{link}, with {given or 'what is usual'}."] = _formula(trainer)
    return "\n\n".join(f"{head}\n\n{body}" for head, body in parts.items())


def _formula(trainer: Trainer) -> str:
    """Return a trainer's manual up to its formula, which may be that of what it is a kind of."""
    manuals = [inspect.cleandoc(kind.__doc__ or "").split("\n\n") for kind in type(trainer).__mro__]
    own = manuals[0][:2]
    for manual in manuals:
        ends = [n for n, text in enumerate(manual) if text.startswith("    ")]
        if ends:
            found = manual[: ends[0] + 1]
            return "\n\n".join(found if manual is manuals[0] else [*own, *found[1:]])
    return "\n\n".join(own)


# -- whom to put in


def _bindings(entry: Entry) -> str:
    """Return the role lines by which somebody else, or the student itself, takes each role."""
    doing = duties(entry.recipe)
    if not doing:
        return (
            "No role but the student speaks here, so only student and prompts are changed.\n\n"
            + (snippet(entry, {}))
        )
    parts = ["An external teacher:\n", snippet(entry, outside(doing))]
    parts += ["\nThe student as its own teacher:\n", snippet(entry, inside(doing), own=True)]
    if "judge" in set().union(*doing.values()):
        parts.append(
            "\nA judge in words has to pass its exam before what it says trains anything "
            "([judging](../judging.md)), or the recipe says `unproven_judge: allow`, and each report repeats it."
        )
    return "\n".join(parts)


def duties(recipe: Recipe) -> dict[str, set[str]]:
    """Return what each role that somebody else plays does: sample, rewrite, propose, critique, judge, teach."""
    found: dict[str, set[str]] = {}
    for stage in recipe.stages:
        for step in stage.steps:
            if role := getattr(step, "role", ""):
                found.setdefault(role, set()).add(step.name)
            for role in speakers(step) if step.makes != "critiques" else ():
                found.setdefault(role, set()).add("judge")
            if isinstance(step, Train):
                for role in step.teachers().values():
                    found.setdefault(role, set()).add("teach")
    own = (STUDENT, REFERENCES)
    played = {name for name, role in recipe.roles.items() if role.policy not in own}
    return {role: done for role, done in found.items() if role in played}


def outside(doing: Mapping[str, set[str]]) -> dict[str, str]:
    """Return each role's line for a model behind an address; one whose distributions are wanted is held here."""
    served = '{policy: "http://127.0.0.1:8000/v1", model: MODEL}'
    held = "{policy: OWNER/BIGGER_MODEL}    # of the student's family; it is held on this machine"
    return {role: held if "teach" in done else served for role, done in doing.items()}


def inside(doing: Mapping[str, set[str]]) -> dict[str, str]:
    """Return each role's line for the student: where it answers or teaches, it must see more than the prompt."""
    shown = 'context: {system: "Think first, then answer."}'
    lines = {}
    for role, done in doing.items():
        if "teach" in done:
            lines[role] = f"{{policy: student, revision: initial, {shown}}}"
        else:
            sees = f", {shown}" if done == {"sample"} else ""
            lines[role] = f"{{policy: student{sees}}}"
    return lines


def snippet(entry: Entry, lines: Mapping[str, str], *, own: bool = False) -> str:
    """Return a variant of a recipe for a model of one's own, as YAML."""
    text = [
        "```yaml",
        f"extends: {entry.name}",
        "student: smollm2-135m",
        "prompts: {file: prompts.jsonl}",
    ]
    if own and "judge" in set().union(*duties(entry.recipe).values()):
        text.append("self_judge: allow")
    if lines:
        wide = max(map(len, lines)) + 1
        text += ["roles:", *(f"  {f'{role}:':<{wide}} {line}" for role, line in lines.items())]
    text.append("set:                               # the recipe's are for the toy")
    text += [f"  {path}: {value}" for path, value in sizes(entry.recipe).items()]
    return "\n".join([*text, "```"])


def sizes(recipe: Recipe) -> dict[str, str]:
    """Return the settings that depend on the model's size: lengths of answers, and rates as trainers have them."""
    found: dict[str, list[Any]] = {}
    for stage in recipe.stages:
        for step in stage.steps:
            if recipe.roles[getattr(step, "role", STUDENT)].policy != REFERENCES:
                settings = step.load_trainer() if isinstance(step, Train) else step
                found.setdefault(step.step, []).append(settings)
    sized = {
        f"{name}.max_tokens": "256"
        for name, settings in found.items()
        if all(hasattr(one, "max_tokens") for one in settings)
    }
    for name, trainers in found.items():
        if all(hasattr(one, "learning_rate") for one in trainers):
            usual = min(type(one).model_fields["learning_rate"].default for one in trainers)
            sized[f"{name}.learning_rate"] = f"{usual:.1e}"
    return sized


# -- figures


def _gain(figures: Figures | None) -> str:
    if not figures:
        return ""
    return f"{figures['gain']:+.3f} [{figures['low']:+.3f}, {figures['high']:+.3f}]"


def _figures(figures: Figures | None) -> str:
    """Return what a benchmark has found for the recipe as it stands."""
    if not figures:
        return f"Gain on `test`: {_NOT_MEASURED}."
    seeds = f" over {len(figures['by_seed'])} seeds" if "by_seed" in figures else ""
    rows = [f"| gain on `test`{seeds} | {_gain(figures)} |"]
    rows += [
        f"| {name} | {form.format(figures[key])} |"
        for key, name, form in _FIGURES
        if key in figures
    ]
    return "\n".join(["| | |", "|---|---:|", *rows])
