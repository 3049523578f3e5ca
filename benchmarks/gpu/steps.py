"""What an optimiser step takes beside bare TRL: a random model of 0.5B in bfloat16, all weights trained.

Four kinds, ours and TRL's in turn in one process, on the same weights, rows, micro-batch and schedule, none of them with
activations computed again; the order is turned round in each repeat. Weights, gradients and moments are fp32 and the
arithmetic is bfloat16 (autocast) on both sides.

- `sft`: `SFTTrainer` on the same token ids and labels.
- `dpo`: `DPOTrainer` with the reference's log-probs in its rows, so that they cost TRL nothing.
- `grpo`: `GRPOTrainer`, 8 rollouts of a prompt, sampled by `generate` in the step, beta 0, loss `dapo`.
- `distill`: `DistillationTrainer`, TRL's stable on-policy distillation: full-vocabulary reverse KL on what the student
  samples in the step, the teacher in memory. (`GKDTrainer` samples by chance, and divides by another answer's length.)

No end token ends a rollout, so all are `max_tokens` long. A step is timed from end to end of the one before, the device
waited for; the median of at least five steps after the warm-up counts. Goal: ours <= 1.03 of TRL's.

    python benchmarks/gpu/steps.py [--shape 0.5b|tiny] [--device cuda|cpu] [--out FILE]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also where Python does not look beside a script

from shapes import (
    NO_TOKEN,
    Asked,
    Row,
    endless,
    goal,
    make_room,
    random_ids,
    random_revision,
    script,
)
from timed_jobs import Clock, run, worth

MOST = 1.03


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    asked: int
    """Tokens of a prompt."""
    said: int
    """Tokens of an answer."""
    batch: int
    micro: int
    group: int
    """Rollouts of a prompt."""
    warm: int
    timed: int
    repeats: int

    @property
    def steps(self) -> int:
        """Optimiser steps of one arm."""
        return self.warm + self.timed


SIZES = {
    "0.5b": Size(256, 256, 32, 8, 8, warm=3, timed=8, repeats=3),
    "tiny": Size(8, 6, 4, 2, 2, warm=1, timed=2, repeats=1),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What both sides of a kind are given."""

    asked: Asked
    size: Size
    start: Any
    """Revision of the student."""
    teacher: Any

    @property
    def folder(self) -> str:
        """Of the student's weights."""
        return str(self.start.folder)


def measure(asked: Asked) -> Row:
    """Measure all four kinds."""
    size = SIZES[asked.shape]
    start, teacher = (random_revision(asked, "bfloat16", seed=seed) for seed in (0, 1))
    scene = Scene(asked, size, start, teacher)
    found: Row = {"batch_size": size.batch, "micro_batch": size.micro}
    with endless():
        for name in KINDS:
            found[name] = compared(scene, name)
            print(f"{name}: {found[name]['ratio']['value']:.3f} of TRL's step", file=sys.stderr)
    return found


def compared(scene: Scene, name: str) -> Row:
    """Run ours and TRL's in turn, and return the seconds of a step and their ratio."""
    ours, theirs = KINDS[name]
    sides: dict[str, Callable[[], tuple[Clock, float]]] = {
        "ours": lambda: _ours(scene, *ours(scene)),
        "theirs": lambda: _theirs(scene, *theirs(scene)),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    tokens: dict[str, float] = {}
    for repeat in range(scene.size.repeats):
        for side in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            clock, tokens[side] = sides[side]()
            seconds[side].append(clock.median(scene.size.warm))
            make_room(scene.asked)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "step_s": seconds,
        "timed_steps": scene.size.timed,
        "answer_tokens": tokens,
        "ratio": goal(scene.asked, statistics.median(ratios), most=MOST),
    }


