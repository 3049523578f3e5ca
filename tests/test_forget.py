"""Forgetting: afterwards no byte of the text is left in the run, and the run still works."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from redistill.cli import app
from redistill.errors import BadInput, Busy, EnvironmentProblem
from redistill.hashing import row_id
from redistill.report.integrity import examine_run
from redistill.report.keeping import forget, forgotten_lines
from redistill.report.page import write_page
from redistill.report.summary import summary
from redistill.store import forget as forgetting
from redistill.store.blanked import SIDE
from redistill.store.query import read_rows
from redistill.store.store import FILE, SNAPSHOT, Store, content
from redistill.store.tables import TABLES
from redistill.testing.small_run import make_run

SECRET = "ZEBRA-7741 Jane Roe, Elm Street"
MATCHES = "answer LIKE '%ZEBRA-7741%'"
WHEN = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose wrong answers hold a secret, and every place that may repeat it does."""
    folder = make_run(tmp_path_factory.mktemp("planted") / "run", spice=SECRET)
    [answer] = read_rows(
        folder,
        "SELECT c.id::VARCHAR AS id, c.prompt_id::VARCHAR AS prompt_id, t.text FROM completion c "
        "JOIN content t ON t.hash = c.text_hash AND t.round = c.round "
        "JOIN training_row r ON r.rejected_id = c.id "
        "WHERE c.round = 1 AND contains(t.text, 'ZEBRA') ORDER BY c.id LIMIT 1",
    )
    with closing(Store(folder, ["verifier"])) as store:
        _plant_rows(store, answer)
    _plant_files(folder, answer)
    write_page(folder, None)
    return folder


def _plant_rows(store: Store, answer: dict[str, Any]) -> None:
    words, remark = content(f"It says {SECRET}", 1), content(f"{SECRET}!", 1)
    tokens = list(answer["text"].encode())
    about = {"round": 1, "step": "late", "created_at": WHEN}
    critique = {
        **about,
        "id": row_id("judgement", word="critique"),
        "mode": "critique",
        "completion_id": answer["id"],
        "judge": "critic",
        "judge_revision": "j",
        "aspect": "",
        "attempt": 0,
        "status": "ok",
        "parts": json.dumps({"quote": SECRET, "n": 1}),
        "text_hash": words["hash"],
        "seconds": 0.0,
    }
    said = {
        **about,
        "id": row_id("feedback", word="f"),
        "prompt_id": answer["prompt_id"],
        "kind": "thumbs",
        "completion_id": answer["id"],
        "value": 1.0,
        "text_hash": remark["hash"],
        "source": "s",
        "licence": "l",
    }
    event = {
        **about,
        "id": row_id("event", word="e"),
        "kind": "test",
        "detail": json.dumps({"seen": [answer["text"]], "n": 2}),
    }
    thought = {
        "completion_id": answer["id"],
        "round": 1,
        "step": "late",
        "revision": "r",
        "context": "",
        "logprobs": [-0.5] * len(tokens),
        "top_ids": [[token] for token in tokens],
        "top_logprobs": [[-0.5]] * len(tokens),
        "created_at": WHEN,
    }
    rows: dict[str, Any] = {"judgement": [critique], "content": [words, remark], "feedback": [said]}
    rows |= {"event": [event], "token_distribution": [thought]}
    store.commit(rows, round=1, step="late", chunk=0)


