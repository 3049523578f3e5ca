"""Distillation across tokenizers: which places belong together, the loss by hand, and a round of it."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from drivers import driving
from hypothesis import given
from hypothesis import strategies as st
from jobs import Bench, load, watched_gradient
from test_distilled import SHORT, quiet
from test_losses import Measured, _apart
from test_on_policy import lesson
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from redistill.agents.loop import Place, run
from redistill.errors import BadInput
from redistill.policies import catalog
from redistill.policies.revision import fingerprint_model
from redistill.store.query import read_rows
from redistill.testing.tiny import make_tiny_model
from redistill.trainers.across import _codec_of, aligned, begins
from redistill.trainers.distill import Distill
from redistill.trainers.job import Held

PAIRS = ["".join(two) for two in itertools.product(string.ascii_lowercase, repeat=2)]


def make_foreign_model(folder: Path) -> Path:
    """Make a model whose tokens are pairs of letters, in another order and with other ids than the tiny one's."""
    make_tiny_model(folder, seed=3)
    told = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    known = list(told["model"]["vocab"])
    special = [t for t in known if t.startswith("<|")]
    vocabulary = {t: n for n, t in enumerate([*special, *PAIRS, *reversed(known[len(special) :])])}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.model = models.WordLevel(vocabulary, unk_token="<|unknown|>")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]{2}|[\s\S]"), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = LlamaConfig.from_pretrained(folder)
    config.vocab_size = len(vocabulary)
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with another tokenizer."""
    return make_foreign_model(tmp_path_factory.mktemp("foreign") / "model")


def test_places_by_hand() -> None:
    """`h e l l o` and `he ll o`: the second letters of a pair begin no token there."""
    one, other = [0, 1, 2, 3, 4, 5], [0, 2, 4, 5]
    assert aligned(one, other) == [(0, 0), (2, 1), (4, 2), (5, 3)]
    assert aligned(other, one) == [(0, 0), (1, 2), (2, 4), (3, 5)]
    assert aligned([0, -1, 2], [0, 1, 2]) == [(0, 0), (2, 2)]


@given(st.text(string.ascii_lowercase + " .", max_size=30))
def test_places_have_the_same_text_before_them(foreign: Path, tiny: Any, text: str) -> None:
    """Whatever is said: before the tokens of a place both have said the same letters; the end is one of them."""
    codecs = [_codec_of(tiny[0]), _codec_of(foreign)]
    rows = [(*codec.plain(text), codec.end) for codec in codecs]
    starts = [begins(codec, ids, text) for codec, ids in zip(codecs, rows, strict=True)]
    both = aligned(*starts)
    for mine, other in both:
        assert codecs[0].decode(rows[0][:mine]) == codecs[1].decode(rows[1][:other])
    assert both[-1] == (len(rows[0]) - 1, len(rows[1]) - 1)
    assert len(both) == len(rows[1])


def test_the_loss_by_hand(bench: Bench, foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient of two rollouts are those of the sorted probabilities at common letters, in float64."""
    from redistill.policies.policy import Generation
    from redistill.trainers.rollouts import Sampled

    mine, theirs = _codec_of(bench.start), _codec_of(foreign)
    texts = ["hello.", "a word"]
    said = [(*mine.plain(text), mine.end) for text in texts]
    rows = [
        {
            "id": f"r{n}",
            "prompt_ids": list(mine.plain(f"say {text}")),
            "weight": 1.0,
            "teacher": "teacher",
            "teacher_prompt_ids": list(theirs.plain(f"say {text}")),
        }
        for n, text in enumerate(texts)
    ]

    def say(self: Sampled, step: int, slots: Sequence[tuple[int, Any]]) -> list[Generation]:
        ids = [said[int(row["id"][1:])] for _, row in slots]
        return [Generation("", one, tuple(-1.0 for _ in one), "stop") for one in ids]

    gradient = watched_gradient(monkeypatch)
    monkeypatch.setattr(Sampled, "_generate", say)
    held = {"teacher": Held(folder=foreign, revision=fingerprint_model(load(foreign)))}
    trainer = Distill(across=True, batch_size=2, micro_batch=1, **SHORT)
    with driving(quiet) as driver:
        result = bench.train("a", trainer, rows, address=driver.address, held=held)
    assert result.status == "trained", result.message
    loss = next(m["value"] for m in result.metrics if m["name"] == "loss")
    ours = Measured(loss, gradient)

    student, teacher = load(bench.start).double(), load(foreign).double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, ids, text in zip(rows, said, texts, strict=True):
        other = (*theirs.plain(text), theirs.end)
        q = _probabilities(student, row["prompt_ids"], ids)
        with torch.no_grad():
            p = _probabilities(teacher, row["teacher_prompt_ids"], other)
        letters = {len(theirs.decode(other[:n])): n for n in range(len(other))}
        for place in range(len(ids)):
            if place in letters:  # the student's tokens are single letters
                a = q[place].sort(descending=True).values
                b = p[letters[place]].sort(descending=True).values
                a = torch.cat([a, torch.zeros(len(b) - len(a), dtype=torch.float64)])
                total, count = total + (a - b).abs().sum(), count + 1
    wanted_loss = total / count
    wanted_loss.backward()
    found = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert ours.loss == pytest.approx(float(wanted_loss.detach()), rel=1e-5)
    assert _apart(ours.gradient, found) < 1e-5


def _probabilities(model: Any, prompt: Any, answer: Sequence[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    found: Tensor = logits.softmax(-1)
    return found


def test_f34_another_tokenizer_teaches_across_alone(tmp_path: Path, foreign: Path) -> None:
    """A teacher whose map from tokens to ids differs is refused, until the recipe says that it teaches across."""
    roles = {"teacher": {"policy": str(foreign)}}
    place = Place(tmp_path / "runs", catalog.default_cache())
    plain = {"trainer": "distill", "teacher": "teacher"}
    with pytest.raises(BadInput, match="another tokenizer"):
        run(lesson(tmp_path, [], plain, roles=roles), place=place)
    folder = run(
        lesson(tmp_path, [], plain | {"across": True}, roles=roles, name="two"), place=place
    )
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]


def test_across_has_a_loss_of_its_own() -> None:
    """Settings of the other divergences are refused beside it."""
    for setting in ({"beta": 0}, {"top_k": 4}):
        with pytest.raises(ValueError, match="a loss of its own"):
            Distill.model_validate({"across": True, **setting})
