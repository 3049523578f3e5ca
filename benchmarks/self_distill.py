"""Whether it is the words that teach: self-distillation beside its two controls, on a toy student that can read.

The toy of 1M parameters answers worse when a right answer is shown to it, because nobody ever showed it one. So a reader is
made first: a supervised job on prompts that show an answer, in the words of the shipped template, with that answer as the
target, mixed with plain prompts. Shown are answers that the student has sampled itself, right and wrong ones, and the
plain prompts' targets are its own greedy answers: so no right answer is taught, only that what is shown can be said.

The reader then teaches itself three times from the same start: `seen` shows the teacher an answer of its own that
passed, `unrelated` one that passed for another prompt, and `negative` makes every sampled token rarer and shows nothing.

Writes `benchmarks/results/self_distill.json` and `docs/self_distill.svg`, and prints the tables of `docs/on_policy.md`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "self_distill.json"
PICTURE = ROOT / "docs" / "self_distill.svg"
SEEDS = (0, 1, 2)
LONGEST = 44
ASKED, TESTED = 200, 8
"""Train and test prompts that are kept; held-out ones all are."""
SHOWN = 2
"""Sampled answers of a prompt that are shown."""
READER = {
    "learning_rate": 1e-3,
    "batch_size": 8,
    "micro_batch": 8,
    "steps": 500,
    "warmup_steps": 20,
}
TAUGHT = {
    "learning_rate": 1e-4,
    "batch_size": 16,
    "micro_batch": 16,
    "steps": 16,
    "max_tokens": LONGEST,
}
ARMS = {
    "seen": {"train.given": "answer"},
    "unrelated": {"train.given": "unrelated"},
    "negative": {"train.given": "", "train.signal": "negative"},
}
SAYS = {
    "seen": "itself, shown an answer that passed",
    "unrelated": "itself, shown one to another prompt",
    "negative": "nobody: every token rarer",
}
Row = dict[str, Any]


def main() -> None:
    """Make the reader, let it teach itself, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="keeps everything there, and takes the reader that is there"
    )
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument(
        "--draw", action="store_true", help="tell and draw what was measured before"
    )
    told = parser.parse_args()
    if not told.draw:
        base = told.folder or Path(tempfile.mkdtemp(prefix="redistill-bench-"))
        try:
            measure(base, SEEDS[: told.seeds])
        finally:
            if not told.folder:
                shutil.rmtree(base, ignore_errors=True)
    found = json.loads(RESULTS.read_text("utf-8"))
    print(tables(found))
    PICTURE.write_text(picture(found) + "\n", "utf-8")


def measure(base: Path, seeds: Sequence[int]) -> None:
    """Run everything, and write the figures."""
    reader = base / "reader"
    if not reader.exists():
        make_reader(base, reader)
    read = reads(reader)
    print(read, flush=True)
    _write_prompts(base)
    runs = [teach(base, reader, seed) for seed in seeds]
    settings = {"reader": READER, "taught": TAUGHT}
    found = {"reads": read, "runs": runs, "seeds": list(seeds), "settings": settings}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def _prompts(split: str) -> list[Row]:
    file = resources.files("redistill") / "recipes" / "data" / "tiny.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def _write_prompts(base: Path) -> None:
    rows = [*_prompts("train")[:ASKED], *_prompts("heldout"), *_prompts("test")[:TESTED]]
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")


# -- the reader


def _policy(folder: Path | None = None) -> Any:
    """Return the toy student, or a folder's, as a policy."""
    from redistill.policies import catalog
    from redistill.policies.revision import Revision
    from redistill.policies.transformers import TransformersPolicy

    first = catalog.resolve("tiny", cache=catalog.default_cache()).revision
    revision = Revision.read(folder) if folder else first
    policy = TransformersPolicy(revision)
    policy.load(revision)
    return policy


def _asked(policy: Any, question: str, given: str = "") -> tuple[int, ...]:
    """Return a prompt's tokens, with an answer shown in the words of the shipped template."""
    from redistill.agents.template import fill, sound, template
    from redistill.types import Message

    words = sound(template("shown", ("question", "given"), "shown"))
    text = fill(words, question=question, given=given).strip() if given else question
    ids: tuple[int, ...] = policy.encode((Message("user", text),))
    return ids


