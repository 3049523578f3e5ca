"""Sampling that is ahead of training: the clipped loss, what was said by which weights, and the order of questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from drivers import Driver, Row, driving
from hypothesis import given
from hypothesis import strategies as st
from jobs import Bench, load, prompts, watched_gradient
from pydantic import ValidationError
from test_losses import NO_CLIP, Measured, _apart
from test_rewarded import deafen, liked, low, script, trained
from torch import Tensor

from redistill.policies.policy import Generation
from redistill.policies.transformers import TransformersPolicy
from redistill.trainers.policy_losses import TokenLogps, clipped, policy_gradient
from redistill.trainers.reinforce import GRPO, RLOO, Reinforce
from redistill.trainers.rollouts import Sampled

ONE_STEP: dict[str, Any] = {
    "k": 4,
    "batch_size": 16,
    "micro_batch": 8,
    "max_tokens": 9,
    "max_grad_norm": NO_CLIP,
    "save_every": 0,
    "steps": 1,
    "ahead": 1,
}


# -- the loss

Said = list[tuple[list[int], Generation]]


def injected(patch: pytest.MonkeyPatch) -> Said:
    """Let a job say what was made up, with log-probs on both sides of what the random student thinks of it."""
    kept: Said = []

    def say(self: Sampled, step: int, slots: Sequence[tuple[int, Row]]) -> list[Generation]:
        for place, row in slots:
            draw = random.Random(f"{step} {place}")
            ids = (*(draw.randrange(4, 100) for _ in range(draw.randrange(2, 7))), 2)
            unlike = tuple(draw.uniform(-5.4, -3.8) for _ in ids)  # it is near to uniform
            kept.append((row["prompt_ids"], Generation("x", ids, unlike, "stop")))
        return [one for _, one in kept[-len(slots) :]]

    patch.setattr(Sampled, "_generate", say)
    patch.setattr("redistill.trainers.watch._APART", 1e9)
    return kept


def by_hand(bench: Bench, trainer: Reinforce, said: Said) -> tuple[Measured, list[bool]]:
    """Compute loss and gradient in float64, one token at a time; and tell which tokens were clipped."""
    model = load(bench.start).double()
    rewards = [script(1, {"token_ids": list(one.token_ids)})[0] for _, one in said]
    terms: list[Tensor] = []
    weights: list[float] = []
    out: list[bool] = []
    for begin in range(0, len(said), trainer.k):
        known = [r for r in rewards[begin : begin + trainer.k] if r is not None]
        if len(set(known)) < 2:
            continue
        worths = trainer.advantages([rewards[begin : begin + trainer.k]])[0]
        for (prompt, one), worth in zip(said[begin : begin + trainer.k], worths, strict=True):
            if worth is None:
                continue
            ids = torch.tensor([[*prompt, *one.token_ids]])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            each = []
            for place, (token, old) in enumerate(zip(one.token_ids, one.logprobs, strict=True)):
                ratio = torch.exp(logits[place, token] - old)
                far = bool(ratio > 1.2) if worth > 0 else bool(ratio < 0.8)
                out.append(far)
                each.append(-worth * ratio.detach().clamp(0.8, 1.2) if far else -worth * ratio)
            one_loss = torch.stack(each)
            token_mean = trainer.average == "token"
            terms.append(one_loss.sum() if token_mean else one_loss.mean())
            weights.append(float(len(each)) if token_mean else 1.0)
    loss = torch.stack(terms).sum() / sum(weights)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return Measured(float(loss.detach()), found), out


@pytest.mark.parametrize("kind", [GRPO, RLOO])
@pytest.mark.parametrize("micro", [16, 2])
def test_a_step_by_hand(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: type[Reinforce], micro: int
) -> None:
    """Loss and gradient are those of the clipped ratio in float64 within 1e-5, however the step is cut."""
    trainer = kind(**{**ONE_STEP, "micro_batch": micro})
    with monkeypatch.context() as patch, driving(script) as driver:
        gradient = watched_gradient(patch)
        said = injected(patch)
        result = bench.train("a", trainer, prompts(4), address=driver.address)
    wanted, out = by_hand(bench, trainer, said)
    assert 0.1 < sum(out) / len(out) < 0.9  # both kinds of tokens are looked at
    found = {m["name"]: m["value"] for m in result.metrics}
    assert found["loss"] == pytest.approx(wanted.loss, rel=1e-5, abs=1e-7)
    assert _apart(gradient, wanted.gradient) < 1e-5
    if micro == 16:
        assert found["rollouts/clipped"] == pytest.approx(sum(out) / len(out))


@given(st.lists(st.tuples(st.floats(-8, 0), st.floats(-2, 2)), min_size=1, max_size=6))
def test_of_the_same_weights_nothing_is_clipped(tokens: list[tuple[float, float]]) -> None:
    """Where the trained weights are those that sampled, loss and gradient are those without a ratio."""
    advantage = torch.tensor([a for _, a in tokens], dtype=torch.float64)
    found = []
    for old in (False, True):
        logp = torch.tensor([[p] for p, _ in tokens], dtype=torch.float64, requires_grad=True)
        said = logp.detach().clone() if old else None
        batch = TokenLogps(logp, torch.ones_like(logp), advantage, said=said)
        loss = policy_gradient(batch, 0.0, "token", 1, 0.2)
        loss.sum().backward()
        assert logp.grad is not None
        found.append((loss.tolist(), logp.grad.tolist()))
        if old:
            assert not clipped(batch, 0.2).any()
    assert found[0] == found[1]


def test_what_is_clipped_has_no_gradient() -> None:
    """A token that has become as likely as it may teaches nothing more, and neither does one that is as rare."""
    logp = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]], requires_grad=True)
    said = torch.tensor([[-1.5, -0.5], [-1.5, -0.5]])
    batch = TokenLogps(logp, torch.ones(2, 2), torch.tensor([1.0, -1.0]), said=said)
    policy_gradient(batch, 0.0, "token", 1, 0.2).sum().backward()
    assert logp.grad is not None
    assert (logp.grad == 0).tolist() == [[True, False], [False, True]]
    assert clipped(batch, 0.2).tolist() == [[True, False], [False, True]]
    level = TokenLogps(logp, torch.ones(2, 2), torch.zeros(2), said=said)
    assert not clipped(level, 0.2).any()  # what is worth nothing teaches nothing anyway


def test_a_clip_that_would_do_nothing_is_refused() -> None:
    """Without `ahead` no ratio leaves 1, so a `clip` is a mistake; the settings of a job are read back whole."""
    with pytest.raises(ValidationError, match="without `ahead` there are none"):
        GRPO(clip=0.1)
    for trainer in (GRPO(), GRPO(ahead=2), GRPO(ahead=1, clip=0.3)):
        assert GRPO.model_validate(trainer.params()) == trainer
    assert (GRPO(ahead=2).bound, GRPO(ahead=1, clip=0.3).bound) == (0.2, 0.3)


# -- the job


def order(driver: Driver) -> list[str]:
    """Return what was asked in which order, each run of pieces as one."""
    found: list[str] = []
    for what, told in driver.heard:
        if (line := f"{what} {told['step']}") not in found[-1:]:
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("ahead", "wanted"),
    [
        (0, "judge 1, record 1, judge 2, record 2, judge 3, record 3, judge 4, record 4"),
        (1, "judge 1, judge 2, record 1, judge 3, record 2, judge 4, record 3, record 4"),
        (2, "judge 1, judge 2, judge 3, record 1, judge 4, record 2, record 3, record 4"),
    ],
)
def test_judges_are_asked_before_their_step(bench: Bench, ahead: int, wanted: str) -> None:
    """A step's rollouts are with the judges while those before it are learned from, and none beyond the last is said."""
    result, driver = trained(bench, "a", low, steps=4, ahead=ahead)
    assert result.status == "trained", result.message
    assert ", ".join(order(driver)) == wanted
    assert {row["slot"] for row in driver.rollouts if row["step"] == 4} == set(range(32))


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_which_weights_said_it(bench: Bench, ahead: int) -> None:
    """Under opposite judges two jobs say the same as long as their weights are the start's: one step, and `ahead` more."""

    def high(step: int, row: Row) -> list[float | None]:
        return [-(low(step, row)[0] or 0.0)]

    said = [trained(bench, n, j, steps=5, ahead=ahead)[1] for n, j in (("a", low), ("b", high))]
    for step in range(1, 6):
        one, two = (
            [r["token_ids"] for r in driver.rollouts if r["step"] == step] for driver in said
        )
        assert (one == two) == (step <= 1 + ahead), step


