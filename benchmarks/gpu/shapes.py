"""What the scripts of this folder share: how they are asked, random models of given shapes, and where figures go.

A model is as large as its shape says and knows nothing: its weights are random, made on the device, and its
tokenizer knows letters, and beside them a word for every other token that no text holds. Prompts are random token ids
of the whole vocabulary. Every script wants a card; `--shape tiny --device cpu` only shows that all parts fit together, and
says `"dry_run": true`: no goal is told as met or missed then.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from redistill.errors import EnvironmentProblem
from redistill.policies.placement import VISIBLE

if TYPE_CHECKING:
    from redistill.policies.precision import Precision
    from redistill.policies.revision import Revision

Row = dict[str, Any]
SPECIAL = 4
"""Token ids below it are control tokens of the tiny tokenizer."""
SHAPES: Mapping[str, tuple[str, Row]] = {
    "7b": (
        "llama",
        {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "0.5b": (
        "qwen2",
        {
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
    "tiny": (
        "llama",
        {
            "vocab_size": 512,
            "hidden_size": 128,  # no head is too small for vLLM on a processor
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
    ),
}
"""Architecture and sizes: Llama 2 of 7B, Qwen2.5 of 0.5B, and what a processor does in a moment."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How a script is run."""

    shape: str
    device: Literal["cuda", "cpu"]
    folder: Path
    """Scratch; is taken away in the end."""

    @property
    def dry(self) -> bool:
        """Whether this shows the plumbing and measures nothing."""
        return self.device == "cpu" or self.shape == "tiny"


def script(
    name: str,
    says: str | None,
    measure: Callable[[Asked], Row],
    shape: str,
    shapes: Sequence[str] = ("0.5b", "tiny"),
) -> None:
    """Run a script: take its options, look for a card, measure, print, and keep the figures where that is asked.

    Args:
        name: the figures' place in the file of results.
        says: the script's help.
        measure: returns the figures.
        shape: the usual one.
        shapes: those that may be asked for.
    """
    parser = argparse.ArgumentParser(description=says)
    parser.add_argument("--shape", choices=shapes, default=shape)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file that the figures are put into")
    told = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="redistill-gpu-"))
    asked = Asked(told.shape, told.device, folder)
    try:
        _show_one(told.device)
        measured = measure(asked)
        # Named in the end: what memory measures begins with a card that this process has not touched.
        head = {"device": _named(told.device), "dry_run": asked.dry, "shape": told.shape}
        found = head | measured
    except EnvironmentProblem as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        raise SystemExit(problem.exit_code) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found, indent=2))
    if told.out is not None:
        _keep(told.out, name, found)


def goal(
    asked: Asked, value: float, *, least: float | None = None, most: float | None = None
) -> Row:
    """Return a figure beside its goal, and whether it is met, which a dry run does not tell."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no measurement")
    told: Row = {"value": round(value, 4), "goal_least": least, "goal_most": most}
    met = (least is None or value >= least) and (most is None or value <= most)
    return told if asked.dry else told | {"met": met}


def _show_one(asked: str) -> None:
    """Show this process and its children one card, or none.

    Raises:
        EnvironmentProblem: a card is asked for, and there is none that torch can use.
    """
    # Before torch looks. With several cards transformers would share each step, and a round would hand nothing over.
    first = os.environ.get(VISIBLE, "0").split(",")[0]
    os.environ |= {VISIBLE: "" if asked == "cpu" else first, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if asked == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentProblem(
            "no CUDA card that torch can use; on one, run it again; --shape tiny --device cpu shows the plumbing"
        )


def _named(asked: str) -> str:
    if asked == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name())


def _keep(file: Path, name: str, found: Row) -> None:
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known | {name: found}, indent=2) + "\n", "utf-8")


# -- models and rows


def random_revision(
    asked: Asked, precision: Precision, *, seed: int = 0, length: int = 0
) -> Revision:
    """Publish a random model of the shape as a revision, and return it; no memory of the device stays taken.

    Args:
        asked: shape and device.
        precision: of its folder.
        seed: of the weights.
        length: of an answer at the middle, in tokens: so many tokens are end tokens; 0 for one alone.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from redistill.policies.revision import (
        canary_sequences,
        fingerprint_model,
        publish,
        record_canary,
    )

    root = asked.folder / "revisions"
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=root))
    kind, sizes = SHAPES[asked.shape]
    _write_tokenizer(staging, sizes["vocab_size"])
    ends = [2, *range(SPECIAL, sizes["vocab_size"], length)] if length else 2
    config = AutoConfig.for_model(kind, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=ends)
    torch.manual_seed(seed)
    with torch.device(asked.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision))
    model.save_pretrained(staging)
    revision = publish(
        staging,
        root,
        revision=fingerprint_model(model),
        parent=None,
        canary=record_canary(model, canary_sequences(AutoTokenizer.from_pretrained(staging))),
        facts={"seed": seed},
    )
    del model
    make_room(asked)
    return revision


def _write_tokenizer(folder: Path, size: int) -> None:
    """Write the tiny model's tokenizer, with as many words more as the model knows tokens; no text holds them."""
    from redistill.testing.tiny import make_tiny_model

    with tempfile.TemporaryDirectory() as aside:
        for file in make_tiny_model(Path(aside), hidden=4).iterdir():
            if file.name.startswith(("tokenizer", "chat_template")):
                shutil.copy2(file, folder / file.name)
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text("utf-8"))
    words = told["model"]["vocab"]
    words |= {f"<{n}>": n for n in range(len(words), size)}
    file.write_text(json.dumps(told), "utf-8")


def random_ids(shape: str, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Return rows of random token ids, none of them a control token."""
    draw, most = random.Random(seed), int(SHAPES[shape][1]["vocab_size"])
    return [[draw.randrange(SPECIAL, most) for _ in range(length)] for _ in range(count)]


@contextmanager
def endless() -> Iterator[None]:
    """Let no token end an answer of ours, so that all answers are as long as they may be."""
    from redistill.policies.wording import Wording

    usual = Wording.stop_ids
    Wording.stop_ids = frozenset()  # type: ignore[assignment]
    try:
        yield
    finally:
        Wording.stop_ids = usual  # type: ignore[method-assign]


NO_TOKEN = 2**31 - 1
"""Told to `generate` as its end token, for the same."""


# -- time


def make_room(asked: Asked) -> None:
    """Give back what nothing holds any more."""
    import gc

    import torch

    gc.collect()
    if asked.device == "cuda":
        torch.cuda.empty_cache()


def now(asked: Asked) -> float:
    """Return the time when the device has done all that it was told to do."""
    import torch

    if asked.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
