"""An upload's life over HTTP: reserved, put, completed, listed, deleted; and who may see it."""

import asyncio
import base64
import hashlib
from typing import Any

import aiohttp
import pytest
import pyvips

from limner.db.pools import Database
from limner.tenancy import api_keys, apps
from tests.conftest import MakeTenant, Tenant
from tests.media.sending import UPLOADS, Sender
from tests.running import Api, Client
from tests.web.pictures import png

PICTURE = png(40, 30)
NOBODY = "019a1f85-126f-701c-b732-d9e071145302"


async def test_a_picture_comes_in_and_out_again(sender: Sender) -> None:
    created = await sender.announce(PICTURE, name="A harbour.png")
    assert (created.status, created.json["status"]) == (201, "pending")
    assert created.headers["location"] == f"{UPLOADS}/{created.json['id']}"
    assert sender.usage() == (len(PICTURE), 1)

    assert await sender.put(created.json["upload"], PICTURE) == 200
    done = await sender.complete(created.json["id"])

    assert done.status == 200
    shown = done.json
    assert (shown["status"], shown["name"], shown["user_id"]) == ("ready", "A harbour.png", "ann")
    assert (shown["width"], shown["height"], shown["media_type"], shown["has_alpha"]) == (40, 30, "image/png", True)
    assert shown["dominant_color"] == "#2080c0"
    assert shown["sha256"] == hashlib.sha256(PICTURE).hexdigest()
    assert 5 <= len(base64.b64decode(shown["thumbhash"])) <= 32
    picture = await sender.client.call("GET", shown["url"])
    assert (picture.status, len(picture.body)) == (200, shown["bytes"])
    assert pyvips.Image.pngload_buffer(picture.body).width == 40
    [key] = sender.objects()
    assert key.endswith(f"/{hashlib.sha256(picture.body).hexdigest()}.png")
    assert sender.usage() == (shown["bytes"], 1)
    assert await sender.get(shown["id"]) == shown


async def test_completing_again_changes_nothing(sender: Sender) -> None:
    ready = await sender.ready(PICTURE)

    again = await asyncio.gather(*(sender.complete(ready["id"]) for _ in range(5)))

    assert [answer.json for answer in again] == [ready] * 5
    assert sender.usage()[1] == 1


async def test_completed_by_many_at_once_it_is_worked_on_once(sender: Sender) -> None:
    upload_id = await sender.sent(PICTURE)

    answers = await asyncio.gather(*(sender.complete(upload_id) for _ in range(8)))

    assert {answer.status for answer in answers} <= {200, 202}
    assert (await sender.complete(upload_id)).json["status"] == "ready"
    row = sender.superuser.execute("SELECT tries FROM limner.upload WHERE id = %s", [upload_id]).fetchone()
    assert row == (1,)


async def test_nothing_there_yet_is_409_and_can_still_come(sender: Sender) -> None:
    upload = await sender.pending(PICTURE)

    early = await sender.complete(upload["id"])
    assert (early.status, early.json["code"]) == (409, "not_uploaded")

    assert await sender.put(upload["upload"], PICTURE) == 200
    assert (await sender.complete(upload["id"])).status == 200


async def test_an_idempotency_key_reserves_one_place(sender: Sender) -> None:
    first = await sender.announce(PICTURE, idempotency_key="k1")
    copies = await asyncio.gather(*(sender.announce(PICTURE, idempotency_key="k1") for _ in range(5)))
    other = await sender.announce(PICTURE + b"x", idempotency_key="k1")

    assert {copy.json["id"] for copy in copies} == {first.json["id"]}
    assert {copy.headers.get("idempotent-replayed") for copy in copies} == {"true"}
    assert "idempotent-replayed" not in first.headers
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")
    assert sender.usage() == (len(PICTURE), 1)
    sender.client.user = "bob"
    assert (await sender.announce(PICTURE, idempotency_key="k1")).json["id"] != first.json["id"]


async def test_a_deleted_upload_is_gone_with_everything_of_it(sender: Sender) -> None:
    ready = await sender.ready(PICTURE)
    assert (await sender.client.call("GET", ready["url"] + "&w=320")).status == 200
    assert len(sender.objects()) == 2

    gone = await sender.client.call("DELETE", f"{UPLOADS}/{ready['id']}")

    assert (gone.status, gone.body) == (204, b"")
    assert sender.objects() == []
    assert sender.usage() == (0, 0)
    assert await sender.get(ready["id"]) == 404
    assert (await sender.client.call("DELETE", f"{UPLOADS}/{ready['id']}")).status == 404
    assert (await sender.complete(ready["id"])).status == 404
    for url in (ready["url"], ready["url"] + "&w=320", ready["url"] + "&w=640"):
        assert (await sender.client.call("GET", url)).status == 404
    assert sender.objects() == []


