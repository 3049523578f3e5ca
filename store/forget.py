"""Forgetting private text: rows and ids stay, the words go.

What goes is decided here, from the published snapshot; `blanked.py` writes the store anew without it and
`traces.py` cleans the files beside it. The order matters, because a kill may come at any time: files first,
then the live store, then the snapshot, on which the condition is read. So whoever repeats a forgetting
that was killed finds the same answers, or finds that all is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from ..errors import BadInput
from ..hashing import row_id
from .backup import BACKUPS, sync_folder
from .blanked import SEARCHED, SIDE, write_blanked
from .query import explain, jail, read_rows, snapshot
from .store import FILE, SNAPSHOT, Store, now
from .text import storable
from .traces import clean_files

Row = dict[str, Any]
_MOST_COMPARISONS = 100_000_000
"""Pairs of texts that are looked through for words of a forgotten one in a kept one."""


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What is forgotten, and what remembers it. Ids are sorted."""

    answers: tuple[str, ...]
    """completion.ids that the condition names; with `prompts`, all answers to their prompts."""
    equal: tuple[str, ...]
    """Other completions of exactly the same text."""
    prompts: tuple[str, ...]
    judgements: tuple[str, ...]
    rendered: tuple[str, ...]
    """rendered_prompt.ids whose tokens spell a forgotten text."""
    blanks: dict[str, str]
    """content.hash -> what stands there after."""
    words: tuple[str, ...]
    """The texts themselves, longest first; they are never stored and never shown."""
    sought: tuple[str, ...]
    """Those that are looked for inside other texts and files: long enough, and no kept prompt's answer."""
    asked: tuple[str, ...]
    """The last turns of the forgotten prompts, by which their rows are found in the files of prompts."""
    training_rows: dict[str, tuple[str, ...]]
    """training_row.id -> which of `prompt completion rejected` goes."""
    revisions: tuple[str, ...]
    """Revisions that were trained on one of them."""
    descendants: tuple[str, ...]
    """Revisions that were trained from those."""
    rewrites: tuple[str, ...]
    """completion.ids that rewrite a forgotten one, and stay: they may repeat it."""
    proposed: tuple[str, ...]
    """prompt.ids that came of a forgotten completion or prompt, and stay: they may repeat it."""
    repeated: int | None
    """Kept texts that hold a forgotten one word for word; None where there are too many to look."""
    backups: tuple[str, ...] = ()
    exports: dict[str, int] = field(default_factory=dict)
    """Records of exports in the run's folder, with the number of forgotten rows in each."""

    @property
    def gone(self) -> tuple[str, ...]:
        """Every completion whose text goes."""
        return self.answers + self.equal

    def told(self) -> Row:
        """Return what is told and stored: counts and ids, no text."""
        return {
            "answers": list(self.answers),
            "equal_answers": list(self.equal),
            "prompts": list(self.prompts),
            "judgements": len(self.judgements),
            "texts": len(self.blanks),
            "revisions": list(self.revisions),
            "descendants": list(self.descendants),
            "rewrites_kept": list(self.rewrites),
            "prompts_kept": list(self.proposed),
            "texts_that_repeat_them": self.repeated,
            "exports": self.exports,
            "backups": list(self.backups),
        }


def matching(folder: Path, where: str) -> tuple[list[str], list[str]]:
    """Return the ids of the answers that a condition over `answers` names, and of their prompts.

    Raises:
        BadInput: the SQL is wrong, is more than one expression, or holds a query of its own.
    """
    if storable(where) != where:
        raise BadInput.at("--where", "is no valid Unicode text")
    connection = jail(snapshot(folder))
    try:
        # Pasted in unread, `false) OR (true` would forget everything.
        duckdb.SQLExpression(where)
        tree = connection.execute(
            "SELECT json_serialize_sql(?)", [f"SELECT {where}"]
        ).fetchone()  # fmt: skip
        if tree is None or '"class":"SUBQUERY"' in str(tree[0]):
            raise BadInput.at("--where", "holds a query", "use the columns of `answers` alone")
        found = connection.execute(
            "SELECT DISTINCT id::VARCHAR, prompt_id::VARCHAR FROM answers "  # noqa: S608 - one expression
            f"WHERE ({where}\n) ORDER BY 1"
        ).fetchall()
    except duckdb.Error as error:
        raise BadInput.at("--where", explain(error)) from error
    finally:
        connection.close()
    return [row[0] for row in found], sorted({row[1] for row in found})


