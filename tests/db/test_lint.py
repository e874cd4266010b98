"""TA2: the catalog lint finds nothing in a fresh schema, and each of its rules finds the defect it is there for."""

from collections.abc import Iterator

import psycopg
import pytest

from limner.db import lint
from limner.db.pools import Database

DEFECTS = {
    "L01 off": "ALTER TABLE limner.job DISABLE ROW LEVEL SECURITY",
    "L01 not forced": "ALTER TABLE limner.wallet NO FORCE ROW LEVEL SECURITY",
    "L02": "DROP POLICY tenant ON limner.usage_record; DROP POLICY entered ON limner.usage_record;"
    " DROP POLICY audit ON limner.usage_record; DROP POLICY batch ON limner.usage_record",
    "L03": "CREATE POLICY x ON limner.job FOR ALL TO limner_api USING (org_id = (SELECT limner.org()))",
    "L04": "CREATE TABLE limner.x (id int)",
    "L05": "CREATE VIEW limner.x AS SELECT * FROM limner.job",
    "L05 off": "CREATE VIEW limner.x WITH (security_invoker = false) AS SELECT * FROM limner.job",
    "L06": "CREATE MATERIALIZED VIEW limner.x AS SELECT * FROM limner.job",
    "L07": "ALTER ROLE limner_worker CREATEDB",
    "L08": "GRANT limner_owner TO limner_dispatch",
    "L09": "ALTER FUNCTION limner.grant_credits RESET search_path",
    "L10": "GRANT EXECUTE ON FUNCTION limner.cancel_job TO PUBLIC",
    "L10 new": "SET ROLE limner_migrate; CREATE FUNCTION limner.x() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "L11": "CREATE UNIQUE INDEX x ON limner.app (id); ALTER TABLE limner.api_key ADD FOREIGN KEY (app_id) REFERENCES limner.app (id)",
    "L12": "CREATE UNIQUE INDEX x ON limner.end_user (id)",
    "L12 expression": "CREATE UNIQUE INDEX x ON limner.end_user (lower(id::text))",
    "L13": "ALTER FUNCTION limner.org() LEAKPROOF",
    "L14": "GRANT TRUNCATE ON limner.job TO limner_api",
    "L15": "GRANT INSERT ON limner.wallet TO limner_operator",
    "L15 column": "GRANT UPDATE (available_mc) ON limner.wallet TO limner_api",
    "L15 everybody": "GRANT DELETE ON limner.transfer TO PUBLIC",
    "L16": "GRANT CREATE ON SCHEMA limner TO limner_operator; ALTER TABLE limner.app OWNER TO limner_operator",
    "L17": "CREATE INDEX x ON limner.job (created_at)",
    "L18": "ALTER TABLE limner.audit_log DROP CONSTRAINT audit_log_pkey; ALTER TABLE limner.audit_log ALTER org_id DROP NOT NULL",
    "L19": "CREATE POLICY x ON limner.job FOR SELECT USING (org_id = (SELECT limner.org()))",
    "L20": "ALTER FUNCTION limner.cancel_job OWNER TO postgres",
    "L20 enters late": "CREATE OR REPLACE FUNCTION limner.create_organization("
    "p_ctx text, p_slug text, p_name text, p_grants text, p_cap bigint) RETURNS uuid LANGUAGE plpgsql"
    " SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS"
    " $$ DECLARE n bigint := (SELECT count(*) FROM limner.job); t uuid := limner.enter(p_ctx); BEGIN RETURN t; END $$",
    "L21": "GRANT CREATE ON SCHEMA limner TO limner_api",
    "L21 public": "GRANT CREATE ON SCHEMA public TO PUBLIC",
    "L21 temporary": "DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO PUBLIC', current_database()); END $$",
    "L22": "CREATE POLICY x ON limner.job FOR SELECT TO limner_api USING (true)",
    "L22 or": "CREATE POLICY x ON limner.job FOR SELECT TO limner_api USING (org_id = (SELECT limner.org()) OR true)",
    "L22 owner": "ALTER POLICY entered ON limner.job USING (true)",
    "L22 trusts the caller": "ALTER POLICY tenant ON limner.job USING (org_id = current_setting('limner.entered')::uuid)",
    "L22 write": "CREATE POLICY x ON limner.job FOR UPDATE TO limner_worker USING (org_id = (SELECT limner.org())) WITH CHECK (true)",
}


@pytest.fixture
def rehearsal(superuser: psycopg.Connection, db: Database) -> Iterator[psycopg.Connection]:
    """A superuser's transaction that never commits; `db` makes sure that the schema is there."""
    superuser.execute("BEGIN")
    yield superuser
    superuser.execute("ROLLBACK")


def test_ta2_a_fresh_schema_has_no_findings(rehearsal: psycopg.Connection) -> None:
    assert lint.findings(rehearsal) == []


@pytest.mark.parametrize("name", DEFECTS)
def test_ta2_each_rule_finds_its_defect(rehearsal: psycopg.Connection, name: str) -> None:
    rehearsal.execute(DEFECTS[name])
    rehearsal.execute("RESET ROLE")

    found = lint.findings(rehearsal)

    assert name.split(maxsplit=1)[0] in {rule.split()[0] for rule, _ in found}, found


def test_ta2_every_rule_of_the_lint_is_tried(rehearsal: psycopg.Connection) -> None:
    rules = {
        word[1:]
        for word in (lint.SQL / "lint.sql").read_text().split()
        if word.startswith("'L") and word[2:4].isdigit()
    }

    assert {rule.split("'")[0] for rule in rules} == {name.split()[0] for name in DEFECTS}
