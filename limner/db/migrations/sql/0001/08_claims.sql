-- Who works on what: claims, leases, progress. Run as limner_dispatch.
SET ROLE limner_owner;

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

GRANT EXECUTE ON FUNCTION limner.claim_jobs, limner.heartbeat_many, limner.report_many TO limner_dispatch;
RESET ROLE;