def _said(policy: Any, prompts: Sequence[tuple[int, ...]], temperature: float = 0.0) -> list[Any]:
    from redistill.policies.policy import Request, Sampling

    requests = [Request(ids, place) for place, ids in enumerate(prompts)]
    found: list[Any] = policy.generate(requests, Sampling(temperature, max_tokens=LONGEST))
    return found


def make_reader(base: Path, reader: Path) -> None:
    """Train the student to say what it is shown, and put it into a folder."""
    from redistill.policies import catalog
    from redistill.trainers.rows import rows_table, write_rows
    from redistill.trainers.supervised import SFT
    from redistill.trainers.trainer import Job, run_job

    job = base / "jobs" / "reader"
    trainer = SFT.model_validate(READER)
    digest = write_rows(job / "rows.parquet", rows_table("completions", lessons()))
    first = catalog.resolve("tiny", cache=catalog.default_cache()).revision
    Job(
        id="reader",
        trainer={"sft": trainer.params()},
        start_folder=first.folder,
        start_revision=first.id,
        revisions_root=base / "revisions",
        rows=job / "rows.parquet",
        dataset_hash=digest,
    ).write(job, base)
    result = run_job(job, base, lambda _: None)
    assert result.status == "trained", result.message
    shutil.copytree(base / "revisions" / str(result.revision), reader)


