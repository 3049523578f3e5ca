"""From what a role said to rows: the prompt that is read in it, whether it is new, and what it becomes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..hashing import row_id
from ..store.duplicates import words
from ..store.facts import prompt_id, prompt_row
from ..store.novelty import Finding, Novelty
from ..store.proposals import held_out, known_texts, next_place
from ..store.store import Row, content, now
from ..store.text import storable
from ..types import Completion, Message, Prompt
from .answer import Answered
from .operator import Turn
from .proposing import Call

if TYPE_CHECKING:
    from .operators.propose import Propose

SOURCE = "propose"
_LABEL = re.compile(
    r"^(?:(?:new\s+)?(?:prompt|question|instruction|task|request|problem)\s*\d*\s*:|\d+\s*[.):](?=\s))\s*",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u00ab": "\u00bb", "\u2018": "\u2019"}


def read_prompt(reply: str) -> str:
    """Return the one prompt of a reply: all of it, without a number, a label such as `Question:`, or quotes around it."""
    text = storable(reply).strip()
    while True:
        stripped = _LABEL.sub("", text, count=1)
        if len(stripped) > 1 and _QUOTES.get(stripped[0]) == stripped[-1]:
            inner = stripped[1:-1]
            # Quotes inside are those of two quotations, and not one pair around the whole.
            stripped = inner if stripped[0] not in inner and stripped[-1] not in inner else stripped
        if (stripped := stripped.strip()) == text:
            return text
        text = stripped


def proposal_rows(
    turn: Turn, step: Propose, calls: Mapping[str, Call], answered: Answered
) -> dict[str, list[Row]]:
    """Return the rows of a chunk of proposals: what was asked, what came, its verdict, the prompts that were kept.

    A proposal is held against every prompt that may train, those of earlier chunks and rounds included, and
    against what stands before it in its own chunk.

    Args:
        turn: where the run stands.
        step: its settings decide what is new.
        calls: by the id of what the role was asked.
        answered: what it said, in the planned order.
    """
    store = turn.run.store
    novelty = Novelty(step.novelty, step.most_alike, known_texts(store), held_out(store))
    rows: dict[str, list[Row]] = {"proposal": [], "prompt": [], **answered.rows}
    first = next_place(store)
    for asked, said in answered.completions:
        call, text = calls[asked.id], read_prompt(said.text)
        found = _found(step, said, text, novelty)
        new = _kept(step, call, text) if found.verdict == "kept" else None
        _add(rows, asked, turn.round, first, {})
        if new:
            novelty.keep(new.id, text)
            origin = {"completion_id": said.id, "parent_id": call.parent_id}
            _add(rows, new, turn.round, first, origin)
        written = content(text, turn.round)
        rows["content"].append(written)
        read = {"text_hash": written["hash"], "prompt_id": new.id if new else None}
        rows["proposal"].append(_row(turn, call, said, found) | read)
    return rows


def _add(rows: dict[str, list[Row]], prompt: Prompt, round_: int, first: int, origin: Row) -> None:
    """Add a prompt behind those that the chunk has; `first` is the place of its first one."""
    row, texts = prompt_row(prompt, round_, first + len(rows["prompt"]))
    rows["prompt"].append(row | origin)
    rows["content"] += texts


def _found(step: Propose, said: Completion, text: str, novelty: Novelty) -> Finding:
    """Say what a proposal is; one that is no whole prompt is compared with nothing."""
    size = len(words(text))
    if not said.ended:
        return Finding("cut")
    if not size:
        return Finding("empty")
    if size < step.shortest:
        return Finding("short")
    if size > step.longest:
        return Finding("long")
    return novelty.find(text)


def _kept(step: Propose, call: Call, text: str) -> Prompt:
    messages, document = (Message("user", text),), call.document
    reference = document.text if document else None
    return Prompt(
        id=prompt_id(messages, {"reference": reference}),
        messages=messages,
        split="train",
        reference=reference,
        tags=step.tags,
        source=f"{SOURCE} from {document.source}" if document and document.source else SOURCE,
        licence=document.licence if document else "",
    )


def _row(turn: Turn, call: Call, said: Completion, found: Finding) -> Row:
    return {
        "id": row_id(
            "proposal", run=turn.run.key, round=turn.round, step=turn.step, parents=[said.id]
        ),
        "round": turn.round,
        "step": turn.step,
        "position": call.place,
        "completion_id": said.id,
        "seeds": _ids(call.seeds),
        "answer_id": call.answer.id if call.answer else None,
        "verdict": found.verdict,
        "nearest_id": found.nearest,
        "similarity": found.similarity,
        "measure": found.measure,
        "created_at": now(),
    }


def _ids(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]
