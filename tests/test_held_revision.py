"""Revisions by name: champion, initial, previous, or the beginning of an id."""

from __future__ import annotations

from pathlib import Path

import pytest

from redistill.agents.held_revision import find_revision, speaking
from redistill.errors import BadInput, StoreProblem, WrongWeights
from redistill.policies.exporting import refuse
from redistill.store import imports
from redistill.store.query import read_rows
from redistill.store.store import Store
from redistill.testing.fakes import FakeStudent
from redistill.testing.small_run import make_run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose first round was promoted, and no other one."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", rounds=3)


def decided(run: Path) -> list[dict[str, str]]:
    """Return what the gate decided, round by round."""
    return read_rows(run, "SELECT champion, challenger, decision FROM decision ORDER BY round")


def test_names_stand_for_what_the_decisions_say(small: Path, tmp_path: Path) -> None:
    """The champion is the last promoted one; `previous` the one with which the last decided round began."""
    rounds = decided(small)
    promoted = [row["challenger"] for row in rounds if row["decision"] == "promoted"]
    assert find_revision(small, "champion").revision.id == promoted[-1]
    assert find_revision(small, "initial").revision.id == rounds[0]["champion"]
    assert find_revision(small, "previous").revision.id == rounds[-1]["champion"]
    one = make_run(tmp_path / "one", rounds=1)
    assert find_revision(one, "previous").revision.id == find_revision(one, "initial").revision.id
    none = make_run(tmp_path / "none", rounds=0, finished=False)
    names = {find_revision(none, name).revision.id for name in ("champion", "initial", "previous")}
    assert len(names) == 1


def test_an_id_by_its_beginning(small: Path) -> None:
    """In either case, also of a revision that was sent back; too short, unknown and shared ones are told."""
    rejected = next(row["challenger"] for row in decided(small) if row["decision"] == "rejected")
    found = find_revision(small, rejected[:6].upper())
    assert found.revision.id == rejected
    assert found.line == f"revision {rejected[:8]} of small"
    for called in ("abc", "zzzz", "", "champions"):
        with pytest.raises(BadInput, match=r"--revision.*champion, initial, previous"):
            find_revision(small, called)


def test_what_has_no_weights_is_told(small: Path, tmp_path: Path) -> None:
    """A run of imports, a run that is not there, and a folder that is gone."""
    (tmp_path / "imports").mkdir()
    store = Store(tmp_path / "imports")
    imports.open_run(store)
    store.close()
    with pytest.raises(BadInput, match="imports has no weights"):
        find_revision(tmp_path / "imports", "champion")
    with pytest.raises(BadInput, match="no run 'nothing'"):
        find_revision(tmp_path / "nothing", "champion")
    gone = make_run(tmp_path / "gone", rounds=1)
    folder = find_revision(gone, "champion").revision.folder
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(StoreProblem, match=r"it has no revision\.json"):
        find_revision(gone, "champion")


def test_a_student_of_a_plugin_is_not_taken_away(small: Path) -> None:
    """Only its own policy knows how it is written."""
    with pytest.raises(BadInput, match="no model of transformers"):
        refuse(find_revision(small, "champion").revision, "hf")


def test_weights_that_do_not_answer_are_not_believed(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that holds something else than it was told to load speaks for nobody."""
    named = find_revision(small, "champion")
    monkeypatch.setattr(FakeStudent, "fingerprint", lambda _: "something else")
    with pytest.raises(WrongWeights, match="does not answer here as it did"):
        speaking(named)
