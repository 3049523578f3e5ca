"""From a bad answer back to the pair that taught it, and from a pair to what came of it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import store_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from redistill.cli import main
from redistill.errors import BadInput
from redistill.report.lineage import label, lineage_mermaid, lineage_tree
from redistill.store.identify import KINDS, Found, identify
from redistill.store.lineage import Branch, Lineage, lineage
from redistill.store.links import LINKS, Direction
from redistill.store.nodes import fetch
from redistill.store.query import jail, read_rows, snapshot
from redistill.store.store import Row, Store, content
from redistill.store.worse import worse
from redistill.testing.small_run import make_run

HOSTILE = 'quote" ]bracket[ `tick` <b>bold</b>; end\n%% \x1b[31mred\x07 {x} --> \u202eback'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small run of three rounds: promoted, rejected, promoted."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", rounds=3)


def _ids(folder: Path, kind: str) -> list[str]:
    column = "round" if kind == "round" else "id"
    rows = read_rows(folder, f"SELECT {column}::VARCHAR AS id FROM {kind} ORDER BY {column}")
    return [row["id"] for row in rows]


def _branches(branch: Branch | None) -> Iterator[Branch]:
    if branch is not None:
        yield branch
        for fan in branch.fans:
            for following in fan.branches:
                yield from _branches(following)


def _kinds(branch: Branch | None) -> set[str]:
    return {following.node.kind for following in _branches(branch)}


def _texts(found: Lineage, width: int = 400) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(lineage_tree(found))
    return console.export_text()


# -- ids


@pytest.mark.parametrize("kind", [*KINDS, "revision"])
def test_every_kind_is_found_by_its_first_characters(run: Path, kind: str) -> None:
    """Eight characters, a whole id, one without dashes and one in capitals name the same row."""
    for identifier in _ids(run, kind)[:3]:
        for asked in (
            identifier[:8],
            identifier,
            identifier.replace("-", ""),
            identifier.upper(),
            identifier[:11],
        ):
            assert identify(run, asked) == Found(kind, identifier)


def test_a_round_is_found_by_its_number(run: Path) -> None:
    """`round 2` is an id that people type; a round that is not there is refused with those that are."""
    assert identify(run, "round 2") == Found("round", "2")
    assert identify(run, "Round2") == Found("round", "2")
    with pytest.raises(BadInput, match="no round 9; rounds: 1, 2, 3"):
        identify(run, "round 9")


@pytest.mark.parametrize("asked", ["", "abc", "a-b-c", "  abc "])
def test_three_characters_are_too_few(run: Path, asked: str) -> None:
    """What would match by chance is refused before the store is asked."""
    with pytest.raises(BadInput, match="too short"):
        identify(run, asked)


@pytest.mark.parametrize(
    "asked", ["ffffffffffff", "nosuchid", "' OR 1=1 --", "%%%%", "\x00\x00\x00\x00", "0" * 40]
)
def test_an_unknown_id_says_where_ids_stand(run: Path, asked: str) -> None:
    """No id, no hexadecimal, SQL, wildcards: all are a prefix that nothing has."""
    with pytest.raises(BadInput, match="short_id"):
        identify(run, asked)


def test_an_ambiguous_prefix_lists_at_most_five(tmp_path: Path) -> None:
    """Candidates are named by kind, with enough characters to tell them apart, and the rest is counted."""
    ids = [f"abcd0000-0000-0000-0000-00000000000{n}" for n in range(7)]
    events = [store_rows.event("e") | {"id": identifier} for identifier in ids]
    store = Store(tmp_path)
    store.commit({"event": events}, round=1, step="s", chunk=0)
    revision = {"id": "abcd0000ffff", "round": 0, "folder": "r", "created_at": store_rows.WHEN}
    store.commit({"revision": [revision]}, round=0, step="s", chunk=0)
    store.close()
    with pytest.raises(BadInput) as caught:
        identify(tmp_path, "ABCD")
    text = str(caught.value)
    assert text.startswith("8 ids begin with 'ABCD'")
    assert text.count("event abcd0000") == 5
    assert "and 3 more" in text
    assert identify(tmp_path, "abcd0000f") == Found("revision", "abcd0000ffff")
    assert identify(tmp_path, ids[4]) == Found("event", ids[4])
    with pytest.raises(BadInput) as caught:
        identify(tmp_path, ids[0][:-1])
    assert all(identifier in str(caught.value) for identifier in ids[:5])


# -- the tree


@pytest.mark.parametrize("kind", [*KINDS, "revision", "round"])
def test_every_kind_has_a_lineage(run: Path, kind: str) -> None:
    """Each kind gives a tree, JSON and a flowchart; none is a row that is not stored."""
    for identifier in _ids(run, kind)[:2]:
        found = lineage(run, Found(kind, identifier))
        assert found.node.facts, kind
        assert "not stored" not in _texts(found)
        assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["id"] == identifier
        assert lineage_mermaid(found).startswith("flowchart TD")


def _step(folder: Path, direction: Direction) -> set[tuple[Found, Found, str]]:
    """Return all edges of a store as one reads them in a direction, as (parent, child, how)."""
    edges = set()
    with closing(jail(snapshot(folder))) as connection:
        for link in LINKS:
            near, far = link.kinds(direction)
            column = "round" if near == "round" else "id"
            ids = [row["id"] for row in fetch(connection, f"SELECT {column} AS id FROM {near}", {})]
            for row in fetch(connection, link.query(direction), {"ids": ids, "limit": 1 << 40}):
                ends = Found(near, row["near"]), Found(far, row["far"])
                parent, child = ends if direction == "down" else ends[::-1]
                edges.add((parent, child, link.down))
    return edges


def test_each_edge_down_has_its_edge_up(run: Path) -> None:
    """Law: what is said to come of a row says that it comes from that row, and the other way round."""
    down, up = _step(run, "down"), _step(run, "up")
    assert down == up
    assert len(down) > 1000
    assert {how for *_, how in down} >= {"chosen in", "rejected in", "ordered", "frozen as", "made"}


def test_no_row_is_its_own_ancestor(run: Path) -> None:
    """Law: the edges have no circle, so a tree ends."""
    children: dict[Found, set[Found]] = {}
    for parent, child, _ in _step(run, "down"):
        children.setdefault(parent, set()).add(child)
    done: dict[Found, bool] = {}

    def visit(found: Found) -> None:
        assert done.get(found, True), found
        if found not in done:
            done[found] = False
            for child in children.get(found, ()):
                visit(child)
            done[found] = True

    for found in list(children):
        visit(found)


def test_each_edge_of_a_tree_is_an_edge_of_the_store(run: Path) -> None:
    """What a tree shows in one direction is shown by the far row in the other."""
    [pair, *_] = _ids(run, "pair")
    down = lineage(run, Found("pair", pair), directions=("down",)).down
    for branch in list(_branches(down))[:12]:
        for fan in branch.fans:
            for child in fan.branches:
                back = lineage(run, child.node.found, directions=("up",), depth=1, limit=10_000).up
                assert branch.node.found in {b.node.found for b in _branches(back)}


def test_a_pair_leads_to_its_judgements_and_to_the_champion(run: Path) -> None:
    """Up stand both completions and the judgements that ordered them, down all that was made of it."""
    [pair] = read_rows(run, "SELECT * FROM pair WHERE round = 1 ORDER BY id LIMIT 1")
    found = lineage(run, Found("pair", str(pair["id"])))
    ups = {(fan.why, branch.node.id) for fan in found.up.fans for branch in fan.branches}  # type: ignore[union-attr]
    assert ("chosen", str(pair["chosen_id"])) in ups
    assert ("rejected", str(pair["rejected_id"])) in ups
    judged = read_rows(
        run, "SELECT id::VARCHAR AS id FROM judgement WHERE completion_id IN (?, ?)",
        [pair["chosen_id"], pair["rejected_id"]],
    )  # fmt: skip
    assert {identifier for why, identifier in ups if why == "ordered by"} == {
        j["id"] for j in judged
    }
    assert _kinds(found.down) >= {
        "training_row",
        "training_run",
        "revision",
        "evaluation",
        "decision",
    }
    lines = [b.node.line for b in _branches(found.down) if b.node.kind == "revision"]
    assert "promoted; the champion comes of it" in lines
    assert "rejected; the champion does not come of it" in lines
    assert "the champion" in lines


def test_a_revision_of_three_rounds_reaches_the_initial_student(run: Path) -> None:
    """Up from the last champion stand its training runs, each with its rows counted, to the initial student."""
    [last] = read_rows(run, "SELECT challenger FROM decision WHERE round = 3")
    up = lineage(run, Found("revision", last["challenger"]), directions=("up",)).up
    branches = list(_branches(up))
    assert [b.node.line for b in branches if b.node.kind == "revision"][-1].startswith(
        "the initial student"
    )
    fans = [fan for branch in branches for fan in branch.fans if fan.kind == "training_row"]
    counted = read_rows(
        run, "SELECT rows FROM training_run WHERE round IN (1, 3) ORDER BY round DESC"
    )
    assert [fan.total for fan in fans] == [row["rows"] for row in counted]
    for fan in fans:
        assert fan.branches == []
        assert {("from pair", fan.total), ("judged by verifier", fan.total)} <= set(fan.groups)
        assert sum(n for name, n in fan.groups if name.startswith("form:")) == fan.total


def test_a_wide_fan_says_how_many_more(run: Path) -> None:
    """Nothing is cut silently: shown and more make all, and the limit moves the border."""
    student = read_rows(run, "SELECT student FROM run")[0]["student"]
    spoken = read_rows(run, "SELECT count(*) AS n FROM completion WHERE revision = ?", [student])[
        0
    ]["n"]
    for limit in (1, 5, spoken + 1):
        found = lineage(run, Found("revision", student), directions=("down",), limit=limit)
        [fan] = [f for f in found.down.fans if f.kind == "completion"]  # type: ignore[union-attr]
        assert len(fan.branches) == min(limit, spoken)
        assert fan.total == spoken
        text = _texts(found)
        assert (f"{spoken - limit} more completions" in text) == (limit < spoken)


def test_depth_cuts_and_says_so(run: Path) -> None:
    """A tree of one level shows the nearest rows, marked as not followed."""
    [pair, *_] = _ids(run, "pair")
    found = lineage(run, Found("pair", pair), depth=1)
    assert all(not f.branches or all(not b.fans for b in f.branches) for f in found.up.fans)  # type: ignore[union-attr]
    assert " ..." in _texts(found)
    shown = found.as_dict()["edges"]["up"][0]["nodes"][0]
    assert "edges" not in shown


def _chain(folder: Path) -> None:
    """Write an answer that was criticised and rewritten three times."""
    names = ["a", "b", "c", "d"]
    rows: dict[str, list[Row]] = {
        "completion": [], "judgement": [], "content": store_rows.texts(*names, "too long"),
    }  # fmt: skip
    for before, name in zip([None, *names], names, strict=False):
        links = (
            {}
            if before is None
            else {
                "parent_id": store_rows.identifier(before),
                "critique_id": store_rows.identifier(f"critique of {before}"),
                "step": "rewrite",
            }
        )
        rows["completion"].append(store_rows.completion(name, name, **links))
        rows["judgement"].append(
            store_rows.judgement(
                name, None, mode="critique", status="ok", judge="critic",
                id=store_rows.identifier(f"critique of {name}"),
                text_hash=content("too long", 1)["hash"],
            )
        )  # fmt: skip
    store = Store(folder)
    store.commit(store_rows.opening({"p": "train"}), round=0, step="begin", chunk=0)
    store.commit(rows, round=1, step="all", chunk=0)
    store.close()


def test_a_chain_of_rewrites_is_followed_to_its_beginning(tmp_path: Path) -> None:
    """Three rewrites deep, up stand each parent and each critique, down each rewrite."""
    _chain(tmp_path)
    last = lineage(tmp_path, Found("completion", store_rows.identifier("d")))
    completions = [b for b in _branches(last.up) if b.node.kind == "completion" and not b.elsewhere]
    assert [b.node.line for b in completions] == ['"d"', '"c"', '"b"', '"a"']
    assert sum(b.node.kind == "judgement" for b in _branches(last.up)) == 3
    assert "too long" in _texts(last)
    first = lineage(tmp_path, Found("completion", store_rows.identifier("a")))
    below = [
        b.node.line
        for b in _branches(first.down)
        if b.node.kind == "completion" and not b.elsewhere
    ]
    assert sorted(below) == ['"a"', '"b"', '"c"', '"d"']


def test_a_verdict_of_several_shows_what_it_compared_and_its_votes(tmp_path: Path) -> None:
    """A comparison leads up to all that it looked at, and its line has ranks and votes."""
    seen = [store_rows.identifier(word) for word in ("a", "b")]
    verdict = store_rows.judgement(
        "a", None, mode="compare", completion_id=None, presented=seen, ranks=[2, 1], status="ok", judge="jury",
    )  # fmt: skip
    votes = [
        {"judgement_id": verdict["id"], "round": 1, "judge": name, "judge_revision": "v",
         "status": status, "value": value, "weight": 1.0}
        for name, status, value in (("one", "ok", 0.0), ("two", "timeout", None))
    ]  # fmt: skip
    pair = store_rows.pair(chosen_id=seen[1], rejected_id=seen[0], judge="jury")
    store = Store(tmp_path)
    store.commit(store_rows.opening({"p": "train"}), round=0, step="begin", chunk=0)
    completions = [store_rows.completion(word, word, slot=n) for n, word in enumerate("ab")]
    rows: dict[str, list[Row]] = {
        "completion": completions, "content": store_rows.texts("a", "b"),
        "judgement": [verdict], "vote": votes, "pair": [pair],
    }  # fmt: skip
    store.commit(rows, round=1, step="all", chunk=0)
    store.close()
    found = lineage(tmp_path, Found("judgement", verdict["id"]))
    assert {b.node.id for b in _branches(found.up)} >= set(seen)
    assert "ranks" in found.node.line
    assert "votes: one 0, two timeout" in found.node.line
    assert _kinds(found.down) == {"judgement", "pair"}


def test_what_people_said_is_joined_to_the_answer(tmp_path: Path) -> None:
    """A preference leads to both answers, and each of them to it."""
    seen = [store_rows.identifier(word) for word in ("a", "b")]
    said = {
        "id": store_rows.identifier("said"), "round": 1, "step": "import",
        "prompt_id": store_rows.identifier("p"), "kind": "preference", "completion_id": seen[0],
        "other_id": seen[1], "author": "ann", "source": "file", "licence": "CC0-1.0",
        "created_at": store_rows.WHEN,
    }  # fmt: skip
    store = Store(tmp_path)
    store.commit(store_rows.opening({"p": "train"}), round=0, step="begin", chunk=0)
    completions = [store_rows.completion(word, word, revision=None) for word in "ab"]
    store.commit({"completion": completions, "feedback": [said]}, round=1, step="all", chunk=0)
    store.close()
    found = lineage(tmp_path, Found("feedback", store_rows.identifier("said")))
    assert {b.node.id for b in _branches(found.up)} >= set(seen)
    assert "by ann" in found.node.line
    assert _kinds(lineage(tmp_path, Found("completion", seen[1])).down) == {
        "completion",
        "feedback",
    }


def test_weights_that_are_no_revision_are_named_as_such(tmp_path: Path) -> None:
    """An answer whose weights the store does not know has a lineage all the same."""
    _chain(tmp_path)
    assert "no revision of this run" in _texts(
        lineage(tmp_path, Found("completion", store_rows.identifier("a")))
    )


# -- what got worse


def _planted(
    folder: Path, teacher_tags: Sequence[str] = ("form:word", "topic:sea")
) -> dict[str, str]:
    """Write a round in which one held-out item falls, and one row of ten that can have taught it."""
    ids, train, opening = _asked(teacher_tags)
    job = store_rows.identifier("job")
    run_row, revisions = _trained(job)
    store = Store(folder)
    store.commit(
        {**opening, "run": [store_rows.run("rrrr0")], "revision": revisions[:1]},
        round=0,
        step="begin",
        chunk=0,
    )
    _measured(store, 0, "baseline", "rrrr0", {"held": 1.0, "steady": 0.0, "even": 1.0})
    rows = _taught(train, ids, job) | {"training_run": [run_row], "revision": revisions[1:]}
    store.commit(rows, round=1, step="train", chunk=0)
    _measured(store, 1, "evaluate", "rrrr1", {"held": 0.0, "steady": 1.0, "even": 1.0})
    decision = {
        "id": store_rows.identifier("decision"), "round": 1, "step": "gate", "decision": "rejected", "reason": "no",
        "champion": "rrrr0", "challenger": "rrrr1", "test": "t", "n": 2, "heldout_reads": 1, "guards": "{}",
        "created_at": store_rows.WHEN,
    }  # fmt: skip
    store.commit({"decision": [decision]}, round=1, step="gate", chunk=0)
    store.close()
    return ids


def _asked(teacher_tags: Sequence[str]) -> tuple[dict[str, str], list[str], dict[str, list[Row]]]:
    """Return the prompts' ids by word, the words that train, and the rows of the opening."""
    ids = {word: store_rows.identifier(word) for word in ("held", "steady", "even", "teacher")}
    checks = {
        "held": {"word": True, "include": "x"},
        "steady": {"word": True},
        "even": {"word": True},
        "teacher": {"word": True, "include": "y"},
    }
    tags = {
        "held": ["form:word", "topic:sea"],
        "steady": ["form:word"],
        "even": [],
        "teacher": list(teacher_tags),
    }
    splits = {"held": "heldout", "steady": "heldout", "even": "heldout", "teacher": "train"}
    for n in range(9):
        word = f"other{n}"
        ids[word], splits[word] = store_rows.identifier(word), "train"
        checks[word], tags[word] = (
            ({"quoted": True}, ["form:quotes"])
            if n % 2
            else ({"word": True}, ["form:word", "topic:sea"])
        )
    details = {word: content(json.dumps({"verify": check}), 0) for word, check in checks.items()}
    prompts = [
        store_rows.prompt(word, splits[word], tuple(tags[word])) | {"details_hash": details[word]["hash"], "position": n}
        for n, word in enumerate(ids)
    ]  # fmt: skip
    opening = store_rows.opening({}) | {"prompt": prompts}
    opening["content"] += [content(store_rows.messages(word), 0) for word in ids] + list(
        details.values()
    )
    return ids, [word for word in ids if splits[word] == "train"], opening


