"""Import: what a file becomes in a store, what is left out and why, and what is refused before a row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from exchange import put_out, take_in, write_rows
from typer.testing import CliRunner

from redistill.agents.opening import only_one
from redistill.cli import app
from redistill.errors import BadInput
from redistill.store.facts import IMPORTED
from redistill.store.imports import Import, check, open_run, write
from redistill.store.query import read_rows
from redistill.store.store import Store
from redistill.testing.small_run import make_run

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PAIR = {"prompt": "How many legs has a spider?", "chosen": "Eight.", "rejected": "Six."}
LONG = "Which of the nine rivers that cross the old border town floods first in a wet spring?"


def _data(name: str) -> list[dict[str, Any]]:
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"needs the data file {name}")
    raw = file.read_bytes()
    text = gzip.decompress(raw) if name.endswith(".gz") else raw
    return [json.loads(line) for line in text.splitlines()]


def _count(folder: Path, table: str) -> int:
    return int(read_rows(folder, f"SELECT count(*) AS n FROM {table}")[0]["n"])


# -- what a row becomes


def test_a_preference_is_a_pair_a_verdict_and_a_row_of_feedback(tmp_path: Path) -> None:
    """The pair trains, the verdict names its source, and the feedback says who, whence and which licence."""
    row = {**PAIR, "author": "ann", "remark": "insects have six"}
    file = write_rows(tmp_path / "votes.jsonl", [row])
    found = take_in(tmp_path / "r", file, "preference", source="our users", licence="CC0")
    assert found["imported"] == {"preference": 1}
    [pair] = read_rows(tmp_path / "r", "SELECT chosen, judge, rule FROM d2")
    assert pair["chosen"][0]["content"] == "Eight."
    assert (pair["judge"], pair["rule"]) == ("our_users", "imported")
    [verdict] = read_rows(tmp_path / "r", "SELECT judge, mode, ranks, status FROM judgement")
    assert verdict == {"judge": "our_users", "mode": "compare", "ranks": [1, 2], "status": "ok"}
    [said] = read_rows(tmp_path / "r", "SELECT kind, author, source, licence FROM feedback")
    assert said == {
        "kind": "preference", "author": "ann", "source": "our users", "licence": "CC0",
    }  # fmt: skip


def test_thumbs_ratings_and_demonstrations_are_what_they_say(tmp_path: Path) -> None:
    """A thumb is a score of 0 or 1, a rating is brought into [0, 1], a demonstration is a selection."""
    asked = {"prompt": "How?", "response": "So."}
    files: dict[str, dict[str, Any]] = {
        "thumbs": {**asked, "thumb": "down"},
        "rating": {**asked, "rating": 4},
        "demonstration": asked,
    }
    for form, row in files.items():
        file = write_rows(tmp_path / f"{form}.jsonl", [row])
        take_in(tmp_path / "r", file, form, scale=(1.0, 5.0))
    scores = read_rows(tmp_path / "r", "SELECT judge, value, raw FROM judgement ORDER BY judge")
    assert [tuple(s.values()) for s in scores] == [("rating", 0.75, 4.0), ("thumbs", 0.0, None)]
    assert _count(tmp_path / "r", "selection") == 1
    assert _count(tmp_path / "r", "prompt") == 1
    kinds = read_rows(tmp_path / "r", "SELECT kind FROM feedback ORDER BY kind")
    assert [k["kind"] for k in kinds] == ["demonstration", "rating", "thumbs"]


def test_imported_prompts_are_never_sampled(tmp_path: Path) -> None:
    """A prompt of a file trains by its answers; the loop's own prompts stay the ones it samples."""
    folder = make_run(tmp_path / "r", rounds=1)
    before = read_rows(folder, "SELECT count(*) AS n FROM prompt WHERE split = 'train'")
    take_in(folder, write_rows(tmp_path / "p.jsonl", [PAIR]), "preference")
    tagged = f"SELECT count(*) AS n FROM prompt WHERE split = 'train' AND NOT '{IMPORTED}' IN tags"
    assert read_rows(folder, tagged) == before


