-- The only writers of job state. Lock order everywhere: job_queue, job, wallet.
SET ROLE limner_owner;

-- Internal, the end of every submit: the hold first, whose row lock orders everybody who spends this wallet, then job, transfer
-- and queue row. NULL, and nothing written, when the wallet holds too little.
CREATE FUNCTION limner._place(
  t uuid, p_job uuid, p_app uuid, p_user uuid, p_route text, p_model_id uuid, p_model text, p_kind text, p_unit_price bigint, p_hold bigint,
  p_priority int, p_key text, p_hash bytea, p_input jsonb, p_wait int, p_deadline_s int, p_max_runs int, p_request_id text, p_traceparent text)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_wallet uuid := coalesce(p_user, t);
  v_available bigint;
  v_version bigint;
BEGIN
  UPDATE limner.wallet x SET available_mc = x.available_mc - p_hold, held_mc = x.held_mc + p_hold,
                             version = x.version + 1, jobs_submitted = x.jobs_submitted + 1
   WHERE x.org_id = t AND x.id = v_wallet AND x.available_mc >= p_hold        -- checked again after a lock wait
  RETURNING x.available_mc, x.version INTO v_available, v_version;
  IF NOT FOUND THEN RETURN NULL; END IF;
  INSERT INTO limner.job (org_id, id, app_id, end_user_id, principal_id, wallet_id, model_id, model, kind, priority, route, idem_key,
                          request_hash, input, unit_price_mc, price_hold_mc, wait_s, request_id, traceparent)
  VALUES (t, p_job, p_app, p_user, coalesce(p_user, p_app), v_wallet, p_model_id, p_model, p_kind, p_priority, p_route, p_key,
          p_hash, p_input, p_unit_price, p_hold, p_wait, p_request_id, p_traceparent);
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, job_id)
  VALUES (t, p_job, 'hold', v_wallet, v_version, v_available, 'revenue', p_hold, p_job);
  INSERT INTO limner.job_queue (org_id, job_id, app_id, priority, max_runs, deadline_at)
  VALUES (t, p_job, p_app, p_priority, p_max_runs, clock_timestamp() + make_interval(secs => p_deadline_s));
  RETURN v_available;
END $$;

