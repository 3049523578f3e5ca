"""The vLLM policy: a causal language model in an engine that runs in a process of its own.

Greedy answers and log-probs are those of the embedded policy within the noise of two engines; sampled answers are
others, because vLLM draws in another way. What is loaded must be a folder of safetensors in float32 or bfloat16.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, fsum
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BadInput, EnvironmentProblem
from ..types import TokenIds
from .child import Child
from .policy import Generation, Request, Sampling
from .precision import precision_of
from .revision import Revision, check_finite_files
from .wording import Wording, read_json

T = TypeVar("T")
SLOWEST = 5.0
"""Tokens a second, read and written: an engine that takes longer for a call hangs."""
OPTIONS = 128
"""Most tokens that vLLM weighs as the next one."""
ENGINE = "redistill.policies.engine"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is run. None of it changes what a revision is."""

    cache_gib: float | None = None
    """Memory of the cache of keys and values; where it is None, all that is left on a card, and 1 GiB without one."""
    stays: bool = False
    """Whether the process goes on when the policy is released: new weights are then loaded in place."""
    start_seconds: float = 600.0
    """Within this the engine must have said a real token. Later it has as long for each call, and more by `SLOWEST`."""
    needed: int = 0
    """Tokens of the longest row that it will be asked for; an engine whose cache holds fewer is refused."""
    adapter_rank: int = 0
    """Highest rank of the adapters that it takes as they are; with 0 each is merged into its base."""
    threads: int | None = None
    """Cores, without a card; those of this process where it is None."""
    cards: str | None = None
    """`CUDA_VISIBLE_DEVICES` of the process; this process's own where it is None."""
    module: str = ENGINE
    """What the process runs."""


