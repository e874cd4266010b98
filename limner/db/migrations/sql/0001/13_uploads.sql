-- Uploads: pictures and recordings that apps bring, from a reserved place to what limner keeps of them, and what of the quota they take.
SET ROLE limner_owner;

-- state: pending (a place is reserved, bytes may come), processing (they came; a process works on them until due_at), ready, rejected,
-- expired (they did not come), deleted (the row waits until its URL has ended). What counts against the quota is counted_bytes: the
-- stated size until the picture is ready, what is stored from then on.
CREATE TABLE limner.upload (
  org_id        uuid NOT NULL,
  id            uuid NOT NULL,
  app_id        uuid NOT NULL,
  external_id   text CHECK (length(external_id) BETWEEN 1 AND 255),
  kind          text NOT NULL CHECK (kind IN ('image', 'audio')),
  name          text NOT NULL CHECK (length(name) <= 255),
  state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'processing', 'ready', 'rejected', 'expired', 'deleted')),
  size_bytes    bigint NOT NULL CHECK (size_bytes > 0),
  sha256        bytea NOT NULL CHECK (length(sha256) = 32),
  counted_bytes bigint NOT NULL,
  idem_key      text CHECK (length(idem_key) BETWEEN 1 AND 255),
  request_hash  bytea NOT NULL CHECK (length(request_hash) = 32),
  tries         int NOT NULL DEFAULT 0,                 -- grows with every claim: whoever holds an older number settles nothing
  given_back    int NOT NULL DEFAULT 0,                 -- of those, how many ended in good order without a result
  expires_at    timestamptz NOT NULL,                   -- of the URL that takes the bytes
  due_at        timestamptz,                            -- when a worker looks after it; NULL: never again
  error_code    text,
  error_message text,
  object_key    text,
  media_type    text,
  width         int,
  height        int,
  duration_ms   bigint,                                 -- of a recording
  bytes         bigint,
  has_alpha     boolean,
  thumbhash     bytea CHECK (length(thumbhash) <= 32),
  colour        text CHECK (colour ~ '^#[0-9a-f]{6}$'),
  description_job   uuid,                               -- that was ordered to describe it, last
  description_state text CHECK (description_state IN ('pending', 'ready', 'failed')),
  description       jsonb,
  descriptions      int NOT NULL DEFAULT 0,             -- that failed: the next one is another order
  created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  ready_at      timestamptz,
  PRIMARY KEY (org_id, id),
  FOREIGN KEY (org_id, app_id) REFERENCES limner.app (org_id, id),
  CONSTRAINT upload_counts_while_it_lasts CHECK ((counted_bytes > 0) = (state IN ('pending', 'processing', 'ready'))),
  FOREIGN KEY (org_id, description_job) REFERENCES limner.job (org_id, id),
  CONSTRAINT upload_ready_is_whole CHECK (state <> 'ready' OR (object_key IS NOT NULL AND media_type IS NOT NULL AND bytes = counted_bytes
                                          AND CASE kind WHEN 'image' THEN width > 0 AND height > 0 ELSE duration_ms > 0 END
                                          AND ready_at IS NOT NULL))
);
CREATE INDEX upload_of_app ON limner.upload (org_id, app_id, id);
CREATE INDEX upload_of_user ON limner.upload (org_id, app_id, external_id, id) WHERE external_id IS NOT NULL;
CREATE UNIQUE INDEX upload_idem ON limner.upload (org_id, app_id, idem_key, external_id) NULLS NOT DISTINCT WHERE idem_key IS NOT NULL;
CREATE INDEX upload_due ON limner.upload (due_at) WHERE due_at IS NOT NULL;

-- what an organization's uploads take, kept in the commits that change them
CREATE TABLE limner.upload_usage (
  org_id     uuid PRIMARY KEY REFERENCES limner.organization (org_id),
  used_bytes bigint NOT NULL DEFAULT 0 CHECK (used_bytes >= 0),
  used_files bigint NOT NULL DEFAULT 0 CHECK (used_files >= 0)
);

