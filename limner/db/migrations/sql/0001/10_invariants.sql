-- The books, checked. Every row must say 0. Run as limner_audit, which reads everything and writes nothing.
SET ROLE limner_owner;

-- p_org NULL: the whole installation. Each large table is read as few times as can be: transfers once by each of their sides, jobs
-- once, beside all that belongs to them. The planner expects every row to be broken: that passing on so many costs nothing makes it
-- use more than one processor.
CREATE FUNCTION limner.check_invariants(p_org uuid)
RETURNS TABLE (invariant text, violations bigint, example text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off SET work_mem = '64MB' SET parallel_tuple_cost = 0 AS $$
  WITH tr AS NOT MATERIALIZED (SELECT * FROM limner.transfer x WHERE p_org IS NULL OR x.org_id = p_org),
  jb AS NOT MATERIALIZED (SELECT * FROM limner.job x WHERE p_org IS NULL OR x.org_id = p_org),
  qu AS NOT MATERIALIZED (SELECT * FROM limner.job_queue x WHERE p_org IS NULL OR x.org_id = p_org),
  wa AS NOT MATERIALIZED (SELECT * FROM limner.wallet x WHERE p_org IS NULL OR x.org_id = p_org),
  lo AS NOT MATERIALIZED (SELECT * FROM limner.lot x WHERE p_org IS NULL OR x.org_id = p_org),
  dr AS NOT MATERIALIZED (SELECT * FROM limner.lot_draw x WHERE p_org IS NULL OR x.org_id = p_org),
  bd AS NOT MATERIALIZED (SELECT * FROM limner.book_day x WHERE p_org IS NULL OR x.org_id = p_org),
  -- a hold beside what resolved it
  holds AS MATERIALIZED (
    SELECT h.org_id, h.id, h.debit_wallet, h.amount_mc, r.kind AS resolved, r.amount_mc AS settled
      FROM tr h LEFT JOIN tr r ON r.org_id = h.org_id AND r.hold_id = h.id WHERE h.kind = 'hold'),
  -- each wallet by its transfers; its versions run 1, 2, 3 … without a gap, and the last one is the wallet's own
  moved AS MATERIALIZED (
    SELECT org_id, wallet, sum(available) AS available, max(version) AS top, count(*) AS n FROM (
      SELECT org_id, credit_wallet AS wallet, credit_version AS version, amount_mc AS available FROM tr WHERE credit_wallet IS NOT NULL
      UNION ALL SELECT org_id, debit_wallet, debit_version, CASE WHEN kind IN ('hold', 'void') THEN 0 ELSE -amount_mc END
        FROM tr WHERE debit_wallet IS NOT NULL) m GROUP BY 1, 2),
  held AS (SELECT org_id, debit_wallet AS wallet, sum(amount_mc) AS held FROM holds WHERE resolved IS NULL GROUP BY 1, 2),
  -- each job, hold and row of the queue beside the others, and what was paid back, told and used
  facts AS (
    SELECT k.id,
           (k.job IS NOT NULL OR k.queued IS NOT NULL) AND (k.job IS NULL OR k.hold IS NULL
             OR (k.finished_at IS NULL) <> (k.queued IS NOT NULL) OR (k.finished_at IS NULL) <> (k.resolved IS NULL)) AS i4,
           k.job IS NOT NULL AND k.hold IS NOT NULL AND k.finished_at IS NOT NULL
             AND (k.settled IS DISTINCT FROM k.price_final_mc OR (k.resolved = 'post') <> (k.state = 'succeeded')) AS i5,
           k.hold IS NOT NULL
             AND (k.job IS NULL OR k.price_hold_mc <> k.amount_mc OR k.wallet_id <> k.debit_wallet OR k.settled > k.amount_mc
               OR (k.queued IS NOT NULL AND (k.queue_wallet <> k.debit_wallet OR k.queue_hold_mc <> k.amount_mc))) AS i6,
           k.refunded_mc <> coalesce(r.amount, 0) OR k.refunded_mc > coalesce(k.price_final_mc, 0) AS i7,
           k.job IS NOT NULL AND (k.finished_at IS NOT NULL) <> (e.id IS NOT NULL) AS i8,
           k.deadline_at < clock_timestamp() - interval '5 minutes' AS i9,
           k.job IS NOT NULL AND coalesce(u.price, 0) <> coalesce(k.price_final_mc, 0) AS i10,
           NOT k.sound OR (k.end_user_id IS NOT NULL AND p.id IS NULL) AS i11
      FROM (SELECT coalesce(k.org_id, x.org_id) AS org_id, coalesce(k.id, x.job_id) AS id, k.job, k.hold, k.state, k.finished_at, k.price_hold_mc,
                   k.price_final_mc, k.refunded_mc, k.wallet_id, k.end_user_id, k.sound, k.debit_wallet, k.amount_mc, k.resolved, k.settled,
                   x.job_id AS queued, x.wallet_id AS queue_wallet, x.hold_mc AS queue_hold_mc, x.deadline_at
              FROM (SELECT coalesce(j.org_id, h.org_id) AS org_id, coalesce(j.id, h.id) AS id, j.id AS job, h.id AS hold, j.state, j.finished_at,
                           j.price_hold_mc, j.price_final_mc, j.refunded_mc, j.wallet_id, j.end_user_id, j.sound, h.debit_wallet, h.amount_mc,
                           h.resolved, h.settled
                      FROM (SELECT x.*, limner.job_is_sound(x) AS sound FROM limner.job x WHERE p_org IS NULL OR x.org_id = p_org) j
                      FULL JOIN holds h ON h.org_id = j.org_id AND h.id = j.id) k
              FULL JOIN qu x ON x.org_id = k.org_id AND x.job_id = k.id) k
      LEFT JOIN (SELECT org_id, job_id, sum(amount_mc) AS amount FROM tr WHERE kind = 'refund' GROUP BY 1, 2) r
        ON r.org_id = k.org_id AND r.job_id = k.id
      LEFT JOIN limner.event e ON e.org_id = k.org_id AND e.subject_id = k.id AND e.type IN ('job.completed', 'job.failed', 'job.cancelled')
      LEFT JOIN (SELECT x.org_id, x.job_id, sum(x.price_mc) AS price FROM limner.usage_record x WHERE p_org IS NULL OR x.org_id = p_org
                  GROUP BY 1, 2) u ON u.org_id = k.org_id AND u.job_id = k.id
      LEFT JOIN limner.end_user p ON p.org_id = k.org_id AND p.id = k.end_user_id),
  bad (n, id) AS (
    SELECT v.n, w.id FROM wa w
      LEFT JOIN moved m ON m.org_id = w.org_id AND m.wallet = w.id LEFT JOIN held h ON h.org_id = w.org_id AND h.wallet = w.id
     CROSS JOIN LATERAL (VALUES (1, w.available_mc + w.held_mc <> coalesce(m.available, 0) OR w.held_mc <> coalesce(h.held, 0)),
                                (2, w.version <> coalesce(m.top, 0) OR w.version <> coalesce(m.n, 0)),
                                (3, w.available_mc < 0 OR w.held_mc < 0),
                                (11, (w.owner = 'organization') <> (w.id = w.org_id))) v (n, broken) WHERE v.broken
    UNION ALL
    SELECT v.n, f.id FROM facts f
     CROSS JOIN LATERAL (VALUES (4, f.i4), (5, f.i5), (6, f.i6), (7, f.i7), (8, f.i8), (9, f.i9), (10, f.i10), (11, f.i11)) v (n, broken)
     WHERE (f.i4 OR f.i5 OR f.i6 OR f.i7 OR f.i8 OR f.i9 OR f.i10 OR f.i11) AND v.broken
    UNION ALL
    SELECT 11, x.id FROM limner.transfer x WHERE (p_org IS NULL OR x.org_id = p_org) AND NOT limner.transfer_is_sound(x)
    UNION ALL
    SELECT 11, r.id FROM tr r LEFT JOIN holds h ON h.org_id = r.org_id AND h.id = r.hold_id WHERE r.hold_id IS NOT NULL AND h.id IS NULL
    UNION ALL
    SELECT 11, m.wallet FROM moved m LEFT JOIN wa w ON w.org_id = m.org_id AND w.id = m.wallet WHERE w.id IS NULL
    UNION ALL
    SELECT 11, u.job_id
      FROM (SELECT x.org_id, x.job_id FROM limner.usage_record x WHERE p_org IS NULL OR x.org_id = p_org
            UNION SELECT x.org_id, x.job_id FROM limner.provider_call x WHERE p_org IS NULL OR x.org_id = p_org) u
      LEFT JOIN jb j ON j.org_id = u.org_id AND j.id = u.job_id WHERE j.id IS NULL
    UNION ALL
    SELECT 11, x.job_id FROM limner.provider_call x
     WHERE (p_org IS NULL OR x.org_id = p_org) AND (x.state NOT IN ('intent', 'accepted', 'done', 'error', 'unknown') OR x.cost_micro_usd < 0)
    UNION ALL
    SELECT 11, x.job_id FROM qu x WHERE x.phase = 'capped' AND x.model_id IS NULL
    UNION ALL
    SELECT 12, w.id
      FROM wa w LEFT JOIN (SELECT org_id, wallet_id, sum(remaining_mc) AS remaining, min(expires_at) AS ends FROM lo WHERE remaining_mc > 0
                            GROUP BY 1, 2) l ON l.org_id = w.org_id AND l.wallet_id = w.id
     WHERE w.lots_end IS DISTINCT FROM l.ends OR w.available_mc < coalesce(l.remaining, 0)
    UNION ALL
    SELECT 12, l.id
      FROM lo l LEFT JOIN (SELECT org_id, lot_id, sum(coalesce(used_mc, amount_mc)) AS drawn FROM dr GROUP BY 1, 2) d
        ON d.org_id = l.org_id AND d.lot_id = l.id
     WHERE l.granted_mc <> l.remaining_mc + l.gone_mc + coalesce(d.drawn, 0)
    UNION ALL
    SELECT 12, l.transfer_id
      FROM (SELECT org_id, transfer_id, wallet_id, sum(granted_mc) AS granted FROM lo GROUP BY 1, 2, 3) l
      LEFT JOIN tr x ON x.org_id = l.org_id AND x.id = l.transfer_id
     WHERE x.id IS NULL OR x.credit_wallet IS DISTINCT FROM l.wallet_id OR x.amount_mc < l.granted
    UNION ALL
    SELECT 12, coalesce(j.id, d.job_id)
      FROM (SELECT * FROM jb WHERE drew_lots) j
      FULL JOIN (SELECT d.org_id, d.job_id, sum(d.amount_mc) AS amount, sum(d.used_mc) AS used, count(*) FILTER (WHERE d.used_mc IS NULL) AS open,
                        count(*) AS n, min(l.wallet_id::text) AS wallet, max(l.wallet_id::text) AS other
                   FROM dr d JOIN lo l ON l.org_id = d.org_id AND l.id = d.lot_id GROUP BY 1, 2) d
        ON d.org_id = j.org_id AND d.job_id = j.id
     WHERE j.id IS NULL OR d.job_id IS NULL OR d.wallet <> j.wallet_id::text OR d.other <> d.wallet OR d.amount > j.price_hold_mc
        OR d.open <> CASE WHEN j.finished_at IS NULL THEN d.n ELSE 0 END OR coalesce(d.used, 0) <> least(coalesce(j.price_final_mc, 0), d.amount)
    UNION ALL
    SELECT 13, w.id
      FROM wa w LEFT JOIN (SELECT org_id, owed_wallet, sum(CASE WHEN debit_book = 'receivable' THEN amount_mc ELSE -amount_mc END) AS owed
                             FROM tr WHERE owed_wallet IS NOT NULL GROUP BY 1, 2) o ON o.org_id = w.org_id AND o.owed_wallet = w.id
     WHERE w.owed_mc <> coalesce(o.owed, 0) OR (w.owed_mc > 0 AND w.available_mc > 0)
    UNION ALL
    SELECT 14, coalesce(b.org_id, s.org_id)
      FROM bd b FULL JOIN (
        SELECT x.org_id, x.day, v.book, x.kind, sum(v.debit) AS debit, sum(v.credit) AS credit, sum(x.n) AS n
          FROM (SELECT y.org_id, (y.created_at AT TIME ZONE 'UTC')::date AS day, y.kind, y.debit_book, y.credit_book, sum(y.amount_mc) AS amount,
                       count(*) AS n
                  FROM tr y JOIN (SELECT org_id, (max(day) + 1)::timestamp AT TIME ZONE 'UTC' AS until FROM bd GROUP BY 1) c
                    ON c.org_id = y.org_id AND y.created_at < c.until
                 WHERE y.kind NOT IN ('hold', 'void') GROUP BY 1, 2, 3, 4, 5) x
         CROSS JOIN LATERAL (VALUES (x.debit_book, x.amount, 0), (x.credit_book, 0, x.amount)) v (book, debit, credit)
         WHERE v.book IS NOT NULL GROUP BY 1, 2, 3, 4) s
        ON s.org_id = b.org_id AND s.day = b.day AND s.book = b.book AND s.kind = b.kind
     WHERE b.org_id IS NULL OR s.org_id IS NULL OR (b.debit_mc, b.credit_mc, b.transfers) <> (s.debit, s.credit, s.n))
  SELECT format('I%s %s', n.n, n.name), count(b.id), min(b.id::text)
    FROM (VALUES (1, 'a wallet equals the sum of its transfers'), (2, 'every version of a wallet has its transfer'),
                 (3, 'no wallet is negative'), (4, 'open job = open hold = queue row'), (5, 'the settled amount is the job''s price'),
                 (6, 'a hold is for its own job and what the job quoted'), (7, 'refunds equal what the job says and never pass its price'),
                 (8, 'a closed job has one terminal event, an open one none'), (9, 'no job is overdue by more than five minutes'),
                 (10, 'usage records carry what was charged'), (11, 'every row is sound, and what it names exists'),
                 (12, 'lots add up, and the wallet holds what is left in them'),
                 (13, 'a debt equals its transfers, and nothing is held back from it'),
                 (14, 'a closed day equals the sum of its transfers')) n (n, name)
    LEFT JOIN bad b ON b.n = n.n GROUP BY n.n, n.name;
$$;

-- What changed since a moment: the touched jobs whole, the touched wallets by their last version. What it takes follows what changed
-- and what is open, not the book: the changed ids are gathered once, a list for each organization, and every table is asked for a whole
-- list by one look into its index (OFFSET 0 keeps the planner from reading the table instead). What was found is put together by
-- hashing: of how many rows there are the planner knows nothing, and would loop or sort.
CREATE FUNCTION limner.check_changes(p_since timestamptz)
RETURNS TABLE (violations bigint, checked bigint, example text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off SET work_mem = '64MB'
SET enable_nestloop = off SET enable_mergejoin = off SET enable_sort = off AS $$
  WITH recent AS MATERIALIZED (
    SELECT x.org_id, x.id, x.debit_wallet, x.debit_version, x.debit_available_mc, x.credit_wallet, x.credit_version, x.credit_available_mc,
           x.amount_mc, x.hold_id, x.job_id, x.owed_wallet, limner.transfer_is_sound(x) AS sound
      FROM limner.transfer x WHERE x.created_at >= p_since),
  touched AS MATERIALIZED (
    SELECT org_id, wallet, max(ARRAY[version, available]) AS last FROM (
      SELECT org_id, debit_wallet AS wallet, debit_version AS version, debit_available_mc AS available FROM recent WHERE debit_wallet IS NOT NULL
      UNION ALL SELECT org_id, credit_wallet, credit_version, credit_available_mc FROM recent WHERE credit_wallet IS NOT NULL) s GROUP BY 1, 2),
  wallets AS MATERIALIZED (SELECT org_id, array_agg(wallet) AS ids FROM touched GROUP BY 1),
  changed AS MATERIALIZED (   -- with what of the job's money is among the recent transfers
    SELECT org_id, job_id AS id, max(amount_mc) FILTER (WHERE id = job_id) AS hold_mc, max(amount_mc) FILTER (WHERE hold_id = job_id) AS settled_mc
      FROM recent WHERE job_id IS NOT NULL GROUP BY 1, 2),
  ids AS MATERIALIZED (
    SELECT org_id, array_agg(id) AS changed, array_agg(id) FILTER (WHERE hold_mc IS NULL) AS unheld,
           array_agg(id) FILTER (WHERE settled_mc IS NULL) AS unsettled FROM changed GROUP BY 1),
  jobs AS MATERIALIZED (
    SELECT k.*, q.id IS NOT NULL AS queued, (q.wallet_id, q.hold_mc) IS DISTINCT FROM (j.wallet_id, j.price_hold_mc) OR q.lineless AS misqueued, j.id AS found, j.sound, j.finished_at, j.wallet_id, j.end_user_id, j.price_hold_mc, j.price_final_mc, j.refunded_mc, j.drew_lots
      FROM changed k LEFT JOIN (SELECT x.* FROM ids CROSS JOIN LATERAL (
        SELECT x.org_id, x.id, limner.job_is_sound(x) AS sound, x.finished_at, x.wallet_id, x.end_user_id, x.price_hold_mc, x.price_final_mc,
               x.refunded_mc, x.drew_lots FROM limner.job x WHERE x.org_id = ids.org_id AND x.id = ANY (ids.changed) OFFSET 0) x) j
        ON j.org_id = k.org_id AND j.id = k.id
      LEFT JOIN (SELECT x.* FROM ids CROSS JOIN LATERAL (
        SELECT x.org_id, x.job_id AS id, x.wallet_id, x.hold_mc, x.phase = 'capped' AND x.model_id IS NULL AS lineless
          FROM limner.job_queue x WHERE x.org_id = ids.org_id AND x.job_id = ANY (ids.changed) OFFSET 0) x) q
        ON q.org_id = k.org_id AND q.id = k.id),
  hold AS (SELECT x.* FROM ids CROSS JOIN LATERAL (
    SELECT x.org_id, x.id, x.amount_mc FROM limner.transfer x WHERE x.org_id = ids.org_id AND x.id = ANY (ids.unheld) OFFSET 0) x),
  settled AS (SELECT x.* FROM ids CROSS JOIN LATERAL (
    SELECT x.org_id, x.hold_id AS id, x.amount_mc FROM limner.transfer x WHERE x.org_id = ids.org_id AND x.hold_id = ANY (ids.unsettled) OFFSET 0) x),
  ended AS (SELECT x.* FROM ids CROSS JOIN LATERAL (
    SELECT x.org_id, x.subject_id AS id FROM limner.event x WHERE x.org_id = ids.org_id AND x.subject_id = ANY (ids.changed)
       AND x.type IN ('job.completed', 'job.failed', 'job.cancelled') OFFSET 0) x),
  refunded AS (SELECT x.org_id, x.id, sum(x.amount_mc) AS amount FROM ids CROSS JOIN LATERAL (
    SELECT x.org_id, x.job_id AS id, x.amount_mc FROM limner.transfer x
     WHERE x.org_id = ids.org_id AND x.job_id = ANY (ids.changed) AND x.kind = 'refund' OFFSET 0) x GROUP BY 1, 2),
  used AS (SELECT x.org_id, x.id, sum(x.price_mc) AS price FROM ids CROSS JOIN LATERAL (
    SELECT x.org_id, x.job_id AS id, x.price_mc FROM limner.usage_record x WHERE x.org_id = ids.org_id AND x.job_id = ANY (ids.changed) OFFSET 0) x
    GROUP BY 1, 2),
  drawn AS (SELECT x.org_id, x.id, sum(x.amount_mc) AS amount, sum(x.used_mc) AS used FROM ids CROSS JOIN LATERAL (
    SELECT x.org_id, x.job_id AS id, x.amount_mc, x.used_mc FROM limner.lot_draw x WHERE x.org_id = ids.org_id AND x.job_id = ANY (ids.changed)
    OFFSET 0) x GROUP BY 1, 2),
  held AS (SELECT q.org_id, q.wallet_id AS id, sum(q.hold_mc) AS held FROM limner.job_queue q JOIN wallets w ON w.org_id = q.org_id GROUP BY 1, 2),
  lots AS (SELECT x.org_id, x.id, sum(x.remaining_mc) AS remaining, min(x.expires_at) AS ends FROM wallets w CROSS JOIN LATERAL (
    SELECT x.org_id, x.wallet_id AS id, x.remaining_mc, x.expires_at FROM limner.lot x
     WHERE x.org_id = w.org_id AND x.wallet_id = ANY (w.ids) AND x.remaining_mc > 0 OFFSET 0) x GROUP BY 1, 2),
  bad (id) AS (
    SELECT r.id FROM recent r WHERE NOT r.sound
    UNION ALL
    SELECT t.wallet FROM touched t
      LEFT JOIN (SELECT x.* FROM wallets w CROSS JOIN LATERAL (
        SELECT x.* FROM limner.wallet x WHERE x.org_id = w.org_id AND x.id = ANY (w.ids) OFFSET 0) x) w ON w.org_id = t.org_id AND w.id = t.wallet
      LEFT JOIN held h ON h.org_id = t.org_id AND h.id = t.wallet
      LEFT JOIN lots l ON l.org_id = t.org_id AND l.id = t.wallet
     WHERE w.id IS NULL OR w.version < t.last[1] OR w.available_mc < 0 OR w.held_mc < 0 OR (w.version = t.last[1] AND w.available_mc <> t.last[2])
        OR w.held_mc <> coalesce(h.held, 0) OR w.lots_end IS DISTINCT FROM l.ends OR w.available_mc < coalesce(l.remaining, 0)
        OR (w.owed_mc > 0 AND w.available_mc > 0) OR (w.owner = 'organization') <> (w.id = w.org_id)
    UNION ALL
    SELECT b.wallet FROM (SELECT DISTINCT org_id, owed_wallet AS wallet FROM recent WHERE owed_wallet IS NOT NULL) b
     WHERE (SELECT w.owed_mc FROM limner.wallet w WHERE w.org_id = b.org_id AND w.id = b.wallet)
           IS DISTINCT FROM (SELECT sum(CASE WHEN x.debit_book = 'receivable' THEN x.amount_mc ELSE -x.amount_mc END)
                               FROM limner.transfer x WHERE x.org_id = b.org_id AND x.owed_wallet = b.wallet)
    UNION ALL
    SELECT j.id FROM jobs j
      LEFT JOIN hold h ON h.org_id = j.org_id AND h.id = j.id
      LEFT JOIN settled r ON r.org_id = j.org_id AND r.id = j.id
      LEFT JOIN ended e ON e.org_id = j.org_id AND e.id = j.id
      LEFT JOIN refunded b ON b.org_id = j.org_id AND b.id = j.id
      LEFT JOIN used u ON u.org_id = j.org_id AND u.id = j.id
      LEFT JOIN drawn d ON d.org_id = j.org_id AND d.id = j.id
     WHERE j.found IS NULL OR NOT j.sound OR (j.finished_at IS NULL) <> j.queued OR (j.queued AND j.misqueued)
        OR coalesce(j.hold_mc, h.amount_mc) IS DISTINCT FROM j.price_hold_mc
        OR (j.finished_at IS NULL) <> (coalesce(j.settled_mc, r.amount_mc) IS NULL) OR coalesce(j.settled_mc, r.amount_mc) IS DISTINCT FROM j.price_final_mc
        OR (j.finished_at IS NULL) <> (e.id IS NULL) OR j.refunded_mc <> coalesce(b.amount, 0)
        OR coalesce(u.price, 0) <> coalesce(j.price_final_mc, 0) OR j.drew_lots <> (d.id IS NOT NULL)
        OR (j.drew_lots AND d.used IS DISTINCT FROM CASE WHEN j.finished_at IS NOT NULL THEN least(j.price_final_mc, d.amount) END)
    UNION ALL
    SELECT j.end_user_id FROM (SELECT DISTINCT org_id, end_user_id FROM jobs WHERE end_user_id IS NOT NULL) j
     WHERE (SELECT count(*) FROM limner.end_user u WHERE u.org_id = j.org_id AND u.id = j.end_user_id) = 0
    UNION ALL
    SELECT q.job_id FROM limner.job_queue q WHERE q.deadline_at < (SELECT clock_timestamp() - interval '5 minutes'))
  SELECT (SELECT count(*) FROM bad), (SELECT count(*) FROM touched) + (SELECT count(*) FROM changed), (SELECT min(id::text) FROM bad);
$$;
GRANT EXECUTE ON FUNCTION limner.check_invariants(uuid), limner.check_changes(timestamptz), limner.transfer_is_sound(limner.transfer),
  limner.job_is_sound(limner.job) TO limner_audit;
RESET ROLE;
