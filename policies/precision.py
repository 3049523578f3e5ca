"""The precision in which a model is held: as its folder has it, so that sampler and trainer hold it alike."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import EnvironmentProblem
from .revision import Revision

Precision = Literal["float32", "bfloat16", "nf4"]
"""`nf4` holds each weight of a linear layer in four bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""
_REPACKS = "support_avx512bf16_for_cpu"
LEAST_NOISE: Mapping[Precision, float] = {"float32": 1e-5, "bfloat16": 1e-3, "nf4": 1e-3}
"""Nats a token by which two engines differ at the least, on the mean of many; two fp32 engines by about 1e-6."""
NOISE: Mapping[Precision, float] = {"float32": 5e-3, "bfloat16": 0.1, "nf4": 0.1}
"""Nats a token by which two passes of one engine over the same tokens may differ, on the mean of an answer."""


def precision_of(folder: Path) -> Precision:
    """Return the precision of a whole model's folder, as its config names it."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    if "quantization_config" in config:
        return "nf4"
    named = config.get("dtype") or config.get("torch_dtype")
    return "bfloat16" if named == "bfloat16" else "float32"


def precision_held(revision: Revision) -> Precision:
    """Return the precision in which a revision is held: of an adapter, its base's; of a plugin's, float32."""
    folder = revision.folder.parent / revision.base if revision.base else revision.folder
    return precision_of(folder) if (folder / "config.json").is_file() else "float32"


def steady(model: Any) -> Any:
    """Return a model that computes the same way in and out of training.

    On some processors bitsandbytes repacks its weights when it is asked outside of training, for a kernel that has
    no gradient and stays in use: what is trained after an evaluation would go on without one.
    """
    for module in model.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)
    return model


def loading(precision: Precision) -> dict[str, Any]:
    """Return what `from_pretrained` is told, so that weights of any precision are read as this one.

    Raises:
        EnvironmentProblem: a package is missing.
    """
    import torch

    if precision != "nf4":
        return {"dtype": getattr(torch, precision)}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EnvironmentProblem("precision nf4 needs bitsandbytes: pip install 'redistill[qlora]'")
    from transformers import BitsAndBytesConfig

    kind: Any = BitsAndBytesConfig  # transformers leaves it untyped
    return {
        "dtype": torch.bfloat16,
        "device_map": {"": 0 if torch.cuda.is_available() else "cpu"},
        "quantization_config": kind(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16",
        ),
    }
