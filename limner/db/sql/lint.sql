-- Every row is a defect. Run by `limner db lint` and by the tests. Exceptions stand here by name, each with its reason.
WITH rel AS (
  SELECT c.oid, c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.reloptions, c.relacl, c.relowner,
         EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped) AS tenant
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = 'limner' AND c.relkind IN ('r', 'p', 'm', 'v')),
fn AS (
  SELECT p.*, n.nspname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname LIKE 'limner%'),
first_column AS (
  SELECT i.indexrelid, i.indrelid, i.indisunique, i.indisprimary, i.indkey, (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = i.indkey[0]) AS name
    FROM pg_index i),
allowed (rule, name, why) AS (VALUES
  ('L04', 'alembic_version', 'the schema''s own revision'),
  ('L04', 'chore', 'installation-wide duties, no tenant''s data'),
  ('L04', 'event_relay', 'how far the log is put in order: a position, no tenant''s data'),
  ('L11', 'route_provider_org_provider_id_fkey', 'a CHECK binds provider_org to the row''s organization or the platform'),
  ('L11', 'provider_key_provider_org_provider_id_fkey', 'a CHECK binds provider_org to the row''s organization or the platform'),
  ('L12', 'api_key_key_hash_key', 'a key is looked up before its organization is known; 256 random bits reveal nothing'),
  ('L12', 'organization_slug_key', 'operators name organizations; a slug is no tenant''s secret'),
  ('L17', 'job_queue_deadline', 'the dispatcher''s cross-tenant scan of overdue rows'),
  ('L17', 'event_unread', 'the relay''s cross-tenant scan of new events'),
  ('L17', 'upload_due', 'the dispatcher''s cross-tenant scan of uploads to look after'),
  ('L17', 'transfer_recent', 'the auditor''s cross-tenant scan of recent rows'),
  ('L15', 'job_queue limner_dispatch', 'the dispatcher writes leases: columns only, never a payload or an amount'),
  ('L17', 'job_queue_deferred', 'the dispatcher''s cross-tenant scan of rows that become due'),
  ('L17', 'job_queue_leased', 'the dispatcher''s cross-tenant scan of leases'),
  ('L17', 'webhook_endpoint_turn', 'the dispatcher''s cross-tenant scan of endpoints whose turn has come'),
  ('L17', 'job_queue_places', 'places at a provider are counted over all organizations'),
  ('L22', 'queue_policy operator_lists', 'operators see how the queue is shared; no tenant''s data stands there'),
  ('L22', 'model platform', 'the platform''s catalog is everybody''s to read'),
  ('L22', 'provider platform', 'the platform''s catalog is everybody''s to read'),
  ('L22', 'route platform', 'the platform''s catalog is everybody''s to read'),
  ('L22', 'provider_health platform', 'how the platform''s providers fare is everybody''s to read'),
  ('L22', 'organization operator_lists', 'operators list organizations'),
  ('L22', 'job_queue operator_counts', 'operators count open jobs; no payload stands there'))
SELECT 'L01 tenant table without row level security enabled and forced' AS rule, relname AS object
  FROM rel WHERE tenant AND relkind IN ('r', 'p') AND NOT (relrowsecurity AND relforcerowsecurity)
UNION ALL
SELECT 'L02 tenant table without a policy', relname FROM rel
 WHERE tenant AND relkind IN ('r', 'p') AND NOT EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = rel.oid)
UNION ALL
SELECT 'L03 write policy without WITH CHECK', relname || ' ' || p.polname FROM rel JOIN pg_policy p ON p.polrelid = rel.oid
 WHERE p.polcmd IN ('*', 'a', 'w') AND p.polwithcheck IS NULL
UNION ALL
SELECT 'L04 table without org_id', relname FROM rel
 WHERE NOT tenant AND relkind IN ('r', 'p') AND relname NOT IN (SELECT name FROM allowed WHERE rule = 'L04')
UNION ALL
SELECT 'L05 view that is not security_invoker', relname FROM rel
 WHERE relkind = 'v' AND NOT coalesce(reloptions::text LIKE '%security_invoker=true%', false)
