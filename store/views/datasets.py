"""Dataset shapes, with the column names that TRL reads; nothing of held-out or test prompts is in any.

Token ids are called `..._token_ids`: TRL's reward trainer takes a column `chosen_ids` for prompt and
answer together, and would train on half of it without a word.
"""

from __future__ import annotations

from ..view import View

_PLACE = {"round": "Round that made the row", "step": "Step that made the row"}
_PROMPT = "What was asked, as a list of {role, content}"
_ANSWER = "as a list of {role, content}; without thinking"
_SAW = "Token ids that the policy saw; NULL if imported"
_SPOKE = "Token ids as they were sampled, end token included; NULL if imported"
_WEIGHTS = "Content hash of the weights that spoke, or the name of a model that is none of ours"
_PROMPT_ID = {"prompt_id": "prompt.id"}
_COMPLETION_ID = {
    "completion_id": "completion.id",
    "short_id": "First 8 characters of completion_id",
}
_PROMPT_TABLE = {
    "position": "Place of the prompt in its split, from 0",
    "tags": "key:value labels of the prompt",
    "source": "Where the prompt comes from",
    "licence": "Licence of the source",
    "prompt_id": "prompt.id",
    "short_id": "First 8 characters of prompt_id",
}

CONVERSATIONS = View(
    "conversations",
    "One row an answer to a train prompt, as messages and as token ids: what the dataset shapes are made "
    "of. An answer whose text or prompt was forgotten has no row",
    {
        "round": "Round of the answer",
        "step": "Step that asked",
        "prompt": _PROMPT,
        "completion": f"What came, {_ANSWER}",
        "finish_reason": "stop; length where it was cut; tool_calls or refused",
        "revision": _WEIGHTS,
        "context": "Hash of the role's context that the policy saw; empty for the plain prompt",
        "prompt_token_ids": _SAW,
        "completion_token_ids": _SPOKE,
        "logprobs": "Raw log-prob of each token under the weights that spoke, nats, T = 1",
        "text_hash": "Content hash of the answer's text",
        "prompt_id": "prompt.id",
        "completion_id": "completion.id",
    },
)

DATASETS: tuple[View, ...] = (
    CONVERSATIONS,
    View(
        "d1",
        "Supervised rows: what a select step kept, the chosen side of pairs, and demonstrations and edits "
        "of people; one row a round, step and answer. No cut answer",
        {
            "prompt": _PROMPT,
            "completion": f"What is learned, {_ANSWER}",
            "weight": "Weight of its loss",
            **_PLACE,
            "origin": "selection, pair or feedback; selection where it is more than one",
            "revision": _WEIGHTS,
            "prompt_token_ids": _SAW,
            "completion_token_ids": _SPOKE,
            **_PROMPT_ID,
            **_COMPLETION_ID,
        },
    ),
    View(
        "d2",
        "Preference pairs: those of pair steps, and preferences and edits of people that are no pair yet. "
        "Texts differ; chosen was not cut",
        {
            "prompt": _PROMPT,
            "chosen": f"The preferred answer, {_ANSWER}",
            "rejected": f"The other one, {_ANSWER}",
            "margin": "Value of chosen less value of rejected; 1 where people preferred it",
            "probability": "How sure the label is",
            "weight": "Weight of its loss",
            **_PLACE,
            "judge": "Judge whose values were compared; feedback where people did",
            "rule": "Pairing rule, or the kind of feedback",
            "prompt_token_ids": f"{_SAW} when it spoke the chosen answer",
            "chosen_token_ids": _SPOKE,
            "rejected_token_ids": _SPOKE,
            "reference_chosen": "Reference log-prob of chosen, nats, summed: as frozen when the pair trained, "
            "else the log-probs of sampling where both answers are of one revision on the plain prompt",
            "reference_rejected": "The same of rejected",
            "revision": "Weights that the reference log-probs are of",
            "pair_id": "pair.id, or feedback.id",
            **_PROMPT_ID,
            "chosen_id": "completion.id of chosen",
            "rejected_id": "completion.id of rejected",
            "short_id": "First 8 characters of pair_id",
        },
    ),
    View(
        "d3",
        "Unpaired labels, one row a round, prompt and text: thumbs of people, else the sides of pairs and "
        "preferences by majority; where they are even there is no row. Values of judges are no labels "
        "here: where to cut them is for a pair or select step to say",
        {
            "prompt": _PROMPT,
            "completion": f"What came, {_ANSWER}",
            "label": "Whether the answer is wanted",
            "round": "Round of the label",
            "origin": "thumbs or pair",
            "revision": _WEIGHTS,
            "prompt_token_ids": _SAW,
            "completion_token_ids": _SPOKE,
            **_PROMPT_ID,
            **_COMPLETION_ID,
        },
    ),
    View(
        "d4",
        "Ranked lists: the answers of a step to a prompt, best first by one judge; equal texts count once, "
        "cut answers are left out",
        {
            "prompt": _PROMPT,
            "completions": "The answers, best first, each as a list of {role, content}",
            "scores": "Their values in [0, 1], in the same order",
            "round": "Round of the answers",
            "step": "Step that asked",
            "judge": "Name of the judge",
            "n": "How many answers",
            **_PROMPT_ID,
            "completion_ids": "completion.ids in the same order",
            "short_id": "First 8 characters of prompt_id",
        },
    ),
    View(
        "d5",
        "Prompts with what a reward function checks answers by",
        {
            "prompt": _PROMPT,
            "verify": "Checkers by name with their arguments, JSON",
            "answer": "The exact or mathematical answer",
            "reference": "A good answer",
            **_PROMPT_TABLE,
        },
    ),
    View(
        "d6",
        "Prompts with what a teacher may see and the student may not",
        {
            "prompt": _PROMPT,
            "privileged_context": "What only the teacher sees",
            **_PROMPT_TABLE,
        },
    ),
    View(
        "d7",
        "Answers with the most likely tokens that other weights saw at each place",
        {
            "prompt": _PROMPT,
            "completion": f"What came, {_ANSWER}",
            "prompt_token_ids": _SAW,
            "completion_token_ids": _SPOKE,
            "logprobs": "Log-prob of each token of the completion under the weights that were asked, nats",
            "top_ids": "Most likely token ids at each place, likeliest first",
            "top_logprobs": "Their log-probs, nats",
            "revision": "Content hash of the weights that were asked",
            "context": "Hash of the role's context; empty for the plain prompt",
            "round": "Round in which they were asked",
            "step": "Step that asked them",
            **_PROMPT_ID,
            **_COMPLETION_ID,
        },
    ),
    View(
        "d8",
        "Preference pairs of `d2` beside the reference answer of their prompt, where it has another text "
        "than both",
        {
            "prompt": _PROMPT,
            "chosen": f"The preferred answer, {_ANSWER}",
            "rejected": f"The other one, {_ANSWER}",
            "reference": "The prompt's reference answer, as a list of {role, content}",
            "margin": "Value of chosen less value of rejected",
            "weight": "Weight of its loss",
            **_PLACE,
            "judge": "Judge whose values were compared; feedback where people did",
            "rule": "Pairing rule, or the kind of feedback",
            "pair_id": "pair.id, or feedback.id",
            **_PROMPT_ID,
            "chosen_id": "completion.id of chosen",
            "rejected_id": "completion.id of rejected",
            "short_id": "First 8 characters of pair_id",
        },
    ),
)
