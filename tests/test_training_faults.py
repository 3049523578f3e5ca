"""Faults that training is known for: each is met, named by its row of the fault catalogue or of TRL's traps.

`f..` are rows of the catalogue, `t..` traps of TRL that were measured. Other modules have more of both.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from jobs import Bench, answers, first, labelled, load, pairs
from transformers import AutoTokenizer

from redistill.agents import dataset
from redistill.agents.loop import Place, run
from redistill.agents.operators.gate import Gate
from redistill.agents.recipe import load_recipe
from redistill.agents.reference import Spoken
from redistill.policies import catalog
from redistill.policies.chat import ChatCodec
from redistill.policies.revision import Revision, canary_sequences, record_canary
from redistill.store.query import read_rows
from redistill.testing.fakes import END, fake_prompts, fake_recipe
from redistill.trainers import answers as drivers
from redistill.trainers.answers import AnswerDPO, AnswerLabels, AnswerPairs, AnswerSFT
from redistill.trainers.preference import DPO, KTO
from redistill.trainers.supervised import SFT
from redistill.trainers.tuning import settings
from redistill.trainers.watch import Stopped, Watch
from redistill.types import Message


def faulty(base: type[Any], fault: Any) -> type[Any]:
    """Return a driver whose loss passes through `fault(driver, loss)`."""

    class Faulty(base):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return fault(self, super().compute_loss(*args, **kwargs))

    return Faulty


# --- numbers


def test_f02_a_nan_that_does_not_repeat_costs_one_try(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job begins again from its start, and its weights are those of a job that had none."""
    trainer = SFT(batch_size=2, micro_batch=2, steps=3)
    undisturbed = bench.train("a", trainer, answers(4))
    left = [2]

    def fault(driver: Any, loss: torch.Tensor) -> torch.Tensor:
        if driver.state.global_step == 1 and left:
            left.pop()
            return loss * float("nan")
        return loss

    monkeypatch.setattr(drivers, "AnswerSFT", faulty(AnswerSFT, fault))
    result = bench.train("b", trainer, answers(4))
    assert result.revision == undisturbed.revision is not None
    assert [e["reason"] for e in bench.events if e["event"] == "again"] == ["loss is nan in step 2"]


def test_f02_a_nan_that_comes_each_time_ends_the_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than three tries, and the same number twice is one too many."""
    at = iter([0, 1, 2])
    now = [next(at)]

    def wandering(driver: Any, loss: torch.Tensor) -> torch.Tensor:
        if driver.state.global_step == now[0]:
            now[0] = next(at, 99)
            return loss * float("nan")
        return loss

    monkeypatch.setattr(drivers, "AnswerSFT", faulty(AnswerSFT, wandering))
    result = bench.train("a", SFT(batch_size=2, micro_batch=2, steps=4), answers(4))
    assert (result.status, bench.published) == ("nonfinite", [])
    assert len([e for e in bench.events if e["event"] == "again"]) == 2


def test_f04_a_spike_is_skipped_and_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch with ten thousand times the loss leaves the weights and the optimiser's moments as they were."""
    trainer = SFT(batch_size=2, micro_batch=2, steps=10, learning_rate=1e-4, warmup_steps=0)
    seen: list[dict[str, torch.Tensor]] = []

    def fault(driver: Any, loss: torch.Tensor) -> torch.Tensor:
        seen.append({n: p.detach().clone() for n, p in driver.model.named_parameters()})
        return loss * 1e4 if driver.state.global_step == 7 else loss

    monkeypatch.setattr(drivers, "AnswerSFT", faulty(AnswerSFT, fault))
    result = bench.train("a", trainer, answers(20))
    assert result.status == "trained"
    assert "its gradient was far from all before it: step 8" in result.message
    moved = [
        max(float((after[n] - before[n]).abs().max()) for n in before)
        for before, after in itertools.pairwise(seen)
    ]
    assert moved[7] == 0
    assert min(moved[:7]) > 0


