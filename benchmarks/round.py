"""What the graph and the store cost: one SmolLM2 round beside scripts that do the same work without them.

Three arms, each a process of its own, so that imports count: `redistill` runs a recipe; `plain` calls the
same sampler, judge and trainer with no graph and no store; `stock` uses `generate` of transformers and the
plain SFTTrainer of TRL. CPU seconds are those of the process and all its children. The sampler alone is
measured beside `generate` on the same 64 rows, four a prompt, with the real end of sequence.

Writes `benchmarks/results/round.json`. Ratios are the figures; seconds belong to one machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redistill.hashing import row_seed
from redistill.policies import catalog
from redistill.types import Completion, Message, Prompt

RESULTS = Path(__file__).parent / "results" / "round.json"
STUDENT = "smollm2-135m"
K, LONGEST, TEMPERATURE = 4, 32, 0.5
SETTINGS = {
    "learning_rate": 4e-5,
    "batch_size": 16,
    "micro_batch": 8,
    "steps": 12,
    "warmup_steps": 2,
}
ROWS = 64
EVALUATED = 40
SHOTS = {"file": "redistill:forms_examples.jsonl", "n": 4, "match": "form"}


def main() -> None:
    """Run the arms in turn, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=[*ARMS, "sampler"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    told = parser.parse_args()
    if told.arm == "sampler":
        print(json.dumps(sampler()))
    elif told.arm:
        ARMS[told.arm](told.folder)
    else:
        measure(told.repeats)


def measure(repeats: int) -> None:
    """Measure the arms side by side `repeats` times, in alternating order; `stock` is slow, once is enough.

    The ratios are medians over repeats of arms that ran one after the other, so that a machine that
    grows slower or faster in between tells nothing.
    """
    catalog.resolve(STUDENT, cache=catalog.default_cache())
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for repeat in range(repeats):
        arms = [name for name in ARMS if name != "stock" or repeat == 0]
        for name in arms[:: 1 if repeat % 2 == 0 else -1]:
            seconds[name].append(_child_cpu(name))
            print(f"{name}: {seconds[name][-1]:.1f} CPU s", flush=True)
    found = json.loads(_run("sampler", None))
    pairs = zip(seconds["redistill"], seconds["plain"], strict=True)
    result = {
        "cpu_s": {name: [round(v, 1) for v in values] for name, values in seconds.items()},
        "ratio_plain": round(statistics.median(ours / plain for ours, plain in pairs), 3),
        "ratio_stock": round(seconds["redistill"][0] / seconds["stock"][0], 3),
        "sampler": found,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))


