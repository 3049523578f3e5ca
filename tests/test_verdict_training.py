"""A judge that is trained on another judge's verdicts: it asks as that one did, answers like it, and is examined."""

from __future__ import annotations

import json
import random
import shutil
import string
from pathlib import Path
from typing import Any

import fake_judges
import pyarrow.parquet as pq
import pytest
import yaml
from test_every_trainer import DATA, prompts
from test_exam_command import command

import redistill
from redistill.agents.judge import JudgeTask, Mode
from redistill.agents.judges.chat import Chat
from redistill.agents.judges.model import Choice
from redistill.agents.judges.speaking import Speaking
from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.errors import BadInput
from redistill.policies import catalog
from redistill.policies.chat import ChatCodec
from redistill.policies.revision import Revision
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer
from redistill.types import Completion, Judgement, Message, Prompt

WEIGHTS = Path(redistill.__file__).resolve().parent / "policies" / "weights"


def answer(kind: str, seed: str) -> str:
    """Return a word or a number, another one for each prompt."""
    draw = random.Random(kind + seed)
    if kind == "number":
        return str(draw.randint(100, 99_999))
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 6)))


def serve(messages: list[dict[str, Any]]) -> str:
    """Write a word or a number, as the system turn says; of two answers, judge the word to be better, or say nothing."""
    text = messages[-1]["content"]
    if messages[0]["role"] == "system":
        return answer(messages[0]["content"], text)
    parts = fake_judges.fenced(text)
    if parts["question"].startswith("can"):
        return "Both are nice."
    better = "A" if parts["answer A"].isalpha() else "B"
    return json.dumps({"reasoning": "It is a word.", "better": better})


