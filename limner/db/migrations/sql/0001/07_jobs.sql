-- The only writers of job state. Lock order everywhere: job_queue, job, wallet.
SET ROLE limner_owner;

-- Rate limits are token buckets kept as one time, when the bucket will be full again (GCRA): a limit of n a minute lets a request
-- pass if that time, moved on by a minute / n, is not more than a minute away. Buckets of 6,000 a minute and more are in eight pieces.
CREATE FUNCTION limner._shards(p_rate int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN p_rate >= 6000 THEN 8 ELSE 1 END $$;
-- what one request moves that time on; rounded down, so that as many as the limit says fit into a minute (seven do not into 7 x 8.571429 s)
CREATE FUNCTION limner._step(p_rate int, p_pieces int) RETURNS interval LANGUAGE sql IMMUTABLE AS $$
  SELECT make_interval(secs => trunc(60.0 * p_pieces / p_rate, 6)::float8) $$;

-- internal: takes one token of an app's or organization's bucket; when it is full again, or NULL when it is empty
CREATE FUNCTION limner._take_token(t uuid, p_subject uuid, p_rate int) RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  n int := limner._shards(p_rate);
  step interval := limner._step(p_rate, n);
  piece int := pg_backend_pid() % n;
  v_tat timestamptz;
BEGIN
  FOR i IN 1..n LOOP
    UPDATE limner.rate_counter c SET tat = greatest(c.tat, now()) + step
     WHERE c.org_id = t AND c.subject_id = p_subject AND c.shard = piece AND greatest(c.tat, now()) + step <= now() + interval '1 minute'
    RETURNING c.tat INTO v_tat;
    IF FOUND THEN RETURN v_tat; END IF;
    INSERT INTO limner.rate_counter (org_id, subject_id, shard, tat) VALUES (t, p_subject, piece, now() + step)
    ON CONFLICT DO NOTHING RETURNING tat INTO v_tat;
    IF FOUND THEN RETURN v_tat; END IF;
    piece := (piece + 1) % n;
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
    'retry_after_s', greatest(extract(epoch FROM full_at + step - interval '1 minute' - now()), 0.001),
    'full_after_s', extract(epoch FROM full_at - now()));
END $$;

-- Internal, the end of every submit: the hold first, whose row lock orders everybody who spends this wallet, then job, transfer
-- and queue row. `available` NULL, and nothing written but what had ended, when the wallet holds too little, owes, or its user's rate is
-- used up.
CREATE FUNCTION limner._place(
  t uuid, p_job uuid, p_app uuid, p_user uuid, p_route text, p_model_id uuid, p_model text, p_kind text, p_unit_price bigint, p_hold bigint,
  p_priority int, p_key text, p_hash bytea, p_input jsonb, p_wait int, p_deadline_s int, p_max_runs int, p_request_id text, p_traceparent text,
  p_run_at timestamptz, p_user_rate int, OUT available bigint, OUT full_at timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
  v_wallet uuid := coalesce(p_user, t);
  step interval := limner._step(p_user_rate, 1);
  v_version bigint;
  w limner.wallet;
  lots boolean := false;
BEGIN
  UPDATE limner.wallet x SET available_mc = x.available_mc - p_hold, held_mc = x.held_mc + p_hold,
                             version = x.version + 1, jobs_submitted = x.jobs_submitted + 1,
                             rate_tat = coalesce(greatest(x.rate_tat, now()) + step, x.rate_tat)
   WHERE x.org_id = t AND x.id = v_wallet AND x.available_mc >= p_hold        -- checked again after a lock wait
     AND x.lots_end IS NULL AND x.owed_mc = 0 AND (step IS NULL OR greatest(x.rate_tat, now()) + step <= now() + interval '1 minute')
  RETURNING x.available_mc, x.version, x.rate_tat INTO available, v_version, full_at;
  IF NOT FOUND THEN
    w := limner._sweep(t, v_wallet);
    IF w.id IS NULL OR w.owed_mc > 0 OR w.available_mc < p_hold OR greatest(w.rate_tat, now()) + step > now() + interval '1 minute' THEN
      RETURN;
    END IF;
    SELECT count(*) > 0 INTO lots FROM limner._draw(t, v_wallet, p_job, p_hold);
    UPDATE limner.wallet x SET available_mc = x.available_mc - p_hold, held_mc = x.held_mc + p_hold, version = x.version + 1,
                               jobs_submitted = x.jobs_submitted + 1, rate_tat = coalesce(greatest(x.rate_tat, now()) + step, x.rate_tat)
     WHERE x.org_id = t AND x.id = v_wallet RETURNING x.available_mc, x.version, x.rate_tat INTO STRICT available, v_version, full_at;
  END IF;
  INSERT INTO limner.job (org_id, id, app_id, end_user_id, principal_id, wallet_id, model_id, model, kind, priority, route, idem_key,
                          request_hash, input, unit_price_mc, price_hold_mc, wait_s, run_at, drew_lots, request_id, traceparent)
  VALUES (t, p_job, p_app, p_user, coalesce(p_user, p_app), v_wallet, p_model_id, p_model, p_kind, p_priority, p_route, p_key,
          p_hash, p_input, p_unit_price, p_hold, p_wait, p_run_at, lots, p_request_id, p_traceparent);
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, job_id)
  VALUES (t, p_job, 'hold', v_wallet, v_version, available, 'revenue', p_hold, p_job);
  INSERT INTO limner.job_queue (org_id, job_id, app_id, priority, phase, claimable_at, max_runs, deadline_at, created_at)
  VALUES (t, p_job, p_app, p_priority, CASE WHEN p_run_at > clock_timestamp() THEN 'deferred' ELSE 'ready' END,
          greatest(p_run_at, clock_timestamp()), p_max_runs,
          greatest(p_run_at, clock_timestamp()) + make_interval(secs => p_deadline_s), greatest(p_run_at, clock_timestamp()));
  IF step IS NULL THEN full_at := NULL; END IF;
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

