-- The books, checked. Every row must say 0. Run as limner_audit, which reads everything and writes nothing.
SET ROLE limner_owner;

-- p_org NULL: the whole installation
CREATE FUNCTION limner.check_invariants(p_org uuid)
RETURNS TABLE (invariant text, violations bigint, example text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH tr AS NOT MATERIALIZED (SELECT * FROM limner.transfer x WHERE p_org IS NULL OR x.org_id = p_org),
  jb AS NOT MATERIALIZED (SELECT * FROM limner.job x WHERE p_org IS NULL OR x.org_id = p_org),
  qu AS NOT MATERIALIZED (SELECT * FROM limner.job_queue x WHERE p_org IS NULL OR x.org_id = p_org),
  wa AS NOT MATERIALIZED (SELECT * FROM limner.wallet x WHERE p_org IS NULL OR x.org_id = p_org),
  lo AS NOT MATERIALIZED (SELECT * FROM limner.lot x WHERE p_org IS NULL OR x.org_id = p_org),
  dr AS NOT MATERIALIZED (SELECT * FROM limner.lot_draw x WHERE p_org IS NULL OR x.org_id = p_org),
  bd AS NOT MATERIALIZED (SELECT * FROM limner.book_day x WHERE p_org IS NULL OR x.org_id = p_org),
  -- a hold beside what resolved it
  holds AS (
    SELECT h.org_id, h.id, h.debit_wallet, h.amount_mc, r.kind AS resolved, r.amount_mc AS settled
      FROM tr h LEFT JOIN tr r ON r.org_id = h.org_id AND r.hold_id = h.id WHERE h.kind = 'hold'),
  moved AS (
    SELECT org_id, wallet, sum(available)::bigint AS available, sum(held)::bigint AS held FROM (
      SELECT org_id, credit_wallet AS wallet, amount_mc AS available, 0::bigint AS held FROM tr WHERE credit_wallet IS NOT NULL
      UNION ALL SELECT org_id, debit_wallet, -amount_mc, 0 FROM tr WHERE debit_wallet IS NOT NULL AND kind NOT IN ('hold', 'void')
      UNION ALL SELECT org_id, debit_wallet, -amount_mc, amount_mc FROM holds WHERE resolved IS NULL) m GROUP BY 1, 2),
  chain AS (              -- each wallet's versions run 1, 2, 3 … without a gap, and the last one is the wallet's own
    SELECT org_id, wallet, count(*) AS n, max(version) AS top FROM (
      SELECT org_id, debit_wallet AS wallet, debit_version AS version FROM tr WHERE debit_wallet IS NOT NULL
      UNION ALL SELECT org_id, credit_wallet, credit_version FROM tr WHERE credit_wallet IS NOT NULL) c GROUP BY 1, 2),
  bad (invariant, id) AS (
    SELECT 'I1 a wallet equals the sum of its transfers', w.id FROM wa w LEFT JOIN moved m ON m.org_id = w.org_id AND m.wallet = w.id
     WHERE w.available_mc <> coalesce(m.available, 0) OR w.held_mc <> coalesce(m.held, 0)
    UNION ALL
    SELECT 'I2 every version of a wallet has its transfer', w.id FROM wa w LEFT JOIN chain c ON c.org_id = w.org_id AND c.wallet = w.id
     WHERE w.version <> coalesce(c.top, 0) OR w.version <> coalesce(c.n, 0)
    UNION ALL
    SELECT 'I3 no wallet is negative', w.id FROM wa w WHERE w.available_mc < 0 OR w.held_mc < 0
    UNION ALL
    SELECT 'I4 open job = open hold = queue row', coalesce(j.id, q.job_id)
      FROM jb j LEFT JOIN holds h ON h.org_id = j.org_id AND h.id = j.id
      FULL JOIN qu q ON q.org_id = j.org_id AND q.job_id = j.id
     WHERE j.id IS NULL OR h.id IS NULL OR (j.finished_at IS NULL) <> (q.job_id IS NOT NULL) OR (j.finished_at IS NULL) <> (h.resolved IS NULL)
    UNION ALL
    SELECT 'I5 the settled amount is the job''s price', j.id FROM jb j JOIN holds h ON h.org_id = j.org_id AND h.id = j.id
     WHERE j.finished_at IS NOT NULL AND (h.settled IS DISTINCT FROM j.price_final_mc OR (h.resolved = 'post') <> (j.state = 'succeeded'))
    UNION ALL
    SELECT 'I6 a hold is for its own job and what the job quoted', h.id FROM holds h LEFT JOIN jb j ON j.org_id = h.org_id AND j.id = h.id
     WHERE j.id IS NULL OR j.price_hold_mc <> h.amount_mc OR j.wallet_id <> h.debit_wallet OR h.settled > h.amount_mc
    UNION ALL
    SELECT 'I7 refunds equal what the job says and never pass its price', j.id
      FROM jb j LEFT JOIN (SELECT org_id, job_id, sum(amount_mc) AS amount FROM tr WHERE kind = 'refund' GROUP BY 1, 2) r
        ON r.org_id = j.org_id AND r.job_id = j.id
     WHERE j.refunded_mc <> coalesce(r.amount, 0) OR j.refunded_mc > coalesce(j.price_final_mc, 0)
    UNION ALL
    SELECT 'I8 a closed job has one terminal event, an open one none', j.id
      FROM jb j LEFT JOIN limner.event e ON e.org_id = j.org_id AND e.subject_id = j.id
                 AND e.type IN ('job.completed', 'job.failed', 'job.cancelled')
     WHERE (j.finished_at IS NOT NULL) <> (e.id IS NOT NULL)
    UNION ALL
    SELECT 'I9 no job is overdue by more than five minutes', q.job_id FROM qu q WHERE q.deadline_at < clock_timestamp() - interval '5 minutes'
    UNION ALL
    SELECT 'I10 usage records carry what was charged', j.id
      FROM jb j LEFT JOIN (SELECT org_id, job_id, sum(price_mc) AS price FROM limner.usage_record GROUP BY 1, 2) u
        ON u.org_id = j.org_id AND u.job_id = j.id
     WHERE coalesce(u.price, 0) <> coalesce(j.price_final_mc, 0)
    UNION ALL
    SELECT 'I11 every row is sound, and what it names exists', x.id FROM limner.transfer x
     WHERE (p_org IS NULL OR x.org_id = p_org) AND NOT limner.transfer_is_sound(x)
    UNION ALL
    SELECT 'I11 every row is sound, and what it names exists', r.id FROM tr r
      LEFT JOIN tr h ON h.org_id = r.org_id AND h.id = r.hold_id AND h.kind = 'hold' WHERE r.hold_id IS NOT NULL AND h.id IS NULL
    UNION ALL
    SELECT 'I11 every row is sound, and what it names exists', j.id FROM limner.job j
      LEFT JOIN limner.end_user e ON e.org_id = j.org_id AND e.id = j.end_user_id
     WHERE (p_org IS NULL OR j.org_id = p_org) AND (NOT limner.job_is_sound(j) OR (j.end_user_id IS NOT NULL AND e.id IS NULL))
    UNION ALL
    SELECT 'I11 every row is sound, and what it names exists', m.wallet FROM moved m
      LEFT JOIN wa w ON w.org_id = m.org_id AND w.id = m.wallet WHERE w.id IS NULL
    UNION ALL
    SELECT 'I11 every row is sound, and what it names exists', u.job_id
      FROM (SELECT x.org_id, x.job_id FROM limner.usage_record x WHERE p_org IS NULL OR x.org_id = p_org
            UNION SELECT x.org_id, x.job_id FROM limner.provider_call x WHERE p_org IS NULL OR x.org_id = p_org) u
      LEFT JOIN jb j ON j.org_id = u.org_id AND j.id = u.job_id WHERE j.id IS NULL
    UNION ALL
    SELECT 'I12 lots add up, and the wallet holds what is left in them', w.id
      FROM wa w LEFT JOIN (SELECT org_id, wallet_id, sum(remaining_mc) AS remaining, min(expires_at) AS ends FROM lo WHERE remaining_mc > 0
                            GROUP BY 1, 2) l ON l.org_id = w.org_id AND l.wallet_id = w.id
     WHERE w.lots_end IS DISTINCT FROM l.ends OR w.available_mc < coalesce(l.remaining, 0)
    UNION ALL
    SELECT 'I12 lots add up, and the wallet holds what is left in them', l.id
      FROM lo l LEFT JOIN (SELECT org_id, lot_id, sum(coalesce(used_mc, amount_mc)) AS drawn FROM dr GROUP BY 1, 2) d
        ON d.org_id = l.org_id AND d.lot_id = l.id
     WHERE l.granted_mc <> l.remaining_mc + l.gone_mc + coalesce(d.drawn, 0)
    UNION ALL
    SELECT 'I12 lots add up, and the wallet holds what is left in them', l.transfer_id
      FROM (SELECT org_id, transfer_id, wallet_id, sum(granted_mc) AS granted FROM lo GROUP BY 1, 2, 3) l
      LEFT JOIN tr x ON x.org_id = l.org_id AND x.id = l.transfer_id
     WHERE x.id IS NULL OR x.credit_wallet IS DISTINCT FROM l.wallet_id OR x.amount_mc < l.granted
    UNION ALL
    SELECT 'I12 lots add up, and the wallet holds what is left in them', coalesce(j.id, d.job_id)
      FROM (SELECT * FROM jb WHERE drew_lots) j
      FULL JOIN (SELECT d.org_id, d.job_id, sum(d.amount_mc) AS amount, sum(d.used_mc) AS used, count(*) FILTER (WHERE d.used_mc IS NULL) AS open,
                        count(*) AS n, min(l.wallet_id::text) AS wallet, max(l.wallet_id::text) AS other
                   FROM dr d JOIN lo l ON l.org_id = d.org_id AND l.id = d.lot_id GROUP BY 1, 2) d
        ON d.org_id = j.org_id AND d.job_id = j.id
     WHERE j.id IS NULL OR d.job_id IS NULL OR d.wallet <> j.wallet_id::text OR d.other <> d.wallet OR d.amount > j.price_hold_mc
        OR d.open <> CASE WHEN j.finished_at IS NULL THEN d.n ELSE 0 END OR coalesce(d.used, 0) <> least(coalesce(j.price_final_mc, 0), d.amount)
    UNION ALL
    SELECT 'I13 a debt equals its transfers, and nothing is held back from it', w.id
      FROM wa w LEFT JOIN (SELECT org_id, owed_wallet, sum(CASE WHEN debit_book = 'receivable' THEN amount_mc ELSE -amount_mc END) AS owed
                             FROM tr WHERE owed_wallet IS NOT NULL GROUP BY 1, 2) o ON o.org_id = w.org_id AND o.owed_wallet = w.id
     WHERE w.owed_mc <> coalesce(o.owed, 0) OR (w.owed_mc > 0 AND w.available_mc > 0)
    UNION ALL
    SELECT 'I14 a closed day equals the sum of its transfers', coalesce(b.org_id, s.org_id)
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
  SELECT n.name, count(b.id), min(b.id::text)
    FROM (VALUES ('I1 a wallet equals the sum of its transfers'), ('I2 every version of a wallet has its transfer'),
                 ('I3 no wallet is negative'), ('I4 open job = open hold = queue row'), ('I5 the settled amount is the job''s price'),
                 ('I6 a hold is for its own job and what the job quoted'), ('I7 refunds equal what the job says and never pass its price'),
                 ('I8 a closed job has one terminal event, an open one none'), ('I9 no job is overdue by more than five minutes'),
                 ('I10 usage records carry what was charged'), ('I11 every row is sound, and what it names exists'),
                 ('I12 lots add up, and the wallet holds what is left in them'),
                 ('I13 a debt equals its transfers, and nothing is held back from it'),
                 ('I14 a closed day equals the sum of its transfers')) n (name)
    LEFT JOIN bad b ON b.invariant = n.name GROUP BY n.name;
$$;

-- what changed since a moment: the touched jobs whole, the touched wallets by their last version
CREATE FUNCTION limner.check_changes(p_since timestamptz)
RETURNS TABLE (violations bigint, checked bigint, example text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH recent AS MATERIALIZED (SELECT * FROM limner.transfer x WHERE x.created_at >= p_since),
  touched AS MATERIALIZED (
    SELECT DISTINCT ON (org_id, wallet) org_id, wallet, version, available FROM (
      SELECT org_id, debit_wallet AS wallet, debit_version AS version, debit_available_mc AS available FROM recent WHERE debit_wallet IS NOT NULL
      UNION ALL SELECT org_id, credit_wallet, credit_version, credit_available_mc FROM recent WHERE credit_wallet IS NOT NULL) s
     ORDER BY org_id, wallet, version DESC),
  jobs AS MATERIALIZED (SELECT DISTINCT org_id, job_id FROM recent WHERE job_id IS NOT NULL),
  debtors AS (SELECT DISTINCT org_id, owed_wallet AS wallet FROM recent WHERE owed_wallet IS NOT NULL),
  held AS (SELECT j.org_id, j.wallet_id AS wallet, sum(j.price_hold_mc) AS held
             FROM limner.job_queue q JOIN limner.job j ON j.org_id = q.org_id AND j.id = q.job_id GROUP BY 1, 2),
  lots AS (SELECT l.org_id, l.wallet_id AS wallet, sum(l.remaining_mc) AS remaining, min(l.expires_at) AS ends
             FROM touched t JOIN limner.lot l ON l.org_id = t.org_id AND l.wallet_id = t.wallet AND l.remaining_mc > 0 GROUP BY 1, 2),
  refunded AS (SELECT x.org_id, x.job_id, sum(x.amount_mc) AS amount
                 FROM jobs c JOIN limner.transfer x ON x.org_id = c.org_id AND x.job_id = c.job_id AND x.kind = 'refund' GROUP BY 1, 2),
  used AS (SELECT u.org_id, u.job_id, sum(u.price_mc) AS price
             FROM jobs c JOIN limner.usage_record u ON u.org_id = c.org_id AND u.job_id = c.job_id GROUP BY 1, 2),
  drawn AS (SELECT d.org_id, d.job_id, sum(d.amount_mc) AS amount, sum(d.used_mc) AS used
              FROM jobs c JOIN limner.lot_draw d ON d.org_id = c.org_id AND d.job_id = c.job_id GROUP BY 1, 2),
  bad (id) AS (
    SELECT x.id FROM recent r JOIN limner.transfer x ON x.org_id = r.org_id AND x.id = r.id WHERE NOT limner.transfer_is_sound(x)
    UNION ALL
    SELECT t.wallet FROM touched t LEFT JOIN limner.wallet w ON w.org_id = t.org_id AND w.id = t.wallet
      LEFT JOIN held h ON h.org_id = t.org_id AND h.wallet = t.wallet
      LEFT JOIN lots l ON l.org_id = t.org_id AND l.wallet = t.wallet
     WHERE w.id IS NULL OR w.version < t.version OR w.available_mc < 0 OR w.held_mc < 0 OR (w.version = t.version AND w.available_mc <> t.available)
        OR w.held_mc <> coalesce(h.held, 0) OR w.lots_end IS DISTINCT FROM l.ends OR w.available_mc < coalesce(l.remaining, 0)
        OR (w.owed_mc > 0 AND w.available_mc > 0)
    UNION ALL
    SELECT b.wallet FROM debtors b LEFT JOIN limner.wallet w ON w.org_id = b.org_id AND w.id = b.wallet
     WHERE w.owed_mc IS DISTINCT FROM (SELECT sum(CASE WHEN x.debit_book = 'receivable' THEN x.amount_mc ELSE -x.amount_mc END)
                                         FROM limner.transfer x WHERE x.org_id = b.org_id AND x.owed_wallet = b.wallet)
    UNION ALL
    SELECT c.job_id FROM jobs c
      LEFT JOIN limner.job j ON j.org_id = c.org_id AND j.id = c.job_id
      LEFT JOIN limner.job_queue q ON q.org_id = c.org_id AND q.job_id = c.job_id
      LEFT JOIN limner.transfer h ON h.org_id = c.org_id AND h.id = c.job_id
      LEFT JOIN limner.transfer r ON r.org_id = c.org_id AND r.hold_id = c.job_id
      LEFT JOIN limner.event e ON e.org_id = c.org_id AND e.subject_id = c.job_id AND e.type IN ('job.completed', 'job.failed', 'job.cancelled')
      LEFT JOIN limner.end_user u ON u.org_id = j.org_id AND u.id = j.end_user_id
      LEFT JOIN refunded b ON b.org_id = c.org_id AND b.job_id = c.job_id
      LEFT JOIN used s ON s.org_id = c.org_id AND s.job_id = c.job_id
      LEFT JOIN drawn d ON d.org_id = c.org_id AND d.job_id = c.job_id
     WHERE j.id IS NULL OR h.id IS NULL OR (j.finished_at IS NULL) <> (q.job_id IS NOT NULL) OR (j.finished_at IS NULL) <> (r.id IS NULL)
        OR NOT limner.job_is_sound(j) OR (j.end_user_id IS NOT NULL AND u.id IS NULL)
        OR (j.finished_at IS NULL) <> (e.id IS NULL) OR r.amount_mc IS DISTINCT FROM j.price_final_mc OR h.amount_mc <> j.price_hold_mc
        OR j.refunded_mc <> coalesce(b.amount, 0) OR coalesce(s.price, 0) <> coalesce(j.price_final_mc, 0)
        OR j.drew_lots <> (d.job_id IS NOT NULL)
        OR (j.drew_lots AND d.used IS DISTINCT FROM CASE WHEN j.finished_at IS NOT NULL THEN least(j.price_final_mc, d.amount) END)
    UNION ALL
    SELECT q.job_id FROM limner.job_queue q WHERE q.deadline_at < clock_timestamp() - interval '5 minutes')
  SELECT (SELECT count(*) FROM bad), (SELECT count(*) FROM touched) + (SELECT count(*) FROM jobs), (SELECT min(id::text) FROM bad);
$$;
GRANT EXECUTE ON FUNCTION limner.check_invariants(uuid), limner.check_changes(timestamptz), limner.transfer_is_sound(limner.transfer),
  limner.job_is_sound(limner.job) TO limner_audit;
RESET ROLE;
