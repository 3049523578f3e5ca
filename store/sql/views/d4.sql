WITH answer AS (
    -- Equal texts count once.
    SELECT s.round, s.step, s.judge, s.prompt_id, c.text_hash, min(s.completion_id) AS completion_id,
           arg_min(s.value, s.completion_id) AS value
    FROM scores s
    JOIN conversations c ON c.completion_id = s.completion_id AND c.finish_reason <> 'length'
    GROUP BY s.round, s.step, s.judge, s.prompt_id, c.text_hash
)
SELECT
    any_value(c.prompt) AS prompt,
    list(c.completion ORDER BY a.value DESC, a.completion_id) AS completions,
    list(a.value ORDER BY a.value DESC, a.completion_id) AS scores,
    a.round,
    a.step,
    a.judge,
    count(*) AS n,
    a.prompt_id,
    list(a.completion_id ORDER BY a.value DESC, a.completion_id) AS completion_ids,
    left(a.prompt_id::VARCHAR, 8) AS short_id
FROM answer a
JOIN conversations c ON c.completion_id = a.completion_id
GROUP BY a.round, a.step, a.judge, a.prompt_id
HAVING count(*) > 1