# -- what real files become


def test_pandalms_pairs_go_in_and_come_out(tmp_path: Path) -> None:
    """500 pairs that people labelled: ties are left out, every other one is a pair with its source."""
    rows = []
    for row in _data("pandalm/pairs.jsonl.gz"):
        first, second = row["response1"], row["response2"]
        votes = [row[f"annotator{n}"] for n in (1, 2, 3)]
        texts = isinstance(first, str) and isinstance(second, str) and first != second
        if votes.count(1) != votes.count(2) and texts:
            better = (first, second) if votes.count(1) > votes.count(2) else (second, first)
            prompt = f"{row['instruction']}\n{row['input']}".strip()
            rows.append({"prompt": prompt, "chosen": better[0], "rejected": better[1]})
    file = write_rows(tmp_path / "pandalm.jsonl", rows)
    found = take_in(tmp_path / "r", file, "preference", licence="Apache-2.0")
    assert found["records"] == len(rows) > 300
    assert found["imported"]["preference"] + found["duplicates"] == len(rows)
    out = put_out(tmp_path / "r", tmp_path / "out.jsonl", "trl")
    assert out["rows"] + out["merged"] == found["imported"]["preference"]
    stored = {(r["prompt"], r["chosen"]) for r in rows}
    lines = (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]
    for line in map(json.loads, lines):
        assert (line["prompt"][0]["content"], line["chosen"][0]["content"]) in stored


def test_gsm8k_questions_that_are_held_out_do_not_train(tmp_path: Path) -> None:
    """A held-out question inside an imported one is dropped with its reason, and 20 others are not."""
    questions = [row["question"] for row in _data("gsm8k/test.jsonl.gz")[:25]]
    folder = tmp_path / "r"
    _with_held_out(folder, questions[:5])
    rows = [{"prompt": f"Solve this, please. {q}", "response": "7"} for q in questions]
    found = take_in(folder, write_rows(tmp_path / "g.jsonl", rows), "demonstration")
    assert (found["contaminated"], found["imported"]["demonstration"]) == (5, 20)
    assert "13-grams of the prompt of heldout prompt" in found["hits"][0]["reason"]
    assert _count(folder, "event WHERE kind = 'contaminated'") == 5


def _with_held_out(folder: Path, questions: list[str]) -> None:
    """Make a run whose only prompts are held out."""
    from redistill.hashing import row_id
    from redistill.store.facts import details_text, messages_text
    from redistill.store.store import content, now
    from redistill.types import Message

    folder.mkdir(parents=True)
    store = Store(folder)
    try:
        open_run(store)
        prompts, texts = [], [content(details_text({}), 0)]
        for place, question in enumerate(questions):
            turns = content(messages_text([Message("user", question)]), 0)
            texts.append(turns)
            prompts.append({
                "id": row_id("prompt", of=question), "round": 0, "split": "heldout",
                "position": place, "messages_hash": turns["hash"],
                "details_hash": texts[0]["hash"], "tags": [], "source": "s", "licence": "MIT",
                "created_at": now(),
            })  # fmt: skip
        rows = {"prompt": prompts, "content": texts}
        store.commit(rows, round=0, step="prompts", chunk=0)
    finally:
        store.close()


# -- what is left out, and why


def test_what_is_there_already_is_left_out_with_its_reason(tmp_path: Path) -> None:
    """Equal but for case and spaces is there already; the event names the line that came first."""
    twice = {**PAIR, "prompt": "how many  legs has a SPIDER?"}
    file = write_rows(tmp_path / "p.jsonl", [PAIR, twice])
    found = take_in(tmp_path / "r", file, "preference")
    assert (found["imported"], found["duplicates"]) == ({"preference": 1}, 1)
    [event] = read_rows(tmp_path / "r", "SELECT detail FROM event WHERE kind = 'duplicate'")
    detail = json.loads(event["detail"])
    assert (detail["line"], detail["of"], detail["dropped"]) == (2, "line 1", True)
    again = write_rows(tmp_path / "other.jsonl", [PAIR])
    assert take_in(tmp_path / "r", again, "preference")["duplicates"] == 1
    kept = take_in(tmp_path / "r", again, "preference", keep_duplicates=True)
    assert (kept["duplicates"], kept["kept_duplicates"]) == (0, 1)


