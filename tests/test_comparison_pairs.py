"""Pairs from comparisons: what was said of answers beside each other, and never more than was said."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, get_args

import fake_judges
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from store_rows import completion, identifier, judgement, opening, texts

from redistill.agents import servers
from redistill.agents.applying import apply
from redistill.agents.judge import ColumnName, JudgeTask, SettledJudge
from redistill.agents.loop import Place, Silent, run
from redistill.agents.operators.curate import Pair as PairStep
from redistill.agents.ranking import verdict
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput
from redistill.hashing import row_id
from redistill.report.differing import difference
from redistill.store.duels import Shift
from redistill.store.identify import Found
from redistill.store.lineage import lineage
from redistill.store.pairing import PairQuery, Rule, pairs
from redistill.store.query import read_rows
from redistill.store.store import Row, Store
from redistill.testing.fake_server import FakeServer, Mode
from redistill.testing.fakes import fake_prompts, fake_recipe
from redistill.types import Judgement, Pair

RULES = get_args(Rule)[:3]
WORDS = "abcdefgh"


def shown(words: str, ranks: Sequence[int] | None, **changed: Any) -> Row:
    """Make the row of one showing; without ranks the judge has failed."""
    changed = {"judge": "chat", "step": "compare", "attempt": 0} | changed
    return judgement("", None, **changed) | {
        "id": row_id("judgement", words=words, judge=changed["judge"], attempt=changed["attempt"]),
        "mode": "compare",
        "completion_id": None,
        "presented": [identifier(w) for w in words],
        "status": "parse_error" if ranks is None else "ok",
        "ranks": None if ranks is None else list(ranks),
    }


def answers(words: str = WORDS, **changed: Any) -> list[Row]:
    """Make the rows of the answers to one prompt, each with its own text."""
    return [completion(w, f"answer {w}", **changed) for w in words]


def write(store: Store, said: Sequence[Row], made: Sequence[Row] | None = None) -> None:
    """Write answers and what a judge said of them."""
    rows: Mapping[str, list[Row]] = {
        "completion": list(answers() if made is None else made),
        "content": texts(*(f"answer {w}" for w in WORDS)),
        "judgement": list(said),
    }
    store.commit(rows, round=1, step="sample", chunk=0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return a store with answers, in which every example of a law has a judge of its own."""
    opened = Store(tmp_path_factory.mktemp("shared"))
    opened.commit(opening({"p": "train"}), round=0, step="begin", chunk=0)
    write(opened, [])
    yield opened
    opened.close()


_JUDGES = itertools.count()