def test_f04_one_spike_after_another_ends_the_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three in a row are no accident of a batch; nothing is published."""

    def fault(driver: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss * 1e4 if driver.state.global_step >= 7 else loss

    monkeypatch.setattr(drivers, "AnswerSFT", faulty(AnswerSFT, fault))
    trainer = SFT(batch_size=2, micro_batch=2, steps=12, learning_rate=1e-4)
    result = bench.train("a", trainer, answers(24))
    assert (result.status, result.steps, bench.published) == ("spiked", 9, [])


def test_f04_ordinary_gradients_are_no_spikes() -> None:
    """Norms that fall, rise tenfold in 25 steps, or jump threefold are as usual."""
    for norms in ([2.0**-n for n in range(30)], [1.1**n for n in range(30)], [1.0, 3.0] * 20):
        watch = Watch()
        assert all(watch.gradient(step, norm) for step, norm in enumerate(norms, start=1))


@pytest.mark.parametrize("options", [{}, {"loss_type": ["sigmoid"]}])
def test_f05_pairs_of_equal_sides_are_no_signal(bench: Bench, options: dict[str, Any]) -> None:
    """Where most pairs have the same tokens on both sides, the job says so and publishes nothing."""
    rows = [row | {"rejected_ids": row["chosen_ids"]} for row in pairs(6)] + pairs(2, seed=1)
    trainer = DPO(batch_size=2, micro_batch=2, steps=1, options=options)
    result = bench.train("a", trainer, rows)
    assert (result.status, bench.published) == ("no_signal", [])
    assert result.message == "6 of 8 pairs have the same tokens on both sides"
    some = bench.train("b", trainer, [*rows[:2], *pairs(4, seed=2)])
    assert (some.status, some.rows) == ("trained", 4)


def test_f05_steps_without_a_gradient_end_the_job() -> None:
    """Three of them at the start say that no row prefers anything; one later says nothing."""
    watch = Watch()
    assert watch.gradient(1, 0.0)
    assert watch.gradient(2, 0.0)
    with pytest.raises(Stopped, match="the first 3 steps had no gradient"):
        watch.gradient(3, 0.0)
    later = Watch()
    assert all(later.gradient(step, norm) for step, norm in ((1, 1.0), (2, 0.0), (3, 0.0)))


@pytest.mark.parametrize("options", [{}, {"loss_type": ["sigmoid"]}])
def test_f07_chosen_answers_that_become_rare_end_the_job(
    bench: Bench, options: dict[str, Any]
) -> None:
    """A rate a hundred times too high makes both sides rare: stopped before its last step, nothing published."""
    start = load(bench.start)
    rows = pairs(8)
    for row in rows:
        for side in ("chosen", "rejected"):
            row[f"ref_{side}_logp"] = float(_logp(start, row["prompt_ids"], row[f"{side}_ids"]))
    trainer = DPO(batch_size=4, micro_batch=4, steps=60, learning_rate=5e-2, options=options)
    result = bench.train("a", trainer, rows, reference_revision=bench.revision)
    assert (result.status, bench.published) == ("collapsed", [])
    assert result.steps < 60
    assert "a smaller learning_rate keeps them" in result.message


@torch.no_grad()
def _logp(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    total: torch.Tensor = logits.log_softmax(-1)[range(len(answer)), answer].sum()
    return total


def _measured(before: list[str], after: list[str]) -> list[dict[str, Any]]:
    return [
        {"answer_before": b, "answer_after": a, "tokens_before": len(b), "tokens_after": len(a)}
        for b, a in zip(before, after, strict=True)
    ]


@pytest.mark.parametrize(("times", "held"), [(1.0, True), (1.9, True), (2.5, False), (0.2, False)])
def test_f08_a_gain_by_length_is_held_up(times: float, held: bool) -> None:
    """Answers of more than twice the champion's length, or less than a third of it, do not take over."""
    before = [f"{n} is the number of the answer" for n in range(20)]
    after = [(text * 3)[: int(times * len(text))] for text in before]
    guard = Gate()._guards(_measured(before, after))["length"]
    assert guard["ratio"] == pytest.approx(times, abs=0.05)
    assert guard["held"] is held


def test_f09_answers_that_are_all_alike_are_held_up() -> None:
    """A challenger that says one thing to every prompt has few distinct words, whatever its value."""
    before = [f"the answer to question {n} is {n * n} of course" for n in range(20)]
    guards = Gate()._guards(_measured(before, ["yes, yes, yes, yes, yes, yes"] * 20))
    assert guards["diversity"]["held"] is False
    assert Gate()._guards(_measured(before, before))["diversity"]["held"] is True


# --- tokens


