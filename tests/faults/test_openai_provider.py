"""A server that speaks OpenAI's interface, through the front door: submitted over HTTP, worked on by a worker, told by a receipt."""

import base64
import json
import random
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from limner.db.pools import Database
from limner.hub import catalog
from limner.hub.providers.local.models import CANVAS
from limner.hub.providers.openai_compatible import offers
from limner.kit.money import MC
from tests import acts, tiers
from tests.conftest import Server, Tenant
from tests.emulators import openai_server
from tests.emulators.openai_server import OpenAIServer, Says, Turn, text_of, vector_of
from tests.faults.cluster import PICTURE, ApiProcess, Cluster
from tests.hub.doubles import png
from tests.running import Answer, Client, Process
from tests.tally import Tally

KEY = "sk-secret-9c41aa07d2"
OWN = "acme/own"
BUSY = Says(429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, {"Retry-After": "0"})
BROKEN = Says(500, {"error": {"message": "oh"}})
GARBAGE = Says(200, b"<html>")
UNKNOWN = "SELECT max(n) FROM (SELECT count(*) AS n FROM limner.provider_call WHERE org_id = %s AND state = 'unknown' GROUP BY job_id) x"
STORED = "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'limner'::regnamespace AND c.relkind = 'r'"


@pytest_asyncio.fixture(scope="module")
async def far() -> AsyncIterator[OpenAIServer]:
    async with openai_server.running(KEY) as server:
        yield server


@dataclass(frozen=True)
class House:
    """One API and one worker for this file; the worker knows the far server's address and has its key."""

    api: ApiProcess
    worker: Process


@pytest.fixture(scope="module")
def house(server: Server, db: Database, far: OpenAIServer) -> Iterator[House]:
    cluster = Cluster(server)
    api = cluster.api(wait=False)
    plain = f"{far.origin},{_nobody()}"
    worker = cluster.worker(**far.environment | {"LIMNER_EGRESS_PLAIN_ORIGINS": plain})
    api.wait()
    yield House(api, worker)
    cluster.end()


@dataclass
class Shop:
    """The tenant's own catalog, and its end user."""

    db: Database
    tenant: Tenant
    far: OpenAIServer
    client: Client

    async def sell(self, kind: offers.Kind, *providers: tuple[str, str | None, dict[str, Any]], price: int = 1) -> None:
        """`providers` in order of priority: name, address (None: the local adapter), configuration."""
        schema = offers.SCHEMAS[kind]
        async with self.db.tenant_tx(self.tenant.org_id, "limner_operator") as tx:
            await catalog.put_model(
                tx, {"name": OWN, "display_name": "Own", "kind": kind, "input_schema": schema, "price_mc": price * MC}
            )
            for place, (name, url, config) in enumerate(providers or (("far", self.far.url, {}),), start=1):
                adapter, model = ("local", CANVAS.name) if url is None else ("openai", _model_of(kind))
                facts = {"name": name, "display_name": name, "adapter": adapter, "base_url": url, "config": config}
                await catalog.put_provider(tx, facts)
                await catalog.put_route(tx, OWN, name, provider_model=model, priority=place)

    async def buy(self, *turns: Turn, **wanted: Any) -> tuple[Any, Any]:
        """The closed job and its receipt; `turns`: how the far server fares."""
        self.far.then(*turns)
        accepted = await self.client.generate(OWN, input=wanted if "text" in wanted else {"prompt": "a hare"} | wanted)
        assert accepted.status == 202, accepted.body
        job = await self.client.finished(accepted.json["job_id"])
        assert await acts.books(self.db, self.tenant.org_id) == {}
        return job, await self.receipt(job)

    async def receipt(self, job: Any) -> Any:
        return (await self.client.call("GET", f"/api/v1/jobs/{job['job_id']}/receipt")).json

    def asked(self, job: Any) -> int:
        return len(self.far.keys[job["job_id"]])


@pytest.fixture
def shop(db: Database, tenant: Tenant, house: House, far: OpenAIServer, http: aiohttp.ClientSession) -> Shop:
    return Shop(db, tenant, far, Client(http, house.api.url, tenant.api_key))


def _model_of(kind: offers.Kind) -> str:
    return "tiny" if kind in {"text.generate", "text.embed", "image.describe"} else "painter"


