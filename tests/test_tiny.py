"""The tiny student, its teacher and their prompts: what ships is what the scripts and the quick start need."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HOUSE = Path(__file__).parents[1]
WEIGHTS = HOUSE / "policies" / "weights"
DATA = HOUSE / "recipes" / "data"
TWINS = ("tiny", "tiny-teacher")
CONTROL = ("<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TOKENIZER: Any = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "tiny")
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126))


def load(name: str) -> Any:
    """Load a twin as the policy does."""
    return transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS / name, dtype=torch.float32)


def rows() -> list[dict[str, Any]]:
    """Read the shipped prompts."""
    return [json.loads(line) for line in (DATA / "tiny.jsonl").read_text("utf-8").splitlines()]


def word(prompt: str) -> str:
    """Return what a prompt asks about."""
    polite = {"please", "can", "you", "reverse", "double", "odd", "spell"}
    (found,) = [w for w in prompt.rstrip("?").split() if w not in polite]
    return found


def passes(model: Any, asked: list[dict[str, Any]]) -> list[bool]:
    """Answer greedily; right means exactly the wanted text, and ended."""
    heads = [
        TOKENIZER.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
        )
        for row in asked
    ]
    batch = TOKENIZER(heads, return_tensors="pt", padding=True, add_special_tokens=False)
    said = model.generate(**batch, max_new_tokens=44, do_sample=False)[
        :, batch.input_ids.shape[1] :
    ]
    return [
        TOKENIZER.eos_token_id in ids.tolist()
        and TOKENIZER.decode(ids, skip_special_tokens=True).strip()
        == row["verify"]["equals"]["text"]
        for ids, row in zip(said, asked, strict=True)
    ]


def facts(file: Path) -> Any:
    """Read a file, without the version of the library that wrote it."""
    text = file.read_text("utf-8")
    if file.suffix != ".json":
        return text
    return {k: v for k, v in json.loads(text).items() if k != "transformers_version"}


@pytest.mark.parametrize("name", TWINS)
def test_loads_with_about_a_million_parameters(name: str) -> None:
    """Both twins load by their folder, in the same architecture, with about a million parameters."""
    model = load(name)
    assert 0.9e6 < model.num_parameters() < 1.2e6
    assert model.config.vocab_size == len(TOKENIZER)
    assert model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == TOKENIZER.convert_tokens_to_ids("<|end|>")


@pytest.mark.parametrize("name", TWINS)
def test_weights_are_bfloat16_on_disk(name: str) -> None:
    """Every tensor in the file is bfloat16, so a twin takes about 2 MB."""
    from safetensors.torch import load_file

    file = WEIGHTS / name / "model.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}
    assert file.stat().st_size < 2.5e6


@pytest.mark.parametrize("name", TWINS)
def test_tokenizer_is_ready_for_batches(name: str) -> None:
    """What a reload gives is saved: padding on the left, an end and a pad token, no clean-up."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS / name)
    assert tokenizer.is_fast
    assert tokenizer.padding_side == "left"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    assert tokenizer.clean_up_tokenization_spaces is False
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    saved = json.loads((WEIGHTS / name / "tokenizer_config.json").read_text("utf-8"))
    assert saved["padding_side"] == "left"


@given(printable)
def test_printable_text_comes_back(text: str) -> None:
    """Encoding and decoding printable ASCII changes nothing, one token a character."""
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text


@given(printable, st.sampled_from(CONTROL), printable)
def test_control_tokens_in_text_stay_text(before: str, token: str, after: str) -> None:
    """A control token that a user writes is spelt out and controls nothing."""
    text = before + token + after
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(ids) & set(TOKENIZER.convert_tokens_to_ids(list(CONTROL)))
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_the_template_renders_every_role() -> None:
    """System, user and assistant turns are each opened and ended; the system turn is optional."""
    turns = [{"role": r, "content": r[0]} for r in ("system", "user", "assistant")]
    render = TOKENIZER.apply_chat_template
    whole = "<|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|>"
    assert render(turns, tokenize=False) == whole
    asked = render(turns[1:2], tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|>u<|end|><|assistant|>"
    assert whole.endswith(asked + "a<|end|>")


def test_the_prompts_are_what_the_generator_makes() -> None:
    """`--check` accepts the file that ships."""
    script = DATA / "make_tiny_prompts.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


def test_check_notices_a_changed_row(tmp_path: Path) -> None:
    """`--check` refuses a file in which one letter differs."""
    script = tmp_path / "make_tiny_prompts.py"
    script.write_text((DATA / "make_tiny_prompts.py").read_text("utf-8"), "utf-8")
    changed = (DATA / "tiny.jsonl").read_text("utf-8").replace("please", "plaese", 1)
    (tmp_path / "tiny.jsonl").write_text(changed, "utf-8")
    done = subprocess.run([sys.executable, script, "--check"], check=False, capture_output=True)
    assert done.returncode == 1
    assert b"tiny.jsonl differs" in done.stderr


def test_no_word_is_used_twice() -> None:
    """The splits have their sizes and share no word, so none can be answered from memory."""
    found = rows()
    assert Counter(row["split"] for row in found) == {"train": 600, "heldout": 200, "test": 240}
    assert len({word(row["prompt"]) for row in found}) == len(found)


def test_answers_are_right() -> None:
    """The wanted text of each row follows from its prompt, computed here by other means."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for row in rows():
        asked = word(row["prompt"])
        right = {
            "reverse": "".join(reversed(asked)),
            "double": "".join(a + b for a, b in zip(asked, asked, strict=True)),
            "odd": "".join(c for i, c in enumerate(asked) if i % 2 == 0),
            "spell": " ".join(names[int(c)] for c in asked if c.isdigit()),
        }
        assert row["verify"] == {"equals": {"text": right[row["tags"][0].removeprefix("task:")]}}


def test_the_twins_never_read_a_word_of_the_prompts() -> None:
    """The training text leaves out the words of the prompts file, though it draws from the same source."""
    script = runpy.run_path(str(WEIGHTS / "make_tiny.py"))
    words = {word(row["prompt"]) for row in rows()}
    for stage in ("CHILDHOOD", "STUDENT", "TEACHER"):
        source = script["examples"](script[stage])
        read = [word(next(source)[0]) for _ in range(3000)]
        assert words.isdisjoint(read)
        assert len(set(read)) > 2000


def test_the_same_call_makes_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials of the script give the same bytes, and the files that a policy needs."""
    threads = torch.get_num_threads()
    for trial in ("a", "b"):
        arguments = ["make_tiny.py", "--out", str(tmp_path / trial), "--steps", "2"]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(WEIGHTS / "make_tiny.py"), run_name="__main__")
    torch.set_num_threads(threads)
    for name in TWINS:
        first, second = (tmp_path / trial / name / "model.safetensors" for trial in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
        made = {file.name for file in (tmp_path / "a" / name).iterdir()}
        assert made == {file.name for file in (WEIGHTS / name).iterdir()}
        for other in made - {"model.safetensors"}:
            pair = (facts(folder / name / other) for folder in (tmp_path / "a", WEIGHTS))
            assert next(pair) == next(pair), other


def test_the_teacher_knows_more_than_the_student_shows() -> None:
    """On 60 held-out prompts the teacher is nearly always right, the student less than every second time."""
    asked = [row for row in rows() if row["split"] == "heldout"][:60]
    student, teacher = (sum(passes(load(name), asked)) / len(asked) for name in TWINS)
    assert 0.2 <= student <= 0.5
    assert teacher >= 0.85
