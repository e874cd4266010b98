-- What a worker writes, and who else closes a job. Lock order everywhere: job_queue, job, wallet.
SET ROLE limner_owner;

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
RETURNS TABLE (app_id uuid, model_id uuid, model text, kind text, input jsonb, unit_price_mc bigint, token_prices jsonb,
               price_hold_mc bigint, request_id text, traceparent text, terms jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t uuid := limner.enter(p_ctx);
  v_now timestamptz := clock_timestamp();
  q limner.job_queue;
  first boolean;
BEGIN
  q := limner._own(t, p_job, p_fence);
  UPDATE limner.job j SET state = 'running', started_at = coalesce(j.started_at, v_now), runs = q.runs
   WHERE j.org_id = t AND j.id = p_job
  RETURNING j.app_id, j.model_id, j.model, j.kind, j.input, j.unit_price_mc, j.token_prices, j.price_hold_mc, j.request_id, j.traceparent,
            j.terms, j.started_at = v_now
       INTO app_id, model_id, model, kind, input, unit_price_mc, token_prices, price_hold_mc, request_id, traceparent, terms, first;
  IF first THEN                                              -- once: a run given back may start again
    INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
    VALUES (t, p_event, q.app_id, 'job.started', p_job, json_build_object('job_id', p_job));
  END IF;
  RETURN NEXT;
END $$;

CREATE FUNCTION limner.release_job(p_ctx text, p_job uuid, p_fence bigint, p_delay_s double precision, p_counts boolean)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  PERFORM limner._own(t, p_job, p_fence);
  UPDATE limner.job_queue q SET lease_owner = NULL, claimable_at = clock_timestamp() + make_interval(secs => p_delay_s),
         phase = CASE WHEN p_delay_s > 0 THEN 'deferred' ELSE 'ready' END,
         runs = q.runs - CASE WHEN p_counts THEN 0 ELSE 1 END, percent = 0, stage = 'queued', provider_id = NULL
   WHERE q.org_id = t AND q.job_id = p_job;
  UPDATE limner.job j SET state = 'queued' WHERE j.org_id = t AND j.id = p_job AND j.state = 'running';
END $$;

-- What an earlier run left decides: send, resume (accepted), reuse (done), or uncertain, which the adapter's class resolves. A job that
-- has a place at a provider has to get one wherever it goes; full: there is none. A task that is there already has its place.
CREATE FUNCTION limner.call_intent(p_ctx text, p_job uuid, p_fence bigint, p_step text, p_provider text, p_provider_model text,
                                   p_rule text, p_resend boolean, p_provider_id uuid DEFAULT NULL, p_own_key boolean DEFAULT false)
RETURNS TABLE (decision text, send_no int, idem_key text, provider_task_id text, outputs jsonb, cost_micro_usd bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t uuid := limner.enter(p_ctx);
  q limner.job_queue;
  c limner.provider_call;
BEGIN
  q := limner._own(t, p_job, p_fence);
  idem_key := p_job::text || ':' || p_step || ':' || p_provider;      -- the same over every run
  SELECT * INTO c FROM limner.provider_call x
   WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_step AND x.provider = p_provider ORDER BY x.send_no DESC LIMIT 1;
  send_no := c.send_no;
  provider_task_id := c.provider_task_id;
  IF c.state IN ('accepted', 'done') THEN
    decision := CASE c.state WHEN 'done' THEN 'reuse' ELSE 'resume' END;
    IF decision = 'resume' AND q.provider_id <> p_provider_id AND q.phase = 'leased' THEN
      UPDATE limner.job_queue x SET provider_id = p_provider_id WHERE x.org_id = t AND x.job_id = p_job;
    END IF;
    outputs := c.outputs;
    cost_micro_usd := c.cost_micro_usd;
    RETURN NEXT;
    RETURN;
  END IF;
  IF c.state = 'intent' THEN
    UPDATE limner.provider_call x SET state = 'unknown', finished_at = clock_timestamp()
     WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_step AND x.provider = p_provider AND x.send_no = c.send_no;
  END IF;
  IF c.state IN ('intent', 'unknown') AND NOT p_resend THEN
    decision := 'uncertain';
    RETURN NEXT;
    RETURN;
  END IF;
  send_no := coalesce(c.send_no, 0) + 1;
  IF q.provider_id IS NOT NULL AND p_provider_id IS NOT NULL THEN
    IF q.phase <> 'leased' THEN                             -- the lease ran out, and its place with it
      RAISE EXCEPTION 'the lease on job % was lost', p_job USING ERRCODE = 'LM409', DETAIL = 'stale_fence';
    END IF;
    IF q.provider_id <> p_provider_id THEN
      decision := limner.find_place(t, p_provider_id);
      IF decision = 'full' THEN
        RETURN NEXT;
        RETURN;
      END IF;
      UPDATE limner.job_queue x SET provider_id = p_provider_id WHERE x.org_id = t AND x.job_id = p_job;
    END IF;
  END IF;
  INSERT INTO limner.provider_call (org_id, job_id, step, provider, send_no, run, fence, provider_model, rule, own_key, idem_key)
  VALUES (t, p_job, p_step, p_provider, send_no, q.runs, q.fence, p_provider_model, p_rule, p_own_key, idem_key);
  decision := 'send';
  provider_task_id := NULL;
  RETURN NEXT;
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
     SET state = s.state, provider_task_id = coalesce(p_task, x.provider_task_id), cost_micro_usd = p_cost, latency_ms = p_latency_ms,
         error_code = p_error_code, error_message = left(p_error_message, 2000), outputs = p_outputs,
         finished_at = CASE WHEN s.state = 'accepted' THEN NULL ELSE clock_timestamp() END
    FROM (SELECT CASE WHEN p_state = 'unknown' AND y.provider_task_id IS NOT NULL THEN 'accepted' ELSE p_state END AS state
            FROM limner.provider_call y WHERE y.org_id = t AND y.job_id = p_job AND y.step = p_step AND y.provider = p_provider
             AND y.send_no = p_send_no) s              -- its name came another way: it can be asked after
   WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_step AND x.provider = p_provider AND x.send_no = p_send_no
     AND x.state IN ('intent', 'accepted');
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no open call to %', p_provider USING ERRCODE = 'LM409';
  END IF;
  IF p_error_code IS NOT NULL THEN
    INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
    VALUES (t, p_event, q.app_id, 'job.attempt_failed', p_job,
            json_build_object('job_id', p_job, 'provider', p_provider, 'run', q.runs, 'code', p_error_code));
  END IF;
END $$;

-- internal: a settled hold of lots. The charge uses them up in the order of their ends; what was not needed goes back into the same lots,
-- or, where a lot has ended meanwhile, to breakage: how much that is
CREATE FUNCTION limner._settle_draws(t uuid, p_job uuid, p_wallet uuid, p_amount bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d record;
  still bigint := p_amount;
  used bigint;
  ended bigint := 0;
BEGIN
  FOR d IN SELECT x.lot_id, x.amount_mc, l.expires_at <= clock_timestamp() AS over
             FROM limner.lot_draw x JOIN limner.lot l ON l.org_id = t AND l.id = x.lot_id
            WHERE x.org_id = t AND x.job_id = p_job ORDER BY l.expires_at, l.id LOOP
    used := least(still, d.amount_mc);
    still := still - used;
    UPDATE limner.lot_draw x SET used_mc = used WHERE x.org_id = t AND x.job_id = p_job AND x.lot_id = d.lot_id;
    CONTINUE WHEN used = d.amount_mc;
    UPDATE limner.lot x SET remaining_mc = x.remaining_mc + CASE WHEN d.over THEN 0 ELSE d.amount_mc - used END,
                            gone_mc = x.gone_mc + CASE WHEN d.over THEN d.amount_mc - used ELSE 0 END
     WHERE x.org_id = t AND x.id = d.lot_id;
    ended := ended + CASE WHEN d.over THEN d.amount_mc - used ELSE 0 END;
  END LOOP;
  UPDATE limner.wallet x SET lots_end = limner._lots_end(t, p_wallet) WHERE x.org_id = t AND x.id = p_wallet;
  RETURN ended;
END $$;

-- internal, under the queue row's lock: settle the hold, close the job, record usage and the one terminal event
CREATE FUNCTION limner._close(t uuid, p_job uuid, p_fence bigint, p_outcome text, p_amount bigint, p_outputs jsonb, p_error_code text,
                              p_error_message text, p_provider text, p_usage jsonb, p_transfer uuid, p_event uuid)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  j limner.job;
  w record;
  amount bigint := CASE WHEN p_outcome = 'succeeded' THEN p_amount ELSE 0 END;
  ended bigint;
  u jsonb;
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
   WHERE x.org_id = t AND x.id = j.wallet_id RETURNING x.available_mc, x.version, x.owed_mc INTO STRICT w;
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, hold_id, job_id)
  VALUES (t, p_transfer, CASE WHEN p_outcome = 'succeeded' THEN 'post' ELSE 'void' END, j.wallet_id, w.version, w.available_mc,
          'revenue', amount, p_job, p_job);
  IF j.drew_lots THEN
    ended := limner._settle_draws(t, p_job, j.wallet_id, amount);
    IF ended > 0 THEN
      UPDATE limner.wallet x SET available_mc = x.available_mc - ended, version = x.version + 1
       WHERE x.org_id = t AND x.id = j.wallet_id RETURNING x.available_mc, x.version, x.owed_mc INTO STRICT w;
      INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, job_id, reason)
      VALUES (t, gen_random_uuid(), 'expire', j.wallet_id, w.version, w.available_mc, 'breakage', ended, p_job,
              'Came back from a job after they had ended');
    END IF;
  END IF;
  IF w.owed_mc > 0 THEN
    PERFORM limner._repay(t, j.wallet_id, p_transfer);
  END IF;
  UPDATE limner.job x SET state = p_outcome, price_final_mc = amount, outputs = p_outputs, error_code = p_error_code,
         error_message = p_error_message, provider_used = p_provider, finished_fence = p_fence, finished_at = clock_timestamp()
   WHERE x.org_id = t AND x.id = p_job;
  FOR n IN 0..coalesce(jsonb_array_length(p_usage), 0) - 1 LOOP
    u := p_usage -> n;
    INSERT INTO limner.usage_record (org_id, job_id, seq, app_id, end_user_id, model, provider, kind, quantity, unit, price_mc, cost_micro_usd)
    VALUES (t, p_job, n + 1, j.app_id, j.end_user_id, j.model, p_provider, u ->> 'kind', (u ->> 'quantity')::bigint, u ->> 'unit',
            CASE WHEN n = 0 THEN amount ELSE 0 END, CASE WHEN n = 0 THEN (u ->> 'cost_micro_usd')::bigint END);
  END LOOP;
  INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload, deliver_to)
  VALUES (t, p_event, j.app_id, CASE p_outcome WHEN 'succeeded' THEN 'job.completed' ELSE 'job.' || p_outcome END, p_job,
          json_build_object('job_id', p_job, 'status', p_outcome, 'charged_mc', amount, 'error_code', p_error_code), j.webhook_url);
  DELETE FROM limner.job_queue q WHERE q.org_id = t AND q.job_id = p_job;
  IF j.input ?| ARRAY['images', 'mask', 'audio'] THEN
    DELETE FROM limner.job_input i WHERE i.org_id = t AND i.job_id = p_job;
  END IF;
  IF p_fence > 1 OR p_outcome <> 'succeeded' THEN       -- runs may have left objects that nobody refers to
    INSERT INTO limner.leftover (org_id, finished_at, job_id) VALUES (t, clock_timestamp(), p_job);
  END IF;
