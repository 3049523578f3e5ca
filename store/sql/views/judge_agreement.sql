WITH joint AS (
    SELECT a.judge, b.judge AS other, count(*) AS n,
           avg(a.passed::INTEGER) AS passed, avg(b.passed::INTEGER) AS other_passed,
           avg((a.passed = b.passed)::INTEGER) AS agreement,
           corr(a.value, b.value) AS correlation
    FROM scores a
    JOIN scores b ON b.completion_id = a.completion_id AND b.judge > a.judge
    GROUP BY a.judge, b.judge
),
chance AS (
    SELECT *, passed * other_passed + (1 - passed) * (1 - other_passed) AS expected FROM joint
)
SELECT
    judge,
    other,
    n,
    passed,
    other_passed,
    agreement,
    -- Where both say one and the same of everything, chance explains all of it.
    CASE WHEN expected < 1 THEN (agreement - expected) / (1 - expected) END AS kappa,
    CASE WHEN isfinite(correlation) THEN correlation END AS correlation
FROM chance