def test_near_duplicates_are_left_out_on_request_alone(tmp_path: Path) -> None:
    """`near` leaves out what shares most word trigrams; without it both rows are kept."""
    rows = [{"prompt": LONG, "response": f"The {r}."} for r in ("Drava", "Mura")]
    file = write_rows(tmp_path / "d.jsonl", rows)
    assert take_in(tmp_path / "a", file, "demonstration")["imported"]["demonstration"] == 2
    found = take_in(tmp_path / "b", file, "demonstration", near=0.7)
    assert (found["imported"]["demonstration"], found["near_duplicates"]) == (1, 1)


def test_what_overlaps_with_held_out_can_be_kept_but_the_question_itself_never(
    tmp_path: Path,
) -> None:
    """`keep_contaminated` keeps an overlap, marked; the held-out question itself is always dropped."""
    _with_held_out(tmp_path / "r", [LONG])
    rows = [{"prompt": f"Hm. {LONG}", "response": "Mura."}, {"prompt": LONG, "response": "Mura."}]
    file = write_rows(tmp_path / "d.jsonl", rows)
    found = take_in(tmp_path / "r", file, "demonstration", keep_contaminated=True)
    assert (found["kept_contaminated"], found["contaminated"]) == (1, 1)
    assert [hit["dropped"] for hit in found["hits"]] == [False, True]
    assert _count(tmp_path / "r", "prompt WHERE split = 'train'") == 1


# -- once, and whole


def test_a_file_that_is_done_is_known_again(tmp_path: Path) -> None:
    """The same file with the same wishes adds nothing, and says so."""
    file = write_rows(tmp_path / "p.jsonl", [PAIR])
    first = take_in(tmp_path / "r", file, "preference")
    second = take_in(tmp_path / "r", file, "preference")
    assert (first["again"], second["again"]) == (False, True)
    assert _count(tmp_path / "r", "pair") == _count(tmp_path / "r", "feedback") == 1


