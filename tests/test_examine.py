"""`redistill doctor`: it finds what is wrong, and says nothing is wrong where nothing is."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import duckdb
import pytest
from rich.console import Console

from redistill.errors import BadInput
from redistill.report.examine import examine, exit_code, show_examination
from redistill.testing.small_run import make_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds."""
    return make_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def damage(whole: Path, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return a function that runs SQL on a copy of the run and gives the names of what is bad."""

    def damaged(sql: str) -> dict[str, str]:
        folder = tmp_path / "copy"
        shutil.copytree(whole, folder)
        connection = duckdb.connect(str(folder / "store.read.duckdb"))
        connection.execute(sql)
        connection.close()
        return bad(folder)

    return damaged


def bad(folder: Path) -> dict[str, str]:
    """Return the bad checks of a run by name."""
    found = examine(folder, folder / "cache")
    return {check["name"]: check["detail"] for check in found if check["state"] == "bad"}


def test_a_whole_run_has_nothing_bad(whole: Path) -> None:
    """No check cries wolf; each part of a run was looked at."""
    assert bad(whole) == {}
    names = [check["name"] for check in examine(whole, whole / "cache")]
    for name in (
        "snapshot",
        "recipe",
        "unique rows",
        "parents",
        "ledger",
        "splits",
        "champion",
        "revisions",
    ):
        assert name in names


def test_an_unfinished_run_and_one_with_failed_training_are_whole(tmp_path: Path) -> None:
    """What has not happened yet, and a training that published nothing, are no faults."""
    assert bad(make_run(tmp_path / "a", rounds=0, finished=False)) == {}
    assert bad(make_run(tmp_path / "b", finished=False, failed_round=2)) == {}


def test_a_row_that_is_there_twice_is_found(damage: Callable[[str], dict[str, str]]) -> None:
    """No index keeps rows unique, so doctor must."""
    found = damage("INSERT INTO judgement SELECT * FROM judgement LIMIT 3")
    assert found["unique rows"] == "keys that are there twice: judgement: 3"
    assert "judgement" in found["ledger"]


def test_a_row_without_its_parent_is_found(damage: Callable[[str], dict[str, str]]) -> None:
    """A pair whose chosen answer is gone names an answer that nobody can read."""
    found = damage("DELETE FROM completion WHERE id IN (SELECT chosen_id FROM pair LIMIT 1)")
    assert "pair.chosen_id: 1" in found["parents"]
    assert "judgement.completion_id: 1" in found["parents"]
    assert "completion" in found["ledger"]


def test_a_prompt_in_two_splits_is_found(damage: Callable[[str], dict[str, str]]) -> None:
    """The same question in train and test makes the gain worthless."""
    found = damage(
        "UPDATE prompt SET messages_hash = (SELECT min(messages_hash) FROM prompt WHERE split = 'train') "
        "WHERE id = (SELECT min(id) FROM prompt WHERE split = 'test')"
    )
    assert "1 questions are in two splits" in found["splits"]


def test_a_training_row_of_a_held_out_prompt_is_found(
    damage: Callable[[str], dict[str, str]],
) -> None:
    """The row says `train`, and the prompt that it names does not."""
    found = damage(
        "UPDATE prompt SET split = 'heldout' WHERE id = (SELECT prompt_id FROM training_row LIMIT 1)"
    )
    assert "training rows are held out" in found["splits"]


def test_a_second_champion_is_found(damage: Callable[[str], dict[str, str]]) -> None:
    """A round that did not start from the champion has another one."""
    found = damage("UPDATE round SET champion = (SELECT student FROM run) WHERE round = 2")
    assert found["champion"] == "round 2 did not start from the champion"


def test_a_round_decided_twice_is_found(damage: Callable[[str], dict[str, str]]) -> None:
    """Two decisions of one round cannot both hold."""
    found = damage(
        "INSERT INTO decision SELECT * REPLACE (uuid() AS id) FROM decision WHERE round = 1"
    )
    assert "round 1 was decided twice" in found["champion"]


def test_changed_weights_are_found(whole: Path, tmp_path: Path) -> None:
    """A file that is not what was published is named, and the command ends with an exit code."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    weights = sorted(folder.glob("revisions/*/model.safetensors"))[0]
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    found = bad(folder)
    assert len(found) == 1
    assert "SHA-256 differs" in next(iter(found.values()))


def test_a_lost_revision_is_found(whole: Path, tmp_path: Path) -> None:
    """A folder that is gone is one bad check, and the others are still read."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    lost = sorted(folder.glob("revisions/*/model.safetensors"))[0].parent
    shutil.rmtree(lost)
    assert list(bad(folder)) == [f"revision {lost.name[:8]}"]


def test_changed_inputs_are_found(whole: Path, tmp_path: Path) -> None:
    """A run whose prompts were edited is not the run that was made."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    prompts = folder / "inputs" / "0-prompts.jsonl"
    prompts.write_text(prompts.read_text("utf-8").replace("France", "Gaul"), "utf-8")
    assert list(bad(folder)) == ["recipe"]


def test_a_damaged_store_is_one_bad_check(whole: Path, tmp_path: Path) -> None:
    """A file that is no database ends the examination with a line, not with a traceback."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "store.read.duckdb").write_bytes(b"not a database, but long enough " * 500)
    assert list(bad(folder)) == ["snapshot"]


def test_a_run_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    """A wrong name is the user's mistake."""
    with pytest.raises(BadInput, match="no run"):
        examine(tmp_path / "nowhere", tmp_path)


def test_a_package_outside_its_range_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that was not tried is named with the range that is wanted."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "9.9.9" if n == "duckdb" else real(n))
    [check] = [c for c in examine(None, Path("/nowhere")) if c["name"] == "duckdb"]
    assert check["state"] == "bad"
    assert "9.9.9, wanted" in check["detail"]


def test_without_the_training_packages_the_core_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query and report need no torch: its absence is a note with what to install."""
    real = metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    [check] = [c for c in examine(None, Path("/nowhere")) if c["name"] == "torch"]
    assert check["state"] == "note"
    assert "redistill[train]" in check["fix"]


def test_offline_mode_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is asked; only what the environment says is told."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [check] = [c for c in examine(None, Path("/nowhere")) if c["name"] == "Hugging Face hub"]
    assert check["state"] == "note"


def test_the_examination_is_shown_with_what_to_do() -> None:
    """Each check is a line, a fix stands below it, and the bad ones are counted."""
    out = io.StringIO()
    checks = [
        {"name": "memory", "state": "ok", "detail": "9 GB", "fix": ""},
        {"name": "store", "state": "bad", "detail": "twice \x1b[31m", "fix": "restore it"},
    ]
    show_examination(Console(file=out, width=80), checks)
    text = out.getvalue()
    assert "restore it" in text
    assert "2 checks, 1 bad" in text
    assert "\x1b[31m" not in text


SECOND: dict[str, tuple[str, str, str]] = {
    "a compared answer that is not there": (
        "parents",
        "judgement.presented: 1",
        (
            "INSERT INTO judgement SELECT * REPLACE (uuid() AS id, 'compare' AS mode, NULL AS completion_id, "
            "[completion_id, uuid()] AS presented, [1, 2] AS ranks) FROM judgement LIMIT 1"
        ),
    ),
    "a vote without its verdict": (
        "parents",
        "vote.judgement_id: 1",
        "INSERT INTO vote VALUES (uuid(), 1, 'j', 'r', 'ok', 0.5, 1)",
    ),
    "feedback on nothing": (
        "parents",
        "feedback.completion_id: 1; feedback.other_id: 1",
        (
            "INSERT INTO feedback SELECT uuid(), 0, 's', id, 'edit', uuid(), uuid(), NULL, NULL, NULL, 's', "
            "'l', now() FROM prompt LIMIT 1"
        ),
    ),
    "a distribution of nothing": (
        "parents",
        "token_distribution.completion_id: 1",
        "INSERT INTO token_distribution VALUES (uuid(), 1, 's', 'r', '', [], NULL, NULL, now())",
    ),
    "a training row without its pair": (
        "parents",
        "training_row.pair_id: ",
        "UPDATE training_row SET pair_id = uuid()",
    ),
    "a training row without its job": (
        "parents",
        "training_row.training_run_id: ",
        "UPDATE training_row SET training_run_id = uuid()",
    ),
    "a rewrite of a critique that is not there": (
        "parents",
        "completion.critique_id: 1",
        "UPDATE completion SET critique_id = uuid() WHERE id = (SELECT min(id) FROM completion)",
    ),
    "a text that was edited": (
        "texts",
        "1 texts are not what their hash names",
        "UPDATE content SET text = text || '!' WHERE rowid = (SELECT max(rowid) FROM content)",
    ),
    "a text that is gone": (
        "texts",
        "prompt.messages_hash: 1 have no text",
        "DELETE FROM content WHERE hash = (SELECT min(messages_hash) FROM prompt)",
    ),
}


@pytest.mark.parametrize("name", SECOND)
def test_what_the_widened_schema_may_hold_wrong_is_found(
    damage: Callable[[str], dict[str, str]], name: str
) -> None:
    """Every edge between two rows is looked at, and every text is compared with its hash."""
    check, detail, sql = SECOND[name]
    assert detail in damage(sql)[check]


def test_a_forgotten_text_and_an_unknown_revision_are_no_faults(
    damage: Callable[[str], dict[str, str]],
) -> None:
    """A blanked text keeps its hash; an imported answer has no revision."""
    found = damage(
        "UPDATE content SET text = '', forgotten_at = now() WHERE rowid = (SELECT max(rowid) FROM content);"
        "UPDATE completion SET revision = NULL, source = 's' WHERE id = (SELECT min(id) FROM completion)"
    )
    assert found == {}


def test_a_live_store_that_lacks_what_the_snapshot_has_is_found(
    whole: Path, tmp_path: Path
) -> None:
    """The snapshot is never ahead of the live store, unless that has lost rows."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    with duckdb.connect(str(folder / "store.duckdb")) as connection:
        connection.execute("DELETE FROM write_batch WHERE round = 2")
    found = bad(folder)
    assert list(found) == ["live store"]
    assert "that the live store lacks" in found["live store"]


def test_what_belongs_to_nothing_is_noted(whole: Path, tmp_path: Path) -> None:
    """Orphans and old copies are named with what to do; they are no faults."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "jobs/7").mkdir(parents=True)
    (folder / "revisions/.staging-round-7").mkdir()
    (folder / "store.duckdb.bak-v1").touch()
    (folder / "store.read.duckdb.tmp").touch()
    notes = {c["name"]: c for c in examine(folder, folder / "cache") if c["state"] == "note"}
    assert {"orphan jobs", "orphan revisions", "old copies", "half files"} <= set(notes)
    assert ".staging-round-7" in notes["orphan revisions"]["detail"]
    assert all(note["fix"] for name, note in notes.items() if note.get("of") == "run")
    assert bad(folder) == {}


def test_the_exit_code_tells_machine_and_run_apart() -> None:
    """2: the run is not what it should be; 4: the machine is not; a note is 0."""
    note = {"name": "x", "state": "note", "detail": "", "fix": ""}
    machine, run = note | {"state": "bad"}, note | {"state": "bad", "of": "run"}
    assert [exit_code([note]), exit_code([note, machine]), exit_code([machine, run])] == [0, 4, 2]