def judged(store: Store, said: Sequence[Row], **asked: Any) -> dict[str, list[Pair]]:
    """Let a new judge say so in this order of rows, and return the pairs by rule."""
    name = f"judge{next(_JUDGES)}"
    rows = [row | {"judge": name, "id": row_id("said", judge=name, of=row["id"])} for row in said]
    store.commit({"judgement": rows}, round=1, step=name, chunk=0)
    return {rule: made(store, rule, judge=name, **asked) for rule in RULES}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an open store with a prompt."""
    opened = Store(tmp_path)
    opened.commit(opening({"p": "train"}), round=0, step="begin", chunk=0)
    yield opened
    opened.close()


def made(store: Store, rule: Any = "correct_incorrect", **changed: Any) -> list[Pair]:
    """Return the pairs of round 1 that the comparisons make."""
    asked: dict[str, Any] = {"round": 1, "steps": ("sample",), "judge": "chat", "rule": rule}
    asked |= {"at_least": 0.0, "seed": 0, "labels": "comparisons"} | changed
    return pairs(store, PairQuery(**asked))


def named(found: Sequence[Pair]) -> dict[str, tuple[float, float]]:
    """Return margin and probability by the words of chosen and rejected."""
    word = {identifier(w): w for w in WORDS}
    return {word[p.chosen] + word[p.rejected]: (p.margin, p.probability) for p in found}


# -- by hand


@pytest.mark.parametrize("rule", RULES)
def test_a_verdict_in_both_orders_makes_a_sure_pair(store: Store, rule: str) -> None:
    """The one that won in both places is chosen."""
    write(store, [shown("ab", (1, 2)), shown("ba", (2, 1))])
    assert named(made(store, rule)) == {"ab": (1.0, 1.0)}


@pytest.mark.parametrize("rule", RULES)
def test_a_verdict_that_turns_with_the_order_makes_no_pair(store: Store, rule: str) -> None:
    """Whoever is first wins: that says nothing of the answers, also where effects are taken out."""
    write(store, [shown("ab", (1, 2)), shown("ba", (1, 2))])
    assert made(store, rule) == []
    assert made(store, rule, shift=Shift(0.5, 0.5)) == []


def test_probabilities_are_averaged_over_the_orders(store: Store) -> None:
    """0.9 for a shown first and 0.6 for b shown first are 0.65 for a."""
    write(store, [shown("ab", (1, 2), probability=0.9), shown("ba", (1, 2), probability=0.6)])
    assert named(made(store)) == {"ab": (0.3, 0.65)}


@pytest.mark.parametrize("rule", RULES)
def test_an_order_without_a_verdict_is_left_out(store: Store, rule: str) -> None:
    """Who abstains is not counted, neither for nor against; alone it makes no pair."""
    write(store, [shown("ab", (1, 2)), shown("ba", None), shown("cd", None), shown("dc", None)])
    assert named(made(store, rule)) == {"ab": (1.0, 1.0)}


@pytest.mark.parametrize("rule", RULES)
def test_a_tie_is_half_a_win_for_both(store: Store, rule: str) -> None:
    """Beside a verdict it makes it less sure; alone it makes no pair, whatever is taken out."""
    write(
        store,
        [shown("ab", (1, 2)), shown("ba", (1, 1)), shown("cd", (1, 1), probability=0.7)],
    )
    assert named(made(store, rule)) == {"ab": (0.5, 0.75)}
    assert "cd" not in named(made(store, rule, shift=Shift(-3.0, 1.0)))


def test_the_last_attempt_of_a_showing_counts(store: Store) -> None:
    """Asked again, the judge's last verdict replaces the one before, and no failure replaces a verdict."""
    write(
        store, [shown("ab", (2, 1)), shown("ab", (1, 2), attempt=1), shown("ab", None, attempt=2)]
    )
    assert named(made(store)) == {"ab": (1.0, 1.0)}


def test_best_and_worst_of_many(store: Store) -> None:
    """Who wins most against who wins least; the margin is the difference of the shares of wins."""
    said = [shown(x + y, (1, 2)) for x, y in itertools.combinations("abcd", 2)]
    write(store, said)
    assert named(made(store, "best_worst")) == {"ad": (1.0, 1.0)}
    drawn = {next(iter(named(made(store, "best_random", seed=s)))) for s in range(30)}
    assert drawn == {"ab", "ac", "ad"}
    assert set(named(made(store))) == {"ab", "ac", "ad", "bc", "bd", "cd"}


def test_a_list_is_as_good_as_its_duels(store: Store) -> None:
    """Ranks of a list are wins over each that stands lower; equal ranks are a tie."""
    write(store, [shown("abc", (1, 2, 2)), shown("cba", (2, 3, 1))])
    wanted = {"ab": (1.0, 1.0), "ac": (1.0, 1.0), "cb": (0.5, 0.75)}
    assert named(made(store)) == wanted
    assert named(made(store, "best_worst")) == {"ab": (0.875, 1.0)}


@pytest.mark.parametrize("rule", RULES)
def test_a_cut_answer_is_never_chosen(store: Store, rule: str) -> None:
    """It may lose, and where it wins there is no pair."""
    cut = [
        a | {"finish_reason": "length" if a["id"] == identifier("a") else "stop"} for a in answers()
    ]
    write(store, [shown("ab", (1, 2)), shown("bc", (1, 2)), shown("ca", (1, 2))], cut)
    assert "ab" not in named(made(store, rule))
    assert {"bc", "ca"} >= set(named(made(store, rule)))


def test_nothing_of_another_judge_round_step_or_split(store: Store) -> None:
    """A pair is of the judge, the round and the steps that are asked for, and of train prompts."""
    other = answers("cd", step="rewrite") + answers("ef", split="heldout")
    write(
        store,
        [shown("ab", (1, 2), judge="longest"), shown("cd", (1, 2)), shown("ef", (1, 2))],
        answers("ab") + other,
    )
    assert made(store) == []
    assert named(made(store, steps=("sample", "rewrite"))) == {"cd": (1.0, 1.0)}
    assert named(made(store, judge="longest")) == {"ab": (1.0, 1.0)}
    assert made(store, judge="longest", round=2) == []