def test_f14_a_template_with_bos_gives_one(tmp_path: Path) -> None:
    """Template and tokenizer both put a BOS before a text; the policy's ids have one."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    from redistill.testing.tiny import make_tiny_model

    folder = make_tiny_model(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.pad_token
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.pad_token_id)]
    )
    doubled = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=tokenizer.eos_token
    )
    doubled.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = ChatCodec(doubled).conversation([Message("user", "abc")])
    assert ids.count(tokenizer.pad_token_id) == 1


def _ends_seen(base: type[Any], ends: list[int]) -> type[Any]:
    """Return a driver that counts the end tokens which bear loss."""

    class Watched(base):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            bears = (
                inputs["labels"] != -100 if "labels" in inputs else inputs["completion_mask"] == 1
            )
            ends.append(int(((inputs["input_ids"] == 2) & bears).sum()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Watched


@pytest.mark.parametrize("method", ["sft", "pairs", "labels", "trl"])
def test_f15_the_end_is_trained_where_it_also_fills(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With pad = EOS, the end token of every answer still bears loss, in each trainer."""
    config = bench.start / "tokenizer_config.json"
    told = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps(told | {"pad_token": told["eos_token"]}), "utf-8")
    made: dict[str, Any] = {
        "sft": (AnswerSFT, SFT, answers, {}),
        "pairs": (AnswerPairs, DPO, pairs, {}),
        "labels": (AnswerLabels, KTO, labelled, {}),
        "trl": (AnswerDPO, DPO, pairs, {"options": {"loss_type": ["sigmoid"]}}),
    }
    driver, trainer, rows, more = made[method]
    ends: list[int] = []
    monkeypatch.setattr(drivers, driver.__name__, _ends_seen(driver, ends))
    result = bench.train("a", trainer(batch_size=4, micro_batch=4, steps=1, **more), rows(4))
    assert result.status == "trained", result.message
    assert ends == [4 if method in ("sft", "labels") else 8]


@pytest.mark.parametrize(("reason", "ids"), [("stop", (7, 8, 2)), ("length", (7, 8))])
def test_f17_a_cut_answer_learns_no_end(reason: str, ids: tuple[int, ...]) -> None:
    """An answer of which only the text is known is encoded with its end token, unless it was cut."""

    async def call(work: Any, *arguments: Any) -> Any:
        return work(*arguments)

    cast = SimpleNamespace(call=call, student=SimpleNamespace(spell=lambda _: (7, 8, 2)))
    turn: Any = SimpleNamespace(run=SimpleNamespace(cast=cast))
    row = {"token_ids": None, "text": "ab", "finish_reason": reason}
    said = asyncio.run(dataset._said(turn, row))
    assert (said.token_ids, said.encoded) == (ids, True)


def test_f17_many_cut_answers_refuse_the_round(tmp_path: Path) -> None:
    """Where more than `most_cut` of the answers are cut, nothing is trained, and the decision says why."""
    prompts = fake_prompts(train=20, heldout=40, test=40)
    recipe = _loaded(tmp_path, prompts)
    [sample, *others] = fake_recipe(gain=0.3, rounds=1)["round"]
    sample["sample"]["max_tokens"] = 7  # `train0` and its end, and no mark behind it
    short = _loaded(tmp_path, prompts, round=[sample, *others], name="short")
    others[2]["train"]["most_cut"] = 1.0
    allowed = _loaded(tmp_path, prompts, round=[sample, *others], name="allowed")
    for loaded, status in ((recipe, "trained"), (short, "answers_cut"), (allowed, "trained")):
        folder = run(loaded, place=Place(tmp_path / "runs", tmp_path / "cache"))
        [job] = read_rows(folder, "SELECT status, message, revision FROM training_run")
        assert job["status"] == status, loaded.name
        assert (job["revision"] is None) == (status == "answers_cut")
    [decision] = read_rows(tmp_path / "runs/short", "SELECT decision, reason FROM decision")
    assert decision["decision"] == "rejected"
    assert re.match(
        r"training: answers_cut: \d\d of 80 answers were cut at max_tokens, 20 % may be: give more",
        decision["reason"],
    )


