SELECT
    CASE WHEN json_valid(asked.text) THEN from_json(asked.text, '[{"role":"VARCHAR","content":"VARCHAR"}]') END AS prompt,
    CASE WHEN json_valid(details.text) THEN json_extract_string(details.text, '$.privileged') END AS privileged_context,
    p.position,
    p.tags,
    p.source,
    p.licence,
    p.id AS prompt_id,
    left(p.id::VARCHAR, 8) AS short_id
FROM prompt p
JOIN content asked ON asked.hash = p.messages_hash AND asked.round = p.round AND asked.forgotten_at IS NULL
JOIN content details ON details.hash = p.details_hash AND details.round = p.round
WHERE p.split = 'train' AND NOT list_contains(p.tags, 'redistill:proposing') AND CASE WHEN json_valid(details.text) THEN json_extract_string(details.text, '$.privileged') END IS NOT NULL