def _trained(job: str) -> tuple[Row, list[Row]]:
    """Return the row of a training run, and those of the revisions before and after it."""
    run_row = {
        "id": job, "round": 1, "step": "train", "trainer": "dpo", "settings": "{}", "start_revision": "rrrr0",
        "reference_revision": None, "dataset_hash": "d", "rows": 10, "status": "trained", "message": "",
        "revision": "rrrr1", "steps": 1, "seconds": 1.0, "cpu_seconds": 1.0, "peak_rss_mb": 1.0,
        "created_at": store_rows.WHEN,
    }  # fmt: skip
    revisions = [
        {"id": f"rrrr{n}", "round": n, "parent": "rrrr0" if n else None, "folder": "f",
         "training_run_id": job if n else None, "created_at": store_rows.WHEN}
        for n in (0, 1)
    ]  # fmt: skip
    return run_row, revisions


def _taught(train: Sequence[str], ids: dict[str, str], job: str) -> dict[str, list[Row]]:
    """Return the rows of answers that were kept, and frozen for training."""
    rows: dict[str, list[Row]] = {
        "completion": [],
        "judgement": [],
        "selection": [],
        "training_row": [],
        "content": [],
    }
    for place, word in enumerate(reversed(train)):
        answer = f"{word} taught"
        made = store_rows.completion(answer, answer, prompt_id=ids[word])
        kept = {
            "id": store_rows.identifier(f"selection {word}"), "round": 1, "step": "select", "split": "train",
            "prompt_id": ids[word], "completion_id": made["id"], "position": place, "weight": 1.0,
            "created_at": store_rows.WHEN,
        }  # fmt: skip
        frozen = {
            "id": store_rows.identifier(f"row {word}"), "round": 1, "step": "train", "split": "train",
            "training_run_id": job, "position": place, "prompt_id": ids[word], "completion_id": made["id"],
            "selection_id": kept["id"], "weight": 1.0, "tokens_from": "encoded", "created_at": store_rows.WHEN,
        }  # fmt: skip
        rows["completion"].append(made)
        rows["judgement"].append(store_rows.judgement(answer, 1.0))
        rows["content"].append(content(answer, 1))
        rows["selection"].append(kept)
        rows["training_row"].append(frozen)
    return rows


