"""Reading prompts from JSONL files, and dealing them into the three splits.

Rows: `{prompt: "..." | messages: [...], verify?, answer?, reference?, privileged?, tags?, source?,
licence?, split?}`. Every problem of a file is told in one go, by line.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field

from ..errors import BadInput, Problem
from ..hashing import content_hash
from ..store.facts import prompt_id
from ..store.lines import json_row
from ..store.traces import FORGOTTEN
from ..types import Message, Prompt, Split
from .judges.checkers import check_spec
from .judges.sandbox import why_none
from .plugins import did_you_mean

_KEYS = [
    "prompt",
    "messages",
    "verify",
    "answer",
    "reference",
    "privileged",
    "tags",
    "source",
    "licence",
    "split",
]
_SHOWN = 5
_SHIPPED = "redistill:"


class PromptSource(BaseModel):
    """Where prompts come from, and how many of them one round takes.

    One `file` is split by each row's own `split`, else by hash; or the three splits are named files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    FILES: ClassVar = ("file", "train", "heldout", "test")
    """Keys that name a file."""

    file: str | None = None
    """One JSONL file for all splits; `redistill:NAME.jsonl` is one that ships."""
    train: str | None = None
    heldout: str | None = None
    test: str | None = None
    per_round: int | None = Field(None, ge=1)
    """Train prompts of one round; all of them where it is left out."""
    heldout_share: float = Field(0.15, gt=0, lt=0.5)
    """Share of the rows without a `split` that goes to heldout, by hash."""
    test_share: float = Field(0.15, gt=0, lt=0.5)
    """Share of the rows without a `split` that goes to test, by hash."""

    def named(self) -> dict[str, str]:
        """Return the files that are named, by their keys."""
        every = {key: getattr(self, key) for key in self.FILES}
        return {key: path for key, path in every.items() if path}

    def files(self) -> list[tuple[str, Split | None]]:
        """Return the files that are named, each with the split that it is for."""
        splits: dict[str, Split] = {"train": "train", "heldout": "heldout", "test": "test"}
        return [(path, splits.get(key)) for key, path in self.named().items()]


def locate(path: str, base: Path) -> Traversable:
    """Return a data file: one that ships (`redistill:NAME`), or a path beside the recipe."""
    if path.startswith(_SHIPPED):
        return resources.files("redistill") / "recipes" / "data" / path.removeprefix(_SHIPPED)
    return base / path


def ships(path: str) -> bool:
    """Whether a data file comes with the package."""
    return path.startswith(_SHIPPED)


