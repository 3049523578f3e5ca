"""`redistill chat`: two revisions side by side, blind; what a person says of them becomes feedback of the run."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from redistill.agents.chatting import Chat, Side
from redistill.agents.held_revision import find_revision, speaking
from redistill.agents.loop import Place, Silent, resume, run
from redistill.agents.opening import only_one
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput, Busy
from redistill.policies.policy import Sampling
from redistill.report.integrity import examine_run
from redistill.report.talking import Hear, Talk, in_editor, lines_until_end, talk
from redistill.store.query import query, read_rows
from redistill.store.store import Store
from redistill.testing.fakes import fake_prompts, fake_recipe

SHORT = Sampling(0.0, max_tokens=40)


def recipe(base: Path, *, rounds: int) -> Recipe:
    """Return a recipe of the fake student whose first round is promoted."""
    found = fake_prompts(train=20, heldout=80, test=20)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, found)), "utf-8")
    described = yaml.safe_dump(fake_recipe(rounds=rounds, gain=0.6))
    return load_recipe(described, "recipe.yaml", base=base)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the fake student whose champion is not its first; tests copy it."""
    base = tmp_path_factory.mktemp("finished")
    folder = run(recipe(base, rounds=1), place=Place(base / "runs", base / "cache"))
    [row] = read_rows(folder, "SELECT decision FROM decision")
    assert row == {"decision": "promoted"}
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, to be talked with."""
    shutil.copytree(finished.parents[1], tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / finished.name


def typed(lines: Iterable[str]) -> Hear:
    """Return a person who types these and then goes."""
    left: Iterator[str] = iter(lines)
    return lambda _: next(left, None)


def chat(folder: Path, *lines: str, width: int = 120, **wanted: Any) -> tuple[dict[str, Any], str]:
    """Let a person type, and return the counts and what was shown."""
    shown = io.StringIO()
    console = Console(file=shown, width=width, force_terminal=False)
    hear = typed(lines)
    told = Talk("initial", "champion", SHORT, "ann")
    told = Talk(**{name: wanted.get(name, getattr(told, name)) for name in told.__slots__})
    return talk(folder, told, console, hear, lambda _: lines_until_end(hear)), shown.getvalue()


def differing(folder: Path, count: int = 1) -> list[str]:
    """Return prompts that both revisions answer otherwise."""
    sides = [speaking(find_revision(folder, name)) for name in ("initial", "champion")]
    store = Store(folder)
    try:
        named = [find_revision(folder, name) for name in ("initial", "champion")]
        both = (Side(named[0], sides[0]), Side(named[1], sides[1]))
        talking = Chat(store, both, SHORT, "ann")
        words = (f"my own word{n}" for n in range(1000))
        found = (word for word in words if not talking.ask(word).same)
        return [next(found) for _ in range(count)]
    finally:
        store.close()


def rows(folder: Path, sql: str) -> list[dict[str, Any]]:
    """Ask the run."""
    return read_rows(folder, sql)


def test_a_thumb_is_feedback(folder: Path) -> None:
    """One row of feedback, one pair, one verdict with the order that was seen, both answers with weights and tokens."""
    [word] = differing(folder)
    found, shown = chat(folder, word, "1", "q")
    assert found == {
        "run": "fake", "asked": 1, "preferred": 1, "tied": 0, "edited": 0, "skipped": 0, "barred": 0,
    }  # fmt: skip
    [said] = rows(
        folder,
        """
        SELECT f.kind, f.author, f.source, p.split, p.tags, j.judge, j.role, j.ranks, j.parts,
               f.completion_id = j.presented[1] AS first, f.other_id = j.presented[2] AS second,
               r.chosen_id = f.completion_id AS paired, c.revision AS best, o.revision AS other,
               len(t.token_ids) = c.tokens AS whole
        FROM feedback f JOIN prompt p ON p.id = f.prompt_id JOIN judgement j ON j.step = 'chat'
        JOIN pair r ON r.step = 'chat' JOIN completion c ON c.id = f.completion_id
        JOIN completion o ON o.id = f.other_id JOIN completion_tokens t ON t.completion_id = c.id
        """,
    )
    assert (said["kind"], said["author"], said["source"]) == ("preference", "ann", "redistill chat")
    assert (said["split"], said["tags"]) == ("train", ["redistill:imported"])
    assert (said["judge"], said["role"], said["ranks"]) == ("human", "ann", [1, 2])
    assert (said["first"], said["second"], said["paired"], said["whole"]) == (True,) * 4
    assert json.loads(said["parts"]) == {"blind": True}
    names = {find_revision(folder, n).revision.id: n for n in ("initial", "champion")}
    assert {names[said["best"]], names[said["other"]]} == {"initial", "champion"}
    # Who was whose is told afterwards, and not before.
    head, _, tail = shown.partition("1 was ")
    assert f"{names[said['best']]} {said['best'][:8]}" in tail
    assert said["best"] not in head.split("q quits")[1]


def test_the_order_is_by_chance_and_open_is_not(folder: Path) -> None:
    """Over many prompts each side is first about as often; with open, the first is always the one compared with."""
    words = differing(folder, 24)
    chat(folder, *(line for word in words for line in (word, "1")))
    initial = find_revision(folder, "initial").revision.id
    firsts = "SELECT c.revision, j.parts FROM judgement j JOIN completion c ON c.id = j.presented[1] WHERE j.step = 'chat'"
    count = Counter(row["revision"] == initial for row in rows(folder, firsts))
    assert min(count[True], count[False]) >= 4
    _, shown = chat(folder, *(line for word in words[:4] for line in (word, "2")), blind=False)
    seen = [row for row in rows(folder, firsts) if not json.loads(row["parts"])["blind"]]
    assert [row["revision"] for row in seen] == [initial] * 4
    assert "1 initial" in shown


def test_a_tie_is_a_verdict_and_a_skip_is_nothing(folder: Path) -> None:
    """A tie has ranks and no feedback; what is skipped leaves no row."""
    one, two = differing(folder, 2)
    found, _ = chat(folder, one, "t", two, "what?", "s")
    assert (found["tied"], found["skipped"], found["preferred"]) == (1, 1, 0)
    [said] = rows(folder, "SELECT ranks, value FROM judgement WHERE step = 'chat'")
    assert said == {"ranks": [1, 1], "value": 0.5}
    assert (
        rows(folder, "SELECT 1 FROM feedback UNION ALL SELECT 1 FROM pair WHERE step = 'chat'")
        == []
    )
    asked = rows(folder, "SELECT count(*) AS n FROM prompt WHERE source = 'redistill chat'")
    assert asked == [{"n": 1}]


def test_an_edit_is_an_answer_of_the_person(folder: Path) -> None:
    """The improved answer is a completion without weights whose parent is the other, chosen over it, over lines."""
    [word] = differing(folder)
    found, _ = chat(folder, word, "e2", "a better", "", "answer", ".", "q")
    assert found["edited"] == 1
    [said] = rows(
        folder,
        """
        SELECT f.kind, c.role, c.revision, c.parent_id = f.other_id AS child, t.text, p.rule,
               p.chosen_id = c.id AS chosen, o.revision AS other
        FROM feedback f JOIN completion c ON c.id = f.completion_id
        JOIN content t ON t.hash = c.text_hash AND t.round = c.round
        JOIN completion o ON o.id = f.other_id JOIN pair p ON p.rejected_id = f.other_id
        """,
    )
    assert said["text"] == "a better\n\nanswer"
    assert (said["kind"], said["role"], said["revision"], said["rule"]) == (
        "edit",
        "person",
        None,
        "edit",
    )
    assert (said["child"], said["chosen"]) == (True, True)
    assert len(said["other"]) == 32
    assert query(folder, "SELECT * FROM d2 WHERE rule = 'edit'").table.num_rows == 1
    assert query(folder, "SELECT * FROM d1 WHERE origin = 'pair'").table.num_rows == 1


def test_an_edit_that_changes_nothing_is_asked_again(folder: Path) -> None:
    """Neither an empty text nor the same one is kept; the question comes again."""
    [word] = differing(folder)
    found, shown = chat(folder, word, "e1", ".", "1")
    assert (found["edited"], found["preferred"]) == (0, 1)
    assert "nothing was changed" in shown


def test_two_equal_answers_can_only_be_improved(folder: Path) -> None:
    """Where both say the same, a thumb says nothing, and is not taken."""
    differ = set(differing(folder, 30))
    same = next(f"my own word{n}" for n in range(1000) if f"my own word{n}" not in differ)
    found, _ = chat(folder, same, "1", "t", "e1", "better", ".")
    assert (found["preferred"], found["tied"], found["edited"]) == (0, 0, 1)
    kinds = rows(folder, "SELECT kind FROM feedback")
    assert kinds == [{"kind": "edit"}]


def test_what_is_held_out_is_answered_and_not_kept(folder: Path) -> None:
    """The very question of a held-out or test prompt, and one that holds it, leave no row at all."""
    before = rows(
        folder, "SELECT (SELECT count(*) FROM completion) AS c, (SELECT count(*) FROM content) AS t"
    )
    texts = rows(
        folder,
        """
        SELECT t.text->>'$[0].content' AS asked, p.split FROM prompt p
        JOIN content t ON t.hash = p.messages_hash WHERE p.split <> 'train' AND p.position = 0
        """,
    )
    assert {row["split"] for row in texts} == {"heldout", "test"}
    found, shown = chat(folder, *(row["asked"] for row in texts))
    assert (found["asked"], found["barred"]) == (2, 2)
    for row in texts:
        assert f"nothing is kept: equals {row['split']} prompt" in shown
    after = rows(
        folder, "SELECT (SELECT count(*) FROM completion) AS c, (SELECT count(*) FROM content) AS t"
    )
    assert before == after


def test_a_prompt_of_the_run_is_known_again(folder: Path) -> None:
    """A train prompt that is typed is that prompt, with its place and its tags."""
    [row] = rows(
        folder,
        """
        SELECT p.id::VARCHAR AS id, t.text->>'$[0].content' AS asked FROM prompt p
        JOIN content t ON t.hash = p.messages_hash WHERE p.split = 'train' AND p.position = 0
        """,
    )
    chat(folder, row["asked"], "e1", "mine", ".")
    found = rows(folder, "SELECT prompt_id::VARCHAR AS id FROM feedback")
    assert found == [{"id": row["id"]}]
    assert rows(folder, "SELECT 1 FROM prompt WHERE source = 'redistill chat'") == []


class Stopping(Silent):
    """Ends the process' work when the second round begins."""

    def phase(self, round: int, step: str, done: int, total: int) -> None:  # noqa: A002 - of the protocol
        """Stop in round 2."""
        if round == 2:
            raise KeyboardInterrupt


