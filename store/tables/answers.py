"""What is asked and what comes: prompts, completions, their tokens."""

from __future__ import annotations

from ..table import (
    CREATED,
    ID,
    PROMPT,
    ROUND,
    SPLIT,
    STEP,
    Table,
    column,
    one_of,
)

ANSWERS: tuple[Table, ...] = (
    Table(
        "prompt",
        "What is asked, with what its checker needs",
        (
            ID,
            column("round", "INTEGER", "Round that proposed it; 0 where it was there before"),
            SPLIT,
            column("position", "INTEGER", "Place in its split, from 0"),
            column("messages_hash", "VARCHAR", "content.hash of the JSON list of messages"),
            column(
                "details_hash", "VARCHAR", "content.hash of verify, answer, reference, privileged"
            ),
            column(
                "tools_hash",
                "VARCHAR?",
                "content.hash of the JSON list of tools that may be called",
            ),
            column("parent_id", "UUID?", "prompt.id that it was evolved from"),
            column("completion_id", "UUID?", "completion.id that proposed it"),
            column("tags", "VARCHAR[]", "key:value labels"),
            column("source", "VARCHAR", "Where it comes from"),
            column("licence", "VARCHAR", "Licence of the source"),
            CREATED,
        ),
        checks=("split IN ('train', 'heldout', 'test')",),
    ),
    Table(
        "proposal",
        "What a propose step was told by a role, read as a prompt, and what became of it",
        (
            ID,
            ROUND,
            STEP,
            column("position", "INTEGER", "Place among the calls of its step, from 0"),
            column("completion_id", "UUID", "completion.id of what the role said"),
            column("seeds", "UUID[]", "prompt.ids that it was shown"),
            column("answer_id", "UUID?", "completion.id of the failed answer that it was shown"),
            column("text_hash", "VARCHAR", "content.hash of the prompt as it was read"),
            column("verdict", "VARCHAR", "kept, or why it was refused"),
            column("nearest_id", "UUID?", "prompt.id of the prompt that it is most like"),
            column("similarity", "DOUBLE?", "How alike the two are"),
            column(
                "measure", "VARCHAR?", "What the similarity is: rouge_l, minhash, ngrams or equal"
            ),
            column("prompt_id", "UUID?", "prompt.id that it became; NULL where it was refused"),
            CREATED,
        ),
        checks=(
            one_of("verdict", ("kept", "known", "alike", "leaks", "short", "long", "empty", "cut")),
            "(verdict = 'kept') = (prompt_id IS NOT NULL)",
            "similarity >= 0 AND similarity <= 1",
        ),
    ),
    Table(
        "rendered_prompt",
        "A prompt with a role's context as the exact token ids that a policy saw",
        (
            ID,
            ROUND,
            PROMPT,
            column("context", "VARCHAR", "Hash of the role's context; empty for the plain prompt"),
            column("vocabulary", "VARCHAR", "Hash of the tokenizer that made the ids"),
            column("token_ids", "INTEGER[]", "Prompt token ids, template included"),
            CREATED,
        ),
    ),
    Table(
        "completion",
        "One answer of a policy",
        (
            ID,
            ROUND,
            STEP,
            SPLIT,
            PROMPT,
            column(
                "rendered_prompt_id",
                "UUID?",
                "rendered_prompt.id: what the policy saw; NULL if imported",
            ),
            column("parent_id", "UUID?", "completion.id that this one rewrites"),
            column("critique_id", "UUID?", "judgement.id of the critique that it answers"),
            column("slot", "INTEGER", "Which of the k answers to the prompt, from 0"),
            column("attempt", "INTEGER", "From 0"),
            column("role", "VARCHAR", "Role that spoke"),
            column(
                "revision", "VARCHAR?", "Content hash of the weights that spoke; NULL if unknown"
            ),
            column("model", "VARCHAR?", "Name of the model, where it is none of ours"),
            column("text_hash", "VARCHAR", "content.hash of the answer, without thinking"),
            column(
                "thinking_hash", "VARCHAR?", "content.hash of what was thought before the answer"
            ),
            column(
                "turns_hash",
                "VARCHAR?",
                "content.hash of the JSON list of messages, if several turns",
            ),
            column("payload_hash", "VARCHAR", "Hash of token ids and finish reason"),
            column(
                "finish_reason", "VARCHAR", "stop; length where it was cut; tool_calls or refused"
            ),
            column("temperature", "DOUBLE?", "0 is greedy; NULL if unknown"),
            column("sampling", "JSON", "All sampling settings"),
            column(
                "tokens", "INTEGER?", "Tokens of the answer, end token included; NULL if unknown"
            ),
            column("seconds", "DOUBLE", "Its share of the wall time of its chunk"),
            column("training_run_id", "UUID?", "training_run.id that sampled it while it trained"),
            column("optimizer_step", "INTEGER?", "Its optimizer step, from 1"),
            column("source", "VARCHAR?", "Where it comes from, if imported"),
            column("licence", "VARCHAR?", "Licence of the source"),
            CREATED,
        ),
        checks=(
            "split IN ('train', 'heldout', 'test')",
            one_of("finish_reason", ("stop", "length", "tool_calls", "refused")),
        ),
    ),
    Table(
        "completion_tokens",
        "Token ids and raw log-probs as they were sampled",
        (
            column("completion_id", "UUID", "completion.id"),
            ROUND,
            column("token_ids", "INTEGER[]", "As sampled, end token included"),
            column("logprobs", "FLOAT[]", "Natural log, T = 1, before top-k and top-p"),
            column("rewards", "FLOAT[]?", "What each token earned, for on-policy losses"),
            column("trainable", "BOOLEAN[]?", "Tokens that the policy spoke itself; NULL: all"),
            column("answer_from", "INTEGER?", "Index of the first token after thinking; NULL: 0"),
        ),
        key=("completion_id",),
        checks=(
            "len(token_ids) = len(logprobs)",
            "trainable IS NULL OR len(trainable) = len(token_ids)",
            "rewards IS NULL OR len(rewards) = len(token_ids)",
        ),
    ),
    Table(
        "token_distribution",
        "What weights thought of the tokens of a completion: a teacher's, or a reference's",
        (
            column("completion_id", "UUID", "completion.id"),
            ROUND,
            STEP,
            column("revision", "VARCHAR", "Content hash of the weights that were asked"),
            column("context", "VARCHAR", "Hash of the role's context; empty for the plain prompt"),
            column("logprobs", "FLOAT[]", "Natural log of each token of the completion"),
            column(
                "top_ids", "INTEGER[][]?", "Most likely token ids at each place, likeliest first"
            ),
            column("top_logprobs", "FLOAT[][]?", "Their natural logs"),
            CREATED,
        ),
        key=("completion_id", "revision", "context"),
        checks=(
            "(top_ids IS NULL) = (top_logprobs IS NULL)",
            "top_ids IS NULL OR len(top_ids) = len(logprobs)",
            "top_ids IS NULL OR len(top_logprobs) = len(logprobs)",
        ),
    ),
)
