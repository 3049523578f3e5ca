"""From curated rows to the frozen training set: the tokens that were sampled, under the prompts that are learned."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import BadInput
from ..hashing import row_id
from ..store.facts import find_prompts, rounds_of
from ..store.store import Row, now
from ..trainers.rows import RowsKind
from ..trainers.trainer import Trainer
from ..types import Message, Prompt, TokenIds
from .job_files import revision_named, write_job
from .operator import Turn
from .ranked_rows import Ranking, rankings
from .reference import Asked, Reference, Spoken, refer
from .respelling import respelt


@dataclass(frozen=True, slots=True)
class Sources:
    """Which rows train, from which weights, against which reference."""

    step: str
    start: str
    reference: str
    keep_context: bool
    trainer: str
    """The trainer's name as the recipe has it, for the job's file."""
    teachers: Mapping[str, str] = field(default_factory=dict)
    """By a prompt's tag, or `*` for all others: the role that teaches."""
    given: str = ""
    """What a student that teaches itself sees."""


@dataclass(frozen=True, slots=True)
class Item:
    """One training row before it is frozen."""

    prompt_id: str
    chosen: str
    rejected: str | None = None
    weight: float = 1.0
    selection_id: str | None = None
    pair_id: str | None = None
    margin: float | None = None
    probability: float | None = None
    wanted: bool | None = None
    other: str | None = None
    """completion.id, of another prompt, that an unpaired loss sets it beside."""
    told: str | None = None
    """What the prompt says first."""
    ranking: Ranking | None = None
    """All answers of the prompt, of which `chosen` is the first."""

    @property
    def sides(self) -> tuple[str, ...]:
        """Every completion that the row holds."""
        if self.ranking:
            return self.ranking.answers
        return tuple(side for side in (self.chosen, self.rejected, self.other) if side)

    @property
    def asked(self) -> tuple[Asked, ...]:
        """What the reference is asked about it."""
        return tuple((self.prompt_id, side) for side in self.sides)


@dataclass(frozen=True, slots=True)
class Material:
    """What the frozen rows of a job are made of."""

    items: Sequence[Item]
    spoken: dict[str, Spoken]
    prompts: dict[Asked, TokenIds]
    gold: dict[str, TokenIds]
    """The reference answer of a prompt, encoded."""
    reference: Reference | None


async def prepare(turn: Turn, trainer: Trainer, sources: Sources) -> dict[str, list[Row]]:
    """Write the job's folder and return the rows that freeze its training set."""
    began = time.monotonic()
    items = _items(turn, sources.step, trainer.rows)
    known = find_prompts(turn.run.store, [item.prompt_id for item in items])
    gold = await _gold(turn, items, known) if trainer.gold else {}
    if trainer.gold and (bare := [item for item in items if item.prompt_id not in gold]):
        told = f"{len(bare)} of {len(items)} pairs left out: their prompts have no reference answer"
        turn.run.progress.note(f"round {turn.round}: {told}")
        items = [item for item in items if item.prompt_id in gold]
    said = _rows_said(turn, items)
    spoken = {row["id"]: await _said(turn, row) for row in said}
    prompts = await _prompt_ids(turn, items, spoken, known, keep_context=sources.keep_context)
    start = revision_named(turn, sources.start)
    reference = None
    if trainer.reference and items:
        named = start if sources.reference == "start" else revision_named(turn, sources.reference)
        asked = [a for item in items for a in item.asked]
        reference = await refer(turn, named, asked, spoken, prompts)
    material = Material(items, spoken, prompts, gold, reference)
    rows = [_training_row(turn, place, item, material) for place, item in enumerate(items)]
    make = _MADE[trainer.rows]
    dataset = [
        {"id": row["id"], "weight": item.weight} | make(item, material)
        for row, item in zip(rows, items, strict=True)
    ]
    write_job(
        turn, (sources.trainer, trainer), start, dataset, reference.revision if reference else None
    )
    turn.run.progress.note(
        f"round {turn.round}: {len(items)} training rows frozen in {time.monotonic() - began:.1f} s"
    )
    events = [*await respelt(turn, said), *(reference.events if reference else [])]
    return {"training_row": rows, "event": events}


# -- which rows