def test_bare_votes_lose_their_worth_but_are_not_turned(store: Store) -> None:
    """What position explains alone is no win; a soft verdict says how much is left, and may turn."""
    write(store, [shown("ab", (1, 2)), shown("cd", (1, 2), probability=0.6)])
    assert named(made(store)) == {"ab": (1.0, 1.0), "cd": (0.2, 0.6)}
    found = named(made(store, shift=Shift(position=1.0)))
    # sigmoid(logit(0.9) - 1) of a bare vote, and 1 - sigmoid(logit(0.6) - 1)
    assert {pair: round(share, 3) for pair, (_, share) in found.items()} == {
        "ab": 0.768,
        "dc": 0.644,
    }
    assert set(named(made(store, shift=Shift(position=5.0)))) == {"dc"}


# -- laws

SAID = st.lists(
    st.tuples(
        st.permutations("abcd").map("".join),
        st.integers(2, 4),
        st.one_of(st.none(), st.lists(st.integers(1, 4), min_size=4, max_size=4)),
        st.one_of(st.none(), st.sampled_from([0.1, 0.5, 0.7, 1.0])),
    ),
    min_size=1,
    max_size=10,
    unique_by=lambda said: said[0][: said[1]],
)


def _rows(drawn: Sequence[tuple[str, int, list[int] | None, float | None]]) -> list[Row]:
    return [
        shown(words[:n], ranks[:n] if ranks else None, probability=share if ranks else None)
        for words, n, ranks, share in drawn
    ]


@settings(max_examples=15, deadline=None)
@given(SAID, st.randoms(use_true_random=False), st.booleans())
def test_pairs_do_not_depend_on_the_order_of_rows(
    shared: Store, drawn: Any, mixer: random.Random, shift: bool
) -> None:
    """However rows come in, the same pairs come out, and chosen has beaten rejected face to face."""
    rows = _rows(drawn)
    mixed = rows.copy()
    mixer.shuffle(mixed)
    taken = Shift(0.7, 0.3) if shift else Shift()
    found = judged(shared, rows, shift=taken)
    assert judged(shared, mixed, shift=taken) == found
    wins = {(p.chosen, p.rejected) for p in found["correct_incorrect"]}
    for some in found.values():
        assert {(p.chosen, p.rejected) for p in some} <= wins
        assert all(p.margin > 0 and 0.5 < p.probability <= 1 for p in some)


@settings(max_examples=15, deadline=None)
@given(SAID, st.permutations("abcd"), st.booleans())
def test_a_tie_or_an_abstention_never_makes_a_win(
    shared: Store, drawn: Any, words: list[str], abstains: bool
) -> None:
    """One row more without a winner: nobody wins over anybody whom he did not beat before."""
    more = shown("".join(words[:2]), None if abstains else (1, 1), attempt=9)
    rows = [row for row in _rows(drawn) if row["presented"] != more["presented"]]
    before, after = judged(shared, rows), judged(shared, [*rows, more])
    if abstains:
        assert after == before
    for rule in RULES:
        assert named(after[rule]).keys() <= named(before["correct_incorrect"]).keys()


@settings(max_examples=15, deadline=None)
@given(SAID)
def test_swapping_every_showing_swaps_nothing(shared: Store, drawn: Any) -> None:
    """The same verdicts on the opposite orders are the same pairs."""
    rows = _rows(drawn)
    turned = [
        row
        | {
            "presented": row["presented"][::-1],
            "ranks": row["ranks"] and row["ranks"][::-1],
            "probability": None if row["probability"] is None else 1 - row["probability"],
        }
        for row in rows
    ]
    assert judged(shared, turned) == judged(shared, rows)


# -- rewrites


@pytest.fixture
def rewritten(store: Store) -> Store:
    """Return a store in which b rewrites a, d rewrites c, f rewrites e, h rewrites g."""
    parents = {"b": "a", "d": "c", "f": "e", "h": "g"}
    rows = [
        row | {"step": "rewrite", "parent_id": identifier(parents[w])} if w in parents else row
        for w, row in zip(WORDS, answers(), strict=True)
    ]
    values = {"a": 0.5, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.0, "f": 0.9, "h": 1.0}
    said = [judgement(w, v) for w, v in values.items()] + [shown("ab", (2, 1)), shown("dc", (1, 2))]
    # f and e tie, and of h and g each wins where it is shown first.
    said += [shown("fe", (1, 1)), shown("hg", (1, 2)), shown("gh", (1, 2))]
    write(store, said, rows)
    return store


