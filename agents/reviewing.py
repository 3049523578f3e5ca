"""Reviewing: what people still have to judge in a run, and their verdicts as rows.

A verdict is written the moment it is given. Whoever comes back finds only what nobody has judged yet. A
verdict that was taken back is deleted, because a query would count it; the event that it was given stays.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from ..errors import BadInput
from ..hashing import row_id, row_seed
from ..policies import catalog
from ..store.store import Row, Store, now
from ..types import Judgement
from . import plugins
from .applying import context_of
from .judge import Judge, JudgeTask, Mode
from .loop import Silent
from .operator import BUILTINS, Turn
from .operators.feedback import Judging
from .people import WAITING, is_person, unanswered
from .verdicts import person_rows

WITHDRAWN = "verdict_withdrawn"
"""Kind of the event that a person has taken a verdict back."""
SKIPPED = "the person skipped it"
LEFT, RIGHT, TIE, SKIP = "1", "2", "t", "s"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to be judged, as it is shown."""

    id: str
    turn: Turn
    judge: Judge
    mode: Mode
    task: JudgeTask
    twins: tuple[tuple[str, JudgeTask], ...] = ()
    """The same answer to the same prompt, sampled again: what is said of one is said of all."""

    @property
    def question(self) -> str:
        """What people are asked to look at."""
        return str(getattr(self.judge, "question", ""))

    @property
    def scale(self) -> int:
        """Best score of an answer; 0 where answers are compared."""
        return int(getattr(self.judge, "scale", 5)) if self.mode == "score" else 0

    def verdict(self, key: str) -> Judgement | None:
        """Return what a key says of it; None where the key says nothing."""
        if key == SKIP:
            return Judgement.failed("not_applicable", SKIPPED)
        if self.mode == "score":
            return _score(key, self.scale)
        return _ranking(key, len(self.task.candidates))


def _score(key: str, best: int) -> Judgement | None:
    if len(key) != 1 or key not in "123456789"[:best]:
        return None
    return Judgement((int(key) - 1) / (best - 1), raw=float(key), reply=key)


def _ranking(key: str, count: int) -> Judgement | None:
    """Read the best one's number, all numbers with the best first, or `t`."""
    if key == TIE:
        return replace(Judgement.ranked((1,) * count), reply=key)
    named = [int(digit) for digit in key] if key.isascii() and key.isdigit() else []
    if not named or not set(named) <= set(range(1, count + 1)) or len(set(named)) != len(named):
        return None
    if len(named) not in (1, count):
        return None
    ranks = tuple(named.index(n) + 1 if n in named else 2 for n in range(1, count + 1))
    return replace(Judgement.ranked(ranks), reply=key)


def waiting(store: Store) -> list[Item]:
    """Return everything that waits for people, in an order by chance that depends on ids alone.

    Of a set that is shown in both orders, the second order comes after all first ones.
    """
    steps = store.rows(
        """
        SELECT DISTINCT s.round, s.step, s.operator, s.settings FROM event e
        JOIN step s ON s.round = e.round AND s.step = e.step
        WHERE e.kind = ? AND NOT EXISTS (
            SELECT 1 FROM write_batch w WHERE w.round = s.round AND w.step = s.step
        )
        ORDER BY s.round, s.step
        """,
        [WAITING],
    )
    return [item for row in steps for item in _items(store, row)]


def _items(store: Store, row: Row) -> list[Item]:
    settings = {row["operator"]: json.loads(row["settings"])}
    step = plugins.build("operators", settings, BUILTINS, row["step"])
    judge = step.load_judge() if isinstance(step, Judging) else None
    if not isinstance(step, Judging) or judge is None or not is_person(judge):
        return []
    run = context_of(store, step, catalog.default_cache(), Silent())
    turn = Turn(run, int(row["round"]), row["step"], 0, "")
    found = unanswered(turn, judge, step.asks, step.planned(turn))
    run.cast.close()
    same: dict[tuple[str, ...], list[tuple[str, JudgeTask]]] = {}
    for identifier, task in found:
        texts = [completion.text for completion in task.candidates]
        same.setdefault((task.prompt.id, *texts), []).append((identifier, task))
    return _by_chance(
        [Item(one[0], turn, judge, step.asks, one[1], tuple(more)) for one, *more in same.values()]
    )


def _by_chance(items: Sequence[Item]) -> list[Item]:
    seen: set[frozenset[str]] = set()
    passes: dict[bool, list[Item]] = {False: [], True: []}
    for item in sorted(items, key=lambda item: row_seed(f"review {item.id}")):
        shown = frozenset(completion.id for completion in item.task.candidates)
        passes[shown in seen].append(item)
        seen.add(shown)
    return passes[False] + passes[True]


