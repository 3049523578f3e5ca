"""Can a model speak and stop? Its tokenizer, its template and its end tokens, before a weight is read.

What is wrong here does not fail when a model is loaded: it indexes beyond the embeddings in the middle of a round,
or gives answers that never end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, Problem
from ..types import Message
from .chat import ChatCodec

_GENERATION = "generation_config.json"
_QUESTION, _ANSWER = Message("user", "Hello"), Message("assistant", "Yes.")


@dataclass(frozen=True, slots=True)
class Speech:
    """What a model speaks with."""

    tokenizer: Any
    """With an end token and a pad token."""
    ends: tuple[str, ...]
    """Every token that ends an answer, the tokenizer's own first."""
    note: str
    """What is unusual about it, in one line; empty where nothing is."""


def speech_of(folder: Path) -> Speech:
    """Read a folder's tokenizer, and find all that would keep its model from answering.

    Raises:
        BadInput: the tokenizer cannot be read, is larger than the embeddings, has no template that works, or names
            no token that ends an answer.
    """
    config = _config(folder)
    tokenizer = _tokenizer(folder)
    problems = [
        *_larger_than_embeddings(folder, tokenizer, config),
        *_speechless(folder, tokenizer),
        *_endless(folder, tokenizer),
    ]
    if problems:
        raise BadInput(*problems)
    ends = _ends(folder, tokenizer)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    named = tuple(tokenizer.convert_ids_to_tokens(end) for end in ends)
    return Speech(tokenizer, named, _unended(tokenizer, named))


def read_tokenizer(folder: Path) -> Any:
    """Read the tokenizer of a model that only listens.

    Raises:
        BadInput: it cannot be read, or is larger than the embeddings.
    """
    tokenizer = _tokenizer(folder)
    if problems := list(_larger_than_embeddings(folder, tokenizer, _config(folder))):
        raise BadInput(*problems)
    return tokenizer


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"transformers cannot read it: {_first_line(error)}"
        raise BadInput.at(str(folder / "config.json"), what) from error
    return config


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    hint = "put the tokenizer.json of its original beside it"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # A tokenizer that is broken raises whatever its own parser does, plain Exception included.
    except Exception as error:
        what = f"its tokenizer cannot be read: {_first_line(error)}"
        if _brings_code(folder):
            what = "its tokenizer is code that comes with the model, which is never run"
        raise BadInput.at(str(folder), what, hint) from error
    if not tokenizer.is_fast:
        raise BadInput.at(str(folder), "its tokenizer is not a fast one", hint)
    return tokenizer


def _brings_code(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    return file.is_file() and "auto_map" in json.loads(file.read_bytes())


def _larger_than_embeddings(folder: Path, tokenizer: Any, config: Any) -> Iterator[Problem]:
    rows = int(config.get_text_config().vocab_size)
    ids = {i: token for token, i in tokenizer.get_vocab().items()}
    beyond = [i for i in ids if i >= rows]
    if beyond:
        yield Problem(
            str(folder),
            f"its tokenizer has ids up to {max(ids)}, its embeddings {rows} rows: "
            f"{ids[min(beyond)]!r} ({min(beyond)}) is the first token without one",
            "use the tokenizer that the model was trained with",
        )


def _speechless(folder: Path, tokenizer: Any) -> Iterator[Problem]:
    from jinja2 import TemplateError

    try:
        said = ChatCodec(tokenizer).conversation([_QUESTION])
    except BadInput as error:
        yield from (Problem(str(folder), p.what, p.hint) for p in error.problems)
        return
    except (TemplateError, TypeError, ValueError) as error:
        what = f"its chat template fails on a single question: {_first_line(error)}"
        yield Problem(str(folder), what, "correct its chat_template.jinja")
        return
    if not said:
        yield Problem(str(folder), "its chat template renders a question as nothing")


def _endless(folder: Path, tokenizer: Any) -> Iterator[Problem]:
    ends = _ends(folder, tokenizer)
    known = set(tokenizer.get_vocab().values())
    if unknown := [end for end in ends if end not in known]:
        what = f"eos_token_id {', '.join(map(str, unknown))} is no token of its tokenizer"
        yield Problem(str(folder), what, f"correct it in config.json or {_GENERATION}")
    if not ends:
        closing = _closing(tokenizer) if tokenizer.chat_template else ""
        which = f"{closing!r}, which closes a turn in its chat template" if closing else "its own"
        yield Problem(
            str(folder),
            f"it names no end token, so that no answer would end: looked for eos_token in "
            f"tokenizer_config.json, and for eos_token_id in {_GENERATION} and config.json",
            f"set eos_token in tokenizer_config.json to {which}",
        )


def _ends(folder: Path, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer, as `TransformersPolicy.stop_ids` finds them, the tokenizer's own first.

    What the files name counts: an architecture has a default too, which is the end of some other model.
    """
    named = [tokenizer.eos_token_id]
    for name in (_GENERATION, "config.json"):
        if (folder / name).is_file():
            told = json.loads((folder / name).read_bytes())
            named += [told.get("eos_token_id"), told.get("text_config", {}).get("eos_token_id")]
    lists = [one if isinstance(one, list) else [one] for one in named]
    return list(dict.fromkeys(int(i) for ids in lists for i in ids if i is not None))


def _closing(tokenizer: Any) -> str:
    """Return the control token that the template puts after an answer; empty where there is none."""
    from jinja2 import TemplateError

    codec = ChatCodec(tokenizer)
    try:
        answered = codec.conversation([_QUESTION, _ANSWER], answered=True)
        asked = codec.conversation([_QUESTION])
    except (TemplateError, TypeError, ValueError):  # a template may want tools, or a thought first
        return ""
    after = answered[len(asked) :] if answered[: len(asked)] == asked else answered
    control = [i for i in after if i in codec.reserved]
    return str(tokenizer.convert_ids_to_tokens(control[0])) if control else ""


def _unended(tokenizer: Any, ends: tuple[str, ...]) -> str:
    """Say where a template closes an answer with a token at which nobody stops."""
    closing = _closing(tokenizer)
    if not closing or closing in ends:
        return ""
    return f"its chat template closes an answer with {closing!r}, which is none of its end tokens"


def _first_line(error: BaseException) -> str:
    told = str(error).strip().splitlines()
    return f"{type(error).__name__}: {told[0][:200]}" if told else type(error).__name__