def read_rows(path: str, base: Path, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a JSONL file.

    Raises:
        BadInput: the file is missing, empty or no text, or lines are no JSON objects.
    """
    file = locate(path, base)
    if not file.is_file():
        raise BadInput.at(where, f"no such file: {path}", f"looked for {file}")
    try:
        raw = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise BadInput.at(where, f"{path} cannot be read: {error.strerror}") from error
    if not raw.strip():
        raise BadInput.at(
            where, f"{path} is empty ({len(raw)} bytes)", "give one JSON object a line"
        )
    problems: list[Problem] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            row = json_row(line, f"{path}:{number}")
            if isinstance(row, Problem):
                problems.append(row)
            else:
                rows.append((number, row))
    if problems:
        raise BadInput(*first_few(problems))
    yield from rows


def first_few(problems: list[Problem]) -> list[Problem]:
    """Keep the first few and say how many there are."""
    if len(problems) <= _SHOWN:
        return problems
    more = Problem("", f"and {len(problems) - _SHOWN} more problems of this kind")
    return [*problems[:_SHOWN], more]


def load_prompts(source: PromptSource, base: Path, seed: int) -> list[Prompt]:
    """Read all prompts of a recipe, in order, each in its split.

    Equal prompts of one split count once; equal prompts in two splits are refused, because then the
    held-out evidence would be a training row.

    Raises:
        BadInput: with every problem that was found.
    """
    problems: list[Problem] = []
    if not source.files():
        problems.append(
            Problem("prompts", "names no file", "write `prompts: {file: prompts.jsonl}`")
        )
    found: dict[str, Prompt] = {}
    asked: dict[tuple[Message, ...], tuple[Split, str]] = {}
    faults: list[Problem] = []
    forgotten = False
    for path, split in source.files():
        try:
            rows = list(read_rows(path, base, "prompts"))
        except BadInput as error:
            problems += error.problems
            continue
        for number, row in rows:
            if row == FORGOTTEN:
                forgotten = True
                continue
            where = f"{path}:{number}"
            prompt = _prompt(row, split, source, where)
            if isinstance(prompt, Problem):
                faults.append(prompt)
                continue
            other, place = asked.setdefault(prompt.messages, (prompt.split, where))
            if other != prompt.split:
                what = f"is {prompt.split}, the same prompt is {other} in {place}"
                faults.append(Problem(where, what, "a prompt belongs to one split"))
            found.setdefault(prompt.id, prompt)
    prompts = list(found.values())
    problems += first_few(faults)
    problems += _no_sandbox(prompts)
    if not problems and not forgotten:  # what is then missing, the store knows
        problems += _missing_splits(prompts)
    if problems:
        raise BadInput(*problems)
    return _deal(prompts, seed)


def _no_sandbox(prompts: list[Prompt]) -> list[Problem]:
    """Refuse, in one line, prompts whose answers would be run where there is no sandbox."""
    run = [prompt for prompt in prompts if "code" in (prompt.verify or {})]
    if not run or not (why := why_none()):
        return []
    return [Problem("prompts", f"{len(run)} prompts verify code, and {why}")]


def _prompt(
    row: dict[str, Any], split: Split | None, source: PromptSource, where: str
) -> Prompt | Problem:
    for key in row:
        if key not in _KEYS:
            return Problem(where, f"unknown key {key!r}", did_you_mean(key, _KEYS, "keys are"))
    messages = _messages(row, where)
    if isinstance(messages, Problem):
        return messages
    for key in ("answer", "reference", "privileged", "source", "licence"):
        if not isinstance(row.get(key, ""), str):
            return Problem(where, f"{key} must be text, not {row[key]!r}")
    tags = row.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        return Problem(where, f"tags must be a list of texts, not {tags!r}")
    if "verify" in row and (faults := check_spec(row["verify"], f"{where} verify")):
        return faults[0]
    identifier = prompt_id(messages, row)
    own = row.get("split")
    if own is not None and own not in get_args(Split):
        return Problem(where, f"split is {own!r}", "one of train, heldout, test")
    if own and split and own != split:
        return Problem(where, f"says split {own}, and stands in the file for {split}")
    return Prompt(
        id=identifier,
        messages=messages,
        split=split or own or _split_by_hash(messages, source),
        verify=row.get("verify"),
        answer=row.get("answer"),
        reference=row.get("reference"),
        privileged=row.get("privileged"),
        tags=tuple(tags),
        source=row.get("source", ""),
        licence=row.get("licence", ""),
    )


def _messages(row: dict[str, Any], where: str) -> tuple[Message, ...] | Problem:
    if ("prompt" in row) == ("messages" in row):
        return Problem(
            where, "needs either `prompt` or `messages`", f"it has {', '.join(row) or 'nothing'}"
        )
    if "prompt" in row:
        text = row["prompt"]
        if not isinstance(text, str) or not text.strip():
            return Problem(where, f"prompt must be text, not {text!r}")
        turns: tuple[Message, ...] = (Message("user", text),)
    else:
        given = row["messages"]
        good = (
            isinstance(given, list)
            and given
            and all(
                isinstance(m, dict)
                and m.keys() == {"role", "content"}
                and m["role"] in ("system", "user", "assistant")
                and isinstance(m["content"], str)
                for m in given
            )
        )
        if not good or given[-1]["role"] != "user":
            return Problem(where, "messages must be {role, content} turns that end with a user's")
        turns = tuple(Message(m["role"], m["content"]) for m in given)
    return turns


def _split_by_hash(messages: tuple[Message, ...], source: PromptSource) -> Split:
    """Deal a prompt by what it asks, so that another checker for it stays in the same split."""
    said = content_hash(["split", [m.as_dict() for m in messages]])
    place = int(said[:8], 16) / 16**8
    if place < source.test_share:
        return "test"
    return "heldout" if place < source.test_share + source.heldout_share else "train"


def _missing_splits(prompts: list[Prompt]) -> list[Problem]:
    have = {prompt.split for prompt in prompts}
    return [
        Problem("prompts", f"no prompt is in the split {split}", "give more rows, or a file for it")
        for split in get_args(Split)
        if split not in have
    ]


def _deal(prompts: list[Prompt], seed: int) -> list[Prompt]:
    """Put train prompts into the seed's order; a round takes the next slice of it."""
    train = [p for p in prompts if p.split == "train"]
    train.sort(key=lambda p: content_hash(["deal", seed, p.id]))
    return train + [p for p in prompts if p.split != "train"]
