"""Is this folder a model that can be a student? Looked at from outside: nothing is loaded or run."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import Problem
from .precision import Precision, loading, steady

INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
_PLAIN = re.compile(r"[\w.-]+\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_READ_BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json"),
)
"""JSON that is read with a model, where it is there."""
_LFS = b"version https://git-lfs"
TESTED = "redistill is tested with transformers 5.17"
PLAIN_TEMPLATE = "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"
"""The least that a chat template can be, for a model that was trained on no turns."""
NO_TEMPLATE = (
    "use an instruction-tuned model, or add the chat_template.jinja that it was trained with to the folder; "
    f"for a model that was trained on plain text that file may be: {PLAIN_TEMPLATE}"
)
ADAPTER = "adapter_config.json"


def to_safetensors(name: str) -> str:
    """Return the command that writes safetensors of a model whose weights are a pickle."""
    return (
        'where you trust it, convert it: python -c "from transformers import AutoModelForCausalLM as M, '
        f"AutoTokenizer as T; [x.from_pretrained({name!r}).save_pretrained('converted') for x in (M, T)]\""
    )


def folder_problems(folder: Path) -> list[Problem]:
    """Return all that keeps a folder from being a student; an empty list means it can be loaded.

    Only safetensors are taken (a pickle runs code when it is read), and code that lies beside a model is
    never run.
    """
    if not folder.is_dir():
        return [Problem(str(folder), "no such folder")]
    if _is_adapter(folder):
        return [_adapter(folder)]
    return [*_config(folder, student=True), *_weights(folder), *_tokenizer(folder)]


def reward_problems(folder: Path) -> list[Problem]:
    """Return all that keeps a folder from being a reward model."""
    if not folder.is_dir():
        return [Problem(str(folder), "no such folder")]
    if _is_adapter(folder):
        return [_adapter(folder)]
    return [*_config(folder, student=False), *_weights(folder), *_tokenizer(folder)]


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
    told = library.utils.logging.get_verbosity()
    library.utils.logging.set_verbosity_error()  # it prints a table of what we tell in a line
    try:
        model, said = getattr(library, kind).from_pretrained(
            folder,
            **({"dtype": "auto"} if precision is None else loading(precision)),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # else it raises without their names
            output_loading_info=True,
        )
    except (RuntimeError, ValueError) as error:  # another architecture than its tensors are of
        return None, [" ".join(str(error).split())]
    finally:
        library.utils.logging.set_verbosity(told)
    return steady(model), _misfits(said)


def _misfits(said: Mapping[str, Any]) -> list[str]:
    """Return a line for each kind of fault that the library found in a model's tensors."""
    lines = [
        f"tensor {name} is {list(stored)} in the file and {list(wanted)} in the model"
        for name, stored, wanted in sorted(said.get("mismatched_keys", ()))
    ]
    return lines + [
        f"{fault.replace('_', ' ')}: {', '.join(map(str, sorted(names)))}"
        for fault, names in said.items()
        if names and fault != "mismatched_keys"
    ]


def stored_precisions(folder: Path) -> dict[str, int]:
    """Return the numbers that the files of a folder hold, by the dtype that they have there, such as `BF16`."""
    found: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        for _, dtype, shape in _header(file):
            found[dtype] += math.prod(shape)
    return dict(found)


def _is_adapter(folder: Path) -> bool:
    whole = ("model.safetensors", INDEX)
    return (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in whole)


def _adapter(folder: Path) -> Problem:
    """Say of which base a folder is an adapter; of one of our own, by the base's hash."""
    told = _json(folder / ADAPTER)
    base = "" if isinstance(told, Problem) else str(told.get("base_model_name_or_path") or "")
    what = f"this is an adapter of {base or 'a base that it does not name'}, not a whole model"
    merge = (
        "merge it into exactly that base first: PeftModel.merge_and_unload() and save_pretrained"
    )
    return Problem(str(folder), what, merge)


def _config(folder: Path, *, student: bool) -> Iterator[Problem]:
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
    # A judge is named in a recipe, which is read often: the library is loaded for a student, or for code.
    elif (student or "auto_map" in config) and str(kind) not in _architectures(student=student):
        if "auto_map" in config:
            why = "its architecture is code that comes with the model, which is never run"
            yield Problem(str(file), why, "use a model whose architecture transformers has")
        else:
            why = f"model_type {kind!r} is unknown to transformers {version('transformers')} here"
            yield Problem(str(file), why, TESTED)
    if config.get("quantization_config") and student:
        hint = "use the model's full-precision weights"
        yield Problem(str(file), "its weights are quantised and cannot be trained", hint)


def _weights(folder: Path) -> Iterator[Problem]:
    present = {file.name for file in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX)
        if isinstance(index, Problem):
            yield index
            return
        named = index.get("weight_map")
        # A name with a path in it could point out of the folder.
        if not isinstance(named, dict) or not all(_PLAIN.fullmatch(str(n)) for n in named.values()):
            what = "its weight_map does not name shards of this folder"
            yield Problem(str(folder / INDEX), what, "download it again")
            return
        wanted = sorted(set(named.values()))
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
        return Problem(str(folder), why, to_safetensors(str(folder)))
    if any(folder.glob("*.gguf")):
        return Problem(
            str(folder), "GGUF weights cannot be trained", "use the original safetensors"
        )
    return Problem(str(folder), "there is no model.safetensors")


def _cut(file: Path) -> Iterator[Problem]:
    """Find a file that ends early: the header says how long the data is."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        if opened.read(len(_LFS)) == _LFS:
            what = "this is a pointer of Git LFS, and the weights were not fetched"
            yield Problem(str(file), what, "run `git lfs pull` in its folder")
            return
        opened.seek(0)
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


def _header(file: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, dtype and shape of the tensors of a whole safetensors file."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    for name, facts in header.items():
        if name != "__metadata__":
            yield name, str(facts["dtype"]), list(facts["shape"])


def _tokenizer(folder: Path) -> Iterator[Problem]:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield Problem(str(folder), f"it has no tokenizer: looked for {', '.join(_TOKENIZERS)}")
        return
    beside = {n: _json(folder / n) for n in _READ_BESIDE if (folder / n).is_file()}
    broken = [found for found in beside.values() if isinstance(found, Problem)]
    yield from broken
    if broken or any((folder / n).is_file() for n in ("chat_template.jinja", "chat_template.json")):
        return
    settings = beside.get("tokenizer_config.json")
    if not isinstance(settings, dict) or not settings.get("chat_template"):
        yield Problem(str(folder), "it has no chat template", NO_TEMPLATE)


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


def _architectures(*, student: bool) -> Mapping[str, Any]:
    """Return the model types that transformers has, by which a model speaks or scores."""
    from transformers.models.auto import modeling_auto as known

    return (
        known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if student
        else known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    )
