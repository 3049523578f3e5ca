"""Revisions: content hashes, manifests, publication and canaries."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from redistill.errors import StoreProblem  # noqa: E402
from redistill.policies import revision as revision_module  # noqa: E402
from redistill.policies.revision import (  # noqa: E402
    CANARY_TEXTS,
    MANIFEST,
    Canary,
    Revision,
    canary_sequences,
    check_canary,
    check_finite,
    fingerprint_model,
    publish,
    record_canary,
)
from redistill.testing.tiny import make_tiny_model, make_tiny_revision  # noqa: E402


def load(folder: Path, **settings: Any) -> Any:
    """Load a model without ceremony."""
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model; it is only read."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def staging(tiny: Path, tmp_path: Path) -> Path:
    """Return a folder that may be used up."""
    return Path(shutil.copytree(tiny, tmp_path / "staging"))


def put(staging: Path, root: Path, revision: str = "abc", **changes: Any) -> Revision:
    """Publish a folder with ordinary settings."""
    settings: dict[str, Any] = {"parent": None, "canary": None, "facts": {}} | changes
    return publish(staging, root, revision=revision, **settings)


def test_catalog_and_revision_are_imported_without_torch() -> None:
    """The core (check, show, query) loads no torch."""
    code = (
        "import sys, redistill.policies.revision, redistill.policies.catalog, redistill.policies.proof;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd="/", check=False).returncode == 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fingerprint_survives_saving_and_loading(tmp_path: Path, *, tied: bool, dtype: Any) -> None:
    """A model in memory and the same model from safetensors have one hash, tied head or not."""
    model = load(make_tiny_model(tmp_path / "a", tied=tied)).to(dtype)
    model.save_pretrained(tmp_path / "b")
    assert fingerprint_model(load(tmp_path / "b", dtype=dtype)) == fingerprint_model(model)


def test_fingerprint_sees_one_weight_and_the_precision(tiny: Path) -> None:
    """One changed weight, and another load precision, give another hash."""
    model = load(tiny)
    before = fingerprint_model(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-4
    assert fingerprint_model(model) != before
    assert fingerprint_model(load(tiny).bfloat16()) != before
    assert fingerprint_model(load(tiny)) == before


def test_published_revision_reads_back(staging: Path, tmp_path: Path) -> None:
    """What was published is what is read, and its files verify."""
    canary = record_canary(load(staging), canary_sequences(AutoTokenizer.from_pretrained(staging)))
    there = put(staging, tmp_path / "root", parent="older", canary=canary, facts={"step": 3})
    assert there == Revision("abc", tmp_path / "root" / "abc", "older", canary)
    assert Revision.read(there.folder) == there
    assert there.facts() == {"step": 3}
    there.verify_files()
    assert not staging.exists()


def test_flipped_byte_is_found_and_named(staging: Path, tmp_path: Path) -> None:
    """Bit rot in the weights is found before they are loaded (F39)."""
    there = put(staging, tmp_path / "root")
    file = there.folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreProblem, match=r"model\.safetensors is not what was written"):
        there.verify_files()
    file.write_bytes(data[:-9])
    with pytest.raises(StoreProblem, match=r"model\.safetensors has \d+ bytes"):
        there.verify_files()
    file.unlink()
    with pytest.raises(StoreProblem, match=r"model\.safetensors is missing"):
        there.verify_files()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"id": "x"}', '{"id": 1, "parent": null, "files": {}, "facts": {}, "canary": 3}'],
)
def test_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    """A manifest that is no manifest is named, not guessed at."""
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(StoreProblem, match=MANIFEST):
        Revision.read(tmp_path)


@pytest.mark.parametrize("killed_at", range(12))
def test_publication_is_whole_or_nothing(
    staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Whatever write it dies at, a revision is absent or verifies, and can be published again (F37)."""
    again = shutil.copytree(staging, tmp_path / "again")
    calls = 0

    def sync(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > killed_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(revision_module, "sync", sync)
    root = tmp_path / "root"
    try:
        put(staging, root)
    except KeyboardInterrupt:
        whole = (root / "abc").exists()
        assert not whole or calls == 9, "visible before all files were on disk"
        if whole:
            Revision.read(root / "abc").verify_files()
    else:
        assert calls == 9  # 7 files, their folder, the root
    monkeypatch.undo()
    put(again, root).verify_files()
    assert [f.name for f in root.iterdir()] == ["abc"]


def test_revision_that_is_there_wins(tiny: Path, tmp_path: Path) -> None:
    """Publishing the same weights twice keeps the first, and leaves no staging."""
    root = tmp_path / "root"
    put(Path(shutil.copytree(tiny, tmp_path / "one")), root, facts={"by": 1})
    second = put(Path(shutil.copytree(tiny, tmp_path / "two")), root, facts={"by": 2})
    assert second.facts() == {"by": 1}
    assert not (tmp_path / "two").exists()


def test_damaged_revision_gives_way(tiny: Path, tmp_path: Path) -> None:
    """A revision that does not verify does not keep a good one out; it is kept aside."""
    root = tmp_path / "root"
    first = put(Path(shutil.copytree(tiny, tmp_path / "one")), root)
    (first.folder / "config.json").write_text("{}", encoding="utf-8")
    put(Path(shutil.copytree(tiny, tmp_path / "two")), root).verify_files()
    aside = [f for f in root.iterdir() if f.name != "abc"]
    assert [f.name.startswith(".damaged-abc-") for f in aside] == [True]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_non_finite_weights_are_not_published(
    staging: Path, tmp_path: Path, value: float, dtype: Any
) -> None:
    """NaN and infinities in any precision keep a revision unpublished, and the tensor is named."""
    file = staging / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    tensors["model.norm.weight"][4] = value
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(StoreProblem, match=r"tensor model\.norm\.weight holds NaN"):
        put(staging, tmp_path / "root")
    assert not (tmp_path / "root" / "abc").exists()


def test_large_finite_weights_are_published(staging: Path, tmp_path: Path) -> None:
    """The finite scan refuses no finite number, however large."""
    file = staging / "model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    tensors["model.norm.weight"][4] = torch.finfo(torch.bfloat16).max
    save_file(tensors, file, {"format": "pt"})
    put(staging, tmp_path / "root")


def test_non_finite_model_is_refused(tiny: Path) -> None:
    """The same for a model in memory."""
    model = load(tiny)
    check_finite(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[5, 5] = math.nan
    with pytest.raises(StoreProblem, match="embed_tokens"):
        check_finite(model)


def test_folder_without_weights_is_not_published(staging: Path, tmp_path: Path) -> None:
    """A folder with no safetensors is no revision."""
    (staging / "model.safetensors").unlink()
    with pytest.raises(StoreProblem, match=r"no \*\.safetensors"):
        put(staging, tmp_path / "root")


def test_canary_sequences_are_longer_than_a_cache_block(tiny: Path) -> None:
    """Each canary has 24 to 64 tokens, so that a stale block of 16 shows."""
    sequences = canary_sequences(AutoTokenizer.from_pretrained(tiny))
    assert len(sequences) == len(CANARY_TEXTS) == 4
    assert all(24 <= len(s) <= 64 for s in sequences)


def test_canary_is_the_models_log_probs(tiny: Path) -> None:
    """A canary is log softmax of the logits at the next token, and recording it changes no mode."""
    model = load(tiny).train()
    canary = record_canary(model, [(5, 6, 7, 8)])
    assert model.training
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7, 8]])).logits[0].log_softmax(-1)
    assert canary.logprobs[0] == pytest.approx(
        [float(expected[i, token]) for i, token in enumerate((6, 7, 8))], abs=1e-5
    )


