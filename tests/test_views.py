"""The views: what they declare is what they give, and every number is the one worked out by hand."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_rows import WHEN, completion, identifier, judgement, messages, pair, prompt, run

from redistill.hashing import row_id
from redistill.store.migrate import LEDGER
from redistill.store.query import query
from redistill.store.store import Row, Store, content
from redistill.store.tables import BY_NAME as TABLES
from redistill.store.tables import render
from redistill.store.views import BY_NAME, VERSION, judge_columns, render_snapshot, render_views
from redistill.store.views.bradley_terry import Contest, fit
from redistill.testing.small_run import make_run

DATASETS = tuple(f"d{number}" for number in range(1, 9))
LATER = WHEN.replace(year=2027)


class Facts:
    """A schema in memory, whose rows are written as the store writes them."""

    def __init__(self, judges: Sequence[str] = ("verifier",)) -> None:
        self.connection = duckdb.connect(":memory:")
        views = render_views(judges) + render_snapshot("2026-11-25T00:00:00+00:00", "0", "")
        self.connection.execute(f"SET TimeZone = 'UTC'; BEGIN; {LEDGER}; {render()} {views} COMMIT")

    def write(self, table: str, rows: Sequence[Row]) -> None:
        """Add rows, columns that are left out as NULL."""
        data = pa.Table.from_pylist(list(rows), schema=TABLES[table].arrow())
        self.connection.register("incoming", data)
        self.connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")

    def say(self, word: str, text: str, of: str = "p", **changed: Any) -> str:
        """Add an answer with its text, and return its id."""
        row = completion(word, text, prompt_id=identifier(of), **changed)
        self.write("completion", [row])
        text_row = content(text, row["round"])
        known = "SELECT 1 FROM content WHERE hash = ? AND round = ?"
        if not self.connection.execute(known, [text_row["hash"], text_row["round"]]).fetchall():
            self.write("content", [text_row])
        return str(row["id"])

    def score(self, **values: float) -> None:
        """Add what judges said of answers: `a_verifier=1.0` of the answer `a`."""
        rows = []
        for name, value in values.items():
            word, judge = name.split("_")
            rows.append(judgement(word, value, judge=judge))
        self.write("judgement", rows)

    def ask(self, sql: str) -> list[Row]:
        """Return the rows of a query."""
        result = self.connection.execute(sql)
        names = [d[0] for d in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def prompts(self, **splits: str) -> None:
        """Add prompts by word and split."""
        self.write("prompt", [prompt(word, split) for word, split in splits.items()])
        self.write("content", [content(messages(word), 0) for word in splits])
        self.write("content", [content("{}", 0)])


_FACTS: list[Facts] = []


@contextmanager
def fresh() -> Iterator[Facts]:
    """Lend one schema without rows: they are rolled back at the end."""
    if not _FACTS:
        _FACTS.append(Facts())
    facts = _FACTS[0]
    facts.connection.begin()
    try:
        facts.write("run", [run()])
        yield facts
    finally:
        facts.connection.rollback()


@pytest.fixture
def facts() -> Iterator[Facts]:
    """Return a store in memory with a train prompt `p` and `q`, a held-out `h` and a test prompt `t`."""
    with fresh() as found:
        found.prompts(p="train", q="train", h="heldout", t="test")
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole small run."""
    return make_run(tmp_path_factory.mktemp("views") / "run")


def compared(words: str, ranks: Sequence[int], **changed: Any) -> Row:
    """Make the row of a judge that saw answers in the order of their words."""
    presented = [identifier(word) for word in words]
    return (
        judgement(words, None, judge="chat")
        | {"mode": "compare", "completion_id": None, "presented": presented, "ranks": list(ranks)}
        | {"id": row_id("judgement", words=words, **changed), "status": "ok"}
        | changed
    )


# -- the interface


def test_every_view_is_what_it_declares(folder: Path) -> None:
    """Columns in their order, each with its comment in the store itself, and the view with its own."""
    found: dict[str, dict[str, str]] = {}
    for row in query(
        folder,
        "SELECT c.table_name AS view, c.column_name AS name, c.comment FROM duckdb_columns() c "
        "JOIN duckdb_views() v ON v.view_name = c.table_name AND v.database_name = c.database_name "
        "WHERE NOT v.internal ORDER BY c.table_name, c.column_index",
    ).table.to_pylist():
        found.setdefault(row["view"], {})[row["name"]] = row["comment"]
    declared = {name: dict(view.columns) for name, view in BY_NAME.items()}
    verifier = found["answers"].pop("verifier")
    assert verifier == "Newest value of the judge verifier, in [0, 1]"
    computed = query(folder, "FROM bradley_terry").table.column_names
    assert computed == list(declared.pop("bradley_terry"))
    assert found == declared
    assert [list(found[name]) for name in declared] == [list(c) for c in declared.values()]
    comments = query(folder, "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal")
    assert all(r["comment"] == BY_NAME[r["view_name"]].comment for r in comments.table.to_pylist())


def test_no_column_of_a_view_has_a_reserved_name() -> None:
    """`order`, `at` and `offset` would have to be quoted in every query."""
    names = {column for view in BY_NAME.values() for column in view.columns}
    assert not names & {"order", "at", "offset"}


