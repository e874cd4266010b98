-- Whom a request goes to: how a model's routes are ordered, how providers fare, and how often each may be asked.
SET ROLE limner_owner;

ALTER TABLE limner.model
  ADD routing text NOT NULL DEFAULT 'priority' CHECK (routing IN ('priority', 'weight', 'cost', 'latency')),
  -- the classes of errors after which the next provider is asked
  ADD next_on text[] NOT NULL DEFAULT '{retryable,rate,auth,fatal}'
    CHECK (next_on <@ '{retryable,rate,auth,fatal,content,bad_request}'::text[] AND array_position(next_on, NULL) IS NULL);
ALTER TABLE limner.route
  ADD weight int NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 1000);
-- what the provider takes of one key, held in any window of so many seconds in proportion
ALTER TABLE limner.provider
  ADD requests_per_min int CHECK (requests_per_min BETWEEN 1 AND 1000000),
  ADD tokens_per_min bigint CHECK (tokens_per_min BETWEEN 1 AND 1000000000000),
  ADD window_s int NOT NULL DEFAULT 60 CHECK (window_s BETWEEN 1 AND 60),
  ADD CONSTRAINT provider_limit_is_one_at_least CHECK (least(requests_per_min, tokens_per_min) * window_s >= 60);
GRANT SELECT (requests_per_min, tokens_per_min, window_s) ON limner.provider TO limner_dispatch;

-- How a provider fares with one key. org_id: whose key it is; key_id: zero is the key of the installation's settings. Written when a
-- state changes and in batches, never with a call. open_until: nobody asks before it, and one probe at a time after it, until one
-- is answered and the column is NULL again. rest_until: what the provider itself asked for.
CREATE TABLE limner.provider_health (
  org_id        uuid NOT NULL,
  provider_id   uuid NOT NULL,
  key_id        uuid NOT NULL,
  state         text NOT NULL DEFAULT 'unknown' CHECK (state IN ('unknown', 'healthy', 'degraded', 'down')),
  checked_at    timestamptz,
  last_error    text,
  last_error_at timestamptz,
  latency_ms    real,
  opens         int NOT NULL DEFAULT 0,                  -- times in a row
  opened_at     timestamptz,
  open_until    timestamptz,
  rest_until    timestamptz,
  prober        uuid,
  probe_until   timestamptz,
  PRIMARY KEY (org_id, provider_id, key_id)
) WITH (fillfactor = 50);

-- Permits that were given out and may have been used: each slice counts until no call with one of them can be in the window any more.
CREATE TABLE limner.provider_slice (
  org_id      uuid NOT NULL,
  provider_id uuid NOT NULL,
  key_id      uuid NOT NULL,
  id          uuid NOT NULL,
  granted_at  timestamptz NOT NULL,
  requests    int NOT NULL CHECK (requests >= 0),
  tokens      bigint NOT NULL CHECK (tokens >= 0),
  PRIMARY KEY (org_id, provider_id, key_id, id)
) WITH (fillfactor = 50);

SELECT limner._protect('provider_health', 'provider_slice');
CREATE POLICY dispatch ON limner.provider_health TO limner_dispatch USING (true) WITH CHECK (true);
CREATE POLICY dispatch ON limner.provider_slice TO limner_dispatch USING (true) WITH CHECK (true);
CREATE POLICY platform ON limner.provider_health FOR SELECT TO limner_api, limner_worker, limner_operator
  USING (org_id = '00000000-0000-0000-0000-000000000000');
GRANT SELECT ON limner.provider_health TO limner_api, limner_worker;
GRANT SELECT, INSERT, UPDATE ON limner.provider_health TO limner_dispatch, limner_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON limner.provider_slice TO limner_dispatch;
GRANT SELECT ON limner.provider_slice TO limner_operator;

