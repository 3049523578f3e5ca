"""Where a user begins: the recipes that ship, the quickstart, and `init`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..agents.extending import run_name, shipped, shipped_text
from ..agents.judge import load as load_judge
from ..agents.judges.program import Verifier, wanted
from ..agents.plugins import did_you_mean
from ..agents.prompts import PromptSource, load_prompts, ships
from ..agents.recipe import Recipe, load_recipe
from ..errors import BadInput
from ..policies import catalog
from ..policies.model_folder import folder_problems
from ..store.analysis import smallest_gain
from ..types import Prompt

QUICKSTART = "quickstart"
_QUICKSTARTS = {"smollm2-135m": QUICKSTART, "tiny": "quickstart-tiny"}
_MOST_PROMPTS = 128
"""Prompts of one round of a new recipe; more rounds with fewer prompts learn more from each."""


def recipe_text(name: str, student: str | None) -> str:
    """Return a recipe as it is written, comments included.

    Args:
        name: of one that ships, or a file's path.
        student: for the quickstart alone: `smollm2-135m` or `tiny`.

    Raises:
        BadInput: there is no such recipe, or it has no variant for this student.
    """
    if student is not None:
        if name != QUICKSTART:
            raise BadInput.at("--student", f"is for {QUICKSTART} alone", f"leave it out for {name}")
        name = _quickstart_of(student)
    if name in shipped():
        return shipped_text(name)
    file = Path(name)
    if not file.is_file():
        hint = did_you_mean(name, shipped(), "give a file, or one that ships:")
        raise BadInput.at("", f"no such recipe: {name}", hint)
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput.at(name, f"cannot be read as UTF-8 text: {error}") from error


def _quickstart_of(student: str) -> str:
    if student not in _QUICKSTARTS:
        raise BadInput.at(
            "--student",
            f"the quickstart is made for {' and '.join(_QUICKSTARTS)}, not {student!r}",
            "`redistill init` writes a recipe for another student",
        )
    return _QUICKSTARTS[student]


def quickstart_recipe(student: str, *, seed: int | None, name: str | None, control: bool) -> Recipe:
    """Return the quickstart, ready to run.

    Args:
        student: `smollm2-135m` or `tiny`.
        seed: of the run; the recipe's own where it is None.
        name: of the run's folder; from student, seed and control where it is None.
        control: shuffle the verifier's values in the steps that choose what trains, so that any gain
            left comes from something else than the feedback. The held-out evidence is untouched.

    Raises:
        BadInput: there is no quickstart for this student.
    """
    shipped_name = _quickstart_of(student)
    text = recipe_text(shipped_name, None)
    data = yaml.safe_load(text)
    if control:
        text = yaml.safe_dump(_shuffled(data), sort_keys=False, allow_unicode=True)
    overrides = [] if seed is None else [f"seed={seed}"]
    recipe = load_recipe(text, f"{shipped_name}.yaml", base=Path(), overrides=overrides)
    called = shipped_name + (f"-seed{seed}" if seed else "") + ("-control" if control else "")
    return recipe.model_copy(update={"name": name or called})


def _shuffled(data: dict[str, Any]) -> dict[str, Any]:
    """Return a raw recipe whose score steps give each answer the value of another answer."""

    def of(steps: Sequence[Any]) -> list[Any]:
        return [
            {"score": step["score"] | {"judge": {"shuffled": {"judge": step["score"]["judge"]}}}}
            if isinstance(step, dict) and step.get("score", {}).get("judge") == "verifier"
            else step
            for step in steps
        ]

    stages = [
        stage | ({"round": of(stage["round"])} if "round" in stage else {})
        for stage in data.get("stages", [])
    ]
    changed = {"round": of(data.get("round", [])), "stages": stages}
    return data | {key: value for key, value in changed.items() if key in data}


# -- init


def write_recipe(out: Path, *, student: str, prompts: str, judge: str) -> list[str]:
    """Write a commented recipe and return the lines to print.

    Args:
        out: the file to write; it must not be there yet.
        student: catalog name, hub id, folder, or `module:Class`.
        prompts: JSONL file of prompts, as seen from here.
        judge: a judge's name, or `module:callable`.

    Raises:
        BadInput: what is given is wrong, or the verifier has nothing to check.
    """
    if out.exists():
        raise BadInput.at("--out", f"{out} is there already", "choose another name")
    if not out.parent.is_dir():
        raise BadInput.at("--out", f"no such folder: {out.parent}")
    spec = _student(student)
    loaded = load_judge(judge, "--judge")
    found = load_prompts(PromptSource(file=prompts), Path(), 0)
    notes = _unchecked(found, prompts) if isinstance(loaded, Verifier) else []
    path = prompts if ships(prompts) else _seen_from(out.parent, prompts)
    text = _text(spec, path, (judge, loaded.name), found, out.stem)
    load_recipe(text, str(out), base=out.parent)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.write_text(text, "utf-8")
    aside.replace(out)
    counts = _counts(found)
    least = smallest_gain(counts["heldout"])
    told = f"{counts['train']} prompts to train, {counts['heldout']} held out, {counts['test']} for test"
    return [
        f"wrote {out}: {told}",
        *notes,
        f"on so many held-out prompts the gate can see a gain of about {least:.2f} or more",
        "next:",
        f"  redistill plan {out}",
        f"  redistill run {out}",
    ]


def _student(student: str) -> str:
    """Check what needs neither network nor torch, and return the student as the recipe has it."""
    folder = Path(student).expanduser()
    if folder.is_dir():
        if problems := folder_problems(folder):
            raise BadInput(*problems)
        return str(folder.resolve())
    known = [entry.name for entry in catalog.known()]
    if student in known or catalog.is_plugin(student):
        return student
    owner, slash, model = student.partition("/")
    if slash and owner and model and not student.startswith((".", "~", "/")):
        return student
    hint = did_you_mean(student, known, "give a folder, an owner/name of the hub, or one of")
    raise BadInput.at("--student", f"no such model: {student}", hint)


def _unchecked(prompts: Sequence[Prompt], path: str) -> list[str]:
    """Return a note on prompts that the verifier cannot judge.

    Raises:
        BadInput: it can judge none of them.
    """
    without = sum(1 for prompt in prompts if wanted(prompt) is None)
    if without == len(prompts):
        raise BadInput.at(
            path,
            "no prompt has `verify` or `answer`, so the verifier can judge no answer",
            'add them, as in {"prompt": "...", "answer": "Paris"} or {"prompt": "...", "verify": '
            '{"max_words": 5}}; or give --judge module:callable, a function of (prompt, completion)',
        )
    if not without:
        return []
    return [
        f"{without} of {len(prompts)} prompts have neither verify nor answer: no value for those"
    ]


def _seen_from(folder: Path, path: str) -> str:
    return Path(path).as_posix() if Path(path).is_absolute() else _relative(path, folder)


def _relative(path: str, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _counts(prompts: Sequence[Prompt]) -> dict[str, int]:
    found = dict.fromkeys(("train", "heldout", "test"), 0)
    for prompt in prompts:
        found[prompt.split] += 1
    return found


def _text(
    student: str, prompts: str, judge: tuple[str, str], found: Sequence[Prompt], name: str
) -> str:
    counts = _counts(found)
    per_round = min(counts["train"], _MOST_PROMPTS)
    # At most one pair a prompt, and about half of the prompts give one.
    batch = next(size for size in (8, 4, 2, 1) if size * 4 <= per_round or size == 1)
    spec, column = judge
    text = _TEMPLATE.format(
        name=json.dumps(run_name(name)),
        student=json.dumps(student, ensure_ascii=False),
        prompts=json.dumps(prompts, ensure_ascii=False),
        judge=json.dumps(spec),
        by=json.dumps(column),
        per_round=per_round,
        batch=batch,
        micro=min(4, batch),
        **counts,
    )
    return "".join(_aligned(line) for line in text.splitlines(keepends=True))


def _aligned(line: str) -> str:
    """Put a line's comment, which a tab sets off in the template, where the others are."""
    key, tab, comment = line.partition("\t")
    return f"{key:<{_COMMENTS_AT}}  {comment}" if tab else line


