-- The only writers of money. Each takes the signed context first (NULL inside a transaction that has one).
-- Errors: LM402 too few credits (DETAIL: json), LM403 inactive, LM404 absent, LM409 state, LM422 bad or reused parameters.
SET ROLE limner_owner;

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
    IF old.amount_mc <> p_amount OR old.credit_wallet <> t OR old.kind <> p_kind OR old.request_hash IS DISTINCT FROM limner._end_hash(p_expires) THEN
      RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
    END IF;
    RETURN QUERY SELECT 'replayed', old.id, a.available FROM limner._left_after(old) a;
    RETURN;
  END IF;
  PERFORM limner._check_expiry(p_expires);
  RETURN QUERY SELECT 'granted', p_transfer, limner._issue(t, p_transfer, t, p_kind, p_amount, p_expires, p_reason, p_ref);
END $$;

-- what of a request its transfer does not show: when its credits end, so that the same reference with another end is refused
CREATE FUNCTION limner._end_hash(p_expires timestamptz) RETURNS bytea LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT sha256(convert_to(extract(epoch FROM p_expires)::text, 'UTF8'))
$$;

-- internal, under the wallet's lock: credits an operator makes, whoever pays for the organization's grants
CREATE FUNCTION limner._issue(t uuid, p_transfer uuid, p_wallet uuid, p_kind text, p_amount bigint, p_expires timestamptz, p_reason text, p_ref text)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE w record;
BEGIN
  SELECT * INTO STRICT w FROM limner._give(t, p_wallet, p_amount);
  INSERT INTO limner.transfer (org_id, id, kind, debit_book, credit_wallet, credit_version, credit_available_mc, amount_mc, ref, request_hash,
                               reason)
  VALUES (t, p_transfer, p_kind, 'issuance', p_wallet, w.version, w.available, p_amount, p_ref, limner._end_hash(p_expires), p_reason);
  PERFORM limner._open_lot(t, p_transfer, p_wallet, p_kind, p_amount, p_expires);
  RETURN limner._repay(t, p_wallet, p_transfer);
EXCEPTION WHEN numeric_value_out_of_range THEN
  RAISE EXCEPTION 'amount too large' USING ERRCODE = 'LM422';
END $$;
RESET ROLE;
