"""Export: what goes out, in which shape, what never does, and that it comes back the same."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import store_rows as rows_of
from exchange import HOSTILE, conversations, pair_rows, put_out, same_bytes, take_in, write_rows
from hypothesis import example, given, settings
from hypothesis import strategies as st

import redistill
from redistill.errors import BadInput, EnvironmentProblem
from redistill.hashing import file_sha256
from redistill.store.arrow import fingerprint, read_table
from redistill.store.exports import export_records
from redistill.store.format import BUILTINS, find_format
from redistill.store.store import Store
from redistill.testing.small_run import make_run

JSONL = ("trl", "openai", "llama-factory", "axolotl", "ultrafeedback")
WHOLE = ("parquet", "datasets")
ORIGIN = ["run", "round", "step", "id", "prompt_id", "completion_id", "other_id"]
ASKED = {"role": "user", "content": "How?"}
ONE = {
    "prompt": [{"role": "system", "content": "Be brief."}, ASKED],
    "chosen": [{"role": "assistant", "content": "So."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run with pairs of two rounds."""
    return make_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """Make a run of one imported pair."""
    take_in(tmp_path / "one", write_rows(tmp_path / "one.jsonl", [ONE]), "trl", source="s")
    return tmp_path / "one"


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


# -- the shapes


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("trl", ONE),
        (
            "openai",
            {
                "input": {"messages": ONE["prompt"]},
                "preferred_output": ONE["chosen"],
                "non_preferred_output": ONE["rejected"],
            },
        ),
        (
            "llama-factory",
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "How?"},
                ],
                "chosen": {"from": "gpt", "value": "So."},
                "rejected": {"from": "gpt", "value": "No."},
            },
        ),
        (
            "axolotl",
            {"messages": ONE["prompt"], "chosen": ONE["chosen"][0], "rejected": ONE["rejected"][0]},
        ),
    ],
)
def test_the_shape_of_a_pair(one: Path, tmp_path: Path, form: str, row: dict[str, Any]) -> None:
    """A pair has the field names that the trainer of the format reads."""
    put_out(one, tmp_path / "out.jsonl", form)
    assert _lines(tmp_path / "out.jsonl") == [row]


def test_the_shape_of_a_binarized_pair(small: Path, tmp_path: Path) -> None:
    """The prompt stands in both answers, and the judge's values are on the scale from 1 to 10."""
    put_out(small, tmp_path / "out.jsonl", "ultrafeedback")
    row = _lines(tmp_path / "out.jsonl")[0]
    assert list(row) == [
        "prompt", "prompt_id", "chosen", "rejected", "score_chosen", "score_rejected",
    ]  # fmt: skip
    assert (
        row["chosen"][:-1] == row["rejected"][:-1] == [{"role": "user", "content": row["prompt"]}]
    )
    assert (row["score_chosen"], row["score_rejected"]) == (10.0, 1.0)


def test_the_shape_of_ultrafeedbacks_ratings(tmp_path: Path) -> None:
    """One row a prompt, with all its answers; an aspect is an annotation, the whole the overall score."""
    file = tmp_path / "r.csv"
    file.write_text(
        "prompt,response,rating,aspect\nHow?,So.,5,honesty\nHow?,So.,3,\nHow?,No.,1,\n", "utf-8"
    )
    take_in(tmp_path / "run", file, "rating", scale=(1.0, 5.0))
    put_out(tmp_path / "run", tmp_path / "out.jsonl", "ultrafeedback", what="ratings")
    [row] = _lines(tmp_path / "out.jsonl")
    assert row["instruction"] == "How?"
    found = {c["response"]: (c["overall_score"], c["annotations"]) for c in row["completions"]}
    assert found == {
        "So.": (5.5, {"honesty": {"Rating": "5", "Rationale": ""}}),
        "No.": (1.0, {}),
    }


