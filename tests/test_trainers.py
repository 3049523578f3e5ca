"""Trainers: losses against written-out formulas, guards that publish nothing, and a job's laws."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import Bench, answers, first, load, logp, pairs
from pydantic import ValidationError
from transformers import AutoTokenizer

from redistill.policies.revision import (
    Revision,
    canary_sequences,
    fingerprint_model,
    record_canary,
)
from redistill.testing.fakes_trainer import FakeTrainer, read_fake, write_fake
from redistill.testing.tiny import make_tiny_model
from redistill.trainers import answers as drivers
from redistill.trainers import tuning
from redistill.trainers.preference import DPO
from redistill.trainers.rows import (
    dataset_hash,
    read_rows,
    rows_table,
    training_order,
    write_rows,
)
from redistill.trainers.supervised import SFT
from redistill.trainers.trainer import Result, run_job

# --- losses


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_sft_loss_is_the_weighted_token_mean(bench: Bench, micro: int) -> None:
    """SFT's loss is the written-out formula, whatever the micro-batch."""
    rows = answers(4)
    for row, weight in zip(rows, [1.0, 0.25, 3.0, 1.0], strict=True):
        row["weight"] = weight
    model = load(bench.start)
    spent = sum(-r["weight"] * logp(model, r["prompt_ids"], r["completion_ids"]) for r in rows)
    expected = spent / sum(r["weight"] * len(r["completion_ids"]) for r in rows)
    result = bench.train("a", SFT(batch_size=4, micro_batch=micro, steps=1), rows)
    assert first(result, "loss") == pytest.approx(expected, rel=1e-5)


def test_sft_plain_loss_is_the_token_mean(bench: Bench) -> None:
    """Without weights the loss is the mean negative log-likelihood of all answer tokens."""
    rows = answers(6)
    model = load(bench.start)
    spent = sum(-logp(model, r["prompt_ids"], r["completion_ids"]) for r in rows)
    expected = spent / sum(len(r["completion_ids"]) for r in rows)
    result = bench.train("a", SFT(batch_size=6, micro_batch=2, steps=1), rows)
    assert first(result, "loss") == pytest.approx(expected, rel=1e-5)


def test_weight_zero_is_absence(bench: Bench) -> None:
    """A row of weight 0 changes nothing at all: the same revision comes out without it."""
    trainer = SFT(batch_size=2, micro_batch=2, epochs=1)
    silent = {**answers(1, seed=9)[0], "weight": 0.0}
    without = bench.train("a", trainer, answers(4))
    with_it = bench.train("b", trainer, [*answers(4), silent])
    assert without.revision == with_it.revision is not None


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("micro", [1, 4])
def test_dpo_loss_is_equation_7(bench: Bench, beta: float, micro: int) -> None:
    """DPO's loss and margin are the paper's formula with the rows' reference log-probs."""
    rows = pairs(4)
    model = load(bench.start)
    margins = [
        (logp(model, r["prompt_ids"], r["chosen_ids"]) - r["ref_chosen_logp"])
        - (logp(model, r["prompt_ids"], r["rejected_ids"]) - r["ref_rejected_logp"])
        for r in rows
    ]
    expected = -torch.nn.functional.logsigmoid(beta * torch.tensor(margins)).mean()
    result = bench.train("a", DPO(batch_size=4, micro_batch=micro, steps=1, beta=beta), rows)
    assert first(result, "loss") == pytest.approx(float(expected), rel=1e-4)
    assert first(result, "rewards/margins") == pytest.approx(
        beta * sum(margins) / len(margins), rel=1e-4
    )


