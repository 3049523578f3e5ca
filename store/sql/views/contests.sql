WITH side AS (
    SELECT judge, judge_revision, split, prompt_id, revision, round(avg(value), 12) AS value,
           min(round) AS round
    FROM scores WHERE revision IS NOT NULL
    GROUP BY judge, judge_revision, split, prompt_id, revision
),
met AS (
    SELECT judge, 'compare' AS evidence, round, split, prompt_id, least(revision, opponent) AS revision,
           greatest(revision, opponent) AS opponent,
           CASE WHEN revision < opponent THEN outcome ELSE 1 - outcome END AS outcome
    FROM comparisons WHERE revision <> opponent
    UNION ALL
    -- Values of two revisions of a judge are not on one scale.
    SELECT a.judge, 'score', greatest(a.round, b.round), a.split, a.prompt_id, a.revision, b.revision,
           CASE WHEN a.value > b.value THEN 1.0 WHEN a.value < b.value THEN 0.0 ELSE 0.5 END::DOUBLE
    FROM side a
    JOIN side b ON b.judge = a.judge AND b.judge_revision = a.judge_revision AND b.split = a.split
               AND b.prompt_id = a.prompt_id AND b.revision > a.revision
)
SELECT judge, evidence, round, split, revision, opponent, outcome, prompt_id FROM met
