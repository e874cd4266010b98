"""TA12: an organization's own key appears nowhere, opens in no other place, and outlives the root key it was sealed under."""

import asyncio
import json
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from limner.db.pools import Database
from limner.egress.own_keys import OwnKeys, SealedKey
from limner.hub import catalog, provider_keys
from limner.hub.provider_keys import Actor
from tests import tiers
from tests.cli.conftest import Limner
from tests.conftest import Server
from tests.emulators.openai_server import Says
from tests.faults.cluster import eventually
from tests.hub.api.own_keys.brought import (
    CHAT,
    FIRST,
    OLD_ROOT,
    PICTURE,
    SECOND,
    Brought,
    House,
    Shops,
)

CANARY = "sk-canary-5d0e77b1a94c63f2"
KNOWN = "harbour-word-8f31"
TABLES = "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'limner'::regnamespace AND c.relkind IN ('r', 'p')"
ECHO = Says(401, {"error": {"message": f"Incorrect API key provided: Bearer {CANARY}", "code": "invalid_api_key"}})
NOT_NOW = """
INSERT INTO limner.chore (name, next_at) VALUES ('reseal_old', clock_timestamp() + interval '1 hour')
ON CONFLICT (name) DO UPDATE SET next_at = excluded.next_at
"""
"""A worker that has just started would take its own turn at what is sealed under an old root key."""
ECHO_500 = Says(500, {"error": {"message": f"we broke over {CANARY}"}}, {"x-request-id": CANARY, "x-key": CANARY})


async def test_ta12_a_key_runs_through_everything_and_is_found_nowhere(
    shops: Shops, house: House, server: Server, superuser: psycopg.Connection, limner: Limner
) -> None:
    shop = await shops()
    answers: list[bytes] = [(await shop.bring(FIRST, CANARY)).body]
    await shop.client.call("POST", "/api/v1/webhooks", {"url": f"{house.hooks.url}/{shop.tenant.slug}/200"})
    for turn in (None, ECHO_500, "hangs up", "breaks off", Says(200, b"<html>"), ECHO):
        house.first.always(turn)
        jobs = [await shop.order(PICTURE), await shop.order(CHAT, prompt=KNOWN)]
        calls = [await shop.ask(), await shop.ask(stream=True), await shop.ask(stream=True, n=2)]
        for job in jobs:
            closed = await shop.client.finished(job["job_id"])
            answers += [json.dumps(closed).encode(), json.dumps(await shop.receipt(job["job_id"])).encode()]
        for call in calls:
            answers += [call.body, str(call.headers).encode(), json.dumps(await shop.receipt_of(call)).encode()]
    house.first.always(ECHO_500)
    house.second.always(ECHO_500)
    answers += [(await shop.ask()).body, (await shop.ask(stream=True)).body]
    answers += [(await refused).body for refused in _mistakes(shop)]
    own = ("/api/v1/provider-keys", f"/api/v1/provider-keys/{FIRST}", "/api/v1/events", "/api/v1/jobs", "/metrics")
    answers += [await _beginning(shop, path) for path in own]
    await eventually(lambda: len(house.hooks.of(shop.tenant.slug)) >= 12)
    told = [str(dict(got.headers)).encode() + got.body for got in house.hooks.of(shop.tenant.slug)]
    printed = [
        limner("providers", "keys", "list", "--org", shop.tenant.slug, env=_env(server)),
        limner("org", "audit", shop.tenant.slug, env=_env(server)),
    ]

    assert CANARY in shop.keys(house.first)
    assert set(shop.keys(house.second)) & {CANARY} == set()
    assert [said.code for said in printed] == [0, 0], printed
    assert [one for one in answers + told if CANARY.encode() in one] == []
    assert CANARY not in "".join(said.out + said.err for said in printed)
    assert CANARY not in house.said
    assert _rows_with(superuser, CANARY) == {}
    assert _files_with(server.home, CANARY) == []


def _mistakes(shop: Brought) -> Iterator[Any]:
    """A key in the wrong place, or in a form that cannot be."""
    path = f"/api/v1/provider-keys/{SECOND}"
    for body in (
        {"key": f"{CANARY} "},
        {"key": [CANARY]},
        {"secret": CANARY},
        {"key": CANARY * 40},
        {"key": CANARY, "enabled": CANARY},
    ):
        yield shop.client.call("PUT", path, body)
    yield shop.client.call("PUT", "/api/v1/provider-keys/local", {"key": CANARY})
    yield shop.client.call("PUT", "/api/v1/provider-keys/nobody", {"key": CANARY})
    yield shop.client.call("PUT", path, data=b'{"key": "' + CANARY.encode())


