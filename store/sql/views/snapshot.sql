SELECT
    TIMESTAMPTZ '{published_at}' AS published_at,
    (SELECT max(created_at) FROM write_batch) AS newest_fact_at,
    greatest(0, epoch(now()) - epoch(TIMESTAMPTZ '{published_at}')) AS age_seconds,
    (SELECT max(version) FROM schema_migration) AS schema_version,
    {views_version} AS views_version,
    '{views_hash}' AS views_hash,
    '{redistill_version}' AS redistill_version