def _nobody() -> str:
    """An origin where nobody listens: of the ports that no service has."""
    return "http://127.0.0.1:1"


def _told(receipt: Any) -> list[tuple[str, str, str | None]]:
    return [(a["provider"], a["outcome"], a.get("error", {}).get("code")) for a in receipt["attempts"]]


async def test_a_text_arrives_with_its_tokens_on_the_receipt(shop: Shop) -> None:
    await shop.sell("text.generate", price=3)

    job, receipt = await shop.buy(system="Be brief.", temperature=0.5)

    assert (job["status"], job["provider_used"], job["tokens_charged"]) == ("succeeded", "far", 3)
    [output] = job["outputs"]
    assert (output["type"], output["text"], output["facts"]) == ("text", text_of("a hare"), {"finish_reason": "stop"})
    assert receipt["usage"] == [
        {"kind": "text", "quantity": 1, "unit": "text", "credits": "3"},
        {"kind": "input_tokens", "quantity": 12, "unit": "token", "credits": "0"},
        {"kind": "output_tokens", "quantity": 7, "unit": "token", "credits": "0"},
        {"kind": "cached_input_tokens", "quantity": 4, "unit": "token", "credits": "0"},
    ]
    asked = shop.far.asked[-1].body
    assert (asked["max_tokens"], asked["temperature"]) == (1024, 0.5), "what was priced is what is executed"


async def test_a_vector_arrives_number_by_number(shop: Shop) -> None:
    await shop.sell("text.embed", price=1)

    job, receipt = await shop.buy(text="a hare")

    [output] = job["outputs"]
    assert (job["status"], output["type"], output["vector"]) == ("succeeded", "vector", vector_of("a hare"))
    assert [(use["kind"], use["quantity"], use["credits"]) for use in receipt["usage"]] == [
        ("vector", 1, "1"), ("input_tokens", 3, "0"),
    ]  # fmt: skip


async def test_pictures_arrive_and_each_is_charged(shop: Shop) -> None:
    await shop.sell("image.generate", price=2)

    job, receipt = await shop.buy(num_outputs=2)

    assert (job["status"], job["tokens_charged"], len(job["outputs"])) == ("succeeded", 4, 2)
    got: list[Answer] = [await shop.client.call("GET", output["url"]) for output in job["outputs"]]
    assert all(answer.body.startswith(b"\x89PNG") for answer in got)
    assert [use["kind"] for use in receipt["usage"]] == ["image"]


async def test_a_picture_is_edited_where_its_mask_says(shop: Shop) -> None:
    await shop.sell("image.edit")

    job, _ = await shop.buy(images=[PICTURE], mask=PICTURE)

    assert job["status"] == "succeeded"
    sent = shop.far.asked[-1].body
    assert (sent["image"], sent["mask"]) == (png(8), png(8))


async def test_a_picture_is_described(shop: Shop) -> None:
    await shop.sell("image.describe")

    job, _ = await shop.buy(images=[PICTURE], prompt="What is it?")

    assert job["outputs"][0]["text"] == text_of("What is it?")


@pytest.mark.parametrize(
    ("turns", "told", "asked"),
    [
        ((BROKEN,), [("far", "error", "provider_unavailable"), ("far", "done", None)], 2),
        ((GARBAGE,), [("far", "error", "provider_answer_invalid"), ("far", "done", None)], 2),
        ((Says(200, {"choices": []}),), [("far", "error", "provider_answer_empty"), ("far", "done", None)], 2),
        ((BUSY,), [("far", "error", "provider_rate_limited"), ("far", "done", None)], 2),
        (("hangs up",), [("far", "unknown", "provider_connection_lost"), ("far", "done", None)], 2),
        (("hangs up afterwards",), [("far", "unknown", "provider_connection_lost"), ("far", "done", None)], 2),
        (("breaks off",), [("far", "unknown", "provider_connection_lost"), ("far", "done", None)], 2),
        (("stalls",), [("far", "unknown", "provider_timeout"), ("far", "done", None)], 2),
        (("is slow",), [("far", "done", None)], 1),
    ],
    ids=["broken", "garbage", "empty", "busy", "hangs-up", "hangs-up-afterwards", "breaks-off", "stalls", "slow"],
)
async def test_what_passes_is_tried_again_and_charged_once(
    shop: Shop, turns: tuple[Turn, ...], told: list[Any], asked: int
) -> None:
    limit_s = 0.5 if "stalls" in turns else 5
    await shop.sell("text.generate", ("far", shop.far.url, {"timeout_s": limit_s}))

    job, receipt = await shop.buy(*turns)

    assert (job["status"], job["tokens_charged"]) == ("succeeded", 1)
    assert (_told(receipt), shop.asked(job)) == (told, asked)
    assert [t["kind"] for t in receipt["transfers"]] == ["hold", "post"]
    assert receipt["credits"]["after"] == "999"


