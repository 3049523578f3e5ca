"""The notebook: every question that it asks is answered by the store of a quickstart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "ten_questions.ipynb"
QUESTIONS = 10


def _notebook() -> nbformat.NotebookNode:
    read: Callable[..., nbformat.NotebookNode] = nbformat.read
    return read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """Run the notebook on the store of a fresh quickstart with the toy."""
    runs = tmp_path_factory.mktemp("runs")
    program = str(Path(sys.executable).with_name("redistill"))
    command = [program, "quickstart", "--student", "tiny", "--runs", str(runs)]
    subprocess.run(command, check=True, capture_output=True, timeout=400)
    [run] = runs.iterdir()
    notebook = _notebook()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDISTILL_RUN", str(run))
        where = {"metadata": {"path": str(runs)}}
        NotebookClient(notebook, timeout=300, resources=where).execute()
    return notebook


def test_every_question_is_answered(answered: nbformat.NotebookNode) -> None:
    """Each cell of code gives rows or text, and no command of it fails."""
    cells = [cell for cell in answered.cells if cell.cell_type == "code"]
    assert len(cells) >= QUESTIONS
    for cell in cells:
        [shown] = [out for out in cell.outputs if out.get("name") != "stderr"][-1:]
        text = shown.get("text") or shown["data"]["text/plain"]
        assert "Empty DataFrame" not in text, cell.source
        assert "redistill: " not in text, text


def test_the_notebook_asks_ten_questions(answered: nbformat.NotebookNode) -> None:
    """Ten headings, each a question with its number."""
    titles = [c.source.partition("\n")[0] for c in answered.cells if c.source.startswith("## ")]
    assert [int(t.split(".")[0].removeprefix("## ")) for t in titles] == [*range(1, QUESTIONS + 1)]
    assert all(t.endswith("?") for t in titles)


def test_the_judge_that_likes_length_is_found_out(answered: nbformat.NotebookNode) -> None:
    """The planted judge of round 2 prefers the longer answer always; the verifier does not."""
    [cell] = [c for c in answered.cells if "length_bias" in c.source]
    text = cell.outputs[-1]["data"]["text/plain"]
    rows = {line.split()[1]: line for line in text.splitlines()[1:] if line.strip()}
    assert " 1.0" in rows["longest"]
    assert " 1.0 " not in rows["verifier"]


def test_the_shipped_notebook_has_its_answers() -> None:
    """What is committed was run from top to bottom on a quickstart with SmolLM2."""
    notebook = _notebook()
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    assert not any(
        out.output_type == "error" for c in notebook.cells for out in c.get("outputs", ())
    )
