WITH counted AS MATERIALIZED (
    SELECT judge, evidence, round, split, revision, opponent, count(*) FILTER (outcome = 1) AS wins,
           count(*) FILTER (outcome = 0.5) AS ties, count(*) FILTER (outcome = 0) AS losses, count(*) AS n
    FROM contests
    GROUP BY judge, evidence, round, split, revision, opponent
),
both_ways AS (
    SELECT judge, evidence, round, split, revision, opponent, wins, ties, losses, n FROM counted
    UNION ALL
    SELECT judge, evidence, round, split, opponent, revision, losses, ties, wins, n FROM counted
)
SELECT
    judge,
    evidence,
    round,
    split,
    revision,
    CASE WHEN regexp_full_match(revision, '[0-9a-f]{16,}') THEN left(revision, 8) ELSE revision END AS short_id,
    opponent,
    wins,
    ties,
    losses,
    n,
    (wins + ties / 2) / n AS rate
FROM both_ways
