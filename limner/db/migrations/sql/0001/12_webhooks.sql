-- Webhooks out: where an app wants to hear of its events, what is owed to each such place, and how every try went. URLs are tenants'
-- data; who claims sees ids, turns and leases. Whoever changes a delivery holds its endpoint's row, and leaves its turn right.
SET ROLE limner_owner;

-- kind app: the app's own, one each, whose secret also signs what goes to a URL that one request named; its URL may be NULL. Secrets are
-- sealed for this row (limner/kit/crypto.py). turn_at: when there is something to do for it; NULL: nothing.
CREATE TABLE limner.webhook_endpoint (
  org_id          uuid NOT NULL,
  id              uuid NOT NULL,
  app_id          uuid NOT NULL,
  kind            text NOT NULL CHECK (kind IN ('app', 'extra')),
  url             text CHECK (length(url) BETWEEN 1 AND 2048),
  has_url         boolean NOT NULL GENERATED ALWAYS AS (url IS NOT NULL) STORED,
  description     text NOT NULL DEFAULT '' CHECK (length(description) <= 500),
  event_types     text[] NOT NULL DEFAULT '{}' CHECK (cardinality(event_types) <= 50),      -- empty: a job's three ends
  secret          bytea,                             -- NULL: an app's own that nobody has asked for yet
  previous_secret bytea,
  previous_until  timestamptz,
  signing_key     bytea,                             -- sealed ed25519 seed, where the app asks for v1a
  public_key      bytea CHECK (length(public_key) = 32),
  is_enabled      boolean NOT NULL DEFAULT true,     -- of its own URL
  disabled_reason text CHECK (disabled_reason IN ('gone', 'failing', 'by_hand')),
  failing_since   timestamptz,                       -- of its own URL: the first failure after the last success
  last_success_at timestamptz,
  turn_at         timestamptz,
  removed_at      timestamptz,
  created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  FOREIGN KEY (org_id, app_id) REFERENCES limner.app (org_id, id),
  CHECK (kind = 'app' OR (url IS NOT NULL AND (secret IS NOT NULL OR removed_at IS NOT NULL))),
  CHECK ((signing_key IS NULL) = (public_key IS NULL))
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX webhook_endpoint_default ON limner.webhook_endpoint (org_id, app_id) WHERE kind = 'app';
CREATE UNIQUE INDEX webhook_endpoint_url ON limner.webhook_endpoint (org_id, app_id, url) WHERE removed_at IS NULL;
CREATE INDEX webhook_endpoint_turn ON limner.webhook_endpoint (turn_at) WHERE turn_at IS NOT NULL;

-- One for each event and endpoint; its id is what receivers know it by, over retries and redeliveries. tries: of the schedule it is in,
-- which a redelivery begins anew; attempts: of all.
CREATE TABLE limner.webhook_delivery (
  org_id      uuid NOT NULL,
  id          uuid NOT NULL,
  endpoint_id uuid NOT NULL,
  event_id    uuid NOT NULL,
  per_request boolean NOT NULL DEFAULT false,        -- to the URL that the event's own request named
  phase       text NOT NULL DEFAULT 'waiting' CHECK (phase IN ('waiting', 'leased', 'delivered', 'failed')),
  attempts    int NOT NULL DEFAULT 0,
  tries       int NOT NULL DEFAULT 0,
  next_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  lease_owner text,
  lease_until timestamptz,
  fence       bigint NOT NULL DEFAULT 0,
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  finished_at timestamptz,
  PRIMARY KEY (org_id, id),
  UNIQUE (org_id, event_id, endpoint_id),
  FOREIGN KEY (org_id, endpoint_id) REFERENCES limner.webhook_endpoint (org_id, id),
  FOREIGN KEY (org_id, event_id) REFERENCES limner.event (org_id, id),
  CHECK ((phase = 'leased') = (lease_until IS NOT NULL)),
  CHECK ((phase IN ('delivered', 'failed')) = (finished_at IS NOT NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX webhook_delivery_of_endpoint ON limner.webhook_delivery (org_id, endpoint_id, id);
CREATE INDEX webhook_delivery_due ON limner.webhook_delivery (org_id, endpoint_id, per_request, next_at) WHERE phase = 'waiting';
CREATE INDEX webhook_delivery_leased ON limner.webhook_delivery (org_id, endpoint_id, lease_until) WHERE phase = 'leased';

-- no answers and no addresses: a class, a status, a time
CREATE TABLE limner.webhook_attempt (
  org_id      uuid NOT NULL,
  delivery_id uuid NOT NULL,
  n           int NOT NULL,
  at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  outcome     text NOT NULL CHECK (outcome IN ('delivered', 'http_3xx', 'http_4xx', 'http_5xx', 'timeout', 'connect_failed',
                                               'destination_not_allowed', 'internal_error')),
  status      int CHECK (status BETWEEN 100 AND 999),
  latency_ms  int NOT NULL CHECK (latency_ms >= 0),
  PRIMARY KEY (org_id, delivery_id, n),
  FOREIGN KEY (org_id, delivery_id) REFERENCES limner.webhook_delivery (org_id, id)
);

SELECT limner._protect('webhook_endpoint', 'webhook_delivery', 'webhook_attempt');

DO $$
DECLARE t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['webhook_endpoint', 'webhook_delivery'] LOOP
    EXECUTE format('CREATE POLICY dispatch ON limner.%I TO limner_dispatch USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY lookup ON limner.%I TO limner_lookup USING (true) WITH CHECK (true)', t);
  END LOOP;
END $$;
CREATE POLICY webhooks ON limner.event FOR SELECT TO limner_lookup USING (true);

GRANT SELECT ON limner.webhook_endpoint, limner.webhook_delivery, limner.webhook_attempt TO limner_api, limner_worker, limner_operator;
GRANT UPDATE (url, description, event_types, secret, previous_secret, previous_until, signing_key, public_key, is_enabled, disabled_reason,
              failing_since, turn_at, removed_at) ON limner.webhook_endpoint TO limner_api, limner_operator;
GRANT UPDATE (secret) ON limner.webhook_endpoint TO limner_worker;
GRANT SELECT (org_id, id, external_id) ON limner.end_user TO limner_worker;
GRANT SELECT (org_id, id, has_url, is_enabled, removed_at, turn_at), UPDATE (turn_at) ON limner.webhook_endpoint TO limner_dispatch;
GRANT SELECT (org_id, id, endpoint_id, per_request, phase, tries, next_at, lease_owner, lease_until, fence),
  UPDATE (phase, next_at, lease_owner, lease_until, fence) ON limner.webhook_delivery TO limner_dispatch;
GRANT SELECT (org_id, id, app_id, type, deliver_to) ON limner.event TO limner_lookup;
GRANT SELECT (org_id, id, app_id, kind, has_url, event_types, is_enabled, failing_since, turn_at, removed_at), INSERT (org_id, id, app_id, kind),
  UPDATE (turn_at) ON limner.webhook_endpoint TO limner_lookup;
GRANT SELECT (org_id, event_id, endpoint_id), INSERT (org_id, id, endpoint_id, event_id, per_request) ON limner.webhook_delivery TO limner_lookup;

-- a version 7 UUID (RFC 9562) of the database's clock: deliveries sort by age
CREATE FUNCTION limner._new_id() RETURNS uuid
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
          || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid;
$$;

-- whether an endpoint asked for events of this type; a URL of the request's own takes the place of the app's
CREATE FUNCTION limner._wanted(p_kind text, p_types text[], p_type text, p_per_request boolean) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT (p_kind = 'app' AND p_per_request) OR p_type = ANY (CASE p_types WHEN '{}' THEN ARRAY['job.completed', 'job.failed', 'job.cancelled']
                                                                   ELSE p_types END);
$$;

-- When there is something to do for an endpoint: a lease runs out, or a delivery is due and there is room among `p_most` at once. What was
-- due long ago has its turn now, not then: endpoints with a backlog go behind those that wait already.
CREATE FUNCTION limner._next_turn(p_org uuid, p_endpoint uuid, p_most int) RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT least(l.ends, CASE WHEN l.n < p_most AND w.due IS NOT NULL THEN greatest(clock_timestamp(), w.due) END)
    FROM limner.webhook_endpoint e
   CROSS JOIN LATERAL (SELECT count(*) AS n, min(d.lease_until) AS ends FROM limner.webhook_delivery d
                        WHERE d.org_id = p_org AND d.endpoint_id = p_endpoint AND d.phase = 'leased') l
   CROSS JOIN LATERAL (
     SELECT min(f.next_at) AS due FROM (VALUES (true), (false)) k (per_request) CROSS JOIN LATERAL (
       SELECT d.next_at FROM limner.webhook_delivery d
        WHERE d.org_id = p_org AND d.endpoint_id = p_endpoint AND d.phase = 'waiting' AND d.per_request = k.per_request
        ORDER BY d.next_at LIMIT 1) f
      WHERE k.per_request OR (e.is_enabled AND e.has_url)) w
   WHERE e.org_id = p_org AND e.id = p_endpoint AND e.removed_at IS NULL;
$$;
GRANT EXECUTE ON FUNCTION limner._next_turn(uuid, uuid, int) TO limner_dispatch;
GRANT EXECUTE ON FUNCTION limner._new_id(), limner._wanted(text, text[], text, boolean) TO limner_lookup;

-- Cross-tenant, run as limner_dispatch: the endpoints whose turn has come, in order, and of each what is due, while it has room. An
-- endpoint that somebody else is at is passed over; a stuck one has its places taken and costs the others nothing. p_back_s: turns that
-- came longer ago are not looked for this time (NULL: all are): the index still has what died while somebody's transaction stayed open.
-- Planned anew each time: a plan from when there was little reads all of an organization's deliveries once there are many.
CREATE FUNCTION limner.claim_deliveries(p_owner text, p_n int, p_lease_s double precision, p_most int, p_back_s double precision DEFAULT NULL)
RETURNS TABLE (org_id uuid, delivery_id uuid, fence bigint, tries int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_from timestamptz := coalesce(v_now - make_interval(secs => p_back_s), '-infinity');
  turns record;
  still int := p_n;
  room int;
  taken int;
BEGIN
  SELECT array_agg(x.org_id) AS orgs, array_agg(x.id) AS endpoints, array_agg(x.own) AS own INTO turns FROM (
    SELECT e.org_id, e.id, e.is_enabled AND e.has_url AS own FROM limner.webhook_endpoint e WHERE e.turn_at > v_from AND e.turn_at <= v_now
     ORDER BY e.turn_at LIMIT 64 FOR NO KEY UPDATE SKIP LOCKED) x;
  FOR i IN 1..coalesce(cardinality(turns.endpoints), 0) LOOP
    EXIT WHEN still <= 0;
    UPDATE limner.webhook_delivery d SET phase = 'waiting', next_at = d.lease_until, lease_owner = NULL, lease_until = NULL
     WHERE d.org_id = turns.orgs[i] AND d.endpoint_id = turns.endpoints[i] AND d.phase = 'leased' AND d.lease_until <= v_now;
    SELECT least(still, p_most - count(*)) INTO room FROM limner.webhook_delivery d
     WHERE d.org_id = turns.orgs[i] AND d.endpoint_id = turns.endpoints[i] AND d.phase = 'leased';
    IF room > 0 THEN
      RETURN QUERY
      UPDATE limner.webhook_delivery d
         SET phase = 'leased', fence = d.fence + 1, lease_owner = p_owner, lease_until = clock_timestamp() + make_interval(secs => p_lease_s)
        FROM (SELECT w.id FROM (VALUES (true), (false)) k (per_request) CROSS JOIN LATERAL (
                SELECT x.id, x.next_at FROM limner.webhook_delivery x
                 WHERE x.org_id = turns.orgs[i] AND x.endpoint_id = turns.endpoints[i] AND x.phase = 'waiting'
                   AND x.per_request = k.per_request AND x.next_at <= v_now
                 ORDER BY x.next_at LIMIT room) w
               WHERE k.per_request OR turns.own[i] ORDER BY w.next_at LIMIT room) due
       WHERE d.org_id = turns.orgs[i] AND d.id = due.id
      RETURNING d.org_id, d.id, d.fence, d.tries;
      GET DIAGNOSTICS taken = ROW_COUNT;
      still := still - taken;
    END IF;
    UPDATE limner.webhook_endpoint e SET turn_at = limner._next_turn(turns.orgs[i], turns.endpoints[i], p_most)
     WHERE e.org_id = turns.orgs[i] AND e.id = turns.endpoints[i];
  END LOOP;
END $$;
GRANT EXECUTE ON FUNCTION limner.claim_deliveries TO limner_dispatch;
RESET ROLE;

GRANT CREATE ON SCHEMA limner TO limner_lookup;
SET ROLE limner_lookup;
-- For each of these events what is owed to whom, as the relay places them, in its transaction: how many deliveries that made. The same
-- event again makes none. The OFFSET 0: an event is looked up by its key, whatever the planner knows of the table.
CREATE FUNCTION limner.queue_deliveries(p_orgs uuid[], p_events uuid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  owed record;
  made bigint;
BEGIN
  INSERT INTO limner.webhook_endpoint (org_id, id, app_id, kind)      -- an app's first request that names a URL
  SELECT x.org_id, limner._new_id(), x.app_id, 'app' FROM (
    SELECT DISTINCT p.org_id, v.app_id FROM unnest(p_orgs, p_events) p (org_id, id)
      CROSS JOIN LATERAL (SELECT e.app_id, e.deliver_to FROM limner.event e WHERE e.org_id = p.org_id AND e.id = p.id OFFSET 0) v
     WHERE v.deliver_to IS NOT NULL AND v.app_id IS NOT NULL AND NOT EXISTS (
       SELECT 1 FROM limner.webhook_endpoint e WHERE e.org_id = p.org_id AND e.app_id = v.app_id AND e.kind = 'app')) x
  ON CONFLICT DO NOTHING;
  SELECT array_agg(p.org_id) AS orgs, array_agg(p.id) AS events, array_agg(e.id) AS endpoints,
         array_agg(e.kind = 'app' AND v.deliver_to IS NOT NULL) AS per_request INTO owed
    FROM unnest(p_orgs, p_events) p (org_id, id)
    CROSS JOIN LATERAL (SELECT x.app_id, x.type, x.deliver_to FROM limner.event x WHERE x.org_id = p.org_id AND x.id = p.id OFFSET 0) v
    JOIN limner.webhook_endpoint e ON e.org_id = p.org_id AND e.app_id = v.app_id AND e.removed_at IS NULL
   WHERE limner._wanted(e.kind, e.event_types, v.type, v.deliver_to IS NOT NULL)
     AND ((e.kind = 'app' AND v.deliver_to IS NOT NULL) OR (e.is_enabled AND e.has_url));
  IF owed.events IS NULL THEN RETURN 0; END IF;
  -- a claim that set the turn before it could see these rows has ended by then, one that comes later sees them
  PERFORM 1 FROM limner.webhook_endpoint e
    WHERE (e.org_id, e.id) IN (SELECT * FROM unnest(owed.orgs, owed.endpoints)) ORDER BY e.org_id, e.id FOR NO KEY UPDATE;
  INSERT INTO limner.webhook_delivery (org_id, id, endpoint_id, event_id, per_request)
  SELECT o.org_id, limner._new_id(), o.endpoint, o.event, o.per_request
    FROM unnest(owed.orgs, owed.endpoints, owed.events, owed.per_request) o (org_id, endpoint, event, per_request)
  ON CONFLICT (org_id, event_id, endpoint_id) DO NOTHING;
  GET DIAGNOSTICS made = ROW_COUNT;
  UPDATE limner.webhook_endpoint e SET turn_at = clock_timestamp()
   WHERE (e.org_id, e.id) IN (SELECT * FROM unnest(owed.orgs, owed.endpoints)) AND (e.turn_at IS NULL OR e.turn_at > clock_timestamp());
  RETURN made;
END $$;
GRANT EXECUTE ON FUNCTION limner.queue_deliveries(uuid[], uuid[]) TO limner_dispatch;

-- for /metrics: how long the endpoint has waited whose turn came first, and at how many that are on nothing but failures arrive
CREATE FUNCTION limner.webhook_facts() RETURNS TABLE (due_s double precision, failing bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(greatest(extract(epoch FROM clock_timestamp() - (SELECT min(e.turn_at) FROM limner.webhook_endpoint e)), 0), 0)::double precision,
         (SELECT count(*) FROM limner.webhook_endpoint e WHERE e.failing_since IS NOT NULL AND e.is_enabled AND e.removed_at IS NULL);
$$;
GRANT EXECUTE ON FUNCTION limner.webhook_facts() TO limner_api, limner_dispatch, limner_operator;
RESET ROLE;
REVOKE CREATE ON SCHEMA limner FROM limner_lookup;
