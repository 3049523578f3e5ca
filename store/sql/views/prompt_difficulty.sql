WITH measured AS (
    SELECT prompt_id, judge, count(*) AS n, avg(value) AS value, avg(passed::INTEGER) AS passed,
           min(round) AS first_round, max(round) AS last_round
    FROM scores GROUP BY prompt_id, judge
)
SELECT
    m.judge,
    p.split,
    CASE WHEN json_valid(asked.text) THEN json_extract_string(asked.text, '$[#-1].content') END AS prompt,
    m.n,
    m.value,
    m.passed,
    m.first_round,
    m.last_round,
    p.tags,
    p.source,
    m.prompt_id,
    left(m.prompt_id::VARCHAR, 8) AS short_id
FROM measured m
JOIN prompt p ON p.id = m.prompt_id
LEFT JOIN content asked ON asked.hash = p.messages_hash AND asked.round = p.round