-- Internal: the job an idempotency key stands for already, or the one with this very id; nothing when the request is new. A key
-- whose closed job is older than 30 days lapses here.
CREATE FUNCTION limner._replayed(t uuid, p_job uuid, p_principal uuid, p_route text, p_key text, p_hash bytea)
RETURNS TABLE (job_id uuid, hold_mc bigint, available_mc bigint, wait_s int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE old record;
BEGIN
  SELECT j.id, j.request_hash, j.price_hold_mc, j.wait_s, j.principal_id, j.finished_at IS NOT NULL AS closed,
         j.created_at < clock_timestamp() - interval '30 days' AS lapsed, x.debit_available_mc AS available INTO old
    FROM limner.job j JOIN limner.transfer x ON x.org_id = t AND x.id = j.id
   WHERE j.org_id = t AND ((j.principal_id = p_principal AND j.route = p_route AND j.idem_key = p_key) OR j.id = p_job);
  IF NOT FOUND THEN RETURN; END IF;
  IF old.lapsed AND old.closed AND old.id <> p_job THEN
    UPDATE limner.job j SET idem_key = NULL WHERE j.org_id = t AND j.id = old.id;
    RETURN;
  END IF;
  IF old.request_hash IS DISTINCT FROM p_hash OR old.principal_id IS DISTINCT FROM p_principal THEN
    RAISE EXCEPTION 'this idempotency key was used for another request' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
  END IF;
  RETURN QUERY SELECT old.id, old.price_hold_mc, old.available, old.wait_s;
END $$;

-- One submit: idempotency, the wallet's hold, job and queue row, in one statement of the caller. `p_again`: this id may have been
-- submitted before, by a statement whose answer was lost.
CREATE FUNCTION limner.submit_job(
  p_ctx text, p_job uuid, p_app uuid, p_external text, p_new_user uuid, p_route text, p_model_id uuid, p_model text, p_kind text,
  p_unit_price bigint, p_hold bigint, p_priority int, p_key text, p_hash bytea, p_input jsonb, p_wait int, p_deadline_s int,
  p_max_runs int, p_request_id text, p_traceparent text, p_again boolean DEFAULT false,
  p_names text[] DEFAULT NULL, p_types text[] DEFAULT NULL, p_widths int[] DEFAULT NULL, p_heights int[] DEFAULT NULL, p_data bytea[] DEFAULT NULL)
RETURNS TABLE (outcome text, job_id uuid, hold_mc bigint, available_mc bigint, wait_s int)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t uuid := limner.enter(p_ctx);
  u record;
  v_user uuid;
  v_available bigint;
BEGIN
  IF p_external IS NOT NULL THEN
    SELECT x.id, x.is_active INTO u FROM limner.end_user x
     WHERE x.org_id = t AND x.app_id = p_app AND x.external_id = p_external;
    IF NOT FOUND THEN
      SELECT * INTO STRICT u FROM limner._end_user(t, p_app, p_external, p_new_user);
    END IF;
    IF NOT u.is_active THEN
      RAISE EXCEPTION 'this end user is deactivated' USING ERRCODE = 'LM403';
    END IF;
    v_user := u.id;
  END IF;
  IF p_key IS NOT NULL OR p_again THEN
    RETURN QUERY SELECT 'replayed', r.* FROM limner._replayed(t, p_job, coalesce(v_user, p_app), p_route, p_key, p_hash) r;
    IF FOUND THEN RETURN; END IF;
    -- copies of one request pay from one wallet: whoever waited for its lock looks again
    PERFORM 1 FROM limner.wallet w WHERE w.org_id = t AND w.id = coalesce(v_user, t) FOR NO KEY UPDATE;
    RETURN QUERY SELECT 'replayed', r.* FROM limner._replayed(t, p_job, coalesce(v_user, p_app), p_route, p_key, p_hash) r;
    IF FOUND THEN RETURN; END IF;
  END IF;
  v_available := limner._place(t, p_job, p_app, v_user, p_route, p_model_id, p_model, p_kind, p_unit_price, p_hold, p_priority, p_key,
                               p_hash, p_input, p_wait, p_deadline_s, p_max_runs, p_request_id, p_traceparent);
  IF v_available IS NULL THEN
    RAISE EXCEPTION 'too few credits' USING ERRCODE = 'LM402', DETAIL = json_build_object(
      'wallet', CASE WHEN v_user IS NULL THEN 'organization' ELSE 'end_user' END, 'required_mc', p_hold,
      'balance_mc', coalesce((SELECT x.available_mc FROM limner.wallet x WHERE x.org_id = t AND x.id = coalesce(v_user, t)), 0));
  END IF;
  IF p_data IS NOT NULL THEN
    INSERT INTO limner.job_input (org_id, job_id, name, media_type, width, height, data)
    SELECT t, p_job, i.* FROM unnest(p_names, p_types, p_widths, p_heights, p_data) i;
  END IF;
  outcome := 'created'; job_id := p_job; hold_mc := p_hold; available_mc := v_available; wait_s := p_wait;
  RETURN NEXT;
END $$;

-- Submits that share a commit, of any organizations, each under its own context. It never waits and never refuses: whatever is not
-- plain (a new or inactive user, a key seen before, too few credits, a wallet somebody holds at this moment) is left out, written
-- nowhere, and the caller submits it alone. So no batch waits for another, nor one tenant for another's lock.
CREATE FUNCTION limner.submit_jobs(p_batch json)
RETURNS TABLE (job_id uuid, available_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  s record;
  t uuid;
  v_user uuid;
  v_available bigint;
BEGIN
  FOR s IN SELECT * FROM json_to_recordset(p_batch) AS b (
      ctx text, job uuid, app uuid, external text, route text, model_id uuid, model text, kind text, unit_price bigint, hold bigint,
      priority int, key text, hash bytea, input jsonb, wait int, deadline_s int, max_runs int, request_id text, traceparent text) LOOP
    t := limner.enter(s.ctx);
    IF s.external IS NULL THEN
      v_user := NULL;
      PERFORM 1 FROM limner.wallet w WHERE w.org_id = t AND w.id = t FOR NO KEY UPDATE SKIP LOCKED;
    ELSE
      SELECT x.id INTO v_user FROM limner.end_user x JOIN limner.wallet w ON w.org_id = x.org_id AND w.id = x.id
       WHERE x.org_id = t AND x.app_id = s.app AND x.external_id = s.external AND x.is_active FOR NO KEY UPDATE OF w SKIP LOCKED;
    END IF;
    CONTINUE WHEN NOT FOUND;
    CONTINUE WHEN s.key IS NOT NULL AND EXISTS (
      SELECT 1 FROM limner.job j WHERE j.org_id = t AND j.principal_id = coalesce(v_user, s.app) AND j.route = s.route AND j.idem_key = s.key);
    v_available := limner._place(t, s.job, s.app, v_user, s.route, s.model_id, s.model, s.kind, s.unit_price, s.hold, s.priority, s.key,
                                 s.hash, s.input, s.wait, s.deadline_s, s.max_runs, s.request_id, s.traceparent);
    CONTINUE WHEN v_available IS NULL;
    job_id := s.job; available_mc := v_available;
    RETURN NEXT;
  END LOOP;
END $$;

-- Cross-tenant, run as limner_dispatch: sees ids, keys and leases, never a payload. Overdue rows first; then, round by round,
-- the next job of each app of each organization, so that nobody's backlog stands before another's first job. A claim smaller than
-- the number of apps draws lots between them: by age, the oldest backlog would win every time.
CREATE FUNCTION limner.claim_jobs(p_owner text, p_n int, p_lease_s double precision)
RETURNS TABLE (org_id uuid, job_id uuid, app_id uuid, fence bigint, run int, exhausted text, deadline_in_s double precision, waited_ms double precision)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE
  overdue AS (
    SELECT q.org_id, q.job_id FROM limner.job_queue q
     WHERE q.deadline_at < clock_timestamp() AND q.claimable_at <= clock_timestamp()
     ORDER BY q.deadline_at LIMIT least(20, p_n) FOR UPDATE SKIP LOCKED),
  lane AS (               -- a loose index scan: the distinct (organization, app) pairs that have rows
    (SELECT q.org_id, q.app_id FROM limner.job_queue q ORDER BY q.org_id, q.app_id LIMIT 1)
    UNION ALL
    SELECT n.org_id, n.app_id FROM lane l CROSS JOIN LATERAL (
      SELECT q.org_id, q.app_id FROM limner.job_queue q
       WHERE (q.org_id, q.app_id) > (l.org_id, l.app_id) ORDER BY q.org_id, q.app_id LIMIT 1) n),
  ready AS (              -- of those, the ones that have something to take: the others must not shrink everybody's share
    SELECT l.org_id, l.app_id FROM lane l WHERE EXISTS (
      SELECT 1 FROM limner.job_queue q
       WHERE q.org_id = l.org_id AND q.app_id = l.app_id AND q.claimable_at <= clock_timestamp() AND q.deadline_at >= clock_timestamp())),
  turn AS (
    SELECT r.org_id, r.job_id, row_number() OVER (PARTITION BY l.org_id, l.app_id ORDER BY r.priority, r.job_id) AS round
      FROM ready l CROSS JOIN LATERAL (
        SELECT q.org_id, q.job_id, q.priority FROM limner.job_queue q
         WHERE q.org_id = l.org_id AND q.app_id = l.app_id AND q.claimable_at <= clock_timestamp() AND q.deadline_at >= clock_timestamp()
         ORDER BY q.priority, q.job_id LIMIT (SELECT greatest(1, ceil(p_n::numeric / count(*)))::bigint FROM ready)
           FOR UPDATE SKIP LOCKED) r),
  chosen AS (
    SELECT c.org_id, c.job_id FROM (SELECT o.org_id, o.job_id, 0 AS round FROM overdue o
                                    UNION ALL SELECT t.org_id, t.job_id, t.round FROM turn t) c
     ORDER BY c.round, random() LIMIT p_n)
  UPDATE limner.job_queue q
     SET fence = q.fence + 1, runs = q.runs + 1, lease_owner = p_owner,
         claimable_at = clock_timestamp() + make_interval(secs => p_lease_s)
    FROM chosen c WHERE q.org_id = c.org_id AND q.job_id = c.job_id
  RETURNING q.org_id, q.job_id, q.app_id, q.fence, q.runs,
            CASE WHEN q.cancel_requested_at IS NOT NULL THEN 'cancelled'
                 WHEN q.deadline_at < clock_timestamp() THEN 'deadline_exceeded'
                 WHEN q.runs > q.max_runs THEN 'runs_exhausted' END,
            extract(epoch FROM q.deadline_at - clock_timestamp())::double precision,
            extract(epoch FROM clock_timestamp() - q.created_at)::double precision * 1000;
$$;

-- all of a worker's leases in one statement, as limner_dispatch: renewed where the fence still matches
CREATE FUNCTION limner.heartbeat_many(p_orgs uuid[], p_jobs uuid[], p_fences bigint[], p_lease_s double precision)
RETURNS TABLE (job_id uuid, verdict text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  WITH mine AS (SELECT * FROM unnest(p_orgs, p_jobs, p_fences) m (org_id, job_id, fence)),
  renewed AS (
    UPDATE limner.job_queue q SET claimable_at = clock_timestamp() + make_interval(secs => p_lease_s)
      FROM mine m WHERE q.org_id = m.org_id AND q.job_id = m.job_id AND q.fence = m.fence AND q.lease_owner IS NOT NULL
    RETURNING q.job_id, q.cancel_requested_at)
  SELECT m.job_id, CASE WHEN r.job_id IS NULL THEN 'lost' WHEN r.cancel_requested_at IS NULL THEN 'ok' ELSE 'cancel' END
    FROM mine m LEFT JOIN renewed r ON r.job_id = m.job_id;
$$;

-- progress of a live run, as limner_dispatch; a stale fence writes nothing
CREATE FUNCTION limner.report_progress(p_org uuid, p_job uuid, p_fence bigint, p_percent int, p_stage text) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.job_queue q SET percent = p_percent, stage = p_stage
   WHERE q.org_id = p_org AND q.job_id = p_job AND q.fence = p_fence AND q.lease_owner IS NOT NULL RETURNING true;
$$;

-- every write of a worker passes here: the queue row is locked and its fence compared
CREATE FUNCTION limner._own(t uuid, p_job uuid, p_fence bigint) RETURNS limner.job_queue
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE q limner.job_queue;
BEGIN
  SELECT * INTO q FROM limner.job_queue x WHERE x.org_id = t AND x.job_id = p_job FOR UPDATE;
  IF NOT FOUND OR q.fence IS DISTINCT FROM p_fence OR q.lease_owner IS NULL THEN
    RAISE EXCEPTION 'the lease on job % was lost', p_job USING ERRCODE = 'LM409', DETAIL = 'stale_fence';
  END IF;
  RETURN q;
END $$;

CREATE FUNCTION limner.start_job(p_ctx text, p_job uuid, p_fence bigint, p_event uuid)
RETURNS TABLE (app_id uuid, model_id uuid, model text, kind text, input jsonb, unit_price_mc bigint, price_hold_mc bigint,
               request_id text, traceparent text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t uuid := limner.enter(p_ctx);
  q limner.job_queue;
BEGIN
  q := limner._own(t, p_job, p_fence);
  IF EXISTS (SELECT 1 FROM limner.job j WHERE j.org_id = t AND j.id = p_job AND j.started_at IS NULL) THEN
    INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)                  -- once: a run given back may start again
    VALUES (t, p_event, q.app_id, 'job.started', p_job, json_build_object('job_id', p_job));
  END IF;
  RETURN QUERY
    UPDATE limner.job j SET state = 'running', started_at = coalesce(j.started_at, clock_timestamp()), runs = q.runs
     WHERE j.org_id = t AND j.id = p_job
    RETURNING j.app_id, j.model_id, j.model, j.kind, j.input, j.unit_price_mc, j.price_hold_mc, j.request_id, j.traceparent;
END $$;

CREATE FUNCTION limner.release_job(p_ctx text, p_job uuid, p_fence bigint, p_delay_s double precision, p_counts boolean)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  PERFORM limner._own(t, p_job, p_fence);
  UPDATE limner.job_queue q SET lease_owner = NULL, claimable_at = clock_timestamp() + make_interval(secs => p_delay_s),
         runs = q.runs - CASE WHEN p_counts THEN 0 ELSE 1 END, percent = 0, stage = 'queued'
   WHERE q.org_id = t AND q.job_id = p_job;
  UPDATE limner.job j SET state = 'queued' WHERE j.org_id = t AND j.id = p_job AND j.state = 'running';
END $$;

-- what an earlier run left decides: send, resume (accepted), reuse (done), or uncertain, which the adapter's class resolves
CREATE FUNCTION limner.call_intent(p_ctx text, p_job uuid, p_fence bigint, p_step text, p_provider text, p_provider_model text,
                                   p_rule text, p_resend boolean)
RETURNS TABLE (decision text, send_no int, idem_key text, provider_task_id text, outputs jsonb, cost_micro_usd bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t uuid := limner.enter(p_ctx);
  q limner.job_queue;
  c limner.provider_call;
  k text := p_job::text || ':' || p_step || ':' || p_provider;      -- the same over every run
BEGIN
  q := limner._own(t, p_job, p_fence);
  SELECT * INTO c FROM limner.provider_call x
   WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_step AND x.provider = p_provider ORDER BY x.send_no DESC LIMIT 1;
  IF c.state IN ('accepted', 'done') THEN
    RETURN QUERY SELECT CASE c.state WHEN 'done' THEN 'reuse' ELSE 'resume' END, c.send_no, k, c.provider_task_id, c.outputs, c.cost_micro_usd;
    RETURN;
  END IF;
  IF c.state = 'intent' THEN
    UPDATE limner.provider_call x SET state = 'unknown', finished_at = clock_timestamp()
     WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_step AND x.provider = p_provider AND x.send_no = c.send_no;
  END IF;
  IF c.state IN ('intent', 'unknown') AND NOT p_resend THEN
    RETURN QUERY SELECT 'uncertain', c.send_no, k, c.provider_task_id, NULL::jsonb, NULL::bigint;
    RETURN;
  END IF;
  INSERT INTO limner.provider_call (org_id, job_id, step, provider, send_no, run, fence, provider_model, rule, idem_key)
  VALUES (t, p_job, p_step, p_provider, coalesce(c.send_no, 0) + 1, q.runs, p_fence, p_provider_model, p_rule, k);
  RETURN QUERY SELECT 'send', coalesce(c.send_no, 0) + 1, k, NULL::text, NULL::jsonb, NULL::bigint;
END $$;

CREATE FUNCTION limner.call_result(p_ctx text, p_job uuid, p_fence bigint, p_step text, p_provider text, p_send_no int, p_state text,
                                   p_task text, p_cost bigint, p_latency_ms int, p_error_code text, p_error_message text, p_outputs jsonb,
                                   p_event uuid)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  q limner.job_queue;
BEGIN
  q := limner._own(t, p_job, p_fence);
  IF p_state NOT IN ('accepted', 'done', 'error', 'unknown') THEN
    RAISE EXCEPTION 'not a result: %', p_state USING ERRCODE = 'LM422';
  END IF;
  UPDATE limner.provider_call x
     SET state = p_state, provider_task_id = coalesce(p_task, x.provider_task_id), cost_micro_usd = p_cost, latency_ms = p_latency_ms,
         error_code = p_error_code, error_message = left(p_error_message, 2000), outputs = p_outputs,
         finished_at = CASE WHEN p_state = 'accepted' THEN NULL ELSE clock_timestamp() END
   WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_step AND x.provider = p_provider AND x.send_no = p_send_no
     AND x.state IN ('intent', 'accepted');
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no open call to %', p_provider USING ERRCODE = 'LM409';
  END IF;
  IF p_state IN ('error', 'unknown') THEN
    INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
    VALUES (t, p_event, q.app_id, 'job.attempt_failed', p_job,
            json_build_object('job_id', p_job, 'provider', p_provider, 'run', q.runs, 'code', p_error_code));
  END IF;
END $$;

-- internal, under the queue row's lock: settle the hold, close the job, record usage and the one terminal event
CREATE FUNCTION limner._close(t uuid, p_job uuid, p_fence bigint, p_outcome text, p_amount bigint, p_outputs jsonb, p_error_code text,
                              p_error_message text, p_provider text, p_usage jsonb, p_transfer uuid, p_event uuid)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  j limner.job;
  w record;
  amount bigint := CASE WHEN p_outcome = 'succeeded' THEN p_amount ELSE 0 END;
BEGIN
  SELECT * INTO STRICT j FROM limner.job x WHERE x.org_id = t AND x.id = p_job FOR NO KEY UPDATE;
  IF amount IS NULL OR amount < 0 OR amount > j.price_hold_mc THEN
    RAISE EXCEPTION 'a charge of % is outside 0..% (the hold)', amount, j.price_hold_mc USING ERRCODE = 'LM422';
  END IF;
  IF amount > 0 AND coalesce(jsonb_array_length(p_usage), 0) = 0 THEN
    RAISE EXCEPTION 'a charge needs a usage record of what was consumed' USING ERRCODE = 'LM422';
  END IF;
  UPDATE limner.wallet x
     SET held_mc = x.held_mc - j.price_hold_mc, available_mc = x.available_mc + j.price_hold_mc - amount, version = x.version + 1,
         jobs_succeeded = x.jobs_succeeded + CASE WHEN p_outcome = 'succeeded' THEN 1 ELSE 0 END
   WHERE x.org_id = t AND x.id = j.wallet_id RETURNING x.available_mc, x.version INTO STRICT w;
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, hold_id, job_id)
  VALUES (t, p_transfer, CASE WHEN p_outcome = 'succeeded' THEN 'post' ELSE 'void' END, j.wallet_id, w.version, w.available_mc,
          'revenue', amount, p_job, p_job);
  UPDATE limner.job x SET state = p_outcome, price_final_mc = amount, outputs = p_outputs, error_code = p_error_code,
         error_message = p_error_message, provider_used = p_provider, finished_fence = p_fence, finished_at = clock_timestamp()
   WHERE x.org_id = t AND x.id = p_job;
  IF p_usage IS NOT NULL THEN
    INSERT INTO limner.usage_record (org_id, job_id, seq, app_id, end_user_id, model, provider, kind, quantity, unit, price_mc, cost_micro_usd)
    SELECT t, p_job, u.n, j.app_id, j.end_user_id, j.model, p_provider, u.r ->> 'kind', (u.r ->> 'quantity')::bigint, u.r ->> 'unit',
           CASE WHEN u.n = 1 THEN amount ELSE 0 END, CASE WHEN u.n = 1 THEN (u.r ->> 'cost_micro_usd')::bigint END
      FROM jsonb_array_elements(p_usage) WITH ORDINALITY u (r, n);
  END IF;
  INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
  VALUES (t, p_event, j.app_id, CASE p_outcome WHEN 'succeeded' THEN 'job.completed' ELSE 'job.' || p_outcome END, p_job,
          json_build_object('job_id', p_job, 'status', p_outcome, 'charged_mc', amount, 'error_code', p_error_code));
  DELETE FROM limner.job_queue q WHERE q.org_id = t AND q.job_id = p_job;
  DELETE FROM limner.job_input i WHERE i.org_id = t AND i.job_id = p_job;
END $$;

-- 'already' when this very fence closed the job with this very outcome: a commit whose answer was lost
CREATE FUNCTION limner.finish_job(p_ctx text, p_job uuid, p_fence bigint, p_outcome text, p_amount bigint, p_outputs jsonb,
                                  p_error_code text, p_error_message text, p_provider text, p_usage jsonb, p_transfer uuid, p_event uuid)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  q limner.job_queue;
  j record;
BEGIN
  SELECT * INTO q FROM limner.job_queue x WHERE x.org_id = t AND x.job_id = p_job FOR UPDATE;
  IF NOT FOUND THEN
    SELECT x.finished_fence, x.state INTO j FROM limner.job x WHERE x.org_id = t AND x.id = p_job;
    IF j.finished_fence = p_fence AND j.state = p_outcome THEN RETURN 'already'; END IF;
  END IF;
  IF q.fence IS DISTINCT FROM p_fence OR q.lease_owner IS NULL THEN
    RAISE EXCEPTION 'the lease on job % was lost', p_job USING ERRCODE = 'LM409', DETAIL = 'stale_fence';
  END IF;
  PERFORM limner._close(t, p_job, p_fence, p_outcome, p_amount, p_outputs, p_error_code, left(p_error_message, 2000), p_provider,
                        p_usage, p_transfer, p_event);
  RETURN p_outcome;
END $$;

-- 'cancelled' at once when nobody holds a live lease, 'requested' when somebody does, 'already_<state>', or NULL when absent
CREATE FUNCTION limner.cancel_job(p_ctx text, p_app uuid, p_user uuid, p_job uuid, p_transfer uuid, p_event uuid)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  q limner.job_queue;
  j record;
BEGIN
  SELECT * INTO q FROM limner.job_queue x WHERE x.org_id = t AND x.job_id = p_job FOR UPDATE;
  SELECT x.state INTO j FROM limner.job x WHERE x.org_id = t AND x.id = p_job AND (p_app IS NULL OR x.app_id = p_app)
     AND (p_user IS NULL OR x.end_user_id = p_user);
  IF NOT FOUND THEN RETURN NULL; END IF;
  IF q.job_id IS NULL THEN RETURN 'already_' || j.state; END IF;
  IF q.lease_owner IS NULL OR q.claimable_at < clock_timestamp() THEN
    PERFORM limner._close(t, p_job, q.fence + 1, 'cancelled', 0, NULL, 'cancelled', 'Cancelled before it was finished.', NULL, NULL,
                          p_transfer, p_event);                       -- + 1: a run that comes back is fenced out
    RETURN 'cancelled';
  END IF;
  UPDATE limner.job_queue x SET cancel_requested_at = coalesce(x.cancel_requested_at, clock_timestamp())
   WHERE x.org_id = t AND x.job_id = p_job;
  RETURN 'requested';
END $$;

GRANT EXECUTE ON FUNCTION limner.submit_job, limner.submit_jobs, limner.cancel_job, limner.grant_credits TO limner_api;
GRANT EXECUTE ON FUNCTION limner.start_job, limner.release_job, limner.call_intent, limner.call_result, limner.finish_job TO limner_worker;
GRANT EXECUTE ON FUNCTION limner.claim_jobs, limner.heartbeat_many, limner.report_progress TO limner_dispatch;
GRANT EXECUTE ON FUNCTION limner.top_up, limner.refund_job, limner.create_organization, limner.cancel_job, limner.grant_credits TO limner_operator;
RESET ROLE;
