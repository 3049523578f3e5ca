"""Losses: each against a formula written out in float64, and the laws that every one of them keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import Bench, Row, answers, labelled, load, pairs, ranked, watched_gradient
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from redistill.trainers import losses
from redistill.trainers.listwise import PRO, RRHF, Listwise
from redistill.trainers.losses import PairLogps, RankedLogps
from redistill.trainers.preference import DPO, KTO, ORPO, TPO, Preference, SimPO
from redistill.trainers.reward import Reward
from redistill.trainers.supervised import SFT
from redistill.trainers.trainer import Trainer

NO_CLIP = 1e9
Read = Callable[[list[int], list[int]], Tensor]
"""Prompt and answer to the log-prob of the answer, float64."""


# --- formulas, one pair or answer at a time, in plain words


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _both(read: Read, row: Row) -> tuple[Tensor, Tensor]:
    return tuple(read(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids"))  # type: ignore[return-value]


def _soft(logit: Tensor, p: float) -> Tensor:
    liked = _sigmoid(logit)
    found: Tensor = -(p * torch.log(liked) + (1 - p) * torch.log(1 - liked))
    return found


def by_hand_sft(read: Read, rows: list[Row]) -> Tensor:
    """Weighted mean over tokens."""
    spent = [-r["weight"] * read(r["prompt_ids"], r["completion_ids"]) for r in rows]
    tokens: float = sum(r["weight"] * len(r["completion_ids"]) for r in rows)
    return torch.stack(spent).sum() / tokens


def _mean(values: list[Tensor], rows: list[Row]) -> Tensor:
    weights = torch.tensor([row["weight"] for row in rows])
    return (weights * torch.stack(values)).sum() / weights.sum()


def by_hand_dpo(read: Read, rows: list[Row], *, nll: float = 0.0, soft: bool = False) -> Tensor:
    """Equation 7 of Rafailov et al., with beta 0.3 and an offset of half the margin."""
    found = []
    for row in rows:
        chosen, rejected = _both(read, row)
        ratio = chosen - row["ref_chosen_logp"] - rejected + row["ref_rejected_logp"]
        p = row["probability"] if soft else 1.0
        offset = 0.5 * row["margin"] if soft else 0.0
        own = nll * -chosen / len(row["chosen_ids"])
        found.append(_soft(0.3 * ratio - offset, p) + own)
    return _mean(found, rows)


def by_hand_orpo(read: Read, rows: list[Row]) -> Tensor:
    """Equations 6 and 7 of Hong et al., with lambda 0.4."""
    found = []
    for row in rows:
        chosen, rejected = _both(read, row)
        p_chosen = torch.exp(chosen / len(row["chosen_ids"]))
        p_rejected = torch.exp(rejected / len(row["rejected_ids"]))
        odds = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
        nll = -chosen / len(row["chosen_ids"])
        found.append(nll - 0.4 * torch.log(_sigmoid(torch.log(odds))))
    return _mean(found, rows)


def by_hand_simpo(read: Read, rows: list[Row]) -> Tensor:
    """Equation 6 of Meng et al., with beta 2 and gamma 0.7."""
    found = []
    for row in rows:
        chosen, rejected = _both(read, row)
        mean = chosen / len(row["chosen_ids"]) - rejected / len(row["rejected_ids"])
        found.append(-torch.log(_sigmoid(2.0 * mean - 0.7)))
    return _mean(found, rows)


def by_hand_tpo(read: Read, rows: list[Row]) -> Tensor:
    """Equation 7 of Saeidi et al., with beta 0.05 and alpha 0.6."""
    found = []
    for row in rows:
        chosen, rejected = _both(read, row)
        gold = read(row["prompt_ids"], row["gold_ids"]) / len(row["gold_ids"])
        found.append(-torch.log(_sigmoid(0.05 * (chosen - rejected))) - 0.6 * gold)
    return _mean(found, rows)


def by_hand_reward(read: Read, rows: list[Row]) -> Tensor:
    """Bradley and Terry with a margin of 0.4 each unit, a soft label, and 0.05 of the squared sum; `read` is a reward."""
    found = []
    for row in rows:
        chosen, rejected = _both(read, row)
        liked = _soft(chosen - rejected - 0.4 * row["margin"], row["probability"])
        found.append(liked + 0.05 * (chosen + rejected) ** 2)
    return _mean(found, rows)


def by_hand_kto(read: Read, rows: list[Row]) -> Tensor:
    """Equation 8 of Ethayarajh et al., with beta 0.2; wanted answers weigh 1.5, unwanted ones 0.5."""
    moved = [read(r["prompt_ids"], r["other_ids"]) - r["ref_other_logp"] for r in rows]
    shift = max(0.0, float(torch.stack(moved).mean().detach()))
    found = []
    for row in rows:
        gain = read(row["prompt_ids"], row["completion_ids"]) - row["ref_logp"]
        if row["wanted"]:
            found.append(1.5 * (1 - _sigmoid(0.2 * (gain - shift))))
        else:
            found.append(0.5 * (1 - _sigmoid(0.2 * (shift - gain))))
    return _mean(found, rows)


def _by_token(read: Read, row: Row) -> list[Tensor]:
    return [read(row["prompt_ids"], ids) / len(ids) for ids in row["answers_ids"]]


def by_hand_rrhf(read: Read, rows: list[Row]) -> Tensor:
    """Equations 2 to 4 of Yuan et al., with 0.6 of the best answer's mean loss."""
    found = []
    for row in rows:
        p = _by_token(read, row)
        behind = [p[w] - p[b] for b, w in zip(row["better"], row["worse"], strict=True)]
        found.append(sum((d for d in behind if d > 0), start=torch.tensor(0.0)) - 0.6 * p[0])
    return _mean(found, rows)


