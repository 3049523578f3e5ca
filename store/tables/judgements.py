"""What judges and people say of completions."""

from __future__ import annotations

from typing import get_args

from ...types import Status
from ..table import CREATED, ID, PROMPT, ROUND, STEP, Table, column, one_of

JUDGEMENTS: tuple[Table, ...] = (
    Table(
        "judgement",
        "What one judge said of a completion, or of several beside each other; a failure has no value",
        (
            ID,
            ROUND,
            STEP,
            column("mode", "VARCHAR", "score, compare or critique"),
            column("completion_id", "UUID?", "completion.id; NULL where several were compared"),
            column(
                "presented", "UUID[]?", "completion.ids in the order in which the judge saw them"
            ),
            column("ranks", "INTEGER[]?", "Rank of each presented one, 1 is best, equal is a tie"),
            column("judge", "VARCHAR", "Name of the judge"),
            column("judge_revision", "VARCHAR", "Hash of the judge's kind, settings and version"),
            column("role", "VARCHAR?", "Role that spoke as the judge"),
            column("revision", "VARCHAR?", "Content hash of the weights that judged"),
            column("rubric_id", "VARCHAR?", "rubric.id"),
            column("aspect", "VARCHAR", "What was looked at; empty for the whole"),
            column("attempt", "INTEGER", "From 0"),
            column("status", "VARCHAR", "ok, or why there is no value"),
            column("value", "DOUBLE?", "In [0, 1]; of two compared: how far the first one won"),
            column(
                "probability", "DOUBLE?", "Probability of the verdict, where the judge gives one"
            ),
            column("raw", "DOUBLE?", "The judge's own number"),
            column("parts", "JSON", "Named parts of the verdict"),
            column("partial", "BOOLEAN?", "Whether members of a jury were missing"),
            column("text_hash", "VARCHAR?", "content.hash of the judge's words: reasons, critique"),
            column("reply_hash", "VARCHAR?", "content.hash of the raw reply"),
            column("tokens_in", "INTEGER?", "Tokens that the judge read"),
            column("tokens_out", "INTEGER?", "Tokens that the judge wrote"),
            column("dollars", "DOUBLE?", "Its share of what was paid"),
            column("seconds", "DOUBLE", "Its share of the wall time of its chunk"),
            CREATED,
        ),
        checks=(
            one_of("mode", ("score", "compare", "critique")),
            one_of("status", get_args(Status)),
            "(mode = 'compare') = (presented IS NOT NULL)",
            "(mode = 'compare') = (completion_id IS NULL)",
            "status = 'ok' OR (value IS NULL AND ranks IS NULL)",
            "mode <> 'score' OR status <> 'ok' OR value IS NOT NULL",
            "mode <> 'compare' OR status <> 'ok' OR len(ranks) = len(presented)",
            # NaN sorts above every number in DuckDB: without this line it would be chosen.
            "value IS NULL OR (isfinite(value) AND value >= 0 AND value <= 1)",
            "probability IS NULL OR (probability >= 0 AND probability <= 1)",
            "raw IS NULL OR isfinite(raw)",
        ),
    ),
    Table(
        "vote",
        "What each member of a jury said, or each answer of a majority vote",
        (
            column("judgement_id", "UUID", "judgement.id of the jury's verdict"),
            ROUND,
            column("judge", "VARCHAR", "Name of the member"),
            column("judge_revision", "VARCHAR", "Hash of the member"),
            column("status", "VARCHAR", "ok, or why it did not vote"),
            column("value", "DOUBLE?", "In [0, 1]"),
            column("weight", "DOUBLE?", "Weight of the vote; NULL where it did not count"),
        ),
        key=("judgement_id", "judge", "judge_revision"),
        checks=(
            one_of("status", get_args(Status)),
            "value IS NULL OR (isfinite(value) AND value >= 0 AND value <= 1)",
            "weight IS NULL OR isfinite(weight)",
        ),
    ),
    Table(
        "rubric",
        "What a judge was told to look at",
        (
            column("id", "VARCHAR", "Content hash of text and aspects"),
            ROUND,
            column("name", "VARCHAR", "Name of the rubric"),
            column("text_hash", "VARCHAR", "content.hash of its text"),
            column("aspects", "VARCHAR[]", "Names of its aspects"),
            CREATED,
        ),
    ),
    Table(
        "feedback",
        "What people gave: thumbs, ratings, preferences, edits, demonstrations",
        (
            ID,
            ROUND,
            STEP,
            PROMPT,
            column("kind", "VARCHAR", "thumbs, rating, preference, edit or demonstration"),
            column("completion_id", "UUID", "completion.id that it is about"),
            column("other_id", "UUID?", "completion.id that lost, or that was edited"),
            column("value", "DOUBLE?", "In [0, 1]: 1 is thumbs up or the best rating"),
            column("text_hash", "VARCHAR?", "content.hash of a remark"),
            column("author", "VARCHAR?", "Who gave it, as the file says"),
            column("source", "VARCHAR", "Where it comes from"),
            column("licence", "VARCHAR", "Licence of the source"),
            CREATED,
        ),
        checks=(
            one_of("kind", ("thumbs", "rating", "preference", "edit", "demonstration")),
            "value IS NULL OR (isfinite(value) AND value >= 0 AND value <= 1)",
            "(kind IN ('preference', 'edit')) = (other_id IS NOT NULL)",
        ),
    ),
    Table(
        "admission",
        "An exam of a judge on labelled rows, and whether its labels may train",
        (
            ID,
            ROUND,
            STEP,
            column("judge", "VARCHAR", "Name of the judge"),
            column("judge_revision", "VARCHAR", "Hash of the judge"),
            column("exam", "VARCHAR", "Name of the labelled rows"),
            column("exam_hash", "VARCHAR", "Content hash of the labelled rows"),
            column("verdict", "VARCHAR", "admitted: its labels may train; refused; or unproven"),
            column("reason", "VARCHAR", "One line for people"),
            column("n", "INTEGER", "Labelled rows with a verdict"),
            column("accuracy", "DOUBLE?", "Share of verdicts that agree with the label"),
            column("ci_low", "DOUBLE?", "Lower end of its 95 % interval"),
            column("ci_high", "DOUBLE?", "Upper end of its 95 % interval"),
            column("swap_consistency", "DOUBLE?", "Share of verdicts that survive the other order"),
            column("detail", "JSON", "Every other number: baselines, strata, statuses"),
            CREATED,
        ),
        checks=(one_of("verdict", ("admitted", "refused", "unproven")),),
    ),
)
