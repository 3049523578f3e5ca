"""A judge that is trained on a run's pairs: it prefers what they prefer, and is examined like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_every_trainer import PAIR, begin
from test_exam_command import command

from redistill.policies.revision import Revision
from redistill.store.query import read_rows

SETTINGS = "{reward: {learning_rate: 3.0e-4, batch_size: 8, micro_batch: 8, steps: 40}}"


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny student with right and wrong answers in pairs."""
    return begin(tmp_path_factory.mktemp("paired"), PAIR, "dpo", steps=1)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command and read what it prints as JSON."""
    code, out, err = command(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_it_is_trained_recorded_and_examined(
    paired: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rewards part the pairs that it learned; its folder is a revision, an event names it, the exam takes it."""
    where = ("--runs", str(paired.parent))
    found = told(capsys, "judge", "train", paired.name, "--trainer", SETTINGS, *where)
    measured = {
        name: [m["value"] for m in found["metrics"] if m["name"] == name]
        for name in ("loss", "rewards/accuracies")
    }
    assert sum(measured["rewards/accuracies"][-5:]) / 5 > 0.9
    assert sum(measured["loss"][-5:]) / 5 < 0.6 * measured["loss"][0]
    [event] = read_rows(paired, "SELECT detail FROM event WHERE kind = 'judge_trained'")
    folder = paired / json.loads(event["detail"])["judge"]
    revision = Revision.read(folder)
    revision.verify_files()
    assert revision.facts()["makes"] == "judge"
    assert found["judge"] == f"{{reward_model: {{model: {folder}}}}}"
    labelled = tmp_path / "pairs.jsonl"
    labelled.write_text("\n".join(map(json.dumps, _labelled(paired))), "utf-8")
    exam = told(capsys, "judge", "admit", found["judge"], "--pairs", str(labelled))
    assert exam["slices"]["pairs"]["accuracy"] > 0.9
    # A judge of right spelling knows nothing of attacks, and few pairs prove nothing.
    assert exam["verdict"] in ("unproven", "refused")


def _labelled(run: Path) -> list[dict[str, Any]]:
    return [
        {
            "prompt": row["prompt"],
            "output_1": row["chosen"],
            "output_2": row["rejected"],
            "label": 1,
        }
        for row in read_rows(
            run,
            "SELECT c.prompt, c.answer AS chosen, r.answer AS rejected FROM pair p "
            "JOIN answers c ON c.id = p.chosen_id JOIN answers r ON r.id = p.rejected_id",
        )
    ]


def test_training_and_judging_read_the_same_tokens(paired: Path) -> None:
    """A pair's row, put together again, is the conversation as the judge encodes it."""
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from redistill.policies.chat import ChatCodec
    from redistill.types import Message

    [file] = (paired / "judges" / "jobs").glob("*/rows.parquet")
    rows = pq.read_table(file).to_pylist()
    start = paired / "revisions" / read_rows(paired, "SELECT student AS s FROM run")[0]["s"]
    codec = ChatCodec(AutoTokenizer.from_pretrained(start))
    asked = {row["prompt"]: row for row in _labelled(paired)}
    spelled = {
        tuple(
            codec.conversation(
                (Message("user", prompt), Message("assistant", row["output_1"])), answered=True
            )
        )
        for prompt, row in asked.items()
    }
    assert spelled <= {tuple(row["prompt_ids"] + row["chosen_ids"]) for row in rows}


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("--trainer", "dpo"), "dpo makes a student"),
    (("--step", "nothing"), "has no pairs of nothing"),
    (("--trainer", "{reward: {weights: lora}}"), "a reward model trains all its weights"),
    (("--trainer", "rewards"), "unknown trainer 'rewards'"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED)
def test_what_cannot_be_trained_is_told(
    paired: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    """A user's mistake is one line and exit code 2, before anything is loaded."""
    where = ("--runs", str(paired.parent))
    code, _, err = command(capsys, "judge", "train", paired.name, *where, *more)
    assert (code, said in " ".join(err.split())) == (2, True), err


def test_a_round_that_trains_a_judge_alone_is_refused(tmp_path: Path) -> None:
    """A judge beside the student is for `test_made_judge.py`; instead of one it is refused."""
    from redistill.errors import BadInput

    with pytest.raises(BadInput, match="has 0 train steps that make a student"):
        begin(tmp_path, PAIR, "reward")
