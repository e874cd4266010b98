-- Organizations, apps, API keys, end users, and the record of who changed what.
SET ROLE limner_owner;

CREATE TABLE limner.organization (
  org_id      uuid PRIMARY KEY,
  slug        text NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  name        text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
  is_active   boolean NOT NULL DEFAULT true,
  grants      text NOT NULL DEFAULT 'issue' CHECK (grants IN ('issue', 'from_wallet')),
  exposure_cap_mc bigint CHECK (exposure_cap_mc >= 0),
  monthly_mc  bigint NOT NULL DEFAULT 0 CHECK (monthly_mc BETWEEN 0 AND 1000000000000),
  jobs_per_min int CHECK (jobs_per_min > 0),
  max_open    int CHECK (max_open > 0),
  show_costs  boolean NOT NULL DEFAULT false,
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE limner.app (
  org_id      uuid NOT NULL REFERENCES limner.organization (org_id),
  id          uuid NOT NULL,
  slug        text NOT NULL CHECK (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  name        text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
  description text NOT NULL DEFAULT '' CHECK (length(description) <= 2000),
  is_enabled  boolean NOT NULL DEFAULT true,
  welcome_mc  bigint NOT NULL DEFAULT 0 CHECK (welcome_mc BETWEEN 0 AND 1000000000000),
  monthly_mc  bigint NOT NULL DEFAULT 0 CHECK (monthly_mc BETWEEN 0 AND 1000000000000),
  jobs_per_min int CHECK (jobs_per_min > 0),       -- NULL: the installation's default
  user_jobs_per_min int CHECK (user_jobs_per_min > 0),
  keep_days   int CHECK (keep_days BETWEEN 1 AND 36500),      -- how long a closed job's input and outputs are kept; NULL: for ever
  keep_jobs   int CHECK (keep_jobs BETWEEN 0 AND 1000000),    -- of how many closed jobs, the newest
  erased_to   uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',   -- up to which job that was done
  body_users  boolean NOT NULL DEFAULT false,      -- whether /v1 takes a body's `user` for the end user where X-User-ID names none
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  UNIQUE (org_id, slug)
);

CREATE TABLE limner.api_key (
  org_id       uuid NOT NULL,
  id           uuid NOT NULL,
  app_id       uuid NOT NULL,
  name         text NOT NULL DEFAULT '' CHECK (length(name) <= 200),
  prefix       text NOT NULL,
  key_hash     bytea NOT NULL UNIQUE CHECK (length(key_hash) = 32),
  scopes       text[] NOT NULL,
  last_used_at timestamptz,
  expires_at   timestamptz,
  revoked_at   timestamptz,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  FOREIGN KEY (org_id, app_id) REFERENCES limner.app (org_id, id)
);
CREATE INDEX api_key_of_app ON limner.api_key (org_id, app_id);

CREATE TABLE limner.end_user (
  org_id      uuid NOT NULL,
  id          uuid NOT NULL,
  app_id      uuid NOT NULL,
  external_id text NOT NULL CHECK (length(external_id) BETWEEN 1 AND 255),
  metadata    jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object' AND pg_column_size(metadata) <= 16384),
  is_active   boolean NOT NULL DEFAULT true,
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  UNIQUE (org_id, app_id, external_id),
  FOREIGN KEY (org_id, app_id) REFERENCES limner.app (org_id, id)
);

CREATE TABLE limner.audit_log (
  org_id      uuid NOT NULL,
  id          uuid NOT NULL,
  action      text NOT NULL,
  entity_type text NOT NULL,
  entity_id   text NOT NULL,
  actor_type  text NOT NULL CHECK (actor_type IN ('operator', 'app', 'system')),
  actor       text NOT NULL,
  metadata    jsonb NOT NULL DEFAULT '{}',
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON limner.audit_log
  FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();

GRANT SELECT ON limner.organization, limner.app, limner.end_user TO limner_api;
GRANT SELECT (org_id, id, keep_days, keep_jobs, erased_to) ON limner.app TO limner_worker;
GRANT SELECT, INSERT ON limner.organization, limner.app, limner.api_key, limner.audit_log TO limner_operator;
GRANT SELECT ON limner.end_user TO limner_operator;
GRANT UPDATE (name, is_active, grants, exposure_cap_mc, monthly_mc, jobs_per_min, max_open, show_costs) ON limner.organization TO limner_operator;
GRANT UPDATE (name, description, is_enabled, welcome_mc, body_users, monthly_mc, jobs_per_min, user_jobs_per_min, keep_days, keep_jobs) ON limner.app TO limner_operator;
GRANT UPDATE (name, expires_at, revoked_at) ON limner.api_key TO limner_operator;
GRANT UPDATE (metadata, is_active) ON limner.end_user TO limner_operator;
GRANT SELECT (org_id, show_costs) ON limner.organization TO limner_worker;

-- what a look-up of a key may see: named columns, nothing else
GRANT SELECT (org_id, id, app_id, key_hash, scopes, last_used_at, expires_at, revoked_at) ON limner.api_key TO limner_lookup;
GRANT UPDATE (last_used_at) ON limner.api_key TO limner_lookup;
GRANT SELECT (org_id, id, is_enabled, body_users, jobs_per_min, user_jobs_per_min) ON limner.app TO limner_lookup;
GRANT SELECT (org_id, is_active, jobs_per_min, max_open) ON limner.organization TO limner_lookup;
CREATE POLICY lookup ON limner.api_key FOR SELECT TO limner_lookup USING (true);
CREATE POLICY lookup_used ON limner.api_key FOR UPDATE TO limner_lookup USING (true) WITH CHECK (true);
CREATE POLICY lookup ON limner.app FOR SELECT TO limner_lookup USING (true);
CREATE POLICY lookup ON limner.organization FOR SELECT TO limner_lookup USING (true);
CREATE POLICY operator_lists ON limner.organization FOR SELECT TO limner_operator USING (true);
RESET ROLE;

GRANT USAGE, CREATE ON SCHEMA limner TO limner_lookup;
SET ROLE limner_lookup;
-- answers a row for every key that was ever issued; the caller decides what its flags mean
CREATE FUNCTION limner.resolve_key(p_hash bytea)
RETURNS TABLE (org_id uuid, key_id uuid, app_id uuid, scopes text[], live boolean, app_enabled boolean, org_active boolean,
               user_jobs_per_min int, app_jobs_per_min int, org_jobs_per_min int, org_max_open int, body_users boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  UPDATE limner.api_key SET last_used_at = clock_timestamp()
   WHERE key_hash = p_hash AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute');
  RETURN QUERY
    SELECT k.org_id, k.id, k.app_id, k.scopes,
           k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp()),
           a.is_enabled, o.is_active, a.user_jobs_per_min, a.jobs_per_min, o.jobs_per_min, o.max_open, a.body_users
      FROM limner.api_key k
      JOIN limner.app a ON a.org_id = k.org_id AND a.id = k.app_id
      JOIN limner.organization o ON o.org_id = k.org_id
     WHERE k.key_hash = p_hash;
END $$;
GRANT EXECUTE ON FUNCTION limner.resolve_key(bytea) TO limner_api;
RESET ROLE;
REVOKE CREATE ON SCHEMA limner FROM limner_lookup;