@dataclass(slots=True)
class Verdicts:
    """Writes the verdicts of one person."""

    store: Store
    author: str

    def give(self, item: Item, key: str, seconds: float) -> None:
        """Write a verdict in a transaction of its own.

        Raises:
            ValueError: the key says nothing of the item.
        """
        said = item.verdict(key)
        if said is None:
            raise ValueError(f"{key!r} is no verdict")
        rows: dict[str, list[Row]] = {"judgement": [], "content": []}
        for task, spent in ((item.task, seconds), *((task, 0.0) for _, task in item.twins)):
            more = person_rows(item.turn, item.judge, item.mode, task, said, self.author, spent)
            rows = {table: rows[table] + more[table] for table in rows}
        self._commit(rows, item, self._batch(item, self._taken_back(item)))

    def take_back(self, item: Item) -> None:
        """Take a verdict back; it is asked for again, and the event keeps what it was."""
        columns = "value, ranks, status, role, seconds"
        [was] = self.store.rows(
            f"SELECT {columns} FROM judgement WHERE round = ? AND id = ?",  # noqa: S608 - our words
            [item.turn.round, item.id],
        )
        nth = self._taken_back(item)
        event = {
            "id": row_id("event", kind=WITHDRAWN, judgement=item.id, nth=nth),
            "round": item.turn.round,
            "step": item.turn.step,
            "kind": WITHDRAWN,
            "detail": json.dumps({"judgement": item.id, **was}),
            "created_at": now(),
        }
        # The event first: after a crash between the two, the verdict still stands and can be taken back.
        self._commit({"event": [event]}, item, f"{WITHDRAWN}:{item.id}:{nth}")
        every = [item.id, *(identifier for identifier, _ in item.twins)]
        given = self._batch(item, nth)

        def erase(connection: duckdb.DuckDBPyConnection) -> None:
            """The rows with their line in the ledger, which counts them."""
            connection.begin()
            connection.execute(
                "DELETE FROM judgement WHERE round = ? AND list_contains(?::UUID[], id)",
                [item.turn.round, every],
            )
            connection.execute(
                "DELETE FROM write_batch WHERE round = ? AND step = ?", [item.turn.round, given]
            )
            connection.commit()

        self.store.work(erase)

    @staticmethod
    def _batch(item: Item, nth: int) -> str:
        return f"review:{item.turn.step}:{item.id}:{nth}"

    def _taken_back(self, item: Item) -> int:
        [found] = self.store.rows(
            "SELECT count(*) AS n FROM event WHERE round = ? AND kind = ? AND detail->>'judgement' = ?",
            [item.turn.round, WITHDRAWN, item.id],
        )
        return int(found["n"])

    def _commit(self, rows: Mapping[str, list[Row]], item: Item, batch: str) -> None:
        self.store.commit(rows, round=item.turn.round, step=batch, chunk=0)


# -- anchors: an exam of the user's own answers

ANCHOR = "anchor"
"""Kind of the event that a person has looked at a pair for an exam."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """Two different answers to one train prompt, in the order shown."""

    id: str
    round: int
    """Of the later answer."""
    asked: str
    shown: tuple[str, str]
    """Completion ids."""
    texts: tuple[str, str]


_ANSWERS = """
    SELECT c.id::VARCHAR AS id, c.prompt_id::VARCHAR AS prompt, c.round, a.text, m.text AS turns
    FROM completion c
    JOIN content a ON a.hash = c.text_hash AND a.round = c.round
    JOIN prompt p ON p.id = c.prompt_id
    JOIN content m ON m.hash = p.messages_hash AND m.round = p.round
    WHERE p.split = 'train' AND c.split = 'train' AND c.finish_reason = 'stop'
      AND trim(a.text) <> '' AND m.text <> ''
      AND ($only IS NULL OR list_contains($only::UUID[], c.id))
    ORDER BY c.round, c.id
