"""The process that holds a vLLM engine: it answers one JSON object a line, and dies with its parent.

`python -m redistill.policies.engine` reads `{"do": "open" | "load" | "generate" | "score" | ..., ...}` and answers
`{"said": ...}`, or `{"fault": reason}`. The engine runs inside this process and not in one of its own: then tensors
are handed to it without being pickled, and what it does to the global seed and to torch's threads harms nobody.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ..errors import StoreProblem
from . import child
from .adapter import attach, fingerprint_adapted, fingerprint_of
from .model_folder import read_model
from .policy import CPU_CACHE_GIB

Ids = list[int]
Tensors = Mapping[str, Any]
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
CPU_BLOCK = 32
"""Tokens of a block of the cache of prefixes on a CPU; vLLM's own 128 is longer than most prompts and canaries."""


class Engine:
    """One vLLM engine and what it was told to hold.

    Every way in which vLLM holds other weights than it was told to, silently, is shut here or found by the canary:
    a tied head is always handed over beside the embeddings, adapters never share a number, and the cache of
    prefixes is emptied after each change.
    """

    def __init__(self) -> None:
        self._llm: Any = None
        self._folder = ""
        """The whole model whose tensors the engine was handed last."""
        self._adapter = ""
        """The adapter on it; empty for none."""
        self._live: Any = None
        """vLLM's own name for the adapter, where it is not merged."""
        self._adapters = 0
        self._step_by_step = False

    def open(
        self, folder: str, dtype: str, cache_gib: float | None, adapter_rank: int
    ) -> dict[str, Any]:
        """Start the engine on a whole model's folder, and let it say one real token."""
        import vllm

        self._llm = vllm.LLM(
            folder,
            dtype=dtype,
            generation_config="vllm",  # no sampling settings out of the model's folder
            logprobs_mode="raw_logprobs",
            max_logprobs=-1,
            max_model_len=-1,  # as long as the model and the cache allow
            seed=0,
            # Else a small model may fill an answer that must be JSON with spaces, to its last token.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            **_of_the_device(cache_gib),
            **_adapters(adapter_rank),
        )
        self._folder = folder
        # What vLLM has for adapters on a CPU breaks off at the log-probs of a prompt, with an adapter or without.
        self._step_by_step = adapter_rank > 0 and _on_cpu()
        self.generate([[1, 1]], [0], {"temperature": 0.0, "max_tokens": 1}, [], [None])
        model = self._llm.llm_engine.vllm_config.model_config
        return {"version": vllm.__version__, "context": model.max_model_len}

    def load(self, folder: str, adapter: str, *, merge: bool) -> None:
        """Hold a whole model's tensors, with an adapter on them or without one."""
        whole = folder, adapter if merge else ""
        if whole != (self._folder, self._adapter if self._live is None else ""):
            # Cut off in the middle of it, the engine holds neither the old tensors nor the new.
            self._folder = self._adapter = ""
            self._hand_over(_with_head(read_tensors(*whole), Path(folder)))
        self._live = self._attached(adapter) if adapter and not merge else None
        self._folder, self._adapter = folder, adapter
        self._forget_prefixes()

    def generate(
        self,
        prompts: list[Ids],
        seeds: list[int],
        sampling: Mapping[str, Any],
        stops: Ids,
        schemas: list[Mapping[str, Any] | None],
    ) -> list[dict[str, Any]]:
        """Answer each prompt: the ids, end token included, their raw log-probs, and whether it ended."""
        usual = {**sampling, "stop_token_ids": stops, "ignore_eos": True, "logprobs": 0}
        told = [
            self._params(**usual, seed=seed, structured_outputs=_held_to(schema))
            for seed, schema in zip(seeds, schemas, strict=True)
        ]
        answers = [answer.outputs[0] for answer in self._ask(prompts, told)]
        if odd := {answer.finish_reason for answer in answers} - {"stop", "length"}:
            raise RuntimeError(f"answers ended with {', '.join(map(str, sorted(odd, key=str)))}")
        return [
            {
                "ids": list(answer.token_ids),
                "logprobs": [
                    place[token].logprob
                    for token, place in zip(answer.token_ids, answer.logprobs, strict=True)
                ],
                "ended": answer.finish_reason == "stop",
            }
            for answer in answers
        ]

    def score(self, prompts: list[Ids], completions: list[Ids]) -> list[list[float]]:
        """Return the raw log-probs of each completion's tokens."""
        if self._step_by_step:
            return self._score_step_by_step(prompts, completions)
        # The last token is asked for as an answer, because vLLM keeps room for one.
        asked = [p + c[:-1] for p, c in zip(prompts, completions, strict=True)]
        told = [
            self._params(max_tokens=1, prompt_logprobs=0, logprob_token_ids=[c[-1]])
            for c in completions
        ]
        return [
            [
                *(place[token].logprob for token, place in _read(p, c, answer)),
                answer.outputs[0].logprobs[0][c[-1]].logprob,
            ]
            for p, c, answer in zip(prompts, completions, self._ask(asked, told), strict=True)
        ]

    def first(self, prompts: list[Ids], tokens: list[Ids]) -> list[list[float]]:
        """Return the raw log-probs of some tokens as the next one, as the engine has them when it answers.

        Unlike `score`, this reads the cache of prefixes.
        """
        told = [self._params(max_tokens=1, logprob_token_ids=wanted) for wanted in tokens]
        answers = [answer.outputs[0].logprobs[0] for answer in self._ask(prompts, told)]
        return [
            [place[token].logprob for token in wanted]
            for wanted, place in zip(tokens, answers, strict=True)
        ]

    def likeliest(
        self, prompts: list[Ids], completions: list[Ids], k: int
    ) -> list[tuple[list[Ids], list[list[float]]]]:
        """Return the `k` likeliest tokens at each place of each completion, and their raw log-probs."""
        best = [
            [sorted(place.items(), key=lambda item: item[1].rank)[:k] for place in places]
            for places in self._thoughts(prompts, completions, k)
        ]
        return [
            (
                [[token for token, _ in place] for place in places],
                [[said.logprob for _, said in place] for place in places],
            )
            for places in best
        ]

    def held(self) -> str:
        """Return the revision of the files that were loaded; empty where a tensor that can be seen is not theirs."""
        tensors = read_tensors(self._folder, self._adapter if self._live is None else "")
        seen = dict(self._llm.apply_model(_parameters)[0])
        kept = [name for name, t in tensors.items() if t.dim() == 1 or name == EMBEDDINGS]
        shown = {name: seen[name] for name in kept if name in seen}
        # vLLM fills the vocabulary up to a round number.
        same = all(t[: len(tensors[n])].cpu().equal(tensors[n]) for n, t in shown.items())
        return revision_of(self._folder, self._adapter) if shown and same else ""

    def _hand_over(self, tensors: Tensors) -> None:
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": list(tensors.items())}
        )

    def _attached(self, folder: str) -> Any:
        from vllm.lora.request import LoRARequest

        # A number that was used before would bring back the adapter that the engine remembers by it.
        self._adapters += 1
        return LoRARequest(f"revision-{self._adapters}", self._adapters, folder)

    def _forget_prefixes(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the cache of prefixes is in use and cannot be emptied")

    def _params(self, **told: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(**{"temperature": 0.0, "detokenize": False} | told)

    def _ask(self, prompts: Sequence[Ids], told: Sequence[Any]) -> list[Any]:
        from vllm import TokensPrompt

        return list(
            self._llm.generate(
                [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
                list(told),
                use_tqdm=False,
                lora_request=self._live,
            )
        )

    def _thoughts(
        self, prompts: list[Ids], completions: list[Ids], k: int
    ) -> list[list[Mapping[int, Any]]]:
        """Return what the engine has at each place of each completion: its likeliest tokens by id."""
        if self._step_by_step:
            places = _places(prompts, completions)
            told = [self._params(max_tokens=1, logprobs=k) for _ in places]
            said = iter(self._ask([ids for ids, _ in places], told))
            return [[next(said).outputs[0].logprobs[0] for _ in c] for c in completions]
        asked = [p + c[:-1] for p, c in zip(prompts, completions, strict=True)]
        told = [self._params(max_tokens=1, prompt_logprobs=k, logprobs=k) for _ in asked]
        return [
            [*(place for _, place in _read(p, c, answer)), answer.outputs[0].logprobs[0]]
            for p, c, answer in zip(prompts, completions, self._ask(asked, told), strict=True)
        ]

    def _score_step_by_step(self, prompts: list[Ids], completions: list[Ids]) -> list[list[float]]:
        """Score as when answering, each token after those before it."""
        places = _places(prompts, completions)
        said = iter(self.first([ids for ids, _ in places], [[token] for _, token in places]))
        return [[next(said)[0] for _ in c] for c in completions]


def _held_to(schema: Mapping[str, Any] | None) -> Any:
    if schema is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=dict(schema))


def _places(prompts: list[Ids], completions: list[Ids]) -> list[tuple[Ids, int]]:
    """Return every token of the completions with all that stands before it."""
    both = zip(prompts, completions, strict=True)
    return [(p + c[:i], c[i]) for p, c in both for i in range(len(c))]


def _read(prompt: Ids, completion: Ids, answer: Any) -> Iterator[tuple[int, Mapping[int, Any]]]:
    """Yield each completion token but the last, and what the engine thought of its place."""
    yield from zip(completion[:-1], answer.prompt_logprobs[len(prompt) :], strict=True)


def read_tensors(folder: str, adapter: str) -> Tensors:
    """Return the tensors of a whole model, an adapter merged into them."""
    if adapter:
        merged: Tensors = _adapted(folder, adapter).merge_and_unload().state_dict()
        return merged
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def revision_of(folder: str, adapter: str) -> str:
    """Return the revision that a whole model is, with an adapter on it or without one."""
    if adapter:
        return fingerprint_adapted(_adapted(folder, adapter))
    return fingerprint_of(read_tensors(folder, ""))


def _adapted(folder: str, adapter: str) -> Any:
    model, misfits = read_model(Path(folder))
    if misfits:
        raise StoreProblem(f"{folder}: its tensors do not fit: {'; '.join(misfits)}")
    return attach(model, Path(adapter))


def _with_head(tensors: Tensors, folder: Path) -> Tensors:
    """Add the head that a file leaves out because it is the embeddings: vLLM keeps a packed copy of it."""
    config = json.loads((folder / "config.json").read_bytes())
    tied = config.get("text_config", config).get("tie_word_embeddings", False)
    if tied and HEAD not in tensors and EMBEDDINGS in tensors:
        return {**tensors, HEAD: tensors[EMBEDDINGS]}
    return tensors


def _of_the_device(cache_gib: float | None) -> dict[str, Any]:
    """Return what differs between a card and a CPU."""
    if not _on_cpu():
        if cache_gib is None:
            return {}
        # With a cache of known size, the share is what must be free at the start, and others may hold the rest.
        return {"kv_cache_memory_bytes": int(cache_gib * 2**30), "gpu_memory_utilization": 0.1}
    cache = int((cache_gib or CPU_CACHE_GIB) * 2**30)
    return {"enforce_eager": True, "block_size": CPU_BLOCK, "kv_cache_memory_bytes": cache}


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _adapters(rank: int) -> dict[str, Any]:
    if not rank:
        return {}
    # vLLM knows but a few ranks, and one that is higher than an adapter's own will do.
    known = next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), 0)
    if not known:
        raise ValueError(f"vLLM knows no adapter of rank {rank}; 512 is the highest")
    return {"enable_lora": True, "max_lora_rank": known, "max_loras": 1}


def _parameters(model: Any) -> list[tuple[str, Any]]:
    return [(name, tensor.detach()) for name, tensor in model.named_parameters()]


def serve(engine: Engine) -> None:
    """Answer what stdin asks until it closes."""
    child.die_with_parent()
    child.leave_stops_to_the_parent()
    replies = child.claim_stdout()
    next_line = child.lines_of(sys.stdin)
    while True:
        asked = json.loads(next_line())
        work = getattr(engine, asked.pop("do"))
        try:
            reply = {"said": work(**asked)}
        except Exception as error:  # noqa: BLE001 - whatever vLLM raises is told to the parent
            reply = {"fault": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    """Hold an engine until the parent ends."""
    # Inside this process; see the module's docstring. Must stand before vllm is imported.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # On a card Triton rounds the factors of fp32 products to 10 bits otherwise, which the canary takes for other weights.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    serve(Engine())


if __name__ == "__main__":
    main()
