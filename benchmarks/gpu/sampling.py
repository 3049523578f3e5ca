"""How fast a policy samples beside its bare engine, and how well a round uses the card: a random model, bfloat16.

- `transformers`: tokens a second of `TransformersPolicy` beside `model.generate`, the same prompts, lengths and rows in a
  batch, no end token, in turn in one process; the policy also keeps log-probs, and gives each row a generator of its own.
- `vllm`, where it is installed: `VllmPolicy` beside `vllm.LLM` without log-probs and seeds, each engine alone on the card
  with the same cache, in turn. Starting an engine is not timed.
- `handover`: seconds by part of the hand-over sampler -> trainer -> sampler in a real round, from its event.
- `busy`: share of that round in which the card works, from the driver's own samples (`utilization.gpu`: time in
  which any kernel ran). Without a card: what sampling, training and evaluating took of the round.

Goals: policies within 3 % of their engines, the card busy for 85 % of a round.

    python benchmarks/gpu/sampling.py [--shape 0.5b|tiny] [--device cuda|cpu] [--out FILE]
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # also where Python does not look beside a script

from shapes import (
    NO_TOKEN,
    Asked,
    Row,
    endless,
    goal,
    make_room,
    now,
    random_ids,
    random_revision,
    script,
)

from redistill.policies.placement import VISIBLE

if TYPE_CHECKING:
    from redistill.policies.policy import Policy
    from redistill.policies.revision import Revision

NEAR, BUSY = 0.97, 0.85
_ASK = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200")
"""Asks five times a second."""
_PATIENCE = 1800
"""Seconds that a bare engine may take to start and answer."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rows: int
    asked: int
    """Tokens of a prompt."""
    said: int
    """Tokens of an answer."""
    repeats: int
    cache_gib: float
    prompts: int
    """Of the round, for training; a quarter as many are held out."""
    steps: int
    """Of the round's job."""


SIZES = {
    "0.5b": Size(64, 256, 256, 5, 8.0, prompts=256, steps=32),
    "tiny": Size(4, 8, 12, 2, 0.25, prompts=8, steps=2),
}


def measure(asked: Asked) -> Row:
    """Measure the policies beside their engines, then one round."""
    size = SIZES[asked.shape]
    revision = random_revision(asked, "bfloat16")
    prompts = random_ids(asked.shape, size.rows, size.asked)
    found: Row = {"rows": size.rows, "prompt_tokens": size.asked, "answer_tokens": size.said}
    with endless():
        found["transformers"] = embedded(asked, size, revision, prompts)
        make_room(asked)
        if importlib.util.find_spec("vllm") is None:
            found["vllm"] = {"left_out": "vllm is not installed"}
        else:
            found["vllm"] = served(asked, size, revision, prompts)
    return found | one_round(asked, size)


# -- policies beside engines


def embedded(asked: Asked, size: Size, revision: Revision, prompts: list[list[int]]) -> Row:
    """Measure the embedded policy beside `generate`."""
    import torch
    from transformers import AutoModelForCausalLM

    from redistill.policies.policy import ROWS_TOGETHER
    from redistill.policies.transformers import TransformersPolicy

    policy = TransformersPolicy(revision, device=asked.device)
    policy.load(revision)
    bare: Any = AutoModelForCausalLM.from_pretrained(revision.folder, dtype=torch.bfloat16)
    bare = bare.to(asked.device).eval()

    def generate() -> int:
        said = 0
        for begin in range(0, len(prompts), ROWS_TOGETHER):
            ids = torch.tensor(prompts[begin : begin + ROWS_TOGETHER], device=asked.device)
            answers = bare.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=size.said,
                eos_token_id=NO_TOKEN,
                pad_token_id=0,
            )
            said += answers[:, ids.shape[1] :].numel()
        return said

    sides = {"policy": lambda: _speak(policy, size, prompts), "bare": generate}
    for side in sides.values():
        side()  # the first time kernels are chosen and memory is taken
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(size.repeats):
        for name in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            speeds[name].append(_speed(asked, sides[name]))
    return _beside(asked, speeds)


def served(asked: Asked, size: Size, revision: Revision, prompts: list[list[int]]) -> Row:
    """Measure the vLLM policy beside the bare engine; each has the card for itself."""
    from redistill.policies.vllm import EngineSettings, VllmPolicy

    speeds: dict[str, list[float]] = {"policy": [], "bare": []}
    for name in ("policy", "bare", "bare", "policy"):
        if name == "policy":
            settings = EngineSettings(cache_gib=size.cache_gib)
            policy = VllmPolicy(revision, settings=settings, log=asked.folder / "engine.log")
            policy.load(revision)
            try:
                speeds[name] += _speeds(asked, size, partial(_speak, policy, size, prompts))
            finally:
                policy.close()
        else:
            alone = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=alone) as pool:
                speeds[name] += pool.submit(bare_vllm, asked, str(revision.folder), prompts).result(
                    timeout=_PATIENCE
                )
    return _beside(asked, speeds)