def test_what_a_trainer_must_be_told(one: Path, tmp_path: Path) -> None:
    """LLaMA-Factory and axolotl get the entry to paste, with the name of the file."""
    notes = {f: put_out(one, tmp_path / f"{f}.jsonl", f)["note"] for f in JSONL}
    entry = json.loads(notes["llama-factory"].partition("\n")[2])
    assert entry["llama-factory"]["ranking"] is True
    assert entry["llama-factory"]["file_name"] == "llama-factory.jsonl"
    assert "type: chat_template.default" in notes["axolotl"]
    assert notes["trl"] == notes["openai"] == ""


def test_a_datasets_folder_opens(small: Path, tmp_path: Path) -> None:
    """`load_from_disk` gives the rows that the Parquet has, with prompt, chosen and rejected as turns."""
    datasets = pytest.importorskip("datasets", reason="needs redistill[train]")
    put_out(small, tmp_path / "folder", "datasets")
    put_out(small, tmp_path / "out.parquet", "parquet")
    found = datasets.load_from_disk(str(tmp_path / "folder"))
    assert found[:]["chosen"] == pq.read_table(tmp_path / "out.parquet")["chosen"].to_pylist()
    assert found[0]["chosen"][0]["role"] == "assistant"


# -- there and back


def _round_trip(folder: Path, form: str, **wanted: Any) -> tuple[Path, Path]:
    first, second = folder / f"{form}.a", folder / f"{form}.b"
    put_out(folder / "run", first, form, **wanted)
    take_in(folder / f"{form} run", first, form, keep_duplicates=True)
    put_out(folder / f"{form} run", second, form, **wanted)
    return first, second


def _content(path: Path, form: str) -> pa.Table:
    if form == "parquet":
        table = pq.read_table(path)
    else:
        import datasets

        table = datasets.load_from_disk(str(path)).data.table
    return table.drop_columns(ORIGIN).to_pylist()


NUL = {
    "prompt": [{"role": "user", "content": "a\0b"}],
    "chosen": [{"role": "assistant", "content": "\0"}],
    "rejected": [{"role": "assistant", "content": "c\0"}],
}


@settings(max_examples=5, deadline=None)
@given(pair_rows())
@example([NUL])
def test_f23_exported_pairs_come_back_byte_for_byte(rows: list[dict[str, Any]]) -> None:
    """Export, import into a new run, export: the same bytes, for hostile texts, NUL too, in every format.

    The formats that say where a row stands differ in that alone.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_rows(folder / "pairs.jsonl", rows)
        take_in(folder / "run", file, "trl", keep_duplicates=True)
        for form in JSONL:
            first, second = _round_trip(folder, form)
            assert first.read_bytes() == second.read_bytes(), form
            if form == "trl":
                out = [json.loads(line) for line in first.read_text("utf-8").splitlines()]
                asked = [{key: row[key] for key in rows[0]} for row in out]
                assert sorted(map(json.dumps, asked)) == sorted(map(json.dumps, rows))
        first, second = _round_trip(folder, "parquet")
        assert _content(first, "parquet") == _content(second, "parquet")


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(conversations(), HOSTILE), min_size=1, max_size=5))
def test_exported_demonstrations_come_back_byte_for_byte(
    found: list[tuple[list[dict[str, str]], str]],
) -> None:
    """The same law for demonstrations."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"messages": [*asked, {"role": "assistant", "content": t}]} for asked, t in found]
        take_in(folder / "run", write_rows(folder / "d.jsonl", rows), "trl", keep_duplicates=True)
        for form in ("trl", "openai", "llama-factory", "axolotl"):
            first, second = _round_trip(folder, form, what="selections")
            assert first.read_bytes() == second.read_bytes(), form
        first, second = _round_trip(folder, "parquet", what="selections")
        assert _content(first, "parquet") == _content(second, "parquet")


