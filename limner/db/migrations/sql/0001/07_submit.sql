-- Submits: limits, idempotency, hold, job and queue row, alone or sharing a commit.
SET ROLE limner_owner;

-- Rate limits are token buckets kept as one time, when the bucket will be full again (GCRA): a limit of n a minute lets a request
-- pass if that time, moved on by a minute / n, is not more than a minute away. Buckets of 6,000 a minute and more are in eight pieces.
CREATE FUNCTION limner._shards(p_rate int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN p_rate >= 6000 THEN 8 ELSE 1 END $$;
-- what one request moves that time on; rounded down, so that as many as the limit says fit into a minute (seven do not into 7 x 8.571429 s)
CREATE FUNCTION limner._step(p_rate int, p_pieces int) RETURNS interval LANGUAGE sql IMMUTABLE AS $$
  SELECT make_interval(secs => trunc(60.0 * p_pieces / p_rate, 6)::float8) $$;
-- That time moved on, and whether the bucket has a token left (NULL where there is no limit). The clock is asked, not the transaction's
-- time: who waited for a bucket began before the one it waited for.
CREATE FUNCTION limner._moved(p_tat timestamptz, p_step interval) RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
  SELECT greatest(p_tat, clock_timestamp()) + p_step $$;
CREATE FUNCTION limner._has_token(p_tat timestamptz, p_step interval) RETURNS boolean LANGUAGE sql VOLATILE AS $$
  SELECT greatest(p_tat, clock_timestamp()) + p_step <= clock_timestamp() + interval '1 minute' $$;

-- internal: takes one token of an app's or organization's bucket; when it is full again, or NULL when it is empty
CREATE FUNCTION limner._take_token(t uuid, p_subject uuid, p_rate int) RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  n int := limner._shards(p_rate);
  step interval := limner._step(p_rate, n);
  piece int := floor(random() * n);
  v_tat timestamptz;
BEGIN
  FOR i IN 0..n LOOP
    UPDATE limner.rate_counter c SET tat = limner._moved(c.tat, step)
     WHERE c.org_id = t AND c.subject_id = p_subject AND c.shard = piece AND limner._has_token(c.tat, step)
    RETURNING c.tat INTO v_tat;
    IF FOUND THEN RETURN v_tat; END IF;
    IF i = 0 THEN                                    -- the first request of all makes the pieces, and looks again
      INSERT INTO limner.rate_counter (org_id, subject_id, shard, tat) SELECT t, p_subject, s, clock_timestamp() FROM generate_series(0, n - 1) s
      ON CONFLICT DO NOTHING;
    ELSE
      piece := (piece + 1) % n;
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- internal: says which limit refuses a request, how large it is and when to come again
CREATE FUNCTION limner._refuse_rate(t uuid, p_limit text, p_subject uuid, p_rate int, p_tat timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  n int := CASE WHEN p_limit = 'user' THEN 1 ELSE limner._shards(p_rate) END;
  step interval := limner._step(p_rate, n);
  full_at timestamptz := coalesce(p_tat, (SELECT min(c.tat) FROM limner.rate_counter c
                                           WHERE c.org_id = t AND c.subject_id = p_subject AND c.shard < n));
BEGIN
  RAISE EXCEPTION 'too many requests' USING ERRCODE = 'LM429', DETAIL = json_build_object('limit', p_limit, 'size', p_rate, 'window_s', 60,
    'retry_after_s', greatest(extract(epoch FROM full_at + step - interval '1 minute' - clock_timestamp()), 0.001),
    'full_after_s', extract(epoch FROM full_at - clock_timestamp()));
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
  IF old.lapsed AND old.closed AND old.id IS DISTINCT FROM p_job THEN
    UPDATE limner.job j SET idem_key = NULL WHERE j.org_id = t AND j.id = old.id;
    RETURN;
  END IF;
  IF old.request_hash IS DISTINCT FROM p_hash OR old.principal_id IS DISTINCT FROM p_principal THEN
    RAISE EXCEPTION 'this idempotency key was used for another request' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
  END IF;
  RETURN QUERY SELECT old.id, old.price_hold_mc, old.available, old.wait_s;
END $$;

-- What `submit_job` would replay: where nothing new can be accepted just now, what was accepted before is still answered.
CREATE FUNCTION limner.find_replayed(p_ctx text, p_app uuid, p_external text, p_route text, p_key text, p_hash bytea)
RETURNS TABLE (job_id uuid, hold_mc bigint, available_mc bigint, wait_s int)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  v_user uuid;
BEGIN
  IF p_external IS NOT NULL THEN
    SELECT u.id INTO v_user FROM limner.end_user u WHERE u.org_id = t AND u.app_id = p_app AND u.external_id = p_external AND u.is_active;
    IF NOT FOUND THEN RETURN; END IF;
  END IF;
  RETURN QUERY SELECT r.* FROM limner._replayed(t, NULL, coalesce(v_user, p_app), p_route, p_key, p_hash) r;
END $$;

-- One submit: idempotency, limits, the wallet's hold, job and queue row, in one statement of the caller. The hold comes first, whose row
-- lock orders everybody who spends this wallet, before the buckets as in a batch: two submits never wait for each other. `p_again`: this id
-- may have been submitted before, by a statement whose answer was lost. Rates are jobs a minute, NULL for none; p_max_open: open jobs.
CREATE FUNCTION limner.submit_job(
  p_ctx text, p_job uuid, p_app uuid, p_external text, p_new_user uuid, p_route text, p_model_id uuid, p_model text, p_kind text,
  p_unit_price bigint, p_hold bigint, p_priority int, p_key text, p_hash bytea, p_input jsonb, p_wait int, p_deadline_s int,
  p_max_runs int, p_request_id text, p_traceparent text, p_again boolean DEFAULT false, p_run_at timestamptz DEFAULT NULL,
  p_user_rate int DEFAULT NULL, p_app_rate int DEFAULT NULL, p_org_rate int DEFAULT NULL, p_max_open int DEFAULT NULL,
  p_webhook_url text DEFAULT NULL, p_call jsonb DEFAULT NULL, p_token_prices jsonb DEFAULT NULL, p_terms jsonb DEFAULT NULL,
  p_cancel_after int DEFAULT NULL,
  p_names text[] DEFAULT NULL, p_types text[] DEFAULT NULL, p_widths int[] DEFAULT NULL, p_heights int[] DEFAULT NULL, p_data bytea[] DEFAULT NULL)
RETURNS TABLE (outcome text, job_id uuid, hold_mc bigint, available_mc bigint, wait_s int, user_full_at timestamptz, app_full_at timestamptz,
               org_full_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t uuid := limner.enter(p_ctx);
  u record;
  v_user uuid;
  v_wallet uuid := t;
  w limner.wallet;
  step interval;
  v_version bigint;
  lots boolean := false;
  is_call boolean := p_call IS NOT NULL;
  due timestamptz;
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
    v_wallet := v_user;
    step := limner._step(p_user_rate, 1);
  END IF;
  IF p_key IS NOT NULL OR p_again THEN
    RETURN QUERY SELECT 'replayed', r.*, NULL::timestamptz, NULL::timestamptz, NULL::timestamptz
      FROM limner._replayed(t, p_job, coalesce(v_user, p_app), p_route, p_key, p_hash) r;
    IF FOUND THEN RETURN; END IF;
    -- copies of one request pay from one wallet: whoever waited for it looks again
    PERFORM 1 FROM limner.wallet x WHERE x.org_id = t AND x.id = v_wallet FOR NO KEY UPDATE;
    RETURN QUERY SELECT 'replayed', r.*, NULL::timestamptz, NULL::timestamptz, NULL::timestamptz
      FROM limner._replayed(t, p_job, coalesce(v_user, p_app), p_route, p_key, p_hash) r;
    IF FOUND THEN RETURN; END IF;
  END IF;
  UPDATE limner.wallet x SET available_mc = x.available_mc - p_hold, held_mc = x.held_mc + p_hold,
                             version = x.version + 1, jobs_submitted = x.jobs_submitted + 1,
                             rate_tat = CASE WHEN step IS NULL THEN x.rate_tat ELSE limner._moved(x.rate_tat, step) END
   WHERE x.org_id = t AND x.id = v_wallet AND x.available_mc >= p_hold        -- checked again after a lock wait
     AND x.lots_end IS NULL AND x.owed_mc = 0 AND (step IS NULL OR limner._has_token(x.rate_tat, step))
  RETURNING x.available_mc, x.version, CASE WHEN step IS NOT NULL THEN x.rate_tat END INTO available_mc, v_version, user_full_at;
  IF available_mc IS NULL THEN                        -- what can be spent has to be found out, or is too little
    w := limner._sweep(t, v_wallet);
  END IF;
  IF p_app_rate IS NOT NULL THEN
    app_full_at := limner._take_token(t, p_app, p_app_rate);
    IF app_full_at IS NULL THEN PERFORM limner._refuse_rate(t, 'app', p_app, p_app_rate, NULL); END IF;
  END IF;
  IF p_org_rate IS NOT NULL THEN
    org_full_at := limner._take_token(t, t, p_org_rate);
    IF org_full_at IS NULL THEN PERFORM limner._refuse_rate(t, 'organization', t, p_org_rate, NULL); END IF;
  END IF;
  IF p_max_open IS NOT NULL THEN
    PERFORM pg_advisory_xact_lock(hashtextextended(t::text, 0));        -- counting and adding one are one step
    IF (SELECT count(*) FROM (SELECT 1 FROM limner.job_queue q WHERE q.org_id = t LIMIT p_max_open) o) >= p_max_open THEN
      RAISE EXCEPTION 'too many open jobs'
        USING ERRCODE = 'LM429', DETAIL = json_build_object('limit', 'open_jobs', 'size', p_max_open, 'retry_after_s', 5);
    END IF;
  END IF;
  IF is_call AND p_call ->> 'place' IS NOT NULL AND limner.find_place(t, (p_call ->> 'place')::uuid) = 'full' THEN
    RAISE EXCEPTION 'no place at the provider' USING ERRCODE = 'LM503';
  END IF;
  IF available_mc IS NULL THEN
    IF w.id IS NOT NULL AND NOT limner._has_token(w.rate_tat, step) THEN
      PERFORM limner._refuse_rate(t, 'user', v_user, p_user_rate, w.rate_tat);
    END IF;
    IF w.id IS NULL OR w.owed_mc > 0 OR w.available_mc < p_hold THEN
      RAISE EXCEPTION 'too few credits' USING ERRCODE = 'LM402', DETAIL = json_build_object(
        'wallet', CASE WHEN v_user IS NULL THEN 'organization' ELSE 'end_user' END, 'required_mc', p_hold,
        'balance_mc', coalesce(w.available_mc, 0), 'owed_mc', coalesce(w.owed_mc, 0));
    END IF;
    SELECT count(*) > 0 INTO lots FROM limner._draw(t, v_wallet, p_job, p_hold);
    UPDATE limner.wallet x SET available_mc = x.available_mc - p_hold, held_mc = x.held_mc + p_hold, version = x.version + 1,
                               jobs_submitted = x.jobs_submitted + 1,
                               rate_tat = CASE WHEN step IS NULL THEN x.rate_tat ELSE limner._moved(x.rate_tat, step) END
     WHERE x.org_id = t AND x.id = v_wallet
    RETURNING x.available_mc, x.version, CASE WHEN step IS NOT NULL THEN x.rate_tat END INTO STRICT available_mc, v_version, user_full_at;
  END IF;
  due := greatest(p_run_at, clock_timestamp());
  INSERT INTO limner.job (org_id, id, app_id, end_user_id, principal_id, wallet_id, model_id, model, kind, priority, route, idem_key,
                          request_hash, input, unit_price_mc, price_hold_mc, wait_s, run_at, drew_lots, request_id, traceparent, webhook_url,
                          state, runs, started_at, token_prices, terms, cancel_after_s)
  VALUES (t, p_job, p_app, v_user, coalesce(v_user, p_app), v_wallet, p_model_id, p_model, p_kind, p_priority, p_route, p_key,
          p_hash, p_input, p_unit_price, p_hold, p_wait, p_run_at, lots, p_request_id, p_traceparent, p_webhook_url,
          CASE WHEN is_call THEN 'running' ELSE 'queued' END, is_call::int, CASE WHEN is_call THEN clock_timestamp() END, p_token_prices,
          p_terms, p_cancel_after);
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, job_id)
  VALUES (t, p_job, 'hold', v_wallet, v_version, available_mc, 'revenue', p_hold, p_job);
  INSERT INTO limner.job_queue (org_id, job_id, app_id, priority, wallet_id, hold_mc, phase, claimable_at, max_runs, deadline_at, created_at,
                                runs, fence, lease_owner, provider_id)
  VALUES (t, p_job, p_app, p_priority, v_wallet, p_hold,
          CASE WHEN is_call THEN 'leased' WHEN p_run_at > clock_timestamp() THEN 'deferred' ELSE 'ready' END,
          due + make_interval(secs => coalesce((p_call ->> 'lease_s')::float8, 0)), p_max_runs,
          due + make_interval(secs => p_deadline_s), due, is_call::int, is_call::int, p_call ->> 'owner', (p_call ->> 'place')::uuid);
  IF is_call THEN                                     -- a call that answers at once is born running
    INSERT INTO limner.provider_call (org_id, job_id, step, provider, send_no, run, fence, provider_model, rule, own_key, idem_key)
    VALUES (t, p_job, 'main', p_call ->> 'provider', 1, 1, 1, p_call ->> 'provider_model', p_call ->> 'rule',
            coalesce((p_call ->> 'own_key')::boolean, false), p_job || ':main:' || (p_call ->> 'provider'));
  END IF;
  IF p_data IS NOT NULL THEN
    INSERT INTO limner.job_input (org_id, job_id, name, media_type, width, height, data)
    SELECT t, p_job, i.* FROM unnest(p_names, p_types, p_widths, p_heights, p_data) i;
  END IF;
  outcome := 'created'; job_id := p_job; hold_mc := p_hold; wait_s := p_wait;
  RETURN NEXT;
END $$;

RESET ROLE;
