"""From curated rows to the frozen training set: tokens that were sampled, and the right reference.

Stored log-probs serve as reference log-probs where the revision and the exact prompt token ids are the
reference's own; then iterative DPO needs no reference pass. Every other completion is scored once. A
sample of the stored ones is scored too, and when the engine disagrees with itself beyond its noise, all
are scored anew.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hashing import row_id
from ..policies.revision import Revision
from ..store.store import Row, now
from ..trainers.rows import rows_table, write_rows
from ..trainers.trainer import Job, Trainer
from ..types import Prompt, TokenIds
from .operator import Turn
from .roles import STUDENT

_CHECKED_SHARE = 0.01
_CHECKED_LEAST = 4
_NOISE = 5e-3
"""Nats a token by which two passes of one engine over the same tokens may differ."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Which rows train, from which weights, against which reference."""

    step: str
    start: str
    reference: str
    keep_context: bool
    trainer: str
    """The trainer's name as the recipe has it, for the job's file."""


@dataclass(frozen=True, slots=True)
class Item:
    """One training row before it is frozen."""

    prompt_id: str
    chosen: str
    rejected: str | None
    weight: float
    selection_id: str | None = None
    pair_id: str | None = None
    margin: float | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Spoken:
    """A completion with what the policy saw when it spoke."""

    token_ids: TokenIds
    logprob: float
    """Raw log-prob of the whole completion, nats."""
    revision: str
    saw: TokenIds
    """Empty where nobody here rendered it."""
    encoded: bool = False
    """Whether the ids were made from the text, because a server gave none."""


@dataclass(slots=True)
class Reference:
    """Reference log-probs by completion, and where each is from."""

    revision: str
    logprobs: dict[str, float]
    sources: dict[str, str]


async def prepare(turn: Turn, trainer: Trainer, sources: Sources) -> dict[str, list[Row]]:
    """Write the job's folder and return the rows that freeze its training set."""
    began = time.monotonic()
    items = _items(turn, sources.step, trainer.rows)
    spoken = await _spoken(turn, items)
    prompts = await _prompt_ids(turn, items, spoken, keep_context=sources.keep_context)
    start = _revision(turn, sources.start)
    reference = None
    events: list[Row] = []
    if trainer.rows == "pairs" and items:
        named = start if sources.reference == "start" else _revision(turn, sources.reference)
        reference, events = await _reference(turn, named, items, spoken, prompts)
    training_run = row_id("training_run", run=turn.run.key, round=turn.round, step=turn.step)
    rows = [
        _training_row(turn, training_run, place, item, reference)
        | {"tokens_from": _tokens_from(item, spoken)}
        for place, item in enumerate(items)
    ]
    dataset = [
        _dataset_row(row, item, spoken, prompts, reference)
        for row, item in zip(rows, items, strict=True)
    ]
    _write_job(turn, (sources.trainer, trainer), start, reference, dataset)
    turn.run.progress.note(
        f"round {turn.round}: {len(items)} training rows frozen in {time.monotonic() - began:.1f} s"
    )
    return {"training_row": rows, "event": events}


def job_folder(turn: Turn) -> Path:
    """Return the folder of a round's training job."""
    return turn.run.folder / "jobs" / str(turn.round)


def _items(turn: Turn, step: str, kind: str) -> list[Item]:
    """Read the curated rows in their own order; pairs train supervised as their chosen side."""
    selected = turn.run.store.rows(
        """
        SELECT prompt_id::VARCHAR AS prompt_id, completion_id::VARCHAR AS chosen, NULL AS rejected, weight,
               id::VARCHAR AS selection_id
        FROM selection WHERE round = ? AND step = ? ORDER BY position
        """,
        [turn.round, step],
    )
    paired = turn.run.store.rows(
        """
        SELECT prompt_id::VARCHAR AS prompt_id, chosen_id::VARCHAR AS chosen,
               rejected_id::VARCHAR AS rejected, weight, id::VARCHAR AS pair_id, margin, probability
        FROM pair WHERE round = ? AND step = ? ORDER BY id
        """,
        [turn.round, step],
    )
    if kind == "pairs":
        return [Item(**row) for row in paired]
    chosen = {row["chosen"]: row | {"rejected": None} for row in [*selected, *paired]}
    return [Item(**row) for row in chosen.values()]