@pytest.mark.parametrize("form", JSONL)
def test_a_trained_runs_pairs_come_back_without_any_option(
    small: Path, tmp_path: Path, form: str
) -> None:
    """What a loop made goes through a file and a run of imports unchanged, duplicates or not."""
    put_out(small, tmp_path / "a", form)
    take_in(tmp_path / "new", tmp_path / "a", form)
    put_out(tmp_path / "new", tmp_path / "b", form)
    assert same_bytes(tmp_path / "a", tmp_path / "b")


def test_a_datasets_folder_comes_back(small: Path, tmp_path: Path) -> None:
    """A folder of datasets holds after import and export what it held."""
    pytest.importorskip("datasets", reason="needs redistill[train]")
    put_out(small, tmp_path / "a", "datasets")
    take_in(tmp_path / "new", tmp_path / "a", "datasets", keep_duplicates=True)
    put_out(tmp_path / "new", tmp_path / "b", "datasets")
    before, after = (_content(tmp_path / x, "datasets") for x in "ab")
    for row in (*before, *after):
        row.pop("source"), row.pop("licence"), row.pop("tags")
    assert before == after


@pytest.mark.parametrize("what", ["thumbs", "ratings"])
def test_thumbs_and_ratings_come_back(tmp_path: Path, what: str) -> None:
    """Ratings with aspects, remarks and raw numbers, and thumbs, survive Parquet."""
    file = tmp_path / "f.csv"
    key, values = ("rating", (1, 3)) if what == "ratings" else ("thumb", ("up", "down"))
    lines = [f'{n},"a, {n}",{v},ann,"why?"' for n, v in enumerate(values)]
    file.write_text("\n".join([f"prompt,response,{key},author,remark", *lines]) + "\n", "utf-8")
    take_in(
        tmp_path / "run", file, what.removesuffix("s") if what == "ratings" else what, scale=(1, 3)
    )
    first, second = _round_trip(tmp_path, "parquet", what=what)
    assert len(_content(first, "parquet")) == 2
    assert _content(first, "parquet") == _content(second, "parquet")


# -- what never goes out


def test_held_out_rows_never_go_out(tmp_path: Path) -> None:
    """A pair whose prompt or answers are of another split stays, however it came to be there."""
    store = Store(tmp_path)
    store.commit(rows_of.opening({"p": "train", "q": "heldout"}), round=0, step="begin", chunk=0)
    answers = [
        rows_of.completion("a", "yes"),
        rows_of.completion("b", "no"),
        rows_of.completion("c", "c", split="test"),
        rows_of.completion("d", "d", split="heldout", prompt_id=rows_of.identifier("q")),
        rows_of.completion("e", "e", prompt_id=rows_of.identifier("q")),
    ]
    ids = {w: rows_of.identifier(w) for w in "abcde"}
    pairs = [
        rows_of.pair(),
        rows_of.pair(id=rows_of.identifier("2"), rejected_id=ids["c"]),
        rows_of.pair(id=rows_of.identifier("3"), chosen_id=ids["d"], rejected_id=ids["e"],
                     prompt_id=rows_of.identifier("q")),
    ]  # fmt: skip
    kept = [
        {"id": rows_of.identifier(f"s{w}"), "round": 1, "step": "select", "split": "train",
         "prompt_id": a["prompt_id"], "completion_id": a["id"], "position": 0, "weight": 1.0,
         "created_at": rows_of.WHEN}
        for w, a in zip("abcde", answers, strict=True)
    ]  # fmt: skip
    texts = rows_of.texts("yes", "no", "c", "d", "e")
    store.commit({"completion": answers, "content": texts, "pair": pairs, "selection": kept,
                  "judgement": [rows_of.judgement(w, 1.0) for w in "abcde"]},
                 round=1, step="sample", chunk=0)  # fmt: skip
    store.close()
    put_out(tmp_path, tmp_path / "pairs", "trl")
    [row] = _lines(tmp_path / "pairs")
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("yes", "no")
    put_out(tmp_path, tmp_path / "kept", "trl", what="selections")
    assert {r["completion"][0]["content"] for r in _lines(tmp_path / "kept")} == {"yes", "no"}
    put_out(tmp_path, tmp_path / "ratings", "parquet", what="ratings")
    said = pq.read_table(tmp_path / "ratings")["completion"].to_pylist()
    assert sorted(turns[0]["content"] for turns in said) == ["no", "yes"]