def test_a_rewrite_must_pass_and_its_original_be_worse(rewritten: Store) -> None:
    """With the verifier: b over a; d is no better than c, f does not pass, and g has no value."""
    asked: dict[str, Any] = {"steps": ("rewrite",), "judge": "verifier", "labels": "scores"}
    found = made(rewritten, "revised_original", **asked, at_least=1.0)
    assert named(found) == {"ba": (0.5, 1.0)}
    assert set(named(made(rewritten, "revised_original", **asked))) == {"ba", "fe"}


def test_a_rewrite_is_preferred_where_comparisons_prefer_it(rewritten: Store) -> None:
    """Both were shown together, and the rewrite has won: not where it tied, or won by its place alone."""
    asked: dict[str, Any] = {"steps": ("rewrite",)}
    assert set(named(made(rewritten, "revised_original", **asked))) == {"ba", "dc"}


def test_without_a_judge_every_rewrite_is_better(rewritten: Store) -> None:
    """The rule alone decides."""
    found = made(rewritten, "revised_original", steps=("rewrite",), judge="")
    assert named(found) == dict.fromkeys(("ba", "dc", "fe", "hg"), (1.0, 1.0))


# -- recipes


def _recipe(
    base: Path, middle: Sequence[Any], roles: Any = None, *, train: int = 12, chunk: int = 64
) -> Recipe:
    prompts = map(json.dumps, fake_prompts(train=train, heldout=12, test=10))
    (base / "prompts.jsonl").write_text("\n".join(prompts), "utf-8")
    data = fake_recipe(rounds=1) | {"unproven_judge": "allow", "roles": roles or {}, "chunk": chunk}
    data["prompts"]["per_round"] = train
    data["round"][1:3] = list(middle)
    return load_recipe(yaml.safe_dump(data), "recipe.yaml", base=base)


@pytest.mark.parametrize(
    ("middle", "by", "from_"),
    [
        ([{"compare": {"judge": "first"}}, "pair"], "first", "comparisons"),
        ([{"score": {"judge": "longest"}}, "pair"], "longest", None),
        (
            [{"compare": {"judge": "first"}}, {"score": {"judge": "longest"}}, {"pair": {"by": "first"}}],
            "first",
            "comparisons",
        ),
        (
            [{"compare": {"judge": "first"}}, {"score": {"judge": "longest"}}, {"pair": {"from": "scores"}}],
            "longest",
            "scores",
        ),
    ],
)  # fmt: skip
def test_the_judge_says_what_pairs_are_made_of(
    tmp_path: Path, middle: Any, by: str, from_: str | None
) -> None:
    """`by` is the only judge that fits, and `from` what it gave; scores leave the step as it was."""
    step = next(s for s in _recipe(tmp_path, middle).stages[0].steps if s.name == "pair")
    assert isinstance(step, PairStep)
    assert (step.by, step.from_) == (by, from_)
    dumped = step.model_dump(by_alias=True)
    assert ("from" in dumped) == (dumped.get("from") is not None)
    assert "correct" not in dumped


