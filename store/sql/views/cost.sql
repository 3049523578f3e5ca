WITH spoken AS (
    SELECT c.round, c.step, c.role, c.model, 'sampling' AS what, count(*) AS answers,
           sum(len(saw.token_ids)) AS tokens_in, sum(c.tokens) AS tokens_out,
           NULL::DOUBLE AS dollars, sum(c.seconds) AS seconds
    FROM completion c
    LEFT JOIN rendered_prompt saw ON saw.id = c.rendered_prompt_id AND saw.round = c.round
    GROUP BY c.round, c.step, c.role, c.model
    UNION ALL
    SELECT round, step, role, NULL, 'judging', count(*), sum(tokens_in), sum(tokens_out), sum(dollars),
           sum(seconds)
    FROM judgement GROUP BY round, step, role
),
billed AS (
    SELECT round, step, role, model,
           CASE purpose WHEN 'sample' THEN 'sampling' WHEN 'judge' THEN 'judging' ELSE 'other' END AS what,
           count(*) AS calls, sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out,
           sum(dollars) AS dollars
    FROM charge GROUP BY ALL
),
made AS (
    -- Tokens and dollars of what was billed come from the bill alone; its seconds from the rows alone.
    SELECT s.round, s.step, s.role, s.model, s.what, s.answers, 0 AS calls, s.seconds,
           NULL::DOUBLE AS cpu_seconds,
           CASE WHEN NOT bill THEN s.tokens_in END AS tokens_in,
           CASE WHEN NOT bill THEN s.tokens_out END AS tokens_out,
           CASE WHEN NOT bill THEN s.dollars END AS dollars
    FROM (
        SELECT spoken.*, EXISTS (
            SELECT 1 FROM billed b WHERE b.round = spoken.round AND b.step = spoken.step
                                     AND b.role = spoken.role AND b.what = spoken.what
        ) AS bill
        FROM spoken
    ) s
    UNION ALL BY NAME
    SELECT round, step, role, model, what, 0 AS answers, calls, tokens_in, tokens_out, dollars FROM billed
    UNION ALL BY NAME
    SELECT round, step, 'student' AS role, 'training' AS what, sum(rows) AS answers, 0 AS calls,
           sum(seconds) AS seconds, sum(cpu_seconds) AS cpu_seconds
    FROM training_run GROUP BY round, step
),
rest AS (
    -- What the ledger has beyond the rows: rendering, freezing, loading.
    SELECT b.round, b.step, b.seconds - coalesce(m.seconds, 0) AS seconds
    FROM (SELECT round, step, sum(seconds) AS seconds FROM write_batch GROUP BY round, step) b
    LEFT JOIN (SELECT round, step, sum(seconds) AS seconds FROM made GROUP BY round, step) m
      ON m.round = b.round AND m.step = b.step
),
part AS (
    SELECT round, step, role, model, what, sum(answers) AS answers, sum(calls) AS calls,
           sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out, sum(seconds) AS seconds,
           sum(cpu_seconds) AS cpu_seconds, sum(dollars) AS dollars
    FROM (
        SELECT * FROM made
        UNION ALL BY NAME
        SELECT round, step, 'other' AS what, 0 AS answers, 0 AS calls, seconds FROM rest WHERE seconds > 0.001
    )
    GROUP BY round, step, role, model, what
),
point AS (
    SELECT p.round, sum(p.dollars) / (100 * any_value(d.delta)) AS dollars,
           sum(p.seconds) / (100 * any_value(d.delta)) AS seconds
    FROM part p
    JOIN (
        SELECT round, arg_max(delta, created_at) AS delta FROM decision
        WHERE decision = 'promoted' AND delta > 0 GROUP BY round
    ) d ON d.round = p.round
    GROUP BY p.round
)
SELECT
    part.round,
    part.step,
    part.role,
    part.model,
    part.what,
    part.answers::BIGINT AS answers,
    part.calls::BIGINT AS calls,
    part.tokens_in::BIGINT AS tokens_in,
    part.tokens_out::BIGINT AS tokens_out,
    part.seconds,
    part.cpu_seconds,
    part.dollars,
    point.dollars AS dollars_per_point,
    point.seconds AS seconds_per_point
FROM part
LEFT JOIN point ON point.round = part.round