def by_hand_pro(read: Read, rows: list[Row]) -> Tensor:
    """Equation 16 of the survey, an answer beside all that are worse than it, with 0.6 of the best answer's mean loss."""
    found = []
    for row in rows:
        p = _by_token(read, row)
        loss = -0.6 * p[0]
        for place, mine in enumerate(p):
            worse = [w for b, w in zip(row["better"], row["worse"], strict=True) if b == place]
            beside = torch.exp(mine) + sum(torch.exp(p[w]) for w in worse)
            loss = loss - torch.log(torch.exp(mine) / beside)
        found.append(loss)
    return _mean(found, rows)


@dataclass(frozen=True)
class Case:
    """A trainer, its rows, and its loss by hand."""

    trainer: Trainer
    rows: Callable[[int], list[Row]]
    by_hand: Callable[[Read, list[Row]], Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def _varied(rows: list[Row]) -> list[Row]:
    """Give pairs weights, margins, soft labels and gold answers of their own."""
    weights, sure, margins = (1.0, 0.25, 2.0, 0.5), (0.9, 0.6, 0.5, 1.0), (0.3, 1.0, 0.0, 0.7)
    return [
        row
        | {
            "weight": weights[place % 4],
            "probability": sure[place % 4],
            "margin": margins[place % 4],
            "gold_ids": [*row["chosen_ids"][::-1], 2],
        }
        for place, row in enumerate(rows)
    ]


def _weighted(rows: list[Row]) -> list[Row]:
    return [row | {"weight": (1.0, 0.25, 3.0, 1.0)[n % 4]} for n, row in enumerate(rows)]


def _pairs(count: int) -> list[Row]:
    return _varied(pairs(count))


SHORT: dict[str, Any] = {"steps": 1, "max_grad_norm": NO_CLIP}
CASES = {
    "sft": Case(SFT(**SHORT), lambda n: _weighted(answers(n)), by_hand_sft),
    "dpo": Case(DPO(beta=0.3, **SHORT), _pairs, by_hand_dpo),
    "dpo_soft": Case(
        DPO(beta=0.3, labels="soft", offset=0.5, nll=0.7, **SHORT),
        _pairs,
        lambda read, rows: by_hand_dpo(read, rows, nll=0.7, soft=True),
    ),
    "orpo": Case(ORPO(beta=0.4, **SHORT), _pairs, by_hand_orpo),
    "simpo": Case(SimPO(beta=2.0, gamma=0.7, **SHORT), _pairs, by_hand_simpo),
    "tpo": Case(TPO(beta=0.05, alpha=0.6, **SHORT), _pairs, by_hand_tpo),
    "reward": Case(Reward(margin=0.4, labels="soft", center=0.05, **SHORT), _pairs, by_hand_reward),
    "rrhf": Case(RRHF(nll=0.6, **SHORT), lambda n: _weighted(ranked(n)), by_hand_rrhf),
    "pro": Case(PRO(nll=0.6, **SHORT), lambda n: _weighted(ranked(n)), by_hand_pro),
    "kto": Case(
        KTO(beta=0.2, desirable=1.5, undesirable=0.5, **SHORT),
        lambda n: _weighted(labelled(n)),
        by_hand_kto,
    ),
}
EXACT = [name for name in CASES if name != "kto"]
"""KTO estimates its shift in each micro-batch, so that cutting a step otherwise gives another loss."""


@dataclass
class Measured:
    """What one optimiser step saw."""

    loss: float
    gradient: dict[str, Tensor]


def measure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, case: Case, rows: list[Row], micro: int
) -> Measured:
    """Run a job of one step, and keep its loss and its gradient before the optimiser takes it."""
    trainer = case.trainer.model_copy(update={"batch_size": len(rows), "micro_batch": micro})
    with monkeypatch.context() as patch:
        gradient = watched_gradient(patch)
        result = bench.train(f"m{micro}", trainer, rows)
    assert result.status == "trained", result.message
    loss = next(m["value"] for m in result.metrics if m["name"] == "loss")
    return Measured(loss, gradient)


