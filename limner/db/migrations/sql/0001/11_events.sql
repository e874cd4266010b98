-- The order of events, given once nothing older can still commit (docs/decisions/0020). Run as limner_dispatch.
SET ROLE limner_owner;

-- How far the log is put in order, over all organizations; its row's lock is what makes one relay of many.
CREATE TABLE limner.event_relay (
  only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  xid      xid8 NOT NULL DEFAULT '0',
  id       uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
INSERT INTO limner.event_relay DEFAULT VALUES;

-- An organization's events one after the other, without a gap: whoever has read up to `seq` misses nothing by asking for what is after it.
CREATE TABLE limner.event_order (
  org_id     uuid NOT NULL,
  seq        bigint NOT NULL,
  event_id   uuid NOT NULL,
  app_id     uuid,
  subject_id uuid NOT NULL,
  PRIMARY KEY (org_id, seq)
);
CREATE UNIQUE INDEX event_order_of_subject ON limner.event_order (org_id, subject_id, event_id);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON limner.event_order FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON limner.event_order EXECUTE FUNCTION limner.refuse_change();
ALTER TABLE limner.event_order ENABLE ROW LEVEL SECURITY;
ALTER TABLE limner.event_order FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON limner.event_order FOR SELECT TO limner_api, limner_worker, limner_operator USING (org_id = (SELECT limner.org()));
CREATE POLICY dispatch ON limner.event_order TO limner_dispatch USING (true) WITH CHECK (true);
CREATE POLICY audit ON limner.event_order FOR SELECT TO limner_audit USING (true);
CREATE POLICY dispatch ON limner.event FOR SELECT TO limner_dispatch USING (true);
GRANT SELECT ON limner.event_order TO limner_api, limner_worker, limner_operator, limner_audit;
GRANT SELECT, INSERT ON limner.event_order TO limner_dispatch;
GRANT SELECT (org_id, id, xid, app_id, type, subject_id, deliver_to, created_at) ON limner.event TO limner_dispatch;
GRANT SELECT ON limner.event TO limner_worker;
GRANT SELECT, UPDATE ON limner.event_relay TO limner_dispatch;

-- The next events in their order: by transaction, then by id. Only those of transactions that were begun before any that is still open, so
-- that nothing is ever found behind what has been read. `placed` NULL: somebody else is at it. `more`: there are events left, placeable or
-- not yet. `lag_s`: since the oldest of those placed.
CREATE FUNCTION limner.relay_events(p_most int, OUT placed int, OUT more boolean, OUT subjects uuid[], OUT lag_s double precision)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
  SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  w limner.event_relay;
  last record;
BEGIN
  SELECT * INTO w FROM limner.event_relay FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    more := true;
    RETURN;
  END IF;
  IF w.xid >= pg_snapshot_xmax(pg_current_snapshot()) THEN
    RAISE EXCEPTION 'the events come from another server: run limner db migrate' USING ERRCODE = 'LM409';
  END IF;
  WITH looked AS MATERIALIZED (
    SELECT e.org_id, e.id, e.xid, e.app_id, e.subject_id, e.created_at FROM limner.event e
     WHERE (e.xid, e.id) > (w.xid, w.id) AND e.xid < pg_snapshot_xmin(pg_current_snapshot())
     ORDER BY e.xid, e.id LIMIT p_most),
  -- each once: only a log that came from another server (transaction 0, see adopt_events) can hold what has its place already
  due AS MATERIALIZED (
    SELECT l.* FROM looked l
     WHERE l.xid > '0' OR NOT EXISTS (SELECT 1 FROM limner.event_order o
                                       WHERE o.org_id = l.org_id AND o.subject_id = l.subject_id AND o.event_id = l.id OFFSET 0)),
  written AS (      -- the OFFSET 0 keeps the look for the last place one an organization, whatever the planner knows of the table
    INSERT INTO limner.event_order (org_id, seq, event_id, app_id, subject_id)
    SELECT o.org_id, g.seq + n.n, n.id, n.app_id, n.subject_id
      FROM (SELECT d.org_id, array_agg(d.id ORDER BY d.xid, d.id) AS ids, array_agg(d.app_id ORDER BY d.xid, d.id) AS apps,
                   array_agg(d.subject_id ORDER BY d.xid, d.id) AS subjects FROM due d GROUP BY d.org_id) o
      CROSS JOIN LATERAL (SELECT coalesce((SELECT y.seq FROM limner.event_order y WHERE y.org_id = o.org_id ORDER BY y.seq DESC LIMIT 1), 0) AS seq OFFSET 0) g
      CROSS JOIN LATERAL unnest(o.ids, o.apps, o.subjects) WITH ORDINALITY n (id, app_id, subject_id, n))
  SELECT (SELECT count(*) FROM due) AS placed, (SELECT array_agg(DISTINCT d.subject_id) FROM due d) AS subjects,
         (SELECT array_agg(d.org_id ORDER BY d.xid, d.id) FROM due d) AS orgs, (SELECT array_agg(d.id ORDER BY d.xid, d.id) FROM due d) AS events,
         (SELECT extract(epoch FROM clock_timestamp() - min(d.created_at)) FROM due d) AS lag_s,
         l.xid, l.id INTO last FROM (SELECT 1) one LEFT JOIN (SELECT k.xid, k.id FROM looked k ORDER BY k.xid DESC, k.id DESC LIMIT 1) l ON true;
  placed := last.placed;
  subjects := last.subjects;
  lag_s := last.lag_s;
  IF placed > 0 THEN
    PERFORM limner.queue_deliveries(last.orgs, last.events);
  END IF;
  IF last.xid IS NOT NULL THEN
    UPDATE limner.event_relay r SET xid = last.xid, id = last.id WHERE r.only_one;
  END IF;
  more := EXISTS (SELECT 1 FROM limner.event e WHERE (e.xid, e.id) > (coalesce(last.xid, w.xid), coalesce(last.id, w.id)));
END $$;
GRANT EXECUTE ON FUNCTION limner.relay_events TO limner_dispatch;

-- A restored dump brings a log whose transactions another server counted. They are as old as can be, then, and the relay looks at
-- everything once more. Run by `limner db migrate`; how many events that were.
CREATE FUNCTION limner.adopt_events() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE adopted bigint;
BEGIN
  IF NOT EXISTS (SELECT 1 FROM limner.event_relay r WHERE r.xid >= pg_snapshot_xmax(pg_current_snapshot())) THEN
    RETURN 0;
  END IF;
  ALTER TABLE limner.event NO FORCE ROW LEVEL SECURITY;      -- over all organizations, for this transaction
  UPDATE limner.event SET xid = '0' WHERE xid > '0';
  GET DIAGNOSTICS adopted = ROW_COUNT;
  ALTER TABLE limner.event FORCE ROW LEVEL SECURITY;
  UPDATE limner.event_relay SET xid = '0', id = '00000000-0000-0000-0000-000000000000';
  RETURN adopted;
END $$;
RESET ROLE;
