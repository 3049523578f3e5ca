"""Second thoughts: nothing is sampled again, nothing old is overwritten, and what is shown is what is stored."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.agents.applying import Applied, apply, read_step
from redistill.agents.forking import fork, forked_recipe
from redistill.agents.loop import Place, Silent, resume, run
from redistill.agents.recipe import Recipe, load_recipe
from redistill.cli import main
from redistill.errors import BadInput, Busy, TryLater
from redistill.hashing import row_id
from redistill.policies.policy import Generation, Request, Sampling
from redistill.report.comparing import comparison, recipe_difference
from redistill.report.differing import difference
from redistill.report.integrity import examine_run
from redistill.report.summary import answers_on_test, summary
from redistill.store.pairing import PairQuery, pairs
from redistill.store.query import read_rows
from redistill.store.store import Store
from redistill.store.tables import TABLES
from redistill.testing.fakes import FakeStudent, fake_prompts, fake_recipe
from redistill.testing.small_run import make_run

LONGEST = "score: {of: sample, judge: longest, as: longest_score}"
_MANY = 10_000


def _recipe(**changed: Any) -> dict[str, Any]:
    return fake_recipe(gain=0.3) | changed


def _begin(base: Path, recipe: dict[str, Any], progress: Silent | None = None) -> Path:
    base.mkdir(parents=True, exist_ok=True)
    rows = fake_prompts(train=24, heldout=40, test=40)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    loaded = load_recipe(yaml.safe_dump(recipe), "recipe.yaml", base=base)
    return run(loaded, place=Place(base / "runs", base / "cache"), progress=progress)


@pytest.fixture(scope="module")
def loop_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two promoted rounds, made by the loop; tests copy it or only read it."""
    return _begin(tmp_path_factory.mktemp("loop"), _recipe())


class _StopInRoundTwo(Silent):
    def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002
        """Stop in the middle of a round."""
        if (round, step, done) == (2, "score", 2):
            raise TryLater("stopped by the test")


