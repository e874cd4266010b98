-- Double entry: wallets carry running balances, the organization's four books are sums of transfers, so no row is hot.
SET ROLE limner_owner;

-- a wallet's id is its owner's: the end user's, or the organization's for its own
CREATE TABLE limner.wallet (
  org_id         uuid NOT NULL REFERENCES limner.organization (org_id),
  id             uuid NOT NULL,
  owner          text NOT NULL,
  available_mc   bigint NOT NULL DEFAULT 0,
  held_mc        bigint NOT NULL DEFAULT 0,
  owed_mc        bigint NOT NULL DEFAULT 0,     -- clawed back when it was spent already: no new job until it is paid
  lots_end       timestamptz,                   -- the soonest end of what is left in its lots; NULL: nothing here ends
  rate_tat       timestamptz NOT NULL DEFAULT '1970-01-01T00:00:00Z',  -- the end user's rate limit: when its bucket is full again
  version        bigint NOT NULL DEFAULT 0,
  jobs_submitted bigint NOT NULL DEFAULT 0,
  jobs_succeeded bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (org_id, id),
  CONSTRAINT wallet_never_negative CHECK (available_mc >= 0 AND held_mc >= 0 AND owed_mc >= 0)
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
  owed_wallet         uuid,           -- whose debt a movement of the book `receivable` is
  ref                 text,
  request_hash        bytea,
  reason              text,
  created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  CONSTRAINT transfer_never_negative CHECK (amount_mc >= 0)
);

-- What a transfer must look like. Checked over what changed every minute and over everything every day (10_invariants.sql), and at
-- each write in the tests' databases: at run time a submit would pay a tenth of its time for it.
CREATE FUNCTION limner.transfer_is_sound(x limner.transfer) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT x.kind IN ('grant', 'bonus', 'adjustment', 'allowance', 'hold', 'post', 'void', 'refund', 'expire', 'clawback')
     AND (x.debit_wallet IS NULL) <> (x.debit_book IS NULL) AND (x.credit_wallet IS NULL) <> (x.credit_book IS NULL)
     AND (x.debit_book IS NULL OR x.debit_book IN ('revenue', 'issuance', 'breakage', 'receivable'))
     AND (x.credit_book IS NULL OR x.credit_book IN ('revenue', 'issuance', 'breakage', 'receivable'))
     AND (x.debit_wallet IS NULL) = (x.debit_version IS NULL) AND (x.credit_wallet IS NULL) = (x.credit_version IS NULL)
     AND (x.debit_wallet IS DISTINCT FROM x.credit_wallet OR x.debit_book IS DISTINCT FROM x.credit_book)
     AND (x.kind IN ('post', 'void')) = (x.hold_id IS NOT NULL)
     AND (x.kind NOT IN ('hold', 'post', 'void') OR (x.debit_wallet IS NOT NULL AND x.credit_book = 'revenue' AND x.job_id IS NOT NULL))
     AND (coalesce(x.debit_book, '') = 'receivable' OR coalesce(x.credit_book, '') = 'receivable') = (x.owed_wallet IS NOT NULL)
     AND (x.kind <> 'hold' OR x.id = x.job_id) AND (x.kind <> 'void' OR x.amount_mc = 0)
     AND coalesce(length(x.ref), 0) <= 600 AND coalesce(length(x.reason), 0) <= 500 AND coalesce(length(x.request_hash), 32) = 32
$$;

-- grants and bonuses share their references: they are asked for by one call
CREATE UNIQUE INDEX transfer_ref ON limner.transfer (org_id, ref, (CASE kind WHEN 'bonus' THEN 'grant' ELSE kind END)) WHERE ref IS NOT NULL;
CREATE UNIQUE INDEX one_resolution_per_hold ON limner.transfer (org_id, hold_id) WHERE hold_id IS NOT NULL;
CREATE UNIQUE INDEX transfer_debit ON limner.transfer (org_id, debit_wallet, debit_version) WHERE debit_wallet IS NOT NULL;
CREATE UNIQUE INDEX transfer_credit ON limner.transfer (org_id, credit_wallet, credit_version) WHERE credit_wallet IS NOT NULL;
CREATE INDEX transfer_refunds ON limner.transfer (org_id, job_id) WHERE kind = 'refund';
CREATE INDEX transfer_owed ON limner.transfer (org_id, owed_wallet) WHERE owed_wallet IS NOT NULL;
CREATE INDEX transfer_recent ON limner.transfer USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON limner.transfer
  FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();

-- Credits that end. What a wallet holds beside its lots never ends and is spent last. Each lot was opened by a transfer;
-- what it was given is what is left, what open and closed jobs drew, and what is gone (ended, moved, clawed back).
CREATE TABLE limner.lot (
  org_id       uuid NOT NULL,
  id           uuid NOT NULL,
  wallet_id    uuid NOT NULL,
  transfer_id  uuid NOT NULL,
  kind         text NOT NULL CHECK (kind IN ('grant', 'bonus', 'adjustment', 'allowance', 'refund')),
  granted_mc   bigint NOT NULL CHECK (granted_mc > 0),
  remaining_mc bigint NOT NULL,
  gone_mc      bigint NOT NULL DEFAULT 0 CHECK (gone_mc >= 0),
  expires_at   timestamptz NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, id),
  CONSTRAINT lot_never_overdrawn CHECK (remaining_mc >= 0 AND remaining_mc + gone_mc <= granted_mc),
  FOREIGN KEY (org_id, wallet_id) REFERENCES limner.wallet (org_id, id),
  FOREIGN KEY (org_id, transfer_id) REFERENCES limner.transfer (org_id, id)
);
CREATE INDEX lot_open ON limner.lot (org_id, wallet_id, expires_at, id) WHERE remaining_mc > 0;
CREATE INDEX lot_ending ON limner.lot (org_id, expires_at) WHERE remaining_mc > 0;

-- what a job's hold took from which lot; `used_mc` once the hold is settled
CREATE TABLE limner.lot_draw (
  org_id    uuid NOT NULL,
  job_id    uuid NOT NULL,
  lot_id    uuid NOT NULL,
  amount_mc bigint NOT NULL CHECK (amount_mc > 0),
  used_mc   bigint CHECK (used_mc BETWEEN 0 AND amount_mc),
  PRIMARY KEY (org_id, job_id, lot_id),
  FOREIGN KEY (org_id, lot_id) REFERENCES limner.lot (org_id, id)
);
CREATE INDEX lot_draw_of_lot ON limner.lot_draw (org_id, lot_id);

-- a closed day of an organization's books, by kind of transfer; never changed afterwards
CREATE TABLE limner.book_day (
  org_id    uuid NOT NULL REFERENCES limner.organization (org_id),
  day       date NOT NULL,
  book      text NOT NULL CHECK (book IN ('revenue', 'issuance', 'breakage', 'receivable')),
  kind      text NOT NULL,
  debit_mc  numeric NOT NULL CHECK (debit_mc >= 0),
  credit_mc numeric NOT NULL CHECK (credit_mc >= 0),
  transfers bigint NOT NULL CHECK (transfers > 0),
  closed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org_id, day, book, kind)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON limner.book_day
  FOR EACH ROW EXECUTE FUNCTION limner.refuse_change();

GRANT SELECT ON limner.wallet, limner.transfer, limner.lot, limner.lot_draw TO limner_api, limner_operator;
GRANT SELECT ON limner.book_day TO limner_operator;
RESET ROLE;
