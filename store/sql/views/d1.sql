WITH kept AS (
    SELECT round, step, completion_id, weight, 'selection' AS origin FROM selection
    UNION ALL
    SELECT round, step, chosen_id, max(weight), 'pair' FROM pair GROUP BY round, step, chosen_id
    UNION ALL
    SELECT DISTINCT round, step, completion_id, 1.0, 'feedback' FROM feedback
    WHERE kind IN ('demonstration', 'edit')
),
once AS (
    SELECT round, step, completion_id, arg_max(weight, origin = 'selection') AS weight,
           max(origin) AS origin
    FROM kept GROUP BY round, step, completion_id
)
SELECT
    c.prompt,
    c.completion,
    k.weight,
    k.round,
    k.step,
    k.origin,
    c.revision,
    c.prompt_token_ids,
    c.completion_token_ids,
    c.prompt_id,
    c.completion_id,
    left(c.completion_id::VARCHAR, 8) AS short_id
FROM once k
JOIN conversations c ON c.completion_id = k.completion_id
WHERE c.finish_reason <> 'length'
