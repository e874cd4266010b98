"""Recordings in jobs: from an upload, a data URI or a URL, through a provider, to a text; and charged for the time that was worked on."""

import base64
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from aiohttp import web

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.openai_compatible import offers
from tests import acts
from tests.conftest import Server, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer, Says, Turn, heard_in
from tests.hub.api.conftest import CheckedClient
from tests.media import recordings
from tests.media.sending import Sender
from tests.running import Api, Client, start_worker
from tests.web.pictures import png

MODEL = "acme/listener"
KEY = "sk-listen-77aa"
SOUND = recordings.read("tone.mp3")
MAX_S = 60


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shelf() -> AsyncIterator[str]:
    """A customer's server with recordings on it."""

    async def give(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.Response(body=b"<html>" if name == "page.mp3" else recordings.read(name))

    application = web.Application()
    application.add_routes([web.get("/{name}", give)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture(scope="module")
def house(server: Server, db: Database, far: OpenAIServer, shelf: str) -> Iterator[Api]:
    reaching = {
        "LIMNER_DATABASE_URL": server.url, "LIMNER_EGRESS_ALLOW_ORIGINS": shelf, "LIMNER_MAX_AUDIO_S": str(MAX_S), "LIMNER_MAX_RUNS": "1",
        **far.environment,
    }  # fmt: skip
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

    async def sell(self, unit: str, price_mc: int, kind: offers.Kind = "audio.transcribe", **config: Any) -> None:
        async with self.db.tenant_tx(self.tenant.org_id, "limner_operator") as tx:
            facts = {
                "name": MODEL,
                "display_name": "Own",
                "kind": kind,
                "input_schema": offers.SCHEMAS[kind],
                "price_mc": price_mc,
            }
            await catalog.put_model(tx, {**facts, "price_unit": unit})
            far = {
                "name": "far",
                "display_name": "far",
                "adapter": "openai",
                "base_url": self.far.url,
                "config": config,
            }
            await catalog.put_provider(tx, far)
            await catalog.put_route(tx, MODEL, "far", provider_model="listener")
            await tx.execute("UPDATE limner.organization SET show_costs = true WHERE org_id = %s", [tx.org_id])

    async def buy(self, recording: str, *turns: Turn, **wanted: Any) -> tuple[Any, Any]:
        """The closed job and its receipt."""
        self.far.then(*turns)
        accepted = await self.client.generate(MODEL, input={"audio": recording, **wanted})
        assert accepted.status == 202, accepted.body
        job = await self.client.finished(accepted.json["job_id"])
        assert await acts.books(self.db, self.tenant.org_id) == {}
        return job, (await self.client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")).json


@pytest.fixture
def shop(
    db: Database, tenant: Tenant, house: Api, far: OpenAIServer, http: aiohttp.ClientSession, server: Server,
    superuser: psycopg.Connection,
) -> Shop:  # fmt: skip
    client = CheckedClient(http, house.url, tenant.api_key)
    return Shop(db, tenant, far, client, Sender(client, server, tenant, superuser))


def uri(data: bytes, kind: str = "audio/mpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def test_an_upload_becomes_a_text_charged_by_the_seconds_the_provider_counted(shop: Shop) -> None:
    await shop.sell("second", 100, minute_cost_micro_usd=6000)
    upload = await shop.sender.ready(recordings.read("tone.wav") + b"", kind="audio")
    shop.far.changes = lambda answer: {**answer, "usage": {"type": "duration", "seconds": 1}}
    try:
        job, receipt = await shop.buy(f"upload:{upload['id']}", language="de", prompt="Harbour", temperature=0.2)
    finally:
        shop.far.changes = lambda answer: answer

    [output] = job["outputs"]
    assert (job["status"], output["text"]) == ("succeeded", heard_in(recordings.read("tone.wav")))
    assert (output["facts"]["language"], output["facts"]["duration"]) == ("de", 2.9)
    assert output["facts"]["segments"] == [{"id": 0, "start": 0.0, "end": 2.9, "text": output["text"]}]
    asked = shop.far.asked[-1].body
    assert (asked["file"], asked["language"], asked["prompt"], asked["temperature"]) == (
        recordings.read("tone.wav"), "de", "Harbour", "0.2",
    )  # fmt: skip
    assert receipt["time_price"] == {"credits": "0.1", "unit": "second"}
    assert (receipt["credits"]["held"], receipt["credits"]["charged"]) == ("0.2", "0.1")
    assert receipt["usage"] == [
        {"kind": "audio", "quantity": 1, "unit": "second", "credits": "0.1", "cost_micro_usd": 100}
    ]
    assert receipt["provider_cost_micro_usd"] == 100
    left = shop.sender.superuser.execute(
        "SELECT count(*) FROM limner.job_input WHERE job_id = %s", [job["job_id"]]
    ).fetchone()
    assert left == (0,), "the job's copy of the recording goes with its end"


async def test_a_provider_that_counts_more_than_there_was_is_charged_as_the_hold(shop: Shop) -> None:
    await shop.sell("minute", 6000)

    job, receipt = await shop.buy(uri(SOUND))

    assert (job["status"], receipt["credits"]["held"], receipt["credits"]["charged"]) == ("succeeded", "0.2", "0.2")
    assert receipt["usage"][0]["quantity"] == 3, "what it said stands on the receipt"


async def test_without_the_providers_count_the_measured_seconds_are_charged(shop: Shop) -> None:
    await shop.sell("second", 100, transcription_format="json")
    shop.far.changes = lambda answer: {
        "text": "words",
        "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 5},
    }
    try:
        _, receipt = await shop.buy(uri(SOUND, "audio/webm;codecs=opus"))
    finally:
        shop.far.changes = lambda answer: answer

    assert shop.far.asked[-1].body["response_format"] == "json"
    assert receipt["credits"]["charged"] == "0.2"
    assert [(use["kind"], use["quantity"]) for use in receipt["usage"]] == [
        ("audio", 2),
        ("input_tokens", 14),
        ("output_tokens", 5),
    ]


async def test_a_recording_by_url_is_held_for_the_longest_and_charged_for_what_it_is(shop: Shop, shelf: str) -> None:
    await shop.sell("second", 10, transcription_format="json")
    shop.far.changes = lambda answer: {"text": answer["text"]}
    try:
        job, receipt = await shop.buy(f"{shelf}/tone.flac")
    finally:
        shop.far.changes = lambda answer: answer

    assert job["outputs"][0]["text"] == heard_in(recordings.read("tone.flac"))
    assert (receipt["credits"]["held"], receipt["credits"]["charged"]) == ("0.6", "0.02")


async def test_a_url_that_leads_to_a_page_fails_the_job_and_costs_nothing(shop: Shop, shelf: str) -> None:
    await shop.sell("second", 10)

    job, receipt = await shop.buy(f"{shelf}/page.mp3")

    assert (job["status"], job["error"]["code"], receipt["credits"]["charged"]) == ("failed", "unsupported_media", "0")


async def test_by_output_and_by_job_a_recording_has_one_price(shop: Shop) -> None:
    for unit in ("output", "job"):
        await shop.sell(unit, 2000)
        _, receipt = await shop.buy(uri(SOUND))
        assert (receipt["credits"]["charged"], receipt["usage"][1]["kind"]) == ("2", "audio")


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        (Says(400, {"error": {"message": "Invalid file format.", "param": "file"}}), "provider_refused"),
        (Says(200, {"text": "  "}), "provider_answer_empty"), (Says(200, {"text": 7}), "provider_answer_invalid"),
        (Says(401, {"error": {"message": f"bad key {KEY}"}}), "provider_auth"), ("hangs up", "provider_connection_lost"),
    ],
)  # fmt: skip
async def test_a_failure_costs_nothing_and_tells_nothing_of_the_providers_words(
    shop: Shop, turn: Turn, code: str
) -> None:
    await shop.sell("second", 10)
    shop.far.always(turn)
    try:
        job, receipt = await shop.buy(uri(SOUND))
    finally:
        shop.far.calm_down()

    assert (job["status"], receipt["credits"]["charged"]) == ("failed", "0")
    assert receipt["attempts"][0]["error"]["code"] == code
    assert KEY not in str(receipt) + str(job)


async def test_what_cannot_be_a_recording_is_400_with_its_pointer(shop: Shop) -> None:
    await shop.sell("second", 10)
    for recording, code in (
        ("song.mp3", "unsupported_media"), ("data:audio/mpeg;base64,!!!", "unsupported_media"), (uri(b"<html>"), "unsupported_media"),
        (uri(recordings.wav(MAX_S + 1)), "audio_too_long"), ("upload:nothing", "upload_not_found"),
        ("http://169.254.169.254/latest", "destination_not_allowed"),
    ):  # fmt: skip
        answer = await shop.client.generate(MODEL, input={"audio": recording})
        assert (answer.status, answer.json["code"]) == (400, code), (recording[:40], answer.body)
        assert list(answer.json["details"]) == ["/input/audio"]
    picture = await shop.client.generate(MODEL, input={"audio": uri(SOUND), "images": ["x"]})
    assert picture.status == 400
    assert (
        picture.json["error"]
        == f"Invalid input: {MODEL} is a model of audio.transcribe and takes audio, language, prompt, temperature."
    )


async def test_a_picture_that_was_uploaded_is_no_recording(shop: Shop) -> None:
    await shop.sell("second", 10)
    picture = await shop.sender.ready(png(8, 8))

    answer = await shop.client.generate(MODEL, input={"audio": f"upload:{picture['id']}"})

    assert (answer.status, answer.json["code"]) == (400, "unsupported_media")


async def transcribe(shop: Shop, **fields: Any) -> tuple[int, Any, Any]:
    """The answer of /v1 to a form."""
    form = aiohttp.FormData()
    for name, value in {"model": MODEL, "file": SOUND, **fields}.items():
        if isinstance(value, bytes):
            form.add_field(name, value, filename="speech.bin", content_type="application/octet-stream")
        elif value is not None:
            form.add_field(name, value)
    form._is_multipart = True
    sent = {"Authorization": f"Bearer {shop.tenant.api_key}", "X-User-ID": shop.tenant.user}
    async with shop.client.http.post(f"{shop.client.url}/v1/audio/transcriptions", data=form, headers=sent) as answer:
        body = await (answer.json() if "json" in answer.content_type else answer.text())
        return answer.status, body, answer.headers


async def test_openais_interface_answers_in_the_form_that_is_asked_for_and_charges(shop: Shop) -> None:
    await shop.sell("second", 100)
    text = heard_in(SOUND)

    status, body, headers = await transcribe(shop)
    assert (status, body) == (200, {"text": text, "usage": {"type": "duration", "seconds": 3}})
    assert (headers["x-limner-credits"], headers["x-limner-provider"]) == ("0.2", "far")
    status, body, headers = await transcribe(shop, response_format="text", language="en", temperature="0.5")
    assert (status, body, headers["content-type"]) == (200, f"{text}\n", "text/plain; charset=utf-8")
    assert (shop.far.asked[-1].body["language"], shop.far.asked[-1].body["temperature"]) == ("en", "0.5")
    status, body, _ = await transcribe(shop, response_format="verbose_json")
    assert (body["task"], body["language"], body["duration"], len(body["segments"])) == (
        "transcribe",
        "english",
        2.9,
        1,
    )


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"file": None}, "invalid_request", "file"), ({"file": b"<html>"}, "unsupported_media", "file"),
        ({"file": "text"}, "invalid_form", "file"), ({"model": None}, "invalid_request", "model"),
        ({"model": "local/canvas"}, "model_not_supported", "model"), ({"response_format": "srt"}, "invalid_request", "response_format"),
        ({"stream": "true"}, "unsupported_parameter", "stream"), ({"temperature": "7"}, "invalid_request", "temperature"),
        ({"timestamp_granularities[]": "word"}, "unsupported_parameter", "timestamp_granularities[]"),
    ],
)  # fmt: skip
async def test_openais_interface_refuses_in_its_own_words(
    shop: Shop, fields: dict[str, Any], code: str, param: str
) -> None:
    await shop.sell("second", 100)

    status, body, _ = await transcribe(shop, **fields)

    assert (status, body["error"]["code"], body["error"]["param"]) == (400, code, param), body
