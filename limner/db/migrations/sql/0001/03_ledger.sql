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
  CONSTRAINT transfer_never_negative CHECK (amount_mc >= 0)
);

-- What a transfer must look like. Checked over what changed every minute and over everything every day (08_invariants.sql), and at
-- each write in the tests' databases: at run time a submit would pay a tenth of its time for it.
CREATE FUNCTION limner.transfer_is_sound(x limner.transfer) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT x.kind IN ('grant', 'bonus', 'adjustment', 'hold', 'post', 'void', 'refund', 'expire', 'clawback')
     AND (x.debit_wallet IS NULL) <> (x.debit_book IS NULL) AND (x.credit_wallet IS NULL) <> (x.credit_book IS NULL)
     AND (x.debit_book IS NULL OR x.debit_book IN ('revenue', 'issuance', 'breakage', 'receivable'))
     AND (x.credit_book IS NULL OR x.credit_book IN ('revenue', 'issuance', 'breakage', 'receivable'))
     AND (x.debit_wallet IS NULL) = (x.debit_version IS NULL) AND (x.credit_wallet IS NULL) = (x.credit_version IS NULL)
     AND (x.debit_wallet IS DISTINCT FROM x.credit_wallet OR x.debit_book IS DISTINCT FROM x.credit_book)
     AND (x.kind IN ('post', 'void')) = (x.hold_id IS NOT NULL)
     AND (x.kind NOT IN ('hold', 'post', 'void') OR (x.debit_wallet IS NOT NULL AND x.credit_book = 'revenue' AND x.job_id IS NOT NULL))
     AND (x.kind <> 'hold' OR x.id = x.job_id) AND (x.kind <> 'void' OR x.amount_mc = 0)
     AND coalesce(length(x.ref), 0) <= 600 AND coalesce(length(x.reason), 0) <= 500 AND coalesce(length(x.request_hash), 32) = 32
$$;

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
