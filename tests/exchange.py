"""What tests of export and import share: hostile texts, files of them, and runs made of files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from redistill.store import imports
from redistill.store.exports import Export, export
from redistill.store.imports import Import
from redistill.store.store import Store

HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=25),
    st.sampled_from(
        ["", " ", "\n", "\r\n", "\x00", "\x1b[31m", '"', "\\", "</script>", "=1+1", "\u2028",
         "\x85", "\ufeff", "\u202e", "null", "{}", "a,b", "e\u0301", "\U0001f600"]
    ),
)  # fmt: skip


@st.composite
def conversations(draw: Any) -> list[dict[str, str]]:
    """Draw turns that end with a user's, in the order that every format can hold."""
    roles = [*draw(st.sampled_from([[], ["system"]])), "user"]
    roles += ["assistant", "user"] * draw(st.integers(0, 1))
    return [{"role": role, "content": draw(HOSTILE)} for role in roles]


@st.composite
def pair_rows(draw: Any) -> list[dict[str, Any]]:
    """Draw rows of TRL pairs, some of the same prompt, some the same altogether."""
    asked = draw(st.lists(conversations(), min_size=1, max_size=3))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        texts = draw(st.lists(HOSTILE, min_size=2, max_size=2, unique=True))
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
        prompt = draw(st.sampled_from(asked))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def take_in(folder: Path, file: Path, form: str, **wanted: Any) -> dict[str, Any]:
    """Import a file into a run, which is made where there is none."""
    asked = Import(file, form, **wanted)
    checked = imports.check(asked)
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder)
    try:
        imports.open_run(store)
        return imports.write(store, asked, checked)
    finally:
        store.close()


def put_out(folder: Path, out: Path, form: str, **wanted: Any) -> dict[str, Any]:
    """Export from a run."""
    return export(folder, Export(form, out, **wanted))


def same_bytes(a: Path, b: Path) -> bool:
    """Whether two files, or two folders, hold the same."""
    if a.is_file():
        return a.read_bytes() == b.read_bytes()
    names = [sorted(f.relative_to(x) for f in x.rglob("*") if f.is_file()) for x in (a, b)]
    return names[0] == names[1] and all(
        (a / n).read_bytes() == (b / n).read_bytes() for n in names[0]
    )
