-- The only writers of money. Each takes the signed context first (NULL inside a transaction that has one).
-- Errors: LM402 too few credits (DETAIL: json), LM403 inactive, LM404 absent, LM409 state, LM422 bad or reused parameters.
SET ROLE limner_owner;

-- what can be spent of a wallet: what stands there less what has ended and was not swept yet
CREATE FUNCTION limner.spendable_mc(w limner.wallet) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT w.available_mc - CASE WHEN w.lots_end <= clock_timestamp() THEN (
    SELECT coalesce(sum(l.remaining_mc), 0)::bigint FROM limner.lot l
     WHERE l.org_id = w.org_id AND l.wallet_id = w.id AND l.remaining_mc > 0 AND l.expires_at <= clock_timestamp()) ELSE 0 END;
$$;
GRANT EXECUTE ON FUNCTION limner.spendable_mc(limner.wallet) TO limner_api, limner_operator;

-- when the first of a wallet's lots with anything left ends
CREATE FUNCTION limner._lots_end(t uuid, p_wallet uuid) RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT l.expires_at FROM limner.lot l WHERE l.org_id = t AND l.wallet_id = p_wallet AND l.remaining_mc > 0
   ORDER BY l.expires_at, l.id LIMIT 1;
$$;

-- under the wallet's lock: what is left in lots whose time has come goes to breakage, a transfer a lot; how much that was
CREATE FUNCTION limner._expire(t uuid, p_wallet uuid) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  l record;
  w record;
  total bigint := 0;
BEGIN
  FOR l IN SELECT x.id, x.remaining_mc, x.kind, x.expires_at FROM limner.lot x
            WHERE x.org_id = t AND x.wallet_id = p_wallet AND x.remaining_mc > 0 AND x.expires_at <= clock_timestamp()
            ORDER BY x.expires_at, x.id LOOP
    UPDATE limner.lot x SET remaining_mc = 0, gone_mc = x.gone_mc + l.remaining_mc WHERE x.org_id = t AND x.id = l.id;
    UPDATE limner.wallet x SET available_mc = x.available_mc - l.remaining_mc, version = x.version + 1
     WHERE x.org_id = t AND x.id = p_wallet RETURNING x.available_mc, x.version INTO STRICT w;
    PERFORM limner._breakage(t, p_wallet, w.version, w.available_mc, l.remaining_mc, l.kind, l.expires_at);
    total := total + l.remaining_mc;
  END LOOP;
  UPDATE limner.wallet x SET lots_end = limner._lots_end(t, p_wallet) WHERE x.org_id = t AND x.id = p_wallet;
  RETURN total;
END $$;

