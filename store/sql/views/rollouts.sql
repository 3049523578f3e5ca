-- Rows are never taken away: where a job went on and said something else at a place, the last new answer is taken.
SELECT
    r.round,
    r.step,
    c.optimizer_step,
    c.slot,
    CASE WHEN json_valid(asked.text) THEN json_extract_string(asked.text, '$[#-1].content') END AS prompt,
    said.text AS answer,
    c.tokens,
    c.finish_reason,
    r.reward,
    r.advantage,
    r.weight,
    r.weight > 0 AS used,
    c.attempt,
    r.training_run_id,
    r.prompt_id,
    r.completion_id,
    left(r.completion_id::VARCHAR, 8) AS short_id
FROM training_row r
JOIN completion c
    ON c.id = r.completion_id AND c.round = r.round AND c.training_run_id = r.training_run_id
JOIN prompt p ON p.id = r.prompt_id
LEFT JOIN content asked ON asked.hash = p.messages_hash AND asked.round = p.round
LEFT JOIN content said ON said.hash = c.text_hash AND said.round = c.round
QUALIFY c.attempt = max(c.attempt) OVER (PARTITION BY r.training_run_id, c.optimizer_step, c.slot)