-- Reserves a place: reserved, replayed (this key was used for the same request), reused (for another one), full_bytes, full_files. The
-- usage row's lock lets one of an organization's reservations through at a time.
CREATE FUNCTION limner.reserve_upload(
  p_ctx text, p_id uuid, p_app uuid, p_external text, p_kind text, p_name text, p_size bigint, p_sha256 bytea, p_life_s int, p_key text,
  p_hash bytea, p_max_bytes bigint, p_max_files bigint, OUT outcome text, OUT upload_id uuid, OUT used_bytes bigint, OUT used_files bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  old record;
  ends timestamptz := clock_timestamp() + make_interval(secs => p_life_s);
BEGIN
  INSERT INTO limner.upload_usage (org_id) VALUES (t) ON CONFLICT DO NOTHING;
  SELECT u.used_bytes, u.used_files INTO STRICT used_bytes, used_files FROM limner.upload_usage u WHERE u.org_id = t FOR NO KEY UPDATE;
  IF p_key IS NOT NULL THEN
    SELECT x.id, x.request_hash INTO old FROM limner.upload x
     WHERE x.org_id = t AND x.app_id = p_app AND x.idem_key = p_key AND x.external_id IS NOT DISTINCT FROM p_external;
    IF FOUND THEN
      outcome := CASE WHEN old.request_hash = p_hash THEN 'replayed' ELSE 'reused' END;
      upload_id := old.id;
      RETURN;
    END IF;
  END IF;
  IF used_files >= p_max_files THEN
    outcome := 'full_files';
    RETURN;
  ELSIF used_bytes + p_size > p_max_bytes THEN
    outcome := 'full_bytes';
    RETURN;
  END IF;
  UPDATE limner.upload_usage u SET used_bytes = u.used_bytes + p_size, used_files = u.used_files + 1 WHERE u.org_id = t
  RETURNING u.used_bytes, u.used_files INTO STRICT used_bytes, used_files;
  INSERT INTO limner.upload (org_id, id, app_id, external_id, kind, name, size_bytes, sha256, counted_bytes, idem_key, request_hash,
                             expires_at, due_at)
  VALUES (t, p_id, p_app, p_external, p_kind, p_name, p_size, p_sha256, p_size, p_key, p_hash, ends, ends + interval '1 minute');
  outcome := 'reserved';
  upload_id := p_id;
END $$;

-- Takes a pending upload, or one whose process did not come to an end in time, for p_claim_s; the number of this try, or NULL.
CREATE FUNCTION limner.claim_upload(p_ctx text, p_id uuid, p_claim_s int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  v_try int;
BEGIN
  UPDATE limner.upload u SET state = 'processing', tries = u.tries + 1, due_at = clock_timestamp() + make_interval(secs => p_claim_s)
   WHERE u.org_id = t AND u.id = p_id AND (u.state = 'pending' OR (u.state = 'processing' AND u.due_at <= clock_timestamp()))
  RETURNING u.tries INTO v_try;
  RETURN v_try;
END $$;

-- Gives a claim back: the next one to look after it may take it at once.
CREATE FUNCTION limner.give_upload_back(p_ctx text, p_id uuid, p_try int) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  UPDATE limner.upload u SET given_back = u.given_back + 1, due_at = clock_timestamp()
   WHERE u.org_id = t AND u.id = p_id AND u.state = 'processing' AND u.tries = p_try;
  RETURN FOUND;
END $$;

-- The picture, or the recording, is stored: ready, lost (somebody else has the upload, or it was deleted), or full (its encoding passes the quota).
CREATE FUNCTION limner.settle_upload(
  p_ctx text, p_id uuid, p_try int, p_max_bytes bigint, p_object_key text, p_media_type text, p_width int, p_height int, p_bytes bigint,
  p_alpha boolean, p_thumbhash bytea, p_colour text, p_duration_ms bigint)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  v_counted bigint;
BEGIN
  SELECT u.counted_bytes INTO v_counted FROM limner.upload u
   WHERE u.org_id = t AND u.id = p_id AND u.state = 'processing' AND u.tries = p_try FOR UPDATE;
  IF NOT FOUND THEN RETURN 'lost'; END IF;
  UPDATE limner.upload_usage q SET used_bytes = q.used_bytes - v_counted + p_bytes
   WHERE q.org_id = t AND (p_bytes <= v_counted OR q.used_bytes - v_counted + p_bytes <= p_max_bytes);
  IF NOT FOUND THEN RETURN 'full'; END IF;
  UPDATE limner.upload u
     SET state = 'ready', counted_bytes = p_bytes, bytes = p_bytes, object_key = p_object_key, media_type = p_media_type, width = p_width,
         height = p_height, has_alpha = p_alpha, thumbhash = p_thumbhash, colour = p_colour, duration_ms = p_duration_ms, ready_at = clock_timestamp(),
         due_at = greatest(u.expires_at + interval '1 minute', clock_timestamp())
   WHERE u.org_id = t AND u.id = p_id;
  RETURN 'ready';
END $$;

-- Ends an upload and gives its quota back: rejected (by whoever has it claimed), expired (nothing came in time) or deleted (whatever it
-- was; of this app, where one is named). Whether it did.
CREATE FUNCTION limner.end_upload(p_ctx text, p_app uuid, p_id uuid, p_state text, p_try int, p_code text, p_message text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  u record;
BEGIN
  SELECT x.state, x.tries, x.counted_bytes, x.expires_at INTO u FROM limner.upload x
   WHERE x.org_id = t AND x.id = p_id AND (p_app IS NULL OR x.app_id = p_app) FOR UPDATE;
  IF NOT FOUND OR NOT (CASE p_state
       WHEN 'rejected' THEN u.state = 'processing' AND u.tries = p_try
       WHEN 'expired' THEN u.state = 'pending' AND u.expires_at < clock_timestamp()
       WHEN 'deleted' THEN u.state <> 'deleted'
       ELSE false END) THEN
    RETURN false;
  END IF;
  IF u.counted_bytes > 0 THEN
    UPDATE limner.upload_usage q SET used_bytes = q.used_bytes - u.counted_bytes, used_files = q.used_files - 1 WHERE q.org_id = t;
  END IF;
  UPDATE limner.upload x
     SET state = p_state, counted_bytes = 0, error_code = p_code, error_message = p_message,
         idem_key = CASE WHEN p_state = 'deleted' THEN NULL ELSE x.idem_key END,
         due_at = greatest(x.expires_at + interval '1 minute', clock_timestamp())
   WHERE x.org_id = t AND x.id = p_id;
  RETURN true;
END $$;

-- A job was ordered to describe a ready upload.
CREATE FUNCTION limner.describe_upload(p_ctx text, p_id uuid, p_job uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  UPDATE limner.upload u SET description_job = p_job, description_state = 'pending', description = NULL,
                             due_at = coalesce(u.due_at, clock_timestamp() + interval '30 seconds')
   WHERE u.org_id = t AND u.id = p_id AND u.state = 'ready' AND u.description_job IS DISTINCT FROM p_job;
  RETURN FOUND;
END $$;

-- Takes over what that job said, once it is closed: its text and tags, or that it failed. Whether there was anything to take.
CREATE FUNCTION limner.note_description(p_ctx text, p_id uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t uuid := limner.enter(p_ctx);
  said record;
BEGIN
  SELECT (SELECT o FROM jsonb_array_elements(j.outputs) o WHERE o ->> 'type' = 'text' LIMIT 1) AS output INTO said
    FROM limner.upload u JOIN limner.job j ON j.org_id = u.org_id AND j.id = u.description_job
   WHERE u.org_id = t AND u.id = p_id AND u.description_state = 'pending' AND j.finished_at IS NOT NULL;
  IF NOT FOUND THEN RETURN false; END IF;
  UPDATE limner.upload u
     SET description_state = CASE WHEN said.output IS NULL THEN 'failed' ELSE 'ready' END,
         descriptions = u.descriptions + (said.output IS NULL)::int,
         description = CASE WHEN said.output IS NOT NULL THEN
           jsonb_build_object('text', said.output ->> 'text', 'tags', coalesce(said.output #> '{facts,tags}', '[]')) END
   WHERE u.org_id = t AND u.id = p_id AND u.description_state = 'pending';
  RETURN true;
END $$;

-- A worker has removed what an upload of this state leaves behind: a deleted one's row goes, a refused one's after p_keep_s.
CREATE FUNCTION limner.tend_upload(p_ctx text, p_id uuid, p_state text, p_keep_s int) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  DELETE FROM limner.upload u
   WHERE u.org_id = t AND u.id = p_id AND u.state = p_state AND u.due_at <= clock_timestamp()
     AND (p_state = 'deleted' OR (p_state IN ('rejected', 'expired') AND u.created_at < clock_timestamp() - make_interval(secs => p_keep_s)));
  UPDATE limner.upload u
     SET due_at = CASE WHEN p_state <> 'ready' THEN u.created_at + make_interval(secs => p_keep_s)
                       WHEN u.expires_at + interval '1 minute' > clock_timestamp() THEN u.expires_at + interval '1 minute'
                       WHEN u.description_state = 'pending' THEN clock_timestamp() + interval '30 seconds' END
   WHERE u.org_id = t AND u.id = p_id AND u.state = p_state AND p_state IN ('ready', 'rejected', 'expired') AND u.due_at <= clock_timestamp();
  RETURN true;
END $$;

SELECT limner._protect('upload', 'upload_usage');
GRANT SELECT ON limner.upload, limner.upload_usage TO limner_api, limner_worker, limner_operator;
-- which uploads a worker has to look after: ids and times, no payload
CREATE POLICY dispatch ON limner.upload FOR SELECT TO limner_dispatch USING (true);
GRANT SELECT (org_id, id, due_at) ON limner.upload TO limner_dispatch;

GRANT EXECUTE ON FUNCTION
  limner.reserve_upload(text, uuid, uuid, text, text, text, bigint, bytea, int, text, bytea, bigint, bigint) TO limner_api;
GRANT EXECUTE ON FUNCTION
  limner.claim_upload(text, uuid, int), limner.give_upload_back(text, uuid, int),
  limner.settle_upload(text, uuid, int, bigint, text, text, int, int, bigint, boolean, bytea, text, bigint) TO limner_api, limner_worker;
GRANT EXECUTE ON FUNCTION limner.end_upload(text, uuid, uuid, text, int, text, text) TO limner_api, limner_worker, limner_operator;
GRANT EXECUTE ON FUNCTION limner.describe_upload(text, uuid, uuid) TO limner_api;
GRANT EXECUTE ON FUNCTION limner.note_description(text, uuid) TO limner_api, limner_worker;
GRANT EXECUTE ON FUNCTION limner.tend_upload(text, uuid, text, int) TO limner_worker;
RESET ROLE;
