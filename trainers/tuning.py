"""One training job on TRL, top to bottom: load, train under guard, save, prove, publish."""

from __future__ import annotations

import copy
import gc
import math
import shutil
from collections.abc import Sequence
from typing import Any

import psutil
import torch
import transformers
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback

from ..errors import BadInput
from . import checkpoints
from .estimate import Estimate, first_that_fits, shape_of, ways
from .guarded import Guarded
from .processes import first, world
from .rows import training_order
from .trainer import Emit, FitResult, Job, Status, Trainer
from .watch import Stopped, Watch
from .weights import (
    Weights,
    base_folder,
    open_weights,
    publish_judge,
    publish_weights,
    start_way,
    weights_size,
)

_TRLS_REFERENCE = "ref"
"""Adapter that TRL's DPOTrainer adds as a copy, though the reference is in the rows."""
_TRIES = 2
"""How often a job whose numbers were none is tried again."""
RECOMPUTE = (
    "activation_checkpointing"
    if "activation_checkpointing" in transformers.TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)
"""transformers 5.23 renames the field; TRL turns it on."""
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
    each = trainer.batch_size // world()  # without a rest, or they would not have been launched
    asked = micro = _fitting(min(trainer.micro_batch, each), each)
    while micro:
        try:
            fitted = _steadily(_Attempt(trainer, job, method, emit), examples, micro, kinds)
        except (MemoryError, RuntimeError) as error:
            # Of several processes one alone cannot change its share.
            if not _is_out_of_memory(error) or world() > 1:
                raise
        else:
            checkpoints.clear(job)
            note = f"memory ran out at micro_batch {asked}, {micro} fitted" if micro < asked else ""
            return fitted.model_copy(update={"message": fitted.message or note})
        gc.collect()  # outside of the handler, whose traceback holds the model
        torch.cuda.empty_cache()
        micro = _fitting(micro // 2, each)
        if micro:
            emit({"event": "micro_batch", "micro_batch": micro})
    checkpoints.clear(job)
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
        way = self._way(examples)
        weights = open_weights(self.job, self.trainer, way.way)
        if weights.opened != self.job.start_revision:
            holds = f"{self.job.start_folder.name} holds {weights.opened}"
            message = f"{holds}, not {self.job.start_revision}"
            return FitResult(status="start_mismatch", message=message)
        if name := _nonfinite_tensor(weights.model):
            return self._failed("nonfinite", f"{name} was not finite before training")
        start = weights.id
        steps = self.trainer.plan(len(examples))
        each = self.trainer.per_row
        rows = self.trainer.batch_size // each
        order = training_order(len(examples), steps, rows, self.job.seed, kinds)
        order = [row for row in order for _ in range(each)]
        told = settings(self.trainer, self.job.seed, self.method, micro, steps)
        told |= {RECOMPUTE: way.recompute, "bf16": weights.precision != "float32"}
        try:
            self._train(weights, Dataset.from_list(list(examples)).select(order), told)
        except Stopped as stop:
            return self._failed(stop.status, str(stop))
        if name := _nonfinite_tensor(weights.model):
            return self._failed("nonfinite", f"{name} is not finite after training")
        if weights.id == start:
            return self._failed("no_change", f"{self.steps} steps changed no weight")
        return self._publish(weights, way, len(examples))

    def _publish(self, weights: Weights, way: Estimate, rows: int) -> FitResult:
        """Publish what was trained, if this is the process that does."""
        trained = FitResult(
            status="trained",
            message=_skipped(self.watch.spikes),
            revision=weights.id,
            steps=self.steps,
            rows=rows,
            metrics=self.metrics,
        )
        if not first():
            return trained
        weights.save(self.job)
        # Given up before what the disk holds is read again: two models at once may be more than fit.
        revision, base = weights.id, weights.base
        weights.give_up()
        gc.collect()
        facts = self.job.facts(self.trainer, rows=rows, steps=self.steps)
        facts |= {"weights": way.way, "recompute": way.recompute}
        judge = self.trainer.makes == "judge"
        told = (
            publish_judge(self.job, revision, facts)
            if judge
            else publish_weights(self.job, revision, base, facts)
        )
        if told is None:
            return self._failed("failed", "the saved weights are not those that were trained")
        return trained

    def _way(self, examples: Sequence[dict[str, Any]]) -> Estimate:
        """Choose how to train by what fits into the memory that is free.

        Raises:
            BadInput: training begins from an adapter, and all weights are to be trained.
        """
        begins = start_way(self.job)
        shape = shape_of(base_folder(self.job))
        longest = max(self.trainer.row_tokens(row) for row in examples)
        held = sum(weights_size(self.job, name) for name in self.job.held)
        found = first_that_fits(ways(self.trainer, shape, longest, begins), _free_memory() - held)
        if found is None:
            begun = "an adapter" if begins != "full" else f"a student in {shape.precision}"
            hint = "`weights: auto` trains an adapter, and continues it"
            raise BadInput.at(
                "weights", f"{self.trainer.weights}: training begins from {begun}", hint
            )
        self.emit({"event": "way", "weights": found.way, "recompute": found.recompute})
        return found

    def _train(self, weights: Weights, rows: Dataset, told: dict[str, Any]) -> None:
        bare = weights.bare
        config = copy.deepcopy(bare.config)
        generation = copy.deepcopy(getattr(bare, "generation_config", None))
        trained = {n: p.data for n, p in weights.model.named_parameters() if p.requires_grad}
        with checkpoints.folder(self.job, self.trainer.save_every) as scratch:
            driver = self.method(
                model=weights.model,
                args=self.method.config(**told, output_dir=str(scratch)),
                train_dataset=rows,
                processing_class=AutoTokenizer.from_pretrained(self.job.start_folder),
            )
            # TRL rounds the adapter of a base in four bits: small steps would be lost, and what was learnt before.
            for name, values in trained.items():
                weights.model.get_parameter(name).data = values
            driver.remove_callback(PrinterCallback)
            driver.trainer, driver.job = self.trainer, self.job
            driver.watch = self.watch
            driver.report = self._report(told["max_steps"])
            last = checkpoints.newest(scratch)
            for step, values in checkpoints.history(last):
                self.watch.past(step, values)
                self._keep(step, values)
            if last:
                driver.take_up(last)
            driver.add_callback(checkpoints.Marker(driver.keep))
            self.emit({"event": "begin", "steps": told["max_steps"], "from": self.steps})
            try:
                driver.train(resume_from_checkpoint=str(last) if last else None)
            finally:
                driver.leave()
        # TRL writes its pad token into both, and binds `forward` to its own head.
        bare.config = config
        if generation is not None:
            bare.generation_config = generation
        bare.__dict__.pop("forward", None)
        if weights.base and _TRLS_REFERENCE in weights.model.peft_config:
            weights.model.delete_adapter(_TRLS_REFERENCE)

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
        "bf16": False,
        RECOMPUTE: trainer.recompute is True,
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


def _free_memory() -> int:
    """Return the bytes that a job may take: of the card, where there is one, or of the share that it was given."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        share = int(total * torch.cuda.get_per_process_memory_fraction())
        return min(int(free), share - torch.cuda.memory_reserved())
    return int(psutil.virtual_memory().available) // world()


def _nonfinite_tensor(model: torch.nn.Module) -> str | None:
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
