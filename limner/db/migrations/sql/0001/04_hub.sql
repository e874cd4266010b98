-- The catalog (what is sold, who runs it, in what order), jobs, their queue, their attempts, usage and events.
SET ROLE limner_owner;

CREATE TABLE limner.model (
  org_id       uuid NOT NULL,
  id           uuid NOT NULL,
  name         text NOT NULL CHECK (name ~ '^[a-zA-Z0-9][a-zA-Z0-9._:/-]{0,127}$'),
  display_name text NOT NULL,
  family       text NOT NULL DEFAULT '',
  description  text NOT NULL DEFAULT '',
  kind         text NOT NULL,
  capabilities jsonb NOT NULL DEFAULT '{}',
  input_schema jsonb NOT NULL,
  price_mc     bigint NOT NULL CHECK (price_mc BETWEEN 0 AND 1000000000000),
  price_unit   text NOT NULL DEFAULT 'output' CHECK (price_unit IN ('output', 'job', 'tokens', 'second', 'minute')),
  -- of a model sold by tokens: milli-credits for a million of them, where and when the prices were read; the longest answer
  input_price_mc  bigint NOT NULL DEFAULT 0 CHECK (input_price_mc BETWEEN 0 AND 1000000000000),
  cached_price_mc bigint NOT NULL DEFAULT 0 CHECK (cached_price_mc BETWEEN 0 AND 1000000000000),
  output_price_mc bigint NOT NULL DEFAULT 0 CHECK (output_price_mc BETWEEN 0 AND 1000000000000),
  price_source text NOT NULL DEFAULT '',
  priced_on    date,
  max_output_tokens int NOT NULL DEFAULT 4096 CHECK (max_output_tokens BETWEEN 1 AND 10000000),
  on_disconnect text NOT NULL DEFAULT 'drain' CHECK (on_disconnect IN ('abort', 'drain', 'estimate')),
  expected_s   real NOT NULL DEFAULT 5 CHECK (expected_s > 0),
  deadline_s   int NOT NULL DEFAULT 86400 CHECK (deadline_s BETWEEN 1 AND 604800),
  is_enabled   boolean NOT NULL DEFAULT true,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  UNIQUE (org_id, name)
);

CREATE TABLE limner.provider (
  org_id       uuid NOT NULL,
  id           uuid NOT NULL,
  name         text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  display_name text NOT NULL,
  adapter      text NOT NULL,
  base_url     text,
  config       jsonb NOT NULL DEFAULT '{}',
  is_enabled   boolean NOT NULL DEFAULT true,
  max_running  int CHECK (max_running BETWEEN 1 AND 1000000),
  claim_lock   boolean NOT NULL DEFAULT false,      -- never changed: who gives out a place at a provider with a cap locks the row
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  UNIQUE (org_id, name)
);
CREATE INDEX provider_capped ON limner.provider (org_id, id) WHERE max_running IS NOT NULL;

-- a route belongs to its model's organization; its provider is that organization's own or the platform's
CREATE TABLE limner.route (
  org_id         uuid NOT NULL,
  id             uuid NOT NULL,
  model_id       uuid NOT NULL,
  provider_org   uuid NOT NULL CHECK (provider_org = org_id OR provider_org = '00000000-0000-0000-0000-000000000000'),
  provider_id    uuid NOT NULL,
  provider_model text NOT NULL,
  priority       int NOT NULL DEFAULT 1 CHECK (priority BETWEEN 1 AND 1000),
  cost_micro_usd bigint NOT NULL DEFAULT 0 CHECK (cost_micro_usd >= 0),
  -- a million tokens each
  input_cost_micro_usd  bigint NOT NULL DEFAULT 0 CHECK (input_cost_micro_usd BETWEEN 0 AND 1000000000000),
  cached_cost_micro_usd bigint NOT NULL DEFAULT 0 CHECK (cached_cost_micro_usd BETWEEN 0 AND 1000000000000),
  output_cost_micro_usd bigint NOT NULL DEFAULT 0 CHECK (output_cost_micro_usd BETWEEN 0 AND 1000000000000),
  config         jsonb NOT NULL DEFAULT '{}',
  is_enabled     boolean NOT NULL DEFAULT true,
  created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  UNIQUE (org_id, model_id, provider_id),
  FOREIGN KEY (org_id, model_id) REFERENCES limner.model (org_id, id),
  FOREIGN KEY (provider_org, provider_id) REFERENCES limner.provider (org_id, id)
);