-- what the processes saw since they last told, one row a provider; an open breaker stays what it is
CREATE FUNCTION limner.note_providers(p_notes jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO limner.provider_health AS h (org_id, provider_id, key_id, state, checked_at, last_error, last_error_at, latency_ms)
  SELECT n.org, n.provider, n.key, n.state, clock_timestamp(), n.error, CASE WHEN n.error IS NOT NULL THEN clock_timestamp() END, n.latency_ms
    FROM jsonb_to_recordset(p_notes) AS n (org uuid, provider uuid, key uuid, state text, error text, latency_ms real) ORDER BY 1, 2, 3
  ON CONFLICT (org_id, provider_id, key_id) DO UPDATE
     SET state = CASE WHEN h.open_until IS NULL THEN excluded.state ELSE h.state END, checked_at = excluded.checked_at,
         last_error = coalesce(excluded.last_error, h.last_error), last_error_at = coalesce(excluded.last_error_at, h.last_error_at),
         latency_ms = CASE WHEN excluded.latency_ms IS NULL THEN h.latency_ms
                           WHEN h.latency_ms IS NULL OR h.checked_at < clock_timestamp() - interval '5 minutes' THEN excluded.latency_ms
                           ELSE h.latency_ms * 0.7 + excluded.latency_ms * 0.3 END;
$$;

-- The breaker opens, or stays open after a probe that failed (p_prober), each time for twice as long. Until when it is open; NULL: it is
-- somebody else's to probe just now.
CREATE FUNCTION limner.open_breaker(p_org uuid, p_provider uuid, p_key uuid, p_error text, p_pause_s double precision,
                                    p_most_s double precision, p_prober uuid) RETURNS double precision
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  h limner.provider_health;
  v_now timestamptz;
BEGIN
  INSERT INTO limner.provider_health (org_id, provider_id, key_id) VALUES (p_org, p_provider, p_key) ON CONFLICT DO NOTHING;
  SELECT * INTO h FROM limner.provider_health x WHERE x.org_id = p_org AND x.provider_id = p_provider AND x.key_id = p_key FOR UPDATE;
  v_now := clock_timestamp();
  IF h.open_until > v_now THEN
    h.open_until := greatest(h.open_until, CASE WHEN p_pause_s >= p_most_s THEN v_now + make_interval(secs => p_pause_s) END);
  ELSIF h.open_until IS NULL OR h.prober = p_prober THEN
    h.opens := h.opens + 1;
    h.opened_at := coalesce(h.opened_at, v_now);
    h.open_until := v_now + make_interval(secs => least(p_pause_s * 2 ^ least(h.opens - 1, 20), p_most_s));
  ELSE
    RETURN NULL;
  END IF;
  UPDATE limner.provider_health x
     SET state = 'down', checked_at = v_now, last_error = p_error, last_error_at = v_now, opens = h.opens, opened_at = h.opened_at,
         open_until = h.open_until, prober = NULL, probe_until = NULL
   WHERE x.org_id = p_org AND x.provider_id = p_provider AND x.key_id = p_key;
  RETURN extract(epoch FROM h.open_until);
END $$;

-- the right to ask a provider whose breaker is open and whose pause is over: 'probe', one at a time; 'closed'; 'open' for so long
CREATE FUNCTION limner.probe_provider(p_org uuid, p_provider uuid, p_key uuid, p_prober uuid, p_lease_s double precision)
RETURNS TABLE (verdict text, wait_s double precision)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE h limner.provider_health;
BEGIN
  UPDATE limner.provider_health x SET prober = p_prober, probe_until = clock_timestamp() + make_interval(secs => p_lease_s)
   WHERE x.org_id = p_org AND x.provider_id = p_provider AND x.key_id = p_key AND x.open_until <= clock_timestamp()
     AND coalesce(x.probe_until, '-infinity') <= clock_timestamp();
  IF FOUND THEN
    RETURN QUERY SELECT 'probe', 0::double precision;
    RETURN;
  END IF;
  SELECT * INTO h FROM limner.provider_health x WHERE x.org_id = p_org AND x.provider_id = p_provider AND x.key_id = p_key;
  RETURN QUERY SELECT CASE WHEN h.open_until IS NULL THEN 'closed' ELSE 'open' END,
                      greatest(0, extract(epoch FROM h.open_until - clock_timestamp()))::double precision;
END $$;

-- probes that are still under way: a prober that dies is followed by another one
CREATE FUNCTION limner.keep_probes(p_probers uuid[], p_lease_s double precision) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.provider_health x SET probe_until = clock_timestamp() + make_interval(secs => p_lease_s) WHERE x.prober = ANY (p_probers);
$$;

-- a probe ended: the provider answered, or (p_answered false) nothing can be said. p_prober NULL: an operator asked it.
CREATE FUNCTION limner.end_probe(p_org uuid, p_provider uuid, p_key uuid, p_prober uuid, p_answered boolean) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.provider_health x
     SET prober = NULL, probe_until = NULL, state = CASE WHEN p_answered THEN 'healthy' ELSE x.state END,
         checked_at = CASE WHEN p_answered THEN clock_timestamp() ELSE x.checked_at END,
         opens = CASE WHEN p_answered THEN 0 ELSE x.opens END, opened_at = CASE WHEN NOT p_answered THEN x.opened_at END,
         open_until = CASE WHEN NOT p_answered THEN x.open_until END
   WHERE x.org_id = p_org AND x.provider_id = p_provider AND x.key_id = p_key AND (p_prober IS NULL OR x.prober = p_prober);
$$;

-- the provider asked not to be asked for so long
CREATE FUNCTION limner.rest_provider(p_org uuid, p_provider uuid, p_key uuid, p_error text, p_seconds double precision) RETURNS double precision
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO limner.provider_health AS h (org_id, provider_id, key_id, state, checked_at, last_error, last_error_at, rest_until)
  VALUES (p_org, p_provider, p_key, 'degraded', clock_timestamp(), p_error, clock_timestamp(), clock_timestamp() + make_interval(secs => p_seconds))
  ON CONFLICT (org_id, provider_id, key_id) DO UPDATE
     SET state = CASE WHEN h.open_until IS NULL THEN 'degraded' ELSE h.state END, checked_at = excluded.checked_at,
         last_error = excluded.last_error, last_error_at = excluded.last_error_at, rest_until = greatest(h.rest_until, excluded.rest_until)
  RETURNING extract(epoch FROM h.rest_until);
$$;

-- A slice of what a provider takes of one key: a twentieth of the window's, at least what is needed. Given out only if the slices of the
-- window, and of p_slack_s before it (the longest from a grant until its last call arrives), leave room for it. NULL: no limit of that
-- kind. wait_s: nothing was given, there may be room then; -1: the call alone is more than the window takes.
CREATE FUNCTION limner.take_permits(p_org uuid, p_provider_org uuid, p_provider uuid, p_key uuid, p_id uuid, p_tokens bigint,
                                    p_slack_s double precision)
RETURNS TABLE (requests int, tokens bigint, wait_s double precision)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  most_requests int;
  most_tokens bigint;
  reach interval;
  used record;
  v_from timestamptz;
BEGIN
  INSERT INTO limner.provider_health (org_id, provider_id, key_id) VALUES (p_org, p_provider, p_key) ON CONFLICT DO NOTHING;
  PERFORM 1 FROM limner.provider_health h WHERE h.org_id = p_org AND h.provider_id = p_provider AND h.key_id = p_key FOR UPDATE;
  SELECT p.requests_per_min * p.window_s / 60, p.tokens_per_min * p.window_s / 60, make_interval(secs => p.window_s + p_slack_s)
    INTO most_requests, most_tokens, reach FROM limner.provider p WHERE p.org_id = p_provider_org AND p.id = p_provider;
  v_from := clock_timestamp() - reach;                         -- after the lock: grants are in the order of their times
  DELETE FROM limner.provider_slice s WHERE s.org_id = p_org AND s.provider_id = p_provider AND s.key_id = p_key AND s.granted_at <= v_from;
  SELECT coalesce(sum(s.requests), 0) AS requests, coalesce(sum(s.tokens), 0) AS tokens INTO used FROM limner.provider_slice s
   WHERE s.org_id = p_org AND s.provider_id = p_provider AND s.key_id = p_key;
  requests := CASE WHEN most_requests IS NOT NULL THEN least(greatest(most_requests / 20, 1), most_requests - used.requests) END;
  tokens := CASE WHEN most_tokens IS NOT NULL THEN least(greatest(most_tokens / 20, p_tokens), most_tokens - used.tokens) END;
  IF p_tokens > most_tokens THEN
    RETURN QUERY SELECT 0, 0::bigint, -1::double precision;
  ELSIF requests < 1 OR tokens < p_tokens THEN
    RETURN QUERY
    SELECT 0, 0::bigint, greatest(0.01, extract(epoch FROM min(x.granted_at) - v_from))::double precision FROM (
      SELECT s.granted_at, used.requests - sum(s.requests) OVER earlier AS requests, used.tokens - sum(s.tokens) OVER earlier AS tokens
        FROM limner.provider_slice s WHERE s.org_id = p_org AND s.provider_id = p_provider AND s.key_id = p_key
      WINDOW earlier AS (ORDER BY s.granted_at, s.id)) x
     WHERE coalesce(x.requests < most_requests, true) AND coalesce(x.tokens + p_tokens <= most_tokens, true);
  ELSE
    INSERT INTO limner.provider_slice (org_id, provider_id, key_id, id, granted_at, requests, tokens)
    VALUES (p_org, p_provider, p_key, p_id, clock_timestamp(), coalesce(requests, 0), coalesce(tokens, 0));
    RETURN QUERY SELECT requests, tokens, 0::double precision;
  END IF;
END $$;

-- permits that were never used, of slices that have run out: {org, provider, key, id, requests, tokens}
CREATE FUNCTION limner.return_permits(p_back jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.provider_slice s SET requests = greatest(0, s.requests - b.requests), tokens = greatest(0, s.tokens - b.tokens)
    FROM jsonb_to_recordset(p_back) AS b (org uuid, provider uuid, key uuid, id uuid, requests int, tokens bigint)
   WHERE s.org_id = b.org AND s.provider_id = b.provider AND s.key_id = b.key AND s.id = b.id;
$$;

GRANT EXECUTE ON FUNCTION limner.note_providers, limner.open_breaker, limner.probe_provider, limner.keep_probes, limner.end_probe,
  limner.rest_provider, limner.take_permits, limner.return_permits TO limner_dispatch;
GRANT EXECUTE ON FUNCTION limner.note_providers, limner.end_probe TO limner_operator;
RESET ROLE;

GRANT CREATE ON SCHEMA limner TO limner_lookup;
SET ROLE limner_owner;
GRANT SELECT (org_id, provider_id, key_id, state) ON limner.provider_health TO limner_lookup;
CREATE POLICY lookup ON limner.provider_health FOR SELECT TO limner_lookup USING (org_id = '00000000-0000-0000-0000-000000000000');
RESET ROLE;
SET ROLE limner_lookup;
-- how the platform's own providers fare, for /metrics
CREATE FUNCTION limner.provider_states() RETURNS TABLE (name text, state text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT p.name, coalesce(h.state, 'unknown') FROM limner.provider p
    LEFT JOIN limner.provider_health h ON h.org_id = p.org_id AND h.provider_id = p.id AND h.key_id = '00000000-0000-0000-0000-000000000000'
   WHERE p.org_id = '00000000-0000-0000-0000-000000000000' AND p.is_enabled ORDER BY p.name LIMIT 1000;
$$;
GRANT EXECUTE ON FUNCTION limner.provider_states() TO limner_api;
RESET ROLE;
REVOKE CREATE ON SCHEMA limner FROM limner_lookup;
