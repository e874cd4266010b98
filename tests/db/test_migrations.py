"""From nothing to this release's schema, again, at the same time, and on the oldest server that is supported."""

import asyncio
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from limner.db import lint, migrate, revisions
from limner.db.context import ContextSigner
from limner.db.embedded import SYSTEM_USER, EmbeddedPostgres
from limner.db.pools import Address, Database, runtime_conninfo
from limner.kit.crypto import RootKey
from limner.kit.money import MC
from limner.tenancy import apps, organizations
from tests import acts
from tests.conftest import ROLES, Server, Tenant

PG15 = Path("/usr/lib/postgresql/15/bin")

SCHEMA = """
SELECT 'column', c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod) || a.attnotnull FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace::regnamespace::text LIKE 'limner%' AND a.attnum > 0
UNION ALL SELECT 'function', p.oid::regprocedure::text, md5(p.prosrc) || coalesce(p.proacl::text, '') FROM pg_proc p
  WHERE p.pronamespace::regnamespace::text LIKE 'limner%'
UNION ALL SELECT 'policy', tablename || '.' || policyname, roles::text || coalesce(qual, '') || coalesce(with_check, '') FROM pg_policies
UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname LIKE 'limner%'
UNION ALL SELECT 'grant', relname, coalesce(relacl::text, '') FROM pg_class WHERE relnamespace::regnamespace::text LIKE 'limner%'
UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace::regnamespace::text LIKE 'limner%'
UNION ALL SELECT 'key', 'pads', md5(string_agg(ik || ok, '')) FROM limner_priv.ctx_key
ORDER BY 1, 2, 3
"""


@pytest.fixture
def empty(server: Server) -> Iterator[Server]:
    """A database without anything, on the run's server."""
    name = f"empty_{uuid4().hex[:8]}"
    with psycopg.connect(server.embedded.superuser_conninfo(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} OWNER limner_migrate")
        yield replace(server, url=make_conninfo(server.url, dbname=name))
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _schema(server: Server) -> list[Any]:
    superuser = make_conninfo(
        server.embedded.superuser_conninfo(), dbname=psycopg.conninfo.conninfo_to_dict(server.url)["dbname"]
    )
    with psycopg.connect(superuser) as conn:
        return conn.execute(SCHEMA).fetchall()


def test_from_empty_to_head_and_again_changes_nothing(empty: Server) -> None:
    with psycopg.connect(empty.url) as conn:
        assert revisions.current(conn) is None

    assert migrate.migrate(empty.url, empty.root) == (None, revisions.head())
    first = _schema(empty)
    assert migrate.migrate(empty.url, empty.root) == (revisions.head(), revisions.head())

    assert _schema(empty) == first
    assert len(first) > 250
    with psycopg.connect(runtime_conninfo(empty.url, "limner_api", empty.root)) as conn:
        assert lint.boot_problems(conn) == []


def test_several_migrators_at_once_agree(empty: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: migrate.migrate(empty.url, empty.root), range(4)))

    assert {after for _, after in answers} == {revisions.head()}
    assert lint_of(empty) == []


def lint_of(server: Server) -> list[tuple[str, str]]:
    with psycopg.connect(server.url) as conn:
        return lint.findings(conn)


def test_a_role_that_may_not_create_roles_is_told_so(empty: Server) -> None:
    with psycopg.connect(empty.embedded.superuser_conninfo(), autocommit=True) as conn:
        password, name = secrets.token_hex(8), f"weak_{uuid4().hex[:8]}"
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        try:
            with pytest.raises(migrate.MigrationError, match="CREATEROLE"):
                migrate.migrate(make_conninfo(empty.url, user=name, password=password), empty.root)
        finally:
            conn.execute(f"DROP ROLE {name}")


def test_a_server_that_is_too_old_is_refused(empty: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "FLOOR_VERSION", 990000)

    with pytest.raises(migrate.MigrationError, match="or newer is needed"):
        migrate.migrate(empty.url, empty.root)


