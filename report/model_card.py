"""The card of a model that is taken away: a README.md that hubs read, with what is known of it and what is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..policies.exporting import Taken
from ..policies.origin import Origin
from ..store.identify import short
from .console import interval
from .judge_card import escaped
from .model_facts import ModelFacts

Row = dict[str, Any]
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LIBRARY = {"hf": "transformers", "lora": "peft", "merged": "transformers", "gguf": "gguf"}
_RELATION = {"hf": "finetune", "lora": "adapter", "merged": "finetune", "gguf": "finetune"}


def model_card(facts: ModelFacts, taken: Taken, base_name: str, *, elsewhere: bool) -> str:
    """Return the card as Markdown with a header in YAML.

    Args:
        facts: what the run knows of the revision.
        taken: what was written, and the check of it.
        base_name: how an adapter names its base.
        elsewhere: whether others can load that name.
    """
    parts = [
        _intro(facts, taken),
        _gain(facts),
        _lineage(facts),
        _judges(facts.judges),
        _teachers(facts),
        _data(facts),
        _unknown(facts),
        _use(facts, taken, base_name if elsewhere else ""),
    ]
    return _header(facts, taken) + "\n" + "\n\n".join("\n".join(part) for part in parts) + "\n"


def _header(facts: ModelFacts, taken: Taken) -> str:
    """Return the YAML that a hub reads; a safe dump quotes whatever a name may hold."""
    origin = facts.origin
    told: Row = {"library_name": _LIBRARY[taken.form], "pipeline_tag": "text-generation"}
    told |= _licence(origin)
    if origin.hub:
        told |= {"base_model": origin.hub, "base_model_relation": _RELATION[taken.form]}
    told["tags"] = ["redistill", *facts.trainers]
    text: str = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"


def _licence(origin: Origin) -> Row:
    """Return the licence in the hub's own words: its ids are in small letters, others have a name."""
    if not origin.licence:
        return {"license": "unknown"}
    if _LICENCE.fullmatch(found := origin.licence.lower()):
        return {"license": found}
    return {"license": "other", "license_name": origin.licence}


def _intro(facts: ModelFacts, taken: Taken) -> Iterator[str]:
    revision, origin = facts.named.revision, facts.origin
    name = escaped(origin.name) or "a model of unknown origin"
    yield f"# {escaped(facts.named.run.name)}"
    yield ""
    rounds = len(facts.lineage)
    made = (
        f"after {rounds} round{'s' if rounds != 1 else ''} of feedback" if rounds else "untrained"
    )
    yield f"{name}, {made} with redistill {escaped(facts.version)}."
    yield ""
    rows = [
        ("revision", f"`{revision.id}` ({escaped(facts.named.called)})"),
        ("trained from", f"`{revision.parent}`" if revision.parent else "-"),
        ("initial student", f"{name}{', ' + escaped(origin.note) if origin.note else ''}"),
        ("licence of the initial student", escaped(origin.licence) or "unknown"),
        ("written as", f"{taken.form}, {taken.precision}"),
        ("checked", escaped(taken.line)),
    ]
    yield from _table(("fact", ""), rows)


def _gain(facts: ModelFacts) -> Iterator[str]:
    yield "## What it gained"
    yield ""
    gain = facts.gain
    if gain is not None:
        yield (
            f"Mean value of the judge {escaped(gain['judge'])} on {gain['n']} test prompts that nothing else has "
            f"read: {gain['initial']:.3f} for the initial student, {gain['champion']:.3f} for this revision. The "
            f"difference is **{interval(gain)}** (95 % interval, paired bootstrap)."
        )
        return
    why = "the run has not answered its test prompts with this revision"
    if facts.named.revision.id == facts.named.initial.id:
        why = "this is the initial student"
    yield f"**Not measured**: {why}. What a gate saw on held-out prompts is no gain."


def _lineage(facts: ModelFacts) -> Iterator[str]:
    yield "## How it came about"
    yield ""
    if not facts.rounds:
        yield "No round was run."
        return
    yield "Held-out differences are what the gate decided by; they are no gain."
    yield ""
    rows = [
        (
            str(row["round"]),
            escaped(row["trainer"] or "-"),
            _shown(row["rows"]),
            _shown(row["steps"]),
            f"`{short(row['revision'])}`" if row["revision"] else escaped(row["status"] or "-"),
            interval(row),
            _decision(row),
            "yes" if row["inside"] else "no",
        )
        for row in facts.rounds
    ]
    head = ("round", "trainer", "rows", "steps", "revision", "held-out difference", "decision")
    yield from _table((*head, "in this model"), rows)


def _decision(row: Row) -> str:
    return f"{row['decision']}: {escaped(row['reason'])}" if row["decision"] else "none yet"


def _judges(judges: Sequence[Row]) -> Iterator[str]:
    yield "## Who judged"
    yield ""
    if not judges:
        yield "Nobody."
        return
    rows = [
        (escaped(j["judge"]), ", ".join(map(escaped, j["steps"])), str(j["n"]), _exam(j))
        for j in judges
    ]
    yield from _table(("judge", "in steps", "verdicts", "exam"), rows)