def test_an_import_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two chunks, begun again: the same ids as of an import in one go, each once."""
    rows = [{**PAIR, "prompt": f"{PAIR['prompt']} {n}"} for n in range(25)]
    file = write_rows(tmp_path / "p.jsonl", rows)
    monkeypatch.setattr("redistill.store.imports._CHUNK", 10)
    take_in(tmp_path / "whole", file, "preference")
    wanted = Import(file, "preference")
    (tmp_path / "parts").mkdir()
    store = Store(tmp_path / "parts")
    open_run(store)
    commit = store.commit

    def stops(rows: Any, **key: Any) -> Any:
        if key["chunk"] == 2:
            raise KeyboardInterrupt
        return commit(rows, **key)

    monkeypatch.setattr(store, "commit", stops)
    with pytest.raises(KeyboardInterrupt):
        write(store, wanted, check(wanted))
    store.close()
    assert take_in(tmp_path / "parts", file, "preference")["imported"] == {"preference": 25}
    for table in ("prompt", "completion", "pair", "judgement", "feedback"):
        ids = f"SELECT id::VARCHAR AS id FROM {table} ORDER BY id"
        assert read_rows(tmp_path / "parts", ids) == read_rows(tmp_path / "whole", ids)


# -- what is refused before a row is written


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        ("preference", '{"prompt": "a", "chosen": "b"}\n', "f.jsonl:1: rejected must be one answer"),
        ("preference", '{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "the same text"),
        ("preference", '{"prompt": "a"\n', "f.jsonl:1: no valid JSON"),
        ("preference", '{"prompt": "a", "prompt": "b"}\n', "'prompt' is given twice"),
        ("preference", "[1]\n", "must be an object, not list"),
        ("preference", '{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}\n', "surrogate"),
        ("preference", "", "holds no rows"),
        ("trl", '{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}\n',
         "chosen is a turn of user"),
        ("trl", '{"messages": [{"role": "user", "content": "b"}]}\n', "must end with"),
        ("openai", '{"input": {"messages": [], "tools": [1]}}\n', "input has tools"),
        ("thumbs", '{"prompt": "a", "response": "b", "thumb": "maybe"}\n', "thumb is 'maybe'"),
        ("rating", '{"prompt": "a", "response": "b", "rating": 7}\n', "not from 0 to 1; say the scale"),
        ("rating", '{"prompt": "a", "response": "b", "rating": NaN}\n', "NaN is no JSON number"),
        ("rating", '{"prompt": "a", "response": "b", "rating": 1e999}\n', "too large a number"),
        ("parquet", "PAR1", "f.jsonl"),
        ("datasets", "{}", "it reads a folder"),
        ("nope", "{}", "there is no format 'nope'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_whole(tmp_path: Path, form: str, text: str, told: str) -> None:
    """What is wrong is told with its line, exit code 2, and there is no run afterwards."""
    file = tmp_path / "f.jsonl"
    file.write_text(text, "utf-8")
    command = ["import", "r", str(file), "--format", form, "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, BadInput)
    assert told in str(done.exception)
    assert not (tmp_path / "runs" / "r").exists()


def test_all_wrong_lines_are_told_in_one_go(tmp_path: Path) -> None:
    """Thirty wrong lines are twenty messages, a count, and that nothing was imported."""
    file = tmp_path / "f.jsonl"
    file.write_text('{"prompt": "a"}\n' * 30, "utf-8")
    with pytest.raises(BadInput) as error:
        check(Import(file, "preference"))
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines[:20]] == ["f.jsonl"] * 20
    assert lines[20:] == ["and 10 more lines are wrong", "nothing was imported"]


def test_a_source_cannot_pass_for_a_judge_of_the_recipe(tmp_path: Path) -> None:
    """A file called like a judge that has judged here is refused: its labels would stand in that column."""
    folder = make_run(tmp_path / "r", rounds=1)
    judge = read_rows(folder, "SELECT min(judge) AS judge FROM judgement")[0]["judge"]
    file = write_rows(tmp_path / "p.jsonl", [PAIR])
    with pytest.raises(BadInput, match=f"{judge} is a judge of this run; give another name"):
        take_in(folder, file, "preference", source=judge)


def test_a_run_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """While a run holds its lock, an import waits for no one: it says so and changes nothing."""
    folder = make_run(tmp_path / "r", rounds=1)
    file = write_rows(tmp_path / "p.jsonl", [PAIR])
    before = (folder / "store.duckdb").read_bytes()
    command = ["import", "r", str(file), "--format", "preference", "--runs", str(tmp_path)]
    with only_one(folder):
        done = CliRunner().invoke(app, command)
    assert done.exit_code != 0
    assert "is being run by another process" in str(done.exception)
    assert (folder / "store.duckdb").read_bytes() == before


def test_the_commands_say_what_happened(tmp_path: Path) -> None:
    """Import, export and contamination each end with counts that a person can read."""
    file = write_rows(tmp_path / "p.jsonl", [PAIR, PAIR])
    runs = ["--runs", str(tmp_path)]
    done = CliRunner().invoke(app, ["import", "r", str(file), "--format", "preference", *runs])
    assert "1 preference of 2 records are in r, as import" in done.output
    assert "1 left out: there already" in done.output
    out = tmp_path / "out.jsonl"
    done = CliRunner().invoke(app, ["export", "r", "--format", "trl", "--out", str(out), *runs])
    assert "1 pairs in" in done.output
    assert len(out.read_text("utf-8").splitlines()) == 1
    done = CliRunner().invoke(app, ["contamination", "r", *runs])
    assert "0 of 1 train prompts overlap" in done.output