async def _spoken(turn: Turn, items: Sequence[Item]) -> dict[str, Spoken]:
    """Return what was said by completion; where no ids were kept, the text is encoded once."""
    wanted = {side for item in items for side in (item.chosen, item.rejected) if side}
    rows = turn.run.store.rows(
        """
        SELECT c.id::VARCHAR AS id, c.revision, c.finish_reason, t.token_ids, t.logprobs,
               r.token_ids AS saw, a.text
        FROM completion c
        JOIN content a ON a.hash = c.text_hash AND a.round = c.round
        LEFT JOIN completion_tokens t ON t.completion_id = c.id AND t.round = c.round
        LEFT JOIN rendered_prompt r ON r.id = c.rendered_prompt_id AND r.round = c.round
        WHERE c.round = ? AND c.split = 'train'
        """,
        [turn.round],
    )
    return {row["id"]: await _said(turn, row) for row in rows if row["id"] in wanted}


async def _said(turn: Turn, row: Row) -> Spoken:
    if row["token_ids"] is not None:
        return Spoken(
            token_ids=tuple(row["token_ids"]),
            logprob=float(sum(row["logprobs"])),
            revision=row["revision"],
            saw=tuple(row["saw"]),
        )
    ids = await turn.run.cast.call(turn.run.cast.student.spell, row["text"])
    # A cut answer never learns to end where it was cut.
    whole = ids if row["finish_reason"] == "stop" else ids[:-1]
    return Spoken(token_ids=whole, logprob=math.nan, revision="", saw=(), encoded=True)


async def _prompt_ids(
    turn: Turn, items: Sequence[Item], spoken: dict[str, Spoken], *, keep_context: bool
) -> dict[str, TokenIds]:
    """Render each training prompt once, plain unless the context is kept."""
    student = turn.run.cast.student
    known: dict[str, Prompt] = {p.id: p for p in turn.run.round_prompts(turn.round)}
    rendered: dict[str, TokenIds] = {}
    for item in items:
        said = spoken[item.chosen]
        if item.prompt_id not in rendered:
            rendered[item.prompt_id] = (
                said.saw
                if keep_context and said.saw
                else await turn.run.cast.call(student.encode, known[item.prompt_id].messages)
            )
    return rendered


def _revision(turn: Turn, name: str) -> Revision:
    run = turn.run
    rows = run.store.rows("SELECT round, champion FROM round ORDER BY round")
    by_round = {row["round"]: str(row["champion"]) for row in rows}
    initial = by_round[1]
    named = {
        "champion": turn.champion,
        "initial": initial,
        "previous": by_round.get(turn.round - 1, initial),
    }
    return run.cast.revision(named[name])


async def _reference(
    turn: Turn,
    revision: Revision,
    items: Sequence[Item],
    spoken: dict[str, Spoken],
    prompts: dict[str, TokenIds],
) -> tuple[Reference, list[Row]]:
    """Return the reference log-prob of every completion, and an event where stored ones were wrong."""
    sides = [(i.prompt_id, side) for i in items for side in (i.chosen, i.rejected) if side]
    asked = {side: prompts[prompt] for prompt, side in sides}
    stored = {
        side
        for side, prompt_ids in asked.items()
        if spoken[side].revision == revision.id and spoken[side].saw == prompt_ids
    }
    count = min(len(stored), max(_CHECKED_LEAST, int(len(stored) * _CHECKED_SHARE)))
    checked = sorted(stored)[:count]
    missing = sorted(asked.keys() - stored)
    measured = await _score(turn, revision, [*checked, *missing], asked, spoken)
    off = [abs(measured[s] - spoken[s].logprob) / len(spoken[s].token_ids) for s in checked]
    worst = max(off, default=0.0)
    events = []
    if worst > _NOISE:
        events = [_stale(turn, worst, len(stored))]
        stored = set()
        measured = await _score(turn, revision, sorted(asked), asked, spoken)
    logprobs = measured | {side: spoken[side].logprob for side in stored}
    sources = {side: "stored" if side in stored else "scored" for side in asked}
    return Reference(revision.id, logprobs, sources), events


