"""Every kind of work is reachable, says what it takes, and refuses what it cannot; behind a model that sees stands the local one."""

import base64
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.local.models import DESCRIBE
from limner.hub.providers.openai_compatible import offers
from tests import acts
from tests.conftest import Server, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer, Says, Turn, text_of
from tests.hub.api.conftest import CheckedClient
from tests.hub.api.test_upload_described import describe, described
from tests.media.sending import Sender
from tests.running import Api, Client, start_worker
from tests.web.pictures import png, uri

MODEL = "acme/variations"
KEY = "sk-kinds-8c11"
PICTURE = png(16, 16)
LOCAL = {
    "image.generate",
    "image.edit",
    "image.stylise",
    "image.upscale",
    "image.describe",
    "text.check",
    "text.generate",
    "text.embed",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY) as server:
        yield server


@pytest.fixture(scope="module")
def house(server: Server, db: Database, far: OpenAIServer) -> Iterator[Api]:
    reaching = {"LIMNER_DATABASE_URL": server.url, "LIMNER_MAX_RUNS": "1", **far.environment}
    api, worker = Api(server.home, **reaching), start_worker(server.home, **reaching)
    yield api
    api.stop()
    worker.stop()


@dataclass
class Shop:
    db: Database
    tenant: Tenant
    far: OpenAIServer
    client: Client
    sender: Sender

    async def sell(
        self, name: str, kind: offers.Kind, *routes: tuple[str, str, str], schema: dict[str, Any] | None = None
    ) -> None:
        """`routes`: provider, adapter, the provider's own model; first goes first."""
        async with self.db.tenant_tx(self.tenant.org_id, "limner_operator") as tx:
            facts = {
                "name": name,
                "display_name": name,
                "kind": kind,
                "input_schema": schema or offers.SCHEMAS[kind],
                "price_mc": 2000,
            }
            await catalog.put_model(tx, facts)
            for place, (provider, adapter, model) in enumerate(routes, start=1):
                if adapter != "local":
                    url = {"name": provider, "display_name": provider, "adapter": adapter, "base_url": self.far.url}
                    await catalog.put_provider(tx, url)
                await catalog.put_route(tx, name, provider, provider_model=model, priority=place)

    async def buy(self, model: str, **wanted: Any) -> Any:
        accepted = await self.client.generate(model, input=wanted)
        assert accepted.status == 202, accepted.body
        return await self.client.finished(accepted.json["job_id"])


@pytest.fixture
def shop(
    db: Database, tenant: Tenant, house: Api, far: OpenAIServer, http: aiohttp.ClientSession, server: Server,
    superuser: psycopg.Connection,
) -> Iterator[Shop]:  # fmt: skip
    client = CheckedClient(http, house.url, tenant.api_key)
    yield Shop(db, tenant, far, client, Sender(client, server, tenant, superuser))
    far.calm_down()


async def test_every_local_kind_is_listed_with_a_schema_and_works(shop: Shop) -> None:
    listed = (await shop.client.call("GET", "/api/v1/models")).json["models"]

    assert {model["kind"] for model in listed} >= LOCAL
    for model in listed:
        assert model["input_schema"]["additionalProperties"] is False, model["name"]
    upscaled = await shop.buy("local/upscale", images=[uri(PICTURE)], scale=4)
    stylised = await shop.buy("local/stylise", images=[uri(PICTURE)], style="sketch")
    assert (upscaled["outputs"][0]["width"], stylised["outputs"][0]["width"]) == (64, 16)


async def test_what_a_model_cannot_do_is_400_and_says_what_it_can(shop: Shop) -> None:
    for model, wanted, words in (
        (
            "local/canvas",
            {"prompt": "x", "mask": uri(PICTURE)},
            "is a model of image.generate and takes aspect_ratio, num_outputs, prompt",
        ),
        (
            "local/upscale",
            {"images": [uri(PICTURE)], "style": "oil"},
            "is a model of image.upscale and takes images, scale",
        ),
        ("local/describe", {"images": [uri(PICTURE)], "audio": "x"}, "is a model of image.describe and takes images"),
    ):
        answer = await shop.client.generate(model, input=wanted)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        assert words in answer.json["error"]
        assert len(answer.json["details"]) == 1