async def _beginning(shop: Brought, path: str) -> bytes:
    async with shop.client.http.get(
        shop.client.url + path, headers={"X-API-Key": shop.tenant.api_key}, timeout=None
    ) as got:
        return await got.content.readany()  # the log of events never ends


def test_ta12_the_search_finds_what_is_there(house: House, server: Server, superuser: psycopg.Connection) -> None:
    """The control: what a prompt said is in a table and in the database's files, and the provider's name in the log."""
    assert "job" in _rows_with(superuser, KNOWN)
    assert _files_with(server.home, KNOWN) != []
    assert FIRST in house.said


def _rows_with(superuser: psycopg.Connection, word: str) -> dict[str, int]:
    """Rows by table whose text, or whose bytes, have the word."""
    found = {}
    for (table,) in superuser.execute(TABLES).fetchall():
        row = superuser.execute(
            f"SELECT count(*) FROM limner.{table} x WHERE x::text LIKE %s OR x::text LIKE %s",
            [f"%{word}%", f"%{word.encode().hex()}%"],
        ).fetchone()
        if row and row[0]:
            found[table] = row[0]
    return found


def _files_with(home: Path, word: str) -> list[str]:
    """Files of the installation, the database's and the log among them, that have the word."""
    found = []
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                if mapped.find(word.encode()) >= 0:
                    found.append(str(path.relative_to(home)))
    return found


Move = Callable[[psycopg.Connection, Brought, Brought], None]


def _from_another_organization(superuser: psycopg.Connection, mine: Brought, theirs: Brought) -> None:
    _seal_like(superuser, mine, FIRST, _sealed(superuser, theirs, FIRST))


def _from_another_provider(superuser: psycopg.Connection, mine: Brought, _: Brought) -> None:
    _seal_like(superuser, mine, FIRST, _sealed(superuser, mine, SECOND))


def _whole_row(superuser: psycopg.Connection, mine: Brought, theirs: Brought) -> None:
    """All of it but whose it is, the row's id too."""
    superuser.execute("DELETE FROM limner.provider_key WHERE org_id = %s", [mine.tenant.org_id])
    superuser.execute(
        "UPDATE limner.provider_key SET org_id = %s WHERE org_id = %s", [mine.tenant.org_id, theirs.tenant.org_id]
    )


def _another_row(superuser: psycopg.Connection, mine: Brought, _: Brought) -> None:
    superuser.execute("UPDATE limner.provider_key SET id = gen_random_uuid() WHERE org_id = %s", [mine.tenant.org_id])


def _one_bit(superuser: psycopg.Connection, mine: Brought, _: Brought) -> None:
    sealed = bytearray(_sealed(superuser, mine, FIRST))
    sealed[-1] ^= 1
    _seal_like(superuser, mine, FIRST, bytes(sealed))


def _cut_tag(superuser: psycopg.Connection, mine: Brought, _: Brought) -> None:
    _seal_like(superuser, mine, FIRST, _sealed(superuser, mine, FIRST)[:-4])


MOVES: tuple[Move, ...] = (
    _from_another_organization, _from_another_provider, _whole_row, _another_row, _one_bit, _cut_tag,
)  # fmt: skip


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__.strip("_"))
async def test_ta12_a_ciphertext_in_another_place_fails_closed(
    shops: Shops, house: House, superuser: psycopg.Connection, move: Move
) -> None:
    """Nothing is sent to that provider: not the key that was moved there, and not the platform's in its stead."""
    mine, theirs = await shops(only_first=True), await shops()
    for shop, key in ((mine, "sk-the-key-of-mine"), (theirs, "sk-the-key-of-theirs")):
        assert (await shop.bring(FIRST, key)).status == 200
    await mine.bring(SECOND, "sk-the-second-of-mine")
    move(superuser, mine, theirs)

    answers = [await mine.ask(), await mine.ask(stream=True)]
    job = await mine.buy(PICTURE) if move is _from_another_organization else None

    assert mine.keys(house.first) == []
    for answer in answers:
        assert (answer.status, answer.json["error"]["code"]) == (502, "own_key_unusable")
    if job is not None:
        assert (job["status"], job["attempts"][-1]["error"]["code"]) == ("failed", "own_key_unusable")
        assert job["credits"]["charged"] == "0"


async def test_ta12_a_key_does_not_follow_a_provider_to_another_address(
    shops: Shops, house: House, db: Database
) -> None:
    """Its operator moves the provider: the key was given for the old address, and goes to no other."""
    shop = await shops(only_first=True)

    async def place(url: str) -> None:
        async with db.tenant_tx(shop.tenant.org_id, "limner_operator") as tx:
            await catalog.put_provider(
                tx, {"name": "moving", "display_name": "M", "adapter": "openai", "base_url": url}
            )
            await catalog.put_route(tx, CHAT, "moving", provider_model="tiny")
            await catalog.remove_route(tx, CHAT, FIRST)

    await place(house.first.url)
    assert (await shop.bring("moving", "sk-the-key-of-mine")).json["sent_to"] == house.first.origin
    await place(house.second.url)

    answer = await shop.ask()

    assert (answer.status, answer.json["error"]["code"]) == (502, "own_key_unusable")
    assert shop.keys(house.second) == []
    await shop.bring("moving", "sk-the-key-of-mine")
    await eventually(lambda: _answers(shop))
    assert shop.keys(house.second)[-1] == "sk-the-key-of-mine"