def _ours(scene: Scene, trainer: Any, rows: list[Row]) -> tuple[Clock, float]:
    """Run a job; return its clock, and how long answers were on average."""
    clock = Clock(scene.asked)
    held = {"teacher": scene.teacher} if trainer.asks == "teacher" else {}
    result, _ = run(scene.asked.folder, scene.start, trainer, rows, clock=clock, held=held)
    said = [m["value"] for m in result.metrics if m["name"] == "rollouts/tokens"]
    return clock, statistics.fmean(said or [scene.size.said])


def _theirs(
    scene: Scene, method: type[Any], rows: list[Row], more: Row, options: Row
) -> tuple[Clock, float]:
    """Run a trainer of TRL; return its clock, and how long answers were on average.

    Args:
        scene: size and start.
        method: the trainer's class, which names its config.
        rows: of its dataset, in order.
        more: fields of its config beside the common ones.
        options: of the trainer itself.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

    clock = Clock(scene.asked)

    class Ticking(TrainerCallback):
        """Ticks at each step's end."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
            clock.tick()

    told = _common(scene) | more | {"output_dir": str(scene.asked.folder / "theirs")}
    driver = method(
        model=loaded(scene.folder, torch.float32),
        args=method.config(**told),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(scene.folder),
        callbacks=[Ticking()],
        **options,
    )
    driver.remove_callback(PrinterCallback)
    driver.train()
    logged = (entry.get("completions/mean_length") for entry in driver.state.log_history)
    said = [length for length in logged if length is not None]
    return clock, statistics.fmean(said or [scene.size.said])


def loaded(folder: str, dtype: Any) -> Any:
    """Load a model for TRL."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def _fields(scene: Scene) -> Row:
    """Return the settings that every trainer of ours is given."""
    size = scene.size
    return {
        "batch_size": size.batch,
        "micro_batch": size.micro,
        "steps": size.steps,
        "learning_rate": 1e-6,
        "recompute": False,
        "save_every": 0,
    }


def _common(scene: Scene) -> Row:
    """Return the same settings as TRL names them."""
    from redistill.trainers.answers import AnswerSFT
    from redistill.trainers.supervised import SFT
    from redistill.trainers.tuning import settings

    told = settings(SFT(**_fields(scene)), 0, AnswerSFT, scene.size.micro, scene.size.steps)
    for name in ("max_length", "dataset_kwargs"):  # of SFT and DPO alone
        told.pop(name)
    return told | {"bf16": True}


# -- the rows of both sides


def _supervised(scene: Scene) -> tuple[Any, list[Row]]:
    from redistill.trainers.supervised import SFT

    size = scene.size
    count = size.batch * size.steps
    both = zip(
        random_ids(scene.asked.shape, count, size.asked),
        random_ids(scene.asked.shape, count, size.said, seed=1),
        strict=True,
    )
    rows = [
        {"id": str(n), "prompt_ids": p, "completion_ids": c, "weight": 1.0, "token_weights": None}
        for n, (p, c) in enumerate(both)
    ]
    return SFT(**_fields(scene)), rows


def _their_sft(scene: Scene) -> tuple[type[Any], list[Row], Row, Row]:
    from trl import SFTConfig, SFTTrainer

    class Theirs(SFTTrainer):
        """TRL's own."""

        config = SFTConfig

    rows = [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["completion_ids"],
        }
        for row in _supervised(scene)[1]
    ]
    more = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return Theirs, rows, more, {}


def _preferred(scene: Scene) -> tuple[Any, list[Row]]:
    from redistill.trainers.preference import DPO

    answers = random_ids(
        scene.asked.shape, scene.size.batch * scene.size.steps, scene.size.said, seed=2
    )
    rows = [
        {
            "id": row["id"],
            "prompt_ids": row["prompt_ids"],
            "chosen_ids": row["completion_ids"],
            "rejected_ids": other,
            "ref_chosen_logp": -10.0 * scene.size.said,
            "ref_rejected_logp": -10.0 * scene.size.said,
            "weight": 1.0,
            "margin": 0.0,
            "probability": None,
            "gold_ids": None,
        }
        for row, other in zip(_supervised(scene)[1], answers, strict=True)
    ]
    return DPO(**_fields(scene), beta=0.1), rows