def test_a_process_before_the_migration_refuses_to_start(empty: Server) -> None:
    with psycopg.connect(runtime_conninfo(empty.url, "limner_api", empty.root)) as conn:
        assert any("run limner db migrate" in problem for problem in lint.boot_problems(conn))


@pytest.fixture
def postgres15() -> Iterator[str]:
    """An operator's own PostgreSQL 15, reached by URL as LIMNER_DATABASE_URL would."""
    if not PG15.exists():
        pytest.skip(f"there is no PostgreSQL 15 in {PG15}")
    folder, password = Path(tempfile.mkdtemp(prefix="pg15-", dir="/tmp")), secrets.token_hex(8)
    identity: dict[str, Any] = {}
    if os.getuid() == 0:
        EmbeddedPostgres._account()
        account = pwd.getpwnam(SYSTEM_USER)
        os.chown(folder, account.pw_uid, account.pw_gid)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}
    (folder / "pw").write_text(password)
    (folder / "pw").chmod(0o644)
    subprocess.run(
        [PG15 / "initdb", "-D", folder / "data", "-U", "postgres", f"--pwfile={folder / 'pw'}", "-A", "scram-sha-256", "--no-sync"],
        check=True, capture_output=True, **identity,
    )  # fmt: skip
    server = subprocess.Popen(
        [PG15 / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity,
    )  # fmt: skip
    root = f"host={folder} user=postgres password={password}"
    try:
        _wait(root)
        with psycopg.connect(root, dbname="postgres", autocommit=True) as conn:
            conn.execute(f"CREATE ROLE limner_migrate LOGIN CREATEROLE PASSWORD '{password}'")
            conn.execute("CREATE DATABASE limner OWNER limner_migrate")
        yield f"postgresql://limner_migrate:{password}@/limner?host={folder}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(conninfo: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(conninfo, dbname="postgres").close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


async def test_the_oldest_supported_server_carries_a_jobs_whole_life(postgres15: str) -> None:
    root = RootKey(secrets.token_bytes(32))
    for _ in range(2):
        await asyncio.to_thread(migrate.migrate, postgres15, root)
    database = Database(Address(postgres15), root, ROLES, size=4)
    await database.open()
    try:
        tenant = await _tenant(database)
        await acts.grant(database, tenant, 5 * MC)
        done = (await acts.submit(database, tenant, key="k")).job_id
        assert (await acts.submit(database, tenant, key="k")).replayed
        await acts.work(database, done)
        await acts.refund(database, tenant, done, 400, "r")
        assert await acts.cancel(database, tenant, (await acts.submit(database, tenant)).job_id) == "cancelled"
        assert (await acts.wallet(database, tenant)).available_mc == 4_400
        assert [line.kind for line in await acts.lines(database, tenant)] == [
            "void",
            "hold",
            "refund",
            "post",
            "hold",
            "grant",
        ]
        assert await acts.books(database, tenant.org_id) == {}
        with psycopg.connect(runtime_conninfo(postgres15, "limner_api", root)) as conn:
            assert conn.info.server_version // 10000 == 15
            assert lint.boot_problems(conn) == []
            with pytest.raises(psycopg.Error) as caught:
                conn.execute("SELECT * FROM limner.job")
            assert caught.value.sqlstate == "LM001"
            conn.rollback()
            conn.execute(
                "SELECT set_config('limner.ctx', %s, true)", [ContextSigner(root, database.clock).sign(uuid4())]
            )
            assert conn.execute("SELECT * FROM limner.job").fetchall() == []
        with psycopg.connect(postgres15) as conn:
            assert lint.findings(conn) == []
    finally:
        await database.close()


async def _tenant(database: Database) -> Tenant:
    org_id = uuid4()
    async with database.tenant_tx(org_id, "limner_operator") as tx:
        await organizations.create(tx, "old", "Old", actor="test")
        app = await apps.create(tx, "main", "Main", actor="test")
    return Tenant(org_id, "old", app, "")