CREATE TABLE limner.job (
  org_id         uuid NOT NULL,
  id             uuid NOT NULL,
  app_id         uuid NOT NULL,
  end_user_id    uuid,
  principal_id   uuid NOT NULL,
  wallet_id      uuid NOT NULL,
  model_id       uuid NOT NULL,
  model          text NOT NULL,
  kind           text NOT NULL,
  state          text NOT NULL DEFAULT 'queued',
  priority       smallint NOT NULL,
  route          text NOT NULL,
  idem_key       text,
  request_hash   bytea NOT NULL,
  input          jsonb NOT NULL,
  outputs        jsonb,
  unit_price_mc  bigint NOT NULL,
  token_prices   jsonb,                 -- of a model that is sold by tokens or by time: what it cost when this was ordered
  price_hold_mc  bigint NOT NULL,
  price_final_mc bigint,
  refunded_mc    bigint NOT NULL DEFAULT 0,
  wait_s         int NOT NULL,
  run_at         timestamptz,
  cancel_after_s int,                   -- the request's own deadline, in seconds from when it is due; NULL: the model's
  drew_lots      boolean NOT NULL DEFAULT false,
  runs           int NOT NULL DEFAULT 0,
  provider_used  text,
  error_code     text,
  error_message  text,
  finished_fence bigint,
  request_id     text,
  traceparent    text,
  webhook_url    text,
  terms          jsonb,                 -- what the organization's settings and keys made of this order (limner/hub/terms.py)
  created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  started_at     timestamptz,
  finished_at    timestamptz,
  PRIMARY KEY (org_id, id),
  CONSTRAINT job_never_above_its_hold CHECK (coalesce(price_final_mc, 0) BETWEEN 0 AND price_hold_mc AND refunded_mc <= coalesce(price_final_mc, 0))
) WITH (fillfactor = 70);

-- what a job's row must look like; checked as transfer_is_sound is
CREATE FUNCTION limner.job_is_sound(x limner.job) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT x.state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')
     AND (x.state IN ('succeeded', 'failed', 'cancelled')) = (x.finished_at IS NOT NULL)
     AND (x.finished_at IS NULL) = (x.price_final_mc IS NULL)
     AND (x.state = 'succeeded' OR coalesce(x.price_final_mc, 0) = 0)
     AND x.refunded_mc >= 0 AND x.wallet_id = coalesce(x.end_user_id, x.org_id) AND x.principal_id = coalesce(x.end_user_id, x.app_id)
     AND x.priority BETWEEN 1 AND 100 AND coalesce(length(x.idem_key), 1) BETWEEN 1 AND 255
     AND length(x.request_hash) = 32 AND coalesce(length(x.traceparent), 0) <= 64
$$;

