WITH vote AS (
    SELECT round, chosen_id AS completion_id, 1 AS paired, 0 AS thumbs FROM pair
    UNION ALL SELECT round, rejected_id, -1, 0 FROM pair
    UNION ALL SELECT round, completion_id, 0, CASE WHEN value >= 0.5 THEN 1 ELSE -1 END
    FROM feedback WHERE kind = 'thumbs' AND value IS NOT NULL
    UNION ALL SELECT round, completion_id, 1, 0 FROM feedback WHERE kind IN ('preference', 'edit')
    UNION ALL SELECT round, other_id, -1, 0 FROM feedback WHERE kind IN ('preference', 'edit')
),
told AS (
    -- One text is one answer, however often it was sampled; of its rows, one that ended stands for it.
    SELECT v.round, c.prompt_id, c.text_hash, sign(sum(v.thumbs)) AS thumbs, sign(sum(v.paired)) AS paired,
           coalesce(
               min(c.completion_id) FILTER (c.finish_reason <> 'length'), min(c.completion_id)
           ) AS completion_id
    FROM vote v JOIN conversations c ON c.completion_id = v.completion_id
    GROUP BY v.round, c.prompt_id, c.text_hash
),
label AS (
    SELECT round, completion_id, CASE WHEN thumbs <> 0 THEN thumbs ELSE paired END AS vote,
           CASE WHEN thumbs <> 0 THEN 'thumbs' ELSE 'pair' END AS origin
    FROM told
)
SELECT
    c.prompt,
    c.completion,
    l.vote > 0 AS label,
    l.round,
    l.origin,
    c.revision,
    c.prompt_token_ids,
    c.completion_token_ids,
    c.prompt_id,
    c.completion_id,
    left(c.completion_id::VARCHAR, 8) AS short_id
FROM label l
JOIN conversations c ON c.completion_id = l.completion_id
WHERE l.vote < 0 OR (l.vote > 0 AND c.finish_reason <> 'length')