"""


def anchors(store: Store) -> list[Anchor]:
    """Return pairs that could be labelled, in an order by chance: one of each prompt, then more."""
    by_prompt: dict[str, dict[str, Row]] = {}
    for row in store.rows(_ANSWERS, {"only": None}):
        by_prompt.setdefault(row["prompt"], {}).setdefault(row["text"], row)
    found: list[tuple[int, int, Anchor]] = []
    for prompt, different in by_prompt.items():
        answers = sorted(different.values(), key=lambda row: row_seed(f"anchor {row['id']}"))
        for nth, pair in enumerate(zip(answers[::2], answers[1::2], strict=False)):
            found.append((nth, row_seed(f"anchor {prompt} {nth}"), _anchor(pair)))
    return [anchor for *_, anchor in sorted(found, key=lambda entry: entry[:2])]


def _anchor(pair: tuple[Row, Row]) -> Anchor:
    # By chance, and never by age: what was sampled in a later round would else always be shown last.
    one, two = sorted(pair, key=lambda row: row_seed(f"shown {row['id']}"))
    return Anchor(
        row_id("anchor", parents=sorted([one["id"], two["id"]])),
        max(one["round"], two["round"]),
        _asked(one),
        (one["id"], two["id"]),
        (one["text"], two["text"]),
    )


def _asked(row: Row) -> str:
    """Return what was asked; of several turns each with who spoke."""
    turns = json.loads(row["turns"])
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


@dataclass(slots=True)
class Labels:
    """Writes what one person says of pairs for an exam; the last word on a pair counts."""

    store: Store
    author: str

    def heard(self) -> dict[str, Row]:
        """Return the last word on each pair, by its id; its answer is None where it was taken back."""
        events = self.store.rows("SELECT detail FROM event WHERE kind = ?", [ANCHOR])
        details = sorted((json.loads(e["detail"]) for e in events), key=lambda d: int(d["nth"]))
        return {str(detail["item"]): detail for detail in details}

    def said(self) -> dict[str, Row]:
        """Return the last word on each pair that has one."""
        return {item: said for item, said in self.heard().items() if said["answer"] is not None}

    def give(self, anchor: Anchor, key: str | None, seconds: float) -> None:
        """Write a label in a transaction of its own; None takes the last one back."""
        [before] = self.store.rows(
            "SELECT count(*) AS n FROM event WHERE kind = ? AND detail->>'item' = ?",
            [ANCHOR, anchor.id],
        )
        detail: dict[str, Any] = {
            "item": anchor.id,
            "nth": before["n"],
            "presented": list(anchor.shown),
            "answer": key,
            "author": self.author,
            "seconds": seconds,
        }
        event = {
            "id": row_id("event", kind=ANCHOR, item=anchor.id, nth=before["n"]),
            "round": anchor.round,
            "step": "review",
            "kind": ANCHOR,
            "detail": json.dumps(detail),
            "created_at": now(),
        }
        batch = f"{ANCHOR}:{anchor.id}:{before['n']}"
        self.store.commit({"event": [event]}, round=anchor.round, step=batch, chunk=0)

    def lines(self) -> Iterator[str]:
        """Yield the pairs with a winner as lines of an exam file; forgotten answers are left out."""
        labelled = self.said()
        only = [identifier for said in labelled.values() for identifier in said["presented"]]
        answers = {row["id"]: row for row in self.store.rows(_ANSWERS, {"only": only})}
        for item, said in labelled.items():
            shown = [answers.get(identifier) for identifier in said["presented"]]
            if said["answer"] not in (LEFT, RIGHT) or shown[0] is None or shown[1] is None:
                continue
            line = {
                "id": item,
                "input": _asked(shown[0]),
                "output_1": shown[0]["text"],
                "output_2": shown[1]["text"],
                "label": int(said["answer"]),
                "author": said["author"],
                "seconds": said["seconds"],
            }
            yield json.dumps(line, ensure_ascii=False)


def write_exam(labels: Labels, file: Path) -> int:
    """Write the labelled pairs as an exam file, whole or not at all, and return how many they are.

    Raises:
        BadInput: the file cannot be written, or holds something else.
    """
    if file.exists() and not _ids(file) <= labels.heard().keys():
        what = f"{file} holds what is not from this run"
        raise BadInput.at("--out", what, "name another file")
    lines = list(labels.lines())
    aside = file.with_name(f".{file.name}.tmp")
    try:
        aside.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        aside.replace(file)
    except OSError as error:
        raise BadInput.at("--out", f"{file} cannot be written: {error.strerror}") from error
    return len(lines)


def _ids(file: Path) -> set[str]:
    """Return the ids of the pairs in an exam file; a line that is none counts as another's."""
    found = set()
    for line in file.read_bytes().splitlines():
        try:
            found.add(str(json.loads(line)["id"]))
        except (ValueError, TypeError, KeyError):
            found.add("")
    return found


def unlabelled(store: Store, labels: Labels) -> Iterator[Anchor]:
    """Yield the pairs that nobody has looked at yet."""
    said = labels.said()
    return itertools.filterfalse(lambda anchor: anchor.id in said, anchors(store))