def _plant_files(folder: Path, answer: dict[str, Any]) -> None:
    (folder / "run.log").write_text(f"12:00 said {answer['text']!r}\n12:01 fine\n", "utf-8")
    (folder / "worker.log").write_text(f"Error: {json.dumps(answer['text'])}\n", "utf-8")
    (folder / f"{FILE}.bak-v1").write_bytes(SECRET.encode())
    (folder / "x.tmp").write_bytes(SECRET.encode())
    rows = read_rows(
        folder,
        "SELECT r.id::VARCHAR AS id, [1, 2] AS prompt_ids, c.token_ids AS chosen_ids, "
        "j.token_ids AS rejected_ids FROM training_row r "
        "JOIN completion_tokens c ON c.completion_id = r.completion_id "
        "JOIN completion_tokens j ON j.completion_id = r.rejected_id WHERE r.round = 1",
    )
    (folder / "jobs/1").mkdir(parents=True)
    (folder / "jobs/1/job.json").write_text("{}")
    pq.write_table(pa.Table.from_pylist(rows), folder / "jobs/1/rows.parquet")
    (folder / "exports").mkdir()
    told = [
        {
            "completion_id": answer["id"],
            "messages": [{"role": "assistant", "content": answer["text"]}],
        },
        {"completion_id": None, "messages": [{"role": "assistant", "content": "other"}]},
    ]
    pq.write_table(pa.Table.from_pylist(told), folder / "exports/all.parquet")
    (folder / "exports/all.jsonl").write_text("\n".join(map(json.dumps, told)) + "\n", "utf-8")


@pytest.fixture
def run(planted: Path, tmp_path: Path) -> Path:
    """A copy of the planted run."""
    import shutil

    return Path(shutil.copytree(planted, tmp_path / "runs" / "run"))


def traces(folder: Path, word: str) -> list[str]:
    """Return every place of a run's folder that spells a word: bytes, rows, token ids."""
    spelled = [word.encode(), word.encode("utf-16-le"), word.encode("utf-16-be")]
    found = []
    for file in folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            found += [f"bytes of {file.name}"] * any(s in data for s in spelled)
            if file.suffix == ".parquet":
                rows = pq.read_table(file).to_pylist()
                found += [f"rows of {file.name}"] * _spells(rows, word)
    for name in (FILE, SNAPSHOT):
        with duckdb.connect(str(folder / name), read_only=True) as connection:
            for table in TABLES:
                cursor = connection.execute(f"SELECT * FROM {table.name}")
                found += [f"{name} {table.name}"] * _spells(cursor.fetchall(), word)
    return found


def _spells(value: Any, word: str) -> bool:
    """Whether a value holds a word, as text or as the bytes that are its token ids."""
    if isinstance(value, str):
        return word in value
    if isinstance(value, dict):
        return any(_spells(inner, word) for inner in value.values())
    if isinstance(value, list | tuple):
        flat = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in value]
        if flat and all(isinstance(v, int) for v in flat):
            return word in "".join(chr(v) if 0 <= v < 256 else " " for v in flat)
        return any(_spells(inner, word) for inner in value)
    return False


def counts(folder: Path) -> dict[str, int]:
    """Return the rows of every table."""
    return {
        t.name: read_rows(folder, f"SELECT count(*) AS n FROM {t.name}")[0]["n"] for t in TABLES
    }


def bad(folder: Path) -> list[dict[str, str]]:
    """Return what `doctor` finds bad in a run."""
    return [check for check in examine_run(folder) if check["state"] == "bad"]


def test_the_search_finds_what_is_planted(planted: Path) -> None:
    """The search of these tests sees every place, so that its silence means something."""
    found = set(traces(planted, "ZEBRA-7741"))
    wanted = {f"{n} {t}" for n in (FILE, SNAPSHOT) for t in ("content", "event", "judgement")}
    wanted |= {
        f"{n} {t}" for n in (FILE, SNAPSHOT) for t in ("completion_tokens", "rendered_prompt")
    }
    wanted |= {f"{FILE} token_distribution", "rows of rows.parquet", "rows of all.parquet"}
    names = ("run.log", "worker.log", "all.jsonl", "report.html", "0-prompts.jsonl", "x.tmp")
    wanted |= {f"bytes of {name}" for name in names}
    assert wanted <= found


def test_nothing_is_changed_without_yes(run: Path) -> None:
    """A dry run tells the counts and writes nothing at all."""
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    found = forget(run, MATCHES, prompts=False, reason="", sure=False)
    assert len(found["answers"]) > 10
    assert found["done"] is False
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == before
    assert "nothing was changed; --yes does it" in forgotten_lines(found)[-1]


