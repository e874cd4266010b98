-- Submits that share a commit, of any organizations, in one statement: what it costs is paid once for all of them. It never waits and
-- never refuses: whatever is not plain (a new or inactive user, a key seen before, credits that end, too few of them, a limit that is
-- reached, a wallet or a bucket that somebody holds at this moment) is left out, written nowhere, and the caller submits it alone. So
-- no batch waits for another, nor one tenant for another's lock. Row security holds here too: the organizations are the signed ones.
GRANT USAGE, CREATE ON SCHEMA limner TO limner_batch;
SET ROLE limner_owner;
GRANT SELECT (org_id, id, app_id, external_id, is_active) ON limner.end_user TO limner_batch;
GRANT SELECT, UPDATE (available_mc, held_mc, version, jobs_submitted, rate_tat) ON limner.wallet TO limner_batch;
GRANT SELECT, UPDATE (tat) ON limner.rate_counter TO limner_batch;
GRANT SELECT (org_id, principal_id, route, idem_key) ON limner.job TO limner_batch;
GRANT INSERT ON limner.job, limner.transfer, limner.job_queue, limner.provider_call TO limner_batch;
GRANT EXECUTE ON FUNCTION limner._shards(int), limner._step(int, int) TO limner_batch;
RESET ROLE;
SET ROLE limner_batch;
CREATE FUNCTION limner.submit_jobs(p_ctx text, p_batch json)
RETURNS TABLE (job_id uuid, available_mc bigint, user_full_at timestamptz, app_full_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  -- a few dozen rows, each found by its whole key, whatever the statistics said when the plan was made
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  orgs uuid[] := limner.enter_all(p_ctx);
  dice int := floor(random() * 1000);          -- which piece of their apps' buckets
BEGIN
  RETURN QUERY
  WITH asked AS MATERIALIZED (
    SELECT b.* FROM ROWS FROM (json_to_recordset(p_batch) AS (
      org uuid, job uuid, app uuid, external text, route text, model_id uuid, model text, kind text, unit_price bigint, hold bigint,
      priority int, key text, hash bytea, input jsonb, wait int, deadline_s int, max_runs int, request_id text, traceparent text,
      run_at timestamptz, user_rate int, app_rate int, webhook_url text, token_prices jsonb, terms jsonb, cancel_after int,
      -- of a call that answers at once: who has it for how long, and whom it asks first
      owner text, lease_s double precision, provider text, provider_model text, rule text, own_key boolean)) WITH ORDINALITY b),
  -- Whose user is there and whose key is new, and whose wallet and bucket are free. CASE and not coalesce: of what a policy guards,
  -- coalesce is no index's condition, and would read all wallets of the organization (docs/decisions/0033).
  known AS MATERIALIZED (
    SELECT a.*, u.id AS user_id, coalesce(u.id, a.app) AS principal, coalesce(u.id, a.org) AS payer,
           limner._step(CASE WHEN u.id IS NOT NULL THEN a.user_rate END, 1) AS user_step,
           limner._step(a.app_rate, limner._shards(a.app_rate)) AS app_step,
           w.available_mc, w.version, greatest(w.rate_tat, now()) AS user_tat, c.shard, greatest(c.tat, now()) AS app_tat,
           row_number() OVER (PARTITION BY a.org, a.app, a.external, a.route, a.key ORDER BY a.ordinality) AS copy
      FROM asked a
      LEFT JOIN LATERAL (SELECT u.id FROM limner.end_user u WHERE u.org_id = a.org AND u.app_id = a.app AND u.external_id = a.external
                            AND u.is_active LIMIT 1) u ON true
      LEFT JOIN LATERAL (SELECT true AS seen FROM limner.job j WHERE a.key IS NOT NULL AND j.org_id = a.org
                            AND j.principal_id = CASE WHEN u.id IS NULL THEN a.app ELSE u.id END AND j.route = a.route AND j.idem_key = a.key LIMIT 1) r ON true
      JOIN LATERAL (SELECT w.available_mc, w.version, w.rate_tat FROM limner.wallet w WHERE w.org_id = a.org
                       AND w.id = CASE WHEN u.id IS NULL THEN a.org ELSE u.id END AND w.lots_end IS NULL AND w.owed_mc = 0 FOR NO KEY UPDATE SKIP LOCKED) w ON true
      LEFT JOIN LATERAL (SELECT c.shard, c.tat FROM limner.rate_counter c WHERE a.app_rate IS NOT NULL AND c.org_id = a.org AND c.subject_id = a.app
                            AND c.shard = dice % limner._shards(a.app_rate) FOR UPDATE SKIP LOCKED) c ON true
     WHERE (a.external IS NULL OR u.id IS NOT NULL) AND r.seen IS NULL AND (a.app_rate IS NULL OR c.shard IS NOT NULL)),
  asking AS MATERIALIZED (                     -- in their order: what each and those before it would take
    SELECT k.*, sum(k.hold) OVER payer AS holds, row_number() OVER payer AS of_payer, row_number() OVER app AS of_app
      FROM known k WHERE k.key IS NULL OR k.copy = 1
    WINDOW payer AS (PARTITION BY k.org, k.payer ORDER BY k.ordinality), app AS (PARTITION BY k.org, k.app ORDER BY k.ordinality)),
  taken AS MATERIALIZED (                      -- those for whom there is enough, counted again among themselves
    SELECT a.*, (a.available_mc - sum(a.hold) OVER payer)::bigint AS left_mc, a.version + row_number() OVER payer AS debit_version,
           a.user_tat + a.user_step * row_number() OVER payer AS user_full, a.app_tat + a.app_step * row_number() OVER app AS app_full
      FROM asking a
     WHERE a.holds <= a.available_mc
       AND (a.user_step IS NULL OR a.user_tat + a.user_step * a.of_payer <= now() + interval '1 minute')
       AND (a.app_step IS NULL OR a.app_tat + a.app_step * a.of_app <= now() + interval '1 minute')
    WINDOW payer AS (PARTITION BY a.org, a.payer ORDER BY a.ordinality), app AS (PARTITION BY a.org, a.app ORDER BY a.ordinality)),
  paid AS (
    UPDATE limner.wallet w SET available_mc = w.available_mc - s.hold, held_mc = w.held_mc + s.hold, version = w.version + s.jobs,
                               jobs_submitted = w.jobs_submitted + s.jobs, rate_tat = coalesce(s.user_full, w.rate_tat)
      FROM (SELECT k.org, k.payer, sum(k.hold)::bigint AS hold, count(*) AS jobs, max(k.user_full) AS user_full FROM taken k GROUP BY 1, 2) s
     WHERE w.org_id = s.org AND w.id = s.payer),
  counted AS (
    UPDATE limner.rate_counter c SET tat = s.app_full
      FROM (SELECT k.org, k.app, k.shard, max(k.app_full) AS app_full FROM taken k WHERE k.app_step IS NOT NULL GROUP BY 1, 2, 3) s
     WHERE c.org_id = s.org AND c.subject_id = s.app AND c.shard = s.shard),
  ordered AS (
    INSERT INTO limner.job (org_id, id, app_id, end_user_id, principal_id, wallet_id, model_id, model, kind, priority, route, idem_key,
                            request_hash, input, unit_price_mc, price_hold_mc, wait_s, run_at, request_id, traceparent, webhook_url,
                            state, runs, started_at, token_prices, terms, cancel_after_s)
    SELECT k.org, k.job, k.app, k.user_id, k.principal, k.payer, k.model_id, k.model, k.kind, k.priority, k.route, k.key,
           k.hash, k.input, k.unit_price, k.hold, k.wait, k.run_at, k.request_id, k.traceparent, k.webhook_url,
           CASE WHEN k.owner IS NULL THEN 'queued' ELSE 'running' END, (k.owner IS NOT NULL)::int,
           CASE WHEN k.owner IS NOT NULL THEN clock_timestamp() END, k.token_prices, k.terms, k.cancel_after FROM taken k),
  held AS (
    INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, job_id)
    SELECT k.org, k.job, 'hold', k.payer, k.debit_version, k.left_mc, 'revenue', k.hold, k.job FROM taken k),
  queued AS (
    INSERT INTO limner.job_queue (org_id, job_id, app_id, priority, wallet_id, hold_mc, phase, claimable_at, max_runs, deadline_at, created_at,
                                  runs, fence, lease_owner)
    SELECT k.org, k.job, k.app, k.priority, k.payer, k.hold,
           CASE WHEN k.owner IS NOT NULL THEN 'leased' WHEN k.run_at > clock_timestamp() THEN 'deferred' ELSE 'ready' END,
           d.due + make_interval(secs => coalesce(k.lease_s, 0)), k.max_runs, d.due + make_interval(secs => k.deadline_s), d.due,
           (k.owner IS NOT NULL)::int, (k.owner IS NOT NULL)::int, k.owner
      FROM taken k CROSS JOIN LATERAL (SELECT greatest(k.run_at, clock_timestamp()) AS due) d),
  said AS (
    INSERT INTO limner.provider_call (org_id, job_id, step, provider, send_no, run, fence, provider_model, rule, own_key, idem_key)
    SELECT k.org, k.job, 'main', k.provider, 1, 1, 1, k.provider_model, k.rule, coalesce(k.own_key, false), k.job || ':main:' || k.provider FROM taken k WHERE k.owner IS NOT NULL)
  SELECT k.job, k.left_mc, k.user_full, k.app_full FROM taken k;
END $$;
GRANT EXECUTE ON FUNCTION limner.submit_jobs TO limner_api;
RESET ROLE;
REVOKE CREATE ON SCHEMA limner FROM limner_batch;
