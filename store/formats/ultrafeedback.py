"""The two shapes of UltraFeedback: all answers with ratings, and two of them as a pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from ...hashing import content_hash
from ...types import Message
from ..format import Kind, Lines, Record, Unreadable, as_dicts, optional_text, said, shown
from .trl import implicit_pair

_OVERALL = (1.0, 10.0)
_ASPECT = (1.0, 5.0)
_DIGITS = 6
"""Values go through two scales and back; so many digits make the way back end where it began."""


class UltraFeedback(Lines):
    """UltraFeedback, all rated answers or binarized.

    Ratings: `{"instruction", "completions": [{"model", "custom_system_prompt", "response",
    "annotations": {ASPECT: {"Rating": "1" to "5", "Rationale"}}, "overall_score": 1 to 10}]}`. A judge
    that looked at the whole gives the overall score, the mean where there are several; one that looked
    at an aspect gives that annotation. An instruction is one turn: export refuses conversations.

    Pairs: `{"prompt", "prompt_id", "chosen": [turns, answer], "rejected": [turns, answer],
    "score_chosen", "score_rejected"}` with scores from 1 to 10; null where the pairs' judge gave none,
    or where the pairs come from several judges, whose values cannot be compared.
    """

    name = "ultrafeedback"
    writes = ("preference", "rating")
    reads = ("preference", "rating")

    def refuses(self, record: Record) -> str:
        """Return why the format cannot hold a record."""
        roles = [message.role for message in record.messages]
        one_turn = roles in (["user"], ["system", "user"])
        whole = record.kind == "preference" or one_turn
        return "" if whole else "an instruction is one turn, these are conversations"

    def rows(self, records: Iterable[Record], kind: Kind) -> Iterator[dict[str, Any]]:
        """Yield a row a pair, or a row a prompt with all its rated answers."""
        if kind == "preference":
            yield from (self.row(record, kind) for record in records)
            return
        for messages, found in groupby(records, key=lambda record: record.messages):
            groups = groupby(found, key=lambda record: (record.text, record.model))
            answers = [_completion(messages, list(group)) for _, group in groups]
            yield {"instruction": messages[-1].content, "completions": answers}

    def row(self, record: Record, kind: Kind) -> dict[str, Any]:  # noqa: ARG002
        """Return the row of a pair."""
        asked = as_dicts(record.messages)
        return {
            "prompt": record.messages[-1].content,
            "prompt_id": content_hash(asked),
            "chosen": [*asked, said(record.text)],
            "rejected": [*asked, said(record.other or "")],
            "score_chosen": _up(record.value, _OVERALL),
            "score_rejected": _up(record.other_value, _OVERALL),
        }

    def records(self, row: dict[str, Any]) -> Iterable[Record]:
        """Return the record of a pair, or those of all ratings of an instruction."""
        if "chosen" in row:
            pair = implicit_pair(row)
            values = [_down(row.get(k), _OVERALL, k) for k in ("score_chosen", "score_rejected")]
            raw = row.get("score_chosen")
            return [Record("preference", pair.messages, pair.text, pair.other,
                           values[0], raw, values[1])]  # fmt: skip
        asked, answers = row.get("instruction"), row.get("completions")
        if not isinstance(asked, str) or not asked.strip() or not isinstance(answers, list):
            raise Unreadable("needs instruction and completions, or chosen and rejected")
        return [record for answer in answers for record in _ratings(asked, answer)]


def _completion(messages: tuple[Message, ...], found: list[Record]) -> dict[str, Any]:
    whole = [r.value for r in found if not r.aspect and r.value is not None]
    overall = _up(sum(whole) / len(whole), _OVERALL) if whole else None
    annotations = {
        r.aspect: {"Rating": f"{_up(r.value, _ASPECT):g}", "Rationale": r.remark or ""}
        for r in found
        if r.aspect
    }
    return {
        "model": found[0].model,
        "custom_system_prompt": messages[0].content if len(messages) > 1 else None,
        "response": found[0].text,
        "annotations": annotations,
        "overall_score": overall,
    }


def _ratings(asked: str, answer: Any) -> Iterator[Record]:
    """Yield the ratings of one answer: of each aspect that has one, and of the whole."""
    if not isinstance(answer, dict) or not isinstance(answer.get("response"), str):
        raise Unreadable(f"a completion needs a response, not {shown(answer)}")
    system = optional_text(answer, "custom_system_prompt")
    messages = (*((Message("system", system),) if system else ()), Message("user", asked))
    model = optional_text(answer, "model")
    annotations = answer.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise Unreadable(f"annotations must be an object, not {shown(annotations)}")
    for aspect, given in annotations.items():
        rating = given.get("Rating") if isinstance(given, dict) else None
        if rating in (None, "N/A"):
            continue  # the judge of UltraFeedback said that the aspect does not apply
        value = _down(_number(rating, aspect), _ASPECT, aspect)
        yield Record("rating", messages, answer["response"], value=value, raw=_number(rating, aspect),
                     aspect=aspect, remark=optional_text(given, "Rationale"), model=model)  # fmt: skip
    if (score := answer.get("overall_score")) is not None:
        value = _down(score, _OVERALL, "overall_score")
        yield Record(
            "rating", messages, answer["response"], value=value, raw=float(score), model=model
        )


def _number(rating: Any, aspect: str) -> float:
    try:
        return float(rating)
    except (TypeError, ValueError) as error:
        raise Unreadable(f"the Rating of {aspect} is {shown(rating)}", "a number or N/A") from error


def _up(value: float | None, scale: tuple[float, float]) -> float | None:
    low, high = scale
    return None if value is None else round(low + (high - low) * value, _DIGITS)


def _down(number: Any, scale: tuple[float, float], key: str) -> float | None:
    if number is None:
        return None
    low, high = scale
    if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
        raise Unreadable(f"{key} is {shown(number)}", f"a number from {low:g} to {high:g}")
    return (number - low) / (high - low)
