"""Rollouts that are rewarded: formulas, groups, laws, and what a job does with judges that fail."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from drivers import Driver, Row, driving
from hypothesis import given
from hypothesis import strategies as st
from jobs import Bench, first, load, prompts, watched_gradient
from test_losses import NO_CLIP, Measured, _apart
from torch import Tensor

from redistill.policies.policy import Generation
from redistill.policies.transformers import TransformersPolicy
from redistill.trainers import advantages
from redistill.trainers.job import Held, Result
from redistill.trainers.reinforce import GRPO, RLOO, Reinforce
from redistill.trainers.rollouts import Sampled
from redistill.trainers.watch import Stopped, Watch

SHORT: dict[str, Any] = {"steps": 1, "max_tokens": 9, "max_grad_norm": NO_CLIP, "save_every": 0}


# -- advantages


def test_advantages_by_hand() -> None:
    """Four rewards of one group: GRPO's, with each scale, and RLOO's, written out."""
    group = [1.0, 0.0, 0.0, 1.0]
    deviation = (4 * 0.25 / 3) ** 0.5  # of a sample
    assert advantages.group_relative([group], "group")[0] == pytest.approx(
        [a / (deviation + 1e-4) for a in (0.5, -0.5, -0.5, 0.5)]
    )
    assert advantages.group_relative([group], "none")[0] == [0.5, -0.5, -0.5, 0.5]
    both = advantages.group_relative([group, [1.0, 1.0, 1.0, 0.0]], "batch")
    spread = torch.tensor([*group, 1.0, 1.0, 1.0, 0.0]).double().std().item()
    assert both[1] == pytest.approx([a / (spread + 1e-4) for a in (0.25, 0.25, 0.25, -0.75)])
    assert advantages.leave_one_out([[1.0, 0.2, 0.0]])[0] == pytest.approx([0.9, -0.3, -0.6])


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_who_was_not_judged_is_absent(rewards: list[float | None], draw: random.Random) -> None:
    """Advantages of a group with failed judgements are those of the group without them, by every rule."""
    known = [r for r in rewards if r is not None]
    for rule in (
        lambda g: advantages.group_relative(g, "group"),
        lambda g: advantages.group_relative(g, "batch"),
        lambda g: advantages.group_relative(g, "none"),
        advantages.leave_one_out,
    ):
        found = [a for a in rule([rewards])[0] if a is not None]
        assert found == (rule([known])[0] if known else [])
    assert advantages.differ(rewards) == advantages.differ(known)
    assert advantages.combined([rewards, rewards], [1.0, 0.5]) == [
        None if r is None else r + 0.5 * r for r in rewards
    ]


# -- the loss


def said_by(draw: random.Random) -> Generation:
    """Make up an answer."""
    ids = (*(draw.randrange(4, 100) for _ in range(draw.randrange(2, 7))), 2)
    return Generation("x", ids, tuple(draw.uniform(-3, 0) for _ in ids), "stop")


def injected(patch: pytest.MonkeyPatch) -> list[tuple[list[int], Generation]]:
    """Let a job say what was made up before, the same whatever its weights are; return what that is."""
    kept: list[tuple[list[int], Generation]] = []

    def say(self: Sampled, step: int, slots: Sequence[tuple[int, Row]]) -> list[Generation]:
        found = []
        for place, row in slots:
            draw = random.Random(f"{step} {place}")
            found.append(said_by(draw))
            kept.append((row["prompt_ids"], found[-1]))
        return found

    patch.setattr(Sampled, "_generate", say)
    # What was made up is far from what the policy thinks of it.
    patch.setattr("redistill.trainers.watch._APART", 1e9)
    return kept


def measure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, trainer: Reinforce, script: Any, **fields: Any
) -> tuple[Measured, list[tuple[list[int], Generation]], Driver]:
    """Run one optimiser step on made-up rollouts, and keep its loss and gradient."""
    with monkeypatch.context() as patch, driving(script) as driver:
        gradient = watched_gradient(patch)
        kept = injected(patch)
        result = bench.train(
            f"m{trainer.micro_batch}", trainer, prompts(4), address=driver.address, **fields
        )
    assert result.status == "trained", result.message
    loss = next(m["value"] for m in result.metrics if m["name"] == "loss")
    return Measured(loss, gradient), kept, driver


def script(step: int, row: Row) -> list[float | None]:
    """Reward by what was said; one answer in five cannot be judged."""
    draw = random.Random(str(row["token_ids"]))
    return [None if draw.random() < 0.2 else draw.choice([0.0, 0.5, 1.0])]


def by_hand(
    bench: Bench, trainer: Reinforce, said: Sequence[tuple[list[int], Generation]]
) -> Measured:
    """Compute loss and gradient of rollouts in float64, one sequence at a time."""
    model, reference = load(bench.start).double(), load(bench.start).double()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.01)

    def read(of: Any, prompt: list[int], answer: Sequence[int]) -> Tensor:
        logits = of(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        picked: Tensor = logits.log_softmax(-1)[range(len(answer)), list(answer)]
        return picked

    rewards = [script(1, {"token_ids": list(one.token_ids)})[0] for _, one in said]
    k = trainer.k
    terms: list[Tensor] = []
    weights: list[float] = []
    for begin in range(0, len(said), k):
        group = rewards[begin : begin + k]
        known = torch.tensor([r for r in group if r is not None], dtype=torch.float64)
        if len(known) < 2 or float(known.max() - known.min()) == 0:
            continue
        for (prompt, one), reward in zip(said[begin : begin + k], group, strict=True):
            if reward is None:
                continue
            worth = reward - float(known.mean())
            if isinstance(trainer, RLOO):
                worth *= len(known) / (len(known) - 1)
            elif trainer.scale == "group":  # type: ignore[attr-defined]
                worth /= float(known.std()) + 1e-4
            logp = read(model, prompt, one.token_ids)
            ref = read(reference, prompt, one.token_ids).detach()
            each = -worth * torch.exp(logp - logp.detach())
            each = each + trainer.beta * (torch.exp(ref - logp) - (ref - logp) - 1)
            if trainer.average == "constant":
                terms, weights = [*terms, each.sum() / trainer.max_tokens], [*weights, 1.0]
            elif trainer.average == "sequence":
                terms, weights = [*terms, each.mean()], [*weights, 1.0]
            else:
                terms, weights = [*terms, each.sum()], [*weights, float(len(each))]
    loss = torch.stack(terms).sum() / sum(weights)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return Measured(float(loss.detach()), found)


CASES: dict[str, Reinforce] = {
    "grpo": GRPO(k=4, batch_size=16, micro_batch=8, beta=0.3, **SHORT),
    "grpo_sequence": GRPO(k=4, batch_size=16, micro_batch=8, average="sequence", **SHORT),
    "dr_grpo": GRPO(k=4, batch_size=16, micro_batch=8, average="constant", scale="none", **SHORT),
    "rloo": RLOO(k=4, batch_size=16, micro_batch=8, beta=0.1, **SHORT),
}


def moved_reference(bench: Bench) -> dict[str, Held]:
    """Make a reference that is not the start, so that its price has a gradient."""
    from redistill.policies.revision import fingerprint_model

    model, folder = load(bench.start), bench.run / "reference"
    if not folder.exists():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        model.save_pretrained(folder)
    return {"reference": Held(folder=folder, revision=fingerprint_model(load(folder)))}


@pytest.mark.parametrize("name", CASES)
def test_a_step_by_hand(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Loss and gradient of a step are those of the paper's formula in float64, within 1e-5."""
    trainer = CASES[name]
    held = moved_reference(bench)
    ours, said, _ = measure(bench, monkeypatch, trainer, script, held=held)
    wanted = by_hand(bench, trainer, said)
    assert ours.loss == pytest.approx(wanted.loss, rel=1e-5, abs=1e-7)
    assert _apart(ours.gradient, wanted.gradient) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_a_step_in_parts_is_the_whole_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Sixteen rollouts at once and eight times two give one gradient."""
    held = moved_reference(bench)
    whole, parts = (
        measure(
            *(bench, monkeypatch, CASES[name].model_copy(update={"micro_batch": micro}), script),
            held=held,
        )[0]
        for micro in (16, 2)
    )
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5, abs=1e-7)
    assert _apart(parts.gradient, whole.gradient) < 1e-5


def test_what_says_nothing_is_as_if_it_were_not_sampled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that all fail, or that none could be judged in, changes no gradient; only one group has any."""

    def lone(step: int, row: Row) -> list[float | None]:
        place = row["slot"] // 4
        return [script(step, row)[0] if place == 0 else (None if place == 1 else 0.0)]

    trainer = CASES["grpo_sequence"]
    ours, said, driver = measure(bench, monkeypatch, trainer, lone)
    wanted = by_hand(bench, trainer, said[:4])
    assert _apart(ours.gradient, wanted.gradient) < 1e-5
    weights = {row["slot"] // 4: row["weight"] for row in driver.learned if row["weight"]}
    assert set(weights) == {0}


def test_f06_a_length_term_teaches_nothing_where_all_fail(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four wrong answers of different length, and a judge of length beside the verifier: no phantom advantage."""

    def wrong(step: int, row: Row) -> list[float | None]:
        return [0.0, len(row["token_ids"]) / 10]

    trainer = GRPO(k=4, batch_size=16, micro_batch=8, learning_rate=1e-3, **SHORT)
    with driving(wrong, (1.0, 0.5)) as driver, monkeypatch.context() as patch:
        injected(patch)
        result = bench.train("a", trainer, prompts(4), address=driver.address)
    assert result.status == "no_change"
    assert [row["weight"] for row in driver.learned] == [0.0] * 16
    assert {row["advantage"] for row in driver.learned} == {0.0}


# -- the job


def low(step: int, row: Row) -> list[float | None]:
    """Like tokens of the vocabulary's first half."""
    return [sum(token < 50 for token in row["token_ids"]) / len(row["token_ids"])]


def liked(driver: Driver, step: int) -> float:
    """Return what the rollouts of a step have earned on average."""
    found = [low(step, row)[0] or 0.0 for row in driver.rollouts if row["step"] == step]
    return sum(found) / len(found)


def trained(bench: Bench, name: str, judge: Any, **settings: Any) -> tuple[Result, Driver]:
    """Run a job whose policy samples for real."""
    usual = {"k": 8, "batch_size": 32, "micro_batch": 16, "max_tokens": 8, "learning_rate": 1e-2}
    trainer = GRPO(**{**usual, "save_every": 0, **settings})
    with driving(judge) as driver:
        return bench.train(name, trainer, prompts(8), address=driver.address), driver


def test_it_moves_the_right_way(bench: Bench) -> None:
    """After 24 steps answers are what the judge likes, and the sampler had the trained weights all along."""
    result, driver = trained(bench, "a", low, steps=24)
    assert result.status == "trained", result.message
    assert liked(driver, 24) > liked(driver, 1) + 0.2
    gaps = [m["value"] for m in result.metrics if m["name"] == "rollouts/gap"]
    assert len(gaps) == 24
    assert max(gaps) < 1e-4


def test_the_same_job_says_the_same(bench: Bench) -> None:
    """Rollouts are named by job, step and slot: run again, each says the same, and the revision is the same."""
    one, first = trained(bench, "a", low, steps=3)
    two, second = trained(bench, "b", low, steps=3)
    assert one.revision == two.revision is not None
    assert first.rollouts == second.rollouts
    assert len({tuple(r["token_ids"]) for r in first.rollouts if r["step"] == 1}) > 8


def test_a_policy_that_nobody_can_tell_apart_is_told(bench: Bench) -> None:
    """Rewards that never differ end the job after ten steps, and nothing is published."""
    result, driver = trained(bench, "a", lambda step, row: [1.0], steps=20)
    assert result.status == "no_signal"
    assert "earned the same" in result.message
    assert max(r["step"] for r in driver.rollouts) == 10
    assert not bench.published


def test_a_step_that_says_nothing_moves_nothing(bench: Bench) -> None:
    """Of five steps only the first says something: no weight is further from its start than that step's rate.

    AdamW's first step moves no weight by more than the rate, and momentum would go on in each that follows.
    """

    def once(step: int, row: Row) -> list[float | None]:
        return [low(step, row)[0] if step == 1 else 0.5]

    result, driver = trained(bench, "a", once, steps=5)
    assert result.status == "trained", result.message
    assert {r["step"] for r in driver.learned if r["weight"]} == {1}
    start = load(bench.start).state_dict()
    end = load(bench.run / "revisions" / str(result.revision)).state_dict()
    furthest = max(float((end[name] - start[name]).abs().max()) for name in start)
    assert 0 < furthest <= first(result, "learning_rate") * 1.001


@pytest.mark.parametrize(("reference", "kept"), [(0.0, False), (30.0, True)])
def test_the_reference_holds_the_policy(bench: Bench, *, reference: float, kept: bool) -> None:
    """A high price of leaving the reference keeps the policy where it was; without one it goes."""
    held = {"reference": Held(folder=bench.start, revision=bench.revision)}
    trainer = GRPO(
        k=8,
        batch_size=32,
        micro_batch=16,
        max_tokens=8,
        learning_rate=1e-2,
        save_every=0,
        steps=12,
        beta=reference,
    )
    with driving(low) as driver:
        fields = {"held": held} if reference else {}
        result = bench.train("a", trainer, prompts(8), address=driver.address, **fields)
    assert result.status == "trained"
    assert (liked(driver, 12) < liked(driver, 1) + 0.1) == kept


def test_f32_another_reference_than_was_planned_is_refused(bench: Bench) -> None:
    """The reference is named by its hash, and looked at before the first step is taken."""
    held = {"reference": Held(folder=bench.start, revision="0" * 32)}
    trainer = GRPO(k=4, batch_size=8, max_tokens=4, steps=2, beta=0.1)
    with driving(low) as driver:
        result = bench.train("a", trainer, prompts(4), address=driver.address, held=held)
    assert result.status == "failed"
    assert "reference is 0000" in result.message
    assert not bench.published


def test_without_a_driver_there_is_no_job(bench: Bench, tmp_path: Path) -> None:
    """A job that would ask nobody says so, before a model is loaded."""
    result = bench.train("a", GRPO(k=4, batch_size=8, max_tokens=4, steps=2), prompts(4))
    assert result.status == "failed"
    assert "asks the driver" in result.message
    assert tmp_path.exists()


def test_an_adapter_samples_what_it_trains(bench: Bench) -> None:
    """With LoRA the rollouts are of base and adapter together: the gap stays nothing while the policy moves."""
    home = bench.run / "revisions" / bench.revision
    home.parent.mkdir()
    home.symlink_to(bench.start)
    bench.start = home
    result, driver = trained(bench, "a", low, steps=12, weights="lora", rank=8, learning_rate=3e-2)
    assert result.status == "trained", result.message
    gaps = [m["value"] for m in result.metrics if m["name"] == "rollouts/gap"]
    assert max(gaps) < 1e-4
    assert liked(driver, 12) > liked(driver, 1) + 0.05
    assert not list((bench.run / "revisions" / str(result.revision)).glob("model*"))


def test_f06_what_a_second_judge_could_not_judge_makes_no_group(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one right answer of a group has no length value: the wrong ones that are left say nothing to each other."""

    def partly(step: int, row: Row) -> list[float | None]:
        right = row["slot"] % 4 == 0
        return [float(right), None if right else len(row["token_ids"]) / 10]

    trainer = GRPO(k=4, batch_size=16, micro_batch=8, learning_rate=1e-3, **SHORT)
    with driving(partly, (1.0, 0.5)) as driver, monkeypatch.context() as patch:
        injected(patch)
        result = bench.train("a", trainer, prompts(4), address=driver.address)
    assert result.status == "no_change"
    assert {row["weight"] for row in driver.learned} == {0.0}


def test_a_resumed_job_remembers_its_silence() -> None:
    """Five silent steps before a kill and five after it are ten: the job ends where an undisturbed one ends."""
    silent = {
        "grad_norm": 0.0,
        "rollouts/tokens": 5.0,
        "rollouts/used": 0.0,
        "rollouts/cut": 0.0,
        "rollouts/repeats": 0.0,
        "rollouts/surprisal": 1.0,
    }
    watch = Watch()
    for step in range(1, 6):
        watch.past(step, silent)
    for step in range(6, 10):
        watch.heard(step, silent=True)
    with pytest.raises(Stopped, match="earned the same"):
        watch.heard(10, silent=True)


@pytest.mark.parametrize(
    ("ill", "told"),
    [
        ({"rollouts/cut": 0.9}, "90% of rollouts are cut"),
        ({"rollouts/repeats": 0.8}, "80% of what is said repeats itself"),
        ({"rollouts/surprisal": 5.0}, "a surprisal of 5.00"),
    ],
)
def test_rollouts_that_fall_ill_end_the_job(ill: dict[str, float], told: str) -> None:
    """Three steps in a row are needed; one that is well again between them starts the count anew."""
    well = {"rollouts/cut": 0.1, "rollouts/repeats": 0.1, "rollouts/surprisal": 1.0}
    watch = Watch()
    for step, values in enumerate([well, ill, ill, well, ill, ill], start=1):
        watch.sampled(step, well | values)
    with pytest.raises(Stopped, match=told) as caught:
        watch.sampled(7, well | ill)
    assert caught.value.status == "collapsed"


def deafen(bench: Bench, patch: pytest.MonkeyPatch) -> None:
    """Let samplers hold other weights than those that they are to follow."""
    other = load(bench.start)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    follow = TransformersPolicy.follow

    def deaf(self: TransformersPolicy, model: Any, *rest: Any) -> None:
        follow(self, other.eval())

    patch.setattr(TransformersPolicy, "follow", deaf)


def test_other_weights_than_are_trained_end_the_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that holds other weights says what the trained ones would hardly say: the first step tells."""
    deafen(bench, monkeypatch)
    result, _ = trained(bench, "a", low, steps=3)
    assert result.status == "wrong_weights"
    assert "nats a token from what is trained" in result.message
    assert not bench.published