END $$;

-- 'already' when this very fence closed the job with this very outcome: a commit whose answer was lost. `p_call`: the provider call
-- that brought the outputs, recorded in the same commit: {"step", "provider", "send_no", "task", "cost", "latency_ms"}.
CREATE FUNCTION limner.finish_job(p_ctx text, p_job uuid, p_fence bigint, p_outcome text, p_amount bigint, p_outputs jsonb,
                                  p_error_code text, p_error_message text, p_provider text, p_usage jsonb, p_transfer uuid, p_event uuid,
                                  p_call jsonb DEFAULT NULL)
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
  IF p_call IS NOT NULL THEN
    UPDATE limner.provider_call x
       SET state = 'done', provider_task_id = coalesce(p_call ->> 'task', x.provider_task_id), cost_micro_usd = (p_call ->> 'cost')::bigint,
           latency_ms = (p_call ->> 'latency_ms')::int, outputs = p_outputs, finished_at = clock_timestamp()
     WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_call ->> 'step' AND x.provider = p_call ->> 'provider'
       AND x.send_no = (p_call ->> 'send_no')::int AND x.state IN ('intent', 'accepted');
    IF NOT FOUND THEN                                  -- it was open, or there is no such call
      RAISE EXCEPTION 'no open call to %', p_call ->> 'provider' USING ERRCODE = 'LM409';
    END IF;
  END IF;
  PERFORM limner._close(t, p_job, p_fence, p_outcome, p_amount, p_outputs, p_error_code, left(p_error_message, 2000), p_provider,
                        p_usage, p_transfer, p_event);
  RETURN p_outcome;
