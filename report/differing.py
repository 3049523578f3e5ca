"""Which labels flipped: two judges, two pairings or two selections of one run, beside each other with texts.

Reads the published snapshot only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BadInput
from ..hashing import SHORT
from ..store.query import read_rows
from .console import clean

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
Kind = Literal["judges", "pairs", "selections"]
PASS = 0.5
"""A value from here on is a pass."""
_LONGEST = 160

_TEXTS = """
    JOIN prompt p ON p.id = {of}.prompt_id
    LEFT JOIN content asked ON asked.hash = p.messages_hash AND asked.round = p.round
"""
_PROMPT = "json_extract_string(asked.text, '$[#-1].content') AS prompt"

# One value an answer and judge, as in `answers`: the last one.
_JUDGED = """
WITH value AS (
    SELECT j.completion_id AS id, arg_max(j.value, (j.created_at, j.attempt, j.id)) FILTER (j.judge = ?) AS a,
           arg_max(j.value, (j.created_at, j.attempt, j.id)) FILTER (j.judge = ?) AS b
    FROM judgement j WHERE j.mode = 'score' AND j.aspect = '' GROUP BY j.completion_id
),
judged AS (
    SELECT c.id, c.round, c.step, c.prompt_id, c.text_hash, v.a, v.b
    FROM value v JOIN completion c ON c.id = v.id
    WHERE (v.a IS NOT NULL OR v.b IS NOT NULL) AND (len(?::INTEGER[]) = 0 OR list_contains(?, c.round))
),
"""
_FLIPS = f"""{_JUDGED}
valued AS (SELECT *, (a >= {PASS}) AS pass_a, (b >= {PASS}) AS pass_b FROM judged
           WHERE a IS NOT NULL AND b IS NOT NULL)
"""  # noqa: S608
_COUNTS = f"""{_FLIPS}
SELECT count(*) FILTER (a IS NOT NULL AND b IS NOT NULL) AS compared,
       count(*) FILTER (b IS NULL) AS only_a, count(*) FILTER (a IS NULL) AS only_b,
       count(*) FILTER (a >= {PASS} AND b < {PASS}) AS pass_to_fail,
       count(*) FILTER (a < {PASS} AND b >= {PASS}) AS fail_to_pass
FROM judged
"""  # noqa: S608
_FLIPPED = f"""{_FLIPS}
SELECT v.round, v.step, v.id::VARCHAR AS id, v.prompt_id::VARCHAR AS prompt_id, v.a, v.b,
       {_PROMPT}, t.text AS answer
FROM valued v {_TEXTS.format(of="v")}
LEFT JOIN content t ON t.hash = v.text_hash AND t.round = v.round
WHERE pass_a <> pass_b
ORDER BY v.round, p.split, v.step, p.position, v.id LIMIT ?
"""  # noqa: S608
# The best and the worst answer of A, and B puts the worst above the best. Ties of A end by the hash of the
# id, as in curation.
_ORDERS = f"""{_FLIPS},
ranked AS (
    SELECT round, prompt_id, arg_max(id, (a, md5(id::VARCHAR))) AS best, max(a) AS best_a,
           arg_min(id, (a, md5(id::VARCHAR))) AS worst, min(a) AS worst_a
    FROM valued GROUP BY round, prompt_id HAVING max(a) > min(a)
),
ordered AS (
    SELECT r.*, x.b AS best_b, y.b AS worst_b, x.text_hash AS best_hash, y.text_hash AS worst_hash
    FROM ranked r JOIN valued x ON x.id = r.best JOIN valued y ON y.id = r.worst
)
"""  # noqa: S608
_TURNED_COUNT = f"""{_ORDERS}
SELECT count(*) AS ordered, count(*) FILTER (worst_b > best_b) AS turned FROM ordered
"""  # noqa: S608
_TURNED = f"""{_ORDERS}
SELECT o.round, o.prompt_id::VARCHAR AS prompt_id, o.best::VARCHAR AS best, o.worst::VARCHAR AS worst,
       o.best_a, o.best_b, o.worst_a, o.worst_b, {_PROMPT}, g.text AS best_answer, w.text AS worst_answer
FROM ordered o {_TEXTS.format(of="o")}
LEFT JOIN content g ON g.hash = o.best_hash AND g.round = o.round
LEFT JOIN content w ON w.hash = o.worst_hash AND w.round = o.round
WHERE o.worst_b > o.best_b ORDER BY o.round, p.position, o.prompt_id LIMIT ?
"""  # noqa: S608

_PAIRS = """
WITH a AS (SELECT DISTINCT round, prompt_id, chosen_id, rejected_id FROM pair WHERE step = ?
           AND (len(?::INTEGER[]) = 0 OR list_contains(?, round))),
b AS (SELECT DISTINCT round, prompt_id, chosen_id, rejected_id FROM pair WHERE step = ?
      AND (len(?::INTEGER[]) = 0 OR list_contains(?, round))),
