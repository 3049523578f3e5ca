"""A model as it comes to a revision as it is used: safetensors of one precision, a mended tokenizer, a canary.

Both are written once into the cache, aside first and then renamed.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput, Problem
from .model_folder import read_model, stored_precisions
from .precision import Precision
from .revision import (
    MANIFEST,
    Revision,
    canary_sequences,
    check_finite_files,
    fingerprint_model,
    publish,
    record_canary,
)
from .speech import speech_of

CHATML_END, CHATML_PAD = "<|im_end|>", "<|endoftext|>"


def convert_folder(
    source: Path,
    root: Path,
    facts: Mapping[str, Any],
    precision: Precision = "float32",
    say: Callable[[str], None] = lambda _: None,
) -> Revision:
    """Publish a Hugging Face folder of safetensors, in any float precision, as an initial revision.

    Args:
        source: the folder; it is only read.
        root: where the revision's folder is put.
        facts: where it came from; kept in the manifest.
        precision: of the revision.
        say: is told of the choices that are made for it, in a line, before its weights are read.

    Raises:
        BadInput: it cannot speak or stop, tensors are missing or do not fit, or it answers in no numbers.
        StoreProblem: a tensor holds NaN or an infinity, or the folder has a manifest and is not what that says.
    """
    if (source / MANIFEST).is_file():
        Revision.read(source).verify_files()
    speech = speech_of(source)
    stored = "+".join(sorted(stored_precisions(source))) or "unknown"
    say(
        f"converting {facts.get('source', source.name)} from {stored} to {precision} safetensors, once; "
        f"its answers end with {' or '.join(map(repr, speech.ends))}{speech.note and '; ' + speech.note}"
    )
    check_finite_files(source)
    model, misfits = read_model(source, precision=precision)
    if misfits:
        raise BadInput(*(Problem(str(source), misfit) for misfit in misfits))
    _end_as_named(model, speech.tokenizer, source)
    return _publish(model, speech.tokenizer, source, root, facts)


def _end_as_named(model: Any, tokenizer: Any, source: Path) -> None:
    """Replace an end token that no file names, and that the library takes from the architecture's default."""
    for name, config in (
        ("config.json", model.config),
        ("generation_config.json", model.generation_config),
    ):
        file = source / name
        named = file.is_file() and json.loads(file.read_bytes()).get("eos_token_id") is not None
        if not named:
            config.eos_token_id = tokenizer.eos_token_id


def convert_gguf(source: Path, root: Path, facts: Mapping[str, Any]) -> Revision:
    """Publish a GGUF file of a ChatML Llama, such as SmolLM2, as an initial revision in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The GGUF tokenizer says that answers end with <|im_start|>, and names no pad token.
    tokenizer.eos_token, tokenizer.pad_token = CHATML_END, CHATML_PAD
    loaded: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # A model that was loaded from GGUF refuses to be saved: take its weights into a plain one.
    beside = ("quantization_config", "_name_or_path", "_model_name_or_path")
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in beside}
    settings |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model: Any = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    return _publish(model, tokenizer, source, root, facts)


def _publish(
    model: Any, tokenizer: Any, source: Path, root: Path, facts: Mapping[str, Any]
) -> Revision:
    model.config.__dict__.pop("auto_map", None)  # names code that is never run
    canary = record_canary(model, canary_sequences(tokenizer))
    if not all(math.isfinite(value) for answer in canary.logprobs for value in answer):
        held = str(model.dtype).removeprefix("torch.")
        what = f"its log-probs are no numbers in {held}, although its weights are"
        raise BadInput.at(str(source), what, "say `precision: float32`")
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=root))
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        _mend(staging / "tokenizer_config.json")
        return publish(
            staging,
            root,
            revision=fingerprint_model(model),
            parent=None,
            canary=canary,
            facts=facts,
        )
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already where it was published


def _mend(file: Path) -> None:
    """Set what a tokenizer forgets when it is saved, and drop what holds for the source folder only."""
    settings = json.loads(file.read_bytes())
    for name in ("is_local", "local_files_only", "name_or_path", "auto_map"):
        settings.pop(name, None)
    # Without padding_side, others pad a batch on the right, and most answers come back empty.
    settings |= {"padding_side": "left", "clean_up_tokenization_spaces": False}
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
