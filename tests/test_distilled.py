"""Distillation: what a step's loss is, what is divided by what, whom the student hears, and who may not teach."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from drivers import Driver, Row, driving
from jobs import Bench, load, prompts, watched_gradient
from test_losses import NO_CLIP, Measured, _apart
from torch import Tensor

from redistill.policies.policy import Generation
from redistill.policies.revision import Revision, fingerprint_model
from redistill.policies.transformers import TransformersPolicy
from redistill.trainers import heads
from redistill.trainers.distill import SELF, Distill, SelfDistill
from redistill.trainers.job import Held, Result
from redistill.trainers.rollouts import Sampled

SHORT: dict[str, Any] = {"steps": 1, "max_tokens": 9, "max_grad_norm": NO_CLIP, "save_every": 0}


def quiet(step: int, row: Row) -> list[float | None]:
    """Judge nothing: nobody is asked."""
    raise AssertionError((step, row))


def teacher_of(bench: Bench, name: str = "teacher", seed: int = 5) -> dict[str, Held]:
    """Make a teacher: the student with other weights."""
    model, folder = load(bench.start), bench.run / name
    if not folder.exists():
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return {name: Held(folder=folder, revision=fingerprint_model(load(folder)))}


def taught(count: int, teacher: str = "teacher", *, answers: bool = False) -> list[Row]:
    """Make prompts that a teacher sees otherwise; some with an answer that stands."""
    draw, rows = random.Random(3), prompts(count)
    for place, row in enumerate(rows):
        row["teacher"] = teacher
        if place % 2:
            more = [draw.randrange(4, 100) for _ in range(5)]
            row["teacher_prompt_ids"] = more + row["prompt_ids"]
        if answers:
            row["completion_id"] = f"c{place}"
            row["completion_ids"] = [draw.randrange(4, 100) for _ in range(3 + place % 4)] + [2]
    return rows


Said = list[tuple[Row, tuple[int, ...]]]


def measure(
    bench: Bench, patch: pytest.MonkeyPatch, trainer: Distill, rows: list[Row], **fields: Any
) -> tuple[Measured, Said, Driver]:
    """Run one optimiser step on made-up rollouts, and keep its loss and gradient."""
    said: Said = []

    def say(self: Sampled, step: int, slots: Sequence[tuple[int, Row]]) -> list[Generation]:
        found = []
        for place, row in slots:
            draw = random.Random(f"{step} {place}")
            ids = (*(draw.randrange(4, 100) for _ in range(draw.randrange(2, 7))), 2)
            found.append(Generation("x", ids, tuple(-1.0 for _ in ids), "stop"))
            said.append((row, ids))
        return found

    with patch.context() as here, driving(quiet) as driver:
        gradient = watched_gradient(here)
        here.setattr(Sampled, "_generate", say)
        result = bench.train(
            f"m{trainer.micro_batch}{len(bench.events)}",
            trainer,
            rows,
            address=driver.address,
            **fields,
        )
    assert result.status == "trained", result.message
    loss = next(m["value"] for m in result.metrics if m["name"] == "loss")
    return Measured(loss, gradient), said, driver


def read(model: Any, prompt: list[int], answer: Sequence[int]) -> Tensor:
    """Return the log-probs of the whole vocabulary at each token of an answer."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    found: Tensor = logits.log_softmax(-1)
    return found


def by_hand(
    bench: Bench, trainer: Distill, said: Said, held: dict[str, Held], live: bool = False
) -> Measured:
    """Compute loss and gradient in float64, one sequence and one token at a time."""
    student = load(bench.start).double()
    teachers = {name: load(one.folder).double() for name, one in held.items()}
    frozen = load(bench.start).double()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row, ids in said:
        q = read(student, row["prompt_ids"], ids).exp()
        if getattr(trainer, "signal", "") == "negative":
            mine = q[range(len(ids)), list(ids)]
            total = total + (mine / mine.detach()).sum()
            tokens += len(ids)
            continue
        model = frozen if live else teachers[row["teacher"]]
        seen = row.get("teacher_prompt_ids") or row["prompt_ids"]
        p = read(model, seen, ids).exp().detach()
        if trainer.top_k:
            best = p.topk(trainer.top_k, -1).indices
            p, q = (
                torch.cat([x.gather(-1, best), 1 - x.gather(-1, best).sum(-1, keepdim=True)], -1)
                for x in (p, q)
            )
        beta, skew = trainer.beta, trainer.skew
        if beta == 0:
            each = (p * torch.log(p / (skew * p + (1 - skew) * q))).sum(-1)
        elif beta == 1:
            each = (q * torch.log(q / (skew * q + (1 - skew) * p))).sum(-1)
        else:
            m = beta * p + (1 - beta) * q
            each = beta * (p * torch.log(p / m)).sum(-1)
            each = each + (1 - beta) * (q * torch.log(q / m)).sum(-1)
        total, tokens = total + each.sum(), tokens + len(ids)
    loss = total / tokens
    loss.backward()
    found = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    return Measured(float(loss.detach()), found)


