-- Chen et al. 2021 (Evaluating Large Language Models Trained on Code), equation 1:
-- pass@k = 1 - C(n - c, k) / C(n, k), written as a product that cannot overflow.
WITH counted AS (
    SELECT round, step, split, judge, revision, prompt_id, count(*) AS n, count(*) FILTER (passed) AS c
    FROM scores
    GROUP BY round, step, split, judge, revision, prompt_id
),
asked AS (
    SELECT counted.*, power.k
    FROM counted, (SELECT (2 ** unnest(range(0, 20)))::BIGINT AS k) power
    WHERE power.k <= counted.n
)
SELECT
    round,
    step,
    split,
    judge,
    revision,
    CASE WHEN regexp_full_match(revision, '[0-9a-f]{16,}') THEN left(revision, 8) ELSE revision END AS short_id,
    k,
    avg(
        CASE WHEN n - c < k THEN 1.0 WHEN c = 0 THEN 0.0
             ELSE 1 - list_product(list_transform(range(n - c + 1, n + 1), lambda i: 1 - k::DOUBLE / i))
        END
    ) AS pass_at_k,
    count(*) AS prompts
FROM asked
GROUP BY round, step, split, judge, revision, k