def test_the_run_is_whole_and_goes_on(tmp_path: Path) -> None:
    """Doctor finds nothing; a run that stopped in between goes on, and neither samples nor trains on what was said."""
    place = Place(tmp_path / "runs", tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path, rounds=2), place=place, progress=Stopping())
    folder = tmp_path / "runs" / "fake"
    one, two, three = differing(folder, 3)
    chat(folder, one, "1", two, "e1", "x", ".", "q")
    chat(folder, three, "2", one, "t")
    assert [c for c in examine_run(folder) if c["state"] == "bad"] == []
    steps = rows(folder, "SELECT operator, origin FROM step WHERE step = 'chat'")
    assert steps == [{"operator": "chat", "origin": "imported"}]
    resume(folder, place=place)
    assert rows(folder, "SELECT max(round) AS n FROM decision") == [{"n": 2}]
    used = """
        SELECT count(*) AS n FROM prompt p WHERE p.source = 'redistill chat' AND p.id IN (
            SELECT prompt_id FROM completion WHERE step <> 'chat' UNION SELECT prompt_id FROM training_row
        )
    """
    assert rows(folder, used) == [{"n": 0}]
    assert [c for c in examine_run(folder) if c["state"] == "bad"] == []


def test_what_cannot_be_talked_with_is_told(folder: Path, finished: Path) -> None:
    """One revision beside itself, one that is not there, a run that is held: before a model loads."""
    with pytest.raises(BadInput, match="are one revision"):
        chat(folder, revision="initial")
    with pytest.raises(BadInput, match="is no revision of fake"):
        chat(folder, beside="best")
    with only_one(folder), pytest.raises(Busy):
        chat(folder)