@pytest.mark.parametrize("name", BY_NAME)
def test_every_view_can_be_asked_of_a_run_and_of_nothing(folder: Path, name: str) -> None:
    """A whole run gives rows where there is something to tell; a store without rows gives none."""
    rows = query(folder, f"FROM {name}").table.num_rows
    silent = {
        "proposals",
        "rollouts",
        "comparisons",
        "swap_consistency",
        "judge_agreement",
        "judge_bias",
        "d6",
        "d7",
        "d8",
    }
    assert (rows == 0) == (name in silent)
    if name not in ("snapshot", "bradley_terry"):
        with fresh() as facts:
            assert facts.ask(f"FROM {name}") == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) AS n FROM answers WHERE prompt LIKE '%capital%'",
        "SELECT count(*) AS n FROM prompt_difficulty WHERE prompt LIKE '%capital%'",
        "SELECT count(*) AS n FROM d2 WHERE prompt[1].content LIKE '%capital%'",
    ],
)
def test_a_filter_on_the_prompt_meets_texts_that_are_no_json(folder: Path, sql: str) -> None:
    """The engine asks such a filter of every text that is stored, answers too, before it joins."""
    assert query(folder, sql).table.to_pylist()[0]["n"] > 0


def test_a_text_that_was_forgotten_leaves_its_row(facts: Facts) -> None:
    """The answer stands with an empty text; no dataset has it."""
    facts.say("a", "yes")
    facts.write("selection", [_selection("a")])
    assert len(facts.ask("FROM d1")) == 1
    forgotten = "UPDATE content SET text = '', forgotten_at = now() WHERE hash = "
    for text in ("yes", messages("p")):
        facts.connection.execute(f"{forgotten}'{content(text, 0)['hash']}'")
        assert facts.ask("FROM d1") == []
    assert facts.ask("SELECT prompt, answer FROM answers") == [{"prompt": None, "answer": ""}]


def _selection(word: str, of: str = "p", **changed: Any) -> Row:
    return {
        "id": row_id("selection", word=word), "round": 1, "step": "select", "split": "train",
        "prompt_id": identifier(of), "completion_id": identifier(word), "position": 0, "weight": 0.5,
        "created_at": WHEN,
    } | changed  # fmt: skip


# -- rollouts


def test_of_two_attempts_at_a_place_the_last_trained(facts: Facts) -> None:
    """A job that went on said something else at one place, and the same again at the other: two rows, not three.

    What was said and never learned from is no row, and neither is an answer of a select step.
    """
    job = identifier("job")
    for word, slot, attempt in (("a", 0, 0), ("b", 1, 0), ("c", 1, 1), ("d", 2, 0)):
        place: Row = {"slot": slot, "attempt": attempt, "training_run_id": job, "optimizer_step": 3}
        facts.say(word, f"says {word}", step="train", **place)
    facts.say("e", "stood already")
    facts.write("training_row", [_learned(word) for word in "abce"])
    found = facts.ask(
        "SELECT optimizer_step, slot, answer, attempt, used FROM rollouts ORDER BY slot"
    )
    assert found == [
        {"optimizer_step": 3, "slot": 0, "answer": "says a", "attempt": 0, "used": True},
        {"optimizer_step": 3, "slot": 1, "answer": "says c", "attempt": 1, "used": True},
    ]


def _learned(word: str) -> Row:
    return {
        "id": row_id("training_row", word=word), "round": 1, "step": "train", "split": "train",
        "training_run_id": identifier("job"), "position": 0, "prompt_id": identifier("p"),
        "completion_id": identifier(word), "weight": 1.0, "reward": 0.5, "advantage": 0.5,
        "tokens_from": "sampled", "created_at": WHEN,
    }  # fmt: skip


# -- answers


def test_judges_that_were_asked_afterwards_get_a_column_and_no_row(tmp_path: Path) -> None:
    """Recipe's judges come first, then the others by name; the number of rows stays."""
    make_run(tmp_path / "r", rounds=1)
    with closing(Store(tmp_path / "r", ["verifier"])) as store:
        found = store.rows("SELECT id::VARCHAR AS id FROM answers ORDER BY id")
        rows = [
            judgement("x", 0.25, judge=judge, round=9, completion_id=found[0]["id"])
            for judge in ("zeal", "Model", "anna", 'it\'s "so"')
        ]
        store.commit({"judgement": rows}, round=9, step="applied", chunk=0)
        store.refresh_views()
        assert store.rows("SELECT count(*) AS n FROM answers") == [{"n": len(found)}]
        [answer] = store.rows(f"SELECT * FROM answers WHERE id = '{found[0]['id']}'")
        judges = ["verifier", "Model_judge", "anna", 'it\'s "so"', "zeal"]
        names = list(answer)
        assert names[names.index("is_champion") + 1 : names.index("used_as")] == judges
        assert [answer[name] for name in judges[1:]] == [0.25] * 4
        assert answer["model"] is None
    with closing(Store(tmp_path / "r")) as store:  # who has no recipe leaves the order
        assert list(store.rows("SELECT * FROM answers LIMIT 1")[0]) == names
        assert judge_columns(["Model", "model"]) == {
            "Model_judge": "Model",
            "model_judge_judge": "model",
        }


