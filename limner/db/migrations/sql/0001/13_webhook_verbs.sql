-- What a worker, an app and an operator do to endpoints and deliveries. Lock order: app, endpoint, delivery.
SET ROLE limner_owner;

-- A place for an app's events; the app's row is held, so that two at once are counted. outcome: made, exists (this URL, or the app's own:
-- `id` is it), too_many. The app's own is made without a secret: it is sealed for the id that the row turns out to have.
CREATE FUNCTION limner.add_endpoint(p_ctx text, p_app uuid, p_id uuid, p_kind text, p_url text, p_description text, p_types text[],
                                    p_secret bytea, p_signing_key bytea, p_public_key bytea, p_most int)
RETURNS TABLE (outcome text, endpoint_id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  PERFORM 1 FROM limner.app a WHERE a.org_id = t AND a.id = p_app FOR NO KEY UPDATE;
  IF NOT FOUND THEN RAISE EXCEPTION 'no such app' USING ERRCODE = 'LM404'; END IF;
  SELECT e.id INTO endpoint_id FROM limner.webhook_endpoint e
   WHERE e.org_id = t AND e.app_id = p_app AND CASE p_kind WHEN 'app' THEN e.kind = 'app' ELSE e.url = p_url AND e.removed_at IS NULL END;
  IF FOUND THEN
    outcome := 'exists';
  ELSIF p_kind = 'extra' AND p_most <= (SELECT count(*) FROM limner.webhook_endpoint e
          WHERE e.org_id = t AND e.app_id = p_app AND e.kind = 'extra' AND e.removed_at IS NULL) THEN
    outcome := 'too_many';
  ELSE
    INSERT INTO limner.webhook_endpoint (org_id, id, app_id, kind, url, description, event_types, secret, signing_key, public_key)
    VALUES (t, p_id, p_app, p_kind, p_url, p_description, p_types, p_secret, p_signing_key, p_public_key)
    ON CONFLICT (org_id, app_id) WHERE kind = 'app' DO NOTHING RETURNING id INTO endpoint_id;
    outcome := 'made';
    IF endpoint_id IS NULL THEN      -- the relay made the app's own at this moment
      SELECT e.id INTO STRICT endpoint_id FROM limner.webhook_endpoint e WHERE e.org_id = t AND e.app_id = p_app AND e.kind = 'app';
      outcome := 'exists';
    END IF;
  END IF;
  RETURN NEXT;
END $$;

-- A try's outcome, under the delivery's fence: 'stale' (somebody else has it, or it was recorded before: nothing is written), 'recorded',
-- or 'off' (its endpoint was turned off by it). p_again_s: when to try next; NULL: not again. p_gone: the receiver said 410. What goes to
-- a request's own URL says nothing about the app's.
CREATE FUNCTION limner.end_delivery(p_ctx text, p_delivery uuid, p_fence bigint, p_outcome text, p_status int, p_latency_ms int,
                                    p_again_s double precision, p_gone boolean, p_off_after_s double precision, p_event uuid)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_custom_plan AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  v_now timestamptz := clock_timestamp();
  won boolean := p_outcome = 'delivered';
  e limner.webhook_endpoint;
  d limner.webhook_delivery;
  why text;
BEGIN
  SELECT x.* INTO e FROM limner.webhook_endpoint x
   WHERE x.org_id = t AND x.id = (SELECT y.endpoint_id FROM limner.webhook_delivery y WHERE y.org_id = t AND y.id = p_delivery)
     FOR NO KEY UPDATE;
  SELECT x.* INTO d FROM limner.webhook_delivery x WHERE x.org_id = t AND x.id = p_delivery FOR NO KEY UPDATE;
  IF NOT FOUND OR d.phase <> 'leased' OR d.fence <> p_fence THEN RETURN 'stale'; END IF;
  INSERT INTO limner.webhook_attempt (org_id, delivery_id, n, at, outcome, status, latency_ms)
  VALUES (t, p_delivery, d.attempts + 1, v_now, p_outcome, p_status, p_latency_ms);
  UPDATE limner.webhook_delivery x
     SET phase = CASE WHEN won THEN 'delivered' WHEN p_again_s IS NULL THEN 'failed' ELSE 'waiting' END,
         attempts = x.attempts + 1, tries = x.tries + 1, lease_owner = NULL, lease_until = NULL,
         next_at = v_now + make_interval(secs => coalesce(p_again_s, 0)),
         finished_at = CASE WHEN won OR p_again_s IS NULL THEN v_now END
   WHERE x.org_id = t AND x.id = p_delivery;
  IF NOT d.per_request AND e.is_enabled AND NOT won AND p_outcome <> 'internal_error' THEN
    why := CASE WHEN p_gone THEN 'gone' WHEN e.failing_since < v_now - make_interval(secs => p_off_after_s) THEN 'failing' END;
  END IF;
  IF why IS NOT NULL THEN
    INSERT INTO limner.event (org_id, id, app_id, type, subject_id, payload)
    VALUES (t, p_event, e.app_id, 'webhook.endpoint_disabled', e.id, json_build_object('endpoint_id', e.id, 'reason', why));
  END IF;
  UPDATE limner.webhook_endpoint x
     SET is_enabled = x.is_enabled AND why IS NULL, disabled_reason = coalesce(why, x.disabled_reason),
         failing_since = CASE WHEN d.per_request OR p_outcome = 'internal_error' THEN x.failing_since
                              WHEN won THEN NULL ELSE coalesce(x.failing_since, v_now) END,
         last_success_at = CASE WHEN won AND NOT d.per_request THEN v_now ELSE x.last_success_at END
   WHERE x.org_id = t AND x.id = e.id;
  UPDATE limner.webhook_endpoint x SET turn_at = limner._next_turn(t, e.id, 2147483647) WHERE x.org_id = t AND x.id = e.id;
  RETURN CASE WHEN why IS NULL THEN 'recorded' ELSE 'off' END;
END $$;

-- Once more, under the same id, by a schedule that begins anew: the phase it is in then, 'off' where the endpoint is, NULL when absent.
-- p_app NULL: an operator's, over the organization's apps.
CREATE FUNCTION limner.redeliver(p_ctx text, p_app uuid, p_delivery uuid) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  e limner.webhook_endpoint;
  d limner.webhook_delivery;
BEGIN
  SELECT x.* INTO e FROM limner.webhook_endpoint x
   WHERE x.org_id = t AND (p_app IS NULL OR x.app_id = p_app) AND x.removed_at IS NULL
     AND x.id = (SELECT y.endpoint_id FROM limner.webhook_delivery y WHERE y.org_id = t AND y.id = p_delivery) FOR NO KEY UPDATE;
  IF NOT FOUND THEN RETURN NULL; END IF;
  SELECT x.* INTO d FROM limner.webhook_delivery x WHERE x.org_id = t AND x.id = p_delivery FOR NO KEY UPDATE;
  IF NOT FOUND THEN RETURN NULL; END IF;             -- forgotten at this moment
  IF NOT d.per_request AND NOT (e.is_enabled AND e.has_url) THEN RETURN 'off'; END IF;
  IF d.phase = 'leased' THEN RETURN 'leased'; END IF;
  UPDATE limner.webhook_delivery x SET phase = 'waiting', tries = 0, next_at = clock_timestamp(), finished_at = NULL
   WHERE x.org_id = t AND x.id = p_delivery;
  UPDATE limner.webhook_endpoint x SET turn_at = limner._next_turn(t, e.id, 2147483647) WHERE x.org_id = t AND x.id = e.id;
  RETURN 'waiting';
END $$;

-- What an endpoint asks for of the events of a span (its end excluded), after the event `p_after`, at most `p_limit` of them: what was not
-- delivered (also where there is no delivery: it was off, or not there yet), or with p_all everything. `last`: go on after it; NULL: that
-- was all. Events' ids begin with the time by some machine's clock, which may be a day wrong here. 'off' as in redeliver.
CREATE FUNCTION limner.redeliver_span(p_ctx text, p_app uuid, p_endpoint uuid, p_since timestamptz, p_until timestamptz, p_after uuid,
                                      p_all boolean, p_limit int)
RETURNS TABLE (outcome text, queued bigint, last uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  e limner.webhook_endpoint;
  found_ids uuid[];
BEGIN
  SELECT x.* INTO e FROM limner.webhook_endpoint x
   WHERE x.org_id = t AND x.id = p_endpoint AND (p_app IS NULL OR x.app_id = p_app) AND x.removed_at IS NULL FOR NO KEY UPDATE;
  IF NOT FOUND THEN RETURN; END IF;
  outcome := CASE WHEN e.kind = 'app' OR (e.is_enabled AND e.has_url) THEN 'queued' ELSE 'off' END;
  queued := 0;
  IF outcome = 'queued' THEN
    SELECT array_agg(x.id ORDER BY x.id) INTO found_ids FROM (
      SELECT v.id FROM limner.event v
       WHERE v.org_id = t AND v.app_id = e.app_id AND v.created_at >= p_since AND v.created_at < p_until
         AND v.id > greatest(p_after, limner._first_id(p_since - interval '1 day')) AND v.id < limner._first_id(p_until + interval '1 day')
         AND limner._wanted(e.kind, e.event_types, v.type, v.deliver_to IS NOT NULL)
         AND ((e.kind = 'app' AND v.deliver_to IS NOT NULL) OR (e.is_enabled AND e.has_url))
       ORDER BY v.id LIMIT p_limit) x;
    INSERT INTO limner.webhook_delivery AS d (org_id, id, endpoint_id, event_id, per_request)
    SELECT t, limner._new_id(), e.id, v.id, e.kind = 'app' AND v.deliver_to IS NOT NULL FROM limner.event v
     WHERE v.org_id = t AND v.id = ANY (found_ids)
    ON CONFLICT (org_id, event_id, endpoint_id) DO UPDATE SET phase = 'waiting', tries = 0, next_at = clock_timestamp(), finished_at = NULL
     WHERE d.phase IN ('waiting', 'failed') OR (p_all AND d.phase = 'delivered');
    GET DIAGNOSTICS queued = ROW_COUNT;
    last := CASE WHEN cardinality(found_ids) = p_limit THEN found_ids[p_limit] END;
    UPDATE limner.webhook_endpoint x SET turn_at = limner._next_turn(t, e.id, 2147483647) WHERE x.org_id = t AND x.id = e.id;
  END IF;
  RETURN NEXT;
END $$;

-- Forgets up to p_n deliveries, oldest first, that ended more than p_days ago (or have waited as long: their endpoint is off or gone),
-- and their tries; then endpoints that were removed as long ago and have none left. How many deliveries that were.
CREATE FUNCTION limner.forget_deliveries(p_ctx text, p_days int, p_n int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  cut timestamptz := clock_timestamp() - make_interval(days => p_days);
  old record;
BEGIN
  SELECT array_agg(x.id) AS ids, array_agg(DISTINCT x.endpoint_id) AS endpoints INTO old FROM (
    SELECT d.id, d.endpoint_id FROM limner.webhook_delivery d
     WHERE d.org_id = t AND d.id < limner._first_id(cut) AND d.phase <> 'leased' AND coalesce(d.finished_at, d.next_at) < cut
     ORDER BY d.id LIMIT p_n) x;
  IF old.ids IS NOT NULL THEN
    PERFORM 1 FROM limner.webhook_endpoint e WHERE e.org_id = t AND e.id = ANY (old.endpoints) ORDER BY e.id FOR NO KEY UPDATE;
    SELECT array_agg(d.id) AS ids, old.endpoints INTO old FROM limner.webhook_delivery d
     WHERE d.org_id = t AND d.id = ANY (old.ids) AND d.phase <> 'leased' AND coalesce(d.finished_at, d.next_at) < cut;
    DELETE FROM limner.webhook_attempt a WHERE a.org_id = t AND a.delivery_id = ANY (old.ids);
    DELETE FROM limner.webhook_delivery d WHERE d.org_id = t AND d.id = ANY (old.ids);
  END IF;
  DELETE FROM limner.webhook_endpoint e
   WHERE e.org_id = t AND e.removed_at < cut AND NOT EXISTS (
     SELECT 1 FROM limner.webhook_delivery d WHERE d.org_id = t AND d.endpoint_id = e.id);
  RETURN coalesce(cardinality(old.ids), 0);
END $$;

GRANT EXECUTE ON FUNCTION limner.add_endpoint, limner.redeliver, limner.redeliver_span TO limner_api, limner_operator;
GRANT EXECUTE ON FUNCTION limner.end_delivery, limner.forget_deliveries TO limner_worker;
RESET ROLE;
