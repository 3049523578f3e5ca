"""Weights to take away: what was written is loaded anew, answers as the revision, or is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from jobs import Bench, answers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from redistill.errors import BadInput, EnvironmentProblem, StoreProblem
from redistill.policies import adapter, catalog, exporting, gguf
from redistill.policies.exporting import Written, refuse, take
from redistill.policies.policy import Request, Sampling
from redistill.policies.precision import Precision
from redistill.policies.revision import Canary, Revision
from redistill.policies.transformers import TransformersPolicy
from redistill.trainers.supervised import SFT

needs_four_bits = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
EVERY = ("float32", "bfloat16", pytest.param("nf4", marks=needs_four_bits))
PROMPTS = ((20, 30, 40), (50, 51, 52, 53), (60,), (33, 44, 55, 66, 77))
TRAINED: dict[str, Any] = {"batch_size": 4, "micro_batch": 4, "steps": 4, "learning_rate": 2e-3}

Made = Callable[[Precision], Revision]


@pytest.fixture
def made(bench: Bench, session_cache: Path) -> Made:
    """Return an adapter on the tiny student, which lies beside it."""

    def train(precision: Precision) -> Revision:
        start = catalog.resolve("tiny", cache=session_cache, precision=precision).revision
        home = bench.run / "revisions" / start.id
        home.parent.mkdir(exist_ok=True)
        shutil.copytree(start.folder, home)
        way = "qlora" if precision == "nf4" else "lora"
        trainer = SFT.model_validate(TRAINED | {"weights": way, "rank": 4})
        result = Bench(bench.run, home, start.id).train("a", trainer, answers(8))
        assert result.status == "trained", result.message
        return Revision.read(bench.run / "revisions" / str(result.revision))

    return train


def base(revision: Revision) -> Revision:
    """Return what lies under an adapter."""
    return Revision.read(revision.folder.parent / str(revision.base))


def spoken(revision: Revision) -> list[tuple[int, ...]]:
    """Return what a revision says, greedily, through the policy."""
    policy = TransformersPolicy(base(revision) if revision.base else revision)
    policy.load(revision)
    said = policy.generate([Request(p, 0) for p in PROMPTS], Sampling(0.0, max_tokens=12))
    return [g.token_ids for g in said]


def greedy(model: Any) -> list[tuple[int, ...]]:
    """Return what a model says, greedily, by transformers' own sampler, one prompt at a time."""
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        found.append(tuple(said[0, len(prompt) :].tolist()))
    return found


def loaded(folder: Path) -> Any:
    """Load a folder as anybody does."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def taken(revision: Revision, form: Written, out: Path, name: str = "tiny") -> exporting.Taken:
    """Take a revision away into a new folder."""
    refuse(revision, form)
    out.mkdir()
    return take(revision, form, out, name)


@pytest.mark.parametrize("precision", EVERY[:2])
def test_a_whole_model_is_the_same(
    tmp_path: Path, session_cache: Path, precision: Precision
) -> None:
    """Every tensor, log-probs and greedy answers, without the manifest of the run."""
    revision = catalog.resolve("tiny", cache=session_cache, precision=precision).revision
    found = taken(revision, "hf", tmp_path / "out")
    assert (found.exact, found.distance, found.precision) == (True, 0.0, precision)
    assert found.tokens > 100
    assert not (tmp_path / "out/revision.json").exists()
    assert greedy(loaded(tmp_path / "out")) == spoken(revision)


@pytest.mark.parametrize("precision", EVERY)
def test_an_adapter_is_the_same(tmp_path: Path, made: Made, precision: Precision) -> None:
    """It goes alone and names its base; peft puts it on that, and it says what the revision says."""
    revision = made(precision)
    found = taken(revision, "lora", tmp_path / "out", f"owner/name@{'c' * 40}")
    assert (found.exact, found.distance, found.precision) == (True, 0.0, precision)
    told = json.loads((tmp_path / "out" / adapter.CONFIG).read_text("utf-8"))
    assert (told["base_model_name_or_path"], told["revision"]) == ("owner/name", "c" * 40)
    assert not list((tmp_path / "out").glob("model*.safetensors"))
    model = peft.PeftModel.from_pretrained(loaded(base(revision).folder), tmp_path / "out")
    assert greedy(model) == spoken(revision)


def test_f33_a_merged_model_is_the_same(tmp_path: Path, made: Made) -> None:
    """In fp32 within 1e-4 nats, and greedy answers are the revision's; those of the base are others."""
    revision = made("float32")
    found = taken(revision, "merged", tmp_path / "out")
    assert not found.exact
    assert found.distance <= found.bound == pytest.approx(1e-4)
    assert found.furthest < 1e-3
    assert greedy(loaded(tmp_path / "out")) == spoken(revision) != spoken(base(revision))