def test_the_newest_revision_of_a_judge_counts_and_of_it_the_last_attempt() -> None:
    """An older revision, an earlier attempt, an aspect and a failure show nowhere."""
    with fresh() as facts:
        facts.prompts(p="train")
        facts.say("a", "yes")
        rows = [
            judgement("a", 0.1, judge_revision="old", attempt=5),
            judgement("a", 0.2, judge_revision="new", created_at=LATER),
            judgement("a", 0.3, judge_revision="new", created_at=LATER, attempt=1),
            judgement("a", None, judge_revision="new", created_at=LATER, attempt=2),
            judgement("a", 0.9, judge_revision="new", created_at=LATER, attempt=3, aspect="tone"),
        ]
        random.Random(1).shuffle(rows)
        facts.write("judgement", rows)
        assert facts.ask("SELECT verifier FROM answers") == [{"verifier": 0.3}]
        assert facts.ask("SELECT value, judge_revision, passed FROM scores") == [
            {"value": 0.3, "judge_revision": "new", "passed": False}
        ]


def test_what_was_paired_afterwards_trained_nothing(facts: Facts) -> None:
    """A step of the round counts, one that was applied or imported does not, one without a row does."""
    for word in "abcdefgh":
        facts.say(word, f"says {word}")
    for step, sides in (("pair", "ab"), ("later", "cd"), ("file", "ef"), ("unknown", "gh")):
        chosen, rejected = map(identifier, sides)
        facts.write(
            "pair",
            [pair(id=row_id("p", s=sides), step=step, chosen_id=chosen, rejected_id=rejected)],
        )
    about = {"round": 1, "position": 1, "operator": "pair", "settings": "{}", "created_at": WHEN}
    origins = {"pair": "round", "later": "applied", "file": "imported"}
    facts.write(
        "step",
        [{"id": row_id("s", s=s), "step": s, "origin": o, **about} for s, o in origins.items()],
    )
    used = {
        r["id"]: r["used_as"] for r in facts.ask("SELECT id::VARCHAR AS id, used_as FROM answers")
    }
    assert [used[identifier(word)] for word in "abcdefgh"] == [
        "chosen", "rejected", "unused", "unused", "unused", "unused", "chosen", "rejected",
    ]  # fmt: skip


# -- dataset shapes


def _feedback(
    kind: str, word: str, other: str | None = None, value: float | None = None, **changed: Any
) -> Row:
    return {
        "id": row_id("feedback", kind=kind, word=word, other=other), "round": 1, "step": "import",
        "prompt_id": identifier("p"), "kind": kind, "completion_id": identifier(word),
        "other_id": identifier(other) if other else None, "value": value, "source": "test",
        "licence": "Apache-2.0", "created_at": WHEN,
    } | changed  # fmt: skip


@pytest.mark.parametrize("name", ["conversations", *DATASETS])
def test_no_row_of_heldout_or_test_is_in_any_dataset(name: str) -> None:
    """Rows that say `train` of answers to held-out and test prompts are planted everywhere; none shows.

    The checks of the tables see the row's own split alone, so that a wrong copy would pass them.
    """
    with fresh() as facts:
        _plant(facts)
        found = facts.ask(f"FROM {name}")
        assert found
        assert {row["prompt_id"] for row in found} == {_uuid("p")}
        assert all(row["prompt"] == [{"role": "user", "content": "p"}] for row in found)


def _uuid(word: str) -> Any:
    return duckdb.connect().execute("SELECT ?::UUID", [identifier(word)]).fetchall()[0][0]


def _plant(facts: Facts) -> None:
    details = {"verify": {"word": True}, "answer": "x", "reference": "ref", "privileged": "hint"}
    told = content(json.dumps(details), 0)
    splits = {"p": "train", "h": "heldout", "t": "test"}
    facts.write(
        "prompt", [prompt(w, s) | {"details_hash": told["hash"]} for w, s in splits.items()]
    )
    facts.write("content", [told, *(content(messages(word), 0) for word in splits)])
    for of, split in splits.items():
        # Two ways to be wrong: the answer has its prompt's split, or says `train` as well.
        for said in {split, "train"}:
            words = [f"{of}{said}{side}" for side in "ab"]
            for word in words:
                facts.say(word, word, of, split=said)
                facts.write("judgement", [judgement(word, float(word.endswith("a")))])
            chosen, rejected = map(identifier, words)
            about = {"prompt_id": identifier(of), "chosen_id": chosen, "rejected_id": rejected}
            facts.write("pair", [pair(id=row_id("pair", w=words), **about)])
            facts.write("selection", [_selection(words[0], of)])
            facts.write(
                "feedback",
                [
                    _feedback("preference", words[0], words[1], prompt_id=identifier(of)),
                    _feedback("thumbs", words[1], value=0.0, prompt_id=identifier(of)),
                    _feedback("demonstration", words[0], prompt_id=identifier(of)),
                ],
            )
            facts.write("token_distribution", [_distribution(words[0])])


def _distribution(word: str) -> Row:
    return {
        "completion_id": identifier(word), "round": 1, "step": "teach", "revision": "teacher",
        "context": "", "logprobs": [-0.5, -1.0], "top_ids": [[1, 2], [3, 4]],
        "top_logprobs": [[-0.1, -2.0], [-0.2, -3.0]], "created_at": WHEN,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["d2", "d3", "d8"])