async def _score(
    turn: Turn,
    revision: Revision,
    sides: Sequence[str],
    asked: dict[str, TokenIds],
    spoken: dict[str, Spoken],
) -> dict[str, float]:
    if not sides:
        return {}
    run = turn.run
    policy = await run.cast.hold(STUDENT, revision, run.store, turn.round)
    pairs = [(asked[side], spoken[side].token_ids) for side in sides]
    scored = await run.cast.call(policy.score, pairs)
    return {side: float(sum(logprobs)) for side, logprobs in zip(sides, scored, strict=True)}


def _stale(turn: Turn, worst: float, rows: int) -> Row:
    detail = {"worst_nats_a_token": worst, "bound": _NOISE, "rescored": rows}
    return {
        "id": row_id("event", kind="reference_rescored", round=turn.round, step=turn.step),
        "round": turn.round,
        "step": turn.step,
        "kind": "reference_rescored",
        "detail": json.dumps(detail),
        "created_at": now(),
    }


def _training_row(
    turn: Turn, training_run: str, place: int, item: Item, reference: Reference | None
) -> Row:
    row: dict[str, Any] = {
        "id": row_id(
            "training_row",
            round=turn.round,
            step=turn.step,
            parents=[item.chosen, item.rejected],
        ),
        "round": turn.round,
        "step": turn.step,
        "split": "train",
        "training_run_id": training_run,
        "position": place,
        "prompt_id": item.prompt_id,
        "completion_id": item.chosen,
        "rejected_id": item.rejected,
        "selection_id": item.selection_id,
        "pair_id": item.pair_id,
        "weight": item.weight,
        "margin": item.margin,
        "probability": item.probability,
        "created_at": now(),
        "reference_chosen": None,
        "reference_rejected": None,
        "reference_from": None,
    }
    if reference is not None and item.rejected is not None:
        row["reference_chosen"] = reference.logprobs[item.chosen]
        row["reference_rejected"] = reference.logprobs[item.rejected]
        both = {reference.sources[item.chosen], reference.sources[item.rejected]}
        row["reference_from"] = "stored" if both == {"stored"} else "scored"
    return row


def _tokens_from(item: Item, spoken: dict[str, Spoken]) -> str:
    sides = [side for side in (item.chosen, item.rejected) if side]
    return "encoded" if any(spoken[side].encoded for side in sides) else "sampled"


def _dataset_row(
    row: Row,
    item: Item,
    spoken: dict[str, Spoken],
    prompts: dict[str, TokenIds],
    reference: Reference | None,
) -> dict[str, Any]:
    chosen = list(spoken[item.chosen].token_ids)
    base = {"id": row["id"], "prompt_ids": list(prompts[item.prompt_id])}
    if reference is None or item.rejected is None:
        return base | {"completion_ids": chosen, "weight": item.weight}
    return base | {
        "chosen_ids": chosen,
        "rejected_ids": list(spoken[item.rejected].token_ids),
        "ref_chosen_logp": row["reference_chosen"],
        "ref_rejected_logp": row["reference_rejected"],
    }


def _write_job(
    turn: Turn,
    named: tuple[str, Trainer],
    start: Revision,
    reference: Reference | None,
    dataset: list[dict[str, Any]],
) -> None:
    name, trainer = named
    folder = job_folder(turn)
    rows = folder / "rows.parquet"
    digest = write_rows(rows, rows_table(trainer.rows, dataset))
    Job(
        id=f"round-{turn.round}",
        trainer={name: trainer.params()},
        start_folder=start.folder,
        start_revision=start.id,
        reference_revision=reference.revision if reference else None,
        revisions_root=turn.run.folder / "revisions",
        seed=turn.run.seed % 2**32,
        threads=turn.run.threads,
        rows=rows,
        dataset_hash=digest,
    ).write(folder, turn.run.folder)
