"""`redistill judge admit`, `demo`, `card`, `list`: real judges' numbers, plain first lines, one-line faults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_judges
import pytest
import yaml
from llmbar import FILES, needs_llmbar, replay

from redistill.agents import registry
from redistill.cli import main
from redistill.testing.fake_server import FakeServer
from redistill.testing.fakes import fake_prompts, fake_recipe

SLICE_KEYS = (
    "accuracy", "n", "ci_low", "ci_high", "first_position", "longer", "gold_longer",
    "swap_consistent", "abstained",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep each test's records to itself."""
    monkeypatch.setenv("REDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process: exit code, output, errors."""
    try:
        main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def admit(capsys: pytest.CaptureFixture[str], judge: Any, *arguments: str) -> dict[str, Any]:
    """Examine a judge and return what --json prints."""
    text = judge if isinstance(judge, str) else yaml.safe_dump(judge, default_flow_style=True)
    code, out, err = command(capsys, "judge", "admit", text, *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def write(name: str, rows: Sequence[Any]) -> str:
    """Write a file of pairs into the current folder."""
    Path(name).write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "utf-8"
    )
    return name


def pair(number: int, **changed: Any) -> dict[str, Any]:
    """Return a labelled pair."""
    row = {"id": f"p{number}", "input": f"q{number}", "output_1": "yes", "output_2": "no no"}
    return row | {"label": 1} | changed


# -- six real judges

PUBLISHED = {
    # natural, adversarial, first position, longer; verdict; kinds of reasons
    "GPT-4": (0.955, 0.819, 0.508, 0.371, "admitted", set()),
    "PaLM2": (0.847, 0.673, 0.548, 0.446, "admitted", set()),
    "ChatGPT": (0.815, 0.223, 0.629, 0.694, "refused", {"adversarial", "position", "length"}),
    "ChatGPT-0301": (0.840, 0.323, 0.666, 0.629, "refused", {"adversarial", "position", "length"}),
    "LLaMA2": (0.805, 0.271, 0.539, 0.755, "refused", {"adversarial", "length"}),
    "Falcon": (0.740, 0.502, 0.781, 0.548, "refused", {"adversarial", "position", "length"}),
}


@needs_llmbar
@pytest.mark.parametrize("judge", PUBLISHED)
def test_real_judges_on_llmbar(judge: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The recorded votes give the published numbers, and the gate separates good from bad."""
    natural, adversarial, first, longer, verdict, kinds = PUBLISHED[judge]
    pairs = [word for file in FILES for word in ("--pairs", str(file))]
    found = admit(capsys, replay(judge), *pairs, "--slice", "adversarial=gptinst,neighbor")
    slices = found["slices"]
    assert list(slices) == ["natural", "gptinst", "neighbor", "adversarial", "all"]
    assert set(SLICE_KEYS) <= slices["all"].keys()
    got = (
        slices["natural"]["accuracy"],
        slices["adversarial"]["accuracy"],
        slices["all"]["first_position"],
        slices["all"]["longer"],
    )
    assert got == pytest.approx((natural, adversarial, first, longer), abs=5e-4)
    assert slices["all"]["gold_longer"] == pytest.approx(0.258, abs=5e-4)
    assert found["verdict"] == verdict
    told = {reason.partition(":")[0] for reason in found["reasons"]}
    assert told - {"gptinst", "neighbor"} == kinds
    assert found["attacks"] == "not run"


@needs_llmbar
def test_a_slice_may_name_files_or_slices(capsys: pytest.CaptureFixture[str]) -> None:
    """`--slice NAME=FILE1,FILE2` reads files too; without other files they are the whole."""
    files = ",".join(map(str, FILES[1:]))
    found = admit(capsys, replay("GPT-4"), "--slice", f"adversarial={files}")
    assert list(found["slices"]) == ["adversarial", "all"]
    assert found["slices"]["all"]["n"] == found["slices"]["adversarial"]["n"] == 226


@needs_llmbar
def test_the_first_line_tells_of_a_real_judge(capsys: pytest.CaptureFixture[str]) -> None:
    """In plain words, on one line, before anything else."""
    spec = yaml.safe_dump(replay("ChatGPT"), default_flow_style=True)
    pairs = [word for file in FILES for word in ("--pairs", str(file))]
    code, out, err = command(
        capsys, "judge", "admit", spec, *pairs, "--slice", "adversarial=gptinst,neighbor"
    )
    assert code == 0
    assert out.splitlines()[0] == (
        "Of the answers that people preferred it picked 82 %; on tricky pairs 22 %, worse than a coin: "
        "it likes what is shown first and likes long answers. Refused."
    )
    assert "attacks: not run, recorded votes cannot be asked" in out.splitlines()
    assert err == "326 pairs in both orders, no attacks: no call is paid\n"


# -- models


def test_a_model_is_examined_here_and_over_http(capsys: pytest.CaptureFixture[str]) -> None:
    """`--role` names a model of this machine, `--recipe` one behind an address; the price comes first."""
    chat = "{chat: {role: helper}}"
    here = admit(capsys, chat, "--role", "helper=fake_judges:LocalJudge")
    with FakeServer(fake_judges.judge) as server:
        recipe = fake_recipe() | {
            "roles": {"helper": {"policy": server.url, "model": "m", "price": {"in": 1, "out": 10}}}
        }
        write("prompts.jsonl", fake_prompts(4, 4, 4))
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
        code, out, err = command(
            capsys, "judge", "admit", chat, "--recipe", "recipe.yaml", "--json"
        )
        assert code == 0, err
        assert server.requests == 780
    away = json.loads(out)
    assert away["slices"] == here["slices"]
    assert away["attacks"] == here["attacks"]
    assert err.startswith("360 pairs in both orders, 30 attacks in both orders: 780 calls, about ")
    assert "at most about $8." in err
    assert (away["models"], here["dollars"]) == (["m"], 0.0)
    assert away["dollars"] > 0
    assert away["dollars_per_1000"] == pytest.approx(1000 * away["dollars"] / 780)
    assert len(registry.every()) == 2
    assert len(away["anchors"]) == 40


# -- without any data


def test_the_demo_needs_nothing_and_keeps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A recorded judge that ships is refused, in words; the registry stays empty."""
    code, out, _ = command(capsys, "judge", "demo")
    assert code == 0
    first, *rest = out.splitlines()
    assert first.startswith(
        "Of the answers that a program proved to be better it picked 94 %; on tricky"
    )
    assert first.endswith("worse than a coin: it likes long answers. Refused.")
    assert all(len(line) <= 80 for line in rest if not line.startswith("- "))
    assert registry.every() == []
    code, out, _ = command(capsys, "judge", "demo", "--json")
    assert json.loads(out)["verdict"] == "refused"


def test_the_starter_exam_is_taken_without_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    """The verifier solves it; the record is kept and listed, and a later exam replaces it."""
    found = admit(capsys, "verifier")
    assert (found["verdict"], found["exam"]) == ("admitted", "starter")
    assert found["slices"]["all"]["accuracy"] == 1.0
    assert found["slices"]["easy"]["n"] + found["slices"]["adversarial"]["n"] >= 300
    admit(capsys, "verifier")
    admit(capsys, "{random: {seed: 4}}")
    code, out, _ = command(capsys, "judge", "list", "--json")
    assert code == 0
    assert {(r["judge"], r["verdict"]) for r in json.loads(out)} == {
        ("verifier", "admitted"),
        ("random", "unproven"),
    }
    _, out, _ = command(capsys, "judge", "list")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "verifier" in out


def test_an_empty_registry_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Not an empty table."""
    _, out, _ = command(capsys, "judge", "list")
    assert "no judge has sat an exam yet" in out
    assert "redistill judge admit JUDGE" in out


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not [value for _, value in attrs if str(value).startswith(("http", "//"))]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_card_is_a_page_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    """Slices, intervals, biases, dollars for 1,000 verdicts, latency, exam hash; no script, no request."""
    record = admit(capsys, "longest")
    code, out, _ = command(capsys, "judge", "card", "longest", "--out", "cards")
    assert code == 0
    html, markdown = map(Path, out.splitlines())
    page = _Page()
    page.feed(html.read_text("utf-8"))
    assert "script" not in page.tags
    for text in (" ".join(page.words), markdown.read_text("utf-8").replace("\\", "")):
        for fact in (
            "Of the answers that a program proved to be better",
            record["exam_hash"],
            record["revision"],
            "dollars per 1,000 verdicts",
            "time a verdict",
            "adversarial",
            "0.066-0.149",
            "padded copy",
        ):
            assert fact in text, fact


def test_a_card_of_hostile_names_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """What a file's name holds is shown, and neither HTML nor Markdown obeys it."""
    name = write("<img src=x onerror=alert(1)>|**b**.jsonl", [pair(n) for n in range(3)])
    found = admit(capsys, "longest", "--pairs", name)
    assert next(iter(found["slices"])).startswith("<img")
    _, out, _ = command(capsys, "judge", "card", "longest", "--out", "cards")
    html, markdown = (Path(line).read_text("utf-8") for line in out.splitlines())
    assert "<img" not in html
    assert "<img" not in markdown.replace("\\<", "")
    assert "|**b**" not in markdown


# -- faults

FAULTS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown judge": (("verifer",), "JUDGE: unknown judge 'verifer'; did you mean verifier?"),
    "no YAML": (("{a: [",), "JUDGE: is no YAML"),
    "unknown setting": (
        ("{random: {sed: 1}}",),
        "JUDGE.random.sed: unknown key; did you mean seed?",
    ),
    "only a critic": (("fake_critic:critic",), "can only critique"),
    "no votes": (("{replay: {votes: no.csv, judge: m}}",), "no.csv: cannot be read"),
    "no file": (("verifier", "--pairs", "none.jsonl"), "none.jsonl: cannot be read"),
    "empty file": (("verifier", "--pairs", "empty.jsonl"), "empty.jsonl: holds no pair"),
    "no JSON": (("verifier", "--pairs", "broken.jsonl"), "broken.jsonl:2: is no JSON"),
    "no label": (("verifier", "--pairs", "label.jsonl"), "label.jsonl:1: label is 3"),
    "true is no label": (("verifier", "--pairs", "bool.jsonl"), "bool.jsonl:1: label is True"),
    "no text": (("verifier", "--pairs", "text.jsonl"), "text.jsonl:1: lacks a text"),
    "one id twice": (("verifier", "--pairs", "twice.jsonl"), "the pair 'p1' stands in twice.jsonl"),
    "one name twice": (
        ("verifier", "--pairs", "good.jsonl", "--pairs", "a/good.jsonl"),
        "--pairs: two files are called good",
    ),
    "slice without files": (
        ("verifier", "--slice", "hard"),
        "--slice hard: is no NAME=FILE1,FILE2",
    ),
    "slice called all": (("verifier", "--slice", "all=good.jsonl"), "the name all is taken"),
    "a file called all": (("verifier", "--pairs", "all.jsonl"), "the name all is taken"),
    "slice of a file's name": (
        ("verifier", "--pairs", "good.jsonl", "--slice", "good=good.jsonl"),
        "--slice: good is a file of --pairs too",
    ),
    "nobody speaks": (("chat",), "chat speaks as student, and nobody does; say who it is: --role"),
    "no role": (("chat", "--role", "student"), "--role student: is no NAME=MODEL"),
    "fitted on the exam": (
        ("{calibrated: {judge: longest, pairs: many.jsonl}}", "--pairs", "many.jsonl"),
        "calibrated was fitted on 30 of the 30 pairs",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_bad_input_is_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, one line that says where and what, nothing kept."""
    write("empty.jsonl", [])
    write("broken.jsonl", [pair(1), "{"])
    write("label.jsonl", [pair(1, label=3)])
    write("bool.jsonl", [pair(1, label=True)])
    write("text.jsonl", [pair(1, output_2=None)])
    write("twice.jsonl", [pair(1), pair(1)])
    write("good.jsonl", [pair(1)])
    write("all.jsonl", [pair(1)])
    write("many.jsonl", [pair(n) for n in range(30)])
    Path("fake_critic.py").write_text(
        "class Critic:\n    name = revision = 'critic'\n"
        "    async def critique(self, tasks):\n        return []\n\ncritic = Critic()\n",
        "utf-8",
    )
    arguments, said = FAULTS[case]
    code, out, err = command(capsys, "judge", "admit", *arguments)
    assert code == 2
    assert said in err
    told = [line for line in err.splitlines() if "in both orders" not in line]
    assert len(told) == 1
    assert out == ""
    assert registry.every() == []


def test_a_card_needs_an_exam_first(capsys: pytest.CaptureFixture[str]) -> None:
    """A judge without a record is one line, and so is a damaged record."""
    code, _, err = command(capsys, "judge", "card", "longest")
    assert (code, err.count("\n")) == (2, 1)
    assert "longest has not sat the exam; `redistill judge admit` comes first" in err
    admit(capsys, "longest")
    [file] = registry.folder().glob("*.json")
    file.write_text("{", "utf-8")
    for arguments in (("card", "longest"), ("list",)):
        code, _, err = command(capsys, "judge", *arguments)
        assert code == 2
        assert "is no record of an exam" in err
