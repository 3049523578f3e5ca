"""Rows of the small run: made-up prompts and answers in the shape in which the loop writes them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..hashing import content_hash, row_id, row_seed
from ..policies.policy import Sampling
from ..store.store import Row, now
from ..types import Completion, FinishReason, Prompt

_CAPITALS = (
    "France Paris;Italy Rome;Spain Madrid;Greece Athens;Norway Oslo;Sweden Stockholm;Poland Warsaw;"
    "Austria Vienna;Hungary Budapest;Portugal Lisbon;Finland Helsinki;Denmark Copenhagen;Ireland Dublin;"
    "Japan Tokyo;China Beijing;Peru Lima;Chile Santiago;Cuba Havana;Egypt Cairo;Kenya Nairobi;"
    "Turkey Ankara;Iran Tehran;Canada Ottawa;Russia Moscow"
)
_FORMS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("word", "Answer with one word only.", "{}", {"word": True}),
    ("quotes", "Put the one word of your answer in quotes.", '"{}"', {"quoted": True}),
    ("answer", "Write your answer as Answer: X.", "Answer: {}", {"starts_with": "Answer: "}),
    ("sentence", "Answer with a whole sentence.", "The capital is {}.", {"sentence": True}),
)
_TRANSFER = ("capitals", "Answer with one word in capital letters.", "{}", {"uppercase": True})
_WORDINGS = ("What is the capital of {}?", "Name the capital city of {}.")


RECIPE = """\
name: NAME
student: redistill.testing.fakes:FakeStudent
prompts: {file: inputs/0-prompts.jsonl, per_round: 24}
round:
- sample: {k: 4, temperature: 0.7, max_tokens: 24}
- score: {judge: verifier}
- pair: {by: verifier, rule: best_worst}
- train: {trainer: dpo, beta: 0.1, batch_size: 4}
- evaluate: {judge: verifier, max_tokens: 24}
- gate: {guards: [length, diversity]}
loop: {rounds: ROUNDS}
"""


def small_prompts(spice: str) -> Iterable[Row]:
    """Yield prompts as a JSONL file has them: capitals of countries, each in every form and wording."""
    capitals = [pair.split() for pair in _CAPITALS.split(";")]
    for index, (country, city) in enumerate(capitals):
        split = ("train", "heldout", "test")[index % 3]
        forms = [*_FORMS, _TRANSFER] if split == "test" else _FORMS
        for form, rule, shape, verify in forms:
            wanted = shape.format(city)
            told = verify | {"include": wanted.upper() if form == "capitals" else city}
            extra = ["transfer"] if form == "capitals" else []
            for number, wording in enumerate(_WORDINGS):
                hostile = f" {spice}" if spice and index == 2 and number == 0 else ""
                yield {
                    "prompt": f"{wording.format(country)} {rule}{hostile}",
                    "verify": told,
                    "answer": wanted.upper() if form == "capitals" else wanted,
                    "tags": [f"form:{form}", *extra],
                    "split": split,
                    "source": "redistill",
                    "licence": "Apache-2.0",
                }


def answer_text(prompt: Prompt, slot: int, skill: float, spice: str) -> tuple[str, FinishReason]:
    """Return an answer: right with the probability `skill`, mostly the same luck for each student."""
    own = random.Random(row_seed(f"{prompt.id} {slot}")).random()  # noqa: S311 - reproducible
    luck = random.Random(row_seed(f"{prompt.id} {slot} {skill}")).random()  # noqa: S311
    right = prompt.answer or ""
    if 0.8 * own + 0.2 * luck < skill:
        return right, "stop"
    city = right.strip('".').split()[-1]
    wrong = (
        f"The city that you are asking about is {city}, as everybody knows{spice}",
        f"Sure! Here is the answer:\n\n{city} {spice}",
        f"I think that it may be London. {spice}",
    )[int(luck * 3)]
    return wrong, "length" if luck > 0.95 else "stop"


def rendered_row(round_: int, prompt: Prompt) -> Row:
    """Return the prompt as token ids; here they are its bytes."""
    return {
        "id": row_id("rendered_prompt", round=round_, prompt=prompt.id),
        "round": round_,
        "prompt_id": prompt.id,
        "context": "",
        "vocabulary": "characters",
        "token_ids": list(prompt.text.encode()),
        "created_at": now(),
    }


def completion_of(
    place: tuple[int, str],
    prompt: Prompt,
    said: tuple[str, FinishReason],
    revision: str,
    asked: tuple[Sampling, int, str],
) -> tuple[Completion, tuple[Row, Row]]:
    """Return an answer, and its rows of `completion` and `completion_tokens`."""
    (round_, step), (text, reason), (sampling, slot, rendered) = place, said, asked
    tokens = (
        [*text.encode("utf-8", "surrogatepass"), 3] if reason == "stop" else list(text.encode())
    )
    logprobs = [-0.5] * len(tokens)
    about = {"round": round_, "step": step, "parents": [prompt.id], "revision": revision}
    identifier = row_id("completion", **about, slot=slot)
    row = {
        "id": identifier,
        "round": round_,
        "step": step,
        "split": prompt.split,
        "prompt_id": prompt.id,
        "rendered_prompt_id": rendered,
        "parent_id": None,
        "slot": slot,
        "attempt": 0,
        "role": "student",
        "revision": revision,
        "text_hash": content_hash(text),
        "payload_hash": content_hash([tokens, reason]),
        "finish_reason": reason,
        "temperature": sampling.temperature,
        "sampling": json.dumps(asdict(sampling)),
        "tokens": len(tokens),
        "seconds": 0.11,
        "created_at": now(),
    }
    kept = {
        "completion_id": identifier,
        "round": round_,
        "token_ids": tokens,
        "logprobs": logprobs,
    }
    completion = Completion(
        identifier, prompt.id, text, tuple(tokens), tuple(logprobs), reason, revision
    )
    return completion, (row, kept)


def pair_row(round_: int, prompt_id: str, chosen: Completion, rejected: Completion) -> Row:
    """Return a preference pair."""
    parents = [chosen.id, rejected.id]
    return {
        "id": row_id("pair", round=round_, step="pair", parents=parents),
        "round": round_,
        "step": "pair",
        "split": "train",
        "prompt_id": prompt_id,
        "chosen_id": chosen.id,
        "rejected_id": rejected.id,
        "judge": "verifier",
        "rule": "best_worst",
        "margin": 1.0,
        "probability": 1.0,
        "weight": 1.0,
        "created_at": now(),
    }


def training_row(round_: int, job: str, place: int, pair: Row) -> Row:
    """Return the frozen row of a pair."""
    parents = [pair["chosen_id"], pair["rejected_id"]]
    return {
        "id": row_id("training_row", round=round_, step="train", parents=parents),
        "round": round_,
        "step": "train",
        "split": "train",
        "training_run_id": job,
        "position": place,
        "pair_id": pair["id"],
        "prompt_id": pair["prompt_id"],
        "completion_id": pair["chosen_id"],
        "rejected_id": pair["rejected_id"],
        "weight": 1.0,
        "tokens_from": "sampled",
        "reference_chosen": -4.0,
        "reference_rejected": -9.0,
        "reference_from": "stored",
        "created_at": now(),
    }


def metric_rows(round_: int, job: str, steps: int) -> Iterable[Row]:
    """Yield the numbers that a trainer would log: a loss that falls."""
    luck = random.Random(round_)  # noqa: S311 - reproducible
    for step in range(1, steps + 1):
        loss = 0.69 * 0.9 ** (step - 1) + 0.02 * luck.random()
        for name, value in (
            ("loss", loss),
            ("rewards/margins", 0.1 * step),
            ("learning_rate", 5e-6),
        ):
            yield {
                "training_run_id": job,
                "round": round_,
                "optimizer_step": step,
                "name": name,
                "value": value,
            }


def guards_of(answers: Sequence[Row]) -> dict[str, Any]:
    """Return the gate's guards over paired answers."""
    tokens = [
        sum(a[f"tokens_{side}"] for a in answers) / len(answers) for side in ("before", "after")
    ]
    ratio = tokens[1] / tokens[0]
    length = {"champion": tokens[0], "challenger": tokens[1], "ratio": ratio, "band": [0.33, 2.0]}
    diversity = {"champion": 0.71, "challenger": 0.62, "ratio": 0.87, "floor": 0.5}
    return {
        "length": length | {"held": 0.33 <= ratio <= 2.0},
        "diversity": diversity | {"held": True},
    }