@pytest.mark.parametrize("precision", EVERY[1:])
def test_a_merged_model_of_low_precision(tmp_path: Path, made: Made, precision: Precision) -> None:
    """It becomes bfloat16, whole and without quantisation, and is within the bound of that."""
    revision = made(precision)
    found = taken(revision, "merged", tmp_path / "out")
    assert found.precision == "bfloat16"
    assert 0 < found.distance <= found.bound == 0.05
    config = json.loads((tmp_path / "out/config.json").read_text("utf-8"))
    assert "quantization_config" not in config
    model = loaded(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_an_adapter_on_what_the_run_has_trained(bench: Bench, tmp_path: Path) -> None:
    """The base need not be the initial student."""
    whole = bench.train("a", SFT.model_validate(TRAINED), answers(8))
    start = bench.run / "revisions" / str(whole.revision)
    way = SFT.model_validate(TRAINED | {"weights": "lora", "rank": 4})
    again = bench.train("b", way, answers(8), start_folder=start, start_revision=start.name)
    revision = Revision.read(bench.run / "revisions" / str(again.revision))
    assert revision.base == whole.revision
    taken(revision, "merged", tmp_path / "out")
    assert greedy(loaded(tmp_path / "out")) == spoken(revision)


# -- what is refused


def test_a_form_that_a_revision_cannot_have(made: Made) -> None:
    """One line with the form that fits, before anything is loaded."""
    revision = made("float32")
    cases: tuple[tuple[Revision, Written, str], ...] = (
        (revision, "hf", "--format merged"),
        (base(revision), "lora", "--format hf"),
        (base(revision), "merged", "--format hf"),
    )
    for one, form, hint in cases:
        with pytest.raises(BadInput, match=hint):
            refuse(one, form)


def spoilt(file: Path, by: float) -> None:
    """Add a little to every tensor of a file."""
    tensors = {name: tensor + by for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("form", ["hf", "lora"])
def test_a_copy_that_went_wrong_is_refused(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, form: Written
) -> None:
    """A weight that is another one after copying is found, however little it is."""
    revision = made("float32")
    copy = exporting._copy

    def badly(source: Path, out: Path, wanted: Any) -> None:
        copy(source, out, wanted)
        spoilt(next(out.glob("*.safetensors")), 1e-6)

    monkeypatch.setattr(exporting, "_copy", badly)
    with pytest.raises(StoreProblem, match="what was written is"):
        taken(base(revision) if form == "hf" else revision, form, tmp_path / "out")


def test_a_merge_that_went_wrong_is_refused(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base alone, which is what a lost adapter leaves, is no merged model."""
    revision = made("float32")

    def lost(_: Revision, under: Revision, out: Path) -> None:
        loaded(under.folder).save_pretrained(out)

    monkeypatch.setattr(exporting, "_write_merged", lost)
    with pytest.raises(StoreProblem, match="answers otherwise than the revision"):
        taken(revision, "merged", tmp_path / "out")


def test_a_merge_that_rounding_takes_back_is_refused(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bound of bfloat16 and yet no nearer to the revision than the base: the adapter is lost."""
    revision = made("bfloat16")
    summed = exporting._summed

    def near(*told: Any) -> tuple[Canary, Canary]:
        """What an adapter answers that moves its base a little, well within the bound."""
        before, _ = summed(*told)
        moved = tuple(tuple(value + 0.004 for value in row) for row in before.logprobs)
        return before, Canary(before.sequences, moved)

    def lost(_: Revision, under: Revision, out: Path) -> None:
        loaded(under.folder).save_pretrained(out)

    monkeypatch.setattr(exporting, "_summed", near)
    monkeypatch.setattr(exporting, "_write_merged", lost)
    with pytest.raises(StoreProblem, match=r"loses the adapter.*--format lora"):
        taken(revision, "merged", tmp_path / "out")


def test_a_merge_is_also_asked_in_its_own_precision(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says in bfloat16 must be what the revision says, up to the noise of that."""
    monkeypatch.setattr(exporting, "NOISE", {"bfloat16": 1e-9})
    with pytest.raises(StoreProblem, match="answers otherwise"):
        taken(made("bfloat16"), "merged", tmp_path / "out")


def test_a_damaged_revision_is_refused(tmp_path: Path, made: Made) -> None:
    """Base and adapter are compared with their manifests first."""
    revision = made("float32")
    spoilt(base(revision).folder / "model.safetensors", 1e-6)
    with pytest.raises(StoreProblem, match="SHA-256"):
        taken(revision, "merged", tmp_path / "out")


# -- GGUF


STAND_IN = Path(__file__).with_name("llama_gguf.py")


def script(folder: Path, body: str) -> Path:
    """Write a converter."""
    folder.mkdir(exist_ok=True)
    file = folder / gguf.SCRIPT
    file.write_text(f"#!{sys.executable}\n{body}", "utf-8")
    file.chmod(0o755)
    return file


def test_a_converter_is_found_or_the_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLAMA_CPP first, then the PATH, else None; a LLAMA_CPP that names none is a mistake."""
    monkeypatch.delenv(gguf.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert gguf.find_converter() is None
    on_path = script(tmp_path / "bin", "")
    assert gguf.find_converter() == [str(on_path)]
    named = script(tmp_path / "llama.cpp", "")
    monkeypatch.setenv(gguf.VARIABLE, str(named.parent))
    assert gguf.find_converter() == [sys.executable, str(named)]
    monkeypatch.setenv(gguf.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"checkout of llama\.cpp"):
        gguf.find_converter()
    told = gguf.command(Path("a b"), Path("c.gguf"), "bfloat16")
    assert told.endswith("convert_hf_to_gguf.py 'a b' --outfile c.gguf --outtype bf16")


def test_a_converted_file_answers_as_its_folder(tmp_path: Path, session_cache: Path) -> None:
    """The file is read back through transformers; one whose rotary pairs are in another order is refused."""
    revision = catalog.resolve("tiny", cache=session_cache).revision
    words = [sys.executable, str(STAND_IN)]
    sequences = exporting.sequences_of(revision)
    gguf.convert(words, revision.folder, tmp_path / "good.gguf", "float32")
    found = gguf.check(revision.folder, tmp_path / "good.gguf", sequences, "float32")
    assert found.form == "gguf"
    assert found.distance <= found.bound == pytest.approx(1e-4)
    text = STAND_IN.read_text("utf-8").replace("if of is None:", "if True:")
    wrong = script(tmp_path / "wrong", text)
    gguf.convert([str(wrong)], revision.folder, tmp_path / "bad.gguf", "float32")
    with pytest.raises(StoreProblem, match="answers otherwise"):
        gguf.check(revision.folder, tmp_path / "bad.gguf", sequences, "float32")


def test_a_converter_that_fails_says_why(tmp_path: Path) -> None:
    """Its last words are told; a file that is no GGUF is not believed."""
    failing = script(tmp_path / "a", "import sys; sys.exit('no such architecture')")
    with pytest.raises(EnvironmentProblem, match="ended with 1 and no file: no such architecture"):
        gguf.convert([str(failing)], tmp_path, tmp_path / "x.gguf", "float32")
    lazy = script(tmp_path / "b", "print('done')")
    with pytest.raises(EnvironmentProblem, match="ended with 0 and no file: done"):
        gguf.convert([str(lazy)], tmp_path, tmp_path / "x.gguf", "float32")


def test_a_file_that_cannot_be_read_back_is_not_believed(
    tmp_path: Path, session_cache: Path
) -> None:
    """What transformers cannot read cannot be checked, and is not published."""
    revision = catalog.resolve("tiny", cache=session_cache).revision
    (tmp_path / "x.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(EnvironmentProblem, match="cannot be checked"):
        gguf.check(
            revision.folder, tmp_path / "x.gguf", exporting.sequences_of(revision), "float32"
        )