async def test_lists_go_newest_first_page_by_page(sender: Sender) -> None:
    made = [(await sender.pending(PICTURE, name=f"n{n}"))["id"] for n in range(5)]
    ready = (await sender.ready(PICTURE))["id"]

    seen: list[str] = []
    cursor = ""
    for _ in range(4):
        page = (await sender.client.call("GET", f"{UPLOADS}?limit=2{cursor}")).json
        seen += [upload["id"] for upload in page["uploads"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    only = (await sender.client.call("GET", f"{UPLOADS}?status=ready")).json

    assert seen == [ready, *reversed(made)]
    assert [upload["id"] for upload in only["uploads"]] == [ready]
    for wrong in ("lost", ""):
        assert (await sender.client.call("GET", f"{UPLOADS}?status={wrong}")).status == 400
    assert (await sender.client.call("GET", f"{UPLOADS}?cursor=x")).status == 400


async def test_users_see_their_own_and_the_app_sees_all(sender: Sender) -> None:
    anns = (await sender.ready(PICTURE))["id"]
    sender.client.user = None
    apps_own = (await sender.ready(PICTURE))["id"]

    async def seen(user: str | None) -> set[str]:
        sender.client.user = user
        page = (await sender.client.call("GET", UPLOADS)).json
        listed = {upload["id"] for upload in page["uploads"]}
        assert listed == {upload_id for upload_id in (anns, apps_own) if isinstance(await sender.get(upload_id), dict)}
        return listed

    assert await seen(None) == {anns, apps_own}
    assert await seen("ann") == {anns}
    assert await seen("bob") == set()


async def test_absent_and_foreign_uploads_answer_alike(
    sender: Sender, make_tenant: MakeTenant, db: Database, http: aiohttp.ClientSession, api: Api, tenant: Tenant
) -> None:
    ready = await sender.ready(PICTURE)
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        sibling = await apps.create(tx, "sibling", "Sibling", actor="test")
        _, key = await api_keys.create(tx, sibling, actor="test", scopes=api_keys.SCOPES)
    before = sender.usage(), sender.objects()
    for stranger in (Client(http, api.url, key), Client(http, api.url, (await make_tenant()).api_key)):
        for user in (None, "ann"):
            stranger.user = user
            for method, tail in (("GET", ""), ("POST", "/complete"), ("DELETE", "")):
                answers = [
                    await stranger.call(method, f"{UPLOADS}/{name}{tail}") for name in (ready["id"], NOBODY, "x", "..")
                ]
                for answer in answers[:3]:
                    assert (answer.status, answer.json["code"]) == (404, "upload_not_found")
            assert (await stranger.call("GET", UPLOADS)).json == {"uploads": [], "next_cursor": None}
            after = f"{UPLOADS}?cursor={ready['id']}"
            assert (await stranger.call("GET", after)).json == {"uploads": [], "next_cursor": None}
    assert (sender.usage(), sender.objects()) == before
    assert await sender.get(ready["id"]) == ready


async def test_without_the_scope_nothing_is_possible(
    make_tenant: MakeTenant, http: aiohttp.ClientSession, api: Api
) -> None:
    scopes = tuple(scope for scope in api_keys.SCOPES if scope != "uploads:create")
    client = Client(http, api.url, (await make_tenant(scopes=scopes)).api_key)

    for method, path in (
        ("POST", ""),
        ("GET", ""),
        ("GET", f"/{NOBODY}"),
        ("DELETE", f"/{NOBODY}"),
        ("POST", f"/{NOBODY}/complete"),
    ):
        answer = await client.call(method, UPLOADS + path, {} if method == "POST" else None)
        assert (answer.status, answer.json["code"]) == (403, "missing_scope")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"size_bytes": 0}, "/size_bytes"), ({"size_bytes": -1}, "/size_bytes"), ({"size_bytes": "9"}, "/size_bytes"),
    ({"size_bytes": 1.5}, "/size_bytes"), ({"size_bytes": None}, "/size_bytes"), ({"size_bytes": 20 * 1024 * 1024 + 1}, "/size_bytes"),
    ({"size_bytes": 2**63}, "/size_bytes"), ({"sha256": "x"}, "/sha256"), ({"sha256": "A" * 64}, "/sha256"),
    ({"sha256": "a" * 63}, "/sha256"), ({"sha256": "a" * 64 + "\n"}, "/sha256"), ({"kind": "video"}, "/kind"), ({"kind": 1}, "/kind"),
    ({"name": "n" * 256}, "/name"), ({"name": "a\nb"}, "/name"), ({"name": None}, "/name"), ({"key": "q/x"}, "/key"),
    ({"idempotency_key": ""}, "/idempotency_key"), ({"idempotency_key": "a b"}, "/idempotency_key"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "pointer"), WRONG, ids=[str(change)[:30] for change, _ in WRONG])
async def test_what_cannot_be_right_is_400_with_its_pointer(
    sender: Sender, change: dict[str, Any], pointer: str
) -> None:
    answer = await sender.announce(PICTURE, **change)

    assert (answer.status, list(answer.json["details"])) == (400, [pointer]), answer.body
    assert sender.usage() == (0, 0)


async def test_a_name_is_shown_and_is_nothing_else(sender: Sender) -> None:
    name = "../../etc/passwd%00.svg"

    ready = await sender.ready(PICTURE, name=name)

    assert ready["name"] == name
    assert not any("passwd" in key for key in sender.objects())


async def test_a_deactivated_user_brings_nothing(sender: Sender) -> None:
    sender.superuser.execute("UPDATE limner.end_user SET is_active = false WHERE org_id = %s", [sender.tenant.org_id])

    answer = await sender.announce(PICTURE)

    assert (answer.status, answer.json["code"]) == (403, "user_inactive")
    assert sender.usage() == (0, 0)


async def test_what_is_larger_encoded_afresh_counts_as_what_it_takes(sender: Sender) -> None:
    """AVIF is stored as PNG, several times its size."""
    noise = (
        pyvips.Image.gaussnoise(200, 200, mean=128, sigma=40)
        .cast("uchar")
        .bandjoin([90, 120])
        .copy(interpretation="srgb")
    )
    small = bytes(noise.heifsave_buffer(Q=30, compression="av1", effort=0))

    ready = await sender.ready(small)

    assert ready["bytes"] > 2 * len(small)
    assert sender.usage() == (ready["bytes"], 1)