def test_equal_texts_never_form_a_pair_and_a_cut_answer_is_never_chosen(
    facts: Facts, name: str
) -> None:
    """Pairs that a table lets in are kept out: same text twice, and a chosen answer that was cut."""
    facts.connection.execute("DELETE FROM content WHERE text = '{}'")
    told = {**content("{}", 0), "text": json.dumps({"reference": "gold"})}
    facts.write("content", [told])
    for word, text, reason in (
        ("a", "same", "stop"), ("b", "same", "stop"), ("c", "cut", "length"), ("d", "whole", "stop"),
        ("e", "short", "length"),
    ):  # fmt: skip
        facts.say(word, text, finish_reason=reason)
    for sides in ("ab", "cd", "de"):
        chosen, rejected = map(identifier, sides)
        facts.write("pair", [pair(id=row_id("p", s=sides), chosen_id=chosen, rejected_id=rejected)])
    found = facts.ask(f"FROM {name}")
    if name == "d3":
        # `d` lost to the cut answer and won once: that is no label; the cut one may be unwanted.
        assert [(r["completion"][0]["content"], r["label"]) for r in found] == [("short", False)]
    else:
        texts = [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in found]
        assert texts == [("whole", "short")]


def test_d1_has_each_kept_answer_once_a_step(facts: Facts) -> None:
    """A selection's weight, the chosen side of two pairs once, a demonstration; no cut answer."""
    for word in "abcd":
        facts.say(word, word, finish_reason="length" if word == "d" else "stop")
    facts.write("selection", [_selection("a"), _selection("d")])
    facts.write(
        "pair", [pair(id=row_id("p", n=n), rejected_id=identifier("b" * n)) for n in (1, 2)]
    )
    facts.write("feedback", [_feedback("demonstration", "c")])
    found = facts.ask("SELECT origin, completion, weight, step FROM d1 ORDER BY origin DESC")
    assert [(r["origin"], r["completion"][0]["content"], r["weight"], r["step"]) for r in found] == [
        ("selection", "a", 0.5, "select"), ("pair", "a", 1.0, "pair"), ("feedback", "c", 1.0, "import"),
    ]  # fmt: skip


def test_d2_takes_reference_log_probs_from_training_or_from_sampling(facts: Facts) -> None:
    """Frozen ones go first; stored ones count only where one revision spoke both on the plain prompt."""
    rendered = {
        "id": identifier("rendered"),
        "round": 1,
        "prompt_id": identifier("p"),
        "context": "",
    }
    rendered |= {"vocabulary": "v", "token_ids": [7, 8], "created_at": WHEN}
    facts.write("rendered_prompt", [rendered])
    for word in "abc":
        facts.say(word, word, revision="r1" if word == "c" else "r0")
        kept = {"completion_id": identifier(word), "round": 1, "token_ids": [1, 2]}
        facts.write("completion_tokens", [kept | {"logprobs": [-0.5, -0.25]}])
    for word in "bc":
        facts.write("pair", [pair(id=row_id("p", w=word), rejected_id=identifier(word))])
    sql = (
        "SELECT reference_chosen AS c, reference_rejected AS r, revision, prompt_token_ids AS p, "
        "chosen_token_ids AS t FROM d2 ORDER BY rejected_id = '$'".replace("$", identifier("c"))
    )
    same = {"p": [7, 8], "t": [1, 2]}
    assert facts.ask(sql) == [
        {"c": -0.75, "r": -0.75, "revision": "r0", **same},
        {"c": None, "r": None, "revision": None, **same},
    ]
    job = {"round": 1, "step": "train", "split": "train", "training_run_id": identifier("job")}
    job |= {"prompt_id": identifier("p"), "completion_id": identifier("a"), "position": 0}
    job |= {
        "id": identifier("row"),
        "pair_id": row_id("p", w="c"),
        "weight": 1.0,
        "created_at": WHEN,
    }
    facts.write(
        "training_row",
        [job | {"tokens_from": "sampled", "reference_chosen": -3.0, "reference_rejected": -4.0}],
    )
    trained = {
        "id": identifier("job"),
        "round": 1,
        "step": "train",
        "trainer": "dpo",
        "settings": "{}",
    }
    trained |= {"start_revision": "r0", "reference_revision": "r9", "dataset_hash": "", "rows": 1}
    trained |= {"status": "trained", "message": "", "steps": 1, "seconds": 1.0, "cpu_seconds": 2.0}
    facts.write("training_run", [trained | {"peak_rss_mb": 1.0, "created_at": WHEN}])
    assert facts.ask(sql)[1] == {"c": -3.0, "r": -4.0, "revision": "r9", **same}


def test_d2_has_a_preference_of_people_once(facts: Facts) -> None:
    """Where it was made a pair already, the pair alone stands there."""
    for word in "abc":
        facts.say(word, word)
    facts.write("pair", [pair()])
    facts.write("feedback", [_feedback("preference", "a", "b"), _feedback("edit", "c", "b")])
    found = facts.ask("SELECT judge, rule, margin, rejected FROM d2 ORDER BY judge")
    assert [(r["judge"], r["rule"], r["margin"]) for r in found] == [
        ("feedback", "edit", 1.0),
        ("verifier", "best_worst", 1.0),
    ]