def _child_cpu(arm: str) -> float:
    folder = Path(tempfile.mkdtemp(prefix="redistill-bench-"))
    before = _children()
    try:
        _run(arm, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _children() - before


def _run(arm: str, folder: Path | None) -> str:
    command = [sys.executable, "-P", __file__, "--arm", arm]
    command += ["--folder", str(folder)] if folder else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().split("\n")[-1]


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# -- the work: the same prompts, answers, judge, training settings and evaluations in every arm


def _recipe(folder: Path) -> Any:
    from redistill.agents.recipe import load_recipe

    rows = [
        {
            "messages": [m.as_dict() for m in p.messages],
            "verify": dict(p.verify or {}),
            "tags": list(p.tags),
            "split": p.split,
        }
        for part in _prompts()
        for p in part
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    text = f"""
name: bench
student: {STUDENT}
prompts: {{file: prompts.jsonl}}
roles:
  teacher: {{context: {{few_shot: {json.dumps(SHOTS)}}}}}
round:
  - sample:   {{role: teacher, k: {K}, temperature: {TEMPERATURE}, max_tokens: {LONGEST}}}
  - score:    {{judge: verifier}}
  - select:   {{where: verifier = 1, order_by: slot, limit: 72}}
  - train:    {{trainer: {{sft: {json.dumps(SETTINGS)}}}}}
  - evaluate: {{judge: verifier, max_tokens: {LONGEST}}}
  - gate:     {{}}
loop: {{rounds: 1}}
"""
    return load_recipe(text, "bench", base=folder)


def with_redistill(folder: Path) -> None:
    """Run the recipe: graph, store, proofs of weights, gate, gain."""
    from redistill.agents.loop import Place, run
    from redistill.store.query import read_rows

    home = run(_recipe(folder), place=Place(folder / "runs", catalog.default_cache()))
    steps = read_rows(home, "SELECT DISTINCT step FROM completion WHERE split = 'test'")
    if len(steps) != 2:  # a rejected challenger is not tested, and the other arms always test it
        raise SystemExit("the challenger was rejected: this arm did less than the others")


def _prompts() -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    from redistill.agents.prompts import PromptSource, load_prompts

    prompts = load_prompts(PromptSource(file="redistill:forms.jsonl"), Path(), 0)
    split = {s: [p for p in prompts if p.split == s] for s in ("train", "heldout", "test")}
    # The quickstart's round, with fewer evaluations: those are the sampler's work in every arm.
    return split["train"][:96], split["heldout"][:EVALUATED], split["test"][:EVALUATED]


def _teacher() -> Any:
    """Return the student with worked examples before the prompt, as the recipe's role shows it."""
    from redistill.agents.roles import Role, Staging

    role = Role.model_validate({"context": {"few_shot": SHOTS}})
    return Staging("teacher", role, Path())


def with_plain(folder: Path) -> None:
    """Call the same sampler, judge and trainer, and keep everything in memory."""
    from redistill.agents.judge import JudgeTask
    from redistill.agents.judges.program import Verifier
    from redistill.policies.policy import Request, Sampling
    from redistill.policies.revision import Revision
    from redistill.policies.transformers import TransformersPolicy
    from redistill.trainers.rows import rows_table, write_rows
    from redistill.trainers.trainer import Job
    from redistill.trainers.worker import Worker

    train, heldout, test = _prompts()
    start = catalog.resolve(STUDENT, cache=catalog.default_cache()).revision
    policy, judge = TransformersPolicy(start), Verifier()

    def answers(
        prompts: Sequence[Prompt], k: int, sampling: Sampling, stage: Any = None
    ) -> list[tuple[Prompt, Any, Any]]:
        asked = [(p, policy.encode(stage(p) if stage else p.messages)) for p in prompts]
        requests = [Request(ids, row_seed(f"{p.id}:{i}")) for p, ids in asked for i in range(k)]
        said = policy.generate(requests, sampling)
        each = [p for p, _ in asked for _ in range(k)]
        tasks = [
            JudgeTask(p, Completion("", p.id, g.text, g.token_ids, g.logprobs, g.finish_reason, ""))
            for p, g in zip(each, said, strict=True)
        ]
        return list(zip(each, said, asyncio.run(judge.score(tasks)), strict=True))

    greedy = Sampling(0.0, 1.0, 0, LONGEST)
    policy.load(start)
    answers(heldout, 1, greedy)
    sampled = answers(train, K, Sampling(TEMPERATURE, 1.0, 0, LONGEST), _teacher().stage)
    passed = [(policy.encode(p.messages), g) for p, g, v in sampled if v.value == 1][:72]
    rows = [
        {"id": str(i), "prompt_ids": ids, "completion_ids": g.token_ids, "weight": 1.0}
        for i, (ids, g) in enumerate(passed)
    ]
    digest = write_rows(folder / "job" / "rows.parquet", rows_table("completions", rows))
    Job(
        id="bench",
        trainer={"sft": SETTINGS},
        start_folder=start.folder,
        start_revision=start.id,
        revisions_root=folder / "revisions",
        threads=os.cpu_count() or 1,
        rows=folder / "job" / "rows.parquet",
        dataset_hash=digest,
    ).write(folder / "job", folder)
    policy.release()

    async def fit() -> str:
        worker = Worker(folder / "worker.log")
        try:
            result = await worker.run(folder / "job", folder, lambda _: None)
        finally:
            await worker.close()
        return str(result.revision)

    trained = Revision.read(folder / "revisions" / asyncio.run(fit()))
    policy.load(trained)
    answers(heldout, 1, greedy)
    answers(test, 1, greedy)
    policy.load(start)
    answers(test, 1, greedy)


def with_stock(folder: Path) -> None:
    """Use `generate` of transformers and the plain SFTTrainer of TRL, as their pages show them."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    train, heldout, test = _prompts()
    home = catalog.resolve(STUDENT, cache=catalog.default_cache()).folder
    model: Any = AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(home)

    def answers(asked: Sequence[Sequence[Message]], k: int, **settings: Any) -> list[str]:
        said: list[str] = []
        for start in range(0, len(asked), ROWS // k):
            part = asked[start : start + ROWS // k]
            said += _generate(model, tokenizer, part, k, settings)[0]
        return said

    greedy = {"do_sample": False}
    plain = {name: [p.messages for p in ps] for name, ps in (("heldout", heldout), ("test", test))}
    answers(plain["heldout"], 1, **greedy)
    stage = _teacher().stage
    sampled = answers(
        [stage(p) for p in train], K, do_sample=True, temperature=TEMPERATURE, top_k=0
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": train[i // K].text}],
            "completion": [{"role": "assistant", "content": text}],
        }
        for i, text in enumerate(sampled[:72])
    ]
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=str(folder / "stock"),
            use_cpu=True,
            bf16=False,
            max_steps=12,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=4e-5,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    model.save_pretrained(folder / "trained")
    for split in ("heldout", "test", "test"):
        answers(plain[split], 1, **greedy)


def _generate(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Sequence[Message]],
    k: int,
    settings: dict[str, Any],
) -> tuple[list[str], int]:
    """Return the answers of `generate`, and how many tokens they have, end tokens included."""
    import torch

    texts = [
        tokenizer.apply_chat_template(
            [m.as_dict() for m in messages], add_generation_prompt=True, tokenize=False
        )
        for messages in asked
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.inference_mode():
        out = model.generate(
            **batch,
            max_new_tokens=LONGEST,
            num_return_sequences=k,
            eos_token_id=end,
            pad_token_id=pad,
            **settings,
        )
    new = out[:, batch["input_ids"].shape[1] :]
    ended = (new == end).int().cumsum(1)
    tokens = int(((ended == 0) | ((ended == 1) & (new == end))).sum())
    return tokenizer.batch_decode(new, skip_special_tokens=True), tokens


ARMS: dict[str, Callable[[Path], None]] = {
    "stock": with_stock,
    "plain": with_plain,
    "redistill": with_redistill,
}


# -- the sampler alone


def sampler(repeats: int = 5) -> dict[str, float]:
    """Return tokens a second, wall and CPU, of the sampler and of `generate`, and their ratios."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from redistill.policies.policy import Request, Sampling
    from redistill.policies.transformers import TransformersPolicy

    prompts = _prompts()[0][: ROWS // K]
    home = catalog.resolve(STUDENT, cache=catalog.default_cache())
    policy = TransformersPolicy(home.revision)
    policy.load(home.revision)
    model: Any = AutoModelForCausalLM.from_pretrained(home.folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(home.folder)

    def ours(seed: int) -> int:
        requests = [
            Request(policy.encode(p.messages), seed * 1000 + i) for p in prompts for i in range(K)
        ]
        said = policy.generate(requests, Sampling(0.7, 1.0, 0, LONGEST))
        return sum(len(g.token_ids) for g in said)

    def stock(seed: int) -> int:
        torch.manual_seed(seed)
        settings = {"do_sample": True, "temperature": 0.7, "top_k": 0}
        return _generate(model, tokenizer, [p.messages for p in prompts], K, settings)[1]

    figures: dict[str, list[tuple[float, float]]] = {"sampler": [], "generate": []}
    for seed in range(repeats + 1):
        for name, work in (("sampler", ours), ("generate", stock)):
            wall, cpu = time.monotonic(), time.process_time()
            tokens = work(seed)
            if seed:  # the first pass warms caches
                spent = time.monotonic() - wall, time.process_time() - cpu
                figures[name].append((tokens / spent[0], tokens / spent[1]))
    medians = {
        f"{name}_tokens_per_{unit}": round(statistics.median(f[i] for f in values), 1)
        for name, values in figures.items()
        for i, unit in enumerate(("s", "cpu_s"))
    }
    return medians | {
        "ratio_wall": round(medians["sampler_tokens_per_s"] / medians["generate_tokens_per_s"], 2),
        "ratio_cpu": round(
            medians["sampler_tokens_per_cpu_s"] / medians["generate_tokens_per_cpu_s"], 2
        ),
    }


if __name__ == "__main__":
    main()
