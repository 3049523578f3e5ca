"""The answer to a query in its four shapes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from redistill.errors import BadInput
from redistill.report.rows import MOST_ROWS, as_csv_text, as_json_text, show_rows
from redistill.store.query import query
from redistill.testing.small_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", rounds=1)


def show(
    table: pa.Table, *, as_json: bool = False, csv: bool = False, parquet: Path | None = None
) -> str:
    """Return what a terminal, which is none, gets."""
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=False)
    show_rows(console, table, as_json=as_json, csv=csv, parquet=parquet)
    return out.getvalue()


def test_ids_and_times_are_text_in_json(run: Path) -> None:
    """A UUID has its dashes, a time is ISO 8601 with its zone, a list is a list."""
    sql = "SELECT id, created_at, tags FROM prompt WHERE split = 'test' LIMIT 1"
    [row] = json.loads(show(query(run, sql).table, as_json=True))
    assert len(row["id"]) == 36
    assert row["created_at"].endswith("+00:00")
    assert row["tags"][0].startswith("form:")


def test_json_has_no_nan(run: Path) -> None:
    """What JSON has no number for is null, so that every reader can read it."""
    sql = "SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b, 1.5 AS c, NULL AS d, ['nan'::DOUBLE] AS e"
    text = show(query(run, sql).table, as_json=True)
    [row] = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert row == {"a": None, "b": None, "c": "1.5", "d": None, "e": [None]}


def test_two_columns_of_one_name_are_both_kept() -> None:
    """No value is lost because another has the same name."""
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"])
    assert json.loads(as_json_text(table)) == [{"n": 1, "n_2": 2}]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"])
def test_a_text_cell_is_no_formula(text: str) -> None:
    """A spreadsheet runs no cell that a model wrote; the apostrophe is all that is added."""
    rows = list(csv.reader(io.StringIO(as_csv_text(pa.table({"answer": [text]})), newline="")))
    assert rows == [["answer"], ["'" + text]]


def test_a_negative_number_stays_a_number_in_csv() -> None:
    """Only text is guarded: -0.5 is a number, and a spreadsheet reads it as one."""
    assert as_csv_text(pa.table({"delta": [-0.5]})) == "delta\r\n-0.5\r\n"


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_csv_gives_every_text_back(texts: list[str]) -> None:
    """Commas, quotes and line breaks survive; only the guard's apostrophe comes before some."""
    table = pa.table({"a": texts, "b": ["end"] * len(texts)})
    rows = list(csv.reader(io.StringIO(as_csv_text(table), newline="")))[1:]
    assert [row[1] for row in rows] == ["end"] * len(texts)
    assert [row[0].removeprefix("'") for row in rows] == [text.removeprefix("'") for text in texts]


def test_a_terminal_gets_no_control_characters() -> None:
    """An escape sequence in an answer or a column's name is shown, not obeyed."""
    text = show(pa.table({"a\x1b[31m": ["\x1b]0;owned\x07 [bold]x[/bold] \u202e"]}))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b]0;owned\\x07 [bold]x[/bold]" in text


def test_a_long_table_says_how_long_it_is() -> None:
    """At most 200 rows are shown, and the count is that of all."""
    text = show(pa.table({"n": list(range(1000))}))
    assert f"{MOST_ROWS} of 1000 rows are shown" in text
    assert "199" in text
    assert " 200 " not in text


def test_a_long_cell_is_cut_and_says_so() -> None:
    """A reader of the table is told that there is more."""
    text = show(pa.table({"answer": ["a" * 5000]}))
    assert "1 long cells are cut" in text
    assert text.count("a") < 400


def test_parquet_is_written_whole(run: Path, tmp_path: Path) -> None:
    """The file holds the same rows, and nothing is left beside it."""
    table = query(run, "SELECT id, answer, tokens FROM answers").table
    show(table, parquet=tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").num_rows == table.num_rows
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_parquet_into_a_folder_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    """A wrong path is one line, and leaves nothing behind."""
    with pytest.raises(BadInput, match="cannot be written"):
        show(pa.table({"n": [1]}), parquet=tmp_path / "no" / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_two_shapes_at_once_are_refused() -> None:
    """--json with --csv would have to leave one out."""
    with pytest.raises(BadInput, match="--json and --csv together"):
        show(pa.table({"n": [1]}), as_json=True, csv=True)


def test_a_statement_without_rows_says_so(run: Path) -> None:
    """No empty box is drawn; JSON is an empty list."""
    assert "no rows" in show(pa.table({}))
    assert json.loads(show(query(run, "SELECT 1 AS a WHERE false").table, as_json=True)) == []