def test_d3_has_one_label_a_text(facts: Facts) -> None:
    """Thumbs overrule pairs, the majority of pairs decides, an even vote is no label."""
    for word, text in zip("abcdef", ("one", "one", "two", "three", "four", "five"), strict=True):
        facts.say(word, text)
    wins = ("ac", "bd", "ca", "de", "ed", "fe")
    for sides in wins:
        chosen, rejected = map(identifier, sides)
        facts.write("pair", [pair(id=row_id("p", s=sides), chosen_id=chosen, rejected_id=rejected)])
    facts.write(
        "feedback", [_feedback("thumbs", "f", value=0.0), _feedback("rating", "c", value=1.0)]
    )
    found = facts.ask("SELECT completion[1].content AS text, label, origin FROM d3 ORDER BY text")
    # one: +1 +1 -1; two: -1 +1; three: -1 +1 -1; four: -1 +1 -1; five: +1, thumbs down
    assert found == [
        {"text": "five", "label": False, "origin": "thumbs"},
        {"text": "four", "label": False, "origin": "pair"},
        {"text": "one", "label": True, "origin": "pair"},
        {"text": "three", "label": False, "origin": "pair"},
    ]


def test_d4_is_best_first_and_by_judge(facts: Facts) -> None:
    """Equal texts count once, a cut answer is left out, a single answer is no list."""
    for word, text in zip("abcde", ("low", "high", "high", "middle", "cut"), strict=True):
        facts.say(word, text, finish_reason="length" if word == "e" else "stop")
    facts.score(a_verifier=0.1, b_verifier=0.9, c_verifier=0.9, d_verifier=0.5, e_verifier=1.0)
    facts.score(a_longest=0.3)
    [row] = facts.ask("SELECT completions, scores, judge, n FROM d4")
    texts = [answer[0]["content"] for answer in row.pop("completions")]
    assert texts == ["high", "middle", "low"]
    assert row == {"scores": [0.9, 0.5, 0.1], "judge": "verifier", "n": 3}


def test_the_shapes_of_prompts_and_of_token_distributions() -> None:
    """d5 has the checker as JSON, d6 the hint, d7 the teacher's tokens, d8 the reference answer."""
    with fresh() as facts:
        _plant(facts)
        [five] = facts.ask("SELECT verify, answer, reference FROM d5")
        assert json.loads(five["verify"]) == {"word": True}
        assert (five["answer"], five["reference"]) == ("x", "ref")
        assert facts.ask("SELECT privileged_context AS hint FROM d6") == [{"hint": "hint"}]
        [seven] = facts.ask("SELECT top_ids, top_logprobs, logprobs, revision FROM d7")
        assert seven["top_ids"] == [[1, 2], [3, 4]]
        assert seven["logprobs"] == [-0.5, -1.0]
        assert seven["revision"] == "teacher"
        [eight] = facts.ask("SELECT reference FROM d8")
        assert eight["reference"] == [{"role": "assistant", "content": "ref"}]


def test_an_answer_of_several_turns_is_all_of_them(facts: Facts) -> None:
    """The list of messages goes before the last text."""
    turns = [{"role": "assistant", "content": "1"}, {"role": "user", "content": "2"}]
    text = json.dumps(turns)
    facts.write("content", [content(text, 1)])
    facts.say("a", "last", turns_hash=content(text, 1)["hash"])
    assert facts.ask("SELECT completion FROM conversations") == [{"completion": turns}]


# -- statistics


def test_wins_by_values_and_by_comparison(facts: Facts) -> None:
    """Two revisions on two prompts by value, and once beside each other in both orders."""
    facts.say("a", "1", "h", split="heldout", revision="r0", round=0)
    facts.say("b", "2", "h", split="heldout", revision="r1", round=2)
    facts.say("c", "3", "p", revision="r0")
    facts.say("d", "4", "p", revision="r0")
    facts.say("e", "5", "p", revision="r1")
    facts.score(a_verifier=0.0, b_verifier=1.0, c_verifier=1.0, d_verifier=0.0, e_verifier=0.5)
    facts.write(
        "judgement", [compared("ce", [1, 2]), compared("ec", [2, 1]), compared("de", [1, 2])]
    )
    found = facts.ask(
        "SELECT * EXCLUDE (judge, short_id) FROM win_rate WHERE revision = 'r1' ORDER BY ALL"
    )
    base = {"revision": "r1", "opponent": "r0"}
    assert found == [
        {"evidence": "compare", "round": 1, "split": "train", **base, "wins": 0, "ties": 0, "losses": 2,
         "n": 2, "rate": 0.0},
        {"evidence": "score", "round": 1, "split": "train", **base, "wins": 0, "ties": 1, "losses": 0,
         "n": 1, "rate": 0.5},
        {"evidence": "score", "round": 2, "split": "heldout", **base, "wins": 1, "ties": 0, "losses": 0,
         "n": 1, "rate": 1.0},
    ]  # fmt: skip


def test_values_of_two_revisions_of_a_judge_do_not_meet(facts: Facts) -> None:
    """Their scales may differ, so neither revision of the student won."""
    facts.say("a", "1", revision="r0")
    facts.say("b", "2", revision="r1")
    facts.write("judgement", [judgement("a", 0.0), judgement("b", 1.0, judge_revision="other")])
    assert facts.ask("FROM win_rate") == []