@pytest.fixture(scope="module")
def half_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped while round 2 was judged; tests copy it."""
    base = tmp_path_factory.mktemp("half")
    with pytest.raises(TryLater):
        _begin(base, _recipe(), _StopInRoundTwo())
    return base / "runs" / "fake"


@dataclass(frozen=True)
class Forked:
    """A fork of the finished run with another trainer in round 2, run to its end."""

    folder: Path
    parent: Path
    untouched: bool
    """Whether every file of the parent is what it was."""
    temperatures: list[float]
    """Of each answer that the fork has asked for."""


@pytest.fixture(scope="module")
def forked(loop_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Forked:
    """The fork that most tests look at; they only read it."""
    base = tmp_path_factory.mktemp("forked")
    parent = Path(shutil.copytree(loop_run, base / "runs" / loop_run.name))
    before = _digest(parent)
    folder = _fork(loop_run, base, 2, "train.gain=0.6")
    with pytest.MonkeyPatch.context() as monkeypatch:
        asked = _Counting(monkeypatch)
        _go(folder)
    return Forked(folder, parent, _digest(parent) == before, asked.temperatures)


@pytest.fixture(scope="module")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with pairs; tests copy it."""
    return make_run(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture
def small(small_base: Path, tmp_path: Path) -> Path:
    """A copy of the small run that a test may write to."""
    return Path(shutil.copytree(small_base, tmp_path / "runs" / "small"))


def _apply(folder: Path, step: str, *rounds: int) -> list[Applied]:
    return apply(folder, step, rounds=rounds, progress=Silent())


def _ids(folder: Path, table: str, where: str = "true") -> list[str]:
    sql = f"SELECT id::VARCHAR AS id FROM {table} WHERE {where} ORDER BY 1"
    return [row["id"] for row in read_rows(folder, sql)]


def _digest(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a run."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


class _Counting:
    """Counts the answers that the fake student is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.temperatures: list[float] = []
        generate = FakeStudent.generate

        def counted(
            student: FakeStudent, requests: Sequence[Request], sampling: Sampling
        ) -> list[Generation]:
            self.temperatures += [sampling.temperature] * len(requests)
            return generate(student, requests, sampling)

        monkeypatch.setattr(FakeStudent, "generate", counted)


# -- apply


def test_a_judge_is_applied_to_stored_answers(small: Path) -> None:
    """Every sampled answer of both rounds gets a value; the old judgements stand as they were."""
    before = _ids(small, "judgement")
    found = _apply(small, LONGEST)
    assert [(a.round, a.step, a.new, a.rows) for a in found] == [
        (1, "longest_score", True, {"judgement": 96}),
        (2, "longest_score", True, {"judgement": 96}),
    ]
    assert set(before) < set(_ids(small, "judgement"))
    assert read_rows(small, "SELECT DISTINCT origin FROM step WHERE step = 'longest_score'") == [
        {"origin": "applied"}
    ]
    [column] = read_rows(
        small,
        "SELECT count(longest) AS n FROM answers WHERE step = 'sample' AND verifier IS NOT NULL",
    )
    assert column["n"] == 192


def test_applying_twice_does_nothing_twice(small: Path) -> None:
    """The second time says that all stands there, and no row is added."""
    _apply(small, LONGEST)
    before = _counts(small)
    assert [a.new for a in _apply(small, LONGEST)] == [False, False]
    assert _counts(small) == before


def _counts(folder: Path) -> list[dict[str, Any]]:
    parts = (f"SELECT '{t.name}' AS name, count(*) AS n FROM {t.name}" for t in TABLES)
    return read_rows(folder, " UNION ALL ".join(parts) + " ORDER BY 1")


def test_only_the_rounds_that_are_asked_for(small: Path) -> None:
    """`--round 2` leaves round 1 alone, and a later call completes it."""
    assert [a.round for a in _apply(small, LONGEST, 2)] == [2]
    assert [(a.round, a.new) for a in _apply(small, LONGEST)] == [(1, True), (2, False)]


def test_held_out_answers_are_judged_where_they_are_named(small: Path) -> None:
    """Baseline, test and evaluate steps are judged in their own rounds, and make no evaluation."""
    before = _ids(small, "evaluation")
    step = "score: {of: [baseline, test_initial, test_champion, evaluate], judge: longest}"
    assert [(a.round, a.rows["judgement"]) for a in _apply(small, step)] == [
        (0, 144),
        (1, 64),
        (2, 144),
    ]
    assert _ids(small, "evaluation") == before


def test_rounds_are_paired_anew(small: Path) -> None:
    """A pairing by another judge has pairs of its own, in which the judge prefers chosen."""
    before = _ids(small, "pair")
    _apply(small, LONGEST)
    [first, _] = _apply(small, "pair: {of: sample, by: longest}")
    assert first.step == "pair_longest"
    assert set(before) < set(_ids(small, "pair"))
    wrong = read_rows(
        small,
        """
        SELECT 1 FROM pair p JOIN answers c ON c.id = p.chosen_id JOIN answers r ON r.id = p.rejected_id
        WHERE p.step = 'pair_longest' AND c.longest <= r.longest
        """,
    )
    assert not wrong


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("sample: {k: 2}", "sample makes completions"),
        ("[", "no valid YAML"),
        ("score", "judge: is missing"),
        ("score: {judge: longst}", "did you mean longest"),
        ("score: {judge: {longest: {unit: characters, name: verifier}}}", "give it another name"),
        ("score: {judge: {longest: {name: Verifier}}}", "upper and lower case"),
        ("score: {judge: {longest: {name: tokens}}}", "a column of `answers`"),
        ("score: {of: sampel, judge: longest}", "did you mean sample"),
        ("score: {judge: longest, as: gate}", "give another with `as:`"),
        ("score: {judge: longest, as: sample}", "give another with `as:`"),
        ("score: {judge: longest, as: begin}", "cannot name a step"),
        ("pair: {of: sample, by: shortest}", "'shortest' has not scored them"),
        ("select: {where: 'verifier = 1'}", "give one with `as:`"),
        ("select: {where: 'longest = 1', as: kept}", "longest"),
        ("select: {of: evaluate, where: 'verifier = 1', as: kept}", "no completions of evaluate"),
    ],
)
def test_what_cannot_be_applied_is_refused(small_base: Path, step: str, said: str) -> None:
    """Each mistake is one line with a way out, and no row is written."""
    before = _counts(small_base)
    with pytest.raises(BadInput) as caught:
        _apply(small_base, step)
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1
    assert _counts(small_base) == before


def test_a_name_stands_for_one_step(small: Path) -> None:
    """An applied name with other settings is refused."""
    _apply(small, LONGEST)
    with pytest.raises(BadInput, match="give another with `as:`"):
        _apply(small, "score: {of: sample, judge: shortest, as: longest_score}")


def test_a_run_that_is_running_is_left_alone(small: Path) -> None:
    """Apply waits for nobody: a taken lock is `Busy`."""
    script = (
        "import sys; from pathlib import Path; from redistill.agents.opening import only_one\n"
        "with only_one(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script, str(small)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy):
            _apply(small, LONGEST)
        holder.communicate()


_KILLED = """
import os, signal, sys
from pathlib import Path
from redistill.agents.applying import apply
from redistill.agents.loop import Silent
from redistill.store.store import Store

commit, left = Store.commit, int(sys.argv[3])

def watched(self, rows, **place):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(self, rows, **place)

Store.commit = watched
apply(Path(sys.argv[1]), sys.argv[2], progress=Silent())
"""


@pytest.mark.parametrize("commits", [1, 3])
def test_killed_and_applied_again_it_is_there_once(
    small: Path, tmp_path: Path, commits: int
) -> None:
    """SIGKILL between two commits costs at most a chunk; the rows end as in an undisturbed run."""
    calm = Path(shutil.copytree(small, tmp_path / "calm" / "small"))
    _apply(calm, LONGEST)
    died = subprocess.run(
        [sys.executable, "-P", "-c", _KILLED, str(small), LONGEST, str(commits)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    assert any(a.new for a in _apply(small, LONGEST))
    for table in ("judgement", "step", "write_batch"):
        assert _ids(small, table) == _ids(calm, table)


def test_applied_rows_train_nothing_and_block_no_resume(
    tmp_path: Path, loop_run: Path, half_run: Path
) -> None:
    """A run that is judged, paired and selected anew in its middle ends as the undisturbed one."""
    folder = Path(shutil.copytree(half_run, tmp_path / "runs" / "fake"))
    assert [a.round for a in _apply(folder, "score: {of: sample, judge: random}")] == [1]
    _apply(folder, "pair: {of: sample, by: random, rule: correct_incorrect}")
    _apply(folder, "select: {of: sample, where: 'random > 0.5', as: kept}")
    _apply(folder, "score: {of: evaluate, judge: verifier}")
    resume(folder, place=Place(folder.parent, tmp_path / "cache"))
    for sql in (
        "SELECT round, step, dataset_hash, revision FROM training_run ORDER BY round",
        "SELECT round, decision, delta, ci_low FROM decision ORDER BY round",
        "SELECT id::VARCHAR AS id FROM completion ORDER BY 1",
        "SELECT id::VARCHAR AS id FROM training_row ORDER BY 1",
        "SELECT detail FROM event WHERE kind = 'gain'",
    ):
        assert read_rows(folder, sql) == read_rows(loop_run, sql)


def _again(small: Path, step: str, value: str) -> None:
    """Store a second judgement of every answer, by the same judge in a step of its own."""
    store = Store(small, ["verifier"])
    for round_ in (0, 1, 2):
        rows = store.rows(
            f"SELECT * REPLACE (id::VARCHAR AS id, completion_id::VARCHAR AS completion_id, "
            f"{value} AS value, created_at + INTERVAL 1 HOUR AS created_at) "
            "FROM judgement WHERE round = ?",
            [round_],
        )
        fresh = [r | {"id": row_id("again", old=r["id"]), "step": step} for r in rows]
        store.commit({"judgement": fresh}, round=round_, step=step, chunk=0)
    store.close()


def test_a_judge_that_was_asked_twice_has_one_value(small: Path) -> None:
    """Pairs are no more where every answer was judged twice; where the judge differs, its last value counts."""
    query = PairQuery(
        round=1, steps=("sample",), judge="verifier", rule="correct_incorrect", at_least=1, seed=0
    )

    def found() -> list[Any]:
        store = Store(small, ["verifier"])
        try:
            return pairs(store, query)
        finally:
            store.close()

    before = found()
    _again(small, "same", "value")
    assert found() == before
    _again(small, "other", "1 - value")
    twice = found()
    assert len({(p.chosen, p.rejected) for p in twice}) == len(twice) > 0
    first = {
        row["id"]: row["value"]
        for row in read_rows(
            small,
            "SELECT completion_id::VARCHAR AS id, value FROM judgement "
            "WHERE round = 1 AND step = 'score'",
        )
    }
    assert {(first[p.chosen], first[p.rejected]) for p in twice} == {(0.0, 1.0)}


def test_evidence_keeps_its_own_judgements(small: Path) -> None:
    """Held-out and test answers that are judged again change no difference that was measured."""
    before = answers_on_test(small)
    _again(small, "zz_again", "1 - value")
    assert answers_on_test(small) == before


def _import(folder: Path) -> None:
    """Import five preferences into a run, or make a run of them."""
    rows = [{"prompt": f"Say {n}", "chosen": f"{n}", "rejected": f"{n} or more"} for n in range(5)]
    file = folder.parent.parent / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    runs = ["--runs", str(folder.parent)]
    with pytest.raises(SystemExit) as ended:
        main(["import", folder.name, str(file), "--format", "preference", *runs])
    assert ended.value.code == 0


def test_imported_answers_are_judged_and_paired(tmp_path: Path) -> None:
    """Answers that came from a file, without tokens or weights, get values and pairs like any others."""
    folder = tmp_path / "runs" / "files"
    _import(folder)
    [scored] = _apply(folder, "score: {judge: longest}")
    assert scored.rows == {"judgement": 10}
    [paired] = _apply(folder, "pair: {by: longest}")
    assert paired.rows == {"pair": 5}
    assert difference(folder, "import", "pair_longest")["counts"]["swapped"] == 5


def test_what_was_forgotten_is_not_judged(small: Path) -> None:
    """An answer whose words are gone is given no value: the round is refused, another one is judged."""
    store = Store(small)
    text = "(SELECT min(text_hash) FROM completion WHERE round = 1 AND step = 'sample')"
    store.rows(
        f"UPDATE content SET text = '', forgotten_at = now() WHERE round = 1 AND hash = {text}"
    )
    store.close()
    with pytest.raises(BadInput, match="were forgotten"):
        _apply(small, LONGEST)
    assert [a.round for a in _apply(small, LONGEST, 2)] == [2]


def test_the_default_names(small: Path) -> None:
    """A step without `as` is named by operator and judge; rules name what no judge names."""
    assert read_step("score: {judge: longest}").step == "score"
    assert _apply(small, "score: {judge: longest}", 1)[0].step == "score_longest"
    assert _apply(small, "pair: {by: longest}", 1)[0].step == "pair_longest"


# -- diff


def test_judges_differ_where_the_rows_say(small: Path) -> None:
    """Counts are those that plain Python finds in the answers; rows hold texts and both values."""
    _apply(small, "score: {of: sample, judge: {longest: {unit: characters}}}")
    found = difference(small, "verifier", "longest", limit=_MANY)
    rows = read_rows(
        small,
        "SELECT id::VARCHAR AS id, round, prompt_id, verifier AS a, longest AS b, prompt, answer "
        "FROM answers WHERE longest IS NOT NULL",
    )
    flipped = {r["id"] for r in rows if (r["a"] >= 0.5) != (r["b"] >= 0.5)}
    counts = found["counts"]
    assert {r["id"] for r in found["rows"]} == flipped
    assert counts["pass_to_fail"] + counts["fail_to_pass"] == len(flipped) > 0
    assert counts["compared"] == len(rows) == 192
    by_id = {r["id"]: r for r in rows}
    for row in found["rows"]:
        assert {k: by_id[row["id"]][k] for k in ("a", "b", "prompt", "answer")} == {
            k: row[k] for k in ("a", "b", "prompt", "answer")
        }
    assert len(found["turned"]) == counts["turned"] > 0
    for row in found["turned"]:
        assert row["best_a"] > row["worst_a"]
        assert row["worst_b"] > row["best_b"]
        same = [
            r for r in rows if (r["round"], str(r["prompt_id"])) == (row["round"], row["prompt_id"])
        ]
        assert row["best_a"] == max(r["a"] for r in same)
        assert row["worst_a"] == min(r["a"] for r in same)


def test_pairings_differ_where_the_rows_say(small: Path) -> None:
    """Same, swapped, only in A, only in B: each pair is counted once, and B against A is the mirror."""
    _apply(small, LONGEST)
    _apply(small, "pair: {of: sample, by: longest}")
    found = difference(small, "pair", "pair_longest", limit=_MANY)
    mirror = difference(small, "pair_longest", "pair", limit=_MANY)
    sides = {
        step: {
            (r["c"], r["r"])
            for r in read_rows(
                small,
                "SELECT chosen_id::VARCHAR AS c, rejected_id::VARCHAR AS r FROM pair "
                f"WHERE step = '{step}'",
            )
        }
        for step in ("pair", "pair_longest")
    }
    a, b = sides["pair"], sides["pair_longest"]
    turned = {(c, r) for c, r in a if (r, c) in b}
    assert turned
    assert found["counts"] == {
        "same": len(a & b),
        "swapped": len(turned),
        "only_a": len(a - b - turned),
        "only_b": len(b - a - {(r, c) for c, r in turned}),
    }
    assert {
        (r["chosen"], r["rejected"]) for r in found["rows"] if r["label"] == "swapped"
    } == turned
    assert mirror["counts"]["only_a"] == found["counts"]["only_b"]
    assert mirror["counts"]["swapped"] == found["counts"]["swapped"]


def test_selections_differ_where_the_rows_say(loop_run: Path, tmp_path: Path) -> None:
    """An answer that only one of two selections kept is told with its text."""
    folder = Path(shutil.copytree(loop_run, tmp_path / "runs" / "fake"))
    _apply(folder, "select: {of: sample, where: 'verifier = 1', as: all_right}")
    found = difference(folder, "select", "all_right", rounds=[1], limit=_MANY)
    assert found["kind"] == "selections"
    assert found["counts"]["only_a"] == 0
    assert found["counts"]["same"] == len(
        _ids(folder, "selection", "step = 'select' AND round = 1")
    )
    assert {row["label"] for row in found["rows"]} <= {"only_b"}


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("verifier", "nobody", "named nobody; judges: verifier; pairs: pair"),
        ("verifier", "pair", "are of two kinds"),
        ("pair", "pair", "twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(small_base: Path, a: str, b: str, said: str) -> None:
    """Two names that are not of one kind are refused with the names that there are."""
    with pytest.raises(BadInput, match=said):
        difference(small_base, a, b)


def test_hostile_answers_are_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters of an answer do not reach the terminal."""
    runs = tmp_path / "runs"
    make_run(runs / "spiced", rounds=1, spice="\x1b[31mred\x07")
    _apply(runs / "spiced", LONGEST)
    with pytest.raises(SystemExit):
        main(["diff", "spiced", "verifier", "longest", "--limit", "500", "--runs", str(runs)])
    shown = capsys.readouterr().out
    assert "\\x1b[31mred" in shown.replace("\n", "")
    assert "\x1b" not in shown
    assert "\x07" not in shown


# -- fork


def _fork(loop_run: Path, base: Path, round_: int, *changes: str) -> Path:
    """Fork a copy of the run into a folder of runs of its own."""
    parent = base / "runs" / loop_run.name
    if not parent.exists():
        shutil.copytree(loop_run, parent)
    return fork(parent, round_=round_, changes=changes, name=f"fork{round_}")


def _go(folder: Path) -> dict[str, Any]:
    resume(folder, place=Place(folder.parent, folder.parent.parent / "cache"))
    return summary(folder)


def test_a_fork_retrains_and_samples_nothing(forked: Forked) -> None:
    """Round 2 is trained anew on the same samples and judgements; only its own champion is measured."""
    folder, parent, found = forked.folder, forked.parent, summary(forked.folder)
    assert forked.temperatures == [0.0] * 80  # held-out and test answers of the new champion
    assert forked.untouched
    for table, where in (
        ("completion", "split = 'train' OR step IN ('baseline', 'test_initial') OR round = 1"),
        ("judgement", "round = 1 OR step IN ('score', 'baseline', 'test_initial')"),
        ("selection", "true"),
        ("training_run", "round = 1"),
        ("evaluation", "round < 2 AND step <> 'test_champion'"),
        ("prompt", "true"),
    ):
        assert _ids(folder, table, where) == _ids(parent, table, where) != []
    old = read_rows(parent, "SELECT revision FROM training_run ORDER BY round")
    new = read_rows(folder, "SELECT revision FROM training_run ORDER BY round")
    assert old[0] == new[0]
    assert old[1] != new[1]
    assert found["rounds"][0] == summary(parent)["rounds"][0]
    assert found["state"] == "finished"
    assert found["gain"]["n"] == 40
    assert found["key"] != summary(parent)["key"]
    [event] = read_rows(folder, "SELECT detail FROM event WHERE kind = 'forked'")
    assert json.loads(event["detail"]) == {
        "run": "fake",
        "key": summary(parent)["key"],
        "round": 2,
        "steps": ["sample", "score", "select"],
    }


def test_a_fork_says_what_its_rounds_did(loop_run: Path, forked: Forked) -> None:
    """The recipe has the old settings before the round and the new ones from it on, and loads as itself."""

    def gains(recipe: Recipe) -> list[float]:
        trainers = [
            next(iter(s.model_dump()["trainer"].values()))
            for r in range(1, recipe.rounds + 1)
            for s in recipe.stage_of(r)[1].steps
            if s.name == "train"
        ]
        return [trainer["gain"] for trainer in trainers]

    written = _recipe_of(forked.folder)
    assert gains(written) == [0.3, 0.6]
    assert read_rows(forked.folder, "SELECT key FROM run") == [{"key": written.key}]
    longer = forked_recipe(_recipe_of(loop_run), 2, ["train.gain=0.6", "loop.rounds=4"], "longer")
    assert gains(longer) == [0.3, 0.6, 0.6, 0.6]


def _recipe_of(folder: Path) -> Recipe:
    return load_recipe((folder / "recipe.yaml").read_text("utf-8"), "recipe.yaml", base=folder)


def test_a_fork_has_every_row_of_the_rounds_before(loop_run: Path, tmp_path: Path) -> None:
    """In every table, the rows of rounds before the fork's are the parent's, but for the parent's own end."""
    parent = Path(shutil.copytree(loop_run, tmp_path / "runs" / loop_run.name))
    _apply(parent, "score: {of: sample, judge: longest}")
    _import(parent)
    folder = _fork(loop_run, tmp_path, 2, "train.gain=0.6")
    parts = []
    for table in TABLES:
        columns = {column.name for column in table.columns}
        if table.name in ("run", "write_batch") or "round" not in columns:
            continue
        own = "AND step NOT IN ('forked')" if "step" in columns else ""
        key = " || ' ' || ".join(f"{key}::VARCHAR" for key in table.key)
        parts.append(
            f"SELECT '{table.name}' AS name, {key} AS key FROM {table.name} WHERE round < 2 {own}"
        )
    sql = " UNION ".join(parts) + " ORDER BY ALL"
    assert read_rows(folder, sql) == read_rows(parent, sql)
    ledger = "SELECT id::VARCHAR AS id FROM write_batch WHERE round < 2 ORDER BY 1"
    assert read_rows(folder, ledger) == read_rows(parent, ledger)
    missing = read_rows(
        folder,
        "SELECT 1 FROM completion c WHERE NOT EXISTS (SELECT 1 FROM content t "
        "WHERE t.hash = c.text_hash AND t.round = c.round)",
    )
    assert not missing
    assert not [check for check in examine_run(folder) if check["state"] == "bad"]
    assert [a.round for a in _apply(folder, "score: {of: sample, judge: shortest}")] == [1]


def test_a_fork_of_a_run_with_an_unproven_judge_says_so_in_rows_of_its_own(tmp_path: Path) -> None:
    """What was known of a judge as the fork began stands once, and the ledger counts it."""
    recipe = _recipe() | {"unproven_judge": "allow"}
    recipe["round"] = [
        {"score": {"judge": "longest", "as": "by_length"}} if "score" in step else step
        for step in recipe["round"]
    ]
    recipe["round"][2] = {"select": {"where": "longest > 0", "per_prompt": 1}}
    parent = _begin(tmp_path, recipe)
    folder = _fork(parent, tmp_path, 2, "select.per_prompt=2")
    judges = "SELECT judge, verdict FROM admission"
    assert read_rows(folder, judges) == read_rows(parent, judges) != []
    assert not [check for check in examine_run(folder) if check["state"] == "bad"]


def test_a_fork_of_the_gate_trains_nothing(
    loop_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that asks for more decides anew on stored evidence: no training, no held-out answer."""
    folder = _fork(loop_run, tmp_path, 1, "gate.length_band=[0.1, 0.2]")
    asked = _Counting(monkeypatch)
    found = _go(folder)
    assert [row["decision"] for row in found["rounds"]] == ["rejected", "rejected"]
    first = "round = 1"
    assert _ids(folder, "training_run", first) == _ids(loop_run, "training_run", first)
    # Round 1 is stored. Round 2 starts from another champion and is done anew, with a challenger to measure.
    # The champion is the first student, whose test answers are stored.
    assert asked.temperatures == [0.7] * 80 + [0.0] * 40
    assert found["gain"]["delta"] == 0
    assert found["gain"]["n"] == 40


@pytest.mark.slow
def test_a_fork_goes_on_after_the_end(loop_run: Path, tmp_path: Path) -> None:
    """With more rounds, a finished run goes on: its rounds as they are, and one that is new."""
    folder = _fork(loop_run, tmp_path, 3, "loop.rounds=3")
    found = _go(folder)
    old = summary(loop_run)["rounds"]
    assert [_known(row) for row in found["rounds"][:2]] == [_known(row) for row in old]
    assert found["rounds"][2]["decision"] is not None


def _known(row: dict[str, Any]) -> dict[str, Any]:
    # The seconds of a run's last round hold those of its test answers.
    return {key: value for key, value in row.items() if key != "seconds"}


@pytest.mark.slow
def test_a_fork_of_the_evidence_measures_anew(loop_run: Path, tmp_path: Path) -> None:
    """Other decoding of held-out answers takes over no measurement, and trains nothing again."""
    folder = _fork(loop_run, tmp_path, 1, "evaluate.max_tokens=30")
    assert not _ids(folder, "evaluation")
    found = _go(folder)
    assert found["rounds"][0]["revision"] == summary(loop_run)["rounds"][0]["revision"]
    decodings = read_rows(folder, "SELECT DISTINCT decoding->>'max_tokens' AS n FROM evaluation")
    assert decodings == [{"n": "30"}]


@pytest.mark.slow
def test_a_fork_of_a_run_in_its_middle(
    half_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sampled in the unfinished round is taken over; the step that was not finished is done anew."""
    parent = Path(shutil.copytree(half_run, tmp_path / "runs" / "fake"))
    folder = fork(parent, round_=2, changes=["train.gain=0.1"], name="other")
    asked = _Counting(monkeypatch)
    assert _go(folder)["state"] == "finished"
    assert set(asked.temperatures) == {0.0}
    assert _ids(folder, "completion", "step = 'sample'") == _ids(
        parent, "completion", "step = 'sample'"
    )


@pytest.mark.parametrize(
    ("round_", "changes", "said"),
    [
        (2, (), "nothing differs from round 2 on"),
        (2, ("train.gain=0.3",), "nothing differs from round 2 on"),
        (2, ("seed=7",), "seed is what earlier rounds have used"),
        (2, ("student=smollm2-135m",), "student is what earlier rounds have used"),
        (2, ("prompts.per_round=3",), "prompts is what earlier rounds have used"),
        (2, ("name=other",), "`--as` names it"),
        (2, ("trian.gain=0.1",), "did you mean train"),
        (2, ("train.gian=0.1",), "gian"),
        (2, ("train.gain",), "is no a.b=c"),
        (2, ("evaluate.max_tokens=9",), "held-out values must be comparable"),
        (0, ("train.gain=0.1",), "rounds are from 1"),
        (3, ("train.gain=0.1",), "the fork has 2 rounds"),
        (4, ("loop.rounds=9",), "round 3 is not finished"),
    ],
)
def test_what_cannot_be_forked_is_refused(
    loop_run: Path, tmp_path: Path, round_: int, changes: tuple[str, ...], said: str
) -> None:
    """Each mistake is told, and no folder is left."""
    with pytest.raises(BadInput) as caught:
        _fork(loop_run, tmp_path, round_, *changes)
    assert said in str(caught.value)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["fake"]


def test_a_fork_takes_no_name_that_is_taken(forked: Forked) -> None:
    """An existing folder is never written to."""
    before = _digest(forked.folder)
    with pytest.raises(BadInput, match="choose another name"):
        fork(forked.parent, round_=2, changes=["train.gain=0.7"], name=forked.folder.name)
    assert _digest(forked.folder) == before


# -- compare


def test_two_runs_beside_each_other(loop_run: Path, forked: Forked) -> None:
    """The setting that differs, both decisions, and a difference whose sign is that of the second run."""
    folder = forked.folder
    found = comparison(loop_run, folder)
    assert found["runs"] == ["fake", "fork2"]
    assert found["recipe"] == [{"key": "train.gain", "rounds": [2], "first": 0.3, "second": 0.6}]
    assert [row["first"]["decision"] for row in found["rounds"]] == ["promoted", "promoted"]
    champions = found["champions"]
    sides = [summary(f)["gain"]["champion"] for f in (loop_run, folder)]
    assert [champions["first"], champions["second"]] == sides
    assert champions["delta"] == pytest.approx(sides[1] - sides[0])
    assert champions["ci_low"] <= champions["delta"] <= champions["ci_high"]
    assert (champions["split"], champions["n"], champions["judge"]) == ("test", 40, "verifier")
    rows = found["training_rows"]
    assert rows["first"] == rows["second"] == rows["shared"] > 0


def test_other_judges_are_not_compared(small: Path, tmp_path: Path) -> None:
    """Two judges measure two things; after one judge has judged both sides, they can be compared."""
    other = Path(shutil.copytree(small, tmp_path / "runs" / "other"))
    for name, kept in (("small", "verifier"), ("other", "longest")):
        folder = tmp_path / "runs" / name
        _apply(folder, "score: {of: [test_initial, test_champion], judge: longest}")
        if kept == "longest":
            store = Store(folder, ["verifier", "longest"])
            store.rows("DELETE FROM judgement WHERE judge = 'verifier' AND step LIKE 'test_%'")
            store.close()
    plain = make_run(tmp_path / "runs" / "plain")
    told = comparison(plain, other)["champions"]
    assert not told["comparable"]
    assert "redistill apply" in told["reason"]
    found = comparison(small, other)["champions"]
    assert (found["comparable"], found["judge"], found["delta"]) == (True, "longest", 0)


def test_stages_are_compared_by_what_rounds_do() -> None:
    """Equal rounds cut into other stages are no difference; a rule that changes is one, with its rounds."""
    step = {"sample": {"k": 4}}
    one: dict[str, Any] = {
        "stages": [{"repeat": 3, "round": [step]}],
        "loop": {"rounds": 3},
        "seed": 0,
    }
    two: dict[str, Any] = {
        "stages": [{"repeat": 1, "round": [step]}] * 3,
        "loop": {"rounds": None},
        "seed": 0,
    }
    assert recipe_difference(one, two) == []
    three = {
        **two,
        "seed": 1,
        "stages": [*two["stages"][:1], {"repeat": 2, "round": [{"sample": {"k": 8}}]}],
    }
    assert recipe_difference(one, three) == [
        {"key": "seed", "rounds": [], "first": 0, "second": 1},
        {"key": "sample.k", "rounds": [2, 3], "first": 4, "second": 8},
    ]


# -- the commands


@pytest.mark.parametrize(
    "arguments",
    [
        ["apply", "small", LONGEST],
        ["diff", "small", "verifier", "longest"],
        ["compare", "small", "small"],
        [
            "fork",
            "small",
            "--round",
            "2",
            "--set",
            "pair.rule=best_random",
            "--as",
            "other",
            "--no-run",
        ],
    ],
)
def test_every_command_prints_json(
    small: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json, standard output is one JSON value; without, it is text for people."""
    if arguments[0] == "diff":
        _apply(small, LONGEST)
    runs = ["--runs", str(small.parent)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *runs, "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)
    if arguments[0] == "fork":
        shutil.rmtree(small.parent / "other")
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *runs])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip()
