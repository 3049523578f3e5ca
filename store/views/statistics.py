"""Views that count: who wins, how far judges can be trusted, what it cost."""

from __future__ import annotations

from ..view import View

_JUDGE = {"judge": "Name of the judge"}
_WEIGHTS = "Content hash of the weights that spoke, or the name of a model that is none of ours"
_SHORT = "First 8 characters of the revision; a model's name in full"
_SPLIT = {"split": "train, heldout or test"}

COMPARISONS = View(
    "comparisons",
    "One row a judge and two answers that it saw beside each other. Showings in both orders are one "
    "comparison, and a verdict that turns with the order is a tie; the newest revision of a judge counts",
    {
        "round": "Round of the comparison",
        **_SPLIT,
        **_JUDGE,
        "outcome": "1 where completion_id won, 0 where other_id did, 0.5 for a tie",
        "showings": "How often the judge saw the two, orders counted apart",
        "judge_revision": "Hash of the judge's kind, settings and version",
        "revision": _WEIGHTS,
        "opponent": "The same of the other answer",
        "prompt_id": "prompt.id",
        "completion_id": "completion.id of the answer with the smaller id",
        "other_id": "completion.id of the other",
    },
)

CONTESTS = View(
    "contests",
    "One row a meeting of two revisions on a prompt: two answers compared, or the mean values of both on "
    "the prompt by one revision of a judge",
    {
        **_JUDGE,
        "evidence": "compare: two answers beside each other; score: mean values on the prompt",
        "round": "Round of the comparison; of values, that in which the later of the two first answered",
        **_SPLIT,
        "revision": _WEIGHTS,
        "opponent": "The same of the other side; the greater of the two",
        "outcome": "1 where revision won, 0 where opponent did, 0.5 for a tie",
        "prompt_id": "prompt.id",
    },
)

WIN_RATE = View(
    "win_rate",
    "How often a revision beat another on the same prompt, by judge; every two revisions stand here both "
    "ways",
    {
        **_JUDGE,
        "evidence": "compare: two answers beside each other; score: mean values on the prompt",
        "round": "Round of the comparison; of values, that in which the later of the two first answered",
        **_SPLIT,
        "revision": _WEIGHTS,
        "short_id": _SHORT,
        "opponent": "The same of the other side",
        "wins": "Meetings that revision won",
        "ties": "Meetings without a winner",
        "losses": "Meetings that opponent won",
        "n": "Meetings",
        "rate": "Share of wins, ties as half",
    },
)

SWAP_CONSISTENCY = View(
    "swap_consistency",
    "Whether a judge says the same of answers that are shown in another order",
    {
        **_JUDGE,
        "n": "Sets of answers that were shown in more than one order",
        "consistent": "Sets with the same ranks in every order",
        "rate": "Share of consistent sets",
        "decided": "Showings of two answers without a tie",
        "first_wins": "Share of them that the answer shown first won; 0.5 is no bias",
    },
)

JUDGE_AGREEMENT = View(
    "judge_agreement",
    "How far two judges agree on the answers that both have scored; passed is a value of at least 0.5",
    {
        **_JUDGE,
        "other": "Name of the other judge, later by name",
        "n": "Answers with a value of both",
        "passed": "Share that judge passed",
        "other_passed": "Share that other passed",
        "agreement": "Share on which both passed or both failed",
        "kappa": "Cohen's kappa of passed; NULL where chance alone explains all",
        "correlation": "Pearson's correlation of the values; NULL where one of them never varies",
    },
)

LENGTH_BIAS = View(
    "length_bias",
    "Whether a judge likes long answers, among answers to the same prompt; length in characters of the "
    "answer",
    {
        **_JUDGE,
        "n": "Answers with a value",
        "correlation": "Pearson's correlation of value and length, each less its mean over the prompt",
        "pairs": "Pairs of answers to one prompt with different lengths and a winner, by value or comparison",
        "longer_wins": "Share of them that the longer answer won; 0.5 is no bias",
    },
)

