"""Effects of place, length and authorship: found where they were planted, and taken out of the labels."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import yaml
from store_rows import completion, identifier, judgement, opening, texts

from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.hashing import row_id
from redistill.store.bias import EFFECTS, Bias, clustered, estimate_bias
from redistill.store.duels import NOTHING, Shift
from redistill.store.pairing import PairQuery, Rule, pairs
from redistill.store.query import read_rows
from redistill.store.store import Row, Store
from redistill.testing.fakes import fake_prompts, fake_recipe

PROMPTS = [f"p{n}" for n in range(40)]
SEEDS = range(20)


@dataclass
class Answers:
    """A store with four answers to each prompt, of lengths that say nothing of their merit."""

    store: Store
    texts: dict[str, str] = field(default_factory=dict)
    """By word."""

    def of(self, prompt: str) -> list[str]:
        """Return the words of the answers to a prompt."""
        return [f"{prompt}.{slot}" for slot in range(4)]

    def longer(self, one: str, other: str) -> float:
        """Return the log ratio of two answers' lengths, within -2 and 2."""
        ratio = math.log((len(self.texts[one]) + 1) / (len(self.texts[other]) + 1))
        return max(-2.0, min(2.0, ratio))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """Answers that every planted judge compares; the judges differ by name."""
    found = Answers(Store(tmp_path_factory.mktemp("bias")))
    found.store.commit(opening(dict.fromkeys(PROMPTS, "train")), round=0, step="begin", chunk=0)
    lengths = random.Random(7)
    rows = []
    for prompt in PROMPTS:
        for slot, word in enumerate(found.of(prompt)):
            text = f"{word} " + "x" * int(math.exp(lengths.uniform(3, 6)))
            found.texts[word] = text
            role = "teacher" if slot == 0 else "student"
            rows.append(completion(word, text, prompt_id=identifier(prompt), slot=slot, role=role))
    content = texts(*found.texts.values())
    found.store.commit({"completion": rows, "content": content}, round=1, step="sample", chunk=0)
    yield found
    found.store.close()


@dataclass(frozen=True)
class Planted:
    """A judge whose verdict is merit and what was planted, in log-odds."""

    seed: int
    position: float = 0.0
    length: float = 0.0
    own: float = 0.0
    merit: float = 1.0
    """Standard deviation of an answer's merit."""
    soft: bool = True
    """Whether it says a probability; else it draws a winner."""
    both: bool = False
    """Whether it sees each two answers in both orders."""

    @property
    def name(self) -> str:
        """Name of the judge."""
        return row_id("judge", of=repr(self))

    def judge(self, answers: Answers) -> dict[str, float]:
        """Write what the judge says, and return the merit of each answer by its id."""
        draw = random.Random(self.seed)
        merit = {word: draw.gauss(0, self.merit) for word in answers.texts}
        rows: list[Row] = []
        for prompt in PROMPTS:
            for two in itertools.combinations(answers.of(prompt), 2):
                shown = draw.sample(two, 2)
                for one, other in (shown, shown[::-1]) if self.both else (shown,):
                    own = (one[-1] == "0") - (other[-1] == "0")
                    log_odds = merit[one] - merit[other] + self.position + self.own * own
                    log_odds += (
                        self.length * answers.longer(one, other) + draw.gauss(0, 0.5) * self.soft
                    )
                    rows.append(self._row(one, other, 1 / (1 + math.exp(-log_odds)), draw.random()))
        answers.store.commit({"judgement": rows}, round=1, step=self.name, chunk=0)
        return {identifier(word): value for word, value in merit.items()}

    def _row(self, one: str, other: str, share: float, drawn: float) -> Row:
        won = share > (0.5 if self.soft else drawn)
        return judgement(one, None, judge=self.name, role="teacher", revision="weights") | {
            "id": row_id("judgement", judge=self.name, presented=[one, other]),
            "mode": "compare",
            "completion_id": None,
            "presented": [identifier(one), identifier(other)],
            "status": "ok",
            "ranks": [1, 2] if won else [2, 1],
            "value": float(won),
            "probability": share if self.soft else None,
        }


def right(
    answers: Answers, judge: Planted, merit: dict[str, float], rule: Rule, shift: Shift = NOTHING
) -> float:
    """Return the share of pairs whose chosen answer has more merit."""
    query = PairQuery(1, ("sample",), judge.name, rule, 0.0, 0, "comparisons", shift)
    return fmean(merit[p.chosen] > merit[p.rejected] for p in pairs(answers.store, query))


@pytest.mark.parametrize(
    ("soft", "both", "rule", "least"),
    [
        (True, False, "correct_incorrect", 0.08),
        (True, True, "correct_incorrect", 0.08),
        (False, True, "best_worst", 0.01),
    ],
)
def test_corrected_labels_are_right_more_often(
    answers: Answers, soft: bool, both: bool, rule: Rule, least: float
) -> None:
    """Of a judge that likes what is first and what is long, mean label accuracy of 20 seeds rises."""
    raw, corrected = [], []
    for seed in SEEDS:
        judge = Planted(seed, position=1.0, length=1.0, soft=soft, both=both)
        merit = judge.judge(answers)
        shift = estimate_bias(answers.store, judge.name, 1).shift(("position", "length"))
        raw.append(right(answers, judge, merit, rule))
        corrected.append(right(answers, judge, merit, rule, shift))
    better = sum(after > before for before, after in zip(raw, corrected, strict=True))
    print(
        f"\n{'soft' if soft else 'bare'}, {'both orders' if both else 'one order'}, {rule}: "
        f"raw {fmean(raw):.3f}, corrected {fmean(corrected):.3f}, better in {better} of 20"
    )
    assert fmean(corrected) > fmean(raw) + least