def _measured(
    store: Store, round_: int, step: str, revision: str, values: dict[str, float]
) -> None:
    rows: dict[str, list[Row]] = {"completion": [], "judgement": [], "content": []}
    for word, value in values.items():
        name = f"{word} by {revision}"
        rows["completion"].append(
            store_rows.completion(
                name, name, round=round_, step=step, split="heldout", revision=revision,
                prompt_id=store_rows.identifier(word), temperature=0.0,
            )
        )  # fmt: skip
        parts = json.dumps({"word": value == 1.0, "include": True})
        rows["judgement"].append(
            store_rows.judgement(name, value, round=round_, step=step, parts=parts)
        )
        rows["content"].append(content(name, round_))
    rows["evaluation"] = [
        {"id": store_rows.identifier(revision), "round": round_, "step": step, "split": "heldout",
         "revision": revision, "prompts_hash": "p", "judge": "verifier", "judge_revision": "j",
         "decoding": "{}", "n": 2, "value": 0.5, "created_at": store_rows.WHEN}
    ]  # fmt: skip
    store.commit(rows, round=round_, step=step, chunk=0)


def test_a_planted_regression_leads_to_its_planted_teacher(tmp_path: Path) -> None:
    """The item that fell is listed alone, with both answers, what failed, and the planted row first."""
    ids = _planted(tmp_path)
    found = worse(tmp_path)
    assert (found.n, found.fell, found.rose, found.training_rows) == (3, 1, 1, 10)
    [item] = found.items
    assert item.prompt.id == ids["held"]
    assert (item.before.facts["text"], item.after.facts["text"]) == (
        "held by rrrr0",
        "held by rrrr1",
    )
    assert (item.value_before, item.value_after, item.failed) == (1.0, 0.0, ("word",))
    near = item.nearest[0]
    assert near.row.id == store_rows.identifier("row teacher")
    assert near.source == Found("selection", store_rows.identifier("selection teacher"))
    assert near.why == "same checkers: include, word; tags form:word, topic:sea; judge verifier"
    assert worse(tmp_path, round_=1) == found


