"""Sharing a prompt between two answers: the same numbers as without, and refused where they would be others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import Bench, pairs
from transformers import AutoModelForCausalLM, MistralConfig
from trl.trainer.utils import add_fused_lm_head

from redistill.trainers import answers as drivers
from redistill.trainers.answers import logps, padded
from redistill.trainers.preference import DPO, LOSSES
from redistill.trainers.sharing import IGNORED, can_share, share, sharing

FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
IDS = st.lists(st.integers(4, 90), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=4)
Batch = dict[str, torch.Tensor]


def batch(triples: list[tuple[list[int], list[int], list[int]]]) -> Batch:
    """Lay out prompts, chosen and rejected answers as TRL does."""
    prompts = [prompt for prompt, _, _ in triples]
    return padded(prompts * 2, [t[1] for t in triples] + [t[2] for t in triples])


@pytest.fixture(scope="module")
def model(tiny: tuple[Path, str]) -> Any:
    """The tiny student with TRL's head, measuring everything."""
    found = AutoModelForCausalLM.from_pretrained(tiny[0], dtype=torch.float32)
    add_fused_lm_head(found, outputs=("log_probs", *FIELDS[1:]))
    return found.eval()


def read(model: Any, given: Batch, **more: Any) -> Any:
    """Call the model as TRL does."""
    labels = given["input_ids"].masked_fill(given["completion_mask"] == 0, IGNORED)
    fields = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
    return model(**fields, labels=labels, fused_lm_head=True, use_cache=False, **more)


@settings(max_examples=30)
@given(PAIRS)
def test_every_field_is_what_it_is_apart(model: Any, triples: Any) -> None:
    """Log-probs, and all else that TRL's losses and metrics read, are the same for any lengths."""
    given = batch(triples)
    with torch.no_grad():
        apart, together = read(model, given), read(sharing(model), given)
    for name in FIELDS:
        one, other = getattr(apart, name).double(), getattr(together, name).double()
        assert torch.allclose(one, other, atol=2e-5), name


@settings(max_examples=30)
@given(PAIRS)
def test_no_answer_sees_the_other(triples: Any) -> None:
    """Of a row a token sees the prompt, what precedes it in its own answer, and itself."""
    shared = share(batch(triples))
    for row, (prompt, chosen, rejected) in enumerate(triples):
        n, c, r = len(prompt) - 1, len(chosen), len(rejected)
        seen = shared.mask[row, 0]
        for place in range(n + c, n + c + r):
            assert seen[place, : n + c].tolist() == [True] * n + [False] * c
        for place in range(n + c):
            assert seen[place].tolist() == [k <= place for k in range(seen.size(1))]


def test_a_prompt_is_computed_once() -> None:
    """A row has as many tokens as the prompt and both answers, less one."""
    shared = share(batch([([5] * 40, [6] * 3, [7] * 5)]))
    assert shared.input_ids.shape == (1, 40 - 1 + 3 + 5)


def test_a_sliding_window_is_found_out(tmp_path: Path) -> None:
    """A model whose tokens see only their neighbours has other numbers when answers share a row: not shared."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.5,
    )
    model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model)
    far, near = batch([([5, 6, 7, 8] * 3, [9] * 4, [10] * 6)]), batch([([5], [6], [7])])
    assert can_share(model, near)
    assert not can_share(model, far)


def test_a_longer_batch_is_proven_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was proven on short rows says nothing of longer ones: each new length is looked at."""
    looked: list[int] = []

    def look(model: Any, inputs: Batch) -> bool:
        looked.append(inputs["input_ids"].size(1))
        return can_share(model, inputs)

    monkeypatch.setattr(drivers, "can_share", look)
    rows = sorted(pairs(6), key=lambda row: len(row["prompt_ids"]))
    bench.train("a", DPO(batch_size=1, micro_batch=1, steps=6), rows)
    assert looked == sorted(set(looked))
    assert looked


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_trl_is_passed_through(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Each gives one step, with the same loss whether the prompt is shared or not."""
    options: dict[str, Any] = {"loss_type": [loss]}
    if loss in ("exo_pair", "robust"):
        options["label_smoothing"] = 0.1
    trainer = DPO(batch_size=4, micro_batch=4, steps=1, options=options)
    assert trainer.check() == []
    found = []
    for shares in (True, False):
        monkeypatch.setattr(drivers, "can_share", lambda *_, told=shares: told)
        result = bench.train(f"{loss}-{shares}", trainer, pairs(4))
        assert result.status == "trained", result.message
        found.append(next(m["value"] for m in result.metrics if m["name"] == "loss"))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_log_probs_of_a_batch_are_sums_over_answers(model: Any) -> None:
    """`logps` adds up the answer's tokens alone."""
    given = batch([([5, 6], [7, 8], [9])])
    with torch.no_grad():
        total = logps(model, given)
        each = read(model, given).log_probs
    assert torch.allclose(total, each.sum(1))
