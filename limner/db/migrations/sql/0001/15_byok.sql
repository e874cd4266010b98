-- What an organization brings and wishes: its own keys at providers, and how its models and texts shall be chosen and sound.
SET ROLE limner_owner;

-- One key of an organization at one provider, of the platform's or of its own. sealed: for this very row and the provider's origin
-- (limner/egress/own_keys.py), and opened nowhere but on the way out. A new key is a new row.
CREATE TABLE limner.provider_key (
  org_id       uuid NOT NULL REFERENCES limner.organization (org_id),
  id           uuid NOT NULL,
  provider_org uuid NOT NULL CHECK (provider_org = org_id OR provider_org = '00000000-0000-0000-0000-000000000000'),
  provider_id  uuid NOT NULL,
  origin       text NOT NULL CHECK (length(origin) BETWEEN 1 AND 300),
  sealed       bytea NOT NULL CHECK (length(sealed) BETWEEN 30 AND 1000),
  kid          int NOT NULL CHECK (kid BETWEEN 0 AND 65535),       -- of the root key it is sealed under
  last4        text NOT NULL CHECK (length(last4) = 4),
  fingerprint  text NOT NULL CHECK (fingerprint ~ '^[0-9a-f]{16}$'),
  is_enabled   boolean NOT NULL DEFAULT true,
  created_by   text NOT NULL CHECK (length(created_by) BETWEEN 1 AND 200),
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  last_used_at timestamptz,
  last_error   text CHECK (length(last_error) <= 100),           -- of the latest call, where that failed because of the key
  last_error_at timestamptz,
  PRIMARY KEY (org_id, id),
  UNIQUE (org_id, provider_id),
  FOREIGN KEY (provider_org, provider_id) REFERENCES limner.provider (org_id, id)
);

-- default_models: by kind, for requests that name none; tone goes in front of their texts. own_keys_only: no platform's key is ever used.
-- byok_fee_percent: of the list price, for what an own key delivered; the operator's to say.
CREATE TABLE limner.ai_settings (
  org_id           uuid PRIMARY KEY REFERENCES limner.organization (org_id),
  default_models   jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(default_models) = 'object' AND pg_column_size(default_models) <= 16384),
  tone             text NOT NULL DEFAULT '' CHECK (length(tone) <= 2000),
  own_keys_only    boolean NOT NULL DEFAULT false,
  byok_fee_percent int NOT NULL DEFAULT 0 CHECK (byok_fee_percent BETWEEN 0 AND 100),
  updated_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

SELECT limner._protect('provider_key', 'ai_settings');
GRANT SELECT ON limner.provider_key, limner.ai_settings TO limner_api, limner_worker, limner_operator;
GRANT UPDATE (last_used_at, last_error, last_error_at) ON limner.provider_key TO limner_worker;
GRANT UPDATE (sealed, kid) ON limner.provider_key TO limner_worker, limner_operator;

-- internal: who changed what of these two, beside the change
CREATE FUNCTION limner._note(t uuid, p_action text, p_type text, p_entity text, p_actor_type text, p_actor text, p_facts jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO limner.audit_log (org_id, id, action, entity_type, entity_id, actor_type, actor, metadata)
  VALUES (t, limner._new_id(), p_action, p_type, p_entity, p_actor_type, p_actor, p_facts);
$$;

-- a key, instead of the one that was there
CREATE FUNCTION limner.put_provider_key(
  p_ctx text, p_id uuid, p_provider_org uuid, p_provider_id uuid, p_provider text, p_origin text, p_sealed bytea, p_kid int, p_last4 text,
  p_fingerprint text, p_enabled boolean, p_actor_type text, p_actor text)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  INSERT INTO limner.provider_key AS k (org_id, id, provider_org, provider_id, origin, sealed, kid, last4, fingerprint, is_enabled, created_by)
  VALUES (t, p_id, p_provider_org, p_provider_id, p_origin, p_sealed, p_kid, p_last4, p_fingerprint, p_enabled, p_actor)
  ON CONFLICT (org_id, provider_id) DO UPDATE SET id = excluded.id, provider_org = excluded.provider_org, origin = excluded.origin,
    sealed = excluded.sealed, kid = excluded.kid, last4 = excluded.last4, fingerprint = excluded.fingerprint, is_enabled = excluded.is_enabled,
    created_by = excluded.created_by, created_at = excluded.created_at, last_used_at = NULL, last_error = NULL, last_error_at = NULL;
  PERFORM limner._note(t, 'provider_key.put', 'provider_key', p_id::text, p_actor_type, p_actor,
                       jsonb_build_object('provider', p_provider, 'fingerprint', p_fingerprint, 'enabled', p_enabled));
END $$;

CREATE FUNCTION limner.switch_provider_key(p_ctx text, p_provider_id uuid, p_provider text, p_enabled boolean, p_actor_type text, p_actor text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  v_id uuid;
BEGIN
  UPDATE limner.provider_key k SET is_enabled = p_enabled WHERE k.org_id = t AND k.provider_id = p_provider_id RETURNING k.id INTO v_id;
  IF FOUND THEN
    PERFORM limner._note(t, 'provider_key.switched', 'provider_key', v_id::text, p_actor_type, p_actor,
                         jsonb_build_object('provider', p_provider, 'enabled', p_enabled));
  END IF;
  RETURN v_id IS NOT NULL;
END $$;

CREATE FUNCTION limner.remove_provider_key(p_ctx text, p_provider_id uuid, p_provider text, p_actor_type text, p_actor text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  v_id uuid;
BEGIN
  DELETE FROM limner.provider_key k WHERE k.org_id = t AND k.provider_id = p_provider_id RETURNING k.id INTO v_id;
  IF FOUND THEN
    PERFORM limner._note(t, 'provider_key.removed', 'provider_key', v_id::text, p_actor_type, p_actor, jsonb_build_object('provider', p_provider));
  END IF;
  RETURN v_id IS NOT NULL;
END $$;

CREATE FUNCTION limner.put_ai_settings(p_ctx text, p_models jsonb, p_tone text, p_own_keys_only boolean, p_actor_type text, p_actor text)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  INSERT INTO limner.ai_settings AS s (org_id, default_models, tone, own_keys_only) VALUES (t, p_models, p_tone, p_own_keys_only)
  ON CONFLICT (org_id) DO UPDATE SET default_models = excluded.default_models, tone = excluded.tone, own_keys_only = excluded.own_keys_only,
    updated_at = clock_timestamp();
  PERFORM limner._note(t, 'ai_settings.put', 'organization', t::text, p_actor_type, p_actor,
                       jsonb_build_object('default_models', p_models, 'tone', p_tone, 'own_keys_only', p_own_keys_only));
END $$;

CREATE FUNCTION limner.set_byok_fee(p_ctx text, p_percent int, p_actor text)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  INSERT INTO limner.ai_settings AS s (org_id, byok_fee_percent) VALUES (t, p_percent)
  ON CONFLICT (org_id) DO UPDATE SET byok_fee_percent = excluded.byok_fee_percent, updated_at = clock_timestamp();
  PERFORM limner._note(t, 'ai_settings.fee', 'organization', t::text, 'operator', p_actor, jsonb_build_object('byok_fee_percent', p_percent));
END $$;

GRANT EXECUTE ON FUNCTION limner.put_provider_key, limner.switch_provider_key, limner.remove_provider_key, limner.put_ai_settings
  TO limner_api, limner_operator;
GRANT EXECUTE ON FUNCTION limner.set_byok_fee TO limner_operator;
RESET ROLE;
