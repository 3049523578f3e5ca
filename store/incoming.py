"""Records of a file as rows of a store: each once, and nothing that is there or must not train."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from ..hashing import content_hash, row_id
from ..types import Message
from .contamination import GUARDED, asked_text, guarded_texts
from .duplicates import Contamination, Near, exact_key
from .facts import IMPORTED, details_text, messages_text, prompt_id
from .format import Record
from .store import Row, Store, content, now

MOST_HITS = 20
"""Contaminated rows that are printed; each has its event."""
_FETCH = 2000
_EMPTY = ("prompt", "completion", "pair", "selection", "judgement", "feedback", "content", "event")


@dataclass(frozen=True, slots=True)
class Manner:
    """How records are taken in."""

    step: str
    source: str
    licence: str
    judge: str
    """Name of the judge of records that name none."""
    keep_duplicates: bool = False
    keep_contaminated: bool = False
    near: float | None = None


@dataclass(slots=True)
class Incoming:
    """Turns records into rows, each of them once, and counts what is left out."""

    store: Store
    manner: Manner
    counts: Counter[str] = field(default_factory=Counter)
    """Records by kind and by fate."""
    hits: list[Row] = field(default_factory=list)
    """The first contaminated records, with reasons."""
    _prompts: dict[str, tuple[str, str]] = field(default_factory=dict)
    _position: int = 0
    _sent: set[bytes] = field(default_factory=set)
    _known: dict[bytes, str] = field(default_factory=dict)
    _lines: list[int] = field(default_factory=list)
    _occurrences: Counter[bytes] = field(default_factory=Counter)
    _attempts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _near: Near | None = None
    _guard: Contamination = field(default_factory=lambda: Contamination(()))

    def __post_init__(self) -> None:
        for row in self.store.rows(
            "SELECT id::VARCHAR AS id, messages_hash, split, position FROM prompt "
            "ORDER BY split = 'train', position"  # a question that is held out is held out
        ):
            self._prompts.setdefault(row["messages_hash"], (row["id"], row["split"]))
            if row["split"] == "train":
                self._position = max(self._position, row["position"] + 1)
        self._guard = Contamination(guarded_texts(self.store.rows(GUARDED)))
        self._near = Near(self.manner.near) if self.manner.near else None
        self._known = self.store.work(lambda connection: earlier(connection, self.manner.step))

    def rows(self, records: list[tuple[int, Record]]) -> dict[str, list[Row]]:
        """Return the rows of a chunk of records, given with their lines."""
        rows: dict[str, list[Row]] = {name: [] for name in _EMPTY}
        for line, record in records:
            self.counts["records"] += 1
            key = key_of(record)
            if self._is_contaminated(record, line, rows) or self._is_twice(record, line, key, rows):
                continue
            self.counts["imported"] += 1
            self.counts[record.kind] += 1
            self._write(record, self._occurrences[key], rows)
            self._occurrences[key] += 1
        return {name: part for name, part in rows.items() if part}

    # -- what is left out

    def overlap(self, messages: Sequence[Message], answers: Sequence[str]) -> Row | None:
        """Return with which held-out or test prompt something overlaps, and why; None where it may train.

        `held_out` is set where it is the very question, which never may.
        """
        asked = self._prompts.get(content_hash(messages_text(messages)))
        if asked is not None and asked[1] != "train":
            reason = f"equals {asked[1]} prompt {asked[0][:8]}"
            return {"of": asked[0], "reason": reason, "held_out": True}
        found = self._guard.hits(asked_text(messages), answers)
        if not found:
            return None
        first = found[0]
        detail = {"of": first.guarded.prompt_id, "reason": first.reason(), "n": first.n}
        return detail | {"share": round(first.share, 4), "hits": len(found)}

    def _is_contaminated(self, record: Record, line: int, rows: dict[str, list[Row]]) -> bool:
        """Whether a record must not train."""
        answers = [text for text in (record.text, record.other) if text]
        detail = self.overlap(record.messages, answers)
        if detail is None:
            return False
        drop = detail.pop("held_out", False) or not self.manner.keep_contaminated
        self._tell("contaminated", line, detail | {"dropped": drop}, rows)
        self.counts["contaminated" if drop else "kept_contaminated"] += 1
        if len(self.hits) < MOST_HITS:
            self.hits.append({"line": line, **detail, "dropped": drop})
        return drop

    def _is_twice(self, record: Record, line: int, key: bytes, rows: dict[str, list[Row]]) -> bool:
        """Whether a record is there already, or reads nearly like one of this file."""
        near = False
        detail: Row = {}
        if (place := self._known.get(key)) is not None:
            detail = {"of": place}
        else:
            self._known[key] = f"line {line}"
            if self._near is not None:
                text = "\n".join([asked_text(record.messages), record.text, record.other or ""])
                if found := self._near.find_or_add(text):
                    near = True
                    detail = {"of": f"line {self._lines[found[0]]}", "jaccard": round(found[1], 4)}
                else:
                    self._lines.append(line)
        if not detail:
            return False
        drop = not self.manner.keep_duplicates
        self._tell("duplicate", line, {"near": near, **detail, "dropped": drop}, rows)
        self.counts[("near_" if near else "") + "duplicate" if drop else "kept_duplicate"] += 1
        return drop

    def _tell(self, kind: str, line: int, detail: Row, rows: dict[str, list[Row]]) -> None:
        rows["event"].append(event(self.manner.step, kind, {"line": line, **detail}))

    # -- what is written

    def _write(self, record: Record, occurrence: int, rows: dict[str, list[Row]]) -> None:
        prompt = self.prompt(record, rows)
        texts = [record.text] if record.other is None else [record.text, record.other]
        answers = [self._completion(record, prompt, text, rows) for text in texts]
        said = {"kind": record.kind, "parents": answers, "occurrence": occurrence}
        label = dict(record.label or {})
        judge = record.judge or self.manner.judge
        if record.kind == "preference":
            rows["pair"].append(self._pair(record, prompt, said | {"judge": judge}, label))
            verdict = {"mode": "compare", "presented": answers, "ranks": [1, 2], "value": 1.0}
            rows["judgement"].append(self._judgement(judge, said, verdict))
            values = ((record.value, record.raw), (record.other_value, None))
            for answer, (value, raw) in zip(answers, values, strict=True):
                self._score(judge, {"completion_id": answer, "value": value, "raw": raw}, rows)
        elif record.kind == "demonstration":
            rows["selection"].append(self._selection(prompt, answers[0], said, label))
        else:
            remark = self._content(record.remark, rows)
            verdict = {"completion_id": answers[0], "value": record.value, "raw": record.raw}
            self._score(judge, verdict | {"aspect": record.aspect, "text_hash": remark}, rows)
        rows["feedback"].append(self._feedback(record, prompt, said, rows))

    def _about(self, table: str, **request: Any) -> Row:
        """Return the columns that every row of the import has."""
        step = self.manner.step
        identifier = row_id(table, round=0, step=step, **request)
        return {"id": identifier, "round": 0, "step": step, "created_at": now()}

    def _pair(self, record: Record, prompt: str, said: Row, label: Row) -> Row:
        values = (record.value, record.other_value)
        margin = 1.0 if None in values else (record.value or 0.0) - (record.other_value or 0.0)
        chosen, rejected = said["parents"]
        return {
            **self._about("pair", **said, label=label),
            "split": "train",
            "prompt_id": prompt,
            "chosen_id": chosen,
            "rejected_id": rejected,
            "judge": said["judge"],
            "judge_revision": _revision(said["judge"]),
            "rule": label.get("rule", "imported"),
            "margin": label.get("margin", margin),
            "probability": label.get("probability", 1.0),
            "weight": label.get("weight", 1.0),
        }

    def _selection(self, prompt: str, answer: str, said: Row, label: Row) -> Row:
        return {
            **self._about("selection", **said),
            "split": "train",
            "prompt_id": prompt,
            "completion_id": answer,
            "position": self.counts["demonstration"] - 1,
            "weight": label.get("weight", 1.0),
        }

    def _judgement(self, judge: str, said: Row, verdict: Row) -> Row:
        return {
            **self._about("judgement", judge=judge, **said),
            "aspect": "",
            "judge": judge,
            "judge_revision": _revision(judge),
            "attempt": 0,
            "status": "ok",
            "parts": "{}",
            "seconds": 0.0,
            **verdict,
        }

    def _score(self, judge: str, verdict: Row, rows: dict[str, list[Row]]) -> None:
        """Write a score; the same one again is no row, another one of the answer is the next attempt."""
        if verdict["value"] is None:
            return
        row = self._judgement(judge, {"score": verdict}, {"mode": "score", **verdict})
        if not self._first(row["id"]):
            return
        same = (judge, verdict["completion_id"], row["aspect"])
        row["attempt"] = self._attempts[same]
        self._attempts[same] += 1
        rows["judgement"].append(row)

    def _feedback(self, record: Record, prompt: str, said: Row, rows: dict[str, list[Row]]) -> Row:
        answer, *other = said["parents"]
        asked = {"aspect": record.aspect, "raw": record.raw, "value": record.value}
        return {
            **self._about("feedback", **said, **asked, author=record.author),
            "prompt_id": prompt,
            "kind": record.kind,
            "completion_id": answer,
            "other_id": other[0] if other else None,
            "value": record.value if record.kind in ("thumbs", "rating") else None,
            "text_hash": self._content(record.remark, rows),
            "author": record.author,
            **self._source(record),
        }

    def prompt(self, record: Record, rows: dict[str, list[Row]]) -> str:
        """Return the id of a record's prompt; where the run has no such one, add it to the rows: to train, never sampled."""
        text = messages_text(record.messages)
        if (known := self._prompts.get(content_hash(text))) is not None:
            return known[0]
        identifier = prompt_id(record.messages, {})
        self._prompts[content_hash(text)] = (identifier, "train")
        row = {
            "id": identifier,
            "round": 0,
            "split": "train",
            "position": self._position,
            "messages_hash": self._content(text, rows),
            "details_hash": self._content(details_text({}), rows),
            "tags": [*record.tags, IMPORTED],
            "created_at": now(),
            **self._source(record),
        }
        self._position += 1
        rows["prompt"].append(row)
        return identifier

    def _completion(
        self, record: Record, prompt: str, text: str, rows: dict[str, list[Row]]
    ) -> str:
        hashed = content_hash(text)
        row = {
            **self._about("completion", prompt=prompt, text=hashed, model=record.model),
            "split": "train",
            "prompt_id": prompt,
            "rendered_prompt_id": None,
            "parent_id": None,
            "slot": 0,
            "attempt": 0,
            "role": "imported",
            "revision": None,
            "model": record.model,
            "text_hash": hashed,
            "payload_hash": hashed,
            "finish_reason": "stop",
            "temperature": None,
            "sampling": "{}",
            "tokens": None,
            "seconds": 0.0,
            **self._source(record),
        }
        if self._first(row["id"]):
            self._content(text, rows)
            rows["completion"].append(row)
        return str(row["id"])

    def _source(self, record: Record) -> Row:
        source, licence = self.manner.source, self.manner.licence
        return {"source": record.source or source, "licence": record.licence or licence}

    def _content(self, text: str | None, rows: dict[str, list[Row]]) -> str | None:
        """Write a text once a file, and return its hash."""
        if text is None:
            return None
        row = content(text, 0)
        mark = bytes.fromhex(row["hash"])
        if mark not in self._sent:
            self._sent.add(mark)
            rows["content"].append(row)
        return str(row["hash"])

    def _first(self, identifier: str) -> bool:
        """Whether a row was not sent yet: the ledger counts what is sent."""
        mark = bytes.fromhex(identifier.replace("-", ""))
        if mark in self._sent:
            return False
        self._sent.add(mark)
        return True