def test_dpo_equals_trl_with_a_loaded_reference(bench: Bench, tmp_path: Path) -> None:
    """Stored reference log-probs give the loss that TRL computes with a reference model in memory."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    reference = load(make_tiny_model(tmp_path / "reference", seed=5))
    rows = pairs(4)
    for row in rows:
        for side in ("chosen", "rejected"):
            row[f"ref_{side}_logp"] = logp(reference, row["prompt_ids"], row[f"{side}_ids"])
    ours = bench.train("a", DPO(batch_size=4, micro_batch=4, steps=1), rows)
    texts = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
    stock = DPOTrainer(
        model=load(bench.start),
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path / "out"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=4,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=AutoTokenizer.from_pretrained(bench.start),
    )
    ids = [{k: row[k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in rows]
    stock.train_dataset = Dataset.from_list(ids)
    stock.train()
    theirs = stock.state.log_history[0]
    assert first(ours, "loss") == pytest.approx(theirs["loss"], abs=1e-4)
    assert first(ours, "rewards/margins") == pytest.approx(theirs["rewards/margins"], abs=1e-4)


def test_only_answer_positions_meet_the_vocabulary(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output head is applied to as many positions as there are answer tokens, no more."""
    import trl.trainer.utils as fused

    scored: list[int] = []
    stock: Any = fused._ChunkedLogProbFunction

    class Counting:
        @staticmethod
        def apply(hidden: torch.Tensor, *args: Any) -> Any:
            scored.append(len(hidden))
            return stock.apply(hidden, *args)

    monkeypatch.setattr(fused, "_ChunkedLogProbFunction", Counting)
    rows = answers(4)
    bench.train("a", SFT(batch_size=4, micro_batch=4, steps=1), rows)
    assert scored == [sum(len(row["completion_ids"]) for row in rows)]


def test_f18_sampled_tokens_reach_the_model_as_they_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tokenised again, no end token is added, and only the answer bears loss."""
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}

    class Watched(drivers.AnswerSFT):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            both = zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"], strict=True)
            for ids, labels, mask in both:
                real = mask.bool()
                seen[tuple(ids[real].tolist())] = tuple(labels[real].tolist())
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(drivers, "AnswerSFT", Watched)
    rows = answers(4)
    rows[1]["completion_ids"] = rows[1]["completion_ids"][:-1] or [7]  # cut: no end token
    bench.train("a", SFT(batch_size=4, micro_batch=2, steps=1), rows)
    assert seen == {
        tuple(r["prompt_ids"] + r["completion_ids"]): tuple(
            [-100] * len(r["prompt_ids"]) + r["completion_ids"]
        )
        for r in rows
    }


def test_options_reach_trl(bench: Bench) -> None:
    """A further TRL field is passed on: RPO's loss is DPO's plus the chosen answers' mean NLL."""
    rows = pairs(2)
    model = load(bench.start)
    nll = -sum(logp(model, r["prompt_ids"], r["chosen_ids"]) for r in rows)
    nll /= sum(len(r["chosen_ids"]) for r in rows)
    plain = DPO(batch_size=2, micro_batch=2, steps=1)
    rpo = plain.model_copy(
        update={"options": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}}
    )
    difference = first(bench.train("b", rpo, rows), "loss") - first(
        bench.train("a", plain, rows), "loss"
    )
    assert difference == pytest.approx(0.5 * nll, rel=1e-4)


def test_learning_rate_rises_and_falls(bench: Bench) -> None:
    """Warm-up starts at 10 % of the peak, and the fall ends one step short of 10 %."""
    trainer = SFT(batch_size=1, micro_batch=1, steps=6, warmup_steps=2, learning_rate=1e-3)
    result = bench.train("a", trainer, answers(3))
    rates = [m["value"] / 1e-3 for m in result.metrics if m["name"] == "learning_rate"]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 0.775, 0.55, 0.325])


# --- guards


def planted(fault: Callable[[Any, torch.Tensor], torch.Tensor]) -> type[drivers.AnswerSFT]:
    """Return AnswerSFT whose loss passes through `fault(trainer, loss)`."""

    class Planted(drivers.AnswerSFT):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return fault(self, super().compute_loss(*args, **kwargs))

    return Planted


