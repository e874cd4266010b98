-- What a wallet holds and what of it ends: everything that changes it goes through here, under the wallet's lock.
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
RESET ROLE;