UNION ALL
SELECT 'L06 materialized view over tenant data', relname FROM rel WHERE relkind = 'm'
UNION ALL
SELECT 'L07 run-time role with a power it must not have', rolname FROM pg_roles
 WHERE rolname LIKE 'limner\_%' AND rolname NOT IN ('limner_migrate', 'limner_backup')
   AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)
UNION ALL
SELECT 'L08 run-time role that is a member of another', m.member::regrole || ' in ' || m.roleid::regrole
  FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
 WHERE r.rolcanlogin AND r.rolname LIKE 'limner\_%' AND r.rolname NOT IN ('limner_migrate', 'limner_backup')
UNION ALL
SELECT 'L09 SECURITY DEFINER without a pinned search_path', oid::regprocedure::text FROM fn
 WHERE prosecdef AND NOT EXISTS (SELECT 1 FROM unnest(coalesce(proconfig, '{}')) c WHERE c LIKE 'search\_path=%')
UNION ALL
SELECT 'L10 function that PUBLIC may call', oid::regprocedure::text FROM fn
 WHERE proacl IS NULL OR EXISTS (SELECT 1 FROM aclexplode(proacl) a WHERE a.grantee = 0)
UNION ALL
SELECT 'L11 foreign key between tenant tables that does not start with org_id', c.conrelid::regclass || ' ' || c.conname
  FROM pg_constraint c JOIN rel a ON a.oid = c.conrelid AND a.tenant JOIN rel b ON b.oid = c.confrelid AND b.tenant
 WHERE c.contype = 'f' AND c.conname NOT IN (SELECT name FROM allowed WHERE rule = 'L11')
   AND (SELECT attname FROM pg_attribute WHERE attrelid = c.conrelid AND attnum = c.conkey[1]) <> 'org_id'
UNION ALL
SELECT 'L12 unique key of a tenant table that does not start with org_id', i.indexrelid::regclass::text
  FROM first_column i JOIN rel ON rel.oid = i.indrelid AND rel.tenant
 WHERE i.indisunique AND i.name IS DISTINCT FROM 'org_id'
   AND i.indexrelid::regclass::text NOT IN (SELECT 'limner.' || name FROM allowed WHERE rule = 'L12')
UNION ALL
SELECT 'L13 LEAKPROOF function', oid::regprocedure::text FROM fn WHERE proleakproof
UNION ALL
SELECT 'L14 TRUNCATE, REFERENCES or TRIGGER granted', relname || ' to ' || a.grantee::regrole
  FROM rel, aclexplode(relacl) a WHERE a.privilege_type IN ('TRUNCATE', 'REFERENCES', 'TRIGGER') AND a.grantee <> relowner
UNION ALL
SELECT 'L15 run-time role that may write money or job state', relname || ' ' || a.privilege_type || ' to ' || a.grantee::regrole
  FROM rel, aclexplode(relacl) a
 WHERE relname IN ('wallet', 'transfer', 'job', 'job_input', 'job_queue', 'provider_call', 'usage_record', 'event')
   AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE') AND a.grantee NOT IN (relowner, 'limner_batch'::regrole)
UNION ALL
SELECT 'L15 run-time role that may write money or job state', rel.relname || '.' || c.attname || ' ' || a.privilege_type || ' to ' || a.grantee::regrole
  FROM rel JOIN pg_attribute c ON c.attrelid = rel.oid, aclexplode(c.attacl) a
 WHERE relname IN ('wallet', 'transfer', 'job', 'job_input', 'job_queue', 'provider_call', 'usage_record', 'event')
   AND a.privilege_type IN ('INSERT', 'UPDATE') AND a.grantee NOT IN (relowner, 'limner_batch'::regrole)
   AND relname || ' ' || a.grantee::regrole NOT IN (SELECT name FROM allowed WHERE rule = 'L15')
UNION ALL
SELECT 'L16 object of the schema owned by a run-time role', relname || ' by ' || relowner::regrole FROM rel
 WHERE relowner::regrole::text NOT IN ('limner_owner', 'limner_batch', 'limner_lookup', 'limner_ctx') AND relname <> 'alembic_version'
