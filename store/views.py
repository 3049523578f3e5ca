"""The views of a store and what their columns mean, for `redistill list views` and the documentation."""

from __future__ import annotations

VIEWS = ("answers",)
"""Names of the views."""

ANSWERS_ABOUT = (
    "One row an answer: what was asked, what came, what each judge thought, what it was used for"
)

ANSWERS: dict[str, str] = {
    "run": "Name of the run",
    "round": "From 1; 0 is the baseline before the first round",
    "step": "Step that asked; `baseline`, `test_initial` and `test_champion` are outside the rounds",
    "split": "train, heldout or test",
    "prompt": "Last turn of what was asked",
    "answer": "What came, without its end token",
    "revision": "Content hash of the weights that spoke",
    "is_champion": "Whether these weights are the champion as the store stands",
    "used_as": "chosen, rejected or unused in the pairs and selections that trained",
    "tokens": "Tokens of the answer, end token included",
    "seconds": "Its share of the wall time of its chunk",
    "finish_reason": "stop, or length where the answer was cut",
    "role": "Role that spoke",
    "slot": "Which of the k answers to the prompt, from 0",
    "tags": "key:value labels of the prompt",
    "prompt_id": "prompt.id",
    "id": "completion.id",
    "short_id": "First 8 characters of the id",
}
"""Columns of `answers` in their order; one column a judge stands after `is_champion`."""

JUDGE_COLUMN = (
    "One column a judge of the recipe, by its name: value in [0, 1], NULL where it has none"
)
