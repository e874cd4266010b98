"""`/v1/images/edits`: a form with a picture and a mask, made into a job, and refused in OpenAI's words where it cannot be one."""

import base64
import io
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from PIL import Image

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from limner.tenancy import apps
from limner.web import forms
from tests.conftest import MakeTenant, Server, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer
from tests.running import Api, start_worker
from tests.web import pictures

MODEL = "acme/edits"
KEY = "sk-edit-51f0"
MAX_IMAGE_BYTES = 200_000
Parts = list[tuple[str, Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY) as server:
        yield server


@pytest.fixture(scope="module")
def house(server: Server, db: Database, far: OpenAIServer) -> Any:
    """An API and a worker that reach the emulated server, and take small files only."""
    reaching = {
        "LIMNER_DATABASE_URL": server.url,
        **far.environment,
        "LIMNER_MAX_IMAGE_BYTES": str(MAX_IMAGE_BYTES),
    }
    api, worker = Api(server.home, **reaching), start_worker(server.home, **reaching)
    yield api
    api.stop()
    worker.stop()


def picture(width: int = 32, height: int = 24, kind: str = "PNG") -> bytes:
    """A red surface with a white spot in the middle."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((255, 255, 255), (width // 2 - 3, height // 2 - 3, width // 2 + 3, height // 2 + 3))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def mask(width: int = 32, height: int = 24, alpha: int = 0) -> bytes:
    """Opaque but for a square around the spot."""
    image = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    image.paste((0, 0, 0, alpha), (width // 2 - 5, height // 2 - 5, width // 2 + 5, height // 2 + 5))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def form(parts: Parts) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in parts:
        if isinstance(value, bytes):
            data.add_field(name, value, filename=f"{name}.png", content_type="application/octet-stream")
        else:
            data.add_field(name, value, content_type="text/plain")
    data._is_multipart = True
    return data


def fields(**changed: Any) -> Parts:
    """A request for the local model, with some fields changed, and those that are None left out."""
    asked = {"model": "local/inpaint", "prompt": "no spot", "image": picture(), "mask": mask(), **changed}
    return [(name, value) for name, value in asked.items() if value is not None]


async def ask(
    house: Api, tenant: Tenant, data: Any, headers: Mapping[str, str] | None = None
) -> tuple[int, Any, Mapping[str, str]]:
    sent = {"Authorization": f"Bearer {tenant.api_key}", "X-User-ID": tenant.user, **(headers or {})}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{house.url}/v1/images/edits", data=data, headers=sent) as answer,
    ):
        return answer.status, await answer.json(), answer.headers


def jobs_of(superuser: psycopg.Connection, tenant: Tenant) -> list[tuple[str, str, int]]:
    return superuser.execute(
        "SELECT kind, state, price_final_mc FROM limner.job WHERE org_id = %s ORDER BY id", [tenant.org_id]
    ).fetchall()


async def test_the_transparent_part_of_the_mask_is_filled(
    house: Api, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    status, body, headers = await ask(house, tenant, form(fields(n="1", size="auto", response_format="b64_json")))

    assert status == 200, body
    [made] = body["data"]
    image = Image.open(io.BytesIO(base64.b64decode(made["b64_json"]))).convert("RGB")
    red, green, _ = image.getpixel((16, 12))  # type: ignore[misc]
    assert (image.size, red > 150, green < 90) == ((32, 24), True, True)
    assert (headers["x-limner-provider"], headers["x-limner-credits"]) == ("local", "2")
    assert jobs_of(superuser, tenant) == [("image.edit", "succeeded", 2000)]


async def test_a_models_own_fields_come_as_texts(house: Api, tenant: Tenant) -> None:
    status, body, _ = await ask(house, tenant, form(fields(radius="8", method="ns", response_format="url")))
    assert status == 200, body
    assert body["data"][0]["url"].startswith(house.url)

    status, body, _ = await ask(house, tenant, form(fields(radius="eight")))
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_request", "radius")


@pytest.mark.parametrize("names", [("image",), ("image[]",), ("image[]", "image[]"), ("image", "image")])
async def test_one_or_several_pictures_are_handed_on_to_a_provider(
    house: Api, db: Database, tenant: Tenant, far: OpenAIServer, names: tuple[str, ...]
) -> None:
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        schema = offers.SCHEMAS["image.edit"]
        facts = {"name": MODEL, "display_name": "Edits", "kind": "image.edit", "input_schema": schema, "price_mc": 3000}
        await catalog.put_model(tx, facts)
        await catalog.put_provider(tx, {"name": "far", "display_name": "far", "adapter": "openai", "base_url": far.url})
        await catalog.put_route(tx, MODEL, "far", provider_model="painter")
    sent = [picture(32, 24), picture(40, 40, "JPEG")][: len(names)]

    parts = [("model", MODEL), ("prompt", "7"), ("n", "2"), ("size", "1024x1024"), ("mask", mask())]
    status, body, headers = await ask(house, tenant, form([*parts, *zip(names, sent, strict=True)]))

    assert (status, len(body["data"])) == (200, 2)
    assert headers["x-limner-credits"] == "6"
    got = far.asked[-1].body
    assert (got["model"], got["prompt"], got["n"], got["size"]) == ("painter", "7", "2", "1024x1024")
    assert (got.get("image[]") or [got["image"]], got["mask"]) == (sent, mask())


@pytest.mark.parametrize(
    ("changed", "status", "code", "param"),
    [
        ({"image": None}, 400, "invalid_request", "image"),
        ({"image": "a text"}, 400, "invalid_form", "image"),
        ({"image": b"%PDF-1.7"}, 400, "unsupported_media", "image"),
        ({"image": picture()[:60]}, 400, "unreadable_image", "image"),
        ({"image": pictures.claims(50_000, 50_000)}, 400, "image_too_large", "image"),
        ({"image": bytes(MAX_IMAGE_BYTES + 1)}, 413, "part_too_large", "image"),
        ({"mask": bytes(MAX_IMAGE_BYTES + 1)}, 413, "part_too_large", "mask"),
        ({"prompt": "x" * (forms.MAX_TEXT_BYTES + 1)}, 413, "part_too_large", "prompt"),
        ({"mask": mask(16, 24)}, 400, "mask_size_mismatch", "mask"),
        ({"mask": picture(kind="JPEG")}, 400, "unsupported_media", "mask"),
        ({"mask": None}, 400, "invalid_request", "mask"),
        ({"model": None}, 400, "invalid_request", "model"),
        ({"model": "no/such"}, 404, "model_not_found", "model"),
        ({"model": "local/canvas"}, 400, "model_not_supported", "model"),
        ({"n": "2"}, 400, "invalid_request", "n"),
        ({"size": "17x4"}, 400, "invalid_request", "size"),
        ({"stream": "true"}, 400, "unsupported_parameter", "stream"),
        ({"response_format": "gif"}, 400, "invalid_request", "response_format"),
        ({"no_such_field": "1"}, 400, "invalid_request", "no_such_field"),
        ({"user": "a\0b"}, 400, "invalid_request", "user"),
    ],
)
async def test_what_cannot_be_edited_is_refused_in_openais_words(
    house: Api,
    tenant: Tenant,
    superuser: psycopg.Connection,
    changed: dict[str, Any],
    status: int,
    code: str,
    param: str,
) -> None:
    said, body, _ = await ask(house, tenant, form(fields(**changed)))

    assert (said, body["error"]["code"], body["error"]["param"]) == (status, code, param)
    assert body["error"]["type"] == "invalid_request_error"
    assert jobs_of(superuser, tenant) == []


@pytest.mark.parametrize(("alpha", "code"), [(255, "mask_empty"), (128, "mask_empty")])
async def test_what_only_the_worker_can_tell_is_the_requests_fault_too(
    house: Api, tenant: Tenant, superuser: psycopg.Connection, alpha: int, code: str
) -> None:
    status, body, _ = await ask(house, tenant, form(fields(mask=mask(alpha=alpha))))

    assert (status, body["error"]["code"], body["error"]["type"]) == (400, code, "invalid_request_error")
    assert jobs_of(superuser, tenant) == [("image.edit", "failed", 0)]


START = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nlocal/inpaint\r\n'


@pytest.mark.parametrize(
    ("kind", "data", "status", "code"),
    [
        ("application/json", b"{}", 415, "unsupported_media_type"),
        ("application/x-www-form-urlencoded", b"model=x", 415, "unsupported_media_type"),
        ("multipart/form-data", START + b"--b--\r\n", 400, "invalid_form"),
        ("multipart/form-data; boundary=" + "b" * 300, START, 400, "invalid_form"),
        ("multipart/form-data; boundary=b", b"", 400, "invalid_form"),
        ("multipart/form-data; boundary=b", START, 400, "invalid_form"),
        ("multipart/form-data; boundary=b", b"{}" * 200, 400, "invalid_form"),
        ("multipart/form-data; boundary=b", START.replace(b'name="model"', b"") + b"--b--\r\n", 400, "invalid_form"),
        ("multipart/form-data; boundary=b", START.replace(b"local", b"\xff") + b"--b--\r\n", 400, "invalid_request"),
        ("multipart/form-data; boundary=b", START * 2 + b"--b--\r\n", 400, "invalid_form"),
        ("multipart/form-data; boundary=b", START * (forms.MAX_PARTS + 1) + b"--b--\r\n", 400, "invalid_form"),
        ("multipart/form-data; boundary=b", START.replace(b"Content", b"X: 1\r\n" * 99 + b"C") + b"--b--\r\n", 400, "invalid_form"),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_form_is_refused(
    house: Api, tenant: Tenant, kind: str, data: bytes, status: int, code: str
) -> None:
    said, body, _ = await ask(house, tenant, data, {"Content-Type": kind})

    assert (said, body["error"]["code"]) == (status, code), body
    assert "python_multipart" not in house.output()


async def test_a_file_that_is_far_too_large_is_refused_to_a_client_that_is_still_sending(
    house: Api, tenant: Tenant
) -> None:
    status, body, _ = await ask(house, tenant, form(fields(image=bytes(40_000_000))))
    assert (status, body["error"]["code"], body["error"]["limit_bytes"]) == (413, "part_too_large", MAX_IMAGE_BYTES)

    status, body, _ = await ask(house, tenant, form(fields(image=bytes(70_000_000))))
    assert (status, body["error"]["code"]) == (413, "body_too_large")


async def test_the_same_edit_by_the_same_key_is_made_once(
    house: Api, tenant: Tenant, superuser: psycopg.Connection
) -> None:
    key = {"Idempotency-Key": "edit-1"}
    first = await ask(house, tenant, form(fields()), key)
    again = await ask(house, tenant, form(fields()), key)
    other = await ask(house, tenant, form(fields(image=picture(kind="WEBP"))), key)

    assert (first[0], again[0], again[1]["data"]) == (200, 200, first[1]["data"])
    assert (other[0], other[1]["error"]["code"]) == (422, "idempotency_key_reused")
    assert jobs_of(superuser, tenant) == [("image.edit", "succeeded", 2000)]


@pytest.mark.parametrize("allowed", [False, True])
async def test_the_user_field_names_who_pays_where_the_app_says_so(
    house: Api, db: Database, make_tenant: MakeTenant, allowed: bool
) -> None:
    tenant = await make_tenant(scopes=("jobs:create",))
    async with db.tenant_tx(tenant.org_id, "limner_operator") as tx:
        await apps.change(tx, tenant.app, actor="test", body_users=allowed)

    bearer = {"Authorization": f"Bearer {tenant.api_key}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{house.url}/v1/images/edits", data=form(fields(user=tenant.user)), headers=bearer) as answer,
    ):
        body = await answer.json()

    if allowed:
        assert (answer.status, answer.headers["x-limner-balance"]) == (200, "998")
    else:
        assert (answer.status, body["error"]["code"]) == (400, "missing_user")