async def test_variations_of_a_picture_by_a_job_and_by_openais_interface(shop: Shop) -> None:
    await shop.sell(MODEL, "image.variations", ("far", "openai", "painter"))

    job = await shop.buy(MODEL, images=[uri(PICTURE)], num_outputs=2, size="256x256")

    assert (len(job["outputs"]), job["tokens_charged"]) == (2, 4)
    asked = shop.far.asked[-1]
    assert (asked.path, asked.body["n"], asked.body["size"], asked.body["image"]) == (
        "/v1/images/variations",
        "2",
        "256x256",
        PICTURE,
    )
    status, body = await vary(shop, image=PICTURE, n="2")
    assert (status, len(body["data"])) == (200, 2)
    assert base64.b64decode(body["data"][0]["b64_json"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "invalid_request", "image"), ({"image": b"<html>"}, "unsupported_media", "image"),
        ({"image": PICTURE, "mask": "x"}, "invalid_request", "mask"), ({"image": PICTURE, "model": "local/canvas"}, "model_not_supported",
         "model"),
        ({"image": PICTURE, "size": "7x7"}, "invalid_request", "size"), ({"image": PICTURE, "prompt": "a hare"}, None, None),
    ],
)  # fmt: skip
async def test_openais_interface_refuses_what_varies_nothing(
    shop: Shop, fields: dict[str, Any], code: str | None, param: str | None
) -> None:
    await shop.sell(MODEL, "image.variations", ("far", "openai", "painter"))

    status, body = await vary(shop, **fields)

    if code is None:  # clients of other endpoints always send one
        assert status == 200
    else:
        assert (status, body["error"]["code"], body["error"]["param"]) == (400, code, param), body


async def vary(shop: Shop, **fields: Any) -> tuple[int, Any]:
    form = aiohttp.FormData()
    for name, value in {"model": MODEL, **fields}.items():
        form.add_field(name, value, **({"filename": "a.png"} if isinstance(value, bytes) else {}))
    form._is_multipart = True
    sent = {"Authorization": f"Bearer {shop.tenant.api_key}", "X-User-ID": shop.tenant.user}
    async with shop.client.http.post(f"{shop.client.url}/v1/images/variations", data=form, headers=sent) as answer:
        return answer.status, await answer.json()


# A picture described by a model that sees, and by the local one where it does not answer

SEEN = (("far", "openai", "tiny"), ("local", "local", DESCRIBE.name))


async def test_a_model_that_sees_describes_first(shop: Shop) -> None:
    await shop.sell(DESCRIBE.name, "image.describe", *SEEN, schema=DESCRIBE.input_schema)
    upload = await shop.sender.ready(PICTURE)

    await describe(shop.sender, upload["id"])
    shown = await described(shop.sender, upload["id"])

    job = await shop.client.finished(shown["description"]["job_id"])
    assert (job["provider_used"], shown["description"]["text"].startswith("Some words about")) == ("far", True)
    assert shop.far.asked[-1].body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        ("hangs up", "provider_connection_lost"), (Says(401, {"error": {"message": "no key"}}), "provider_auth"),
        (Says(503, {}), "provider_unavailable"), (Says(400, {"error": {"code": "content_policy_violation"}}), "content_refused"),
        (Says(400, {"error": {"message": "not such a picture"}}), "provider_refused"),
    ],
)  # fmt: skip
async def test_where_it_does_not_the_local_one_does_and_the_receipt_says_so(shop: Shop, turn: Turn, code: str) -> None:
    await shop.sell(DESCRIBE.name, "image.describe", *SEEN, schema=DESCRIBE.input_schema)
    shop.far.always(turn)
    upload = await shop.sender.ready(PICTURE)

    await describe(shop.sender, upload["id"])
    shown = await described(shop.sender, upload["id"])

    receipt = (await shop.client.call("GET", f"/api/v1/jobs/{shown['description']['job_id']}/receipt")).json
    told = [
        (attempt["provider"], attempt["outcome"], attempt.get("error", {}).get("code"))
        for attempt in receipt["attempts"]
    ]
    assert told[0][0::2] == ("far", code)
    assert told[1] == ("local", "done", None)
    assert (receipt["provider_used"], receipt["rule"]) == ("local", "2 of 2 by priority 2, after far failed")
    assert shown["description"]["tags"]
    assert "16" in shown["description"]["text"]
    assert text_of("x")[:4] not in shown["description"]["text"]
    assert await acts.books(shop.db, shop.tenant.org_id) == {}
