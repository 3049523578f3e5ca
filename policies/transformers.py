"""The embedded policy: a Hugging Face causal language model in this process, in its folder's precision.

Its sampler is our own: what prompts share is read once, rows that end make room for others, and every row has its
own generator. How rows are cut into parts is fixed by what is asked, so the answers do not depend on how many
threads work on them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors.torch import load_file

from ..errors import StoreProblem
from ..types import TokenIds
from . import adapter, sampler
from .batch import parts_of
from .cpu import quick
from .model_folder import read_model
from .policy import ROWS_TOGETHER, Generation, Request, Sampling
from .precision import precision_of
from .revision import Revision, check_finite, fingerprint_model
from .wording import Wording

A = TypeVar("A")
B = TypeVar("B")
SCORED_TOKENS = 8192
"""Most tokens, padding included, of one scored batch."""
_STATEFUL_ROPE = ("dynamic", "longrope")
"""Rotary embeddings that change themselves during a forward pass, which two threads may not share."""


class TransformersPolicy(Wording):
    """A causal language model that acts; see `redistill.policies.policy.Policy`.

    Nothing is loaded before `load`, but `encode` works at once: tokenizer and template are those of the
    revision given here, and of all that are trained from it.

    Args:
        revision: where the tokenizer and the architecture come from.
        rows_per_batch: rows that are sampled together; part of what fixes an answer, up to rounding.
        threads: parts of the rows that are worked on at once, one core each; all cores of this process if None.
        device: as torch names it; the first card if None and there is one.
    """

    def __init__(
        self,
        revision: Revision,
        *,
        rows_per_batch: int = ROWS_TOGETHER,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(revision)
        self._rows = rows_per_batch
        self._threads = threads or _cores()
        self._model: Any = None
        self._adapted: Any = None
        """The model with peft's wrapper, where it is a base with an adapter."""
        self._revision = ""
        self._within: Callable[[], AbstractContextManager[Any]] = nullcontext
        usual = "cuda:0" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device or usual)

    @property
    def revision(self) -> str:
        """Content hash of the weights that are loaded; empty when none are."""
        return self._revision

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        """Answer each request, in the order given. Requests of one prompt should stand together.

        Raises:
            ValueError: a prompt is empty, or leaves no room for `max_tokens`.
        """
        self.check_room([r.prompt_ids for r in requests], sampling.max_tokens)
        model, stops = self._held(), self.stop_ids
        parts = parts_of([r.prompt_ids for r in requests], self._rows)

        def answer(part: list[int]) -> list[sampler.Sampled]:
            asked = [requests[i] for i in part]
            return sampler.sample(model, asked, sampling, stops, rows=self._rows)

        tokens = len(requests) * sampling.max_tokens
        with quick(model, tokens) if self._device.type == "cpu" else nullcontext():
            answers = self._each(answer, parts)
        said = dict(zip(chain(*parts), chain(*answers), strict=True))
        return [self._generation(said[i]) for i in range(len(requests))]

    def _generation(self, said: sampler.Sampled) -> Generation:
        return Generation(
            text=self._codec.decode(said.token_ids),
            token_ids=said.token_ids,
            logprobs=said.logprobs,
            finish_reason="stop" if said.ended else "length",
        )

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
        """Return the raw log-probs of each (prompt, completion)'s completion tokens.

        Raises:
            ValueError: a prompt is empty, or a pair exceeds the context.
        """
        self.check_pairs(pairs)
        model = self._held()
        return self._scored(pairs, lambda batch: sampler.score(model, batch))

    def distributions(
        self, pairs: Sequence[tuple[TokenIds, TokenIds]], k: int
    ) -> list[tuple[list[list[int]], list[list[float]]]]:
        """Return the `k` likeliest tokens at the place of each completion token, likeliest first, and their log-probs.

        Raises:
            ValueError: a prompt is empty, or a pair exceeds the context.
        """
        self.check_pairs(pairs)
        model = self._held()
        vocabulary = model.config.get_text_config().vocab_size
        most = max(1, sampler.LOGIT_BYTES // (4 * vocabulary))
        return self._scored(pairs, lambda batch: sampler.likeliest(model, batch, k), most)

    def choose(self, prompts: Sequence[TokenIds], options: Sequence[str]) -> list[list[float]]:
        """Return for each prompt the probabilities of the options as (the beginning of) the answer.

        The sum of an option's log-probs counts, not their mean: options should be about equally long.
        Where each option is one token, a prompt is read once and not once for each of them.
        """
        spelled = [self._codec.plain(option) for option in options]
        if all(len(ids) == 1 for ids in spelled):
            sums = self._first_tokens(prompts, [ids[0] for ids in spelled])
        else:
            scored = iter(self.score([(prompt, ids) for prompt in prompts for ids in spelled]))
            sums = [tuple(sum(next(scored)) for _ in options) for _ in prompts]
        return [
            [float(p) for p in torch.tensor(row, dtype=torch.float64).softmax(0)] for row in sums
        ]

    def _first_tokens(
        self, prompts: Sequence[TokenIds], tokens: Sequence[int]
    ) -> list[tuple[float, ...]]:
        if any(not p or len(p) >= self.context_length for p in prompts):
            raise ValueError(f"a prompt has 1 to {self.context_length - 1} tokens")
        model = self._held()
        return self._scored(
            [(prompt, ()) for prompt in prompts],
            lambda batch: sampler.first_tokens(model, [prompt for prompt, _ in batch], tokens),
        )

    def load(self, revision: Revision) -> None:
        """Hold exactly these weights from now on.

        A module of the same architecture is kept, and its tensors are overwritten.

        Raises:
            StoreProblem: a file is missing or not what was written, a tensor is missing, unknown or not
                finite. No weights are held then.
        """
        revision.verify_files()
        self._revision = ""
        model, self._model = self._model, None
        if self._adapted is not None:  # its layers are wrapped, and take no plain tensors
            model = self._adapted = None
        if revision.base is not None:
            del model
            self._adapted = self._with_adapter(revision)
            model = self._adapted.get_base_model()
        elif model is not None and _takes_tensors(model, revision.folder):
            _overwrite(model, revision.folder)
        else:
            del model
            model = _built(revision.folder, self._device)
        check_finite(model)
        self._model, self._revision = model, revision.id

    def _with_adapter(self, revision: Revision) -> Any:
        base = Revision.read(revision.folder.parent / str(revision.base))
        base.verify_files()
        adapted = adapter.attach(_built(base.folder, self._device), revision.folder)
        if adapter.fingerprint_adapted(adapted) != revision.id:
            raise StoreProblem(f"{revision.folder} on {base.id} is not what was published")
        return adapted.eval()

    def follow(
        self, model: Any, within: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        """Speak with a model that somebody else holds and changes, and claim no revision for it.

        Args:
            model: is asked as it is at the time.
            within: entered around every batch, in the thread that works on it; autocast is of a thread alone.
        """
        self._model, self._adapted, self._revision = model, None, ""
        self._within = within

    def release(self) -> None:
        """Give back the memory of the weights; `load` brings them again."""
        self._model, self._adapted, self._revision = None, None, ""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def fingerprint(self) -> str:
        """Hash the tensors that are held now; empty when none are."""
        if self._adapted is not None:
            return adapter.fingerprint_adapted(self._adapted)
        return "" if self._model is None else fingerprint_model(self._model)

    def _held(self) -> Any:
        if self._model is None:
            raise RuntimeError("no weights are held: load a revision first")
        return self._model

    def _scored(
        self,
        pairs: Sequence[tuple[TokenIds, TokenIds]],
        work: Callable[[list[tuple[TokenIds, TokenIds]]], list[B]],
        tokens: int = SCORED_TOKENS,
    ) -> list[B]:
        """Do the work in batches of like lengths, and return the results in the order given."""
        batches = self._scored_together(pairs, tokens)
        answers = self._each(lambda rows: work([pairs[i] for i in rows]), batches)
        scores: dict[int, B] = {}
        for rows, batch in zip(batches, answers, strict=True):
            scores.update(zip(rows, batch, strict=True))
        return [scores[i] for i in range(len(pairs))]

    def _scored_together(
        self, pairs: Sequence[tuple[TokenIds, TokenIds]], tokens: int
    ) -> list[list[int]]:
        """Return batches of pairs by index, like lengths together, so that little is padding."""
        lengths = [len(p) + len(c) for p, c in pairs]
        batches: list[list[int]] = []
        for i in sorted(range(len(pairs)), key=lengths.__getitem__):
            room = min(self._rows, max(1, tokens // lengths[i]))
            if not batches or len(batches[-1]) >= room:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _each(self, work: Callable[[A], B], batches: Sequence[A]) -> list[B]:
        """Do the work for every batch, several at once, and return the results in order."""
        workers = min(self._threads, len(batches))
        rope = getattr(self._held().config.get_text_config(), "rope_parameters", None) or {}
        if self._device.type != "cpu" or rope.get("rope_type") in _STATEFUL_ROPE:
            workers = 1

        def inside(batch: A) -> B:
            with self._within():
                return work(batch)

        # One core a batch, also when there is one batch: the order of sums may not depend on threads.
        with _one_core_each():
            if workers <= 1:
                return [inside(batch) for batch in batches]
            with ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                return list(pool.map(inside, batches))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _one_core_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _takes_tensors(model: Any, folder: Path) -> bool:
    """Tell whether a model can be overwritten with a folder's tensors: the same architecture, not quantised."""
    if precision_of(folder) == "nf4":
        return False

    def essence(config: Any) -> dict[str, Any]:
        said: dict[str, Any] = config.to_diff_dict()
        beside = ("_name_or_path", "dtype", "transformers_version", "use_cache")
        return {key: value for key, value in said.items() if key not in beside}

    return essence(model.config) == essence(
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    )


def _built(folder: Path, device: torch.device) -> Any:
    """Build a model from a folder; every tensor must come from the files.

    Raises:
        StoreProblem: names the tensors that are missing, unknown or of another shape.
    """
    model, misfits = read_model(folder)
    if misfits:
        raise StoreProblem(f"{folder}: its tensors do not fit: {'; '.join(misfits)}")
    model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
    return (
        model if precision_of(folder) == "nf4" else model.to(device)
    )  # quantised, it is there already


def _overwrite(model: Any, folder: Path) -> None:
    """Copy the tensors of a folder into a model of the same architecture.

    Raises:
        StoreProblem: the names or shapes differ.
    """
    stored = {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }
    held = model.state_dict()
    filled = {held[name].data_ptr() for name in stored if name in held}
    missing = [name for name, tensor in held.items() if tensor.data_ptr() not in filled]
    unknown = [name for name in stored if name not in held]
    if missing or unknown:
        raise StoreProblem(f"{folder}: tensors missing: {missing}, unknown: {unknown}")
    for name, tensor in stored.items():
        if (tensor.shape, tensor.dtype) != (held[name].shape, held[name].dtype):
            raise StoreProblem(f"{folder}: tensor {name} is {tensor.dtype}{list(tensor.shape)}")
        held[name].copy_(tensor)