UNION ALL
SELECT 'L17 index of a tenant table that does not start with org_id', i.indexrelid::regclass::text
  FROM first_column i JOIN rel ON rel.oid = i.indrelid AND rel.tenant
 WHERE NOT i.indisunique AND i.name IS DISTINCT FROM 'org_id'
   AND i.indexrelid::regclass::text NOT IN (SELECT 'limner.' || name FROM allowed WHERE rule = 'L17')
UNION ALL
SELECT 'L18 tenant table whose org_id may be null', rel.relname FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid AND a.attname = 'org_id'
 WHERE rel.tenant AND rel.relkind IN ('r', 'p') AND NOT a.attnotnull
UNION ALL
SELECT 'L19 policy for everybody instead of named roles', rel.relname || ' ' || p.polname FROM rel JOIN pg_policy p ON p.polrelid = rel.oid
 WHERE p.polroles = '{0}'
UNION ALL
SELECT 'L20 SECURITY DEFINER function of an owner with other powers', oid::regprocedure || ' by ' || proowner::regrole FROM fn
 WHERE prosecdef AND proowner::regrole::text NOT IN ('limner_owner', 'limner_batch', 'limner_lookup', 'limner_ctx')
UNION ALL
SELECT 'L21 run-time role that may make objects', r.rolname || ' in ' || n.nspname FROM pg_roles r, pg_namespace n
 WHERE r.rolcanlogin AND r.rolname LIKE 'limner\_%' AND r.rolname NOT IN ('limner_migrate', 'limner_backup')
   AND (n.nspname LIKE 'limner%' OR n.nspname = 'public') AND has_schema_privilege(r.oid, n.oid, 'CREATE')
UNION ALL
SELECT 'L21 run-time role that may make objects', rolname || ' in pg_temp' FROM pg_roles
 WHERE rolcanlogin AND rolname LIKE 'limner\_%' AND rolname NOT IN ('limner_migrate', 'limner_backup')
   AND has_database_privilege(oid, current_database(), 'TEMPORARY')
UNION ALL
SELECT 'L22 policy that does not ask for the context', rel.relname || ' ' || p.polname
  FROM rel JOIN pg_policy p ON p.polrelid = rel.oid, LATERAL (
    SELECT CASE p.polroles WHEN ARRAY['limner_owner'::regrole::oid] THEN '(org_id = (current_setting(''limner.entered''::text))::uuid)'
                WHEN ARRAY['limner_batch'::regrole::oid] THEN
                  'COALESCE((org_id = ANY (( SELECT (current_setting(''limner.batch''::text))::uuid[] AS current_setting)::uuid[])), false)'
                ELSE '(org_id = ( SELECT limner.org() AS org))' END AS context) c
 WHERE rel.tenant AND p.polpermissive
   AND p.polroles && ARRAY(SELECT oid FROM pg_roles WHERE rolname IN ('limner_owner', 'limner_batch', 'limner_api', 'limner_worker', 'limner_operator'))
   AND (coalesce(pg_get_expr(p.polqual, p.polrelid), c.context) <> c.context
        OR coalesce(pg_get_expr(p.polwithcheck, p.polrelid), c.context) <> c.context)
   AND rel.relname || ' ' || p.polname NOT IN (SELECT name FROM allowed WHERE rule = 'L22')
UNION ALL
SELECT 'L20 function with the owner''s rights that a run-time role may call and that does not enter first', fn.oid::regprocedure::text
  FROM fn, aclexplode(fn.proacl) a
 WHERE fn.prosecdef AND fn.proowner IN ('limner_owner'::regrole, 'limner_batch'::regrole) AND a.grantee <> fn.proowner
   AND a.privilege_type = 'EXECUTE' AND fn.prosrc !~ CASE fn.proowner WHEN 'limner_owner'::regrole
     THEN '^\s*(#\w+ \w+\s*)?DECLARE\s+t uuid := limner\.enter\(p_ctx\);'
     ELSE '^\s*(#\w+ \w+\s*)?DECLARE\s+orgs uuid\[\] := limner\.enter_all\(p_ctx\);' END
   AND fn.oid::regprocedure::text NOT IN (SELECT name FROM allowed WHERE rule = 'L20')
ORDER BY 1, 2
