WITH shown AS (
    -- The last attempt of each showing.
    SELECT judge, judge_revision, presented, arg_max(ranks, epoch_us(created_at) * 1024 + attempt) AS ranks,
           max(epoch_us(created_at)) AS moment, max(round) AS round
    FROM judgement
    WHERE mode = 'compare' AND aspect = '' AND ranks IS NOT NULL
    GROUP BY judge, judge_revision, presented
),
duel AS (
    SELECT s.judge, s.judge_revision, s.round, s.moment,
           least(s.presented[a.i], s.presented[b.j]) AS completion_id,
           greatest(s.presented[a.i], s.presented[b.j]) AS other_id,
           CASE
               WHEN s.ranks[a.i] = s.ranks[b.j] THEN 0.5
               WHEN (s.ranks[a.i] < s.ranks[b.j]) = (s.presented[a.i] < s.presented[b.j]) THEN 1.0
               ELSE 0.0
           END AS points
    FROM shown s, unnest(range(1, len(s.presented))) a(i), unnest(range(a.i + 1, len(s.presented) + 1)) b(j)
),
folded AS (
    -- Both orders together are one comparison: a verdict that turns with the order is a tie.
    SELECT judge, judge_revision, completion_id, other_id, avg(points) AS points, count(*) AS showings,
           max(round) AS round, max(moment) AS moment
    FROM duel GROUP BY judge, judge_revision, completion_id, other_id
),
newest AS (
    SELECT judge, completion_id, other_id, arg_max(judge_revision, moment) AS judge_revision,
           arg_max(points, moment) AS points, arg_max(showings, moment) AS showings,
           arg_max(round, moment) AS round
    FROM folded GROUP BY judge, completion_id, other_id
)
SELECT
    n.round,
    a.split,
    n.judge,
    CASE WHEN n.points > 0.5 THEN 1.0 WHEN n.points < 0.5 THEN 0.0 ELSE 0.5 END::DOUBLE AS outcome,
    n.showings,
    n.judge_revision,
    coalesce(a.revision, a.model) AS revision,
    coalesce(b.revision, b.model) AS opponent,
    a.prompt_id,
    n.completion_id,
    n.other_id
FROM newest n
JOIN completion a ON a.id = n.completion_id
JOIN completion b ON b.id = n.other_id AND b.prompt_id = a.prompt_id