def _their_dpo(scene: Scene) -> tuple[type[Any], list[Row], Row, Row]:
    from trl import DPOConfig, DPOTrainer

    class Theirs(DPOTrainer):
        """Takes token ids and log-probs as they are."""

        config = DPOConfig

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:  # noqa: ARG002
            return dataset

    rows = [
        {
            **{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")},
            "ref_chosen_logps": row["ref_chosen_logp"],
            "ref_rejected_logps": row["ref_rejected_logp"],
        }
        for row in _preferred(scene)[1]
    ]
    return Theirs, rows, {"max_length": None, "precompute_ref_log_probs": True, "beta": 0.1}, {}


def _prompts(scene: Scene, group: int) -> list[Row]:
    count = scene.size.batch * scene.size.steps // group
    ids = random_ids(scene.asked.shape, count, scene.size.asked)
    return [{"id": str(n), "prompt_ids": p, "weight": 1.0} for n, p in enumerate(ids)]


def _rewarded(scene: Scene) -> tuple[Any, list[Row]]:
    from redistill.trainers.reinforce import GRPO

    size = scene.size
    trainer = GRPO(**_fields(scene), k=size.group, max_tokens=size.said)
    return trainer, _prompts(scene, size.group)


def _their_grpo(scene: Scene) -> tuple[type[Any], list[Row], Row, Row]:
    from trl import GRPOConfig, GRPOTrainer

    known = {row["id"]: row["prompt_ids"] for row in _prompts(scene, scene.size.group)}

    class Theirs(GRPOTrainer):
        """Takes a prompt's token ids as they are."""

        config = GRPOConfig

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [known[name] for name in prompts], None, {}

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [worth(ids) for ids in completion_ids]

    more = _sampling(scene) | {"num_generations": scene.size.group, "beta": 0.0}
    rows = [{"prompt": name} for name in known]
    return Theirs, rows, more, {"reward_funcs": [reward]}


def _distilled(scene: Scene) -> tuple[Any, list[Row]]:
    from redistill.trainers.distill import Distill

    rows = [
        row | {"teacher": "teacher", "teacher_prompt_ids": None} for row in _prompts(scene, group=1)
    ]
    return Distill(**_fields(scene), beta=1.0, max_tokens=scene.size.said), rows


def _their_distillation(scene: Scene) -> tuple[type[Any], list[Row], Row, Row]:
    import torch
    from trl import DistillationConfig, DistillationTrainer

    known = {row["id"]: row["prompt_ids"] for row in _prompts(scene, group=1)}

    class Theirs(DistillationTrainer):
        """Takes a prompt's token ids as they are."""

        config = DistillationConfig

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [known[name] for name in prompts], None, {}

    rows = [{"prompt": name} for name in known]
    teacher = loaded(str(scene.teacher.folder), torch.bfloat16)
    return Theirs, rows, _sampling(scene) | {"beta": 1.0}, {"teacher_model": teacher}


def _sampling(scene: Scene) -> Row:
    """Return how TRL samples: as ours does, and without an end."""
    return {
        "max_completion_length": scene.size.said,
        "temperature": 1.0,
        "generation_kwargs": {"eos_token_id": NO_TOKEN},
    }


KINDS: dict[str, tuple[Callable[[Scene], Any], Callable[[Scene], Any]]] = {
    "sft": (_supervised, _their_sft),
    "dpo": (_preferred, _their_dpo),
    "grpo": (_rewarded, _their_grpo),
    "distill": (_distilled, _their_distillation),
}
"""Of each kind, our trainer with its rows, and TRL's with its rows, config and options."""

if __name__ == "__main__":
    script("steps", __doc__, measure, "0.5b")