def test_no_byte_of_a_forgotten_prompt_and_its_answers_is_left(run: Path) -> None:
    """Store, snapshot, jobs, inputs, exports, logs, the page, old copies: none spells it any more.

    All rows and ids are still there, `doctor` finds nothing bad, and what reads a run reads it.
    """
    before = counts(run)
    ids = read_rows(run, "SELECT id FROM completion ORDER BY id")
    where = f"{MATCHES} OR prompt LIKE '%ZEBRA-7741%'"
    found = forget(run, where, prompts=True, reason="asked to", sure=True)
    assert found["left"] == []
    assert traces(run, "ZEBRA-7741") == []
    assert traces(run, "Jane Roe") == []
    assert counts(run) == before | {
        "event": before["event"] + 1,
        "write_batch": before["write_batch"] + 1,
    }
    assert read_rows(run, "SELECT id FROM completion ORDER BY id") == ids
    assert bad(run) == []
    assert summary(run)["state"] == "finished"
    assert (run / "report.html").exists()
    assert "12:01 fine" in (run / "run.log").read_text("utf-8")


def test_an_answer_goes_and_its_prompt_stays(run: Path) -> None:
    """Without --prompts only the answers and what was said of them go; right answers are untouched."""
    right = read_rows(run, "SELECT id, answer FROM answers WHERE verifier = 1 ORDER BY id")
    kept = read_rows(run, "SELECT DISTINCT prompt FROM answers ORDER BY 1")
    found = forget(run, MATCHES, prompts=False, reason="", sure=True)
    assert read_rows(run, "SELECT id, answer FROM answers WHERE verifier = 1 ORDER BY id") == right
    assert read_rows(run, "SELECT DISTINCT prompt FROM answers ORDER BY 1") == kept
    gone = read_rows(
        run, f"SELECT answer, verifier FROM answers WHERE id IN ({_list(found['answers'])})"
    )
    assert {row["answer"] for row in gone} == {""}
    assert {row["verifier"] for row in gone} == {0.0}
    [critique] = read_rows(run, "SELECT parts FROM judgement WHERE mode = 'critique'")
    assert json.loads(critique["parts"]) == {"quote": "", "n": 1}
    assert bad(run) == []


def test_the_views_are_what_they_were(run: Path) -> None:
    """The new store has every view with its columns, in their order, and their comments."""
    sql = (
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
        "WHERE NOT internal AND database_name = 'store' ORDER BY table_name, column_index"
    )
    before = read_rows(run, sql)
    forget(run, MATCHES, prompts=False, reason="", sure=True)
    assert read_rows(run, sql) == before
    assert {"verifier"} <= {row["column_name"] for row in before}


def _list(ids: list[str]) -> str:
    return ", ".join(f"'{identifier}'" for identifier in ids)


def test_what_was_done_is_kept_without_any_text(run: Path) -> None:
    """The event names ids, revisions that remember, exports and the reason, and not the condition."""
    found = forget(run, MATCHES, prompts=False, reason="letter of 24 Nov", sure=True)
    [row] = read_rows(run, "SELECT detail FROM event WHERE kind = 'forgotten'")
    told = json.loads(row["detail"])
    assert told["answers"] == found["answers"]
    assert told["reason"] == "letter of 24 Nov"
    assert told["exports"] == {"exports/all.parquet": 1}
    trained = read_rows(
        run,
        "SELECT DISTINCT t.revision AS r FROM training_row w JOIN training_run t ON t.id = w.training_run_id "
        f"WHERE w.rejected_id IN ({_list(told['answers'])}) ORDER BY 1",
    )
    assert told["revisions"] == [row["r"] for row in trained] != []
    assert "ZEBRA" not in row["detail"]