labelled AS (
    SELECT a.*, CASE
        WHEN EXISTS (SELECT 1 FROM b WHERE b.chosen_id = a.chosen_id AND b.rejected_id = a.rejected_id) THEN 'same'
        WHEN EXISTS (SELECT 1 FROM b WHERE b.chosen_id = a.rejected_id AND b.rejected_id = a.chosen_id) THEN 'swapped'
        ELSE 'only_a' END AS label
    FROM a
    UNION ALL
    SELECT b.*, 'only_b' FROM b WHERE NOT EXISTS (
        SELECT 1 FROM a WHERE (a.chosen_id = b.chosen_id AND a.rejected_id = b.rejected_id)
                           OR (a.chosen_id = b.rejected_id AND a.rejected_id = b.chosen_id))
)
"""
_PAIR_ROWS = f"""{_PAIRS}
SELECT l.label, l.round, l.prompt_id::VARCHAR AS prompt_id, l.chosen_id::VARCHAR AS chosen,
       l.rejected_id::VARCHAR AS rejected, {_PROMPT}, tc.text AS chosen_answer, tr.text AS rejected_answer
FROM labelled l {_TEXTS.format(of="l")}
JOIN completion cc ON cc.id = l.chosen_id JOIN completion cr ON cr.id = l.rejected_id
LEFT JOIN content tc ON tc.hash = cc.text_hash AND tc.round = cc.round
LEFT JOIN content tr ON tr.hash = cr.text_hash AND tr.round = cr.round
WHERE l.label <> 'same'
ORDER BY l.label = 'swapped' DESC, l.round, p.position, l.prompt_id, l.label, l.chosen_id, l.rejected_id LIMIT ?
"""  # noqa: S608

_SELECTIONS = """
WITH a AS (SELECT DISTINCT round, prompt_id, completion_id AS id FROM selection WHERE step = ?
           AND (len(?::INTEGER[]) = 0 OR list_contains(?, round))),
b AS (SELECT DISTINCT round, prompt_id, completion_id AS id FROM selection WHERE step = ?
      AND (len(?::INTEGER[]) = 0 OR list_contains(?, round))),