def plan_forgetting(folder: Path, where: str, *, prompts: bool) -> Forgetting:
    """Find what a condition would forget; writes nothing.

    Args:
        folder: the run's folder.
        where: an SQL expression over the `answers` view.
        prompts: forget the prompts of the answers too, and with them all answers to those prompts.

    Raises:
        BadInput: the condition is wrong; see `matching`.
    """
    answers, asked = matching(folder, where)
    gone_prompts = asked if prompts else []
    if prompts:
        answers = _ids(folder, _TO_PROMPTS, asked)
    equal = sorted(set(_ids(folder, _EQUAL, answers)) - set(answers))
    gone = [*answers, *equal]
    judgements = _ids(folder, _JUDGEMENTS, gone)
    texts = _texts(folder, gone, judgements, gone_prompts)
    words = _words(texts)
    sought = _sought(folder, words, gone_prompts)
    trained = _training_rows(folder, gone, gone_prompts)
    revisions = _ids(folder, _TRAINED, sorted(trained))
    return Forgetting(
        answers=tuple(answers),
        equal=tuple(equal),
        prompts=tuple(gone_prompts),
        judgements=tuple(judgements),
        rendered=tuple(_rendered(folder, gone, judgements, gone_prompts)),
        blanks={found.hash: found.blank for found in texts},
        words=words,
        sought=sought,
        asked=_asked(folder, gone_prompts),
        training_rows=trained,
        revisions=tuple(revisions),
        descendants=tuple(sorted(set(_ids(folder, _DESCENDANTS, revisions)) - set(revisions))),
        rewrites=tuple(sorted(set(_ids(folder, _REWRITES, gone)) - set(gone))),
        proposed=tuple(sorted(set(_proposed(folder, gone, gone_prompts)) - set(gone_prompts))),
        repeated=_repeated(folder, sought, texts),
        backups=_backups(folder),
        exports=_exports(folder, {*gone, *gone_prompts}),
    )


def carry_out(folder: Path, plan: Forgetting, reason: str) -> Row:
    """Forget; the caller holds the run's lock, and has published the snapshot that was read.

    Returns:
        what `told` says, and `files`: the files that were changed, and `left`: those of the run's folder
        that still hold one of the texts.

    Raises:
        EnvironmentProblem: a file cannot be written; what was there before is still there.
        StoreProblem: the new store is not the old one but for what was forgotten; nothing was replaced.
    """
    side = folder / SIDE
    clear_side(folder)
    event = _event(folder, plan, reason)
    try:
        write_blanked(folder, side, plan, event)
        files, left = clean_files(folder, plan)
        (side / FILE).replace(folder / FILE)
        sync_folder(folder)
        (side / SNAPSHOT).replace(folder / SNAPSHOT)
        sync_folder(folder)
    finally:
        clear_side(folder)
    return plan.told() | {"reason": reason, "files": files, "left": left}


def clear_side(folder: Path) -> None:
    """Remove what a forgetting that was killed has left beside the store."""
    shutil.rmtree(folder / SIDE, ignore_errors=True)


def publish_now(folder: Path) -> None:
    """Bring the snapshot up to the live store; the caller holds the run's lock.

    Raises:
        BadInput: there is no live store.
    """
    if not (folder / FILE).is_file():
        raise BadInput.at("", f"run {folder.name!r} has no {FILE}", "`redistill doctor` says more")
    Store(folder).close()


# -- what goes