_VALUES = st.lists(
    st.tuples(
        st.sampled_from("xyz"),  # prompt
        st.sampled_from(["r0", "r1", "r2"]),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(_VALUES)
def test_what_one_wins_the_other_loses(rows: list[tuple[str, str, float]]) -> None:
    """Both directions mirror each other, rates add up to 1, and nothing meets itself."""
    with fresh() as facts:
        facts.prompts(x="train", y="train", z="train")
        said = [
            completion(f"w{number}", "", prompt_id=identifier(of), revision=revision)
            for number, (of, revision, _) in enumerate(rows)
        ]
        facts.write("completion", said)
        facts.write("judgement", [judgement(f"w{n}", value) for n, (*_, value) in enumerate(rows)])
        found = {(r["revision"], r["opponent"]): r for r in facts.ask("FROM win_rate")}
        for (revision, opponent), row in found.items():
            mirror = found[opponent, revision]
            assert revision != opponent
            assert (row["wins"], row["ties"], row["losses"]) == (
                mirror["losses"], mirror["ties"], mirror["wins"],
            )  # fmt: skip
            assert row["n"] == row["wins"] + row["ties"] + row["losses"]
            assert row["rate"] == (row["wins"] + row["ties"] / 2) / row["n"]
        by_prompt: dict[str, set[str]] = {}
        for of, revision, _ in rows:
            by_prompt.setdefault(of, set()).add(revision)
        meetings = sum(len(r) * (len(r) - 1) for r in by_prompt.values())
        assert sum(row["n"] for row in found.values()) == meetings


def test_a_verdict_that_turns_with_the_order_is_inconsistent_and_a_tie(facts: Facts) -> None:
    """Of three sets shown in both orders two agree; a set shown once counts only for the bias."""
    for word in "abcdefgh":
        facts.say(word, word, revision=f"r{word}")
    facts.write(
        "judgement",
        [
            compared("ab", [1, 2]), compared("ba", [2, 1]),  # a both times
            compared("cd", [1, 2]), compared("dc", [1, 2]),  # whoever is first
            compared("efg", [1, 2, 3]), compared("gef", [3, 1, 2]),  # the same ranks of three
            compared("gh", [1, 1]),
            compared("ab", [2, 1], id=row_id("j", n=0), attempt=0),
            compared("ab", [1, 2], id=row_id("j", n=1), attempt=1),  # the last attempt counts
        ],
    )  # fmt: skip
    facts.connection.execute("DELETE FROM judgement WHERE presented = ? AND attempt = 0 AND ranks = [1, 2]",
                             [[identifier("a"), identifier("b")]])  # fmt: skip
    [row] = facts.ask("FROM swap_consistency")
    assert row == {
        "judge": "chat", "n": 3, "consistent": 2, "rate": 2 / 3, "decided": 4, "first_wins": 0.75,
    }  # fmt: skip
    outcomes = {
        frozenset((r["c"], r["o"])): r["outcome"]
        for r in facts.ask(
            "SELECT completion_id::VARCHAR c, other_id::VARCHAR o, outcome FROM comparisons"
        )
    }
    assert outcomes[frozenset((identifier("c"), identifier("d")))] == 0.5
    assert outcomes[frozenset((identifier("g"), identifier("h")))] == 0.5
    assert outcomes[frozenset((identifier("a"), identifier("b")))] != 0.5
    assert len(outcomes) == 6


def test_kappa_by_hand(facts: Facts) -> None:
    """Four answers, three agreements, half of them by chance: (0.75 - 0.5) / (1 - 0.5)."""
    for word in "abcde":
        facts.say(word, word)
    facts.score(a_x=1.0, b_x=0.5, c_x=0.4, d_x=0.0, a_y=1.0, b_y=0.0, c_y=0.0, d_y=0.0, e_y=1.0)
    facts.score(a_z=1.0, b_z=1.0)
    found = {(r["judge"], r["other"]): r for r in facts.ask("FROM judge_agreement")}
    assert set(found) == {("x", "y"), ("x", "z"), ("y", "z")}
    row = found["x", "y"]
    assert (row["n"], row["agreement"], row["passed"], row["other_passed"]) == (4, 0.75, 0.5, 0.25)
    assert row["kappa"] == 0.5
    x, y = [1.0, 0.5, 0.4, 0.0], [1.0, 0.0, 0.0, 0.0]
    assert row["correlation"] == pytest.approx(_correlation(x, y))
    assert (found["x", "z"]["agreement"], found["x", "z"]["kappa"]) == (1.0, None)
    assert found["y", "z"]["correlation"] is None


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def test_length_counts_within_a_prompt(facts: Facts) -> None:
    """A prompt with long and good answers throughout says nothing; within both, the longer one loses."""
    for word, text, of in (
        ("a", "xxxxxxxxx", "p"),
        ("b", "xxxxxxxx", "p"),
        ("c", "xx", "q"),
        ("d", "x", "q"),
    ):
        facts.say(word, text, of)
    facts.score(a_verifier=0.9, b_verifier=1.0, c_verifier=0.1, d_verifier=0.2)
    assert facts.ask("FROM length_bias") == [
        {
            "judge": "verifier",
            "n": 4,
            "correlation": pytest.approx(-1.0),
            "pairs": 2,
            "longer_wins": 0.0,
        }
    ]
    facts.write("judgement", [compared("ab", [1, 2]), compared("cd", [2, 1])])
    [row] = facts.ask("FROM length_bias WHERE judge = 'chat'")
    assert row == {"judge": "chat", "n": 0, "correlation": None, "pairs": 2, "longer_wins": 0.5}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_pass_at_k_is_the_unbiased_estimator(prompts: list[tuple[int, int]]) -> None:
    """1 - C(n - c, k) / C(n, k), averaged over the prompts with k answers or more."""
    counts = [(n, min(c, n)) for n, c in prompts]
    with fresh() as facts:
        facts.prompts(**{f"p{i}": "train" for i in range(len(counts))})
        said, judged = [], []
        for i, (n, c) in enumerate(counts):
            for slot in range(n):
                word = f"{i}.{slot}"
                said.append(completion(word, word, prompt_id=identifier(f"p{i}"), slot=slot))
                judged.append(judgement(word, 1.0 if slot < c else 0.49))
        facts.write("completion", said)
        facts.write("judgement", judged)
        found = {r["k"]: r for r in facts.ask("FROM pass_at_k")}
    most = max(n for n, _ in counts)
    assert sorted(found) == [k for k in (1, 2, 4, 8) if k <= most]
    for k, row in found.items():
        wanted = [1 - math.comb(n - c, k) / math.comb(n, k) for n, c in counts if n >= k]
        assert row["pass_at_k"] == pytest.approx(sum(wanted) / len(wanted), abs=1e-12)
        assert row["prompts"] == len(wanted)


def test_how_hard_a_prompt_is(facts: Facts) -> None:
    """Number, mean and share passed over all rounds, with the prompt's own words."""
    for word, round_ in (("a", 1), ("b", 2), ("c", 3)):
        facts.say(word, word, round=round_)
    facts.score(a_verifier=1.0, b_verifier=0.25, c_verifier=0.25)
    [row] = facts.ask("SELECT * EXCLUDE (prompt_id, short_id, tags, source) FROM prompt_difficulty")
    assert row == {
        "judge": "verifier", "split": "train", "prompt": "p", "n": 3, "value": 0.5, "passed": 1 / 3,
        "first_round": 1, "last_round": 3,
    }  # fmt: skip


# -- cost


def _charge(number: int, **changed: Any) -> Row:
    return {
        "id": row_id("charge", n=number), "round": 1, "step": "sample", "role": "helper", "model": "big",
        "purpose": "sample", "status": "ok", "tokens_in": 10, "tokens_cached": 0, "tokens_out": 5,
        "dollars": 0.5, "seconds": 9.0, "created_at": WHEN,
    } | changed  # fmt: skip


def test_nothing_is_counted_twice(facts: Facts) -> None:
    """Where a call was billed its tokens and dollars are the bill's; seconds are the rows' own."""
    facts.say("a", "yes", role="helper", revision=None, model="big", tokens=99, seconds=2.0)
    facts.say("b", "no", role="student", tokens=7, seconds=1.0)
    facts.write("charge", [_charge(1), _charge(2, status="timeout", tokens_out=0)])
    facts.write("charge", [_charge(3, step="score", purpose="judge", dollars=0.25)])
    paid = {"role": "helper", "tokens_in": 50, "tokens_out": 6, "dollars": 9.0, "seconds": 0.5}
    facts.write(
        "judgement", [judgement("a", 1.0, **paid), judgement("b", 1.0, id=row_id("j", b=1))]
    )
    ledger = {"round": 1, "chunk": 0, "counts": "{}", "created_at": WHEN}
    facts.write(
        "write_batch",
        [
            {"id": row_id("l", s="sample"), "step": "sample", "seconds": 4.0, **ledger},
            {"id": row_id("l", s="score"), "step": "score", "seconds": 0.5, **ledger},
        ],
    )
    columns = "answers, calls, tokens_in, tokens_out, seconds, dollars"
    found = {
        (r["step"], r["what"], r["role"], r["model"]): tuple(r[c] for c in columns.split(", "))
        for r in facts.ask(f"SELECT step, what, role, model, {columns} FROM cost")
    }
    assert found == {
        ("sample", "sampling", "helper", "big"): (1, 2, 20, 5, 2.0, 1.0),
        ("sample", "sampling", "student", None): (1, 0, None, 7, 1.0, None),
        ("sample", "other", None, None): (0, 0, None, None, 1.0, None),
        ("score", "judging", "helper", None): (1, 0, None, None, 0.5, None),
        ("score", "judging", "helper", "big"): (0, 1, 10, 5, None, 0.25),
        ("score", "judging", None, None): (1, 0, None, None, 0.0, None),
    }
    assert facts.ask("SELECT sum(dollars) AS d FROM cost") == [{"d": 1.25}]
    assert facts.ask("SELECT sum(seconds) AS s FROM cost") == [{"s": 4.5}]


def test_seconds_add_up_to_the_ledger_and_a_point_has_its_price(folder: Path) -> None:
    """The parts of a round are the round; only a round that was promoted has a price a point."""
    found = query(
        folder,
        "SELECT c.round, sum(c.seconds) AS parts, any_value(seconds_per_point) AS price, "
        "(SELECT sum(seconds) FROM write_batch b WHERE b.round = c.round) AS whole, "
        "(SELECT any_value(delta) FROM decision d WHERE d.round = c.round AND decision = 'promoted') AS delta, "
        "sum(cpu_seconds) AS cpu FROM cost c GROUP BY c.round ORDER BY c.round",
    ).table.to_pylist()
    assert [row["round"] for row in found] == [0, 1, 2]
    for row in found:
        assert row["parts"] == pytest.approx(row["whole"], rel=1e-6)
        price = row["parts"] / (100 * row["delta"]) if row["delta"] else None
        assert row["price"] == (pytest.approx(price) if price else None)
    assert [row["price"] is None for row in found] == [True, False, True]
    assert [row["cpu"] for row in found] == [None, 78.2, 78.2]


# -- the snapshot and Bradley-Terry


def test_the_snapshot_tells_its_age_and_versions(tmp_path: Path) -> None:
    """Each publish is newer than the one before, and than the newest row in it."""
    with closing(Store(tmp_path, ["verifier"])) as store:
        store.commit({"event": []}, round=0, step="s", chunk=0)
        seen = []
        for _ in range(2):
            time.sleep(0.01)
            store.publish(force=True)
            [row] = query(tmp_path, "FROM snapshot").table.to_pylist()
            assert row["newest_fact_at"] < row["published_at"]
            assert 0 <= row["age_seconds"] < 60
            seen.append(row["published_at"])
        assert seen[0] < seen[1]
        [newest] = store.rows("SELECT max(version) AS n FROM schema_migration")
        assert (row["schema_version"], row["views_version"]) == (newest["n"], VERSION)


def test_views_that_stand_are_left_and_others_are_made(tmp_path: Path) -> None:
    """A view that an older version made is replaced at the next open; the right ones are not touched."""
    Store(tmp_path, ["verifier"]).close()
    with closing(Store(tmp_path, ["verifier"])) as store:
        before = store.rows(
            "SELECT view_name, view_oid FROM duckdb_views() WHERE NOT internal ORDER BY ALL"
        )
        store.refresh_views()
        after = store.rows(
            "SELECT view_name, view_oid FROM duckdb_views() WHERE NOT internal ORDER BY ALL"
        )
        assert before == after
        old = "CREATE OR REPLACE VIEW answers AS SELECT 1 AS x; CREATE OR REPLACE VIEW snapshot AS SELECT 2 AS y"
        store.work(lambda connection: connection.execute(old))
        store.refresh_views()
        assert store.rows("SELECT verifier FROM answers") == []


def _contests(strength: Mapping[str, float], n: int, seed: int = 0) -> list[Contest]:
    """Draw meetings from the model itself."""
    luck = random.Random(seed)
    names = sorted(strength)
    found = []
    for number in range(n):
        a, b = sorted(luck.sample(names, 2))
        wins = luck.random() < 1 / (1 + math.exp(strength[b] - strength[a]))
        found.append(Contest(f"p{number % 60}", a, b, float(wins)))
    return found


def test_bradley_terry_recovers_planted_strengths() -> None:
    """From a thousand meetings the order is right, each strength near, and in its interval mostly."""
    planted = {"a": 1.2, "b": 0.4, "c": -0.4, "d": -1.2}
    rows = fit(_contests(planted, 1000))
    assert [row[0] for row in rows] == ["a", "b", "c", "d"]
    for name, _, strength, low, high, *_ in rows:
        assert abs(strength - planted[name]) < 0.3
        assert low < strength < high
    assert sum(row[2] for row in rows) == pytest.approx(0, abs=1e-9)
    assert sum(row[5] for row in rows) == pytest.approx(1000)
    assert sum(row[6] for row in rows) == 2000


def test_bradley_terry_gives_the_same_interval_whatever_the_order_of_rows() -> None:
    """The seed is the content, and rows are sorted before they are drawn from."""
    contests = _contests({"a": 0.5, "b": 0.0, "c": -0.5}, 120)
    shuffled = contests.copy()
    random.Random(3).shuffle(shuffled)
    assert fit(contests) == fit(shuffled)


def test_a_revision_that_never_lost_has_a_finite_strength() -> None:
    """A tenth of a win is lent to every two: 20 to 0 counts as 20.1 to 0.1."""
    rows = fit([Contest(f"p{n}", "a", "b", 1.0) for n in range(20)])
    assert rows[0][2] - rows[1][2] == pytest.approx(math.log(20.1 / 0.1), rel=1e-4)


def test_a_tie_counts_half_for_both() -> None:
    """Ties alone make equals; their wins are halves."""
    rows = fit([Contest(f"p{n}", "a" * 20, "name of a model", 0.5) for n in range(5)])
    assert [(row[1], row[5], row[6]) for row in rows] == [
        ("aaaaaaaa", 2.5, 5),
        ("name of a model", 2.5, 5),
    ]
    assert all(abs(row[2]) < 1e-9 for row in rows)


def test_strengths_are_computed_only_where_the_sql_names_them(folder: Path) -> None:
    """The library is loaded for `bradley_terry` alone, and not for its name inside a string."""
    code = (
        "import sys; from pathlib import Path; from redistill.store.query import query\n"
        "folder = Path(sys.argv[1])\n"
        "query(folder, \"SELECT 'bradley_terry' AS x FROM win_rate\")\n"
        "assert 'choix' not in sys.modules\n"
        "rows = query(folder, 'SELECT revision FROM Bradley_Terry').table.num_rows\n"
        "assert 'choix' in sys.modules and rows == 3\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_strengths_agree_with_the_wins_that_are_listed(folder: Path) -> None:
    """Wins and comparisons are those of `win_rate`, ties as half."""
    found = query(
        folder,
        "SELECT b.judge, b.revision, b.wins, b.comparisons, sum(w.wins + w.ties / 2) AS won, sum(w.n) AS n "
        "FROM bradley_terry b JOIN win_rate w ON w.judge = b.judge AND w.revision = b.revision "
        "GROUP BY ALL",
    ).table.to_pylist()
    assert len(found) == 3
    for row in found:
        assert row["wins"] == pytest.approx(row["won"])
        assert row["comparisons"] == row["n"]