def test_forgotten_texts_stay_and_are_counted(tmp_path: Path) -> None:
    """A pair whose text was blanked is left out, and the export says so."""
    folder = make_run(tmp_path / "r")
    before = put_out(folder, tmp_path / "a", "parquet")["rows"]
    store = Store(folder)
    store.work(
        lambda c: c.execute(
            "UPDATE content SET text = '', forgotten_at = now() WHERE hash IN "
            "(SELECT text_hash FROM completion WHERE id = (SELECT min(chosen_id) FROM pair))"
        ).fetchall()
    )
    store.close()
    found = put_out(folder, tmp_path / "b", "parquet")
    assert found["left_out"]["a text was forgotten"] >= 1
    assert found["rows"] == before - found["left_out"]["a text was forgotten"]


def test_one_round_or_step_alone(small: Path, tmp_path: Path) -> None:
    """`round` and `step` narrow; nothing left is an error that says what was asked for."""
    counts = [put_out(small, tmp_path / f"{n}", "parquet", round=n)["rows"] for n in (1, 2)]
    assert sum(counts) == put_out(small, tmp_path / "all", "parquet")["rows"]
    assert min(counts) > 0
    with pytest.raises(BadInput, match="no pairs to export of round 1, step other"):
        put_out(small, tmp_path / "none", "trl", round=1, step="other")
    assert not (tmp_path / "none").exists()


# -- whole or not at all