@pytest.mark.parametrize(
    ("middle", "said"),
    [
        (["pair"], "nothing has scored or compared these completions"),
        ([{"compare": {"judge": "first"}}, {"pair": {"by": "longest"}}], "'longest' has not compared them"),
        (
            [{"compare": {"judge": "first"}}, {"score": {"judge": "longest"}}, "pair"],
            "first and longest have scored or compared them",
        ),
        ([{"compare": {"judge": "first"}}, {"pair": {"from": "scores"}}], "nothing has scored these"),
        ([{"score": {"judge": "longest"}}, {"pair": {"correct": ["length"]}}], "only comparisons are corrected"),
        ([{"compare": {"judge": "first"}}, {"pair": {"correct": ["size"]}}], "pair.correct"),
        (
            [
                {"compare": {"judge": {"chat": {"role": "student"}}, "as": "c"}},
                {"score": {"judge": {"chat": {"role": "student"}}, "as": "s"}},
                "pair",
            ],
            "chat has both scored and compared them",
        ),
        (
            [
                {"rewrite": {"given": "nothing"}},
                {"score": {"judge": "verifier", "of": "rewrite"}},
                {"pair": {"rule": "revised_original", "of": "rewrite", "by": "verifier"}},
            ],
            "nothing has scored or compared",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_paired_is_told_at_load(tmp_path: Path, middle: Any, said: str) -> None:
    """In one line, before anything is sampled."""
    with pytest.raises(BadInput) as caught:
        _recipe(tmp_path, middle)
    assert said in str(caught.value)


# -- runs

FAILS: dict[Mode, tuple[str, str]] = {
    "html_200": ("not_json", "error"),
    "server_error": ("server_error", "error"),
    "cut_body": ("cut_body", "error"),
    "empty_object": ("no_reply", "error"),
    "no_choices": ("no_reply", "error"),
    "error_200": ("error_in_ok", "error"),
    "refusal": ("refused", "refused"),
    "hang": ("timeout", "timeout"),
    "reset": ("reset", "error"),
    "huge": ("too_big", "too_big"),
    "other_model": ("other_model", "error"),
    "redirect": ("redirect", "error"),
}
"""By mode of the server: what happened, and the status of the judgement."""

_SHOWN = """
SELECT j.presented::VARCHAR[] AS presented, j.ranks, j.status, x.prompt_id::VARCHAR AS prompt_id
FROM judgement j JOIN completion x ON x.id = j.presented[1] WHERE j.mode = 'compare'
"""
_MADE = """
SELECT prompt_id::VARCHAR AS prompt_id, chosen_id::VARCHAR AS chosen, rejected_id::VARCHAR AS rejected,
       round(probability, 6) AS probability, round(margin, 6) AS margin FROM pair ORDER BY ALL
"""


def _by_hand(showings: Sequence[Row]) -> list[Row]:
    """Return every win of comparisons of two, worked out without a store."""
    shares: dict[tuple[str, str, str], list[float]] = {}
    for row in showings:
        (one, two), (rank, other) = row["presented"], row["ranks"]
        share = 0.5 if rank == other else float(rank < other)
        shares.setdefault((row["prompt_id"], one, two), []).append(share)
        shares.setdefault((row["prompt_id"], two, one), []).append(1 - share)
    wins = [
        {
            "prompt_id": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "probability": round(fmean(found), 6),
            "margin": round(2 * fmean(found) - 1, 6),
        }
        for (prompt, chosen, rejected), found in shares.items()
        if fmean(found) > 0.5
    ]
    return sorted(wins, key=lambda row: (row["prompt_id"], row["chosen"], row["rejected"]))


def _first_of_equals(messages: list[dict[str, Any]]) -> str:
    """Judge, and take the first one of two that are alike: a failure in one order then changes a pair."""
    return fake_judges.judge(messages).replace('"tie"', '"A"')


def test_failures_of_twelve_kinds_leave_the_other_pairs_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call in ten fails: the pairs are those of the calls that did not, and every failure is counted."""
    before = servers.address_of
    quick: dict[str, Any] = {"attempts": 1, "deadline": 2.0, "breaker": 10_000, "largest": 1 << 20}
    monkeypatch.setattr(
        servers, "address_of", lambda n, r: dataclasses.replace(before(n, r), **quick)
    )
    middle = [
        {"compare": {"judge": "helper"}},
        {"pair": {"rule": "correct_incorrect"}},
    ]
    nine: list[Mode] = ["ok"] * 9
    script = [mode for kind in FAILS for mode in (*nine, kind)] * 5
    folders = []
    with FakeServer(_first_of_equals, huge=4 << 20) as server:
        roles = {"helper": {"policy": server.url, "model": "m"}}
        for name in ("clean", "failing"):
            (tmp_path / name).mkdir()
            server.script = script if name == "failing" else []
            server.counts.clear()
            recipe = _recipe(tmp_path / name, middle, roles, train=40, chunk=1024)
            place = Place(tmp_path / name / "runs", tmp_path / "cache")
            folders.append(run(recipe, place=place))
        counts = dict(server.counts)
    clean, failing = folders
    assert 0.08 < 1 - counts["ok"] / sum(counts.values()) < 0.12
    wanted = Counter({"ok": counts.pop("ok")})
    kinds = wanted.copy()
    assert counts.keys() == FAILS.keys()
    for mode, count in counts.items():
        kinds[FAILS[mode][0]] += count  # type: ignore[index]
        wanted[FAILS[mode][1]] += count  # type: ignore[index]
    rows = read_rows(failing, _SHOWN)
    assert Counter(row["status"] for row in rows) == wanted
    charged = read_rows(failing, "SELECT status FROM charge")
    assert Counter(row["status"] for row in charged) == kinds
    good = {tuple(row["presented"]) for row in rows if row["status"] == "ok"}
    said = [row for row in read_rows(clean, _SHOWN) if tuple(row["presented"]) in good]
    assert len(good) == len(said) == wanted["ok"] < len(rows)
    assert read_rows(failing, _MADE) == _by_hand(said) != read_rows(clean, _MADE)


def test_pairs_of_comparisons_are_applied_told_and_traced(tmp_path: Path) -> None:
    """`apply` finds the comparing judge, lineage leads to both showings, and diff sets pairings side by side."""
    middle = [
        {"compare": {"judge": "test_comparison_pairs:ShortOne", "size": 3}},
        {"pair": {"rule": "best_worst"}},
    ]
    folder = run(_recipe(tmp_path, middle), place=Place(tmp_path / "runs", tmp_path / "cache"))
    [found] = apply(folder, "pair: {rule: correct_incorrect}", progress=Silent())
    assert (found.step, found.new) == ("pair_short_one", True)
    [step] = read_rows(folder, "SELECT settings FROM step WHERE step = 'pair_short_one'")
    assert json.loads(step["settings"])["from"] == "comparisons"
    wrong = """
        SELECT 1 FROM pair p JOIN answers c ON c.id = p.chosen_id JOIN answers r ON r.id = p.rejected_id
        WHERE len(c.answer) >= len(r.answer)
    """
    assert not read_rows(folder, wrong)
    counts = difference(folder, "pair", "pair_short_one")["counts"]
    assert counts["same"] > 0 == counts["only_a"] == counts["swapped"]
    pair = read_rows(folder, "SELECT id::VARCHAR AS id FROM pair WHERE step = 'pair_short_one'")[0]
    told = json.dumps(lineage(folder, Found("pair", pair["id"])).as_dict(), default=str)
    assert "short_one" in told
    assert "judgement" in told
    with pytest.raises(BadInput, match="nothing has scored these completions"):
        apply(folder, "pair: {from: scores, as: x}", progress=Silent())
    [again] = apply(
        folder, "pair: {rule: best_worst, correct: [length], as: freed}", progress=Silent()
    )
    assert again.rows["event"] == 1


class ShortOne(SettledJudge):
    """Ranks by length, the shortest first."""

    standing: ClassVar[str] = "program"
    name: ColumnName = "short_one"

    async def compare(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """Rank the candidates."""
        return [verdict([len(c.text) for c in task.candidates]) for task in tasks]


def test_rewrites_that_pass_train_against_their_originals(tmp_path: Path) -> None:
    """Critique, rewrite, verifier: only rewrites that pass, of answers that did not, are learned."""

    def speak(messages: list[dict[str, Any]]) -> str:
        asked = messages[0]["content"].rsplit(maxsplit=1)[-1]
        if len(messages) > 1:  # every third rewrite is none
            return asked if int(asked.strip("train")) % 3 else "no idea"
        return fake_judges.judge(messages)

    middle = [
        {"critique": {"role": "helper"}},
        {"rewrite": {"role": "helper", "of": "sample"}},
        {"score": {"judge": "verifier", "of": ["sample", "rewrite"]}},
        {"pair": {"rule": "revised_original", "of": "rewrite"}},
    ]
    with FakeServer(speak) as server:
        roles = {"helper": {"policy": server.url, "model": "m"}}
        folder = run(
            _recipe(tmp_path, middle, roles), place=Place(tmp_path / "runs", tmp_path / "cache")
        )
    rows = read_rows(
        folder,
        """
        SELECT c.verifier AS chosen, r.verifier AS rejected, c.step AS after, r.step AS before, p.judge,
               p.probability
        FROM pair p JOIN answers c ON c.id = p.chosen_id JOIN answers r ON r.id = p.rejected_id
        """,
    )
    assert len(rows) > 10
    assert {tuple(row.values()) for row in rows} == {
        (1.0, 0.0, "rewrite", "sample", "verifier", 1.0)
    }
    trained = read_rows(folder, "SELECT count(*) AS n FROM training_row")
    assert trained[0]["n"] > 0