def check_vllm() -> None:
    """Refuse where vLLM is not installed.

    Raises:
        EnvironmentProblem: says how to install it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EnvironmentProblem(
            "the sampler vllm is not installed: pip install 'redistill[vllm]', or without a card `make setup-vllm`"
        )


class VllmPolicy(Wording):
    """A causal language model that acts; see `redistill.policies.policy.Policy`.

    Calls go to the engine one after the other, so nothing is in flight when its weights change.

    Args:
        revision: where tokenizer and architecture come from.
        settings: how the engine is run.
        log: what the engine prints goes there; nowhere where it is None.
    """

    def __init__(
        self,
        revision: Revision,
        *,
        settings: EngineSettings | None = None,
        log: Path | None = None,
    ) -> None:
        super().__init__(revision)
        self._settings = settings or EngineSettings()
        more = _environment(self._settings)
        self._process = Child(self._settings.module, log or Path(os.devnull), more)
        self._revision = ""
        self._opened: dict[str, Any] = {}
        """What the engine said of itself when it started; empty where none runs."""
        self._home: Path | None = None
        """The whole model that the engine was opened with or handed last."""

    @property
    def revision(self) -> str:
        """Content hash of the weights that are loaded; empty when none are."""
        return self._revision

    @property
    def engine(self) -> str:
        """The engine's name, and its version once it has started."""
        return f"vllm {self._opened['version']}" if self._opened else "vllm"

    @property
    def context_length(self) -> int:
        """Most tokens that prompt and answer may have together; fewer where the engine's cache holds no more."""
        return min(self._stated_context, int(self._opened.get("context", self._stated_context)))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        """Answer each request, in the order given.

        Raises:
            ValueError: a prompt is empty, or leaves no room for `max_tokens`.
            EnvironmentProblem: the engine has died.
        """
        prompts = [r.prompt_ids for r in requests]
        self.check_room(prompts, sampling.max_tokens)
        said = self._ask(
            "generate",
            prompts=prompts,
            seeds=[r.seed for r in requests],
            sampling=asdict(sampling),
            stops=sorted(self.stop_ids),
            schemas=[None if r.schema is None else dict(r.schema) for r in requests],
        )
        return [
            Generation(
                text=self._codec.decode(answer["ids"]),
                token_ids=tuple(answer["ids"]),
                logprobs=tuple(answer["logprobs"]),
                finish_reason="stop" if answer["ended"] else "length",
            )
            for answer in said
        ]

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """Return the raw log-probs of each (prompt, completion)'s completion tokens.

        Raises:
            ValueError: a prompt is empty, or a pair exceeds the context.
            EnvironmentProblem: the engine has died.
        """
        self.check_pairs(pairs)
        nothing: list[float] = []
        found = _of_those_that_say_something(
            pairs, lambda told: self._ask("score", **told), nothing
        )
        return [tuple(row) for row in found]

    def recite(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """Return the same as `score`, each token as the engine has it when it answers.

        Scoring reads every prompt anew. Answering reads the cache of prefixes, which may be older weights'.
        """
        self.check_pairs(pairs)
        places = [((*p, *c[:i]), c[i]) for p, c in pairs for i in range(len(c))]
        prompts, tokens = [p for p, _ in places], [[t] for _, t in places]
        said = iter(self._ask("first", prompts=prompts, tokens=tokens))
        return [tuple(next(said)[0] for _ in c) for _, c in pairs]

    def distributions(
        self, pairs: Sequence[tuple[TokenIds, TokenIds]], k: int
    ) -> list[tuple[list[list[int]], list[list[float]]]]:
        """Return the `k` likeliest tokens at the place of each completion token, likeliest first, and their log-probs.

        Raises:
            ValueError: a prompt is empty, or a pair exceeds the context.
            EnvironmentProblem: the engine has died.
        """
        self.check_pairs(pairs)
        nothing: tuple[list[list[int]], list[list[float]]] = ([], [])
        found = _of_those_that_say_something(
            pairs, lambda told: self._ask("likeliest", **told, k=k), nothing
        )
        return [(ids, logprobs) for ids, logprobs in found]

    def choose(self, prompts: Sequence[TokenIds], options: Sequence[str]) -> list[list[float]]:
        """Return for each prompt the probabilities of the options as (the beginning of) the answer.

        The sum of an option's log-probs counts, not their mean: options should be about equally long.
        """
        spelled = [self._codec.plain(option) for option in options]
        if all(len(ids) == 1 for ids in spelled) and len(spelled) <= OPTIONS:
            self.check_room(prompts, 1)
            tokens = [[ids[0] for ids in spelled]] * len(prompts)
            sums = self._ask("first", prompts=list(prompts), tokens=tokens)
        else:
            scored = iter(self.score([(prompt, ids) for prompt in prompts for ids in spelled]))
            sums = [[fsum(next(scored)) for _ in options] for _ in prompts]
        return [_normalised(row) for row in sums]

    def load(self, revision: Revision) -> None:
        """Hold exactly these weights from now on; in place, where an engine of this architecture is up.

        Raises:
            StoreProblem: a file is missing or not what was written, or a tensor is not finite.
            BadInput: the weights are in four bits.
            EnvironmentProblem: vLLM is not installed, or the engine does not start.
        """
        revision.verify_files()
        check_finite_files(revision.folder)
        self._revision = ""
        home = revision.folder.parent / revision.base if revision.base else revision.folder
        if revision.base:
            Revision.read(home).verify_files()
        if self._home is not None and not _alike(self._home, home):
            self.close()
        if not self._opened:
            self._open(home)
        adapter = str(revision.folder) if revision.base else ""
        merge = not self._settings.adapter_rank
        self._ask("load", folder=str(home), adapter=adapter, merge=merge)
        self._home, self._revision = home, revision.id

    def release(self) -> None:
        """Give back the memory of the weights; an engine that stays keeps it, and takes the next ones in place."""
        self._revision = ""
        if not self._settings.stays:
            self.close()

    def close(self) -> None:
        """End the engine."""
        self._process.close()
        self._revision, self._opened, self._home = "", {}, None

    def fingerprint(self) -> str:
        """Return the revision of the files that were loaded; empty where the engine holds other tensors than theirs.

        The engine fuses and packs most tensors. Embeddings and norms, which it keeps as they are, are compared with
        the files; an adapter changes neither, so that of an adapter this tells what the engine was given, and no more.
        """
        return str(self._ask("held")) if self._opened else ""

    def _open(self, folder: Path) -> None:
        check_vllm()
        precision = precision_of(folder)
        if precision == "nf4":
            raise BadInput.at(str(folder), "vllm is given no weights in four bits here")
        self._process.start()
        question = {
            "do": "open",
            "folder": str(folder),
            "dtype": precision,
            "cache_gib": self._settings.cache_gib,
            "adapter_rank": self._settings.adapter_rank,
        }
        try:
            self._opened = self._process.ask(question, self._settings.start_seconds)
            self._check_context()
        except EnvironmentProblem:
            self.close()
            raise

    def _check_context(self) -> None:
        """Refuse an engine that would leave out what another one answers."""
        wanted = min(self._settings.needed, self._stated_context)
        if self._opened["context"] < wanted:
            raise EnvironmentProblem(
                f"the engine's cache holds {self._opened['context']} tokens, and a row may have {wanted}; give it more: "
                "`execution: {vllm: {cache_gib: N}}`"
            )

    def _ask(self, what: str, **told: Any) -> Any:
        if not self._opened:
            raise RuntimeError("no weights are held: load a revision first")
        try:
            return self._process.ask({"do": what, **told}, self._patience(told))
        except EnvironmentProblem:
            if not self._process.alive:
                self.close()
            raise

    def _patience(self, told: Mapping[str, Any]) -> float:
        """Return the seconds after which an engine that does not answer hangs."""
        read = sum(map(len, told.get("prompts", ()))) + sum(map(len, told.get("completions", ())))
        each = int(told.get("sampling", {}).get("max_tokens", 1))
        written = each * len(told.get("prompts", ()))
        return self._settings.start_seconds + (read + written) / SLOWEST


def _environment(settings: EngineSettings) -> dict[str, str]:
    found = {}
    if settings.cards is not None:
        found["CUDA_VISIBLE_DEVICES"] = settings.cards
    threads = settings.threads or os.environ.get("OMP_NUM_THREADS")
    if threads:
        found["OMP_NUM_THREADS"] = str(threads)
    return found


def _of_those_that_say_something(
    pairs: Sequence[tuple[TokenIds, TokenIds]],
    ask: Callable[[dict[str, Any]], Sequence[T]],
    nothing: T,
) -> list[T]:
    """Ask about the pairs whose completion has a token, and return the results in the order given."""
    said = [i for i, (_, completion) in enumerate(pairs) if completion]
    told = {"prompts": [pairs[i][0] for i in said], "completions": [pairs[i][1] for i in said]}
    found = dict(zip(said, ask(told) if said else [], strict=True))
    return [found.get(i, nothing) for i in range(len(pairs))]


def _normalised(logprobs: Sequence[float]) -> list[float]:
    most = max(logprobs)
    shares = [exp(value - most) for value in logprobs]
    return [share / fsum(shares) for share in shares]


def _alike(one: Path, other: Path) -> bool:
    """Say whether two folders hold models of one architecture and precision."""

    def essence(folder: Path) -> Mapping[str, Any]:
        beside = ("_name_or_path", "transformers_version", "use_cache", "torch_dtype")
        return {k: v for k, v in read_json(folder / "config.json").items() if k not in beside}

    return essence(one) == essence(other)
