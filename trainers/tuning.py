"""One training job on TRL, top to bottom: load, train under guard, save, prove, publish."""

from __future__ import annotations

import copy
import gc
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PrinterCallback

from ..errors import BadInput
from ..policies.revision import canary_sequences, fingerprint_model, publish, record_canary
from . import checkpoints
from .guarded import Guarded
from .processes import first, world
from .rows import training_order
from .trainer import Emit, FitResult, Job, Status, Trainer
from .watch import Stopped, Watch

_CARRIED: tuple[str, ...] = (
    *("tokenizer*", "chat_template*", "special_tokens_map*", "added_tokens*", "vocab*"),
    *("merges.txt", "*.model", "LICENSE*", "NOTICE*"),
)
"""Files of the start folder that the new revision takes over byte for byte."""

_TRIES = 2
"""How often a job whose numbers were none is tried again."""
_FLOOR = 0.1
"""Share of the peak rate that the schedule falls to."""


def tune(
    trainer: Trainer,
    job: Job,
    method: type[Guarded],
    examples: Sequence[dict[str, Any]],
    emit: Emit,
    kinds: Sequence[object] = (),
) -> FitResult:
    """Train on the examples, with smaller micro-batches whenever memory runs out.

    Halving the micro-batch doubles the accumulation, so the sums of an optimiser step stay the same.

    Args:
        trainer: settings.
        job: where the weights come from and go to.
        method: the guarded TRL trainer.
        examples: rows as `method` takes them.
        emit: takes an event for each step.
        kinds: of each example, where every micro-batch wants some of each.
    """
    if not examples:
        return FitResult(status="no_rows", message="the training set is empty")
    if trainer.plan(len(examples)) == 0:
        return FitResult(status="no_steps", message=trainer.arithmetic(len(examples)))
    torch.set_num_threads(max(1, job.threads // world()))
    each, left = divmod(trainer.batch_size, world())
    if left:
        what = f"{world()} processes cannot share {trainer.batch_size} rows evenly"
        raise BadInput.at("batch_size", what)
    asked = micro = _fitting(min(trainer.micro_batch, each), each)
    while micro:
        try:
            fitted = _steadily(_Attempt(trainer, job, method, emit), examples, micro, kinds)
        except (MemoryError, RuntimeError) as error:
            # Of several processes one alone cannot change its share.
            if not _is_out_of_memory(error) or world() > 1:
                raise
        else:
            note = f"memory ran out at micro_batch {asked}, {micro} fitted" if micro < asked else ""
            return fitted.model_copy(update={"message": fitted.message or note})
        gc.collect()  # outside of the handler, whose traceback holds the model
        torch.cuda.empty_cache()
        micro = _fitting(micro // 2, each)
        if micro:
            emit({"event": "micro_batch", "micro_batch": micro})
    return FitResult(status="out_of_memory", message="memory ran out even at micro_batch 1")


def _fitting(most: int, rows: int) -> int:
    """Return the largest micro-batch up to `most` that divides the rows of a step; 0 for none."""
    return next((n for n in range(most, 0, -1) if rows % n == 0), 0)


def _steadily(
    attempt: _Attempt, examples: Sequence[dict[str, Any]], micro: int, kinds: Sequence[object]
) -> FitResult:
    """Train again where a number was none, up to twice, unless it is the same one again.

    Of public reports more than half do not repeat; one that does is in the rows or in the settings.
    """
    seen: list[str] = []
    while True:
        fitted = attempt.run(examples, micro, kinds)
        # Of several processes one alone cannot begin again.
        last = fitted.message in seen or len(seen) == _TRIES or world() > 1
        if fitted.status != "nonfinite" or last:
            return fitted
        seen.append(fitted.message)
        attempt.emit({"event": "again", "reason": fitted.message})
        attempt = attempt.anew()


class _Attempt:
    """One try at a job, with one micro-batch size."""

    def __init__(self, trainer: Trainer, job: Job, method: type[Guarded], emit: Emit) -> None:
        self.trainer, self.job, self.method, self.emit = trainer, job, method, emit
        # With another reference than the start, answers may have been rarer than under it from the first step on.
        from_start = job.reference_revision == job.start_revision
        self.watch = Watch(float(getattr(trainer, "floor", 0)) if from_start else 0.0)
        self.steps = 0
        self.metrics: list[dict[str, Any]] = []

    def anew(self) -> _Attempt:
        """Return another try at the same job."""
        return _Attempt(self.trainer, self.job, self.method, self.emit)

    def run(
        self, examples: Sequence[dict[str, Any]], micro: int, kinds: Sequence[object]
    ) -> FitResult:
        model = _load(self.job.start_folder)
        start = fingerprint_model(model)
        if start != self.job.start_revision:
            return FitResult(
                status="start_mismatch",
                message=f"{self.job.start_folder.name} holds {start}, not {self.job.start_revision}",
            )
        if name := _nonfinite_tensor(model):
            return self._failed("nonfinite", f"{name} was not finite before training")
        steps = self.trainer.plan(len(examples))
        order = training_order(len(examples), steps, self.trainer.batch_size, self.job.seed, kinds)
        try:
            self._train(model, Dataset.from_list(list(examples)).select(order), micro, steps)
        except Stopped as stop:
            return self._failed(stop.status, str(stop))
        if name := _nonfinite_tensor(model):
            return self._failed("nonfinite", f"{name} is not finite after training")
        trained = fingerprint_model(model)
        if trained == start:
            return self._failed("no_change", f"{self.steps} steps changed no weight")
        if not first():
            return FitResult(status="trained", revision=trained, steps=self.steps)
        self._save(model)
        del model
        return self._publish(trained, rows=len(examples))

    def _train(self, model: PreTrainedModel, rows: Dataset, micro: int, steps: int) -> None:
        config, generation = copy.deepcopy((model.config, model.generation_config))
        with checkpoints.folder(self.job, self.trainer.save_every) as scratch:
            driver = self.method(
                model=model,
                args=self.method.config(
                    **settings(self.trainer, self.job.seed, self.method, micro, steps),
                    output_dir=str(scratch),
                ),
                train_dataset=rows,
                processing_class=AutoTokenizer.from_pretrained(self.job.start_folder),
            )
            driver.remove_callback(PrinterCallback)
            driver.trainer = self.trainer
            driver.watch = self.watch
            driver.report = self._report(steps)
            last = checkpoints.newest(scratch)
            for step, values in checkpoints.history(last):
                self.watch.gradient(step, values["grad_norm"])
                self._keep(step, values)
            driver.add_callback(checkpoints.Marker())
            self.emit({"event": "begin", "steps": steps, "from": self.steps})
            driver.train(resume_from_checkpoint=str(last) if last else None)
        # TRL writes its pad token into both, and binds `forward` to its own head.
        model.config, model.generation_config = config, generation
        model.__dict__.pop("forward", None)

    def _report(self, steps: int) -> Any:
        def report(step: int, values: dict[str, float]) -> None:
            kept = self._keep(step, values)
            shown = {k: kept.get(k) for k in ("loss", "learning_rate", "grad_norm")}
            self.emit({"event": "step", "step": step, "steps": steps, **shown})

        return report

    def _keep(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Keep what was measured in a step."""
        self.steps = step
        finite = {k: float(v) for k, v in values.items() if math.isfinite(float(v))}
        self.metrics += [{"step": step, "name": k, "value": v} for k, v in finite.items()]
        return finite

    def _save(self, model: PreTrainedModel) -> None:
        staging = self.job.staging
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        model.save_pretrained(staging)
        for pattern in _CARRIED:
            for file in self.job.start_folder.glob(pattern):
                shutil.copy2(file, staging / file.name)

    def _publish(self, trained: str, rows: int) -> FitResult:
        """Publish what the disk holds, not what memory held: the canary is of the reloaded weights."""
        gc.collect()
        staging = self.job.staging
        model = _load(staging)
        if fingerprint_model(model) != trained:
            return self._failed("failed", "the saved weights are not those that were trained")
        tokenizer = AutoTokenizer.from_pretrained(staging)
        revision = publish(
            staging,
            self.job.revisions_root,
            revision=trained,
            parent=self.job.start_revision,
            canary=record_canary(model, canary_sequences(tokenizer)),
            facts=self.job.facts(self.trainer, rows=rows, steps=self.steps),
        )
        return FitResult(
            status="trained",
            message=_skipped(self.watch.spikes),
            revision=revision.id,
            steps=self.steps,
            rows=rows,
            metrics=self.metrics,
        )

    def _failed(self, status: Status, message: str) -> FitResult:
        shutil.rmtree(self.job.staging, ignore_errors=True)
        return FitResult(status=status, message=message, steps=self.steps, metrics=self.metrics)


def _skipped(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    named = ", ".join(map(str, steps))
    return f"not taken, because its gradient was far from all before it: step {named}"


def settings(
    trainer: Trainer, seed: int, method: type[Guarded], micro: int, steps: int
) -> dict[str, Any]:
    """Return the TRL config of one attempt, all but its folder."""
    on_gpu = torch.cuda.is_available()
    known = method.config.__dataclass_fields__
    # transformers 5.23 renames the field; TRL turns it on, which costs a third of a step.
    recompute = "activation_checkpointing"
    recompute = recompute if recompute in known else "gradient_checkpointing"
    return {
        "learning_rate": trainer.learning_rate,
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": trainer.batch_size // (micro * world()),
        "warmup_steps": min(trainer.warmup_steps, steps - 1),
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_decay_steps": steps - min(trainer.warmup_steps, steps - 1),
            "decay_type": "linear",
            "min_lr_ratio": _FLOOR,
        },
        "max_grad_norm": trainer.max_grad_norm,
        "weight_decay": trainer.weight_decay,
        "adam_beta1": trainer.adam_betas[0],
        "adam_beta2": trainer.adam_betas[1],
        "seed": seed,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "remove_unused_columns": False,
        "use_cpu": not on_gpu,
        "ddp_find_unused_parameters": False,
        "ddp_backend": None if on_gpu or world() == 1 else "gloo",
        "bf16": on_gpu and torch.cuda.is_bf16_supported(),
        recompute: trainer.recompute,
        "save_strategy": "steps" if trainer.save_every else "no",
        "save_steps": trainer.save_every or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        **method.settings(trainer),
        **trainer.options,
    }


def _load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def _nonfinite_tensor(model: PreTrainedModel) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity."""
    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell memory's end from other faults; torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
