SELECT
    c.prompt,
    c.completion,
    c.prompt_token_ids,
    c.completion_token_ids,
    d.logprobs,
    d.top_ids,
    d.top_logprobs,
    d.revision,
    d.context,
    d.round,
    d.step,
    c.prompt_id,
    c.completion_id,
    left(c.completion_id::VARCHAR, 8) AS short_id
FROM token_distribution d
JOIN conversations c ON c.completion_id = d.completion_id
WHERE d.top_ids IS NOT NULL
