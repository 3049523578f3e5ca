"""Talking with two revisions side by side: what they say, and what a person says of it, as rows of the run.

A prompt that is typed goes where imported ones go: into the split train, with the tag that keeps it from being
sampled. One that overlaps with held-out or test prompts is answered, and nothing of it is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import BadInput
from ..hashing import content_hash, row_id, row_seed
from ..policies.policy import Generation, Policy, Request, Sampling
from ..store.format import Record
from ..store.incoming import Incoming, Manner
from ..store.store import Row, Store, content, now
from ..types import Judgement, Message, TokenIds
from .held_revision import Named
from .judges.human import Human
from .reviewing import LEFT, RIGHT, TIE

STEP = "chat"
SOURCE = "redistill chat"
QUESTION = "Which answer is better?"
PERSON = "person"
"""What stands in the `role` of an answer that a person has written."""
_TABLES = ("prompt", "rendered_prompt", "completion", "completion_tokens", "content", "judgement",
           "pair", "feedback", "event")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that answer."""

    named: Named
    policy: Policy


@dataclass(frozen=True, slots=True)
class Said:
    """One answer with all that is known of it."""

    side: Side
    prompt_ids: TokenIds
    generation: Generation
    seconds: float

    @property
    def ended(self) -> bool:
        """Whether it ended by itself; a cut answer is never chosen."""
        return self.generation.finish_reason == "stop"


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt and both answers, in the order in which they are shown."""

    nth: int
    messages: tuple[Message, ...]
    answers: tuple[Said, Said]
    barred: str
    """Why nothing of it may be kept; empty where it may."""

    @property
    def same(self) -> bool:
        """Whether both say the same."""
        first, second = self.answers
        return first.generation.text == second.generation.text


@dataclass(slots=True)
class Chat:
    """Asks two revisions, and writes what a person says of their answers, each verdict at once.

    Args:
        store: of the run, open.
        sides: who answers; shown in this order unless blind.
        sampling: how.
        author: who judges.
        blind: whether chance decides who is shown first.
    """

    store: Store
    sides: tuple[Side, Side]
    sampling: Sampling
    author: str
    blind: bool = True
    _incoming: Incoming = field(init=False)
    _judge: Human = field(init=False)
    _nth: int = field(init=False)

    def __post_init__(self) -> None:
        self._judge = Human(question=QUESTION)
        self._incoming = Incoming(self.store, Manner(STEP, SOURCE, "unknown", self._judge.name))
        ledger = self.store.rows("SELECT count(*) AS n FROM write_batch WHERE step = ?", [STEP])
        self._nth = int(ledger[0]["n"])

    def ask(self, text: str) -> Shown:
        """Let both answer.

        Raises:
            BadInput: the prompt leaves no room for an answer.
        """
        messages = (Message("user", text),)
        order = self.sides
        if self.blind and row_seed(f"chat {self._nth} {content_hash(text)}") & 1:
            order = (order[1], order[0])
        first, second = (self._answer(side, messages) for side in order)
        found = self._incoming.overlap(messages, [first.generation.text, second.generation.text])
        shown = Shown(self._nth, messages, (first, second), found["reason"] if found else "")
        self._nth += 1
        return shown

    def _answer(self, side: Side, messages: Sequence[Message]) -> Said:
        prompt_ids = side.policy.encode(messages)
        room = side.policy.context_length - len(prompt_ids)
        if room < self.sampling.max_tokens:
            what = f"{len(prompt_ids)} tokens leave {max(0, room)} of {side.policy.context_length}"
            raise BadInput.at("prompt", what, f"the answer may need {self.sampling.max_tokens}")
        seed = row_seed(f"chat {self._nth} {side.named.revision.id}")
        began = time.monotonic()
        [generation] = side.policy.generate([Request(prompt_ids, seed)], self.sampling)
        return Said(side, prompt_ids, generation, time.monotonic() - began)

    # -- what the person says

    def prefer(self, shown: Shown, key: str, seconds: float) -> None:
        """Write which answer is better: `1`, `2` or `t`.

        A winner is a row of feedback, and a pair where it ended by itself; a tie is a verdict alone.
        """
        rows, prompt, ids = self._begin(shown)
        ranks = {LEFT: (1, 2), RIGHT: (2, 1), TIE: (1, 1)}[key]
        rows["judgement"] = [self._verdict(shown, ids, ranks, seconds)]
        if key != TIE:
            best, other = (0, 1) if key == LEFT else (1, 0)
            rows["feedback"] = [self._feedback(shown, "preference", prompt, ids[best], ids[other])]
            if shown.answers[best].ended and not shown.same:
                rows["pair"] = [self._pair(shown, "preference", prompt, ids[best], ids[other])]
        self._commit(shown, rows)

    def improve(self, shown: Shown, place: int, text: str, seconds: float) -> str:
        """Write an answer that a person has made of the one at a place, 0 or 1; return why not, if so."""
        if found := self._incoming.overlap(shown.messages, [text]):
            return str(found["reason"])
        rows, prompt, ids = self._begin(shown)
        better = self._written(shown, prompt, text, ids[place]) | {"seconds": seconds}
        rows["completion"].append(better)
        rows["content"].append(content(text, 0))
        rows["feedback"] = [self._feedback(shown, "edit", prompt, better["id"], ids[place])]
        rows["pair"] = [self._pair(shown, "edit", prompt, better["id"], ids[place])]
        self._commit(shown, rows)
        return ""

    def _commit(self, shown: Shown, rows: dict[str, list[Row]]) -> None:
        found = {name: part for name, part in rows.items() if part}
        if not self.store.rows("SELECT 1 FROM step WHERE round = 0 AND step = ?", [STEP]):
            row = self._about("step", shown, kind="step") | {"position": 0, "operator": STEP}
            row |= {
                "id": row_id("step", round=0, step=STEP),
                "origin": "imported",
                "settings": "{}",
            }
            found["step"] = [row]
        # A person's time is in the verdict; the ledger's is the run's own.
        self.store.commit(found, round=0, step=STEP, chunk=shown.nth)

    def _begin(self, shown: Shown) -> tuple[dict[str, list[Row]], str, list[str]]:
        """Return the rows of the prompt and both answers, the prompt's id, and those of the answers as shown."""
        if shown.barred:
            raise ValueError(f"nothing of this may be kept: {shown.barred}")
        rows: dict[str, list[Row]] = {name: [] for name in _TABLES}
        record = Record("preference", shown.messages, "", "", licence="unknown")
        prompt = self._incoming.prompt(record, rows)
        ids = []
        for said in shown.answers:
            rendered = self._rendered(prompt, said)
            row = self._completion(shown, prompt, said, rendered["id"])
            rows["rendered_prompt"].append(rendered)
            rows["completion"].append(row)
            rows["completion_tokens"].append(
                {
                    "completion_id": row["id"],
                    "round": 0,
                    "token_ids": list(said.generation.token_ids),
                    "logprobs": list(said.generation.logprobs),
                }
            )
            rows["content"].append(content(said.generation.text, 0))
            ids.append(str(row["id"]))
        # Both have one tokenizer, and so one rendered prompt.
        rows["rendered_prompt"] = list({row["id"]: row for row in rows["rendered_prompt"]}.values())
        return rows, prompt, ids

    # -- rows

    def _about(self, table: str, shown: Shown, **request: Any) -> Row:
        identifier = row_id(table, round=0, step=STEP, nth=shown.nth, **request)
        return {"id": identifier, "round": 0, "step": STEP, "created_at": now()}

    def _rendered(self, prompt: str, said: Said) -> Row:
        vocabulary = said.side.policy.vocabulary
        asked = {"round": 0, "prompt": prompt, "context": "", "vocabulary": vocabulary}
        return {
            "id": row_id("rendered_prompt", **asked),
            "round": 0,
            "prompt_id": prompt,
            "context": "",
            "vocabulary": vocabulary,
            "token_ids": list(said.prompt_ids),
            "created_at": now(),
        }

    def _completion(self, shown: Shown, prompt: str, said: Said, rendered: str) -> Row:
        revision, generation = said.side.named.revision.id, said.generation
        asked = {"prompt": prompt, "revision": revision, "sampling": asdict(self.sampling)}
        return self._about("completion", shown, **asked) | {
            "split": "train",
            "prompt_id": prompt,
            "rendered_prompt_id": rendered,
            "parent_id": None,
            "slot": 0,
            "attempt": 0,
            "role": "student",
            "revision": revision,
            "text_hash": content_hash(generation.text),
            "payload_hash": content_hash([list(generation.token_ids), generation.finish_reason]),
            "finish_reason": generation.finish_reason,
            "temperature": self.sampling.temperature,
            "sampling": json.dumps(asdict(self.sampling)),
            "tokens": len(generation.token_ids),
            "seconds": said.seconds,
            "source": SOURCE,
        }

    def _written(self, shown: Shown, prompt: str, text: str, original: str) -> Row:
        """Return the completion that a person has written: no weights, no tokens."""
        hashed = content_hash(text)
        return self._about("completion", shown, prompt=prompt, parents=[original]) | {
            "split": "train",
            "prompt_id": prompt,
            "rendered_prompt_id": None,
            "parent_id": original,
            "slot": 0,
            "attempt": 0,
            "role": PERSON,
            "revision": None,
            "text_hash": hashed,
            "payload_hash": hashed,
            "finish_reason": "stop",
            "temperature": None,
            "sampling": "{}",
            "tokens": None,
            "source": SOURCE,
            "licence": "unknown",
        }

    def _verdict(
        self, shown: Shown, ids: Sequence[str], ranks: tuple[int, int], seconds: float
    ) -> Row:
        """Return the comparison, with the answers in the order in which they were seen."""
        said = Judgement.ranked(ranks)
        row = self._about("judgement", shown, parents=list(ids), judge=self._judge.revision)
        return row | {
            "mode": "compare",
            "completion_id": None,
            "presented": list(ids),
            "ranks": list(ranks),
            "judge": self._judge.name,
            "judge_revision": self._judge.revision,
            "role": self.author,
            "aspect": "",
            "attempt": 0,
            "status": said.status,
            "value": said.value,
            "parts": json.dumps({"blind": self.blind}),
            "seconds": seconds,
        }

    def _pair(self, shown: Shown, rule: str, prompt: str, chosen: str, rejected: str) -> Row:
        return self._about("pair", shown, parents=[chosen, rejected]) | {
            "split": "train",
            "prompt_id": prompt,
            "chosen_id": chosen,
            "rejected_id": rejected,
            "judge": self._judge.name,
            "judge_revision": self._judge.revision,
            "rule": rule,
            "margin": 1.0,
            "probability": 1.0,
            "weight": 1.0,
        }

    def _feedback(self, shown: Shown, kind: str, prompt: str, best: str, other: str) -> Row:
        return self._about("feedback", shown, kind=kind, parents=[best, other]) | {
            "prompt_id": prompt,
            "kind": kind,
            "completion_id": best,
            "other_id": other,
            "value": None,
            "text_hash": None,
            "author": self.author,
            "source": SOURCE,
            "licence": "unknown",
        }
