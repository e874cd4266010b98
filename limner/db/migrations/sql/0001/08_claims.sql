-- Who works on what: claims, leases, progress. Run as limner_dispatch.
SET ROLE limner_owner;

-- below every version 7 UUID of that moment
CREATE FUNCTION limner._first_id(p_at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT rpad(lpad(to_hex(greatest(0, extract(epoch FROM p_at) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
$$;

-- Below every job that is ready now, and below those that are a minute old: where a claim may begin to look (`p_since` of claim_jobs).
CREATE FUNCTION limner.ready_since() RETURNS uuid
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE line AS (
    (SELECT q.org_id, q.app_id, q.priority, q.job_id FROM limner.job_queue q WHERE q.phase = 'ready'
      ORDER BY q.org_id, q.app_id, q.priority, q.job_id LIMIT 1)
    UNION ALL
    SELECT n.* FROM line l CROSS JOIN LATERAL (
      SELECT q.org_id, q.app_id, q.priority, q.job_id FROM limner.job_queue q
       WHERE q.phase = 'ready' AND (q.org_id, q.app_id, q.priority) > (l.org_id, l.app_id, l.priority)
       ORDER BY q.org_id, q.app_id, q.priority, q.job_id LIMIT 1) n)
  SELECT x.id FROM (SELECT l.job_id AS id FROM line l UNION ALL SELECT limner._first_id(clock_timestamp() - interval '1 minute')) x
   ORDER BY x.id LIMIT 1;
$$;

-- Jobs of models that a provider with a cap serves (`p_gated`) leave the ready line for one by model, once in their lives, so that a
-- claim can pass over a full provider's without looking at them. A line is looked at further as long as such jobs are found at its head;
-- what is behind the last look is sorted by the next claim.
CREATE FUNCTION limner.sort_line(p_gated uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
  -- a few rows, each found by its whole key, whatever the statistics said when the plan was made
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  orgs uuid[];
  apps uuid[];
BEGIN
  WITH RECURSIVE lane AS (
    (SELECT q.org_id, q.app_id FROM limner.job_queue q WHERE q.phase = 'ready' ORDER BY q.org_id, q.app_id LIMIT 1)
    UNION ALL
    SELECT n.org_id, n.app_id FROM lane l CROSS JOIN LATERAL (
      SELECT q.org_id, q.app_id FROM limner.job_queue q
       WHERE q.phase = 'ready' AND (q.org_id, q.app_id) > (l.org_id, l.app_id) ORDER BY q.org_id, q.app_id LIMIT 1) n)
  SELECT array_agg(l.org_id), array_agg(l.app_id) INTO orgs, apps FROM lane l;
  FOR look IN 1..12 LOOP
    EXIT WHEN orgs IS NULL;
    WITH head AS (
      SELECT r.* FROM unnest(orgs, apps) l (org_id, app_id) CROSS JOIN LATERAL (
        SELECT q.org_id, q.job_id, q.app_id, q.cancel_requested_at IS NULL AND q.runs < q.max_runs AS runs_on FROM limner.job_queue q
         WHERE q.phase = 'ready' AND q.org_id = l.org_id AND q.app_id = l.app_id
         ORDER BY q.priority, q.job_id LIMIT CASE look WHEN 1 THEN 8 ELSE 500 END FOR UPDATE SKIP LOCKED) r),
    sorted AS (
      UPDATE limner.job_queue q SET phase = 'capped', model_id = j.model_id FROM head h, limner.job j
       WHERE h.runs_on AND j.org_id = h.org_id AND j.id = h.job_id AND j.model_id = ANY (p_gated)
         AND q.org_id = h.org_id AND q.job_id = h.job_id RETURNING q.org_id, q.app_id)
    SELECT array_agg(s.org_id), array_agg(s.app_id) INTO orgs, apps FROM (SELECT DISTINCT x.org_id, x.app_id FROM sorted x) s;
  END LOOP;
END $$;

-- The lines by model, each with the jobs it may give now (NULL: any number), beside the room at each provider with a cap and the providers
-- of each model in order. Places are given out under a lock on the provider's row: at one that somebody else is giving out there is none now.
CREATE FUNCTION limner.open_places(OUT orgs uuid[], OUT apps uuid[], OUT models uuid[], OUT gives int[], OUT rooms jsonb, OUT servers jsonb)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE mine uuid[];
BEGIN
  WITH RECURSIVE lane AS (
    (SELECT q.org_id, q.app_id, q.model_id FROM limner.job_queue q WHERE q.phase = 'capped' ORDER BY q.org_id, q.app_id, q.model_id LIMIT 1)
    UNION ALL
    SELECT n.* FROM lane l CROSS JOIN LATERAL (
      SELECT q.org_id, q.app_id, q.model_id FROM limner.job_queue q
       WHERE q.phase = 'capped' AND (q.org_id, q.app_id, q.model_id) > (l.org_id, l.app_id, l.model_id)
       ORDER BY q.org_id, q.app_id, q.model_id LIMIT 1) n)
  SELECT array_agg(l.org_id), array_agg(l.app_id), array_agg(l.model_id) INTO orgs, apps, models FROM lane l;
  SELECT array_agg(x.id) INTO mine FROM (
    SELECT p.id FROM limner.provider p
     WHERE p.max_running IS NOT NULL AND p.is_enabled AND EXISTS (
       SELECT 1 FROM limner.route r WHERE r.provider_org = p.org_id AND r.provider_id = p.id AND r.is_enabled AND r.model_id = ANY (models))
     ORDER BY p.id FOR NO KEY UPDATE SKIP LOCKED) x;
  SELECT coalesce(jsonb_object_agg(p.id, CASE WHEN p.id = ANY (mine) THEN greatest(0, p.max_running - (
           SELECT count(*) FROM limner.job_queue q WHERE q.provider_id = p.id AND q.phase = 'leased')) ELSE 0 END), '{}') INTO rooms
    FROM limner.provider p WHERE p.max_running IS NOT NULL AND p.is_enabled;
  SELECT coalesce(jsonb_object_agg(s.model_id, s.ids), '{}') INTO servers FROM (
    SELECT r.model_id, jsonb_agg(p.id ORDER BY r.priority, p.id) AS ids
      FROM limner.route r JOIN limner.provider p ON p.org_id = r.provider_org AND p.id = r.provider_id
     WHERE r.model_id = ANY (models) AND r.is_enabled AND p.is_enabled GROUP BY 1 HAVING bool_or(p.max_running IS NOT NULL)) s;
  SELECT array_agg((SELECT CASE WHEN bool_and(rooms ? g.id) THEN sum((rooms ->> g.id)::int) END
                      FROM jsonb_array_elements_text(servers -> m.id::text) g (id)) ORDER BY m.place) INTO gives
    FROM unnest(models) WITH ORDINALITY m (id, place);
END $$;

-- Cross-tenant, run as limner_dispatch: sees ids, keys and leases, never a payload. What is due again joins the line; organizations with
-- a cap are locked, so that two claims cannot both fill it (one that another claim is at is passed over), and so are providers with one;
-- then the claim. Overdue rows first. The rest goes to organizations by weighted fair sharing of the places they take: who has fewer jobs running
-- for its weight is served first, drawing lots (by weight) among equals; inside an organization the same between its apps; inside an app
-- by priority, then age. A paused or full organization or app, or a full provider, holds nobody up behind it.
-- `p_back_s`: of the leases that ran out only those of so many seconds are looked for (NULL: all). While a transaction of somebody else's
-- stays open, the index still has every lease there was since, and each is walked past. So it has what was ready: `p_since` (ready_since;
-- NULL: from the first on) lets the index itself pass over what is older, without a look at the rows.
CREATE FUNCTION limner.claim_jobs(p_owner text, p_n int, p_lease_s double precision, p_cap int DEFAULT NULL, p_back_s double precision DEFAULT NULL,
                                  p_since uuid DEFAULT NULL)
RETURNS TABLE (org_id uuid, job_id uuid, app_id uuid, fence bigint, run int, exhausted text, deadline_in_s double precision, waited_ms double precision)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();   -- a value: a function that moves cannot bound a scan of an index
  v_from timestamptz := coalesce(v_now - make_interval(secs => p_back_s), '-infinity');
  v_since uuid := coalesce(p_since, '00000000-0000-0000-0000-000000000000');
  mine uuid[];             -- of the organizations with a cap, or an app with one: those this claim may serve under it
  capped boolean := p_cap IS NOT NULL OR EXISTS (SELECT 1 FROM limner.queue_policy p WHERE p.max_running IS NOT NULL);
  gated uuid[];            -- models that a provider with a cap serves; NULL: no provider has one, nor has anything in line been sorted
  lines record;            -- what open_places says of them
  turns record;            -- candidates in their turn, more than are taken where some may get no place
  v_orgs uuid[];           -- who gets a lease, and a place where
  v_jobs uuid[];
  v_places uuid[];
  unsorted uuid[];         -- of the candidates, those that a later claim sorts
  v_at text;
BEGIN
  WITH deferred AS (
    SELECT d.org_id, d.job_id FROM limner.job_queue d WHERE d.phase = 'deferred' AND d.claimable_at <= v_now
     ORDER BY d.claimable_at LIMIT 500 FOR UPDATE SKIP LOCKED),
  expired AS (
    SELECT l.org_id, l.job_id FROM limner.job_queue l WHERE l.phase = 'leased' AND l.claimable_at > v_from AND l.claimable_at <= v_now
     ORDER BY l.claimable_at LIMIT 500 FOR UPDATE SKIP LOCKED)
  -- the rows are looked up by their keys one by one (OFFSET 0): while dead rows cannot go, the planner takes the queue for one that is
  -- next to empty, and would join it by reading an index from end to end
  UPDATE limner.job_queue q SET phase = 'ready' FROM (SELECT * FROM deferred UNION ALL SELECT * FROM expired) due
    CROSS JOIN LATERAL (SELECT x.ctid AS place FROM limner.job_queue x WHERE x.org_id = due.org_id AND x.job_id = due.job_id OFFSET 0) x
   WHERE q.ctid = x.place;
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
  IF EXISTS (SELECT 1 FROM limner.provider p WHERE p.max_running IS NOT NULL) OR EXISTS (SELECT 1 FROM limner.job_queue q WHERE q.phase = 'capped') THEN
    SELECT coalesce(array_agg(DISTINCT r.model_id), '{}') INTO gated
      FROM limner.provider p JOIN limner.route r ON r.provider_org = p.org_id AND r.provider_id = p.id
     WHERE p.max_running IS NOT NULL AND p.is_enabled AND r.is_enabled;
    PERFORM limner.sort_line(gated);
    SELECT * INTO lines FROM limner.open_places();
  ELSE
    SELECT NULL::uuid[] AS orgs, NULL::uuid[] AS apps, NULL::uuid[] AS models, NULL::int[] AS gives INTO lines;
  END IF;
  WITH RECURSIVE
  overdue AS (
    SELECT q.org_id, q.job_id FROM limner.job_queue q
     WHERE q.deadline_at < v_now AND q.claimable_at <= v_now
     ORDER BY q.deadline_at LIMIT least(20, p_n) FOR UPDATE SKIP LOCKED),
  lane AS (               -- a loose index scan: the distinct (organization, app) pairs that have something ready, and the first of each
    (SELECT q.org_id, q.app_id, q.priority, q.job_id FROM limner.job_queue q WHERE q.phase = 'ready' AND q.job_id >= v_since
      ORDER BY q.org_id, q.app_id, q.priority, q.job_id LIMIT 1)
    UNION ALL
    SELECT n.* FROM lane l CROSS JOIN LATERAL (
      SELECT q.org_id, q.app_id, q.priority, q.job_id FROM limner.job_queue q
       WHERE q.phase = 'ready' AND (q.org_id, q.app_id) > (l.org_id, l.app_id) AND q.job_id >= v_since ORDER BY q.org_id, q.app_id, q.priority, q.job_id LIMIT 1) n),
  line AS (               -- beside those the lines by model, each as far as there is room for its jobs
    SELECT m.* FROM unnest(lines.orgs, lines.apps, lines.models, lines.gives) m (org_id, app_id, model_id, gives)
     WHERE m.gives IS NULL OR m.gives > 0),
  waiting AS (SELECT l.org_id, l.app_id FROM lane l UNION SELECT m.org_id, m.app_id FROM line m),
  busy AS MATERIALIZED (
    SELECT b.org_id, b.app_id, count(*)::int AS n      -- apart from the grouping, whose order another index would bring
      FROM (SELECT q.org_id, q.app_id FROM limner.job_queue q WHERE q.phase = 'leased' AND q.claimable_at > v_now OFFSET 0) b GROUP BY 1, 2),
  busy_org AS (SELECT b.org_id, sum(b.n)::int AS n FROM busy b GROUP BY 1),
  share AS MATERIALIZED (    -- each organization in line: its weight, what it may still take, and its lot
    SELECT d.org_id, coalesce(o.weight, 1) AS weight, coalesce(b.n, 0) AS n, coalesce(o.max_running, p_cap) - coalesce(b.n, 0) AS room,
           -ln(1 - random()) AS lot
      FROM (SELECT DISTINCT l.org_id FROM waiting l) d
      LEFT JOIN limner.queue_policy o ON o.org_id = d.org_id AND o.app_id = d.org_id
      LEFT JOIN busy_org b ON b.org_id = d.org_id
     WHERE o.paused_at IS NULL AND (coalesce(o.max_running, p_cap) IS NULL OR (d.org_id = ANY (mine) AND coalesce(o.max_running, p_cap) > coalesce(b.n, 0)))
       AND NOT EXISTS (SELECT 1 FROM limner.queue_policy e WHERE e.org_id = limner.platform() AND e.app_id = limner.platform() AND e.paused_at IS NOT NULL)),
  open_lane AS MATERIALIZED (
    SELECT l.org_id, l.app_id, coalesce(a.weight, 1) AS weight, coalesce(b.n, 0) AS n,
           least(s.room, a.max_running - coalesce(b.n, 0), p_n) AS room, s.n AS org_n, s.weight AS org_weight, s.room AS org_room, s.lot,
           s.weight::float8 * coalesce(a.weight, 1) / sum(coalesce(a.weight, 1)) OVER (PARTITION BY l.org_id) AS part
      FROM waiting l JOIN share s ON s.org_id = l.org_id
      LEFT JOIN limner.queue_policy a ON a.org_id = l.org_id AND a.app_id = l.app_id AND a.app_id <> a.org_id
      LEFT JOIN busy b ON b.org_id = l.org_id AND b.app_id = l.app_id
     WHERE a.paused_at IS NULL AND (a.max_running IS NULL OR (l.org_id = ANY (mine) AND a.max_running > coalesce(b.n, 0)))),
  level AS MATERIALIZED (    -- how many each would run, by weight, if all were level after this claim
    SELECT (sum(l.part * l.org_n / l.org_weight) + p_n) / sum(l.part) AS height FROM open_lane l),
  sized AS MATERIALIZED (    -- how deep to look into each: organizations below the level may need all places between them
    SELECT l.*, greatest(4, ceil(CASE WHEN l.low THEN 2.0 * p_n * l.part / sum(l.part) FILTER (WHERE l.low) OVER ()
                                      ELSE p_n * l.part / sum(l.part) OVER () END))::int AS depth
      FROM (SELECT x.*, x.org_n < x.org_weight * v.height AS low FROM open_lane x CROSS JOIN level v) l),
  near AS (               -- each with all that its turn depends on: joined to `share` later, every organization's would be sorted anew
                          -- (+ interval '0': no index by deadlines, which nearly all are ahead)
    SELECT l.*, r.job_id, r.priority, NULL::uuid AS model_id
      FROM sized l JOIN lane f ON f.org_id = l.org_id AND f.app_id = l.app_id CROSS JOIN LATERAL (
        SELECT q.job_id, q.priority FROM limner.job_queue q         -- from the first on: what is dead before it was walked past once
         WHERE q.phase = 'ready' AND q.org_id = l.org_id AND q.app_id = l.app_id AND (q.priority, q.job_id) >= (f.priority, f.job_id)
           AND q.deadline_at + interval '0' >= v_now AND q.job_id >= v_since
         ORDER BY q.priority, q.job_id
         LIMIT least(l.room, l.depth)
           FOR UPDATE SKIP LOCKED) r
    UNION ALL
    SELECT l.*, r.job_id, r.priority, m.model_id
      FROM line m JOIN sized l ON l.org_id = m.org_id AND l.app_id = m.app_id CROSS JOIN LATERAL (
        SELECT q.job_id, q.priority FROM limner.job_queue q
         WHERE q.phase = 'capped' AND q.org_id = m.org_id AND q.app_id = m.app_id AND q.model_id = m.model_id AND q.deadline_at + interval '0' >= v_now
         ORDER BY q.priority, q.job_id
         LIMIT least(l.room, l.depth, m.gives)
           FOR UPDATE SKIP LOCKED) r),
  head AS (
    SELECT l.*, (l.n + row_number() OVER (PARTITION BY l.org_id, l.app_id ORDER BY l.priority, l.job_id))::float8 / l.weight AS app_turn
      FROM near l),
  turn AS (
    SELECT h.*, row_number() OVER (PARTITION BY h.org_id ORDER BY h.app_turn, h.priority, h.job_id) AS place FROM head h),
  chosen AS (
    SELECT c.org_id, c.job_id, c.model_id FROM (
      SELECT o.org_id, o.job_id, NULL::uuid AS model_id, -1::float8 AS turn, 0::float8 AS lot FROM overdue o
      UNION ALL
      SELECT t.org_id, t.job_id, t.model_id, (t.org_n + t.place - 1)::float8 / t.org_weight, t.lot / t.org_weight FROM turn t
       WHERE t.org_room IS NULL OR t.place <= t.org_room) c
     ORDER BY c.turn, c.lot LIMIT CASE WHEN gated IS NULL THEN p_n END)
  SELECT array_agg(c.org_id) AS orgs, array_agg(c.job_id) AS jobs, array_agg(c.model_id) AS models INTO turns FROM chosen c;
  v_orgs := turns.orgs;
  v_jobs := turns.jobs;
  IF gated IS NOT NULL THEN
    SELECT coalesce(array_agg(q.job_id), '{}') INTO unsorted   -- not asked above: what may be NULL there costs a plan for each claim
      FROM unnest(v_orgs, v_jobs, turns.models) c (org_id, job_id, model_id)
      JOIN limner.job_queue q ON q.org_id = c.org_id AND q.job_id = c.job_id AND q.phase = 'ready' AND q.deadline_at + interval '0' >= v_now
      JOIN limner.job j ON j.org_id = c.org_id AND j.id = c.job_id
     WHERE c.model_id IS NULL AND q.cancel_requested_at IS NULL AND q.runs < q.max_runs AND j.model_id = ANY (gated);
    v_orgs := '{}';
    v_jobs := '{}';
    FOR i IN 1..coalesce(cardinality(turns.jobs), 0) LOOP
      EXIT WHEN cardinality(v_jobs) = p_n;
      CONTINUE WHEN turns.jobs[i] = ANY (unsorted);
      v_at := NULL;
      IF lines.servers ? turns.models[i]::text THEN          -- at the first of its providers that has room; else it waits
        SELECT g.id INTO v_at FROM jsonb_array_elements_text(lines.servers -> turns.models[i]::text) WITH ORDINALITY g (id, n)
         WHERE coalesce((lines.rooms ->> g.id)::int, 1) > 0 ORDER BY g.n LIMIT 1;
        CONTINUE WHEN v_at IS NULL;
        IF lines.rooms ? v_at THEN
          lines.rooms := jsonb_set(lines.rooms, ARRAY[v_at], to_jsonb((lines.rooms ->> v_at)::int - 1));
        END IF;
      END IF;
      v_orgs := v_orgs || turns.orgs[i];
      v_jobs := v_jobs || turns.jobs[i];
      v_places := v_places || v_at::uuid;
    END LOOP;
  END IF;
  RETURN QUERY
  UPDATE limner.job_queue q
     SET fence = q.fence + 1, runs = q.runs + 1, lease_owner = p_owner, phase = 'leased', provider_id = c.provider_id,
         claimable_at = clock_timestamp() + make_interval(secs => p_lease_s)
    FROM unnest(v_orgs, v_jobs, v_places) c (org_id, job_id, provider_id)      -- all of them locked above
    CROSS JOIN LATERAL (SELECT x.ctid AS place FROM limner.job_queue x WHERE x.org_id = c.org_id AND x.job_id = c.job_id OFFSET 0) x
   WHERE q.ctid = x.place
  RETURNING q.org_id, q.job_id, q.app_id, q.fence, q.runs,
            CASE WHEN q.cancel_requested_at IS NOT NULL THEN 'cancelled'
                 WHEN q.deadline_at < clock_timestamp() THEN 'deadline_exceeded'
                 WHEN q.runs > q.max_runs THEN 'runs_exhausted' END,
            extract(epoch FROM q.deadline_at - clock_timestamp())::double precision,
            extract(epoch FROM clock_timestamp() - q.created_at)::double precision * 1000;
END $$;

-- all of a worker's leases in one statement, as limner_dispatch: renewed where the fence still matches. What had a place at a provider and
-- ran out has it no more, and is lost.
CREATE FUNCTION limner.heartbeat_many(p_orgs uuid[], p_jobs uuid[], p_fences bigint[], p_lease_s double precision)
RETURNS TABLE (job_id uuid, verdict text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  WITH mine AS (SELECT * FROM unnest(p_orgs, p_jobs, p_fences) m (org_id, job_id, fence)),
  renewed AS (
    UPDATE limner.job_queue q SET claimable_at = clock_timestamp() + make_interval(secs => p_lease_s), phase = 'leased'
      FROM mine m WHERE q.org_id = ANY (p_orgs) AND q.job_id = ANY (p_jobs)      -- its key bounds the look, however empty it seems
         AND q.org_id = m.org_id AND q.job_id = m.job_id AND q.fence = m.fence AND q.lease_owner IS NOT NULL
         AND (q.provider_id IS NULL OR q.phase = 'leased')
    RETURNING q.job_id, q.cancel_requested_at)
  SELECT m.job_id, CASE WHEN r.job_id IS NULL THEN 'lost' WHEN r.cancel_requested_at IS NULL THEN 'ok' ELSE 'cancel' END
    FROM mine m LEFT JOIN renewed r ON r.job_id = m.job_id;
$$;

-- progress of live runs, as limner_dispatch; a stale fence writes nothing
CREATE FUNCTION limner.report_many(p_orgs uuid[], p_jobs uuid[], p_fences bigint[], p_percents int[], p_stages text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.job_queue q SET percent = m.percent, stage = m.stage
    FROM unnest(p_orgs, p_jobs, p_fences, p_percents, p_stages) m (org_id, job_id, fence, percent, stage)
   WHERE q.org_id = ANY (p_orgs) AND q.job_id = ANY (p_jobs)
     AND q.org_id = m.org_id AND q.job_id = m.job_id AND q.fence = m.fence AND q.lease_owner IS NOT NULL;
$$;

GRANT EXECUTE ON FUNCTION limner.claim_jobs, limner.ready_since, limner._first_id, limner.sort_line, limner.open_places, limner.heartbeat_many, limner.report_many TO limner_dispatch;
RESET ROLE;

GRANT CREATE ON SCHEMA limner TO limner_lookup;
SET ROLE limner_lookup;
-- for a call that is about to be born with a provider, and a job that is about to move to another one than it has its place at: 'free' (no cap, or room, and nobody else gets a place
-- there before this transaction ends) or 'full'
CREATE FUNCTION limner.find_place(p_org uuid, p_provider uuid) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE most int;
BEGIN
  SELECT p.max_running INTO most FROM limner.provider p WHERE p.org_id IN (p_org, limner.platform()) AND p.id = p_provider;
  IF most IS NULL THEN RETURN 'free'; END IF;
  IF (SELECT count(*) FROM limner.job_queue q WHERE q.provider_id = p_provider AND q.phase = 'leased') >= most THEN
    RETURN 'full';                                   -- nobody waits for the lock to hear that
  END IF;
  SELECT p.max_running INTO most FROM limner.provider p WHERE p.org_id IN (p_org, limner.platform()) AND p.id = p_provider FOR NO KEY UPDATE;
  RETURN CASE WHEN (SELECT count(*) FROM limner.job_queue q WHERE q.provider_id = p_provider AND q.phase = 'leased') >= most
              THEN 'full' ELSE 'free' END;
END $$;
GRANT EXECUTE ON FUNCTION limner.find_place(uuid, uuid) TO limner_owner;

-- the providers that have a cap, and how many places are taken there: for operators
CREATE FUNCTION limner.provider_facts() RETURNS TABLE (org_id uuid, name text, is_enabled boolean, max_running int, running bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT p.org_id, p.name, p.is_enabled, p.max_running,
         (SELECT count(*) FROM limner.job_queue q WHERE q.provider_id = p.id AND q.phase = 'leased')
    FROM limner.provider p WHERE p.max_running IS NOT NULL ORDER BY p.name, p.org_id LIMIT 1000;
$$;
GRANT EXECUTE ON FUNCTION limner.provider_facts() TO limner_operator;
RESET ROLE;
REVOKE CREATE ON SCHEMA limner FROM limner_lookup;
