-- One column a judge is filled in twice, where the braces are.
WITH champion AS (
    SELECT coalesce(
        (SELECT challenger FROM decision WHERE decision = 'promoted' ORDER BY round DESC LIMIT 1),
        (SELECT student FROM run LIMIT 1)
    ) AS revision
),
verdict AS (
    -- No judge can be named so: its name is one word.
    SELECT completion_id AS "of completion"{judge_values}
    FROM judgement WHERE mode = 'score' AND aspect = '' GROUP BY completion_id
),
used AS (
    -- What was paired or selected afterwards trained nothing.
    SELECT label.id, CASE WHEN bool_or(label.chosen) THEN 'chosen' ELSE 'rejected' END AS used_as
    FROM (
        SELECT round, step, chosen_id AS id, true AS chosen FROM pair
        UNION ALL SELECT round, step, rejected_id, false FROM pair
        UNION ALL SELECT round, step, completion_id, true FROM selection
    ) label
    WHERE NOT EXISTS (
        SELECT 1 FROM step s WHERE s.round = label.round AND s.step = label.step AND s.origin <> 'round'
    )
    GROUP BY label.id
)
SELECT
    (SELECT name FROM run LIMIT 1) AS run,
    c.round,
    c.step,
    c.split,
    -- A forgotten text is empty, and a filter on this column may ask it of every text there is.
    CASE WHEN json_valid(asked.text) THEN json_extract_string(asked.text, '$[#-1].content') END AS prompt,
    answered.text AS answer,
    c.revision,
    c.revision = champion.revision AS is_champion{judge_columns},
    coalesce(used.used_as, 'unused') AS used_as,
    c.tokens,
    c.seconds,
    c.finish_reason,
    c.role,
    c.model,
    c.source,
    c.slot,
    p.tags,
    thought.text AS thinking,
    c.prompt_id,
    c.id,
    left(c.id::VARCHAR, 8) AS short_id
FROM completion c
CROSS JOIN champion
JOIN prompt p ON p.id = c.prompt_id
LEFT JOIN content asked ON asked.hash = p.messages_hash AND asked.round = p.round
LEFT JOIN content answered ON answered.hash = c.text_hash AND answered.round = c.round
LEFT JOIN content thought ON thought.hash = c.thinking_hash AND thought.round = c.round
LEFT JOIN verdict ON verdict."of completion" = c.id
LEFT JOIN used ON used.id = c.id