def bare_vllm(asked: Asked, folder: str, prompts: list[list[int]]) -> list[float]:
    """Return the tokens a second of an engine in this process, which ends with it."""
    # Where the policy's engine is too, or one is told what to do by another process and the other is not.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"  # on stdout there are figures alone
    import vllm

    size = SIZES[asked.shape]
    engine = vllm.LLM(
        folder,
        dtype="bfloat16",
        seed=0,
        generation_config="vllm",
        kv_cache_memory_bytes=int(size.cache_gib * 2**30),
        enforce_eager=asked.device == "cpu",  # as the policy's own engine
    )
    params = vllm.SamplingParams(
        temperature=1.0, max_tokens=size.said, ignore_eos=True, detokenize=False
    )
    asked_for = [{"prompt_token_ids": ids} for ids in prompts]

    def generate() -> int:
        answers = engine.generate(asked_for, params, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return _speeds(asked, size, generate)


def _speak(policy: Policy, size: Size, prompts: Sequence[Sequence[int]]) -> int:
    """Let a policy answer, and return how many tokens it said."""
    from redistill.policies.policy import Request, Sampling

    requests = [Request(tuple(ids), seed) for seed, ids in enumerate(prompts)]
    said = policy.generate(requests, Sampling(1.0, max_tokens=size.said))
    return sum(len(one.token_ids) for one in said)


def _speeds(asked: Asked, size: Size, work: Callable[[], int]) -> list[float]:
    work()  # the first time graphs are captured
    return [_speed(asked, work) for _ in range(size.repeats)]


def _speed(asked: Asked, work: Callable[[], int]) -> float:
    began = now(asked)
    tokens = work()
    return tokens / (now(asked) - began)


def _beside(asked: Asked, speeds: dict[str, list[float]]) -> Row:
    ratio = statistics.median(speeds["policy"]) / statistics.median(speeds["bare"])
    rounded = {name: [round(s, 1) for s in found] for name, found in speeds.items()}
    return {"tokens_a_second": rounded, "ratio": goal(asked, ratio, least=NEAR)}


# -- one round


def one_round(asked: Asked, size: Size) -> Row:
    """Run one round in a process of its own, and return its hand-over and how busy the card was."""
    # Most answers must end: what is cut is never trained on.
    revision = random_revision(asked, "bfloat16", seed=1, length=size.said // 2)
    recipe = asked.folder / "recipe.json"
    _write_prompts(asked.folder / "prompts.jsonl", size)
    recipe.write_text(json.dumps(_recipe(size, revision)), "utf-8")
    command = [sys.executable, "-P", "-m", "redistill.cli", "run", str(recipe), "--json"]
    command += ["--runs", str(asked.folder / "runs")]
    with watching(asked) as seen:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    [found] = json.loads(done.stdout)["rounds"]
    if found["training"]["status"] != "trained":
        raise RuntimeError(found["training"]["message"])
    return {
        "handover": found["handover"],
        "round_seconds": found["seconds"],
        "busy": _busy(asked, asked.folder / "runs" / "gpu-round", seen, found),
    }


def _busy(asked: Asked, folder: Path, seen: list[tuple[float, float]], found: Row) -> Row:
    from redistill.store.query import read_rows

    [times] = read_rows(
        folder,
        """
        SELECT epoch(r.created_at) AS began, epoch(d.created_at) AS ended
        FROM round r JOIN decision d ON d.round = r.round
        """,
    )
    inside = [share for when, share in seen if times["began"] <= when <= times["ended"]]
    if inside:
        return {"by": "the driver's samples", **goal(asked, statistics.fmean(inside), least=BUSY)}
    works = found["seconds"]["sample"] + found["seconds"]["evaluate"] + found["handover"]["train"]
    share = works / (times["ended"] - times["began"])
    return {"by": "timed phases", **goal(asked, share, least=BUSY)}


@contextmanager
def watching(asked: Asked) -> Iterator[list[tuple[float, float]]]:
    """Note how busy the first card is, several times a second, each with the time; nothing without a card."""
    seen: list[tuple[float, float]] = []
    if asked.device == "cpu":
        yield seen
        return
    command = [*_ASK, "-i", os.environ[VISIBLE]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:

        def read() -> None:
            assert driver.stdout is not None
            told = (line.strip() for line in driver.stdout)
            # Of a part of a card (MIG) the driver says that it does not know.
            seen.extend((time.time(), int(share) / 100) for share in told if share.isdigit())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield seen
        finally:
            driver.terminate()
            reader.join(10)


def _write_prompts(file: Path, size: Size) -> None:
    parts = {"train": size.prompts, "heldout": max(4, size.prompts // 4), "test": 4}
    rows = [
        {"prompt": f"say what {part} {nth} is", "split": part}
        for part, count in parts.items()
        for nth in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")


def _recipe(size: Size, revision: Revision) -> Row:
    """Return one round of supervised training; its judge only has to be quick."""
    batch = min(32, size.prompts)
    train = {"trainer": "sft", "steps": size.steps, "batch_size": batch, "most_cut": 1.0}
    return {
        "name": "gpu-round",
        "student": str(revision.folder),
        "precision": "bfloat16",
        "prompts": {"file": "prompts.jsonl", "per_round": size.prompts},
        "unproven_judge": "allow",
        "same_judge": "allow",
        "round": [
            {"sample": {"k": 4, "max_tokens": size.said, "temperature": 1.0}},
            {"score": {"judge": "longest"}},
            {"select": {"per_prompt": 1}},
            {"train": train | {"micro_batch": min(8, batch), "learning_rate": 1e-4}},
            {"evaluate": {"judge": "longest", "max_tokens": size.said}},
            {"gate": {"guards": []}},
        ],
        "loop": {"rounds": 1},
    }


if __name__ == "__main__":
    script("sampling", __doc__, measure, "0.5b")
