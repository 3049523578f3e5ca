WITH told AS (
    SELECT p.id, CASE WHEN json_valid(details.text) THEN json_extract_string(details.text, '$.reference') END AS reference
    FROM prompt p
    JOIN content details ON details.hash = p.details_hash AND details.round = p.round
    WHERE p.split = 'train'
)
SELECT
    d.prompt,
    d.chosen,
    d.rejected,
    [{'role': 'assistant', 'content': told.reference}] AS reference,
    d.margin,
    d.weight,
    d.round,
    d.step,
    d.judge,
    d.rule,
    d.pair_id,
    d.prompt_id,
    d.chosen_id,
    d.rejected_id,
    d.short_id
FROM d2 d
JOIN told ON told.id = d.prompt_id
WHERE told.reference <> d.chosen[-1].content AND told.reference <> d.rejected[-1].content
