-- Double entry: wallets carry running balances, the organization's four books are sums of transfers, so no row is hot.
SET ROLE limner_owner;

-- a wallet's id is its owner's: the end user's, or the organization's for its own
CREATE TABLE limner.wallet (
  org_id         uuid NOT NULL REFERENCES limner.organization (org_id),
  id             uuid NOT NULL,
  owner          text NOT NULL CHECK (owner IN ('organization', 'end_user')),
  available_mc   bigint NOT NULL DEFAULT 0 CONSTRAINT wallet_never_negative CHECK (available_mc >= 0),
  held_mc        bigint NOT NULL DEFAULT 0 CHECK (held_mc >= 0),
  version        bigint NOT NULL DEFAULT 0,
  jobs_submitted bigint NOT NULL DEFAULT 0,
  jobs_succeeded bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (org_id, id),
  CHECK ((owner = 'organization') = (id = org_id))
) WITH (fillfactor = 70);

-- each side is a wallet (with its version and what was available after) or one of the organization's books
CREATE TABLE limner.transfer (
  org_id              uuid NOT NULL,
  id                  uuid NOT NULL,
  kind                text NOT NULL CHECK (kind IN
                        ('grant', 'bonus', 'adjustment', 'hold', 'post', 'void', 'refund', 'expire', 'clawback')),
  debit_wallet        uuid,
  debit_book          text CHECK (debit_book IN ('revenue', 'issuance', 'breakage', 'receivable')),
  debit_version       bigint,
  debit_available_mc  bigint,
  credit_wallet       uuid,
  credit_book         text CHECK (credit_book IN ('revenue', 'issuance', 'breakage', 'receivable')),
  credit_version      bigint,
  credit_available_mc bigint,
  amount_mc           bigint NOT NULL CHECK (amount_mc >= 0),
  hold_id             uuid,
  job_id              uuid,
  ref                 text CHECK (length(ref) <= 600),
  request_hash        bytea CHECK (length(request_hash) = 32),
  reason              text CHECK (length(reason) <= 500),
  created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  CHECK ((debit_wallet IS NULL) <> (debit_book IS NULL)),
  CHECK ((credit_wallet IS NULL) <> (credit_book IS NULL)),
  CHECK ((debit_wallet IS NULL) = (debit_version IS NULL) AND (credit_wallet IS NULL) = (credit_version IS NULL)),
  CHECK (debit_wallet IS DISTINCT FROM credit_wallet OR debit_book IS DISTINCT FROM credit_book),
  CHECK ((kind IN ('post', 'void')) = (hold_id IS NOT NULL)),
  CHECK (kind <> 'hold' OR id = job_id),
  CHECK (kind NOT IN ('hold', 'post', 'void') OR (debit_wallet IS NOT NULL AND credit_book = 'revenue')),
  CHECK (kind <> 'void' OR amount_mc = 0),
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
