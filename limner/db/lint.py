"""The catalog lint and the boot check: isolation that rests on the database is read back from the database.

`findings` runs sql/lint.sql (each row a defect); `boot_problems` is what every process asks before it serves.
"""

from pathlib import Path

import psycopg

from limner.db import revisions

SQL = Path(__file__).parent / "sql"

BOOT_QUERY = """
SELECT r.rolname, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
       EXISTS (SELECT 1 FROM pg_auth_members m WHERE m.member = r.oid) AS member,
       EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname LIKE 'limner%%' AND c.relowner = r.oid) AS owner,
       EXISTS (SELECT 1 FROM pg_namespace n WHERE n.nspname LIKE 'limner%%' AND n.nspowner = r.oid) AS schema_owner,
       EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'limner' AND c.relkind IN ('r', 'p')
                  AND EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'org_id')
                  AND NOT (c.relrowsecurity AND c.relforcerowsecurity)) AS naked
  FROM pg_roles r WHERE r.rolname = current_user
"""

POWERS = {
    "rolsuper": "is a superuser",
    "rolbypassrls": "may bypass row level security",
    "rolcreaterole": "may create roles",
    "rolcreatedb": "may create databases",
    "rolreplication": "may replicate",
    "member": "is a member of another role",
    "owner": "owns a table of limner's",
    "schema_owner": "owns a schema of limner's",
}


def findings(conn: psycopg.Connection) -> list[tuple[str, str]]:
    """(rule, object) for every defect of the schema. Empty is good."""
    return [(row[0], row[1]) for row in conn.execute((SQL / "lint.sql").read_text())]


def boot_problems(conn: psycopg.Connection, floor: int = revisions.FLOOR_VERSION) -> list[str]:
    """What is wrong with running as this connection's role against this server. Empty is good."""
    problems = []
    if conn.info.server_version < floor:
        problems.append(f"PostgreSQL {conn.info.server_version} is older than {floor}: upgrade the server")
    cursor = conn.execute(BOOT_QUERY)
    assert cursor.description is not None
    facts = dict(zip([c.name for c in cursor.description], cursor.fetchone() or (), strict=False))
    for column, words in POWERS.items():
        if facts.get(column):
            problems.append(
                f"the role {facts['rolname']} {words}: take that away (limner db migrate makes the roles right)"
            )
    if facts.get("naked"):
        problems.append("a tenant table has row level security switched off: run limner db lint")
    if revisions.current(conn) != revisions.head():
        problems.append(
            f"the schema is at {revisions.current(conn)}, this release needs {revisions.head()}: run limner db migrate"
        )
    return problems
