-- What the invariants check afterwards at run time is checked at each write in the tests' databases, so that a test stops at the
-- statement that breaks it.
SET ROLE limner_owner;
GRANT EXECUTE ON FUNCTION limner.transfer_is_sound, limner.job_is_sound TO limner_batch;
SET limner.entered = '00000000-0000-0000-0000-000000000000';   -- the validation of a new foreign key asks the policies
ALTER TABLE limner.transfer
  ADD CONSTRAINT strict_sound CHECK (limner.transfer_is_sound(transfer.*)),
  ADD CONSTRAINT strict_debit FOREIGN KEY (org_id, debit_wallet) REFERENCES limner.wallet (org_id, id),
  ADD CONSTRAINT strict_credit FOREIGN KEY (org_id, credit_wallet) REFERENCES limner.wallet (org_id, id),
  ADD CONSTRAINT strict_hold FOREIGN KEY (org_id, hold_id) REFERENCES limner.transfer (org_id, id);
ALTER TABLE limner.job
  ADD CONSTRAINT strict_sound CHECK (limner.job_is_sound(job.*)),
  ADD CONSTRAINT strict_user FOREIGN KEY (org_id, end_user_id) REFERENCES limner.end_user (org_id, id),
  ADD CONSTRAINT strict_app FOREIGN KEY (org_id, app_id) REFERENCES limner.app (org_id, id);
ALTER TABLE limner.job_queue
  ADD CONSTRAINT strict_job FOREIGN KEY (org_id, job_id) REFERENCES limner.job (org_id, id),
  ADD CONSTRAINT strict_line CHECK (phase <> 'capped' OR model_id IS NOT NULL),
  ADD CONSTRAINT strict_range CHECK (max_runs >= 1 AND percent BETWEEN 0 AND 100 AND length(stage) <= 100);
ALTER TABLE limner.usage_record ADD CONSTRAINT strict_job FOREIGN KEY (org_id, job_id) REFERENCES limner.job (org_id, id);
ALTER TABLE limner.provider_call
  ADD CONSTRAINT strict_job FOREIGN KEY (org_id, job_id) REFERENCES limner.job (org_id, id),
  ADD CONSTRAINT strict_state CHECK (state IN ('intent', 'accepted', 'done', 'error', 'unknown')),
  ADD CONSTRAINT strict_range CHECK (least(cost_micro_usd, latency_ms) >= 0 AND length(error_message) <= 2000);
ALTER TABLE limner.wallet ADD CONSTRAINT strict_owner CHECK (owner = CASE WHEN id = org_id THEN 'organization' ELSE 'end_user' END);
RESET ROLE;