def with_head(bench: Bench) -> Any:
    """Return the start as a reward model in float64, with the head that a job of seed 0 gives it."""
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        bench.start, num_labels=1, dtype=torch.float32
    )
    return model.double()


def by_hand(bench: Bench, case: Case, rows: list[Row]) -> Measured:
    """Compute loss and gradient in float64, one sequence at a time, from full logits."""
    model = load(bench.start).double()
    if case.trainer.makes == "judge":
        model = with_head(bench)

    def reward(prompt: list[int], answer: list[int]) -> Tensor:
        model.config.pad_token_id = None
        found: Tensor = model(input_ids=torch.tensor([prompt + answer])).logits[0, 0]
        return found

    def read(prompt: list[int], answer: list[int]) -> Tensor:
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        picked: Tensor = logits.log_softmax(-1)[range(len(answer)), answer].sum()
        return picked

    loss = case.by_hand(reward if case.trainer.makes == "judge" else read, rows)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return Measured(float(loss.detach()), found)


def _apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the norm of the difference of two gradients as a share of the second's norm."""
    assert one.keys() == other.keys()
    squares = [((one[n].double() - other[n].double()) ** 2).sum() for n in other]
    whole = [(other[n].double() ** 2).sum() for n in other]
    return math.sqrt(float(sum(squares)) / float(sum(whole)))


