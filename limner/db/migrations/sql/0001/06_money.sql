-- The only writers of money. Each takes the signed context first (NULL inside a transaction that has one).
-- Errors: LM402 too few credits (DETAIL: json), LM403 inactive, LM404 absent, LM409 state, LM422 bad or reused parameters.
SET ROLE limner_owner;

-- moves `p_amount` out of a wallet's available credits; NULL when it does not hold that much
CREATE FUNCTION limner._take(t uuid, p_wallet uuid, p_amount bigint, OUT available bigint, OUT version bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.wallet w SET available_mc = w.available_mc - p_amount, version = w.version + 1
   WHERE w.org_id = t AND w.id = p_wallet AND w.available_mc >= p_amount
  RETURNING w.available_mc, w.version;
$$;

CREATE FUNCTION limner._give(t uuid, p_wallet uuid, p_amount bigint, OUT available bigint, OUT version bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  UPDATE limner.wallet w SET available_mc = w.available_mc + p_amount, version = w.version + 1
   WHERE w.org_id = t AND w.id = p_wallet
  RETURNING w.available_mc, w.version;
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

-- credits for an end user: from issuance under the exposure cap, or out of the organization's own wallet. After _lock_source.
CREATE FUNCTION limner._fund(t uuid, p_transfer uuid, p_wallet uuid, p_amount bigint, p_reason text, p_ref text, p_hash bytea)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  mode text;
  cap bigint;
  outstanding bigint;
  source_version bigint;
  source_available bigint;
  target record;
BEGIN
  SELECT o.grants, o.exposure_cap_mc INTO mode, cap FROM limner.organization o WHERE o.org_id = t;
  IF mode = 'from_wallet' THEN
    SELECT x.available, x.version INTO source_available, source_version FROM limner._take(t, t, p_amount) x;
    IF source_version IS NULL THEN
      SELECT w.available_mc INTO outstanding FROM limner.wallet w WHERE w.org_id = t AND w.id = t;
      RAISE EXCEPTION 'the organization''s wallet holds too few credits for this grant' USING ERRCODE = 'LM402',
        DETAIL = json_build_object('wallet', 'organization', 'balance_mc', outstanding, 'required_mc', p_amount);
    END IF;
  ELSIF cap IS NOT NULL THEN
    SELECT coalesce(sum(w.available_mc + w.held_mc), 0) INTO outstanding FROM limner.wallet w WHERE w.org_id = t;
    IF outstanding + p_amount > cap THEN
      RAISE EXCEPTION 'this grant would pass the organization''s exposure cap' USING ERRCODE = 'LM402',
        DETAIL = json_build_object('wallet', 'issuance', 'balance_mc', greatest(cap - outstanding, 0), 'required_mc', p_amount);
    END IF;
  END IF;
  SELECT * INTO STRICT target FROM limner._give(t, p_wallet, p_amount);
  INSERT INTO limner.transfer (org_id, id, kind, debit_wallet, debit_book, debit_version, debit_available_mc,
                               credit_wallet, credit_version, credit_available_mc, amount_mc, ref, request_hash, reason)
  VALUES (t, p_transfer, 'grant', CASE WHEN mode = 'from_wallet' THEN t END, CASE WHEN mode = 'issue' THEN 'issuance' END,
          source_version, source_available, p_wallet, target.version, target.available, p_amount, p_ref, p_hash, p_reason);
  RETURN target.available;
EXCEPTION
  WHEN numeric_value_out_of_range THEN
    RAISE EXCEPTION 'amount too large' USING ERRCODE = 'LM422';
  WHEN unique_violation THEN      -- the same reference at the same moment for somebody else
    RAISE EXCEPTION 'this idempotency key was used for another request' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
END $$;

-- finds the app's end user, or makes it with its wallet and welcome grant
CREATE FUNCTION limner._end_user(t uuid, p_app uuid, p_external text, p_new uuid, OUT id uuid, OUT is_active boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE welcome bigint;
BEGIN
  SELECT u.id, u.is_active INTO id, is_active FROM limner.end_user u
   WHERE u.org_id = t AND u.app_id = p_app AND u.external_id = p_external;
  IF FOUND THEN RETURN; END IF;
  SELECT a.welcome_mc INTO welcome FROM limner.app a WHERE a.org_id = t AND a.id = p_app;
  IF welcome > 0 THEN
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
  IF welcome > 0 THEN
    PERFORM limner._fund(t, p_new, p_new, welcome, 'Welcome credits', 'welcome:' || p_new, NULL);
  END IF;
  id := p_new;
  is_active := true;
END $$;

CREATE FUNCTION limner.grant_credits(p_ctx text, p_app uuid, p_external text, p_new_user uuid, p_transfer uuid,
                                     p_amount bigint, p_reason text, p_ref text, p_hash bytea)
RETURNS TABLE (outcome text, transfer_id uuid, available_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  u record;
  old limner.transfer;
BEGIN
  IF p_amount IS NULL OR p_amount <= 0 OR p_amount > 1000000000000000 THEN
    RAISE EXCEPTION 'a grant must be between 0.001 and 1,000,000,000,000 credits' USING ERRCODE = 'LM422';
  END IF;
  PERFORM limner._lock_source(t);
  SELECT * INTO STRICT u FROM limner._end_user(t, p_app, p_external, p_new_user);
  IF p_ref IS NOT NULL THEN
    PERFORM 1 FROM limner.wallet w WHERE w.org_id = t AND w.id = u.id FOR NO KEY UPDATE;   -- copies of one request queue here
    SELECT * INTO old FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'grant' AND x.ref = p_ref;
    IF FOUND THEN
      IF old.request_hash IS DISTINCT FROM p_hash THEN
        RAISE EXCEPTION 'this idempotency key was used for another request' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
      END IF;
      RETURN QUERY SELECT 'replayed', old.id, old.credit_available_mc;
      RETURN;
    END IF;
  END IF;
  IF NOT u.is_active THEN
    RAISE EXCEPTION 'this end user is deactivated' USING ERRCODE = 'LM403';
  END IF;
  RETURN QUERY SELECT 'granted', p_transfer, limner._fund(t, p_transfer, u.id, p_amount, p_reason, p_ref, p_hash);
END $$;

-- an operator's top-up of the organization's own wallet
CREATE FUNCTION limner.top_up(p_ctx text, p_transfer uuid, p_amount bigint, p_reason text, p_ref text)
RETURNS TABLE (outcome text, transfer_id uuid, available_mc bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  w record;
  old limner.transfer;
BEGIN
  IF p_amount IS NULL OR p_amount <= 0 OR p_amount > 1000000000000000 THEN
    RAISE EXCEPTION 'a top-up must be between 0.001 and 1,000,000,000,000 credits' USING ERRCODE = 'LM422';
  END IF;
  PERFORM 1 FROM limner.wallet x WHERE x.org_id = t AND x.id = t FOR NO KEY UPDATE;
  IF NOT FOUND THEN RAISE EXCEPTION 'no such organization' USING ERRCODE = 'LM404'; END IF;
  SELECT * INTO old FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'grant' AND x.ref = p_ref;
  IF FOUND THEN
    IF old.amount_mc <> p_amount OR old.credit_wallet <> t THEN
      RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
    END IF;
    RETURN QUERY SELECT 'replayed', old.id, old.credit_available_mc;
    RETURN;
  END IF;
  SELECT * INTO STRICT w FROM limner._give(t, t, p_amount);
  INSERT INTO limner.transfer (org_id, id, kind, debit_book, credit_wallet, credit_version, credit_available_mc, amount_mc, ref, reason)
  VALUES (t, p_transfer, 'grant', 'issuance', t, w.version, w.available, p_amount, p_ref, p_reason);
  RETURN QUERY SELECT 'granted', p_transfer, w.available;
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
  IF p_amount IS NULL OR p_amount <= 0 THEN
    RAISE EXCEPTION 'a refund must be more than nothing' USING ERRCODE = 'LM422';
  END IF;
  SELECT * INTO j FROM limner.job x WHERE x.org_id = t AND x.id = p_job FOR NO KEY UPDATE;
  IF NOT FOUND THEN RAISE EXCEPTION 'no such job' USING ERRCODE = 'LM404'; END IF;
  SELECT * INTO old FROM limner.transfer x WHERE x.org_id = t AND x.kind = 'refund' AND x.ref = p_ref;
  IF FOUND THEN
    IF old.amount_mc <> p_amount OR old.job_id <> p_job THEN
      RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
    END IF;
    RETURN QUERY SELECT 'replayed', old.id, old.credit_available_mc;
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
  RETURN QUERY SELECT 'refunded', p_transfer, w.available;
EXCEPTION WHEN unique_violation THEN      -- the same reference at the same moment for another job
  RAISE EXCEPTION 'this reference was used with other parameters' USING ERRCODE = 'LM422', DETAIL = 'idempotency';
END $$;

-- an organization is born with its wallet
CREATE FUNCTION limner.create_organization(p_ctx text, p_slug text, p_name text, p_grants text, p_cap bigint)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  INSERT INTO limner.organization (org_id, slug, name, grants, exposure_cap_mc) VALUES (t, p_slug, p_name, p_grants, p_cap);
  INSERT INTO limner.wallet (org_id, id, owner) VALUES (t, t, 'organization');
  RETURN t;
END $$;
RESET ROLE;
