WITH shown AS (
    SELECT judge, judge_revision, presented, arg_max(ranks, epoch_us(created_at) * 1024 + attempt) AS ranks
    FROM judgement
    WHERE mode = 'compare' AND aspect = '' AND ranks IS NOT NULL
    GROUP BY judge, judge_revision, presented
),
verdict AS (
    -- A verdict in the order of the ids is the same in whichever order they were shown.
    SELECT judge, judge_revision, presented, ranks, list_sort(presented) AS of_whom,
           list_sort(list_zip(presented, ranks)) AS said
    FROM shown
),
sets AS (
    SELECT judge, count(DISTINCT said) = 1 AS consistent
    FROM verdict GROUP BY judge, judge_revision, of_whom HAVING count(*) > 1
),
two AS (
    SELECT judge, count(*) AS decided, avg((ranks[1] < ranks[2])::INTEGER) AS first_wins
    FROM verdict WHERE len(presented) = 2 AND ranks[1] <> ranks[2] GROUP BY judge
)
SELECT
    s.judge,
    count(*) AS n,
    count(*) FILTER (s.consistent) AS consistent,
    avg(s.consistent::INTEGER) AS rate,
    any_value(two.decided) AS decided,
    any_value(two.first_wins) AS first_wins
FROM sets s
LEFT JOIN two ON two.judge = s.judge
GROUP BY s.judge