def of(*values: float) -> Canary:
    """Return a canary of one sequence with these log-probs."""
    return Canary((tuple(range(len(values) + 1)),), (values,))


numbers = st.floats(-50, 0, allow_nan=False)
noises = st.floats(1e-6, 0.05)


@given(numbers, numbers, noises)
def test_canary_tells_new_from_old(new: float, old: float, noise: float) -> None:
    """The new weights' own answer is accepted, the old weights' never, unless the two are too near."""
    told = abs(new - old) > 10 * noise
    assert check_canary(of(new), of(new), of(old), noise) == ("ok" if told else "inconclusive")
    assert check_canary(of(old), of(new), of(old), noise) == ("wrong" if told else "inconclusive")


@given(numbers, numbers, noises)
def test_canary_without_parent(new: float, said: float, noise: float) -> None:
    """With no parent, what counts is the distance to what was recorded."""
    assert check_canary(of(said), of(new), None, noise) == (
        "ok" if abs(said - new) <= 10 * noise else "wrong"
    )


def test_canary_of_broken_engine_is_wrong() -> None:
    """NaN is near to nothing."""
    assert check_canary(of(math.nan), of(-1.0), of(-2.0), 1.0) == "wrong"
    assert check_canary(of(-1.0, math.nan), of(-1.0, -2.0), None, 1.0) == "wrong"


def test_half_loaded_weights_are_wrong() -> None:
    """An answer between the old and the new weights is no new answer, near as it may be."""
    assert check_canary(of(-1.08), of(-1.0), of(-1.16), 0.01) == "wrong"


def test_canaries_of_different_sequences_are_not_compared() -> None:
    """A distance between answers to different questions is an error, not a number."""
    with pytest.raises(ValueError, match="different sequences"):
        of(-1.0).distance(of(-1.0, -2.0))


def test_tiny_revision_names_its_weights(tmp_path: Path) -> None:
    """The id of a published tiny revision is the fingerprint of what its folder loads to."""
    there = make_tiny_revision(tmp_path, seed=3)
    assert fingerprint_model(load(there.folder)) == there.id
    assert json.loads((there.folder / MANIFEST).read_bytes())["id"] == there.id
    assert make_tiny_revision(tmp_path, seed=4).id != there.id