@pytest.mark.parametrize(
    ("turn", "code", "asked"),
    [
        (Says(400, {"error": {"message": "no", "param": "max_tokens"}}), "provider_refused", 1),
        (Says(400, {"error": {"message": "no", "code": "content_policy_violation"}}), "content_refused", 1),
        (Says(404, {"error": {"message": "model 'x' not found"}}), "provider_model_unknown", 1),
        (Says(401, {"error": {"message": "bad key"}}), "provider_auth", 3),
        (BROKEN, "provider_unavailable", 3),
    ],
    ids=["refused", "content", "model", "key", "broken"],
)
async def test_what_does_not_pass_fails_free_of_charge(shop: Shop, turn: Turn, code: str, asked: int) -> None:
    await shop.sell("text.generate")

    job, receipt = await shop.buy(*[turn] * asked)

    assert (job["status"], job["error"]["code"], job["tokens_charged"]) == ("failed", code, 0)
    assert shop.asked(job) == asked
    assert receipt["credits"]["after"] == receipt["credits"]["before"] == "1000"


async def test_mj9_a_server_whose_outcome_stays_unknown_is_asked_twice_and_no_more(shop: Shop) -> None:
    await shop.sell("text.generate")

    job, receipt = await shop.buy("hangs up afterwards", "hangs up afterwards")

    assert (job["status"], job["error"]["code"], job["tokens_charged"]) == ("failed", "outcome_unknown", 0)
    assert (shop.asked(job), shop.far.drawn[job["job_id"]]) == (2, 2)
    assert [outcome for _, outcome, _ in _told(receipt)] == ["unknown", "unknown"]
    assert receipt["credits"]["after"] == "1000"


@pytest.mark.parametrize("count", tiers.counts(40, 400))
async def test_mj9_whatever_becomes_of_each_call_nobody_pays_twice(
    shop: Shop, superuser: psycopg.Connection, count: int, tally: Tally
) -> None:
    """Jobs all at once, and every call has a fate of its own."""
    await shop.sell("text.generate", ("far", shop.far.url, {"timeout_s": 1}))
    fates: list[Turn] = [None, None, BROKEN, BUSY, GARBAGE, "hangs up", "hangs up afterwards", "breaks off", "stalls"]
    shop.far.then(*random.Random(count).choices(fates, k=4 * count))

    accepted = [await shop.client.generate(OWN, input={"prompt": f"hare {n}"}) for n in range(count)]
    jobs = [await shop.client.finished(answer.json["job_id"], 60 + count) for answer in accepted]

    shop.far.calm_down()
    won = [job for job in jobs if job["status"] == "succeeded"]
    drawn = [shop.far.drawn[job["job_id"]] for job in jobs]
    unknown = superuser.execute(UNKNOWN, [shop.tenant.org_id]).fetchone()
    tally("MJ9", far="openai", fates=count, won=len(won), drawn_twice=sum(times > 1 for times in drawn))
    assert 0 < len(won) < count, "some of each, or nothing was tried"
    assert {job["tokens_charged"] for job in won} == {1}
    assert {job["tokens_charged"] for job in jobs if job not in won} == {0}
    assert max(drawn) == 2, "once, and once more after an outcome that nobody knows"
    assert unknown == (2,)
    wallet = await acts.wallet(shop.db, shop.tenant)
    assert (wallet.available_mc, wallet.held_mc) == ((shop.tenant.credits - len(won)) * MC, 0)
    assert await acts.books(shop.db, shop.tenant.org_id) == {}