def test_a_prompt_that_is_too_long_is_told(folder: Path) -> None:
    """The session goes on."""
    found, shown = chat(folder, "x" * 600, "q")
    assert found["asked"] == 0
    assert "600 tokens leave 0 of 512" in shown


def test_hostile_text_is_spelt_out(folder: Path) -> None:
    """What an answer would do to the terminal is shown, not done."""
    _, shown = chat(folder, "say \x1b[31mred\u202e", "s")
    assert "\x1b" not in shown
    assert "\\x1b[31mred\\u202e" in shown


def test_prompts_of_several_lines_and_a_narrow_terminal(folder: Path) -> None:
    """`/long` to `.` is one prompt; where two columns do not fit, the answers stand below each other."""
    _, shown = chat(folder, "/long", "one", "two", ".", "s", width=60)
    assert "--- 1" in shown
    assert "--- 2" in shown


def test_an_editor_changes_a_text(tmp_path: Path) -> None:
    """What the editor leaves in the file is the answer; one that fails or is not there changes nothing."""
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[-1], 'a').write(' more')\n")
    editor.chmod(0o755)
    assert in_editor(f"{editor} --wait", "text") == "text more"
    assert in_editor("false", "text") is None
    assert in_editor(str(tmp_path / "nothing"), "text") is None


