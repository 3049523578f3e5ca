-- One row an answer: what was asked, what came, what each judge thought, what it was used for.
-- {judges} is one column a judge of the recipe.
CREATE OR REPLACE VIEW answers AS
WITH champion AS (
    SELECT coalesce(
        (SELECT challenger FROM decision WHERE decision = 'promoted' ORDER BY round DESC LIMIT 1),
        (SELECT student FROM run LIMIT 1)
    ) AS revision
),
verdict AS (
    -- No judge can be named so: its name is one word.
    SELECT judgement.completion_id AS "of completion"{judge_values}
    FROM judgement WHERE judgement.mode = 'score' AND judgement.aspect = '' GROUP BY judgement.completion_id
),
used AS (
    SELECT id, CASE WHEN bool_or(chosen) THEN 'chosen' ELSE 'rejected' END AS used_as
    FROM (
        SELECT chosen_id AS id, true AS chosen FROM pair
        UNION ALL SELECT rejected_id, false FROM pair
        UNION ALL SELECT completion_id, true FROM selection
    ) GROUP BY id
)
SELECT
    (SELECT name FROM run LIMIT 1) AS run,
    c.round,
    c.step,
    c.split,
    json_extract_string(asked.text, '$[#-1].content') AS prompt,
    answered.text AS answer,
    c.revision,
    c.revision = champion.revision AS is_champion{judge_columns},
    coalesce(used.used_as, 'unused') AS used_as,
    c.tokens,
    c.seconds,
    c.finish_reason,
    c.role,
    c.slot,
    p.tags,
    c.prompt_id,
    c.id,
    left(c.id::VARCHAR, 8) AS short_id
FROM completion c
CROSS JOIN champion
JOIN prompt p ON p.id = c.prompt_id
LEFT JOIN content asked ON asked.hash = p.messages_hash AND asked.round = p.round
LEFT JOIN content answered ON answered.hash = c.text_hash AND answered.round = c.round
LEFT JOIN verdict ON verdict."of completion" = c.id
LEFT JOIN used ON used.id = c.id;