def test_equal_texts_go_together_and_that_is_told(run: Path) -> None:
    """A condition that names one answer forgets all answers of that text, tokens included."""
    [one] = read_rows(
        run,
        "SELECT min(id)::VARCHAR AS id, answer, count(*) AS n FROM answers WHERE verifier = 1 "
        "GROUP BY answer ORDER BY n DESC, answer LIMIT 1",
    )
    assert one["n"] > 2
    found = forget(run, f"id = '{one['id']}'", prompts=False, reason="", sure=True)
    assert len(found["equal_answers"]) == one["n"] - 1
    assert any("exactly the same text" in line for line in forgotten_lines(found))
    assert one["answer"] not in {r["answer"] for r in read_rows(run, "SELECT answer FROM answers")}
    emptied = read_rows(run, "SELECT count(*) AS n FROM completion_tokens WHERE len(token_ids) = 0")
    assert emptied[0]["n"] == one["n"]


def test_what_was_made_of_it_stays_and_is_told(run: Path) -> None:
    """A rewrite and a prompt that came of a forgotten answer are named; what the rewriter saw goes.

    The tokens that earned rewards go with the answer, as the table's checks want it.
    """
    [answer] = read_rows(
        run,
        f"SELECT id::VARCHAR AS id, prompt_id::VARCHAR AS p FROM answers WHERE {MATCHES} LIMIT 1",
    )
    made = {name: row_id("test", word=name) for name in ("rewrite", "seen", "prompt")}
    with closing(Store(run)) as store:
        sql = (
            "INSERT INTO rendered_prompt SELECT * REPLACE (SEEN AS id) FROM rendered_prompt LIMIT 1; "
            "INSERT INTO completion SELECT * REPLACE (REWRITE AS id, ANSWER AS parent_id, "
            "SEEN AS rendered_prompt_id, 'unlike' AS text_hash) FROM completion WHERE id = ANSWER; "
            "INSERT INTO prompt SELECT * REPLACE (PROMPT_ID AS id, ANSWER AS completion_id, "
            "'unlike' AS messages_hash) FROM prompt LIMIT 1; "
            "UPDATE completion_tokens SET rewards = logprobs WHERE completion_id = ANSWER"
        )
        named = {"SEEN": made["seen"], "REWRITE": made["rewrite"], "PROMPT_ID": made["prompt"]}
        for word, identifier in (named | {"ANSWER": answer["id"]}).items():
            sql = sql.replace(word, f"'{identifier}'::UUID")
        store.work(lambda connection: connection.execute(sql))
    found = forget(run, f"id = '{answer['id']}'", prompts=False, reason="", sure=True)
    assert found["rewrites_kept"] == [made["rewrite"]]
    assert found["prompts_kept"] == [made["prompt"]]
    [seen] = read_rows(run, f"SELECT token_ids FROM rendered_prompt WHERE id = '{made['seen']}'")
    assert seen["token_ids"] == []
    sql = "SELECT rewards FROM completion_tokens WHERE completion_id = $1::UUID"
    assert read_rows(run, sql, [answer["id"]]) == [{"rewards": []}]


def test_forgotten_twice_is_forgotten_once(run: Path) -> None:
    """The second time no answer matches, nothing is written, and that is said."""
    forget(run, MATCHES, prompts=False, reason="", sure=True)
    before = counts(run)
    again = forget(run, MATCHES, prompts=False, reason="", sure=True)
    assert again["done"] is False
    assert forgotten_lines(again) == ["no answer matches; nothing to forget"]
    assert counts(run) == before


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("answer LIKE", "--where"),
        ("true) OR (true", "--where"),
        ("id IN (SELECT id FROM answers)", "holds a query"),
        ("true; DROP TABLE content", "--where"),
        ("no_such_column = 1", "no_such_column"),
        ("(SELECT content FROM read_text('/etc/passwd')) = ''", "holds a query"),
        ("a\ud83db", "no valid Unicode"),
    ],
)
def test_a_condition_is_one_expression(run: Path, where: str, message: str) -> None:
    """What could mean more than it seems is refused before anything is written."""
    before = (run / FILE).read_bytes()
    with pytest.raises(BadInput, match=message):
        forget(run, where, prompts=False, reason="", sure=True)
    assert (run / FILE).read_bytes() == before


