WITH said AS (
    SELECT c.id, c.prompt_id, len(t.text) AS characters
    FROM completion c
    JOIN content t ON t.hash = c.text_hash AND t.round = c.round
    WHERE t.forgotten_at IS NULL
),
scored AS (
    SELECT s.judge, s.judge_revision, s.prompt_id, s.completion_id, s.value, said.characters
    FROM scores s JOIN said ON said.id = s.completion_id
),
mean AS (
    SELECT judge, judge_revision, prompt_id, avg(value) AS value, avg(characters) AS characters
    FROM scored GROUP BY judge, judge_revision, prompt_id
),
within AS (
    SELECT s.judge, count(*) AS n, corr(s.value - m.value, s.characters - m.characters) AS correlation
    FROM scored s
    JOIN mean m ON m.judge = s.judge AND m.judge_revision = s.judge_revision AND m.prompt_id = s.prompt_id
    GROUP BY s.judge
),
decided AS (
    SELECT a.judge, (a.value > b.value) = (a.characters > b.characters) AS longer
    FROM scored a
    JOIN scored b ON b.judge = a.judge AND b.judge_revision = a.judge_revision
                 AND b.prompt_id = a.prompt_id AND b.completion_id > a.completion_id
    WHERE a.value <> b.value AND a.characters <> b.characters
    UNION ALL
    SELECT x.judge, (x.outcome = 1) = (a.characters > b.characters)
    FROM comparisons x
    JOIN said a ON a.id = x.completion_id
    JOIN said b ON b.id = x.other_id
    WHERE x.outcome <> 0.5 AND a.characters <> b.characters
),
won AS (
    SELECT judge, count(*) AS pairs, avg(longer::INTEGER) AS longer_wins FROM decided GROUP BY judge
)
SELECT
    coalesce(within.judge, won.judge) AS judge,
    coalesce(within.n, 0) AS n,
    CASE WHEN isfinite(within.correlation) THEN within.correlation END AS correlation,
    coalesce(won.pairs, 0) AS pairs,
    won.longer_wins
FROM within
FULL JOIN won ON won.judge = within.judge
