"""The embedded sampler: rows that follow each other, standing buffers, and what makes a CPU quicker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from redistill.policies import batch, cpu, sampler  # noqa: E402
from redistill.policies.policy import Request, Sampling  # noqa: E402
from redistill.policies.transformers import TransformersPolicy  # noqa: E402
from redistill.testing.tiny import make_tiny_revision  # noqa: E402
from redistill.types import TokenIds  # noqa: E402

STOPS = frozenset({2, 40})
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.25,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a random Llama whose four heads share two sets of keys."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def windowed() -> Any:
    """Return a random Mistral that sees eight tokens back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)).eval()


def requests(count: int = 24) -> list[Request]:
    """Return requests of ragged prompts, three rows each, in no order of length."""
    lengths = (5, 31, 12, 3, 31, 20, 8, 15)
    prompts = [tuple(3 + (7 * i + j) % 90 for j in range(n)) for i, n in enumerate(lengths)]
    return [Request(prompts[i // 3 % len(prompts)], 100 + i) for i in range(count)]


def alone(model: Any, asked: list[Request], sampling: Sampling) -> list[sampler.Sampled]:
    """Return each row's answer when nobody shares its batch."""
    return [sampler.sample(model, [one], sampling, STOPS)[0] for one in asked]


class Counting:
    """A model that counts the tokens of each forward pass, padding included."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config = model.config
        self.shapes: list[tuple[int, int]] = []

    def parameters(self) -> Any:
        """Return the model's."""
        return self._model.parameters()

    def __call__(self, input_ids: Any, **given: Any) -> Any:
        """Count, and pass on."""
        self.shapes.append(tuple(input_ids.shape))
        return self._model(input_ids=input_ids, **given)


@pytest.mark.parametrize("spare", [0, 5, 128])
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_rows_that_follow_each_other_say_what_they_say_alone(
    model: Any, monkeypatch: pytest.MonkeyPatch, rows: int, spare: int
) -> None:
    """However many rows stand together, and however often what stands is moved, tokens are those of a row alone."""
    monkeypatch.setattr(sampler, "SPARE", spare)
    sampling = Sampling(temperature=0.9, max_tokens=30)
    expected = alone(model, requests(), sampling)
    assert len({len(one.token_ids) for one in expected}) > 5, "they end at different times"
    found = sampler.sample(model, requests(), sampling, STOPS, rows=rows)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.ended for one in found] == [one.ended for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_window_that_slides_grows(windowed: Any) -> None:
    """A model that does not see all keeps the library's own cache, and says what the library's generate says."""
    assert isinstance(
        batch.batch_for(windowed.config, 4, 64, torch.device("cpu")), batch.GrowingBatch
    )
    asked = requests(9)
    found = sampler.sample(windowed, asked, Sampling(0.0, max_tokens=24), frozenset({2}), rows=4)
    for request, said in zip(asked, found, strict=True):
        ids = torch.tensor([request.prompt_ids])
        expected = windowed.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=2)
        assert list(said.token_ids) == expected[0, ids.shape[1] :].tolist()


def test_a_model_that_sees_all_stands(model: Any) -> None:
    """Its buffers are made once: what the model is given at a step is a view of them."""
    standing = batch.batch_for(model.config, 4, 64, torch.device("cpu"))
    assert isinstance(standing, batch.StandingBatch)


def test_a_place_that_is_free_is_taken_and_a_prompt_is_read_once(model: Any) -> None:
    """While rows wait, every step is of a full batch; all prompts together are read once."""
    counting = Counting(model)
    asked = requests()
    found = sampler.sample(counting, asked, Sampling(max_tokens=30), STOPS, rows=4)
    read = [rows * width for rows, width in counting.shapes if width > 1]
    assert sum(read) == sum(31 for _ in range(8)), "one pass, padded to the longest"
    steps = [rows for rows, width in counting.shapes if width == 1]
    said = sum(len(one.token_ids) - 1 for one in found)
    assert sum(steps) == said
    full = [rows for rows in steps if rows == 4]
    assert steps[: len(full)] == full, "only when none waits, places stay free"


def test_prompts_are_read_a_few_at_a_time_longest_first(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many tokens at most are read at once, and what is read together is alike in length."""
    monkeypatch.setattr(sampler, "PREFILLED", 64)
    counting = Counting(model)
    sampler.sample(counting, requests(), Sampling(max_tokens=4), STOPS)
    read = [(rows, width) for rows, width in counting.shapes if width > 1]
    assert read == [(2, 31), (3, 20), (3, 8)]


def test_a_single_prompt_that_is_longer_than_a_reading_is_read(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least one prompt is read at a time, whatever its length."""
    monkeypatch.setattr(sampler, "PREFILLED", 2)
    sampling = Sampling(max_tokens=4)
    found = sampler.sample(model, requests(), sampling, STOPS)
    assert [one.token_ids for one in found] == [
        one.token_ids for one in alone(model, requests(), sampling)
    ]


def test_what_prompts_begin_with_is_read_once(
    model: Any, windowed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A common beginning is a row of its own, also where one prompt is another's beginning; a window has none."""
    monkeypatch.setattr(sampler, "SHARED", 20)
    common = tuple(range(5, 17))
    ends: list[TokenIds] = [(20, 21, 22, 23, 24), (30,), (20, 21), (40, 41, 42, 43, 44, 45, 46)]
    asked = [Request(common + end, 10 * i + j) for i, end in enumerate(ends) for j in range(4)]
    asked.append(Request(common, 99))
    for held, shapes in ((model, [(1, 11), (5, 8)]), (windowed, [(5, 19)])):
        counting = Counting(held)
        sampling = Sampling(temperature=0.9, max_tokens=30)
        found = sampler.sample(counting, asked, sampling, STOPS)
        assert [shape for shape in counting.shapes if shape[1] > 1] == shapes
        expected = alone(held, asked, sampling)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_quick_changes_answers_by_rounding_and_leaves_nothing(model: Any) -> None:
    """Tokens are the same, log-probs to 1e-5; afterwards layers and attention are the model's own."""
    sampling = Sampling(temperature=0.9, max_tokens=30)
    plain = sampler.sample(model, requests(), sampling, STOPS)
    with cpu.quick(model, cpu.PACKED_FROM):
        assert model.config._attn_implementation == cpu.GROUPED
        assert all("forward" in m.__dict__ for m in model.modules() if type(m) is torch.nn.Linear)
        found = sampler.sample(model, requests(), sampling, STOPS)
    for one, other in zip(found, plain, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_for_a_few_tokens_weights_are_not_packed(model: Any) -> None:
    """A copy of all weights takes longer than a short answer."""
    with cpu.quick(model, cpu.PACKED_FROM - 1):
        assert model.config._attn_implementation == cpu.GROUPED
        assert not any("forward" in m.__dict__ for m in model.modules())


def test_quick_leaves_nothing_when_the_work_fails(model: Any) -> None:
    """An error inside puts everything back, too."""
    with pytest.raises(ZeroDivisionError), cpu.quick(model, cpu.PACKED_FROM):
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_without_room_for_a_copy_the_layers_stay(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory has no room for packed weights, they are not packed."""
    monkeypatch.setattr(cpu, "SPARE_MEMORY", 1 << 40)
    with cpu.packed(model):
        assert not any("forward" in m.__dict__ for m in model.modules())


def test_packed_layers_under_autocast_are_the_plain_ones(model: Any) -> None:
    """Autocast has its own idea of a linear layer's precision, and is not passed over."""
    layer = model.model.layers[0].mlp.up_proj
    states = torch.randn(3, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = layer(states)
        with cpu.packed(model):
            assert torch.equal(layer(states), plain)
    assert plain.dtype == torch.bfloat16


def test_weights_that_change_between_calls_speak_at_once(tmp_path: Path) -> None:
    """No packed weight outlives its call: a followed model that is trained in between says new things."""
    revision = make_tiny_revision(tmp_path)
    policy = TransformersPolicy(revision)
    held: Any = AutoModelForCausalLM.from_pretrained(revision.folder).eval()
    policy.follow(held)
    asked = [Request((1, 20, 30), i) for i in range(40)]
    before = policy.generate(asked, Sampling(max_tokens=12))
    with torch.no_grad():
        for tensor in held.parameters():
            tensor.mul_(1.5)
    after = policy.generate(asked, Sampling(max_tokens=12))
    assert after != before
    fresh: Any = AutoModelForCausalLM.from_pretrained(revision.folder).eval()
    with torch.no_grad():
        for tensor in fresh.parameters():
            tensor.mul_(1.5)
    policy.follow(fresh)
    assert policy.generate(asked, Sampling(max_tokens=12)) == after


@pytest.mark.parametrize("count", [0, 1, 32, 33, 64, 100, 1000, 5000])
def test_parts_hold_each_row_once(count: int) -> None:
    """Rows are cut into parts of which none is empty, longest prompts first and a prompt's rows together."""
    prompts: list[TokenIds] = [(1,) * (1 + i // 4 % 9) for i in range(count)]
    parts = batch.parts_of(prompts, 32)
    order = [i for part in parts for i in part]
    assert sorted(order) == list(range(count))
    lengths = [len(prompts[i]) for i in order]
    assert lengths == sorted(lengths, reverse=True)
    assert len(parts) <= batch.MOST_PARTS
    assert len(parts) == (0 if not count else 1 if count <= 32 else max(2, min(16, count // 64)))
    assert all(parts)