def test_checkers_come_before_tags(tmp_path: Path) -> None:
    """A row of the same checkers is nearest even where rows of other checkers share all tags."""
    _planted(tmp_path, teacher_tags=("nothing",))
    [item] = worse(tmp_path).items
    assert item.nearest[0].row.id == store_rows.identifier("row teacher")
    assert item.nearest[0].why == "same checkers: include, word; judge verifier"
    assert item.nearest[1].why.startswith("checkers: word; tags form:word, topic:sea")


def test_the_answer_itself_has_the_same_teachers(tmp_path: Path) -> None:
    """`lineage` of the answer that got worse shows what `--worse` shows; the initial student was not taught."""
    _planted(tmp_path)
    [item] = worse(tmp_path).items
    taught_by = lineage(tmp_path, item.after.found).taught_by
    assert [near.row.id for near in taught_by[:3]] == [near.row.id for near in item.nearest]
    assert lineage(tmp_path, item.before.found).taught_by == []


def test_worse_on_test_looks_at_the_rows_of_all_rounds(run: Path) -> None:
    """Test answers measure every training run up to the champion, held-out ones that of the round."""
    rows = {r["round"]: r["rows"] for r in read_rows(run, "SELECT round, rows FROM training_run")}
    assert worse(run, split="test").training_rows == rows[1] + rows[3]
    assert worse(run, round_=2).training_rows == rows[2]
    assert worse(run).round == 3


