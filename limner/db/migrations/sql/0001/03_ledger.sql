-- Double entry: wallets carry running balances, the organization's four books are sums of transfers, so no row is hot.
SET ROLE limner_owner;

-- a wallet's id is its owner's: the end user's, or the organization's for its own
CREATE TABLE limner.wallet (
  org_id         uuid NOT NULL REFERENCES limner.organization (org_id),
  id             uuid NOT NULL,
  owner          text NOT NULL,
  available_mc   bigint NOT NULL DEFAULT 0,
  held_mc        bigint NOT NULL DEFAULT 0,
  version        bigint NOT NULL DEFAULT 0,
  jobs_submitted bigint NOT NULL DEFAULT 0,
  jobs_succeeded bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (org_id, id),
  CONSTRAINT wallet_never_negative CHECK (available_mc >= 0 AND held_mc >= 0),
  CONSTRAINT wallet_has_its_owner CHECK (owner = CASE WHEN id = org_id THEN 'organization' ELSE 'end_user' END)
) WITH (fillfactor = 70);

-- What a transfer must look like. One function instead of a dozen CHECKs: PostgreSQL parses the text of each CHECK
-- anew for every statement, which was a fifth of a submit's time.
CREATE FUNCTION limner.transfer_is_sound(
  kind text, id uuid, debit_wallet uuid, debit_book text, debit_version bigint, credit_wallet uuid, credit_book text, credit_version bigint,
  amount_mc bigint, hold_id uuid, job_id uuid, ref text, request_hash bytea, reason text)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog AS $$
BEGIN
  RETURN amount_mc >= 0
     AND kind IN ('grant', 'bonus', 'adjustment', 'hold', 'post', 'void', 'refund', 'expire', 'clawback')
     AND (debit_wallet IS NULL) <> (debit_book IS NULL) AND (credit_wallet IS NULL) <> (credit_book IS NULL)
     AND (debit_book IS NULL OR debit_book IN ('revenue', 'issuance', 'breakage', 'receivable'))
     AND (credit_book IS NULL OR credit_book IN ('revenue', 'issuance', 'breakage', 'receivable'))
     AND (debit_wallet IS NULL) = (debit_version IS NULL) AND (credit_wallet IS NULL) = (credit_version IS NULL)
     AND (debit_wallet IS DISTINCT FROM credit_wallet OR debit_book IS DISTINCT FROM credit_book)
     AND (kind IN ('post', 'void')) = (hold_id IS NOT NULL)
     AND (kind NOT IN ('hold', 'post', 'void') OR (debit_wallet IS NOT NULL AND credit_book = 'revenue' AND job_id IS NOT NULL))
     AND (kind <> 'hold' OR id = job_id) AND (kind <> 'void' OR amount_mc = 0)
     AND coalesce(length(ref), 0) <= 600 AND coalesce(length(reason), 0) <= 500 AND coalesce(length(request_hash), 32) = 32;
END $$;

-- each side is a wallet (with its version and what was available after) or one of the organization's books
CREATE TABLE limner.transfer (
  org_id              uuid NOT NULL,
  id                  uuid NOT NULL,
  kind                text NOT NULL,
  debit_wallet        uuid,
  debit_book          text,
  debit_version       bigint,
  debit_available_mc  bigint,
  credit_wallet       uuid,
  credit_book         text,
  credit_version      bigint,
  credit_available_mc bigint,
  amount_mc           bigint NOT NULL,
  hold_id             uuid,
  job_id              uuid,
  ref                 text,
  request_hash        bytea,
  reason              text,
  created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  CONSTRAINT transfer_is_sound CHECK (limner.transfer_is_sound(kind, id, debit_wallet, debit_book, debit_version, credit_wallet,
    credit_book, credit_version, amount_mc, hold_id, job_id, ref, request_hash, reason)),
  FOREIGN KEY (org_id, debit_wallet)  REFERENCES limner.wallet (org_id, id),
  FOREIGN KEY (org_id, credit_wallet) REFERENCES limner.wallet (org_id, id),
  FOREIGN KEY (org_id, hold_id)       REFERENCES limner.transfer (org_id, id)
);
CREATE UNIQUE INDEX transfer_ref ON limner.transfer (org_id, kind, ref) WHERE ref IS NOT NULL;
CREATE UNIQUE INDEX one_resolution_per_hold ON limner.transfer (org_id, hold_id) WHERE hold_id IS NOT NULL;
CREATE UNIQUE INDEX transfer_debit ON limner.transfer (org_id, debit_wallet, debit_version) WHERE debit_wallet IS NOT NULL;
CREATE UNIQUE INDEX transfer_credit ON limner.transfer (org_id, credit_wallet, credit_version) WHERE credit_wallet IS NOT NULL;
CREATE INDEX transfer_refunds ON limner.transfer (org_id, job_id) WHERE kind = 'refund';
CREATE INDEX transfer_recent ON limner.transfer USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON limner.transfer
  FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();

GRANT SELECT ON limner.wallet, limner.transfer TO limner_api, limner_operator;
RESET ROLE;
