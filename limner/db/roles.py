"""The database's roles: who may do what, with passwords derived from the root key.

Run-time roles log in by themselves and are members of nothing: nobody ever changes role on a pooled
connection (CVE-2016-2193, CVE-2023-2455 and CVE-2024-10976 applied another role's policies to a reused plan).
"""

from psycopg import Connection, sql

from limner.kit import crypto

OWNERS = ("limner_owner", "limner_batch", "limner_lookup", "limner_ctx")
"""Own the schema, what writes for several organizations, the look-ups and the context key; cannot log in."""

RUNTIME = ("limner_api", "limner_worker", "limner_dispatch", "limner_operator", "limner_audit")
"""Log in from limner's own processes; hold no write grant on money or job state."""

TIMEOUTS_S = {
    "limner_api": 5,
    "limner_worker": 10,
    "limner_dispatch": 10,
    "limner_operator": 60,
    "limner_audit": 600,
}


def ensure(conn: Connection, root: crypto.RootKey) -> None:
    """Create missing roles, set their passwords and timeouts. Needs a superuser, or a role with CREATEROLE.

    Raises psycopg.errors.InsufficientPrivilege when the migrating role may not create roles.
    """
    known = {row[0] for row in conn.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'limner\\_%'")}
    for role in OWNERS:
        if role not in known:
            conn.execute(sql.SQL("CREATE ROLE {} NOLOGIN NOINHERIT").format(sql.Identifier(role)))
        if not _member(conn, role):
            conn.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))
    for role in RUNTIME:
        name = sql.Identifier(role)
        if role not in known:
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN NOINHERIT").format(name))
        conn.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(root.password(role))))
        for setting, value in _settings(role).items():
            conn.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.SQL(setting), sql.Literal(value)))


def _settings(role: str) -> dict[str, str]:
    return {
        "statement_timeout": f"{TIMEOUTS_S[role]}s",
        "idle_in_transaction_session_timeout": "10s",
        "search_path": "pg_catalog",
        "timezone": "UTC",
    }


def _member(conn: Connection, role: str) -> bool:
    row = conn.execute(
        "SELECT pg_has_role(current_user, %s, 'USAGE') OR rolsuper FROM pg_roles WHERE rolname = current_user",
        [role],
    ).fetchone()
    return bool(row and row[0])
