-- Starts, intents and finishes of a worker's runs that share a commit, of any organizations, one statement for each of the three. Like
-- submit_jobs it never waits and never refuses: whatever is not plain (a row or a wallet that somebody holds, a lease that was lost, a
-- call that was sent before, a place at another provider, lots that were drawn, a debt, a charge that cannot be) is left out, written
-- nowhere, and the worker asks for it alone. p_batch: {"start": [...], "intend": [...], "finish": [...]}.
SET ROLE limner_owner;
GRANT SELECT (org_id, job_id, app_id, phase, runs, fence, lease_owner, provider_id), UPDATE (fence), DELETE ON limner.job_queue TO limner_batch;
GRANT SELECT, UPDATE (state, started_at, runs, price_final_mc, outputs, error_code, error_message, provider_used, finished_fence, finished_at)
  ON limner.job TO limner_batch;
GRANT UPDATE (jobs_succeeded) ON limner.wallet TO limner_batch;
GRANT SELECT, INSERT, UPDATE (state, provider_task_id, cost_micro_usd, latency_ms, outputs, finished_at) ON limner.provider_call TO limner_batch;
GRANT SELECT (org_id, job_id), DELETE ON limner.job_input TO limner_batch;
GRANT INSERT ON limner.event, limner.usage_record, limner.leftover TO limner_batch;
RESET ROLE;
GRANT CREATE ON SCHEMA limner TO limner_batch;
SET ROLE limner_batch;
CREATE FUNCTION limner.work_many(p_ctx text, p_batch jsonb) RETURNS TABLE (place int, answer jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  orgs uuid[] := limner.enter_all(p_ctx);
  v_now timestamptz := clock_timestamp();
BEGIN
  IF p_batch - '{start,intend,finish}'::text[] <> '{}' THEN
    RAISE EXCEPTION 'not something a worker does: %', p_batch - '{start,intend,finish}'::text[] USING ERRCODE = 'LM422';
  END IF;

  IF p_batch ? 'start' THEN
    RETURN QUERY
    WITH own AS MATERIALIZED (
      SELECT a.*, q.app_id, q.runs, row_number() OVER (PARTITION BY a.org, a.job ORDER BY a.place) AS copy
        FROM jsonb_to_recordset(p_batch -> 'start') AS a (place int, org uuid, job uuid, fence bigint, event uuid)
        JOIN LATERAL (SELECT q.app_id, q.runs FROM limner.job_queue q
                       WHERE q.org_id = a.org AND q.job_id = a.job AND q.fence = a.fence AND q.lease_owner IS NOT NULL
                         FOR UPDATE SKIP LOCKED) q ON true
        JOIN LATERAL (SELECT 1 FROM limner.job j WHERE j.org_id = a.org AND j.id = a.job FOR NO KEY UPDATE SKIP LOCKED) j ON true),
    started AS (
      UPDATE limner.job j SET state = 'running', started_at = coalesce(j.started_at, v_now), runs = o.runs
        FROM own o WHERE o.copy = 1 AND j.org_id = o.org AND j.id = o.job
      RETURNING o.place, o.org, o.job, o.event, o.app_id, j.started_at = v_now AS first, jsonb_build_object('app_id', j.app_id,
        'model_id', j.model_id, 'model', j.model, 'kind', j.kind, 'input', j.input, 'unit_price_mc', j.unit_price_mc,
        'token_prices', j.token_prices, 'price_hold_mc', j.price_hold_mc, 'request_id', j.request_id, 'traceparent', j.traceparent,
        'terms', j.terms) AS work),
    told AS (                                                -- once: a run given back may start again
      INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
      SELECT s.org, s.event, s.app_id, 'job.started', s.job, jsonb_build_object('job_id', s.job) FROM started s WHERE s.first)
    SELECT s.place, s.work FROM started s;
  END IF;

  IF p_batch ? 'intend' THEN
    RETURN QUERY
    WITH own AS MATERIALIZED (
      SELECT a.*, q.runs, a.job || ':' || a.step || ':' || a.provider AS idem_key, row_number() OVER (PARTITION BY a.org, a.job ORDER BY a.place) AS copy
        FROM jsonb_to_recordset(p_batch -> 'intend') AS a (
          place int, org uuid, job uuid, fence bigint, step text, provider text, provider_model text, rule text, provider_id uuid, own_key boolean)
        JOIN LATERAL (SELECT q.runs FROM limner.job_queue q
                       WHERE q.org_id = a.org AND q.job_id = a.job AND q.fence = a.fence AND q.lease_owner IS NOT NULL
                         AND (q.provider_id IS NULL OR a.provider_id IS NULL OR (q.phase = 'leased' AND q.provider_id = a.provider_id))
                         FOR UPDATE SKIP LOCKED) q ON true
        LEFT JOIN LATERAL (SELECT true AS sent FROM limner.provider_call c
                            WHERE c.org_id = a.org AND c.job_id = a.job AND c.step = a.step AND c.provider = a.provider LIMIT 1) c ON true
       WHERE c.sent IS NULL),
    said AS (
      INSERT INTO limner.provider_call (org_id, job_id, step, provider, send_no, run, fence, provider_model, rule, own_key, idem_key)
      SELECT o.org, o.job, o.step, o.provider, 1, o.runs, o.fence, o.provider_model, o.rule, coalesce(o.own_key, false), o.idem_key FROM own o WHERE o.copy = 1)
    SELECT o.place, jsonb_build_object('decision', 'send', 'send_no', 1, 'idem_key', o.idem_key, 'provider_task_id', NULL, 'outputs', NULL,
                                       'cost_micro_usd', NULL) FROM own o WHERE o.copy = 1;
  END IF;

  IF p_batch ? 'finish' THEN
    RETURN QUERY
    WITH own AS MATERIALIZED (
      SELECT a.*, CASE a.outcome WHEN 'succeeded' THEN a.amount ELSE 0 END AS charge_mc, j.*, w.*, c.called
        FROM jsonb_to_recordset(p_batch -> 'finish') AS a (
          place int, org uuid, job uuid, fence bigint, outcome text, amount bigint, outputs jsonb, error_code text, error_message text,
          provider text, usage jsonb, transfer uuid, event uuid, call jsonb)
        JOIN LATERAL (SELECT 1 FROM limner.job_queue q
                       WHERE q.org_id = a.org AND q.job_id = a.job AND q.fence = a.fence AND q.lease_owner IS NOT NULL
                         FOR UPDATE SKIP LOCKED) q ON true
        JOIN LATERAL (SELECT j.app_id, j.end_user_id, j.model, j.wallet_id, j.price_hold_mc, j.webhook_url,
                             j.input ?| ARRAY['images', 'mask', 'audio'] AS pictures
                        FROM limner.job j WHERE j.org_id = a.org AND j.id = a.job AND NOT j.drew_lots
                         AND (a.outcome <> 'succeeded' OR a.amount = 0
                              OR (a.amount BETWEEN 0 AND j.price_hold_mc AND jsonb_array_length(a.usage) > 0))
                         FOR NO KEY UPDATE SKIP LOCKED) j ON true
        JOIN LATERAL (SELECT w.available_mc, w.version FROM limner.wallet w
                       WHERE w.org_id = a.org AND w.id = j.wallet_id AND w.owed_mc = 0 FOR NO KEY UPDATE SKIP LOCKED) w ON true
        LEFT JOIN LATERAL (SELECT true AS called FROM limner.provider_call c
                            WHERE c.org_id = a.org AND c.job_id = a.job AND c.step = a.call ->> 'step' AND c.provider = a.call ->> 'provider'
                              AND c.send_no = (a.call ->> 'send_no')::int AND c.state IN ('intent', 'accepted') LIMIT 1) c ON true
       WHERE a.call IS NULL OR c.called),
    closing AS MATERIALIZED (                                -- in their order: what each leaves in its wallet
      SELECT o.*, o.available_mc + (sum(o.price_hold_mc - o.charge_mc) OVER payer)::bigint AS left_mc,
             o.version + row_number() OVER payer AS debit_version
        FROM (SELECT x.*, row_number() OVER (PARTITION BY x.org, x.job ORDER BY x.place) AS copy FROM own x) o
       WHERE o.copy = 1 WINDOW payer AS (PARTITION BY o.org, o.wallet_id ORDER BY o.place)),
    settled AS (
      UPDATE limner.wallet w SET held_mc = w.held_mc - s.hold_mc, available_mc = w.available_mc + s.back_mc, version = w.version + s.jobs,
                                 jobs_succeeded = w.jobs_succeeded + s.succeeded
        FROM (SELECT k.org, k.wallet_id, sum(k.price_hold_mc)::bigint AS hold_mc, sum(k.price_hold_mc - k.charge_mc)::bigint AS back_mc,
                     count(*) AS jobs, count(*) FILTER (WHERE k.outcome = 'succeeded') AS succeeded FROM closing k GROUP BY 1, 2) s
       WHERE w.org_id = s.org AND w.id = s.wallet_id),
    moved AS (
      INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, hold_id, job_id)
      SELECT k.org, k.transfer, CASE k.outcome WHEN 'succeeded' THEN 'post' ELSE 'void' END, k.wallet_id, k.debit_version, k.left_mc, 'revenue',
             k.charge_mc, k.job, k.job FROM closing k),
    closed AS (
      UPDATE limner.job j SET state = k.outcome, price_final_mc = k.charge_mc, outputs = k.outputs, error_code = k.error_code,
             error_message = left(k.error_message, 2000), provider_used = k.provider, finished_fence = k.fence, finished_at = v_now
        FROM closing k WHERE j.org_id = k.org AND j.id = k.job),
    delivered AS (
      UPDATE limner.provider_call c SET state = 'done', provider_task_id = coalesce(k.call ->> 'task', c.provider_task_id),
             cost_micro_usd = (k.call ->> 'cost')::bigint, latency_ms = (k.call ->> 'latency_ms')::int, outputs = k.outputs, finished_at = v_now
        FROM closing k WHERE k.called AND c.org_id = k.org AND c.job_id = k.job AND c.step = k.call ->> 'step'
         AND c.provider = k.call ->> 'provider' AND c.send_no = (k.call ->> 'send_no')::int),
    used AS (
      INSERT INTO limner.usage_record (org_id, job_id, seq, app_id, end_user_id, model, provider, kind, quantity, unit, price_mc, cost_micro_usd)
      SELECT k.org, k.job, u.n, k.app_id, k.end_user_id, k.model, k.provider, u.v ->> 'kind', (u.v ->> 'quantity')::bigint, u.v ->> 'unit',
             CASE u.n WHEN 1 THEN k.charge_mc ELSE 0 END, CASE u.n WHEN 1 THEN (u.v ->> 'cost_micro_usd')::bigint END
        FROM closing k CROSS JOIN LATERAL jsonb_array_elements(k.usage) WITH ORDINALITY u (v, n)),
    told AS (
      INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload, deliver_to)
      SELECT k.org, k.event, k.app_id, CASE k.outcome WHEN 'succeeded' THEN 'job.completed' ELSE 'job.' || k.outcome END, k.job,
             jsonb_build_object('job_id', k.job, 'status', k.outcome, 'charged_mc', k.charge_mc, 'error_code', k.error_code),
             k.webhook_url FROM closing k),
    gone AS (                                                -- its key bounds the look, however empty the queue seems to the planner
      DELETE FROM limner.job_queue q USING closing k
       WHERE q.org_id = ANY (orgs) AND q.job_id = ANY (ARRAY(SELECT c.job FROM closing c)) AND q.org_id = k.org AND q.job_id = k.job),
    erased AS (DELETE FROM limner.job_input i USING closing k WHERE k.pictures AND i.org_id = k.org AND i.job_id = k.job),
    left_over AS (                                           -- runs may have left objects that nobody refers to
      INSERT INTO limner.leftover (org_id, finished_at, job_id)
      SELECT k.org, v_now, k.job FROM closing k WHERE k.fence > 1 OR k.outcome <> 'succeeded')
    SELECT k.place, to_jsonb(k.outcome) FROM closing k;
  END IF;
END $$;
GRANT EXECUTE ON FUNCTION limner.work_many TO limner_worker;
RESET ROLE;
REVOKE CREATE ON SCHEMA limner FROM limner_batch;