def test_f18_answers_that_would_be_encoded_otherwise_are_counted(tmp_path: Path) -> None:
    """An event has their share of the answers that train, and the job's rows have the sampled tokens."""
    recipe = _loaded(tmp_path, fake_prompts(train=20), student="planted:MergingStudent")
    folder = run(recipe, place=Place(tmp_path / "runs", tmp_path / "cache"))
    texts = read_rows(
        folder,
        "SELECT a.text FROM training_row t JOIN completion c ON c.id = t.completion_id "
        "JOIN content a ON a.hash = c.text_hash ORDER BY t.position",
    )
    [event] = read_rows(folder, "SELECT detail FROM event WHERE kind = 'respelt'")
    other = sum("in1" in row["text"] for row in texts)
    assert 0 < other < len(texts)
    assert json.loads(event["detail"]) == {
        "answers": len(texts),
        "respelt": other,
        "share": other / len(texts),
    }
    trained = pq.read_table(folder / "jobs/1/rows.parquet")["completion_ids"].to_pylist()
    assert trained == [[*map(ord, row["text"]), END] for row in texts]


def _loaded(base: Path, prompts: list[dict[str, Any]], **changed: Any) -> Any:
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    recipe = fake_recipe(gain=0.3, rounds=1) | changed
    return load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=base)


def test_f27_a_prompt_that_is_too_long_is_parked(tmp_path: Path) -> None:
    """It is an event with its room, the other prompts of its batch are answered, and nothing is cut."""
    prompts = fake_prompts(train=20, heldout=40, test=40)
    prompts[3]["prompt"] = "word " * 200 + prompts[3]["prompt"]
    folder = run(_loaded(tmp_path, prompts), place=Place(tmp_path / "runs", tmp_path / "cache"))
    [event] = read_rows(folder, "SELECT detail FROM event WHERE kind = 'too_long'")
    assert json.loads(event["detail"])["room"] == 512 - 40
    [said] = read_rows(
        folder, "SELECT count(DISTINCT prompt_id) AS n FROM completion WHERE step = 'sample'"
    )
    assert said["n"] == 19


def test_f34_what_another_tokenizer_has_sampled_is_learned_as_text(tmp_path: Path) -> None:
    """Of a teacher of another vocabulary the text is kept, and no token ids that would mean something else."""
    data: dict[str, Any] = {
        "name": "stranger",
        "student": "tiny",
        "prompts": {"file": "redistill:tiny.jsonl", "per_round": 8},
        "roles": {"teacher": {"policy": "redistill.testing.tutor:Tutor"}},
        "round": [
            {"sample": {"role": "teacher", "k": 1, "max_tokens": 44}},
            {"sample": {"as": "own", "k": 1, "max_tokens": 44}},
            {"select": {"of": ["sample", "own"]}},
            {"train": {"trainer": "sft", "steps": 1, "batch_size": 4, "micro_batch": 4}},
            {"evaluate": {"judge": "verifier", "max_tokens": 44}},
            {"gate": {}},
        ],
    }
    recipe = load_recipe(json.dumps(data), "r.yaml", base=tmp_path)
    folder = run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()), rounds=1)
    rows = read_rows(
        folder,
        """
        SELECT c.step, r.tokens_from, c.text_hash, t.completion_id IS NOT NULL AS kept
        FROM training_row r JOIN completion c ON c.id = r.completion_id
        LEFT JOIN completion_tokens t ON t.completion_id = c.id
        """,
    )
    assert {(r["step"], r["tokens_from"], r["kept"]) for r in rows} == {
        ("sample", "encoded", False),
        ("own", "sampled", True),
    }
    [job] = read_rows(folder, "SELECT status FROM training_run")
    assert job["status"] == "trained"


def test_a_prompt_never_gets_two_system_turns() -> None:
    """What a prompt is told goes into the system turn that it has, and is one of its own where it has none."""
    asked, own = Message("user", "Say it."), Message("system", "Be brief.")
    assert dataset._told_first("Good.", (asked,)) == (Message("system", "Good."), asked)
    told = dataset._told_first("Good.", (own, asked))
    assert told == (Message("system", "Good.\n\nBe brief."), asked)


@pytest.mark.parametrize(("own", "weights"), [(None, None), ([True, False, True], [1, 0, 1])])
def test_only_tokens_that_the_policy_spoke_bear_loss(own: Any, weights: Any) -> None:
    """A row says which tokens are a tool's or a person's, and the training row weighs those 0."""
    said = Spoken((7, 8, 2), -1.0, "r", (5,), trainable=own)
    material = dataset.Material([], {"c": said}, {("p", "c"): (5,)}, {}, None)
    assert dataset._completion(dataset.Item("p", "c"), material)["token_weights"] == weights


