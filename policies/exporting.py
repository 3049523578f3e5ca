"""Weights to take away: a revision as a folder that others load, written and then asked whether it is the same.

A whole model goes as it is, an adapter alone or merged into its base. Nothing is believed because it was
written: the folder is loaded anew, and must answer the canary as the revision does.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import BadInput, StoreProblem
from ..types import TokenIds
from . import adapter
from .model_folder import read_model
from .precision import LEAST_NOISE, NOISE, Precision, precision_of
from .revision import (
    MANIFEST,
    Canary,
    Revision,
    canary_sequences,
    check_finite_files,
    fingerprint_model,
    record_canary,
)

Written = Literal["hf", "lora", "merged"]
"""What is written here; the converter of llama.cpp makes the other one."""
Form = Literal["hf", "lora", "merged", "gguf"]
_OF_ADAPTER = (adapter.CONFIG, "adapter_model.safetensors")
_OF_LICENCE = ("LICENSE*", "NOTICE*")
_MERGED: dict[Precision, Precision] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    # Four bits hold no sum of a weight and a change: what they stand for is written out, and added to.
    "nf4": "bfloat16",
}

MERGED_BOUND: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.05, "nf4": 0.05}
"""Nats a token, in the mean and in fp32, by which a merged model may differ: each sum is rounded to the weights' precision."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What was written, and how near it is to the revision."""

    form: Form
    precision: Precision
    """In which the weights were written; of an adapter, that of its base."""
    exact: bool
    """Whether every tensor is the revision's, byte for byte."""
    tokens: int
    """Canary tokens on which log-probs were compared."""
    distance: float
    """Mean absolute difference of their log-probs, nats a token."""
    furthest: float
    """The largest difference."""
    bound: float
    """What `distance` may be; 0 where the tensors are the same."""

    @property
    def line(self) -> str:
        """The check in a sentence."""
        told = f"log-probs of {self.tokens} tokens differ by {self.distance:.2g} nats in the mean"
        told += f" and {self.furthest:.2g} at most (bound {self.bound:.2g} in the mean)"
        return (
            f"reloaded: every tensor is the revision's; {told}"
            if self.exact
            else f"reloaded: {told}"
        )


def refuse(revision: Revision, form: Written) -> None:
    """Refuse a form that a revision cannot have.

    Raises:
        BadInput: with the form that fits.
    """
    whole = revision.base is None
    if whole and not (revision.folder / "config.json").is_file():
        what = f"revision {revision.id[:8]} is no model of transformers"
        raise BadInput.at("--format", what, "its own policy has to write it")
    if whole and form != "hf":
        what = f"revision {revision.id[:8]} is a whole model, and no adapter to be {_DONE[form]}"
        raise BadInput.at("--format", what, "use --format hf")
    if not whole and form == "hf":
        what = f"revision {revision.id[:8]} is an adapter on {str(revision.base)[:8]}"
        raise BadInput.at(
            "--format", what, "use --format merged for a whole model, or --format lora"
        )


_DONE: dict[Written, str] = {"lora": "written alone", "merged": "merged"}


def size_of(revision: Revision, form: Written) -> int:
    """Return about how many bytes a form takes."""
    folder = revision.folder
    if form == "merged":
        folder = _base(revision).folder
    size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
    return 4 * size if form == "merged" and precision_of(folder) == "nf4" else size


def take(revision: Revision, form: Written, out: Path, base_name: str) -> Taken:
    """Write a revision into a folder that exists and is empty, load it anew, and compare.

    Args:
        revision: what is taken away; `refuse` has let it pass.
        form: how.
        out: the folder.
        base_name: how an adapter shall name its base: `name`, or `name@commit` of the hub.

    Raises:
        StoreProblem: the revision is damaged, or what was written does not answer as it does.
    """
    revision.verify_files()
    if revision.base is not None:
        _base(revision).verify_files()
    if form == "hf":
        _copy(revision.folder, out, lambda name: name != MANIFEST)
        return _same(revision, out)
    if form == "lora":
        _copy(revision.folder, out, lambda name: name != MANIFEST)
        _name_base(out / adapter.CONFIG, base_name)
        return _same_adapter(revision, out)
    return _merge(revision, out)


def _base(revision: Revision) -> Revision:
    return Revision.read(revision.folder.parent / str(revision.base))


def _copy(source: Path, out: Path, wanted: Callable[[str], bool]) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and wanted(file.name) and file.name != "README.md":
            shutil.copyfile(file, out / file.name)


def _name_base(file: Path, name: str) -> None:
    """Let an adapter name a base that is found elsewhere; of the hub, with the commit."""
    base, _, commit = name.partition("@")
    told = json.loads(file.read_bytes())
    told |= {"base_model_name_or_path": base, "revision": commit or None}
    file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", "utf-8")


# -- whole models and adapters, as they are


def _same(revision: Revision, out: Path) -> Taken:
    told = _told(revision)
    model = opened(out)
    if (found := fingerprint_model(model)) != revision.id:
        raise StoreProblem(f"what was written is {found}, and not revision {revision.id}")
    return compared(told, record_canary(model, told.sequences), "hf", precision_of(out), 0.0)


