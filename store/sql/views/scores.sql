WITH latest AS (
    SELECT completion_id, judge,
           arg_max(judge_revision, epoch_us(created_at) * 1024 + attempt) AS judge_revision,
           arg_max(value, epoch_us(created_at) * 1024 + attempt) AS value
    FROM judgement
    WHERE mode = 'score' AND aspect = '' AND value IS NOT NULL
    GROUP BY completion_id, judge
)
SELECT
    c.round,
    c.step,
    c.split,
    l.judge,
    l.value,
    l.value >= 0.5 AS passed,
    l.judge_revision,
    coalesce(c.revision, c.model) AS revision,
    c.slot,
    c.prompt_id,
    l.completion_id,
    left(l.completion_id::VARCHAR, 8) AS short_id
FROM latest l
JOIN completion c ON c.id = l.completion_id