def test_a_run_that_is_being_run_is_busy(run: Path) -> None:
    """Nothing is rewritten under a writer."""
    from filelock import FileLock

    with FileLock(run / ".lock"), pytest.raises(Busy):
        forget(run, MATCHES, prompts=False, reason="", sure=True)


def test_runs_and_backups_that_hold_it_are_named(run: Path) -> None:
    """A copy beside the run and an archive outside keep what they have; both are told."""
    import shutil

    shutil.copytree(run, run.parent / "copy")
    out = run.parent.parent / "kept.tar"
    done = CliRunner().invoke(app, ["backup", "run", "--runs", str(run.parent), "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = forget(run, MATCHES, prompts=False, reason="", sure=True)
    assert found["backups"] == [str(out)]
    assert found["runs"]["copy"] == len(found["answers"]) + len(found["equal_answers"])


KILLED = """
import os, signal, sys
from pathlib import Path
from redistill.report.keeping import forget
point, count = sys.argv[2], 0
def at(name, real):
    def wrapped(*a, **k):
        global count
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    return wrapped
from redistill.store import forget as f, traces
f.write_blanked = at("before", f.write_blanked)
f.clean_files = at("written", f.clean_files)
traces._clean_parquet = at("files", traces._clean_parquet)
replaced = 0
real = Path.replace
def replace(self, target):
    global replaced
    if self.parent.name == ".forget" and not str(self).endswith(".tmp"):
        replaced += 1
        if point == f"swap{replaced}":
            os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = replace
forget(Path(sys.argv[1]), sys.argv[3], prompts=True, reason="", sure=True)
print("whole")
"""


def test_a_forgetting_that_is_killed_can_be_repeated(run: Path) -> None:
    """After a kill at any place the store is the old or the new one; repeating leaves no byte."""
    where = f"{MATCHES} OR prompt LIKE '%ZEBRA-7741%'"
    before = counts(run)["event"]
    for point in ("before", "written", "files", "swap1", "swap2"):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(run), point, where], capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, (point, done.stdout, done.stderr)
        with duckdb.connect(str(run / FILE), read_only=True) as connection:
            [there] = connection.execute("SELECT count(*) FROM event").fetchall()
        assert there[0] == before + (point == "swap2")
        assert "forgetting" in {check["name"] for check in bad(run)} or point == "before"
    forget(run, where, prompts=True, reason="", sure=True)
    assert traces(run, "ZEBRA-7741") == []
    assert bad(run) == []
    assert counts(run)["event"] == before + 1


def test_a_file_that_cannot_be_cleaned_leaves_the_old_store(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in the middle is told, and the store is as it was."""
    before = read_rows(run, "SELECT hash, text FROM content ORDER BY ALL")

    def full(*_: Any) -> None:
        raise EnvironmentProblem("no space")

    monkeypatch.setattr(forgetting, "clean_files", full)
    with pytest.raises(EnvironmentProblem):
        forget(run, MATCHES, prompts=False, reason="", sure=True)
    with closing(Store(run)) as store:
        assert store.rows("SELECT hash, text FROM content ORDER BY ALL") == before
    assert not (run / SIDE).exists()


def test_the_command_tells_it(run: Path) -> None:
    """`redistill forget` shows what would go, and with --yes what has gone; --json has the ids."""
    told = ["forget", "run", "--where", MATCHES, "--runs", str(run.parent)]
    shown = CliRunner().invoke(app, told)
    assert shown.exit_code == 0, shown.output
    assert "would be forgotten" in shown.output
    done = CliRunner().invoke(app, [*told, "--yes", "--json"])
    assert json.loads(done.output)["done"] is True
    assert "ZEBRA" not in done.output