def test_f28_rows_that_were_all_dropped_are_told(bench: Bench) -> None:
    """Rows of weight 0 are as good as none, and the job says that it has none."""
    rows = [row | {"weight": 0.0} for row in pairs(8)]
    result = bench.train("a", DPO(batch_size=2, micro_batch=2), rows)
    assert (result.status, result.message) == ("no_rows", "the training set is empty")


# --- references and copies


def test_f32_a_reference_that_is_missing_is_refused(bench: Bench) -> None:
    """A loss with a reference never takes its absence for zero."""
    rows = pairs(4)
    rows[2]["ref_rejected_logp"] = None
    result = bench.train("a", DPO(batch_size=2, micro_batch=2), rows)
    assert result.status == "failed"
    assert "pair r2 has no ref_rejected_logp" in result.message


def test_t04_the_reference_is_the_rows_own_in_every_round(bench: Bench) -> None:
    """Three rounds, each from the last one's weights: the first loss of each is log 2, as its reference is its start."""
    start, revision = bench.start, bench.revision
    for name in ("one", "two", "three"):
        model = load(start)
        rows = pairs(4)
        for row in rows:
            for side in ("chosen", "rejected"):
                row[f"ref_{side}_logp"] = float(_logp(model, row["prompt_ids"], row[f"{side}_ids"]))
        result = bench.train(
            name,
            DPO(batch_size=4, micro_batch=4, steps=3, learning_rate=1e-4),
            rows,
            start_folder=start,
            start_revision=revision,
            reference_revision=revision,
        )
        assert first(result, "loss") == pytest.approx(0.693147, abs=1e-5)
        revision = str(result.revision)
        start = bench.run / "revisions" / revision


@pytest.mark.parametrize("options", [{}, {"loss_type": ["sigmoid"]}])
def test_t05_what_is_published_answers_with_the_trained_weights(
    bench: Bench, options: dict[str, Any]
) -> None:
    """TRL binds `forward` to the live weights; the canary is of weights that were read from the disk again."""
    trainer = DPO(batch_size=4, micro_batch=4, steps=2, learning_rate=1e-3, options=options)
    result = bench.train("a", trainer, pairs(4))
    revision = Revision.read(bench.run / "revisions" / str(result.revision))
    model = load(revision.folder)
    asked = canary_sequences(AutoTokenizer.from_pretrained(revision.folder))
    assert revision.canary is not None
    assert record_canary(model, asked).distance(revision.canary) < 1e-6
    assert record_canary(load(bench.start), asked).distance(revision.canary) > 1e-3


def test_t06_many_jobs_in_one_process_nest_nothing(bench: Bench) -> None:
    """Each job has a model of its own, so that TRL's patches of `forward` never pile up."""
    trainer = DPO(batch_size=2, micro_batch=2, steps=1)
    found = {bench.train(f"j{n}", trainer, pairs(2)).revision for n in range(6)}
    assert len(found) == 1


def test_t08_the_worker_freezes_what_its_imports_left() -> None:
    """A trainer's start collects garbage; what imports made is not walked again each time."""
    from redistill.trainers import worker

    source = Path(worker.__file__).read_text("utf-8")
    assert "gc.freeze()" in source
    before = gc.get_freeze_count()
    lines = iter([json.dumps({"warm": "json"})])
    events: list[dict[str, Any]] = []
    with pytest.raises(StopIteration):
        worker._serve(lambda: next(lines), events.append)
    try:
        assert events == [{"event": "ready"}]
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_t09_both_kinds_are_in_every_batch_of_kto(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that come sorted, wanted ones first, are mixed: TRL would train on one kind and then the other."""
    kinds: list[set[bool]] = []

    class Watched(AnswerLabels):
        def losses(self, model: Any, inputs: Any) -> Any:
            kinds.append(set(inputs["wanted"].tolist()))
            return super().losses(model, inputs)

    monkeypatch.setattr(drivers, "AnswerLabels", Watched)
    rows = sorted(labelled(16), key=lambda row: -row["wanted"])
    bench.train("a", KTO(batch_size=8, micro_batch=4, steps=4), rows)
    assert kinds == [{True, False}] * 8


def test_t11_nothing_is_bf16_where_there_is_no_card() -> None:
    """TRL's configs turn bf16 on, and refuse a processor then; on one we compute in fp32."""
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    made = settings(SFT(), 0, AnswerSFT, 1, 1)
    assert (made["bf16"], made["use_cpu"]) == (False, True)