labelled AS (
    SELECT coalesce(a.round, b.round) AS round, coalesce(a.prompt_id, b.prompt_id) AS prompt_id,
           coalesce(a.id, b.id) AS id,
           CASE WHEN b.id IS NULL THEN 'only_a' WHEN a.id IS NULL THEN 'only_b' ELSE 'same' END AS label
    FROM a FULL JOIN b ON b.id = a.id
)
"""
_SELECTION_ROWS = f"""{_SELECTIONS}
SELECT l.label, l.round, l.id::VARCHAR AS id, l.prompt_id::VARCHAR AS prompt_id, {_PROMPT}, t.text AS answer
FROM labelled l {_TEXTS.format(of="l")}
JOIN completion c ON c.id = l.id
LEFT JOIN content t ON t.hash = c.text_hash AND t.round = c.round
WHERE l.label <> 'same' ORDER BY l.round, p.position, l.prompt_id, l.label, l.id LIMIT ?
"""  # noqa: S608
_LABELLED = "SELECT label, count(*) AS n FROM labelled GROUP BY label"
_LABELS = ("same", "swapped", "only_a", "only_b")


def difference(
    folder: Path, a: str, b: str, *, rounds: Sequence[int] = (), limit: int = 20
) -> dict[str, Any]:
    """Return which labels of A are others in B: `kind`, `counts` over all rows, and at most `limit` rows.

    Args:
        folder: the run's folder.
        a: a judge, or a step that makes pairs or selections.
        b: another one of the same kind.
        rounds: only these; all where it is empty.
        limit: most rows of a list.

    Raises:
        BadInput: there is no such run, or the two are not of one kind.
    """
    kind = _kind(folder, a, b)
    within = list(rounds)
    found: dict[str, Any] = {"run": folder.name, "kind": kind, "a": a, "b": b, "rounds": within}
    if kind == "judges":
        return found | _judges(folder, [a, b, within, within], limit)
    both = [a, within, within, b, within, within]
    head, rows = (_PAIRS, _PAIR_ROWS) if kind == "pairs" else (_SELECTIONS, _SELECTION_ROWS)
    counted = {r["label"]: r["n"] for r in read_rows(folder, head + _LABELLED, both)}
    labels = [label for label in _LABELS if kind == "pairs" or label != "swapped"]
    counts = {label: counted.get(label, 0) for label in labels}
    return found | {"counts": counts, "rows": read_rows(folder, rows, [*both, limit])}


def _kind(folder: Path, a: str, b: str) -> Kind:
    """Return what the two names stand for.

    Raises:
        BadInput: for nothing that both are; names what there is.
    """
    there: dict[Kind, set[str]] = {
        "judges": _names(folder, "judge", "judgement WHERE mode = 'score'"),
        # A step that kept nothing has no row but its own.
        "pairs": _names(folder, "step", "pair UNION SELECT step FROM step WHERE operator = 'pair'"),
        "selections": _names(
            folder, "step", "selection UNION SELECT step FROM step WHERE operator = 'select'"
        ),
    }
    if a == b:
        raise BadInput.at("", f"{a} twice", "give two names")
    for kind, names in there.items():
        if {a, b} <= names:
            return kind
    known = "; ".join(f"{kind}: {', '.join(sorted(n))}" for kind, n in there.items() if n)
    strange = [name for name in (a, b) if not any(name in names for names in there.values())]
    what = f"{a} and {b} are of two kinds"
    if strange:
        what = f"no judge and no step that makes rows is named {' or '.join(strange)}"
    raise BadInput.at("", what, known)


def _names(folder: Path, column: str, table: str) -> set[str]:
    rows = read_rows(folder, f"SELECT DISTINCT {column} AS name FROM {table}")  # noqa: S608
    return {row["name"] for row in rows}


def _judges(folder: Path, asked: list[Any], limit: int) -> dict[str, Any]:
    def ask(sql: str, *more: Any) -> list[Row]:
        return read_rows(folder, sql, [*asked, *more])

    [counts] = ask(_COUNTS)
    [orders] = ask(_TURNED_COUNT)
    return {
        "counts": counts | orders,
        "rows": ask(_FLIPPED, limit),
        "turned": ask(_TURNED, limit),
    }


# -- for people


def show_difference(console: Console, found: dict[str, Any]) -> None:
    """Print the counts, then the rows with their texts."""
    a, b, counts = clean(found["a"]), clean(found["b"]), found["counts"]
    if found["kind"] == "judges":
        _say(console, f"{counts['compared']} answers with a value of both {a} and {b}")
        _say(console, f"  {counts['only_a']} only {a}, {counts['only_b']} only {b}")
        flipped = counts["pass_to_fail"] + counts["fail_to_pass"]
        _say(
            console,
            f"  {flipped} flipped at {PASS}: {counts['fail_to_pass']} fail for {a} and pass for {b}, "
            f"{counts['pass_to_fail']} the other way",
        )
        _say(
            console,
            f"{counts['ordered']} prompts whose answers {a} orders: on {counts['turned']} of them "
            f"{b} puts the worst above the best",
        )
        _show_flips(console, found)
        return
    noun = found["kind"]
    swapped = f", {counts['swapped']} with chosen and rejected swapped" if noun == "pairs" else ""
    _say(console, f"{counts['same']} {noun} in both{swapped}")
    _say(console, f"  {counts['only_a']} only in {a}, {counts['only_b']} only in {b}")
    _show_rows(console, found)


def _show_flips(console: Console, found: dict[str, Any]) -> None:
    a, b = clean(found["a"]), clean(found["b"])
    for row in found["rows"]:
        head = f"round {row['round']} {row['step']} {row['id'][:SHORT]}"
        _say(console, f"\n{head}  {a} {row['a']:g}  {b} {row['b']:g}", "bold")
        _text(console, "prompt", row["prompt"])
        _text(console, "answer", row["answer"])
    for row in found["turned"]:
        head = f"round {row['round']} prompt {row['prompt_id'][:SHORT]}"
        _say(console, f"\n{head}  best for {a}, worst for {b}", "bold")
        _text(console, "prompt", row["prompt"])
        for side in ("best", "worst"):
            values = f"{a} {row[f'{side}_a']:g}, {b} {row[f'{side}_b']:g}"
            _text(console, f"{row[side][:SHORT]} ({values})", row[f"{side}_answer"])


def _show_rows(console: Console, found: dict[str, Any]) -> None:
    named = {
        "swapped": "swapped",
        "only_a": f"only in {found['a']}",
        "only_b": f"only in {found['b']}",
    }
    for row in found["rows"]:
        head = f"round {row['round']} prompt {row['prompt_id'][:SHORT]}"
        _say(console, f"\n{head}  {clean(named[row['label']])}", "bold")
        _text(console, "prompt", row["prompt"])
        if found["kind"] == "selections":
            _text(console, f"kept {row['id'][:SHORT]}", row["answer"])
            continue
        # A swapped pair is shown as A has it.
        side = f" in {found['a']}" if row["label"] == "swapped" else ""
        _text(console, f"chosen{side} {row['chosen'][:SHORT]}", row["chosen_answer"])
        _text(console, f"rejected{side} {row['rejected'][:SHORT]}", row["rejected_answer"])


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False)


def _text(console: Console, name: str, text: str | None) -> None:
    whole = clean(text if text is not None else "(forgotten)")
    shown = whole if len(whole) <= _LONGEST else whole[: _LONGEST - 3] + "..."
    _say(console, f"  {clean(name)}: {shown}")
