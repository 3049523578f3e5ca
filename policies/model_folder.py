"""Is this folder a model that can be a student? Looked at from outside: nothing is loaded or run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import Problem
from .precision import Precision, loading, steady

INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
TO_SAFETENSORS = (
    "convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder)"
    ".save_pretrained(other_folder) writes safetensors"
)


def folder_problems(folder: Path) -> list[Problem]:
    """Return all that keeps a folder from being a student; an empty list means it can be loaded.

    Only safetensors are taken (a pickle runs code when it is read), and code that lies beside a model is
    never run.
    """
    if not folder.is_dir():
        return [Problem(str(folder), "no such folder")]
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        merge = "merge it into its base first: PeftModel.merge_and_unload() and save_pretrained"
        return [Problem(str(folder), "this is an adapter, not a whole model", merge)]
    return [*_config(folder), *_weights(folder), *_tokenizer(folder)]


def reward_problems(folder: Path) -> list[Problem]:
    """Return all that keeps a folder from being a reward model; its architecture is not looked at."""
    if not folder.is_dir():
        return [Problem(str(folder), "no such folder")]
    config = _json(folder / "config.json")
    broken = [config] if isinstance(config, Problem) else []
    return [*broken, *_weights(folder), *_tokenizer(folder)]


def read_model(
    folder: Path, kind: str = "AutoModelForCausalLM", precision: Precision | None = None
) -> tuple[Any, list[str]]:
    """Build the model of a folder, and say in lines how its tensors do not fit the architecture.

    What is missing in the files is random in the model: where there are lines, it must not be used.

    Args:
        folder: a Hugging Face folder.
        kind: the class of transformers that builds it.
        precision: to read it in; as the folder has it where it is None.
    """
    import transformers

    library: Any = transformers  # its own types do not know `output_loading_info`
    library.utils.logging.disable_progress_bar()
    try:
        model, said = getattr(library, kind).from_pretrained(
            folder,
            **({"dtype": "auto"} if precision is None else loading(precision)),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError) as error:  # tensors of another shape, another architecture
        return None, [" ".join(str(error).split())]
    return steady(model), [
        f"{fault.replace('_', ' ')}: {', '.join(map(str, sorted(names)))}"
        for fault, names in said.items()
        if names
    ]


def _config(folder: Path) -> Iterator[Problem]:
    file = folder / "config.json"
    config = _json(file)
    if isinstance(config, Problem):
        yield config
        return
    kind = config.get("model_type")
    if not kind:
        yield Problem(
            str(file), "it names no model_type", "use a folder that save_pretrained wrote"
        )
    elif not _known_architecture(str(kind)):
        if "auto_map" in config:
            why = "its architecture is code that comes with the model, which is never run"
            yield Problem(str(file), why, "use a model whose architecture transformers has")
        else:
            why = f"model_type {kind!r} is unknown to the transformers installed here"
            yield Problem(str(file), why, "redistill is tested with transformers 5.17")
    if config.get("quantization_config"):
        hint = "use the model's full-precision weights"
        yield Problem(str(file), "its weights are quantised and cannot be trained", hint)


def _weights(folder: Path) -> Iterator[Problem]:
    present = {file.name for file in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX)
        if isinstance(index, Problem):
            yield index
            return
        wanted = sorted(set(index.get("weight_map", {}).values()))
        missing = [name for name in wanted if name not in present]
        if missing:
            have = f"{len(wanted) - len(missing)} of {len(wanted)} shards are present"
            yield Problem(str(folder), f"missing {', '.join(missing)}; {have}", "download it again")
    elif "model.safetensors" not in present:
        yield _no_weights(folder, present)
    for name in sorted(present):
        yield from _cut(folder / name)


def _no_weights(folder: Path, present: set[str]) -> Problem:
    if any(_SHARD.fullmatch(name) for name in present):
        return Problem(str(folder), f"shards are present, {INDEX} is missing", "download it again")
    pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
    if pickles:
        why = f"its weights are a pickle ({pickles[0]}), which can run code when it is read"
        return Problem(str(folder), why, TO_SAFETENSORS)
    if any(folder.glob("*.gguf")):
        return Problem(
            str(folder), "GGUF weights cannot be trained", "use the original safetensors"
        )
    return Problem(str(folder), "there is no model.safetensors")


def _cut(file: Path) -> Iterator[Problem]:
    """Find a file that ends early: the header says how long the data is."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(min(length, size)))
            ends = [facts["data_offsets"][1] for n, facts in header.items() if n != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, AttributeError):
            yield Problem(
                str(file), "this is no safetensors file, or it is cut", "download it again"
            )
            return
    if size != whole:
        yield Problem(
            str(file), f"it has {size} bytes and should have {whole}", "download it again"
        )


def _tokenizer(folder: Path) -> Iterator[Problem]:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield Problem(str(folder), f"it has no tokenizer: looked for {', '.join(_TOKENIZERS)}")
        return
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return
    settings = _json(folder / "tokenizer_config.json")
    if isinstance(settings, Problem) or not settings.get("chat_template"):
        hint = "use an instruction-tuned model, or add a chat_template.jinja to the folder"
        yield Problem(str(folder), "it has no chat template", hint)


def _json(file: Path) -> dict[str, Any] | Problem:
    if not file.is_file():
        return Problem(str(file.parent), f"it has no {file.name}")
    try:
        found = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        return Problem(f"{file}:{error.lineno}:{error.colno}", f"not valid JSON: {error.msg}")
    except UnicodeDecodeError:
        return Problem(str(file), "not valid JSON: it is not UTF-8 text")
    return found if isinstance(found, dict) else Problem(str(file), "it holds no JSON object")


def _known_architecture(kind: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