def _items(turn: Turn, step: str, kind: RowsKind) -> list[Item]:
    """Read the curated rows in their own order."""
    selected = turn.run.store.rows(
        """
        SELECT prompt_id::VARCHAR AS prompt_id, completion_id::VARCHAR AS chosen, weight,
               id::VARCHAR AS selection_id, wanted, told
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
    if kind == "ranked":
        lists = rankings(paired)
        return [Item(r.prompt_id, r.answers[0], weight=r.weight, ranking=r) for r in lists]
    if kind == "labelled":
        return _labelled([Item(**row) for row in selected], [Item(**row) for row in paired])
    # Pairs train supervised as their chosen side.
    chosen = {row["chosen"]: row | {"rejected": None} for row in [*selected, *paired]}
    return [Item(**row) for row in chosen.values()]


def _labelled(selected: Sequence[Item], paired: Sequence[Item]) -> list[Item]:
    """Return answers that are wanted or not, each beside an answer to another prompt.

    Raises:
        BadInput: a select step does not say which answers are wanted.
    """
    if any(item.wanted is None for item in selected):
        hint = 'say `select: {wanted: "verifier = 1"}`, or train on a `pair` step'
        raise BadInput.at("select.wanted", "says of an answer neither yes nor no", hint)
    items = [*selected, *_sides(paired)]
    if len({item.prompt_id for item in items}) < 2:
        return []  # nothing to tell how far the policy has moved
    return [replace(item, other=_other(items, place)) for place, item in enumerate(items)]


def _sides(pairs: Iterable[Item]) -> list[Item]:
    """Return both sides of pairs, each once: wanted where it was chosen more often than rejected."""
    votes: Counter[str] = Counter()
    first: dict[str, Item] = {}
    for pair in pairs:
        for side, vote in ((pair.chosen, 1), (pair.rejected or "", -1)):
            votes[side] += vote
            first.setdefault(side, replace(pair, chosen=side, rejected=None))
    return [replace(first[side], wanted=n > 0) for side, n in votes.items() if n]


def _other(items: Sequence[Item], place: int) -> str:
    """Return the next answer that is to another prompt."""
    mine = items[place].prompt_id
    later = (*items[place + 1 :], *items[:place])
    return next(item.chosen for item in later if item.prompt_id != mine)


# -- what was said, and to what


def _rows_said(turn: Turn, items: Sequence[Item]) -> list[Row]:
    """Return what was said in the completions that train, of any round, with the tokens where they were kept."""
    wanted = {side for item in items for side in item.sides}
    rounds = rounds_of(turn.run.store, wanted)
    return [row for round_ in rounds for row in _said_in(turn, round_) if row["id"] in wanted]


def _said_in(turn: Turn, round_: int) -> list[Row]:
    return turn.run.store.rows(
        """
        SELECT c.id::VARCHAR AS id, c.revision, c.finish_reason, t.token_ids, t.logprobs, t.trainable,
               r.token_ids AS saw, a.text
        FROM completion c
        JOIN content a ON a.hash = c.text_hash AND a.round = c.round
        LEFT JOIN completion_tokens t ON t.completion_id = c.id AND t.round = c.round
        LEFT JOIN rendered_prompt r ON r.id = c.rendered_prompt_id AND r.round = c.round
        WHERE c.round = ? AND c.split = 'train'
        """,
        [round_],
    )


async def _said(turn: Turn, row: Row) -> Spoken:
    """Return a completion's tokens as they were sampled; where none were kept, the text is encoded once."""
    if row["token_ids"] is not None:
        return Spoken(
            token_ids=tuple(row["token_ids"]),
            logprob=float(sum(row["logprobs"])),
            revision=row["revision"],
            saw=tuple(row["saw"]),
            trainable=row.get("trainable"),
        )
    ids = await turn.run.cast.call(turn.run.cast.student.spell, row["text"])
    # A cut answer never learns to end where it was cut.
    whole = ids if row["finish_reason"] == "stop" else ids[:-1]
    return Spoken(token_ids=whole, logprob=math.nan, revision="", saw=(), encoded=True)


async def _prompt_ids(
    turn: Turn,
    items: Sequence[Item],
    spoken: dict[str, Spoken],
    known: dict[str, Prompt],
    *,
    keep_context: bool,
) -> dict[Asked, TokenIds]:
    """Render each training prompt once, plain unless the context is kept."""
    student = turn.run.cast.student
    rendered: dict[tuple[str, str | None], TokenIds] = {}
    found: dict[Asked, TokenIds] = {}
    for item in items:
        key = item.prompt_id, item.told
        if key not in rendered:
            saw = spoken[item.chosen].saw if keep_context and not item.told else ()
            messages = known[item.prompt_id].messages
            if item.told:
                messages = _told_first(item.told, messages)
            rendered[key] = saw or await turn.run.cast.call(student.encode, messages)
        found |= dict.fromkeys(item.asked, rendered[key])
    return found


def _told_first(told: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put a text before a prompt: into its own system turn where it has one, because templates take one."""
    if messages and messages[0].role == "system":
        return (Message("system", f"{told}\n\n{messages[0].content}"), *messages[1:])
    return (Message("system", told), *messages)


async def _gold(turn: Turn, items: Sequence[Item], known: dict[str, Prompt]) -> dict[str, TokenIds]:
    """Encode the reference answer of each prompt that has one."""
    spell = turn.run.cast.student.spell
    texts = {i.prompt_id: known[i.prompt_id].reference or known[i.prompt_id].answer for i in items}
    return {name: await turn.run.cast.call(spell, text) for name, text in texts.items() if text}


# -- the frozen rows


def _training_row(turn: Turn, place: int, item: Item, material: Material) -> Row:
    reference = material.reference
    parents = list(item.sides) if item.ranking else [item.chosen, item.rejected]
    row: Row = {
        "id": row_id("training_row", round=turn.round, step=turn.step, parents=parents),
        "round": turn.round,
        "step": turn.step,
        "split": "train",
        "training_run_id": row_id(
            "training_run", run=turn.run.key, round=turn.round, step=turn.step
        ),
        "position": place,
        "prompt_id": item.prompt_id,
        "completion_id": item.chosen,
        "rejected_id": item.rejected,
        "selection_id": item.selection_id,
        "pair_id": item.pair_id,
        "weight": item.weight,
        "margin": item.margin,
        "probability": item.probability,
        "label": item.wanted,
        "other_id": item.other,
        "ranked": list(item.ranking.answers) if item.ranking else None,
        "told": item.told,
        "tokens_from": _tokens_from(item, material.spoken),
        "created_at": now(),
        "reference_chosen": None,
        "reference_rejected": None,
        "reference_from": None,
    }
    if reference is not None:
        logprobs = [reference.logprobs[a] for a in item.asked]
        row["reference_chosen"] = logprobs[0]
        row["reference_rejected"] = logprobs[1] if item.rejected else None
        row["reference_from"] = reference.source(*item.asked)
    return row


def _tokens_from(item: Item, spoken: dict[str, Spoken]) -> str:
    return "encoded" if any(spoken[side].encoded for side in item.sides) else "sampled"


def _completion(item: Item, material: Material) -> dict[str, Any]:
    said = material.spoken[item.chosen]
    own = said.trainable
    return {
        "prompt_ids": list(material.prompts[item.asked[0]]),
        "completion_ids": list(said.token_ids),
        # Of a completion of several turns only what the policy spoke itself bears loss.
        "token_weights": None if own is None else [float(token) for token in own],
    }


def _pair(item: Item, material: Material) -> dict[str, Any]:
    assert item.rejected is not None
    gold = material.gold.get(item.prompt_id)
    refs = [material.reference.logprobs[a] if material.reference else None for a in item.asked]
    return {
        "prompt_ids": list(material.prompts[item.asked[0]]),
        "chosen_ids": list(material.spoken[item.chosen].token_ids),
        "rejected_ids": list(material.spoken[item.rejected].token_ids),
        "ref_chosen_logp": refs[0],
        "ref_rejected_logp": refs[1],
        "margin": item.margin,
        "probability": item.probability,
        "gold_ids": list(gold) if gold else None,
    }


def _answer(item: Item, material: Material) -> dict[str, Any]:
    assert item.other is not None
    assert material.reference is not None
    own, beside = (material.reference.logprobs[a] for a in item.asked)
    return {
        "prompt_ids": list(material.prompts[item.asked[0]]),
        "completion_ids": list(material.spoken[item.chosen].token_ids),
        "wanted": item.wanted,
        "ref_logp": own,
        "other_ids": list(material.spoken[item.other].token_ids),
        "ref_other_logp": beside,
    }


def _list(item: Item, material: Material) -> dict[str, Any]:
    assert item.ranking is not None
    return {
        "prompt_ids": list(material.prompts[item.asked[0]]),
        "answers_ids": [list(material.spoken[side].token_ids) for side in item.sides],
        "better": list(item.ranking.better),
        "worse": list(item.ranking.worse),
    }


_MADE = {"completions": _completion, "pairs": _pair, "labelled": _answer, "ranked": _list}
