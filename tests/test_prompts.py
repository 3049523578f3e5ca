"""Reading prompts: every fault of a file in one go with its line, and splits that keep apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.agents.prompts import PromptSource, load_prompts, read_rows
from redistill.agents.roles import FewShot, Role, RoleContext, Staging
from redistill.errors import BadInput
from redistill.types import Message, Prompt

SPLITS = ("train", "heldout", "test")


def _row(prompt: str, split: str = "train", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "split": split, **more}


GOOD = [_row("one"), _row("two", "heldout"), _row("three", "test")]


def _write(folder: Path, rows: Sequence[Any], name: str = "prompts.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def _load(folder: Path, **source: Any) -> list[Prompt]:
    return load_prompts(PromptSource(**({"file": "prompts.jsonl"} | source)), folder, seed=0)


def _faults(folder: Path, **source: Any) -> list[str]:
    with pytest.raises(BadInput) as error:
        _load(folder, **source)
    told = [str(problem) for problem in error.value.problems]
    assert not any("\n" in line for line in told)
    return told


def test_good_rows_become_prompts(tmp_path: Path) -> None:
    """All keys arrive, `prompt` is a user turn, train prompts come first."""
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [
        {"messages": turns, "split": "heldout", "answer": "4", "reference": "r", "privileged": "p"},
        _row("a", verify={"equals": "b"}, tags=["form:word"], source="s", licence="MIT"),
        _row("c", "test"),
    ]
    train, heldout, test = _load(_write(tmp_path, rows))
    assert train.messages == (Message("user", "a"),)
    assert (train.verify, train.tags, train.source, train.licence) == (
        {"equals": "b"},
        ("form:word",),
        "s",
        "MIT",
    )
    assert heldout.messages == (Message("system", "s"), Message("user", "u"))
    assert (heldout.answer, heldout.reference, heldout.privileged) == ("4", "r", "p")
    assert test.split == "test"


def test_a_byte_order_mark_and_blank_lines_are_no_fault(tmp_path: Path) -> None:
    """What editors leave behind is read past; line numbers still count every line."""
    text = "\ufeff" + "\n\n".join(json.dumps(row) for row in GOOD) + "\r\n \n"
    (tmp_path / "prompts.jsonl").write_text(text, "utf-8")
    assert len(_load(tmp_path)) == 3
    rows = list(read_rows("prompts.jsonl", tmp_path, "prompts"))
    assert [line for line, _ in rows] == [1, 3, 5]


WRONG_LINES: dict[str, tuple[Any, str]] = {
    "a cut line": ('{"prompt": "a"', "no valid JSON"),
    "no object": ("[1, 2]", "must be an object, not list"),
    "a bare text": ('"hello"', "must be an object, not str"),
    "a number that is none": ('{"prompt": NaN}', "NaN is no JSON number"),
    "a number too large": ('{"prompt": "a", "verify": {"number": 1e999}}', "1e999 is too large"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
    "nested beyond reason": ("[" * 100_000, "no valid JSON"),
    "half a surrogate pair": ('{"prompt": "a\\ud83d"}', "half of a surrogate pair"),
    "half a pair in a tag": ('{"prompt": "a", "tags": ["\\ude00"]}', "half of a surrogate pair"),
    "a misspelt key": ({"promt": "a"}, "unknown key 'promt'; did you mean prompt?"),
    "neither prompt nor messages": ({"answer": "a"}, "needs either `prompt` or `messages`"),
    "both": ({"prompt": "a", "messages": []}, "needs either"),
    "a prompt that is no text": ({"prompt": 5}, "prompt must be text, not 5"),
    "no prompt": ({"prompt": None}, "prompt must be text, not None"),
    "an empty prompt": ({"prompt": "  "}, "prompt must be text"),
    "messages that end with an answer": (
        {"messages": [{"role": "assistant", "content": "a"}]},
        "end with a user's",
    ),
    "a role of its own": ({"messages": [{"role": "tool", "content": "a"}]}, "messages must be"),
    "no messages": ({"messages": []}, "messages must be"),
    "an answer that is no text": (_row("a", answer=4), "answer must be text, not 4"),
    "tags that are no list": (_row("a", tags="form:word"), "tags must be a list"),
    "a split of its own": (_row("a", "dev"), "split is 'dev'; one of train, heldout, test"),
    "verify that is no object": (_row("a", verify="word"), "is no mapping of checkers"),
    "an unknown checker": (_row("a", verify={"eqals": "b"}), "did you mean equals?"),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_a_wrong_line_is_told_with_its_number(tmp_path: Path, name: str) -> None:
    """One line for one fault: the file, the line from 1, what is wrong."""
    line, what = WRONG_LINES[name]
    [told] = _faults(_write(tmp_path, [*GOOD, line]))
    assert told.startswith("prompts.jsonl:4")
    assert what in told


def test_all_wrong_lines_come_in_one_go(tmp_path: Path) -> None:
    """Faults of several files are told together, and a missing file beside them."""
    _write(tmp_path, [_row("a"), {"promt": "b"}, _row("c", tags=1)], "train.jsonl")
    _write(tmp_path, ["{"], "heldout.jsonl")
    told = _faults(
        tmp_path, file=None, train="train.jsonl", heldout="heldout.jsonl", test="no.jsonl"
    )
    assert [line.split(" ")[0] for line in told] == [
        "heldout.jsonl:1:",
        "prompts:",
        "train.jsonl:2:",
        "train.jsonl:3:",
    ]
    assert "no such file: no.jsonl" in told[1]


@pytest.mark.parametrize("line", ["{", '{"promt": "a"}'])
def test_many_faults_of_a_kind_are_counted(tmp_path: Path, line: str) -> None:
    """Five are shown, and the count of the others is right."""
    told = _faults(_write(tmp_path, [line] * 12))
    assert [t.split(":")[1] for t in told[:5]] == ["1", "2", "3", "4", "5"]
    assert told[5:] == ["and 7 more problems of this kind"]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty (0 bytes)"),
        (b" \n\n", "is empty (3 bytes)"),
        (b"\xef\xbb\xbf", "is empty (0 bytes)"),
        ("{}\n".encode("utf-16"), "no UTF-8"),
        ('{"prompt": "caf\xe9"}\n'.encode("latin-1"), "no UTF-8"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\xff\xff", "no UTF-8"),
        (b"\0\0\0\0", "no valid JSON"),
    ],
)
def test_a_file_that_is_no_jsonl_is_told(tmp_path: Path, data: bytes, what: str) -> None:
    """Empty, binary, or of another encoding: each is one clear line that names the file."""
    (tmp_path / "prompts.jsonl").write_bytes(data)
    told = _faults(tmp_path)
    assert what in told[0]
    assert "prompts.jsonl" in told[0]


def test_a_file_that_is_not_there_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    """The path as written, and the path as resolved; a folder is no file."""
    [told] = _faults(tmp_path)
    assert told == f"prompts: no such file: prompts.jsonl; looked for {tmp_path / 'prompts.jsonl'}"
    (tmp_path / "prompts.jsonl").mkdir()
    assert "no such file" in _faults(tmp_path)[0]
    assert "names no file" in _faults(tmp_path, file=None)[0]


def test_a_line_beyond_reason_is_refused(tmp_path: Path) -> None:
    """One line of 5 MB is told by its size, and does not get parsed."""
    [told] = _faults(_write(tmp_path, [*GOOD, json.dumps({"prompt": "x" * 5_000_000})]))
    assert told.startswith("prompts.jsonl:4: the line has 5000")


# -- splits


def test_a_prompt_in_two_splits_is_refused(tmp_path: Path) -> None:
    """Held-out evidence must not be a training row, even if the two rows are checked differently."""
    same = _row("one", "heldout", verify={"equals": "x"}, tags=["other:tag"])
    [told] = _faults(_write(tmp_path, [*GOOD, same]))
    assert told.startswith(
        "prompts.jsonl:4: is heldout, the same prompt is train in prompts.jsonl:1"
    )


def test_a_prompt_in_two_files_is_refused(tmp_path: Path) -> None:
    """Also where the splits are files."""
    for split in SPLITS:
        _write(tmp_path, [{"prompt": "same"}], f"{split}.jsonl")
    files = {split: f"{split}.jsonl" for split in SPLITS}
    told = _faults(tmp_path, file=None, **files)
    assert len(told) == 2
    assert all("the same prompt is train in train.jsonl:1" in line for line in told)


def test_a_row_may_not_contradict_its_file(tmp_path: Path) -> None:
    """A row that says `test` in the train file is not quietly trained on."""
    _write(tmp_path, GOOD[1:])
    _write(tmp_path, [_row("a", "test")], "train.jsonl")
    [told] = _faults(tmp_path, train="train.jsonl")
    assert told == "train.jsonl:1: says split test, and stands in the file for train"


def test_equal_prompts_of_a_split_count_once(tmp_path: Path) -> None:
    """Told twice, asked once; with another checker it is another question."""
    rows = [*GOOD, GOOD[0], _row("one", verify={"equals": "x"})]
    assert len(_load(_write(tmp_path, rows))) == 4


@pytest.mark.parametrize("missing", SPLITS)
def test_every_split_needs_a_prompt(tmp_path: Path, missing: str) -> None:
    """A run without one of the splits would claim what it cannot show."""
    told = _faults(_write(tmp_path, [row for row in GOOD if row["split"] != missing]))
    assert told == [
        f"prompts: no prompt is in the split {missing}; give more rows, or a file for it"
    ]


@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=40, max_size=60, unique=True))
def test_a_split_by_hash_depends_on_the_prompt_alone(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    """Order, other rows, tags and checkers move no prompt into another split."""
    folder = tmp_path_factory.mktemp("prompts")
    fixed = [_row(f"fixed {split}", split) for split in SPLITS]

    def dealt(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
        return {p.text: p.split for p in _load(_write(folder, [*fixed, *rows]))}

    first = dealt([{"prompt": word} for word in words])
    changed = [
        {"prompt": w, "verify": {"equals": w}, "tags": ["a:b"]} for w in reversed(words[:20])
    ]
    again = dealt(changed)
    assert again == {text: first[text] for text in again}


def test_a_split_by_hash_has_the_shares_asked_for(tmp_path: Path) -> None:
    """Of 2000 prompts, 30 % go to heldout and 10 % to test, give or take chance."""
    _write(tmp_path, [{"prompt": f"number {n}"} for n in range(2000)])
    found = [p.split for p in _load(tmp_path, heldout_share=0.3, test_share=0.1)]
    assert 540 < found.count("heldout") < 660
    assert 155 < found.count("test") < 245


def test_the_seed_deals_the_train_prompts_and_no_others(tmp_path: Path) -> None:
    """Another seed is another order of training; held-out and test prompts keep theirs."""
    rows = [_row(f"{split} {n}", split) for n in range(20) for split in SPLITS]
    _write(tmp_path, rows)
    source = PromptSource(file="prompts.jsonl")
    one, other = (load_prompts(source, tmp_path, seed) for seed in (1, 2))
    assert [p.id for p in one] == [p.id for p in load_prompts(source, tmp_path, 1)]
    assert [p.id for p in one[:20]] != [p.id for p in other[:20]]
    assert {p.id for p in one[:20]} == {p.id for p in other[:20]}
    assert [p.id for p in one[20:]] == [p.id for p in other[20:]]


# -- worked examples


def _staging(folder: Path, rows: Sequence[Any], **shot: Any) -> Staging:
    _write(folder, rows, "shots.jsonl")
    few = FewShot(**({"file": "shots.jsonl"} | shot))
    return Staging("teacher", Role(context=RoleContext(system="Be brief.", few_shot=few)), folder)


SHOTS = [
    {"prompt": "q1", "answer": "a1", "tags": ["form:word"]},
    {"prompt": "q2", "answer": "a2", "tags": ["form:quotes"]},
    {"prompt": "q3", "answer": "a3", "tags": ["form:word"]},
]


def test_examples_are_shown_as_earlier_turns(tmp_path: Path) -> None:
    """System first, then the examples that match, then the prompt itself."""
    staging = _staging(tmp_path, SHOTS, n=2, match="form")
    asked = Prompt("i", (Message("user", "q"),), "train", tags=("form:word",))
    said = [m.content for m in staging.stage(asked)]
    assert said == ["Be brief.", "q1", "a1", "q3", "a3", "q"]
    assert [m.role for m in staging.stage(asked)] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "q"}, "needs the texts `prompt` and `answer`"),
        ({"prompt": "q", "answer": 4}, "needs the texts"),
        ({"prompt": "q", "answer": "a", "tags": "form:word"}, "tags must be a list"),
        ({"prompt": "q", "answer": "a", "tags": None}, "tags must be a list"),
        ("{", "no valid JSON"),
    ],
)
def test_a_wrong_example_is_told_with_its_line(tmp_path: Path, row: Any, what: str) -> None:
    """Worked examples are read with the same care as prompts."""
    with pytest.raises(BadInput, match=r"shots.jsonl:4") as error:
        _staging(tmp_path, [*SHOTS, row])
    assert what in str(error.value)


def test_a_match_that_fits_no_example_is_refused(tmp_path: Path) -> None:
    """Without it the teacher would be shown nothing, and nobody would be told."""
    with pytest.raises(
        BadInput, match=r"roles.teacher.context.few_shot.match: no example has a tag"
    ):
        _staging(tmp_path, SHOTS, match="from")


def test_the_digest_sees_everything_that_is_shown(tmp_path: Path) -> None:
    """Another system turn, example, count or match is another digest; no context has none."""
    digests = {
        _staging(tmp_path, SHOTS).digest,
        _staging(tmp_path, SHOTS[:2]).digest,
        _staging(tmp_path, SHOTS, n=1).digest,
        _staging(tmp_path, SHOTS, match="form").digest,
        Staging("t", Role(context=RoleContext(system="x")), tmp_path).digest,
    }
    assert len(digests) == 5
    assert Staging("t", Role(), tmp_path).digest == ""