def test_it_learns_from_older_words(bench: Bench) -> None:
    """After 24 steps answers are what the judge likes, though every step but the first learned from older weights."""
    result, driver = trained(bench, "a", low, steps=24, ahead=1)
    assert result.status == "trained", result.message
    assert liked(driver, 24) > liked(driver, 1) + 0.2
    measured = {
        name: [m["value"] for m in result.metrics if m["name"] == name]
        for name in ("rollouts/gap", "rollouts/drift", "rollouts/clipped")
    }
    assert len(measured["rollouts/gap"]) == 23  # of every step that was sampled ahead
    assert max(measured["rollouts/gap"]) < 1e-4 < min(measured["rollouts/drift"][1:])
    assert measured["rollouts/drift"][0] < 1e-4
    assert measured["rollouts/clipped"][0] == 0 < max(measured["rollouts/clipped"])


def test_other_weights_than_are_trained_end_the_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that keeps the start's weights is found out when it samples, and not taken for drift."""
    follow = TransformersPolicy.follow

    def deaf(self: TransformersPolicy, model: Any, *rest: Any) -> None:
        follow(self, load(bench.start).eval())

    monkeypatch.setattr(TransformersPolicy, "follow", deaf)
    result, driver = trained(bench, "a", low, steps=24, ahead=1)
    assert result.status == "wrong_weights"
    assert "nats a token from what is trained" in result.message
    assert max(row["step"] for row in driver.rollouts) > 2  # at first they were the same
    assert not bench.published


def test_other_weights_are_found_out_where_all_is_sampled_at_the_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job that is shorter than its lead every step is looked at before the first is learned from."""
    deafen(bench, monkeypatch)
    result, driver = trained(bench, "a", low, steps=2, ahead=8)
    assert result.status == "wrong_weights"
    assert not driver.learned
