SELECT
    x.round,
    x.step,
    written.text AS prompt,
    x.verdict,
    CASE WHEN json_valid(like_it.text) THEN json_extract_string(like_it.text, '$[#-1].content') END AS nearest,
    x.similarity,
    x.measure,
    n.split AS nearest_split,
    CASE WHEN json_valid(asked.text) THEN json_extract_string(asked.text, '$[#-1].content') END AS asked,
    said.text AS reply,
    c.role,
    coalesce(c.revision, c.model) AS revision,
    len(x.seeds) AS seeds,
    x.prompt_id,
    x.nearest_id,
    x.completion_id,
    x.id,
    left(x.id::VARCHAR, 8) AS short_id
FROM proposal x
JOIN completion c ON c.id = x.completion_id AND c.round = x.round
JOIN prompt q ON q.id = c.prompt_id AND q.round = c.round
LEFT JOIN content asked ON asked.hash = q.messages_hash AND asked.round = q.round
LEFT JOIN content said ON said.hash = c.text_hash AND said.round = c.round
LEFT JOIN content written ON written.hash = x.text_hash AND written.round = x.round
LEFT JOIN prompt n ON n.id = x.nearest_id
LEFT JOIN content like_it ON like_it.hash = n.messages_hash AND like_it.round = n.round