async def test_a_server_that_is_busy_uses_up_no_run(shop: Shop) -> None:
    await shop.sell("text.generate")

    job, receipt = await shop.buy(*[BUSY] * 4)

    assert (job["status"], receipt["runs"], shop.asked(job)) == ("succeeded", 1, 5), (
        "five tries of one run, and three are allowed"
    )


# Failover


async def test_when_the_far_server_is_down_the_local_provider_delivers(shop: Shop) -> None:
    await shop.sell("image.generate", ("down", f"{_nobody()}/v1", {}), ("near", None, {}))

    job, receipt = await shop.buy()

    assert (job["status"], job["provider_used"]) == ("succeeded", "near")
    assert _told(receipt) == [("down", "error", "provider_unreachable"), ("near", "done", None)]
    assert receipt["attempts"][1]["rule"] == "2 of 2 by priority 2, after down failed"


@pytest.mark.parametrize(
    "turn",
    [BUSY, BROKEN, Says(404, {"error": "no model"}), Says(401, {}), "hangs up afterwards"],
    ids=["busy", "broken", "model", "key", "lost"],
)
async def test_what_the_far_server_cannot_do_the_local_provider_does_at_once(shop: Shop, turn: Turn) -> None:
    await shop.sell("image.generate", ("far", shop.far.url, {}), ("near", None, {}))

    job, receipt = await shop.buy(turn)

    assert (job["status"], job["provider_used"], receipt["runs"], shop.asked(job)) == ("succeeded", "near", 1, 1)


async def test_when_the_local_provider_has_no_time_the_far_server_delivers(shop: Shop) -> None:
    await shop.sell("image.generate", ("near", None, {"time_limit_ms": 1}), ("far", shop.far.url, {}))

    job, receipt = await shop.buy()

    assert (job["status"], job["provider_used"]) == ("succeeded", "far")
    assert _told(receipt) == [("near", "error", "provider_timeout"), ("far", "done", None)]


async def test_what_only_one_of_them_takes_goes_to_that_one(shop: Shop) -> None:
    await shop.sell("image.generate", ("near", None, {}), ("far", shop.far.url, {}))

    job, receipt = await shop.buy(size="1024x1024")

    assert job["provider_used"] == "far"
    assert _told(receipt) == [("near", "error", "unsupported_input"), ("far", "done", None)]
    assert shop.far.asked[-1].body["size"] == "1024x1024"


async def test_an_address_that_is_not_allowed_is_passed_over(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}/v1"
        await shop.sell("image.generate", ("strange", url, {}), ("near", None, {}))

        job, receipt = await shop.buy()

        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert job["provider_used"] == "near"
    assert _told(receipt) == [("strange", "error", "provider_not_allowed"), ("near", "done", None)]


# Secrets


async def test_no_key_is_in_logs_errors_receipts_or_the_database(
    shop: Shop, house: House, far: OpenAIServer, superuser: psycopg.Connection
) -> None:
    """The server repeats the key it was sent in every field of its errors, and in the wrong places of its answers."""
    await shop.sell("text.generate")
    echo = {"error": {"message": f"Bearer {KEY}", "type": KEY, "param": KEY, "code": KEY}}
    usage = {"prompt_tokens": KEY, "completion_tokens": KEY}
    odd = {"choices": [{"message": {"content": "words"}, "finish_reason": KEY}], "usage": usage, "model": KEY}
    said: list[Any] = []
    for turns in ([Says(401, echo)] * 3, [Says(400, echo)], [Says(429, echo), Says(500, echo), Says(200, odd)]):
        said += await shop.buy(*turns)
    assert [body["status"] for body in said[::2]] == ["failed", "failed", "succeeded"]
    assert far.asked[-1].headers["authorization"] == f"Bearer {KEY}", "it had the key to give away"

    tables = [row[0] for row in superuser.execute(STORED)]
    rows = [str(row[0]) for table in tables for row in superuser.execute(f"SELECT t::text FROM limner.{table} t")]

    assert "provider_call" in tables
    assert any("provider_auth" in row for row in rows), "this is where it would be"
    for place in (json.dumps(said), house.worker.output(), house.api.output(), *rows):
        assert KEY not in place
        assert base64.b64encode(KEY.encode()).decode() not in place
