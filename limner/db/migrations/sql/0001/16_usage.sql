-- What was used, by day (UTC): sums of the usage records, made afterwards (docs/decisions/0030). Nothing of this is written while a job
-- is settled. A job's records appear in the commit of its terminal event, and the log's order has no gap that fills up later: whatever
-- stands up to `seq` in an organization's log is in the sums, once; the rest is read from the records themselves.
SET ROLE limner_owner;

CREATE TABLE limner.usage_rolled (
  org_id uuid PRIMARY KEY REFERENCES limner.organization (org_id),
  seq    bigint NOT NULL DEFAULT 0 CHECK (seq >= 0)
);

-- `jobs`, `price_mc` and `cost_micro_usd` stand with the first record of a job. An attempt that did not deliver and was billed all the
-- same is of the kind failed_attempt.
CREATE TABLE limner.usage_day (
  org_id         uuid NOT NULL,
  day            date NOT NULL,
  app_id         uuid NOT NULL,
  model          text NOT NULL,
  provider       text NOT NULL,
  kind           text NOT NULL,
  unit           text NOT NULL,
  jobs           bigint NOT NULL,
  quantity       numeric NOT NULL,
  price_mc       numeric NOT NULL,
  cost_micro_usd numeric NOT NULL,
  PRIMARY KEY (org_id, day, app_id, model, provider, kind, unit),
  FOREIGN KEY (org_id, app_id) REFERENCES limner.app (org_id, id)
) WITH (fillfactor = 70);

-- the same by whose wallet paid: the end user's, or the organization's own
CREATE TABLE limner.usage_user_day (
  org_id         uuid NOT NULL,
  day            date NOT NULL,
  app_id         uuid NOT NULL,
  payer_id       uuid NOT NULL,
  model          text NOT NULL,
  provider       text NOT NULL,
  kind           text NOT NULL,
  unit           text NOT NULL,
  jobs           bigint NOT NULL,
  quantity       numeric NOT NULL,
  price_mc       numeric NOT NULL,
  cost_micro_usd numeric NOT NULL,
  PRIMARY KEY (org_id, day, app_id, payer_id, model, provider, kind, unit)
) WITH (fillfactor = 70);
CREATE INDEX usage_of_payer ON limner.usage_user_day (org_id, payer_id, day);
CREATE INDEX transfer_refunded ON limner.transfer (org_id, created_at) WHERE kind = 'refund';

SELECT limner._protect('usage_rolled', 'usage_day', 'usage_user_day');
CREATE POLICY entered ON limner.event_order FOR SELECT TO limner_owner USING (org_id = current_setting('limner.entered')::uuid);
GRANT SELECT ON limner.usage_rolled, limner.usage_day, limner.usage_user_day TO limner_api, limner_operator;
GRANT SELECT ON limner.event_relay TO limner_api, limner_operator, limner_audit;

-- What closed jobs used and what was paid for it, by day: their usage records, and their attempts that cost something for nothing.
CREATE FUNCTION limner.usage_of_jobs(p_org uuid, p_jobs uuid[])
RETURNS TABLE (day date, app_id uuid, payer_id uuid, model text, provider text, kind text, unit text, jobs bigint, quantity numeric,
               price_mc numeric, cost_micro_usd numeric)
LANGUAGE sql STABLE AS $$
  SELECT x.day, x.app_id, x.payer_id, x.model, x.provider, x.kind, x.unit, sum(x.jobs), sum(x.quantity), sum(x.price_mc), sum(x.cost)
    FROM (SELECT (u.created_at AT TIME ZONE 'UTC')::date AS day, u.app_id, coalesce(u.end_user_id, u.org_id) AS payer_id, u.model, u.provider,
                 u.kind, u.unit, (u.seq = 1)::int AS jobs, u.quantity, u.price_mc, coalesce(u.cost_micro_usd, 0) AS cost
            FROM limner.usage_record u WHERE u.org_id = p_org AND u.job_id = ANY (p_jobs)
          UNION ALL
          SELECT (coalesce(c.finished_at, c.created_at) AT TIME ZONE 'UTC')::date, j.app_id, j.wallet_id, j.model, c.provider,
                 'failed_attempt', 'attempt', 0, 1, 0, c.cost_micro_usd
            FROM limner.provider_call c
           CROSS JOIN LATERAL (SELECT y.* FROM limner.job y WHERE y.org_id = p_org AND y.id = c.job_id OFFSET 0) j
           WHERE c.org_id = p_org AND c.job_id = ANY (p_jobs) AND c.cost_micro_usd > 0 AND NOT (c.state = 'done' AND j.state = 'succeeded')) x
   GROUP BY 1, 2, 3, 4, 5, 6, 7;