def test_worse_counts_what_it_does_not_show(tmp_path: Path) -> None:
    """With a limit the deepest falls are shown and the others counted; rounds that fell by chance agree."""
    folder = make_run(tmp_path / "four", rounds=4)
    whole = worse(folder, limit=1000)
    assert len(whole.items) == whole.fell > 5
    part = worse(folder, limit=2)
    assert (part.fell, len(part.items)) == (whole.fell, 2)
    assert part.as_dict()["more"] == whole.fell - 2
    assert list(part.items) == list(whole.items[:2])


@pytest.mark.parametrize(
    ("settings_", "told"),
    [
        ({"round_": 9}, "round 9 has measured no challenger; these have: 1, 2, 3"),
        ({"split": "train"}, "give heldout or test"),
        ({"split": "test", "round_": 1}, "leave it out"),
    ],
)
def test_a_wrong_round_or_split_is_refused(run: Path, settings_: dict[str, Any], told: str) -> None:
    """What was not measured is told with what was."""
    with pytest.raises(BadInput, match=told):
        worse(run, **settings_)


def test_an_unfinished_run_has_no_test_split(tmp_path: Path) -> None:
    """Before the end there is nothing on test to compare; before the first gate nothing held out."""
    with pytest.raises(BadInput, match="finish the run"):
        worse(make_run(tmp_path / "open", rounds=1, finished=False), split="test")
    with pytest.raises(BadInput, match="no round has measured"):
        worse(make_run(tmp_path / "none", rounds=0, finished=False))