# A prompt that was proposed stands in what its role said.
_TO_PROMPTS = """
WITH gone AS (SELECT unnest(?::UUID[]) AS id)
SELECT id::VARCHAR AS id FROM completion WHERE prompt_id IN (FROM gone)
UNION SELECT completion_id::VARCHAR FROM proposal WHERE prompt_id IN (FROM gone)
"""
_EQUAL = """
WITH said AS (
    SELECT id, text_hash FROM completion UNION ALL SELECT completion_id, text_hash FROM proposal
)
SELECT DISTINCT other.id::VARCHAR AS id
FROM said JOIN content t ON t.hash = said.text_hash AND t.text <> ''
JOIN completion other ON other.text_hash = said.text_hash
WHERE said.id IN (SELECT unnest(?::UUID[]))
"""
_JUDGEMENTS = """
SELECT id::VARCHAR AS id FROM judgement
WHERE completion_id IN (SELECT unnest($1::UUID[])) OR list_has_any(presented, $1::UUID[])
"""
_TRAINED = """
SELECT DISTINCT t.revision AS id FROM training_row r JOIN training_run t ON t.id = r.training_run_id
WHERE t.revision IS NOT NULL AND r.id IN (SELECT unnest(?::UUID[]))
"""
_DESCENDANTS = """
WITH RECURSIVE later AS (
    SELECT unnest(?::VARCHAR[]) AS id
    UNION SELECT r.id FROM revision r JOIN later ON r.parent = later.id
) SELECT id FROM later
"""
_REWRITES = """
WITH RECURSIVE later AS (
    SELECT unnest(?::UUID[]) AS id
    UNION SELECT c.id FROM completion c JOIN later ON c.parent_id = later.id
) SELECT id::VARCHAR AS id FROM later
"""
_PROPOSED = """
WITH RECURSIVE made AS (
    SELECT parent_id AS parent, id FROM prompt WHERE parent_id IS NOT NULL
    UNION SELECT unnest(seeds), prompt_id FROM proposal WHERE prompt_id IS NOT NULL
),
later AS (
    SELECT id FROM prompt WHERE completion_id IN (SELECT unnest($1::UUID[]))
    UNION SELECT prompt_id FROM proposal WHERE prompt_id IS NOT NULL AND answer_id IN (SELECT unnest($1::UUID[]))
    UNION SELECT id FROM made WHERE parent IN (SELECT unnest($2::UUID[]))
    UNION SELECT m.id FROM made m JOIN later ON m.parent = later.id
) SELECT id::VARCHAR AS id FROM later
"""
# What a role was asked in which a forgotten prompt or answer was shown: it spells them.
_SHOWING = """
SELECT c.prompt_id FROM proposal x JOIN completion c ON c.id = x.completion_id
WHERE x.answer_id IN (SELECT unnest($1::UUID[])) OR list_has_any(x.seeds, $3::UUID[])
"""
# `kind` says how a text is blanked: a reader of JSON needs JSON.
_TEXTS = f"""
WITH named AS (
    SELECT unnest([text_hash, thinking_hash]) AS hash, 'text' AS kind FROM completion
    WHERE id IN (SELECT unnest($1::UUID[]))
    UNION SELECT turns_hash, 'messages' FROM completion WHERE id IN (SELECT unnest($1::UUID[]))
    UNION SELECT unnest([text_hash, reply_hash]), 'text' FROM judgement
    WHERE id IN (SELECT unnest($2::UUID[]))
    UNION SELECT text_hash, 'text' FROM feedback
    WHERE completion_id IN (SELECT unnest($1::UUID[])) OR other_id IN (SELECT unnest($1::UUID[]))
       OR prompt_id IN (SELECT unnest($3::UUID[]))
    UNION SELECT text_hash, 'text' FROM proposal
    WHERE completion_id IN (SELECT unnest($1::UUID[])) OR prompt_id IN (SELECT unnest($3::UUID[]))
    UNION SELECT messages_hash, 'messages' FROM prompt
    WHERE id IN (SELECT unnest($3::UUID[])) OR id IN ({_SHOWING})
    UNION SELECT tools_hash, 'tools' FROM prompt WHERE id IN (SELECT unnest($3::UUID[]))
    UNION SELECT details_hash, 'details' FROM prompt WHERE id IN (SELECT unnest($3::UUID[]))
)
SELECT c.hash, min(n.kind) AS kind, any_value(c.text) AS text
FROM named n JOIN content c ON c.hash = n.hash WHERE c.forgotten_at IS NULL GROUP BY c.hash
"""  # noqa: S608
_EXPECTED = """
SELECT DISTINCT c.text FROM prompt p JOIN content c ON c.hash = p.details_hash AND c.round = p.round
WHERE p.id NOT IN (SELECT unnest(?::UUID[]))
"""
_RENDERED = f"""
SELECT id::VARCHAR AS id FROM rendered_prompt
WHERE prompt_id IN (SELECT unnest($3::UUID[])) OR prompt_id IN ({_SHOWING})
UNION SELECT rendered_prompt_id::VARCHAR FROM completion
WHERE rendered_prompt_id IS NOT NULL AND (
    parent_id IN (SELECT unnest($1::UUID[])) OR critique_id IN (SELECT unnest($2::UUID[])))
"""  # noqa: S608
_ROWS = """
SELECT id::VARCHAR AS id, prompt_id IN (SELECT unnest($2::UUID[])) AS prompt,
       completion_id IN (SELECT unnest($1::UUID[])) OR list_has_any(coalesce(ranked, []), $1::UUID[])
           AS completion,
       coalesce(rejected_id IN (SELECT unnest($1::UUID[])), false) AS rejected
FROM training_row
"""


@dataclass(frozen=True, slots=True)
class _Text:
    hash: str
    blank: str
    words: tuple[str, ...]


def _ids(folder: Path, sql: str, ids: Sequence[str]) -> list[str]:
    return sorted(row["id"] for row in read_rows(folder, sql, [list(ids)])) if ids else []


def _proposed(folder: Path, gone: Sequence[str], prompts: Sequence[str]) -> list[str]:
    return [row["id"] for row in read_rows(folder, _PROPOSED, [list(gone), list(prompts)])]