JUDGE_BIAS = View(
    "judge_bias",
    "What moves a judge besides merit, as a `pair` step with `correct` has estimated it from comparisons; "
    "see docs/judging.md",
    {
        "round": "Round of the pairs; comparisons up to it were looked at",
        "step": "Step that made the pairs",
        **_JUDGE,
        "effect": "position: shown first; length: e times as long; self: written by the judge",
        "log_odds": "What it adds to the log-odds of winning; 0 is no bias",
        "ci_low": "Lower end of its 95 % interval, clustered by prompt",
        "ci_high": "Upper end of its 95 % interval",
        "removed": "Whether it was taken out of the labels of these pairs",
        "n": "Showings of two answers",
        "prompts": "Prompts that they belong to",
    },
)

PASS_AT_K = View(
    "pass_at_k",
    "Probability that one of k answers passes, a value of at least 0.5: the unbiased estimator of Chen et "
    "al. 2021, averaged over the prompts with at least k answers",
    {
        "round": "Round of the answers",
        "step": "Step that asked",
        **_SPLIT,
        **_JUDGE,
        "revision": _WEIGHTS,
        "short_id": _SHORT,
        "k": "1, 2, 4, 8 ... up to the most answers that a prompt has",
        "pass_at_k": "In [0, 1]",
        "prompts": "Prompts with at least k answers",
    },
)

PROMPT_DIFFICULTY = View(
    "prompt_difficulty",
    "How hard a prompt is, by judge, over all answers to it",
    {
        **_JUDGE,
        **_SPLIT,
        "prompt": "Last turn of what was asked",
        "n": "Answers with a value",
        "value": "Their mean value",
        "passed": "Share with a value of at least 0.5",
        "first_round": "Round of the first answer",
        "last_round": "Round of the last answer",
        "tags": "key:value labels of the prompt",
        "source": "Where the prompt comes from",
        "prompt_id": "prompt.id",
        "short_id": "First 8 characters of prompt_id",
    },
)

COST = View(
    "cost",
    "What each part of a round cost. Nothing counts twice: where calls of a step and role were billed, "
    "tokens and dollars are the bill's alone, else those of the answers or judgements; seconds are always "
    "those of the rows, and what the ledger has beyond them is `other`",
    {
        "round": "From 1; 0 is what was spent before the first round",
        "step": "Name of the step",
        "role": "Role that spoke; NULL for programs",
        "model": "Name of the model, where it is none of ours",
        "what": "sampling, judging, training or other",
        "answers": "Answers, judgements or training rows",
        "calls": "Calls that were billed",
        "tokens_in": "Tokens read",
        "tokens_out": "Tokens written",
        "seconds": "Wall seconds",
        "cpu_seconds": "CPU seconds of the trainer",
        "dollars": "What was paid; NULL where nothing is known of it",
        "dollars_per_point": "Dollars of the whole round for each point of 100 by which its promoted "
        "challenger was better; NULL where none was",
        "seconds_per_point": "The same of seconds",
    },
)

_SNAPSHOT_COLUMNS = {
    "published_at": "When these rows were published, UTC",
    "newest_fact_at": "When the newest of them was written, UTC",
    "age_seconds": "Seconds since they were published",
    "schema_version": "Number of the newest migration",
    "views_version": "Version of the views: raised when a column gets another name or meaning",
    "views_hash": "Content hash of the views' SQL: they are made anew where it differs",
    "redistill_version": "Version that published them",
}


def snapshot(published_at: str, redistill_version: str, views: tuple[int, str]) -> View:
    """Return the view `snapshot`: when, by which code, and the version and hash of the views."""
    return View(
        "snapshot",
        "One row: how old these rows are, and by which versions they were written",
        _SNAPSHOT_COLUMNS,
        {
            "published_at": published_at,
            "redistill_version": redistill_version,
            "views_version": str(views[0]),
            "views_hash": views[1],
        },
    )


STATISTICS: tuple[View, ...] = (
    COMPARISONS,
    CONTESTS,
    WIN_RATE,
    SWAP_CONSISTENCY,
    JUDGE_AGREEMENT,
    LENGTH_BIAS,
    JUDGE_BIAS,
    PASS_AT_K,
    PROMPT_DIFFICULTY,
    COST,
)