def _same_adapter(revision: Revision, out: Path) -> Taken:
    told, base = _told(revision), _base(revision)
    adapted = adapter.attach(opened(base.folder), out)
    if (found := adapter.fingerprint_adapted(adapted)) != revision.id:
        raise StoreProblem(f"what was written is {found} on its base, and not {revision.id}")
    spoken = record_canary(adapted.get_base_model(), told.sequences)
    return compared(told, spoken, "lora", precision_of(base.folder), 0.0)


# -- merging


def _merge(revision: Revision, out: Path) -> Taken:
    """Merge an adapter into its base, and refuse what the rounding has made of it."""
    base, told = _base(revision), _told(revision)
    held = precision_of(base.folder)
    before, summed = _summed(revision, base, told.sequences)
    _write_merged(revision, base, out)
    check_finite_files(out)
    found = record_canary(opened(out, "float32"), told.sequences)
    taken = compared(summed, found, "merged", _MERGED[held], MERGED_BOUND[held])
    change = before.distance(summed)
    # Rounding may be as large as the change itself: then the merged model is the base again.
    if change > LEAST_NOISE["float32"] and taken.distance > change / 3:
        raise StoreProblem(
            f"merging in {taken.precision} loses the adapter: it moves the base by {change:.2g} nats a token, and "
            f"the merged model is {taken.distance:.2g} away from it; use --format lora"
        )
    if held != "float32":
        # In low precision a model's own noise is larger than all of this; it must not be larger than that.
        compared(told, record_canary(opened(out), told.sequences), "merged", held, NOISE[held])
    return taken


def _summed(
    revision: Revision, base: Revision, sequences: Sequence[TokenIds]
) -> tuple[Canary, Canary]:
    """Return what the base and what it with the adapter answer, both in fp32, where a sum is what it should be."""
    model = _unquantised(base).float()
    before = record_canary(model, sequences)
    adapted = adapter.attach(model, revision.folder)
    summed = record_canary(adapted.get_base_model(), sequences)
    del model, adapted
    gc.collect()
    return before, summed


def _unquantised(base: Revision) -> Any:
    model = opened(base.folder)
    if precision_of(base.folder) == "nf4":
        model = model.dequantize()
        # How the four bits were read from files is not how these weights are written; nothing has changed that.
        model._weight_conversions = None
    return model


def _write_merged(revision: Revision, base: Revision, out: Path) -> None:
    model = _unquantised(base)
    adapted = adapter.attach(model, revision.folder)
    merged = adapted.merge_and_unload(safe_merge=True)
    merged.save_pretrained(out)
    # The tokenizer is the adapter's own, which training has carried; licences lie with the base.
    _copy(revision.folder, out, lambda name: name not in (MANIFEST, *_OF_ADAPTER))
    for pattern in _OF_LICENCE:
        for file in base.folder.glob(pattern):
            shutil.copyfile(file, out / file.name)
    del model, adapted, merged
    gc.collect()


# -- asking


def opened(folder: Path, precision: Precision | None = None) -> Any:
    """Return the model of a folder, ready to be asked; in the folder's own precision where none is given.

    Raises:
        StoreProblem: its tensors do not fit its architecture.
    """
    model, misfits = read_model(folder, precision=precision)
    if misfits:
        raise StoreProblem(f"{folder}: its tensors do not fit: {'; '.join(misfits)}")
    return model.eval()


def _told(revision: Revision) -> Canary:
    """Return what a revision answers on this machine; it must be what it answered where it was made."""
    whole = _base(revision) if revision.base else revision
    model = opened(whole.folder)
    if revision.base is not None:
        model = adapter.attach(model, revision.folder).get_base_model()
    spoken = record_canary(model, sequences_of(revision))
    del model
    gc.collect()
    if revision.canary is not None:
        distance = spoken.distance(revision.canary)
        bound = 10 * LEAST_NOISE[precision_of(whole.folder)]
        if not distance <= bound:
            raise StoreProblem(
                f"revision {revision.id[:8]} does not answer here as it did where it was made: "
                f"{distance:.2g} nats a token apart, {bound:.2g} are allowed"
            )
    return spoken


def sequences_of(revision: Revision) -> Sequence[TokenIds]:
    """Return the canary sequences of a revision, recorded or made by its tokenizer."""
    if revision.canary is not None:
        return revision.canary.sequences
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
        revision.folder, local_files_only=True, trust_remote_code=False
    )
    return canary_sequences(tokenizer)


def compared(told: Canary, found: Canary, form: Form, precision: Precision, bound: float) -> Taken:
    """Compare what was written with the revision.

    Raises:
        StoreProblem: they differ by more than the bound.
    """
    here, there = (np.concatenate([np.array(x) for x in c.logprobs]) for c in (told, found))
    apart = np.abs(here - there)
    taken = Taken(
        form=form,
        precision=precision,
        exact=bound == 0.0,
        tokens=int(apart.size),
        distance=float(apart.mean()),
        furthest=float(apart.max()),
        bound=bound,
    )
    if not taken.distance <= bound:  # also true of NaN
        raise StoreProblem(
            f"what was written answers otherwise than the revision: {taken.distance:.2g} nats a token in the "
            f"mean, {taken.furthest:.2g} at most; {bound:.2g} are allowed; nothing was published"
        )
    return taken