def _exam(judge: Row) -> str:
    """Return what is known of a judge's exam; one without a row is a program or a person."""
    if judge["verdict"] is None:
        return "none: a program or a person, which sits none"
    if judge["verdict"] == "unproven" or judge["accuracy"] is None:
        return f"**{judge['verdict']}**: {escaped(judge['reason'])}"
    right = f"{judge['accuracy']:.3f}"
    if judge["ci_low"] is not None:
        right += f" [{judge['ci_low']:.3f}, {judge['ci_high']:.3f}]"
    return f"{judge['verdict']}: {right} right on {escaped(judge['exam'])}"


def _teachers(facts: ModelFacts) -> Iterator[str]:
    yield "## Whose words it learned"
    yield ""
    if facts.learned:
        rows = [
            (escaped(row["role"]), escaped(row["model"] or "-"), str(row["n"]))
            for row in facts.learned
        ]
        yield from _table(("role", "model, where it is none of the run's", "training rows"), rows)
    else:
        yield "No training row of a policy's answer."
    yield ""
    if not facts.roles:
        yield "There were no roles beside the student."
        return
    spoken = [
        (
            escaped(role["name"]),
            escaped(role["speaks"]),
            escaped(role["revision"]) if role["is_student"] else "-",
            _role_licence(role, facts.origin),
        )
        for role in facts.roles
    ]
    yield from _table(("role", "speaks", "revision", "licence"), spoken)


def _role_licence(role: Row, origin: Origin) -> str:
    return escaped(origin.licence if role["is_student"] else role["licence"]) or "unknown"


def _data(facts: ModelFacts) -> Iterator[str]:
    yield "## Data"
    yield ""
    rows = [
        (r["split"], _named(r["source"]), _named(r["licence"]), str(r["n"])) for r in facts.prompts
    ]
    yield from _table(("prompts", "source", "licence", "number"), rows)
    if facts.feedback:
        yield ""
        given = [
            (r["kind"], _named(r["source"]), _named(r["licence"]), str(r["n"]))
            for r in facts.feedback
        ]
        yield from _table(("feedback", "source", "licence", "number"), given)


def _unknown(facts: ModelFacts) -> Iterator[str]:
    yield "## What is not known"
    yield ""
    yield from (f"- {text}" for text in _unknowns(facts))


def _unknowns(facts: ModelFacts) -> Iterator[str]:
    if facts.gain is None:
        yield "Whether it is better than the initial student: no gain was measured."
    yield "What it does on prompts unlike those of the run, and whether it is safe: nobody has tested that here."
    if not facts.origin.licence:
        yield "The licence of the initial student."
    teachers = [r for r in facts.roles if not r["is_student"] and not r["licence"]]
    if teachers:
        names = ", ".join(escaped(role["speaks"]) for role in teachers)
        yield f"Licences and terms of {names}: they may restrict what may be made of their answers."
    sources = {_named(r["source"]) for r in [*facts.prompts, *facts.feedback] if _is_unknown(r)}
    if sources:
        yield f"The licence of the data from {', '.join(sorted(sources))}."
    unproven = sorted(
        {str(j["judge"]) for j in facts.judges if j["verdict"] in ("unproven", "refused")}
    )
    if unproven:
        yield f"What the verdicts of {', '.join(map(escaped, unproven))} are worth: they passed no exam."
    yield "What the initial student had seen before the run; it may hold the test prompts."


def _is_unknown(row: Row) -> bool:
    return (row["licence"] or "unknown") == "unknown"


def _use(facts: ModelFacts, taken: Taken, base_name: str) -> Iterator[str]:
    yield "## How to load it"
    yield ""
    if taken.form == "gguf":
        yield "Any program that reads GGUF, such as llama.cpp, loads the file beside this card."
        return
    if taken.form == "lora":
        yield from _use_adapter(facts, taken, base_name)
        return
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    yield "```"


def _use_adapter(facts: ModelFacts, taken: Taken, base_name: str) -> Iterator[str]:
    base, _, commit = base_name.partition("@")
    told = json.dumps(base or "BASE") + (f", revision={json.dumps(commit)}" if commit else "")
    dtype = "bfloat16" if taken.precision == "nf4" else taken.precision
    if not base:
        base_id = str(facts.named.revision.base)
        which = "initial" if base_id == facts.named.initial.id else short(base_id)
        yield (
            "The base is no model of the hub. These are its very weights, as a folder: `redistill model export "
            f"{facts.named.run.name} --revision {which} --format hf --out BASE`."
        )
        yield ""
    if taken.precision == "nf4":
        yield "It was trained on the base in four bits (nf4); on the base in bfloat16 its answers differ a little."
        yield ""
    yield "```python"
    yield "from peft import PeftModel"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield f'base = AutoModelForCausalLM.from_pretrained({told}, dtype="{dtype}")'
    yield 'model = PeftModel.from_pretrained(base, "FOLDER")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    yield "```"


def _named(text: str | None) -> str:
    """Return a source or licence for strangers: of a path only its last part."""
    found = text or ""
    return escaped(Path(found).name if found.startswith("/") else found) or "unknown"


def _shown(number: int | None) -> str:
    return "-" if number is None else str(number)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