def test_a_short_context_shortens_the_usual_answer(folder: Path) -> None:
    """Where nobody asked for a length, half of the context is left for the prompt; a length that was asked for stands."""
    usual = Sampling(0.0, max_tokens=512)
    said, shown = chat(folder, "Spell: cat", "s", sampling=usual, longest=False)
    assert (said["asked"], "answer may need" in shown) == (1, False)
    said, shown = chat(folder, "Spell: cat", "s", sampling=usual)
    assert (said["asked"], "the answer may need 512" in shown) == (0, True)


# -- as a person would


def words_of(folder: Path, *more: str) -> list[str]:
    """Return what is typed at a shell."""
    chosen = ["chat", folder.name, "--runs", str(folder.parent), "--max-tokens", "40", *more]
    return [sys.executable, "-P", "-m", "redistill.cli", *chosen]


def test_a_pipe_can_talk(folder: Path) -> None:
    """Lines of standard input, JSON on standard output, and what to type next for people."""
    one, two = differing(folder, 2)
    lines = f"{one}\n1\n{two}\ne2\nbetter\n.\n"
    env = {**os.environ, "REDISTILL_CACHE": str(folder.parents[1] / "cache")}
    done = subprocess.run(
        words_of(folder, "--json", "--author", "bob"), input=lines, text=True, capture_output=True, env=env, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["asked"], found["preferred"], found["edited"]) == (2, 1, 1)
    assert rows(folder, "SELECT DISTINCT author FROM feedback") == [{"author": "bob"}]
    done = subprocess.run(
        words_of(folder), input="", text=True, capture_output=True, env=env, check=False
    )
    assert done.returncode == 0
    assert "0 asked" in done.stdout


def test_a_person_at_a_terminal(folder: Path, tmp_path: Path) -> None:
    """A pseudo-terminal, an editor in EDITOR, and the end of input to go."""
    [word] = differing(folder)
    editor = tmp_path / "editor.py"
    editor.write_text("import sys\nopen(sys.argv[1], 'w').write('edited by hand')\n", "utf-8")
    env = {
        **os.environ,
        "EDITOR": f"{sys.executable} {editor}",
        "VISUAL": "",
        "REDISTILL_CACHE": str(folder.parents[1] / "cache"),
        "COLUMNS": "100",
        "TERM": "xterm",
    }
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        words_of(folder), stdin=terminal, stdout=terminal, stderr=terminal, env=env, close_fds=True
    ) as process:
        os.close(terminal)
        os.write(controller, f"{word}\ne1\nq\n".encode())
        seen = _read(controller)
        assert process.wait(60) == 0, seen
    os.close(controller)
    [said] = rows(
        folder,
        """
        SELECT t.text, f.kind FROM feedback f JOIN completion c ON c.id = f.completion_id
        JOIN content t ON t.hash = c.text_hash AND t.round = c.round
        """,
    )
    assert said == {"text": "edited by hand", "kind": "edit"}
    assert "you> " in seen
    assert "1 edited" in seen


def _read(controller: int) -> str:
    """Read what a terminal shows, until nobody holds its other end."""
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(controller, 4096)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            return b"".join(parts).decode("utf-8", "replace")
        parts.append(part)