CREATE UNIQUE INDEX job_idem ON limner.job (org_id, principal_id, route, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX job_of_app ON limner.job (org_id, app_id, id);
CREATE INDEX job_of_user ON limner.job (org_id, end_user_id, id) WHERE end_user_id IS NOT NULL;

-- closed jobs that may have left objects nobody refers to: more than one claim, or no success. A table of its own: an index on the
-- job's end would make every start and finish write all of the job's indexes.
CREATE TABLE limner.leftover (
  org_id      uuid NOT NULL,
  finished_at timestamptz NOT NULL,
  job_id      uuid NOT NULL,
  PRIMARY KEY (org_id, finished_at, job_id)
);

CREATE FUNCTION limner.job_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.finished_at IS NULL THEN
    IF NEW.state = OLD.state OR (OLD.state, NEW.state) IN (
         ('queued', 'running'), ('running', 'queued'), ('queued', 'failed'), ('queued', 'cancelled'),
         ('running', 'succeeded'), ('running', 'failed'), ('running', 'cancelled')) THEN
      RETURN NEW;
    END IF;
    RAISE EXCEPTION 'illegal job transition % -> %', OLD.state, NEW.state USING ERRCODE = 'LM409';
  END IF;
  -- a closed job is frozen: refunds may grow, personal data may be erased, an old idempotency key may lapse
  IF (to_jsonb(NEW) - '{refunded_mc,input,outputs,idem_key}'::text[]) = (to_jsonb(OLD) - '{refunded_mc,input,outputs,idem_key}'::text[])
     AND NEW.refunded_mc >= OLD.refunded_mc
     AND (NEW.input = OLD.input OR NEW.input = '{}'::jsonb)
     AND (NEW.outputs IS NOT DISTINCT FROM OLD.outputs OR NEW.outputs IS NULL)
     AND (NEW.idem_key IS NOT DISTINCT FROM OLD.idem_key OR NEW.idem_key IS NULL) THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'job % is closed', OLD.id USING ERRCODE = 'LM409';
END $$;
CREATE TRIGGER job_transition BEFORE UPDATE ON limner.job FOR EACH ROW EXECUTE FUNCTION limner.job_transition();
CREATE TRIGGER never_deleted BEFORE DELETE ON limner.job FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();

-- the bytes of data-URI inputs, kept only while the job is open
CREATE TABLE limner.job_input (
  org_id     uuid NOT NULL,
  job_id     uuid NOT NULL,
  name       text NOT NULL CHECK (name ~ '^(image_[0-9]+|mask|audio)$'),
  media_type text NOT NULL,
  width      int NOT NULL,              -- in pixels; 0, and so is the height, of a recording
  height     int NOT NULL,
  data       bytea NOT NULL,
  PRIMARY KEY (org_id, job_id, name),
  FOREIGN KEY (org_id, job_id) REFERENCES limner.job (org_id, id)
);
ALTER TABLE limner.job_input ALTER COLUMN data SET STORAGE EXTERNAL;

-- The hot row: exists iff the job is open. `claimable_at` is when it may be claimed again: its run-at, the end of a pause between
-- runs, or the end of its lease. phase: ready (in line), capped (in line, by model: a provider of its model has a cap), deferred (not
-- yet), leased (a worker has it). A job of such a model has a place at one provider while it is leased: provider_id.
CREATE TABLE limner.job_queue (
  org_id       uuid NOT NULL,
  job_id       uuid NOT NULL,
  app_id       uuid NOT NULL,
  priority     smallint NOT NULL,
  phase        text NOT NULL DEFAULT 'ready',
  claimable_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  runs         int NOT NULL DEFAULT 0,
  max_runs     int NOT NULL,
  fence        bigint NOT NULL DEFAULT 0,
  lease_owner  text,
  cancel_requested_at timestamptz,
  percent      smallint NOT NULL DEFAULT 0,
  stage        text NOT NULL DEFAULT 'queued',
  deadline_at  timestamptz NOT NULL,
  model_id     uuid,
  provider_id  uuid,
  wallet_id    uuid NOT NULL,                       -- what the job holds, and whose: so that open holds are counted without the jobs
  hold_mc      bigint NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, job_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX job_queue_ready ON limner.job_queue (org_id, app_id, priority, job_id) WHERE phase = 'ready';
CREATE INDEX job_queue_capped ON limner.job_queue (org_id, app_id, model_id, priority, job_id) WHERE phase = 'capped';
CREATE INDEX job_queue_places ON limner.job_queue (provider_id) WHERE phase = 'leased' AND provider_id IS NOT NULL;
CREATE INDEX job_queue_deferred ON limner.job_queue (claimable_at) WHERE phase = 'deferred';
CREATE INDEX job_queue_leased ON limner.job_queue (claimable_at, org_id, app_id) WHERE phase = 'leased';
CREATE INDEX job_queue_deadline ON limner.job_queue (deadline_at);

-- How an organization (app_id = org_id) or one of its apps shares the workers. The platform's own row pauses everybody.
CREATE TABLE limner.queue_policy (
  org_id      uuid NOT NULL,
  app_id      uuid NOT NULL,
  weight      int NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 1000),
  max_running int CHECK (max_running > 0),
  paused_at   timestamptz,
  claim_lock  boolean NOT NULL DEFAULT false,      -- never changed: what a claim of a capped organization locks
  PRIMARY KEY (org_id, app_id)
);
CREATE INDEX queue_policy_capped ON limner.queue_policy (org_id) WHERE max_running IS NOT NULL;

-- Token buckets of apps and organizations, in eight pieces where they are large so that no row is hot. `tat`: when the piece is full
-- again. Unlogged: after a crash every bucket is full.
CREATE UNLOGGED TABLE limner.rate_counter (
  org_id     uuid NOT NULL,
  subject_id uuid NOT NULL,
  shard      smallint NOT NULL,
  tat        timestamptz NOT NULL,
  PRIMARY KEY (org_id, subject_id, shard)
) WITH (fillfactor = 20);

-- one row for each try at one provider; the intent is committed before the socket opens
CREATE TABLE limner.provider_call (
  org_id         uuid NOT NULL,
  job_id         uuid NOT NULL,
  step           text NOT NULL,
  provider       text NOT NULL,
  send_no        int NOT NULL,
  run            int NOT NULL,
  fence          bigint NOT NULL,
  provider_model text NOT NULL,
  rule           text NOT NULL,
  own_key        boolean NOT NULL DEFAULT false,   -- asked with the organization's own key, at its own cost
  idem_key       text NOT NULL,
  state          text NOT NULL DEFAULT 'intent',   -- accepted, done, error, unknown
  provider_task_id text,
  cost_micro_usd bigint,
  latency_ms     int,
  error_code     text,
  error_message  text,
  outputs        jsonb,
  created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  finished_at    timestamptz,
  PRIMARY KEY (org_id, job_id, step, provider, send_no)
);

CREATE TABLE limner.usage_record (
  org_id         uuid NOT NULL,
  job_id         uuid NOT NULL,
  seq            int NOT NULL,
  app_id         uuid NOT NULL,
  end_user_id    uuid,
  model          text NOT NULL,
  provider       text NOT NULL,
  kind           text NOT NULL,
  quantity       bigint NOT NULL,
  unit           text NOT NULL,
  price_mc       bigint NOT NULL,
  cost_micro_usd bigint,
  created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, job_id, seq),
  CONSTRAINT usage_never_negative CHECK (least(quantity, price_mc, cost_micro_usd) >= 0)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON limner.usage_record
  FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();

-- the log's rows; their place in it is given by the relay (11_events.sql) once nothing older can still commit. `deliver_to`: where the
-- job's request asked to be told.
CREATE TABLE limner.event (
  org_id     uuid NOT NULL,
  id         uuid NOT NULL,
  xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
  app_id     uuid,
  type       text NOT NULL,
  subject_id uuid NOT NULL,
  payload    jsonb NOT NULL,
  deliver_to text,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id)
);
CREATE INDEX event_unread ON limner.event (xid, id);
CREATE UNIQUE INDEX one_terminal_event_per_job ON limner.event (org_id, subject_id)
  WHERE type IN ('job.completed', 'job.failed', 'job.cancelled');