-- One submit: idempotency, limits, the wallet's hold, job and queue row, in one statement of the caller. `p_again`: this id may have
-- been submitted before, by a statement whose answer was lost. Rates are jobs a minute, NULL for none; p_max_open: open jobs.
CREATE FUNCTION limner.submit_job(
  p_ctx text, p_job uuid, p_app uuid, p_external text, p_new_user uuid, p_route text, p_model_id uuid, p_model text, p_kind text,
  p_unit_price bigint, p_hold bigint, p_priority int, p_key text, p_hash bytea, p_input jsonb, p_wait int, p_deadline_s int,
  p_max_runs int, p_request_id text, p_traceparent text, p_again boolean DEFAULT false, p_run_at timestamptz DEFAULT NULL,
  p_user_rate int DEFAULT NULL, p_app_rate int DEFAULT NULL, p_org_rate int DEFAULT NULL, p_max_open int DEFAULT NULL,
  p_names text[] DEFAULT NULL, p_types text[] DEFAULT NULL, p_widths int[] DEFAULT NULL, p_heights int[] DEFAULT NULL, p_data bytea[] DEFAULT NULL)
RETURNS TABLE (outcome text, job_id uuid, hold_mc bigint, available_mc bigint, wait_s int, user_full_at timestamptz, app_full_at timestamptz,
               org_full_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t uuid := limner.enter(p_ctx);
  u record;
  v_user uuid;
  w limner.wallet;
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
    RETURN QUERY SELECT 'replayed', r.*, NULL::timestamptz, NULL::timestamptz, NULL::timestamptz
      FROM limner._replayed(t, p_job, coalesce(v_user, p_app), p_route, p_key, p_hash) r;
    IF FOUND THEN RETURN; END IF;
  END IF;
  -- the wallet before the buckets, as in a batch: two submits never wait for each other
  PERFORM 1 FROM limner.wallet x WHERE x.org_id = t AND x.id = coalesce(v_user, t) FOR NO KEY UPDATE;
  IF p_key IS NOT NULL OR p_again THEN               -- copies of one request pay from one wallet: whoever waited for it looks again
    RETURN QUERY SELECT 'replayed', r.*, NULL::timestamptz, NULL::timestamptz, NULL::timestamptz
      FROM limner._replayed(t, p_job, coalesce(v_user, p_app), p_route, p_key, p_hash) r;
    IF FOUND THEN RETURN; END IF;
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
  SELECT p.available, p.full_at INTO available_mc, user_full_at
    FROM limner._place(t, p_job, p_app, v_user, p_route, p_model_id, p_model, p_kind, p_unit_price, p_hold, p_priority, p_key, p_hash, p_input,
                       p_wait, p_deadline_s, p_max_runs, p_request_id, p_traceparent, p_run_at, CASE WHEN v_user IS NOT NULL THEN p_user_rate END) p;
  IF available_mc IS NULL THEN
    SELECT * INTO w FROM limner.wallet x WHERE x.org_id = t AND x.id = coalesce(v_user, t);
    IF v_user IS NOT NULL AND greatest(w.rate_tat, now()) + limner._step(p_user_rate, 1) > now() + interval '1 minute' THEN
      PERFORM limner._refuse_rate(t, 'user', v_user, p_user_rate, w.rate_tat);
    END IF;
    RAISE EXCEPTION 'too few credits' USING ERRCODE = 'LM402', DETAIL = json_build_object(
      'wallet', CASE WHEN v_user IS NULL THEN 'organization' ELSE 'end_user' END, 'required_mc', p_hold,
      'balance_mc', coalesce(limner.spendable_mc(w), 0), 'owed_mc', coalesce(w.owed_mc, 0));
  END IF;
  IF p_data IS NOT NULL THEN
    INSERT INTO limner.job_input (org_id, job_id, name, media_type, width, height, data)
    SELECT t, p_job, i.* FROM unnest(p_names, p_types, p_widths, p_heights, p_data) i;
  END IF;
  outcome := 'created'; job_id := p_job; hold_mc := p_hold; wait_s := p_wait;
  RETURN NEXT;
END $$;

-- Submits that share a commit, of any organizations, each under its own context. It never waits and never refuses: whatever is not
-- plain (a new or inactive user, a key seen before, too few credits, a limit that is reached, a wallet or a bucket that somebody holds
-- at this moment) is left out, written nowhere, and the caller submits it alone. So no batch waits for another, nor one tenant for
-- another's lock. Rows of one app stand together: its bucket is written once for all of them.
CREATE FUNCTION limner.submit_jobs(p_batch json)
RETURNS TABLE (job_id uuid, available_mc bigint, user_full_at timestamptz, app_full_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  s record;
  t uuid;
  v_ctx text;
  v_user uuid;
  bucket record;                     -- of the app whose rows are under way
  v_app uuid;
  v_step interval;
BEGIN
  FOR s IN SELECT * FROM json_to_recordset(p_batch) AS b (
      ctx text, job uuid, app uuid, external text, route text, model_id uuid, model text, kind text, unit_price bigint, hold bigint,
      priority int, key text, hash bytea, input jsonb, wait int, deadline_s int, max_runs int, request_id text, traceparent text,
      run_at timestamptz, user_rate int, app_rate int) LOOP
    IF v_app IS NOT NULL AND v_app <> s.app THEN         -- still in that app's organization
      UPDATE limner.rate_counter c SET tat = bucket.tat WHERE c.org_id = t AND c.subject_id = v_app AND c.shard = bucket.shard;
      v_app := NULL;
    END IF;
    IF v_ctx IS DISTINCT FROM s.ctx THEN
      t := limner.enter(s.ctx);
      v_ctx := s.ctx;
    END IF;
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
    IF s.app_rate IS NOT NULL THEN
      IF v_app IS NULL THEN
        SELECT c.shard, c.tat INTO bucket FROM limner.rate_counter c
         WHERE c.org_id = t AND c.subject_id = s.app AND c.shard < limner._shards(s.app_rate) ORDER BY c.tat LIMIT 1 FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        v_app := s.app;
        v_step := limner._step(s.app_rate, limner._shards(s.app_rate));
      END IF;
      CONTINUE WHEN greatest(bucket.tat, now()) + v_step > now() + interval '1 minute';
    END IF;
    SELECT p.available, p.full_at INTO available_mc, user_full_at
      FROM limner._place(t, s.job, s.app, v_user, s.route, s.model_id, s.model, s.kind, s.unit_price, s.hold, s.priority, s.key,
                         s.hash, s.input, s.wait, s.deadline_s, s.max_runs, s.request_id, s.traceparent, s.run_at,
                         CASE WHEN v_user IS NOT NULL THEN s.user_rate END) p;
    CONTINUE WHEN available_mc IS NULL;
    IF v_app IS NOT NULL THEN
      bucket.tat := greatest(bucket.tat, now()) + v_step;
      app_full_at := bucket.tat;
    ELSE
      app_full_at := NULL;
    END IF;
    job_id := s.job;
    RETURN NEXT;
  END LOOP;
  IF v_app IS NOT NULL THEN
    UPDATE limner.rate_counter c SET tat = bucket.tat WHERE c.org_id = t AND c.subject_id = v_app AND c.shard = bucket.shard;
  END IF;
END $$;

-- Cross-tenant, run as limner_dispatch: sees ids, keys and leases, never a payload. Three statements: what is due again joins the line;
-- organizations with a cap are locked, so that two claims cannot both fill it (one that another claim is at is passed over); then the
-- claim. Overdue rows first. The rest goes to organizations by weighted fair sharing of the places they take: who has fewer jobs running
-- for its weight is served first, drawing lots (by weight) among equals; inside an organization the same between its apps; inside an app
-- by priority, then age. A paused or full organization or app holds nobody up behind it.
CREATE FUNCTION limner.claim_jobs(p_owner text, p_n int, p_lease_s double precision, p_cap int DEFAULT NULL)
RETURNS TABLE (org_id uuid, job_id uuid, app_id uuid, fence bigint, run int, exhausted text, deadline_in_s double precision, waited_ms double precision)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();   -- a value: a function that moves cannot bound a scan of an index
  mine uuid[];             -- of the organizations with a cap, or an app with one: those this claim may serve under it
  capped boolean := p_cap IS NOT NULL OR EXISTS (SELECT 1 FROM limner.queue_policy p WHERE p.max_running IS NOT NULL);
BEGIN
  WITH deferred AS (
    SELECT d.org_id, d.job_id FROM limner.job_queue d WHERE d.phase = 'deferred' AND d.claimable_at <= v_now
     ORDER BY d.claimable_at LIMIT 500 FOR UPDATE SKIP LOCKED),
  expired AS (
    SELECT l.org_id, l.job_id FROM limner.job_queue l WHERE l.phase = 'leased' AND l.claimable_at <= v_now
     ORDER BY l.claimable_at LIMIT 500 FOR UPDATE SKIP LOCKED)
  UPDATE limner.job_queue q SET phase = 'ready' FROM (SELECT * FROM deferred UNION ALL SELECT * FROM expired) due
   WHERE q.org_id = due.org_id AND q.job_id = due.job_id;
  IF capped THEN
    SELECT coalesce(array_agg(x.org_id), '{}') INTO mine FROM (
      WITH RECURSIVE o AS (
        (SELECT q.org_id FROM limner.job_queue q WHERE q.phase = 'ready' ORDER BY q.org_id LIMIT 1)
        UNION ALL
        SELECT (SELECT q.org_id FROM limner.job_queue q WHERE q.phase = 'ready' AND q.org_id > o.org_id ORDER BY q.org_id LIMIT 1)
          FROM o WHERE o.org_id IS NOT NULL)
      SELECT p.org_id FROM limner.queue_policy p
       WHERE p.org_id IN (SELECT o.org_id FROM o) AND p.app_id = p.org_id
         AND (p_cap IS NOT NULL OR EXISTS (SELECT 1 FROM limner.queue_policy c WHERE c.org_id = p.org_id AND c.max_running IS NOT NULL))
         FOR UPDATE SKIP LOCKED) x;
  END IF;
  RETURN QUERY
  WITH RECURSIVE
  overdue AS (
    SELECT q.org_id, q.job_id FROM limner.job_queue q
     WHERE q.deadline_at < v_now AND q.claimable_at <= v_now
     ORDER BY q.deadline_at LIMIT least(20, p_n) FOR UPDATE SKIP LOCKED),
  lane AS (               -- a loose index scan: the distinct (organization, app) pairs that have something ready
    (SELECT q.org_id, q.app_id FROM limner.job_queue q WHERE q.phase = 'ready' ORDER BY q.org_id, q.app_id LIMIT 1)
    UNION ALL
    SELECT n.org_id, n.app_id FROM lane l CROSS JOIN LATERAL (
      SELECT q.org_id, q.app_id FROM limner.job_queue q
       WHERE q.phase = 'ready' AND (q.org_id, q.app_id) > (l.org_id, l.app_id) ORDER BY q.org_id, q.app_id LIMIT 1) n),
  busy AS MATERIALIZED (
    SELECT q.org_id, q.app_id, count(*)::int AS n FROM limner.job_queue q
     WHERE q.phase = 'leased' AND q.claimable_at > v_now GROUP BY 1, 2),
  busy_org AS (SELECT b.org_id, sum(b.n)::int AS n FROM busy b GROUP BY 1),
  share AS MATERIALIZED (    -- each organization in line: its weight, what it may still take, and its lot
    SELECT d.org_id, coalesce(o.weight, 1) AS weight, coalesce(b.n, 0) AS n, coalesce(o.max_running, p_cap) - coalesce(b.n, 0) AS room,
           -ln(1 - random()) AS lot
      FROM (SELECT DISTINCT l.org_id FROM lane l) d
      LEFT JOIN limner.queue_policy o ON o.org_id = d.org_id AND o.app_id = d.org_id
      LEFT JOIN busy_org b ON b.org_id = d.org_id
     WHERE o.paused_at IS NULL AND (coalesce(o.max_running, p_cap) IS NULL OR (d.org_id = ANY (mine) AND coalesce(o.max_running, p_cap) > coalesce(b.n, 0)))
       AND NOT EXISTS (SELECT 1 FROM limner.queue_policy e WHERE e.org_id = limner.platform() AND e.app_id = limner.platform() AND e.paused_at IS NOT NULL)),
  open_lane AS MATERIALIZED (
    SELECT l.org_id, l.app_id, coalesce(a.weight, 1) AS weight, coalesce(b.n, 0) AS n,
           least(s.room, a.max_running - coalesce(b.n, 0), p_n) AS room, s.n AS org_n, s.weight AS org_weight,
           s.weight::float8 * coalesce(a.weight, 1) / sum(coalesce(a.weight, 1)) OVER (PARTITION BY l.org_id) AS part
      FROM lane l JOIN share s ON s.org_id = l.org_id
      LEFT JOIN limner.queue_policy a ON a.org_id = l.org_id AND a.app_id = l.app_id AND a.app_id <> a.org_id
      LEFT JOIN busy b ON b.org_id = l.org_id AND b.app_id = l.app_id
     WHERE a.paused_at IS NULL AND (a.max_running IS NULL OR (l.org_id = ANY (mine) AND a.max_running > coalesce(b.n, 0)))),
  level AS MATERIALIZED (    -- how many each would run, by weight, if all were level after this claim
    SELECT (sum(l.part * l.org_n / l.org_weight) + p_n) / sum(l.part) AS height FROM open_lane l),
  sized AS MATERIALIZED (    -- how deep to look into each: organizations below the level may need all places between them
    SELECT l.*, greatest(4, ceil(CASE WHEN l.low THEN 2.0 * p_n * l.part / sum(l.part) FILTER (WHERE l.low) OVER ()
                                      ELSE p_n * l.part / sum(l.part) OVER () END))::int AS depth
      FROM (SELECT x.*, x.org_n < x.org_weight * v.height AS low FROM open_lane x CROSS JOIN level v) l),
  head AS (
    SELECT l.org_id, r.job_id, r.priority,
           (l.n + row_number() OVER (PARTITION BY l.org_id, l.app_id ORDER BY r.priority, r.job_id))::float8 / l.weight AS app_turn
      FROM sized l CROSS JOIN LATERAL (
        SELECT q.job_id, q.priority FROM limner.job_queue q
         WHERE q.phase = 'ready' AND q.org_id = l.org_id AND q.app_id = l.app_id AND q.deadline_at >= v_now
         ORDER BY q.priority, q.job_id
         LIMIT least(l.room, l.depth)
           FOR UPDATE SKIP LOCKED) r),
  turn AS (
    SELECT h.org_id, h.job_id, row_number() OVER (PARTITION BY h.org_id ORDER BY h.app_turn, h.priority, h.job_id) AS place FROM head h),
  chosen AS (
    SELECT c.org_id, c.job_id FROM (
      SELECT o.org_id, o.job_id, -1::float8 AS turn, 0::float8 AS lot FROM overdue o
      UNION ALL
      SELECT t.org_id, t.job_id, (s.n + t.place - 1)::float8 / s.weight, s.lot / s.weight FROM turn t JOIN share s ON s.org_id = t.org_id
       WHERE s.room IS NULL OR t.place <= s.room) c
     ORDER BY c.turn, c.lot LIMIT p_n)
  UPDATE limner.job_queue q
     SET fence = q.fence + 1, runs = q.runs + 1, lease_owner = p_owner, phase = 'leased',
         claimable_at = clock_timestamp() + make_interval(secs => p_lease_s)
    FROM chosen c WHERE q.org_id = c.org_id AND q.job_id = c.job_id
  RETURNING q.org_id, q.job_id, q.app_id, q.fence, q.runs,
            CASE WHEN q.cancel_requested_at IS NOT NULL THEN 'cancelled'
                 WHEN q.deadline_at < clock_timestamp() THEN 'deadline_exceeded'
                 WHEN q.runs > q.max_runs THEN 'runs_exhausted' END,
            extract(epoch FROM q.deadline_at - clock_timestamp())::double precision,
            extract(epoch FROM clock_timestamp() - q.created_at)::double precision * 1000;
END $$;

-- all of a worker's leases in one statement, as limner_dispatch: renewed where the fence still matches
CREATE FUNCTION limner.heartbeat_many(p_orgs uuid[], p_jobs uuid[], p_fences bigint[], p_lease_s double precision)
RETURNS TABLE (job_id uuid, verdict text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  WITH mine AS (SELECT * FROM unnest(p_orgs, p_jobs, p_fences) m (org_id, job_id, fence)),
  renewed AS (
    UPDATE limner.job_queue q SET claimable_at = clock_timestamp() + make_interval(secs => p_lease_s), phase = 'leased'
      FROM mine m WHERE q.org_id = m.org_id AND q.job_id = m.job_id AND q.fence = m.fence AND q.lease_owner IS NOT NULL
    RETURNING q.job_id, q.cancel_requested_at)
  SELECT m.job_id, CASE WHEN r.job_id IS NULL THEN 'lost' WHEN r.cancel_requested_at IS NULL THEN 'ok' ELSE 'cancel' END
    FROM mine m LEFT JOIN renewed r ON r.job_id = m.job_id;
$$;

-- progress of live runs, as limner_dispatch; a stale fence writes nothing
CREATE FUNCTION limner.report_many(p_orgs uuid[], p_jobs uuid[], p_fences bigint[], p_percents int[], p_stages text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.job_queue q SET percent = m.percent, stage = m.stage
    FROM unnest(p_orgs, p_jobs, p_fences, p_percents, p_stages) m (org_id, job_id, fence, percent, stage)
   WHERE q.org_id = m.org_id AND q.job_id = m.job_id AND q.fence = m.fence AND q.lease_owner IS NOT NULL;
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

-- internal, under the queue row's lock
CREATE FUNCTION limner._start(t uuid, q limner.job_queue, p_event uuid)
RETURNS TABLE (app_id uuid, model_id uuid, model text, kind text, input jsonb, unit_price_mc bigint, price_hold_mc bigint,
               request_id text, traceparent text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  first boolean;
BEGIN
  UPDATE limner.job j SET state = 'running', started_at = coalesce(j.started_at, v_now), runs = q.runs
   WHERE j.org_id = t AND j.id = q.job_id
  RETURNING j.app_id, j.model_id, j.model, j.kind, j.input, j.unit_price_mc, j.price_hold_mc, j.request_id, j.traceparent, j.started_at = v_now
       INTO app_id, model_id, model, kind, input, unit_price_mc, price_hold_mc, request_id, traceparent, first;
  IF first THEN                                              -- once: a run given back may start again
    INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
    VALUES (t, p_event, q.app_id, 'job.started', q.job_id, json_build_object('job_id', q.job_id));
  END IF;
  RETURN NEXT;
END $$;

CREATE FUNCTION limner.start_job(p_ctx text, p_job uuid, p_fence bigint, p_event uuid)
RETURNS TABLE (app_id uuid, model_id uuid, model text, kind text, input jsonb, unit_price_mc bigint, price_hold_mc bigint,
               request_id text, traceparent text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  RETURN QUERY SELECT * FROM limner._start(t, limner._own(t, p_job, p_fence), p_event);
END $$;

CREATE FUNCTION limner.release_job(p_ctx text, p_job uuid, p_fence bigint, p_delay_s double precision, p_counts boolean)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  PERFORM limner._own(t, p_job, p_fence);
  UPDATE limner.job_queue q SET lease_owner = NULL, claimable_at = clock_timestamp() + make_interval(secs => p_delay_s),
         phase = CASE WHEN p_delay_s > 0 THEN 'deferred' ELSE 'ready' END,
         runs = q.runs - CASE WHEN p_counts THEN 0 ELSE 1 END, percent = 0, stage = 'queued'
   WHERE q.org_id = t AND q.job_id = p_job;
  UPDATE limner.job j SET state = 'queued' WHERE j.org_id = t AND j.id = p_job AND j.state = 'running';
END $$;

-- what an earlier run left decides: send, resume (accepted), reuse (done), or uncertain, which the adapter's class resolves
CREATE FUNCTION limner._intend(t uuid, q limner.job_queue, p_step text, p_provider text, p_provider_model text, p_rule text, p_resend boolean)
RETURNS TABLE (decision text, send_no int, idem_key text, provider_task_id text, outputs jsonb, cost_micro_usd bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE c limner.provider_call;
BEGIN
  idem_key := q.job_id::text || ':' || p_step || ':' || p_provider;      -- the same over every run
  SELECT * INTO c FROM limner.provider_call x
   WHERE x.org_id = t AND x.job_id = q.job_id AND x.step = p_step AND x.provider = p_provider ORDER BY x.send_no DESC LIMIT 1;
  send_no := c.send_no;
  provider_task_id := c.provider_task_id;
  IF c.state IN ('accepted', 'done') THEN
    decision := CASE c.state WHEN 'done' THEN 'reuse' ELSE 'resume' END;
    outputs := c.outputs;
    cost_micro_usd := c.cost_micro_usd;
    RETURN NEXT;
    RETURN;
  END IF;
  IF c.state = 'intent' THEN
    UPDATE limner.provider_call x SET state = 'unknown', finished_at = clock_timestamp()
     WHERE x.org_id = t AND x.job_id = q.job_id AND x.step = p_step AND x.provider = p_provider AND x.send_no = c.send_no;
  END IF;
  IF c.state IN ('intent', 'unknown') AND NOT p_resend THEN
    decision := 'uncertain';
    RETURN NEXT;
    RETURN;
  END IF;
  send_no := coalesce(c.send_no, 0) + 1;
  INSERT INTO limner.provider_call (org_id, job_id, step, provider, send_no, run, fence, provider_model, rule, idem_key)
  VALUES (t, q.job_id, p_step, p_provider, send_no, q.runs, q.fence, p_provider_model, p_rule, idem_key);
  decision := 'send';
  provider_task_id := NULL;
  RETURN NEXT;
END $$;

CREATE FUNCTION limner.call_intent(p_ctx text, p_job uuid, p_fence bigint, p_step text, p_provider text, p_provider_model text,
                                   p_rule text, p_resend boolean)
RETURNS TABLE (decision text, send_no int, idem_key text, provider_task_id text, outputs jsonb, cost_micro_usd bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  RETURN QUERY SELECT * FROM limner._intend(t, limner._own(t, p_job, p_fence), p_step, p_provider, p_provider_model, p_rule, p_resend);
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
  INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
  VALUES (t, p_event, j.app_id, CASE p_outcome WHEN 'succeeded' THEN 'job.completed' ELSE 'job.' || p_outcome END, p_job,
          json_build_object('job_id', p_job, 'status', p_outcome, 'charged_mc', amount, 'error_code', p_error_code));
  DELETE FROM limner.job_queue q WHERE q.org_id = t AND q.job_id = p_job;
  IF j.input ?| ARRAY['images', 'mask'] THEN
    DELETE FROM limner.job_input i WHERE i.org_id = t AND i.job_id = p_job;
  END IF;
  IF p_fence > 1 OR p_outcome <> 'succeeded' THEN       -- runs may have left objects that nobody refers to
    INSERT INTO limner.leftover (org_id, finished_at, job_id) VALUES (t, clock_timestamp(), p_job);
  END IF;
END $$;

-- internal, under the queue row's lock: how a call went that brought the job's outputs; it was open, or there is no such call
CREATE FUNCTION limner._delivered(t uuid, p_job uuid, p_call jsonb, p_outputs jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  UPDATE limner.provider_call x
     SET state = 'done', provider_task_id = coalesce(p_call ->> 'task', x.provider_task_id), cost_micro_usd = (p_call ->> 'cost')::bigint,
         latency_ms = (p_call ->> 'latency_ms')::int, outputs = p_outputs, finished_at = clock_timestamp()
   WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_call ->> 'step' AND x.provider = p_call ->> 'provider'
     AND x.send_no = (p_call ->> 'send_no')::int AND x.state IN ('intent', 'accepted');
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no open call to %', p_call ->> 'provider' USING ERRCODE = 'LM409';
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
    PERFORM limner._delivered(t, p_job, p_call, p_outputs);
  END IF;
  PERFORM limner._close(t, p_job, p_fence, p_outcome, p_amount, p_outputs, p_error_code, left(p_error_message, 2000), p_provider,
                        p_usage, p_transfer, p_event);
  RETURN p_outcome;
END $$;

-- Starts, intents and finishes of a worker's runs that share a commit, of any organizations, each under its own context. Like
-- submit_jobs it never waits and never refuses: a job whose row or wallet somebody holds, or whose lease was lost, is left out, and the
-- worker asks for it alone.
CREATE FUNCTION limner.work_many(p_batch json) RETURNS TABLE (place int, answer jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  s record;
  t uuid;
  v_ctx text;
  q limner.job_queue;
BEGIN
  FOR s IN SELECT * FROM json_to_recordset(p_batch) AS b (place int, verb text, ctx text, job uuid, fence bigint, args jsonb) LOOP
    IF v_ctx IS DISTINCT FROM s.ctx THEN
      t := limner.enter(s.ctx);
      v_ctx := s.ctx;
    END IF;
    SELECT * INTO q FROM limner.job_queue x WHERE x.org_id = t AND x.job_id = s.job FOR UPDATE SKIP LOCKED;
    CONTINUE WHEN NOT FOUND OR q.fence <> s.fence OR q.lease_owner IS NULL;
    place := s.place;
    IF s.verb = 'start' THEN
      SELECT to_jsonb(x) INTO answer FROM limner._start(t, q, (s.args ->> 'event')::uuid) x;
    ELSIF s.verb = 'intend' THEN
      SELECT to_jsonb(x) INTO answer FROM limner._intend(t, q, s.args ->> 'step', s.args ->> 'provider', s.args ->> 'provider_model',
                                                         s.args ->> 'rule', false) x;
    ELSIF s.verb = 'finish' THEN
      PERFORM 1 FROM limner.job j JOIN limner.wallet w ON w.org_id = j.org_id AND w.id = j.wallet_id
        WHERE j.org_id = t AND j.id = s.job FOR NO KEY UPDATE SKIP LOCKED;
      CONTINUE WHEN NOT FOUND;
      IF jsonb_typeof(s.args -> 'call') = 'object' THEN
        PERFORM limner._delivered(t, s.job, s.args -> 'call', s.args -> 'outputs');
      END IF;
      PERFORM limner._close(t, s.job, s.fence, s.args ->> 'outcome', (s.args ->> 'amount')::bigint, nullif(s.args -> 'outputs', 'null'),
                            s.args ->> 'error_code', left(s.args ->> 'error_message', 2000), s.args ->> 'provider',
                            nullif(s.args -> 'usage', 'null'), (s.args ->> 'transfer')::uuid, (s.args ->> 'event')::uuid);
      answer := s.args -> 'outcome';
    ELSE
      RAISE EXCEPTION 'not something a worker does: %', s.verb USING ERRCODE = 'LM422';
    END IF;
    RETURN NEXT;
  END LOOP;
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

GRANT EXECUTE ON FUNCTION limner.submit_job, limner.submit_jobs, limner.cancel_job, limner.grant_credits, limner.grant_batch TO limner_api;
GRANT EXECUTE ON FUNCTION limner.start_job, limner.release_job, limner.call_intent, limner.call_result, limner.finish_job, limner.work_many,
  limner.erase_jobs TO limner_worker;
GRANT EXECUTE ON FUNCTION limner.claim_jobs, limner.heartbeat_many, limner.report_many TO limner_dispatch;
GRANT EXECUTE ON FUNCTION limner.top_up, limner.adjust_credits, limner.claw_back, limner.grant_allowances, limner.grant_own_allowance,
  limner.expire_lots, limner.close_books, limner.refund_job, limner.create_organization, limner.cancel_job, limner.grant_credits TO limner_operator;
RESET ROLE;