def _revision(judge: str) -> str:
    """Return the judge_revision of who is known by name alone."""
    return content_hash(["imported", judge])


def event(step: str, kind: str, detail: Row) -> Row:
    """Return the event of an import."""
    return {
        "id": row_id("event", round=0, step=step, kind=kind, detail=detail),
        "round": 0,
        "step": step,
        "kind": kind,
        "detail": json.dumps(detail),
        "created_at": now(),
    }


def key_of(record: Record) -> bytes:
    """Return the key by which equal records are known: kind, turns, answers, and who rated how."""
    turns = [text for m in record.messages for text in (m.role, m.content)]
    rated = record.kind in ("rating", "thumbs")
    said = [record.aspect, str(record.value), str(record.author)] if rated else []
    return exact_key([record.kind, *turns, record.text, record.other or "", *said])


_EARLIER = """
SELECT f.kind, f.step, f.author, f.value, m.text AS messages, a.text, b.text AS other, j.aspect
FROM feedback f JOIN prompt p ON p.id = f.prompt_id
JOIN content m ON m.hash = p.messages_hash AND m.round = p.round
JOIN completion c ON c.id = f.completion_id
JOIN content a ON a.hash = c.text_hash AND a.round = c.round
LEFT JOIN completion o ON o.id = f.other_id
LEFT JOIN content b ON b.hash = o.text_hash AND b.round = o.round
LEFT JOIN judgement j ON j.completion_id = f.completion_id AND j.round = f.round AND j.step = f.step
    AND j.mode = 'score' AND j.value = f.value AND f.kind IN ('rating', 'thumbs')
WHERE f.step <> ?
"""


def earlier(connection: duckdb.DuckDBPyConnection, step: str) -> dict[bytes, str]:
    """Return the keys of what other files have brought, each with its step; few texts at a time."""
    result = connection.execute(_EARLIER, [step])
    found: dict[bytes, str] = {}
    while rows := result.fetchmany(_FETCH):
        for kind, its_step, author, value, turns, text, other, aspect in rows:
            messages = tuple(Message(m["role"], m["content"]) for m in json.loads(turns))
            record = Record(kind, messages, text, other, value, aspect=aspect or "", author=author)
            found.setdefault(key_of(record), its_step)
    return found
