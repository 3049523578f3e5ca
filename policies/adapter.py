"""Adapters: a revision that is a base and a small change of it (LoRA, Hu et al. 2021, arXiv:2106.09685).

Its folder holds the change alone, and names the base by its revision; that lies beside it. Its id is of both, and
of the precision in which the base is held, because the same change of other numbers is another model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StoreProblem
from ..hashing import content_hash, fingerprint
from .revision import raw_tensor, tensors_of

CONFIG = "adapter_config.json"
_BASE = "base_model_name_or_path"
_WRAPPED = ".base_layer"
"""What peft puts into the name of a tensor that it wraps."""


def base_of(folder: Path) -> str | None:
    """Return the revision that a folder's adapter changes; None where it holds a whole model."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_bytes())[_BASE])
    except (ValueError, KeyError) as error:
        raise StoreProblem(f"{file} cannot be read: {error!r}") from error


def attach(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """Return a base model with a folder's adapter on it."""
    import peft

    return peft.PeftModel.from_pretrained(model, folder, is_trainable=trainable)


def save(adapted: Any, folder: Path, base: str) -> None:
    """Write the adapter alone; the base is named by its revision, and by no path of this machine."""
    # peft would look for the base's own files, to see whether the vocabulary has grown.
    adapted.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a card with nothing in it
    file = folder / CONFIG
    told = json.loads(file.read_bytes()) | {_BASE: base}
    file.write_text(json.dumps(told, indent=2, sort_keys=True), "utf-8")


def fingerprint_adapted(adapted: Any) -> str:
    """Return the id of a base with an adapter: of the base's tensors, of the change, of the precision."""
    tensors = dict(tensors_of(adapted.get_base_model()))
    change = {name: t for name, t in tensors.items() if "lora_" in name}
    base = {name.replace(_WRAPPED, ""): t for name, t in tensors.items() if name not in change}
    precision = sorted({str(t.dtype).removeprefix("torch.") for t in base.values()})
    return content_hash(["adapter", fingerprint_of(base), fingerprint_of(change), precision])


def fingerprint_of(tensors: Mapping[str, Any]) -> str:
    """Return the content hash of named tensors."""
    return fingerprint(raw_tensor(name, tensor) for name, tensor in tensors.items())
