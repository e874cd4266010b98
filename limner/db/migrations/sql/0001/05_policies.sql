-- Row level security on every tenant table, forced, for named roles. The lint in db/sql/lint.sql holds it.
SET ROLE limner_owner;

-- internal: what holds for every table of tenants, and is run for each of them once
CREATE FUNCTION limner._protect(VARIADIC p_tables text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE t text;
BEGIN
  FOREACH t IN ARRAY p_tables LOOP
    EXECUTE format('ALTER TABLE limner.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE limner.%I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY tenant ON limner.%I TO limner_api, limner_worker, limner_operator
        USING (org_id = (SELECT limner.org())) WITH CHECK (org_id = (SELECT limner.org()))', t);
    -- the owner is bound too, to the organization its function entered; an error before that
    EXECUTE format('CREATE POLICY entered ON limner.%I TO limner_owner
        USING (org_id = current_setting(''limner.entered'')::uuid) WITH CHECK (org_id = current_setting(''limner.entered'')::uuid)', t);
    EXECUTE format('CREATE POLICY audit ON limner.%I FOR SELECT TO limner_audit USING (true)', t);
    EXECUTE format('GRANT SELECT ON limner.%I TO limner_audit', t);
  END LOOP;
END $$;

SELECT limner._protect('organization', 'app', 'api_key', 'end_user', 'audit_log', 'wallet', 'transfer', 'lot', 'lot_draw', 'book_day', 'model', 'provider',
                           'route', 'job', 'leftover', 'job_input', 'job_queue', 'queue_policy', 'rate_counter', 'provider_call', 'usage_record', 'event');

DO $$
DECLARE t text;
BEGIN
  -- a batch may touch what it writes, of the organizations it was signed for. The coalesce keeps this from being used as an index's
  -- condition: the rows are found by their own keys.
  FOREACH t IN ARRAY ARRAY['end_user', 'wallet', 'rate_counter', 'job', 'transfer', 'job_queue', 'provider_call', 'usage_record', 'event',
                           'job_input', 'leftover'] LOOP
    EXECUTE format('CREATE POLICY batch ON limner.%I TO limner_batch
        USING (coalesce(org_id = ANY ((SELECT current_setting(''limner.batch'')::uuid[])::uuid[]), false))
        WITH CHECK (coalesce(org_id = ANY ((SELECT current_setting(''limner.batch'')::uuid[])::uuid[]), false))', t);
  END LOOP;
  -- the platform's catalog is everybody's to read
  FOREACH t IN ARRAY ARRAY['model', 'provider', 'route'] LOOP
    EXECUTE format('CREATE POLICY platform ON limner.%I FOR SELECT TO limner_api, limner_worker, limner_operator
        USING (org_id = ''00000000-0000-0000-0000-000000000000'')', t);
  END LOOP;
  -- TRUNCATE passes row triggers and policies by: history has none
  FOREACH t IN ARRAY ARRAY['audit_log', 'transfer', 'lot', 'lot_draw', 'book_day', 'job', 'usage_record', 'event'] LOOP
    EXECUTE format('CREATE TRIGGER never_truncated BEFORE TRUNCATE ON limner.%I EXECUTE FUNCTION limner.refuse_change()', t);
  END LOOP;
END $$;
RESET ROLE;
