"""TA7: API keys are useless if the database leaks, and looking one up is safe."""

import random
import re
import string
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from limner.db.pools import Database
from limner.kit import crypto
from limner.tenancy import api_keys, apps, audit, organizations
from tests.conftest import MakeTenant, Tenant
from tests.db.planted import tenant_tables


async def _resolve(db: Database, text: str) -> api_keys.ResolvedKey | None:
    key_hash = api_keys.digest(text)
    assert key_hash is not None
    async with db.system_tx("limner_api", "a test presents a key") as tx:
        return await api_keys.resolve(tx, key_hash)


def test_ta7_a_key_carries_256_random_bits_and_a_checksum() -> None:
    keys = {api_keys.generate() for _ in range(1000)}

    assert len(keys) == 1000
    assert all(re.fullmatch(r"lmn_live_[A-Za-z0-9_-]{49}", key) for key in keys)
    assert all(api_keys.digest(key) == crypto.sha256(key.encode()) for key in keys)


def test_ta7_a_mistyped_key_is_refused_without_a_look_up() -> None:
    key, chance = api_keys.generate(), random.Random(7)
    alphabet = string.ascii_letters + string.digits + "-_"

    for _ in range(2000):
        place = chance.randrange(len(api_keys.PREFIX), len(key))
        wrong = key[:place] + chance.choice(alphabet.replace(key[place], "")) + key[place + 1 :]
        assert api_keys.digest(wrong) is None
    swapped = key[:20] + key[21] + key[20] + key[22:]
    assert swapped == key or api_keys.digest(swapped) is None


@pytest.mark.parametrize(
    "text",
    ["", " ", "lmn_live_", "Bearer x", "'; DROP TABLE limner.api_key; --", "lmn_live_" + "é" * 49, "\x00", "lmn_live_" + "a" * 10_000,
     "lmn_test_" + "a" * 49, "LMN_LIVE_" + "a" * 49, "\n" * 58, "lmn_live_" + "０" * 49],
)  # fmt: skip
def test_ta7_what_cannot_be_a_key_is_none_and_no_error(text: str) -> None:
    assert api_keys.digest(text) is None
    key = api_keys.generate()
    assert [api_keys.digest(x) for x in (key + "\n", " " + key, key + " ", key[:-1], key + "a")] == [None] * 5


