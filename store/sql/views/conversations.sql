SELECT
    c.round,
    c.step,
    CASE WHEN json_valid(asked.text) THEN from_json(asked.text, '[{"role":"VARCHAR","content":"VARCHAR"}]') END AS prompt,
    CASE WHEN json_valid(turns.text) THEN from_json(turns.text, '[{"role":"VARCHAR","content":"VARCHAR"}]')
         ELSE [{'role': 'assistant', 'content': said.text}] END AS completion,
    c.finish_reason,
    coalesce(c.revision, c.model) AS revision,
    saw.context,
    saw.token_ids AS prompt_token_ids,
    spoken.token_ids AS completion_token_ids,
    spoken.logprobs,
    c.text_hash,
    c.prompt_id,
    c.id AS completion_id
FROM completion c
JOIN prompt p ON p.id = c.prompt_id AND p.split = 'train'
JOIN content asked ON asked.hash = p.messages_hash AND asked.round = p.round AND asked.forgotten_at IS NULL
JOIN content said ON said.hash = c.text_hash AND said.round = c.round AND said.forgotten_at IS NULL
LEFT JOIN content turns ON turns.hash = c.turns_hash AND turns.round = c.round
LEFT JOIN completion_tokens spoken ON spoken.completion_id = c.id AND spoken.round = c.round
LEFT JOIN rendered_prompt saw ON saw.id = c.rendered_prompt_id AND saw.round = c.round
WHERE c.split = 'train'
