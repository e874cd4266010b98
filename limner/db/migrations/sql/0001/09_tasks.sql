-- A provider said by its own webhook under which name it took a call on: written down where a worker could not do so any more. Only of an
-- open job, only of its latest send, and never in the place of another name. Lock order: job_queue, then the call.
SET ROLE limner_owner;
CREATE FUNCTION limner.adopt_task(p_ctx text, p_job uuid, p_step text, p_provider text, p_task text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE t uuid := limner.enter(p_ctx);
BEGIN
  PERFORM 1 FROM limner.job_queue q WHERE q.org_id = t AND q.job_id = p_job FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  UPDATE limner.provider_call x SET state = 'accepted', provider_task_id = p_task, finished_at = NULL
   WHERE x.org_id = t AND x.job_id = p_job AND x.step = p_step AND x.provider = p_provider AND x.state IN ('intent', 'unknown')
     AND x.send_no = (SELECT max(y.send_no) FROM limner.provider_call y
                       WHERE y.org_id = t AND y.job_id = p_job AND y.step = p_step AND y.provider = p_provider);
  RETURN FOUND;
END $$;
GRANT EXECUTE ON FUNCTION limner.adopt_task TO limner_api;
RESET ROLE;