def _texts(
    folder: Path, gone: Sequence[str], judgements: Sequence[str], prompts: Sequence[str]
) -> list[_Text]:
    rows = read_rows(folder, _TEXTS, [list(gone), list(judgements), list(prompts)])
    return [
        _Text(row["hash"], *_blank(row["kind"], row["text"]))
        for row in rows
        # What says nothing is shared by all that say nothing.
        if any(_strings(json.loads(row["text"]) if row["kind"] != "text" else row["text"]))
    ]


def _blank(kind: str, text: str) -> tuple[str, tuple[str, ...]]:
    """Return what replaces a text, in the shape that its readers expect, and the words that go."""
    if kind == "text":
        return "", (text,)
    value = json.loads(text)
    words = tuple(_strings(value))
    if kind == "messages":
        turns = [{"role": turn.get("role", ""), "content": ""} for turn in value]
        return json.dumps(turns), tuple(
            w for w in words if w not in ("user", "assistant", "system")
        )
    return ("[]" if kind == "tools" else json.dumps(dict.fromkeys(value))), words


def _strings(value: Any) -> Iterable[str]:
    """Yield every text inside a JSON value that is not empty; keys are no private text."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _words(texts: Iterable[_Text]) -> tuple[str, ...]:
    words = {word for text in texts for word in text.words}
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


def _sought(folder: Path, words: Sequence[str], prompts: Sequence[str]) -> tuple[str, ...]:
    expected = {
        word
        for row in read_rows(folder, _EXPECTED, [list(prompts)])
        for word in _strings(json.loads(row["text"]))
    }
    return tuple(word for word in words if len(word) >= SEARCHED and word not in expected)


def _rendered(
    folder: Path, gone: Sequence[str], judgements: Sequence[str], prompts: Sequence[str]
) -> list[str]:
    rows = read_rows(folder, _RENDERED, [list(gone), list(judgements), list(prompts)])
    return sorted(row["id"] for row in rows)


def _training_rows(
    folder: Path, gone: Sequence[str], prompts: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    found = {}
    for row in read_rows(folder, _ROWS, [list(gone), list(prompts)]):
        parts = tuple(part for part in ("prompt", "completion", "rejected") if row[part])
        if parts:
            found[row["id"]] = parts
    return found


def _asked(folder: Path, prompts: Sequence[str]) -> tuple[str, ...]:
    sql = (
        "SELECT DISTINCT json_extract_string(c.text, '$[#-1].content') AS id FROM prompt p "
        "JOIN content c ON c.hash = p.messages_hash WHERE p.id IN (SELECT unnest(?::UUID[]))"
    )
    return tuple(text for text in _ids(folder, sql, prompts) if text)


def _repeated(folder: Path, words: Sequence[str], texts: Sequence[_Text]) -> int | None:
    """Count the kept texts that hold a forgotten one."""
    [held] = read_rows(folder, "SELECT count(*) AS n FROM content WHERE forgotten_at IS NULL")
    if not words:
        return 0
    if held["n"] * len(words) > _MOST_COMPARISONS:
        return None
    sql = (
        "SELECT count(DISTINCT c.hash) AS n FROM content c, (SELECT unnest(?::VARCHAR[]) AS word) w "
        "WHERE contains(c.text, w.word) AND NOT list_contains(?::VARCHAR[], c.hash)"
    )
    return int(read_rows(folder, sql, [list(words), [text.hash for text in texts]])[0]["n"])


def _backups(folder: Path) -> tuple[str, ...]:
    file = folder / BACKUPS
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return tuple(str(json.loads(line)["file"]) for line in lines if line.strip())


def _exports(folder: Path, ids: set[str]) -> dict[str, int]:
    """Count the forgotten rows in the records of what was exported."""
    import pyarrow.parquet as pq

    found = {}
    for file in sorted((folder / "exports").glob("*.parquet")):
        names = [n for n in pq.read_schema(file).names if n == "id" or n.endswith("_id")]
        columns = [pq.read_table(file, columns=[n]).column(n).to_pylist() for n in names]
        count = sum(any(str(v) in ids for v in row) for row in zip(*columns, strict=True))
        if count:
            found[file.relative_to(folder).as_posix()] = count
    return found


def _event(folder: Path, plan: Forgetting, reason: str) -> Row:
    [earlier] = read_rows(folder, "SELECT count(*) AS n FROM event WHERE kind = 'forgotten'")
    detail = plan.told() | {"reason": reason}
    return {
        "id": row_id("event", kind="forgotten", nth=earlier["n"], answers=list(plan.answers)),
        "round": 0,
        "step": "forget",
        "kind": "forgotten",
        "detail": json.dumps(detail),
        "created_at": now(),
    }
