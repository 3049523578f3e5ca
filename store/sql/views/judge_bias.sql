SELECT
    e.round,
    e.step,
    e.detail ->> '$.judge' AS judge,
    x.found ->> '$.effect' AS effect,
    (x.found ->> '$.estimate')::DOUBLE AS log_odds,
    (x.found ->> '$.ci_low')::DOUBLE AS ci_low,
    (x.found ->> '$.ci_high')::DOUBLE AS ci_high,
    (x.found ->> '$.removed')::BOOLEAN AS removed,
    (e.detail ->> '$.duels')::BIGINT AS n,
    (e.detail ->> '$.prompts')::BIGINT AS prompts
FROM event e, unnest((e.detail -> '$.effects')::JSON[]) x(found)
WHERE e.kind = 'bias'