CASES: dict[str, Distill] = {
    "forward": Distill(beta=0, batch_size=8, micro_batch=4, **SHORT),
    "reverse": Distill(beta=1, batch_size=8, micro_batch=4, **SHORT),
    "between": Distill(beta=0.3, batch_size=8, micro_batch=4, **SHORT),
    "skewed": Distill(beta=1, skew=0.1, batch_size=8, micro_batch=4, **SHORT),
    "likeliest": Distill(beta=0, top_k=5, batch_size=8, micro_batch=4, **SHORT),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_by_hand(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Loss and gradient of a step are those of the formula in float64 within 1e-5, by tokens that bear loss."""
    held = teacher_of(bench)
    ours, said, _ = measure(bench, monkeypatch, CASES[name], taught(8), held=held)
    wanted = by_hand(bench, CASES[name], said, held)
    assert ours.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert _apart(ours.gradient, wanted.gradient) < 1e-5


def test_a_step_in_parts_and_in_tiles_is_the_whole_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rollouts at once and four times two, whole and three tokens at a time: one gradient."""
    held, trainer = teacher_of(bench), CASES["between"]
    whole, _, _ = measure(
        *(bench, monkeypatch, trainer.model_copy(update={"micro_batch": 8}), taught(8)), held=held
    )
    with monkeypatch.context() as patch:
        patch.setattr(heads, "_TILE_BYTES", 4 * 104 * 3)
        tiled, _, _ = measure(
            *(bench, monkeypatch, trainer.model_copy(update={"micro_batch": 2}), taught(8)),
            held=held,
        )
    assert tiled.loss == pytest.approx(whole.loss, rel=1e-5)
    assert _apart(tiled.gradient, whole.gradient) < 1e-5


def test_answers_that_stand_count_by_their_own_tokens(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the answers are the store's: the loss divides by the tokens that bear it, whoever said them."""
    held, rows = teacher_of(bench), taught(8, answers=True)
    trainer = Distill(beta=0.5, on_policy=0.5, batch_size=8, micro_batch=4, **SHORT)
    ours, sampled, driver = measure(bench, monkeypatch, trainer, rows, held=held)
    new = {row["id"] for row, _ in sampled}
    assert 0 < len(new) < 8
    said = sampled + [(r, tuple(r["completion_ids"])) for r in rows if r["id"] not in new]
    wanted = by_hand(bench, trainer, said, held)
    assert ours.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert _apart(ours.gradient, wanted.gradient) < 1e-5
    known = {row["completion_id"] for row in driver.learned if row["completion_id"]}
    assert known == {r["completion_id"] for r in rows if r["id"] not in new}


def test_two_teachers_by_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt is taught by its own teacher, also where both are in one micro-batch."""
    held = teacher_of(bench) | teacher_of(bench, "other", seed=9)
    rows = taught(8)
    for row in rows[::3]:
        row["teacher"] = "other"
    ours, said, _ = measure(bench, monkeypatch, CASES["reverse"], rows, held=held)
    wanted = by_hand(bench, CASES["reverse"], said, held)
    assert _apart(ours.gradient, wanted.gradient) < 1e-5


def test_stored_distributions_are_as_good_as_the_teacher(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest five tokens, taken once by the policy, give the gradient of the teacher that is held."""
    held, rows = teacher_of(bench), taught(8, answers=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        source = bench.start / name
        if source.is_file():
            (held["teacher"].folder / name).write_bytes(source.read_bytes())
    policy = TransformersPolicy(Revision("", held["teacher"].folder, None, None))
    policy.follow(load(held["teacher"].folder).eval())
    asked = [
        (tuple(r.get("teacher_prompt_ids") or r["prompt_ids"]), tuple(r["completion_ids"]))
        for r in rows
    ]
    for row, (ids, logprobs) in zip(rows, policy.distributions(asked, 5), strict=True):
        row |= {"top_ids": ids, "top_logprobs": logprobs}
    trainer = Distill(beta=0, top_k=5, on_policy=0, batch_size=8, micro_batch=4, **SHORT)
    ours, sampled, _ = measure(bench, monkeypatch, trainer, rows)
    assert not sampled
    said = [(r, tuple(r["completion_ids"])) for r in rows]
    wanted = by_hand(bench, trainer, said, held)
    assert ours.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert _apart(ours.gradient, wanted.gradient) < 1e-5


@pytest.mark.parametrize("weights", ["start", "live"])
def test_the_student_that_sees_more_teaches(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    """The teacher is the student with another prompt; no gradient goes through it, frozen or live."""
    trainer = SelfDistill.model_validate(
        {"teacher_weights": weights, "batch_size": 8, "micro_batch": 4, **SHORT}
    )
    held = {SELF: Held(folder=bench.start, revision=bench.revision)} if weights == "start" else {}
    rows = [row for row in taught(16, SELF) if "teacher_prompt_ids" in row]
    ours, said, _ = measure(bench, monkeypatch, trainer, rows, held=held)
    wanted = by_hand(bench, trainer, said, held, live=weights == "live")
    assert _apart(ours.gradient, wanted.gradient) < 1e-5


def test_the_negative_control_asks_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes every token that was sampled rarer by the same amount; no teacher is held."""
    trainer = SelfDistill(signal="negative", batch_size=8, micro_batch=4, **SHORT)
    ours, said, _ = measure(bench, monkeypatch, trainer, taught(8, SELF))
    wanted = by_hand(bench, trainer, said, {})
    assert _apart(ours.gradient, wanted.gradient) < 1e-5


def test_f34_a_teacher_must_be_there(bench: Bench) -> None:
    """A prompt without its teacher, or whose teacher's weights are others, ends the job before a step."""
    trainer = Distill(batch_size=4, micro_batch=4, **SHORT)
    with driving(quiet) as driver:
        none = bench.train("a", trainer, taught(4), address=driver.address)
        other = teacher_of(bench)["teacher"].model_copy(update={"revision": "0" * 32})
        wrong = bench.train(
            "b", trainer, taught(4), address=driver.address, held={"teacher": other}
        )
    assert (none.status, wrong.status) == ("failed", "failed")
    assert "has no teacher" in none.message
    assert "teacher is 0000" in wrong.message
    assert not bench.published


def test_a_teacher_that_contradicts_itself_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, a teacher must say the same: one whose distributions move by chance is told before the first step."""
    once = heads.scores

    def noisy(model: Any, batch: Any) -> heads.Scores:
        found = once(model, batch)
        return heads.Scores(found.hidden + 0.5 * torch.randn_like(found.hidden), found.head)

    monkeypatch.setattr("redistill.trainers.distilled.scores", noisy)
    with driving(quiet) as driver:
        result = bench.train(
            *("a", Distill(batch_size=4, micro_batch=4, **SHORT), taught(4)),
            address=driver.address,
            held=teacher_of(bench),
        )
    assert result.status == "unfit_teacher"
    assert "from itself" in result.message
    assert not bench.published


def test_a_model_that_caps_its_logits_is_read_whole(bench: Bench) -> None:
    """Where the head alone does not explain the logits, they are taken from the model, and are the same numbers."""
    model = load(bench.start).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": torch.tensor([[0, 0, 0, 1, 1, 1]]),
    }
    plain = heads.scores(model, batch)
    assert plain.hidden.size(-1) != plain.vocabulary
    forward = model.forward

    def capped(**fields: Any) -> Any:
        out = forward(**fields)
        out.logits = 2 * torch.tanh(out.logits / 2)
        return out

    model.forward = capped
    model.__dict__.pop(heads._EXPLAINED)
    whole = heads.scores(model, batch)
    assert whole.hidden.size(-1) == whole.vocabulary
    wanted = (2 * torch.tanh(plain.head(plain.hidden) / 2)).log_softmax(-1)
    assert torch.allclose(whole.logps(whole.hidden), wanted, atol=1e-5)


def test_the_student_comes_nearer(bench: Bench) -> None:
    """After thirty steps the student's distributions are far nearer to the teacher's, and each token's worth is kept."""
    held = teacher_of(bench)
    trainer = Distill(
        batch_size=16, micro_batch=16, max_tokens=8, learning_rate=1e-2, steps=30, save_every=0
    )
    with driving(quiet) as driver:
        result: Result = bench.train("a", trainer, taught(16), address=driver.address, held=held)
    assert result.status == "trained", result.message
    found = [m["value"] for m in result.metrics if m["name"] == "divergence"]
    assert found[-1] < 0.5 * found[0]
    row = driver.learned[0]
    said = driver.heard[0][1]["said"][0]
    assert len(row["token_rewards"]) == len(said["token_ids"])
    assert row["reward"] == pytest.approx(sum(row["token_rewards"]) / len(row["token_rewards"]))


def test_no_path_of_this_machine_is_needed(tmp_path: Path) -> None:
    """What a job holds is named in its file by where it lies in the run."""
    from redistill.trainers.job import Job

    fields = {"start_folder": tmp_path / "s", "revisions_root": tmp_path / "r"}
    held = {"teacher": Held(folder=tmp_path / "r" / "t", revision="t")}
    job = Job(
        id="a",
        trainer={"distill": {}},
        start_revision="s",
        rows=tmp_path / "rows.parquet",
        dataset_hash="x",
        held=held,
        address="secret",
        **fields,
    )
    job.write(tmp_path / "jobs", tmp_path)
    text = (tmp_path / "jobs" / "job.json").read_text("utf-8")
    assert str(tmp_path) not in text
    assert "secret" not in text
    assert Job.read(tmp_path / "jobs", tmp_path).held == held
