WITH label AS (
    SELECT id, round, step, judge, rule, chosen_id, rejected_id, margin, probability, weight FROM pair
    UNION ALL
    SELECT f.id, f.round, f.step, 'feedback', f.kind, f.completion_id, f.other_id, 1.0, 1.0, 1.0
    FROM feedback f
    WHERE f.kind IN ('preference', 'edit') AND NOT EXISTS (
        SELECT 1 FROM pair p WHERE p.chosen_id = f.completion_id AND p.rejected_id = f.other_id
    )
),
frozen AS (
    SELECT pair_id, arg_max(training_run_id, created_at) AS training_run_id,
           arg_max(reference_chosen, created_at) AS chosen,
           arg_max(reference_rejected, created_at) AS rejected
    FROM training_row
    WHERE reference_chosen IS NOT NULL AND reference_rejected IS NOT NULL AND pair_id IS NOT NULL
    GROUP BY pair_id
)
SELECT
    c.prompt,
    c.completion AS chosen,
    r.completion AS rejected,
    l.margin,
    l.probability,
    l.weight,
    l.round,
    l.step,
    l.judge,
    l.rule,
    c.prompt_token_ids,
    c.completion_token_ids AS chosen_token_ids,
    r.completion_token_ids AS rejected_token_ids,
    CASE WHEN f.pair_id IS NOT NULL THEN f.chosen
         WHEN c.revision = r.revision AND c.context = '' AND r.context = '' AND r.logprobs IS NOT NULL
         THEN list_sum(c.logprobs) END AS reference_chosen,
    CASE WHEN f.pair_id IS NOT NULL THEN f.rejected
         WHEN c.revision = r.revision AND c.context = '' AND r.context = '' AND c.logprobs IS NOT NULL
         THEN list_sum(r.logprobs) END AS reference_rejected,
    CASE WHEN f.pair_id IS NOT NULL THEN t.reference_revision
         WHEN c.revision = r.revision THEN c.revision END AS revision,
    l.id AS pair_id,
    c.prompt_id,
    c.completion_id AS chosen_id,
    r.completion_id AS rejected_id,
    left(l.id::VARCHAR, 8) AS short_id
FROM label l
JOIN conversations c ON c.completion_id = l.chosen_id AND c.finish_reason <> 'length'
JOIN conversations r ON r.completion_id = l.rejected_id AND r.prompt_id = c.prompt_id
                    AND r.text_hash <> c.text_hash
LEFT JOIN frozen f ON f.pair_id = l.id
LEFT JOIN training_run t ON t.id = f.training_run_id