def test_forgotten_texts_are_no_fault(tmp_path: Path) -> None:
    """Where prompts and answers were blanked, ids and edges stay, and nothing is near by words or checkers."""
    _planted(tmp_path)
    _blank(tmp_path)
    [item] = worse(tmp_path).items
    assert item.nearest[0].checkers == ()
    assert lineage(tmp_path, item.after.found).taught_by


def _blank(folder: Path) -> None:
    store = Store(folder)
    store.rows("UPDATE content SET text = '', forgotten_at = now()")
    store.close()


# -- what people and Mermaid get


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_label_holds_nothing_that_ends_it(text: str) -> None:
    """Law: letters, digits, plain marks and numbered entities are all that a label has."""
    assert re.fullmatch(r"(?:[^\W_]|[ .,:/+\-=_]|#\d+;)*", label(text))


def test_hostile_text_reaches_neither_terminal_nor_flowchart(tmp_path: Path) -> None:
    """Quotes, brackets, newlines and control characters of a model stay inside their labels."""
    folder = make_run(tmp_path / "spiced", spice=HOSTILE)
    [pair] = read_rows(folder, "SELECT id::VARCHAR AS id FROM pair ORDER BY id LIMIT 1")
    found = lineage(folder, Found("pair", pair["id"]))
    text = _texts(found)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    node = r'n\d+(?:\["[^"]*"\]|\(\["[^"]*"\]\))'
    edge = r'n\d+ (?:-->|-\.->)\|"[^"]*"\| n\d+'
    chart = lineage_mermaid(found)
    for line in chart.splitlines()[1:]:
        assert re.fullmatch(rf"    (?:{node}|{edge}|style n\d+ stroke-width:3px)", line), line
    assert "<b>" not in chart
    assert "`" not in chart