def test_a_file_is_replaced_only_when_forced(small: Path, tmp_path: Path) -> None:
    """What is there stays; with force it is replaced, a folder too."""
    for form in ("trl", "datasets"):
        out = tmp_path / form
        put_out(small, out, form, round=1)
        before = out.read_bytes() if out.is_file() else sorted(f.name for f in out.iterdir())
        with pytest.raises(BadInput, match="exists; give another name, or --force"):
            put_out(small, out, form)
        now = out.read_bytes() if out.is_file() else sorted(f.name for f in out.iterdir())
        assert now == before
        put_out(small, out, form, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["datasets", "trl"]


def test_what_a_format_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    """Turns that do not alternate are refused by LLaMA-Factory's format, and kept by TRL's."""
    odd = {**ONE, "prompt": [ASKED, ASKED]}
    take_in(tmp_path / "run", write_rows(tmp_path / "odd.jsonl", [odd, ONE]), "trl")
    with pytest.raises(BadInput, match="1 of 2 rows do not fit: turns must alternate"):
        put_out(tmp_path / "run", tmp_path / "out", "llama-factory")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.jsonl", "run"]
    assert export_records(tmp_path / "run") == []
    put_out(tmp_path / "run", tmp_path / "out", "trl")


@pytest.mark.parametrize(
    ("form", "wanted", "told"),
    [
        ("nope", {}, "there is no format 'nope'; formats: axolotl"),
        (
            "openai",
            {"what": "ratings"},
            "openai cannot hold ratings; it holds pairs and selections",
        ),
        ("rating", {"what": "ratings"}, "it is for import"),
        ("trl", {"what": "all"}, "one of pairs, selections, thumbs, ratings"),
    ],
)
def test_a_wrong_wish_is_one_line(
    small: Path, tmp_path: Path, form: str, wanted: dict[str, Any], told: str
) -> None:
    """A wish that cannot be met says what could be."""
    with pytest.raises(BadInput, match=told) as error:
        put_out(small, tmp_path / "out", form, **wanted)
    assert len(str(error.value).splitlines()) == 1


def test_each_export_can_be_asked_what_it_saw(small: Path, tmp_path: Path) -> None:
    """The record names file, format, hash and rows, and finds the rows that hold an answer."""
    out = tmp_path / "out.jsonl"
    found = put_out(small, out, "trl")
    mine = [r for r in export_records(small) if r.record == found["record"]]
    assert mine[0].facts["sha256"] == file_sha256(out) == found["sha256"]
    seen = pq.read_table(small / found["record"]).to_pylist()
    wanted = seen[5]
    [again] = [
        r
        for r in export_records(small, frozenset([wanted["other_id"]]))
        if r.record == found["record"]
    ]
    assert wanted["row"] in again.rows
    assert len(_lines(out)) == found["rows"] == max(r["row"] for r in seen) + 1
    assert len(seen) == found["rows"] + found["merged"]


@pytest.mark.parametrize("name", BUILTINS)
def test_every_format_keeps_the_protocol(name: str) -> None:
    """A format carries its own name, a manual, and kinds that it reads and writes."""
    form = find_format(name)
    assert form.name == name
    assert (type(form).__doc__ or "").strip()
    assert set(form.writes) <= set(form.reads) != set()


# -- to a trainer without a copy


def _addresses(table: pa.Table) -> list[int]:
    return [
        buffer.address
        for column in table.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer is not None and buffer.size
    ]


def test_a_dataset_is_the_engines_own_buffers(small: Path) -> None:
    """`Dataset(table, fingerprint)` copies nothing: every buffer lies where the engine put it."""
    datasets = pytest.importorskip("datasets", reason="needs redistill[train]")
    sql = "SELECT prompt, answer, tokens FROM answers ORDER BY id"
    table = read_table(small, sql)
    made = datasets.Dataset(table, fingerprint=fingerprint(small, sql))
    assert _addresses(made.data.table) == _addresses(table) != []


def test_the_fingerprint_names_query_and_rows(tmp_path: Path) -> None:
    """Equal rows are known again; another query and another row are not."""
    pytest.importorskip("datasets", reason="needs redistill[train]")
    a, b = (make_run(tmp_path / n, rounds=1) for n in "ab")
    sql = "SELECT answer FROM answers"
    one, same = redistill.dataset(a, sql), redistill.dataset(a, sql)
    assert one._fingerprint == same._fingerprint
    assert one.num_rows == same.num_rows > 0
    assert redistill.dataset(a, "answers").num_rows == one.num_rows
    before = fingerprint(a, sql)
    assert before == fingerprint(b, sql)  # the same recipe, seed and rows, in another folder
    assert before != fingerprint(a, sql + " ")
    take_in(a, write_rows(tmp_path / "one.jsonl", [ONE]), "trl")
    assert fingerprint(a, sql) != before


def test_to_parquet_gives_the_rows_and_their_hash(small: Path, tmp_path: Path) -> None:
    """The file holds what the query gives, and its hash is what is returned."""
    out = tmp_path / "rows.parquet"
    digest = redistill.to_parquet(small, "SELECT id, answer FROM answers ORDER BY id", out)
    assert digest == file_sha256(out)
    assert pq.read_table(out).num_rows == read_table(small, "FROM answers").num_rows
    with pytest.raises(BadInput, match="SQL"):
        redistill.to_parquet(small, "SELECT nothing", tmp_path / "no")
    with pytest.raises(BadInput, match="2 statements"):
        redistill.to_parquet(small, "SELECT 1; SELECT 2", tmp_path / "no")
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_without_the_library_it_is_one_line(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no `datasets` is told what to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'redistill\[train\]'"):
        redistill.dataset(small, "answers")
    with pytest.raises(EnvironmentProblem, match=r"pip install 'redistill\[train\]'"):
        put_out(small, tmp_path / "out", "datasets")
    assert list(tmp_path.iterdir()) == []