async def test_ta7_a_dump_of_the_database_holds_no_usable_key(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    """Nothing that is stored, not even the hash presented as a key, lets anybody in."""
    dump = " ".join(
        row[0]
        for table in tenant_tables(superuser)
        for row in superuser.execute(f"SELECT t::text FROM limner.{table} t")
    )

    assert tenant.api_key not in dump
    assert tenant.api_key[len(api_keys.PREFIX) + 6 :] not in dump
    assert crypto.sha256(tenant.api_key.encode()).hex() in dump, "the dump holds the hash: the judge can see"
    assert not [word for word in re.findall(r"lmn_live_[\w-]+", dump) if api_keys.digest(word)]
    assert api_keys.digest(crypto.sha256(tenant.api_key.encode()).hex()) is None


async def test_ta7_a_key_resolves_to_its_own_app_and_to_nothing_else(db: Database, make_tenant: MakeTenant) -> None:
    mine, other = await make_tenant(scopes=("jobs:read",)), await make_tenant()

    found = await _resolve(db, mine.api_key)

    assert found is not None
    assert (found.org_id, found.app_id) == (mine.org_id, mine.app.id)
    assert (found.live, found.app_enabled, found.org_active) == (True, True, True)
    assert found.scopes == {"jobs:read"}
    assert (await _resolve(db, other.api_key)) != found
    assert await _resolve(db, api_keys.generate()) is None


async def test_ta7_the_api_role_can_look_up_by_hash_and_not_browse(db: Database, tenant: Tenant) -> None:
    for statement in ("SELECT * FROM limner.api_key", "SELECT key_hash FROM limner.api_key"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            async with db.tenant_tx(tenant.org_id) as tx:
                await tx.all(statement)


async def test_ta7_a_revoked_and_an_expired_key_are_not_live(db: Database, tenant: Tenant) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        _, gone = await api_keys.create(
            tx, tenant.app, actor="test", expires_at=datetime.now(UTC) - timedelta(seconds=1)
        )
        _, later = await api_keys.create(
            tx, tenant.app, actor="test", expires_at=datetime.now(UTC) + timedelta(hours=1)
        )
        key = await api_keys.get(tx, tenant.api_key[: api_keys.SHOWN_LENGTH])
        await api_keys.revoke(tx, key, actor="test")
        first = (await api_keys.get(tx, str(key.id))).revoked_at
        await api_keys.revoke(tx, key, actor="test")
        assert (await api_keys.get(tx, str(key.id))).revoked_at == first, "a second revocation rewrites nothing"

    live = {text: await _resolve(db, text) for text in (tenant.api_key, gone, later)}

    assert {text: found.live for text, found in live.items() if found} == {
        tenant.api_key: False,
        gone: False,
        later: True,
    }


async def test_ta7_a_rotated_key_overlaps_with_its_successor(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        old = await api_keys.get(tx, tenant.api_key[: api_keys.SHOWN_LENGTH])
        fresh, text = await api_keys.rotate(tx, old, tenant.app, actor="test", overlap_s=3600)
        ends = (await api_keys.get(tx, str(old.id))).expires_at

    assert ends is not None
    assert abs((ends - datetime.now(UTC)).total_seconds() - 3600) < 30
    assert (fresh.scopes, fresh.name) == (old.scopes, old.name)
    for presented in (tenant.api_key, text):
        found = await _resolve(db, presented)
        assert found is not None
        assert found.live
    superuser.execute(
        "UPDATE limner.api_key SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s", [old.id]
    )
    assert [getattr(await _resolve(db, t), "live", None) for t in (tenant.api_key, text)] == [False, True]


async def test_ta7_rotating_never_lengthens_a_keys_life(db: Database, tenant: Tenant) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        short, _ = await api_keys.create(tx, tenant.app, actor="test", expires_at=soon)
        await api_keys.rotate(tx, short, tenant.app, actor="test", overlap_s=86_400)

        assert (await api_keys.get(tx, str(short.id))).expires_at == soon


async def test_ta7_an_ended_key_is_not_brought_back_by_rotating_it(db: Database, tenant: Tenant) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        expired, _ = await api_keys.create(tx, tenant.app, actor="test", expires_at=past)
        revoked, _ = await api_keys.create(tx, tenant.app, actor="test")
        await api_keys.revoke(tx, revoked, actor="test")
        for key in (expired, await api_keys.get(tx, str(revoked.id))):
            with pytest.raises(api_keys.KeyEnded):
                await api_keys.rotate(tx, key, tenant.app, actor="test", overlap_s=60)


async def test_ta7_unknown_scopes_are_refused(db: Database, tenant: Tenant) -> None:
    for scopes in (("admin",), ("jobs:read", "jobs:write"), ("JOBS:READ",), ("",)):
        with pytest.raises(api_keys.UnknownScope):
            async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
                await api_keys.create(tx, tenant.app, actor="test", scopes=scopes)


async def test_ta7_a_disabled_app_and_an_inactive_organization_show_in_the_look_up(
    db: Database, tenant: Tenant
) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await apps.change(tx, tenant.app, actor="test", is_enabled=False)
        await organizations.change(tx, actor="test", is_active=False)

    found = await _resolve(db, tenant.api_key)

    assert found is not None
    assert (found.live, found.app_enabled, found.org_active) == (True, False, False)


async def test_ta7_the_last_use_is_noted_once_a_minute(
    db: Database, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    seen = []
    for _ in range(3):
        await _resolve(db, tenant.api_key)
        seen.append(
            superuser.execute(
                "SELECT last_used_at, xmin FROM limner.api_key WHERE org_id = %s", [tenant.org_id]
            ).fetchone()
        )

    assert seen[0] is not None
    assert seen[0][0] is not None
    assert seen == [seen[0]] * 3, "each look-up of a busy key would be a write"


async def test_ta7_foreign_keys_are_absent_for_an_operator_of_another_organization(
    db: Database, make_tenant: MakeTenant
) -> None:
    mine, other = await make_tenant(), await make_tenant()
    async with db.tenant_tx(other.org_id, "limner_operator") as tx:
        theirs = (await api_keys.list_of_app(tx, other.app))[0]

    async with db.tenant_tx(mine.org_id, "limner_operator") as tx:
        for name in (str(theirs.id), theirs.prefix):
            with pytest.raises(api_keys.KeyNotFound):
                await api_keys.get(tx, name)
        await api_keys.revoke(tx, theirs, actor="test")

    found = await _resolve(db, other.api_key)
    assert found is not None
    assert found.live


async def test_every_change_of_keys_leaves_an_audit_row_without_the_secret(db: Database, tenant: Tenant) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        key, text = await api_keys.create(tx, tenant.app, actor="olga")
        fresh, later = await api_keys.rotate(tx, key, tenant.app, actor="olga", overlap_s=60)
        await api_keys.revoke(tx, fresh, actor="olga")
        entries = [e for e in await audit.list_entries(tx) if e["actor"] == "olga"]

    assert [e["action"] for e in reversed(entries)] == [
        "api_key.created", "api_key.created", "api_key.rotated", "api_key.revoked",
    ]  # fmt: skip
    assert text[len(api_keys.PREFIX) + 6 :] not in str(entries)
    assert later[len(api_keys.PREFIX) + 6 :] not in str(entries)