def _called(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["lineage", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_command_shows_a_tree_json_and_a_flowchart(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command, three ways to print; --up and --down leave the other side out."""
    [pair, *_] = _ids(run, "pair")
    where = (run.name, pair[:8], "--runs", str(run.parent))
    tree = _called(capsys, *where)
    assert "came from" in tree
    assert "came of it" in tree
    assert "came of it" not in _called(capsys, *where, "--up")
    assert set(json.loads(_called(capsys, *where, "--json"))["edges"]) == {"up", "down"}
    assert set(json.loads(_called(capsys, *where, "--json", "--down"))["edges"]) == {"down"}
    assert _called(capsys, *where, "--mermaid").startswith("flowchart TD")


def test_the_command_finds_what_got_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a worse answer to the row that is nearest, its selection, and the command that follows it."""
    folder = tmp_path / "runs" / "planted"
    folder.mkdir(parents=True)
    _planted(folder)
    where = ("planted", "--worse", "--runs", str(folder.parent))
    text = _called(capsys, *where)
    row = store_rows.identifier("row teacher")[:8]
    assert f"training_row {row}" in text
    assert "held by rrrr1" in text
    assert f"redistill lineage planted {row}" in text
    assert (
        json.loads(_called(capsys, *where, "--json"))["items"][0]["nearest"][0]["short_id"] == row
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("abcd", "--worse"),
        ("abcd", "--round", "1"),
        ("abcd", "--split", "test"),
        ("--worse", "--up"),
        ("--worse", "--mermaid"),
        ("--worse", "--depth", "2"),
        ("abcd", "--json", "--mermaid"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    run: Path, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Options of the one way of asking are bad input in the other: exit code 2, one line."""
    with pytest.raises(SystemExit) as ended:
        main(["lineage", run.name, *arguments, "--runs", str(run.parent)])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