$$;

-- What is not in the sums yet: jobs whose end has its place in the log behind what was rolled, or has no place yet. What it reads follows
-- what is not summed up, whatever the planner knows: both positions are plain values, which conditions of an index may be under policies,
-- and nobody may sort, so that unplaced events are found by the one index that has the relay's order.
CREATE FUNCTION limner.usage_tail(p_org uuid)
RETURNS TABLE (day date, app_id uuid, payer_id uuid, model text, provider text, kind text, unit text, jobs bigint, quantity numeric,
               price_mc numeric, cost_micro_usd numeric)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_bitmapscan = off SET enable_sort = off AS $$
  WITH placed AS MATERIALIZED (
    SELECT o.event_id, o.subject_id FROM limner.event_order o
     WHERE o.org_id = p_org AND o.seq > (SELECT coalesce(max(r.seq), 0) FROM limner.usage_rolled r WHERE r.org_id = p_org) ORDER BY o.seq),
  unplaced AS MATERIALIZED (
    SELECT e.id, e.subject_id FROM limner.event e
     WHERE e.org_id = p_org AND e.type IN ('job.completed', 'job.failed', 'job.cancelled')
       AND (e.xid, e.id) > ((SELECT w.xid FROM limner.event_relay w), (SELECT w.id FROM limner.event_relay w)) ORDER BY e.xid, e.id),
  ended AS MATERIALIZED (
    SELECT o.subject_id AS job_id FROM placed o JOIN limner.event e ON e.org_id = p_org AND e.id = o.event_id
     WHERE e.type IN ('job.completed', 'job.failed', 'job.cancelled')
    UNION ALL
    SELECT e.subject_id FROM unplaced e
     WHERE NOT EXISTS (SELECT 1 FROM limner.event_order o WHERE o.org_id = p_org AND o.subject_id = e.subject_id AND o.event_id = e.id))
  SELECT u.* FROM (SELECT array_agg(x.job_id) AS jobs FROM ended x) e CROSS JOIN LATERAL limner.usage_of_jobs(p_org, e.jobs) u;
$$;

