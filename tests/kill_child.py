"""A writer that is killed at random; what it acknowledged stands in a file beside the store.

Everything of a chunk follows from its number, so that a reader can tell whole chunks from half ones.
"""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

from store_rows import WHEN, completion, event, judgement

from redistill.errors import StoreProblem
from redistill.store.store import Store, content

PER_ROUND = 50
PLACES = {
    "event": "step",
    "completion": "step",
    "completion_tokens": "(SELECT c.step FROM completion c WHERE c.id = completion_id)",
    "judgement": "step",
    "content": "split_part(text, ':', 1)",
}
"""Tables that a chunk writes, and what names the chunk in each."""


def expected(chunk: int) -> dict[str, int]:
    """Return the rows of each table that a chunk writes."""
    draw = random.Random(chunk)
    answers = draw.randint(1, 12)
    return {
        "event": draw.randint(1, 5),
        "completion": answers,
        "completion_tokens": answers,
        "judgement": 3 * answers,
        "content": answers,
    }


def rows_of(chunk: int) -> dict[str, Any]:
    """Return the rows of a chunk."""
    counts, round_ = expected(chunk), 1 + chunk // PER_ROUND
    about: dict[str, Any] = {"round": round_, "step": f"chunk{chunk}"}
    rows: dict[str, Any] = {name: [] for name in counts}
    for n in range(counts["event"]):
        rows["event"].append(event(f"{chunk}.{n}", **about))
    for n in range(counts["completion"]):
        text = f"chunk{chunk}:{n}:" + random.Random(f"{chunk}.{n}").randbytes(200).hex()
        answer = completion(f"{chunk}.{n}", text, **about) | {
            "text_hash": content(text, 1)["hash"],
            "tokens": 16,
        }
        rows["completion"].append(answer)
        rows["content"].append(content(text, round_))
        rows["completion_tokens"].append(
            {
                "completion_id": answer["id"],
                "round": round_,
                "token_ids": list(range(16)),
                "logprobs": [-0.5] * 16,
            }
        )
        for judge in ("verifier", "longest", "other"):
            said = judgement(f"{chunk}.{n}", 0.5, judge=judge, **about)
            rows["judgement"].append(said | {"created_at": WHEN})
    return rows


def commit(store: Store, chunk: int) -> bool:
    """Commit a chunk."""
    round_ = 1 + chunk // PER_ROUND
    return store.commit(rows_of(chunk), round=round_, step="s", chunk=chunk)


def write(folder: str, ledger: str, seed: int) -> None:
    """Write chunks until killed; fsync each one's number after its commit has returned."""
    draw = random.Random(seed)
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = _opened(folder, draw)
    [found] = store.rows("SELECT coalesce(max(chunk), -1) AS last FROM write_batch")
    for _ in range(min(3, found["last"])):
        assert not commit(store, draw.randint(0, found["last"]))  # known: sent again, a no-op
    chunk = found["last"]
    while True:
        chunk += 1
        if draw.random() < 0.1:
            _refused(store, chunk)
        assert commit(store, chunk)
        os.write(descriptor, f"{chunk}\n".encode())
        os.fsync(descriptor)
        _something_else(store, draw)
        if draw.random() < 0.03:
            store.close()
            store = _opened(folder, draw)


def _opened(folder: str, draw: random.Random) -> Store:
    store = Store(Path(folder), ["verifier"])
    most = draw.choice(["16KB", "256KB", "16MB"])
    store.work(lambda connection: connection.execute(f"SET checkpoint_threshold = '{most}'"))
    return store


def _refused(store: Store, chunk: int) -> None:
    """Send a chunk with one row that no check lets in: it is rolled back whole."""
    rows = rows_of(chunk)
    rows["judgement"].append(judgement("nan", math.nan) | {"round": 1 + chunk // PER_ROUND})
    try:
        store.commit(rows, round=1 + chunk // PER_ROUND, step="s", chunk=chunk)
    except StoreProblem:
        return
    raise AssertionError("a NaN was let in")


def _something_else(store: Store, draw: random.Random) -> None:
    what = draw.random()
    if what < 0.15:
        store.publish(force=True)
    elif what < 0.3:
        store.work(lambda connection: connection.execute("CHECKPOINT"))
    elif what < 0.4:
        store.rows("SELECT step, count(*) FROM event GROUP BY step")