def lessons() -> list[Row]:
    """Return the reader's rows: each train prompt with sampled answers that are shown and said, and plain with a greedy one."""
    policy = _policy()
    questions = [row["prompt"] for row in _prompts("train")]
    plain = [_asked(policy, question) for question in questions]
    sampled = _said(policy, [ids for ids in plain for _ in range(SHOWN)], 1.0)
    pairs = [
        (_asked(policy, questions[place // SHOWN], said.text), said)
        for place, said in enumerate(sampled)
        if said.text
    ]
    pairs += list(zip(plain, _said(policy, plain), strict=True))
    return [
        {
            "id": f"r{place}",
            "prompt_ids": list(ids),
            "completion_ids": list(said.token_ids),
            "weight": 1.0,
            "token_weights": None,
        }
        for place, (ids, said) in enumerate(pairs)
        if said.finish_reason == "stop"
    ]


def reads(reader: Path) -> Row:
    """Return the held-out accuracy of student and reader: asked plainly, with the right answer shown, and with another's."""
    rows = _prompts("heldout")
    right = [row["verify"]["equals"]["text"] for row in rows]
    views = {"plain": [""] * len(rows), "shown": right, "unrelated": right[1:] + right[:1]}
    found: Row = {}
    for name, folder in (("student", None), ("reader", reader)):
        policy = _policy(folder)
        found[name] = {}
        for view, given in views.items():
            asked = [
                _asked(policy, row["prompt"], text) for row, text in zip(rows, given, strict=True)
            ]
            said = [one.text for one in _said(policy, asked)]
            found[name][view] = _shares(said, right)
    return found


def _shares(said: Sequence[str], right: Sequence[str]) -> Row:
    """Return how many answers are right, and how many have the right one with something around it."""
    pairs = list(zip(said, right, strict=True))
    return {
        "right": statistics.fmean(text == wanted for text, wanted in pairs),
        "around": statistics.fmean(text != wanted and wanted in text for text, wanted in pairs),
    }


# -- the teaching


def teach(base: Path, reader: Path, seed: int) -> Row:
    """Run the arms as rounds of one run, each from the reader, and return what each came to."""
    from redistill.agents.loop import Place, run
    from redistill.agents.recipe import load_recipe
    from redistill.policies import catalog
    from redistill.store.query import read_rows

    recipe = load_recipe(json.dumps(_recipe(reader, seed)), "self_distill", base=base)
    folder = run(recipe, place=Place(base / "runs", catalog.default_cache()))
    rows = read_rows(
        folder, "SELECT round, status, message, rows, steps FROM training_run ORDER BY round"
    )
    arms = dict(zip(ARMS, rows, strict=True))
    for arm, row in arms.items():
        assert row["status"] == "trained", f"{arm}: {row['message']}"
        row.update(_evaluated(folder, row["round"], "evaluate"))
    before = _evaluated(folder, 0, "baseline")
    print(seed, before, arms, flush=True)
    return {"seed": seed, "before": before, "arms": arms}


def _evaluated(folder: Path, round_: int, step: str) -> Row:
    """Return what the held-out answers of an evaluation were worth."""
    from redistill.store.query import read_rows

    rows = read_rows(
        folder,
        f"""
        SELECT a.text, (SELECT any_value(d.text) FROM content d WHERE d.hash = p.details_hash) AS told
        FROM completion c JOIN content a ON a.hash = c.text_hash AND a.round = c.round
        JOIN prompt p ON p.id = c.prompt_id
        WHERE c.round = {round_} AND c.step = '{step}' AND c.split = 'heldout'
        """,
    )
    right = [json.loads(row["told"])["verify"]["equals"]["text"] for row in rows]
    return _shares([row["text"] for row in rows], right)


def _recipe(reader: Path, seed: int) -> Row:
    said = {"role": "beginner", "k": 3, "temperature": 0.7, "max_tokens": LONGEST}
    train = {
        "trainer": "self_distill",
        "given": "answer",
        "of": "select",
        "from": "initial",
        **TAUGHT,
    }
    return {
        "name": f"seed-{seed}",
        "student": str(reader),
        "seed": seed,
        "execution": {"threads": 1},
        "prompts": {"file": "prompts.jsonl"},
        "roles": {"beginner": {"policy": "student", "revision": "initial"}},
        "round": [
            {"sample": said},
            {"score": {"judge": "verifier"}},
            {"select": {"where": "verifier = 1", "per_prompt": 1}},
            {"train": train},
            {"evaluate": {"judge": "verifier", "max_tokens": LONGEST}},
            {"gate": {}},
        ],
        "stages": [{"set": changes} for changes in ARMS.values()],
    }


# -- what is told


def tables(found: Row) -> str:
    """Return the tables of the page: what the reader can do, and what each arm came to."""
    heads = ("held-out accuracy", "asked plainly", "shown the right answer", "shown another's")
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|"]
    for who, read in found["reads"].items():
        told = (f"{read[view]['right']:.3f}" for view in ("plain", "shown", "unrelated"))
        lines.append(f"| {who} | {' | '.join(told)} |")
    more = ("who teaches", "right, by seed", "change", "right, with words around it", "other")
    lines += ["", f"| {' | '.join(more)} |", "|---|---:|---:|---:|---:|"]
    runs = found["runs"]
    lines.append(_line("nobody yet", [run["before"] for run in runs], ""))
    for arm, says in SAYS.items():
        moved = [run["arms"][arm]["right"] - run["before"]["right"] for run in runs]
        change = f"{statistics.fmean(moved):+.3f} ({min(moved):+.3f} to {max(moved):+.3f})"
        lines.append(_line(says, [run["arms"][arm] for run in runs], change))
    return "\n".join(lines)


def _line(says: str, ends: Sequence[Row], change: str) -> str:
    """Return a line of the second table, the shares of wrong answers as means over seeds."""
    around = statistics.fmean(end["around"] for end in ends)
    other = statistics.fmean(1 - end["right"] - end["around"] for end in ends)
    told = ", ".join(dict.fromkeys(f"{end['right']:.3f}" for end in ends))
    return f"| {says} | {told} | {change} | {around:.3f} | {other:.3f} |"


def picture(found: Row) -> str:
    """Return where each seed of each arm ended, beside where all began."""
    from redistill.report.charts import MARKS, Line, lines_svg

    runs = found["runs"]
    start = runs[0]["before"]["right"]
    lines = [Line([(-0.5, start), (len(ARMS) - 0.5, start)], "muted", "", "before")]
    for nth, (arm, colour) in enumerate(zip(ARMS, ("good", "bad", "ink"), strict=True)):
        ends = [run["arms"][arm]["right"] for run in runs]
        points = [(nth + 0.06 * (place - 1), end) for place, end in enumerate(ends)]
        lines.append(Line(points, colour, MARKS[nth], SAYS[arm], joined=False))
    ticks = dict(zip(map(float, range(len(ARMS))), ARMS, strict=True))
    title = "Held-out value after self-distillation and its two controls"
    return lines_svg("self_distill", title, lines, ("", "held-out value"), ticks)


if __name__ == "__main__":
    main()
