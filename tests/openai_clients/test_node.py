"""OpenAI's Node client, unchanged: the same as the Python client's main list."""

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from PIL import Image

from limner.db.pools import Database
from limner.tenancy import apps
from tests.conftest import Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer, Says
from tests.faults.cluster import eventually
from tests.openai_clients import node
from tests.openai_clients.shop import CHAT, EDITS, JUDGE, PICTURES, STREAM_MC, WHOLE_MC, Books
from tests.running import Api

pytestmark = node.needed
SAID = openai_server.text_of("a lighthouse")
Talk = Callable[[str], Awaitable[Any]]


@pytest.fixture
def talk(house: Api, shop: Tenant, photo: bytes, hole: bytes) -> Talk:
    """Has the talk of this name, and answers what the client got."""
    asked = {
        "url": house.url, "key": shop.api_key, "user": shop.user,
        "models": {"chat": CHAT, "pictures": PICTURES, "edits": EDITS},
        "photo": base64.b64encode(photo).decode(), "hole": base64.b64encode(hole).decode(),
    }  # fmt: skip

    async def have(name: str) -> Any:
        folder = await asyncio.to_thread(node.installed)
        process = await asyncio.create_subprocess_exec(
            "node", "talk.mjs", name, cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(json.dumps(asked).encode()), 60)
        assert process.returncode == 0, err.decode()
        return json.loads(out)

    return have


async def test_a_chat(talk: Talk, books: Books) -> None:
    got = await talk("chat")

    assert (got["words"], got["provider"], got["usage"]["completion_tokens"]) == (SAID, "far", 7)
    assert got["request_id"]
    await eventually(lambda: books.jobs() == [("succeeded", WHOLE_MC)])


async def test_a_stream_with_its_usage(talk: Talk, books: Books) -> None:
    got = await talk("stream")

    assert (got["words"], got["usage"]["completion_tokens"]) == ("".join(f"word{n} " for n in range(20)), 20)
    await eventually(lambda: books.jobs() == [("succeeded", STREAM_MC)])


async def test_tools_are_called_and_their_results_taken(talk: Talk) -> None:
    got = await talk("tools")

    assert (got["call"]["name"], json.loads(got["call"]["arguments"])) == ("weather", {"place": "a lighthouse"})
    assert (got["streamed"]["name"], got["streamed"]["arguments"]) == (got["call"]["name"], got["call"]["arguments"])
    assert got["words"] == openai_server.text_of("fog")


async def test_pictures_and_schemas_are_handed_on(talk: Talk, far: OpenAIServer) -> None:
    assert await talk("vision") == openai_server.text_of("what is this")
    assert far.asked[-1].body["messages"][0]["content"][1]["type"] == "image_url"
    assert await talk("schema") == {"words": SAID}
    assert far.asked[-1].body["response_format"]["json_schema"]["name"] == "said"


async def test_vectors_in_base64_and_as_numbers(talk: Talk) -> None:
    got = await talk("vectors")

    assert got["length"] == 384
    assert got["apart"] < 1e-6


async def test_pictures_are_made(talk: Talk) -> None:
    assert await talk("pictures") == {"begins": "PNG", "url": 200}


async def test_a_picture_is_edited_by_a_mask(talk: Talk, far: OpenAIServer, photo: bytes) -> None:
    got = await talk("edits")

    image = Image.open(io.BytesIO(base64.b64decode(got["edited"]))).convert("RGB")
    red, green, _ = image.getpixel((16, 12))  # type: ignore[misc]
    assert (image.size, red > 150, green < 90) == ((32, 24), True, True)
    assert (got["several"], far.asked[-1].body["image[]"]) == (2, [photo, photo])


async def test_models_are_listed_and_texts_judged(talk: Talk) -> None:
    got = await talk("models")

    assert {CHAT, JUDGE, "local/extract"} <= set(got["found"])
    assert (got["one"]["id"], got["one"]["owned_by"]) == ("local/extract", "platform")
    assert await talk("moderations") == [False, True]


async def test_what_is_wrong_is_raised_as_what_it_is(talk: Talk, books: Books) -> None:
    got = await talk("errors")

    told = {name: (error["name"], error["status"], error["code"], error["param"]) for name, error in got.items()}
    assert told == {
        "key": ("AuthenticationError", 401, "invalid_api_key", None),
        "model": ("NotFoundError", 404, "model_not_found", "model"),
        "request": ("BadRequestError", 400, "invalid_request", "max_tokens"),
        "credits": ("APIError", 402, "insufficient_quota", None),
        "picture": ("BadRequestError", 400, "invalid_request", "mask"),
    }
    assert books.jobs() == []


async def test_too_many_requests(talk: Talk, db: Database, shop: Tenant) -> None:
    async with db.tenant_tx(shop.org_id, "limner_operator") as tx:
        await apps.set_limits(tx, shop.app, {"user_jobs_per_min": 1}, actor="test")

    got = await talk("limits")

    assert (got["name"], got["status"], got["code"]) == ("RateLimitError", 429, "rate_limit_exceeded")
    assert 0 < int(got["retryAfter"]) <= 60


@pytest.mark.parametrize("trouble", [500, 429])
async def test_the_clients_own_retries_are_charged_once(
    talk: Talk, far: OpenAIServer, books: Books, trouble: int
) -> None:
    far.then(Says(trouble, {"error": {"message": "oh"}}, {"retry-after": "0"}))

    assert await talk("retries") == SAID
    await eventually(lambda: books.jobs() == [("failed", 0), ("succeeded", WHOLE_MC)])
    assert books.wallet() == (100_000 - WHOLE_MC, 0)


async def test_a_client_that_stops_waiting_leaves_no_hold_behind(talk: Talk, far: OpenAIServer, books: Books) -> None:
    far.then("is slow")

    assert (await talk("timeouts"))["name"] == "APIConnectionTimeoutError"
    await eventually(books.closed)
    assert books.jobs() == [("succeeded", WHOLE_MC)]