-- Refunds of a span of days (UTC), each on the day it was given, where its job's price stands. They are few: no sums are kept.
CREATE FUNCTION limner.usage_refunds(p_org uuid, p_from date, p_to date)
RETURNS TABLE (day date, app_id uuid, payer_id uuid, model text, provider text, kind text, unit text, refunded_mc bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
  SELECT (x.created_at AT TIME ZONE 'UTC')::date, j.app_id, j.wallet_id, u.model, u.provider, u.kind, u.unit, x.amount_mc
    FROM limner.transfer x CROSS JOIN LATERAL (SELECT y.* FROM limner.job y WHERE y.org_id = p_org AND y.id = x.job_id OFFSET 0) j
   CROSS JOIN LATERAL (SELECT y.* FROM limner.usage_record y WHERE y.org_id = p_org AND y.job_id = x.job_id AND y.seq = 1 OFFSET 0) u
   WHERE x.org_id = p_org AND x.kind = 'refund' AND x.created_at >= p_from::timestamp AT TIME ZONE 'UTC'
     AND x.created_at < (p_to + 1)::timestamp AT TIME ZONE 'UTC';
$$;
GRANT EXECUTE ON FUNCTION limner.usage_of_jobs, limner.usage_tail, limner.usage_refunds TO limner_api, limner_operator, limner_audit;

-- Adds the next of an organization's ended jobs to the sums; how many events that took, 0 when there are none, or somebody else is at it.
CREATE FUNCTION limner.roll_usage(p_ctx text, p_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  rolled bigint;
  next record;
BEGIN
  INSERT INTO limner.usage_rolled (org_id) VALUES (t) ON CONFLICT DO NOTHING;
  SELECT r.seq INTO rolled FROM limner.usage_rolled r WHERE r.org_id = t FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN RETURN 0; END IF;
  SELECT max(o.seq) AS seq, count(*) AS events,
         array_agg(o.subject_id) FILTER (WHERE e.type IN ('job.completed', 'job.failed', 'job.cancelled')) AS jobs INTO next
    FROM (SELECT x.seq, x.event_id, x.subject_id FROM limner.event_order x WHERE x.org_id = t AND x.seq > rolled ORDER BY x.seq LIMIT p_most) o
    LEFT JOIN limner.event e ON e.org_id = t AND e.id = o.event_id;
  IF next.events = 0 THEN RETURN 0; END IF;
  WITH used AS MATERIALIZED (SELECT u.* FROM limner.usage_of_jobs(t, next.jobs) u),
  by_payer AS (
    INSERT INTO limner.usage_user_day AS d (org_id, day, app_id, payer_id, model, provider, kind, unit, jobs, quantity, price_mc, cost_micro_usd)
    SELECT t, u.* FROM used u
    ON CONFLICT (org_id, day, app_id, payer_id, model, provider, kind, unit) DO UPDATE
       SET jobs = d.jobs + excluded.jobs, quantity = d.quantity + excluded.quantity, price_mc = d.price_mc + excluded.price_mc,
           cost_micro_usd = d.cost_micro_usd + excluded.cost_micro_usd)
  INSERT INTO limner.usage_day AS d (org_id, day, app_id, model, provider, kind, unit, jobs, quantity, price_mc, cost_micro_usd)
  SELECT t, u.day, u.app_id, u.model, u.provider, u.kind, u.unit, sum(u.jobs), sum(u.quantity), sum(u.price_mc), sum(u.cost_micro_usd)
    FROM used u GROUP BY 2, 3, 4, 5, 6, 7
  ON CONFLICT (org_id, day, app_id, model, provider, kind, unit) DO UPDATE
     SET jobs = d.jobs + excluded.jobs, quantity = d.quantity + excluded.quantity, price_mc = d.price_mc + excluded.price_mc,
         cost_micro_usd = d.cost_micro_usd + excluded.cost_micro_usd;
  UPDATE limner.usage_rolled r SET seq = next.seq WHERE r.org_id = t;
  RETURN next.events;
END $$;
GRANT EXECUTE ON FUNCTION limner.roll_usage TO limner_worker;

-- I15, beside limner.check_invariants and run as it is: by day, and by payer and day, the sums with what is not in them yet equal the
-- records and the attempts; and both tables say the same of each day.
CREATE FUNCTION limner.check_usage(p_org uuid)
RETURNS TABLE (invariant text, violations bigint, example text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off SET work_mem = '64MB' AS $$
  WITH truth AS NOT MATERIALIZED (
    SELECT u.org_id, (u.created_at AT TIME ZONE 'UTC')::date AS day, u.app_id, coalesce(u.end_user_id, u.org_id) AS payer_id, u.model,
           u.provider, u.kind, u.unit, (u.seq = 1)::int AS jobs, u.quantity, u.price_mc, coalesce(u.cost_micro_usd, 0) AS cost
      FROM limner.usage_record u WHERE p_org IS NULL OR u.org_id = p_org
    UNION ALL
    SELECT c.org_id, (coalesce(c.finished_at, c.created_at) AT TIME ZONE 'UTC')::date, j.app_id, j.wallet_id, j.model, c.provider,
           'failed_attempt', 'attempt', 0, 1, 0, c.cost_micro_usd
      FROM limner.provider_call c JOIN limner.job j ON j.org_id = c.org_id AND j.id = c.job_id
     WHERE (p_org IS NULL OR c.org_id = p_org) AND c.cost_micro_usd > 0 AND j.finished_at IS NOT NULL
       AND NOT (c.state = 'done' AND j.state = 'succeeded')),
  tail AS MATERIALIZED (
    SELECT o.org_id, u.* FROM limner.organization o CROSS JOIN LATERAL limner.usage_tail(o.org_id) u WHERE p_org IS NULL OR o.org_id = p_org),
  days AS NOT MATERIALIZED (SELECT d.* FROM limner.usage_day d WHERE p_org IS NULL OR d.org_id = p_org),
  users AS NOT MATERIALIZED (SELECT d.* FROM limner.usage_user_day d WHERE p_org IS NULL OR d.org_id = p_org),
  bad AS (
    SELECT coalesce(a.org_id, b.org_id) AS org_id, coalesce(a.day, b.day) AS day
      FROM (SELECT t.org_id, t.day, t.app_id, t.model, t.provider, t.kind, t.unit, sum(t.jobs) AS jobs, sum(t.quantity) AS quantity,
                   sum(t.price_mc) AS price, sum(t.cost) AS cost FROM truth t GROUP BY 1, 2, 3, 4, 5, 6, 7) a
      FULL JOIN (SELECT s.org_id, s.day, s.app_id, s.model, s.provider, s.kind, s.unit, sum(s.jobs) AS jobs, sum(s.quantity) AS quantity,
                        sum(s.price_mc) AS price, sum(s.cost_micro_usd) AS cost
                   FROM (SELECT d.* FROM days d UNION ALL SELECT t.org_id, t.day, t.app_id, t.model, t.provider, t.kind, t.unit, t.jobs,
                         t.quantity, t.price_mc, t.cost_micro_usd FROM tail t) s GROUP BY 1, 2, 3, 4, 5, 6, 7) b
        ON (b.org_id, b.day, b.app_id, b.model, b.provider, b.kind, b.unit) = (a.org_id, a.day, a.app_id, a.model, a.provider, a.kind, a.unit)
     WHERE (a.jobs, a.quantity, a.price, a.cost) IS DISTINCT FROM (b.jobs, b.quantity, b.price, b.cost)
    UNION ALL
    SELECT coalesce(a.org_id, b.org_id), coalesce(a.day, b.day)
      FROM (SELECT t.org_id, t.payer_id, t.day, sum(t.jobs) AS jobs, sum(t.quantity) AS quantity, sum(t.price_mc) AS price, sum(t.cost) AS cost
              FROM truth t GROUP BY 1, 2, 3) a
      FULL JOIN (SELECT s.org_id, s.payer_id, s.day, sum(s.jobs) AS jobs, sum(s.quantity) AS quantity, sum(s.price_mc) AS price,
                        sum(s.cost_micro_usd) AS cost
                   FROM (SELECT d.org_id, d.payer_id, d.day, d.jobs, d.quantity, d.price_mc, d.cost_micro_usd FROM users d UNION ALL
                         SELECT t.org_id, t.payer_id, t.day, t.jobs, t.quantity, t.price_mc, t.cost_micro_usd FROM tail t) s GROUP BY 1, 2, 3) b
        ON (b.org_id, b.payer_id, b.day) = (a.org_id, a.payer_id, a.day)
     WHERE (a.jobs, a.quantity, a.price, a.cost) IS DISTINCT FROM (b.jobs, b.quantity, b.price, b.cost)
    UNION ALL
    SELECT coalesce(a.org_id, d.org_id), coalesce(a.day, d.day)
      FROM (SELECT u.org_id, u.day, u.app_id, u.model, u.provider, u.kind, u.unit, sum(u.jobs) AS jobs, sum(u.quantity) AS quantity,
                   sum(u.price_mc) AS price, sum(u.cost_micro_usd) AS cost FROM users u GROUP BY 1, 2, 3, 4, 5, 6, 7) a
      FULL JOIN days d
        ON (d.org_id, d.day, d.app_id, d.model, d.provider, d.kind, d.unit) = (a.org_id, a.day, a.app_id, a.model, a.provider, a.kind, a.unit)
     WHERE (a.jobs, a.quantity, a.price, a.cost) IS DISTINCT FROM (d.jobs, d.quantity, d.price_mc, d.cost_micro_usd))
  SELECT 'I15 rolled up or not, usage equals its records', count(b.org_id), min(b.org_id || ' ' || b.day) FROM bad b;
$$;
GRANT EXECUTE ON FUNCTION limner.check_usage(uuid) TO limner_audit;
RESET ROLE;
