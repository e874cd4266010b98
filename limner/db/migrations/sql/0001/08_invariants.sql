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
      LEFT JOIN jb j ON j.org_id = u.org_id AND j.id = u.job_id WHERE j.id IS NULL)
  SELECT n.name, count(b.id), min(b.id::text)
    FROM (VALUES ('I1 a wallet equals the sum of its transfers'), ('I2 every version of a wallet has its transfer'),
                 ('I3 no wallet is negative'), ('I4 open job = open hold = queue row'), ('I5 the settled amount is the job''s price'),
                 ('I6 a hold is for its own job and what the job quoted'), ('I7 refunds equal what the job says and never pass its price'),
                 ('I8 a closed job has one terminal event, an open one none'), ('I9 no job is overdue by more than five minutes'),
                 ('I10 usage records carry what was charged'), ('I11 every row is sound, and what it names exists')) n (name)
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
  bad (id) AS (
    SELECT x.id FROM recent r JOIN limner.transfer x ON x.org_id = r.org_id AND x.id = r.id WHERE NOT limner.transfer_is_sound(x)
    UNION ALL
    SELECT t.wallet FROM touched t LEFT JOIN limner.wallet w ON w.org_id = t.org_id AND w.id = t.wallet
     WHERE w.id IS NULL OR w.version < t.version OR w.available_mc < 0 OR w.held_mc < 0 OR (w.version = t.version AND w.available_mc <> t.available)
    UNION ALL
    SELECT c.job_id FROM jobs c
      LEFT JOIN limner.job j ON j.org_id = c.org_id AND j.id = c.job_id
      LEFT JOIN limner.job_queue q ON q.org_id = c.org_id AND q.job_id = c.job_id
      LEFT JOIN limner.transfer h ON h.org_id = c.org_id AND h.id = c.job_id
      LEFT JOIN limner.transfer r ON r.org_id = c.org_id AND r.hold_id = c.job_id
      LEFT JOIN limner.event e ON e.org_id = c.org_id AND e.subject_id = c.job_id AND e.type IN ('job.completed', 'job.failed', 'job.cancelled')
      LEFT JOIN limner.end_user u ON u.org_id = j.org_id AND u.id = j.end_user_id
     WHERE j.id IS NULL OR h.id IS NULL OR (j.finished_at IS NULL) <> (q.job_id IS NOT NULL) OR (j.finished_at IS NULL) <> (r.id IS NULL)
        OR NOT limner.job_is_sound(j) OR (j.end_user_id IS NOT NULL AND u.id IS NULL)
        OR (j.finished_at IS NULL) <> (e.id IS NULL) OR r.amount_mc IS DISTINCT FROM j.price_final_mc OR h.amount_mc <> j.price_hold_mc
    UNION ALL
    SELECT q.job_id FROM limner.job_queue q WHERE q.deadline_at < clock_timestamp() - interval '5 minutes')
  SELECT (SELECT count(*) FROM bad), (SELECT count(*) FROM touched) + (SELECT count(*) FROM jobs), (SELECT min(id::text) FROM bad);
$$;
GRANT EXECUTE ON FUNCTION limner.check_invariants(uuid), limner.check_changes(timestamptz), limner.transfer_is_sound(limner.transfer),
  limner.job_is_sound(limner.job) TO limner_audit;
RESET ROLE;