@pytest.mark.parametrize(
    ("where", "step", "bad"),
    [
        *(("loss", step, float("nan")) for step in (1, 3, 4)),
        ("loss", 2, float("inf")),
        ("loss value only", 2, float("nan")),
        *(("gradient only", step, float("nan")) for step in (1, 4)),
    ],
)
def test_f01_nonfinite_ends_the_job_before_the_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: int, where: str, bad: float
) -> None:
    """A NaN or infinite loss or gradient names its step, and nothing is published."""

    def fault(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step + 1 != step:
            return loss
        if where == "loss":
            return loss * bad
        if where == "loss value only":
            return loss + bad
        loss.register_hook(lambda gradient: gradient * bad)
        return loss

    monkeypatch.setattr(drivers, "AnswerSFT", planted(fault))
    result = bench.train("a", SFT(batch_size=2, micro_batch=1, steps=4), answers(4))
    assert (result.status, result.revision, result.steps) == ("nonfinite", None, step - 1)
    assert f"in step {step}" in result.message
    assert bench.published == []
    assert fingerprint_model(load(bench.start)) == bench.revision


def test_f03_nonfinite_weight_at_the_start_is_named(bench: Bench) -> None:
    """A start folder with one NaN is refused by the tensor's name."""
    model = load(bench.start)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(bench.start)
    result = bench.train(
        "a", SFT(batch_size=2), answers(2), start_revision=fingerprint_model(model)
    )
    assert result.status == "nonfinite"
    assert "model.norm.weight" in result.message
    assert bench.published == []


def test_f13_rate_zero_is_no_change(bench: Bench) -> None:
    """Training that moved no weight is told as such, not as success."""
    result = bench.train("a", SFT(batch_size=2, steps=2, learning_rate=0), answers(4))
    assert (result.status, result.steps, bench.published) == ("no_change", 2, [])


@pytest.mark.parametrize("length", [{"steps": 5}, {"epochs": 1}])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_f11_too_few_rows(bench: Bench, count: int, length: dict[str, int]) -> None:
    """Rows that fill no batch of 8 give a status with the sum spelled out."""
    result = bench.train("a", SFT(batch_size=8, **length), answers(count))
    assert result.status == ("no_rows" if count == 0 else "no_steps")
    if count:
        assert f"{count} rows" in result.message
        assert "batch_size = 8" in result.message
    assert bench.published == []


def test_f32_start_mismatch(bench: Bench) -> None:
    """Weights that are not those of the named revision are not trained on."""
    result = bench.train("a", SFT(batch_size=2), answers(4), start_revision="0" * 32)
    assert (result.status, bench.published) == ("start_mismatch", [])
    assert bench.revision in result.message


def test_f63_memory_runs_out_above_two(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The micro-batch is halved until it fits, and the weights are those of the small one."""
    trainer = SFT(batch_size=8, micro_batch=8, steps=2)
    small = bench.train("b", trainer.model_copy(update={"micro_batch": 2}), answers(8))
    tried: list[int] = []

    class Small(drivers.AnswerSFT):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tried.append(len(inputs["input_ids"]))
            if tried[-1] > 2:
                raise torch.OutOfMemoryError("planted")
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(drivers, "AnswerSFT", Small)
    result = bench.train("a", trainer, answers(8))
    assert result.status == "trained"
    assert tried[:3] == [8, 4, 2]
    assert "micro_batch 8, 2 fitted" in result.message
    assert result.revision == small.revision


def test_f63_memory_runs_out_always(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When even one row is too much, the job ends with that status and publishes nothing."""

    def fault(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")

    monkeypatch.setattr(drivers, "AnswerSFT", planted(fault))
    result = bench.train("a", SFT(batch_size=6, micro_batch=6), answers(6))
    assert (result.status, bench.published) == ("out_of_memory", [])
    halved = [event for event in bench.events if event["event"] == "micro_batch"]
    assert halved == [{"event": "micro_batch", "micro_batch": n} for n in (3, 1)]


def test_any_other_fault_is_failed_with_its_last_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in training is a status, not a crash."""

    def fault(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("first line\nthe planted fault")

    monkeypatch.setattr(drivers, "AnswerSFT", planted(fault))
    result = bench.train("a", SFT(batch_size=2), answers(4))
    assert (result.status, bench.published) == ("failed", [])
    assert "the planted fault" in result.message
    assert Result.of(bench.run / "jobs" / "a") == result


def test_changed_rows_are_refused(bench: Bench) -> None:
    """Rows that are not those whose hash the job names are not trained on."""
    folder = bench.job("a", SFT(batch_size=2), "completions", answers(4))
    write_rows(folder / "rows.parquet", rows_table("completions", answers(4, seed=1)))
    result = run_job(folder, bench.run, bench.events.append)
    assert (result.status, bench.published) == ("failed", [])
    assert "rows are not those" in result.message


# --- what is published


def test_the_new_revision(bench: Bench) -> None:
    """It is named by its weights on disk, knows its parent, and answers the canary as recorded."""
    result = bench.train("a", SFT(batch_size=2, micro_batch=2, learning_rate=1e-3), answers(4))
    assert result.revision is not None
    folder = bench.run / "revisions" / result.revision
    revision = Revision.read(folder)
    revision.verify_files()
    model = load(folder)
    assert fingerprint_model(model) == revision.id == result.revision != bench.revision
    assert revision.parent == bench.revision
    canary = record_canary(model, canary_sequences(AutoTokenizer.from_pretrained(folder)))
    assert revision.canary == canary != record_canary(load(bench.start), canary.sequences)
    facts = revision.facts()
    assert facts["trainer"] == "sft"
    assert (facts["rows"], facts["steps"]) == (4, 4)
    assert facts["params"]["learning_rate"] == 1e-3
    assert bench.published == [result.revision]
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / file).read_bytes() == (bench.start / file).read_bytes()
    for file in ("config.json", "generation_config.json"):
        assert json.loads((folder / file).read_text()) == json.loads(
            (bench.start / file).read_text()
        )


def test_same_job_same_weights_other_seed_other_weights(bench: Bench) -> None:
    """Training depends on the seed and on nothing else that is not in the job."""
    trainer = SFT(batch_size=2, micro_batch=2)
    revisions = [
        bench.train(name, trainer, answers(6), seed=seed).revision
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert revisions[0] == revisions[1] != revisions[2]


def test_a_trained_job_is_not_trained_again(bench: Bench) -> None:
    """Running a finished job returns its result at once; a damaged revision is made anew."""
    trainer = SFT(batch_size=2, micro_batch=2)
    result = bench.train("a", trainer, answers(4))
    told = len(bench.events)
    assert run_job(bench.run / "jobs" / "a", bench.run, bench.events.append) == result
    assert len(bench.events) == told
    assert result.revision is not None
    weights = bench.run / "revisions" / result.revision / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    again = run_job(bench.run / "jobs" / "a", bench.run, bench.events.append)
    assert again.revision == result.revision
    assert len(bench.events) > told
    Revision.read(weights.parent).verify_files()


def test_a_killed_job_leaves_nothing_in_the_way(bench: Bench) -> None:
    """What an earlier try left in the staging folder does not reach the revision."""
    left = bench.run / "revisions" / ".staging-a"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"half")
    result = bench.train("a", SFT(batch_size=2), answers(4))
    assert result.status == "trained"
    assert bench.published == [result.revision]
    assert not (bench.run / "revisions" / str(result.revision) / "half.safetensors").exists()


def test_steps_are_told_as_they_happen(bench: Bench) -> None:
    """Each step is one event, in order, with its numbers."""
    bench.train("a", DPO(batch_size=2, micro_batch=1, steps=3), pairs(4))
    assert [(e["event"], e.get("step"), e.get("steps")) for e in bench.events] == [
        ("way", None, None),
        ("begin", None, 3),
        ("step", 1, 3),
        ("step", 2, 3),
        ("step", 3, 3),
    ]
    assert all(e["loss"] > 0 and e["grad_norm"] > 0 for e in bench.events[2:])


def test_a_run_folder_may_move(bench: Bench, tmp_path: Path) -> None:
    """Every path inside a run is relative to it, so a moved run's job trains."""
    bench.job("a", SFT(batch_size=2), "completions", answers(4))
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    bench.run.rename(moved)
    result = run_job(moved / "jobs" / "a", moved, bench.events.append)
    assert result.status == "trained"
    assert (moved / "revisions" / str(result.revision)).is_dir()


# --- settings


def test_check_knows_trl_fields() -> None:
    """An option that TRL has not is told with the nearest field; one that it has passes."""
    assert SFT(options={"label_smoothing_factor": 0.1}).check() == []
    [problem] = DPO(options={"label_smoothin": 0.1}).check()
    assert str(problem) == (
        "options.label_smoothin: DPOConfig has no such field; did you mean label_smoothing?"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 1, "steps": 1}, "not both"),
        ({"batch_size": 6, "micro_batch": 4}, "micro_batch 4 does not divide batch_size 6"),
        ({"options": {"learning_rate": 1}}, "options.learning_rate is set by learning_rate"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"learning_rat": 1}, "Extra inputs"),
        ({"adam_betas": [0.9, 1.0]}, "adam_betas"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    """What cannot be meant is refused when the recipe is read, without torch."""
    with pytest.raises(ValidationError, match=said):
        SFT.model_validate(settings)


def test_the_core_can_read_recipes_without_torch() -> None:
    """Naming, validating and planning a trainer imports neither torch nor TRL."""
    code = (
        "import sys, redistill.trainers.worker, redistill.testing.fakes_trainer\n"
        "from redistill.trainers.supervised import SFT\n"
        "from redistill.trainers.preference import DPO\n"
        "assert SFT().plan(48) == 6 and DPO(beta=0.2).params()['beta'] == 0.2\n"
        "assert not {'torch', 'trl', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)


# --- laws


@given(
    rows=st.integers(1, 40),
    steps=st.integers(1, 30),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_order_is_whole_epochs_end_to_end(rows: int, steps: int, batch: int, seed: int) -> None:
    """Every epoch names each row once, so that after n steps no two rows differ by more than one."""
    order = training_order(rows, steps, batch, seed)
    assert len(order) == steps * batch
    assert all(
        sorted(order[i : i + rows]) == list(range(rows))
        for i in range(0, len(order) - rows + 1, rows)
    )
    counts = [order.count(row) for row in range(rows)]
    assert max(counts) - min(counts) <= 1
    assert order == training_order(rows, steps, batch, seed)


@given(rows=st.integers(0, 500), epochs=st.floats(0.1, 9), batch=st.integers(1, 64))
def test_plan_uses_no_row_more_often_than_asked(rows: int, epochs: float, batch: int) -> None:
    """Planned steps take at most rows x epochs, and leave less than one batch."""
    steps = SFT(epochs=epochs, batch_size=batch, micro_batch=1).plan(rows)
    assert steps * batch <= rows * epochs < (steps + 1) * batch


@given(
    st.lists(
        st.tuples(st.text(), st.lists(st.integers(0, 99), min_size=1)), min_size=1, max_size=8
    ),
    st.sampled_from(["none", "zstd", "snappy"]),
    st.integers(1, 8),
)
def test_dataset_hash_is_of_values_not_of_files(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, list[int]]],
    compression: str,
    group: int,
) -> None:
    """Any Parquet encoding of the same rows has the same hash."""
    rows = [{"id": i, "prompt_ids": ids, "completion_ids": ids, "weight": 0.1} for i, ids in drawn]
    table = rows_table("completions", rows)
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    wide = table.set_column(1, "prompt_ids", table["prompt_ids"].cast(pa.large_list(pa.int64())))
    pq.write_table(wide, file, compression=compression, row_group_size=group)
    assert dataset_hash(pq.read_table(file)) == dataset_hash(table)
    assert read_rows(file, "completions", dataset_hash(table)) == table


def test_dataset_hash_sees_order_and_values() -> None:
    """Other order, other tokens or another weight are other training data."""
    rows = answers(3)
    tables = [rows, rows[::-1], answers(3, seed=1), [*rows[:2], {**rows[2], "weight": 0.5}]]
    assert len({dataset_hash(rows_table("completions", each)) for each in tables}) == 4


# --- the fake


def test_the_fake_gains_and_tells_rows_apart(tmp_path: Path) -> None:
    """The fake's skill grows by its gain; other rows, same skill, another revision."""
    start = tmp_path / "start"
    bench = Bench(tmp_path, start, write_fake(start, {"name": "student", "skill": 0.3}))
    trainer = FakeTrainer(gain=0.3)
    results = [bench.train(f"j{seed}", trainer, answers(2, seed=seed)) for seed in (0, 1)]
    assert [r.status for r in results] == ["trained", "trained"]
    assert len({r.revision for r in results}) == 2
    for result in results:
        folder = tmp_path / "revisions" / str(result.revision)
        assert read_fake(folder)["skill"] == pytest.approx(0.6)
        assert Revision.read(folder).parent == bench.revision
    preferring = FakeTrainer(rows_kind="pairs")
    assert preferring.rows == "pairs"
    assert bench.train("p", preferring, pairs(2)).status == "trained"
    assert bench.train("z", FakeTrainer(gain=0), answers(2)).status == "no_change"


def test_numbers_go_to_a_service_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed or set around it, a job reports to nobody; a service that is named must be installed."""
    monkeypatch.setenv("WANDB_PROJECT", "somebody's")
    plain = tuning.settings(SFT(), 0, drivers.AnswerSFT, 4, 2)
    assert plain["report_to"] == "none"
    named = SFT(options={"report_to": "some_service"})
    assert tuning.settings(named, 0, drivers.AnswerSFT, 4, 2)["report_to"] == "some_service"
    [problem] = named.check()
    assert "some_service is not installed" in str(problem)
    assert not SFT(options={"report_to": "none"}).check()