def begin(base: Path, student: str, count: int) -> tuple[Path, list[dict[str, Any]]]:
    """Let a model behind an address judge words against numbers: the run, and what the server was asked."""
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    rows = [r for r in rows if r["split"] == "train"][:count] + prompts()[40:]
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with FakeServer(serve) as server:
        role: dict[str, Any] = {"policy": server.url, "model": "m"}
        recipe = {
            "name": "judged",
            "student": student,
            "prompts": {"file": "prompts.jsonl"},
            "unproven_judge": "allow",
            "roles": {
                "helper": role,
                "word": role | {"context": {"system": "word"}},
                "number": role | {"context": {"system": "number"}},
            },
            "round": [
                {"sample": {"role": "word", "k": 1, "max_tokens": 44, "as": "words"}},
                {"sample": {"role": "number", "k": 1, "max_tokens": 44, "as": "numbers"}},
                {"compare": {"of": ["words", "numbers"], "judge": "helper"}},
                {"pair": {"of": ["words", "numbers"], "by": "helper", "rule": "best_worst"}},
                {"train": {"trainer": "sft", "steps": 1}},
                {"evaluate": {"judge": "verifier", "max_tokens": 4}},
                {"gate": {}},
            ],
            "loop": {"rounds": 1},
        }
        loaded = load_recipe(yaml.safe_dump(recipe), "judged.yaml", base=base)
        folder = run(loaded, place=Place(base / "runs", catalog.default_cache()))
        return folder, server.bodies


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny student in which another model has judged, over HTTP."""
    return begin(tmp_path_factory.mktemp("judged"), "tiny", 160)[0]


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep each test's records to itself."""
    monkeypatch.setenv("REDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command and read what it prints as JSON."""
    code, out, err = command(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def unseen(count: int) -> str:
    """Write labelled pairs of new words and numbers to new questions, and return the file's name."""
    rows = []
    for number in range(count):
        asked = f"something else {number}"
        sides = [answer("word", asked), answer("number", asked)]
        label = 1 + number % 2
        first, second = sides if label == 1 else reversed(sides)
        rows.append({"input": asked, "output_1": first, "output_2": second, "label": label})
    Path("unseen.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return "unseen.jsonl"


SETTINGS = "learning_rate: 1.0e-3, batch_size: 8, micro_batch: 8, steps: 72"


def test_it_judges_unseen_pairs_as_its_teacher_and_sits_the_exam(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student guesses; trained on its verdicts it agrees on 100 new pairs. The exam decides, and its card says so."""
    Path("which.txt").write_text("Which?", "utf-8")
    asks = "{choice: {brief: true, rubric: which.txt}}"
    found = told(
        *(capsys, "judge", "train", judged.name, "--runs", str(judged.parent), "--judge", "helper"),
        *("--trainer", f"{{sft: {{{SETTINGS}}}}}", "--as", asks),
    )
    losses = [m["value"] for m in found["metrics"] if m["name"] == "loss"]
    assert sum(losses[-5:]) / 5 < 0.05 * losses[0]
    [event] = read_rows(judged, "SELECT detail FROM event WHERE kind = 'judge_trained'")
    detail = json.loads(event["detail"])
    assert (detail["learned_from"], detail["rows"]) == ("helper", found["verdicts"])
    assert yaml.safe_load(found["judge"]) == detail["asks"]
    revision = Revision.read(judged / detail["judge"])
    revision.verify_files()
    start = read_rows(judged, "SELECT student AS s FROM run")[0]["s"]
    assert revision.parent == start
    pairs = unseen(100)
    right = {}
    for role in (f"trained={judged / 'revisions' / start}", found["role"]):
        exam = told(capsys, "judge", "admit", found["judge"], "--role", role, "--pairs", pairs)
        right[role] = exam["slices"]["unseen"]["accuracy"]
    before, after = right.values()
    assert before < 0.65
    assert after > 0.9
    # It knows words from numbers and nothing of attacks: the exam sees that, whoever the judge is.
    assert exam["verdict"] == "refused"
    assert all(reason.startswith("attack") for reason in exam["reasons"])
    command(capsys, "judge", "card", found["judge"], "--role", found["role"])
    [card] = Path("judge-cards").glob("*.md")
    assert "refused" in card.read_text("utf-8").lower()
    _used(judged, found)


def _used(judged: Path, found: dict[str, Any]) -> None:
    """Name the judge in a recipe, whose run is stopped by what the exam has found."""
    recipe = yaml.safe_load((judged / "recipe.yaml").read_text("utf-8")) | {"name": "used"}
    recipe["unproven_judge"] = "refuse"
    recipe["roles"]["trained"] = {"policy": found["role"].partition("=")[2]}
    recipe["stages"][0]["round"][2]["compare"]["judge"] = yaml.safe_load(found["judge"])
    recipe["stages"][0]["round"][3]["pair"]["by"] = "trained"
    loaded = load_recipe(yaml.safe_dump(recipe), "used.yaml", base=judged)
    with pytest.raises(BadInput, match="trained was refused by the exam: attack"):
        run(loaded, place=Place(Path("runs"), catalog.default_cache()))


def test_a_lesson_is_what_the_teacher_was_asked_and_what_it_replied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are the very questions and replies of the server, train prompts alone; no verdict is no row."""
    from transformers import AutoTokenizer

    student = tmp_path / "long"
    shutil.copytree(WEIGHTS / "tiny", student)
    config = json.loads((student / "config.json").read_text("utf-8"))
    longer = json.dumps(config | {"max_position_embeddings": 4096})
    (student / "config.json").write_text(longer, "utf-8")
    folder, bodies = begin(tmp_path, str(student), 8)
    code, out, err = command(
        *(capsys, "judge", "train", folder.name, "--runs", str(folder.parent)),
        *("--trainer", "{sft: {steps: 1, batch_size: 1, micro_batch: 1}}", "--judge", "helper"),
    )
    assert code == 0, err
    [file] = (folder / "judges" / "jobs").glob("*/rows.parquet")
    rows = pq.read_table(file).to_pylist()
    codec = ChatCodec(AutoTokenizer.from_pretrained(student))
    asked = [body["messages"] for body in bodies if body["messages"][0]["role"] == "user"]
    said = [(messages, serve(messages)) for messages in asked]
    good = [(messages, reply) for messages, reply in said if reply.startswith("{")]
    assert 0 < len(good) < len(said)
    expected = {
        (codec.conversation([Message(**m) for m in messages]), codec.plain(reply))
        for messages, reply in good
    }
    ends = {row["completion_ids"][-1] for row in rows}
    assert expected == {
        (tuple(row["prompt_ids"]), tuple(row["completion_ids"][:-1])) for row in rows
    }
    assert (len(rows), ends) == (len(good), {AutoTokenizer.from_pretrained(student).eos_token_id})
    first, last = out.splitlines()[-2:]
    assert first.startswith(f"trained on {len(rows)} verdicts in 1 steps: ")
    assert last.startswith(
        "examine it: redistill judge admit '{chat: {name: trained, role: trained}}'"
    )
    assert f" --role trained={folder.resolve()}/judges/" in last


# -- verdicts in a judge's own words


def lesson(
    judge: Speaking, mode: Mode, said: Judgement, answers: tuple[str, ...] = ("x", "y")
) -> str | None:
    """Return the reply that a judge would learn."""
    prompt = Prompt("p", (Message("user", "Say x"),), "train")
    shown = [Completion(str(n), "p", text, (), (), "stop", "r") for n, text in enumerate(answers)]
    if mode == "score":
        del shown[1:]
    found = judge.lesson(mode, JudgeTask(prompt, shown[0], tuple(shown[1:])), said)
    return found.reply if found else None


BARE = Chat(reasoning=False)
FIRST, SECOND, TIE = map(Judgement.ranked, ((1, 2), (2, 1), (1, 1)))
LIST = Judgement.ranked((2, 1, 3))
WORDS = Judgement(0.75, text="Fine.")
KEPT = Judgement(1.0, ranks=(1, 2), text="r", reply='I think: {"reasoning": "r", "better": "A"}')
REPLIES: list[tuple[Speaking, Mode, Judgement, str | None]] = [
    (Chat(), "compare", KEPT, KEPT.reply),
    (BARE, "compare", KEPT, '{"better": "A"}'),
    (Chat(), "compare", FIRST, None),
    (Chat(), "score", WORDS, '{"reasoning": "Fine.", "score": 8}'),
    (Chat(scale=(0, 4)), "score", WORDS, '{"reasoning": "Fine.", "score": 3}'),
    (Chat(aspects=("right",)), "score", WORDS, None),
    (Chat(), "critique", Judgement(None, text="Too long."), "Too long."),
    (BARE, "compare", TIE, '{"better": "tie"}'),
    (BARE, "compare", LIST, '{"ranks": {"A": 2, "B": 1, "C": 3}}'),
    (Choice(), "compare", FIRST, "A"),
    (Choice(), "compare", SECOND, "B"),
    (Choice(), "compare", TIE, None),
    (Choice(tie=True), "compare", TIE, "C"),
    (Choice(), "compare", LIST, "B"),
    (Choice(), "score", WORDS, "yes"),
    (Choice(), "score", Judgement(0.0), "no"),
    (Choice(), "score", Judgement(0.5), None),
    (Choice(), "critique", Judgement(None, text="Too long."), None),
]


@pytest.mark.parametrize(("judge", "mode", "said", "reply"), REPLIES)
def test_a_verdict_is_told_in_the_form_asked_for(
    judge: Speaking, mode: Mode, said: Judgement, reply: str | None
) -> None:
    """The stored reply where it says just that, else the form's own words; what cannot be said is not made up."""
    answers = ("x", "y", "z") if said is LIST else ("x", "y")
    assert lesson(judge, mode, said, answers) == reply


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("--judge", "nobody"), "has no verdicts of nobody on train prompts"),
    (("--judge", "verifier"), "has no verdicts of verifier on train prompts"),
    (("--step", "nothing"), "has no verdicts in nothing"),
    (("--as", "verifier"), "verifier asks one model no question of its own"),
    (("--as", "{chat: {rubik: x}}"), "--as.chat.rubik: unknown key; did you mean rubric?"),
    ((), "no verdict of helper can be learned: "),
    (("--trainer", "{sft: {weights: lora}}"), "a judge is a whole model"),
    (("--trainer", "reward"), "reward learns pairs, and asks nothing in words"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED)
def test_what_cannot_be_learned_is_told(
    judged: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    """A user's mistake is one line and exit code 2, before anything is trained."""
    where = ("--runs", str(judged.parent), "--trainer", "sft")
    named = () if "--judge" in more or "--step" in more else ("--judge", "helper")
    code, _, err = command(capsys, "judge", "train", judged.name, *where, *named, *more)
    assert (code, said in " ".join(err.split())) == (2, True), err