async def _answers(shop: Brought) -> bool:
    return (await shop.ask()).status == 200


@pytest.mark.parametrize("keys", tiers.counts(pr=12, long=10_000))
async def test_ta12_the_root_key_is_changed_and_no_job_fails(
    shops: Shops, house: House, server: Server, db: Database, superuser: psycopg.Connection, limner: Limner, keys: int
) -> None:
    """Keys sealed under the old root key, most of them of providers that nobody asks meanwhile; work goes on all the while."""
    shop = await shops(only_first=True)
    superuser.execute(NOT_NOW)
    old, new = OwnKeys(OLD_ROOT), OwnKeys(server.root)
    async with db.tenant_tx(shop.tenant.org_id) as tx:
        await provider_keys.put(tx, old, FIRST, "sk-sealed-under-the-old", Actor("operator", "test"))
    _plant(superuser, shop, old, keys - 1)
    going = True

    async def work() -> list[Any]:
        receipts: list[Any] = []
        while going or len(receipts) < 3:
            receipts += [await shop.buy(PICTURE), await shop.receipt_of(await shop.ask())]
        return receipts

    working = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    said = await asyncio.to_thread(limner, "db", "reseal", "--json", env=_env(server))
    going = False
    receipts = await working

    assert (said.code, said.json["keys"], said.json["broken"]) == (0, keys, 0), said.err
    assert {receipt["status"] for receipt in receipts} == {"succeeded"}
    assert set(shop.keys(house.first)) == {"sk-sealed-under-the-old"}
    rows = superuser.execute(
        "SELECT provider_id, id, sealed, origin, kid FROM limner.provider_key WHERE org_id = %s", [shop.tenant.org_id]
    ).fetchall()
    assert {kid for *_, kid in rows} == {server.root.kid}
    opened = {
        new.opened(SealedKey(shop.tenant.org_id, provider, row, sealed), at) for provider, row, sealed, at, _ in rows
    }
    assert len(opened) == keys


def _plant(superuser: psycopg.Connection, shop: Brought, old: OwnKeys, count: int) -> None:
    """As many providers of the tenant's own, each with a key."""
    org_id: UUID = shop.tenant.org_id
    providers = superuser.execute(
        "INSERT INTO limner.provider (org_id, id, name, display_name, adapter, base_url) SELECT %s, gen_random_uuid(), 'planted-' || n,"
        " 'P', 'openai', 'https://api.openai.com/v1' FROM generate_series(1, %s) n RETURNING id, gen_random_uuid()",
        [org_id, count],
    ).fetchall()
    origin = "https://api.openai.com"
    rows = []
    for number, (provider, row) in enumerate(providers):
        sealed = old.seal(org_id, provider, row, origin, f"sk-planted-number-{number}")
        rows.append(
            (
                org_id,
                row,
                org_id,
                provider,
                origin,
                sealed.key.sealed,
                sealed.kid,
                sealed.last4,
                sealed.fingerprint,
                "test",
            )
        )
    with superuser.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO limner.provider_key (org_id, id, provider_org, provider_id, origin, sealed, kid, last4, fingerprint, created_by)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            rows,
        )


@pytest.fixture
def limner(server: Server, tmp_path: Path) -> Limner:
    return Limner(server.home, tmp_path)


def _env(server: Server) -> dict[str, str]:
    return {"LIMNER_DATABASE_URL": server.url, "LIMNER_OLD_ROOT_KEYS": OLD_ROOT.value.hex()}


def _sealed(superuser: psycopg.Connection, shop: Brought, provider: str) -> bytes:
    row = superuser.execute(
        "SELECT k.sealed FROM limner.provider_key k JOIN limner.provider p ON p.id = k.provider_id WHERE k.org_id = %s AND p.name = %s",
        [shop.tenant.org_id, provider],
    ).fetchone()
    assert row is not None
    return bytes(row[0])


def _seal_like(superuser: psycopg.Connection, shop: Brought, provider: str, sealed: bytes) -> None:
    superuser.execute(
        "UPDATE limner.provider_key k SET sealed = %s FROM limner.provider p WHERE p.id = k.provider_id AND k.org_id = %s"
        " AND p.name = %s",
        [sealed, shop.tenant.org_id, provider],
    )