CREATE INDEX event_of_subject ON limner.event (org_id, subject_id, id);

-- periodic duties: whichever worker comes first after next_at does it
CREATE TABLE limner.chore (
  name       text PRIMARY KEY,
  next_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  done_at    timestamptz,
  watermark  timestamptz NOT NULL DEFAULT '1970-01-01T00:00:00Z',
  result     jsonb NOT NULL DEFAULT '{}'
);

GRANT SELECT ON limner.model, limner.provider, limner.route TO limner_api, limner_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON limner.model, limner.provider, limner.route TO limner_operator;
GRANT SELECT ON limner.job, limner.job_queue, limner.provider_call, limner.usage_record, limner.event TO limner_api, limner_operator;
GRANT SELECT ON limner.job, limner.job_input, limner.provider_call, limner.leftover TO limner_worker;
GRANT DELETE ON limner.leftover TO limner_worker;
GRANT SELECT (ctid, org_id, job_id, app_id, priority, phase, claimable_at, runs, max_runs, fence, lease_owner, cancel_requested_at, percent, stage,
              deadline_at, model_id, provider_id, created_at),
  UPDATE (phase, claimable_at, runs, fence, lease_owner, percent, stage, model_id, provider_id) ON limner.job_queue TO limner_dispatch;
GRANT SELECT (org_id, id, model_id) ON limner.job TO limner_dispatch;
GRANT SELECT (org_id, model_id, provider_org, provider_id, priority, is_enabled) ON limner.route TO limner_dispatch;
GRANT SELECT (org_id, id, is_enabled, max_running, claim_lock), UPDATE (claim_lock) ON limner.provider TO limner_dispatch, limner_lookup;
GRANT SELECT (name) ON limner.provider TO limner_lookup;
GRANT SELECT, UPDATE (claim_lock) ON limner.queue_policy TO limner_dispatch;
GRANT SELECT, INSERT, DELETE, UPDATE (weight, max_running, paused_at) ON limner.queue_policy TO limner_operator;
GRANT SELECT ON limner.queue_policy, limner.rate_counter TO limner_api;
GRANT SELECT, INSERT, UPDATE ON limner.chore TO limner_dispatch;
GRANT SELECT ON limner.chore TO limner_api, limner_operator;
GRANT SELECT (org_id, app_id, phase, claimable_at, deadline_at, provider_id, created_at) ON limner.job_queue TO limner_lookup;
GRANT EXECUTE ON FUNCTION limner.platform() TO limner_lookup;
CREATE POLICY lookup ON limner.job_queue FOR SELECT TO limner_lookup USING (true);
CREATE POLICY places ON limner.provider TO limner_dispatch, limner_lookup USING (true) WITH CHECK (true);
CREATE POLICY dispatch ON limner.route FOR SELECT TO limner_dispatch USING (true);
CREATE POLICY dispatch ON limner.job FOR SELECT TO limner_dispatch USING (true);
CREATE POLICY dispatch ON limner.job_queue TO limner_dispatch USING (true) WITH CHECK (true);
CREATE POLICY operator_counts ON limner.job_queue FOR SELECT TO limner_operator USING (true);
CREATE POLICY dispatch ON limner.queue_policy TO limner_dispatch USING (true) WITH CHECK (true);
CREATE POLICY operator_lists ON limner.queue_policy FOR SELECT TO limner_operator USING (true);
RESET ROLE;

GRANT CREATE ON SCHEMA limner TO limner_lookup;
SET ROLE limner_lookup;
-- the queue in four numbers, for /metrics and /readyz: no tenant can be told from them
CREATE FUNCTION limner.queue_facts()
RETURNS TABLE (depth bigint, running bigint, deferred bigint, overdue bigint, oldest_s double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT count(*) FILTER (WHERE q.phase IN ('ready', 'capped') OR (q.phase = 'leased' AND q.claimable_at < clock_timestamp())),
         count(*) FILTER (WHERE q.phase = 'leased' AND q.claimable_at >= clock_timestamp()),
         count(*) FILTER (WHERE q.phase = 'deferred'),
         count(*) FILTER (WHERE q.deadline_at < clock_timestamp()),
         coalesce(extract(epoch FROM clock_timestamp() - min(q.created_at) FILTER (WHERE q.phase IN ('ready', 'capped'))), 0)::double precision
    FROM limner.job_queue q;
$$;
GRANT EXECUTE ON FUNCTION limner.queue_facts() TO limner_api, limner_dispatch, limner_operator;
RESET ROLE;
REVOKE CREATE ON SCHEMA limner FROM limner_lookup;