def test_an_honest_judge_is_left_as_it_is(answers: Answers) -> None:
    """Without a bias the intervals hold zero in 95 of 100 cases, and then nothing is taken out."""
    found = []
    for seed in SEEDS:
        judge = Planted(seed, soft=False)
        judge.judge(answers)
        bias = estimate_bias(answers.store, judge.name, 1)
        found += [effect.real for effect in bias.effects]
        assert (bias.shift(EFFECTS) == NOTHING) == (not any(e.real for e in bias.effects))
    assert len(found) == 60
    assert sum(found) <= 8


def test_planted_effects_lie_in_their_intervals(answers: Answers) -> None:
    """On answers of equal merit the estimates are those of the judge, and the intervals hold them."""
    planted = {"position": 0.8, "length": -0.5, "self": 0.6}
    held, estimates = [], []
    for seed in SEEDS:
        judge = Planted(seed, 0.8, -0.5, 0.6, merit=0.0, soft=False)
        judge.judge(answers)
        for effect in estimate_bias(answers.store, judge.name, 1).effects:
            held.append(effect.ci_low <= planted[effect.effect] <= effect.ci_high)
            estimates.append((effect.effect, effect.estimate))
    assert sum(held) >= 51  # of 60; 57 are expected
    for name, value in planted.items():
        assert abs(fmean(e for n, e in estimates if n == name) - value) < 0.1


def test_only_what_is_wanted_and_certain_is_taken_out(answers: Answers) -> None:
    """The other effects are told, and stay where they are."""
    judge = Planted(1, position=1.5, soft=True)
    judge.judge(answers)
    bias = estimate_bias(answers.store, judge.name, 1)
    by_name = {e.effect: e for e in bias.effects}
    assert set(by_name) == set(EFFECTS)
    assert (bias.duels, bias.prompts) == (240, 40)
    assert bias.shift(()) == NOTHING
    assert bias.shift(("length",)).position == 0
    assert bias.shift(("position", "length")).position == by_name["position"].estimate > 1
    told = {e["effect"]: e["removed"] for e in bias.as_dict(("position",))["effects"]}
    assert told == {"position": True, "length": False, "self": False}
    assert json.loads(json.dumps(bias.as_dict(EFFECTS)))["judge"] == judge.name
    assert "position +1." in bias.told(("position",))
    assert "taken out" in bias.told(("position",))
    assert "taken out" not in bias.told(("length",))


def test_too_little_says_nothing(answers: Answers) -> None:
    """A judge that has compared nothing, or nothing yet in these rounds, has no effects."""
    judge = Planted(2, position=3.0)
    judge.judge(answers)
    assert estimate_bias(answers.store, "nobody", 1) == Bias("nobody", 0, 0, ())
    before = estimate_bias(answers.store, judge.name, 0)
    assert before.shift(EFFECTS) == NOTHING
    assert "too few to tell" in before.told(EFFECTS)
    assert estimate_bias(answers.store, judge.name, 5).effects


def test_errors_are_clustered() -> None:
    """The same row told ten times in a cluster is no more certain than once, and with one each it is."""
    draw = np.random.default_rng(0)
    x = draw.choice([-1.0, 1.0], size=(200, 1))
    y = (draw.random(200) < 1 / (1 + np.exp(-x[:, 0]))).astype(float)
    once = np.arange(200)
    _, plain = clustered(x, y, once, ridge=0.0)
    _, tenfold = clustered(
        np.repeat(x, 10, axis=0), np.repeat(y, 10), np.repeat(once, 10), ridge=0.0
    )
    _, naive = clustered(np.repeat(x, 10, axis=0), np.repeat(y, 10), np.arange(2000), ridge=0.0)
    assert tenfold == pytest.approx(plain)
    assert naive == pytest.approx(plain / math.sqrt(10), rel=0.01)


def test_a_judge_that_always_takes_the_first_has_a_finite_effect() -> None:
    """Separable verdicts end at a number, by the ridge."""
    found, error = clustered(np.ones((100, 1)), np.ones(100), np.arange(100))
    assert 3 < found[0] < 6
    assert np.isfinite(error).all()


def test_what_was_taken_out_can_be_asked_for(tmp_path: Path) -> None:
    """A `pair` step with `correct` says in an event what it found, and a view has a row an effect."""
    prompts = map(json.dumps, fake_prompts(train=30, heldout=12, test=10))
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts), "utf-8")
    data = fake_recipe(rounds=1) | {"unproven_judge": "allow"}
    data["prompts"]["per_round"] = 30
    data["round"][1:3] = [
        {"compare": {"judge": "first", "both_orders": False}},
        {"pair": {"rule": "correct_incorrect", "correct": ["position", "length"]}},
    ]
    recipe = load_recipe(yaml.safe_dump(data), "recipe.yaml", base=tmp_path)
    folder = run(recipe, place=Place(tmp_path / "runs", tmp_path / "cache"))
    rows = read_rows(folder, "SELECT * FROM judge_bias")
    assert {row["effect"]: row["removed"] for row in rows}["position"] is True
    first = next(row for row in rows if row["effect"] == "position")
    assert (first["judge"], first["step"], first["round"]) == ("first", "pair", 1)
    assert 0 < first["ci_low"] < first["log_odds"] < first["ci_high"]
    # Whoever is first wins: nothing is left of it.
    assert read_rows(folder, "SELECT * FROM pair") == []
