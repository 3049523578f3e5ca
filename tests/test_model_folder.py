"""A model folder as it comes: what would go wrong in the middle of a run is found before a weight is read.

Rows U38 to U49 of what users bring; those that a look at the files finds are in `test_catalog.py`.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, LlamaForSequenceClassification  # noqa: E402

from redistill.errors import BadInput, StoreProblem  # noqa: E402
from redistill.policies import catalog  # noqa: E402
from redistill.policies.chat import ChatCodec  # noqa: E402
from redistill.policies.model_folder import PLAIN_TEMPLATE  # noqa: E402
from redistill.policies.policy import Request, Sampling  # noqa: E402
from redistill.policies.reward import RewardModel  # noqa: E402
from redistill.policies.speech import speech_of  # noqa: E402
from redistill.policies.transformers import TransformersPolicy  # noqa: E402
from redistill.testing.tiny import make_tiny_model  # noqa: E402
from redistill.types import Message  # noqa: E402

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model; it is only read."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "my-model")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """Return a model folder that may be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "my-model"))


def rewrite(folder: Path, name: str, **changes: Any) -> None:
    """Set keys of a JSON file, and remove those that are None."""
    file = folder / name
    facts = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    kept = {k: v for k, v in (facts | changes).items() if v is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


def retensor(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def refused(folder: Path, tmp_path: Path, kind: type[Exception] = BadInput) -> str:
    """Return what resolving a folder says, which is one line for one fault, and leaves nothing behind.

    What its tokenizer lacks is told by the check before a run already.
    """
    cache = tmp_path / "cache"
    before = ""
    try:
        catalog.check(str(folder), cache)
    except BadInput as error:
        before = str(error)
    with pytest.raises(kind) as caught:
        catalog.resolve(str(folder), cache=cache)
    assert not [f for f in cache.rglob("*") if f.is_file() and not f.name.endswith(".lock")]
    assert "\n" not in str(caught.value)
    assert before in ("", str(caught.value))
    return str(caught.value)


# -- weights


def flip(folder: Path) -> None:
    """Change one bit of a number, which stays a number."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)


def test_u38_a_changed_bit_is_found_by_the_manifest(tiny: Path, tmp_path: Path) -> None:
    """A folder with a manifest is compared with it, although the changed weights are finite."""
    whole = catalog.resolve(str(tiny), cache=tmp_path / "first").folder
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    assert catalog.resolve(str(copy), cache=tmp_path / "second").revision.id == whole.name
    flip(copy)
    line = refused(copy, tmp_path, StoreProblem)
    assert line == f"{copy / 'model.safetensors'} is not what was written: its SHA-256 differs"


def test_u38_nan_is_named_with_file_and_tensor(folder: Path, tmp_path: Path) -> None:
    """Without a manifest the scan for what is no number remains, before anything is built."""
    retensor(folder, lambda t: t["model.norm.weight"].__setitem__(0, float("inf")))
    line = refused(folder, tmp_path, StoreProblem)
    assert line == (
        f"{folder / 'model.safetensors'}: tensor model.norm.weight holds NaN or an infinity"
    )


def make_reward(tiny: Path, folder: Path) -> Path:
    """Write a reward model with the tiny tokenizer."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    config = AutoConfig.from_pretrained(tiny)
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_u38_a_reward_model_is_scanned_too(tiny: Path, tmp_path: Path) -> None:
    """A judge that answers NaN would have been a run without a single verdict."""
    folder = make_reward(tiny, tmp_path / "reward")
    RewardModel(folder)
    retensor(folder, lambda t: t["model.norm.weight"].__setitem__(0, float("nan")))
    with pytest.raises(StoreProblem, match=r"model\.norm\.weight holds NaN"):
        RewardModel(folder)


def test_u39_a_missing_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    """What is missing would be random; it is refused by name, and so is what belongs to nothing."""
    retensor(folder, lambda t: t.update(stray=t.pop("model.layers.1.mlp.up_proj.weight")))
    with pytest.raises(BadInput) as caught:
        catalog.resolve(str(folder), cache=tmp_path / "cache")
    lines = [str(problem) for problem in caught.value.problems]
    assert f"{folder}: missing keys: model.layers.1.mlp.up_proj.weight" in lines
    assert f"{folder}: unexpected keys: stray" in lines


def test_u39_a_tensor_of_another_shape_is_named_with_both(folder: Path, tmp_path: Path) -> None:
    """What does not fit is told by name, with the shape that is stored and the one that is wanted."""
    name = "model.layers.0.self_attn.q_proj.weight"
    retensor(folder, lambda t: t.update({name: t[name][:16].clone()}))
    line = refused(folder, tmp_path)
    assert f"{name} is [16, 32] in the file and [32, 32] in the model" in line


def test_u45_the_dtype_that_is_chosen_is_said(folder: Path, tmp_path: Path) -> None:
    """Half precision is read, and the line before the work says from what to what."""
    retensor(folder, lambda t: t.update({n: x.half() for n, x in t.items()}))
    for precision in ("float32", "bfloat16"):
        said: list[str] = []
        held = catalog.resolve(
            str(folder), cache=tmp_path / "cache", say=said.append, precision=precision
        )
        [line] = said
        assert f"from F16 to {precision} safetensors, once; its answers end with" in line
        stored = load_file(held.folder / "model.safetensors").values()
        assert {str(t.dtype) for t in stored} == {f"torch.{precision}"}


def test_u45_finite_weights_without_finite_answers_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    """A probe follows the scan: weights that are numbers can still answer with none."""
    retensor(folder, lambda t: [x.fill_(3e38) for n, x in t.items() if "proj" in n])
    line = refused(folder, tmp_path)
    assert "its log-probs are no numbers in float32, although its weights are" in line


# -- what it speaks with


def test_u42_a_tokenizer_larger_than_the_embeddings(folder: Path, tmp_path: Path) -> None:
    """The sizes are told with the first token that has no embedding, before weights are read."""
    rewrite(folder, "config.json", vocab_size=50)
    line = refused(folder, tmp_path)
    assert "its tokenizer has ids up to 100, its embeddings 50 rows: 'M' (50) is the first" in line


def test_u42_one_id_far_out_is_found(folder: Path, tmp_path: Path) -> None:
    """A vocabulary that is small enough may still hold an id that is not."""
    facts = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = facts["model"]["vocab"]
    vocabulary["~"] = 4000
    (folder / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
    line = refused(folder, tmp_path)
    assert "ids up to 4000, its embeddings 101 rows: '~' (4000) is the first token" in line


def test_u42_a_judge_is_held_to_it_too(tiny: Path, tmp_path: Path) -> None:
    """A reward model would index beyond its embeddings in the middle of a round."""
    folder = make_reward(tiny, tmp_path / "reward")
    rewrite(folder, "config.json", vocab_size=50)
    with pytest.raises(BadInput, match=r"its embeddings 50 rows: 'M' \(50\) is the first"):
        RewardModel(folder)


def test_u43_the_remedy_for_a_missing_template_works(folder: Path, tmp_path: Path) -> None:
    """The template that the message offers makes the folder a model that answers."""
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadInput) as caught:
        catalog.check(str(folder), tmp_path / "cache")
    [problem] = caught.value.problems
    assert problem.hint.endswith(f"that file may be: {PLAIN_TEMPLATE}")
    (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
    model = catalog.resolve(str(folder), cache=tmp_path / "cache")
    policy = TransformersPolicy(model.revision)
    policy.load(model.revision)
    ids = policy.encode([Message("user", "Hi")])
    assert policy.generate([Request(ids, 1)], Sampling(max_tokens=2))


def test_u44_a_run_is_refused_before_it_has_a_folder(folder: Path, tmp_path: Path) -> None:
    """What a model cannot say is found before anything of a run is written."""
    endless(folder)
    with pytest.raises(BadInput, match="no answer would end"):
        catalog.check(str(folder), tmp_path / "cache")


def test_u43_a_template_that_fails_is_found_before_the_run(folder: Path, tmp_path: Path) -> None:
    """A template that is there and cannot be rendered is as good as none."""
    (folder / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    assert "its chat template fails on a single question: TemplateSyntaxError" in refused(
        folder, tmp_path
    )


def endless(folder: Path) -> None:
    """Take every end token away."""
    rewrite(folder, "tokenizer_config.json", eos_token=None, pad_token=None)
    rewrite(folder, "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink(missing_ok=True)


def test_u44_no_end_token_is_refused_with_its_remedy(folder: Path, tmp_path: Path) -> None:
    """The places that were looked at are named, and the token that the template closes a turn with."""
    endless(folder)
    line = refused(folder, tmp_path)
    assert "it names no end token, so that no answer would end: looked for eos_token in" in line
    assert line.endswith(
        "set eos_token in tokenizer_config.json to '<|im_end|>', which closes a turn in its chat template"
    )
    rewrite(folder, "tokenizer_config.json", eos_token="<|im_end|>")
    assert speech_of(folder).ends == ("<|im_end|>",)


def test_u44_an_end_that_the_model_names_is_given_to_the_tokenizer(
    folder: Path, tmp_path: Path
) -> None:
    """Where only the config names an end, trainer and sampler stop at the same token all the same."""
    endless(folder)
    rewrite(folder, "generation_config.json", eos_token_id=[2, 0])
    said: list[str] = []
    model = catalog.resolve(str(folder), cache=tmp_path / "cache", say=said.append)
    assert "its answers end with '<|im_end|>' or '<|endoftext|>'" in said[0]
    policy = TransformersPolicy(model.revision)
    assert policy.spell("a")[-1] == 2
    assert policy.stop_ids == {0, 2}


def test_u44_an_end_that_nobody_can_say_is_refused(folder: Path, tmp_path: Path) -> None:
    """An id beyond the vocabulary never comes, and the answers would not end."""
    rewrite(folder, "generation_config.json", eos_token_id=2000)
    assert "eos_token_id 2000 is no token of its tokenizer" in refused(folder, tmp_path)


def test_u44_the_default_of_an_architecture_ends_no_answer(folder: Path, tmp_path: Path) -> None:
    """A Llama ends with token 2 unless it says otherwise; where only the tokenizer says it, that counts."""
    endless(folder)
    rewrite(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
    model = catalog.resolve(str(folder), cache=tmp_path / "cache")
    assert TransformersPolicy(model.revision).stop_ids == {0}


def test_u44_a_turn_closed_by_another_token_is_told(folder: Path, tmp_path: Path) -> None:
    """Answers that close as the template does would run on; that is a line, because it may be meant."""
    endless(folder)
    rewrite(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
    said: list[str] = []
    catalog.resolve(str(folder), cache=tmp_path / "cache", say=said.append)
    assert said[0].endswith("closes an answer with '<|im_end|>', which is none of its end tokens")


def test_u41_a_broken_tokenizer_is_one_line(folder: Path, tmp_path: Path) -> None:
    """A tokenizer.json that is JSON and no tokenizer ends in no traceback."""
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    assert "its tokenizer cannot be read: " in refused(folder, tmp_path)


def test_f14_one_beginning_however_many_places_write_it(folder: Path, tmp_path: Path) -> None:
    """A template that writes the beginning and a tokenizer that adds it give one."""
    template = (folder / "chat_template.jinja").read_text("utf-8")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + template, encoding="utf-8")
    rewrite(folder, "tokenizer_config.json", bos_token="<|unknown|>", add_bos_token=True)
    codec = ChatCodec(speech_of(folder).tokenizer)
    ids = codec.conversation([Message("user", "Hi")])
    assert ids.count(ids[0]) == 1


# -- code that comes with a model


EVIL = "from pathlib import Path; Path({marker!r}).write_text('ran')"


def with_code_in_config(folder: Path) -> None:
    """Name an architecture that is code of the folder's own."""
    rewrite(folder, "config.json", model_type="mine", auto_map={"AutoConfig": "evil.C"})


def with_code_in_tokenizer(folder: Path) -> None:
    """Name a tokenizer that is code of the folder's own, for an architecture that is known."""
    auto = {"AutoTokenizer": ["evil.T", "evil.T"]}
    rewrite(folder, "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("change", [with_code_in_config, with_code_in_tokenizer])
def test_u47_code_is_never_run_and_nobody_is_asked(
    folder: Path, tmp_path: Path, change: Change, *, terminal: bool
) -> None:
    """With a terminal or with stdin closed, the run ends at once or goes on without the code."""
    marker = tmp_path / "marker"
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)), encoding="utf-8")
    change(folder)
    code = (
        "import sys; from pathlib import Path; from redistill.errors import BadInput\n"
        "from redistill.policies import catalog\n"
        "try: print(catalog.resolve(sys.argv[1], cache=Path(sys.argv[2])).revision.id)\n"
        "except BadInput as error: print(error); sys.exit(error.exit_code)"
    )
    ours, theirs = pty.openpty() if terminal else (-1, subprocess.DEVNULL)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder), str(tmp_path / "cache")],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=240,
    )
    for handle in (ours, theirs) if terminal else ():
        os.close(handle)
    assert not marker.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert done.returncode in ((2,) if change is with_code_in_config else (0, 2)), done.stderr
    if done.returncode == 2:
        assert "is code that comes with the model, which is never run" in done.stdout
    else:
        [config] = (tmp_path / "cache").rglob("tokenizer_config.json")
        assert "auto_map" not in json.loads(config.read_text("utf-8"))
