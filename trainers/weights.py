"""The weights of a job: opened from its start, as a whole or with an adapter, and written as a revision."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from trl.trainer.utils import add_fused_lm_head

from ..errors import StoreProblem
from ..policies import adapter
from ..policies.precision import Precision, precision_of, steady
from ..policies.revision import canary_sequences, fingerprint_model, publish, record_canary
from .estimate import Way
from .trainer import Job, Trainer

_CARRIED: tuple[str, ...] = (
    *("tokenizer*", "chat_template*", "special_tokens_map*", "added_tokens*", "vocab*"),
    *("merges.txt", "*.model", "LICENSE*", "NOTICE*"),
)
"""Files of the start folder that the new revision takes over byte for byte."""


@dataclass(slots=True)
class Weights:
    """A model that a job trains, and what it changes."""

    model: Any
    """A model of transformers, or peft's wrapper around one."""
    opened: str
    """What was opened, before an adapter was put on it; the job's start revision, if all is right."""
    base: str | None
    """The revision that an adapter changes; None where all weights are trained."""
    precision: Precision = "float32"
    """Of the revision that comes of it. All weights are trained in fp32, and rounded when training has ended."""

    @property
    def bare(self) -> PreTrainedModel:
        """The model of transformers, inside whatever is around it."""
        found: PreTrainedModel = self.model.get_base_model() if self.base else self.model
        return found

    @property
    def id(self) -> str:
        """The revision that the weights are now."""
        if self.base:
            return adapter.fingerprint_adapted(self.model)
        return fingerprint_model(self.model, getattr(torch, self.precision))

    def give_up(self) -> None:
        """Let the memory of the model go."""
        self.model = None

    def save(self, job: Job) -> None:
        """Write what was trained into the job's staging folder."""
        staging = job.staging
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        if self.base:
            adapter.save(self.model, staging, self.base)
        else:
            self.model.to(getattr(torch, self.precision)).save_pretrained(staging)
        for pattern in _CARRIED:
            for file in job.start_folder.glob(pattern):
                shutil.copy2(file, staging / file.name)


def start_way(job: Job) -> Way:
    """Return what a job begins from."""
    return "lora" if adapter.base_of(job.start_folder) else "full"


def base_folder(job: Job) -> Path:
    """Return the folder with the whole weights that a job begins from."""
    base = adapter.base_of(job.start_folder)
    return job.revisions_root / base if base else job.start_folder


def open_held(job: Job, name: str) -> PreTrainedModel:
    """Load a model that a job holds and never changes.

    Raises:
        StoreProblem: its folder holds other weights than are named.
    """
    held = job.held[name]
    base = adapter.base_of(held.folder)
    model: Any = _load(held.folder.parent / base if base else held.folder)
    if base:
        model = adapter.attach(model, held.folder)
    if (found := _identity(model, base)) != held.revision:
        raise StoreProblem(f"{held.folder} holds {found}, and {name} is {held.revision}")
    bare: PreTrainedModel = model.get_base_model() if base else model
    add_fused_lm_head(bare)
    bare.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
    return bare


def weights_size(job: Job, name: str) -> int:
    """Return the bytes of a model that a job holds beside what it trains."""
    folder = job.held[name].folder
    base = adapter.base_of(folder)
    folders = [folder, *([folder.parent / base] if base else [])]
    return sum(file.stat().st_size for place in folders for file in place.glob("*.safetensors"))


def open_weights(job: Job, trainer: Trainer, way: Way) -> Weights:
    """Load a job's start, and put on it what is to be trained and is not there: an adapter, or a judge's head.

    One adapter is continued through a run: it is never put on another one.
    """
    if trainer.makes == "judge":
        return _with_head(job)
    base, whole = adapter.base_of(job.start_folder), base_folder(job)
    model, precision = _load(whole), precision_of(whole)
    if base is not None:
        model = adapter.attach(model, job.start_folder, trainable=True)
        return Weights(model, adapter.fingerprint_adapted(model), base, precision)
    opened = fingerprint_model(model)
    if way == "full":
        return Weights(model.float(), opened, None, precision)
    import peft

    torch.manual_seed(job.seed)  # half of an adapter begins at random
    settings = peft.LoraConfig(
        r=trainer.rank,
        lora_alpha=2 * trainer.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return Weights(peft.get_peft_model(model, settings), opened, opened, precision)


def _with_head(job: Job) -> Weights:
    """Load a job's start as a reward model whose head is new."""
    opened = fingerprint_model(_load(job.start_folder))
    torch.manual_seed(job.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        job.start_folder, num_labels=1, dtype=torch.float32
    )
    return Weights(model, opened, None)


def publish_judge(job: Job, trained: str, facts: dict[str, Any]) -> str | None:
    """Publish a reward model that the disk holds as it was trained.

    Returns:
        Its revision; None where the disk holds other weights than were trained.
    """
    model = AutoModelForSequenceClassification.from_pretrained(job.staging, dtype=torch.float32)
    if fingerprint_model(model) != trained:
        return None
    start = job.start_revision
    return publish(
        *(job.staging, job.revisions_root),
        revision=trained,
        parent=start,
        canary=None,
        facts=facts | {"makes": "judge"},
    ).id


def publish_weights(job: Job, trained: str, base: str | None, facts: dict[str, Any]) -> str | None:
    """Publish what the disk holds, not what memory held: the canary is of the reloaded weights.

    Returns:
        The revision; None where the disk holds other weights than were trained.
    """
    staging = job.staging
    model = adapter.attach(_load(_folder_of(job, base)), staging) if base else _load(staging)
    if _identity(model, base) != trained:
        return None
    tokenizer = AutoTokenizer.from_pretrained(staging)
    return publish(
        staging,
        job.revisions_root,
        revision=trained,
        parent=job.start_revision,
        canary=record_canary(model, canary_sequences(tokenizer)),
        facts=facts | ({"base": base} if base else {}),
    ).id


def _folder_of(job: Job, base: str) -> Path:
    return job.start_folder if base == job.start_revision else job.revisions_root / base


def _identity(model: Any, base: str | None) -> str:
    return adapter.fingerprint_adapted(model) if base else fingerprint_model(model)


def _load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    steady(model)
    return model
