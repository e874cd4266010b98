-- Batches: jobs that were ordered together, by one request. Each item is a job like any other, with a hold of its own that is settled
-- once; what belongs to the batch is that all of them were accepted together or none, and that its end is told once
-- (docs/decisions/0026).
SET ROLE limner_owner;

-- `open_at`: every item behind this place has ended; -1: all have, and what came of them stands beside it. Nothing else is counted here:
-- while items end, the batch's row is not written.
CREATE TABLE limner.batch (
  org_id       uuid NOT NULL,
  id           uuid NOT NULL,
  app_id       uuid NOT NULL,
  end_user_id  uuid,
  principal_id uuid NOT NULL,
  idem_key     text CHECK (length(idem_key) BETWEEN 1 AND 255),
  request_hash bytea NOT NULL CHECK (length(request_hash) = 32),
  items        int NOT NULL CHECK (items > 0),
  hold_mc      bigint NOT NULL CHECK (hold_mc >= 0),
  available_mc bigint NOT NULL,                     -- what the wallet had left after it: what a replay answers
  open_at      int NOT NULL,
  succeeded    int,
  failed       int,
  cancelled    int,
  charged_mc   bigint,
  webhook_url  text,
  request_id   text,
  cancel_requested_at timestamptz,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  finished_at  timestamptz,
  PRIMARY KEY (org_id, id),
  FOREIGN KEY (org_id, app_id) REFERENCES limner.app (org_id, id),
  CHECK ((finished_at IS NULL) = (open_at >= 0)),
  CHECK (finished_at IS NULL OR (succeeded + failed + cancelled = items AND charged_mc BETWEEN 0 AND hold_mc))
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX batch_idem ON limner.batch (org_id, principal_id, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX batch_of_app ON limner.batch (org_id, app_id, id);
CREATE INDEX batch_of_user ON limner.batch (org_id, end_user_id, id) WHERE end_user_id IS NOT NULL;
CREATE INDEX batch_open ON limner.batch (org_id, id) WHERE finished_at IS NULL;

CREATE TABLE limner.batch_item (
  org_id   uuid NOT NULL,
  batch_id uuid NOT NULL,
  place    int NOT NULL CHECK (place >= 0),
  job_id   uuid NOT NULL,
  PRIMARY KEY (org_id, batch_id, place),
  UNIQUE (org_id, job_id),
  FOREIGN KEY (org_id, batch_id) REFERENCES limner.batch (org_id, id),
  FOREIGN KEY (org_id, job_id) REFERENCES limner.job (org_id, id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON limner.batch_item FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON limner.batch_item EXECUTE FUNCTION limner.refuse_change();
CREATE TRIGGER never_deleted BEFORE DELETE ON limner.batch FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();

SELECT limner._protect('batch', 'batch_item');
CREATE POLICY dispatch ON limner.batch FOR SELECT TO limner_dispatch USING (true);
CREATE POLICY dispatch ON limner.batch_item FOR SELECT TO limner_dispatch USING (true);
GRANT SELECT ON limner.batch, limner.batch_item TO limner_api, limner_worker, limner_operator;
GRANT SELECT (org_id, id, open_at, cancel_requested_at, finished_at) ON limner.batch TO limner_dispatch;
GRANT SELECT ON limner.batch_item TO limner_dispatch;

-- internal: items count in buckets of the batches' own (piece 100 of the subject's), so that a batch takes nothing from single jobs. It
-- passes as long as there is a token, whatever its size, and the next one when what it took too much has come back.
CREATE FUNCTION limner._take_batch(t uuid, p_limit text, p_subject uuid, p_rate int, p_items int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  step interval := limner._step(p_rate, 1);
  v_tat timestamptz;
BEGIN
  IF p_rate IS NULL THEN RETURN; END IF;
  INSERT INTO limner.rate_counter AS c (org_id, subject_id, shard, tat) VALUES (t, p_subject, 100, clock_timestamp() + step * p_items)
  ON CONFLICT (org_id, subject_id, shard) DO UPDATE SET tat = greatest(c.tat, clock_timestamp()) + step * p_items
   WHERE limner._has_token(c.tat, step) RETURNING c.tat INTO v_tat;
  IF v_tat IS NULL THEN
    SELECT c.tat INTO STRICT v_tat FROM limner.rate_counter c WHERE c.org_id = t AND c.subject_id = p_subject AND c.shard = 100;
    RAISE EXCEPTION 'too many items' USING ERRCODE = 'LM429', DETAIL = json_build_object('limit', p_limit, 'size', p_rate,
      'retry_after_s', greatest(extract(epoch FROM v_tat + step - interval '1 minute' - clock_timestamp()), 0.001));
  END IF;
END $$;

-- internal: the batch that a key stands for, or the one with this very id; all NULL when the request is new
CREATE FUNCTION limner._replayed_batch(t uuid, p_batch uuid, p_principal uuid, p_key text, p_hash bytea) RETURNS limner.batch
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE b limner.batch;
BEGIN
  SELECT * INTO b FROM limner.batch x WHERE x.org_id = t AND ((x.principal_id = p_principal AND x.idem_key = p_key) OR x.id = p_batch);
  IF b.finished_at IS NOT NULL AND b.created_at < clock_timestamp() - interval '30 days' AND b.id <> p_batch THEN
    UPDATE limner.batch x SET idem_key = NULL WHERE x.org_id = t AND x.id = b.id;
    RETURN NULL;
  END IF;
  IF b.id IS NOT NULL AND (b.request_hash <> p_hash OR b.principal_id <> p_principal) THEN
    RAISE EXCEPTION 'this idempotency key was used for another request' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
  END IF;
  RETURN b;
END $$;

-- internal: lots are drawn for all items at once, as one after the other would draw: soonest end first, in the order of the items
CREATE FUNCTION limner._draw_batch(t uuid, p_wallet uuid, p_items json) RETURNS uuid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE drew uuid[];
BEGIN
  WITH asked AS (
    SELECT i.job, i.hold, sum(i.hold) OVER (ORDER BY i.ordinality) AS upto
      FROM ROWS FROM (json_to_recordset(p_items) AS (job uuid, hold bigint)) WITH ORDINALITY i (job, hold, ordinality)),
  there AS (
    SELECT l.id, l.remaining_mc, sum(l.remaining_mc) OVER (ORDER BY l.expires_at, l.id) AS upto
      FROM limner.lot l WHERE l.org_id = t AND l.wallet_id = p_wallet AND l.remaining_mc > 0),
  drawn AS (
    INSERT INTO limner.lot_draw (org_id, job_id, lot_id, amount_mc)
    SELECT t, a.job, l.id, least(a.upto, l.upto) - greatest(a.upto - a.hold, l.upto - l.remaining_mc)
      FROM asked a JOIN there l ON a.upto - a.hold < l.upto AND l.upto - l.remaining_mc < a.upto WHERE a.hold > 0
    RETURNING job_id, lot_id, amount_mc),
  taken AS (
    UPDATE limner.lot x SET remaining_mc = x.remaining_mc - d.amount
      FROM (SELECT y.lot_id, sum(y.amount_mc) AS amount FROM drawn y GROUP BY 1) d WHERE x.org_id = t AND x.id = d.lot_id)
  SELECT coalesce(array_agg(DISTINCT d.job_id), '{}') INTO drew FROM drawn d;
  UPDATE limner.wallet x SET lots_end = limner._lots_end(t, p_wallet) WHERE x.org_id = t AND x.id = p_wallet;
  RETURN drew;
END $$;

-- internal, under the wallet's lock: the wallet's hold for all, then a job, a hold and a queue row for each, in their order
CREATE FUNCTION limner._place_batch(t uuid, p_batch uuid, p_app uuid, p_user uuid, w limner.wallet, p_hold bigint, p_count int, p_hash bytea,
                                    p_items json, p_facts json) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  drew uuid[] := CASE WHEN w.lots_end IS NULL THEN '{}' ELSE limner._draw_batch(t, w.id, p_items) END;
  v_run_at timestamptz := (p_facts ->> 'run_at')::timestamptz;
  due timestamptz := greatest(v_run_at, clock_timestamp());
BEGIN
  UPDATE limner.wallet x SET available_mc = x.available_mc - p_hold, held_mc = x.held_mc + p_hold, version = x.version + p_count,
                             jobs_submitted = x.jobs_submitted + p_count WHERE x.org_id = t AND x.id = w.id;
  WITH item AS MATERIALIZED (
    SELECT i.*, i.ordinality - 1 AS place, sum(i.hold) OVER (ORDER BY i.ordinality) AS holds
      FROM ROWS FROM (json_to_recordset(p_items) AS (
        job uuid, model_id uuid, model text, kind text, unit_price bigint, hold bigint, input jsonb, wait int, deadline_s int, cancel_after int,
        token_prices jsonb, terms jsonb)) WITH ORDINALITY i),
  ordered AS (
    INSERT INTO limner.job (org_id, id, app_id, end_user_id, principal_id, wallet_id, model_id, model, kind, priority, route, request_hash, input,
                            unit_price_mc, price_hold_mc, wait_s, run_at, cancel_after_s, drew_lots, request_id, traceparent, token_prices,
                            terms)
    SELECT t, i.job, p_app, p_user, coalesce(p_user, p_app), w.id, i.model_id, i.model, i.kind, (p_facts ->> 'priority')::int, 'generate', p_hash,
           i.input, i.unit_price, i.hold, i.wait, v_run_at, i.cancel_after, i.job = ANY (drew), p_facts ->> 'request_id',
           p_facts ->> 'traceparent', i.token_prices, i.terms FROM item i),
  held AS (
    INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, job_id)
    SELECT t, i.job, 'hold', w.id, w.version + i.ordinality, w.available_mc - i.holds, 'revenue', i.hold, i.job FROM item i),
  queued AS (
    INSERT INTO limner.job_queue (org_id, job_id, app_id, priority, wallet_id, hold_mc, phase, claimable_at, max_runs, deadline_at, created_at)
    SELECT t, i.job, p_app, (p_facts ->> 'priority')::int, w.id, i.hold, CASE WHEN v_run_at > clock_timestamp() THEN 'deferred' ELSE 'ready' END,
           due, (p_facts ->> 'max_runs')::int, due + make_interval(secs => i.deadline_s), due FROM item i)
  INSERT INTO limner.batch_item (org_id, batch_id, place, job_id) SELECT t, p_batch, i.place, i.job FROM item i;
  RETURN w.available_mc - p_hold;
END $$;

-- One batch: idempotency, limits, the wallet's holds, jobs and queue rows, all or nothing. p_facts: {"priority", "run_at", "max_runs",
-- "webhook_url", "request_id", "traceparent", "user_rate", "app_rate", "org_rate", "max_open"}; p_items: what is each item's own, its
-- job's id among it. Pictures: of which job, under which name.
CREATE FUNCTION limner.submit_batch(
  p_ctx text, p_batch uuid, p_app uuid, p_external text, p_new_user uuid, p_key text, p_hash bytea, p_items json, p_facts json,
  p_jobs uuid[] DEFAULT NULL, p_names text[] DEFAULT NULL, p_types text[] DEFAULT NULL, p_widths int[] DEFAULT NULL, p_heights int[] DEFAULT NULL,
  p_data bytea[] DEFAULT NULL)
RETURNS TABLE (outcome text, batch_id uuid, items int, hold_mc bigint, available_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t uuid := limner.enter(p_ctx);
  v_count int := json_array_length(p_items);
  v_hold bigint := (SELECT sum(x.hold)::bigint FROM json_to_recordset(p_items) x (hold bigint));
  v_open int := (p_facts ->> 'max_open')::int;
  u record;
  v_user uuid;
  v_wallet uuid := t;
  w limner.wallet;
  b limner.batch;
  v_left bigint;
BEGIN
  IF p_external IS NOT NULL THEN
    SELECT * INTO STRICT u FROM limner._end_user(t, p_app, p_external, p_new_user);
    IF NOT u.is_active THEN
      RAISE EXCEPTION 'this end user is deactivated' USING ERRCODE = 'LM403';
    END IF;
    v_user := u.id;
    v_wallet := v_user;
  END IF;
  -- copies of one request pay from one wallet: whoever waited for it finds the batch
  PERFORM 1 FROM limner.wallet x WHERE x.org_id = t AND x.id = v_wallet FOR NO KEY UPDATE;
  b := limner._replayed_batch(t, p_batch, coalesce(v_user, p_app), p_key, p_hash);
  IF b.id IS NOT NULL THEN
    RETURN QUERY SELECT 'replayed', b.id, b.items, b.hold_mc, b.available_mc;
    RETURN;
  END IF;
  IF v_user IS NOT NULL THEN
    PERFORM limner._take_batch(t, 'user', v_user, (p_facts ->> 'user_rate')::int, v_count);
  END IF;
  PERFORM limner._take_batch(t, 'app', p_app, (p_facts ->> 'app_rate')::int, v_count);
  PERFORM limner._take_batch(t, 'organization', t, (p_facts ->> 'org_rate')::int, v_count);
  IF v_open IS NOT NULL THEN
    PERFORM pg_advisory_xact_lock(hashtextextended(t::text, 0));        -- counting and adding are one step, as in submit_job
    IF (SELECT count(*) FROM limner.job_queue q WHERE q.org_id = t) + v_count > v_open THEN
      RAISE EXCEPTION 'too many open jobs'
        USING ERRCODE = 'LM429', DETAIL = json_build_object('limit', 'open_jobs', 'size', v_open, 'retry_after_s', 5);
    END IF;
  END IF;
  w := limner._sweep(t, v_wallet);
  IF w.id IS NULL OR w.owed_mc > 0 OR w.available_mc < v_hold THEN
    RAISE EXCEPTION 'too few credits' USING ERRCODE = 'LM402', DETAIL = json_build_object(
      'wallet', CASE WHEN v_user IS NULL THEN 'organization' ELSE 'end_user' END, 'required_mc', v_hold,
      'balance_mc', coalesce(w.available_mc, 0), 'owed_mc', coalesce(w.owed_mc, 0));
  END IF;
  INSERT INTO limner.batch (org_id, id, app_id, end_user_id, principal_id, idem_key, request_hash, items, hold_mc, available_mc, open_at,
                            webhook_url, request_id)
  VALUES (t, p_batch, p_app, v_user, coalesce(v_user, p_app), p_key, p_hash, v_count, v_hold, w.available_mc - v_hold, v_count - 1,
          p_facts ->> 'webhook_url', p_facts ->> 'request_id');
  v_left := limner._place_batch(t, p_batch, p_app, v_user, w, v_hold, v_count, p_hash, p_items, p_facts);
  IF p_data IS NOT NULL THEN
    INSERT INTO limner.job_input (org_id, job_id, name, media_type, width, height, data)
    SELECT t, i.* FROM unnest(p_jobs, p_names, p_types, p_widths, p_heights, p_data) i;
  END IF;
  RETURN QUERY SELECT 'created', p_batch, v_count, v_hold, v_left;
END $$;

-- internal, under the batch's lock: looks on, downwards, from the item that was open last; when there is none, the batch has ended, what
-- came of it is written down and told. Whether it has ended
CREATE FUNCTION limner._end_batch(t uuid, b limner.batch, p_event uuid) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  v_open int;
  c record;
BEGIN
  SELECT i.place INTO v_open FROM limner.batch_item i JOIN limner.job_queue q ON q.org_id = t AND q.job_id = i.job_id
   WHERE i.org_id = t AND i.batch_id = b.id AND i.place <= b.open_at ORDER BY i.place DESC LIMIT 1;
  IF v_open IS NOT NULL THEN
    UPDATE limner.batch x SET open_at = v_open WHERE x.org_id = t AND x.id = b.id AND x.open_at > v_open;
    RETURN false;
  END IF;
  SELECT count(*) FILTER (WHERE j.state = 'succeeded') AS succeeded, count(*) FILTER (WHERE j.state = 'failed') AS failed,
         count(*) FILTER (WHERE j.state = 'cancelled') AS cancelled, sum(j.price_final_mc)::bigint AS charged_mc INTO c
    FROM limner.batch_item i JOIN limner.job j ON j.org_id = t AND j.id = i.job_id WHERE i.org_id = t AND i.batch_id = b.id;
  UPDATE limner.batch x SET open_at = -1, succeeded = c.succeeded, failed = c.failed, cancelled = c.cancelled, charged_mc = c.charged_mc,
                            finished_at = clock_timestamp() WHERE x.org_id = t AND x.id = b.id;
  INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload, deliver_to)
  VALUES (t, p_event, b.app_id, CASE WHEN b.cancel_requested_at IS NOT NULL AND c.cancelled > 0 THEN 'batch.cancelled' ELSE 'batch.completed' END,
          b.id, json_build_object('batch_id', b.id, 'total', b.items, 'succeeded', c.succeeded, 'failed', c.failed, 'cancelled', c.cancelled,
                                  'charged_mc', c.charged_mc), b.webhook_url);
  RETURN true;
END $$;

-- ends a batch whose items have ended; whether it did. Somebody else may be at it.
CREATE FUNCTION limner.end_batch(p_ctx text, p_batch uuid, p_event uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  b limner.batch;
BEGIN
  SELECT * INTO b FROM limner.batch x WHERE x.org_id = t AND x.id = p_batch AND x.finished_at IS NULL FOR NO KEY UPDATE SKIP LOCKED;
  RETURN b.id IS NOT NULL AND limner._end_batch(t, b, p_event);
END $$;

-- Asks for a batch's end. Up to `p_most` items are closed, or, where a worker has them, asked to stop, the last ones first; a row that
-- somebody holds at this moment is left for the next call. 'requested' while anything is open, 'cancelled' when nothing is, 'already_…'
-- when the batch had ended, NULL when there is none; `still`: open items that were not asked yet.
CREATE FUNCTION limner.cancel_batch(p_ctx text, p_app uuid, p_user uuid, p_batch uuid, p_event uuid, p_most int, OUT outcome text, OUT still bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  b limner.batch;
  q limner.job_queue;
BEGIN
  SELECT * INTO b FROM limner.batch x WHERE x.org_id = t AND x.id = p_batch AND (p_app IS NULL OR x.app_id = p_app)
     AND (p_user IS NULL OR x.end_user_id = p_user) FOR NO KEY UPDATE;
  IF NOT FOUND THEN RETURN; END IF;
  still := 0;
  IF b.finished_at IS NOT NULL THEN
    outcome := CASE WHEN b.cancel_requested_at IS NOT NULL AND b.cancelled > 0 THEN 'already_cancelled' ELSE 'already_completed' END;
    RETURN;
  END IF;
  b.cancel_requested_at := coalesce(b.cancel_requested_at, clock_timestamp());
  UPDATE limner.batch x SET cancel_requested_at = b.cancel_requested_at WHERE x.org_id = t AND x.id = p_batch AND x.cancel_requested_at IS NULL;
  FOR q IN SELECT x.* FROM limner.batch_item i JOIN limner.job_queue x ON x.org_id = t AND x.job_id = i.job_id
            WHERE i.org_id = t AND i.batch_id = p_batch AND i.place <= b.open_at AND x.cancel_requested_at IS NULL
            ORDER BY i.place DESC LIMIT p_most FOR UPDATE OF x SKIP LOCKED LOOP
    IF q.lease_owner IS NULL OR q.claimable_at < clock_timestamp() THEN
      PERFORM limner._close(t, q.job_id, q.fence + 1, 'cancelled', 0, NULL, 'cancelled', 'Cancelled before it was finished.', NULL, NULL,
                            limner._new_id(), limner._new_id());
    ELSE
      UPDATE limner.job_queue x SET cancel_requested_at = b.cancel_requested_at WHERE x.org_id = t AND x.job_id = q.job_id;
    END IF;
  END LOOP;
  SELECT count(*) INTO still FROM limner.batch_item i JOIN limner.job_queue x ON x.org_id = t AND x.job_id = i.job_id
   WHERE i.org_id = t AND i.batch_id = p_batch AND i.place <= b.open_at AND x.cancel_requested_at IS NULL;
  outcome := CASE WHEN still = 0 AND limner._end_batch(t, b, p_event) THEN 'cancelled' ELSE 'requested' END;
END $$;

-- Cross-tenant, run as limner_dispatch: open batches that somebody must look at: the item that was open last has ended, or they are being
-- cancelled. One look into two indexes each; in no order, so that many that stay due hide none of the others.
CREATE FUNCTION limner.due_batches(p_most int) RETURNS TABLE (org_id uuid, batch_id uuid, cancelling boolean)
LANGUAGE sql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
  SELECT b.org_id, b.id, b.cancel_requested_at IS NOT NULL FROM limner.batch b
   WHERE b.finished_at IS NULL AND (b.cancel_requested_at IS NOT NULL OR NOT EXISTS (
     SELECT 1 FROM limner.batch_item i JOIN limner.job_queue q ON q.org_id = i.org_id AND q.job_id = i.job_id
      WHERE i.org_id = b.org_id AND i.batch_id = b.id AND i.place = b.open_at))
   ORDER BY random() LIMIT p_most;
$$;

GRANT EXECUTE ON FUNCTION limner.submit_batch TO limner_api;
GRANT EXECUTE ON FUNCTION limner.cancel_batch TO limner_api, limner_worker, limner_operator;
GRANT EXECUTE ON FUNCTION limner.end_batch TO limner_worker;
GRANT EXECUTE ON FUNCTION limner.due_batches(int) TO limner_dispatch;
RESET ROLE;
