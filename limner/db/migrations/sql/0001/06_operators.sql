-- What operators and duties do to money: corrections, refunds, allowances, closed days.
SET ROLE limner_owner;

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
       OR (old.credit_wallet IS NULL) <> (p_amount < 0) OR old.request_hash IS DISTINCT FROM limner._end_hash(p_expires) THEN
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
   CROSS JOIN LATERAL (VALUES (x.debit_book, x.amount_mc, 0::bigint), (x.credit_book, 0, x.amount_mc)) s (book, debit, credit)
   WHERE x.org_id = p_org AND x.kind NOT IN ('hold', 'void') AND s.book IS NOT NULL
     AND x.created_at < (p_day + 1)::timestamp AT TIME ZONE 'UTC'
     AND (p_from IS NULL OR x.created_at >= p_from::timestamp AT TIME ZONE 'UTC')
   GROUP BY 1, 2, 3;
$$;
RESET ROLE;