_COMMENTS_AT = 32
_TEMPLATE = """\
# Three rounds of preference training on your own prompts, each from the champion so far.
# `redistill plan` says what it will need; `redistill list operators` has every key of every step.
name: {name}
student: {student}\t# a catalog name, a hub id, or a folder
prompts:
  file: {prompts}\t# {train} to train, {heldout} held out for the gate, {test} for the gain
  per_round: {per_round}\t# train prompts of one round; the next round takes the next ones
round:
  - sample:\t# the student answers each prompt
      k: 4\t# answers to each; a pair needs a better and a worse one
      temperature: 0.7\t# 0 would give the same answer four times
      max_tokens: 256\t# longest answer; a cut one is never chosen
  - score:\t# each answer gets a value in [0, 1]
      judge: {judge}
  - pair:\t# which answer is preferred to which
      by: {by}\t# the judge whose values are compared
      rule: best_worst\t# or best_random, correct_incorrect
  - train:\t# what comes out is the challenger
      trainer: dpo\t# `redistill list trainers` has the others
      beta: 0.1\t# smaller moves further from the reference
      learning_rate: 5.0e-6\t# four times as much can break a small model
      epochs: 2\t# passes over the pairs
      batch_size: {batch}\t# pairs of one optimiser step
      micro_batch: {micro}\t# pairs in memory at once
  - evaluate:\t# the challenger answers the held-out prompts, greedily
      judge: {judge}\t# the judge of the evidence; the same in every round
      max_tokens: 256
  - gate:\t# promoted only if the whole interval of the difference is above zero
      guards: [length, diversity]
loop:
  rounds: 3\t# at most; each starts from the champion so far
  stop: {{patience: 2}}\t# rejected rounds in a row after which it ends
seed: 0
"""