CREATE FUNCTION limner._breakage(t uuid, p_wallet uuid, p_version bigint, p_available bigint, p_amount bigint, p_kind text, p_ended timestamptz)
RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, reason)
  VALUES (t, gen_random_uuid(), 'expire', p_wallet, p_version, p_available, 'breakage', p_amount,
          'Unused ' || p_kind || ' credits that ended ' || to_char(p_ended AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC');
$$;

-- locks a wallet and takes out what has ended: how every change of what it holds begins. All NULL when there is none.
CREATE FUNCTION limner._sweep(t uuid, p_wallet uuid) RETURNS limner.wallet
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE w limner.wallet;
BEGIN
  SELECT * INTO w FROM limner.wallet x WHERE x.org_id = t AND x.id = p_wallet FOR NO KEY UPDATE;
  IF w.lots_end <= clock_timestamp() THEN
    PERFORM limner._expire(t, p_wallet);
    SELECT * INTO STRICT w FROM limner.wallet x WHERE x.org_id = t AND x.id = p_wallet;
  END IF;
  RETURN w;
END $$;

-- under the wallet's lock: takes `p_amount` from its lots, soonest end first, for a job (remembered) or for good (p_job NULL).
-- What the lots do not hold comes from the rest of the wallet. What was taken from which lot, in that order.
CREATE FUNCTION limner._draw(t uuid, p_wallet uuid, p_job uuid, p_amount bigint)
RETURNS TABLE (lot_kind text, lot_ends timestamptz, amount bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  l record;
  still bigint := p_amount;
BEGIN
  FOR l IN SELECT x.id, x.remaining_mc, x.kind, x.expires_at FROM limner.lot x
            WHERE x.org_id = t AND x.wallet_id = p_wallet AND x.remaining_mc > 0 ORDER BY x.expires_at, x.id LOOP
    EXIT WHEN still = 0;
    amount := least(still, l.remaining_mc);
    UPDATE limner.lot x SET remaining_mc = x.remaining_mc - amount, gone_mc = x.gone_mc + CASE WHEN p_job IS NULL THEN amount ELSE 0 END
     WHERE x.org_id = t AND x.id = l.id;
    IF p_job IS NOT NULL THEN
      INSERT INTO limner.lot_draw (org_id, job_id, lot_id, amount_mc) VALUES (t, p_job, l.id, amount);
    END IF;
    still := still - amount;
    lot_kind := l.kind;
    lot_ends := l.expires_at;
    RETURN NEXT;
  END LOOP;
  UPDATE limner.wallet x SET lots_end = limner._lots_end(t, p_wallet) WHERE x.org_id = t AND x.id = p_wallet;
END $$;

-- moves `p_amount` out of a wallet's available credits and its lots, for good; a NULL version when it does not hold that much.
-- `lots`: what came from which lot, as {"kind", "ends", "amount"}
CREATE FUNCTION limner._take(t uuid, p_wallet uuid, p_amount bigint, OUT available bigint, OUT version bigint, OUT lots jsonb)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE w limner.wallet := limner._sweep(t, p_wallet);
BEGIN
  IF w.available_mc IS NULL OR w.available_mc < p_amount THEN RETURN; END IF;
  IF w.lots_end IS NOT NULL THEN
    SELECT jsonb_agg(jsonb_build_object('kind', d.lot_kind, 'ends', d.lot_ends, 'amount', d.amount)) INTO lots
      FROM limner._draw(t, p_wallet, NULL, p_amount) d;
  END IF;
  UPDATE limner.wallet x SET available_mc = x.available_mc - p_amount, version = x.version + 1
   WHERE x.org_id = t AND x.id = p_wallet RETURNING x.available_mc, x.version INTO available, version;
END $$;

CREATE FUNCTION limner._give(t uuid, p_wallet uuid, p_amount bigint, OUT available bigint, OUT version bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM limner._sweep(t, p_wallet);
  UPDATE limner.wallet w SET available_mc = w.available_mc + p_amount, version = w.version + 1
   WHERE w.org_id = t AND w.id = p_wallet RETURNING w.available_mc, w.version INTO STRICT available, version;
END $$;

-- opens a lot for credits that a transfer has just brought, under the wallet's lock; nothing to do for what never ends
CREATE FUNCTION limner._open_lot(t uuid, p_transfer uuid, p_wallet uuid, p_kind text, p_amount bigint, p_expires timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF p_expires IS NULL OR p_amount = 0 THEN RETURN; END IF;
  INSERT INTO limner.lot (org_id, id, wallet_id, transfer_id, kind, granted_mc, remaining_mc, expires_at)
  VALUES (t, gen_random_uuid(), p_wallet, p_transfer, p_kind, p_amount, p_amount, p_expires);
  UPDATE limner.wallet x SET lots_end = least(x.lots_end, p_expires) WHERE x.org_id = t AND x.id = p_wallet;
END $$;

-- under the wallet's lock: a wallet that owes pays first, out of what `p_source` (a transfer) has just brought; what it holds afterwards
CREATE FUNCTION limner._repay(t uuid, p_wallet uuid, p_source uuid) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  w limner.wallet;
  paid bigint;
  taken record;
BEGIN
  SELECT * INTO STRICT w FROM limner.wallet x WHERE x.org_id = t AND x.id = p_wallet;
  paid := least(w.owed_mc, w.available_mc);
  IF paid = 0 THEN RETURN w.available_mc; END IF;
  SELECT * INTO STRICT taken FROM limner._take(t, p_wallet, paid);
  UPDATE limner.wallet x SET owed_mc = x.owed_mc - paid WHERE x.org_id = t AND x.id = p_wallet;
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, owed_wallet, ref, reason)
  VALUES (t, gen_random_uuid(), 'clawback', p_wallet, taken.version, taken.available, 'receivable', paid, p_wallet, 'repay:' || p_source,
          'Paid what was owed');
  RETURN taken.available;
END $$;

-- what a wallet held right after a transfer and the debt that was paid out of it: what its replay answers
CREATE FUNCTION limner._left_after(x limner.transfer, OUT available bigint, OUT repaid bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(r.debit_available_mc, x.credit_available_mc, x.debit_available_mc), coalesce(r.amount_mc, 0)
    FROM (SELECT) one LEFT JOIN limner.transfer r ON r.org_id = x.org_id AND r.ref = 'repay:' || x.id AND r.kind = 'clawback';
$$;

-- Lock order of grants: what pays for them (the capped organization, or its own wallet), then end users and their wallets.
-- The other way round, two grants to one user wait for each other.
CREATE FUNCTION limner._lock_source(t uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE o record;
BEGIN
  SELECT x.grants, x.exposure_cap_mc INTO o FROM limner.organization x WHERE x.org_id = t;
  IF o.grants = 'from_wallet' THEN
    PERFORM 1 FROM limner.wallet w WHERE w.org_id = t AND w.id = t FOR NO KEY UPDATE;
  ELSIF o.exposure_cap_mc IS NOT NULL THEN
    PERFORM 1 FROM limner.organization x WHERE x.org_id = t FOR NO KEY UPDATE;          -- one capped grant at a time
  END IF;
END $$;

-- what grants may still bring: what the organization's wallet holds, or what its exposure cap leaves; NULL: any amount. After _lock_source.
CREATE FUNCTION limner._budget(t uuid) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE o record;
BEGIN
  SELECT x.grants, x.exposure_cap_mc INTO o FROM limner.organization x WHERE x.org_id = t;
  IF o.grants = 'from_wallet' THEN
    RETURN (limner._sweep(t, t)).available_mc;
  ELSIF o.exposure_cap_mc IS NOT NULL THEN
    RETURN greatest(o.exposure_cap_mc - (SELECT coalesce(sum(w.available_mc + w.held_mc), 0) FROM limner.wallet w WHERE w.org_id = t), 0);
  END IF;
  RETURN NULL;
END $$;

-- refuses what the budget does not hold
CREATE FUNCTION limner._afford(t uuid, p_amount bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE budget bigint := limner._budget(t);
BEGIN
  IF p_amount > budget THEN
    IF (SELECT x.grants FROM limner.organization x WHERE x.org_id = t) = 'from_wallet' THEN
      RAISE EXCEPTION 'the organization''s wallet holds too few credits for this grant' USING ERRCODE = 'LM402',
        DETAIL = json_build_object('wallet', 'organization', 'balance_mc', budget, 'required_mc', p_amount);
    END IF;
    RAISE EXCEPTION 'this grant would pass the organization''s exposure cap' USING ERRCODE = 'LM402',
      DETAIL = json_build_object('wallet', 'issuance', 'balance_mc', budget, 'required_mc', p_amount);
  END IF;
END $$;

-- Credits for an end user that the budget holds: from issuance, or out of the organization's own wallet. They end at `p_expires`, or
-- sooner where the organization's own, that they are taken from, do.
CREATE FUNCTION limner._fund(t uuid, p_transfer uuid, p_wallet uuid, p_kind text, p_amount bigint, p_expires timestamptz, p_reason text,
                             p_ref text, p_hash bytea)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  mode text;
  source record;
  target record;
  l record;
  lasting bigint := p_amount;
BEGIN
  SELECT o.grants INTO STRICT mode FROM limner.organization o WHERE o.org_id = t;
  SELECT NULL::bigint AS available, NULL::bigint AS version, NULL::jsonb AS lots INTO source;
  IF mode = 'from_wallet' THEN
    SELECT * INTO source FROM limner._take(t, t, p_amount);
    IF source.version IS NULL THEN
      PERFORM limner._afford(t, p_amount);
    END IF;
  END IF;
  SELECT * INTO STRICT target FROM limner._give(t, p_wallet, p_amount);
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_book, debit_version, debit_available_mc,
                               credit_wallet, credit_version, credit_available_mc, amount_mc, ref, request_hash, reason)
  VALUES (t, p_transfer, p_kind, CASE WHEN mode = 'from_wallet' THEN t END, CASE WHEN mode = 'issue' THEN 'issuance' END,
          source.version, source.available, p_wallet, target.version, target.available, p_amount, p_ref, p_hash, p_reason);
  FOR l IN SELECT (x ->> 'ends')::timestamptz AS ends, (x ->> 'amount')::bigint AS amount FROM jsonb_array_elements(source.lots) x LOOP
    PERFORM limner._open_lot(t, p_transfer, p_wallet, p_kind, l.amount, least(l.ends, p_expires));
    lasting := lasting - l.amount;
  END LOOP;
  PERFORM limner._open_lot(t, p_transfer, p_wallet, p_kind, lasting, p_expires);
  RETURN limner._repay(t, p_wallet, p_transfer);
EXCEPTION
  WHEN numeric_value_out_of_range THEN
    RAISE EXCEPTION 'amount too large' USING ERRCODE = 'LM422';
  WHEN unique_violation THEN      -- the same reference at the same moment for somebody else
    RAISE EXCEPTION 'this idempotency key was used for another request' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
END $$;

-- the month (UTC) that is under way, as allowances name it, and when it ends
CREATE FUNCTION limner._month(OUT period text, OUT ends timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT to_char(m, 'YYYY-MM'), (m + interval '1 month') AT TIME ZONE 'UTC'
    FROM date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') m;
$$;

-- finds the app's end user, or makes it with its wallet, its welcome grant and this month's allowance
CREATE FUNCTION limner._end_user(t uuid, p_app uuid, p_external text, p_new uuid, OUT id uuid, OUT is_active boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  a record;
  m record;
BEGIN
  SELECT u.id, u.is_active INTO id, is_active FROM limner.end_user u
   WHERE u.org_id = t AND u.app_id = p_app AND u.external_id = p_external;
  IF FOUND THEN RETURN; END IF;
  SELECT x.welcome_mc, x.monthly_mc INTO a FROM limner.app x WHERE x.org_id = t AND x.id = p_app;
  IF a.welcome_mc > 0 OR a.monthly_mc > 0 THEN
    PERFORM limner._lock_source(t);
  END IF;
  INSERT INTO limner.end_user (org_id, id, app_id, external_id) VALUES (t, p_new, p_app, p_external)
  ON CONFLICT (org_id, app_id, external_id) DO NOTHING;
  IF NOT FOUND THEN       -- another request made it meanwhile, and has committed
    SELECT u.id, u.is_active INTO STRICT id, is_active FROM limner.end_user u
     WHERE u.org_id = t AND u.app_id = p_app AND u.external_id = p_external;
    RETURN;
  END IF;
  INSERT INTO limner.wallet (org_id, id, owner) VALUES (t, p_new, 'end_user');
  IF a.welcome_mc > 0 THEN
    PERFORM limner._afford(t, a.welcome_mc);
    PERFORM limner._fund(t, p_new, p_new, 'grant', a.welcome_mc, NULL, 'Welcome credits', 'welcome:' || p_new, NULL);
  END IF;
  IF a.monthly_mc > 0 THEN
    SELECT * INTO m FROM limner._month();
    PERFORM limner._afford(t, a.monthly_mc);
    PERFORM limner._fund(t, gen_random_uuid(), p_new, 'allowance', a.monthly_mc, m.ends, 'Allowance of ' || m.period,
                         'allowance:' || m.period || ':' || p_new, NULL);
  END IF;
  id := p_new;
  is_active := true;
END $$;

CREATE FUNCTION limner._check_amount(p_amount bigint, p_what text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF p_amount IS NULL OR p_amount <= 0 OR p_amount > 1000000000000000 THEN
    RAISE EXCEPTION '% must be between 0.001 and 1,000,000,000,000 credits', p_what USING ERRCODE = 'LM422';
  END IF;
END $$;

CREATE FUNCTION limner._check_kind(p_kind text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF p_kind IS NULL OR p_kind NOT IN ('grant', 'bonus') THEN
    RAISE EXCEPTION 'not a kind of grant: %', p_kind USING ERRCODE = 'LM422';
  END IF;
END $$;

-- why credits cannot end then, or NULL
CREATE FUNCTION limner._wrong_expiry(p_expires timestamptz) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE WHEN p_expires <= clock_timestamp() THEN 'credits cannot end in the past'
              WHEN p_expires > clock_timestamp() + interval '100 years' THEN 'credits that end must end within 100 years' END;
$$;

CREATE FUNCTION limner._check_expiry(p_expires timestamptz) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE wrong text := limner._wrong_expiry(p_expires);
BEGIN
  IF wrong IS NOT NULL THEN
    RAISE EXCEPTION '%', wrong USING ERRCODE = 'LM422', DETAIL = 'expiry';
  END IF;
END $$;

-- the grant or bonus a reference stands for already; all NULL when there is none
CREATE FUNCTION limner._granted(t uuid, p_ref text, p_hash bytea) RETURNS limner.transfer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE old limner.transfer;
BEGIN
  SELECT * INTO old FROM limner.transfer x WHERE x.org_id = t AND x.ref = p_ref AND x.kind IN ('grant', 'bonus');
  IF FOUND AND old.request_hash IS DISTINCT FROM p_hash THEN
    RAISE EXCEPTION 'this idempotency key was used for another request' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
  END IF;
  RETURN old;
END $$;

-- p_kind: grant or bonus; p_expires NULL: they never end. `repaid_mc`: what a debt took of them at once
CREATE FUNCTION limner.grant_credits(p_ctx text, p_app uuid, p_external text, p_new_user uuid, p_transfer uuid, p_kind text,
                                     p_amount bigint, p_expires timestamptz, p_reason text, p_ref text, p_hash bytea)
RETURNS TABLE (outcome text, transfer_id uuid, available_mc bigint, repaid_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  u record;
  old limner.transfer;
BEGIN
  PERFORM limner._check_amount(p_amount, 'a grant');
  PERFORM limner._check_kind(p_kind);
  PERFORM limner._lock_source(t);
  SELECT * INTO STRICT u FROM limner._end_user(t, p_app, p_external, p_new_user);
  IF p_ref IS NOT NULL THEN
    PERFORM 1 FROM limner.wallet w WHERE w.org_id = t AND w.id = u.id FOR NO KEY UPDATE;   -- copies of one request queue here
    old := limner._granted(t, p_ref, p_hash);
    IF old.id IS NOT NULL THEN
      RETURN QUERY SELECT 'replayed', old.id, a.available, a.repaid FROM limner._left_after(old) a;
      RETURN;
    END IF;
  END IF;
  PERFORM limner._check_expiry(p_expires);
  IF NOT u.is_active THEN
    RAISE EXCEPTION 'this end user is deactivated' USING ERRCODE = 'LM403';
  END IF;
  PERFORM limner._afford(t, p_amount);
  PERFORM limner._fund(t, p_transfer, u.id, p_kind, p_amount, p_expires, p_reason, p_ref, p_hash);
  RETURN QUERY SELECT 'granted', x.id, a.available, a.repaid
    FROM limner.transfer x CROSS JOIN LATERAL limner._left_after(x) a WHERE x.org_id = t AND x.id = p_transfer;
END $$;

-- Many grants, all or none, in the order given; one user may stand in several rows. `p_ref` is the request's (NULL: it has none): its
-- rows' references are p_ref:0, p_ref:1 … p_rows: [{"external_id", "new_user", "transfer", "kind", "amount_mc", "expires_at", "reason"}].
-- Refuses with LM422 and DETAIL [{"index", "field", "message"}], every row that cannot be granted, and with LM402 what all of them
-- together lack. A request that was granted before is not looked at again.
CREATE FUNCTION limner.grant_batch(p_ctx text, p_app uuid, p_rows jsonb, p_ref text, p_hash bytea)
RETURNS TABLE (place int, outcome text, transfer_id uuid, available_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  r record;
  users jsonb;
BEGIN
  IF jsonb_array_length(p_rows) NOT BETWEEN 1 AND 1000 THEN
    RAISE EXCEPTION 'a batch has 1 to 1,000 rows' USING ERRCODE = 'LM422';
  END IF;
  PERFORM limner._lock_source(t);
  users := limner._batch_users(t, p_app, p_rows);
  IF (limner._granted(t, p_ref || ':0', p_hash)).id IS NOT NULL THEN
    RETURN QUERY
      SELECT n.i, 'replayed', x.id, a.available FROM generate_series(0, jsonb_array_length(p_rows) - 1) n (i)
        JOIN limner.transfer x ON x.org_id = t AND x.kind IN ('grant', 'bonus') AND x.ref = p_ref || ':' || n.i
       CROSS JOIN LATERAL limner._left_after(x) a ORDER BY n.i;
    RETURN;
  END IF;
  PERFORM limner._check_batch(p_rows, users);
  PERFORM limner._afford(t, (SELECT sum((x ->> 'amount_mc')::bigint) FROM jsonb_array_elements(p_rows) x)::bigint);
  FOR r IN SELECT (n - 1)::int AS i, x ->> 'external_id' AS external_id, (x ->> 'transfer')::uuid AS transfer, x ->> 'kind' AS kind,
                  (x ->> 'amount_mc')::bigint AS amount, (x ->> 'expires_at')::timestamptz AS expires_at, x ->> 'reason' AS reason
             FROM jsonb_array_elements(p_rows) WITH ORDINALITY y (x, n) ORDER BY n LOOP
    place := r.i;
    outcome := 'granted';
    transfer_id := r.transfer;
    available_mc := limner._fund(t, r.transfer, (users -> r.external_id ->> 'id')::uuid, r.kind, r.amount, r.expires_at, r.reason,
                                 p_ref || ':' || r.i, p_hash);
    RETURN NEXT;
  END LOOP;
END $$;

-- The users of a batch, by external id: {"id", "active"}. New ones are made in the order of their names, then all wallets are locked in
-- the order of their ids, as whoever locks several does: nobody waits for another in a circle.
CREATE FUNCTION limner._batch_users(t uuid, p_app uuid, p_rows jsonb) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE users jsonb;
BEGIN
  SELECT jsonb_object_agg(r.external_id, jsonb_build_object('id', u.id, 'active', u.is_active)) INTO users
    FROM (SELECT x ->> 'external_id' AS external_id, min(x ->> 'new_user')::uuid AS new_user
            FROM jsonb_array_elements(p_rows) x GROUP BY 1 ORDER BY 1) r
   CROSS JOIN LATERAL limner._end_user(t, p_app, r.external_id, r.new_user) u;
  PERFORM 1 FROM limner.wallet w WHERE w.org_id = t AND w.id IN (SELECT (v ->> 'id')::uuid FROM jsonb_each(users) e (k, v))
    ORDER BY w.id FOR NO KEY UPDATE;
  RETURN users;
END $$;

-- refuses a batch with what is wrong in each of its rows
CREATE FUNCTION limner._check_batch(p_rows jsonb, p_users jsonb) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  r record;
  wrong text;
  bad jsonb := '[]';
BEGIN
  FOR r IN SELECT n - 1 AS i, x FROM jsonb_array_elements(p_rows) WITH ORDINALITY y (x, n) LOOP
    IF NOT (p_users -> (r.x ->> 'external_id') ->> 'active')::boolean THEN
      bad := bad || jsonb_build_object('index', r.i, 'field', 'external_id', 'message', 'this end user is deactivated');
    END IF;
    IF NOT coalesce((r.x ->> 'amount_mc')::bigint BETWEEN 1 AND 1000000000000000, false) THEN
      bad := bad || jsonb_build_object('index', r.i, 'field', 'amount', 'message', 'must be between 0.001 and 1,000,000,000,000 credits');
    END IF;
    IF NOT coalesce(r.x ->> 'kind' IN ('grant', 'bonus'), false) THEN
      bad := bad || jsonb_build_object('index', r.i, 'field', 'kind', 'message', 'must be grant or bonus');
    END IF;
    wrong := limner._wrong_expiry((r.x ->> 'expires_at')::timestamptz);
    IF wrong IS NOT NULL THEN
      bad := bad || jsonb_build_object('index', r.i, 'field', 'expires_at', 'message', wrong);
    END IF;
  END LOOP;
  IF bad <> '[]' THEN
    RAISE EXCEPTION 'some rows cannot be granted' USING ERRCODE = 'LM422', DETAIL = bad::text;
  END IF;
END $$;

-- an operator's top-up of the organization's own wallet
CREATE FUNCTION limner.top_up(p_ctx text, p_transfer uuid, p_kind text, p_amount bigint, p_expires timestamptz, p_reason text, p_ref text)
RETURNS TABLE (outcome text, transfer_id uuid, available_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  w record;
  old limner.transfer;
BEGIN
  PERFORM limner._check_amount(p_amount, 'a top-up');
  PERFORM limner._check_kind(p_kind);
  PERFORM 1 FROM limner.wallet x WHERE x.org_id = t AND x.id = t FOR NO KEY UPDATE;
  IF NOT FOUND THEN RAISE EXCEPTION 'no such organization' USING ERRCODE = 'LM404'; END IF;
  SELECT * INTO old FROM limner.transfer x WHERE x.org_id = t AND x.kind IN ('grant', 'bonus') AND x.ref = p_ref;
  IF FOUND THEN
    IF old.amount_mc <> p_amount OR old.credit_wallet <> t OR old.kind <> p_kind THEN
      RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
    END IF;
    RETURN QUERY SELECT 'replayed', old.id, a.available FROM limner._left_after(old) a;
    RETURN;
  END IF;
  PERFORM limner._check_expiry(p_expires);
  RETURN QUERY SELECT 'granted', p_transfer, limner._issue(t, p_transfer, t, p_kind, p_amount, p_expires, p_reason, p_ref);
END $$;

-- internal, under the wallet's lock: credits an operator makes, whoever pays for the organization's grants
CREATE FUNCTION limner._issue(t uuid, p_transfer uuid, p_wallet uuid, p_kind text, p_amount bigint, p_expires timestamptz, p_reason text, p_ref text)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE w record;
BEGIN
  SELECT * INTO STRICT w FROM limner._give(t, p_wallet, p_amount);
  INSERT INTO limner.transfer (org_id, id, kind, debit_book, credit_wallet, credit_version, credit_available_mc, amount_mc, ref, reason)
  VALUES (t, p_transfer, p_kind, 'issuance', p_wallet, w.version, w.available, p_amount, p_ref, p_reason);
  PERFORM limner._open_lot(t, p_transfer, p_wallet, p_kind, p_amount, p_expires);
  RETURN limner._repay(t, p_wallet, p_transfer);
EXCEPTION WHEN numeric_value_out_of_range THEN
  RAISE EXCEPTION 'amount too large' USING ERRCODE = 'LM422';
END $$;

-- An operator's correction, up or down, of an end user's wallet, or (p_wallet = the organization) of its own. Down takes what is
-- there and no more: for credits that may be spent already there is clawback.
CREATE FUNCTION limner.adjust_credits(p_ctx text, p_wallet uuid, p_transfer uuid, p_amount bigint, p_expires timestamptz, p_reason text, p_ref text)
RETURNS TABLE (outcome text, transfer_id uuid, available_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  w limner.wallet;
  taken record;
  old limner.transfer;
BEGIN
  PERFORM limner._check_amount(abs(p_amount), 'an adjustment');
  w := limner._sweep(t, p_wallet);
  IF w.id IS NULL THEN RAISE EXCEPTION 'no such wallet' USING ERRCODE = 'LM404'; END IF;
  SELECT * INTO old FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'adjustment' AND x.ref = p_ref;
  IF FOUND THEN
    IF old.amount_mc <> abs(p_amount) OR coalesce(old.credit_wallet, old.debit_wallet) <> p_wallet
       OR (old.credit_wallet IS NULL) <> (p_amount < 0) THEN
      RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
    END IF;
    RETURN QUERY SELECT 'replayed', old.id, a.available FROM limner._left_after(old) a;
    RETURN;
  END IF;
  IF p_amount > 0 THEN
    PERFORM limner._check_expiry(p_expires);
    RETURN QUERY SELECT 'adjusted', p_transfer, limner._issue(t, p_transfer, p_wallet, 'adjustment', p_amount, p_expires, p_reason, p_ref);
    RETURN;
  END IF;
  IF w.available_mc < -p_amount THEN
    RAISE EXCEPTION 'the wallet holds less than that' USING ERRCODE = 'LM402', DETAIL = json_build_object(
      'wallet', w.owner, 'balance_mc', w.available_mc, 'required_mc', -p_amount);
  END IF;
  SELECT * INTO STRICT taken FROM limner._take(t, p_wallet, -p_amount);
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, ref, reason)
  VALUES (t, p_transfer, 'adjustment', p_wallet, taken.version, taken.available, 'issuance', -p_amount, p_ref, p_reason);
  RETURN QUERY SELECT 'adjusted', p_transfer, taken.available;
EXCEPTION WHEN unique_violation THEN      -- the same reference at the same moment for another wallet
  RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
END $$;

-- Takes back credits that should not have been given (a payment that was reversed): what is there at once, the rest as a debt that
-- refuses new jobs until credits come in and pay it. `owed_mc`: what of this clawback became a debt. The reference stands on what was
-- taken, or else on the debt; a debt beside something taken refers to that.
CREATE FUNCTION limner.claw_back(p_ctx text, p_wallet uuid, p_transfer uuid, p_amount bigint, p_reason text, p_ref text)
RETURNS TABLE (outcome text, transfer_id uuid, available_mc bigint, taken_mc bigint, owed_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  w limner.wallet;
  old limner.transfer;
  rest limner.transfer;
  taken record;
BEGIN
  PERFORM limner._check_amount(p_amount, 'a clawback');
  w := limner._sweep(t, p_wallet);
  IF w.id IS NULL THEN RAISE EXCEPTION 'no such wallet' USING ERRCODE = 'LM404'; END IF;
  SELECT * INTO old FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'clawback' AND x.ref = p_ref;
  IF FOUND THEN
    SELECT * INTO rest FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'clawback' AND x.ref = 'rest:' || old.id;
    IF old.amount_mc + coalesce(rest.amount_mc, 0) <> p_amount OR coalesce(old.debit_wallet, old.owed_wallet) <> p_wallet THEN
      RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
    END IF;
    taken_mc := CASE WHEN old.debit_wallet IS NULL THEN 0 ELSE old.amount_mc END;
    RETURN QUERY SELECT 'replayed', old.id, coalesce(old.debit_available_mc, 0), taken_mc, p_amount - taken_mc;
    RETURN;
  END IF;
  taken_mc := least(p_amount, w.available_mc);
  owed_mc := p_amount - taken_mc;
  available_mc := 0;
  IF taken_mc > 0 THEN
    SELECT * INTO STRICT taken FROM limner._take(t, p_wallet, taken_mc);
    available_mc := taken.available;
    INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_version, debit_available_mc, credit_book, amount_mc, ref, reason)
    VALUES (t, p_transfer, 'clawback', p_wallet, taken.version, taken.available, 'issuance', taken_mc, p_ref, p_reason);
  END IF;
  IF owed_mc > 0 THEN
    PERFORM limner._owe(t, p_wallet, owed_mc);
    INSERT INTO limner.transfer (org_id, id, kind, debit_book, credit_book, amount_mc, owed_wallet, ref, reason)
    VALUES (t, CASE WHEN taken_mc > 0 THEN gen_random_uuid() ELSE p_transfer END, 'clawback', 'receivable', 'issuance', owed_mc, p_wallet,
            CASE WHEN taken_mc > 0 THEN 'rest:' || p_transfer ELSE p_ref END, p_reason);
  END IF;
  outcome := 'clawed_back';
  transfer_id := p_transfer;
  RETURN NEXT;
EXCEPTION
  WHEN numeric_value_out_of_range THEN
    RAISE EXCEPTION 'amount too large' USING ERRCODE = 'LM422';
  WHEN unique_violation THEN      -- the same reference at the same moment for another wallet
    RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
END $$;

CREATE FUNCTION limner._owe(t uuid, p_wallet uuid, p_amount bigint) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.wallet x SET owed_mc = x.owed_mc + p_amount WHERE x.org_id = t AND x.id = p_wallet;
$$;

-- This month's allowance for active end users of an app that have none yet, in the order of their ids after `p_after`: the last id it came
-- to, or NULL at the end. Stops early, with the last id before it, where the organization's wallet or cap is used up.
CREATE FUNCTION limner.grant_allowances(p_ctx text, p_app uuid, p_after uuid, p_limit int)
RETURNS TABLE (last_id uuid, granted bigint, short boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  m record;
  u record;
  amount bigint;
  budget bigint;
BEGIN
  SELECT a.monthly_mc INTO amount FROM limner.app a JOIN limner.organization o ON o.org_id = t
   WHERE a.org_id = t AND a.id = p_app AND a.is_enabled AND o.is_active;
  granted := 0;
  short := false;
  IF amount > 0 THEN
    SELECT * INTO m FROM limner._month();
    PERFORM limner._lock_source(t);
    budget := limner._budget(t);
    FOR u IN SELECT x.id, x.is_active FROM limner.end_user x WHERE x.org_id = t AND x.app_id = p_app AND x.id > p_after
              ORDER BY x.id LIMIT p_limit LOOP
      IF u.is_active THEN
        PERFORM 1 FROM limner.wallet w WHERE w.org_id = t AND w.id = u.id FOR NO KEY UPDATE;      -- another worker may be at it
        IF NOT EXISTS (SELECT 1 FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'allowance'
                          AND x.ref = 'allowance:' || m.period || ':' || u.id) THEN
          IF amount > budget THEN
            short := true;
            EXIT;
          END IF;
          PERFORM limner._fund(t, gen_random_uuid(), u.id, 'allowance', amount, m.ends, 'Allowance of ' || m.period,
                               'allowance:' || m.period || ':' || u.id, NULL);
          budget := budget - amount;
          granted := granted + 1;
        END IF;
      END IF;
      last_id := u.id;
    END LOOP;
  END IF;
  RETURN NEXT;
END $$;

-- the organization's own allowance of this month, once; whether it was given now
CREATE FUNCTION limner.grant_own_allowance(p_ctx text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  m record;
  amount bigint;
BEGIN
  SELECT o.monthly_mc INTO amount FROM limner.organization o WHERE o.org_id = t AND o.is_active;
  IF coalesce(amount, 0) = 0 THEN RETURN false; END IF;
  SELECT * INTO m FROM limner._month();
  PERFORM 1 FROM limner.wallet w WHERE w.org_id = t AND w.id = t FOR NO KEY UPDATE;
  IF EXISTS (SELECT 1 FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'allowance' AND x.ref = 'allowance:' || m.period || ':' || t) THEN
    RETURN false;
  END IF;
  PERFORM limner._issue(t, gen_random_uuid(), t, 'allowance', amount, m.ends, 'Allowance of ' || m.period, 'allowance:' || m.period || ':' || t);
  RETURN true;
END $$;

-- what has ended in up to `p_limit` of the organization's lots goes to breakage, and the rest of their wallets' with it; how many
-- wallets that were. A wallet in use is passed over: whoever uses it does the same.
CREATE FUNCTION limner.expire_lots(p_ctx text, p_limit int)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  w record;
  wallets bigint := 0;
BEGIN
  FOR w IN SELECT x.id FROM limner.wallet x WHERE x.org_id = t AND x.id IN (
             SELECT l.wallet_id FROM limner.lot l WHERE l.org_id = t AND l.remaining_mc > 0 AND l.expires_at <= clock_timestamp()
              ORDER BY l.expires_at LIMIT p_limit)
            ORDER BY x.id FOR NO KEY UPDATE SKIP LOCKED LOOP
    PERFORM limner._expire(t, w.id);
    wallets := wallets + 1;
  END LOOP;
  RETURN wallets;
END $$;

-- Gives credits of a job back the way they were spent: those that never end first, then the lots' from the last end to the first,
-- each into a lot that ends as the old one did or in 30 days, whichever is later.
CREATE FUNCTION limner._reopen(t uuid, p_job uuid, p_wallet uuid, p_transfer uuid, p_charged bigint, p_before bigint, p_amount bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d record;
  skip bigint := p_before;
  still bigint := p_amount;
  part bigint;
BEGIN
  FOR d IN
    SELECT NULL::timestamptz AS ends, p_charged - coalesce(sum(x.used_mc), 0)::bigint AS used, NULL::uuid AS lot_id FROM limner.lot_draw x
     WHERE x.org_id = t AND x.job_id = p_job
    UNION ALL
    SELECT l.expires_at, x.used_mc, l.id FROM limner.lot_draw x JOIN limner.lot l ON l.org_id = t AND l.id = x.lot_id
     WHERE x.org_id = t AND x.job_id = p_job AND x.used_mc > 0
     ORDER BY ends DESC NULLS FIRST, lot_id DESC LOOP
    part := least(greatest(d.used - skip, 0), still);
    skip := greatest(skip - d.used, 0);
    still := still - part;
    IF d.ends IS NOT NULL THEN
      PERFORM limner._open_lot(t, p_transfer, p_wallet, 'refund', part, greatest(d.ends, clock_timestamp() + interval '30 days'));
    END IF;
  END LOOP;
END $$;

CREATE FUNCTION limner.refund_job(p_ctx text, p_job uuid, p_transfer uuid, p_amount bigint, p_reason text, p_ref text)
RETURNS TABLE (outcome text, transfer_id uuid, available_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  j limner.job;
  w record;
  old limner.transfer;
BEGIN
  PERFORM limner._check_amount(p_amount, 'a refund');
  SELECT * INTO j FROM limner.job x WHERE x.org_id = t AND x.id = p_job FOR NO KEY UPDATE;
  IF NOT FOUND THEN RAISE EXCEPTION 'no such job' USING ERRCODE = 'LM404'; END IF;
  SELECT * INTO old FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'refund' AND x.ref = p_ref;
  IF FOUND THEN
    IF old.amount_mc <> p_amount OR old.job_id <> p_job THEN
      RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
    END IF;
    RETURN QUERY SELECT 'replayed', old.id, a.available FROM limner._left_after(old) a;
    RETURN;
  END IF;
  IF j.refunded_mc + p_amount > coalesce(j.price_final_mc, 0) THEN
    RAISE EXCEPTION 'refunds would pass what the job was charged' USING ERRCODE = 'LM422',
      DETAIL = json_build_object('charged_mc', coalesce(j.price_final_mc, 0), 'refunded_mc', j.refunded_mc);
  END IF;
  UPDATE limner.job x SET refunded_mc = x.refunded_mc + p_amount WHERE x.org_id = t AND x.id = p_job;
  SELECT * INTO STRICT w FROM limner._give(t, j.wallet_id, p_amount);
  INSERT INTO limner.transfer (org_id, id, kind, debit_book, credit_wallet, credit_version, credit_available_mc, amount_mc, job_id, ref, reason)
  VALUES (t, p_transfer, 'refund', 'revenue', j.wallet_id, w.version, w.available, p_amount, p_job, p_ref, p_reason);
  IF j.drew_lots THEN
    PERFORM limner._reopen(t, p_job, j.wallet_id, p_transfer, j.price_final_mc, j.refunded_mc, p_amount);
  END IF;
  RETURN QUERY SELECT 'refunded', p_transfer, limner._repay(t, j.wallet_id, p_transfer);
EXCEPTION WHEN unique_violation THEN      -- the same reference at the same moment for another job
  RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
END $$;

-- Closes the organization's books up to a day (UTC) in order: the sums of each day by book and kind, from the day after the last closed
-- one. A day can be closed ten minutes after it ended, when nothing that began in it can still commit. How many rows that made; 0 when
-- it was closed before, or nothing moved.
CREATE FUNCTION limner.close_books(p_ctx text, p_day date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  made bigint;
BEGIN
  IF (p_day + 1)::timestamp AT TIME ZONE 'UTC' > clock_timestamp() - interval '10 minutes' THEN
    RAISE EXCEPTION 'a day can be closed ten minutes after it ended' USING ERRCODE = 'LM422';
  END IF;
  INSERT INTO limner.book_day (org_id, day, book, kind, debit_mc, credit_mc, transfers)
  SELECT t, b.day, b.book, b.kind, b.debit, b.credit, b.n
    FROM limner.day_sums(t, (SELECT max(d.day) + 1 FROM limner.book_day d WHERE d.org_id = t), p_day) b
  ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS made = ROW_COUNT;
  RETURN made;
END $$;

-- what moved in each book on each day (UTC) by kind, from a day (NULL: the first) up to another
CREATE FUNCTION limner.day_sums(p_org uuid, p_from date, p_day date)
RETURNS TABLE (day date, book text, kind text, debit numeric, credit numeric, n bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT (x.created_at AT TIME ZONE 'UTC')::date, s.book, x.kind, sum(s.debit), sum(s.credit), count(*)
    FROM limner.transfer x
   CROSS JOIN LATERAL (VALUES (x.debit_book, x.amount_mc, 0::bigint),
                              (CASE WHEN x.kind NOT IN ('hold', 'void') THEN x.credit_book END, 0, x.amount_mc)) s (book, debit, credit)
   WHERE x.org_id = p_org AND s.book IS NOT NULL AND x.created_at < (p_day + 1)::timestamp AT TIME ZONE 'UTC'
     AND (p_from IS NULL OR x.created_at >= p_from::timestamp AT TIME ZONE 'UTC')
   GROUP BY 1, 2, 3;
$$;

-- an organization is born with its wallet
CREATE FUNCTION limner.create_organization(p_ctx text, p_slug text, p_name text, p_grants text, p_cap bigint)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  INSERT INTO limner.organization (org_id, slug, name, grants, exposure_cap_mc) VALUES (t, p_slug, p_name, p_grants, p_cap);
  INSERT INTO limner.wallet (org_id, id, owner) VALUES (t, t, 'organization');
  INSERT INTO limner.queue_policy (org_id, app_id) VALUES (t, t);
  RETURN t;
END $$;
RESET ROLE;