END $$;

-- what was asked of closed jobs of an app, and what they delivered, is erased; money and usage stay. The app remembers how far it is.
CREATE FUNCTION limner.erase_jobs(p_ctx text, p_app uuid, p_jobs uuid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  erased bigint;
BEGIN
  WITH closed AS (
    UPDATE limner.job j SET input = '{}', outputs = NULL
     WHERE j.org_id = t AND j.app_id = p_app AND j.id = ANY (p_jobs) AND j.finished_at IS NOT NULL RETURNING j.id),
  calls AS (
    UPDATE limner.provider_call c SET outputs = NULL FROM closed x WHERE c.org_id = t AND c.job_id = x.id AND c.outputs IS NOT NULL),
  app AS (
    UPDATE limner.app a SET erased_to = greatest(a.erased_to, (SELECT max(x.id::text)::uuid FROM closed x)) WHERE a.org_id = t AND a.id = p_app)
  SELECT count(*) INTO erased FROM closed;
  RETURN erased;
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

GRANT EXECUTE ON FUNCTION limner.submit_job, limner.find_replayed, limner.cancel_job, limner.grant_credits,
  limner.grant_batch TO limner_api;
GRANT EXECUTE ON FUNCTION limner.start_job, limner.release_job, limner.call_intent, limner.call_result, limner.finish_job,
  limner.erase_jobs TO limner_worker;
GRANT EXECUTE ON FUNCTION limner.top_up, limner.adjust_credits, limner.claw_back, limner.grant_allowances, limner.grant_own_allowance,
  limner.expire_lots, limner.close_books, limner.refund_job, limner.create_organization, limner.cancel_job, limner.grant_credits TO limner_operator;
RESET ROLE;
