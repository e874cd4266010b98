-- The tenant context: transaction-local, signed, loud when missing. Run as the migrating role.
-- no function is anybody's until it is granted
ALTER DEFAULT PRIVILEGES FOR ROLE limner_owner, limner_batch, limner_lookup, limner_ctx REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

CREATE SCHEMA limner_priv AUTHORIZATION limner_ctx;
GRANT USAGE, CREATE ON SCHEMA limner TO limner_ctx;
SET ROLE limner_ctx;

-- HMAC pads by key id; readable by nobody but the function below
CREATE TABLE limner_priv.ctx_key (
  kid int PRIMARY KEY,
  ik  bytea NOT NULL CHECK (length(ik) = 64),
  ok  bytea NOT NULL CHECK (length(ok) = 64)
);

-- the organizations a context names, once its signature and its age are right and they are not more than may be
CREATE FUNCTION limner.verify(v text, p_most int) RETURNS uuid[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  message text := left(v, -65);         -- all but the signature; nothing of it is parsed before that is right, and what was signed is well-formed
  key record;
BEGIN
  IF v IS NULL OR v = '' THEN
    RAISE EXCEPTION 'tenant context not set' USING ERRCODE = 'LM001';
  END IF;
  SELECT encode(sha256(k.ok || sha256(k.ik || convert_to(message, 'UTF8'))), 'hex') = right(v, 64) AS signed INTO key
    FROM limner_priv.ctx_key k WHERE k.kid::text = split_part(v, '.', 1);
  IF NOT FOUND THEN
    RAISE EXCEPTION 'tenant context names an unknown key' USING ERRCODE = 'LM001';
  END IF;
  IF NOT key.signed THEN
    RAISE EXCEPTION 'tenant context forged' USING ERRCODE = 'LM001';
  END IF;
  IF split_part(message, '.', 3)::bigint < extract(epoch FROM clock_timestamp()) THEN
    RAISE EXCEPTION 'tenant context expired' USING ERRCODE = 'LM001';
  END IF;
  IF length(split_part(message, '.', 2)) >= 37 * p_most THEN
    RAISE EXCEPTION 'tenant context names too many organizations' USING ERRCODE = 'LM001';
  END IF;
  RETURN string_to_array(split_part(message, '.', 2), ',')::uuid[];   -- cast here: an assignment's own cast costs a third of all this
END $$;

-- what the run-time roles' policies compare with
CREATE FUNCTION limner.org() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT (limner.verify(current_setting('limner.ctx', true), 1))[1]
$$;
GRANT EXECUTE ON FUNCTION limner.org() TO limner_api, limner_worker, limner_operator;
GRANT EXECUTE ON FUNCTION limner.verify(text, int) TO limner_owner, limner_batch;
RESET ROLE;
REVOKE CREATE ON SCHEMA limner FROM limner_ctx;

SET ROLE limner_owner;
-- The first act of every function that runs with the owner's rights: the context, carried as an argument (one round
-- trip, one transaction) or set in the transaction, is verified once, and the owner's own policies compare with the
-- result. Nobody but this schema's functions runs as the owner, and each of them enters first (lint L20), so what a
-- caller may have put into limner.entered is never read.
CREATE FUNCTION limner.enter(p_ctx text) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
  t uuid := (limner.verify(coalesce(p_ctx, current_setting('limner.ctx', true)), 1))[1];
  v text := set_config('limner.entered', t::text, true);
BEGIN
  RETURN t;
END $$;

-- The first act of the batch role's functions: all the organizations of a batch, signed for together. That role owns nothing but
-- such functions and may touch only what a batch writes.
CREATE FUNCTION limner.enter_all(p_ctx text) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
  orgs uuid[] := limner.verify(p_ctx, 64);
  v text := set_config('limner.batch', orgs::text, true);
BEGIN
  RETURN orgs;
END $$;
GRANT EXECUTE ON FUNCTION limner.enter_all(text) TO limner_batch;

CREATE FUNCTION limner.platform() RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT '00000000-0000-0000-0000-000000000000'::uuid $$;
GRANT EXECUTE ON FUNCTION limner.platform() TO limner_api, limner_worker, limner_operator, limner_dispatch;

-- append-only tables say so to everybody, their owner included
CREATE FUNCTION limner.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'LM403';
END $$;
RESET ROLE;
