-- One row a training row: what it taught, where it was curated, and whose judgements it rests on.
SELECT
    t.id, t.round, t.training_run_id, t.position, t.prompt_id, t.completion_id, t.rejected_id,
    coalesce(p.id, old_p.id) AS pair_id, coalesce(s.id, old_s.id) AS selection_id,
    coalesce(p.step, old_p.step, s.step, old_s.step, listed.step, t.step) AS origin,
    CASE WHEN listed.judges IS NOT NULL THEN listed.judges WHEN coalesce(p.judge, old_p.judge) IS NOT NULL THEN [coalesce(p.judge, old_p.judge)] ELSE coalesce(
        (SELECT list(DISTINCT j.judge ORDER BY j.judge) FROM judgement j
         WHERE j.completion_id = t.completion_id AND j.mode = 'score' AND j.value IS NOT NULL), []
    ) END AS judges
FROM training_row t
LEFT JOIN pair p ON p.id = t.pair_id
LEFT JOIN selection s ON s.id = t.selection_id
-- Stores that are older than the two columns: found by what was frozen.
LEFT JOIN pair old_p ON t.pair_id IS NULL AND t.selection_id IS NULL AND old_p.round = t.round
    AND old_p.chosen_id = t.completion_id AND old_p.rejected_id = t.rejected_id
LEFT JOIN selection old_s ON t.pair_id IS NULL AND t.selection_id IS NULL AND t.rejected_id IS NULL
    AND t.ranked IS NULL AND old_s.round = t.round AND old_s.completion_id = t.completion_id
-- A list rests on all pairs of its prompt, of the step that it was made of.
LEFT JOIN (
    SELECT l.id, min(q.step) AS step, list(DISTINCT q.judge ORDER BY q.judge) FILTER (q.judge <> '') AS judges
    FROM training_row l
    JOIN step d ON d.round = l.round AND d.step = l.step
    JOIN pair q ON q.round = l.round AND q.prompt_id = l.prompt_id
        AND list_contains((d.settings -> 'of')::VARCHAR[], q.step)
    WHERE l.ranked IS NOT NULL GROUP BY l.id
) listed ON listed.id = t.id