@pytest.mark.parametrize("name", CASES)
def test_two_rows_by_hand(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Loss and gradient of two rows are those of the paper's formula in float64, within 1e-5."""
    case = CASES[name]
    rows = case.rows(2)
    ours, wanted = measure(bench, monkeypatch, case, rows, 2), by_hand(bench, case, rows)
    assert ours.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert _apart(ours.gradient, wanted.gradient) < 1e-5


@pytest.mark.parametrize("name", EXACT)
def test_a_step_in_parts_is_the_whole_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Eight rows at once and four times two give one gradient, whatever they weigh."""
    case = CASES[name]
    rows = case.rows(8)
    whole, parts = (measure(bench, monkeypatch, case, rows, micro) for micro in (8, 2))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert _apart(parts.gradient, whole.gradient) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_weight_zero_is_absence(bench: Bench, name: str) -> None:
    """A row of weight 0 changes nothing at all: the same revision comes out without it."""
    case = CASES[name]
    trainer = case.trainer.model_copy(
        update={"batch_size": 2, "micro_batch": 2, "steps": 2, "learning_rate": 1e-4}
    )
    silent = case.rows(5)[4] | {"weight": 0.0}
    without = bench.train("a", trainer, case.rows(4))
    with_it = bench.train("b", trainer, [*case.rows(4), silent])
    assert without.revision == with_it.revision is not None


@pytest.mark.parametrize("name", ["dpo", "dpo_soft", "orpo", "simpo", "tpo"])
def test_pairs_move_the_right_way(bench: Bench, name: str) -> None:
    """After twenty steps the chosen answers lead by more than before, in their mean log-probs."""
    case, rows = CASES[name], pairs(4)
    rows = [row | {"gold_ids": row["chosen_ids"], "probability": 0.9} for row in rows]
    trainer = case.trainer.model_copy(
        update={
            "batch_size": 4,
            "steps": 20,
            "learning_rate": 1e-3,
            "max_grad_norm": 1.0,
            "offset": 0.0,
        }
    )
    before = _lead(load(bench.start), rows)
    result = bench.train("a", trainer, rows)
    assert result.status == "trained", result.message
    after = _lead(load(bench.run / "revisions" / str(result.revision)), rows)
    assert all(later > earlier + 0.05 for earlier, later in zip(before, after, strict=True))


@torch.no_grad()
def _lead(model: Any, rows: list[Row]) -> list[float]:
    def mean(row: Row, side: str) -> float:
        return _logp(model, row["prompt_ids"], row[side]) / len(row[side])

    return [mean(row, "chosen_ids") - mean(row, "rejected_ids") for row in rows]


@torch.no_grad()
def _logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(answer)), answer].sum())


@pytest.mark.parametrize("kind", [RRHF, PRO])
def test_lists_move_the_right_way(bench: Bench, kind: type[Listwise]) -> None:
    """After thirty steps every better answer leads every worse one; of two equal ones nothing is asked."""
    rows = ranked(4)
    trainer = kind(batch_size=4, steps=30, learning_rate=1e-3)
    result = bench.train("a", trainer, rows)
    assert result.status == "trained", result.message
    model = load(bench.run / "revisions" / str(result.revision))
    for row in rows:
        p = [_logp(model, row["prompt_ids"], ids) / len(ids) for ids in row["answers_ids"]]
        assert all(p[b] > p[w] for b, w in zip(row["better"], row["worse"], strict=True))
    ordered = [m["value"] for m in result.metrics if m["name"] == "ordered"]
    assert ordered[0] < 1 == ordered[-1]


def test_a_list_that_orders_nothing_is_refused(bench: Bench) -> None:
    """A row says of at least two of its own answers which is better, and each has tokens, before a model is loaded."""
    changes: list[Row] = [
        {"better": [], "worse": []},
        {"worse": [1, 2, 3, 3, 4]},
        {"better": [0]},
    ]
    for change in changes:
        [row] = ranked(1)
        result = bench.train("a", RRHF(batch_size=1, micro_batch=1, **SHORT), [row | change])
        assert result.status == "failed"
        assert "does not say which of its answers are better" in result.message
    [row] = ranked(1)
    row["answers_ids"][1] = []
    result = bench.train("b", RRHF(batch_size=1, micro_batch=1, **SHORT), [row])
    assert "has an answer without tokens" in result.message


def test_kto_moves_the_right_way(bench: Bench) -> None:
    """Wanted answers become likelier than unwanted ones, measured from where each began."""
    rows = labelled(8)
    start = load(bench.start)
    for row in rows:
        row["ref_logp"] = _logp(start, row["prompt_ids"], row["completion_ids"])
        row["ref_other_logp"] = _logp(start, row["prompt_ids"], row["other_ids"])
    trainer = KTO(batch_size=8, micro_batch=4, steps=20, learning_rate=1e-3, floor=0)
    result = bench.train("a", trainer, rows)
    after = load(bench.run / "revisions" / str(result.revision))
    gains = {True: 0.0, False: 0.0}
    for row in rows:
        gained = _logp(after, row["prompt_ids"], row["completion_ids"]) - row["ref_logp"]
        gains[row["wanted"]] += gained / len(row["completion_ids"])
    assert gains[True] > gains[False] + 1


# --- laws of the formulas

NUMBERS = st.floats(-40, -0.1)
SHARES = st.floats(0, 1)


@st.composite
def logps(draw: st.DrawFn) -> PairLogps:
    """Draw two pairs."""

    def two(what: st.SearchStrategy[float]) -> Tensor:
        return torch.tensor([draw(what), draw(what)], dtype=torch.float64)

    lengths = st.integers(1, 40).map(float)
    return PairLogps(
        chosen=two(NUMBERS),
        rejected=two(NUMBERS),
        chosen_tokens=two(lengths),
        rejected_tokens=two(lengths),
        ref_chosen=two(NUMBERS),
        ref_rejected=two(NUMBERS),
        probability=two(SHARES),
        margin=two(st.floats(0, 1)),
        gold=two(NUMBERS),
        gold_tokens=two(lengths),
    )


SYMMETRIC: dict[str, Callable[[PairLogps], Tensor]] = {
    "dpo": lambda pairs: losses.dpo(pairs, 0.3, 0.5),
    "simpo": lambda pairs: losses.simpo(pairs, 2.0, 0.0),
    "tpo": lambda pairs: losses.tpo(pairs, 0.05, 0.6),
    "bradley_terry": lambda p: losses.bradley_terry(p.chosen, p.rejected, p.margin, p.probability),
}
"""Losses that know no chosen answer beside the preference; ORPO also learns it, SimPO's gamma wants a lead."""


@pytest.mark.parametrize("name", SYMMETRIC)
@given(logps())
def test_sides_may_be_exchanged_with_the_label(name: str, pairs: PairLogps) -> None:
    """(chosen, rejected, p) has the loss of (rejected, chosen, 1 - p)."""
    loss = SYMMETRIC[name]
    assert torch.allclose(loss(pairs), loss(pairs.turned()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SYMMETRIC)
@given(logps())
def test_an_even_label_has_no_gradient_at_equal_ratios(name: str, pairs: PairLogps) -> None:
    """Half and half asks for nothing where neither side leads."""
    chosen = pairs.chosen.clone().requires_grad_()
    rejected = pairs.chosen.clone().requires_grad_()
    even = replace(
        pairs,
        chosen=chosen,
        rejected=rejected,
        rejected_tokens=pairs.chosen_tokens,
        ref_rejected=pairs.ref_chosen,
        probability=torch.full_like(pairs.chosen, 0.5),
        margin=torch.zeros_like(pairs.chosen),
    )
    SYMMETRIC[name](even).sum().backward()
    for side in (chosen, rejected):
        assert side.grad is not None
        assert float(side.grad.abs().max()) < 1e-12


@given(logps(), st.floats(0.01, 5))
def test_every_loss_falls_as_the_lead_grows(pairs: PairLogps, more: float) -> None:
    """With a hard label, a likelier chosen answer never makes a loss larger."""
    hard = replace(pairs, probability=torch.ones_like(pairs.chosen))
    ahead = replace(hard, chosen=(hard.chosen + more).clamp(max=-0.01))
    orpo: Callable[[PairLogps], Tensor] = lambda p: losses.orpo(p, 0.4)  # noqa: E731
    for loss in (*SYMMETRIC.values(), orpo):
        assert bool((loss(ahead) <= loss(hard) + 1e-9).all())


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(0, 99))
def test_kinds_are_spread_over_the_batches(kinds: list[int], seed: int) -> None:
    """Whatever the shuffle, every stretch of an epoch has each kind in proportion, to within one row."""
    from redistill.trainers.rows import training_order

    order = training_order(len(kinds), 1, len(kinds), seed, kinds)
    assert sorted(order) == list(range(len(kinds)))
    share = sum(kinds) / len(kinds)
    for end in range(1, len(order) + 1):
        assert abs(sum(kinds[row] for row in order[:end]) - share * end) <= 1


def test_every_preference_trainer_has_a_formula_here() -> None:
    """A new trainer cannot come without its formula."""
    every = {*Preference.__subclasses__(), *Listwise.__subclasses__(), KTO, SFT, Reward}
    assert {type(case.trainer) for case in CASES.values()} == every


SCORES = st.lists(st.floats(-8, -0.01), min_size=2, max_size=6)


def _lists(mean: Tensor, order: list[tuple[int, int]]) -> RankedLogps:
    better, worse = (
        torch.tensor([pair[side] for pair in order], dtype=torch.long) for side in (0, 1)
    )
    one = torch.zeros(len(mean), dtype=torch.long)
    return RankedLogps(mean, one, torch.tensor([0]), better, worse)


@given(SCORES)
def test_of_a_full_ranking_pro_is_the_papers(scores: list[float]) -> None:
    """Where every answer is better than all later ones, the loss is the product of first choices of Plackett and Luce."""
    mean = torch.tensor(scores, dtype=torch.float64)
    order = [(a, b) for a in range(len(scores)) for b in range(a + 1, len(scores))]
    wanted = sum(mean[k:].logsumexp(0) - mean[k] for k in range(len(scores) - 1))
    assert losses.pro(_lists(mean, order), 0.0)[0] == pytest.approx(float(wanted), abs=1e-9)


@given(SCORES)
def test_of_two_answers_pro_is_a_preference(scores: list[float]) -> None:
    """A list of two is Bradley and Terry's pair on mean log-probs, as SimPO has it without a target."""
    mean = torch.tensor(scores[:2], dtype=torch.float64)
    wanted = losses.preference(mean[0] - mean[1], torch.tensor(1.0))
    assert losses.pro(_lists(mean, [(0, 1)]), 0.0)[0] == pytest.approx(float(wanted), abs=1e-9)


@given(SCORES)
def test_rrhf_is_zero_only_in_order(scores: list[float]) -> None:
    """Sorted scores cost nothing; a list in which a better answer is less likely does."""
    order = [(a, b) for a in range(len(scores)) for b in range(a + 1, len(scores))]
    falling = torch.tensor(sorted(scores, reverse=True), dtype=torch.float64)
    assert losses.rrhf(_lists(falling, order), 0.0)[0] == 0
    given_so = torch.tensor(scores, dtype=torch.float64)
    sorted_so = bool((given_so[:-1] >= given_so[1:]).all())
    assert (losses.rrhf(_lists(given_so, order), 0.0)[0] == 0) == sorted_so
